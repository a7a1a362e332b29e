"""Digits to look at: the test images that the final models get wrong, and what the layers make of a few.

python -m experiments.digits     writes results/errors.json and results/examples.json, which figures are drawn from
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import STEPS
from predict import load_net
from tinymnist.cli import OneLineParser
from tinymnist.runs import RESULTS, write_atomically
from utils import DataError, Digits, augment, load_mnist, normalize

MODELS = 20  # random seeds 0 to 19
SLANTED = [43, 107, 18, 287, 59, 217, 60, 61]  # test images, each of another digit
COUNT, DRAWS = 8, 3  # training images, and augmented copies of each


def packed(image: Tensor) -> str:
    """The bytes of a uint8 image in base64."""
    return base64.b64encode(image.numpy().tobytes()).decode()


def scaled(images: Tensor) -> list[str]:
    """Images, float (N, 1, H, W), each scaled so that its largest value is 255, and packed."""
    pixels = 255 * images.clamp(min=0) / images.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return [packed(image.round().byte()) for image in pixels]


@torch.no_grad()
def probabilities(seed: int, images: Tensor) -> Tensor:
    """The probabilities, (N, 10), that the published model of a random seed gives to uint8 (N, 28, 28)."""
    net = load_net(seed).to(memory_format=torch.channels_last)
    return torch.cat([net(normalize(batch)).softmax(1) for batch in images.split(250)])


def errors(digits: Digits) -> dict[str, Any]:
    """The test images that the models get wrong.

    Returns:
        `models`, their number; `confusion`, a 10x10 list of counts by label and prediction over all models; and
        `images`, those that at least one model gets wrong, in descending order of the models that do: their index in
        the test set, label, the number of models that predict each digit (`votes`), the mean probability of the digit
        with the most votes (`confidence`), and, where most models are wrong, the 784 pixels in base64.
    """
    labels = digits.test_labels
    by_model = torch.stack([probabilities(seed, digits.test_images) for seed in range(MODELS)])
    votes = F.one_hot(by_model.argmax(2), 10).sum(0)
    confusion = torch.zeros(10, 10, dtype=torch.long).index_add_(0, labels, votes)
    wrong = MODELS - votes.gather(1, labels[:, None])[:, 0]
    images = []
    for index in wrong.argsort(descending=True, stable=True)[: wrong.count_nonzero()].tolist():
        most = int(votes[index].argmax())
        entry = {"index": index, "label": int(labels[index]), "votes": votes[index].tolist()}
        entry["confidence"] = round(by_model[:, index, most].mean().item(), 3)
        if 2 * wrong[index] > MODELS:
            entry["pixels"] = packed(digits.test_images[index])
        images.append(entry)
    return {"models": MODELS, "confusion": confusion.tolist(), "images": images}


@torch.no_grad()
def examples(digits: Digits) -> dict[str, list]:
    """Slanted digits before and after deslanting, augmented copies, and the first convolution: kernels and outputs."""
    torch.manual_seed(0)
    net, originals, slanted = load_net(), digits.train_images[:COUNT], normalize(digits.test_images[SLANTED])
    deslanted = net.deslant(slanted)
    return {
        "leaning": scaled(slanted),
        "deslanted": scaled(deslanted),
        "original": scaled(normalize(originals)),
        "draws": [scaled(augment(originals, STEPS[3].recipe)) for _ in range(DRAWS)],
        "kernels": [[round(v, 4) for v in kernel.flatten().tolist()] for kernel in net.conv1.weight],
        "answers": [[round(v, 2) for v in output.flatten().tolist()] for output in net.conv1(deslanted[:1])[0]],
    }


def main(arguments: list[str] | None = None) -> int:
    """Write both files."""
    parser = OneLineParser("digits.py", __doc__)
    parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that rounding, and with it the files, does not depend on the number of cores
    try:
        digits = load_mnist()
        lines = json.dumps(errors(digits)).replace('{"index"', '\n{"index"')  # one image a line
        write_atomically(RESULTS / "errors.json", (lines + "\n").encode())
        lines = json.dumps(examples(digits)).replace("], [", "],\n[").replace('", "', '",\n"')
        write_atomically(RESULTS / "examples.json", (lines + "\n").encode())
    except (DataError, OSError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
