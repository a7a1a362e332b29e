"""What single changes to a step do: the difference to the unchanged step, run by run on the same held-out images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial

from experiments import variants
from experiments.study import load_study
from experiments.wording import Effect, block, mean_and_spread, setting
from model import STEPS
from tinymnist.runs import LAST, Run, last_accuracies
from utils import count_parameters


def values() -> dict[str, Callable[[], str]]:
    """Every value by name."""
    found: dict[str, Callable[[], str]] = {}
    for number in STEPS:
        name = f"step{number}"
        own, added = partial(changes_of, number), partial(changes_of, number, added=True)
        found[f"{name}-effects"] = partial(effects_table, number)
        found[f"{name}-added"] = partial(effects_table, number, added=True)
        if number > 1:
            found[f"{name}-gain"] = lambda n=number: str(Effect.paired(held_out(f"step{n}"), held_out(f"step{n - 1}")))
        for sort in SORTS:
            found[f"{name}-{sort}"] = partial(listing, own, sort)
            found[f"{name}-added-{sort}"] = partial(listing, added, sort)
        found[f"{name}-study-setting"] = lambda name=name: setting(load_study("changes", name))
        found[f"{name}-pair-spread"] = lambda number=number: f"{pair_spread(number):.2f}"
        found[f"{name}-study-swing"] = lambda name=name: f"{swing(load_study('changes', name)):.2f}"
    for name, variant in variants.changes().items():
        if name != f"step{variant.step}":
            found[f"{name}-parameters"] = lambda variant=variant: f"{count_parameters(variant.net()):,}"
            found[f"{name}-effect"] = lambda name=name: str(effect(name))
            found[f"{name}-loss"] = partial(loss_effect_in_words, name)
            found[f"{name}-swing"] = lambda name=name: f"{swing(load_study('changes', name)):.2f}"
    return found


def means(runs: list[Run]) -> list[float]:
    """Of each run, accuracy in percent averaged over its last five epochs."""
    return [statistics.mean(last_accuracies(run)) for run in runs]


def losses(runs: list[Run]) -> list[float]:
    """Of each run, the test loss in thousandths averaged over its last five epochs."""
    return [1000 * statistics.mean(record["test_loss"] for record in run["history"][-LAST:]) for run in runs]


def swing(runs: list[Run]) -> float:
    """Best minus worst of the last five epochs of a run, in points, on average over the runs."""
    return statistics.mean(max(last_accuracies(run)) - min(last_accuracies(run)) for run in runs)


def held_out(name: str, group: str = "changes") -> list[float]:
    """Held-out accuracy in percent of each run of a variant, averaged over its last five epochs."""
    return means(load_study(group, name))


def effect(name: str) -> Effect:
    """The effect of a single change to a step on the accuracy, in points."""
    return Effect.paired(held_out(name), held_out(_base(name)))


def loss_effect(name: str) -> Effect:
    """The effect of a single change to a step on the loss, in thousandths."""
    return Effect.paired(losses(load_study("changes", name)), losses(load_study("changes", _base(name))))


def loss_effect_in_words(name: str) -> str:
    """The effect of a single change on the loss, and whether it is one."""
    found = loss_effect(name)
    verdict = "higher" if found.low > 0 else "lower" if found.high < 0 else "no measurable effect"
    return f"{found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {verdict}"


def changes_of(number: int, added: bool = False) -> list[str]:
    """The single changes to a step: its own parts changed, or parts of the next step added."""
    return [
        name
        for name, variant in variants.changes().items()
        if variant.step == number and variant.added == added and name != f"step{number}"
    ]


def pair_spread(number: int) -> float:
    """Standard deviation, from seed to seed, of the difference between a changed and the unchanged step, in points.

    Pooled over the changes to the step: the root of their mean variance.
    """
    base = held_out(f"step{number}")
    differences = [[a - b for a, b in zip(held_out(name), base, strict=True)] for name in changes_of(number)]
    return math.sqrt(statistics.mean(map(statistics.variance, differences)))


# Ways to sort single changes by what they do.
SORTS: dict[str, Callable[[str], bool]] = {
    "worse": lambda name: effect(name).high < 0,
    "better": lambda name: effect(name).low > 0,
    "loss-higher": lambda name: loss_effect(name).low > 0,
    "loss-lower": lambda name: loss_effect(name).high < 0,
}


def listing(changes: Callable[[], list[str]], sort: str) -> str:
    """How many of the changes are of a sort, and which, as "2 (no dropout; no BatchNorm)"."""
    found = [variants.changes()[name].change for name in changes() if SORTS[sort](name)]
    return f"{len(found)} ({'; '.join(found)})" if found else "none"


def effects_table(number: int, added: bool = False) -> str:
    """What single changes to a step do: its own parts changed, or parts of the next step added."""
    base, base_losses = held_out(f"step{number}"), losses(load_study("changes", f"step{number}"))
    lines = [
        f"| {'added' if added else 'changed'} | runs | accuracy: mean ± sd | difference (95 % interval) | effect "
        "| loss in thousandths: difference (95 % interval) |",
        "|---|---:|---:|---:|---|---|",
        f"| (none) | {len(base)} | {mean_and_spread(base, 3)} % | | | {mean_and_spread(base_losses)} |",
    ]
    for name in changes_of(number, added):
        accuracies, found = held_out(name), effect(name)
        cells = f"{mean_and_spread(accuracies, 3)} % | {found} | {found.verdict} | {loss_effect_in_words(name)}"
        lines.append(f"| {variants.changes()[name].change} | {len(accuracies)} | {cells} |")
    return block("\n".join(lines))


def _base(name: str) -> str:
    """The unchanged step that a change is compared with."""
    return f"step{variants.changes()[name].step}"
