"""From uint8 images to a net's input: normalization, and random affine maps of a whole batch on its device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinymnist.recipe import Recipe

STD = 0.3081  # standard deviation of the training images' pixels, on a scale from 0 to 1


def normalize(images: Tensor) -> Tensor:
    """Turn images into the net's input: pixels of standard deviation 1, background 0.

    The mean is not subtracted, so that the zeros with which a convolution pads continue the background.

    Args:
        images: uint8 (N, 28, 28), or float (N, 1, 28, 28) from 0 to 1.

    Returns:
        float32 (N, 1, 28, 28).
    """
    if images.dtype == torch.uint8:
        images = images.unsqueeze(1).float() / 255
    return images / STD


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator | None = None) -> Tensor:
    """Turn uint8 (N, 28, 28) into a training batch: moved at random as the recipe says, then normalized.

    The images are moved while their background is 0, so that what comes in from outside is background.

    Returns:
        float32 (N, 1, 28, 28).
    """
    x = images.unsqueeze(1).float() / 255
    return normalize(random_affine(x, recipe.rotation, recipe.translation, recipe.scale, recipe.shear, generator))


def random_affine(
    images: Tensor,
    rotation: float = 0.0,
    translation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Apply to each image its own random affine map, drawn uniformly within the given strengths.

    Args:
        images: float (N, 1, H, W), 0 = background.
        rotation: largest angle in degrees, either way.
        translation: largest shift as a fraction of the width and of the height, each way.
        scale: largest change of size as a fraction: 0.1 gives factors from 0.9 to 1.1.
        shear: largest shear along x in degrees, either way.
        generator: source of the random numbers, on the device of `images`.

    Returns:
        float (N, 1, H, W); `images` itself when every strength is 0.
    """
    if not any((rotation, translation, scale, shear)):
        return images
    u = torch.rand(5, len(images), generator=generator, device=images.device, dtype=images.dtype) * 2 - 1
    return affine(images, rotation * u[0], translation * u[1], translation * u[2], 1 + scale * u[3], shear * u[4])


def affine(images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Transform each image by its own affine map around the image's centre, bilinear, zeros outside.

    The parameters mean what they mean in `torchvision.transforms.functional.affine`: the image is
    sheared along x, scaled, rotated, then shifted. The output is sampled at the inverse map, as in
    Jaderberg et al., "Spatial Transformer Networks", 2015.

    Args:
        images: float (N, 1, H, W), 0 = background.
        angle: (N,) degrees, clockwise.
        shift_x, shift_y: (N,) fractions of the width and of the height, to the right and down.
        scale: (N,) factor; above 1 enlarges.
        shear: (N,) degrees along x; above 0 moves the upper half to the right.

    Returns:
        float (N, 1, H, W).
    """
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    tan = torch.tan(torch.deg2rad(shear))
    # The forward map is scale * R(angle) @ [[1, -tan], [0, 1]] and then the shift; this is its inverse.
    a, b = (cos - tan * sin) / scale, (sin + tan * cos) / scale
    c, d = -sin / scale, cos / scale
    height, width = images.shape[-2:]
    x, y = 2 * shift_x, 2 * shift_y  # grid_sample measures from -1 to 1
    # These units differ along x and y when the image is not square.
    b, c = b * (height / width), c * (width / height)
    theta = torch.stack([a, b, -(a * x + b * y), c, d, -(c * x + d * y)], dim=1).view(-1, 2, 3)
    grid = affine_grid(theta, height, width)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Where to sample for affine maps: `F.affine_grid` without `align_corners`, by one matrix product.

    On one CPU thread, which is how random seeds are trained side by side, the library's product of many
    small matrices slows down an epoch: `experiments/bench.py` measures by how much.

    Args:
        theta: float (N, 2, 3), from output to input coordinates.

    Returns:
        float (N, height, width, 2), x and y of each pixel; the last axis is not the innermost in memory.
    """
    x = (torch.arange(width, device=theta.device, dtype=theta.dtype) * 2 + 1) / width - 1  # centres of the pixels
    y = (torch.arange(height, device=theta.device, dtype=theta.dtype) * 2 + 1) / height - 1
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x + y[:, None])])
    return (theta.reshape(-1, 3) @ pixels.view(3, -1)).view(-1, 2, height, width).permute(0, 2, 3, 1)
