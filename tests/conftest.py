"""Shared fixtures: digits drawn from fonts, and real MNIST where it is there."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from tinymnist.data import MNIST_MD5, default_root
from tinymnist.runs import REPOSITORY
from utils import Digits, load_mnist

FONTS = "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSerif STIXGeneral cmr10 cmss10".split()


def drawn_digits(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in MNIST's format, uint8 (n, 28, 28) and int64 (n,), in many fonts, sizes, strokes and angles."""
    draw, images, labels = random.Random(seed), [], [i % 10 for i in range(n)]
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [ImageFont.truetype(str(folder / f"{name}.ttf"), 4 * size) for name in FONTS for size in range(17, 25)]
    draw.shuffle(labels)
    for label in labels:
        canvas = Image.new("L", (112, 112))
        center = 56 + 8 * draw.uniform(-1, 1), 56 + 8 * draw.uniform(-1, 1)
        ImageDraw.Draw(canvas).text(
            center, str(label), draw.randint(180, 255), draw.choice(faces), "mm", stroke_width=draw.randint(0, 4)
        )
        canvas = canvas.rotate(draw.uniform(-12, 12), Image.Resampling.BILINEAR)
        images.append(np.asarray(canvas.resize((28, 28), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def drawn() -> Digits:
    """600 digits to train on and 200 to test on."""
    return Digits(*drawn_digits(600, seed=0), *drawn_digits(200, seed=1))


@pytest.fixture(scope="session")
def mnist() -> Digits:
    """Real MNIST; without it the test is skipped, but under CI it fails."""
    raw = default_root() / "MNIST" / "raw"
    if not all((raw / name).exists() for name in MNIST_MD5):
        message = f"MNIST is not in {raw}: make data fetches it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return load_mnist()


@pytest.fixture
def in_this_process() -> Callable[..., Iterator[Any]]:
    """Stands in for `in_processes`: one job after the other in this process; `in_this_process.jobs` are those begun."""

    def run(function: Callable[[Any, Any], Any], jobs: list[Any], shared: Any, *_: int) -> Iterator[Any]:
        for job in jobs:
            run.jobs.append(job)
            yield function(job, shared)

    run.jobs = []
    return run


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
