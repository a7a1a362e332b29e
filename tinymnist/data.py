"""MNIST, with its checksums verified; what part of it is held out; and what form data must have."""

from __future__ import annotations

import hashlib
import os
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from tinymnist.augmentation import normalize

# MD5 sums of the four unpacked files; torchvision checks those of the packed ones, once, when it downloads them.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PARTS = ("train", "t10k")
SIXTHS = [f"sixth-{part}" for part in range(6)]  # the splits that hold out a sixth of the training images


class DataError(RuntimeError):
    """MNIST is missing or damaged; the message is one line that says what to do."""


class Digits(NamedTuple):
    """A labelled data set: uint8 images (N, 28, 28), 0 = background, and int64 labels (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def default_root() -> Path:
    """Where MNIST is: the environment variable `MNIST_ROOT`, else `../shared/mnist` if it exists, else `data/`.

    Both folders are relative to the repository, not to the current folder.
    """
    repository = Path(__file__).resolve().parents[1]
    if os.environ.get("MNIST_ROOT"):
        return Path(os.environ["MNIST_ROOT"]).expanduser()
    shared = repository.parent / "shared" / "mnist"
    return shared if shared.is_dir() else repository / "data"


def load_mnist(root: str | os.PathLike[str] | None = None, split: str = "test") -> Digits:
    """Load MNIST (LeCun, Cortes and Burges, 1998): 60,000 training and 10,000 test images.

    torchvision reads the files from `ROOT/MNIST/raw/`, and downloads what is missing.

    Args:
        root: the folder; by default `default_root()`.
        split: "test", or one of `SIXTHS`: that sixth of the training images then takes the place of the test images.

    Raises:
        DataError: a file cannot be read or downloaded, or is not the original.
        ValueError: there is no such split.
    """
    from torchvision.datasets.mnist import MNIST, read_image_file, read_label_file  # here: it takes a second

    if split not in ("test", *SIXTHS):
        raise ValueError(f"no split {split!r}: use test or one of {', '.join(SIXTHS)}")
    try:
        root = Path(root).expanduser() if root is not None else default_root()
        raw = root / "MNIST" / "raw"
        if not all((raw / name).exists() for name in MNIST_MD5):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".download.lock"):  # of several processes, one downloads
                MNIST(root, download=True)
        for name, md5 in MNIST_MD5.items():
            if hashlib.md5((raw / name).read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise DataError(f"{raw / name} is not the original file: delete it and run again to download it")
        train_images, test_images = (read_image_file(str(raw / f"{part}-images-idx3-ubyte")) for part in PARTS)
        train_labels, test_labels = (read_label_file(str(raw / f"{part}-labels-idx1-ubyte")) for part in PARTS)
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException, zlib.error) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        place = f"put its four files in {root}/MNIST/raw, or name another folder"
        raise DataError(f"no MNIST in {root} ({reason}): {place}") from error
    digits = Digits(train_images, train_labels, test_images, test_labels)
    return digits if split == "test" else validation_split(digits, SIXTHS.index(split))


def validation_split(digits: Digits, part: int = 5) -> Digits:
    """Hold out a sixth of the training images (10,000 of MNIST's 60,000) in place of the test set.

    Args:
        digits: the whole data set.
        part: which sixth is held out, from 0 to 5; by default the last one.

    Raises:
        ValueError: there is no such part.

    Returns:
        `Digits` whose `test_*` are the held-out images and labels, and whose `train_*` are the others.
    """
    if part not in range(6):
        raise ValueError(f"no part {part!r}: use 0 to 5")
    images, labels, _, _ = digits
    size = len(images) // 6
    stop = len(images) - (5 - part) * size
    start = stop - size
    train_images, train_labels = (torch.cat([tensor[:start], tensor[stop:]]) for tensor in (images, labels))
    return Digits(train_images, train_labels, images[start:stop], labels[start:stop])


@torch.no_grad()
def check_forms(model: nn.Module, digits: Digits) -> None:
    """Raise ValueError unless images, labels and a net's logits are of the forms that training needs.

    The net runs on a few images, which also gives lazy layers their shapes.
    """
    for images, labels in (digits[:2], digits[2:]):
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            kind = str(labels.dtype).removeprefix("torch.")
            raise ValueError(f"labels must be int64 ({len(images)},), not {kind} {tuple(labels.shape)}")
        if not len(labels) or labels.min() < 0:
            raise ValueError("labels must be from 0 up, and there must be at least one image to train and to test on")
        x, classes = normalize(images[:2]), int(labels.max()) + 1
        shape = tuple(getattr(model.eval()(x), "shape", ()))
        if len(shape) != 2 or shape[0] != len(x) or shape[1] < classes:
            raise ValueError(f"the net must give logits (N, {classes}), not {shape} for {len(x)} images")
