"""What is trained for the published results: groups of variants, each a net and a recipe.

A variant is one entry here; `python -m experiments.study GROUP/VARIANT` trains it into `results/GROUP.jsonl`, and the
report compares it with the variant that it names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from experiments.nets import PRIOR_NETS, MakeNet, linear_net, prior_net
from model import STEPS, FinalNet
from utils import Recipe


@dataclass(frozen=True)
class Variant:
    """A net, how it is trained, and what of `fit` is opened.

    Attributes:
        net: makes the net: a class or function, or a `functools.partial` of one.
        recipe: how it is trained.
        openings: `rate`, `batches` or `loss` of `fit`, where they are not the defaults.
        words: how the report names it.
        against: the variant that the report compares it with, if any.
    """

    net: MakeNet
    recipe: Recipe
    openings: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    against: str = ""


@dataclass(frozen=True)
class Group:
    """Variants whose records share a file.

    Attributes:
        variants: by name.
        seeds: how many seeds each is trained from, 0 to seeds - 1.
        held_out: whether seed K is judged on the sixth K modulo 6 of the training images, or all on the test set.
        weights: of how many seeds of each variant the weights are published too.
    """

    variants: Callable[[], dict[str, Variant]]
    seeds: int
    held_out: bool
    weights: Mapping[str, int] = field(default_factory=dict)


def steps() -> dict[str, Variant]:
    """The three steps as published."""
    return {f"step{number}": Variant(step.net, step.recipe) for number, step in STEPS.items()}


def choices() -> dict[str, Variant]:
    """The steps on held-out images, and what was considered beside them: other constant rates, and other views."""
    found = steps()
    for number, rate in ((1, 0.05), (2, 0.05), (2, 0.1)):
        step = STEPS[number]
        words = f"Step {number} at a rate of {rate}, not {step.recipe.max_lr}"
        recipe = replace(step.recipe, max_lr=rate)
        found[f"step{number}-rate-{rate}"] = Variant(step.net, recipe, words=words, against=f"step{number}")
    grids = functools.partial(FinalNet, views=((0, 0), (0, 1), (1, 0), (1, 1)))
    words = "Step 3 with views (0, 0), (0, 1), (1, 0), (1, 1), not up, down, left, right"
    found["step3-four-grids"] = Variant(grids, STEPS[3].recipe, words=words, against="step3")
    return found


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


def prior() -> dict[str, Variant]:
    """The prior solutions with their published recipe, as far as stated, and with ours; and a linear classifier.

    Where nothing is stated, SGD with Nesterov momentum 0.9 at a rate of 0.01 and batches of 128 are assumed, for D
    a patience of two epochs on the training loss, for E 7 degrees and a tenth of the width. Images are moved by
    `augment`, and their mean is not subtracted.
    """
    plateau = Plateau()
    published: dict[str, tuple[Recipe, dict[str, Any]]] = {
        "A": (Recipe(max_lr=0.01, schedule="step", rotation=4.0), {}),
        "D": (Recipe(max_lr=0.01, rotation=15.0), {"rate": plateau.rate, "loss": plateau.loss}),
        "E": (Recipe(max_lr=0.01, schedule="step", rotation=7.0, translation=0.1), {}),
        "F": (Recipe(max_lr=0.005, batch_size=64), {"rate": eight_epochs_then_a_tenth}),
    }
    found = {"linear": Variant(linear_net, STEPS[1].recipe)}
    for name, line in PRIOR_NETS.items():
        net = functools.partial(prior_net, line, norm_last=name == "E")
        found[f"{name}-published"] = Variant(net, *published[name])
        found[f"{name}-ours"] = Variant(net, STEPS[3].recipe)
    return found


GROUPS = {
    "choices": Group(choices, seeds=6, held_out=True),
    "steps": Group(steps, seeds=20, held_out=False, weights={"step1": 1, "step2": 1, "step3": 20}),
    "prior": Group(prior, seeds=3, held_out=False),
}
