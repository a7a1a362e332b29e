"""The report: `results/README.md` and the pictures, from the records.

    python -m experiments.report            write them
    python -m experiments.report --check    write nothing; exit code 1 and a line for each file that differs

`experiments/results.py` has the text; a picture is one more function in `PICTURES`. `experiments/evidence.py` has what
they show.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.evidence import (
    entries,
    gains,
    gains_in_step3,
    left_out,
    runs_of,
    steps_of,
)
from experiments.results import INTRODUCTION, SECTIONS, SOURCES
from model import STEPS
from tinymnist import runs
from tinymnist.cli import OneLineParser
from tinymnist.figures import plot_curves, plot_digits, plot_intervals, plot_runs
from tinymnist.runs import write_atomically
from tinymnist.tables import (
    interval,
    lowest_of_last,
    mean_of_last,
    pair_differences,
)


def learning_curves() -> Figure:
    """Accuracy on held-out images over the epochs, each step on each sixth."""
    steps = steps_of("choices").items()
    curves = {
        f"Step {number}: {STEPS[number].theme} ({len(found)} runs)": [run["history"] for run in found]
        for number, found in steps
    }
    return plot_curves(curves, STEPS[3].target)


def part_gains() -> Figure:
    """What each part gains, alone and last, and what was left out would change; but where a failed run hides that."""
    groups = {"Step 2": gains(2), "Step 3": gains(3), "Earlier parts, in Step 3": gains_in_step3()}
    groups["Tried and left out"] = left_out()
    intervals = {
        heading: {
            name: {how: interval(pair_differences(*pair, mean_of_last)) for how, pair in points.items()}
            for name, points in group.items()
        }
        for heading, group in groups.items()
    }
    shown = {
        heading: {name: points for name, points in group.items() if all(half < 1 for _, half in points.values())}
        for heading, group in intervals.items()
    }
    return plot_intervals(shown, "mean of the last five epochs, points")


def sizes_and_epochs() -> Figure:
    """The lowest of the last five epochs, of each run of the entries for the records, and of prior solutions."""
    rows = {
        f"{variant.words} ({found[0]['parameters']:,} parameters)": [*map(lowest_of_last, found)]
        for variant, found in entries().values()
    }
    for name, (source, printed) in SOURCES.items():
        if printed:
            run = runs_of("prior", f"{name}-published")[0]
            rows[f"{source} ({run['parameters']:,} parameters, {run['recipe']['epochs']} epochs)"] = [float(printed)]
    return plot_runs(rows, STEPS[3].target, "lowest of the last five epochs, %")


def misclassified() -> Figure:
    """The test images that most nets of Step 3 get wrong: label, most frequent wrong answer, how many are wrong."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    images = [entry for entry in errors["images"] if "pixels" in entry]
    pixels = [np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(28, 28) for entry in images]
    titles = []
    for entry in images:
        wrong = [0 if digit == entry["label"] else votes for digit, votes in enumerate(entry["votes"])]
        said = int(np.argmax(wrong))
        titles.append(f"{entry['label']} → {said}\n{len(entry['wrong'])} of {errors['models']}")
    return plot_digits(torch.tensor(np.stack(pixels)), titles, columns=8)


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "parts.svg": part_gains,
    "sizes_and_epochs.svg": sizes_and_epochs,
    "misclassified.svg": misclassified,
}


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG; the same records give the same bytes on one version of matplotlib."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)


def documents() -> dict[str, bytes]:
    """What the report writes below `results/`, by name."""
    blocks = "\n\n".join([INTRODUCTION, *(section() for section in SECTIONS)]).split("\n\n")
    text = "\n\n".join(block if block[0] in "#|-!" else wrapped(block) for block in blocks) + "\n"
    return {"README.md": text.encode()} | {name: svg(draw) for name, draw in PICTURES.items()}


def draws_the_same() -> bool:
    """Whether this is the matplotlib of `constraints.txt`: another one draws other bytes."""
    pinned = (runs.REPOSITORY / "constraints.txt").read_text().split()
    return f"matplotlib=={version('matplotlib')}" in pinned


def main(arguments: list[str] | None = None) -> int:
    """Write or check.

    Returns:
        the exit code: 1 if with --check a file differs; 2 if a record is missing, damaged, or not of today's code.
    """
    command = OneLineParser("report.py", __doc__)
    command.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = command.parse_args(arguments).check
    try:
        changed, found = {}, documents()
        if check and not draws_the_same():
            print("report.py: pictures not compared, constraints.txt has another matplotlib", file=sys.stderr)
            found = {name: content for name, content in found.items() if name not in PICTURES}
        for name, content in found.items():
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
    sys.exit(main())
