"""Nets beside those of the three steps: a linear classifier, Step 3's with a part in another form, prior solutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import FinalNet, crop

MakeNet = Callable[[], nn.Module]


def linear_net() -> nn.Module:
    """A linear classifier: 784 x 10 weights and 10 biases."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))


def deslant(images: Tensor) -> Tensor:
    """Shear images, float (N, 1, H, W) with background 0, until their digits stand upright: (N, 1, H, W).

    The shear is that which makes the covariance of rows and columns, weighted by the ink, 0 (LeCun et al., 1998).
    """
    ink = images[:, 0]
    height, width = ink.shape[1:]
    rows, columns = (torch.arange(n, device=ink.device) - (n - 1) / 2 for n in (height, width))
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    row = (ink.sum(2) @ rows / mass)[:, None]
    column = (ink.sum(1) @ columns / mass)[:, None]
    variance = (ink.sum(2) * (rows - row) ** 2).sum(1)
    covariance = torch.einsum("nyx,ny,nx->n", ink, rows - row, columns - column)
    shear = covariance / variance.clamp(min=1e-6)
    theta = torch.zeros(len(ink), 2, 3, device=ink.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 1] = shear * height / width
    theta[:, 0, 2] = -shear * row[:, 0] * 2 / width
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


class PartNet(FinalNet):
    """Step 3's net with a part in another form: the results say what the part does.

    Args:
        views: as for `FinalNet`.
        norm: BatchNorm after each convolution; without it a convolution has a bias, as in Step 1.
        early: the first pooling follows the first convolution, else the second.
        cropped: the image is cropped to 24x24 pixels; else a view is the whole image, shifted.
        flat: the head reads the flattened 3x3 map, else the average over it (global average pooling; Lin et al., 2013).
        dropout: fraction of the head's inputs that are set to 0 in training (Srivastava et al., 2014).
        deslanted: each image is sheared first, until its digit stands upright.
    """

    def __init__(
        self,
        views: Sequence[tuple[int, int]] = ((-1, 0), (1, 0), (0, -1), (0, 1)),
        norm: bool = True,
        early: bool = True,
        cropped: bool = True,
        flat: bool = True,
        dropout: float = 0.0,
        deslanted: bool = False,
    ) -> None:
        super().__init__(views)
        self.early, self.cropped, self.flat, self.dropout, self.deslanted = early, cropped, flat, dropout, deslanted
        for name, layer in [*self.named_children()] if not norm else []:
            if isinstance(layer, nn.Conv2d):
                setattr(self, name, nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1))
                setattr(self, name.replace("conv", "norm"), nn.Identity())
        if not flat:
            self.head = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = deslant(x) if self.deslanted else x
        shifts = ((0, 0),) if self.training else self.views
        views = torch.cat([crop(x, dy, dx) if self.cropped else x.roll((-dy, -dx), (2, 3)) for dy, dx in shifts])
        views = views.contiguous(memory_format=torch.channels_last)
        return self.classify(views).unflatten(0, (len(shifts), -1)).mean(0)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 24, 24), or of whole ones (N, 1, 28, 28)."""
        x = self.conv1(x)
        x = F.relu(self.norm1(self.pool(x) if self.early else x))
        x = self.conv2(x)
        x = F.relu(self.norm2(x if self.early else self.pool(x)))
        x = F.relu(self.norm3(self.pool(self.conv3(x))))
        x = F.relu(self.norm4(self.pool(self.conv4(x))))
        x = x.flatten(1) if self.flat else x.mean((2, 3))
        return self.head(F.dropout(x, self.dropout, self.training))


# The prior solutions: c16 is a 3x3 convolution to 16 channels with BatchNorm and ReLU, c16p pads it by 1, k16 has a
# 1x1 kernel; P is 2x2 max-pooling, D5 dropout of 5 percent, GAP global average pooling, and lin a linear layer to 10
# classes without bias. A + gives a convolution, or the linear layer, a bias.
PRIOR_NETS = {
    "A": "c8 D8 c10 c20 D8 P k10 c10 D8 c20 k12 P c15 lin",
    "D": "c8 D5 c16 D5 k8 D5 P c16 D5 c16 D5 c16 D5 k16 D5 GAP lin",
    "E": "c10 D1 c16 D1 c8 D1 P c16 D1 c16 D1 c10 D1 GAP lin",
    "F": "c10p c10p c10p P c16 c16 c8 c8 k8 k16 GAP lin",
    "J": "c4p+ c4p+ c4p+ D1 P c8p+ c8p+ c8p+ D1 P c8p+ c8p+ c8p+ D1 GAP lin+",
    "K": "c4p+ c4p+ D1 P c8p+ c8p+ D1 P c16p+ c16p+ D1 GAP lin+",
}


def prior_net(line: str, norm_last: bool = False) -> nn.Module:
    """The net that a line of `PRIOR_NETS` describes; BatchNorm stands before ReLU, or after it.

    Raises:
        ValueError: a word of the line is not of the notation.
    """
    layers: list[nn.Module] = []
    channels = 1
    for word in line.split():
        if found := re.fullmatch(r"([ck])(\d+)(p?)(\+?)", word):
            out, kernel = int(found[2]), 3 if found[1] == "c" else 1
            convolution = nn.Conv2d(channels, out, kernel, padding=int(bool(found[3])), bias=bool(found[4]))
            norm, relu = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
            layers += [convolution, relu, norm] if norm_last else [convolution, norm, relu]
            channels = out
        elif re.fullmatch(r"D\d+", word):
            layers.append(nn.Dropout(int(word[1:]) / 100))
        elif word == "P":
            layers.append(nn.MaxPool2d(2))
        elif word == "GAP":
            layers.append(nn.AdaptiveAvgPool2d(1))
        elif word in ("lin", "lin+"):
            layers += [nn.Flatten(), nn.LazyLinear(10, bias=word == "lin+")]
        else:
            raise ValueError(f"no layer {word!r} in the notation of PRIOR_NETS")
    net = nn.Sequential(*layers).eval()
    net(torch.zeros(1, 1, 28, 28))  # the linear layer takes its size from the first image
    return net.train()
