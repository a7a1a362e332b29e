"""Normalization; and augmentation, against torchvision's own transform, and what each strength does."""

import pytest
import torch
import torchvision.transforms.functional as reference
from torchvision.transforms import InterpolationMode

from utils import Recipe, affine, augment, normalize, random_affine


def blob(row: float, column: float) -> torch.Tensor:
    """A soft dot at a place, in an image of 28x28."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)[None, None]


def center(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass."""
    image = image.squeeze()
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return float((image * y).sum() / image.sum()), float((image * x).sum() / image.sum())


def test_normalize_keeps_the_background_at_zero(drawn):
    x = normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 28, 28))
    assert (x.shape, x.dtype) == ((2, 1, 28, 28), torch.float32)
    assert x[0].abs().max() == 0
    assert x[1, 0, 0, 0] == pytest.approx(1 / 0.3081)
    images = drawn.test_images
    assert torch.equal(normalize(images), normalize(images[:, None].float() / 255))


def test_normalized_mnist_has_standard_deviation_one(mnist):
    assert normalize(mnist.train_images).std() == pytest.approx(1, abs=1e-3)


def test_identity_and_zero_strength_change_nothing(drawn):
    images = drawn.train_images[:8, None].float() / 255
    zero, one = torch.zeros(8), torch.ones(8)
    assert torch.allclose(affine(images, zero, zero, zero, one, zero), images, atol=1e-5)
    assert random_affine(images) is images
    assert torch.equal(augment(drawn.train_images[:8], Recipe()), normalize(drawn.train_images[:8]))


def test_augmentation_moves_as_the_recipe_says_and_then_normalizes(drawn):
    strengths = {"rotation": 12.0, "translation": 0.05, "scale": 0.12, "shear": 8.0}
    images = drawn.train_images[:8]
    moved = random_affine(images[:, None].float() / 255, **strengths, generator=torch.Generator().manual_seed(1))
    found = augment(images, Recipe(**strengths), torch.Generator().manual_seed(1))
    assert torch.equal(found, normalize(moved))


@pytest.mark.parametrize(
    ("angle", "shift", "scale", "shear"),
    [(20, (0, 0), 1, 0), (0, (3, -2), 1, 0), (0, (0, 0), 1.3, 0), (0, (0, 0), 1, 15), (-17, (2, 1), 0.8, -10)],
)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 40)])
def test_agrees_with_torchvision_which_fills_with_background(angle, shift, scale, shear, height, width):
    images = torch.rand(4, 1, height, width)
    parameters = torch.tensor([angle, shift[0] / width, shift[1] / height, scale, shear]).expand(4, 5)
    ours = affine(images, *parameters.unbind(1))
    bilinear = InterpolationMode.BILINEAR
    theirs = reference.affine(images, angle, list(shift), scale, [float(shear), 0.0], interpolation=bilinear)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "strength", "extreme"),  # how far a dot 5.5 pixels above the centre moves along rows and columns
    [
        ("rotation", 30.0, (5.5 * (1 - 3**0.5 / 2), 5.5 / 2)),
        ("translation", 0.125, (3.5, 3.5)),
        ("scale", 0.3, (0.3 * 5.5, 0)),
        ("shear", 30.0, (0, 5.5 / 3**0.5)),
    ],
)
def test_each_strength_alone_stays_within_its_bounds(name, strength, extreme):
    images = blob(8, 13.5).expand(400, -1, -1, -1)
    moved = random_affine(images, **{name: strength}, generator=torch.Generator().manual_seed(1))
    moves = torch.tensor([center(image) for image in moved]) - torch.tensor([8, 13.5])
    for along, bound in zip(moves.unbind(1), extreme, strict=True):
        assert 0.9 * bound <= along.abs().max() <= bound + 0.15
    if extreme[1]:
        assert abs(moves[:, 1].mean()) < 0.15 * extreme[1]  # both ways alike


def test_images_are_drawn_apart_and_repeat_with_the_generator():
    images = blob(10, 10).expand(4, -1, -1, -1)
    first, again = (random_affine(images, 20, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], first[i]) for i in (1, 2, 3))
