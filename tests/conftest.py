"""Shared fixtures: digits drawn from fonts, and real MNIST where it is there."""

import hashlib
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


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write a tensor of whole numbers from 0 to 255 in the idx format."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.byte().numpy().tobytes())


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def drawn() -> Digits:
    """600 digits to train on and 200 to test on."""
    return Digits(*drawn_digits(600, seed=0), *drawn_digits(200, seed=1))


SITE = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            exec(AFTER[name], vars(module))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="session")
def environment(drawn: Digits, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Makes an environment in which programs, and the processes that they start, find the drawn digits as MNIST.

    Its arguments are lines that are run in a module of that name once it is imported.
    """
    raw = tmp_path_factory.mktemp("drawn") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, tensor in zip(MNIST_MD5, drawn, strict=True):
        write_idx(raw / name, tensor)
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in MNIST_MD5}

    def make(after: dict[str, str] | None = None) -> dict[str, str]:
        site, after = tmp_path_factory.mktemp("site"), {"tinymnist.data": f"MNIST_MD5 = {sums}"} | (after or {})
        (site / "sitecustomize.py").write_text(f"AFTER = {after}\n{SITE}")
        paths = {"PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}", "MNIST_ROOT": str(raw.parents[1])}
        return os.environ | paths | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}

    return make


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

    def run(function: Callable[[Any], Any], jobs: list[Any], processes: int = 1, threads: int = 1) -> Iterator[Any]:
        for job in jobs:
            run.jobs.append(job)
            yield function(job)

    run.jobs = []
    return run


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
