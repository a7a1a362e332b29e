"""Classify your own pictures of digits with the published weights of the final net.

python predict.py IMAGE [IMAGE ...]         the digit, its probability, and the runner-up
python predict.py --json IMAGE [IMAGE ...]  the same as JSON
python predict.py --show IMAGE [IMAGE ...]  also write the net's input, 28x28 pixels, beside each image

The exit code is 0, or 2 if an image was not classified.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model import FinalNet
from tinymnist.cli import OneLineParser
from tinymnist.prepare import PictureError, open_picture, prepare
from tinymnist.runs import RESULTS, write_atomically
from utils import normalize

THRESHOLD = 0.5  # if no digit is at least this probable, the image is rejected


def load_net(seed: int = 0) -> FinalNet:
    """The final net with the published weights of a random seed, in evaluation mode on the CPU.

    Raises:
        OSError: the weights are missing or damaged.
    """
    path, net = RESULTS / "step3" / f"seed_{seed}.pt", FinalNet()
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise nearly anything
        command = f"python train.py --step 3 --seed {seed} --out results"
        raise OSError(f"no weights in {path} ({type(error).__name__}): restore the file, or run {command}") from error
    return net.eval()


@torch.no_grad()
def classify(net: FinalNet, image: Tensor) -> list[float]:
    """The probabilities of the ten digits for one image, uint8 (28, 28), white on black."""
    return net(normalize(image[None])).softmax(1)[0].tolist()


def predict(net: FinalNet, path: Path, show: bool = False) -> dict[str, Any]:
    """Classify an image file: its digit, probability and runner-up, as --json prints them.

    Raises:
        PictureError: the image cannot be read, or does not show one digit.
        OSError: the net's input cannot be written.
    """
    image = prepare(open_picture(path))
    entry: dict[str, Any] = {"image": str(path)}
    if show:
        target, buffer = path.with_name(f"{path.stem}-seen.png"), io.BytesIO()
        Image.fromarray(image.numpy()).save(buffer, format="PNG")
        write_atomically(target, buffer.getvalue())
        entry["seen"] = str(target)
    first, second = sorted(enumerate(classify(net, image)), key=lambda item: -item[1])[:2]
    if first[1] < THRESHOLD:
        raise PictureError(f"no digit recognized (best guess {first[0]} at {first[1]:.0%}): use a clearer picture")
    entry |= {"digit": first[0], "probability": first[1]}
    return entry | {"runner_up": {"digit": second[0], "probability": second[1]}}


def main(arguments: list[str] | None = None) -> int:
    """Classify each image; returns the exit code."""
    parser = OneLineParser("predict.py", __doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--show", action="store_true", help="write the net's input to NAME-seen.png beside the image")
    options = parser.parse_args(arguments)
    try:
        net = load_net()
    except OSError as error:
        return parser.failed(error)
    entries, code = [], 0
    for path in options.images:
        try:
            entry = predict(net, path, options.show)
        except (PictureError, OSError) as error:
            entries.append({"image": str(path), "error": str(error)})
            code = parser.failed(OSError(f"{path}: {error}"))
            continue
        entries.append(entry)
        if not options.json:
            line = f"{path}: {entry['digit']} ({entry['probability']:.1%}), then {entry['runner_up']['digit']}"
            line += f" ({entry['runner_up']['probability']:.1%})"
            print(line + (f", saw {entry['seen']}" if options.show else ""))
    if options.json:
        print(json.dumps(entries, indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main())
