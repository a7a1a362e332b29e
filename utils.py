"""The recipe and the training loops that the three steps share.

Everything a notebook needs is importable from here; the parts with a job of their own (data,
augmentation, receptive field, figures, saved runs) are in `tinymnist/`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tinymnist.augmentation import affine, random_affine
from tinymnist.data import DataError, Digits, drawn_digits, load_drawn, load_mnist, validation_split
from tinymnist.figures import plot_augmentation, plot_digits, plot_history
from tinymnist.receptive_field import LayerField, receptive_field, receptive_field_table
from tinymnist.runs import accuracy, last_accuracies, load_runs, meets, save_run

__all__ = [
    "DataError",
    "Digits",
    "LayerField",
    "Recipe",
    "WeightAverage",
    "accuracy",
    "affine",
    "augment",
    "count_parameters",
    "describe_changes",
    "drawn_digits",
    "evaluate",
    "fit",
    "last_accuracies",
    "learning_rate",
    "learning_rates",
    "load_drawn",
    "load_mnist",
    "load_runs",
    "log_line",
    "meets",
    "normalize",
    "pick_device",
    "plot_augmentation",
    "plot_digits",
    "plot_history",
    "random_affine",
    "receptive_field",
    "receptive_field_table",
    "save_run",
    "train_epoch",
    "validation_split",
]

STD = 0.3081  # standard deviation of the training images' pixels, on a scale from 0 to 1


@dataclass(frozen=True)
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
        label_smoothing: share of the target spread over all classes (Szegedy et al., 2015).
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
    label_smoothing: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    average: float = 0.0


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


def normalize(images: Tensor) -> Tensor:
    """Turn images into the net's input: pixels of standard deviation 1, background 0.

    The mean is not subtracted, so that the zeros with which a convolution pads continue the background.

    Args:
        images: uint8 (N, 28, 28), or float (N, 1, 28, 28) from 0 to 1.

    Returns:
        float32 (N, 1, 28, 28).
    """
    if images.dtype == torch.uint8:
        images = images.unsqueeze(1).float() / 255
    return images / STD


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator | None = None) -> Tensor:
    """Turn uint8 (N, 28, 28) into a training batch: augmented as the recipe says, then normalized.

    The images are moved while their background is 0, so that what comes in from outside is background.

    Returns:
        float32 (N, 1, 28, 28).
    """
    x = images.unsqueeze(1).float() / 255
    return normalize(random_affine(x, recipe.rotation, recipe.translation, recipe.scale, recipe.shear, generator))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int = 0,
    generator: torch.Generator | None = None,
    after_step: Callable[[int], None] | None = None,
) -> tuple[float, int, int]:
    """Train for one pass over the images, shuffled anew, each batch augmented when its turn comes.

    Args:
        model: the net that is trained; left in training mode.
        optimizer: of the model's parameters; its learning rate is set before each step.
        images, labels: uint8 (N, 28, 28) and int64 (N,), on the model's device.
        recipe: schedule, batch size, augmentation and loss.
        epoch: 0-based number of this pass, which places it on the schedule.
        generator: source of shuffling and augmentation, on the same device.
        after_step: called with the 0-based number of each step since epoch 0, once it is done.

    Returns:
        mean loss over the N images, number of them classified correctly while training, and N.
    """
    model.train()
    batches = torch.randperm(len(images), generator=generator, device=images.device).split(recipe.batch_size)
    loss_sum, correct = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    for step, batch in enumerate(batches, start=epoch * len(batches)):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, recipe.epochs * len(batches))
        x, y = augment(images[batch], recipe, generator), labels[batch]
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(y)
        correct += (logits.detach().argmax(1) == y).sum()
        if after_step is not None:
            after_step(step)
    return loss_sum.item() / len(images), int(correct), len(images)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> tuple[float, int, int]:
    """Classify the plain images in evaluation mode; the model's mode and buffers are left as they were.

    Args:
        model: a net on the device of the data.
        images, labels: uint8 (N, 28, 28) and int64 (N,).
        batch_size: images per forward pass; it does not change the result beyond rounding.

    Returns:
        mean cross-entropy over the N images, number of them classified correctly, and N.
    """
    was_training = model.training
    model.eval()
    loss_sum, correct = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(normalize(x))
        loss_sum += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    model.train(was_training)
    return loss_sum.item() / len(images), int(correct), len(images)


class WeightAverage:
    """The exponential moving average of a net's weights and BatchNorm statistics.

    Attributes:
        model: a copy of the net that holds the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model), decay
        self._pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the net's present weights, by 1 - decay of the way.

        The first steps move further (the decay is at most (1 + step) / (10 + step), step from 0),
        so that the random initial weights are soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, value in self._pairs:
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)  # BatchNorm's count of batches


def fit(
    model: nn.Module,
    recipe: Recipe,
    digits: Digits,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train a net by a recipe and evaluate it after each epoch.

    The same seed on the same device, number of threads and version of PyTorch gives the same result.

    Args:
        model: the net; moved to the device, and left holding the weights that the last epoch evaluated.
        recipe: how to train it.
        digits: the images to train on and to evaluate on, on any device; they are copied to `device`.
        seed: of shuffling, augmentation and dropout; PyTorch's global generators are seeded with it.
        device: where everything runs.
        progress: show a bar (stderr) and print one line per epoch (stdout).

    Returns:
        The history: per epoch `epoch` (from 1), `lr` (of its last step), `train_loss`,
        `train_correct`, `train_total`, `test_loss`, `test_correct`, `test_total` and `seconds`
        (training and evaluation). The training figures are those of the weights in motion.
    """
    device = torch.device(device)
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    train_images, train_labels, test_images, test_labels = (t.to(device) for t in digits)
    # Channels last is faster for these convolutions on a CPU: pooling and BatchNorm run along the channels.
    model.to(device, memory_format=torch.channels_last if device.type == "cpu" else torch.contiguous_format)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.max_lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    average = WeightAverage(model, recipe.average)  # a decay of 0 makes it a plain copy
    steps_per_epoch = math.ceil(len(train_images) / recipe.batch_size)
    history: list[dict[str, float | int]] = []
    bar = tqdm(
        total=recipe.epochs * steps_per_epoch, desc=f"seed {seed}", unit="step", mininterval=0.5, disable=not progress
    )

    def after_step(step: int) -> None:
        average.update(step)
        bar.update()

    with bar, torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in range(recipe.epochs):
            start = time.perf_counter()
            trained = train_epoch(model, optimizer, train_images, train_labels, recipe, epoch, generator, after_step)
            tested = evaluate(average.model, test_images, test_labels)
            record = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
            record |= dict(zip(("train_loss", "train_correct", "train_total"), trained, strict=True))
            record |= dict(zip(("test_loss", "test_correct", "test_total"), tested, strict=True))
            history.append(record | {"seconds": time.perf_counter() - start})
            if progress:
                tqdm.write(log_line(history[-1]))
    model.load_state_dict(average.model.state_dict())
    return history


def log_line(record: dict[str, float | int]) -> str:
    """One epoch of a history as one aligned line."""
    return (
        f"epoch {record['epoch']:2d}  lr {record['lr']:.4f}  "
        f"train loss {record['train_loss']:.4f}  {accuracy(record, 'train'):.2f} %  "
        f"test loss {record['test_loss']:.4f}  {accuracy(record):.2f} %  {record['seconds']:.1f} s"
    )


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name, or with "auto" the best there is: CUDA, else the CPU.

    Raises:
        ValueError: the name is no device, or that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"no device {name!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"no CUDA device here for {name!r}: use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name!r}: CUDA devices here are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
