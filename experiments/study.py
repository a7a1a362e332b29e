"""The study: single changes to a step, each over several random seeds, judged on held-out training images.

Each variant is written as a difference from its step. The test set is not read. One file is written per
finished run, in `results/study/VARIANT/seed_K.json`; a second call runs what is missing, in as many
single-thread processes as there are cores.

    python -m experiments.study                    everything
    python -m experiments.study step2-no    only variants whose name contains one of these words
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model import STEPS, FinalNet, RegularizedNet
from tinymnist.parallel import cores, in_processes
from tinymnist.runs import RESULTS
from utils import STD, Recipe, fit, load_mnist, save_run, validation_split

SEEDS = range(5)


@dataclass(frozen=True)
class Variant:
    """A step with one thing changed.

    Attributes:
        step: the step that it differs from.
        change: the difference in words.
        net: makes the net.
        recipe: how it is trained.
    """

    step: int
    change: str
    net: Callable[[], nn.Module]
    recipe: Recipe


class BigKernelNet(RegularizedNet):
    """Step 2 with the head of Step 1: a second pooling and a 4x4 kernel, for the fifth convolution and GAP."""

    def __init__(self) -> None:
        super().__init__()
        self.conv5, self.norm5, self.gap = nn.Conv2d(16, 10, 4), nn.Identity(), nn.Identity()
        self.head = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.conv1(x)))
        x = self.drop(self.pool(F.relu_(self.norm2(self.conv2(x)))))
        x = F.relu_(self.norm3(self.conv3(x)))
        x = self.pool(self.drop(F.relu_(self.norm4(self.conv4(x)))))
        return self.head(self.conv5(x))


def step2_without_batchnorm() -> nn.Module:
    """Step 2 with a bias in each convolution in place of BatchNorm."""
    net = RegularizedNet()
    for i in range(1, 6):
        conv = getattr(net, f"conv{i}")
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
        setattr(net, f"norm{i}", nn.Identity())
    return net


def step2_without_dropout() -> nn.Module:
    """Step 2 with nothing in the place of its dropout."""
    net = RegularizedNet()
    net.drop = nn.Identity()
    return net


class AveragedHeadNet(FinalNet):
    """Step 3 with global average pooling over the 3x3 map, and the freed parameters in wider layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.norm2 = nn.Conv2d(8, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18)
        self.conv3, self.norm3 = nn.Conv2d(18, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18)
        self.conv4, self.norm4 = nn.Conv2d(18, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.pool(self.conv1(x))))
        x = F.relu_(self.norm2(self.conv2(x)))
        x = F.relu_(self.norm3(self.pool(self.conv3(x))))
        x = F.relu_(self.norm4(self.pool(self.conv4(x))))
        return self.head(x.mean((2, 3)))


class NormFirstNet(FinalNet):
    """Step 3 with the usual order: convolution, BatchNorm, ReLU, and pooling last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu_(self.norm1(self.conv1(x))))
        x = F.relu_(self.norm2(self.conv2(x)))
        x = self.pool(F.relu_(self.norm3(self.conv3(x))))
        x = self.pool(F.relu_(self.norm4(self.conv4(x))))
        return self.head(x.flatten(1))


class MeanSubtractedNet(FinalNet):
    """Step 3 on the usual input of mean 0, in which the background is not what the convolutions pad with."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.1307 / STD)


def variants() -> dict[str, Variant]:
    """All variants by name; "stepK" is the step unchanged, on the same footing."""
    second, third = STEPS[2].recipe, STEPS[3].recipe
    plain = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0}
    return {
        "step2": Variant(2, "(none)", STEPS[2].net, second),
        "step2-no-batchnorm": Variant(2, "no BatchNorm", step2_without_batchnorm, second),
        "step2-no-dropout": Variant(2, "no dropout", step2_without_dropout, second),
        "step2-big-kernel": Variant(2, "4x4 kernel for the fifth convolution and GAP", BigKernelNet, second),
        "step3": Variant(3, "(none)", STEPS[3].net, third),
        "step3-no-augmentation": Variant(3, "no augmentation", STEPS[3].net, replace(third, **plain)),
        "step3-step-schedule": Variant(3, "step schedule for one-cycle", STEPS[3].net, replace(third, schedule="step")),
        "step3-no-average": Variant(3, "no weight average", STEPS[3].net, replace(third, average=0.0)),
        "step3-gap": Variant(3, "GAP and wider layers for the flattened map", AveragedHeadNet, third),
        "step3-mean-subtracted": Variant(3, "mean subtracted from the input", MeanSubtractedNet, third),
        "step3-norm-first": Variant(3, "pooling after BatchNorm and ReLU", NormFirstNet, third),
    }


def run_one(job: tuple[str, int], _: None) -> None:
    """Train one variant from one random seed, and write the file."""
    name, seed = job
    variant = variants()[name]
    torch.manual_seed(seed)
    net = variant.net()
    history = fit(net, variant.recipe, validation_split(load_mnist()), seed=seed, progress=False)
    save_run(
        RESULTS / "study" / name / f"seed_{seed}.json",
        net,
        variant.recipe,
        history,
        step=variant.step,
        seed=seed,
        device=torch.device("cpu"),
        split="validation",
        weights=False,
    )


def main(words: list[str]) -> int:
    """Run what is missing, several processes at a time."""
    chosen = [name for name in variants() if not words or any(word in name for word in words)]
    jobs = [(name, seed) for seed in SEEDS for name in chosen]
    jobs = [job for job in jobs if not (RESULTS / "study" / job[0] / f"seed_{job[1]}.json").exists()]
    for _ in tqdm(in_processes(run_one, jobs, processes=cores()), total=len(jobs), unit="run", smoothing=0):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
