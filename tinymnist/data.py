"""The data: MNIST with its checksums verified, and digits drawn from fonts for runs without a network."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# MD5 sums of the four unpacked files of the original distribution.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

# The sixth of the training images that a split holds out, by the split's name.
HELD_OUT = {"validation": 5} | {f"validation-{part}": part for part in range(5)}

# Fonts of matplotlib in which digits are legible.
DRAWN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)


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


def load_mnist(root: str | os.PathLike[str] | None = None) -> Digits:
    """Load MNIST (LeCun, Cortes and Burges, 1998): 60,000 training and 10,000 test images.

    The four files are in `ROOT/MNIST/raw/`, as torchvision stores them. Missing ones are unpacked from a `.gz` beside
    them or downloaded; every file's MD5 sum is checked.

    Args:
        root: the folder that holds `MNIST/raw/`; by default `default_root()`.

    Raises:
        DataError: a file cannot be read or downloaded, or is not the original.
    """
    from torchvision.datasets import MNIST

    root = Path(root).expanduser() if root is not None else default_root()
    raw = root / "MNIST" / "raw"
    try:
        for name in MNIST_MD5:
            if not (raw / name).exists() and (raw / f"{name}.gz").exists():
                _unpack(raw / f"{name}.gz")
        if any(not (raw / name).exists() for name in MNIST_MD5):
            _download(root)
        for name, md5 in MNIST_MD5.items():
            actual = hashlib.md5((raw / name).read_bytes(), usedforsecurity=False).hexdigest()
            if actual != md5:
                raise DataError(
                    f"{raw / name} is not the original file (MD5 {actual}, expected {md5}): "
                    "delete it and run again to download it"
                )
        train, test = MNIST(root, train=True), MNIST(root, train=False)
    except OSError as error:
        raise DataError(f"cannot read or write MNIST in {root} ({error}): use another folder") from error
    return Digits(train.data, train.targets, test.data, test.targets)


def _unpack(archive: Path) -> None:
    """Unpack a `.gz` in its folder, completely or not at all."""
    try:
        content = gzip.decompress(archive.read_bytes())
    except (EOFError, OSError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): delete it and run again") from error
    partial = archive.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(archive.with_suffix(""))


def _download(root: Path) -> None:
    """Download MNIST with torchvision, and move the missing files to `raw/` once all four are complete."""
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        try:
            MNIST(temporary, download=True)
        except Exception as error:  # torchvision raises whatever the network layer raised
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
            raise DataError(
                f"MNIST could not be downloaded from {' and '.join(MNIST.mirrors)} ({reason}): put the files "
                f"{', '.join(MNIST_MD5)} (unpacked or as .gz) in {raw} by hand, or use drawn digits"
            ) from error
        for name in MNIST_MD5:
            if not (raw / name).exists():
                (Path(temporary) / "MNIST" / "raw" / name).replace(raw / name)


def validation_split(digits: Digits, part: int = 5) -> Digits:
    """Hold out a sixth of the training images (10,000 of MNIST's 60,000) for validation, in place of the test set.

    Args:
        digits: the whole data set.
        part: which sixth is held out, from 0 to 5; by default the last one.

    Returns:
        `Digits` whose `test_*` are the held-out images and labels, and whose `train_*` are the others.
    """
    images, labels, _, _ = digits
    size = len(images) // 6
    stop = len(images) - (5 - part) * size
    start = stop - size
    train_images, train_labels = (torch.cat([tensor[:start], tensor[stop:]]) for tensor in (images, labels))
    return Digits(train_images, train_labels, images[start:stop], labels[start:stop])


def load_split(name: str) -> Digits:
    """MNIST ("test"), or MNIST with a sixth of the training images held out (a name in `HELD_OUT`)."""
    return load_mnist() if name == "test" else validation_split(load_mnist(), HELD_OUT[name])


def drawn_digits(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw labelled digits in MNIST's format with fonts of matplotlib, for tests and for runs without a network.

    Font, size, position, stroke width, rotation and brightness vary. Accuracy on them says nothing about handwriting.

    Args:
        n: number of images, at least 1.
        seed: the same seed gives the same images with the same versions of Pillow and matplotlib.

    Returns:
        images uint8 (n, 28, 28), 0 = background; labels int64 (n,), balanced as far as n allows, and shuffled.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"drawn_digits needs n of at least 1, not {n}")
    draw = random.Random(seed)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    zoom = 4  # drawn at four times the size and reduced, so that edges are antialiased
    fonts = [ImageFont.truetype(str(folder / f), zoom * size) for f in DRAWN_FONTS for size in range(17, 25)]
    labels = [i % 10 for i in range(n)]
    draw.shuffle(labels)
    images = np.zeros((n, 28, 28), dtype=np.uint8)
    for i, label in enumerate(labels):
        canvas = Image.new("L", (28 * zoom, 28 * zoom))
        center = zoom * (14 + draw.uniform(-2, 2)), zoom * (14 + draw.uniform(-2, 2))
        ImageDraw.Draw(canvas).text(
            center, str(label), fill=draw.randint(180, 255), font=draw.choice(fonts),
            anchor="mm", stroke_width=draw.randint(0, zoom),
        )  # fmt: skip
        canvas = canvas.rotate(draw.uniform(-12, 12), resample=Image.Resampling.BILINEAR)
        images[i] = np.asarray(canvas.resize((28, 28), Image.Resampling.BOX))
    return torch.from_numpy(images), torch.tensor(labels)


def load_drawn(n_train: int = 6_000, n_test: int = 1_000) -> Digits:
    """Drawn digits in place of MNIST: the training set with seed 0, the test set with seed 1."""
    return Digits(*drawn_digits(n_train, seed=0), *drawn_digits(n_test, seed=1))
