"""The benchmark: seconds per epoch of the usual pipeline and of ours, in turn, in one run on one machine.

    python -m experiments.bench                     all parts
    python -m experiments.bench pipelines seeds     these parts; the others stay as they were measured
    python -m experiments.bench --device cpu        default: the best device there is

Each measurement is a fresh process, so that none finds the memory or the caches of another, and every
contender is measured once before any is measured again. What comes out is written to
`results/bench_cpu.json` or `results/bench_cuda.json`.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("bench.py")

import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.nets import MakeNet, prior_net
from model import STEPS, FinalNet
from tinymnist.cli import OneLineParser, run_program
from tinymnist.data import default_root
from tinymnist.parallel import in_processes
from tinymnist.runs import REPOSITORY, RESULTS, commit, hardware, write_json
from utils import Batches, DataError, Digits, Recipe, fit, load_mnist, normalize, pick_device

REPEATS = 3
WARM_UP = 20  # steps before the time counts, in which libraries make their kernels
PARTS = ("pipelines", "changes", "seeds")
STOCK_RECIPE = Recipe(epochs=1, max_lr=0.01, rotation=7.0)
CHANGES_RECIPE = replace(STEPS[3].recipe, epochs=2)
# A typical earlier solution with ReLU before BatchNorm: 7,830 parameters.
stock_net = functools.partial(prior_net, "c10 c16 c8 P c16 c16 c10 GAP lin", norm_last=True)


def stock_epochs(device: torch.device, workers: int) -> list[float]:
    """Seconds of one epoch with evaluation as earlier solutions do it: data set, PIL images, DataLoader."""
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
    return [time.perf_counter() - start]


def our_epochs(net: MakeNet, recipe: Recipe, digits: Digits, device: torch.device, **options: Any) -> list[float]:
    """Seconds of each epoch with evaluation on our pipeline; the options are those of `fit`."""
    few = Digits(*(tensor[: WARM_UP * recipe.batch_size] for tensor in digits))
    fit(net(), replace(recipe, epochs=1), few, device=device, progress=False, **options)
    return fit(net(), recipe, digits, device=device, progress=False, **options)["seconds"]


class NormFirstNet(FinalNet):
    """Step 3 with the usual order: convolution, BatchNorm, ReLU, and pooling last."""

    def classify(self, x: Tensor) -> Tensor:
        """float (B, 1, 24, 24) to logits (B, 10)."""
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x)))
        x = self.pool(F.relu(self.norm3(self.conv3(x))))
        x = self.pool(F.relu(self.norm4(self.conv4(x))))
        return self.head(x.flatten(1))


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


@dataclass(frozen=True)
class Contender:
    """What is timed; what returns the seconds of each epoch on a device; and its CPU threads."""

    what: str
    epochs: Callable[[torch.device], list[float]]
    threads: int | None = None  # as many as PyTorch takes


def ours(what: str, net: MakeNet, recipe: Recipe, threads: int | None = None, **options: Any) -> Contender:
    """A net on our pipeline; the options are those of `fit`."""
    return Contender(what, lambda device: our_epochs(net, recipe, load_mnist(), device, **options), threads)


def contenders(part: str, device: torch.device) -> dict[str, Contender]:
    """The contenders of a part by name."""
    if part == "pipelines":  # the usual one, the same net on ours, and the final step
        return {
            "stock-0": Contender("usual pipeline, no workers", lambda d: stock_epochs(d, 0)),
            "stock-2": Contender("usual pipeline, 2 workers", lambda d: stock_epochs(d, 2)),
            "same-net": ours("the same net on our pipeline", stock_net, STOCK_RECIPE),
            "final": ours("Step 3 as shipped", FinalNet, STEPS[3].recipe),
        }
    step = functools.partial(ours, net=FinalNet, recipe=CHANGES_RECIPE)
    found = {
        "shipped": step("(none)"),
        "norm-first": step("pooling after BatchNorm and ReLU", net=NormFirstNet),
        "channels-first": step("maps laid out channels first", net=ChannelsFirstNet),
        "batch-128": step(
            "batches of 128 at half the rate", recipe=replace(CHANGES_RECIPE, batch_size=128, max_lr=0.1, average=0.998)
        ),
    }
    if device.type == "cuda":
        return found | {"graph": step("CUDA graphs in place of the plain loop", graph=True)}
    return found | {
        "one-thread": step("one thread", threads=1),
        "affine-grid": step("one thread, F.affine_grid in the augmentation", threads=1, batches=library_batches),
    }


def measure(job: tuple[str, str, str], _: None) -> dict[str, Any]:
    """Time one contender, in a process of its own."""
    part, name, device_name = job
    device = torch.device(device_name)
    return {"seconds": contenders(part, device)[name].epochs(device)}


def time_contenders(part: str, device: torch.device) -> dict[str, Any]:
    """Measure the contenders of a part in turn."""
    found, threads = contenders(part, device), torch.get_num_threads()
    results: dict[str, dict[str, Any]] = {
        name: {"what": c.what, "threads": c.threads or threads, "runs": []} for name, c in found.items()
    }
    for _ in range(REPEATS):
        for name, result in results.items():
            [run] = in_processes(measure, [(part, name, str(device))], threads=result["threads"])
            result["runs"].append(run)
            print(f"{result['what']}: {statistics.mean(run['seconds']):.2f} s", flush=True)
    return {"threads": threads, "contenders": results}


def time_seeds(device: torch.device) -> dict[str, Any]:
    """Wall time, start included, of many seeds with one command, and of four single runs one after the other."""
    count, seconds = 100 if device.type == "cuda" else 4, []
    command = [sys.executable, "train.py", "--step", "3", "--device", str(device), "--out"]
    for seeds, runs in [(f"--seeds={count}", count), *((f"--seed={seed}", 1) for seed in range(4))]:
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            done = subprocess.run([*command, out, seeds], cwd=REPOSITORY, capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
            if len(list(Path(out).rglob("seed_*.json"))) < runs:
                raise OSError(done.stderr.strip().rpartition("\n")[2])
        print(f"{seeds}: {seconds[-1]:.1f} s", flush=True)
    return {"count": count, "together": seconds[0], "single": seconds[1:]}


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts asked for and write them beside the others."""
    command = OneLineParser("bench.py", __doc__)
    command.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    options = command.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        command.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    try:
        device = pick_device(options.device)
        load_mnist()  # it may have to download
        path = RESULTS / f"bench_{device.type}.json"
        results = json.loads(path.read_bytes()) if path.exists() else {}
        facts = {"hardware": hardware(device), "torch_version": torch.__version__, "commit": commit()}
        for part in options.parts or PARTS:
            results[part] = (time_seeds(device) if part == "seeds" else time_contenders(part, device)) | facts
            write_json(path, results)
            print(f"written: {path}")
    except (DataError, ValueError, OSError) as error:
        return command.failed(error)
    return 0


if __name__ == "__main__":
    run_program("bench.py", main)
