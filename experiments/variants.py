"""What is trained for the published results: groups of variants, each a net and a recipe.

A variant is one entry here; `python -m experiments.study GROUP/VARIANT` trains it into `results/GROUP.jsonl`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from experiments.nets import PRIOR_NETS, MakeNet, PartNet, linear_net, prior_net
from experiments.records import DoubtingNet, Pruning, SmallNet, TurningNet, cubic
from model import STEPS, FinalNet, RegularizedNet
from utils import Recipe


@dataclass(frozen=True)
class Variant:
    """A net, how it is trained, and what it is compared with.

    Attributes:
        net: makes the net: a class or function, or a `functools.partial` of one.
        recipe: how it is trained.
        openings: what replaces `rate`, `batches` or `loss` of `fit`.
        words: how the report names it, if it is no part of a step.
        against: the step that it changes, if any.
        seeds: from how many it is trained, 0 to seeds - 1.
    """

    net: MakeNet
    recipe: Recipe
    openings: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    against: str = ""
    seeds: int = 6


@dataclass(frozen=True)
class Group:
    """Variants whose records share a file.

    Attributes:
        variants: by name.
        held_out: whether seed K is judged on the sixth K modulo 6 of the training images, or all on the test set.
        weights: of how many seeds of each variant the weights are published too.
    """

    variants: Callable[[], dict[str, Variant]]
    held_out: bool
    weights: Mapping[str, int] = field(default_factory=dict)


def varied(number: int, words: str, net: MakeNet | None = None, **changes: Any) -> Variant:
    """A step with another net, or with changes to its recipe, to be compared with the step itself."""
    step = STEPS[number]
    return Variant(net or step.net, replace(step.recipe, **changes), words=words, against=f"step{number}")


def steps(seeds: int = 20) -> dict[str, Variant]:
    """The steps themselves, each from that many seeds."""
    return {f"step{number}": Variant(step.net, step.recipe, seeds=seeds) for number, step in STEPS.items()}


def choices() -> dict[str, Variant]:
    """The steps on held-out images, and what was considered beside them: other constant rates, and other views."""
    grids = functools.partial(FinalNet, views=((0, 0), (0, 1), (1, 0), (1, 1)))
    return steps(seeds=24) | {
        "step1-rate-0.05": varied(1, "Step 1 at a rate of 0.05", max_lr=0.05),
        "step2-rate-0.05": varied(2, "Step 2 at a rate of 0.05", max_lr=0.05),
        "step2-rate-0.1": varied(2, "Step 2 at a rate of 0.1", max_lr=0.1),
        "step3-four-grids": varied(3, "Step 3 with views on a 2x2 grid", grids),
    }


def parts() -> dict[str, Variant]:
    """What each part does: alone, added to the step before; last, taken out of the finished step; and controls.

    Where batches of 128 replace those of 256, the rate is halved and the decay of the average is 0.998, the root of
    0.996: an epoch then moves and forgets as much.
    """
    part, one_view = functools.partial, ((0, 0),)
    moved: dict[str, Any] = {name: getattr(STEPS[2].recipe, name) for name in ("rotation", "translation", "scale")}
    still: dict[str, Any] = dict.fromkeys(moved, 0.0)
    return {
        "1-momentum": varied(1, "Step 1 without momentum, rate tenfold", momentum=0.0, max_lr=0.2),
        "2-alone-norm": varied(1, "Step 1 with BatchNorm", RegularizedNet),
        "2-alone-augmentation": varied(1, "Step 1 with augmentation", **moved),
        "2-dropout": varied(2, "Step 2 with dropout", part(PartNet, one_view, dropout=0.1)),
        "2-average-pooling": varied(2, "Step 2 with global average pooling", part(PartNet, one_view, flat=False)),
        "3-alone-cycle": varied(2, "Step 2 with one-cycle", schedule="one_cycle", max_lr=0.1),
        "3-alone-average": varied(2, "Step 2 with the average of the weights", average=0.998),
        "3-alone-views": varied(2, "Step 2 with four views", FinalNet),
        "3-alone-batch": varied(2, "Step 2 with batches of 256, rate kept", batch_size=256),
        "3-alone-batch-rate": varied(2, "Step 2 with batches of 256, rate doubled", batch_size=256, max_lr=0.04),
        "3-last-cycle": varied(3, "Step 3 at a constant 0.04", schedule="constant", max_lr=0.04),
        "3-last-average": varied(3, "Step 3 without the average of the weights", average=0.0),
        "3-last-views": varied(3, "Step 3 with one view", RegularizedNet),
        "3-last-batch": varied(3, "Step 3 with batches of 128", batch_size=128, max_lr=0.1, average=0.998),
        "3-last-augmentation": varied(3, "Step 3 without augmentation", **still),
        "3-last-norm": varied(3, "Step 3 without BatchNorm", part(PartNet, norm=False)),
        "3-late-pooling": varied(3, "Step 3, pooling after the second convolution", part(PartNet, early=False)),
        "3-last-crop": varied(3, "Step 3 without the crop", part(PartNet, cropped=False)),
        "3-average-pooling": varied(3, "Step 3 with global average pooling", part(PartNet, flat=False)),
        "3-deslanted": varied(3, "Step 3 with deslanting", part(PartNet, deslanted=True)),
        "3-constant-mean": varied(3, "Step 3 at a constant 0.1", schedule="constant", max_lr=0.1),
        "3-constant-peak": varied(3, "Step 3 at a constant 0.2", schedule="constant"),
        "3-no-rise": varied(3, "Step 3, the rate only falling", warmup=0.0),
        "3-step-decay": varied(3, "Step 3 with a step decay", schedule="step"),
    }


class Plateau:
    """A learning rate that falls to a tenth when the training loss has not sunk for more than two epochs.

    `rate` and `loss` are both given to `fit`, so that the one sees what the other computes.
    """

    def __init__(self) -> None:
        self.factor, self.bad_epochs, self.best, self.epoch = 1.0, 0, float("inf"), 0
        self.losses: list[Tensor] = []

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of a batch, which is kept in mind until the epoch ends."""
        value = F.cross_entropy(logits, labels)
        self.losses.append(value.detach() * len(labels))
        return value

    def rate(self, recipe: Recipe, done: float) -> float:
        """The fraction of the learning rate; at the start of an epoch it may fall."""
        if int(done * recipe.epochs) > self.epoch:
            self.epoch, total, self.losses = int(done * recipe.epochs), float(sum(self.losses)), []
            self.bad_epochs = 0 if total < self.best else self.bad_epochs + 1
            self.best = min(self.best, total)
            if self.bad_epochs > 2:
                self.factor, self.bad_epochs = 0.1 * self.factor, 0
        return self.factor


def eight_epochs_then_a_tenth(recipe: Recipe, done: float) -> float:
    """A learning rate that falls to a tenth after 8 of 15 epochs."""
    return 1.0 if done < 8 / 15 else 0.1


def up_and_slowly_down(recipe: Recipe, done: float) -> float:
    """A learning rate that is half the largest in the first epoch, then whole, a tenth by epoch 8, 0 in the end."""
    epoch = done * recipe.epochs
    if epoch < 2:
        return 0.5 if epoch < 1 else 1.0
    return 0.1 ** ((epoch - 2) / 6) if epoch < 8 else 0.1 * (recipe.epochs - epoch) / (recipe.epochs - 8)


def prior() -> dict[str, Variant]:
    """The prior solutions with their published recipe, as far as stated, and with ours; and a linear classifier.

    Where nothing is stated, SGD with Nesterov momentum 0.9 at a rate of 0.01 and batches of 128 are assumed, for D
    a patience of two epochs on the training loss, for E 7 degrees and a tenth of the width; for K, of which only
    layers and epochs are stated, the recipe of J, of the same author. Images are moved by `augment`, and their mean is
    not subtracted.
    """
    plateau = Plateau()
    published: dict[str, tuple[Recipe, dict[str, Any]]] = {
        "A": (Recipe(max_lr=0.01, schedule="step", rotation=4.0), {}),
        "D": (Recipe(max_lr=0.01, rotation=15.0), {"rate": plateau.rate, "loss": plateau.loss}),
        "E": (Recipe(max_lr=0.01, schedule="step", rotation=7.0, translation=0.1), {}),
        "F": (Recipe(max_lr=0.005, batch_size=64), {"rate": eight_epochs_then_a_tenth}),
        "J": (Recipe(max_lr=0.1, batch_size=32, momentum=0.0, rotation=7.0, translation=0.09, scale=0.09),
              {"rate": up_and_slowly_down}),
        "K": (Recipe(max_lr=0.1, batch_size=32, momentum=0.0, rotation=7.0, translation=0.09, scale=0.09, epochs=12),
              {"rate": up_and_slowly_down}),
    }  # fmt: skip
    found = {"linear": Variant(linear_net, STEPS[1].recipe)}
    for name, line in PRIOR_NETS.items():
        net = functools.partial(prior_net, line, norm_last=name == "E")
        found[f"{name}-published"] = Variant(net, *published[name])
        found[f"{name}-ours"] = Variant(net, STEPS[3].recipe)
    return {name: replace(variant, seeds=3 if name == "linear" else 2) for name, variant in found.items()}


def candidates() -> dict[str, Variant]:
    """What was considered for the records, on held-out images.

    Batches of 128 have half the rate of Step 3, and those of 64 a quarter. Codes change with every step of the weights
    they stand for, so these are averaged over fewer steps, and their rate is almost 0 in the last five epochs.
    """
    step, part = STEPS[3], functools.partial
    b128 = replace(step.recipe, batch_size=128, max_lr=0.1, average=0.998)
    b64 = replace(step.recipe, batch_size=64, max_lr=0.05, average=0.998)
    pruned, whole = ({"batches": one.batches, "loss": one.loss} for one in (Pruning(9 / 16), Pruning(1.0)))
    return {
        "pruned": Variant(
            DoubtingNet, replace(b128, average=0.9965), pruned, "pruned epochs", "step3"
        ),
        "10-epochs": Variant(
            part(DoubtingNet, deslanted=True), replace(b64, epochs=10, warmup=0.1), {}, "10 epochs, deslanted", "step3"
        ),
        "9-epochs": Variant(
            part(TurningNet, (8, 16, 16, 18), kernels=False), replace(b64, epochs=9, warmup=0.1), whole,
            "9 pruned epochs, deslanted", "step3",
        ),
        "small-5822": Variant(
            part(TurningNet, (8, 14, 16, 16), kernels=True), b128, whole, "8-14-16-16 channels, kernels", "step3"
        ),
        "small-6414": Variant(
            part(SmallNet, (8, 14, 14, 16), deslanted=True), b128, {}, "8-14-14-16 channels, deslanted", "step3"
        ),
        "levels-15": Variant(
            part(SmallNet, (8, 16, 16, 16), 15), replace(b128, max_lr=0.16, average=0.95), {"rate": cubic},
            "8-16-16-16 channels, 15 levels", "step3",
        ),
    }  # fmt: skip


# The candidates that are entered, and the seeds from which each was trained on all training images so far, to be tested
# on the test set; an entry is finished with twenty.
ENTRIES = {"pruned": 20, "levels-15": 20, "9-epochs": 20, "small-5822": 20, "10-epochs": 20, "small-6414": 7}


def records() -> dict[str, Variant]:
    """The entries for the records."""
    return {name: replace(candidates()[name], seeds=seeds) for name, seeds in ENTRIES.items()}


GROUPS = {
    "choices": Group(choices, held_out=True),
    "parts": Group(parts, held_out=True),
    "steps": Group(steps, held_out=False, weights={"step1": 1, "step2": 1, "step3": 20}),
    "prior": Group(prior, held_out=False),
    "candidates": Group(candidates, held_out=True),
    "records": Group(records, held_out=False, weights={"levels-15": 1}),
}
