"""The three nets, one per step, and the three steps: a net, its recipe and its target.

The nets share convolutions, pooling and head; each step adds one idea to the one before. A net takes float32
(N, 1, 28, 28) as `normalize` returns it, and gives logits (N, classes).

layer   output         weights                 Step 1: biases   Steps 2 and 3: BatchNorm
crop     1 x 24 x 24
conv1    8 x 24 x 24    1 *  8 * 3 * 3 =   72          8                16
pool     8 x 12 x 12
conv2   16 x 12 x 12    8 * 16 * 3 * 3 = 1152         16                32
conv3   16 x 12 x 12   16 * 16 * 3 * 3 = 2304         16                32
pool    16 x  6 x  6
conv4   18 x  6 x  6   16 * 18 * 3 * 3 = 2592         18                36
pool    18 x  3 x  3
head    10             18 * 3 * 3 * 10 = 1620         10                10 (biases)
total                                    7740       + 68 = 7808      + 126 = 7866

A convolution has inputs x outputs x kernel weights, BatchNorm a scale and a shift per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.recipe import Recipe


def crop(x: Tensor, dy: int = 0, dx: int = 0) -> Tensor:
    """The middle 24x24 of 28x28 pixels, or those dy rows below and dx columns to the right: (N, C, 24, 24).

    The copy is laid out channels last, and so are the maps computed from it, which is faster on a CPU:
    `experiments/bench.py` measures by how much.
    """
    torch._assert(x.shape[2:] == (28, 28), "the nets of this project take images of 28x28 pixels: (N, 1, 28, 28)")
    return x[:, :, 2 + dy : 26 + dy, 2 + dx : 26 + dx].contiguous(memory_format=torch.channels_last)


class SetupNet(nn.Module):
    """Step 1: the skeleton, with a bias in each layer and no normalization: 7,808 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv4 = nn.Conv2d(16, 18, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(18 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = crop(x)
        x = F.relu(self.pool(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = F.relu(self.pool(self.conv3(x)))
        x = F.relu(self.pool(self.conv4(x)))
        return self.head(x.flatten(1))


class RegularizedNet(nn.Module):
    """Step 2: BatchNorm in place of the biases of the convolutions: 7,866 parameters.

    Pooling comes before BatchNorm, so that BatchNorm and ReLU work on a quarter of the values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(16)
        self.conv4 = nn.Conv2d(16, 18, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(18)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(18 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(crop(x))

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of cropped images (N, 1, 24, 24)."""
        x = F.relu(self.norm1(self.pool(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.pool(self.conv3(x))))
        x = F.relu(self.norm4(self.pool(self.conv4(x))))
        return self.head(x.flatten(1))


class FinalNet(RegularizedNet):
    """Step 3: the net of Step 2, which in evaluation averages its logits over shifted views of each image.

    Each view gives a slightly different answer, perhaps since a shift makes 2x2 pooling divide the digit differently
    (after Krizhevsky et al., 2012, who average ten views). No parameter is added.

    Args:
        views: the shifts of the crop in pixels, down and to the right, each from -2 to 2.

    Raises:
        ValueError: there is no view, or one leaves the image.
    """

    def __init__(self, views: Sequence[tuple[int, int]] = ((-1, 0), (1, 0), (0, -1), (0, 1))) -> None:
        super().__init__()
        self.views = tuple(views)
        if not self.views or any(abs(shift) > 2 for view in self.views for shift in view):
            raise ValueError(f"views are shifts from -2 to 2, and there is at least one, not {self.views}")

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        views = torch.cat([crop(x, dy, dx) for dy, dx in self.views])
        return self.classify(views).unflatten(0, (len(self.views), -1)).mean(0)


@dataclass(frozen=True)
class Step:
    """One of the three steps.

    Attributes:
        theme: what the step is about, in a few words.
        net: the class of its net, which needs no arguments.
        recipe: how the net is trained.
        target: test accuracy in percent that each of the last five epochs shall reach.
        gap: how many points better the training images may be classified than the test images, after the last epoch.
    """

    theme: str
    net: type[nn.Module]
    recipe: Recipe
    target: float
    gap: float | None = None


STEPS = {1: Step("set-up", SetupNet, Recipe(max_lr=0.02), target=98.0)}
STEPS[2] = replace(
    STEPS[1],
    theme="regularize",
    net=RegularizedNet,
    target=98.75,
    gap=0.5,
    recipe=replace(STEPS[1].recipe, rotation=12.0, translation=0.05, scale=0.12),
)
STEPS[3] = replace(
    STEPS[2],
    theme="settle",
    net=FinalNet,
    target=99.4,
    gap=None,
    recipe=replace(STEPS[2].recipe, batch_size=256, schedule="one_cycle", max_lr=0.2, average=0.996),
)
