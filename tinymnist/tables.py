"""Aligned tables that read well as plain text and as Markdown: of any cells, of runs, and of what was compared."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence

from tinymnist import runs
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


def run_table(published: Sequence[Run], target: float) -> str:
    """The accuracy in percent of each run's last five epochs, and whether each of them reaches the target."""
    epochs = [str(record["epoch"]) for record in published[0]["history"][-runs.LAST :]]
    rows = [["seed", *(f"epoch {epoch}" for epoch in epochs), f"{target:.2f} held"]]
    for run in published:
        rows.append(
            [str(run["seed"]), *map("{:.2f}".format, last_accuracies(run)), "yes" if meets(run, target) else "no"]
        )
    means = map(statistics.mean, zip(*map(last_accuracies, published), strict=True))
    held = sum(meets(run, target) for run in published)
    return aligned([*rows, ["mean", *map("{:.2f}".format, means), f"{held} of {len(published)}"]])


def run_summary(published: Sequence[Run]) -> str:
    """What some runs say together, a figure a line: percent and points, mean ± standard deviation over the runs."""
    last = [accuracy(run["history"][-1]) for run in published]
    train = [run["train_accuracy"] for run in published]
    fives = [last_accuracies(run) for run in published]
    figures = {
        "test accuracy, last epoch": f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} %",
        "training images, final weights": f"{statistics.mean(train):.2f} %",
        "gap between the two": f"{statistics.mean(train) - statistics.mean(last):.2f} points",
        "best minus worst of the last five epochs": f"{statistics.mean(max(v) - min(v) for v in fives):.2f} points",
        "lowest of the last five epochs, any run": f"{min(map(min, fives)):.2f} %",
    }
    return "\n".join(f"{name:42}{value}" for name, value in figures.items())


def effect_table(group: str, base: str, variants: Sequence[str] = ()) -> str:
    """What single changes to a base do on held-out images, from `results/effects.csv`.

    Args:
        group, base: of the study, "changes" and "step2" for example.
        variants: which changes, without the base's name; all if there are none.

    Returns:
        per change the difference of the mean of the last five epochs in points, that of the loss in thousandths, both
        with 95 % intervals, and the p-value of the first, corrected for the number of changes in its table.

    Raises:
        FileNotFoundError: the file is not there.
    """
    cells = [["change", "pairs", "accuracy", "loss", "p (Holm)"]]
    with (runs.RESULTS / "effects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["group"], row["base"]) == (group, base)]
    for row in rows:
        if not variants or row["variant"].removeprefix(f"{base}-") in variants:
            differences = (
                [float(row[name + end]) for end in ("", "_low", "_high")] for name in ("last5_mean", "test_loss")
            )
            intervals = (f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in differences)
            cells.append([row["change"], row["pairs"], *intervals, f"{float(row['p']):.3f}"])
    return aligned(cells)
