"""What the report and the README rest on: the runs of a variant, and which runs are compared with which."""

from __future__ import annotations

import functools
import json
import math
import statistics
from dataclasses import replace

import numpy as np

from experiments.study import finished
from experiments.variants import GROUPS, Variant
from model import STEPS
from tinymnist import runs
from tinymnist.runs import Run
from tinymnist.tables import lowest_of_last

records = functools.cache(finished)  # which are asked for some hundred times


def runs_of(group: str, variant: str) -> list[Run]:
    """The finished runs of a variant, by seed.

    Raises:
        ValueError: a record of the group is not of today's code, or a run is missing.
    """
    done, stale = records(group)
    if stale:
        raise ValueError(f"{stale[0]}: python -m experiments.study {group}")
    seeds = range(GROUPS[group].variants()[variant].seeds)
    found = [run for run in done.values() if run["variant"] == variant and run["seed"] in seeds]
    if len(found) < len(seeds):
        raise ValueError(f"runs of {group}/{variant} are missing: python -m experiments.study {group}/{variant}")
    return sorted(found, key=lambda run: run["seed"])


def steps_of(group: str) -> dict[int, list[Run]]:
    """The runs of the steps in a group; a step that has none yet is left out."""
    there = {run["variant"] for run in runs.read_runs(runs.RESULTS / f"{group}.jsonl")}  # stale ones too: they are told
    return {k: runs_of(group, f"step{k}") for k in STEPS if f"step{k}" in there}


def held_out(variant: str) -> list[Run]:
    """The runs of a variant on held-out images, whichever group it is in.

    Raises:
        ValueError: there is no such variant, or as `runs_of`.
    """
    for group, found in GROUPS.items():
        if found.held_out and variant in found.variants():
            return runs_of(group, variant)
    raise ValueError(f"no variant {variant!r} is trained on held-out images: see experiments/variants.py")


# A part: the runs of the step before with it alone, and those of the finished step without it, if there are any.
ALONE_AND_LAST: dict[int, dict[str, tuple[str, str | None]]] = {
    2: {
        "BatchNorm": ("2-alone-norm", "2-alone-augmentation"),
        "augmentation": ("2-alone-augmentation", "2-alone-norm"),
    },
    3: {
        "one-cycle": ("3-alone-cycle", "3-last-cycle"),
        "average of the weights": ("3-alone-average", "3-last-average"),
        "four views": ("3-alone-views", "3-last-views"),
        "batches of 256, rate kept": ("3-alone-batch", None),
        "batches of 256, rate doubled": ("3-alone-batch-rate", "3-last-batch"),
    },
}
ONLY_LAST = {
    "BatchNorm": "3-last-norm",
    "augmentation": "3-last-augmentation",
    "early pooling": "3-late-pooling",
    "crop": "3-last-crop",
    "flattened head": "3-average-pooling",
}
Pair = tuple[list[Run], list[Run]]


def gains(number: int) -> dict[str, dict[str, Pair]]:
    """What each part of a step gains: runs with it and runs without, by part, and by "alone" and "last"."""
    before, after = held_out(f"step{number - 1}"), held_out(f"step{number}")
    found: dict[str, dict[str, Pair]] = {}
    for part, (alone, last) in ALONE_AND_LAST[number].items():
        found[part] = {"alone": (held_out(alone), before)} | ({"last": (after, held_out(last))} if last else {})
    return found | {"all together": {"together": (after, before)}}


def gains_in_step3() -> dict[str, dict[str, Pair]]:
    """What the parts that came before Step 3 gain in it."""
    return {part: {"last": (held_out("step3"), held_out(without))} for part, without in ONLY_LAST.items()}


def left_out() -> dict[str, dict[str, Pair]]:
    """What was tried beside the parts and left out, and the step that it would have changed, step by step."""
    parts = {name for found in ALONE_AND_LAST.values() for names in found.values() for name in names}
    others = (GROUPS["choices"].variants() | GROUPS["parts"].variants()).items()
    tried = {name: one for name, one in others if one.against and name not in parts | {*ONLY_LAST.values()}}
    return {
        variant.words: {"left out": (held_out(name), held_out(variant.against))}
        for name, variant in sorted(tried.items(), key=lambda item: item[1].against)
    }


def bootstrap(draws: int = 100_000) -> tuple[np.ndarray, float]:
    """The published nets on 10,000 test images drawn with replacement.

    Returns:
        accuracies in percent, (draws, nets), and the share of all cases in which a net reaches the target of Step 3,
        from the binomial distribution.
    """
    from scipy import stats  # here, because it takes a second

    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = np.array([[seed in image["wrong"] for seed in range(errors["models"])] for image in errors["images"]])
    share = np.full(len(wrong) + 1, 1 / 10_000)  # of each image that some net gets wrong, and of all others together
    share[-1] -= share.sum() - 1
    times = np.random.default_rng(0).multinomial(10_000, share, size=draws)[:, :-1]
    most = round(100 * (100 - STEPS[3].target))  # errors that the target allows
    return 100 - times @ wrong / 100, float(stats.binom.cdf(most, 10_000, wrong.sum(0) / 10_000).mean())


LEAST_MARGIN = 2.5  # standard deviations, of a record


def entries() -> dict[str, tuple[Variant, list[Run]]]:
    """Step 3 and the entries for the records, with their runs on the test set."""
    found = {"step3": ("steps", replace(GROUPS["steps"].variants()["step3"], words="Step 3"))}
    found |= {name: ("records", variant) for name, variant in GROUPS["records"].variants().items()}
    return {name: (variant, runs_of(group, name)) for name, (group, variant) in found.items()}


def is_record(found: list[Run]) -> bool:
    """Whether twenty runs of twenty hold the target of Step 3, with the margin of a record."""
    held = all(lowest_of_last(run) >= STEPS[3].target for run in found)
    return len(found) == 20 and held and margin_of(found)[0] >= LEAST_MARGIN


def margin_of(found: list[Run]) -> tuple[float, float]:
    """How far the lowest of the last five epochs lies above the target of Step 3.

    Returns:
        its mean less the target, in standard deviations of the runs; and the chance that as many new runs would all
        hold the target, if the lowest are normal, over what these runs leave open about mean and standard deviation.
    """
    from scipy import stats  # here, because it takes a second

    lowest, n = [lowest_of_last(run) for run in found], len(found)
    margin = (statistics.mean(lowest) - STEPS[3].target) / statistics.stdev(lowest)
    random = np.random.default_rng(0)
    deviation = np.sqrt((n - 1) / random.chisquare(n - 1, 100_000))  # in standard deviations of these runs
    mean = margin + deviation / math.sqrt(n) * random.standard_normal(100_000)
    return margin, float((stats.norm.cdf(mean / deviation) ** n).mean())
