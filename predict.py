"""Classify your own pictures of digits with the published weights of the final net.

python predict.py IMAGE [IMAGE ...]         the digit, its probability, and the runner-up
python predict.py --json IMAGE [IMAGE ...]  the same as JSON
python predict.py --show IMAGE [IMAGE ...]  also write the net's input, 28x28 pixels, beside each image: NAME-seen.png

The exit code is 0, or 2 if an image was not classified.
"""

from __future__ import annotations

import io
import json
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
from tinymnist.prepare import prepare
from tinymnist.runs import RESULTS, load_weights, write_atomically
from utils import normalize

THRESHOLD = 0.5  # if no digit is at least this probable, the image is rejected
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
def classify(net: FinalNet, image: Tensor) -> list[float]:
    """The probabilities of the ten digits for one image, uint8 (28, 28), white on black."""
    return net(normalize(image[None])).softmax(1)[0].tolist()


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
    """Classify an image file: its digit, probability and runner-up, as --json prints them.

    Raises:
        PictureError: the image cannot be read, or does not show one digit.
        OSError: the net's input cannot be written.
    """
    picture = open_picture(path)
    image = prepare(picture)
    entry: dict[str, Any] = {"image": str(path)}
    if show and MARK not in picture.info:  # what the net saw is not shown again: `--show *.png` may be repeated
        entry["seen"] = str(write_seen(path, image))
    first, second = sorted(enumerate(classify(net, image)), key=lambda item: -item[1])[:2]
    if first[1] < THRESHOLD:
        raise PictureError(f"no digit recognized (best guess {first[0]} at {first[1]:.0%}): use a clearer picture")
    entry |= {"digit": first[0], "probability": first[1]}
    return entry | {"runner_up": {"digit": second[0], "probability": second[1]}}


def shown(path: str | Path) -> str:
    """A path as it can be printed on one line: what is not printable there is escaped."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def line_of(entry: dict[str, Any]) -> str:
    """What `predict` returns, as one line."""
    line = f"{shown(entry['image'])}: {entry['digit']} ({entry['probability']:.1%}), then {entry['runner_up']['digit']}"
    line += f" ({entry['runner_up']['probability']:.1%})"
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
