"""Knowledge distillation: a net learns from the probabilities that a wider one, the teacher, gives to the images.

python -m experiments.distillation     train the teachers that are missing: one per split
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("distillation.py")

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import STEPS, FinalNet
from tinymnist import runs
from tinymnist.cli import OneLineParser, run_program
from tinymnist.data import HELD_OUT, load_split
from tinymnist.parallel import cores, in_processes
from utils import DataError, Recipe, augment, load_mnist, train_run


class TeacherNet(FinalNet):
    """The final net with two to three times the channels, an earlier second pooling and one view: 43,930 parameters."""

    moves = ((0, 0, 0, 0),)

    def __init__(self) -> None:
        super().__init__((16, 32, 48, 48))

    def classify(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.pool(self.conv1(x))))
        x = F.relu_(self.norm2(self.pool(self.conv2(x))))
        x = F.relu_(self.norm3(self.conv3(x)))
        x = F.relu_(self.norm4(self.pool(self.conv4(x))))
        return self.head(x.flatten(1))


class Distillation:
    """The `loss` of `fit` that learns from labels and soft labels (Hinton et al., 2015).

    Args:
        soft: float (N, 10), the soft labels of all N training images at the same temperature.
        share: of the loss that compares with the soft labels.
        temperature: T, by which the logits are divided before they are compared. The term is multiplied by
            T squared, so that its gradient does not shrink with T.
    """

    def __init__(self, soft: Tensor, share: float = 0.5, temperature: float = 2.0) -> None:
        self.soft, self.share, self.temperature = soft, share, temperature

    def __call__(self, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        self.soft = self.soft.to(logits.device)
        soft = F.cross_entropy(logits / self.temperature, self.soft.index_select(0, indices))
        return (1 - self.share) * F.cross_entropy(logits, labels) + self.share * self.temperature**2 * soft


@torch.no_grad()
def soft_labels(teacher: nn.Module, images: Tensor, recipe: Recipe, temperature: float = 2.0, views: int = 8) -> Tensor:
    """A trained net's probabilities for each image, averaged over augmented copies of it.

    They are computed once and hold for every copy of an image, so that a large teacher costs the training steps
    nothing (Bagherinezhad et al., "Label Refinery", 2018). The same teacher, images and device give the same bits
    on the same processor and version of PyTorch, whatever the number of threads: one is used.

    Args:
        teacher: a trained net on the images' device; it is left as it is.
        images: uint8 (N, 28, 28).
        recipe: how the copies are augmented.
        temperature: divides the logits.
        views: copies of each image, drawn from random seed 0.

    Returns:
        float32 (N, 10), each row adds up to 1.
    """
    generator = torch.Generator(images.device).manual_seed(0)
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        soft = []
        for batch in images.split(250):
            logits = torch.stack([teacher(augment(batch, recipe, generator)) for _ in range(views)])
            soft.append((logits / temperature).softmax(2).mean(0))
    finally:
        torch.set_num_threads(threads)
    return torch.cat(soft)


def teacher_path(split: str) -> Path:
    """Where the record of a split's teacher lies, and its weights beside it."""
    return runs.RESULTS / "study" / "teacher" / "held-out" / f"seed_{list(HELD_OUT).index(split)}.json"


def soft_labels_of(split: str, recipe: Recipe) -> Tensor:
    """The soft labels of a split's training images, from its teacher.

    Raises:
        FileNotFoundError: the teacher is not there; the message says how to train it.
    """
    path = teacher_path(split).with_suffix(".pt")
    if not path.exists():
        raise FileNotFoundError(f"no teacher {path}: python -m experiments.distillation trains it")
    runs.load_weights(teacher := TeacherNet(), path)
    return soft_labels(teacher, load_split(split).train_images, recipe)


def train_teacher(split: str, _: None) -> runs.Run:
    """Train and write the teacher of a split, by the recipe of Step 3; those published had that of an earlier one."""
    facts: runs.Run = {"group": "teacher", "variant": "held-out", "base": "", "change": "teacher, 43,930 parameters"}
    facts |= {"seed": list(HELD_OUT).index(split), "data": "mnist", "split": split}
    return train_run(teacher_path(split), TeacherNet, STEPS[3].recipe, load_split(split), facts)


def main(arguments: list[str] | None = None) -> int:
    """Train the teachers that are missing."""
    command = OneLineParser("distillation.py", __doc__)
    command.parse_args(arguments)
    try:
        load_mnist()
        missing = [split for split in HELD_OUT if not runs.read_run(teacher_path(split), {"split": split})]
        return int(any([command.failure(run) for run in in_processes(train_teacher, missing, None, cores())]))
    except (DataError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    run_program("distillation.py", main)
