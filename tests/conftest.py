"""Shared fixtures: digits drawn in the test, and real MNIST where it is there."""

import os
from pathlib import Path

import pytest
import torch

from tinymnist.data import MNIST_MD5, default_root
from utils import Digits, drawn_digits, load_mnist

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def drawn() -> Digits:
    """1,200 digits to train on and 300 to test on."""
    return Digits(*drawn_digits(1200, seed=0), *drawn_digits(300, seed=1))


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
