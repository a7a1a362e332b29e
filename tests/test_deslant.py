"""Deslanting: leaning ink is set upright, whatever its place, and nothing else happens to the image."""

import pytest
import torch
from tinymnist.deslant import Deslant

from utils import affine, normalize, receptive_field


def lean(images: torch.Tensor) -> torch.Tensor:
    """Covariance of x and y over the variance of y of each image's ink, by the definition."""
    ink = images[:, 0].double()
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in ink.shape[1:]), indexing="ij")
    total, ink_x, ink_y = (value.sum((1, 2), keepdim=True) for value in (ink, ink * x, ink * y))
    dx, dy = x - ink_x / total, y - ink_y / total
    return (ink * dx * dy).sum((1, 2)) / (ink * dy * dy).sum((1, 2))


def bar(height: int = 28, width: int = 28, column: int = 14) -> torch.Tensor:
    image = torch.zeros(1, 1, height, width)
    image[:, :, height // 4 : 3 * height // 4, column - 2 : column + 2] = 1
    return image


def sheared(image: torch.Tensor, degrees: float) -> torch.Tensor:
    zero, one = torch.zeros(1), torch.ones(1)
    return affine(image, zero, zero, zero, one, torch.tensor([degrees]))


def test_digits_lean_no_more(drawn):
    images = normalize(drawn.train_images[:200])
    before, after = lean(images), lean(Deslant()(images))
    assert before.abs().max() > 0.2
    assert after.abs().max() < 0.03
    assert after.abs().mean() < 0.1 * before.abs().mean()


@pytest.mark.parametrize("degrees", [-30.0, -20.0, 25.0])
@pytest.mark.parametrize("column", [9, 14, 19])
def test_a_sheared_bar_is_upright_again(degrees, column):
    """At the same place, but for the blur of sampling twice at its edges."""
    upright = bar(column=column)
    leaning = sheared(upright, degrees)
    again = Deslant()(leaning)
    assert lean(leaning).abs().item() > 0.3
    assert lean(again).abs().item() < 0.01
    inside = upright[0, 0].bool() & upright[0, 0].roll(1, 1).bool() & upright[0, 0].roll(-1, 1).bool()
    assert again[0, 0][inside].min() > 0.9
    assert (again - upright).abs().mean() < 0.5 * (leaning - upright).abs().mean()


@pytest.mark.parametrize("crop", [1, 2, 5])
def test_a_crop_is_the_middle_of_the_upright_image_which_need_not_be_square(drawn, crop):
    for images in (normalize(drawn.train_images[:20]), sheared(bar(40, 24, 11), 15.0)):
        upright = Deslant()(images)
        assert lean(upright).abs().max() < 0.03
        assert torch.allclose(Deslant(crop)(images), upright[:, :, crop:-crop, crop:-crop], atol=1e-4)


def test_the_crop_of_step_3_costs_less_than_half_a_percent_of_the_ink(mnist):
    upright = Deslant()(normalize(mnist.train_images[:10_000]))
    left = upright[:, :, 2:-2, 2:-2].sum() / upright.sum()
    assert 0.995 < left < 1


def test_what_is_upright_or_empty_stays():
    for image in (bar(), torch.zeros(1, 1, 28, 28)):
        assert torch.allclose(Deslant()(image), image, atol=1e-5)


def test_lean_is_limited():
    """A diagonal that leans by more than 45 degrees is sheared by 45."""
    image = torch.zeros(1, 1, 28, 28)
    for i in range(28):
        image[0, 0, 9 + i // 3, i] = 1.0
    assert lean(image).item() > 2
    assert lean(Deslant()(image)).item() == pytest.approx(lean(image).item() - 1, abs=0.2)


def test_each_image_for_itself_and_scale_does_not_matter(drawn):
    images = normalize(drawn.train_images[:16])
    together = Deslant()(images)
    alone = torch.cat([Deslant()(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(Deslant()(images / 7) * 7, together, atol=1e-4)
    assert not together.requires_grad


def test_no_parameters_and_a_row_in_the_receptive_field():
    net = torch.nn.Sequential(Deslant(), torch.nn.Conv2d(1, 4, 3))
    assert list(Deslant().state_dict()) == []
    assert [(row.name, row.receptive_field) for row in receptive_field(net)] == [("input", 1), ("0", 1), ("1", 3)]
    net[0] = Deslant(crop=2)
    assert [(row.size_in, row.size_out) for row in receptive_field(net)] == [(28, 28), (28, 24), (24, 22)]
