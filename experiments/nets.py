"""Nets beside those of the three steps: what the study compares, the records, and the prior solutions."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.low_bits import LowBitNet
from model import FinalNet, RegularizedNet, SetupNet
from tinymnist.deslant import Deslant

MakeNet = Callable[[], nn.Module]


class BigKernelNet(RegularizedNet):
    """Step 2 with the head of Step 1: a second pooling and a 4x4 kernel, for the fifth convolution and GAP."""

    def __init__(self) -> None:
        super().__init__()
        del self.norm5, self.gap, self.head
        self.conv5 = nn.Conv2d(16, 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.conv1(x)))
        x = self.drop(self.pool(F.relu_(self.norm2(self.conv2(x)))))
        x = F.relu_(self.norm3(self.conv3(x)))
        x = self.pool(self.drop(F.relu_(self.norm4(self.conv4(x)))))
        return self.conv5(x).flatten(1)


class OneViewNet(FinalNet):
    """Step 3 that classifies one view of each image, in evaluation as in training."""

    moves = ((0, 0, 0, 0),)


class StridedNet(OneViewNet):
    """One view, and a convolution of stride 2 for the first convolution and its pooling: 7,994 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False)

    def classify(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.conv1(x)))
        x = F.relu_(self.norm2(self.conv2(x)))
        x = F.relu_(self.norm3(self.pool(self.conv3(x))))
        x = F.relu_(self.norm4(self.pool(self.conv4(x))))
        return self.head(x.flatten(1))


class Step2Body(FinalNet):
    """The net of Step 2 behind the first layer of Step 3, with its four views."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.deslant, self.body = Deslant(crop=2), RegularizedNet()

    def classify(self, x: Tensor) -> Tensor:
        return self.body(x)


NINE_MOVES = tuple((x, -x, y, -y) for x in (-1, 0, 1) for y in (-1, 0, 1))


class NineViewNet(FinalNet):
    """Step 3 with nine views: up to a pixel up or down, and to the left or the right."""

    moves = NINE_MOVES


class SharedNet(NineViewNet):
    """A net that uses its third convolution three times, each time with a BatchNorm of its own.

    Where Step 3 has a linear layer over the whole last map, each channel has one kernel over it, and the linear layer
    combines the channels. Shared weights after Eigen et al., "Understanding Deep Architectures using a Recursive
    Convolutional Network" (2014).

    Args:
        channels: of the first convolution and of all others.
    """

    def __init__(self, channels: tuple[int, int]) -> None:
        first, second = channels
        super().__init__((first, second, second, second))
        del self.conv4
        self.norm5 = nn.BatchNorm2d(second)
        self.kernels = nn.Conv2d(second, second, 3, groups=second, bias=False)
        self.norm6 = nn.BatchNorm2d(second, affine=False)  # the head scales and shifts
        self.head = nn.Linear(second, 10)

    def classify(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.pool(self.conv1(x))))
        x = F.relu_(self.norm2(self.conv2(x)))
        x = F.relu_(self.norm3(self.pool(self.conv3(x))))
        x = F.relu_(self.norm4(self.conv3(x)))
        x = F.relu_(self.norm5(self.pool(self.conv3(x))))
        return self.head(self.norm6(self.kernels(x)).flatten(1))


class NineViewLowBitNet(LowBitNet):
    """Nine views, and weights of a few bits."""

    moves = NINE_MOVES


def linear_net() -> nn.Module:
    """A linear classifier: 784 x 10 weights and 10 biases."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))


def setup_net(batchnorm: bool = False, dropout: float = 0.0) -> nn.Module:
    """Step 1 with BatchNorm in place of the biases, or with dropout after each pooling."""
    net: nn.Module = SetupNet()
    for i in range(1, 5) if batchnorm else ():
        conv = getattr(net, f"conv{i}")
        conv.bias = None
        setattr(net, f"conv{i}", nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)))
    return with_layers(lambda: net, pool=nn.Sequential(nn.MaxPool2d(2), nn.Dropout(dropout))) if dropout else net


def with_layers(make: MakeNet, **layers: nn.Module) -> nn.Module:
    """A net with some of its layers replaced, by name."""
    net = make()
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net


def without_batchnorm(make: MakeNet, **layers: nn.Module) -> nn.Module:
    """A net with a bias in each convolution in place of BatchNorm, and other layers replaced."""
    net = make()
    for name, layer in list(net.named_children()):
        if isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        elif isinstance(layer, nn.BatchNorm2d):
            setattr(net, name, nn.Identity())
    return with_layers(lambda: net, **layers)


# The prior solutions: c16 is a 3x3 convolution to 16 channels with BatchNorm and ReLU, c16p pads it by 1, k16 has a
# 1x1 kernel; P is 2x2 max-pooling, D5 dropout of 5 percent, GAP global average pooling, and lin a linear layer to 10
# classes without bias.
PRIOR_NETS = {
    "A": "c8 D8 c10 c20 D8 P k10 c10 D8 c20 k12 P c15 lin",
    "D": "c8 D5 c16 D5 k8 D5 P c16 D5 c16 D5 c16 D5 k16 D5 GAP lin",
    "E": "c10 D1 c16 D1 c8 D1 P c16 D1 c16 D1 c10 D1 GAP lin",
    "F": "c10p c10p c10p P c16 c16 c8 c8 k8 k16 GAP lin",
}


def prior_net(line: str, norm_last: bool = False) -> nn.Module:
    """The net that a line of `PRIOR_NETS` describes; BatchNorm stands before ReLU, or after it.

    Raises:
        ValueError: a word of the line is not of the notation.
    """
    layers: list[nn.Module] = []
    channels = 1
    for word in line.split():
        if found := re.fullmatch(r"([ck])(\d+)(p?)", word):
            out, kernel = int(found[2]), 3 if found[1] == "c" else 1
            convolution = nn.Conv2d(channels, out, kernel, padding=int(bool(found[3])), bias=False)
            norm, relu = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
            layers += [convolution, relu, norm] if norm_last else [convolution, norm, relu]
            channels = out
        elif re.fullmatch(r"D\d+", word):
            layers.append(nn.Dropout(int(word[1:]) / 100))
        elif word == "P":
            layers.append(nn.MaxPool2d(2))
        elif word == "GAP":
            layers.append(nn.AdaptiveAvgPool2d(1))
        elif word == "lin":
            layers += [nn.Flatten(), nn.LazyLinear(10, bias=False)]
        else:
            raise ValueError(f"no layer {word!r} in the notation of PRIOR_NETS")
    net = nn.Sequential(*layers).eval()
    net(torch.zeros(1, 1, 28, 28))  # the linear layer takes its size from the first image
    return net.train()
