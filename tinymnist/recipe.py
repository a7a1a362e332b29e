"""How a net is trained: the recipe, and the learning rate that it gives to each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, repr=False)
class Recipe:
    """How a net is trained. The defaults are plain SGD with momentum at a constant rate.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last batch of an epoch holds what is left.
        max_lr: largest learning rate of the schedule.
        schedule: "constant", "step" (a tenth from two thirds of the steps on; He et al., 2015) or
            "one_cycle" (linear up, linear down to almost 0; Smith, 2018).
        warmup: fraction of the steps in which "one_cycle" rises.
        momentum: Nesterov momentum of SGD (Sutskever et al., 2013).
        weight_decay: L2 penalty of SGD, on every parameter.
        rotation, translation, scale, shear: strengths of `random_affine`; all 0 is no augmentation.
        average: decay per step of the exponential moving average of the weights that is evaluated
            (Polyak and Juditsky, 1992); 0 evaluates the weights themselves.
    """

    epochs: int = 15
    batch_size: int = 128
    max_lr: float = 0.05
    schedule: str = "constant"
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    average: float = 0.0

    def __repr__(self) -> str:
        """The fields that differ from their defaults."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        defaults = {f.name: f.default for f in fields(self)}
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in values if value != defaults[name])})"


def describe_changes(before: Recipe, after: Recipe) -> str:
    """One line per field in which two recipes differ: `name: old -> new`."""
    pairs = ((f.name, getattr(before, f.name), getattr(after, f.name)) for f in fields(Recipe))
    return "\n".join(f"{name}: {old} -> {new}" for name, old, new in pairs if old != new) or "no change"


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of step 0 <= step < total_steps.

    Raises:
        ValueError: the recipe names an unknown schedule.
    """
    done = (step + 0.5) / total_steps
    if recipe.schedule == "constant":
        return recipe.max_lr
    if recipe.schedule == "step":
        return recipe.max_lr * (1.0 if done < 2 / 3 else 0.1)
    if recipe.schedule == "one_cycle":
        rising, falling = done / max(recipe.warmup, 1e-9), (1 - done) / (1 - recipe.warmup)
        return recipe.max_lr * min(rising, falling)
    raise ValueError(f"unknown schedule {recipe.schedule!r}: use 'constant', 'step' or 'one_cycle'")


def learning_rates(recipe: Recipe, n_images: int) -> list[float]:
    """The learning rate of each step of a whole run on that many images, in order."""
    total_steps = recipe.epochs * math.ceil(n_images / recipe.batch_size)
    return [learning_rate(recipe, step, total_steps) for step in range(total_steps)]
