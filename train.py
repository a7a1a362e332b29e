"""The command line: train one of the three steps and write what came out.

python train.py --step 3                  train the final net on the best device there is
python train.py --step 3 --seeds 20       random seeds 0 to 19, on the whole machine
torchrun --nproc-per-node 8 train.py --step 3 --seeds 100    the same on several GPUs or machines
python train.py --step 3 --validate       hold out the last 10,000 training images instead of testing
python train.py --step 2 --summary        show the net and its receptive field, train nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import STEPS
from tinymnist.parallel import Ranks, cores, in_processes, torchrun_ranks
from tinymnist.runs import RESULTS, check_destination, read_run
from utils import (
    DataError,
    Digits,
    Recipe,
    count_parameters,
    fit,
    fit_together,
    last_accuracies,
    load_drawn,
    load_mnist,
    meets,
    pick_device,
    receptive_field,
    receptive_field_table,
    save_run,
    soft_labels,
    validation_split,
)

GPU_AT_ONCE = 16  # random seeds that share a GPU; a guess, not measured yet


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message on stderr and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: an integer in a range, its ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {lowest} to {highest}, not {text!r}")
        return value

    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr if it is wrong."""
    parser = OneLineParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--step", type=int, choices=sorted(STEPS), required=True, help="which of the three steps")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, metavar="K", help="random seed (default 0)"
    )
    seeds.add_argument(
        "--seeds", type=whole_number(1, 100_000), metavar="N", help="train random seeds 0 to N-1 instead"
    )
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), metavar="T", help="CPU threads per net (default: all; with --seeds: 1)"
    )
    parser.add_argument("--epochs", type=whole_number(1, 100_000), metavar="E", help="default: as in the step's recipe")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", metavar="DIR|drawn", help="folder that holds MNIST/raw/, or drawn: digits from fonts")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs (git ignores it)")
    parser.add_argument("--validate", action="store_true", help="hold out the last sixth of the training images")
    parser.add_argument("--new-teacher", action="store_true", help="train the teacher too, not take the published one")
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


def expected_run(arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    """What the record of a random seed says about the experiment."""
    recipe = STEPS[arguments.step].recipe
    return {
        "step": arguments.step,
        "seed": seed,
        "data": "drawn" if arguments.data == "drawn" else "mnist",
        "split": "validation" if arguments.validate else "test",
        "recipe": asdict(replace(recipe, epochs=arguments.epochs or recipe.epochs)),
    }


def record_path(arguments: argparse.Namespace, seed: int) -> Path:
    """Where the record of a random seed goes."""
    return arguments.out / f"step{arguments.step}" / f"seed_{seed}.json"


def finished(arguments: argparse.Namespace, seed: int) -> dict | None:
    """The run of a random seed if it is there and of the same experiment, else None."""
    return read_run(record_path(arguments, seed), expected_run(arguments, seed))


def seeded_net(arguments: argparse.Namespace, seed: int) -> nn.Module:
    """The step's net with its random initial weights."""
    torch.manual_seed(seed)
    return STEPS[arguments.step].net()


def teachers_soft_labels(
    number: int,
    digits: Digits,
    device: torch.device,
    places: Sequence[Path],
    recipe: Recipe,
    progress: bool = True,
    **facts: object,
) -> Tensor:
    """What the teacher of a step makes of the training images, on the CPU.

    Args:
        number: of the step.
        digits: the images that the teacher was, or is, trained on.
        places: where its record may be; the first that fits counts. If none does, the teacher is trained now, and
            written to the last.
        recipe: how it is trained now; one trained by the step's full recipe fits too.
        progress: whether to say what is done.
        facts: `data`, `split` and `seed` of its record.
    """
    step = STEPS[number]
    torch.manual_seed(facts["seed"])
    teacher = step.teacher()
    fitting = [
        path
        for path in places
        for known in (step.teacher_recipe, recipe)
        if read_run(path, {"step": number, "recipe": asdict(known), **facts})
    ]
    path = fitting[0] if fitting else places[-1]
    if fitting:
        teacher.load_state_dict(torch.load(path.with_suffix(".pt"), map_location="cpu", weights_only=True))
    else:
        if progress:
            print(f"the teacher, which has {count_parameters(teacher):,} parameters, is trained first", flush=True)
        history = fit(teacher, recipe, digits, facts["seed"], device, progress)
        save_run(path, teacher, recipe, history, step=number, device=device, **facts)
    if progress:
        print(f"teacher: {path}", flush=True)
    return soft_labels(teacher.to(device), digits.train_images.to(device), step.recipe).cpu()


def soft_labels_for(arguments: argparse.Namespace, digits: Digits, device: torch.device) -> Tensor | None:
    """The soft labels that the step asks for, if it does: of the published teacher, or of one of our own in --out."""
    step, facts = STEPS[arguments.step], expected_run(arguments, 0)
    if step.teacher is None:
        return None
    published = RESULTS / ("study/teacher" if arguments.validate else "teacher") / "seed_0.json"
    places = [arguments.out / "teacher" / "seed_0.json"]
    if not arguments.new_teacher:
        places.insert(0, published)
    recipe = replace(step.teacher_recipe, epochs=facts["recipe"]["epochs"])
    facts = {name: facts[name] for name in ("data", "split", "seed")}
    return teachers_soft_labels(arguments.step, digits, device, places, recipe, **facts)


def train(
    arguments: argparse.Namespace,
    seeds: Sequence[int],
    digits: Digits,
    soft: Tensor | None,
    device: torch.device,
    progress: bool = True,
) -> list[dict]:
    """Train a net per random seed on one device, all at once, and write them."""
    nets = [seeded_net(arguments, seed) for seed in seeds]
    recipe = Recipe(**expected_run(arguments, seeds[0])["recipe"])
    if len(nets) == 1:
        histories = [fit(nets[0], recipe, digits, seed=seeds[0], device=device, progress=progress, soft=soft)]
    else:
        histories = fit_together(nets, recipe, digits, seeds, device, progress, soft=soft)
    runs = []
    for seed, net, history in zip(seeds, nets, histories, strict=True):
        expected = expected_run(arguments, seed) | {"recipe": recipe}
        runs.append(save_run(record_path(arguments, seed), net, history=history, device=device, **expected))
    return runs


def train_in_process(job: tuple[argparse.Namespace, int], arrays: list[np.ndarray]) -> dict:
    """Train one random seed on the CPU, without a word; a process of `train_missing` calls it."""
    arguments, seed = job
    tensors = [torch.from_numpy(array) for array in arrays]
    soft = tensors[4] if len(tensors) > 4 else None
    return train(arguments, [seed], Digits(*tensors[:4]), soft, torch.device("cpu"), progress=False)[0]


def train_missing(
    arguments: argparse.Namespace,
    seeds: Sequence[int],
    digits: Digits,
    soft: Tensor | None,
    device: torch.device,
    processes: int,
) -> Iterator[dict]:
    """Train random seeds as many at a time as the machine takes; yields each run when it is written."""
    if device.type == "cpu":
        jobs = [(arguments, seed) for seed in seeds]
        # Tensors would go through /dev/shm, which may be small.
        arrays = [tensor.numpy() for tensor in (*digits, soft) if tensor is not None]
        yield from in_processes(train_in_process, jobs, arrays, processes, arguments.threads or 1)
        return
    # Dropout takes its random numbers from one generator for all nets, so such nets go one by one.
    at_once = 1 if any(isinstance(m, nn.Dropout) for m in seeded_net(arguments, 0).modules()) else GPU_AT_ONCE
    for first in range(0, len(seeds), at_once):
        yield from train(arguments, seeds[first : first + at_once], digits, soft, device, progress=False)


def judge(run: dict) -> bool | None:
    """Print what came out of a run, and the verdict.

    Returns:
        whether the target was met, or None where it does not apply: it is about the recipe's full
        number of epochs and the test set of MNIST.
    """
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


def run_one(arguments: argparse.Namespace) -> bool:
    """Train the one random seed that was asked for.

    Returns:
        whether the target was missed.
    """
    device = pick_device(arguments.device)
    digits = load_data(arguments.data, arguments.validate)
    path, step = record_path(arguments, arguments.seed), STEPS[arguments.step]
    check_writable(path.parent)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    parameters = f"{count_parameters(step.net()):,} parameters"
    print(f"step {arguments.step} ({step.theme}): {parameters}, seed {arguments.seed}, on {device}", flush=True)
    soft = soft_labels_for(arguments, digits, device)
    [run] = train(arguments, [arguments.seed], digits, soft, device)
    print(f"written: {path} and {path.with_suffix('.pt').name}")
    return judge(run) is False


def run_many(arguments: argparse.Namespace, ranks: Ranks) -> bool:
    """Train random seeds 0 to N-1 on the whole machine, and under torchrun a share of them in each rank.

    A run that is already there is kept.

    Returns:
        whether a target was missed, in any rank.
    """
    device = pick_device(arguments.device)
    if device.type == "cuda" and device.index is None and ranks.local_world > 1:
        device = pick_device(f"cuda:{ranks.local_rank}")
    digits = ranks.first_alone(lambda: load_data(arguments.data, arguments.validate))  # it may have to download
    check_writable(record_path(arguments, 0).parent)
    found = {seed: finished(arguments, seed) for seed in range(arguments.seeds)}
    kept = set().union(*ranks.gather({seed for seed, run in found.items() if run}))
    mine = ranks.share([seed for seed in found if seed not in kept])
    processes = max(1, cores() // ranks.local_world // (arguments.threads or 1))
    soft = None
    if len(kept) < arguments.seeds:
        soft = ranks.first_alone(lambda: soft_labels_for(arguments, digits, device))
    if mine:
        place = f"{min(processes, len(mine))} CPU processes" if device.type == "cpu" else str(device)
        print(f"step {arguments.step}: {len(mine)} random seeds to train, on {place}", flush=True)
    verdicts = {}
    for seed, run in found.items():
        if run and ranks.local_rank == 0:
            print(f"kept: {record_path(arguments, seed)}")
            verdicts[seed] = judge(run)
    with tqdm(total=len(mine), unit="seed", smoothing=0, disable=not mine) as bar:
        for run in train_missing(arguments, mine, digits, soft, device, processes):
            tqdm.write(f"written: {record_path(arguments, run['seed'])}")
            verdicts[run["seed"]] = judge(run)
            bar.update()
    for others in ranks.gather(verdicts):
        verdicts |= others
    if ranks.rank == 0 and None not in verdicts.values():
        print(f"{sum(verdicts.values())} of {len(verdicts)} random seeds met the target")
    return False in verdicts.values()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit code: 0; 1 if the target was missed; 2 for bad input; 130 if interrupted.
    """
    options = parse_arguments(arguments)
    try:
        if options.summary:
            show_summary(options.step)
            return 0
        check_results(options)
        with torchrun_ranks() as ranks:
            if options.seeds:
                return int(run_many(options, ranks))
            if ranks.world > 1:
                raise ValueError("under torchrun say how many random seeds to share out: use --seeds N")
            return int(run_one(options))
    except KeyboardInterrupt:
        print("train.py: interrupted; finished runs are kept, those under way are not written", file=sys.stderr)
        return 130
    except (DataError, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
