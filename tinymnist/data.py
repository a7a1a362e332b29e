"""The data: MNIST with its checksums verified, and digits drawn from fonts for runs without a network."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import random
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tinymnist.runs import LARGEST, write_atomically

# MD5 sums of the four unpacked files of the original distribution.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")

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

    The four files may lie in `ROOT/MNIST/raw/`, as torchvision stores them, in `ROOT/raw/` or in `ROOT` itself, with a
    dot in place of the dash before "idx", and packed as `.gz`. Missing ones are downloaded to `ROOT/MNIST/raw/`. Every
    file's MD5 sum is checked.

    Args:
        root: the folder; by default `default_root()`.

    Raises:
        DataError: a file cannot be read or downloaded, or is not the original.
    """
    root = Path(os.path.expanduser(root)) if root is not None else default_root()
    try:
        paths = {name: _find(root, name) for name in MNIST_MD5}
        contents = {name: _read(path, name) if path else _download(root, name) for name, path in paths.items()}
        for name, content in contents.items():
            if paths[name] is None:
                write_atomically(root / "MNIST" / "raw" / name, content)
    except OSError as error:
        raise DataError(f"cannot read or write MNIST in {root} ({error}): use another folder") from error
    train_images, train_labels, test_images, test_labels = map(_array, contents.values())
    return Digits(train_images, train_labels.long(), test_images, test_labels.long())


def _find(root: Path, name: str) -> Path | None:
    """The first file of that name in one of the accepted places and spellings."""
    spellings = [f"{spelling}{packed}" for spelling in (name, name.replace("-idx", ".idx")) for packed in ("", ".gz")]
    paths = (root / folder / spelling for folder in ("MNIST/raw", "raw", "") for spelling in spellings)
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path, name: str) -> bytes:
    """What one of the four files holds, unpacked."""
    try:
        with path.open("rb") as file:
            return _original(name, file.read(LARGEST))
    except ValueError as error:
        raise DataError(f"{path} is not the original file ({error}): delete it and run again to download it") from error


def _download(root: Path, name: str) -> bytes:
    """One of the four files, unpacked, from the first mirror that has it."""
    seen = f"it holds {', '.join(sorted(os.listdir(root))[:5]) or 'nothing'}" if root.exists() else "no such folder"
    reasons = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=30) as response:
                return _original(name, response.read(LARGEST))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"from {mirror} ({' '.join(str(error).split()) or type(error).__name__})")
    raise DataError(
        f"no {name} in {root} ({seen}) or its raw/ or MNIST/raw/, nor {' nor '.join(reasons)}: put the files "
        f"{', '.join(MNIST_MD5)}, unpacked or as .gz, in {root / 'MNIST' / 'raw'} by hand, or use drawn digits"
    )


def _original(name: str, content: bytes) -> bytes:
    """The content of one of the four files, unpacked if need be and checked.

    Raises:
        ValueError: it is not the original; the message says why, in one line.
    """
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cannot be unpacked: {error}") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MNIST_MD5[name]:
        raise ValueError(f"MD5 {md5}, expected {MNIST_MD5[name]}")
    return content


def _array(content: bytes) -> Tensor:
    """The uint8 array in the idx format: two zeros, the type, the number of dimensions, their sizes, the values."""
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">i4").tolist()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


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
