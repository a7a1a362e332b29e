"""Finished runs: what decides a run, what came out, and the files that keep it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.augmentation import Batches
from tinymnist.recipe import Recipe, learning_rate
from tinymnist.tables import History, Run, last_accuracies

State = dict[str, Tensor]
HISTORY = "lr train_loss train_correct train_total test_loss test_correct test_total seconds".split()
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters; those of lazy layers count once the net has run."""
    lazy = nn.parameter.UninitializedParameter
    return sum(p.numel() for p in model.parameters() if p.requires_grad and not isinstance(p, lazy))


def name_of(function: Callable[..., Any]) -> str:
    """A class or function as it is imported; a `functools.partial` with its arguments: "module.name(power=2)"."""
    if isinstance(function, functools.partial):
        words = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(words)})"
    owner = getattr(function, "__self__", None)
    if not hasattr(function, "__qualname__"):
        return _settings_of(function)
    name = f"{function.__module__}.{function.__qualname__}"
    return name if owner is None or isinstance(owner, type | ModuleType) else f"{name} of {_settings_of(owner)}"


def _settings_of(instance: Any) -> str:
    """The class of an object, those of its attributes that are numbers, words or None, and checksums of its tensors."""
    plain = {name: value for name, value in vars(instance).items() if isinstance(value, int | float | str | NoneType)}
    words = [f"{name}={value!r}" for name, value in plain.items() if not name.startswith("_")]
    if isinstance(instance, nn.Module):  # as the weights of classes of a loss
        tensors = {
            name: hashlib.md5(tensor.numpy(force=True).tobytes()) for name, tensor in instance.state_dict().items()
        }
        words += [f"{name}=md5:{checksum.hexdigest()[:8]}" for name, checksum in tensors.items()]
    return f"{type(instance).__module__}.{type(instance).__qualname__}({', '.join(words)})"


def definition(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    seed: int,
    split: str,
    *,
    rate: Callable[..., Any] = learning_rate,
    batches: Callable[..., Any] = Batches,
    loss: Callable[..., Any] = F.cross_entropy,
) -> Run:
    """What decides a run, but for the machine and the code itself, which the record names by its commit.

    A finished run counts as this one if all of it is equal.

    Args:
        net: a class or function that makes the net, or a `functools.partial` of one.
        recipe, seed, rate, batches, loss: as for `fit`; a lambda has no name that tells it from others.
        split: "test", or the sixth of the training images that is held out.

    Returns:
        as JSON gives it back: the net by its name and its `arguments`, the defaults among them, `parameters`, `recipe`
        as a dictionary, and what was opened by its name.
    """
    made = net if isinstance(net, functools.partial) else functools.partial(net)
    arguments = inspect.signature(made.func).bind(*made.args, **made.keywords)
    arguments.apply_defaults()
    with torch.random.fork_rng(devices=[]):
        parameters = count_parameters(net())
    found: Run = {"seed": seed, "split": split, "net": name_of(made.func), "arguments": arguments.arguments}
    found |= {"parameters": parameters, "recipe": asdict(recipe)}
    found |= {"rate": name_of(rate), "batches": name_of(batches), "loss": name_of(loss)}
    return json.loads(json.dumps(found, default=lambda value: name_of(value) if callable(value) else repr(value)))


def outcome(history: History, fitted: tuple[float, int, int], device: torch.device) -> Run:
    """What came out of a run, and where it was made: the second half of its record.

    Args:
        history: as `fit` returns it; losses that are not finite are kept as None.
        fitted: what `evaluate` says of the training images, with the weights of the last epoch.
        device: where it was trained.
    """
    finite = {name: [v if math.isfinite(v) else None for v in values] for name, values in history.items()}
    return {
        "train_accuracy": 100 * fitted[1] / fitted[2],
        "history": finite,
        "date": date.today().isoformat(),
        "device": str(device),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }


def differences(run: Run, expected: Run) -> list[str]:
    """What of a definition a record does not say, a few words each; none for a finished run of that definition."""

    def flat(values: Run) -> dict[str, Any]:
        recipe = values["recipe"] if isinstance(values.get("recipe"), dict) else {}
        return {name: values.get(name) for name in expected} | {f"recipe {name}": recipe[name] for name in recipe}

    found, wanted = flat(run), flat(expected)
    names = [name for name in wanted | found if name != "recipe" and found.get(name) != wanted.get(name)]
    return [f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names]


def state_of(net: nn.Module) -> State:
    """The state dict of a net on the CPU, under the names that it has without `torch.compile`."""
    state = {name.replace("_orig_mod.", ""): value for name, value in net.state_dict().items()}
    return {name: v.detach().cpu().contiguous() if isinstance(v, Tensor) else v for name, v in state.items()}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_writable(folder: Path) -> None:
    """Raise OSError now, not after the training, if no file can be made in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def lines_of(value: Any, first: str) -> bytes:
    """A value as JSON in which each dictionary that begins with the key `first` has a line of its own."""
    return (json.dumps(value).replace(f'{{"{first}"', f'\n{{"{first}"') + "\n").encode()


def write_weights(path: Path, weights: Any) -> None:
    """Write a state dict, or several by seed, whole or not at all."""
    torch.save(weights, buffer := io.BytesIO())
    write_atomically(path, buffer.getvalue())


def read_weights(path: Path) -> Any:
    """What `write_weights` wrote.

    Raises:
        OSError: the file is missing or damaged; the message names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict):
            raise TypeError(f"it holds a {type(weights).__name__}")
        return weights
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OSError(f"no weights in {path} ({reason}): restore the file, or train again") from error


def load_weights(net: nn.Module, path: Path, seed: int = 0) -> None:
    """Load the weights of a published run into a net of the same kind.

    Args:
        net: takes the weights.
        path: a file that has them by seed, such as `results/step3.pt`.
        seed: the run.

    Raises:
        ValueError: the file has no run of that seed; the message says which it has.
        OSError: the file is missing or damaged, or its nets are of another kind; the message names it.
    """
    weights = read_weights(path)
    if not all(isinstance(key, int) for key in weights) or not weights:
        raise OSError(f"no weights by seed in {path} (it holds those of one net): load them with load_state_dict")
    if seed not in weights:
        raise ValueError(f"no published weights of seed {seed!r}: use {min(weights)} to {max(weights)}")
    try:
        net.load_state_dict(weights[seed])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"no weights of {type(net).__name__} in {path} ({reason})") from error


def check_record(run: Any) -> Run:
    """The record, if it is whole.

    Raises:
        ValueError: it is not.
    """
    try:
        epochs = {len(values) for values in run["history"].values()}
        if epochs != {run["recipe"]["epochs"]} or not last_accuracies(run):
            raise ValueError("not one entry for each epoch")
        if not (isinstance(run["seed"], int) and isinstance(run["variant"], str)):
            raise TypeError("the seed is no number or the variant no word")
        values = [run["train_accuracy"], *run["history"]["seconds"]]
        if not all(isinstance(value, int | float) for value in values) or not run["history"].keys() >= {*HISTORY}:
            raise TypeError("a figure is missing or no number")
        if missing := {"group", "device", "date"} - run.keys():
            raise LookupError(f"without {', '.join(sorted(missing))}")
        return run
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(repr(error)) from error


def read_runs(path: Path) -> list[Run]:
    """The runs in a file that has one record a line.

    A last line that was cut off while it was written is left out, with a message on standard error.

    Raises:
        ValueError: another line is damaged, or repeats a variant and seed; the message names it.
    """
    found: dict[tuple[str, int], Run] = {}
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            run = check_record(json.loads(line))
            if (key := (run["variant"], run["seed"])) in found:
                raise ValueError(f"a second record of {key[0]}, seed {key[1]}")
            found[key] = run
        except ValueError as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise ValueError(f"line {number} of {path} is damaged ({error}): restore or delete it") from error
            print(f"{path}: the last line was cut off; that run will be trained again", file=sys.stderr)
    return list(found.values())


def save_run(path: Path, run: Run) -> None:
    """Add a finished run to a file that has one record a line; it replaces one of the same variant and seed."""
    key = run["variant"], run["seed"]
    others = [other for other in read_runs(path) if (other["variant"], other["seed"]) != key]
    write_atomically(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in [*others, run]).encode())


def load_runs(group: str, variant: str) -> list[Run]:
    """The published runs of a variant, by seed, from `results/GROUP.jsonl`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a record is damaged; the message names it.
    """
    path = RESULTS / f"{group}.jsonl"
    found = [run for run in read_runs(path) if run["variant"] == variant]
    if not found:
        raise FileNotFoundError(
            f"no finished run of {variant} in {path}: python -m experiments.study {group} trains it"
        )
    return sorted(found, key=lambda run: run["seed"])


def hardware(device: torch.device) -> str:
    """The name of a CUDA device, or else of the processor as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def commit() -> str | None:
    """The commit at the first call, "-dirty" if a tracked file outside `results/` was changed; None outside git."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
