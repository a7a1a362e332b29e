"""From uint8 images to the batches of an epoch: normalization, and random affine maps of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tinymnist.recipe import Recipe

Augment = Callable[[Tensor, Recipe, torch.Generator], Tensor]
STD = 0.3081  # standard deviation of the training images' pixels, on a scale from 0 to 1


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 (N, H, W) into a net's input, float32 (N, 1, H, W): standard deviation 1, background 0.

    The mean is not subtracted, so that the zeros with which a convolution pads continue the background.

    Raises:
        ValueError: the images are of another shape or type.
    """
    if images.dtype != torch.uint8 or images.dim() != 3:
        kind, shape = str(images.dtype).removeprefix("torch."), ", ".join(map(str, images.shape[1:]))
        raise ValueError(f"images must be uint8 (N, 28, 28), not {kind} (N, {shape})")
    return images.unsqueeze(1).float() / (255 * STD)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator | None = None) -> Tensor:
    """Turn uint8 (N, H, W) into a training batch, float32 (N, 1, H, W): each image is turned, moved and scaled.

    Args:
        images: uint8 (N, H, W), 0 = background.
        recipe: `rotation`, `translation` and `scale` are the largest changes, drawn uniformly for each image.
        generator: source of the random numbers, on the device of the images.
    """
    x = normalize(images)
    if not (recipe.rotation or recipe.translation or recipe.scale):
        return x
    turn, right, down, size = torch.rand(4, len(x), generator=generator, device=x.device, dtype=x.dtype) * 2 - 1
    shift_x, shift_y = recipe.translation * right, recipe.translation * down
    return affine(x, recipe.rotation * turn, shift_x, shift_y, 1 + recipe.scale * size)


def affine(images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor) -> Tensor:
    """Scale and turn each image around its centre, then move it; bilinear, with zeros from outside.

    The parameters mean what they mean in `torchvision.transforms.functional.affine`, which takes one map for all
    images; here each image has its own. The output is sampled at the inverse map, as in Jaderberg et al., "Spatial
    Transformer Networks", 2015. `F.affine_grid` does the same as the last lines, but multiplies a small matrix for each
    image, which is slower on a CPU: `experiments/bench.py` measures by how much.

    Args:
        images: float (N, C, H, W), 0 = background.
        angle: (N,) degrees, clockwise.
        shift_x, shift_y: (N,) fractions of the width and of the height, to the right and down.
        scale: (N,) factor; above 1 enlarges.

    Returns:
        float (N, C, H, W).
    """
    height, width = images.shape[-2:]
    cos, sin = torch.cos(torch.deg2rad(angle)) / scale, torch.sin(torch.deg2rad(angle)) / scale
    # `grid_sample` measures both axes from -1 to 1, so these units differ where the image is not square.
    across, down = sin * (height / width), sin * (width / height)
    x, y = 2 * shift_x, 2 * shift_y
    theta = torch.stack([cos, across, -cos * x - across * y, -down, cos, down * x - cos * y], dim=1)
    columns = (torch.arange(width, device=images.device, dtype=images.dtype) * 2 + 1) / width - 1  # pixels' centres
    rows = (torch.arange(height, device=images.device, dtype=images.dtype) * 2 + 1) / height - 1
    pixels = torch.stack([*torch.meshgrid(columns, rows, indexing="xy"), torch.ones_like(images[0, 0])]).flatten(1)
    grid = (theta.view(-1, 3) @ pixels).view(-1, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Batches:
    """The training images in batches, in a new random order each time, augmented.

    As a `DataLoader` it has a length and is iterated once an epoch; but the images stay on the device, where a few
    operations make a whole batch.

    Args:
        images, labels: uint8 (N, H, W) and int64 (N,), on one device.
        recipe: the size of a batch, and how `augment` changes the images.
        generator: source of order and augmentation, on the same device.

    Yields:
        float32 (B, 1, H, W) and int64 (B,).
    """

    def __init__(self, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        self.images, self.labels, self.recipe, self.generator = images, labels, recipe, generator
        self.augment: Augment = augment

    def __len__(self) -> int:
        return -(-len(self.images) // self.recipe.batch_size)  # the last batch may be smaller

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        for chosen in order.split(self.recipe.batch_size):
            yield self.augment(self.images[chosen], self.recipe, self.generator), self.labels[chosen]
