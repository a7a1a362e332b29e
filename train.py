"""The command line: train one of the three steps and write what came out.

python train.py --step 3                  train the final net on the best device there is
python train.py --step 3 --seeds 5        random seeds 0 to 4, one after the other
python train.py --step 3 --validate       hold out the last 10,000 training images instead of testing
python train.py --step 2 --summary        show the net and its receptive field, train nothing
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import torch

from model import STEPS
from tinymnist.runs import RESULTS, check_destination
from utils import (
    DataError,
    Digits,
    count_parameters,
    fit,
    last_accuracies,
    load_drawn,
    load_mnist,
    meets,
    pick_device,
    receptive_field,
    receptive_field_table,
    save_run,
    validation_split,
)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message on stderr and exit with code 2."""
        self.exit(2, f"train.py: {message}\n")


def whole_number(lowest: int) -> Callable[[str], int]:
    """An argparse type: an integer from `lowest` to what PyTorch takes as a seed."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, not {text!r}")
        return value

    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr if it is wrong."""
    parser = OneLineParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--step", type=int, choices=sorted(STEPS), required=True, help="which of the three steps")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=whole_number(0), default=0, metavar="K", help="random seed (default 0)")
    seeds.add_argument("--seeds", type=whole_number(1), metavar="N", help="train random seeds 0 to N-1 instead")
    parser.add_argument("--epochs", type=whole_number(1), metavar="E", help="default: as in the step's recipe")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", metavar="DIR|drawn", help="folder that holds MNIST/raw/, or drawn: digits from fonts")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs (git ignores it)")
    parser.add_argument("--validate", action="store_true", help="hold out the last sixth of the training images")
    parser.add_argument("--summary", action="store_true", help="show the net and its receptive field, train nothing")
    return parser.parse_args(arguments)


def show_summary(number: int) -> None:
    """Print layers, parameters and receptive field of a step's net."""
    from torchsummary import summary

    net = STEPS[number].net()
    summary(net, (1, 28, 28), device="cpu")
    print(f"\nReceptive field, in pixels of the 28x28 image:\n\n{receptive_field_table(receptive_field(net))}")


def check_writable(folder: Path) -> None:
    """Raise OSError unless files can be written to the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def load_data(name: str | None, validate: bool) -> Digits:
    """MNIST from a folder (None: the usual places) or drawn digits, with the held-out split if asked for."""
    digits = load_drawn() if name == "drawn" else load_mnist(name)
    return validation_split(digits) if validate else digits


def check_results(arguments: argparse.Namespace) -> None:
    """Raise ValueError if something would go into `results/` that does not belong there."""
    check_destination(arguments.out, "drawn" if arguments.data == "drawn" else "mnist")
    partial = arguments.validate or arguments.epochs not in (None, STEPS[arguments.step].recipe.epochs)
    if partial and arguments.out.resolve().is_relative_to(RESULTS):
        raise ValueError("results/ holds full runs on the test set: choose another --out with --epochs or --validate")


def finished(path: Path, expected: dict[str, object]) -> dict | None:
    """The run in that file if it is the same experiment, else None."""
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return run if all(run.get(key) == value for key, value in expected.items()) else None


def train(arguments: argparse.Namespace, seed: int, digits: Digits, device: torch.device) -> dict:
    """Train one random seed and write it; with --seeds, a run that is already there is kept."""
    step = STEPS[arguments.step]
    recipe = replace(step.recipe, epochs=arguments.epochs or step.recipe.epochs)
    data, split = "drawn" if arguments.data == "drawn" else "mnist", "validation" if arguments.validate else "test"
    path = arguments.out / f"step{arguments.step}" / f"seed_{seed}.json"
    expected = {"step": arguments.step, "seed": seed, "data": data, "split": split, "recipe": asdict(recipe)}
    run = finished(path, expected) if arguments.seeds else None
    if run:
        print(f"kept: {path}")
        return run
    torch.manual_seed(seed)
    net = step.net()
    parameters = f"{count_parameters(net):,} parameters"
    print(f"step {arguments.step} ({step.theme}): {parameters}, seed {seed}, on {device}", flush=True)
    history = fit(net, recipe, digits, seed=seed, device=device)
    run = save_run(path, net, recipe, history, step=arguments.step, seed=seed, device=device, split=split, data=data)
    print(f"written: {path} and {path.with_suffix('.pt').name}")
    return run


def judge(run: dict) -> bool | None:
    """Print what came out of a run, and the verdict.

    Returns:
        whether the target was met, or None where it does not apply: it is about the recipe's full
        number of epochs and the test set of MNIST.
    """
    step, last = STEPS[run["step"]], last_accuracies(run)
    seconds = sum(record["seconds"] for record in run["history"])
    span = f"{min(last):.2f} % to {max(last):.2f} %"
    print(f"{run['split']} accuracy, last {len(last)} epochs: {span}, after {seconds:.0f} s")
    if run["data"] == "drawn":
        print("no verdict: these are digits drawn from fonts, not MNIST")
        return None
    if run["split"] == "validation" or run["recipe"]["epochs"] != step.recipe.epochs:
        print(f"no verdict: the target is about {step.recipe.epochs} epochs and the test set")
        return None
    met = meets(run, step.target)
    print(f"target {'met' if met else 'MISSED'}: at least {step.target:.2f} % in each of the last {len(last)} epochs")
    return met


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit code: 0; 1 if the target was missed; 2 for bad input; 130 if interrupted.
    """
    options = parse_arguments(arguments)
    try:
        device = pick_device(options.device)
        if options.summary:
            show_summary(options.step)
            return 0
        check_results(options)
        digits = load_data(options.data, options.validate)
        check_writable(options.out / f"step{options.step}")
        seeds = range(options.seeds) if options.seeds else [options.seed]
        verdicts = [judge(train(options, seed, digits, device)) for seed in seeds]
    except KeyboardInterrupt:
        print("train.py: interrupted; finished runs are kept, the one under way is not written", file=sys.stderr)
        return 130
    except (DataError, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    if len(verdicts) > 1 and None not in verdicts:
        print(f"{verdicts.count(True)} of {len(verdicts)} random seeds met the target")
    return 1 if False in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
