"""How a net is trained: the recipe, and the learning rate over a run."""

from __future__ import annotations

from dataclasses import dataclass, fields

SCHEDULES = ("constant", "step", "one_cycle")
LARGEST = {"epochs": 1e9, "batch_size": 1e9, "warmup": 1, "average": 1, "momentum": 1, "scale": 0.99, "translation": 1}
LARGEST |= {"max_lr": 1e38, "weight_decay": 1e38, "rotation": 360}


@dataclass(frozen=True, repr=False)
class Recipe:
    """How a net is trained. The defaults are plain SGD with momentum at a constant rate.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last batch of an epoch holds what is left.
        max_lr: the largest learning rate.
        schedule: "constant", "step" or "one_cycle", see `learning_rate`.
        warmup: fraction of the run in which "one_cycle" rises.
        momentum: Nesterov momentum of SGD (Sutskever et al., 2013).
        weight_decay: L2 penalty of SGD, on every parameter.
        rotation: largest angle in degrees by which `augment` turns an image, either way.
        translation: largest shift as a fraction of the width and of the height, either way.
        scale: largest change of size as a fraction: 0.1 gives factors from 0.9 to 1.1.
        average: decay per step of the exponential moving average of the weights that is evaluated (after Polyak and
            Juditsky, 1992); 0 evaluates the weights themselves.

    Raises:
        ValueError: no such schedule, or a number out of its range.
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
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}: use one of {', '.join(SCHEDULES)}")
        for name, high in LARGEST.items():
            value, low = getattr(self, name), 1 if name in ("epochs", "batch_size") else 0
            if not low <= value <= high or (low and not isinstance(value, int)):
                raise ValueError(
                    f"{name} must be {'a whole number ' if low else ''}from {low} to {high:g}, not {value}"
                )

    def __repr__(self) -> str:
        """The fields that differ from their defaults."""
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Recipe({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def describe_changes(before: Recipe, after: Recipe) -> str:
    """One line per field in which two recipes differ: `name: old -> new`."""
    pairs = ((f.name, getattr(before, f.name), getattr(after, f.name)) for f in fields(Recipe))
    return "\n".join(f"{name}: {old} -> {new}" for name, old, new in pairs if old != new) or "no change"


def learning_rate(recipe: Recipe, done: float) -> float:
    """The learning rate, as a fraction of `max_lr`, once a fraction `done` of the run is over.

    "constant" stays at 1; "step" falls to a tenth after two thirds (He et al., 2015); "one_cycle" rises in a straight
    line during the warm-up, and falls in a straight line to 0 (Smith, 2018).
    """
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "step":
        return 1.0 if done < 2 / 3 else 0.1
    if done < recipe.warmup:
        return done / recipe.warmup
    return (1 - done) / (1 - recipe.warmup) if done < 1 else 0.0  # else the warm-up may take the whole run
