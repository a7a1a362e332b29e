"""Shared fixtures: digits drawn in the test, and real MNIST where it is there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tinymnist.data import MNIST_MD5, default_root
from tinymnist.runs import REPOSITORY
from utils import Digits, load_drawn, load_mnist


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def drawn() -> Digits:
    """600 digits to train on and 200 to test on."""
    return load_drawn(600, 200)


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
