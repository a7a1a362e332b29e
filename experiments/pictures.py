"""The pictures of the README, each drawn from `results/` as SVG.

A picture is a function without arguments that returns a figure, and an entry in `PICTURES`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.tables import TARGET, read_runs
from model import STEPS
from tinymnist import runs
from tinymnist.figures import plot_digits, plot_effects
from tinymnist.runs import accuracy, load_runs, write_atomically

COLORS = {1: "tab:gray", 2: "tab:orange", 3: "tab:blue"}


def learning_curves() -> Figure:
    """Test accuracy of every run of the three steps over the epochs."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for number, step in STEPS.items():
        published = load_runs(f"step{number}")
        for i, run in enumerate(published):
            epochs = [record["epoch"] for record in run["history"]]
            label = f"Step {number}: {step.theme} ({len(published)} runs)" if i == 0 else None
            values = [accuracy(record) for record in run["history"]]
            axis.plot(epochs, values, color=COLORS[number], linewidth=1, alpha=0.8, label=label)
    axis.axhline(TARGET, color="tab:green", linestyle="--", linewidth=1, label=f"target {TARGET:.2f} %")
    axis.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(97.5, 99.8), xlim=(1, 15), xticks=range(1, 16))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    return figure


def accuracy_over_parameters() -> Figure:
    """Each run's lowest accuracy of the last five epochs, mean and range, over the parameters of its net."""
    frame = read_runs()
    recipe, taught = frame.variant.str.rpartition("-")[2], frame.variant.str.endswith("-taught")
    sized = (frame.group == "records") & frame.variant.str.fullmatch(r"final|\d+-\d+-\d+-\d+(-taught)?")
    series = {
        ("Step 3's net at several sizes (20 runs)", "tab:blue", "o"): sized & ~taught,
        ("the same with a teacher (20, drawn beside it)", "tab:cyan", "o"): sized & taught,
        ("the same with an earlier recipe and teacher (5)", "tab:gray", "."): frame.group == "small",
        ("prior nets, their recipe (3)", "tab:red", "s"): (frame.group == "prior") & (recipe == "published"),
        ("prior nets, our earlier recipe (3)", "tab:purple", "s"): (frame.group == "prior") & (recipe == "earlier"),
    }
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for (label, color, marker), picked in series.items():
        points = frame[picked].groupby("variant").agg({"parameters": "first", "last5_min": list})
        lowest, mean, highest = (points.last5_min.map(function) for function in (min, np.mean, max))
        options: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "", "capsize": 3, "label": label}
        moved = points.parameters + 60 * (color == "tab:cyan")  # beside the same net without a teacher
        axis.errorbar(moved, mean, [mean - lowest, highest - mean], **options)
        for variant, row in points[points.index.str.endswith("published")].iterrows():
            beside = (7 if variant[0] == "F" else -13, -3)  # so that no letter lies on another's point
            at = (row.parameters, mean[variant])
            axis.annotate(variant[0], at, xytext=beside, textcoords="offset points", fontsize=8)
    axis.axhline(TARGET, color="tab:green", linestyle="--", linewidth=1, label=f"target {TARGET:.2f} %")
    axis.set(xlabel="parameters", ylabel="lowest of the last five epochs (%)", xlim=(1500, 8500), ylim=(98.7, 99.7))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=8)
    return figure


def parts() -> Figure:
    """What each part does on the ladder from Step 2 to Step 3, where they are added one after the other."""
    return plot_effects("ladder/")


def misclassified() -> Figure:
    """The test images that most final models get wrong: label, the most frequent prediction, votes and confidence."""
    path = runs.RESULTS / "errors.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: python -m experiments.errors writes it")
    errors = runs.read_json(path, dict)
    images = [entry for entry in errors["images"] if "pixels" in entry]
    pixels = [np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(28, 28) for entry in images]
    titles = []
    for entry in images:
        predicted = int(np.argmax(entry["votes"]))
        votes = f"{entry['votes'][predicted]}/{errors['models']}, {entry['confidence']:.0%}"
        titles.append(f"{entry['label']} → {predicted}\n{votes}")
    return plot_digits(torch.tensor(np.stack(pixels)), titles, columns=8)


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "misclassified.svg": misclassified,
    "parts.svg": parts,
    "accuracy_over_parameters.svg": accuracy_over_parameters,
}


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG; the same results give the same bytes on one version of matplotlib."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


def draw_all(again: bool) -> None:
    """Write the pictures that are missing, or all of them."""
    for name, draw in PICTURES.items():
        if again or not (runs.RESULTS / name).exists():
            write_atomically(runs.RESULTS / name, svg(draw))
