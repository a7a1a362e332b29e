"""The pictures of the README, each drawn from `results/` as SVG with the same bytes every time."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.tables import load_errors, step_runs
from model import STEPS
from tinymnist.runs import accuracy

COLORS = {1: "tab:gray", 2: "tab:orange", 3: "tab:blue"}


def learning_curves() -> Figure:
    """Test accuracy of every run of the three steps over the epochs."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for number, step in STEPS.items():
        runs = step_runs(f"step{number}")
        for i, run in enumerate(runs):
            epochs = [record["epoch"] for record in run["history"]]
            label = f"Step {number}: {step.theme} ({len(runs)} runs)" if i == 0 else None
            values = [accuracy(record) for record in run["history"]]
            axis.plot(epochs, values, color=COLORS[number], linewidth=1, alpha=0.8, label=label)
    axis.axhline(STEPS[3].target, color="tab:green", linestyle="--", linewidth=1, label="target 99.40 %")
    axis.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(97.5, 99.8), xlim=(1, 15), xticks=range(1, 16))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    return figure


def misclassified() -> Figure:
    """The test images that most final models get wrong: label, the answer of most, votes and confidence."""
    found = load_errors()
    images = [entry for entry in found["images"] if "pixels" in entry]
    columns = 8
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 1.55 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, entry in zip(axes.flat, images, strict=False):
        pixels = np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(28, 28)
        answer = int(np.argmax(entry["votes"]))
        axis.imshow(pixels, cmap="gray_r")
        title = f"{entry['label']} → {answer}\n{entry['votes'][answer]}/{found['models']}, {entry['confidence']:.0%}"
        axis.set_title(title, fontsize=8)
    return figure


def confusion() -> Figure:
    """Labels against answers, summed over the final models; the diagonal is left out."""
    counts = np.array(load_errors()["confusion"])
    np.fill_diagonal(counts, 0)
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axis.imshow(counts, cmap="Blues")
    for i, j in zip(*counts.nonzero(), strict=True):
        color = "white" if counts[i, j] > counts.max() / 2 else "black"
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, color=color)
    axis.set(xlabel="answer", ylabel="label", xticks=range(10), yticks=range(10))
    return figure


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG: no date, and the same identifiers every time."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "misclassified.svg": misclassified,
    "confusion.svg": confusion,
}
