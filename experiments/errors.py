"""What is left: the test images that the final models get wrong, and what they take them for.

python -m experiments.errors     ask the published weights of Step 3, and write results/errors.json
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import torch
from torch import Tensor

from model import STEPS
from tinymnist import runs
from utils import load_mnist, normalize

MODELS = 20  # random seeds 0 to 19


@torch.no_grad()
def probabilities(seed: int, images: Tensor) -> Tensor:
    """What the published model of a random seed makes of uint8 (N, 28, 28), as float (N, 10)."""
    net = STEPS[3].net()
    net.load_state_dict(torch.load(runs.RESULTS / "step3" / f"seed_{seed}.pt", weights_only=True))
    net.eval().to(memory_format=torch.channels_last)
    return torch.cat([net(normalize(batch)).softmax(1) for batch in images.split(250)])


def collect() -> dict[str, Any]:
    """The errors of all models.

    Returns:
        `models`, their number; `confusion`, a 10x10 list of counts by label and answer, over all models; and
        `images`, those that at least one model gets wrong, most wrong first: their number in the test set,
        label, the models' votes for each digit, the mean probability of the digit most voted for, and, where
        most models are wrong, the 784 pixels in base64.
    """
    digits = load_mnist()
    labels = digits.test_labels
    each = torch.stack([probabilities(seed, digits.test_images) for seed in range(MODELS)])
    answers = each.argmax(2)
    votes = torch.zeros(len(labels), 10, dtype=torch.long)
    votes.scatter_add_(1, answers.T.contiguous(), torch.ones_like(answers.T))
    confusion = torch.zeros(10, 10, dtype=torch.long).index_add_(0, labels, votes)
    wrong = MODELS - votes.gather(1, labels[:, None])[:, 0]
    found = []
    for index in sorted(wrong.nonzero()[:, 0].tolist(), key=lambda i: (-int(wrong[i]), i)):
        most = int(votes[index].argmax())
        entry = {"index": index, "label": int(labels[index]), "votes": votes[index].tolist()}
        entry["confidence"] = round(each[:, index, most].mean().item(), 3)
        if 2 * wrong[index] > MODELS:
            entry["pixels"] = base64.b64encode(digits.test_images[index].numpy().tobytes()).decode()
        found.append(entry)
    return {"models": MODELS, "confusion": confusion.tolist(), "images": found}


def main() -> int:
    """Write the file."""
    torch.set_num_threads(1)  # rounding, and so the file, does not depend on the number of cores
    lines = json.dumps(collect()).replace('{"index"', '\n{"index"')  # one image a line
    runs.write_atomically(runs.RESULTS / "errors.json", (lines + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
