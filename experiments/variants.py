"""What the study varies: a net, a recipe, or a part of `fit`, each as the difference from what it is compared with.

A variant is one entry here, and `experiments/study.py` trains it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from experiments.nets import PRIOR_NETS, MakeNet, linear_net, prior_net
from model import STEPS
from utils import Recipe, cross_entropy


def no_options(split: str) -> dict[str, Any]:
    """The options of a variant that leaves `fit` as it is."""
    return {}


@dataclass(frozen=True)
class Variant:
    """A net, a recipe and options of `fit`, mostly another variant with one thing changed.

    Attributes:
        change: the difference from its base, in words.
        net: makes the net.
        recipe: how it is trained.
        base: the variant that it is compared with, mostly of the same group; empty if there is none.
        options: makes the keyword arguments of `fit` (optimizer, rate, augmentation, loss) for one run on a split.
    """

    change: str
    net: MakeNet
    recipe: Recipe
    base: str = ""
    options: Callable[[str], Mapping[str, Any]] = no_options


@dataclass(frozen=True)
class Group:
    """Variants that share a table.

    Attributes:
        variants: makes them, by name.
        seeds: how many random seeds each is trained from, 0 to seeds - 1.
        held_out: whether they are judged on held-out training images, not on the test set.
        weights: whether the weights are kept too.
    """

    variants: Callable[[], dict[str, Variant]]
    seeds: int
    held_out: bool = True
    weights: bool = False


def baseline() -> dict[str, Variant]:
    """What a classifier without convolution makes of nearly the same number of parameters as the three nets."""
    return {"linear": Variant("a linear classifier", linear_net, STEPS[1].recipe)}


def stepped(after: float) -> Callable[[Recipe, int, int], float]:
    """A learning rate that falls to a tenth after a fraction of the steps."""
    return lambda recipe, step, total_steps: recipe.max_lr * (1.0 if step < after * total_steps else 0.1)


class Plateau:
    """A learning rate that falls to a tenth when the training loss has not sunk for some epochs.

    `rate` and `loss` are both given to `fit`, so that the one sees what the other computes.
    """

    def __init__(self, patience: int = 2) -> None:
        self.patience, self.factor, self.bad_epochs, self.best = patience, 1.0, 0, float("inf")
        self.losses: list[Tensor] = []

    def loss(self, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """The cross-entropy of a batch, which is kept in mind until the epoch ends."""
        value = cross_entropy(logits, labels, indices)
        self.losses.append(value.detach() * len(labels))
        return value

    def rate(self, recipe: Recipe, step: int, total_steps: int) -> float:
        """The learning rate of a step; at the start of an epoch it may fall."""
        if self.losses and step % (total_steps // recipe.epochs) == 0:
            total = float(sum(self.losses))
            self.losses.clear()
            self.bad_epochs = 0 if total < self.best else self.bad_epochs + 1
            self.best = min(self.best, total)
            if self.bad_epochs > self.patience:
                self.factor, self.bad_epochs = 0.1 * self.factor, 0
        return recipe.max_lr * self.factor


def on_plateau(split: str) -> dict[str, Any]:
    """Options of `fit`: a rate that falls on a plateau of the training loss."""
    plateau = Plateau()
    return {"rate": plateau.rate, "loss": plateau.loss}


def prior() -> dict[str, Variant]:
    """The prior solutions with their published recipe, as far as stated, and with ours.

    Where nothing is stated, SGD with Nesterov momentum 0.9 at a rate of 0.01 and batches of 128 are assumed, for D
    a patience of two epochs on the training loss, for E 7 degrees and a tenth of the width. Images are moved by
    `random_affine`, and their mean is not subtracted.
    """
    published: dict[str, tuple[Recipe, Callable[[str], Mapping[str, Any]]]] = {
        "A": (Recipe(max_lr=0.01, schedule="step", rotation=4.0), no_options),
        "D": (Recipe(max_lr=0.01, rotation=15.0), on_plateau),
        "E": (Recipe(max_lr=0.01, schedule="step", rotation=7.0, translation=0.1), no_options),
        "F": (Recipe(max_lr=0.005, batch_size=64), lambda split: {"rate": stepped(8 / 15)}),
    }
    found = {}
    for name, line in PRIOR_NETS.items():
        net = functools.partial(prior_net, line, norm_last=name == "E")
        recipe, options = published[name]
        found[f"{name}-published"] = Variant(f"{name}, recipe as published", net, recipe, options=options)
        found[f"{name}-ours"] = Variant(f"{name}, our recipe", net, STEPS[3].recipe, f"{name}-published")
    return found


GROUPS = {
    "baseline": Group(baseline, seeds=20, held_out=False),
    "prior": Group(prior, seeds=3, held_out=False),
}
