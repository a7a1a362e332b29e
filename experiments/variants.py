"""What the study varies: a net, a recipe, or a part of `fit`, each as the difference from what it is compared with.

A variant is one entry here; `experiments/study.py` trains it, and `experiments/report.py` adds it to the tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from experiments.distillation import Distillation, soft_labels_of
from experiments.nets import (
    PRIOR_NETS,
    BigKernelNet,
    MakeNet,
    NineViewLowBitNet,
    NineViewNet,
    OneViewNet,
    SharedNet,
    Step2Body,
    StridedNet,
    linear_net,
    prior_net,
    setup_net,
    with_layers,
    without_batchnorm,
)
from model import STEPS, FinalNet, RegularizedNet
from tinymnist.deslant import Deslant
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


def changes() -> dict[str, Variant]:
    """Single changes to the steps, by name; "stepK" is the step unchanged, on the same footing."""
    found = {f"step{number}": Variant("(none)", STEPS[number].net, STEPS[number].recipe) for number in (1, 2)}

    def add(number: int, name: str, change: str, net: MakeNet | None = None, **fields: Any) -> None:
        base = found[f"step{number}"]
        recipe = replace(base.recipe, **fields)
        found[f"step{number}-{name}"] = Variant(change, net or base.net, recipe, f"step{number}")

    add(1, "batchnorm", "BatchNorm", functools.partial(setup_net, batchnorm=True))
    for rate in (5, 10, 25):
        add(1, f"dropout-{rate}", f"dropout of {rate} %", functools.partial(setup_net, dropout=rate / 100))
    gap = functools.partial(without_batchnorm, RegularizedNet, drop=nn.Identity())
    add(1, "gap", "GAP and a fifth convolution for the 4x4 kernel", gap)

    add(2, "no-batchnorm", "no BatchNorm", functools.partial(without_batchnorm, RegularizedNet))
    add(2, "no-dropout", "no dropout", functools.partial(with_layers, RegularizedNet, drop=nn.Identity()))
    for rate in (10, 20):
        net = functools.partial(with_layers, RegularizedNet, drop=nn.Dropout(rate / 100))
        add(2, f"dropout-{rate}", f"dropout of {rate} % in place of 5 %", net)
    add(2, "big-kernel", "4x4 kernel for the fifth convolution and GAP", BigKernelNet)
    return found


def ladder() -> dict[str, Variant]:
    """From Step 2 towards Step 3, one part added at a time; each rung is compared with the one below it.

    The rule, written before the first of these runs: a part belongs to Step 3 if its rung raises the mean or the
    lowest of the last five epochs and the interval, corrected for all rungs by Holm's method, excludes zero; or if
    it makes training at least 10 percent cheaper, and the one-sided 95 percent bound of what it loses in the mean
    stays within 0.02 points. What belongs to the step is then taken out of it again, one part at a time, on the same
    24 pairs. The test set has no part in it.
    """
    found = {"step2": Variant("(Step 2)", STEPS[2].net, STEPS[2].recipe)}

    def add(name: str, change: str, net: MakeNet | None = None, base: str = "", **fields: Any) -> None:
        base = base or list(found)[-1]
        found[name] = Variant(change, net or found[base].net, replace(found[base].recipe, **fields), base)

    whole = functools.partial(with_layers, OneViewNet, deslant=nn.Identity())
    add("one-cycle", "one-cycle schedule to 0.1", schedule="one_cycle", max_lr=0.1)
    add("average", "weight average of 0.998", average=0.998)
    add("augmentation", "affine augmentation", rotation=12.0, translation=0.05, scale=0.12, shear=8.0)
    add("net", "early pooling, padding, flattened 3x3 map", whole)
    add("deslant", "deslanting", functools.partial(with_layers, OneViewNet, deslant=Deslant()))
    add("crop", "crop to 24x24 pixels", OneViewNet)
    add("weight-decay", "weight decay of 0.0005", weight_decay=5e-4)
    add("batch-256", "batches of 256 at twice the rate", batch_size=256, max_lr=0.2, average=0.996)
    add("strided", "strided 5x5 convolution at the start", StridedNet)
    add("four-views", "four views in evaluation", FinalNet, base="batch-256")
    return found


def taken_out() -> dict[str, Variant]:
    """What the ladder leaves open, taken out of its top on the same 24 pairs; its "four-views" is their base.

    The rule, written before the first of these runs: a part stays if without it the mean or the lowest of the last
    five epochs falls, and the interval, corrected by Holm's method, excludes zero; or if without it training costs at
    least 10 percent more, and the one-sided 95 percent bound of what it gains in the mean stays within 0.02 points.
    What is still open then goes, for the simpler step is the better one, unless a run on two CPU cores takes more than
    a minute without it.

    Decided: no weight decay. Batches of 256 stay by the last clause. So would the net and the crop, whatever came out;
    their runs ended after eight and seven pairs, and what is left of them are their records.
    """
    top, found = ladder()["four-views"], {}

    def add(name: str, change: str, **fields: Any) -> None:
        found[name] = Variant(change, top.net, replace(top.recipe, **fields), "four-views")

    add("no-weight-decay", "no weight decay", weight_decay=0.0)
    add("no-batch-256", "batches of 128 at half the rate", batch_size=128, max_lr=0.1, average=0.998)
    return found


def parts() -> dict[str, Variant]:
    """Step 3 without one of its parts, or without all that make the weights settle; 24 pairs were planned."""
    step = STEPS[3]
    found = {"final": Variant("(Step 3)", step.net, step.recipe)}

    def add(name: str, change: str, net: MakeNet = step.net, **fields: Any) -> None:
        found[name] = Variant(change, net, replace(step.recipe, **fields), "final")

    constant: dict[str, Any] = {"schedule": "constant", "max_lr": 0.04}  # that of Step 2, for batches twice as large
    add("no-one-cycle", "constant rate of 0.04", **constant)
    add("no-average", "no weight average", average=0.0)
    add("no-augmentation", "no augmentation", rotation=0.0, translation=0.0, scale=0.0, shear=0.0)
    add("no-net", "the net of Step 2", Step2Body)
    add("no-deslant", "no deslanting", functools.partial(with_layers, FinalNet, deslant=nn.ZeroPad2d(-2)))
    add("no-crop", "no crop", functools.partial(with_layers, FinalNet, deslant=Deslant()))
    add("no-batch-256", "batches of 128 at half the rate", batch_size=128, max_lr=0.1, average=0.998)
    add("one-view", "one view", OneViewNet)
    add("unsettled", "constant rate of 0.04, no weight average, one view", OneViewNet, average=0.0, **constant)
    return found


def falling_by(power: int) -> Callable[[Recipe, int, int], float]:
    """The one-cycle learning rate with its fall raised to a power: with 2, half way down a quarter of it is left."""

    def rate(recipe: Recipe, step: int, total_steps: int) -> float:
        done = (step + 0.5) / total_steps
        rising, falling = done / max(recipe.warmup, 1e-9), (1 - done) / (1 - recipe.warmup)
        return recipe.max_lr * min(rising, falling**power)

    return rate


def parabola(split: str) -> dict[str, Any]:
    """Options of `fit`: a learning rate that falls along a parabola."""
    return {"rate": falling_by(2)}


def cubic(split: str) -> dict[str, Any]:
    """Options of `fit`: a learning rate that falls along a cubic."""
    return {"rate": falling_by(3)}


def short() -> dict[str, Variant]:
    """Eight epochs, whose last five begin with the fourth: a learning rate that falls sooner, and a shorter average.

    The rule, written before the first of these runs: after three pairs the candidate of eight epochs whose lowest of
    the last five has the highest mean is entered for the records. Added once the parabola led on the first pair: the
    cubic, and larger batches, of which the largest whose lowest is 99.45 or more on average is entered as the fastest.
    None was, so the entries for that have more epochs.
    """
    final = STEPS[3].recipe
    linear = replace(final, epochs=8, batch_size=64, max_lr=0.05, average=0.998, warmup=0.1)
    bent = replace(linear, max_lr=0.07)
    found = {"linear": Variant("8 epochs, batches of 64", NineViewNet, linear)}

    def add(name: str, change: str, recipe: Recipe, options: Callable[[str], Mapping[str, Any]], net: MakeNet) -> None:
        found[name] = Variant(change, net, recipe, "linear", options)

    add("parabola", "learning rate falls along a parabola", bent, parabola, NineViewNet)
    add("short-average", "weight average of 0.996", replace(linear, average=0.996), no_options, NineViewNet)
    larger = replace(bent, batch_size=128, max_lr=0.14, average=0.996)
    add("parabola-128", "parabola, batches of 128, four views", larger, parabola, FinalNet)
    largest = replace(bent, batch_size=256, max_lr=0.28, average=0.992)
    add("parabola-256", "parabola, batches of 256, four views", largest, parabola, FinalNet)
    steep = replace(bent, max_lr=0.09)
    add("cubic", "learning rate falls along a cubic", steep, cubic, NineViewNet)
    return found


def shared() -> dict[str, Variant]:
    """A net of 3,000 parameters that uses a convolution three times, against a plain one, both without a teacher.

    The rule, written before the first of these runs: after three pairs the net of the higher mean of the last five
    epochs is entered for the records, with a teacher. Added for the net that won: a learning rate that falls along a
    parabola. The twenty runs of that net with a teacher have not been made.
    """
    final, plain = STEPS[3].recipe, functools.partial(NineViewNet, (5, 9, 9, 10))
    again = functools.partial(SharedNet, (6, 14))
    bent, smaller = replace(final, max_lr=0.28), replace(final, batch_size=128, max_lr=0.14, average=0.998)
    return {
        "5-9-9-10": Variant("5-9-9-10", plain, final),
        "6-14": Variant("6-14-14-14-14, one convolution three times", again, final, "5-9-9-10"),
        "6-14-parabola": Variant("6-14-14-14-14, parabola", again, bent, "6-14", parabola),
        "6-14-128": Variant("6-14-14-14-14, parabola, batches of 128", again, smaller, "6-14", parabola),
    }


def taught(split: str) -> dict[str, Any]:
    """Options of `fit`: half of the loss is about the soft labels of a teacher."""
    return {"loss": Distillation(soft_labels_of(split))}


FASTEST = "11-epochs-256"  # the entry that the benchmark times


def records() -> dict[str, Variant]:
    """Entries for the records: all 60,000 training images, random seeds 0 to 19, judged on the 10,000 test images.

    The rules, written before the first of these runs. *Smallest* is the entry of fewest parameters, and *shortest* the
    one of fewest epochs, whose twenty runs all reach 99.40 in each of the last five epochs; *most accurate* is the
    highest mean of the last epoch; *fewest bytes* are those of all stored numbers of an entry with 99.50 or more in the
    mean of the last epoch; *fastest* are the fewest seconds of a whole run, of which only `FASTEST` was timed. An entry
    has fewer than 8,000 parameters and at most 15 epochs; of equal ones the higher
    mean of the last epoch counts. Entries with a teacher are ranked apart, and named where they are better than those
    without.

    The first entries were chosen by hand from two or three pairs per candidate; 7-14-14-14, 4 bits with 16 channels,
    and ten or eleven epochs lie between candidates and were not tried on held-out images. "6-11-11-11-taught" was added
    when its net without a teacher had missed by one run, "8-epochs" and "10-epochs-128" when `short` had been compared,
    and "11-epochs-256" when one run of "10-epochs-128" had missed by one image. Each is read on the test set once, and
    stays whatever comes out.
    """
    final, nine = STEPS[3].recipe, "nine views"
    ten = replace(final, epochs=10, batch_size=64, max_lr=0.05, average=0.998, warmup=0.1)
    eight = replace(ten, epochs=8, max_lr=0.09)
    fast = replace(ten, batch_size=128, max_lr=0.14, average=0.996)
    faster = replace(fast, epochs=11, batch_size=256, max_lr=0.28)
    half = replace(final, batch_size=128, max_lr=0.1, average=0.998)
    middle, small = (functools.partial(NineViewNet, channels) for channels in ((6, 12, 12, 13), (6, 11, 11, 11)))
    return {
        "final": Variant("Step 3", FinalNet, final),
        "7-14-14-14": Variant(f"7-14-14-14, {nine}", functools.partial(NineViewNet, (7, 14, 14, 14)), final),
        "6-12-12-13": Variant(f"6-12-12-13, {nine}", middle, final),
        "6-11-11-11": Variant(f"6-11-11-11, {nine}", small, final),
        "6-12-12-13-taught": Variant(f"6-12-12-13, {nine}, a teacher", middle, final, options=taught),
        "6-11-11-11-taught": Variant(f"6-11-11-11, {nine}, a teacher", small, final, options=taught),
        "batches-128": Variant(f"batches of 128, {nine}", NineViewNet, half),
        "10-epochs": Variant(f"10 epochs, batches of 64, {nine}", NineViewNet, ten),
        "8-epochs": Variant(f"8 epochs, cubic, peak of 0.09, batches of 64, {nine}", NineViewNet, eight, options=cubic),
        "10-epochs-128": Variant("10 epochs, parabola, peak of 0.14, batches of 128", FinalNet, fast, options=parabola),
        "11-epochs-256": Variant("11 epochs, parabola, peak of 0.28", FinalNet, faster, options=parabola),
        "4-bits": Variant(
            f"8-16-16-16, weights of 4 bits, {nine}", functools.partial(NineViewLowBitNet, 4, (8, 16, 16, 16)), final
        ),
    }


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
    "ladder": Group(ladder, seeds=24),
    "taken_out": Group(taken_out, seeds=24),
    "parts": Group(parts, seeds=24),
    "shared": Group(shared, seeds=3),
    "short": Group(short, seeds=3),
    "changes": Group(changes, seeds=5),
    "records": Group(records, seeds=20, held_out=False, weights=True),
    "prior": Group(prior, seeds=3, held_out=False),
}
