"""The benchmark: seconds per epoch of the usual pipeline and of ours, and of a whole run, in turn, on one machine.

    python -m experiments.bench                  all contenders, on the best device there is
    python -m experiments.bench --device cpu     default: the best device there is
    python -m experiments.bench --whole          a whole run of the fastest record, beside epochs of the usual pipeline

Each measurement is a fresh process, so that none finds the memory or the caches of another, and every contender is
measured once before any is measured again. What comes out is written to `results/bench_cpu.json` or `bench_cuda.json`,
with --whole to `whole_run_cpu.json` or `whole_run_cuda.json`.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.nets import MakeNet, prior_net
from experiments.variants import GROUPS
from model import STEPS, FinalNet
from tinymnist.cli import OneLineParser
from tinymnist.data import default_root
from tinymnist.parallel import in_processes
from tinymnist.runs import RESULTS, commit, hardware, write_json
from utils import Batches, DataError, Digits, Recipe, accuracies, fit, load_mnist, normalize, pick_device

REPEATS = 3
FASTEST = "pruned"  # among the entries for the records
WHOLE = "the fastest record, a whole run"
USUAL = "usual pipeline, no workers"
WARM_UP = 20  # steps before the time counts, in which libraries make their kernels
STOCK_RECIPE = Recipe(epochs=1, max_lr=0.01, rotation=7.0)
# A typical earlier solution with ReLU before BatchNorm: 7,830 parameters.
stock_net = functools.partial(prior_net, "c10 c16 c8 P c16 c16 c10 GAP lin", norm_last=True)


def stock_epoch(device: torch.device, workers: int) -> float:
    """Seconds of an epoch with evaluation as earlier solutions do it: data set, PIL images, DataLoader."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    normalized = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    turned = transforms.Compose([transforms.RandomRotation(STOCK_RECIPE.rotation), *normalized])
    train_set = MNIST(default_root(), train=True, transform=turned)
    test_set = MNIST(default_root(), train=False, transform=transforms.Compose(normalized))
    pinned = device.type == "cuda"
    loader = functools.partial(DataLoader, batch_size=STOCK_RECIPE.batch_size, num_workers=workers, pin_memory=pinned)
    train_loader, test_loader = loader(train_set, shuffle=True), loader(test_set)
    net = stock_net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), STOCK_RECIPE.max_lr, STOCK_RECIPE.momentum, nesterov=True)
    for steps in (WARM_UP, None):  # the second pass, over all images, is the one that counts
        start = time.perf_counter()
        for x, y in itertools.islice(train_loader, steps):
            loss = F.cross_entropy(net(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        correct = sum((net(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in test_loader)
    assert correct > 0.8 * len(test_set), "the stock pipeline did not learn"
    return time.perf_counter() - start


def our_epoch(device: torch.device, net: MakeNet, recipe: Recipe, **options: Any) -> float:
    """Seconds of an epoch with evaluation on our pipeline; the options are those of `fit`."""
    digits, recipe = load_mnist(), replace(recipe, epochs=1)
    few = Digits(*(tensor[: WARM_UP * recipe.batch_size] for tensor in digits))
    fit(net(), recipe, few, device=device, progress=False, **options)
    [seconds] = fit(net(), recipe, digits, device=device, progress=False, **options)["seconds"]
    return seconds


def whole_run(device: torch.device) -> float:
    """Seconds of a whole run of the fastest entry for the records, with the loading of the images."""
    entry, start = GROUPS["records"].variants()[FASTEST], time.perf_counter()
    history = fit(entry.net(), entry.recipe, load_mnist(), device=device, progress=False, **entry.openings)
    seconds = time.perf_counter() - start
    if accuracies(history)[-1] < 80:
        raise ValueError("the fastest entry did not learn")
    return seconds


class ChannelsFirstNet(FinalNet):
    """Step 3 whose maps are laid out channels first, as PyTorch does by itself."""

    def classify(self, x: Tensor) -> Tensor:
        """float (B, 1, 24, 24) to logits (B, 10)."""
        return super().classify(x.clone(memory_format=torch.contiguous_format))


def augment_by_library(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """`augment` with `F.affine_grid`, which multiplies a small matrix per image, in place of ours."""
    x = normalize(images)
    turn, right, down, size = torch.rand(4, len(x), generator=generator, device=x.device) * 2 - 1
    angle, scale = torch.deg2rad(recipe.rotation * turn), 1 + recipe.scale * size
    cos, sin, shift = torch.cos(angle) / scale, torch.sin(angle) / scale, 2 * recipe.translation
    right, down = shift * right, shift * down
    theta = torch.stack([cos, sin, -(cos * right + sin * down), -sin, cos, sin * right - cos * down], dim=1)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def library_batches(images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Batches:
    """`Batches` that are augmented with `F.affine_grid`."""
    batches = Batches(images, labels, recipe, generator)
    batches.augment = augment_by_library
    return batches


def contenders(device: torch.device, whole: bool = False) -> dict[str, Callable[[torch.device], float]]:
    """What is timed, each of which returns seconds: epochs, or with `whole` a whole run beside two kinds of epochs."""
    step3 = functools.partial(our_epoch, net=FinalNet, recipe=STEPS[3].recipe)
    usual: dict[str, Callable[[torch.device], float]] = {USUAL: functools.partial(stock_epoch, workers=0)}
    if whole:
        return usual | {"Step 3": step3, WHOLE: whole_run}
    graphs = {"Step 3, CUDA graphs": functools.partial(step3, graph=True)} if device.type == "cuda" else {}
    return usual | graphs | {
        "usual pipeline, 2 workers": functools.partial(stock_epoch, workers=2),
        "the same net on our pipeline": functools.partial(our_epoch, net=stock_net, recipe=STOCK_RECIPE),
        "Step 3": step3,
        "Step 3, maps laid out channels first": functools.partial(step3, net=ChannelsFirstNet),
        "Step 3, F.affine_grid in the augmentation": functools.partial(step3, batches=library_batches),
    }  # fmt: skip


def measure(job: tuple[str, torch.device, bool]) -> float:
    """Time one contender."""
    name, device, whole = job
    return contenders(device, whole)[name](device)


def in_turn(measured: Callable[[Any], float], jobs: Sequence[Any], threads: int = 1) -> Iterator[tuple[Any, float]]:
    """Measure each job in a process of its own, none again before the others; yields job and value `REPEATS` times."""
    for job in [*jobs] * REPEATS:
        for value in in_processes(measured, [job], threads=threads):
            yield job, value


def write_measured(name: str, device: torch.device, threads: int, **found: Any) -> None:
    """Write what was measured to `results/NAME_DEVICE.json`, with what it was measured on."""
    facts = {"hardware": hardware(device), "threads": threads, "torch_version": torch.__version__, "commit": commit()}
    write_json(RESULTS / f"{name}_{device.type}.json", facts | found)


def main(arguments: list[str] | None = None) -> int:
    """Measure the contenders in turn and write what came out."""
    command = OneLineParser("bench.py", __doc__)
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    command.add_argument("--whole", action="store_true", help="time a whole run of the fastest record")
    options = command.parse_args(arguments)
    try:
        device, threads = pick_device(options.device), torch.get_num_threads()
        load_mnist()  # it may have to download
        jobs = [(name, device, options.whole) for name in contenders(device, options.whole)]
        seconds: dict[str, list[float]] = {name: [] for name, *_ in jobs}
        for (name, *_), value in in_turn(measure, jobs, threads):
            seconds[name].append(value)
            print(f"{name}: {value:.2f} s", flush=True)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        write_measured("whole_run" if options.whole else "bench", device, threads, median=median, seconds=seconds)
    except (DataError, ValueError, OSError) as error:
        return command.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
