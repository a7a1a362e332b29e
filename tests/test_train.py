"""The command line: what it writes, what it says, and how it refuses bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from model import STEPS
from utils import evaluate, load_drawn, load_runs, normalize


@pytest.fixture(autouse=True)
def _small_drawn(monkeypatch):
    """Drawn digits, but fewer of them."""
    monkeypatch.setattr(train, "load_drawn", lambda: load_drawn(600, 200))


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    try:
        code = train.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def one_line_error(result: tuple[int, str, str]) -> str:
    """The error of a call that must have failed with exit code 2 and one line on stderr."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("train.py: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def test_a_run_writes_its_record_and_weights(capsys, tmp_path):
    code, out, _ = call(capsys, "--step", 3, "--seed", 7, "--epochs", 2, "--data", "drawn", "--out", tmp_path)
    assert code == 0
    assert "drawn from fonts" in out
    assert sorted(p.name for p in (tmp_path / "step3").iterdir()) == ["seed_7.json", "seed_7.pt"]
    run = json.loads((tmp_path / "step3" / "seed_7.json").read_text())
    expected = {"step": 3, "seed": 7, "params": 7866, "device": run["device"], "split": "test", "data": "drawn"}
    assert expected.items() <= run.items()
    assert run["torch_version"] == torch.__version__
    assert run["recipe"]["epochs"] == 2
    assert run["recipe"]["max_lr"] == STEPS[3].recipe.max_lr
    assert [record["epoch"] for record in run["history"]] == [1, 2]
    assert all(record["train_total"] == 600 and record["test_total"] == 200 for record in run["history"])
    assert all(record["seconds"] > 0 and record["lr"] > 0 for record in run["history"])
    assert load_runs(tmp_path / "step3") == [run]

    net = STEPS[3].net()
    net.load_state_dict(torch.load(tmp_path / "step3" / "seed_7.pt", weights_only=True))
    digits = load_drawn(600, 200)
    loss, correct, _ = evaluate(net, digits.test_images, digits.test_labels)
    assert correct == run["history"][-1]["test_correct"]
    assert loss == pytest.approx(run["history"][-1]["test_loss"], rel=1e-4)
    assert (net.eval()(normalize(digits.test_images)).argmax(1) == digits.test_labels).sum() == correct


def test_the_teacher_is_trained_once_and_kept(capsys, tmp_path):
    arguments = ("--step", 3, "--epochs", 1, "--data", "drawn", "--out", tmp_path)
    code, out, _ = call(capsys, *arguments, "--seed", 0)
    assert code == 0
    assert "43,930 parameters, is trained first" in out
    teacher = json.loads((tmp_path / "teacher" / "seed_0.json").read_text())
    assert (teacher["params"], teacher["recipe"]["distillation"]) == (43_930, 0)
    code, out, _ = call(capsys, *arguments, "--seeds", 2)
    assert code == 0
    assert "trained first" not in out
    assert f"teacher: {tmp_path / 'teacher' / 'seed_0.json'}" in out
    (tmp_path / "teacher" / "seed_0.json").write_text("{}")
    assert "trained first" in call(capsys, *arguments, "--seed", 1)[1]


def test_the_published_teacher_is_for_its_own_images(capsys, tmp_path, monkeypatch, drawn):
    """It is taken for MNIST, not for other data, and not if a new one is asked for."""
    published = train.RESULTS / "teacher" / "seed_0.json"
    monkeypatch.setattr(train, "load_mnist", lambda root: drawn)
    arguments = ("--step", 3, "--epochs", 1, "--out", tmp_path)
    assert f"teacher: {published}" in call(capsys, *arguments)[1]
    assert not (tmp_path / "teacher").exists()
    assert "trained first" in call(capsys, *arguments, "--new-teacher")[1]
    assert "trained first" in call(capsys, *arguments, "--data", "drawn", "--out", tmp_path / "drawn")[1]


def test_seeds_are_trained_and_finished_ones_kept(capsys, tmp_path):
    arguments = ["--step", 1, "--seeds", 2, "--epochs", 1, "--data", "drawn", "--out", tmp_path]
    assert call(capsys, *arguments)[0] == 0
    files = sorted((tmp_path / "step1").glob("*.json"))
    assert [json.loads(f.read_text())["seed"] for f in files] == [0, 1]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert files[0].stat().st_mtime_ns == before
    assert f"kept: {files[0]}" in out
    assert files[1].exists()


def test_a_seed_has_the_same_bits_alone_and_among_others(capsys, tmp_path):
    common = ["--step", 2, "--epochs", 1, "--data", "drawn", "--device", "cpu"]
    before = torch.get_num_threads()
    try:
        assert call(capsys, *common, "--seed", 1, "--threads", 1, "--out", tmp_path / "alone")[0] == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert call(capsys, *common, "--seeds", 2, "--out", tmp_path / "among")[0] == 0
    runs = [json.loads((tmp_path / name / "step2" / "seed_1.json").read_text()) for name in ("alone", "among")]
    for run in runs:
        assert run.pop("threads") == 1
        del run["history"][0]["seconds"]
    assert runs[0] == runs[1]
    weights = [torch.load(tmp_path / name / "step2" / "seed_1.pt") for name in ("alone", "among")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_threads_divide_the_cores_among_the_seeds(capsys, tmp_path, monkeypatch):
    seen = {}

    def pretend(function, jobs, shared, processes, threads):
        seen.update(jobs=len(jobs), processes=processes, threads=threads)
        return []

    monkeypatch.setattr(train, "in_processes", pretend)
    monkeypatch.setattr(train, "cores", lambda: 8)
    for extra, processes, threads in (([], 8, 1), (["--threads", 3], 2, 3), (["--threads", 9], 1, 9)):
        arguments = ["--step", 1, "--seeds", 20, "--data", "drawn", "--device", "cpu", "--out", tmp_path]
        assert call(capsys, *arguments, *extra)[0] == 0
        assert seen == {"jobs": 20, "processes": processes, "threads": threads}


def test_a_kept_run_must_be_the_same_experiment(capsys, tmp_path):
    arguments = ["--step", 1, "--seeds", 1, "--data", "drawn", "--out", tmp_path]
    assert call(capsys, *arguments, "--epochs", 1)[0] == 0
    code, out, _ = call(capsys, *arguments, "--epochs", 2)
    assert code == 0
    assert "kept: " not in out
    assert len(load_runs(tmp_path / "step1")[0]["history"]) == 2


def test_validation_holds_out_training_images(capsys, tmp_path):
    call(capsys, "--step", 2, "--epochs", 1, "--data", "drawn", "--out", tmp_path, "--validate")
    run = load_runs(tmp_path / "step2")[0]
    assert run["split"] == "validation"
    assert run["history"][0]["train_total"] == 500
    assert run["history"][0]["test_total"] == 100


def test_summary_shows_the_net_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "--step", 3, "--summary")
    assert code == 0
    assert "Total params: 7,866" in out
    assert "| receptive field |" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("accuracies", "code", "verdict"), [([9940] * 5, 0, "target met"), ([9940] * 4 + [9939], 1, "MISSED")]
)
def test_the_verdict_decides_the_exit_code(capsys, tmp_path, monkeypatch, drawn, accuracies, code, verdict):
    def pretend(*_args, **_options):
        keys = ("train_loss", "train_correct", "train_total", "test_loss", "test_total", "lr", "seconds")
        counts = [9000] * 10 + accuracies
        return [
            dict.fromkeys(keys, 1) | {"epoch": i + 1, "test_correct": n, "test_total": 10_000}
            for i, n in enumerate(counts)
        ]

    monkeypatch.setattr(train, "fit", pretend)
    monkeypatch.setattr(train, "load_mnist", lambda root: drawn)
    result = call(capsys, "--step", 3, "--out", tmp_path)
    assert result[0] == code
    assert verdict in result[1]
    for extra in (["--epochs", 5], ["--validate"]):
        result = call(capsys, "--step", 3, "--out", tmp_path, *extra)
        assert result[0] == 0
        assert "no verdict" in result[1]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--step", "4"],
        ["--step", "0"],
        ["--step", "three"],
        ["--step", "3", "--epochs", "0"],
        ["--step", "3", "--epochs", "1.5"],
        ["--step", "3", "--seed", "-1"],
        ["--step", "3", "--seed", str(2**64)],
        ["--step", "3", "--seeds", "0"],
        ["--step", "3", "--seeds", "1000000000"],
        ["--step", "3", "--threads", "0"],
        ["--step", "3", "--threads", "100000"],
        ["--step", "3", "--seed", "1", "--seeds", "2"],
        ["--step", "3", "--device", "gpu"],
        ["--step", "3", "--steps"],
    ],
)
def test_wrong_arguments_are_refused(capsys, tmp_path, arguments):
    one_line_error(call(capsys, *arguments, "--data", "drawn", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_cuda_without_cuda_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device here" in one_line_error(call(capsys, "--step", 3, "--device", "cuda:1"))


def test_damaged_data_is_refused(capsys, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    (tmp_path / "empty").mkdir()
    error = one_line_error(call(capsys, "--step", 3, "--data", tmp_path / "empty", "--out", tmp_path / "out"))
    assert "could not be downloaded" in error
    assert "by hand" in error
    assert not (tmp_path / "out").exists()


def test_unwritable_out_is_refused_before_training(capsys, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "step3").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken", Path("/proc/nothing")):
        one_line_error(call(capsys, "--step", 3, "--data", "drawn", "--out", out))
    assert (tmp_path / "file").read_text() == "precious"


def test_drawn_digits_stay_out_of_results(capsys, repository):
    before = sorted((repository / "results").rglob("*"))
    for out in (repository / "results", repository / "results" / "more", repository / "runs" / ".." / "results"):
        error = one_line_error(call(capsys, "--step", 3, "--data", "drawn", "--out", out))
        assert "MNIST only" in error
    assert sorted((repository / "results").rglob("*")) == before


def test_shortened_or_held_out_runs_stay_out_of_results(capsys, repository):
    for extra in (["--epochs", 1], ["--validate"]):
        error = one_line_error(call(capsys, "--step", 3, "--out", repository / "results", *extra))
        assert "full runs" in error


def test_a_failing_write_keeps_the_earlier_run(capsys, tmp_path, monkeypatch):
    arguments = ["--step", 1, "--epochs", 1, "--data", "drawn", "--out", tmp_path]
    call(capsys, *arguments)
    before = {p: p.read_bytes() for p in (tmp_path / "step1").iterdir()}

    def full(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "no space left on device" in err
    assert {p: p.read_bytes() for p in (tmp_path / "step1").iterdir()} == before


@pytest.mark.parametrize(
    ("step", "extra", "begun"),
    [(3, ["--seed", "0"], "epoch  1"), (2, ["--seeds", "2"], "step 2: 2 random seeds to train")],
)
def test_interrupted_run_leaves_nothing_half_written(repository, tmp_path, step, extra, begun):
    options = ["--step", str(step), "--data", "drawn", "--epochs", "500", "--out", str(tmp_path)]
    command = [sys.executable, "train.py", *options]
    (tmp_path / f"step{step}").mkdir()
    (tmp_path / f"step{step}" / "seed_0.json").write_text("earlier")
    child = subprocess.Popen(
        [*command, *extra],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
        start_new_session=True,
    )
    try:
        while not child.stdout.readline().startswith(begun):
            assert child.poll() is None
        time.sleep(0.2 if extra[0] == "--seed" else 8)  # processes have to start
        os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C does
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert err.splitlines()[-1].startswith("train.py: interrupted")
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / f"step{step}").iterdir()] == ["seed_0.json"]
    assert (tmp_path / f"step{step}" / "seed_0.json").read_text() == "earlier"
    deadline = time.time() + 5
    while time.time() < deadline and processes_of_group(child.pid):
        time.sleep(0.1)
    assert processes_of_group(child.pid) is False


def processes_of_group(group: int) -> bool:
    """Whether a process of that group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
