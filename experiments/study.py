"""The study: many short trainings that differ in one thing, each over several random seeds.

    python -m experiments.study                     everything that is missing
    python -m experiments.study changes/step3-no    only runs whose name contains one of these words

`search` is what was tried on the way to the final step and `changes` are single changes to the steps, both on
10,000 held-out training images, so that the test set has no part in a choice; `prior` and `small` train on all
images and report on the test set. One file is written per finished run, `results/study/GROUP/VARIANT/seed_K.json`;
a second call runs what is missing, in as many single-thread processes as there are cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from experiments import search, variants
from experiments.variants import Variant
from model import STEPS
from tinymnist import runs
from tinymnist.parallel import cores, in_processes
from utils import Digits, fit, load_mnist, save_run, soft_labels, validation_split


@dataclass(frozen=True)
class Group:
    """A part of the study.

    Attributes:
        variants: makes its variants by name.
        split: "validation" or "test".
        seeds: how many random seeds each variant is trained from.
        close: variants that are trained from three at least, because they were close.
    """

    variants: Callable[[], dict[str, Variant]]
    split: str
    seeds: int
    close: frozenset[str] = frozenset()

    def count(self, name: str) -> int:
        """How many random seeds a variant is trained from."""
        return max(self.seeds, 3) if name in self.close else self.seeds


GROUPS = {
    "search": Group(search.trials, "validation", 1, search.CLOSE),
    "changes": Group(variants.changes, "validation", 5),
    "prior": Group(variants.prior, "test", 3),
    "small": Group(variants.small, "test", 5),
}
Job = tuple[str, str, int]


def record_path(group: str, name: str, seed: int) -> Path:
    """Where the record of a run goes."""
    return runs.RESULTS / "study" / group / name / f"seed_{seed}.json"


def load_study(group: str, name: str) -> list[runs.Run]:
    """The runs of a variant, all random seeds.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    return runs.load_runs(f"study/{group}/{name}", GROUPS[group].count(name))


def all_jobs() -> list[Job]:
    """Every run of the study: group, variant and random seed."""
    jobs = [
        (group, name, seed) for group, g in GROUPS.items() for name in g.variants() for seed in range(g.count(name))
    ]
    return sorted(jobs, key=lambda job: job[2])  # a first random seed of everything, then a second


def images(split: str) -> Digits:
    """MNIST, or its training images split for validation."""
    return validation_split(load_mnist()) if split == "validation" else load_mnist()


def teachers_soft_labels(split: str) -> np.ndarray:
    """What the teacher of Step 3 makes of the training images of a split; it is trained if it is not there."""
    path = runs.RESULTS / ("teacher" if split == "test" else "study/teacher") / "seed_0.json"
    step, digits = STEPS[3], images(split)
    torch.manual_seed(0)
    teacher = step.teacher().to(memory_format=torch.channels_last)
    if not path.exists():
        history = fit(teacher, step.teacher_recipe, digits)
        save_run(path, teacher, step.teacher_recipe, history, step=3, seed=0, device=torch.device("cpu"), split=split)
    teacher.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
    return soft_labels(teacher, digits.train_images, step.recipe).numpy()


def run_one(job: Job, taught: dict[str, np.ndarray]) -> None:
    """Train one variant from one random seed, and write the file."""
    name, variant_name, seed = job
    group = GROUPS[name]
    variant = group.variants()[variant_name]
    torch.manual_seed(seed)
    net = variant.net()
    soft = torch.from_numpy(taught[group.split]) if variant.recipe.distillation else None
    with variant.patch():
        history = fit(net, variant.recipe, images(group.split), seed=seed, progress=False, soft=soft)
    runs.save_run(
        record_path(*job),
        net,
        variant.recipe,
        history,
        step=variant.step,
        seed=seed,
        device=torch.device("cpu"),
        split=group.split,
        weights=False,
    )


def main(words: list[str]) -> int:
    """Run what is missing, several processes at a time."""
    jobs = [job for job in all_jobs() if not words or any(word in f"{job[0]}/{job[1]}" for word in words)]
    jobs = [job for job in jobs if not record_path(*job).exists()]
    splits = {GROUPS[group].split for group, name, _ in jobs if GROUPS[group].variants()[name].recipe.distillation}
    taught = {split: teachers_soft_labels(split) for split in sorted(splits)}
    for _ in tqdm(in_processes(run_one, jobs, taught, processes=cores()), total=len(jobs), unit="run", smoothing=0):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
