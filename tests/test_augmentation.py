"""Normalization; and augmentation, against torchvision's own transform, and what each strength does."""

import pytest
import torch
import torchvision.transforms.functional as reference
from torchvision.transforms import InterpolationMode

from utils import Recipe, affine, augment, normalize


def center(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass."""
    image = image.squeeze()
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return float((image * y).sum() / image.sum()), float((image * x).sum() / image.sum())


@pytest.fixture
def dots() -> torch.Tensor:
    """The same soft dot, 5.5 pixels above the centre, as 400 images: uint8 (400, 28, 28)."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return (255 * torch.exp(-((y - 8) ** 2 + (x - 13.5) ** 2) / 4)).round().byte().expand(400, 28, 28)


def test_normalized_images_have_standard_deviation_one_and_background_zero(mnist):
    x = normalize(mnist.train_images)
    assert (x.shape, x.dtype) == ((60_000, 1, 28, 28), torch.float32)
    assert x.std() == pytest.approx(1, abs=1e-3)
    assert (x.min(), x.max()) == (0, pytest.approx(1 / 0.3081))


def test_zero_strength_changes_nothing(drawn):
    assert torch.equal(augment(drawn.train_images, Recipe()), normalize(drawn.train_images))


@pytest.mark.parametrize(("angle", "shift", "scale"), [(0, (3, -2), 1), (20, (0, 0), 1.3), (-17, (2, 1), 0.8)])
def test_agrees_with_torchvision_which_fills_with_background(angle, shift, scale):
    images = torch.rand(4, 1, 20, 40)
    parameters = torch.tensor([angle, shift[0] / 40, shift[1] / 20, scale]).expand(4, 4)
    ours = affine(images, *parameters.unbind(1))
    theirs = reference.affine(images, angle, list(shift), scale, [0.0], interpolation=InterpolationMode.BILINEAR)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "strength", "extreme"),  # how far the dot moves along rows and columns
    [
        ("rotation", 30.0, (5.5 * (1 - 3**0.5 / 2), 5.5 / 2)),
        ("translation", 0.125, (3.5, 3.5)),
        ("scale", 0.3, (0.3 * 5.5, 0)),
    ],
)
def test_each_strength_alone_stays_within_its_bounds(dots, name, strength, extreme):
    moved = augment(dots, Recipe(**{name: strength}), torch.Generator().manual_seed(1))
    moves = torch.tensor([center(image) for image in moved]) - torch.tensor([8, 13.5])
    for along, bound in zip(moves.unbind(1), extreme, strict=True):
        assert 0.9 * bound <= along.abs().max() <= bound + 0.15
    if extreme[1]:
        assert abs(moves[:, 1].mean()) < 0.15 * extreme[1]  # both ways alike


def test_images_are_drawn_apart_and_repeat_with_the_generator(dots):
    first, again = (augment(dots[:4], Recipe(rotation=20), torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], first[i]) for i in (1, 2, 3))
