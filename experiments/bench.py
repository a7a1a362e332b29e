"""The benchmark: seconds per epoch of the usual pipeline and of ours, in turn, in one run on one machine.

    python -m experiments.bench                     all parts
    python -m experiments.bench pipelines seeds     these parts; the others stay as they were measured
    python -m experiments.bench --device cuda       default: the best device there is

Each measurement is a fresh process, so that none finds the memory or the caches of another, and every
contender is measured once before any is measured again. What comes out is written to
`results/bench_cpu.json` or `results/bench_cuda.json`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

import utils
from experiments import variants
from model import STEPS
from tinymnist import augmentation
from tinymnist.data import default_root
from tinymnist.parallel import in_processes
from tinymnist.runs import REPOSITORY, RESULTS, commit, hardware, write_atomically
from train import OneLineParser
from utils import Digits, Recipe, fit, load_mnist, pick_device, soft_labels

REPEATS = 3
WARM_UP = 20  # steps before the time counts, in which libraries make their kernels
SEEDS = {"cpu": 4, "cuda": 100}  # for the part "seeds"
PARTS = ("pipelines", "changes", "teacher", "seeds")
FINAL = STEPS[3]
STOCK_RECIPE = Recipe(epochs=1, batch_size=128, max_lr=0.01, rotation=7.0)


def stock_net() -> nn.Module:
    """A typical earlier solution, 7,830 parameters: c10 c16 c8 P c16 c16 c10 GAP lin10, with ReLU before BatchNorm."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(channels_out)]

    first = [*block(1, 10), *block(10, 16), *block(16, 8), nn.MaxPool2d(2)]
    second = [*block(8, 16), *block(16, 16), *block(16, 10), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*first, *second, nn.Conv2d(10, 10, 1, bias=False), nn.Flatten())


def stock_epochs(device: torch.device, workers: int) -> list[float]:
    """Seconds of one epoch with evaluation as earlier solutions do it: data set, PIL images, DataLoader."""
    normalized = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    turned = transforms.Compose([transforms.RandomRotation(STOCK_RECIPE.rotation), *normalized])
    options = {"batch_size": STOCK_RECIPE.batch_size, "num_workers": workers, "pin_memory": device.type == "cuda"}
    train_set = MNIST(default_root(), train=True, transform=turned)
    test_set = MNIST(default_root(), train=False, transform=transforms.Compose(normalized))
    train_loader = DataLoader(train_set, shuffle=True, **options)
    test_loader = DataLoader(test_set, **options)
    net = stock_net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), STOCK_RECIPE.max_lr, STOCK_RECIPE.momentum, nesterov=True)

    def train(batches: Iterable[list[torch.Tensor]]) -> None:
        net.train()
        for x, y in batches:
            loss = F.cross_entropy(net(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(itertools.islice(train_loader, WARM_UP))
    start, correct = time.perf_counter(), 0
    train(train_loader)
    net.eval()
    with torch.no_grad():
        for x, y in test_loader:
            correct += (net(x.to(device)).argmax(1) == y.to(device)).sum().item()
    assert correct > 0.8 * len(test_set), "the stock pipeline did not learn"
    return [time.perf_counter() - start]


def our_epochs(net: nn.Module, recipe: Recipe, device: torch.device, graph: bool = True) -> list[float]:
    """Seconds of each epoch with evaluation on our pipeline; soft labels are taken as given."""
    digits, some = load_mnist(), WARM_UP * recipe.batch_size
    few = Digits(*(tensor[:some] for tensor in digits))
    soft = torch.full((len(digits.train_images), 10), 0.1) if recipe.distillation else None
    few_soft = None if soft is None else soft[:some]
    options = {"device": device, "progress": False, "graph": graph}
    fit(copy.deepcopy(net), replace(recipe, epochs=1), few, soft=few_soft, **options)
    return [record["seconds"] for record in fit(net, recipe, digits, soft=soft, **options)]


def teacher_seconds(job: str, _: None) -> dict[str, float]:
    """Seconds that the teacher of the final step costs: one epoch of its training, and the soft labels it gives."""
    device, digits = torch.device(job), load_mnist()
    teacher = FINAL.teacher()
    epoch = statistics.mean(our_epochs(teacher, replace(FINAL.teacher_recipe, epochs=2), device))
    images = digits.train_images.to(device)
    start = time.perf_counter()
    soft_labels(teacher, images, FINAL.recipe).sum().item()
    return {"epoch": epoch, "soft_labels": time.perf_counter() - start}


@dataclass(frozen=True)
class Contender:
    """Something whose epochs are timed.

    Attributes:
        what: it, in words.
        net: makes the net, for counting its multiply-adds.
        epochs: returns the seconds of each epoch, with evaluation, on a device.
    """

    what: str
    net: Callable[[], nn.Module]
    epochs: Callable[[torch.device], list[float]]


def pipelines() -> dict[str, Contender]:
    """The usual pipeline, the same net on ours, and the final step as shipped."""
    return {
        "stock-0": Contender("usual pipeline, no workers", stock_net, lambda d: stock_epochs(d, 0)),
        "stock-2": Contender("usual pipeline, 2 workers", stock_net, lambda d: stock_epochs(d, 2)),
        "same-net": Contender(
            "the same net on our pipeline", stock_net, lambda d: our_epochs(stock_net(), STOCK_RECIPE, d)
        ),
        "final": Contender("Step 3 as shipped", FINAL.net, lambda d: our_epochs(FINAL.net(), FINAL.recipe, d)),
    }


def changes(device: torch.device) -> dict[str, Contender]:
    """Step 3 as shipped, with one of the changes that made it fast taken out, and with changes that were not made."""
    recipe = replace(FINAL.recipe, epochs=2)
    plain_sgd = functools.partial(_without_fused, torch.optim.SGD)
    whole = variants.changes()["step3-no-crop"]

    def patched(patch: contextlib.AbstractContextManager) -> Callable[[torch.device], list[float]]:
        def epochs(device: torch.device) -> list[float]:
            with patch:
                return our_epochs(FINAL.net(), recipe, device)

        return epochs

    def one_thread(device: torch.device) -> list[float]:
        torch.set_num_threads(1)
        return our_epochs(FINAL.net(), recipe, device)

    found = {
        "shipped": Contender("(none)", FINAL.net, lambda d: our_epochs(FINAL.net(), recipe, d)),
        "norm-first": Contender(
            "pooling after BatchNorm and ReLU",
            variants.NormFirstNet,
            lambda d: our_epochs(variants.NormFirstNet(), recipe, d),
        ),
        "no-crop": Contender("the whole 28x28 pixels", whole.net, lambda d: our_epochs(whole.net(), recipe, d)),
        "affine-grid": Contender(
            "F.affine_grid for one matrix product",
            FINAL.net,
            patched(mock.patch.object(augmentation, "affine_grid", _library_affine_grid)),
        ),
        "sgd": Contender(
            "SGD parameter by parameter, not fused",
            FINAL.net,
            patched(mock.patch.object(torch.optim, "SGD", plain_sgd)),
        ),
    }
    if device.type == "cuda":
        found["plain-loop"] = Contender(
            "plain loop, no CUDA graph", FINAL.net, lambda d: our_epochs(FINAL.net(), recipe, d, graph=False)
        )
        return found
    return found | {
        "nchw": Contender(
            "channels first in memory (NCHW)",
            FINAL.net,
            patched(mock.patch.object(torch, "channels_last", torch.contiguous_format)),
        ),
        "batchnorm": Contender(
            "PyTorch's own BatchNorm",
            FINAL.net,
            patched(mock.patch.object(utils, "fast_batchnorm", contextlib.nullcontext)),
        ),
        "epoch-at-once": Contender(
            "augmentation of a whole epoch at once, not per batch",
            FINAL.net,
            patched(mock.patch.object(utils, "train_epoch", functools.partial(_augmented_at_once, utils.train_epoch))),
        ),
        "relu": Contender("ReLU not in place", FINAL.net, patched(mock.patch.object(F, "relu_", F.relu))),
        "one-thread": Contender("one thread", FINAL.net, one_thread),
    }


def _without_fused(sgd: type[torch.optim.SGD], *args: object, fused: bool, **options: object) -> torch.optim.SGD:
    return sgd(*args, foreach=False, **options)


def _augmented_at_once(
    train_epoch: Callable[..., tuple[float, int, int]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    epoch: int,
    generator: torch.Generator,
    *after_step: Callable[[int], None],
) -> tuple[float, int, int]:
    moved = utils.augment(images, recipe, generator)
    with mock.patch.object(utils, "augment", lambda batch, *_: batch):
        return train_epoch(model, optimizer, moved, labels, recipe, epoch, generator, *after_step)


def _library_affine_grid(theta: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)


def contenders(part: str, device: torch.device) -> dict[str, Contender]:
    """The contenders of a part by name."""
    return pipelines() if part == "pipelines" else changes(device)


def measure(job: tuple[str, str, str], _: None) -> dict[str, object]:
    """Time one contender, in a process of its own."""
    part, name, device_name = job
    device = torch.device(device_name)
    seconds = contenders(part, device)[name].epochs(device)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest
    memory = {"peak_memory": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + workers)}
    if device.type == "cuda":
        memory["peak_gpu_memory"] = torch.cuda.max_memory_allocated(device)
    return {"seconds": seconds, **memory}


def multiply_adds(net: nn.Module) -> int:
    """Multiply-adds of one epoch with evaluation: 60,000 images forward and backward, 10,000 forward."""
    x = torch.zeros(2, 1, 28, 28)
    with FlopCounterMode(display=False) as training:
        net(x).sum().backward()
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        net(x)
    return (training.get_total_flops() * 30_000 + evaluation.get_total_flops() * 5_000) // 2


def peak_multiply_adds(job: str, _: None) -> float:
    """Multiply-adds per second of a large float32 matrix product, the best of ten."""
    a, seconds = torch.randn(4096, 4096, device=job), []
    for _repeat in range(10):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 4096**3 / min(seconds)


def time_contenders(part: str, device: torch.device) -> dict[str, object]:
    """Measure the contenders of a part in turn, and the machine's limit before, between and after."""
    found, threads = contenders(part, device), torch.get_num_threads()
    results = {name: {"what": c.what, "multiply_adds": multiply_adds(c.net()), "runs": []} for name, c in found.items()}
    peaks = []
    with tqdm(total=REPEATS * len(found), desc=part, unit="measurement") as bar:
        for _ in range(REPEATS):
            peaks += in_processes(peak_multiply_adds, [str(device)], threads=threads)
            for name in found:
                results[name]["runs"] += in_processes(measure, [(part, name, str(device))], threads=threads)
                bar.update()
                tqdm.write(
                    f"{found[name].what}: {statistics.mean(results[name]['runs'][-1]['seconds']):.2f} s per epoch"
                )
    return {"peak_multiply_adds": max(peaks), "threads": threads, "contenders": results}


def time_seeds(device: torch.device) -> dict[str, object]:
    """Wall time, start included, of many random seeds with one command and of single runs one after the other."""
    count = SEEDS[device.type]
    singles = [["--seed", str(seed)] for seed in range(min(count, 4))]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for seeds in [["--seeds", str(count)], *singles]:
            out = Path(folder) / seeds[0].strip("-")
            command = [sys.executable, "train.py", "--step", "3", "--device", str(device), "--out", str(out), *seeds]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode == 2:
                raise OSError(done.stderr.strip())
            seconds.append(time.perf_counter() - start)
            print(f"{' '.join(seeds)}: {seconds[-1]:.1f} s", flush=True)
    return {"count": count, "together": seconds[0], "single": seconds[1:]}


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts asked for and write them beside the others."""
    parser = OneLineParser(prog="bench.py", description="Measure seconds per epoch.", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.exit(2, f"bench.py: no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}\n")
    try:
        device = pick_device(options.device)
        load_mnist()
    except (utils.DataError, ValueError) as error:
        parser.exit(2, f"bench.py: {error}\n")
    path = RESULTS / f"bench_{device.type}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    at_commit = commit()  # before the first part is written, which changes a file of the repository
    for part in options.parts or PARTS:
        if part == "seeds":
            measured = time_seeds(device)
        elif part == "teacher":
            [measured] = in_processes(teacher_seconds, [str(device)], threads=torch.get_num_threads())
        else:
            measured = time_contenders(part, device)
        results[part] = measured | {
            "hardware": hardware(device),
            "torch_version": torch.__version__,
            "commit": at_commit,
        }
        write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
