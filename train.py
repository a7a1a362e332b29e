"""Train a step from the command line.

    python train.py --step 3                          seed 0, on the best device there is
    python train.py --step 3 --seed 7 --threads 1     seed 7, on one CPU thread
    python train.py --step 3 --seeds 20               seeds 0 to 19, as many at a time as there are cores
    torchrun --nproc-per-node 8 train.py --step 3 --seeds 100    shared out over 8 GPUs

Each run is written to OUT/stepK/seed_N.json, and its weights beside it as .pt. A finished run is kept, so a call that
was interrupted goes on where it stopped; a run of another kind, for example of fewer epochs, never takes its place.
The exit code is 0 if no run missed the step's target, 1 if one did, 2 for bad input and 130 after Ctrl-C. Under
torchrun a miss is 0 too, since torchrun would stop the other ranks: call again without torchrun for the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from model import STEPS
from tinymnist.cli import OneLineParser, whole_number
from tinymnist.data import SIXTHS
from tinymnist.parallel import in_processes, processes_at_once
from tinymnist.runs import (
    check_record,
    check_writable,
    definition,
    differences,
    read_weights,
    write_json,
    write_weights,
)
from tinymnist.tables import gap, last_accuracies, meets
from utils import (
    DataError,
    Recipe,
    Run,
    count_parameters,
    load_mnist,
    pick_device,
    receptive_field,
    receptive_field_table,
    train_run,
)


def parser() -> OneLineParser:
    """The command line."""
    found = OneLineParser("train.py", __doc__)
    add = found.add_argument
    add("--step", type=int, choices=sorted(STEPS), required=True, help="which of the steps")
    seeds = found.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, metavar="K", help="train seed K (default: 0)"
    )
    seeds.add_argument("--seeds", type=whole_number(1, 100_000), metavar="N", help="train seeds 0 to N-1")
    add("--threads", type=whole_number(1, 1024), metavar="T", help="CPU threads per net (default: all; --seeds: 1)")
    add("--epochs", type=whole_number(1, 100_000), metavar="E", help="default: as in the step's recipe")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps or xpu")
    add("--graph", action="store_true", help="on a CUDA device, replay the passes as CUDA graphs")
    add("--data", metavar="DIR", help="folder of MNIST: files in DIR/MNIST/raw, downloaded if missing")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs (git ignores it)")
    add("--validate", action="store_true", help="test on the last sixth of the training images, not trained on then")
    add("--summary", action="store_true", help="show the net and its receptive field, train nothing")
    return found


def show_summary(number: int) -> None:
    """Print layers, parameters and receptive field of a step's net."""
    from torchsummary import summary

    net = STEPS[number].net()
    try:
        summary(net, (1, 28, 28), device="cpu")
    except (AttributeError, TypeError) as error:
        raise ValueError(f"torchsummary cannot show this net: {error}") from error
    print(f"\nReceptive field, in pixels of the 28x28 image:\n\n{receptive_field_table(receptive_field(net))}")


class Plan(NamedTuple):
    """What a call trains: each seed is a run.

    Attributes:
        step: the step's number.
        recipe: that of the step, with the number of epochs asked for.
        split: what the runs are tested on.
        device: where they are trained.
        graph: whether to use CUDA graphs.
        data: the folder of MNIST, if it was named.
        out: the folder that the runs are written to.
    """

    step: int
    recipe: Recipe
    split: str
    device: torch.device
    graph: bool
    data: str | None
    out: Path

    @property
    def net(self) -> type[nn.Module]:
        """The class of the step's net."""
        return STEPS[self.step].net

    @property
    def labels(self) -> Run:
        """The first entries of each record."""
        return {"group": "steps", "variant": f"step{self.step}"}

    def path(self, seed: int) -> Path:
        """Where the record of a seed goes; its weights have the suffix .pt."""
        return self.out / f"step{self.step}" / f"seed_{seed}.json"

    def read(self, seed: int) -> Any:
        """What the record of a seed says, whole or not; None if there is none, or if it is no JSON.

        Raises:
            ValueError: a run of another kind is there; the message says in what they differ.
            OSError: the record cannot be read.
        """
        path = self.path(seed)
        try:
            run = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        expected = self.labels | definition(self.net, self.recipe, seed, self.split)
        if isinstance(run, dict) and (different := differences(run, expected)):
            raise ValueError(f"{path} holds another run ({'; '.join(different)}): use another --out, or delete it")
        return run

    def finished(self, seed: int) -> Run | None:
        """The run of a seed that is already there; None if there is none, or if it is damaged (a message says so).

        Raises:
            ValueError, OSError: as for `read`.
        """
        path, run = self.path(seed), self.read(seed)
        if not path.exists():
            return None
        try:
            read_weights(path.with_suffix(".pt"))
            return check_record(run)
        except (ValueError, OSError):
            print(f"{path} or its weights are damaged: seed {seed} is trained again", file=sys.stderr)
            return None

    def train(self, seed: int, progress: bool = False) -> Run:
        """Train a seed and write the run: the weights first, since the record says that the run is finished."""
        digits = load_mnist(self.data, self.split)
        run, state = train_run(
            self.net, self.recipe, digits, seed, self.split, self.device, progress=progress, graph=self.graph
        )
        self.read(seed)  # a run of another kind that another call has written meanwhile stays
        write_weights(self.path(seed).with_suffix(".pt"), state)
        write_json(self.path(seed), run := self.labels | run)
        return run


def train_missing(plan: Plan, seeds: list[int], options: argparse.Namespace) -> Iterator[Run]:
    """Train the seeds; yields each run as soon as it is written."""
    load_mnist(plan.data)  # what is missing is told now, not after the training
    check_writable(plan.path(0).parent)
    parameters = count_parameters(plan.net())
    print(f"step {plan.step} ({STEPS[plan.step].theme}): {parameters:,} parameters, on {plan.device}", flush=True)
    if options.seeds:
        threads, share = options.threads or 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        runs = in_processes(plan.train, seeds, processes_at_once(plan.device, threads, share), threads)
        yield from tqdm(runs, total=len(seeds), unit="seed")
    else:
        if options.threads:
            torch.set_num_threads(options.threads)
        [seed] = seeds
        yield plan.train(seed, progress=True)


def judge(run: Run, number: int) -> bool | None:
    """Print what came out of a run, and the verdict.

    Returns:
        whether the target was met, or None where it does not apply: it is about the recipe's full number of epochs and
        the test set.
    """
    step, last, history = STEPS[number], last_accuracies(run), run["history"]
    span = f"{min(last):.2f} % to {max(last):.2f} %" if len(last) > 1 else f"{last[0]:.2f} %"
    epochs = f"last {len(last)} epochs" if len(last) > 1 else "last epoch"
    text = f"seed {run['seed']}: accuracy, {epochs}: {span}, after {sum(history['seconds']):.0f} s"
    if None in history["train_loss"] + history["test_loss"]:
        text += "; the loss is not finite: a lower learning rate may help"
    if run["split"] != "test" or run["recipe"]["epochs"] != step.recipe.epochs:
        tqdm.write(f"{text}; no verdict: the target is about {step.recipe.epochs} epochs and the test set")
        return None
    met = meets(run, step.target, step.gap)
    target = f"at least {step.target:.2f} % in each"
    if step.gap is not None:
        target += f", training images at most {step.gap:.2f} points above (they are {gap(run):.2f})"
    tqdm.write(f"{text}; target {'met' if met else 'MISSED'}: {target}")
    return met


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
        # torchrun sets these; a rank has its own GPU and takes every so many-th seed, and no rank waits for another.
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        rank = int(os.environ.get("RANK", 0)) if ranks > 1 else 0
        device = pick_device(options.device)
        if device.type == "cuda" and device.index is None and ranks > 1:
            device = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        if options.graph and device.type != "cuda":
            raise ValueError("--graph needs a CUDA device: leave it out, or choose --device cuda")
        step = STEPS[options.step]
        recipe = replace(step.recipe, epochs=options.epochs or step.recipe.epochs)
        split = SIXTHS[-1] if options.validate else "test"
        plan = Plan(options.step, recipe, split, device, options.graph, options.data, options.out)

        seeds = (range(options.seeds) if options.seeds else [options.seed])[rank::ranks]
        found = {seed: plan.finished(seed) for seed in seeds}
        verdicts = []
        for run in filter(None, found.values()):
            made = f"trained on {run['device']} on {run['date']}"
            print(f"kept: {plan.path(run['seed'])}, {made}; delete it to train it again")
            verdicts.append(judge(run, plan.step))
        missing = [seed for seed, run in found.items() if not run]
        for run in train_missing(plan, missing, options) if missing else ():
            tqdm.write(f"written: {plan.path(run['seed'])} and {plan.path(run['seed']).with_suffix('.pt').name}")
            verdicts.append(judge(run, plan.step))
        if len(verdicts) > 1 and None not in verdicts:
            print(f"{verdicts.count(True)} of {len(verdicts)} seeds met the target")
        return int(False in verdicts and ranks == 1)
    except (DataError, ValueError, OSError, KeyboardInterrupt) as error:
        return command.failed(error)


if __name__ == "__main__":
    sys.exit(main())
