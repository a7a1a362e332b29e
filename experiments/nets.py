"""Nets beside those of the three steps: a linear classifier, and the prior solutions."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

MakeNet = Callable[[], nn.Module]


def linear_net() -> nn.Module:
    """A linear classifier: 784 x 10 weights and 10 biases."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))


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
