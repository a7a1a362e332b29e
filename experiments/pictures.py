"""The pictures of the README, each drawn from `results/` as SVG.

The same results give the same bytes on one version of matplotlib. Another version writes a picture in other bytes,
so what is compared is a fingerprint of what is drawn, which stands in the file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments import effects, variants
from experiments.study import load_study
from experiments.tables import load_errors, step_runs
from model import STEPS
from tinymnist import runs as storage
from tinymnist.runs import accuracy
from utils import receptive_field

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
        answer = int(np.argmax(entry["votes"]))
        axis.imshow(_image(entry["pixels"]), cmap="gray_r")
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


def accuracy_over_parameters() -> Figure:
    """Mean and range of the last epoch over the parameters: the final net, smaller ones, and prior solutions."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    ours = [load_study("small", name) for name in variants.small()] + [step_runs("step3")]
    prior = {name: load_study("prior", name) for name in variants.prior()}
    series = [("Step 3's net at several sizes", ours, "tab:blue", "o")]
    for recipe, color in (("published", "tab:red"), ("ours", "tab:purple")):
        runs = [found for name, found in prior.items() if name.endswith(recipe)]
        label = "prior nets, our recipe" if recipe == "ours" else "prior nets, their recipe"
        series.append((label, runs, color, "s"))
    for label, groups, color, marker in series:
        last = [[accuracy(run["history"][-1]) for run in runs] for runs in groups]
        means = [statistics.mean(values) for values in last]
        spread = [
            [m - min(v) for m, v in zip(means, last, strict=True)],
            [max(v) - m for m, v in zip(means, last, strict=True)],
        ]
        sizes = [runs[0]["params"] for runs in groups]
        axis.errorbar(sizes, means, spread, color=color, marker=marker, linestyle="", capsize=3, label=label)
    for name, runs in prior.items():
        if name.endswith("published"):
            mean = statistics.mean(accuracy(run["history"][-1]) for run in runs)
            beside = (-13 if name[0] in "AD" else 7, -3)  # so that no letter lies on another's point
            axis.annotate(name[0], (runs[0]["params"], mean), xytext=beside, textcoords="offset points", fontsize=8)
    axis.axhline(STEPS[3].target, color="tab:green", linestyle="--", linewidth=1, label="target 99.40 %")
    axis.set(xlabel="parameters", ylabel="test accuracy, last epoch (%): mean, range", xlim=(1500, 8500))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower center", fontsize=9)
    return figure


def spread() -> Figure:
    """The last epoch of every run of the three steps, one point per random seed."""
    figure, axis = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    for number, step in STEPS.items():
        last = [accuracy(run["history"][-1]) for run in step_runs(f"step{number}")]
        beside = [number + 0.1 * ((i * 7) % 5 - 2) for i in range(len(last))]
        label = f"Step {number} ({len(last)} random seeds)"
        axis.scatter(last, beside, s=22, color=COLORS[number], alpha=0.8, label=label)
        axis.vlines(step.target, number - 0.4, number + 0.4, color="tab:green", linestyle="--", linewidth=1)
    axis.set(xlabel="test accuracy in the last epoch (%)", yticks=list(STEPS), ylim=(3.6, 0.4))
    axis.set_yticklabels([f"Step {number}" for number in STEPS])
    axis.grid(alpha=0.3, axis="x")
    return figure


def single_changes() -> Figure:
    """What each single change to Step 3 does to the accuracy on held-out images: difference and 95 % interval."""
    found = {name: effects.effect(name) for name in effects.changes_of(3)}
    names = sorted(found, key=lambda name: found[name].difference)
    figure, axis = plt.subplots(figsize=(7.5, 0.21 * len(names) + 0.8), layout="constrained")
    labels = {"worse": "worse", "better": "better", "no measurable effect": "no measurable effect: holds zero"}
    for verdict, color in (("worse", "tab:red"), ("no measurable effect", "tab:gray"), ("better", "tab:green")):
        at = [i for i, name in enumerate(names) if found[name].verdict == verdict]
        differences = [found[names[i]].difference for i in at]
        interval = [
            [found[names[i]].difference - found[names[i]].low for i in at],
            [found[names[i]].high - found[names[i]].difference for i in at],
        ]
        if at:
            axis.errorbar(
                differences, at, xerr=interval, color=color, marker="o", ms=4, ls="", capsize=2, label=labels[verdict]
            )
    for i, name in enumerate(names):
        words = variants.changes()[name].change
        axis.text(-0.02, i, words, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="difference in accuracy (points): mean and 95 % interval", yticks=[], ylim=(-0.7, len(names) - 0.3))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8, frameon=False)
    return figure


def upright() -> Figure:
    """Leaning digits, and what the first layer of Step 3 makes of them."""
    examples = load_examples()
    return _rows([("digit", examples["leaning"]), ("upright", examples["upright"])])


def augmentation() -> Figure:
    """Training images, and what three epochs make of them."""
    examples = load_examples()
    draws = [(f"epoch {i}", images) for i, images in enumerate(examples["draws"], start=1)]
    return _rows([("image", examples["original"]), *draws])


def receptive_fields() -> Figure:
    """How much of the upright digit one value of each layer of Step 3 sees, drawn on the digit."""
    image, rows = _image(load_examples()["upright"][0]), receptive_field(STEPS[3].net())[2:]
    figure, axes = plt.subplots(1, len(rows), figsize=(9, 1.75), layout="constrained")
    size = len(image)
    middle = (size - 1) / 2
    for axis, row in zip(axes, rows, strict=True):
        axis.imshow(image, cmap="gray_r")
        low, high = (min(max(middle + sign * row.receptive_field / 2, -0.5), size - 0.5) for sign in (-1, 1))
        box = plt.Rectangle((low, low), high - low, high - low, fill=True, alpha=0.25, color=COLORS[3])
        axis.add_patch(box)
        axis.add_patch(plt.Rectangle((low, low), high - low, high - low, fill=False, linewidth=1.5, color=COLORS[3]))
        axis.set_title(f"{row.name}\n{row.receptive_field}x{row.receptive_field}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


def kernels() -> Figure:
    """The kernels of the first convolution of Step 3, and below each what it answers to a digit."""
    examples = load_examples()
    figure, axes = plt.subplots(2, len(examples["kernels"]), figsize=(9, 2.5), layout="constrained")
    for top, bottom, kernel, answer in zip(*axes, examples["kernels"], examples["answers"], strict=True):
        for axis, values in ((top, kernel), (bottom, answer)):
            most = max(map(abs, values))
            axis.imshow(_square(values), cmap="RdBu_r", vmin=-most, vmax=most)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("kernel", fontsize=9)
    axes[1, 0].set_ylabel("answer", fontsize=9)
    return figure


def load_examples() -> dict:
    """What `experiments.examples` collected."""
    path = storage.RESULTS / "examples.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: python -m experiments.examples writes it")
    return json.loads(path.read_text())


def _image(text: str) -> np.ndarray:
    """A packed image."""
    return _square(np.frombuffer(base64.b64decode(text), np.uint8))


def _square(values: Sequence[float] | np.ndarray) -> np.ndarray:
    side = math.isqrt(len(values))
    return np.reshape(values, (side, side))


def _rows(rows: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    """Images in rows, each row with its name."""
    columns = len(rows[0][1])
    figure, axes = plt.subplots(len(rows), columns, figsize=(9, 1.15 * len(rows)), layout="constrained")
    for line, (name, images) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(_image(image), cmap="gray_r")
            axis.set(xticks=[], yticks=[])
    return figure


def fingerprint(figure: Figure) -> str:
    """A hash of what a figure shows: its lines, points, boxes, images and words."""
    shown: list = []
    for axis in figure.axes:
        shown += [line.get_xydata().tolist() for line in axis.lines]
        shown += [points.get_offsets().tolist() for points in axis.collections]
        shown += [(*patch.get_xy(), patch.get_width()) for patch in axis.patches]
        shown += [np.asarray(image.get_array()).tolist() for image in axis.images]
        legend = axis.get_legend()
        words = [axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), *(t.get_text() for t in axis.texts)]
        shown += words + ([t.get_text() for t in legend.get_texts()] if legend else [])
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def fingerprint_in(content: bytes) -> bytes:
    """The fingerprint that stands in a picture; empty if there is none."""
    found = re.search(rb"\b[0-9a-f]{64}\b", content)
    return found.group() if found else b""


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG: no date, the same identifiers every time, and its fingerprint as description."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Description": fingerprint(figure)}
        figure.savefig(buffer, format="svg", metadata=metadata, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "spread.svg": spread,
    "accuracy_over_parameters.svg": accuracy_over_parameters,
    "single_changes.svg": single_changes,
    "upright.svg": upright,
    "augmentation.svg": augmentation,
    "receptive_fields.svg": receptive_fields,
    "kernels.svg": kernels,
    "misclassified.svg": misclassified,
    "confusion.svg": confusion,
}
