"""What is left: the test images that the published nets of Step 3 get wrong.

python -m experiments.errors     writes results/errors.json
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from predict import load_net
from tinymnist.cli import OneLineParser
from tinymnist.runs import RESULTS, lines_of, write_atomically
from utils import DataError, Digits, load_mnist, normalize

MODELS = 20  # seeds 0 to 19


@torch.no_grad()
def probabilities(seed: int, images: Tensor) -> Tensor:
    """The probabilities, (N, 10), that the published net of a seed gives to uint8 (N, 28, 28)."""
    net = load_net(seed)
    return torch.cat([net(normalize(batch)).softmax(1) for batch in images.split(250)])


def find_errors(digits: Digits) -> dict[str, Any]:
    """The test images that the models get wrong.

    Returns:
        `models`, their number, and `images`, those that at least one model gets wrong, in descending order of the
        models that do: their index in the test set, label, the seeds of the models that do (`wrong`), the number of
        models that predict each digit (`votes`), and, where most models are wrong, the 784 pixels in base64.
    """
    labels = digits.test_labels
    by_model = torch.stack([probabilities(seed, digits.test_images) for seed in range(MODELS)])
    said = by_model.argmax(2)
    votes, misread = F.one_hot(said, 10).sum(0), said != labels
    number = misread.sum(0)
    images = []
    for index in number.argsort(descending=True, stable=True)[: number.count_nonzero()].tolist():
        entry = {"index": index, "label": int(labels[index]), "wrong": misread[:, index].nonzero()[:, 0].tolist()}
        entry["votes"] = votes[index].tolist()
        if 2 * number[index] > MODELS:
            entry["pixels"] = base64.b64encode(digits.test_images[index].numpy().tobytes()).decode()
        images.append(entry)
    return {"models": MODELS, "images": images}


def main(arguments: list[str] | None = None) -> int:
    """Write the file."""
    parser = OneLineParser("errors.py", __doc__)
    parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that rounding, and with it the file, does not depend on the number of cores
    try:
        digits = load_mnist()
        write_atomically(RESULTS / "errors.json", lines_of(find_errors(digits), "index"))
    except (DataError, OSError, ValueError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
