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
from experiments.variants import GROUPS, taught
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


# Parameters and the lowest of the last five epochs that the authors of prior solutions printed, of one run each:
# amitkml's EVA7 session 5, the ERA V3 assignment 7, snehanshu-raj's ERA assignment 6, firekind's ERA4 session 6, and
# Madhur-1's ERA-v1 session 7. They are drawn at the 15 epochs that the challenge allows.
PUBLISHED = [(7712, 99.37), (7830, 99.39), (7918, 99.43), (6174, 99.42), (5196, 99.36)]


def sizes_and_epochs() -> Figure:
    """Each run's lowest accuracy of the last five epochs, mean and range, over parameters and over epochs."""
    frame, entered = read_runs(), GROUPS["records"].variants()
    entries = frame[(frame.group == "records") & frame.variant.isin(entered)]
    teacher = entries.variant.map(lambda name: entered[name].options is taught)
    again = frame[(frame.group == "prior") & frame.variant.str.endswith("published")]
    series = {
        ("ours, 20 runs each", "tab:blue", "o"): entries[~teacher],
        ("ours with a teacher, 20 runs each", "tab:cyan", "o"): entries[teacher],
        ("prior nets, trained again, 3 runs each", "tab:red", "s"): again,
    }
    figure, axes = plt.subplots(2, figsize=(7.5, 7.5), layout="constrained")
    for axis, over, beside in zip(axes, ("parameters", "epochs"), (60, 0.12), strict=True):
        for number, ((label, color, marker), own) in enumerate(series.items()):
            shown = own.epochs == 15 if over == "parameters" else own.parameters > 7000
            points = own[shown].groupby("variant").agg({over: "first", "last5_min": list})
            lowest, mean, highest = (points.last5_min.map(function) for function in (min, np.mean, max))
            options: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "", "capsize": 3, "label": label}
            moved = points[over] + beside * (number + points.groupby(over).cumcount())  # none lies on another
            axis.errorbar(moved, mean, [mean - lowest, highest - mean], **options)
        published = [(x, y) for x, y in PUBLISHED if over == "parameters" or x > 7000]
        places = [x if over == "parameters" else 15 - beside * (i + 1) for i, (x, _) in enumerate(published)]
        axis.plot(places, [y for _, y in published], "kx", label="prior solutions as published, 1 run each")
        axis.axhline(TARGET, color="tab:green", linestyle="--", linewidth=1, label=f"target {TARGET:.2f} %")
        axis.set(ylabel="lowest of the last five epochs (%)", ylim=(98.5, 99.7))
        axis.grid(alpha=0.3)
    axes[0].set_xlabel("parameters (15 epochs)")
    axes[1].set_xlabel("epochs (more than 7,000 parameters)")
    axes[0].legend(loc="lower left", fontsize=9)
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
    "sizes_and_epochs.svg": sizes_and_epochs,
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
