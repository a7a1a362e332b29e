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


def run_summary(columns: Mapping[str, Sequence[Run]], target: float, most_gap: float | None = None) -> str:
    """What some runs say together, as a Markdown table.

    Args:
        columns: the runs of each column, by its heading.
        target, most_gap: as for `meets`.
    """

    def each(figure: Callable[[Sequence[Run]], str]) -> list[str]:
        return [figure(runs) for runs in columns.values()]

    def average(of: Callable[[Run], float]) -> list[str]:
        return each(lambda runs: f"{statistics.mean(map(of, runs)):.2f}")

    rows = {
        "met the target": each(lambda runs: f"{sum(meets(run, target, most_gap) for run in runs)} of {len(runs)}"),
        "last epoch, %, ± standard deviation": each(last_epoch),
        "lowest of the last five, mean, %": average(lowest_of_last),
        "lowest of the last five, any run, %": each(lambda runs: f"{min(map(lowest_of_last, runs)):.2f}"),
        "best minus worst of the last five": average(spread_of_last),
        "training images, final weights, %": average(lambda run: run["train_accuracy"]),
        "gap, training minus tested images": average(gap),
    }
    return aligned([["", *columns], *([name, *cells] for name, cells in rows.items())])


def last_epoch(runs: Sequence[Run]) -> str:
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


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of some differences, and the two ends of its 95 % interval (Student's t)."""
    from scipy import stats  # here, because it takes a second

    mean = statistics.mean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return mean, mean - half, mean + half


def in_words(found: tuple[float, float, float]) -> str:
    """An interval as text: its middle, and how far it reaches to either side."""
    mean, _, high = found
    return f"{round(mean, 2) + 0.0:+.2f} ± {high - mean:.2f}".replace(" ", "\N{NO-BREAK SPACE}")  # -0.0 becomes 0.0


def pair_differences(runs: Sequence[Run], others: Sequence[Run], of: Callable[[Run], float]) -> list[float]:
    """Differences of a figure between runs of the same seed: the mean of each split; of one split, that of each seed.

    Args:
        runs, others: one of them may have more seeds than the other; these do not count.
        of: the figure.

    Raises:
        ValueError: no seed is in both, or two runs of the same seed were tested on other images.
    """
    by_seed = {run["seed"]: run for run in others}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs or any(run["split"] != other["split"] for run, other in pairs):
        raise ValueError("these runs are not pairs of the same seeds and splits")
    by_split: dict[str, list[float]] = {}
    for run, other in pairs:
        by_split.setdefault(run["split"], []).append(of(run) - of(other))
    if len(by_split) == 1:
        [differences] = by_split.values()
        return differences
    return [statistics.mean(values) for values in by_split.values()]


def comparison_table(compared: Mapping[str, tuple[Sequence[Run], Sequence[Run]]]) -> str:
    """Runs against others, as a Markdown table: differences in points, ± half of the 95 % interval.

    The differences are averaged over the seeds of a split, and the interval is over the splits, so that it covers other
    images too; over the seeds, if there is one split alone.

    Args:
        compared: by what is to stand in the first column, the runs and those of the same seeds and splits that they are
            compared with, as for `pair_differences`.
    """
    rows = [["", "pairs", "mean of last five", "lowest of last five", "gap"]]
    for name, (runs, others) in compared.items():
        differences = [pair_differences(runs, others, of) for of in (mean_of_last, lowest_of_last, gap)]
        pairs = len({run["seed"] for run in runs} & {run["seed"] for run in others})
        rows.append([name, str(pairs), *(in_words(interval(found)) for found in differences)])
    return aligned(rows)
