"""Shared fixtures: digits drawn in the test, and real MNIST where it is there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinymnist.data import MNIST_MD5, default_root
from utils import Digits, Recipe, drawn_digits, load_mnist

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


@pytest.fixture(scope="session")
def drawn_soft(drawn) -> Callable[[Recipe], torch.Tensor | None]:
    """Soft labels of the drawn digits for a recipe that asks for some: nine tenths for the digit."""

    def for_recipe(recipe: Recipe) -> torch.Tensor | None:
        return torch.eye(10)[drawn.train_labels] * 0.89 + 0.011 if recipe.distillation else None

    return for_recipe


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
