"""The training and evaluation loops that the three steps share.

Everything a notebook needs can be imported from here; what has a job of its own (data, recipe,
augmentation, receptive field, figures, saved runs) is in `tinymnist/`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tinymnist.augmentation import affine, augment, normalize, random_affine
from tinymnist.average import WeightAverage
from tinymnist.cuda_graph import GraphedAugment, GraphedNet
from tinymnist.data import DataError, Digits, drawn_digits, load_drawn, load_mnist, validation_split
from tinymnist.figures import plot_augmentation, plot_digits, plot_history
from tinymnist.receptive_field import LayerField, receptive_field, receptive_field_table
from tinymnist.recipe import Recipe, describe_changes, learning_rate, learning_rates
from tinymnist.runs import (
    LAST,
    Run,
    TrainingError,
    accuracy,
    claimed,
    last_accuracies,
    load_runs,
    meets,
    save_run,
    write_json,
)
from tinymnist.tables import run_summary

__all__ = [
    "DataError",
    "Digits",
    "LayerField",
    "Recipe",
    "TrainingError",
    "WeightAverage",
    "accuracy",
    "affine",
    "augment",
    "count_parameters",
    "cross_entropy",
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
    "run_summary",
    "save_run",
    "sgd",
    "train_epoch",
    "train_run",
    "validation_split",
]

ACCELERATORS = ("cuda", "mps", "xpu")
# The four parts of training that can be replaced; their defaults follow the recipe.
MakeOptimizer = Callable[[nn.Module, Recipe], torch.optim.Optimizer]
Rate = Callable[[Recipe, int, int], float]
Augment = Callable[[Tensor, Recipe, torch.Generator | None], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum and weight decay as the recipe says."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one kernel for all parameters
    return torch.optim.SGD(
        model.parameters(),
        recipe.max_lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=fused or None,
    )


def cross_entropy(logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    """Mean cross-entropy of a batch: logits (B, 10), labels int64 (B,); the indices (B,) are for other losses."""
    return F.cross_entropy(logits, labels)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int = 0,
    generator: torch.Generator | None = None,
    after_step: Callable[[int], object] | None = None,
    *,
    rate: Rate = learning_rate,
    augment: Augment = augment,
    loss: Loss = cross_entropy,
) -> tuple[float, int, int]:
    """Train for one pass over the images, shuffled anew, each batch augmented when its turn comes.

    Args:
        model: the net that is trained; left in training mode.
        optimizer: of the model's parameters; its learning rate is set before each step.
        images, labels: uint8 (N, 28, 28) and int64 (N,), on the model's device.
        recipe: batch size, and what `rate` and `augment` read from it.
        epoch: 0-based number of this pass, which places it on the schedule.
        generator: source of shuffling and augmentation, on the same device.
        after_step: called with the 0-based number of each step since epoch 0, once it is done.
        rate, augment, loss: see `fit`.

    Returns:
        mean loss over the N images, number of them classified correctly while training, and N.
    """
    model.train()
    batches = torch.randperm(len(images), generator=generator, device=images.device).split(recipe.batch_size)
    loss_sum, correct = torch.zeros(2, device=images.device)
    for step, batch in enumerate(batches, start=epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step, recipe.epochs * len(batches))
        x, y = augment(images.index_select(0, batch), recipe, generator), labels.index_select(0, batch)
        logits = model(x)
        batch_loss = loss(logits, y, batch)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        loss_sum += batch_loss.detach() * len(batch)
        correct += (logits.detach().argmax(1) == y).sum()
        if after_step is not None:
            after_step(step)
    return loss_sum.item() / len(images), int(correct), len(images)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> tuple[float, int, int]:
    """Classify the plain images in evaluation mode; the model's mode and buffers are left as they were.

    Args:
        model: the net.
        images, labels: uint8 (N, 28, 28) and int64 (N,), on any device.
        batch_size: images per forward pass; it does not change the result beyond rounding.

    Returns:
        mean cross-entropy over the N images, number of them classified correctly, and N.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    loss_sum, correct = torch.zeros(2, device=device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits, y = model(normalize(x.to(device))), y.to(device)
        loss_sum += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    model.train(was_training)
    return loss_sum.item() / len(images), int(correct), len(images)


def fit(
    model: nn.Module,
    recipe: Recipe,
    digits: Digits,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    graph: bool = False,
    *,
    make_optimizer: MakeOptimizer = sgd,
    rate: Rate = learning_rate,
    augment: Augment = augment,
    loss: Loss = cross_entropy,
) -> list[dict[str, float]]:
    """Train a net by a recipe and evaluate it after each epoch.

    The same seed on the same device, number of threads and version of PyTorch gives the same result.

    Args:
        model: the net; moved to the device, and left holding the weights that the last epoch evaluated.
        recipe: how to train it.
        digits: the images to train on and to evaluate on, on any device; they are copied to `device`.
        seed: of shuffling, augmentation and dropout; PyTorch's global generators are seeded with it.
        device: where everything runs.
        progress: show a bar (stderr) and print one line per epoch (stdout).
        graph: on a CUDA device, replay augmentation, forward and backward pass (`tinymnist/cuda_graph.py`); an
            `augment` of your own must then neither copy from the CPU nor wait for the GPU.
        make_optimizer: makes the optimizer from the model and the recipe.
        rate: the learning rate from the recipe, the 0-based step and the number of steps of the whole run.
        augment: makes a training batch, float (B, 1, 28, 28), from uint8 (B, 28, 28), the recipe and a generator.
        loss: the mean loss of a batch from its logits (B, 10), labels (B,) and indices (B,) of the training images.

    Returns:
        The history: per epoch `epoch` (from 1), `lr` (of its last step), `train_loss`,
        `train_correct`, `train_total`, `test_loss`, `test_correct`, `test_total` and `seconds`
        (training and evaluation). The training figures are those of the weights in motion.

    Raises:
        ValueError: `graph` on another device than a CUDA one.
        TrainingError: a loss is not finite at the end of an epoch.
    """
    device = torch.device(device)
    if graph and device.type != "cuda":
        raise ValueError(f"graph=True needs a CUDA device, not {device}")
    torch.manual_seed(seed)  # dropout takes its random numbers from the global generator
    generator = torch.Generator(device).manual_seed(seed)
    train_images, train_labels, test_images, test_labels = (t.to(device) for t in digits)
    # Channels last is faster for these convolutions on a CPU: pooling and BatchNorm run along the channels.
    model.to(device).to(memory_format=torch.channels_last if device.type == "cpu" else torch.contiguous_format)
    optimizer = make_optimizer(model, recipe)
    average = WeightAverage(model, recipe.average) if recipe.average else None
    tested = average.model if average else model
    steps, history = recipe.epochs * math.ceil(len(train_images) / recipe.batch_size), []
    with (
        tqdm(total=steps, desc=f"seed {seed}", unit="step", mininterval=0.5, disable=not progress) as bar,
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        torch.cuda.device(device if graph else -1),  # a graph belongs to the current device; -1 changes nothing
    ):
        trained = model
        if graph:
            example = train_images[: recipe.batch_size]
            trained = GraphedNet(model, normalize(example))
            augment = GraphedAugment(augment, example, recipe, generator)

        def after_step(step: int) -> None:
            if average:
                average.update(step)
            bar.update()

        for epoch in range(recipe.epochs):
            start = time.perf_counter()
            trained_on = train_epoch(
                trained, optimizer, train_images, train_labels, recipe, epoch, generator, after_step,
                rate=rate, augment=augment, loss=loss,
            )  # fmt: skip
            tested_on = evaluate(tested, test_images, test_labels)
            if not math.isfinite(trained_on[0] + tested_on[0]):
                raise TrainingError(f"a loss of epoch {epoch + 1} is not finite: a lower learning rate may help")
            record = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
            record |= dict(zip(("train_loss", "train_correct", "train_total"), trained_on, strict=True))
            record |= dict(zip(("test_loss", "test_correct", "test_total"), tested_on, strict=True))
            history.append(record | {"seconds": time.perf_counter() - start})
            if progress:
                tqdm.write(log_line(history[-1]))
    model.load_state_dict(tested.state_dict())
    return history


def train_run(
    path: Path,
    make_net: Callable[[], nn.Module],
    recipe: Recipe,
    digits: Digits,
    facts: Run,
    device: torch.device | str = "cpu",
    progress: bool = False,
    weights: bool = True,
    **options: Any,
) -> Run:
    """Train a net from its random seed on, and write the run.

    A training comes to nothing if a loss is not finite, or if after five epochs or more the net is no better than one
    that gives every image the same answer. Then `seed_K.failed` is written, and an earlier run stays.

    Args:
        path: of the record; facts, weights: as for `save_run`. The random seed is `facts["seed"]`.
        make_net: makes the net once PyTorch's generators are seeded.
        recipe, digits, device, progress, options: as for `fit`.

    Returns:
        the run; if it came to nothing, its facts, its recipe and the reason, `failed`.

    Raises:
        OSError: another process is writing the same run, or a file cannot be written.
    """
    with claimed(path):
        torch.manual_seed(facts["seed"])
        net = make_net()
        try:
            history = fit(net, recipe, digits, facts["seed"], device, progress, **options)
            correct, most = history[-1]["test_correct"], int(digits.test_labels.bincount().max())
            if recipe.epochs >= LAST and correct <= most:  # after fewer, a net may not have learnt yet
                raise TrainingError(f"in the end it gets {correct} images right, one answer for all would get {most}")
        except TrainingError as error:
            failed = {**facts, "recipe": asdict(recipe), "failed": str(error)}
            write_json(path.with_suffix(".failed"), failed)
            return failed
        fitted = evaluate(net, digits.train_images, digits.train_labels)
        return save_run(path, net, recipe, history, fitted, torch.device(device), facts, weights)


def log_line(record: dict[str, float]) -> str:
    """One epoch of a history as one aligned line."""
    return (
        f"epoch {record['epoch']:2d}  lr {record['lr']:.4f}  "
        f"train loss {record['train_loss']:.4f}  {accuracy(record, 'train'):.2f} %  "
        f"test loss {record['test_loss']:.4f}  {accuracy(record):.2f} %  {record['seconds']:.1f} s"
    )


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name, or with "auto" the best there is: CUDA, else another accelerator, else the CPU.

    Raises:
        ValueError: the name is no device, or that device is not there.
    """
    if name == "auto":
        return torch.device(next((kind for kind in ACCELERATORS if _count(kind)), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", *ACCELERATORS):
        raise ValueError(f"no device {name!r}: use auto, cpu, cuda, cuda:N, {' or '.join(ACCELERATORS[1:])}")
    if device.type != "cpu" and (device.index or 0) >= (count := _count(device.type)):
        there = f"{device.type}:0 to {device.type}:{count - 1}" if count else "none"
        raise ValueError(f"no device {name!r} here ({device.type} devices: {there}): use auto or cpu")
    return device


def _count(kind: str) -> int:
    """How many accelerators of a kind there are."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return module.device_count() if module.is_available() else 0


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
