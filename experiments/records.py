"""What the entries for the records need beside Step 3: nets, weights of few levels, a rate, and pruned epochs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiments.nets import deslant
from model import FinalNet, crop
from tinymnist.recipe import Recipe, learning_rate
from utils import affine, augment

NINE_VIEWS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


class DoubtingNet(FinalNet):
    """Step 3's net, which in evaluation looks at further views only where the plain one leaves a doubt.

    That is less work, and does not change what the net learns.

    Args:
        views: as for `FinalNet`; the plain one is always looked at.
        sure: the probability of a digit from which the plain view is enough.
        deslanted: each image is sheared first, until its digit stands upright.
    """

    def __init__(
        self, views: Sequence[tuple[int, int]] = NINE_VIEWS, sure: float = 0.99, deslanted: bool = False
    ) -> None:
        super().__init__(views)
        self.sure, self.deslanted = sure, deslanted

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        upright = self.upright(x)
        if self.training:
            return super().forward(upright)
        logits = self.classify(crop(upright))
        doubt = logits.softmax(1).amax(1) < self.sure
        if doubt.any():
            logits[doubt] = self.look_again(x[doubt])
        return logits

    def upright(self, x: Tensor) -> Tensor:
        """The images, deslanted if this net does that."""
        return deslant(x) if self.deslanted else x

    def look_again(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images in doubt (N, 1, 28, 28), averaged over the views."""
        return super().forward(self.upright(x))


class SmallNet(DoubtingNet):
    """Step 3's net with other numbers of channels, or weights of few levels.

    Args:
        channels: of the four convolutions.
        levels: how many values a weight can have, an odd number, see `Codes`; 0 for float32.
        deslanted: as for `DoubtingNet`.
    """

    def __init__(self, channels: Sequence[int], levels: int = 0, deslanted: bool = False) -> None:
        super().__init__(deslanted=deslanted)
        norm = HalfNorm if levels else nn.BatchNorm2d
        for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), 1):
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            setattr(self, f"norm{number}", norm(outputs))
        self.head = (HalfLinear if levels else nn.Linear)(9 * channels[-1], 10)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.head) if levels else ():
            parametrize.register_parametrization(layer, "weight", Codes(levels, scaled=layer is self.head))


class TurningNet(SmallNet):
    """A small net that also turns the images that leave a doubt, and whose head can have fewer parameters.

    Args:
        channels, levels, deslanted: as for `SmallNet`.
        kernels: the head is a `KernelHead`.
        turns: the angles in degrees at which an image in doubt is looked at, each in all views.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: bool,
        levels: int = 0,
        deslanted: bool = True,
        turns: Sequence[float] = (-10.0, 0.0, 10.0),
    ) -> None:
        super().__init__(channels, levels, deslanted)
        self.turns = tuple(turns)
        if kernels:
            self.add_module("head", KernelHead(channels[-1], levels))

    def look_again(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images in doubt (N, 1, 28, 28), averaged over the views of each angle."""
        still, one = x.new_zeros(len(x)), x.new_ones(len(x))
        turned = [affine(x, still + turn, still, still, one) for turn in self.turns]
        return torch.stack([super(TurningNet, self).look_again(image) for image in turned]).mean(0)


class KernelHead(nn.Sequential):
    """A head with one 3x3 kernel for each channel, which makes a number of its 3x3 map, and a linear layer.

    Args:
        channels: of the map; the head has 19 * channels + 10 parameters.
        levels: as for `SmallNet`.
    """

    def __init__(self, channels: int, levels: int = 0) -> None:
        kernels = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
        linear = (HalfLinear if levels else nn.Linear)(channels, 10)
        for layer in (kernels, linear) if levels else ():
            parametrize.register_parametrization(layer, "weight", Codes(levels, scaled=True))
        super().__init__(nn.Unflatten(1, (channels, 3, 3)), kernels, nn.Flatten(), linear)


class Codes(nn.Module):
    """Weights as whole numbers, times a factor, which BatchNorm after a convolution absorbs and the head multiplies in.

    In the backward pass, rounding and clamping are the identity (straight-through estimator; Bengio et al., 2013).

    Args:
        levels: an odd number; the codes run from -(levels // 2) to levels // 2.
        scaled: one factor, float16, for all weights, which is multiplied in; else one per output, which is not.
    """

    def __init__(self, levels: int, scaled: bool) -> None:
        super().__init__()
        self.levels, self.scaled, self.spacing = levels, scaled, normal_spacing(levels)

    def codes(self, weight: Tensor) -> Tensor:
        """The codes, as float, of the shape of the weights."""
        most = self.levels // 2
        return (weight / self.factor(weight)).round().clamp(-most, most)

    def factor(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: (1, ...) or (outputs, 1, ...)."""
        axes = tuple(range(0 if self.scaled else 1, weight.dim()))
        return self.spacing * weight.detach().square().mean(axes, keepdim=True).sqrt().clamp(min=1e-12)

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that the layer computes with."""
        factor = self.factor(weight)
        scaled = weight / factor
        codes = scaled + (self.codes(weight) - scaled).detach()
        return codes * factor.half().to(weight.dtype) if self.scaled else codes


@functools.cache
def normal_spacing(levels: int) -> float:
    """The step, in standard deviations, of the quantizer with the least squared error on a normal distribution.

    Its levels are equally spaced, an odd number of them around 0 (Max, "Quantizing for minimum distortion", 1960).
    """
    values = torch.special.ndtri((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    found = torch.linspace(0.05, 1.5, 1451, dtype=torch.float64)[:, None]
    rounded = (values / found).round().clamp(-(levels // 2), levels // 2) * found
    return float(found[(rounded - values).square().sum(1).argmin()])


class HalfNorm(nn.BatchNorm2d):
    """BatchNorm that in evaluation has one scale and one shift, float16, for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """float (B, C, H, W) to the same shape."""
        if self.training:
            return super().forward(x)
        scale, shift = (value.half().to(x.dtype).view(-1, 1, 1) for value in scale_and_shift(self))
        return x * scale + shift


class HalfLinear(nn.Linear):
    """A linear layer whose bias is float16."""

    def forward(self, x: Tensor) -> Tensor:
        """float (B, inputs) to (B, outputs)."""
        return F.linear(x, self.weight, self.bias.half().to(x.dtype))


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and the shift (C,) that are left of BatchNorm in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def packed(net: nn.Module) -> bytes:
    """The parameters, with BatchNorm as one scale and one shift per channel.

    They are float32; or codes, as the digits of one long number, and then float16.
    """
    codes, largest, others = 0, 0, list[Tensor]()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            others += scale_and_shift(layer)
        elif parametrize.is_parametrized(layer, "weight"):
            kept: Any = layer
            [rule], weight = kept.parametrizations.weight, kept.parametrizations.weight.original
            for code in (rule.codes(weight) + rule.levels // 2).int().flatten().tolist():
                codes, largest = codes * rule.levels + code, largest * rule.levels + rule.levels - 1
            others += [rule.factor(weight), *kept.parameters(recurse=False)] if rule.scaled else []
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            others += layer.parameters(recurse=False)
    numbers = torch.cat([other.flatten() for other in others]).cpu().numpy()
    if not largest:
        return numbers.astype("<f4").tobytes()
    return codes.to_bytes((largest.bit_length() + 7) // 8, "big") + numbers.astype("<f2").tobytes()


def cubic(recipe: Recipe, done: float) -> float:
    """The rate of one-cycle, but falling along a cubic: halfway down, an eighth of the peak is left."""
    rate = learning_rate(recipe, done)
    return rate if done < recipe.warmup else rate**3


class Pruning:
    """Leave out half of what is learnt: a variant of InfoBatch (Qin et al., "InfoBatch", 2024).

    In each pass, the share LEARNT of the images, those with the lowest last losses, counts as learnt. Half of these,
    drawn at random, are left out, and the others count double. Images that were not seen yet rank last; in the first
    pass all of them do, so it is a random 9/16. In InfoBatch, what counts as learnt lies below the mean loss, and the
    last epochs are whole. Passes follow each other without regard to epochs, which have their own number of images.

    `batches` and `loss` are both given to `fit`, so that the one sees what the other computes.

    Args:
        share: how many images an epoch has, as a share of the training images: 9/16 is one pass.
    """

    LEARNT = 0.875

    def __init__(self, share: float) -> None:
        self.share = share
        self.images = self.labels = self.losses = self.chosen = self.weights = torch.empty(0)
        self.recipe, self.generator = Recipe(), torch.Generator()
        self.stream: Iterator[tuple[Tensor, Tensor]] = iter(())

    def batches(self, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Pruning:
        """What `fit` iterates, this object itself; the arguments are those of `Batches`."""
        self.images, self.labels, self.recipe, self.generator = images, labels, recipe, generator
        self.losses = torch.full((len(images),), torch.inf, device=images.device)
        self.stream = self._passes()
        return self

    def __len__(self) -> int:
        return math.ceil(self.share * len(self.images) / self.recipe.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(self.stream, len(self))

    def _passes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass after the other."""
        device, learnt = self.images.device, round(self.LEARNT * len(self.images))
        permutation = functools.partial(torch.randperm, generator=self.generator, device=device)
        while True:
            shuffled = permutation(len(self.images))
            ranked = shuffled[self.losses[shuffled].argsort(stable=True)]  # equal ones in random order
            kept = ranked[:learnt][permutation(learnt)[learnt // 2 :]]
            chosen = torch.cat([kept, ranked[learnt:]])
            weights = torch.ones(len(chosen), device=device)
            weights[: len(kept)] = 2
            for part in permutation(len(chosen)).split(self.recipe.batch_size):
                self.chosen, self.weights = chosen[part], weights[part]
                yield augment(self.images[self.chosen], self.recipe, self.generator), self.labels[self.chosen]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean of the cross-entropy of a batch; the losses of its images are kept."""
        each = F.cross_entropy(logits, labels, reduction="none")
        self.losses[self.chosen] = each.detach()
        return (self.weights * each).sum() / self.weights.sum()
