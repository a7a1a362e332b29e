"""The training and evaluation loops that the three steps share.

Notebooks import the rest from here too. What has a job of its own (data, recipe, augmentation, receptive field,
figures, records) is in `tinymnist/`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from tinymnist.augmentation import Batches, affine, augment, normalize
from tinymnist.cuda_graph import capture
from tinymnist.data import DataError, Digits, check_forms, load_mnist, validation_split
from tinymnist.devices import deterministic_cudnn, pick_device
from tinymnist.figures import plot_augmentation, plot_curves, plot_digits, plot_history
from tinymnist.receptive_field import LayerField, receptive_field, receptive_field_table
from tinymnist.recipe import Recipe, describe_changes, learning_rate
from tinymnist.runs import (
    HISTORY,
    Run,
    State,
    commit,
    count_parameters,
    definition,
    load_runs,
    load_weights,
    outcome,
    state_of,
)
from tinymnist.tables import (
    History,
    accuracies,
    comparison_table,
    last_epoch_in_words,
    log_line,
    run_summary,
)


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    average: AveragedModel | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[float, int, int]:
    """Train for one epoch.

    Args:
        model: the net that is trained; left in training mode.
        batches: images, float32 (B, 1, 28, 28), and labels, int64 (B,), on the model's device.
        optimizer: of the model's parameters.
        scheduler: of the optimizer's learning rate, which changes after each step.
        average: the moving average of the model's weights, if there is one.
        criterion: mean loss of a batch from its logits (B, classes) and labels (B,).

    Returns:
        mean loss over the images, number of them classified correctly while training, and their number.
    """
    model.train()
    loss_sum: Tensor | float = 0.0
    correct: Tensor | int = 0
    total = 0
    for x, y in batches:
        logits = model(x)
        loss = criterion(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if average:
            average.update_parameters(model)
        loss_sum += loss.detach() * len(y)
        correct += (logits.argmax(1) == y).sum()
        total += len(y)
    return float(loss_sum) / total, int(correct), total


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> tuple[float, int, int]:
    """Classify the plain images in evaluation mode; the model is left as it was.

    Args:
        model: the net.
        images, labels: uint8 (N, 28, 28) and int64 (N,), on any device.
        batch_size: images per forward pass; it does not change the result beyond rounding.

    Returns:
        mean cross-entropy over the N images, number of them classified correctly, and N.
    """
    device = next(model.parameters(), images).device
    # In PyTorch 2.4 the flag of what `torch.compile` wraps around a net says nothing: the net within is asked.
    in_training = [module for module in model.modules() if module.training and not hasattr(module, "_orig_mod")]
    model.eval()
    loss_sum: Tensor | float = 0.0
    correct: Tensor | int = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits, y = model(normalize(x.to(device))), y.to(device)
        loss_sum += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    for module in in_training:
        module.training = True
    return float(loss_sum) / len(images), int(correct), len(images)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a net's weights and BatchNorm statistics, in a copy of the net, `module`.

    It goes back to Polyak and Juditsky, 1992. Once n steps are averaged, the decay of the next is at most
    (1 + n) / (10 + n), so that the first weights soon lose their share.
    """

    def update(averages: Any, values: Any, n: Any) -> None:
        share = 1 - ((1 + n) / (10 + n)).clamp(max=decay)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point() or average.is_complex():
                moved = average.lerp(value, share.to(average.dtype))
                average.copy_(torch.where(average == value, value, moved))  # inf stays inf, not NaN
            else:  # BatchNorm's num_batches_tracked
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


@torch.enable_grad()
def fit(
    model: nn.Module,
    recipe: Recipe,
    digits: Digits,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    graph: bool = False,
    *,
    rate: Callable[[Recipe, float], float] = learning_rate,
    batches: Callable[[Tensor, Tensor, Recipe, torch.Generator], Any] = Batches,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> History:
    """Train a net by a recipe and evaluate it after each epoch.

    From the same initial weights, the same seed gives the same result on the same device, number of threads and version
    of PyTorch, if the net's own operations do. The initial weights depend on the seed that is set when the net is made.

    Args:
        model: the net; moved to the device, and left in evaluation mode with the weights that the last epoch evaluated.
        recipe: how to train it.
        digits: the images to train on and to evaluate on, on any device; they are copied to `device`.
        seed: of order, augmentation and dropout; PyTorch's global generators are seeded with it.
        device: where everything runs.
        progress: show a bar for each epoch (stderr) and print one line per epoch (stdout).
        graph: on a CUDA device, replay augmentation, forward and backward pass (`tinymnist/cuda_graph.py`); what cannot
            be captured goes the usual way.
        rate: the learning rate as a fraction of `recipe.max_lr`, from the recipe and the fraction of the run, from 0
            to 1, that is over.
        batches: makes what is iterated once an epoch, as `Batches` or a `DataLoader`, from the training images, their
            labels, the recipe and a generator, all on the device, where its batches have to be too. Its length is the
            number of steps in an epoch.
        loss: the mean loss of a training batch from its logits (B, classes) and labels (B,).

    Returns:
        The history, lists with an entry per epoch: `lr` (as it is after the epoch), `train_loss`, `train_correct`,
        `train_total`, `test_loss`, `test_correct`, `test_total` and `seconds` (training and evaluation). The training
        figures are those of the weights in motion, on augmented images.

    Raises:
        ValueError: images, labels or the net's output are of another shape or type; there are no batches; `graph`
            without a CUDA device; it is called under `torch.autocast` or `torch.inference_mode`.
    """
    device = torch.device(device)
    if graph and device.type != "cuda":
        raise ValueError(f"graph=True needs a CUDA device, not {device}")
    autocast = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
    if autocast or torch.is_inference_mode_enabled():
        raise ValueError("fit does not work under torch.autocast or torch.inference_mode: call it outside")
    torch.manual_seed(seed)  # dropout takes its random numbers from the global generator
    generator = torch.Generator(device).manual_seed(seed)
    digits = Digits(*(tensor.to(device) for tensor in digits))
    check_forms(model.to(device), digits)
    train_images, train_labels, test_images, test_labels = digits
    loader = batches(train_images, train_labels, recipe, generator)
    steps = recipe.epochs * len(loader)
    if not steps:
        raise ValueError("there are no batches: give at least one, for example without drop_last")
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.max_lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    # A step has the rate of its middle.
    scheduler = LambdaLR(optimizer, lambda step: float(rate(recipe, min((step + 0.5) / steps, 1.0))))
    average = moving_average(model, recipe.average) if recipe.average else None
    history: History = {name: [] for name in HISTORY}
    with deterministic_cudnn(), torch.cuda.device(device if graph else -1):  # -1 changes nothing
        trained = capture(model, loader, train_images[: recipe.batch_size]) if graph else model
        for epoch in range(recipe.epochs):
            start = time.perf_counter()
            shown = loader
            if progress:
                shown = tqdm(loader, f"epoch {epoch + 1:2d}", leave=False, unit="step", mininterval=0.5)
            trained_on = train_epoch(trained, shown, optimizer, scheduler, average, loss)
            tested_on = evaluate(average.module if average else model, test_images, test_labels)
            values = [scheduler.get_last_lr()[0], *trained_on, *tested_on, time.perf_counter() - start]
            for name, value in zip(HISTORY, values, strict=True):
                history[name].append(value)
            if progress:
                tqdm.write(log_line(history))
    if average:
        with torch.no_grad():
            for own, averaged in zip(tensors_of(model), tensors_of(average.module), strict=True):
                own.copy_(averaged)
    model.eval()
    return history


def expectation(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    digits: Digits,
    device: torch.device | str,
    published: Sequence[Run],
) -> str:
    """What to expect of a run, in a line: its time, from a fiftieth of an epoch measured here, and its accuracy.

    Args:
        net: makes the net.
        recipe, digits, device: as for `fit`.
        published: the records of such runs.
    """
    few = Digits(*(tensor[: -(-len(tensor) // 50)] for tensor in digits))
    for _ in range(2):  # the first time, libraries may have to make their kernels
        [seconds] = fit(net(), replace(recipe, epochs=1), few, device=device, progress=False)["seconds"]
    return (
        f"{recipe.epochs} epochs take about {50 * recipe.epochs * seconds:.0f} s here. "
        f"Accuracy of {len(published)} published runs: {last_epoch_in_words(published)} % after the last epoch."
    )


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers of a net, each once."""
    return itertools.chain(model.parameters(), model.buffers())


def train_run(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    digits: Digits,
    seed: int = 0,
    split: str = "test",
    device: torch.device | str = "cpu",
    progress: bool = False,
    graph: bool = False,
    **openings: Any,
) -> tuple[Run, State]:
    """Train a net from its seed on, and say in a record what was trained, what came out and where.

    Args:
        net: makes the net once PyTorch's generators are seeded.
        recipe, digits, seed, device, progress, graph: as for `fit`.
        split: what the test images of `digits` are, for the record.
        openings: `rate`, `batches` and `loss`, as for `fit`.

    Returns:
        the record, and the net's weights.
    """
    facts = definition(net, recipe, seed, split, **openings) | {"graph": graph, "commit": commit()}
    torch.manual_seed(seed)
    model = net()
    history = fit(model, recipe, digits, seed, device, progress, graph, **openings)
    fitted = evaluate(model, digits.train_images, digits.train_labels)
    return facts | outcome(history, fitted, torch.device(device)), state_of(model)
