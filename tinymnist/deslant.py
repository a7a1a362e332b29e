"""Deslanting: a first layer without parameters that shears slanted digits upright."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.augmentation import affine_grid


class Deslant(nn.Module):
    """Shears each image along x until its ink has no slant (LeCun et al., 1998, section III-A).

    The slant is the slope of the ink's second moments: the covariance of x and y over the variance of y. The image is
    sheared around the ink's centre of mass, bilinearly; what comes in from outside is background. A slant beyond 45
    degrees counts as 45. An image without ink stays as it is. No gradient passes to the image.

    Args:
        crop: rows and columns to cut off at each side of the sheared image.

    Takes float (N, 1, H, W), 0 = background, ink above 0; returns float (N, 1, H - 2 crop, W - 2 crop).
    """

    def __init__(self, crop: int = 0) -> None:
        super().__init__()
        self.crop = crop

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"crop={self.crop}" if self.crop else ""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        options = {"device": images.device, "dtype": images.dtype}
        y = (torch.arange(height, **options) - (height - 1) / 2)[:, None].expand(height, width)
        x = (torch.arange(width, **options) - (width - 1) / 2).expand(height, width)
        moments = images.flatten(1) @ torch.stack([torch.ones_like(x), x, y, x * y, y * y], dim=-1).flatten(0, 1)
        ink, *sums = moments.unbind(1)
        mean_x, mean_y, mean_xy, mean_yy = (value / ink.clamp(min=1e-6) for value in sums)
        slant = ((mean_xy - mean_x * mean_y) / (mean_yy - mean_y**2).clamp(min=1e-3)).clamp(-1, 1)
        # A pixel is read from as far to the right as the ink is slanted at its height. What is read is measured in half
        # images (grid_sample's -1 to 1), and what is returned in half crops of it.
        rows, columns = height - 2 * self.crop, width - 2 * self.crop
        along_x, along_y, zero = torch.full_like(slant, columns / width), slant * rows / width, torch.zeros_like(slant)
        down = torch.full_like(slant, rows / height)
        theta = torch.stack([along_x, along_y, -slant * mean_y * 2 / width, zero, down, zero], dim=1)
        return F.grid_sample(images, affine_grid(theta.view(-1, 2, 3), rows, columns), align_corners=False)
