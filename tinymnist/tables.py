"""Aligned tables that read well as plain text and as Markdown: of any cells, and of runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tinymnist.runs import Run, accuracy, last_accuracies, meets


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the heading: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    lines = [
        f"| {row[0].ljust(first)} | " + " | ".join(c.rjust(w) for c, w in zip(row[1:], others, strict=True)) + " |"
        for row in rows
    ]
    rule = f"|{'-' * (first + 2)}|" + "".join("-" * (w + 1) + ":|" for w in others)
    return "\n".join([lines[0], rule, *lines[1:]])


def run_summary(published: Sequence[Run], target: float) -> str:
    """What some runs say together, a figure a line: percent and points, mean ± standard deviation over the runs."""
    last = [accuracy(run["history"][-1]) for run in published]
    train = [run["train_accuracy"] for run in published]
    fives = [last_accuracies(run) for run in published]
    test, gap = statistics.mean(last), statistics.mean(train) - statistics.mean(last)
    held = sum(meets(run, target) for run in published)
    figures = {
        f"{target:.2f} % in each of the last five epochs": f"{held} of {len(published)} runs",
        "test accuracy, last epoch": f"{test:.2f} ± {statistics.stdev(last):.2f} %",
        "lowest of the last five epochs, any run": f"{min(map(min, fives)):.2f} %",
        "best minus worst of the last five epochs": f"{statistics.mean(max(v) - min(v) for v in fives):.2f} points",
        "training images, final weights": f"{statistics.mean(train):.2f} %",
        "gap between training and test accuracy": f"{gap:.2f} points",
        "test accuracy with half of the gap closed": f"{test + gap / 2:.2f} %",
    }
    return "\n".join(f"{name:43}{value}" for name, value in figures.items())
