"""The study: short trainings that differ in one thing, each over several random seeds.

    python -m experiments.study                       everything that is missing
    python -m experiments.study prior prior/A  only runs whose GROUP/VARIANT/ contains one of these
    python -m experiments.study --seeds 8             no more than the first 8 random seeds of each variant
    python -m experiments.study --device cuda         on a GPU; the default is the CPU

`experiments/variants.py` says what is trained. Held-out groups are judged on training images, so that the test set
has no part in a choice: random seed K holds out one of the six sixths, the same for all variants. One file is
written per finished run, `results/study/GROUP/VARIANT/seed_K.json`; a second call trains what is missing, in as
many single-thread processes as there are cores.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("study.py")

from pathlib import Path

import torch
from tqdm import tqdm

from experiments.variants import GROUPS
from tinymnist import runs
from tinymnist.cli import OneLineParser, run_program, whole_number
from tinymnist.data import HELD_OUT, load_split
from tinymnist.parallel import in_processes, processes_at_once
from utils import DataError, load_mnist, pick_device, train_run

Job = tuple[str, str, int]


def record_path(group: str, name: str, seed: int) -> Path:
    """Where the record of a run goes."""
    return runs.RESULTS / "study" / group / name / f"seed_{seed}.json"


def split_of(group: str, seed: int) -> str:
    """What a run is judged on: the test set, or the sixth of the training images that belongs to its random seed."""
    return list(HELD_OUT)[seed % len(HELD_OUT)] if GROUPS[group].held_out else "test"


def all_jobs(most: int | None = None) -> list[Job]:
    """Every run of the study: group, variant and random seed, a first random seed of everything before a second."""
    jobs = [
        (group, name, seed)
        for group, members in GROUPS.items()
        for name in members.variants()
        for seed in range(min(members.seeds, most or members.seeds))
    ]
    return sorted(jobs, key=lambda job: job[2])


def run_job(job: Job, device: str) -> runs.Run:
    """Train one variant from one random seed, and write the run."""
    group, name, seed = job
    variant, split = GROUPS[group].variants()[name], split_of(group, seed)
    facts: runs.Run = {"group": group, "variant": name, "base": variant.base, "change": variant.change}
    facts |= {"seed": seed, "data": "mnist", "split": split}
    options = {"graph": torch.device(device).type == "cuda", **variant.options(split)}
    path, weights = record_path(*job), GROUPS[group].weights
    return train_run(path, variant.net, variant.recipe, load_split(split), facts, device, weights=weights, **options)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, several processes at a time.

    Returns:
        the exit code: 0; 1 if a training came to nothing; 2 for bad input; 130 if interrupted.
    """
    command = OneLineParser("study.py", __doc__)
    command.add_argument("names", nargs="*", metavar="NAME", help="run only what has one of these in GROUP/VARIANT/")
    command.add_argument("--seeds", type=whole_number(1, 100_000), metavar="N", help="only random seeds 0 to N-1")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or xpu")
    options = command.parse_args(arguments)
    try:
        device = pick_device(options.device)
        load_mnist()
        jobs = all_jobs(options.seeds)
        if options.names:
            jobs = [job for job in jobs if any(name in f"{job[0]}/{job[1]}/" for name in options.names)]
        if not jobs:
            raise ValueError(f"no variant has {' or '.join(options.names)} in its name: see experiments/variants.py")
        with runs.claimed(runs.RESULTS / "study"):
            missing = [job for job in jobs if not runs.read_run(record_path(*job), {"seed": job[2]}, weights=False)]
            made = in_processes(run_job, missing, str(device), processes_at_once(device))
            bar = tqdm(made, total=len(missing), unit="run", smoothing=0)
            return int(any([command.failure(run) for run in bar]))
    except (DataError, ValueError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    run_program("study.py", main)
