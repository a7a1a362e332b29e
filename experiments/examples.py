"""Digits to look at: what deslanting, augmentation and the first layer make of a few of them.

python -m experiments.examples     write results/examples.json, which the pictures of the README are drawn from
"""

from __future__ import annotations

import base64
import json
import sys

import torch
from torch import Tensor

from model import STEPS
from predict import load_net
from tinymnist.runs import RESULTS, write_atomically
from utils import augment, load_mnist, normalize

LEANING = [43, 107, 18, 287, 59, 217, 60, 61]  # test images that lean, each another digit
COUNT, DRAWS = 8, 3


def packed(images: Tensor) -> list[str]:
    """Images, float (N, 1, H, W), each as bytes from its own 0 to its largest value, in base64."""
    scaled = 255 * images.clamp(min=0) / images.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return [base64.b64encode(image.round().byte().numpy().tobytes()).decode() for image in scaled]


@torch.no_grad()
def collect() -> dict[str, list]:
    """The examples: rows of images by name, and the kernels of the first layer with what they answer to a digit."""
    digits, net = load_mnist(), load_net()
    torch.manual_seed(0)
    originals = digits.train_images[:COUNT]
    leaning = normalize(digits.test_images[LEANING])
    upright = net.upright(leaning)
    answers = net.conv1(upright[:1])[0]
    return {
        "leaning": packed(leaning),
        "upright": packed(upright),
        "original": packed(normalize(originals)),
        "draws": [packed(augment(originals, STEPS[3].recipe)) for _ in range(DRAWS)],
        "kernels": [[round(v, 4) for v in kernel.flatten().tolist()] for kernel in net.conv1.weight],
        "answers": [[round(v, 2) for v in answer.flatten().tolist()] for answer in answers],
    }


def main() -> int:
    """Write the file."""
    text = json.dumps(collect()).replace("], [", "],\n[").replace('", "', '",\n"')
    write_atomically(RESULTS / "examples.json", (text + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
