"""Classify your own pictures of digits with the published weights of the final net.

python predict.py IMAGE [IMAGE ...]         the digit, its probability, and the runner-up
python predict.py --json IMAGE [IMAGE ...]  the same as JSON
python predict.py --show IMAGE [IMAGE ...]  also write what the net saw, beside each image
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from model import FinalNet
from tinymnist.prepare import PictureError, open_picture, prepare
from tinymnist.runs import RESULTS, write_atomically
from train import OneLineParser
from utils import normalize

WEIGHTS = RESULTS / "step3" / "seed_0.pt"
SURE = 0.5  # probability below which the answer is "no digit"


def load_net(path: Path = WEIGHTS) -> nn.Module:
    """The final net with its published weights, ready to classify on the CPU.

    Raises:
        OSError: the weights are not there, or cannot be read.
    """
    net = FinalNet().eval()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net


@torch.no_grad()
def classify(net: nn.Module, seen: Tensor) -> list[float]:
    """The ten probabilities of one digit, uint8 (28, 28), white on black."""
    return net(normalize(seen[None])).softmax(1)[0].tolist()


def answer(net: nn.Module, path: Path, show: bool = False) -> dict[str, Any]:
    """What the net makes of an image file: digit, probability, and runner-up.

    Raises:
        PictureError: there is no picture of one digit.
        OSError: what the net saw cannot be written.
    """
    seen = prepare(open_picture(path))
    found: dict[str, Any] = {"image": str(path)}
    if show:
        target, buffer = path.with_name(f"{path.stem}-seen.png"), io.BytesIO()
        Image.fromarray(seen.numpy()).save(buffer, format="PNG")
        write_atomically(target, buffer.getvalue())
        found["seen"] = str(target)
    first, second = sorted(enumerate(classify(net, seen)), key=lambda item: -item[1])[:2]
    if first[1] < SURE:
        raise PictureError(f"it shows no digit that the net knows: the best guess is {first[0]}, at {first[1]:.0%}")
    found |= {"digit": first[0], "probability": first[1]}
    return found | {"runner_up": {"digit": second[0], "probability": second[1]}}


def main(arguments: list[str] | None = None) -> int:
    """Answer for each image.

    Returns:
        the exit code: 0, or 2 if there was an image without an answer.
    """
    parser = OneLineParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--show", action="store_true", help="write what the net saw to NAME-seen.png beside the image")
    options = parser.parse_args(arguments)
    try:
        net = load_net()
    except OSError as error:
        parser.exit(2, f"predict.py: no weights: {error}\n")
    found = []
    for path in options.images:
        try:
            found.append(answer(net, path, options.show))
        except (PictureError, OSError) as error:
            found.append({"image": str(path), "error": str(error)})
            print(f"predict.py: {path}: {error}", file=sys.stderr)
            continue
        if not options.json:
            best, second = found[-1], found[-1]["runner_up"]
            line = f"{path}: {best['digit']} ({best['probability']:.1%}), then {second['digit']}"
            print(f"{line} ({second['probability']:.1%})" + (f", saw {best['seen']}" if options.show else ""))
    if options.json:
        print(json.dumps(found, indent=1))
    return 2 if any("error" in entry for entry in found) else 0


if __name__ == "__main__":
    sys.exit(main())
