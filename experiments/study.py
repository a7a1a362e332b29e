"""The study: many short trainings that differ in one thing, each over several random seeds.

    python -m experiments.study                     everything that is missing
    python -m experiments.study changes/step3-no    only runs whose name contains one of these words
    python -m experiments.study --device cuda       on a GPU; the default is the CPU

`search` is what was tried on the way to the final step, `changes` are single changes to the steps and `sizes` are
candidates for smaller nets. They are judged on held-out training images, so that the test set has no part in a
choice: random seed 0 on the last 10,000, the others on other sixths, so that a difference does not hang on the images
of one. `prior`, and `small` with the best candidates, train on all images and report on the test set. One file is
written per finished run, `results/study/GROUP/VARIANT/seed_K.json`; a second call runs what is missing, in as many
single-thread processes as there are cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from experiments import search, variants
from experiments.variants import Variant
from model import STEPS
from tinymnist import runs
from tinymnist.parallel import cores, in_processes
from train import OneLineParser, teachers_soft_labels
from utils import DataError, Digits, fit, load_mnist, pick_device, validation_split


@dataclass(frozen=True)
class Group:
    """A part of the study.

    Attributes:
        variants: makes its variants by name.
        held_out: whether it is judged on held-out training images, not on the test set.
        seeds: how many random seeds each variant is trained from.
        more: how many instead, for those that are trained from more because they were close.
    """

    variants: Callable[[], dict[str, Variant]]
    held_out: bool
    seeds: int
    more: Mapping[str, int] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """How many random seeds a variant is trained from."""
        return self.more.get(name, self.seeds)


GROUPS = {
    "search": Group(search.trials, True, 1, search.MORE_SEEDS),
    "changes": Group(variants.changes, True, 5),
    "prior": Group(variants.prior, False, 3),
    "sizes": Group(variants.sizes, True, 2, dict.fromkeys(variants.CLOSE_SIZES, 3)),
    "small": Group(variants.small, False, 5),
}
PARTS = (5, 0, 1, 2, 3, 4)  # the sixth of the training images that is held out, by random seed
SPLITS = ("validation", "validation-0", "validation-1", "validation-2", "validation-3", "validation-4")
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
    """MNIST as it is ("test"), or one sixth of its training images held out (SPLITS)."""
    return load_mnist() if split == "test" else validation_split(load_mnist(), PARTS[SPLITS.index(split)])


def split_of(job: Job) -> str:
    """What a run is judged on."""
    group, _, seed = job
    return SPLITS[seed] if GROUPS[group].held_out else "test"


def taught(split: str, device: str) -> tuple[str, np.ndarray]:
    """A split and the soft labels of its training images; the teacher of Step 3 is trained if it is not there."""
    seed = 0 if split == "test" else SPLITS.index(split)
    place = runs.RESULTS / ("teacher" if split == "test" else "study/teacher") / f"seed_{seed}.json"
    facts = {"data": "mnist", "split": split, "seed": seed, "progress": False}
    recipe = STEPS[3].teacher_recipe
    return split, teachers_soft_labels(3, images(split), torch.device(device), [place], recipe, **facts).numpy()


def run_one(job: Job, shared: tuple[dict[str, np.ndarray], str]) -> None:
    """Train one variant from one random seed, and write the file."""
    name, variant_name, seed = job
    by_split, device = shared[0], torch.device(shared[1])
    split, variant = split_of(job), GROUPS[name].variants()[variant_name]
    torch.manual_seed(seed)
    net = variant.net()
    soft = torch.from_numpy(by_split[split]) if variant.recipe.distillation else None
    with variant.patch():
        history = fit(net, variant.recipe, images(split), seed=seed, device=device, progress=False, soft=soft)
    runs.save_run(
        record_path(*job),
        net,
        variant.recipe,
        history,
        step=variant.step,
        seed=seed,
        device=device,
        split=split,
        weights=False,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, several processes at a time."""
    parser = OneLineParser(prog="study.py", description="Run what is missing of the study.", allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="WORD", help="run only what has one of these in GROUP/VARIANT")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(arguments)
    try:
        device = pick_device(options.device)
        jobs = [job for job in all_jobs() if not record_path(*job).exists()]
        if options.words:
            jobs = [job for job in jobs if any(word in f"{job[0]}/{job[1]}" for word in options.words)]
        splits = {split_of(job) for job in jobs if GROUPS[job[0]].variants()[job[1]].recipe.distillation}
        shared = dict(in_processes(taught, sorted(splits), str(device), cores())), str(device)
        for _ in tqdm(in_processes(run_one, jobs, shared, cores()), total=len(jobs), unit="run", smoothing=0):
            pass
    except (DataError, ValueError, OSError) as error:
        parser.exit(2, f"study.py: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
