"""Deslanting: a first layer without parameters that removes the slant of a digit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.augmentation import affine_grid


class Deslant(nn.Module):
    """Shears each image along x until its ink has no slant (LeCun et al., 1998, section III-A).

    The slant is computed from the ink's second moments: the covariance of x and y over the variance of y, limited to 45
    degrees. The shear keeps the ink's centre of mass; it is bilinear, and pixels from outside the image are background.
    An image without ink is not changed. No gradient passes to the image.

    Args:
        crop: rows and columns to cut off at each side of the sheared image.

    Takes float (N, 1, H, W), 0 = background, ink above 0; returns float (N, 1, H - 2 crop, W - 2 crop).
    """

    redraws_image = True  # for `receptive_field`: no fixed window tells what an output pixel sees

    def __init__(self, crop: int = 0) -> None:
        super().__init__()
        self.crop = crop

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"crop={self.crop}" if self.crop else ""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
        x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
        x, y = torch.broadcast_tensors(x, y)
        moments = images.flatten(1) @ torch.stack([torch.ones_like(x), x, y, x * y, y * y], dim=-1).flatten(0, 1)
        ink, *sums = moments.unbind(1)
        mean_x, mean_y, mean_xy, mean_yy = (value / ink.clamp(min=1e-6) for value in sums)
        slant = ((mean_xy - mean_x * mean_y) / (mean_yy - mean_y**2).clamp(min=1e-3)).clamp(-1, 1)
        # Output pixel (x, y) is sampled at (x + slant * (y - mean_y), y). theta maps the output's coordinates to the
        # input's; both run from -1 to 1, the former across the crop.
        rows, columns = height - 2 * self.crop, width - 2 * self.crop
        along_x, along_y, zero = torch.full_like(slant, columns / width), slant * rows / width, torch.zeros_like(slant)
        down = torch.full_like(slant, rows / height)
        theta = torch.stack([along_x, along_y, -slant * mean_y * 2 / width, zero, down, zero], dim=1)
        return F.grid_sample(images, affine_grid(theta.view(-1, 2, 3), rows, columns), align_corners=False)
