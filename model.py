"""The three nets, one per step, and the three steps: a net, its recipe and its target.

Every net takes float32 (N, 1, 28, 28) and returns logits (N, 10). A net's docstring adds up its
parameters layer by layer: a convolution has inputs x outputs x kernel, BatchNorm a scale and a
shift per channel, a linear layer inputs x outputs and a bias per output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.deslant import Deslant
from utils import Recipe


class SetupNet(nn.Module):
    """Step 1: a plain net that sees the whole image; no normalization, no dropout.

    layer   shape of its output   parameters
    conv1    8 x 26 x 26          1 *  8 * 3 * 3 +  8 = 80
    conv2    8 x 24 x 24          8 *  8 * 3 * 3 +  8 = 584
    pool     8 x 12 x 12
    conv3   16 x 10 x 10          8 * 16 * 3 * 3 + 16 = 1168
    conv4   16 x  8 x  8         16 * 16 * 3 * 3 + 16 = 2320
    pool    16 x  4 x  4
    head    10 x  1 x  1         16 * 10 * 4 * 4 + 10 = 2570
    total                                             = 6722
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.conv3 = nn.Conv2d(8, 16, 3)
        self.conv4 = nn.Conv2d(16, 16, 3)
        self.head = nn.Conv2d(16, 10, 4)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        x = self.pool(F.relu_(self.conv2(x)))
        x = F.relu_(self.conv3(x))
        x = self.pool(F.relu_(self.conv4(x)))
        return self.head(x).flatten(1)


class RegularizedNet(nn.Module):
    """Step 2: BatchNorm after each convolution, dropout, and global average pooling for the big kernel.

    The parameters that the 4x4 kernel of Step 1 gives back pay for a fifth convolution.

    layer   shape of its output   parameters
    conv1    8 x 26 x 26          1 *  8 * 3 * 3 = 72
    norm1    8 x 26 x 26          2 *  8         = 16
    conv2    8 x 24 x 24          8 *  8 * 3 * 3 = 576
    norm2    8 x 24 x 24          2 *  8         = 16
    pool     8 x 12 x 12
    conv3   16 x 10 x 10          8 * 16 * 3 * 3 = 1152
    norm3   16 x 10 x 10          2 * 16         = 32
    conv4   16 x  8 x  8         16 * 16 * 3 * 3 = 2304
    norm4   16 x  8 x  8          2 * 16         = 32
    conv5   16 x  6 x  6         16 * 16 * 3 * 3 = 2304
    norm5   16 x  6 x  6          2 * 16         = 32
    gap     16 x  1 x  1
    head    10                   16 * 10 + 10    = 170
    total                                        = 6706
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, bias=False)
        self.norm3 = nn.BatchNorm2d(16)
        self.conv4 = nn.Conv2d(16, 16, 3, bias=False)
        self.norm4 = nn.BatchNorm2d(16)
        self.conv5 = nn.Conv2d(16, 16, 3, bias=False)
        self.norm5 = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.05)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.conv1(x)))
        x = self.drop(self.pool(F.relu_(self.norm2(self.conv2(x)))))
        x = F.relu_(self.norm3(self.conv3(x)))
        x = self.drop(F.relu_(self.norm4(self.conv4(x))))
        x = F.relu_(self.norm5(self.conv5(x)))
        return self.head(self.gap(x).flatten(1))


class FinalNet(nn.Module):
    """Step 3: the digit is deslanted, pooled early, and classified from a flattened 3x3 map.

    Deslanting also crops two rows and columns at each side, which hold less than half a percent of the ink. Padding
    keeps the strokes at the border. Pooling precedes BatchNorm and ReLU, which then work on a quarter of the values.
    In evaluation the logits are the mean over four views of the digit: a pixel up, down, to the left, to the right
    (after Krizhevsky et al., 2012, who average ten).

    layer   shape of its output   parameters
    deslant  1 x 24 x 24
    conv1    8 x 24 x 24          1 *  8 * 3 * 3 = 72
    pool     8 x 12 x 12
    norm1    8 x 12 x 12          2 *  8         = 16
    conv2   16 x 12 x 12          8 * 16 * 3 * 3 = 1152
    norm2   16 x 12 x 12          2 * 16         = 32
    conv3   16 x 12 x 12         16 * 16 * 3 * 3 = 2304
    pool    16 x  6 x  6
    norm3   16 x  6 x  6          2 * 16         = 32
    conv4   18 x  6 x  6         16 * 18 * 3 * 3 = 2592
    pool    18 x  3 x  3
    norm4   18 x  3 x  3          2 * 18         = 36
    head    10                   18 * 3 * 3 * 10 + 10 = 1630
    total                                        = 7866
    """

    # Up, down, left, right: the columns and rows that `F.pad` adds at the left, the right, the top and the bottom.
    moves: tuple[tuple[int, int, int, int], ...] = (0, 0, -1, 1), (0, 0, 1, -1), (-1, 1, 0, 0), (1, -1, 0, 0)

    def __init__(self, channels: tuple[int, int, int, int] = (8, 16, 16, 18)) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.deslant = Deslant(crop=2)
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(third)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(fourth)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(fourth * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deslant(x)
        if self.training:
            return self.classify(x)
        views = torch.cat([F.pad(x, move) for move in self.moves])
        return self.classify(views).view(len(self.moves), -1, 10).mean(0)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of deslanted digits (N, 1, 24, 24)."""
        x = F.relu_(self.norm1(self.pool(self.conv1(x))))
        x = F.relu_(self.norm2(self.conv2(x)))
        x = F.relu_(self.norm3(self.pool(self.conv3(x))))
        x = F.relu_(self.norm4(self.pool(self.conv4(x))))
        return self.head(x.flatten(1))


@dataclass(frozen=True)
class Step:
    """One of the three steps.

    Attributes:
        theme: what the step is about, in a few words.
        net: the class of its net, which takes no arguments.
        recipe: how the net is trained.
        target: test accuracy in percent that each of the last five epochs shall reach.
    """

    theme: str
    net: type[nn.Module]
    recipe: Recipe
    target: float


# Steps 2 and 3 are written as what differs from the step before. Step 2 changes the net alone.
STEPS = {1: Step("set-up and skeleton", SetupNet, Recipe(max_lr=0.02), target=98.0)}
STEPS[2] = replace(STEPS[1], theme="regularization", net=RegularizedNet, target=99.0)
STEPS[3] = replace(
    STEPS[2],
    theme="final net and recipe",
    net=FinalNet,
    target=99.4,
    recipe=replace(
        STEPS[2].recipe,
        batch_size=256,
        schedule="one_cycle",
        max_lr=0.2,
        rotation=12.0,
        translation=0.05,
        scale=0.12,
        shear=8.0,
        average=0.996,
    ),
)
