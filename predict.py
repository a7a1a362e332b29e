"""Classify your own pictures of digits with the published weights of the final net.

python predict.py IMAGE [IMAGE ...]         the digit, its probability, and the runner-up;
                                            "not sure: 4 (62.0%) or 9 (30.1%)" below 90 %
python predict.py --json IMAGE [IMAGE ...]  the same as JSON
python predict.py --show IMAGE [IMAGE ...]  also write the net's input, 28x28 pixels, beside each image: NAME-seen.png

The exit code is 0, or 2 if an image was refused.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from model import FinalNet
from tinymnist.cli import OneLineParser
from tinymnist.picture import PictureError, open_picture
from tinymnist.prepare import PROBLEMS, as_in_mnist, prepare
from tinymnist.runs import RESULTS, load_weights, write_atomically
from utils import normalize

SURE = 0.9  # answers that are less probable are printed with both candidates
NONE = 6.5  # logit of an eleventh answer, none of the digits: one in 1,000 of MNIST's training images has less evidence
MARK = "Seen by predict.py"  # the key of a PNG text that names the image whose input a file shows


def load_net(seed: int = 0) -> FinalNet:
    """The final net with the published weights of a seed, in evaluation mode on the CPU.

    Raises:
        ValueError: no weights are published for that seed.
        OSError: the file of the weights is missing or damaged.
    """
    net = FinalNet()
    load_weights(net, RESULTS / "step3.pt", seed)
    return net.eval()


@torch.no_grad()
def classify(net: FinalNet, image: Tensor, none: float = NONE) -> list[float]:
    """The probabilities of the ten digits for one image, uint8 (28, 28), white on black.

    What they lack to 1 is the probability that the image shows none of the digits. It has a fixed logit: all logits of
    a net are low for what is unlike its training images (the energy score of Liu et al., 2020).

    Args:
        net: gives logits (N, 10).
        image: what to classify.
        none: the logit of no digit; -inf for an image that certainly shows one.
    """
    logits = net(normalize(image[None]))[0]
    return torch.cat([logits, logits.new_tensor([none])]).softmax(0)[:-1].tolist()


def write_seen(path: Path, image: Tensor) -> Path:
    """Write the net's input, uint8 (28, 28), beside an image file, over nothing but an earlier input of the same file.

    Returns:
        the file written: NAME-seen.png, or NAME.EXTENSION-seen.png where another file has that name.

    Raises:
        OSError: both names are taken, or the file cannot be written.
    """
    mark = os.fsencode(path.name).hex()
    targets = [path.with_name(f"{name}-seen.png") for name in (path.stem, path.name)]
    for target in targets:
        if not os.path.lexists(target) or _mark_of(target) == mark:
            text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
            text.add_text(MARK, mark)
            Image.fromarray(image.numpy()).save(buffer, format="PNG", pnginfo=text)
            write_atomically(target, buffer.getvalue())
            return target
    raise OSError(f"{targets[1]} is there already and is not the net's input of {path.name}: move it")


def _mark_of(path: Path) -> str | None:
    """What `write_seen` noted in a file: the name of the image, its bytes in hexadecimal; None in any other file."""
    try:
        return open_picture(path).info.get(MARK)
    except PictureError:
        return None


def predict(net: FinalNet, path: Path, show: bool = False) -> dict[str, Any]:
    """Classify an image file: its digit, probability, whether that is sure, and runner-up, as --json prints them.

    Raises:
        PictureError: the image cannot be read, or does not show one digit.
        OSError: the net's input cannot be written.
    """
    picture = open_picture(path)
    image = prepare(picture)
    entry: dict[str, Any] = {"image": str(path)}
    if show:
        entry["seen"] = str(write_seen(path, image))
    # Some of MNIST's own digits are stranger than letters, and coarser pictures than MNIST's have little evidence.
    trusted = as_in_mnist(picture) is not None or min(picture.size) < 28
    probabilities = classify(net, image, -math.inf if trusted else NONE)
    if sum(probabilities) < 0.5:
        raise PictureError(PROBLEMS["none"])
    first, second = sorted(enumerate(probabilities), key=lambda item: -item[1])[:2]
    entry |= {"digit": first[0], "probability": first[1], "sure": first[1] >= SURE}
    return entry | {"runner_up": {"digit": second[0], "probability": second[1]}}


def shown(path: str | Path) -> str:
    """A path as it can be printed on one line: what is not printable there is escaped."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def line_of(entry: dict[str, Any]) -> str:
    """What `predict` returns, as one line."""
    first, second = (f"{guess['digit']} ({guess['probability']:.1%})" for guess in (entry, entry["runner_up"]))
    line = f"{shown(entry['image'])}: " + (
        f"{first}, then {second}" if entry["sure"] else f"not sure: {first} or {second}"
    )
    return line + (f", saw {shown(entry['seen'])}" if "seen" in entry else "")


def main(arguments: list[str] | None = None) -> int:
    """Classify each image; returns the exit code."""
    parser = OneLineParser("predict.py", __doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--show", action="store_true", help="write the net's input beside the image: NAME-seen.png")
    options = parser.parse_args(arguments)
    entries, code = [], 0
    try:
        net = load_net()
        for path in options.images:
            if options.show and _mark_of(path):
                print(f"predict.py: {shown(path)}: skipped, it is what the net saw", file=sys.stderr)
                continue  # so that `--show *.png` may be repeated
            try:
                entries.append(predict(net, path, options.show))
            except Exception as error:  # one bad picture must not cost the others, whatever a library raises
                reason = str(error) or type(error).__name__
                entries.append({"image": str(path), "error": reason})
                code = parser.failed(OSError(f"{shown(path)}: {reason}"))
            else:
                if not options.json:
                    print(line_of(entries[-1]), flush=True)
        if options.json:
            print(json.dumps(entries, indent=1), flush=True)
    except BrokenPipeError:  # as after `| head`; what is left in the buffer would fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (OSError, ValueError) as error:
        return parser.failed(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
