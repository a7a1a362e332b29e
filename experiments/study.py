"""The study: the trainings behind the published results.

    python -m experiments.study choices              what is missing of a group
    python -m experiments.study steps/step3          of one variant
    python -m experiments.study steps --seeds 8      of seeds 0 to 7 of each
    python -m experiments.study steps --device cuda  on a GPU; the default is the CPU

`experiments/variants.py` says what is trained. Each finished run is added to `results/GROUP.jsonl` at once, so a call
that was interrupted goes on where it stopped. A record whose definition is no longer that of the variant does not
count: it is named, and its run is made again. There is one run per core at a time, with one thread.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Container, Mapping
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from experiments.variants import GROUPS
from tinymnist import runs
from tinymnist.cli import OneLineParser, whole_number
from tinymnist.data import SIXTHS
from tinymnist.parallel import in_processes, processes_at_once
from tinymnist.runs import Run, State
from utils import DataError, load_mnist, pick_device, train_run


class Job(NamedTuple):
    """A run to be made."""

    group: str
    variant: str
    seed: int


def split_of(group: str, seed: int) -> str:
    """What a run is tested on: the test set, or the sixth of the training images that belongs to its seed."""
    return SIXTHS[seed % 6] if GROUPS[group].held_out else "test"


def definition_of(job: Job) -> Run:
    """What the record of a run has to say to count as done."""
    chosen, split = GROUPS[job.group].variants()[job.variant], split_of(job.group, job.seed)
    definition = runs.definition(chosen.net, chosen.recipe, job.seed, split, **chosen.openings)
    if "<" in json.dumps(definition):  # <lambda>, <locals>
        name = f"{job.group}/{job.variant}"
        raise ValueError(f"{name}: a record can only name what is defined at the top level of a module")
    return definition


def finished(group: str) -> tuple[dict[Job, Run], list[str]]:
    """The records of a group that count as done, and a line for each that does not, with the reason.

    Raises:
        ValueError: a record is damaged; the message names it.
    """
    done: dict[Job, Run] = {}
    stale = []
    names = GROUPS[group].variants()
    definitions: dict[str, Run] = {}
    for run in runs.read_runs(runs.RESULTS / f"{group}.jsonl"):
        job = Job(group, run["variant"], run["seed"])
        reasons = ["no such variant, delete its line"]
        if job.variant in names:
            if job.variant not in definitions:  # once for all seeds, since it makes the net
                definitions[job.variant] = definition_of(job)
            own = {"seed": job.seed, "split": split_of(group, job.seed)}
            reasons = runs.differences(run, definitions[job.variant] | own)
        if reasons:
            stale.append(
                f"{group}/{run['variant']}, seed {run['seed']}, is no run of today's code: {'; '.join(reasons)}"
            )
        else:
            done[job] = run
    return done, stale


def jobs_of(names: list[str], count: int | None = None) -> list[Job]:
    """The runs of some groups and variants, a first seed of everything before a second.

    Args:
        names: GROUP or GROUP/VARIANT.
        count: seeds of each variant, in place of the number that is published.

    Raises:
        ValueError: there is no such group or variant.
    """
    jobs = []
    for name in names:
        group, _, variant = name.partition("/")
        if group not in GROUPS or variant not in ("", *GROUPS[group].variants()):
            known = GROUPS[group].variants() if group in GROUPS else GROUPS
            raise ValueError(f"no {name!r}: choose from {', '.join(known)}")
        chosen = {v: found for v, found in GROUPS[group].variants().items() if variant in ("", v)}
        jobs += [Job(group, v, seed) for v, found in chosen.items() for seed in range(count or found.seeds)]
    return sorted(dict.fromkeys(jobs), key=lambda job: job.seed)


def train_job(job: Job, device: str) -> tuple[Run, State]:
    """Train one run, in a process of its own; returns its record and its weights."""
    group, variant, seed = job
    chosen, split, graph = GROUPS[group].variants()[variant], split_of(group, seed), device.startswith("cuda")
    digits = load_mnist(split=split)
    run, state = train_run(chosen.net, chosen.recipe, digits, seed, split, device, graph=graph, **chosen.openings)
    return {"group": group, "variant": variant} | run, state


def published_weights(job: Job) -> Mapping[int, State] | None:
    """The weights by seed that are published of a variant so far; None if those of this run are not to be.

    Raises:
        OSError: their file is damaged; the message names it.
    """
    path = runs.RESULTS / f"{job.variant}.pt"
    if job.seed >= GROUPS[job.group].weights.get(job.variant, 0):
        return None
    return runs.read_weights(path) if path.exists() else {}


def is_done(job: Job, done: Container[Job]) -> bool:
    """Whether the record of a run is there, and its weights, if they are to be published."""
    weights = published_weights(job)
    return job in done and (weights is None or job.seed in weights)


def keep(run: Run, state: State) -> None:
    """Write the weights of a run, if they are to be published, and then its record."""
    job = Job(run["group"], run["variant"], run["seed"])
    if (others := published_weights(job)) is not None:
        weights = dict(sorted({**others, job.seed: state}.items()))
        runs.write_weights(runs.RESULTS / f"{job.variant}.pt", weights)
    runs.save_run(runs.RESULTS / f"{job.group}.jsonl", run)


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing.

    Returns:
        the exit code: 0; 2 for bad input; 130 if interrupted.
    """
    command = OneLineParser("study.py", __doc__)
    command.add_argument("names", nargs="+", metavar="GROUP[/VARIANT]", help=f"the groups are {', '.join(GROUPS)}")
    command.add_argument(
        "--seeds", type=whole_number(1, 100_000), metavar="N", help="seeds 0 to N-1 (default: as published)"
    )
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or xpu")
    options = command.parse_args(arguments)
    try:
        device = pick_device(options.device)
        load_mnist()  # it may have to download
        jobs = jobs_of(options.names, options.seeds)
        with FileLock(runs.RESULTS / ".study.lock", timeout=0):
            done: set[Job] = set()
            for group in dict.fromkeys(job.group for job in jobs):
                found, stale = finished(group)
                done |= found.keys()
                for line in stale:
                    print(line, flush=True)
            missing = [job for job in jobs if not is_done(job, done)]
            json.dumps([definition_of(job) for job in missing], allow_nan=False)  # what fails now is not trained first
            runs.check_writable(runs.RESULTS)
            made = in_processes(functools.partial(train_job, device=str(device)), missing, processes_at_once(device))
            for run, state in tqdm(made, total=len(missing), unit="run", smoothing=0):
                keep(run, state)
        return 0
    except Timeout:
        return command.failed(OSError(f"another study is writing to {runs.RESULTS}: wait for its end"))
    except (DataError, ValueError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    sys.exit(main())
