"""Records and weights: what is damaged is refused by name, and one process at a time writes."""

import gc
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import STEPS, FinalNet
from tinymnist import runs
from utils import Digits, Recipe, TrainingError, fit, train_run

TINY = Recipe(epochs=1, batch_size=64)
FACTS = {"step": 3, "seed": 0, "data": "drawn", "split": "test"}


@pytest.fixture
def record(tmp_path, drawn) -> Path:
    """The record of a run."""
    train_run(tmp_path / "step3" / "seed_0.json", FinalNet, TINY, drawn, FACTS)
    return tmp_path / "step3" / "seed_0.json"


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 4\n"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "one bit": lambda path: path.write_bytes(path.read_bytes().replace(b"conv2", b"conv5", 1)),
    "another net's": lambda path: torch.save(STEPS[2].net().state_dict(), path),
    "no weights": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_without_its_weights_is_not_finished_and_they_are_refused_by_name(record, damage):
    weights = record.with_suffix(".pt")
    assert runs.read_run(record, FACTS)["seed"] == 0
    runs.load_weights(FinalNet(), weights)
    DAMAGES[damage](weights)
    assert runs.read_run(record, FACTS) is None
    assert runs.read_run(record, FACTS, weights=False)
    with pytest.raises(OSError, match=re.escape(f"no weights of FinalNet in {weights} (")) as caught:
        runs.load_weights(FinalNet(), weights)
    assert "\n" not in str(caught.value)


def test_weights_are_those_that_the_record_names(record):
    weights, run = record.with_suffix(".pt"), json.loads(record.read_text())
    net = FinalNet()
    runs.load_weights(net, weights)
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] += 1e-3
    torch.save(net.state_dict(), weights)  # whole, but not of this run
    with pytest.raises(OSError, match=r"seed_0\.pt \(ValueError: its SHA-256 sum is not the one in seed_0\.json\)"):
        runs.load_weights(FinalNet(), weights)
    del run["weights_sha256"]  # as records were before there was a sum
    record.write_text(json.dumps(run))
    runs.load_weights(FinalNet(), weights)
    record.write_text("{")
    with pytest.raises(OSError, match=r"seed_0\.json is damaged"):
        runs.load_weights(FinalNet(), weights)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_run_no_code_and_do_not_fill_the_memory(tmp_path, packed):
    hostile, bomb = tmp_path / "hostile.pt", tmp_path / "bomb.pt"
    if packed:
        torch.save(Hostile(tmp_path / "made"), hostile)
    else:
        hostile.write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(OSError, match=r"hostile\.pt"):
        runs.load_weights(FinalNet(), hostile)
    assert not (tmp_path / "made").exists()
    torch.save(FinalNet().state_dict(), bomb)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/99", bytes(2**27))
    with pytest.raises(OSError, match=r"bomb\.pt \(ValueError: 134,\d+,\d+ bytes unpacked"):
        runs.load_weights(FinalNet(), bomb)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b'"seed"', b"{}", b"[" * 100_000, b"\xff"]
    + [b'{"seed": 0, "recipe": {"epochs": 1}, "history": %s}' % history for history in (b"[]", b"[{}]", b"7")],
)
def test_json_of_another_shape_is_refused_by_name(record, content, tmp_path, monkeypatch):
    record.write_bytes(content)
    assert runs.read_run(record, {}) is None
    with pytest.raises(ValueError, match=re.escape(f"{record} is damaged (")):
        runs.load_runs(record.parent)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    record.rename(tmp_path / "bench_cpu.json")
    with pytest.raises((ValueError, FileNotFoundError), match=r"bench_cpu\.json"):
        runs.load_bench("pipelines")


def test_a_training_that_comes_to_nothing_is_recorded_as_that(record, drawn):
    before = record.read_bytes(), record.with_suffix(".pt").read_bytes()
    diverging, dead = replace(TINY, max_lr=1e30), replace(TINY, max_lr=0.0, epochs=5)
    for recipe, reason in (
        (diverging, "a loss of epoch 1 is not finite: a lower learning rate may help"),
        (dead, "in the end it gets 20 images right, one answer for all would get 20"),
    ):
        run = train_run(record, STEPS[1].net, recipe, drawn, FACTS)
        written = json.loads(record.with_suffix(".failed").read_text())
        assert run == written
        assert FACTS.items() <= run.items()
        assert (run["failed"], run["recipe"]["max_lr"]) == (reason, recipe.max_lr)
        assert [run["seed"] for run in runs.load_runs(record.parent)] == [0]  # the earlier run
        assert (record.read_bytes(), record.with_suffix(".pt").read_bytes()) == before
    with pytest.raises(TrainingError, match="not finite"):
        fit(STEPS[1].net(), diverging, drawn, progress=False)
    train_run(record, FinalNet, TINY, drawn, FACTS)
    assert sorted(path.name for path in record.parent.iterdir()) == ["seed_0.json", "seed_0.pt"]


def test_many_runs_hold_no_memory(tmp_path, drawn):
    def tensors_after(run: int) -> int:
        train_run(tmp_path / f"seed_{run}.json", FinalNet, replace(STEPS[3].recipe, epochs=1), few, FACTS)
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    few = Digits(*(tensor[:100] for tensor in drawn))
    counts = [tensors_after(run) for run in range(6)]
    assert counts[2:] == [counts[2]] * 4


def test_a_claim_keeps_others_out_and_ends_with_its_process(record, drawn, repository):
    before = record.read_bytes()
    code = (
        "import sys, time; from pathlib import Path; from tinymnist.runs import claimed\n"
        f"with claimed(Path({str(record)!r})): print('claimed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(OSError, match=re.escape(f"another process is writing {record}: wait")):
            train_run(record, FinalNet, TINY, drawn, FACTS)
        with runs.claimed(record.with_name("seed_1.json")), runs.claimed(record.parent):
            pass
        assert record.read_bytes() == before
        other.kill()
    (record.parent / ".seed_0.json-half").touch()  # as if it was killed while it wrote
    train_run(record, FinalNet, TINY, drawn, FACTS)
    assert sorted(path.name for path in record.parent.iterdir()) == ["seed_0.json", "seed_0.pt"]


def test_where_there_are_no_locks_training_goes_on(record, drawn, monkeypatch):
    def none(*_args, **_options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(runs.FileLock, "acquire", none)
    assert "failed" not in train_run(record, FinalNet, TINY, drawn, FACTS)
