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


ROWS = {
    "target met": "met the target",
    "last epoch": "last epoch, %, ± standard deviation",
    "lowest of five, mean": "lowest of the last five, mean, %",
    "lowest, any": "lowest of the last five, any run, %",
    "spread of five": "best minus worst of the last five",
    "training images": "training images, final weights, %",
    "gap": "gap, training minus tested images",
}


def run_summary(columns: Mapping[str, Sequence[Run]], target: float, most_gap: float | None = None) -> str:
    """What some runs say together, as a Markdown table.

    Args:
        columns: the runs of each column, by its heading.
        target, most_gap: as for `meets`.
    """
    figures = [figures_of(runs, target, most_gap) for runs in columns.values()]
    return aligned([["", *columns], *([words, *(found[name] for found in figures)] for name, words in ROWS.items())])


def figures_of(runs: Sequence[Run], target: float, most_gap: float | None = None) -> dict[str, str]:
    """What some runs say together, by the keys of `ROWS`; `target` and `most_gap` are those of `meets`."""

    def average(of: Callable[[Run], float]) -> str:
        return f"{statistics.mean(map(of, runs)):.2f}"

    return {
        "target met": f"{sum(meets(run, target, most_gap) for run in runs)} of {len(runs)}",
        "last epoch": last_epoch_in_words(runs),
        "lowest of five, mean": average(lowest_of_last),
        "lowest, any": f"{min(map(lowest_of_last, runs)):.2f}",
        "spread of five": average(spread_of_last),
        "training images": average(lambda run: run["train_accuracy"]),
        "gap": average(gap),
    }


def last_epoch_in_words(runs: Sequence[Run]) -> str:
    """Mean and standard deviation of the accuracy after the last epoch, in percent."""
    last = [last_accuracies(run)[-1] for run in runs]
    return f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}"


def mean_of_last(run: Run) -> float:
    """The mean accuracy of the last five epochs, in percent."""
    return statistics.mean(last_accuracies(run))


def lowest_of_last(run: Run) -> float:
    """The lowest accuracy of the last five epochs, in percent."""
    return min(last_accuracies(run))


def spread_of_last(run: Run) -> float:
    """How far the best and the worst of the last five epochs lie apart, in points."""
    return max(last_accuracies(run)) - min(last_accuracies(run))


def gap(run: Run) -> float:
    """By how many points the final weights classify the images that they were trained on better than the others."""
    return run["train_accuracy"] - last_accuracies(run)[-1]


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean of some differences, and how far its 95 % interval reaches to either side (Student's t)."""
    from scipy import stats  # here, because it takes a second

    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return statistics.mean(differences), float(half)


def in_words(mean: float, half: float) -> str:
    """An interval as text, narrow enough for a table on a phone."""
    return f"{round(mean, 2) + 0.0:+.2f}±{half:.2f}"  # -0.0 becomes 0.0


def pairs_of_seeds(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of the same seed; where one side has more seeds than the other, these do not count.

    Raises:
        ValueError: no seed is in both, or two runs of the same seed were tested on other images.
    """
    by_seed = {run["seed"]: run for run in others}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs or any(run["split"] != other["split"] for run, other in pairs):
        raise ValueError("these runs are not pairs of the same seeds and splits")
    return pairs


def pair_differences(runs: Sequence[Run], others: Sequence[Run], of: Callable[[Run], float]) -> list[float]:
    """Differences of a figure between the runs of `pairs_of_seeds`, averaged over the seeds of each split.

    An interval over them covers other images too, not other seeds alone.
    """
    by_split: dict[str, list[float]] = {}
    for run, other in pairs_of_seeds(runs, others):
        by_split.setdefault(run["split"], []).append(of(run) - of(other))
    return [statistics.mean(values) for values in by_split.values()]


def comparison_table(compared: Mapping[str, tuple[Sequence[Run], Sequence[Run]]]) -> str:
    """Runs against others, as a Markdown table: `pair_differences` in points, ± half of their 95 % interval.

    Args:
        compared: by what is to stand in the first column, the runs and those that they are compared with.
    """
    rows = [["(pairs)", "mean of last five", "lowest of last five", "gap"]]
    for name, (runs, others) in compared.items():
        differences = [pair_differences(runs, others, of) for of in (mean_of_last, lowest_of_last, gap)]
        figures = [in_words(*interval(found)) for found in differences]
        rows.append([f"{name} ({len(pairs_of_seeds(runs, others))})", *figures])
    return aligned(rows)
