"""The figures of the notebooks and of the report. Each function draws one figure and returns it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tinymnist.recipe import Recipe, learning_rate
from tinymnist.tables import History, accuracies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def plot_digits(images: Tensor | Sequence[Tensor], labels: Sequence[int | str], columns: int = 10) -> Figure:
    """Draw images in a grid, each below its label.

    Args:
        images: N of them, (H, W) or (1, H, W) each, any scale.
        labels: N integers or words, of any number of lines.
        columns: images in a row.
    """
    rows = max(-(-len(images) // columns), 1)
    lines = max((str(label).count("\n") + 1 for label in labels), default=1)
    size = min(6 / columns, 1.0)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + 0.2 * lines) * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label in zip(axes.flat, images, labels, strict=False):
        axis.imshow(image.squeeze().numpy(), cmap="gray_r")
        axis.set_title(str(label), fontsize=10)
    plt.close(figure)
    return figure


def plot_augmentation(before: Tensor, after: Sequence[Tensor], names: Sequence[str] = ()) -> Figure:
    """Draw images in the first row and transformed copies below them, all on the same grey scale.

    Args:
        before: (N, 1, 28, 28).
        after: one (N, 1, 28, 28) per further row.
        names: labels of the further rows; by default "draw 1" and so on.
    """
    figure, axes = plt.subplots(
        1 + len(after), len(before), figsize=(0.9 * len(before), 0.95 * (1 + len(after))), layout="constrained"
    )
    limits = {"vmin": float(before.min()), "vmax": float(before.max())}
    for row, images in zip(axes, [before, *after], strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.squeeze().numpy(), cmap="gray_r", **limits)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("original", fontsize=9)
    for i in range(1, 1 + len(after)):
        axes[i, 0].set_ylabel(names[i - 1] if names else f"draw {i}", fontsize=9)
    plt.close(figure)
    return figure


def plot_curves(curves: Mapping[str, Sequence[History]], target: float) -> Figure:
    """Draw the accuracy on the tested images over the epochs, a line for each run.

    The fewer errors are left, the larger is a step on the axis: it is logarithmic in the errors.

    Args:
        curves: the histories of runs, by their label.
        target: accuracy in percent to mark with a line.
    """
    figure, axis = plt.subplots(figsize=(6.2, 4), layout="constrained")
    colors = itertools.cycle(["tab:gray", "tab:orange", "tab:blue", "tab:purple"])
    for (label, histories), color in zip(curves.items(), colors, strict=False):
        lines = [axis.plot(range(1, len(h["lr"]) + 1), accuracies(h), color=color, lw=1, alpha=0.8) for h in histories]
        lines[0][0].set(label=label)
    axis.axhline(target, color="tab:green", linestyle="--", linewidth=1, label=f"target {target:.2f} %")
    axis.set_yscale("function", functions=(lambda y: -np.log(100.01 - y), lambda z: 100.01 - np.exp(-z)))
    axis.autoscale_view()  # again, on the new scale
    ticks = [tick for tick in (50, 80, 90, 95, 97, 98, 99, 99.2, 99.4, 99.6) if axis.dataLim.ymin < tick]
    axis.set(xlabel="epoch", ylabel="accuracy (%)", yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=10)
    plt.close(figure)
    return figure


STYLES = {  # of what `plot_intervals` marks: label, marker, colour, colour within, and how far it is off its line
    "alone": ("added alone", "o", "tab:blue", "white", -0.16),
    "last": ("taken out last", "o", "tab:blue", "tab:blue", 0.16),
    "together": ("all together", "s", "tab:blue", "tab:blue", 0),
    "left out": ("left out", "x", "tab:red", "tab:red", 0),
}


def plot_intervals(groups: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], xlabel: str) -> Figure:
    """Draw intervals, one below the other.

    Args:
        groups: by heading and by name, what is marked on a line: by a key of `STYLES`, mean and half of the interval.
        xlabel: what is measured.
    """
    lines: list[tuple[str, Mapping[str, tuple[float, float]]]] = []
    for heading, group in groups.items():
        lines += [(heading, {}), *group.items()]
    figure, axis = plt.subplots(figsize=(5.6, 0.27 * len(lines) + 0.9), layout="constrained")
    labels = {how: style[0] for how, style in STYLES.items()}
    for y, (_, points) in enumerate(lines):
        for how, (mean, half) in points.items():
            _, marker, color, within, off = STYLES[how]
            place = y + (off if len(points) > 1 else 0)
            label = labels.pop(how, None)  # once
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "markerfacecolor": within,
                "capsize": 2,
                "label": label,
            }
            axis.errorbar(mean, place, xerr=half, **style)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(ylim=(len(lines) - 0.4, -0.6), xlabel=xlabel)
    axis.set_yticks(range(len(lines)), [name for name, _ in lines])
    for tick, (_, points) in zip(axis.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if points else "bold")
    axis.tick_params("y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    plt.close(figure)
    return figure


def plot_runs(rows: Mapping[str, Sequence[float]], target: float, xlabel: str) -> Figure:
    """Draw a value of each run, a line for each kind of run; a single run is drawn as a cross.

    Args:
        rows: by name, the values.
        target: drawn as a dashed line.
        xlabel: what is measured.
    """
    figure, axis = plt.subplots(figsize=(7.6, 0.3 * len(rows) + 0.8), layout="constrained")
    for y, values in enumerate(rows.values()):
        style = {"marker": "x"} if len(values) == 1 else {"marker": "o", "alpha": 0.35}
        axis.plot(values, [y] * len(values), linestyle="none", color="tab:blue", markersize=5, **style)
    axis.axvline(target, color="gray", linestyle="--", linewidth=0.8)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    axis.set_yticks(range(len(rows)), [*rows])
    axis.tick_params("y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    plt.close(figure)
    return figure


def plot_history(history: History, recipe: Recipe, target: float | None = None) -> Figure:
    """Draw loss, accuracy and learning rate of a run over its epochs.

    Args:
        history: as returned by `fit`.
        recipe: that of the run, for the learning rate.
        target: accuracy in percent to mark with a line.
    """
    epochs = np.arange(1, len(history["lr"]) + 1)
    figure, (top, middle, bottom) = plt.subplots(3, 1, sharex=True, figsize=(6, 6.5), layout="constrained")
    for part, color in (("train", "tab:orange"), ("test", "tab:blue")):
        top.plot(epochs, history[f"{part}_loss"], color=color, marker=".", label=part)
        middle.plot(epochs, accuracies(history, part), color=color, marker=".", label=part)
    top.set(ylabel="mean cross-entropy", yscale="log")
    middle.set(ylabel="accuracy (%)")
    middle.set_ylim(max(min(accuracies(history)[1:] or accuracies(history)) - 0.7, 0), 100.05)
    if target is not None:
        middle.axhline(target, color="tab:green", linestyle="--", linewidth=1, label=f"target {target:.2f} %")
    passed = np.linspace(0, 1, 500)
    bottom.plot(passed * len(epochs), [recipe.max_lr * learning_rate(recipe, done) for done in passed], "tab:purple")
    bottom.set(xlabel="epoch", ylabel="learning rate")
    bottom.set_ylim(bottom=0)
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.legend()
    middle.legend()
    plt.close(figure)
    return figure
