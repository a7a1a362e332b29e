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
    target, other = (path.with_name(f"{name}-seen.png") for name in (path.stem, path.name))
    if not _is_free(target, path):
        target = other
        if not _is_free(other, path):
            raise OSError(f"{other} is there already and is not the net's input of {path.name}: move it")
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_itxt(MARK, os.fsencode(path.name).hex())
    Image.fromarray(image.numpy()).save(buffer, format="PNG", pnginfo=text)
    write_atomically(target, buffer.getvalue())
    return target


def _is_free(target: Path, path: Path) -> bool:
    """Whether a file is not there, or is the net's input of an image as `write_seen` left it."""
    if not os.path.lexists(target):
        return True
    try:
        with Image.open(target) as there:
            return there.info.get(MARK) == os.fsencode(path.name).hex()
    except Exception:  # no image, so not ours
        return False


def predict(net: FinalNet, path: Path, show: bool = False) -> dict[str, Any]:
    """Classify an image file: its digit, probability and runner-up, as --json prints them.

    Raises:
        PictureError: the image cannot be read, or does not show one digit.
        OSError: the net's input cannot be written.
    """
    image = prepare(open_picture(path))
    entry: dict[str, Any] = {"image": str(path)}
    if show:
        entry["seen"] = str(write_seen(path, image))
    first, second = sorted(enumerate(classify(net, image)), key=lambda item: -item[1])[:2]
    if first[1] < THRESHOLD:
        raise PictureError(f"no digit recognized (best guess {first[0]} at {first[1]:.0%}): use a clearer picture")
    entry |= {"digit": first[0], "probability": first[1]}
    return entry | {"runner_up": {"digit": second[0], "probability": second[1]}}


def shown(path: str | Path) -> str:
    """A path as it can be printed on one line: what is not printable is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def line_of(entry: dict[str, Any]) -> str:
    """What `predict` returns, as one line."""
    line = f"{shown(entry['image'])}: {entry['digit']} ({entry['probability']:.1%}), then {entry['runner_up']['digit']}"
    line += f" ({entry['runner_up']['probability']:.1%})"
    return line + (f", saw {shown(entry['seen'])}" if "seen" in entry else "")


class Output:
    """Standard output that may close, as after `| head`: the rest is then classified and not printed.

    `code` is the exit code: 2 once something could not be printed, else 0.
    """

    def __init__(self, parser: OneLineParser) -> None:
        self.parser, self.code = parser, 0
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a file name may not fit the terminal's encoding

    def print(self, text: str) -> None:
        """Print a line; the first one that fails is told on standard error."""
        if self.code:
            return
        try:
            if sys.stdout is None:
                raise OSError("it is closed")
            print(text, flush=True)
        except OSError as error:
            self.code = self.parser.failed(OSError(f"nothing more can be printed ({error.strerror or error})"))
            if sys.stdout is not None:  # what is left in its buffer would fail again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Classify each image; returns the exit code."""
    parser = OneLineParser("predict.py", __doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--show", action="store_true", help="write the net's input beside the image: NAME-seen.png")
    options = parser.parse_args(arguments)
    try:
        net = load_net()
    except (OSError, ValueError) as error:
        return parser.failed(error)
    output, entries, code = Output(parser), [], 0
    for path in options.images:
        try:
            entries.append(predict(net, path, options.show))
        except Exception as error:  # one bad picture must not cost the others, whatever a library raises
            reason = str(error) or type(error).__name__
            entries.append({"image": str(path), "error": reason})
            code = parser.failed(OSError(f"{shown(path)}: {reason}"))
        else:
            if not options.json:
                output.print(line_of(entries[-1]))
    if options.json:
        output.print(json.dumps(entries, indent=1))
    return code or output.code


if __name__ == "__main__":
    sys.exit(main())
