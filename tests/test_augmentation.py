"""Augmentation: against torchvision's own transform, and what each strength does."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as reference
from torchvision.transforms import InterpolationMode

from tinymnist.augmentation import random_boldness
from utils import Recipe, affine, augment, normalize, random_affine

ONE, ZERO = torch.ones(1), torch.zeros(1)
IDENTITY = {"angle": ZERO, "shift_x": ZERO, "shift_y": ZERO, "scale": ONE, "shear": ZERO}


def blob(row: float, column: float) -> torch.Tensor:
    """A soft dot at a place, in an image of 28x28."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)[None, None]


def center(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass."""
    image = image.squeeze()
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return float((image * y).sum() / image.sum()), float((image * x).sum() / image.sum())


def test_identity_changes_nothing(drawn):
    images = drawn.train_images[:8, None].float() / 255
    still = {name: value.expand(8) for name, value in IDENTITY.items()}
    assert torch.allclose(affine(images, **still), images, atol=1e-5)


def test_zero_strength_returns_the_images_untouched(drawn):
    images = drawn.train_images[:8, None].float() / 255
    assert random_affine(images) is images
    assert torch.equal(augment(drawn.train_images[:8], Recipe()), normalize(drawn.train_images[:8]))


@pytest.mark.parametrize(
    ("angle", "shift", "scale", "shear"),
    [(20, (0, 0), 1, 0), (0, (3, -2), 1, 0), (0, (0, 0), 1.3, 0), (0, (0, 0), 1, 15), (-17, (2, 1), 0.8, -10)],
)
def test_agrees_with_torchvision(drawn, angle, shift, scale, shear):
    images = drawn.train_images[:16, None].float() / 255
    ours = affine(
        images,
        angle=torch.full((16,), float(angle)),
        shift_x=torch.full((16,), shift[0] / 28),
        shift_y=torch.full((16,), shift[1] / 28),
        scale=torch.full((16,), float(scale)),
        shear=torch.full((16,), float(shear)),
    )
    theirs = reference.affine(
        images, angle, list(shift), scale, [float(shear), 0.0], interpolation=InterpolationMode.BILINEAR
    )
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_rectangular_images_agree_with_torchvision():
    images = torch.rand(1, 1, 20, 40)
    ours = affine(images, **IDENTITY | {"angle": torch.tensor([30.0]), "shear": torch.tensor([10.0])})
    theirs = reference.affine(images, 30, [0, 0], 1.0, [10.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"shift_x": torch.tensor([0.125])}, (10, 17.5)),  # 3.5 pixels to the right
        ({"shift_y": torch.tensor([0.125])}, (13.5, 14)),  # 3.5 pixels down
        ({"angle": torch.tensor([90.0])}, (14, 17)),  # clockwise: what is above comes to the right
        ({"scale": torch.tensor([2.0])}, (6.5, 14.5)),  # twice as far from the centre at (13.5, 13.5)
        ({"shear": torch.tensor([45.0])}, (10, 17.5)),  # 3.5 above the centre: 3.5 to the right
    ],
)
def test_direction_and_size(change, place):
    moved = affine(blob(10, 14), **IDENTITY | change)
    assert center(moved) == pytest.approx(place, abs=0.1)


def test_what_comes_in_is_background():
    image = torch.ones(1, 1, 28, 28)
    moved = affine(image, **IDENTITY | {"shift_x": torch.tensor([0.5])})
    assert moved[..., :13].abs().max() == 0
    assert torch.allclose(moved[..., 1:-1, 15:], image[..., 1:-1, 15:])


@pytest.mark.parametrize("name", ["rotation", "translation", "scale", "shear"])
def test_each_strength_alone_stays_within_its_bounds(name):
    strength = {"rotation": 30.0, "translation": 0.125, "scale": 0.3, "shear": 30.0}[name]
    images = blob(8, 13.5).expand(400, -1, -1, -1)  # 5.5 above the centre
    moved = random_affine(images, **{name: strength}, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([center(image) for image in moved])
    rows, columns = places[:, 0] - 8, places[:, 1] - 13.5
    extreme = {
        "rotation": (5.5 * (1 - 3**0.5 / 2), 5.5 / 2),
        "translation": (3.5, 3.5),
        "scale": (0.3 * 5.5, 0),
        "shear": (0, 5.5 / 3**0.5),
    }[name]
    for moves, bound in zip((rows, columns), extreme, strict=True):
        assert moves.abs().max() <= bound + 0.15
        assert moves.abs().max() >= 0.9 * bound
    if extreme[1]:
        assert abs(columns.mean()) < 0.15 * extreme[1]  # both ways alike


def test_images_are_drawn_apart_and_repeat_with_the_generator():
    images = blob(10, 10).expand(4, -1, -1, -1)
    first = random_affine(images, rotation=20, generator=torch.Generator().manual_seed(2))
    again = random_affine(images, rotation=20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], first[i]) for i in (1, 2, 3))


def test_boldness_changes_strokes_and_leaves_the_background(drawn):
    images = drawn.train_images[:64, None].float() / 255
    moved = random_boldness(images, 0.5)
    assert moved.shape == images.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    near = F.max_pool2d(images, 3, stride=1, padding=1) > 0
    assert (moved[~near] == 0).all()
    change = (moved - images).sum((1, 2, 3))
    assert (change > 1).any()
    assert (change < -1).any()
    assert random_boldness(images, 0.0) is images


def test_boldness_is_drawn_from_the_generator(drawn):
    images = drawn.train_images[:8, None].float() / 255
    first, again = (random_boldness(images, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
