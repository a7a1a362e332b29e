"""What the entries for the records need beside Step 3: nets, weights of few bits, a rate, and pruned epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model import FinalNet, crop
from tinymnist.recipe import Recipe, learning_rate
from utils import augment

NINE_VIEWS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


class DoubtingNet(FinalNet):
    """Step 3's net, which in evaluation looks at further views only where the plain one leaves a doubt.

    That is less work, and does not change what the net learns.

    Args:
        views: as for `FinalNet`; the plain one is always looked at.
        sure: the probability of a digit from which the plain view is enough.
    """

    def __init__(self, views: Sequence[tuple[int, int]] = NINE_VIEWS, sure: float = 0.99) -> None:
        super().__init__(views)
        self.sure = sure

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        if self.training:
            return super().forward(x)
        logits = self.classify(crop(x))
        doubt = logits.softmax(1).amax(1) < self.sure
        logits[doubt] = super().forward(x[doubt])
        return logits


class SmallNet(DoubtingNet):
    """Step 3's net with other numbers of channels, or weights of few bits.

    Args:
        channels: of the four convolutions.
        bits: of the weights of the four convolutions and of the head, each from 2 to 4, see `Codes`; without them
            float32.
    """

    def __init__(self, channels: tuple[int, int, int, int], bits: Sequence[int] = ()) -> None:
        super().__init__()
        norm = HalfNorm if bits else nn.BatchNorm2d
        for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), 1):
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            setattr(self, f"norm{number}", norm(outputs))
        self.head = (HalfLinear if bits else nn.Linear)(9 * channels[-1], 10)
        use_codes([self.conv1, self.conv2, self.conv3, self.conv4, self.head], bits)


class SharedNet(DoubtingNet):
    """A net that uses its third convolution three times, each time with a BatchNorm of its own.

    Shared weights go back to Eigen et al., "Understanding Deep Architectures using a Recursive Convolutional Network"
    (2014). Each channel of the last map has one kernel over it, and the head combines the channels.

    Args:
        channels: of the first convolution, and of all others.
        bits: of the weights of the three convolutions, the kernels and the head, as for `SmallNet`.
    """

    def __init__(self, channels: tuple[int, int], bits: Sequence[int] = ()) -> None:
        super().__init__()
        del self.conv4
        norm, (first, other) = HalfNorm if bits else nn.BatchNorm2d, channels
        self.conv1, self.norm1 = nn.Conv2d(1, first, 3, padding=1, bias=False), norm(first)
        self.conv2, self.norm2 = nn.Conv2d(first, other, 3, padding=1, bias=False), norm(other)
        self.conv3 = nn.Conv2d(other, other, 3, padding=1, bias=False)
        self.norm3, self.norm4, self.norm5 = norm(other), norm(other), norm(other)
        self.kernels = nn.Conv2d(other, other, 3, groups=other, bias=False)
        self.norm6 = norm(other, affine=False)  # the head scales and shifts
        self.head = (HalfLinear if bits else nn.Linear)(other, 10)
        use_codes([self.conv1, self.conv2, self.conv3, self.kernels, self.head], bits)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of cropped images (N, 1, 24, 24)."""
        x = F.relu(self.norm1(self.pool(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.pool(self.conv3(x))))
        x = F.relu(self.norm4(self.conv3(x)))
        x = F.relu(self.norm5(self.pool(self.conv3(x))))
        return self.head(self.norm6(self.kernels(x)).flatten(1))


def use_codes(layers: Sequence[nn.Module], bits: Sequence[int]) -> None:
    """Let layers, of which the last is the head, compute with weights of few bits, if there are any."""
    for layer, n in zip(layers, bits, strict=False):
        parametrize.register_parametrization(layer, "weight", Codes(n, whole=layer is layers[-1]))


# Standard deviations between two codes, by bits, which fit a normal distribution best (Max, 1960).
SPACING = {2: 1.22, 3: 0.65, 4: 0.35}


class Codes(nn.Module):
    """Weights as whole numbers of few bits, times a factor that BatchNorm after a convolution takes up.

    In the backward pass, rounding is the identity (straight-through estimator; Bengio et al., 2013).

    Args:
        bits: the codes run from 1 - 2**(bits - 1) to 2**(bits - 1) - 1.
        whole: one factor, float16, for all weights, which is multiplied in; else one per output, which is not.
    """

    def __init__(self, bits: int, whole: bool) -> None:
        super().__init__()
        self.bits, self.whole, self.largest = bits, whole, 2 ** (bits - 1) - 1

    def factor(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: (1, ...) or (outputs, 1, ...)."""
        axes = tuple(range(0 if self.whole else 1, weight.dim()))
        return SPACING[self.bits] * weight.detach().square().mean(axes, keepdim=True).sqrt().clamp(min=1e-12)

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that the layer computes with."""
        factor = self.factor(weight)
        scaled = weight / factor
        codes = scaled + (scaled.round().clamp(-self.largest, self.largest) - scaled).detach()
        return codes * factor.half().to(weight.dtype) if self.whole else codes


class HalfNorm(nn.BatchNorm2d):
    """BatchNorm that in evaluation has one factor and one offset, float16, for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """float (B, C, H, W) to the same shape."""
        if self.training:
            return super().forward(x)
        factor, offset = (value.half().to(x.dtype).view(-1, 1, 1) for value in folded(self))
        return x * factor + offset


class HalfLinear(nn.Linear):
    """A linear layer whose bias is float16."""

    def forward(self, x: Tensor) -> Tensor:
        """float (B, inputs) to (B, outputs)."""
        return F.linear(x, self.weight, self.bias.half().to(x.dtype))


def folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor and the offset (C,) that are left of BatchNorm in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor * norm.weight if norm.affine else factor
    offset = -norm.running_mean * factor
    return factor, offset + norm.bias if norm.affine else offset


@torch.no_grad()
def packed(net: nn.Module) -> bytes:
    """All numbers that evaluation reads: float32, or codes of few bits and float16.

    Codes come first, layer by layer, from each layer a whole number of bytes; then of each layer the float16 numbers.
    """
    codes: list[bytes] = []
    others: list[Tensor] = []
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            others += folded(layer)
        elif parametrize.is_parametrized(layer, "weight"):
            kept: Any = layer
            [rule], weight = kept.parametrizations.weight, kept.parametrizations.weight.original
            factor = rule.factor(weight)
            whole = (weight / factor).round().clamp(-rule.largest, rule.largest) + rule.largest
            bits = whole.flatten().byte().cpu().numpy()[:, None] >> np.arange(rule.bits, dtype=np.uint8) & 1
            codes.append(np.packbits(bits).tobytes())
            others += [factor, kept.bias] if rule.whole else []
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            others += [value.detach() for value in layer.parameters(recurse=False)]
    kind = "<f2" if codes else "<f4"
    return b"".join([*codes, *(other.cpu().numpy().astype(kind).tobytes() for other in others)])


def falling_faster(recipe: Recipe, done: float) -> float:
    """The rate of one-cycle, but falling along a parabola: halfway down, a quarter of the peak is left."""
    rate = learning_rate(recipe, done)
    return rate if done < recipe.warmup else rate**2


class Pruning:
    """Leave out half of what is learnt (InfoBatch; Qin et al., 2024), with the same number of images in each epoch.

    Of the images, the share LEARNT with the lowest last losses counts as learnt. Half of these, drawn at random for
    each epoch, are left out, and the others count double. An image that was not seen yet has an infinite loss.

    `batches` and `loss` are both given to `fit`, so that the one sees what the other computes.
    """

    LEARNT = 0.875

    def __init__(self) -> None:
        self.images = self.labels = self.losses = self.chosen = self.weights = torch.empty(0)
        self.recipe, self.generator = Recipe(), torch.Generator()

    def batches(self, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Pruning:
        """What `fit` iterates, this object itself; the arguments are those of `Batches`."""
        self.images, self.labels, self.recipe, self.generator = images, labels, recipe, generator
        self.losses = torch.full((len(images),), torch.inf, device=images.device)
        return self

    def _sizes(self) -> tuple[int, int]:
        """How many images count as learnt, and how many are left out."""
        learnt = round(self.LEARNT * len(self.images))
        return learnt, learnt // 2

    def __len__(self) -> int:
        return -(-(len(self.images) - self._sizes()[1]) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, (learnt, left_out) = self.images.device, self._sizes()
        shuffled = torch.randperm(len(self.images), generator=self.generator, device=device)
        ranked = shuffled[self.losses[shuffled].argsort(stable=True)]  # equal ones in random order
        kept = ranked[:learnt][torch.randperm(learnt, generator=self.generator, device=device)[left_out:]]
        chosen = torch.cat([kept, ranked[learnt:]])
        weights = torch.ones(len(chosen), device=device)
        weights[: len(kept)] = 2
        order = torch.randperm(len(chosen), generator=self.generator, device=device)
        for part in order.split(self.recipe.batch_size):
            self.chosen, self.weights = chosen[part], weights[part]
            yield augment(self.images[self.chosen], self.recipe, self.generator), self.labels[self.chosen]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean of the cross-entropy of a batch; the losses of its images are kept."""
        each = F.cross_entropy(logits, labels, reduction="none")
        self.losses[self.chosen] = each.detach()
        return (self.weights * each).sum() / self.weights.sum()
