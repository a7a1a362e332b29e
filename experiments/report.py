"""The report: `results/README.md` and the pictures, from the records.

    python -m experiments.report            write them
    python -m experiments.report --check    write nothing; exit code 1 and a line for each file that differs

A table is one more function in `TABLES`, a picture one in `PICTURES`.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("report.py")

import base64
import io
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from experiments.study import finished
from model import STEPS
from tinymnist import runs
from tinymnist.cli import OneLineParser, run_program
from tinymnist.figures import plot_digits
from tinymnist.runs import Run, write_atomically
from tinymnist.tables import accuracies, aligned, last_accuracies, meets

COLORS = {1: "tab:gray", 2: "tab:orange", 3: "tab:blue"}
CHOICES = {  # what is compared with what, and in words
    "step1-rate-0.05": ("step1", "Step 1 at a rate of 0.05, not 0.02"),
    "step2-rate-0.05": ("step2", "Step 2 at a rate of 0.05, not 0.02"),
    "step2-rate-0.1": ("step2", "Step 2 at a rate of 0.1, not 0.02"),
    "step3-four-grids": ("step3", "Step 3 with a view on each of the four grids, not up, down, left and right"),
}


def runs_of(group: str, variant: str) -> list[Run]:
    """The finished runs of a variant, by seed.

    Raises:
        ValueError: a record of the group is not of today's code, or there is no run.
    """
    done, stale = finished(group)
    if stale:
        raise ValueError(f"{stale[0]}: python -m experiments.study {group}")
    found = sorted((run for run in done.values() if run["variant"] == variant), key=lambda run: run["seed"])
    if not found:
        raise ValueError(f"no finished run of {group}/{variant}: python -m experiments.study {group}")
    return found


def mean_of(run: Run) -> float:
    """The mean accuracy of the last five epochs, in percent."""
    return statistics.mean(last_accuracies(run))


def lowest_of(run: Run) -> float:
    """The lowest accuracy of the last five epochs, in percent."""
    return min(last_accuracies(run))


def gap_of(run: Run) -> float:
    """How much better the final weights classify the training images than the others, in points."""
    return run["train_accuracy"] - last_accuracies(run)[-1]


def interval(values: Sequence[float]) -> str:
    """The mean of differences with its 95 % interval: Student's t."""
    mean, half = statistics.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def difference(of: Callable[[Run], float], variant: str, base: str) -> str:
    """A variant against its base on the same sixths, with the interval."""
    pairs = zip(runs_of("choices", variant), runs_of("choices", base), strict=True)
    return interval([of(run) - of(other) for run, other in pairs])


def summary(group: str, variant: str, name: str) -> list[str]:
    """A row of the tables of the steps."""
    found = runs_of(group, variant)
    last = [last_accuracies(run)[-1] for run in found]
    step = STEPS[int(variant[4])]
    row = [name, str(len(found)), f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}"]
    row += [f"{statistics.mean(map(lowest_of, found)):.2f}", f"{min(map(lowest_of, found)):.2f}"]
    row += [
        f"{statistics.mean(run['train_accuracy'] for run in found):.2f}",
        f"{statistics.mean(map(gap_of, found)):.2f}",
    ]
    held = sum(meets(run, step.target, step.gap) for run in found)
    return [*row, f"{held} of {len(found)}"]


HEADING = "step|runs|last epoch|lowest of five, mean|lowest, any|training images|gap|target held".split("|")


def test_set() -> str:
    """What Step 3 holds on the test set."""
    rows = [HEADING, summary("steps", "step3", "3")]
    return (
        "## Step 3 on the test set\n\nAll 60,000 training images, seeds 0 to 19, tested on the 10,000 test images. *Lowest "
        "of five* is the lowest of the last five epochs; a run holds the target if that reaches 99.40.\n\n"
        + aligned(rows)
    )


def held_out() -> str:
    """The steps on held-out images."""
    names = {"step1": "1", "step2": "2", "step3": "3"}
    rows = [HEADING, *(summary("choices", v, n) for v, n in names.items())]
    return (
        "## The steps on held-out images\n\nOne run on each sixth of the training images, trained on the other five. The "
        "targets were set from these runs, before the test set was read. A target is about the lowest of the last five "
        "epochs; Step 2's is about the gap to the training images as well.\n\n" + aligned(rows)
    )


def choices() -> str:
    """What was considered beside the steps."""
    rows = [["change", "pairs", "mean of last five", "lowest of last five"]]
    for variant, (base, words) in CHOICES.items():
        count = str(len(runs_of("choices", variant)))
        rows.append([words, count, difference(mean_of, variant, base), difference(lowest_of, variant, base)])
    guessing = [run for run in runs_of("choices", "step1-rate-0.05") if mean_of(run) < 20]
    return (
        "## Choices\n\nDifferences in points on the same six sixths, one pair each, with 95 % intervals over the sixths "
        f"(Student's t). {len(guessing)} of the runs of Step 1 at a rate of 0.05 ended by guessing, at a loss of about "
        f"{math.log(10):.1f}; they count like any other.\n\n" + aligned(rows)
    )


TABLES: list[Callable[[], str]] = [test_set, held_out, choices]
INTRODUCTION = """# Results

Written by `make report` from the records beside this file, one run a line: `steps.jsonl` on the test set,
`choices.jsonl` on held-out training images. `step3.pt` holds the weights of the twenty runs of Step 3, by seed.
Accuracies are in percent, differences and gaps in points.

The records of the first edition, of its search, and its code end with commit 51ef65a.
"""


def learning_curves() -> Figure:
    """Accuracy on held-out images over the epochs, each step on each sixth."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for number, step in STEPS.items():
        for i, run in enumerate(found := runs_of("choices", f"step{number}")):
            values = accuracies(run["history"])
            label = f"Step {number}: {step.theme} ({len(found)} runs)" if i == 0 else None
            axis.plot(range(1, len(values) + 1), values, color=COLORS[number], linewidth=1, alpha=0.8, label=label)
    target = STEPS[3].target
    axis.axhline(target, color="tab:green", linestyle="--", linewidth=1, label=f"{target:.2f} %, the challenge")
    axis.set(xlabel="epoch", ylabel="accuracy, held-out images (%)", ylim=(97, 99.8), xlim=(1, 15), xticks=range(1, 16))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    return figure


def misclassified() -> Figure:
    """The test images that most nets of Step 3 get wrong: label, most frequent answer, how many nets give it."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    images = [entry for entry in errors["images"] if "pixels" in entry]
    pixels = [np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(28, 28) for entry in images]
    titles = []
    for entry in images:
        said = int(np.argmax(entry["votes"]))
        titles.append(f"{entry['label']} → {said}\n{entry['votes'][said]} of {errors['models']}")
    return plot_digits(torch.tensor(np.stack(pixels)), titles, columns=8)


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "misclassified.svg": misclassified,
}


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG; the same records give the same bytes on one version of matplotlib."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


def documents() -> dict[str, bytes]:
    """What the report writes below `results/`, by name."""
    text = "\n\n".join([INTRODUCTION.strip(), *(table() for table in TABLES)]) + "\n"
    return {"README.md": text.encode()} | {name: svg(draw) for name, draw in PICTURES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write or check.

    Returns:
        the exit code: 1 if with --check a file differs; 2 if a record is missing, damaged, or not of today's code.
    """
    command = OneLineParser("report.py", __doc__)
    command.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = command.parse_args(arguments).check
    try:
        changed = {}
        for name, content in documents().items():
            path = runs.RESULTS / name
            if not path.exists() or path.read_bytes() != content:
                changed[path] = content
        for path, content in changed.items():
            if check:
                print(f"report.py: results/{path.name} differs from the records: make report", file=sys.stderr)
            else:
                write_atomically(path, content)
    except (OSError, ValueError) as error:
        return command.failed(error)
    return int(check and bool(changed))


if __name__ == "__main__":
    run_program("report.py", main)
