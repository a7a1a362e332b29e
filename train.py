"""Train a step from the command line.

    python train.py --step 3                          one run, random seed 0, on the best device there is
    python train.py --step 3 --seed 7 --threads 1     one run, random seed 7
    python train.py --step 3 --seeds 20               random seeds 0 to 19, as many at a time as there are cores
    torchrun --nproc-per-node 8 train.py --step 3 --seeds 100    shared out over 8 GPUs or machines

Each run is written to OUT/stepK/seed_N.json, and its weights beside it as .pt. With --seeds a run that is already
there is kept. The exit code is 0 if each run met the step's target, 1 if one missed it, 2 for bad input and 130
after Ctrl-C. A training that comes to nothing, for example because its loss is not finite, leaves seed_N.failed.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("train.py")

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model import STEPS
from tinymnist.cli import OneLineParser, run_program, whole_number
from tinymnist.parallel import Ranks, in_processes, processes_at_once, torchrun_ranks
from tinymnist.runs import Run, check_destination, check_writable, claimed, last_accuracies, meets, read_run
from utils import (
    DataError,
    Digits,
    Recipe,
    count_parameters,
    load_drawn,
    load_mnist,
    pick_device,
    receptive_field,
    receptive_field_table,
    train_run,
    validation_split,
)


def parser() -> OneLineParser:
    """The command line."""
    found = OneLineParser("train.py", __doc__)
    add = found.add_argument
    add("--step", type=int, choices=sorted(STEPS), required=True, help="which of the three steps")
    seeds = found.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, metavar="K", help="default: 0")
    seeds.add_argument("--seeds", type=whole_number(1, 100_000), metavar="N", help="train random seeds 0 to N-1")
    add("--threads", type=whole_number(1, 1024), metavar="T", help="CPU threads per net (default: all; --seeds: 1)")
    add("--epochs", type=whole_number(1, 100_000), metavar="E", help="default: as in the step's recipe")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps or xpu")
    add("--graph", action="store_true", help="on a CUDA device, replay the passes as CUDA graphs")
    add("--data", metavar="DIR|drawn", help="folder with the files of MNIST, or drawn: digits from fonts")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs (git ignores it)")
    held_out = "hold out the last sixth of the training images"
    add("--validate", dest="split", action="store_const", const="validation", default="test", help=held_out)
    add("--summary", action="store_true", help="show the net and its receptive field, train nothing")
    return found


def show_summary(number: int) -> None:
    """Print layers, parameters and receptive field of a step's net."""
    from torchsummary import summary

    net = STEPS[number].net()
    summary(net, (1, 28, 28), device="cpu")
    print(f"\nReceptive field, in pixels of the 28x28 image:\n\n{receptive_field_table(receptive_field(net))}")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The step's recipe, with the number of epochs that was asked for."""
    recipe = STEPS[options.step].recipe
    return replace(recipe, epochs=options.epochs or recipe.epochs)


def expected_run(options: argparse.Namespace, seed: int) -> Run:
    """What the record of a random seed says about the experiment."""
    data = "drawn" if options.data == "drawn" else "mnist"
    recipe = asdict(recipe_of(options))
    return {"step": options.step, "seed": seed, "data": data, "split": options.split, "recipe": recipe}


def record_path(options: argparse.Namespace, seed: int) -> Path:
    """Where the record of a random seed goes."""
    return options.out / f"step{options.step}" / f"seed_{seed}.json"


def load_data(options: argparse.Namespace) -> Digits:
    """MNIST or drawn digits, with the held-out split if asked for."""
    digits = load_drawn() if options.data == "drawn" else load_mnist(options.data)
    return validation_split(digits) if options.split == "validation" else digits


def train(options: argparse.Namespace, seed: int, digits: Digits, device: torch.device, progress: bool = True) -> Run:
    """Train the step from a random seed, and write the run."""
    expected = expected_run(options, seed)
    facts = {name: expected[name] for name in ("step", "seed", "data", "split")}
    net, path = STEPS[options.step].net, record_path(options, seed)
    return train_run(path, net, recipe_of(options), digits, facts, device, progress, graph=options.graph)


def train_in_process(job: tuple[argparse.Namespace, int, str], arrays: list[np.ndarray]) -> Run:
    """`train` in a process of `run_many`, silently."""
    options, seed, device = job
    return train(options, seed, Digits(*map(torch.from_numpy, arrays)), torch.device(device), progress=False)


def judge(run: Run) -> bool | None:
    """Print what came out of a run, and the verdict.

    Returns:
        whether the target was met, or None where it does not apply: it is about the recipe's full
        number of epochs and the test set of MNIST. A training that came to nothing has missed it.
    """
    if parser().failure(run):
        return False
    step, last = STEPS[run["step"]], last_accuracies(run)
    seconds = sum(record["seconds"] for record in run["history"])
    span = f"{min(last):.2f} % to {max(last):.2f} %"
    text = f"seed {run['seed']}: {run['split']} accuracy, last {len(last)} epochs: {span}, after {seconds:.0f} s"
    if run["data"] == "drawn":
        tqdm.write(f"{text}; no verdict: these are digits drawn from fonts, not MNIST")
        return None
    if run["split"] == "validation" or run["recipe"]["epochs"] != step.recipe.epochs:
        tqdm.write(f"{text}; no verdict: the target is about {step.recipe.epochs} epochs and the test set")
        return None
    met = meets(run, step.target)
    tqdm.write(f"{text}; target {'met' if met else 'MISSED'}: at least {step.target:.2f} % in each")
    return met


def run_one(options: argparse.Namespace) -> bool:
    """Train the one random seed that was asked for.

    Returns:
        whether the target was missed.
    """
    device, step, path = pick_device(options.device), STEPS[options.step], record_path(options, options.seed)
    digits = load_data(options)
    check_writable(path.parent)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    parameters = f"{count_parameters(step.net()):,} parameters"
    print(f"step {options.step} ({step.theme}): {parameters}, seed {options.seed}, on {device}", flush=True)
    run = train(options, options.seed, digits, device)
    if "failed" not in run:
        print(f"training images, classified with the final weights: {run['train_accuracy']:.2f} %")
        print(f"written: {path} and {path.with_suffix('.pt').name}")
    return judge(run) is False


def run_many(options: argparse.Namespace, ranks: Ranks) -> bool:
    """Train random seeds 0 to N-1 on the whole machine, and under torchrun a share of them in each rank.

    A run that is already there is kept.

    Returns:
        whether a target was missed, in any rank.
    """
    device = pick_device(options.device)
    if device.type == "cuda" and device.index is None and ranks.local_world > 1:
        device = pick_device(f"cuda:{ranks.local_rank}")
    digits = ranks.first_alone(lambda: load_data(options))  # it may have to download
    folder = record_path(options, 0).parent
    check_writable(folder)
    with claimed(folder) if ranks.rank == 0 else contextlib.nullcontext():
        return run_missing(options, ranks, digits, device)


def run_missing(options: argparse.Namespace, ranks: Ranks, digits: Digits, device: torch.device) -> bool:
    """`run_many`, once the data are there and no other call writes to the folder."""
    seeds, threads = range(options.seeds), options.threads or 1
    found = {seed: read_run(record_path(options, seed), expected_run(options, seed)) for seed in seeds}
    kept = set().union(*ranks.gather({seed for seed, run in found.items() if run}))
    mine = ranks.share([seed for seed in found if seed not in kept])
    processes = processes_at_once(device, threads, ranks.local_world)
    if mine:
        print(f"step {options.step}: {len(mine)} random seeds, {min(processes, len(mine))} at a time, on {device}")
    verdicts: dict[int, bool | None] = {}
    for seed, run in found.items():
        if run and ranks.local_rank == 0:
            print(f"kept: {record_path(options, seed)}")
            verdicts[seed] = judge(run)
    for run in _trained(options, mine, digits, device, processes, threads):
        if "failed" not in run:
            tqdm.write(f"written: {record_path(options, run['seed'])}")
        verdicts[run["seed"]] = judge(run)
    for others in ranks.gather(verdicts):
        verdicts |= others
    if ranks.rank == 0 and None not in verdicts.values():
        print(f"{list(verdicts.values()).count(True)} of {len(verdicts)} random seeds met the target")
    return False in verdicts.values()


def _trained(
    options: argparse.Namespace,
    seeds: Sequence[int],
    digits: Digits,
    device: torch.device,
    processes: int,
    threads: int,
) -> Iterator[Run]:
    """Each run of the random seeds as soon as it is written, with a bar."""
    arrays = [tensor.numpy() for tensor in digits]  # tensors would go through /dev/shm, which may be small
    jobs = [(options, seed, str(device)) for seed in seeds]
    runs = in_processes(train_in_process, jobs, arrays, processes, threads)
    return tqdm(runs, total=len(jobs), unit="seed", smoothing=0, disable=not jobs)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit code: 0; 1 if the target was missed; 2 for bad input; 130 if interrupted.
    """
    command = parser()
    options = command.parse_args(arguments)
    try:
        if options.summary:
            show_summary(options.step)
            return 0
        if options.graph and pick_device(options.device).type != "cuda":
            raise ValueError("--graph needs a CUDA device: leave it out, or choose --device cuda")
        full = options.split == "test" and recipe_of(options) == STEPS[options.step].recipe
        check_destination(options.out, options.data != "drawn", full)
        with torchrun_ranks() as ranks:
            if options.seeds:
                return int(run_many(options, ranks))
            if ranks.world > 1:
                raise ValueError("under torchrun say how many random seeds to share out: use --seeds N")
            return int(run_one(options))
    except (DataError, ValueError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    run_program("train.py", main)
