"""Knowledge distillation: a net learns from the probabilities that a wider one, the teacher, gives to the images.

    python -m experiments.distillation                       the teacher of all 60,000 training images
    python -m experiments.distillation validation-2          one that has not seen the images of a held-out sixth
    python -m experiments.distillation --device cuda test    on a GPU; the default is the CPU

A teacher that is missing is trained, and writes its soft labels beside its record. Those of all training images are
part of the repository, their teacher's weights are not.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("distillation.py")

import copy
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import STEPS, FinalNet
from tinymnist import runs
from tinymnist.cli import OneLineParser, run_program
from tinymnist.data import HELD_OUT, load_split
from tinymnist.parallel import in_processes, processes_at_once
from utils import DataError, Recipe, augment, load_mnist, pick_device, train_run

SPLITS = [*HELD_OUT, "test"]  # each has a teacher that has not seen its images


class TeacherNet(FinalNet):
    """The final net with more channels, an earlier second pooling and one view: 196,778 parameters."""

    moves = ((0, 0, 0, 0),)

    def __init__(self) -> None:
        super().__init__((32, 64, 96, 128))

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
    """Where the record of a split's teacher lies, with its weights beside it, and its soft labels."""
    return runs.RESULTS / "study" / "teacher" / "wide" / f"seed_{SPLITS.index(split)}.json"


def labels_path(split: str) -> Path:
    """Where the soft labels of a split's training images lie."""
    return teacher_path(split).with_suffix(".labels.pt")


def soft_labels_of(split: str) -> Tensor:
    """The soft labels of a split's training images, float32 (N, 10), as its teacher wrote them.

    Raises:
        OSError: they are not there, or damaged; the message says how to make them.
    """
    if not (path := labels_path(split)).exists():
        raise FileNotFoundError(f"no soft labels {path}: python -m experiments.distillation {split} makes them")
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OSError(
            f"no soft labels in {path} ({reason}): restore the file, or delete it and make it again"
        ) from error


def train_teacher(job: tuple[str, str], _: None) -> runs.Run:
    """Train the teacher of a split on a device, by the recipe of Step 3, and write it and its soft labels."""
    split, device = job
    path, digits, recipe = teacher_path(split), load_split(split), STEPS[3].recipe
    facts: runs.Run = {"group": "teacher", "variant": "wide", "base": "", "change": "teacher, 196,778 parameters"}
    facts |= {"seed": SPLITS.index(split), "data": "mnist", "split": split}
    run = train_run(path, TeacherNet, recipe, digits, facts, device, graph=torch.device(device).type == "cuda")
    if "failed" not in run:
        runs.load_weights(teacher := TeacherNet(), path.with_suffix(".pt"))
        soft = soft_labels(teacher.to(device), digits.train_images.to(device), recipe)
        torch.save(soft.cpu(), buffer := io.BytesIO())
        runs.write_atomically(labels_path(split), buffer.getvalue())
    return run


def main(arguments: list[str] | None = None) -> int:
    """Train the teachers that are missing, or whose soft labels are."""
    command = OneLineParser("distillation.py", __doc__)
    command.add_argument("splits", nargs="*", metavar="SPLIT", help=f"some of {', '.join(SPLITS)} (default: test)")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or xpu")
    options = command.parse_args(arguments)
    if unknown := set(options.splits) - set(SPLITS):
        command.error(f"no split {', '.join(sorted(unknown))}: choose from {', '.join(SPLITS)}")
    try:
        device = pick_device(options.device)
        load_mnist()
        missing = [
            (split, str(device))
            for split in options.splits or ["test"]
            if not (labels_path(split).exists() and runs.read_run(teacher_path(split), {"split": split}, weights=False))
        ]
        made = in_processes(train_teacher, missing, None, processes_at_once(device))
        return int(any([command.failure(run) for run in made]))
    except (DataError, ValueError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    run_program("distillation.py", main)
