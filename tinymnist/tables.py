"""What runs say: accuracies from their counts, a line per epoch, a summary; and tables of any cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

History = dict[str, list[Any]]  # one entry per epoch
Run = dict[str, Any]
LAST = 5  # the target is about each of the last five epochs


def accuracies(history: History, part: str = "test") -> list[float]:
    """Accuracy in percent after each epoch, from the counts; `part` is "test" or "train"."""
    counts = zip(history[f"{part}_correct"], history[f"{part}_total"], strict=True)
    return [100 * correct / total for correct, total in counts]


def last_accuracies(run: Run) -> list[float]:
    """Accuracies in percent of the last five epochs of a run, on the images of its split."""
    return accuracies(run["history"])[-LAST:]


def meets(run: Run, target: float, most_gap: float | None = None) -> bool:
    """Whether a run met a target.

    Args:
        run: its record.
        target: accuracy in percent that each of the last five epochs has to reach.
        most_gap: the largest `gap` allowed, in points.
    """
    return lowest_of_last(run) >= target and (most_gap is None or gap(run) <= most_gap)


def log_line(history: History, epoch: int = -1) -> str:
    """One epoch of a history, by default the last one, as one aligned line."""
    now = {name: values[epoch] for name, values in history.items()}
    return (
        f"epoch {epoch % len(history['lr']) + 1:2d}  lr {now['lr']:.4f}  "
        f"train loss {now['train_loss']:.4f}  {accuracies(history, 'train')[epoch]:.2f} %  "
        f"test loss {now['test_loss']:.4f}  {accuracies(history)[epoch]:.2f} %  {now['seconds']:.1f} s"
    )


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


def run_summary(published: Sequence[Run], target: float, most_gap: float | None = None) -> str:
    """What some runs say together, as a Markdown table: percent and points, mean ± standard deviation over the runs."""
    last = [last_accuracies(run)[-1] for run in published]
    train = [run["train_accuracy"] for run in published]
    fives = [last_accuracies(run) for run in published]
    rows = {
        "runs that met the target": f"{sum(meets(run, target, most_gap) for run in published)} of {len(published)}",
        "accuracy, last epoch": f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} %",
        "lowest of the last five epochs, mean": f"{statistics.mean(map(min, fives)):.2f} %",
        "lowest of the last five epochs, any run": f"{min(map(min, fives)):.2f} %",
        "best minus worst of the last five epochs": f"{statistics.mean(max(v) - min(v) for v in fives):.2f} points",
        "training images, final weights": f"{statistics.mean(train):.2f} %",
        "gap to the training images": f"{statistics.mean(map(gap, published)):.2f} points",
    }
    return aligned([["", f"{len(published)} runs"], *([name, value] for name, value in rows.items())])


def mean_of_last(run: Run) -> float:
    """The mean accuracy of the last five epochs, in percent."""
    return statistics.mean(last_accuracies(run))


def lowest_of_last(run: Run) -> float:
    """The lowest accuracy of the last five epochs, in percent."""
    return min(last_accuracies(run))


def gap(run: Run) -> float:
    """By how many points the final weights classify the images that they were trained on better than the others."""
    return run["train_accuracy"] - last_accuracies(run)[-1]


def interval(differences: Sequence[float]) -> str:
    """The mean of differences with its 95 % interval, Student's t."""
    from scipy import stats  # here, because it takes a second

    mean = statistics.mean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def pair_differences(runs: Sequence[Run], others: Sequence[Run], of: Callable[[Run], float]) -> list[float]:
    """Differences of a figure between pairs of runs: the mean of each split; of one split alone, that of each seed."""
    by_split: dict[str, list[float]] = {}
    for run, other in zip(runs, others, strict=True):
        by_split.setdefault(run["split"], []).append(of(run) - of(other))
    if len(by_split) == 1:
        [by_seed] = by_split.values()
        return by_seed
    return [statistics.mean(values) for values in by_split.values()]


def comparison_table(compared: Mapping[str, tuple[Sequence[Run], Sequence[Run]]]) -> str:
    """Runs against others of the same seeds and splits, as a Markdown table: differences in points, 95 % intervals.

    The differences are averaged over the seeds of a split, and the interval is over the splits, so that it covers other
    images too; over the seeds, if there is one split alone.

    Args:
        compared: by what is to stand in the first column, the runs and those that they are compared with.

    Raises:
        ValueError: they are not of the same seeds and splits.
    """
    rows = [["", "pairs", "mean of last five", "lowest of last five", "gap"]]
    for name, (runs, others) in compared.items():
        if [(run["seed"], run["split"]) for run in runs] != [(run["seed"], run["split"]) for run in others]:
            raise ValueError(f"{name}: these runs are not pairs of the same seeds and splits")
        figures = [interval(pair_differences(runs, others, of)) for of in (mean_of_last, lowest_of_last, gap)]
        rows.append([name, str(len(runs)), *figures])
    return aligned(rows)
