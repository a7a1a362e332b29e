"""The search for the final step: what was tried, on held-out training images.

A trial is written as what differs from the Step 3 that the search began with: a net in the notation of
`experiments/nets.py`, fields of the recipe, and what neither can say as a context manager that is entered for the
training. Ideas that did not pay live here alone. `experiments/study.py` runs them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from experiments.nets import build
from experiments.variants import Variant
from tinymnist import augmentation
from utils import Recipe

# Trained from three random seeds: what had been close in the search.
CLOSE = frozenset(
    (
        "start",
        "boldness-0.5",
        "taught",
        "taught-early",
        "taught-early-plain",
        "taught-early-1e-3",
        "overlapping",
        "deslant",
        "taught-deslant-overlapping",
    )
)
# So are the best of the others, trained from one.
BEST_OF_OTHERS = frozenset(
    (
        "taught-0.9-4",
        "taught-early-batch-64",
        "taught-deslant-strong",
        "taught-deslant-crop-wide",
        "taught-deslant-crop-five",
        "taught-deslant-crop-late",
    )
)
# The best two of these, which were then compared with Step 3 itself.
BEST_TWO = frozenset(("taught-deslant-crop-wide", "taught-deslant-crop-late"))
MORE_SEEDS = dict.fromkeys(CLOSE | BEST_OF_OTHERS, 3) | dict.fromkeys(BEST_TWO, 5)
# Trials that are Step 3 or single changes to it, which have their runs among those: the words for each.
AMONG_CHANGES = {
    "step3-no-crop": "all three",
    "step3-overlapping": "all three on the middle 24x24 pixels, overlapping windows",
    "step3": "all three on the middle 24x24 pixels (Step 3)",
}
FIRST_NET = "c8pP c16p c16pP c18pP lin"
FIRST_RECIPE = Recipe(
    schedule="one_cycle",
    max_lr=0.1,
    weight_decay=5e-4,
    rotation=12.0,
    translation=0.05,
    scale=0.12,
    shear=8.0,
    average=0.998,
)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for kernels (Jordan et al., "Muon", 2024), SGD with momentum for all else.

    Args:
        parameters, lr, momentum: as in SGD; lr is that of the kernels.
        weight_decay: of the kernels, decoupled.
        ratio: rate of the other parameters over that of the kernels.
    """

    def __init__(
        self, parameters: Any, lr: float, momentum: float, *, weight_decay: float, ratio: float, **_sgd: Any
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ratio": ratio})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        group = self.param_groups[0]
        for p in group["params"]:
            velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
            velocity.mul_(group["momentum"]).add_(p.grad)
            update = p.grad.add(velocity, alpha=group["momentum"])
            if p.ndim == 4 and p.shape[1] > 1:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalized(update.reshape(len(update), -1)).view(p.shape), alpha=-group["lr"])
            else:
                p.add_(update, alpha=-group["lr"] * group["ratio"])


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly, by five Newton-Schulz steps with Jordan's coefficients."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(ratio: float) -> Any:
    """Muon in place of SGD."""
    return mock.patch.object(torch.optim, "SGD", functools.partial(Muon, ratio=ratio))


def cosine() -> Any:
    """A cosine in place of the second, linear part of one-cycle."""

    def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
        done = (step + 0.5) / total_steps
        falling = (done - recipe.warmup) / (1 - recipe.warmup)
        return recipe.max_lr * min(done / recipe.warmup, 0.5 * (1 + math.cos(math.pi * max(falling, 0))))

    return mock.patch.object(utils, "learning_rate", learning_rate)


def fading() -> Any:
    """Augmentation that fades to nothing over the second half of the epochs."""
    original = utils.train_epoch

    def train_epoch(
        model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe, epoch: int,
        *rest: Any,
    ) -> tuple[float, int, int]:  # fmt: skip
        left = min(1.0, 2 * (1 - epoch / (recipe.epochs - 1)))
        weaker = {name: left * getattr(recipe, name) for name in ("rotation", "translation", "scale", "shear")}
        return original(model, optimizer, images, labels, replace(recipe, **weaker), epoch, *rest)

    return mock.patch.object(utils, "train_epoch", train_epoch)


def hardest(share: float) -> Any:
    """Only the hardest share of each batch counts in the loss (Shrivastava et al., 2016)."""
    original = F.cross_entropy

    def cross_entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        if not logits.requires_grad:
            return original(logits, labels, **options)
        losses = original(logits, labels, reduction="none")
        return losses.topk(int(len(losses) * share)).values.mean()

    return mock.patch.object(F, "cross_entropy", cross_entropy)


def elastic(strength: float) -> Any:
    """Smooth random displacements from a 5x5 grid, in fractions of half the width (Simard et al., 2003)."""
    original = augmentation.affine_grid

    def affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
        noise = strength * torch.randn(len(theta), 2, 5, 5)
        smooth = F.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
        return original(theta, height, width) + smooth.permute(0, 2, 3, 1)

    return mock.patch.object(augmentation, "affine_grid", affine_grid)


def changed_batches(change: Callable[[Tensor], Tensor]) -> Any:
    """Augmented batches, normalized, changed once more."""
    original = utils.augment
    return mock.patch.object(utils, "augment", lambda *args: change(original(*args)))


def erased(x: Tensor) -> Tensor:
    """Background in a square of 8x8 pixels at a random place of half of the images (DeVries and Taylor, 2017)."""
    corner, at = torch.rand(2, len(x), 1).mul(21).floor(), torch.arange(28)
    rows, columns = (at >= corner) & (at < corner + 8)
    hit = rows[:, :, None] & columns[:, None, :] & (torch.rand(len(x), 1, 1) < 0.5)
    return x.masked_fill(hit[:, None], 0)


def morphed(x: Tensor) -> Tensor:
    """Each image blended with its dilation or its erosion by 3x3 pixels, by a random share of up to a half."""
    share = torch.rand(len(x), 1, 1, 1) - 0.5
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return x + share.clamp(min=0) * (thick - x) + (-share).clamp(min=0) * (thin - x)


def orthogonal(line: str) -> nn.Module:
    """A net with orthogonal initial kernels (Saxe et al., 2014)."""
    net = build(line)
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight)
    return net


@contextlib.contextmanager
def both(*patches: Callable[[], Any]) -> Iterator[None]:
    """Several patches at once."""
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch())
        yield


def trials() -> dict[str, Variant]:
    """The trials by name."""
    found: dict[str, Variant] = {}

    def add(
        name: str, change: str, net: str | Callable[[], nn.Module] = FIRST_NET, patch: Any = None, **fields: Any
    ) -> None:
        make = functools.partial(build, net) if isinstance(net, str) else net
        found[name] = Variant(change, make, replace(FIRST_RECIPE, **fields), patch=patch or contextlib.nullcontext)

    part = functools.partial
    strong = {"rotation": 15.0, "translation": 0.08, "scale": 0.15, "shear": 12.0}
    weak = {"rotation": 8.0, "translation": 0.04, "scale": 0.08, "shear": 5.0}
    taught = {"boldness": 0.5, "distillation": 0.5, "temperature": 2.0}
    early = "c8pP c14pP c18p c16pP lin"

    add("start", "(none)")
    # The recipe.
    add("no-weight-decay", "no weight decay", weight_decay=0.0)
    add("weight-decay-1e-4", "weight decay of 0.0001", weight_decay=1e-4)
    add("rate-0.05", "largest rate of 0.05", max_lr=0.05)
    add("rate-0.2", "largest rate of 0.2", max_lr=0.2)
    add("warmup-0.05", "rise over 5 % of the steps", warmup=0.05)
    add("cosine", "cosine for the linear fall", patch=cosine)
    add("average-0.999", "weight average of 0.999", average=0.999)
    add("label-smoothing-0.05", "label smoothing of 0.05", label_smoothing=0.05)
    add("muon-0.02", "Muon at 0.02", patch=part(muon, 5.0), max_lr=0.02, weight_decay=0.025)
    add("muon-0.05", "Muon at 0.05", patch=part(muon, 2.0), max_lr=0.05, weight_decay=0.01)
    add("hardest-half", "only the hardest half of a batch in the loss", patch=part(hardest, 0.5))
    # Augmentation.
    add("stronger", "stronger augmentation", **strong)
    add("weaker", "weaker augmentation", **weak)
    add("fading", "augmentation that fades from half of the epochs on", patch=fading)
    add("elastic", "elastic distortion of 0.02", patch=part(elastic, 0.02))
    add("erased", "a square of 8x8 erased in half of the images", patch=part(changed_batches, erased))
    add("morphed", "strokes dilated or eroded", patch=part(changed_batches, morphed))
    add("boldness-0.5", "random boldness of 0.5", boldness=0.5)
    add("boldness-1", "random boldness of 1", boldness=1.0)
    add("boldness-weight-decay-1e-3", "random boldness, weight decay of 0.001", boldness=0.5, weight_decay=1e-3)
    add("boldness-label-smoothing-0.1", "random boldness, label smoothing of 0.1", boldness=0.5, label_smoothing=0.1)
    add("boldness-stronger", "random boldness, stronger augmentation", boldness=0.5, **strong)
    # The net, at about the same number of parameters.
    add("wide-middle", "8-17-17-16 channels", "c8pP c17p c17pP c16pP lin")
    add("separable", "depthwise separable convolutions", "c16pP d40p d48pP d24pP lin")
    add("channel-kernels", "a kernel per channel over the last map", "c8pP c18p c18pP c18pP G lin")
    add("gelu", "GELU for ReLU", part(build, FIRST_NET, nn.GELU))
    add("residual", "residual blocks", "c15pP r r P r P lin")
    add("five-convolutions", "a fifth convolution", "c8pP c14p c14pP c14p c14pP lin")
    add("early-pooling", "pooling after the second convolution", early, boldness=0.5)
    add("overlapping", "overlapping windows in the first two poolings", "c8pO c16p c16pO c18pP lin")
    add("deslant", "deslanting", f"U {FIRST_NET}")
    # Distillation from the teacher of Step 3, all with random boldness.
    add("taught", "soft labels", **taught)
    add("taught-all-1", "soft labels alone, temperature 1", **taught | {"distillation": 1.0, "temperature": 1.0})
    add("taught-0.9-2", "soft labels, share 0.9", **taught | {"distillation": 0.9})
    add("taught-0.9-4", "soft labels, share 0.9, temperature 4", **taught | {"distillation": 0.9, "temperature": 4.0})
    add("taught-early", "soft labels, early pooling", early, **taught)
    add("taught-early-plain", "soft labels, early pooling, no boldness", early, **taught | {"boldness": 0.0})
    add("taught-early-1e-3", "soft labels, early pooling, weight decay of 0.001", early, **taught, weight_decay=1e-3)
    add("taught-early-2e-3", "soft labels, early pooling, weight decay of 0.002", early, **taught, weight_decay=2e-3)
    small_batches = {"batch_size": 64, "max_lr": 0.07, "average": 0.999}
    add("taught-early-batch-64", "soft labels, early pooling, batches of 64", early, **taught, **small_batches)
    add("taught-early-first-12", "soft labels, 12-14-17-16 channels", "c12pP c14pP c17p c16pP lin", **taught)
    add("taught-early-last-18", "soft labels, 8-13-18-18 channels", "c8pP c13pP c18p c18pP lin", **taught)
    add("taught-early-five", "soft labels, a fifth convolution", "c8pP c12pP c14p c14p c14pP lin", **taught)
    kernels = "c10pP c16pP c18p c18pP G lin"
    add("taught-early-channel-kernels", "soft labels, a kernel per channel over the last map", kernels, **taught)
    add("taught-early-residual", "soft labels, residual blocks", "c8pP c16pP r r P lin", **taught)
    add("taught-shared", "soft labels, one convolution used twice", "c8pP c21pP c21p SP lin", **taught)
    add("taught-shared-thrice", "soft labels, one convolution used three times", "c8pP c20pP c20p S SP lin", **taught)
    odd = "c8pP c15pP c18p c17pP lin"
    add("taught-odd", "soft labels, 8-15-18-17 channels", odd, **taught)
    add("taught-odd-orthogonal", "soft labels, 8-15-18-17 channels, orthogonal start", part(orthogonal, odd), **taught)
    add("taught-odd-deslant", "soft labels, 8-15-18-17 channels, deslanting", f"U {odd}", **taught)
    # Deslanting, soft labels and random boldness together.
    add("taught-deslant-strong", "all three, stronger augmentation", f"U {FIRST_NET}", **taught | strong)
    add("taught-deslant-weak", "all three, weaker augmentation", f"U {FIRST_NET}", **taught | weak)
    overlap = "U c8pO c16p c16pO c18pP lin"
    add("taught-deslant-overlapping", "all three, overlapping windows in the first two poolings", overlap, **taught)
    for name, what, line in (
        ("two", "overlapping windows in the first two poolings", "U2 c8pO c16p c16pO c18pP lin"),
        ("wide", "overlapping windows, 8-17-17-16 channels", "U2 c8pO c17p c17pO c16pO lin"),
        ("five", "overlapping windows, a fifth convolution", "U2 c8pO c13p c13pO c14p c16pO lin"),
        ("late", "overlapping windows, later pooling", "U2 c8p c13pO c18pO c18pO lin"),
    ):
        add(f"taught-deslant-crop-{name}", f"all three on the middle 24x24 pixels, {what}", line, **taught)
    return found
