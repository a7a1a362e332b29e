"""Nets written in one line: the notation of the study, for nets other than the three steps.

c16   3x3 convolution to 16 channels, then BatchNorm and ReLU; c16p pads by 1; c16pP pools before BatchNorm; c16pO
      pools windows that overlap: 3x3, two pixels apart, padded by 1
k16   the same with a 1x1 kernel; d16 the same as a depthwise 3x3 kernel and a pointwise convolution
S     the convolution before once more, with the same weights and a BatchNorm of its own; SP pools
r     residual block: x plus a padded 3x3 convolution and BatchNorm of x, then ReLU
U     deslanting; U2 cuts 2 pixels off at each side
P     2x2 max-pooling
D5    dropout of 5 percent
GAP   global average pooling
G     a kernel of its own for each channel over the whole map, then BatchNorm
lin   linear layer to 10 classes on all that is left, with a bias; lin0 without
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

from tinymnist.deslant import Deslant

CONVOLUTION = re.compile(r"([ckd])(\d+)(p?)([PO]?)")


class Residual(nn.Module):
    """x plus a padded 3x3 convolution and BatchNorm of x, then the activation."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.norm(self.conv(x)))


def relu() -> nn.Module:
    """ReLU in place."""
    return nn.ReLU(inplace=True)


def build(line: str, activation: Callable[[], nn.Module] = relu, norm_last: bool = False) -> nn.Sequential:
    """The net that a line describes.

    Args:
        line: layers as above, separated by spaces.
        activation: makes what stands in place of ReLU.
        norm_last: BatchNorm after the activation, not before.

    Returns:
        a net from float32 (N, 1, 28, 28) to logits (N, 10).

    Raises:
        ValueError: a word of the line is not of the notation.
    """
    layers: list[nn.Module] = []
    channels, size = 1, 28
    for word in line.split():
        if found := CONVOLUTION.fullmatch(word):
            kind, out, padded, pooling = found[1], int(found[2]), bool(found[3]), found[4]
            kernel = 1 if kind == "k" else 3
            padding = int(padded and kernel == 3)
            if kind == "d":
                layers.append(nn.Conv2d(channels, channels, 3, padding=padding, groups=channels, bias=False))
                layers.append(nn.Conv2d(channels, out, 1, bias=False))
            else:
                layers.append(nn.Conv2d(channels, out, kernel, padding=padding, bias=False))
            size += 2 * padding - kernel + 1
            if pooling:
                layers.append(nn.MaxPool2d(2) if pooling == "P" else nn.MaxPool2d(3, stride=2, padding=1))
                size = size // 2 if pooling == "P" else (size + 1) // 2
            layers += [activation(), nn.BatchNorm2d(out)] if norm_last else [nn.BatchNorm2d(out), activation()]
            channels = out
        elif re.fullmatch(r"U\d*", word):
            layers.append(Deslant(int(word[1:] or 0)))
            size -= 2 * layers[-1].crop
        elif word in ("S", "SP"):
            layers.append(next(layer for layer in reversed(layers) if isinstance(layer, nn.Conv2d)))
            layers += [nn.MaxPool2d(2)] if word == "SP" else []
            layers += [nn.BatchNorm2d(channels), activation()]
            size //= 2 if word == "SP" else 1
        elif word == "r":
            layers.append(Residual(channels, activation))
        elif word == "P":
            layers.append(nn.MaxPool2d(2))
            size //= 2
        elif re.fullmatch(r"D\d+", word):
            layers.append(nn.Dropout(int(word[1:]) / 100))
        elif word == "GAP":
            layers.append(nn.AdaptiveAvgPool2d(1))
            size = 1
        elif word == "G":
            layers += [nn.Conv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels)]
            size = 1
        elif word in ("lin", "lin0"):
            layers += [nn.Flatten(), nn.Linear(channels * size**2, 10, bias=word == "lin")]
        else:
            raise ValueError(f"no layer {word!r}: see the notation in experiments/nets.py")
    return nn.Sequential(*layers)
