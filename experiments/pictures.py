"""The pictures of the README, each drawn from `results/` as SVG.

A picture is a function without arguments that returns a figure, and an entry in `PICTURES`.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.tables import TARGET, effects, read_runs
from model import STEPS
from tinymnist import runs
from tinymnist.runs import accuracy, load_runs, write_atomically
from utils import receptive_field

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


def spread() -> Figure:
    """The last epoch of every run of the three steps, one point per random seed."""
    figure, axis = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    for number, step in STEPS.items():
        last = [accuracy(run["history"][-1]) for run in load_runs(f"step{number}")]
        beside = [number + 0.1 * ((i * 7) % 5 - 2) for i in range(len(last))]
        axis.scatter(last, beside, s=22, color=COLORS[number], alpha=0.8)
        axis.vlines(step.target, number - 0.4, number + 0.4, color="tab:green", linestyle="--", linewidth=1)
    axis.set(xlabel="test accuracy in the last epoch (%)", yticks=list(STEPS), ylim=(3.6, 0.4))
    axis.set_yticklabels([f"Step {number}" for number in STEPS])
    axis.grid(alpha=0.3, axis="x")
    return figure


def accuracy_over_parameters() -> Figure:
    """Mean and range of the last epoch over the parameters: the final net, smaller ones, and prior solutions."""
    frame = read_runs()
    recipe = frame.variant.str.rpartition("-")[2]
    series = {
        ("Step 3's net at several sizes", "tab:blue", "o"): (frame.group == "small") | (frame.variant == "step3"),
        ("prior nets, their recipe", "tab:red", "s"): (frame.group == "prior") & (recipe == "published"),
        ("prior nets, our earlier recipe", "tab:purple", "s"): (frame.group == "prior") & (recipe == "earlier"),
    }
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for (label, color, marker), picked in series.items():
        points = frame[picked & (frame.split == "test")].groupby("variant").agg({"parameters": "first", "last": list})
        lowest, mean, highest = (points["last"].map(function) for function in (min, np.mean, max))
        options: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "", "capsize": 3, "label": label}
        axis.errorbar(points.parameters, mean, [mean - lowest, highest - mean], **options)
        for variant, row in points[points.index.str.endswith("published")].iterrows():
            beside = (-13 if variant[0] in "AD" else 7, -3)  # so that no letter lies on another's point
            at = (row.parameters, mean[variant])
            axis.annotate(variant[0], at, xytext=beside, textcoords="offset points", fontsize=8)
    axis.axhline(TARGET, color="tab:green", linestyle="--", linewidth=1, label=f"target {TARGET:.2f} %")
    axis.set(xlabel="parameters", ylabel="test accuracy, last epoch (%): mean, range", xlim=(1500, 8500))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower center", fontsize=9)
    return figure


def single_changes() -> Figure:
    """What each single change to the earlier Step 3 does on held-out images: difference and 95 % interval."""
    frame = read_runs()
    found = effects(frame[frame.group == "earlier"]).sort_values("last5_mean", ignore_index=True)
    figure, axis = plt.subplots(figsize=(7.5, 0.21 * len(found) + 0.8), layout="constrained")
    interval = [found.last5_mean - found.last5_mean_low, found.last5_mean_high - found.last5_mean]
    axis.errorbar(found.last5_mean, found.index, xerr=interval, color=COLORS[3], marker="o", ms=4, ls="", capsize=2)
    for i, change in found.change.items():
        axis.text(-0.02, i, change, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="difference in accuracy (points): mean and 95 % interval", yticks=[], ylim=(-0.7, len(found) - 0.3))
    axis.grid(alpha=0.3, axis="x")
    return figure


def misclassified() -> Figure:
    """The test images that most final models get wrong: label, the most frequent prediction, votes and confidence."""
    errors = read_json("errors.json")
    images = [entry for entry in errors["images"] if "pixels" in entry]
    columns = 8
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 1.55 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, entry in zip(axes.flat, images, strict=False):
        predicted = int(np.argmax(entry["votes"]))
        axis.imshow(unpacked(entry["pixels"]), cmap="gray_r")
        votes = f"{entry['votes'][predicted]}/{errors['models']}, {entry['confidence']:.0%}"
        axis.set_title(f"{entry['label']} → {predicted}\n{votes}", fontsize=8)
    return figure


def confusion() -> Figure:
    """Labels against predictions, summed over the final models; the diagonal is left out."""
    counts = np.array(read_json("errors.json")["confusion"])
    np.fill_diagonal(counts, 0)
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axis.imshow(counts, cmap="Blues")
    for i, j in zip(*counts.nonzero(), strict=True):
        color = "white" if counts[i, j] > counts.max() / 2 else "black"
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, color=color)
    axis.set(xlabel="prediction", ylabel="label", xticks=range(10), yticks=range(10))
    return figure


def deslanting() -> Figure:
    """Slanted digits, and what the first layer of Step 3 makes of them."""
    examples = read_json("examples.json")
    return image_rows([("digit", examples["leaning"]), ("deslanted", examples["deslanted"])])


def augmentation() -> Figure:
    """Training images, and what three epochs make of them."""
    examples = read_json("examples.json")
    draws = [(f"epoch {i}", images) for i, images in enumerate(examples["draws"], start=1)]
    return image_rows([("image", examples["original"]), *draws])


def receptive_fields() -> Figure:
    """How much of the deslanted digit one value of each layer of Step 3 sees, drawn on the digit."""
    image, rows = unpacked(read_json("examples.json")["deslanted"][0]), receptive_field(STEPS[3].net())[2:]
    figure, axes = plt.subplots(1, len(rows), figsize=(9, 1.75), layout="constrained")
    size = len(image)
    middle = (size - 1) / 2
    for axis, row in zip(axes, rows, strict=True):
        axis.imshow(image, cmap="gray_r")
        half = float(np.mean(row.receptive_field)) / 2
        low, high = np.clip([middle - half, middle + half], -0.5, size - 0.5)
        box: dict[str, Any] = {"xy": (low, low), "width": high - low, "height": high - low, "color": COLORS[3]}
        axis.add_patch(plt.Rectangle(**box, fill=True, alpha=0.25))
        axis.add_patch(plt.Rectangle(**box, fill=False, linewidth=1.5))
        axis.set_title(f"{row.name}\n{row.receptive_field}x{row.receptive_field}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


def kernels() -> Figure:
    """The kernels of the first convolution of Step 3, and below each its response to a digit."""
    examples = read_json("examples.json")
    figure, axes = plt.subplots(2, len(examples["kernels"]), figsize=(9, 2.5), layout="constrained")
    for top, bottom, kernel, response in zip(*axes, examples["kernels"], examples["answers"], strict=True):
        for axis, values in ((top, kernel), (bottom, response)):
            most = max(map(abs, values))
            axis.imshow(square(values), cmap="RdBu_r", vmin=-most, vmax=most)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("kernel", fontsize=9)
    axes[1, 0].set_ylabel("response", fontsize=9)
    return figure


def read_json(name: str) -> dict[str, Any]:
    """A file of `results/` that `experiments.digits` wrote.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = runs.RESULTS / name
    if not path.exists():
        raise FileNotFoundError(f"no {path}: python -m experiments.digits writes it")
    return json.loads(path.read_text())


def unpacked(text: str) -> np.ndarray:
    """A square image from bytes in base64."""
    return square(np.frombuffer(base64.b64decode(text), np.uint8))


def square(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values in rows and columns of the same number."""
    side = math.isqrt(len(values))
    return np.reshape(values, (side, side))


def image_rows(rows: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    """Images in rows, each row with its name."""
    figure, axes = plt.subplots(len(rows), len(rows[0][1]), figsize=(9, 1.15 * len(rows)), layout="constrained")
    for line, (name, images) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(unpacked(image), cmap="gray_r")
            axis.set(xticks=[], yticks=[])
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    f"{function.__name__}.svg": function
    for function in (
        learning_curves,
        spread,
        accuracy_over_parameters,
        single_changes,
        deslanting,
        augmentation,
        receptive_fields,
        kernels,
        misclassified,
        confusion,
    )
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
