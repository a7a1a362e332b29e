"""The training and evaluation loops that the three steps share.

Everything a notebook needs is importable from here; the parts with a job of their own (data,
recipe, augmentation, receptive field, figures, saved runs, speed) are in `tinymnist/`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tinymnist.augmentation import affine, augment, normalize, random_affine
from tinymnist.average import WeightAverage
from tinymnist.batchnorm import fast_batchnorm
from tinymnist.cuda_graph import StepGraph, train_epoch_together
from tinymnist.data import DataError, Digits, drawn_digits, load_drawn, load_mnist, validation_split
from tinymnist.distillation import distillation_loss, soft_labels
from tinymnist.figures import plot_augmentation, plot_digits, plot_history
from tinymnist.receptive_field import LayerField, receptive_field, receptive_field_table
from tinymnist.recipe import Recipe, describe_changes, learning_rate, learning_rates
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
    "fit_together",
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
    "soft_labels",
    "train_epoch",
    "train_step",
    "validation_split",
]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator | None = None,
    soft: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer on a batch, which is augmented first.

    Args:
        images, labels: uint8 (B, 28, 28) and int64 (B,), on the model's device.
        soft: float (B, 10), a teacher's soft labels, where the recipe asks for them.

    Returns:
        sum of the B cross-entropies with the labels and number of images classified correctly, as tensors: the
        host waits for nothing.
    """
    logits = model(augment(images, recipe, generator))
    hard = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    loss = hard if soft is None else distillation_loss(hard, logits, soft, recipe)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return hard.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int = 0,
    generator: torch.Generator | None = None,
    after_step: Callable[[int], None] | None = None,
    soft: Tensor | None = None,
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
        soft: float (N, 10), a teacher's soft labels, where the recipe asks for them.

    Returns:
        mean loss over the N images, number of them classified correctly while training, and N.
    """
    model.train()
    batches = torch.randperm(len(images), generator=generator, device=images.device).split(recipe.batch_size)
    loss_sum, correct = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    for step, batch in enumerate(batches, start=epoch * len(batches)):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, recipe.epochs * len(batches))
        x, y = images.index_select(0, batch), labels.index_select(0, batch)
        taught = None if soft is None else soft.index_select(0, batch)
        loss, hits = train_step(model, optimizer, x, y, recipe, generator, taught)
        loss_sum += loss
        correct += hits
        if after_step is not None:
            after_step(step)
    return loss_sum.item() / len(images), int(correct), len(images)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> tuple[float, int, int]:
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


class Training:
    """A net under training, with all that belongs to its random seed.

    Attributes:
        model, recipe: the net and how it is trained.
        generator: of shuffling and augmentation.
        optimizer: of the net's parameters.
        average: of its weights, or None if the recipe averages nothing.
        soft: a teacher's soft labels of the training images, or None.
        history: one record per finished epoch.

    Raises:
        ValueError: the recipe asks for soft labels and there are none, or the other way round.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, seed: int, device: torch.device, soft: Tensor | None = None
    ) -> None:
        if (soft is None) != (recipe.distillation == 0):
            need = "needs soft labels" if soft is None else "has no use for soft labels"
            raise ValueError(f"a recipe with distillation={recipe.distillation:g} {need}: see utils.soft_labels")
        # Channels last is faster for these convolutions on a CPU: pooling and BatchNorm run along the channels.
        model.to(device, memory_format=torch.channels_last if device.type == "cpu" else torch.contiguous_format)
        self.model, self.recipe, self.soft, self.history = model, recipe, soft, []
        self.generator = torch.Generator(device).manual_seed(seed)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            recipe.max_lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )
        self.average = WeightAverage(model, recipe.average) if recipe.average else None

    def train_epoch(self, images: Tensor, labels: Tensor, count: Callable[[], object]) -> tuple[float, int, int]:
        """The next epoch by the plain loop; `count` is called after each step."""

        def after_step(step: int) -> None:
            if self.average is not None:
                self.average.update(step)
            count()

        return train_epoch(
            self.model,
            self.optimizer,
            images,
            labels,
            self.recipe,
            len(self.history),
            self.generator,
            after_step,
            self.soft,
        )

    def graphed(self, images: Tensor, labels: Tensor) -> StepGraph:
        """The training step on these images as a CUDA graph."""
        rates = torch.tensor(learning_rates(self.recipe, len(images)), device=images.device)
        rate = self.optimizer.param_groups[0]["lr"] = torch.zeros((), device=images.device)

        def body(batch: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            rate.copy_(rates.index_select(0, step).squeeze())
            x, y = images.index_select(0, batch), labels.index_select(0, batch)
            taught = None if self.soft is None else self.soft.index_select(0, batch)
            trained = train_step(self.model, self.optimizer, x, y, self.recipe, self.generator, taught)
            if self.average is not None:
                self.average.update(step)
            return trained

        self.model.train()
        return StepGraph(body, len(images), self.recipe.batch_size, self.generator)

    def finish_epoch(self, trained: tuple[float, int, int], images: Tensor, labels: Tensor, start: float) -> None:
        """Evaluate and add the record of an epoch, which began at `start` of `time.perf_counter()`."""
        epoch, steps = len(self.history), math.ceil(trained[2] / self.recipe.batch_size)
        tested = evaluate(self.average.model if self.average is not None else self.model, images, labels)
        last_step = (epoch + 1) * steps - 1
        record = {"epoch": epoch + 1, "lr": learning_rate(self.recipe, last_step, self.recipe.epochs * steps)}
        record |= dict(zip(("train_loss", "train_correct", "train_total"), trained, strict=True))
        record |= dict(zip(("test_loss", "test_correct", "test_total"), tested, strict=True))
        self.history.append(record | {"seconds": time.perf_counter() - start})


def fit(
    model: nn.Module,
    recipe: Recipe,
    digits: Digits,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    graph: bool = True,
    soft: Tensor | None = None,
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
        graph: on a CUDA device, replay the training step as a CUDA graph; if False, run the plain loop.
        soft: float (N, 10), the soft labels of the training images if the recipe has distillation.

    Returns:
        The history: per epoch `epoch` (from 1), `lr` (of its last step), `train_loss`,
        `train_correct`, `train_total`, `test_loss`, `test_correct`, `test_total` and `seconds`
        (training and evaluation). The training figures are those of the weights in motion.
    """
    return fit_together([model], recipe, digits, [seed], device, progress, graph, soft)[0]


def fit_together(
    models: Sequence[nn.Module],
    recipe: Recipe,
    digits: Digits,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    progress: bool = True,
    graph: bool = True,
    soft: Tensor | None = None,
) -> list[list[dict[str, float | int]]]:
    """`fit` for several nets at once, each from its own seed; on a CUDA device their steps run side by side.

    The kernels of a net of this size are too small to fill a GPU alone. On a CPU the nets take turns, which
    gains nothing: use processes there.

    Returns:
        The history of each net; `seconds` is the time of an epoch of all of them.

    Raises:
        ValueError: several nets of which one has dropout, whose random numbers would depend on the others.
    """
    if len(models) > 1 and any(isinstance(m, nn.Dropout) for model in models for m in model.modules()):
        raise ValueError("nets with dropout share one random generator: train them one after the other, with fit")
    device = torch.device(device)
    torch.manual_seed(seeds[0])  # dropout takes its random numbers from the global generator
    train_images, train_labels, test_images, test_labels = (t.to(device) for t in digits)
    if soft is not None and len(soft) != len(train_images):
        raise ValueError(f"soft labels have to be one for each training image: {len(train_images)}, not {len(soft)}")
    soft = None if soft is None else soft.to(device)
    trainings = [Training(model, recipe, seed, device, soft) for model, seed in zip(models, seeds, strict=True)]
    graphs = [t.graphed(train_images, train_labels) for t in trainings] if graph and device.type == "cuda" else []
    bar = tqdm(
        total=len(models) * recipe.epochs * math.ceil(len(train_images) / recipe.batch_size),
        desc=f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}",
        unit="step",
        mininterval=0.5,
        disable=not progress,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
        for model in models:
            stack.enter_context(fast_batchnorm(model))
        for _ in range(recipe.epochs):
            start = time.perf_counter()
            if graphs:
                trained = train_epoch_together(graphs, bar.update)
            else:
                trained = [t.train_epoch(train_images, train_labels, bar.update) for t in trainings]
            for t, figures in zip(trainings, trained, strict=True):
                t.finish_epoch(figures, test_images, test_labels, start)
                if progress:
                    tqdm.write(log_line(t.history[-1]))
    for t in trainings:
        if t.average is not None:
            t.model.load_state_dict(t.average.model.state_dict())
    return [t.history for t in trainings]


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
