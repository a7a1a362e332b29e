"""The values and tables of the report that rest on the benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from experiments.wording import block, setting
from tinymnist.runs import load_bench


def values() -> dict[str, Callable[[], str]]:
    """Every value by name."""
    return {
        "bench-pipelines": pipelines_table,
        "bench-changes": changes_table,
        "bench-setting": lambda: setting([load_bench("pipelines")]),
        "bench-final-seconds": lambda: f"{15 * _epoch('final')[1]:.0f} s",
        "bench-final-speedup": lambda: f"{_epoch('stock-0')[1] / _epoch('final')[1]:.1f}",
        "bench-final-speedup-workers": lambda: f"{_epoch('stock-2')[1] / _epoch('final')[1]:.1f}",
        "bench-same-net-speedup": lambda: f"{_epoch('stock-0')[1] / _epoch('same-net')[1]:.1f}",
        "bench-limit": lambda: f"{load_bench('pipelines')['peak_multiply_adds'] / 1e9:.0f}",
        "seeds-count": lambda: str(load_bench("seeds")["count"]),
        "seeds-together": lambda: f"{load_bench('seeds')['together']:.0f} s",
        "seeds-single": lambda: f"{sum(load_bench('seeds')['single']):.0f} s",
        "seeds-ratio": lambda: f"{load_bench('seeds')['together'] / sum(load_bench('seeds')['single']):.2f}",
        "bench-teacher-seconds": lambda: f"{15 * load_bench('teacher')['epoch']:.0f} s",
        "bench-soft-labels": lambda: f"{load_bench('teacher')['soft_labels']:.0f} s",
    }


def _epoch(name: str, part: str = "pipelines") -> tuple[float, float, float]:
    """Lowest, median and highest of the seconds per epoch of a contender's repeats."""
    repeats = load_bench(part)["contenders"][name]["runs"]
    seconds = sorted(statistics.mean(run["seconds"]) for run in repeats)
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
    return block("\n".join(lines))


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
    return block("\n".join(lines))
