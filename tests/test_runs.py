"""Records and weights: what decides a run, files that are there whole or not at all, and what is damaged."""

import functools
import json
import os
import pickle
import re
import subprocess
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model import STEPS, FinalNet, RegularizedNet
from tinymnist import runs
from tinymnist.runs import definition, differences, load_weights, read_runs, save_run, write_weights
from utils import Recipe, learning_rate, train_run

TINY = Recipe(epochs=1, batch_size=128)


def record(seed: int = 0, **values) -> dict:
    history = {name: [9, 10] for name in runs.HISTORY} | {"test_total": [10, 10]}
    facts = {"group": "g", "variant": "v", "seed": seed, "recipe": {"epochs": 2}, "history": history}
    return facts | {"train_accuracy": 99.0, "device": "cpu", "date": "2026-01-01"} | values


def parabola(recipe, done, power=2):
    return (1 - done) ** power


class Decay:
    def __init__(self, power):
        self.power = power

    def rate(self, recipe, done):
        return (1 - done) ** self.power


def test_a_record_says_all_that_decides_a_run_and_where_it_was_made(drawn):
    run, state = train_run(STEPS[3].net, TINY, drawn, 7, rate=functools.partial(parabola, power=3))
    assert json.loads(json.dumps(run)) == run
    assert run["seed"] == 7
    assert (run["net"], run["arguments"]) == ("model.FinalNet", {"views": [[-1, 0], [1, 0], [0, -1], [0, 1]]})
    assert (run["parameters"], run["recipe"]["batch_size"], run["split"]) == (7866, 128, "test")
    assert run["rate"].endswith("parabola(power=3)")
    assert run["batches"] == "tinymnist.augmentation.Batches"
    assert run["loss"] == "torch.nn.functional.cross_entropy"
    assert run["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"date", "device", "hardware", "threads", "commit", "train_accuracy"} <= set(run)
    assert len(run["history"]["test_correct"]) == 1
    FinalNet().load_state_dict(state)


def test_what_is_not_the_same_definition_is_named(drawn):
    first = definition(FinalNet, TINY, 0, "test", rate=learning_rate)
    assert differences(first, first) == []
    assert differences(first | {"date": "today"}, first) == []
    one_view = functools.partial(FinalNet, views=((0, 0),))
    for other, line in [
        (definition(FinalNet, replace(TINY, epochs=2), 0, "test"), "recipe epochs 1, not 2"),
        (definition(one_view, TINY, 0, "test"), "arguments .*, not {'views': \\[\\[0, 0\\]\\]}"),
        (definition(RegularizedNet, TINY, 0, "test"), "net 'model.FinalNet', not 'model.RegularizedNet'"),
        (definition(FinalNet, TINY, 0, "sixth-1"), "split 'test', not 'sixth-1'"),
        (definition(FinalNet, TINY, 0, "test", rate=parabola), "rate 'tinymnist.recipe.learning_rate', not .*parabola"),
        (definition(FinalNet, TINY, 0, "test", rate=Decay(3).rate), r"rate .*, not .*Decay.rate of .*Decay\(power=3\)"),
        (definition(FinalNet, TINY, 0, "test", loss=functools.partial(F.cross_entropy, label_smoothing=0.1)),
         "loss .*cross_entropy', not 'torch.nn.functional.cross_entropy\\(label_smoothing=0.1\\)'"),
        (definition(FinalNet, TINY, 0, "test", loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
         r"loss .*, not .torch.nn.modules.loss.CrossEntropyLoss\(.*label_smoothing=0.1\)"),
    ]:  # fmt: skip
        assert re.match(line, differences(first, other)[0]), differences(first, other)
    assert differences({}, first)[0] == "seed None, not 0"  # as in a record of an earlier form
    older = first | {"recipe": first["recipe"] | {"shear": 8.0}}
    assert differences(older, first) == ["recipe shear 8.0, not None"]
    assert differences(first | {"recipe": None}, first)[0] == "recipe epochs None, not 1"


def test_losses_with_other_weights_of_classes_are_other_losses():
    losses = [torch.nn.CrossEntropyLoss(weight=torch.arange(1.0, n)) for n in (11, 11, 12)]
    names = [definition(FinalNet, TINY, 0, "test", loss=loss)["loss"] for loss in losses]
    assert names[0] == names[1] != names[2]


def test_each_run_is_a_line_and_replaces_an_earlier_one_of_its_variant_and_seed(tmp_path, monkeypatch):
    path = tmp_path / "g.jsonl"
    assert read_runs(path) == []
    for run in (record(1), record(0), record(0, variant="w"), record(1, date="later")):
        save_run(path, run)
    assert len(path.read_text().splitlines()) == 3
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert [(run["seed"], run["date"]) for run in runs.load_runs("g", "v")] == [(0, "2026-01-01"), (1, "later")]
    with pytest.raises(FileNotFoundError, match=r"no finished run of x in .*g\.jsonl: python -m experiments.study g"):
        runs.load_runs("g", "x")


def test_a_last_line_that_was_cut_off_is_told_and_left_out(tmp_path, capsys):
    path = tmp_path / "g.jsonl"
    save_run(path, record(0))
    save_run(path, record(1))
    path.write_bytes(path.read_bytes()[:-20])
    assert [run["seed"] for run in read_runs(path)] == [0]
    assert capsys.readouterr().err == f"{path}: the last line was cut off; that run will be trained again\n"
    save_run(path, record(1))
    assert [run["seed"] for run in read_runs(path)] == [0, 1]


@pytest.mark.parametrize("line", [b"{", b"[]", b"7", b"{}", b"", b"\xff", b'{"history": []}'])
def test_another_damaged_line_is_refused_by_name(tmp_path, line):
    path = tmp_path / "g.jsonl"
    save_run(path, record(0))
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match=re.escape(f"line 1 of {path} is damaged (")):
        read_runs(path)


@pytest.mark.parametrize(
    "change", [{"seed": "0"}, {"recipe": "x"}, {"recipe": {"epochs": 15}}, {"train_accuracy": "x"}, {"history": {}}, {}]
)
def test_a_record_that_is_not_whole_or_is_there_twice_is_refused_by_name(tmp_path, change):
    records = [record(1), record(1) | change]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(run) + "\n" for run in records))
    with pytest.raises(ValueError, match=r"line 2 of .* is damaged"):
        read_runs(tmp_path / "g.jsonl")


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch, fault):
    path = tmp_path / "g.jsonl"
    save_run(path, record(0))
    before = path.read_bytes()

    def full(*_args, **_options):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, fault, full)
    with pytest.raises(OSError, match="no space"):
        save_run(path, record(1))
    assert [p.name for p in tmp_path.iterdir()] == ["g.jsonl"]
    assert path.read_bytes() == before


@pytest.fixture
def weights(tmp_path):
    """The weights of two runs, by seed."""
    write_weights(tmp_path / "step3.pt", {seed: FinalNet().state_dict() for seed in (0, 1)})
    return tmp_path / "step3.pt"


def test_weights_are_loaded_by_seed(weights):
    nets = [FinalNet(), FinalNet()]
    for seed, net in enumerate(nets):
        load_weights(net, weights, seed)
    assert not torch.equal(nets[0].conv1.weight, nets[1].conv1.weight)
    for seed in (-1, 2, "0", None):
        with pytest.raises(ValueError, match=rf"^no published weights of seed {seed!r}: use 0 to 1$"):
            load_weights(FinalNet(), weights, seed)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def head_of(path) -> bytes:
    """Some of the weights, as they lie in the file."""
    return torch.load(path, weights_only=True)[0]["head.weight"].numpy().tobytes()[:400]


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 4\n"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "some bytes": lambda path: path.write_bytes(path.read_bytes().replace(head_of(path), bytes(400))),
    "another net's": lambda path: torch.save({0: STEPS[1].net().state_dict()}, path),
    "not by seed": lambda path: torch.save(FinalNet().state_dict(), path),
    "no weights": lambda path: torch.save([1, 2], path),
    "hostile": lambda path: torch.save(Hostile(path.with_name("made")), path),
    "hostile pickle": lambda path: path.write_bytes(pickle.dumps(Hostile(path.with_name("made")))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_by_name_and_run_no_code(weights, damage):
    DAMAGES[damage](weights)
    with pytest.raises(OSError, match=re.escape(f"in {weights} (")) as caught:
        load_weights(FinalNet(), weights)
    assert "\n" not in str(caught.value)
    assert not weights.with_name("made").exists()


def test_a_record_says_whether_the_code_was_changed_but_not_whether_results_were(tmp_path, monkeypatch):
    def git(*command):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *author, *command], cwd=tmp_path, capture_output=True, text=True, check=True)

    commit = runs.commit.__wrapped__  # a process remembers the one that it began with
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    assert commit() is None  # outside of git
    (tmp_path / "results").mkdir()
    files = [tmp_path / "train.py", tmp_path / "results" / "steps.jsonl"]
    for file in files:
        file.write_text("committed")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        git(*command)
    clean = git("rev-parse", "HEAD").stdout.strip()
    files[1].write_text("trained again")
    (tmp_path / "untracked.txt").write_text("")
    assert commit() == clean
    files[0].write_text("changed")
    assert commit() == f"{clean}-dirty"
