"""The report: puts what `results/` says into the README and the notebooks' text.

A place for a value looks like `<!--name-->value<!--/-->`, which a rendered page shows as the value alone.
`figures()` computes them all; nobody types a measured number.

    python -m experiments.report            fill in every place, and draw the figure of the README
    python -m experiments.report --check    write nothing; exit code 1 and a line per place that differs
"""

from __future__ import annotations

import io
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from matplotlib import pyplot as plt
from scipy.stats import ttest_ind

from experiments.notebooks import NOTEBOOKS
from experiments.study import variants
from model import STEPS
from tinymnist.runs import (
    REPOSITORY,
    RESULTS,
    Run,
    accuracy,
    last_accuracies,
    load_bench,
    load_runs,
    meets,
    write_atomically,
)
from utils import count_parameters, describe_changes, receptive_field, receptive_field_table

PLACE = re.compile(r"<!--([a-z][\w.-]*)-->(.*?)<!--/-->", re.DOTALL)
DOCUMENTS = ("README.md", *NOTEBOOKS)
FIGURE = RESULTS / "learning_curves.svg"


def figures() -> dict[str, Callable[[], str]]:
    """Every value by name, computed when it is called for, so that a missing file concerns its own values only."""
    values: dict[str, Callable[[], str]] = {"results": results_table}
    for number, step in STEPS.items():
        name = f"step{number}"
        values |= {
            f"{name}-parameters": lambda step=step: f"{count_parameters(step.net()):,}",
            f"{name}-target": lambda step=step: f"{step.target:.2f} %",
            f"{name}-receptive-field": lambda step=step: _block(receptive_field_table(receptive_field(step.net()))),
            f"{name}-result": lambda number=number: step_result(number),
            f"{name}-mean": lambda name=name: f"{statistics.mean(_last(name)):.2f} %",
            f"{name}-five": lambda name=name: f"{statistics.mean(_five(name)):.2f} %",
            f"{name}-train": lambda name=name: f"{statistics.mean(_last(name, 'train')):.2f} %",
            f"{name}-gap": lambda name=name: (
                f"{statistics.mean(_last(name, 'train')) - statistics.mean(_last(name)):.2f}"
            ),
            f"{name}-swing": lambda name=name: f"{_swing(load_runs(name)):.2f}",
            f"{name}-held": lambda name=name, target=step.target: _held(load_runs(name), target),
            f"{name}-lowest": lambda name=name: f"{min(_five(name)):.2f} %",
            f"{name}-setting": lambda name=name: _setting(load_runs(name)),
        }
        if number > 1:
            values[f"{name}-effects"] = lambda number=number: effects_table(number)
            values[f"{name}-recipe"] = lambda number=number: _block(
                f"```\n{describe_changes(STEPS[number - 1].recipe, STEPS[number].recipe)}\n```"
            )
    for name, variant in variants().items():
        if name != f"step{variant.step}":
            values[f"{name}-parameters"] = lambda variant=variant: f"{count_parameters(variant.net()):,}"
            values[f"{name}-effect"] = lambda name=name: str(effect(name))
    return values | speed_figures()


def speed_figures() -> dict[str, Callable[[], str]]:
    """The values that rest on the benchmark, and on the same seeds with another number of threads."""
    values: dict[str, Callable[[], str]] = {
        "bench-pipelines": pipelines_table,
        "bench-changes": changes_table,
        "bench-setting": lambda: _setting([load_bench("pipelines")]),
        "bench-final-seconds": lambda: f"{15 * _epoch('final')[1]:.0f} s",
        "bench-final-speedup": lambda: f"{_epoch('stock-0')[1] / _epoch('final')[1]:.1f}",
        "bench-final-speedup-workers": lambda: f"{_epoch('stock-2')[1] / _epoch('final')[1]:.1f}",
        "bench-same-net-speedup": lambda: f"{_epoch('stock-0')[1] / _epoch('same-net')[1]:.1f}",
        "bench-limit": lambda: f"{load_bench('pipelines')['peak_multiply_adds'] / 1e9:.0f}",
        "seeds-count": lambda: str(load_bench("seeds")["count"]),
        "seeds-together": lambda: f"{load_bench('seeds')['together']:.0f} s",
        "seeds-single": lambda: f"{sum(load_bench('seeds')['single']):.0f} s",
        "seeds-ratio": lambda: f"{load_bench('seeds')['together'] / sum(load_bench('seeds')['single']):.2f}",
        "threads-difference": threads_difference,
        "threads-largest": lambda: f"{max(abs(a - b) for a, b in zip(*_thread_pairs(), strict=True)):.2f}",
    }
    return values


def _epoch(name: str, part: str = "pipelines") -> tuple[float, float, float]:
    """Lowest, median and highest of the seconds per epoch of a contender's repeats."""
    runs = load_bench(part)["contenders"][name]["runs"]
    seconds = sorted(statistics.mean(run["seconds"]) for run in runs)
    return seconds[0], statistics.median(seconds), seconds[-1]


def pipelines_table() -> str:
    """The usual pipeline against ours."""
    bench = load_bench("pipelines")
    lines = [
        "| what | seconds per epoch: median (range) | 15 epochs | training images per second | peak memory "
        "| times as fast | of the machine's limit |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, contender in bench["contenders"].items():
        low, seconds, high = _epoch(name)
        memory = max(run["peak_memory"] for run in contender["runs"]) / 2**30
        share = contender["multiply_adds"] / seconds / bench["peak_multiply_adds"]
        lines.append(
            f"| {contender['what']} | {seconds:.1f} ({low:.1f} to {high:.1f}) | {15 * seconds:.0f} s "
            f"| {60_000 / seconds:,.0f} | {memory:.1f} GiB | {_epoch('stock-0')[1] / seconds:.1f} | {share:.0%} |"
        )
    return _block("\n".join(lines))


def changes_table() -> str:
    """What the changes that made the final step fast bring, each taken out again."""
    base_low, base, base_high = _epoch("shipped", "changes")
    lines = ["| taken out | seconds per epoch: median (range) | difference |", "|---|---:|---|"]
    for name, contender in load_bench("changes")["contenders"].items():
        low, seconds, high = _epoch(name, "changes")
        difference = f"{seconds - base:+.2f} s, {seconds / base - 1:+.0%}"
        if low <= base_high and base_low <= high:
            difference = "" if name == "shipped" else "no measurable difference: the ranges overlap"
        lines.append(f"| {contender['what']} | {seconds:.2f} ({low:.2f} to {high:.2f}) | {difference} |")
    return _block("\n".join(lines))


def _thread_pairs() -> tuple[list[float], list[float]]:
    """Accuracy of the last epoch of the same random seeds of Step 3 on one thread and on two."""
    pairs = zip(load_runs("step3"), load_runs("two_threads/step3"), strict=True)
    one, two = zip(*pairs, strict=True)
    assert [run["seed"] for run in one] == [run["seed"] for run in two]
    return [accuracy(run["history"][-1]) for run in one], [accuracy(run["history"][-1]) for run in two]


def threads_difference() -> str:
    """What a second thread does to the accuracy of Step 3, by Welch's t-test."""
    one, two = _thread_pairs()
    interval = ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    difference = statistics.mean(two) - statistics.mean(one)
    return f"{difference:+.3f} points (95 % interval {interval.low:+.3f} to {interval.high:+.3f})"


def results_table() -> str:
    """What the runs of each step say."""
    lines = [
        "| step | parameters | runs | last epoch: mean ± sd | lowest | target in each of the last 5 epochs | held by |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for number, step in STEPS.items():
        runs, last = load_runs(f"step{number}"), _last(f"step{number}")
        lines.append(
            f"| {number}: {step.theme} | {runs[0]['params']:,} | {len(runs)} | {_mean_and_spread(last)} % "
            f"| {min(last):.2f} % | {step.target:.2f} % | **{_held(runs, step.target)}** |"
        )
    return _block("\n".join(lines))


def step_result(number: int) -> str:
    """The last epochs of each run of a step."""
    runs, target = load_runs(f"step{number}"), STEPS[number].target
    count = len(last_accuracies(runs[0]))
    epochs = [record["epoch"] for record in runs[0]["history"][-count:]]
    lines = ["| random seed | " + " | ".join(f"epoch {e}" for e in epochs) + f" | at least {target:.2f} % in each |"]
    lines.append("|---|" + "---:|" * len(epochs) + ":---:|")
    for run in runs:
        cells = " | ".join(f"{value:.2f}" for value in last_accuracies(run))
        lines.append(f"| {run['seed']} | {cells} | {'yes' if meets(run, target) else 'no'} |")
    columns = zip(*(last_accuracies(run) for run in runs), strict=True)
    lines.append("| mean | " + " | ".join(f"{statistics.mean(column):.2f}" for column in columns) + " | |")
    return _block("\n".join(lines))


@dataclass(frozen=True)
class Effect:
    """What a variant does compared with its step, on the held-out images.

    Attributes:
        values: accuracy in percent of each run, averaged over its last five epochs.
        difference: mean of the variant minus mean of the step, in points.
        low, high: 95 % interval of the difference, by Welch's t-test.
    """

    values: list[float]
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"

    @property
    def verdict(self) -> str:
        """In words; an interval that holds zero is no measurable effect."""
        return "worse" if self.high < 0 else "better" if self.low > 0 else "no measurable effect"


def held_out(name: str) -> list[float]:
    """Held-out accuracy in percent of each run of a variant, averaged over its last five epochs."""
    return [statistics.mean(last_accuracies(run)) for run in load_runs(f"study/{name}")]


def effect(name: str) -> Effect:
    """The effect of a variant of the study."""
    values, base = held_out(name), held_out(f"step{variants()[name].step}")
    interval = ttest_ind(values, base, equal_var=False).confidence_interval(0.95)
    return Effect(values, statistics.mean(values) - statistics.mean(base), interval.low, interval.high)


def effects_table(number: int) -> str:
    """What single changes to a step do."""
    base = held_out(f"step{number}")
    lines = [
        "| change | runs | accuracy: mean ± sd | difference (95 % interval) | effect |",
        "|---|---:|---:|---:|---|",
    ]
    lines.append(f"| (none) | {len(base)} | {_mean_and_spread(base, 3)} % | | |")
    for name, variant in variants().items():
        if variant.step == number and name != f"step{number}":
            found = effect(name)
            spread = _mean_and_spread(found.values, 3)
            lines.append(f"| {variant.change} | {len(found.values)} | {spread} % | {found} | {found.verdict} |")
    return _block("\n".join(lines))


def learning_curves() -> bytes:
    """The README's figure: test accuracy of every run of the three steps over the epochs, as SVG."""
    colors = {1: "tab:gray", 2: "tab:orange", 3: "tab:blue"}
    with plt.rc_context({"svg.hashsalt": "learning curves", "svg.fonttype": "path"}):
        figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
        for number, step in STEPS.items():
            for i, run in enumerate(load_runs(f"step{number}")):
                epochs = [record["epoch"] for record in run["history"]]
                label = f"Step {number}: {step.theme}" if i == 0 else None
                values = [accuracy(record) for record in run["history"]]
                axis.plot(epochs, values, color=colors[number], linewidth=1, alpha=0.8, label=label)
        axis.axhline(STEPS[3].target, color="tab:green", linestyle="--", linewidth=1, label="target 99.40 %")
        axis.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(97.5, 99.8), xlim=(1, 15), xticks=range(1, 16))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


def fill(text: str, values: dict[str, Callable[[], str]], where: str) -> tuple[str, list[str]]:
    """The text with every place filled in, and a line for each place that differed or lacks its evidence."""
    complaints = []

    def replacement(match: re.Match[str]) -> str:
        name, old = match.groups()
        if name not in values:
            complaints.append(f"{where}: nothing is known by the name {name}")
            return match.group()
        try:
            new = values[name]()
        except FileNotFoundError as error:
            complaints.append(f"{where}: {name} has lost its evidence: {error}")
            return match.group()
        if new != old:
            complaints.append(f"{where}: {name} differs from results/")
        return f"<!--{name}-->{new}<!--/-->"

    return PLACE.sub(replacement, text), complaints


def documents() -> Iterator[tuple[Path, bytes, list[str]]]:
    """Each document with its filled-in content, and what differed in it."""
    values = figures()
    for name in DOCUMENTS:
        path = REPOSITORY / name
        if path.suffix == ".md":
            content, complaints = fill(path.read_text(), values, name)
            yield path, content.encode(), complaints
            continue
        notebook, complaints = nbformat.read(path, as_version=4), []
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source, found = fill(cell.source, values, name)
                complaints += found
        yield path, (nbformat.writes(notebook) + "\n").encode(), complaints


def main(arguments: list[str]) -> int:
    """Fill in or check every document.

    Returns:
        the exit code: 1 if with --check anything differs, or if a value has no evidence.
    """
    check, failed = arguments == ["--check"], False
    for path, content, complaints in documents():
        for complaint in complaints:
            if check or not complaint.endswith("differs from results/"):
                print(complaint, file=sys.stderr)
                failed = True
        if not check and complaints:
            write_atomically(path, content)
    if not check:
        write_atomically(FIGURE, learning_curves())
    return 1 if failed else 0


def _last(name: str, part: str = "test") -> list[float]:
    return [accuracy(run["history"][-1], part) for run in load_runs(name)]


def _five(name: str) -> list[float]:
    return [value for run in load_runs(name) for value in last_accuracies(run)]


def _swing(runs: list[Run]) -> float:
    """Best minus worst of the last five epochs of a run, in points, on average over the runs."""
    return statistics.mean(max(last_accuracies(run)) - min(last_accuracies(run)) for run in runs)


def _held(runs: list[Run], target: float) -> str:
    return f"{sum(meets(run, target) for run in runs)} of {len(runs)}"


def _setting(runs: list[Run]) -> str:
    run = runs[0]
    return f"{run['hardware']}, {_threads(run['threads'])}, PyTorch {run['torch_version']}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _mean_and_spread(values: list[float], digits: int = 2) -> str:
    spread = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "?"
    return f"{statistics.mean(values):.{digits}f} ± {spread}"


def _block(text: str) -> str:
    return f"\n\n{text}\n\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
