"""The command line: what it writes, what it says, and how it refuses bad input."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
import utils
from model import STEPS
from tinymnist import parallel, runs
from tinymnist.parallel import Ranks
from utils import evaluate, fit, load_runs

SMALL = "import sys, train, utils; train.load_drawn = lambda: utils.load_drawn(600, 200); sys.exit(train.main())"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(runs.REPOSITORY), "PYTHONUNBUFFERED": "1"}

NOT_FINITE = "a loss of epoch 1 is not finite: a lower learning rate may help"


@pytest.fixture(autouse=True)
def _small_drawn(monkeypatch, drawn):
    """Drawn digits, but fewer of them."""
    monkeypatch.setattr(train, "load_drawn", lambda: drawn)


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    try:
        code = train.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def error_of(result: tuple[int, str, str]) -> str:
    """The error of a call that must have failed with exit code 2 and one line on stderr."""
    code, _, err = result
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("train.py: ")
    return err


def test_a_run_writes_its_record_and_weights(capsys, tmp_path, drawn):
    code, out, _ = call(capsys, "--step", 3, "--seed", 7, "--epochs", 2, "--data", "drawn", "--out", tmp_path)
    assert code == 0
    assert "drawn from fonts" in out
    assert sorted(p.name for p in (tmp_path / "step3").iterdir()) == ["seed_7.json", "seed_7.pt"]
    run = json.loads((tmp_path / "step3" / "seed_7.json").read_text())
    expected = {"step": 3, "seed": 7, "params": 7866, "split": "test", "data": "drawn", "commit": runs.commit()}
    assert expected.items() <= run.items()
    assert run["torch_version"] == torch.__version__
    assert (run["recipe"]["epochs"], run["recipe"]["max_lr"]) == (2, STEPS[3].recipe.max_lr)
    assert [record["epoch"] for record in run["history"]] == [1, 2]
    assert all(record["train_total"] == 600 and record["test_total"] == 200 for record in run["history"])
    assert all(record["seconds"] > 0 and record["lr"] > 0 for record in run["history"])
    assert load_runs(tmp_path / "step3") == [run]

    net = STEPS[3].net()
    net.load_state_dict(torch.load(tmp_path / "step3" / "seed_7.pt", weights_only=True))
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert correct == run["history"][-1]["test_correct"]
    assert loss == pytest.approx(run["history"][-1]["test_loss"], rel=1e-4)
    _, correct, total = evaluate(net, drawn.train_images, drawn.train_labels)
    assert run["train_accuracy"] == 100 * correct / total


def test_finished_seeds_are_kept_if_they_are_the_same_experiment(capsys, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(train, "in_processes", in_this_process)
    arguments = ["--step", 1, "--seeds", 2, "--threads", 1, "--data", "drawn", "--out", tmp_path, "--epochs"]
    assert call(capsys, *arguments, 1)[0] == 0
    files = sorted((tmp_path / "step1").glob("*.json"))
    assert [json.loads(f.read_text())["seed"] for f in files] == [0, 1]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    code, out, _ = call(capsys, *arguments, 1)
    assert code == 0
    assert f"kept: {files[0]}" in out
    assert files[0].stat().st_mtime_ns == before
    assert files[1].exists()
    code, out, _ = call(capsys, *arguments, 2)
    assert code == 0
    assert "kept: " not in out
    assert [len(run["history"]) for run in load_runs(tmp_path / "step1", 2)] == [2, 2]
    for seed, damage in enumerate((Path.unlink, lambda path: path.write_bytes(b"version https://git-lfs"))):
        damage(tmp_path / "step1" / f"seed_{seed}.pt")
        out = call(capsys, *arguments, 2)[1]
        assert ("kept: " in out, out.count("written: ")) == (True, 1)
        assert zipfile.is_zipfile(tmp_path / "step1" / f"seed_{seed}.pt")


def test_torchrun_shares_the_seeds_which_have_the_same_bytes_as_alone_and_in_a_notebook(capsys, tmp_path, drawn):
    arguments = ["--step", "2", "--data", "drawn", "--epochs", "1", "--device", "cpu", "--out"]
    alone, shared = (tmp_path / name / "step2" for name in ("alone", "shared"))
    before = torch.get_num_threads()
    try:
        for seed in (0, 1):
            assert call(capsys, *arguments, tmp_path / "alone", "--threads", 1, "--seed", seed)[0] == 0
        assert torch.get_num_threads() == 1
        torch.manual_seed(0)
        net = STEPS[2].net()
        history = fit(net, replace(STEPS[2].recipe, epochs=1), drawn, seed=0, progress=False)
    finally:
        torch.set_num_threads(before)
    shared.mkdir(parents=True)
    for name in ("seed_1.json", "seed_1.pt"):
        shutil.copy(alone / name, shared)
    before = (shared / "seed_1.pt").stat().st_mtime_ns

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*torchrun, sys.executable, "-c", SMALL, *arguments, str(tmp_path / "shared"), "--seeds", "3"]
    elsewhere = ENVIRONMENT | {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    done = subprocess.run(command, env=elsewhere, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The ranks share one standard output, where a line of the one may run into a line of the other.
    assert re.findall(r"step 2: (\d+) random seeds", done.stdout) == ["1", "1"]
    assert (done.stdout.count("written: "), done.stdout.count("kept: ")) == (2, 1)
    assert (shared / "seed_1.pt").stat().st_mtime_ns == before
    assert [run["seed"] for run in load_runs(shared, 3)] == [0, 1, 2]
    runs_of_0 = [load_runs(folder)[0] for folder in (alone, shared)]
    for run in runs_of_0:
        assert run["threads"] == 1
        del run["history"][0]["seconds"]
    assert runs_of_0[0] == runs_of_0[1]
    assert (shared / "seed_0.pt").read_bytes() == (alone / "seed_0.pt").read_bytes()
    weights = torch.load(shared / "seed_0.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert [record | {"seconds": 0} for record in history] == [runs_of_0[0]["history"][0] | {"seconds": 0}]


def test_threads_divide_the_cores_among_the_seeds_and_few_share_a_gpu(capsys, tmp_path, monkeypatch):
    def pretend(_function, jobs, _shared, processes, threads):
        seen.append((len(jobs), processes, threads))
        return []

    seen = []
    monkeypatch.setattr(train, "in_processes", pretend)
    monkeypatch.setattr(train, "pick_device", torch.device)
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    for device, *extra in (("cpu",), ("cpu", "--threads", 3), ("cpu", "--threads", 9), ("cuda",)):
        arguments = ["--step", 1, "--seeds", 20, "--data", "drawn", "--out", tmp_path, "--device", device]
        assert call(capsys, *arguments, *extra)[0] == 0
    assert seen == [(20, 8, 1), (20, 2, 3), (20, 1, 9), (20, 4, 1)]


def test_validation_holds_out_training_images(capsys, tmp_path):
    call(capsys, "--step", 2, "--epochs", 1, "--data", "drawn", "--out", tmp_path, "--validate")
    run = load_runs(tmp_path / "step2")[0]
    assert run["split"] == "validation"
    assert (run["history"][0]["train_total"], run["history"][0]["test_total"]) == (500, 100)


def test_summary_shows_the_net_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "--step", 3, "--summary")
    assert code == 0
    assert "Total params: 7,866" in out
    assert "| receptive field |" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("last", "code", "verdict"), [([9940] * 5, 0, "target met"), ([9940] * 4 + [9939], 1, "MISSED")]
)
def test_the_verdict_decides_the_exit_code(capsys, tmp_path, monkeypatch, drawn, last, code, verdict):
    keys = ("train_loss", "train_correct", "train_total", "test_loss", "test_total", "lr", "seconds")
    history = [
        dict.fromkeys(keys, 1) | {"epoch": epoch, "test_correct": correct, "test_total": 10_000}
        for epoch, correct in enumerate([9000] * 10 + last, start=1)
    ]
    monkeypatch.setattr(utils, "fit", lambda *_args, **_options: history)
    monkeypatch.setattr(train, "load_mnist", lambda root: drawn)
    result = call(capsys, "--step", 3, "--out", tmp_path)
    assert result[0] == code
    assert verdict in result[1]
    result = call(capsys, "--step", 3, "--seeds", 1, "--out", tmp_path)  # the run is kept
    assert result[0] == code
    assert f"{1 - code} of 1 random seeds met the target" in result[1]
    for extra in (["--epochs", 5], ["--validate"]):
        result = call(capsys, "--step", 3, "--out", tmp_path, *extra)
        assert result[0] == 0
        assert "no verdict" in result[1]


WRONG = (
    ";--step 4;--step 0;--step three;--step 3 --epochs 0;--step 3 --seed -1;--step 3 --seed 18446744073709551616;"
    "--step 3 --seeds 0;--step 3 --seeds 1000000000;--step 3 --threads 0;--step 3 --threads 100000;"
    "--step 3 --seed 1 --seeds 2;--step 3 --device gpu;--step 3 --steps;--step 3 --new-teacher"
)


@pytest.mark.parametrize("arguments", WRONG.split(";"))
def test_wrong_arguments_are_refused(capsys, tmp_path, arguments):
    result = call(capsys, *arguments.split(), "--data", "drawn", "--out", tmp_path / "out")
    error_of(result)
    assert result[1] == ""
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_refused(capsys, tmp_path, monkeypatch):
    common = ("--step", 3, "--out", tmp_path, "--data")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no device 'cuda:1' here" in error_of(call(capsys, *common, "drawn", "--device", "cuda:1"))
    assert "needs a CUDA device" in error_of(call(capsys, *common, "drawn", "--device", "cpu", "--graph"))
    (tmp_path / "file").touch()
    assert "cannot read or write MNIST" in error_of(call(capsys, *common, tmp_path / "file"))
    monkeypatch.setattr(train, "torchrun_ranks", lambda: contextlib.nullcontext(Ranks(world=2, local_world=2)))
    assert "use --seeds N" in error_of(call(capsys, *common, "drawn"))  # to share out
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


def test_unwritable_out_is_refused_before_training(capsys, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "step3").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken", Path("/proc/nothing")):
        result = call(capsys, "--step", 3, "--data", "drawn", "--out", out)
        error_of(result)
        assert result[1] == ""
    assert (tmp_path / "file").read_text() == "precious"


def test_a_training_that_comes_to_nothing_fails_the_call_in_one_line(capsys, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(train, "in_processes", in_this_process)
    monkeypatch.setitem(STEPS, 1, replace(STEPS[1], recipe=replace(STEPS[1].recipe, max_lr=1e30)))
    for number, extra in ((1, ["--seed", 0]), (2, ["--seeds", 2])):
        code, out, err = call(capsys, "--step", 1, "--data", "drawn", "--device", "cpu", "--out", tmp_path, *extra)
        lines = [line for line in err.splitlines() if line.startswith("train.py: ")]
        assert (code, lines) == (1, [f"train.py: seed {k} failed: {NOT_FINITE}" for k in range(number)])
        assert "written" not in out
        assert "Traceback" not in err
    assert sorted(path.name for path in (tmp_path / "step1").iterdir()) == ["seed_0.failed", "seed_1.failed"]


def test_two_calls_into_one_folder_are_told(capsys, tmp_path):
    common = ["--step", 1, "--data", "drawn", "--epochs", 1, "--out", tmp_path]
    (tmp_path / "step1").mkdir()
    with runs.claimed(tmp_path / "step1"), runs.claimed(tmp_path / "step1" / "seed_7.json"):
        assert f"another process is writing {tmp_path / 'step1'}: " in error_of(call(capsys, *common, "--seeds", 2))
        assert "another process is writing " in call(capsys, *common, "--seed", 7)[2]
        assert call(capsys, *common, "--seed", 8)[0] == 0  # another run may be trained beside


KILLING = """
import multiprocessing, os, random, signal, sys, time
from pathlib import Path
import torch, train, utils
from tinymnist.runs import read_run

out, kills, seeds, digits = Path(sys.argv[1]), int(sys.argv[2]), 6, utils.load_drawn(300, 100)
spawned, train.load_drawn = multiprocessing.get_context("fork"), lambda: digits
multiprocessing.get_context = lambda _: spawned  # so that a call does not import PyTorch for seconds
torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1)], 0.1)  # the first one imports half of PyTorch
random.seed(0)

def start(name):
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    options = ["--step", "3", "--seeds", str(seeds), "--epochs", "1", "--data", "drawn", "--device", "cpu", "--out"]
    os._exit(train.main([*options, str(out / name)]))

def records(name):
    return sorted((out / name / "step3").glob("seed_*.json"))

began = time.perf_counter()
assert os.waitstatus_to_exitcode(os.waitpid(start("undisturbed"), 0)[1]) == 0
seconds, found = time.perf_counter() - began, []
for _ in range(kills):
    child = start("killed")
    time.sleep(random.uniform(0.1, 0.8) * seconds)
    random.choice((os.kill, os.killpg))(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found.append(len(records("killed")))
    assert all(read_run(path, {}) for path in records("killed"))
    for path in random.sample(records("killed"), found[-1] // 2):  # so that there is something to do
        path.unlink()
print(*found)
assert os.waitstatus_to_exitcode(os.waitpid(start("killed"), 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_killed_calls_leave_whole_runs_and_the_next_ends_as_if_undisturbed(tmp_path):
    """KILLS=50 in the environment kills fifty times."""
    kills = os.environ.get("KILLS", "6")
    command = [sys.executable, "-c", KILLING, str(tmp_path), kills]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120 + 10 * int(kills))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(done.stdout.split()) == int(kills)
    assert any(int(count) > 0 for count in done.stdout.split())
    undisturbed, killed = (tmp_path / name / "step3" for name in ("undisturbed", "killed"))
    names = sorted(f"seed_{seed}.{kind}" for seed in range(6) for kind in ("json", "pt"))
    assert sorted(path.name for path in killed.iterdir()) == names
    for name in names:
        first, second = (without_times(folder / name) for folder in (undisturbed, killed))
        assert first == second, name


def without_times(path: Path) -> bytes:
    """The content of a file of a run, without what it says about seconds."""
    return re.sub(rb'"seconds": [^\n]*', b"", path.read_bytes())


def test_only_full_runs_on_mnist_go_into_results(capsys, repository):
    results = repository / "results"
    before = sorted(results.rglob("*"))
    for out in (results, results / "more", repository / "runs" / ".." / "results"):
        assert "MNIST only" in error_of(call(capsys, "--step", 3, "--data", "drawn", "--out", out))
    for extra in (["--epochs", 1], ["--validate"]):
        assert "full runs" in error_of(call(capsys, "--step", 3, "--out", results, *extra))
    assert sorted(results.rglob("*")) == before


def test_a_failing_write_keeps_the_earlier_run(capsys, tmp_path, monkeypatch):
    arguments = ["--step", 1, "--epochs", 1, "--data", "drawn", "--out", tmp_path]
    call(capsys, *arguments)
    before = {p: p.read_bytes() for p in (tmp_path / "step1").iterdir()}

    def full(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "no space left on device" in call(capsys, *arguments)[2]
    assert {p: p.read_bytes() for p in (tmp_path / "step1").iterdir()} == before


def test_a_record_says_whether_the_code_was_changed_but_not_whether_results_were(tmp_path, monkeypatch):
    def git(*command):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *author, *command], cwd=tmp_path, capture_output=True, text=True, check=True)

    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    assert runs.commit() is None  # outside of git
    (tmp_path / "results").mkdir()
    files = [tmp_path / "train.py", tmp_path / "results" / "seed_0.json"]
    for file in files:
        file.write_text("committed")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        git(*command)
    clean = git("rev-parse", "HEAD").stdout.strip()
    assert runs.commit() == clean
    files[1].write_text("trained again")
    (tmp_path / "untracked.txt").write_text("")
    assert runs.commit() == clean
    files[0].write_text("changed")
    assert runs.commit() == f"{clean}-dirty"


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell ignores it


@pytest.mark.parametrize(
    ("step", "extra", "begun"), [(3, ["--seed", "0"], "epoch  1"), (2, ["--seeds", "2"], "step 2: 2 random seeds")]
)
def test_interrupted_run_leaves_nothing_half_written(tmp_path, step, extra, begun):
    # Processes take minutes to start here, as many do at once: nobody waits for them.
    slow = "import sys, time\nif '--multiprocessing-fork' in sys.orig_argv: time.sleep(90)"
    (tmp_path / "sitecustomize.py").write_text(slow)
    earlier = tmp_path / f"step{step}" / "seed_0.json"
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    options = ["--step", str(step), "--data", "drawn", "--epochs", "5000", "--device", "cpu", "--out", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-c", SMALL, *options, *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{runs.REPOSITORY}"},
        preexec_fn=interruptible,
        start_new_session=True,
    )
    try:
        while not child.stdout.readline().startswith(begun):
            assert child.poll() is None
        time.sleep(1)  # with --seeds, processes are starting
        os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C does
        _, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 130
    assert err.splitlines()[-1].startswith("train.py: interrupted")
    assert "Traceback" not in err
    assert [p.name for p in earlier.parent.iterdir()] == ["seed_0.json"]
    assert earlier.read_text() == "earlier"
    for _ in range(50):
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left")
