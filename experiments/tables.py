"""The values and tables of the report, each computed from `results/`.

They are called by name when a document has a place for them, so that a missing file concerns its own values only.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

from experiments import effects, search, speed_tables, variants
from experiments.effects import held_out, means, swing
from experiments.study import GROUPS, load_study
from experiments.wording import Effect, block, mean_and_spread, setting
from model import STEPS
from tinymnist import runs as storage
from tinymnist.runs import Run, accuracy, last_accuracies, load_runs, meets
from utils import count_parameters, describe_changes, receptive_field, receptive_field_table

SEEDS = {"step1": 5, "step2": 5, "step3": 20}  # random seeds behind the result of a step
HIGH = 99.5  # percent, the stricter mark for the final step
# Candidates for the final step that were read on the test set, and not chosen: how many random seeds.
GIVEN_UP = {"8-15-18-17": 6, "no-crop": 20, "crop-overlapping": 8}


def step_runs(name: str) -> list[Run]:
    """The published runs of a step, all random seeds."""
    return load_runs(name, SEEDS[name])


def values() -> dict[str, Callable[[], str]]:
    """Every value by name."""
    found: dict[str, Callable[[], str]] = {"results": results_table}
    for number, step in STEPS.items():
        name = f"step{number}"
        found |= {
            f"{name}-parameters": lambda step=step: f"{count_parameters(step.net()):,}",
            f"{name}-target": lambda step=step: f"{step.target:.2f} %",
            f"{name}-receptive-field": lambda step=step: block(receptive_field_table(receptive_field(step.net()))),
            f"{name}-result": lambda number=number: step_result(number),
            f"{name}-mean": lambda name=name: f"{statistics.mean(_last(name)):.2f} %",
            f"{name}-five": lambda name=name: f"{statistics.mean(_five(name)):.2f} %",
            f"{name}-train": lambda name=name: f"{statistics.mean(_last(name, 'train')):.2f} %",
            f"{name}-gap": lambda name=name: (
                f"{statistics.mean(_last(name, 'train')) - statistics.mean(_last(name)):.2f}"
            ),
            f"{name}-swing": lambda name=name: f"{swing(step_runs(name)):.2f}",
            f"{name}-held": lambda name=name, target=step.target: _held(step_runs(name), target),
            f"{name}-lowest": lambda name=name: f"{min(_five(name)):.2f} %",
            f"{name}-sd": lambda name=name: f"{statistics.stdev(_last(name)):.3f}",
            f"{name}-high": lambda name=name: _held(step_runs(name), HIGH),
            f"{name}-held-from": lambda name=name, target=step.target: held_from(step_runs(name), target),
            f"{name}-setting": lambda name=name: setting(step_runs(name)),
            f"{name}-seconds": lambda name=name: f"{statistics.mean(map(_seconds, step_runs(name))):.0f} s",
        }
        if number > 1:
            found[f"{name}-recipe"] = lambda number=number: block(
                f"```\n{describe_changes(STEPS[number - 1].recipe, STEPS[number].recipe)}\n```"
            )
    found |= {
        "validation-mean": lambda: f"{statistics.mean(held_out('step3')):.2f} %",
        "validation-gap": lambda: str(Effect.between(means(step_runs("step3")), held_out("step3"))),
        "study-runs": lambda: f"{len(studied()):,}",
        "study-hours": lambda: f"{sum(map(_seconds, studied())) / 3600:.0f}",
        "search": search_table,
        "search-count": lambda: str(len(searched())),
        "search-apart": search_apart,
        "search-cost": lambda: search_cost("taught-deslant-crop-late"),
        "prior": prior_table,
        "prior-effects": prior_effects_table,
        "prior-seconds": lambda: f"{_prior_seconds():.0f} s",
        "sizes": sizes_table,
        "small": small_table,
        "smallest": smallest,
        "teacher-parameters": lambda: f"{count_parameters(STEPS[3].teacher()):,}",
        "teacher-seconds": lambda: f"{_seconds(load_runs('teacher', 1)[0]):.0f} s",
        "teacher-accuracy": lambda: f"{accuracy(load_runs('teacher', 1)[0]['history'][-1]):.2f} %",
    }
    for name in search.BEST_TWO:
        found[f"search-{name}"] = lambda name=name: str(against_step_3(name))
    for name, count in GIVEN_UP.items():
        found[f"given-up-{name}"] = lambda name=name, count=count: given_up(name, count)
        found[f"given-up-{name}-high"] = lambda n=name, count=count: _held(load_runs(f"given_up/{n}", count), HIGH)
    return found | effects.values() | error_values() | speed_tables.values()


def results_table() -> str:
    """What the runs of each step say."""
    lines = [
        "| step | parameters | runs | last epoch: mean ± sd | lowest | target in each of the last 5 epochs | held by |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for number, step in STEPS.items():
        runs, last = step_runs(f"step{number}"), _last(f"step{number}")
        lines.append(
            f"| {number}: {step.theme} | {runs[0]['params']:,} | {len(runs)} | {mean_and_spread(last)} % "
            f"| {min(last):.2f} % | {step.target:.2f} % | **{_held(runs, step.target)}** |"
        )
    return block("\n".join(lines))


def step_result(number: int) -> str:
    """The last epochs of each run of a step."""
    runs, target = step_runs(f"step{number}"), STEPS[number].target
    count = len(last_accuracies(runs[0]))
    epochs = [record["epoch"] for record in runs[0]["history"][-count:]]
    lines = ["| random seed | " + " | ".join(f"epoch {e}" for e in epochs) + f" | at least {target:.2f} % in each |"]
    lines.append("|---|" + "---:|" * len(epochs) + ":---:|")
    for run in runs:
        cells = " | ".join(f"{value:.2f}" for value in last_accuracies(run))
        lines.append(f"| {run['seed']} | {cells} | {'yes' if meets(run, target) else 'no'} |")
    columns = zip(*(last_accuracies(run) for run in runs), strict=True)
    lines.append("| mean | " + " | ".join(f"{statistics.mean(column):.2f}" for column in columns) + " | |")
    return block("\n".join(lines))


def held_from(runs: list[Run], target: float) -> str:
    """From which epoch on the runs stay at or above a target: the median and the latest of those that do."""
    epochs = []
    for run in runs:
        below = [record["epoch"] for record in run["history"] if accuracy(record) < target]
        epochs.append(max(below, default=0) + 1)
    staying = [epoch for epoch in epochs if epoch <= len(runs[0]["history"])]
    return f"epoch {statistics.median_high(staying)} (the latest: epoch {max(staying)})"


def given_up(name: str, count: int) -> str:
    """The last epoch of a candidate for the final step that was read on the test set, and not chosen."""
    last = [accuracy(run["history"][-1]) for run in load_runs(f"given_up/{name}", count)]
    return f"{mean_and_spread(last)} %, {len(last)} random seeds"


def studied() -> list[Run]:
    """Every run of the study."""
    return [run for group, g in GROUPS.items() for name in g.variants() for run in load_study(group, name)]


def searched() -> list[tuple[str, list[Run]]]:
    """What was tried on the way to the final step, in words, with its runs."""
    found = [(trial.change, load_study("search", name)) for name, trial in search.trials().items()]
    return found + [(words, load_study("changes", name)) for name, words in search.AMONG_CHANGES.items()]


def against_start(runs: list[Run]) -> tuple[list[float], float]:
    """Of a trial, the held-out accuracy of each run, and the difference of their mean to the search's start.

    Both are over the random seeds that the trial and the start have in common.
    """
    start = held_out("start", "search")
    accuracies = means(runs)[: len(start)]
    return accuracies, statistics.mean(accuracies) - statistics.mean(start[: len(accuracies)])


def search_table() -> str:
    """What was tried on the way to the final step, against its start on the same held-out images."""
    lines = ["| trial | parameters | runs | accuracy | against the start |", "|---|---:|---:|---:|---:|"]
    for words, runs in searched():
        accuracies, difference = against_start(runs)
        cells = f"{len(accuracies)} | {statistics.mean(accuracies):.3f} % | {difference:+.3f}"
        lines.append(f"| {words} | {runs[0]['params']:,} | {cells} |")
    return block("\n".join(lines))


def search_apart() -> str:
    """The trials that lie further from the start than two standard deviations of such a difference."""
    found, spread = [], effects.pair_spread(3)
    for words, runs in searched():
        accuracies, difference = against_start(runs)
        if abs(difference) > 2 * spread / math.sqrt(len(accuracies)):
            found.append(f"{words}, {difference:+.3f}")
    return f"{len(found)} ({'; '.join(found)})" if found else "none"


def against_step_3(name: str) -> Effect:
    """The held-out accuracy of a trial of the search over that of Step 3, in points."""
    return Effect.paired(held_out(name, "search"), held_out("step3"))


def search_cost(name: str) -> str:
    """How many times as long a trial takes to train as Step 3."""
    trial, final = (load_study(*job) for job in (("search", name), ("changes", "step3")))
    return f"{statistics.mean(map(_seconds, trial)) / statistics.mean(map(_seconds, final)):.1f}"


def prior_table() -> str:
    """The prior solutions with their recipe and with ours, beside what they published."""
    lines = [
        "| network | parameters | recipe | runs | last epoch: mean ± sd | last five: mean, lowest "
        "| 99.40 % in each of the last 5 | seconds | test accuracy as published |",
        "|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in variants.prior():
        network, recipe = name.split("-")
        runs = load_study("prior", name)
        five = [value for run in runs for value in last_accuracies(run)]
        seconds = statistics.mean(map(_seconds, runs))
        published = "" if recipe == "ours" else variants.PUBLISHED[network]
        lines.append(
            f"| {network} | {runs[0]['params']:,} | {'ours' if recipe == 'ours' else 'its own'} | {len(runs)} "
            f"| {mean_and_spread([accuracy(run['history'][-1]) for run in runs])} % "
            f"| {statistics.mean(five):.2f} %, {min(five):.2f} % | {_held(runs, STEPS[3].target)} "
            f"| {seconds:.0f} | {published} |"
        )
    return block("\n".join(lines))


def prior_effects_table() -> str:
    """What our recipe does to the prior nets, and how they compare with the net of Step 3 then."""
    lines = [
        "| network | our recipe against its own: difference (95 % interval) | effect "
        "| the net of Step 3 against it, both with our recipe: difference (95 % interval) | effect |",
        "|---|---:|---|---:|---|",
    ]
    for network in variants.PRIOR_NETS:
        ours, published = (means(load_study("prior", f"{network}-{recipe}")) for recipe in ("ours", "published"))
        recipe, net = Effect.between(ours, published), Effect.between(means(step_runs("step3")), ours)
        lines.append(f"| {network} | {recipe} | {recipe.verdict} | {net} | {net.verdict} |")
    return block("\n".join(lines))


def sizes_table() -> str:
    """The candidates for smaller nets, on held-out images."""
    lines = ["| channels | parameters | runs | accuracy |", "|---|---:|---:|---:|"]
    for name, variant in variants.sizes().items():
        values = held_out(name, "sizes")
        parameters = f"{count_parameters(variant.net()):,}"
        lines.append(f"| {variant.change} | {parameters} | {len(values)} | {statistics.mean(values):.3f} % |")
    return block("\n".join(lines))


def small_table() -> str:
    """How small a net of the same kind can be."""
    lines = [
        "| channels | parameters | runs | last epoch: mean ± sd | lowest of the last 3 epochs "
        "| 99.40 % in each of the last 3 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_size = sorted(variants.small().items(), key=lambda item: -count_parameters(item[1].net()))
    for name, variant in by_size:
        runs = load_study("small", name)
        lowest = [min(last_accuracies(run, 3)) for run in runs]
        held = sum(value >= STEPS[3].target for value in lowest)
        lines.append(
            f"| {variant.change} | {runs[0]['params']:,} | {len(runs)} "
            f"| {mean_and_spread([accuracy(run['history'][-1]) for run in runs])} % "
            f"| {min(lowest):.2f} % | {held} of {len(runs)} |"
        )
    return block("\n".join(lines))


def smallest() -> str:
    """The parameters of the smallest net that holds the target in each of the last three epochs, every random seed."""
    found = [load_study("small", name) for name in variants.small()] + [step_runs("step3")]
    held = [runs for runs in found if all(min(last_accuracies(run, 3)) >= STEPS[3].target for run in runs)]
    return f"{min(runs[0]['params'] for runs in held):,}"


def error_values() -> dict[str, Callable[[], str]]:
    """The values about the errors of all final models."""
    return {
        "errors-models": lambda: str(load_errors()["models"]),
        "errors-mean": lambda: f"{sum(map(sum, _wrong_votes())) / load_errors()['models']:.1f}",
        "errors-ever": lambda: str(len(load_errors()["images"])),
        "errors-all": lambda: str(sum(sum(votes) == load_errors()["models"] for votes in _wrong_votes())),
        "errors-most": lambda: str(sum(2 * sum(votes) > load_errors()["models"] for votes in _wrong_votes())),
        "errors-confused": lambda: most_confused(load_errors()["confusion"]),
    }


def load_errors() -> dict:
    """What `experiments.errors` found."""
    path = storage.RESULTS / "errors.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: python -m experiments.errors writes it")
    return json.loads(path.read_text())


def most_confused(confusion: list[list[int]], count: int = 3) -> str:
    """The most frequent confusions, as "9 taken for 4 (31 times)"."""
    pairs = [(confusion[i][j], i, j) for i in range(10) for j in range(10) if i != j]
    return ", ".join(f"{i} taken for {j} ({n} times)" for n, i, j in sorted(pairs, reverse=True)[:count])


def _wrong_votes() -> list[list[int]]:
    """For each image that a model gets wrong, the votes for the wrong digits."""
    return [[v for digit, v in enumerate(e["votes"]) if digit != e["label"]] for e in load_errors()["images"]]


def _last(name: str, part: str = "test") -> list[float]:
    return [accuracy(run["history"][-1], part) for run in step_runs(name)]


def _five(name: str) -> list[float]:
    return [value for run in step_runs(name) for value in last_accuracies(run)]


def _seconds(run: Run) -> float:
    return sum(record["seconds"] for record in run["history"])


def _prior_seconds() -> float:
    """Seconds that a prior net takes to train with our recipe, on average."""
    return statistics.mean(_seconds(run) for name in variants.PRIOR_NETS for run in load_study("prior", f"{name}-ours"))


def _held(runs: list[Run], target: float) -> str:
    return f"{sum(meets(run, target) for run in runs)} of {len(runs)}"
