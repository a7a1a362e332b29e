"""Finished runs as files: writing them whole or not at all, reading them, and what they say together."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import nn

from tinymnist.recipe import Recipe

Run = dict[str, Any]
T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"
LAST = 5  # the target is about each of the last five epochs
LARGEST = 2**26  # bytes; nothing that we read has more, unpacked


class TrainingError(RuntimeError):
    """A training came to nothing; the message is one line that says why."""


def accuracy(record: dict[str, float | int], part: str = "test") -> float:
    """Accuracy in percent of one epoch of a history, from the counts; `part` is "test" or "train"."""
    return 100 * record[f"{part}_correct"] / record[f"{part}_total"]


def last_accuracies(run: Run, epochs: int = LAST) -> list[float]:
    """Accuracies in percent of the last epochs of a run."""
    return [accuracy(record) for record in run["history"][-epochs:]]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from claiming the same record, or the same folder of records, meanwhile.

    The claim ends with its process, however that ends. A file system without locks gives it to everyone.

    Raises:
        OSError: another process has it.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=2)  # a process whose parent was killed needs a moment to end
    except Timeout:
        raise OSError(f"another process is writing {path}: wait for its end, or choose another folder") from None
    except (OSError, NotImplementedError):
        pass
    try:
        if lock.is_locked:
            for partial in path.parent.glob(f".{path.stem}.*-*"):  # a process was killed in `write_atomically`
                partial.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not delete a file that is open
            os.unlink(lock.lock_file)
        lock.release()


def check_writable(folder: Path) -> None:
    """Raise OSError unless files can be written to the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_destination(path: Path, mnist: bool, full: bool = True) -> None:
    """Raise ValueError if a run on other data than MNIST, or one that is not full, would go into `results/`."""
    if path.resolve().is_relative_to(RESULTS) and not mnist:
        raise ValueError("results/ holds runs on MNIST only: choose another --out for drawn digits")
    if path.resolve().is_relative_to(RESULTS) and not full:
        raise ValueError("results/ holds full runs on the test set: choose another --out with --epochs or --validate")


def save_run(
    path: Path,
    model: nn.Module,
    recipe: Recipe,
    history: list[dict[str, float]],
    fitted: tuple[float, int, int],
    device: torch.device,
    facts: Run,
    weights: bool = True,
) -> Run:
    """Write a finished run as JSON and, beside it, the weights as a state dict (`.pt`).

    Args:
        path: of the JSON file; folders are made.
        model: holds the weights that the last epoch evaluated.
        recipe, history: as given to and returned by `fit`.
        fitted: what `evaluate` says of the training images, with the weights of the last epoch.
        device: where it was trained.
        facts: further entries of the record: the random seed (`seed`), what it was judged on (`split`, "test" or the
            name of a held-out split), `data` ("mnist" or "drawn"), and what was trained.
        weights: whether to write the weights too.

    Returns:
        What was written as JSON; with the weights, it holds their SHA-256 sum.

    Raises:
        ValueError: a run on other data than MNIST would go into `results/`.
        OSError: the files cannot be written.
    """
    check_destination(path, facts["data"] == "mnist")
    run = {
        **facts,
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": str(device),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "commit": commit(),
        "recipe": asdict(recipe),
        "train_accuracy": 100 * fitted[1] / fitted[2],
        "history": history,
    }
    if weights:
        buffer = io.BytesIO()
        state = {k: v.detach().to("cpu", memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
        torch.save(state, buffer)
        run["weights_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        write_atomically(path.with_suffix(".pt"), buffer.getvalue())
    write_json(path, run)
    path.with_suffix(".failed").unlink(missing_ok=True)
    return run


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit, with "-dirty" if a tracked file outside of `results/` was changed; None outside of git."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def read_json(path: Path, use: Callable[[Any], T]) -> T:
    """What a function makes of the content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or of a shape that the function does not expect; the message names the file.
    """
    content = path.read_bytes()
    try:
        return use(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore it, or have it written again") from error


def check_run(run: Any) -> Run:
    """The run, if its record is whole; else ValueError, LookupError or TypeError."""
    epochs, accuracies = run["recipe"]["epochs"], last_accuracies(run, len(run["history"]))
    if not 0 < len(accuracies) == epochs or run["seed"] < 0:
        raise ValueError("not one entry for each epoch")
    return run


def read_run(path: Path, expected: Run, weights: bool = True) -> Run | None:
    """The record in a file if it is whole, its weights too if asked for, and says what is expected of it; else None."""
    try:
        run = read_json(path, check_run)
        content = path.with_suffix(".pt").read_bytes() if weights else b""
    except (OSError, ValueError):
        return None
    same = all(key in run and run[key] == value for key, value in expected.items())
    if weights:  # older records do not have the sum
        same &= zipfile.is_zipfile(io.BytesIO(content))
        same &= run.get("weights_sha256") in (None, hashlib.sha256(content).hexdigest())
    return run if same else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights that `save_run` wrote into a net of the same kind.

    Their SHA-256 sum is that of the record beside them, unless there is none or it is older than these sums.

    Raises:
        OSError: they are missing, damaged, or those of another net; the message names the file.
    """
    try:
        content, record = path.read_bytes(), path.with_suffix(".json")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > LARGEST:
                raise ValueError(f"{size:,} bytes unpacked")
        expected = read_json(record, lambda run: run.get("weights_sha256")) if record.exists() else None
        if expected not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError(f"its SHA-256 sum is not the one in {record.name}")
        model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OSError(
            f"no weights of {type(model).__name__} in {path} ({reason}): restore the file, or train again"
        ) from error


def load_runs(folder: str | os.PathLike[str], count: int | None = None) -> list[Run]:
    """The runs in a folder, by random seed.

    Args:
        folder: relative to `results/` ("step3", "study/changes/step2-no-dropout") or absolute.
        count: how many there have to be, from random seeds 0 to count - 1; None takes those that are there.

    Raises:
        FileNotFoundError: no run is there, or one of the count is missing; the message names its file.
        ValueError: a record is damaged; the message names its file.
    """
    folder = RESULTS / folder
    paths = sorted(folder.glob("seed_*.json")) if count is None else [folder / f"seed_{k}.json" for k in range(count)]
    for path in paths or [folder / "seed_0.json"]:
        if not path.exists():
            raise FileNotFoundError(f"no finished run {path}: make results and make study write them")
    return sorted((read_json(path, check_run) for path in paths), key=lambda run: run["seed"])


def load_bench(part: str, device: str = "cpu") -> Run:
    """What `experiments.bench` measured: one of its parts, on "cpu" or "cuda".

    Raises:
        FileNotFoundError: it was not measured.
        ValueError: the file is damaged.
    """
    path = RESULTS / f"bench_{device}.json"
    measured = read_json(path, dict) if path.exists() else {}
    if part not in measured:
        raise FileNotFoundError(f"no {part} in {path}: make bench writes them")
    return measured[part]


def meets(run: Run, target: float) -> bool:
    """Whether each of the last five epochs of a run reached the target (percent)."""
    return min(last_accuracies(run)) >= target
