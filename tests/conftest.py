"""Shared fixtures: digits drawn in the test, and real MNIST where it is there."""

import os
from pathlib import Path

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


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
