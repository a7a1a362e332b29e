"""The figures of the notebooks. Each function draws one figure and returns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tinymnist.recipe import Recipe, learning_rate
from tinymnist.tables import History, accuracies

if TYPE_CHECKING:
    from collections.abc import Sequence


def plot_digits(images: Tensor, labels: Sequence[int | str], columns: int = 10) -> Figure:
    """Draw images in a grid, each below its label.

    Args:
        images: (N, 28, 28) or (N, 1, 28, 28), any scale.
        labels: N integers or words.
        columns: images in a row.
    """
    rows = max(-(-len(images) // columns), 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.9 * columns, 1.15 * rows), squeeze=False, layout="constrained"
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


def plot_history(history: History, recipe: Recipe, target: float | None = None) -> Figure:
    """Draw loss, accuracy and learning rate of a run over its epochs.

    Args:
        history: as returned by `fit`.
        recipe: that of the run, for the learning rate.
        target: accuracy in percent to mark with a line.
    """
    epochs = np.arange(1, len(history["lr"]) + 1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for part, color in (("train", "tab:orange"), ("test", "tab:blue")):
        left.plot(epochs, history[f"{part}_loss"], color=color, marker=".", label=part)
        middle.plot(epochs, accuracies(history, part), color=color, marker=".", label=part)
    left.set(title="Loss", xlabel="epoch", ylabel="mean cross-entropy", yscale="log")
    middle.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    middle.set_ylim(max(min(accuracies(history)[1:] or accuracies(history)) - 0.7, 0), 100.05)
    if target is not None:
        middle.axhline(target, color="tab:green", linestyle="--", linewidth=1, label=f"target {target:.2f} %")
    passed = np.linspace(0, 1, 500)
    right.plot(passed * len(epochs), [recipe.max_lr * learning_rate(recipe, done) for done in passed], "tab:purple")
    right.set(title="Learning rate", xlabel="epochs passed", ylabel="learning rate")
    right.set_ylim(bottom=0)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    middle.legend()
    plt.close(figure)
    return figure
