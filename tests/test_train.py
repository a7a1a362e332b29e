"""The command line: what it writes, what it says, and how it refuses bad input."""

import contextlib
import json
import os
import re
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
from tinymnist import parallel
from utils import evaluate, fit, validation_split


@pytest.fixture(autouse=True)
def _drawn_digits(monkeypatch, drawn):
    """Drawn digits in place of MNIST."""

    def load(root=None, split="test"):
        return drawn if split == "test" else validation_split(drawn, int(split[-1]))

    monkeypatch.setattr(train, "load_mnist", load)


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    try:
        code = train.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def error_of(result: tuple[int, str, str]) -> str:
    """The error of a call that must have failed with exit code 2 and one line on stderr, and trained nothing."""
    code, out, err = result
    assert (code, err.count("\n"), "written" in out) == (2, 1, False)
    assert err.startswith("train.py: ")
    return err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_writes_its_record_and_weights(capsys, tmp_path, drawn):
    code, out, _ = call(capsys, "--step", 3, "--seed", 7, "--epochs", 2, "--out", tmp_path)
    assert code == 0
    assert "no verdict: the target is about 15 epochs and the test set" in out
    assert sorted(p.name for p in (tmp_path / "step3").iterdir()) == ["seed_7.json", "seed_7.pt"]
    run = json.loads((tmp_path / "step3" / "seed_7.json").read_text())
    assert {"group": "steps", "variant": "step3", "seed": 7, "parameters": 7866, "split": "test"}.items() <= run.items()
    assert (run["recipe"]["epochs"], run["recipe"]["max_lr"]) == (2, STEPS[3].recipe.max_lr)
    assert len(run["history"]["test_correct"]) == 2

    net = STEPS[3].net()
    net.load_state_dict(torch.load(tmp_path / "step3" / "seed_7.pt", weights_only=True))
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert correct == run["history"]["test_correct"][-1]
    assert loss == pytest.approx(run["history"]["test_loss"][-1], rel=1e-4)
    _, correct, total = evaluate(net, drawn.train_images, drawn.train_labels)
    assert run["train_accuracy"] == 100 * correct / total


@pytest.mark.parametrize("seeds", [["--seed", 0], ["--seeds", 2]])
def test_a_finished_run_is_kept_and_another_never_takes_its_place(
    capsys, tmp_path, monkeypatch, in_this_process, seeds
):
    monkeypatch.setattr(train, "in_processes", in_this_process)
    arguments = ["--step", 1, *seeds, "--out", tmp_path, "--epochs"]
    assert call(capsys, *arguments, 2)[0] == 0
    before = contents(tmp_path / "step1")
    code, out, _ = call(capsys, *arguments, 2)
    assert (code, out.count("kept: "), "written: " in out) == (0, seeds[-1] or 1, False)
    for other in (["3"], ["2", "--validate"]):
        line = error_of(call(capsys, *arguments, *other))
        assert f"{tmp_path / 'step1' / 'seed_0.json'} holds another run (" in line
        assert "use another --out, or delete it" in line
    assert "recipe epochs 2, not 3" in error_of(call(capsys, *arguments, 3))
    assert contents(tmp_path / "step1") == before


def test_a_run_that_another_call_has_written_meanwhile_stays(capsys, tmp_path, monkeypatch):
    def also_another_call(*arguments, **options):
        monkeypatch.setattr(train, "train_run", utils.train_run)
        assert train.main(["--step", "1", "--epochs", "1", "--out", str(tmp_path)]) == 0
        return utils.train_run(*arguments, **options)

    monkeypatch.setattr(train, "train_run", also_another_call)
    code, _, err = call(capsys, "--step", 1, "--epochs", 2, "--out", tmp_path)
    assert (code, "recipe epochs 1, not 2" in err.splitlines()[-1]) == (2, True)
    assert json.loads((tmp_path / "step1" / "seed_0.json").read_text())["recipe"]["epochs"] == 1


def test_what_is_missing_or_damaged_is_trained_again(capsys, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(train, "in_processes", in_this_process)
    arguments = ["--step", 1, "--seeds", 6, "--epochs", 1, "--out", tmp_path]
    call(capsys, *arguments)
    before, folder = contents(tmp_path / "step1"), tmp_path / "step1"
    (folder / "seed_0.json").unlink()
    run = json.loads(before["seed_1.json"])
    del run["history"]["seconds"]
    (folder / "seed_1.json").write_text(json.dumps(run))
    (folder / "seed_4.json").write_text('{"seed": 4, "hist')
    (folder / "seed_2.pt").write_bytes(before["seed_2.pt"][:1000])
    (folder / "seed_3.pt").unlink()
    _, out, err = call(capsys, *arguments)
    assert (out.count("kept: "), out.count("written: ")) == (1, 5)
    assert re.findall(r"damaged: seed (\d) is trained again\n", err) == ["1", "2", "3", "4"]
    assert all(zipfile.is_zipfile(folder / f"seed_{seed}.pt") for seed in range(6))
    assert sorted(contents(folder)) == sorted(before)


def test_what_is_no_record_of_ours_is_not_replaced(capsys, tmp_path):
    (tmp_path / "step1").mkdir()
    for content in ('{"seed": 0, "test_acc": [99.1]}', "{}", '{"recipe": null}', '{"recipe": [1]}'):
        (tmp_path / "step1" / "seed_0.json").write_text(content)
        assert "holds another run (" in error_of(call(capsys, "--step", 1, "--out", tmp_path))
        assert (tmp_path / "step1" / "seed_0.json").read_text() == content


def program(*arguments) -> list[str]:
    return [sys.executable, train.__file__, "--device", "cpu", *map(str, arguments)]


def test_processes_and_ranks_give_the_same_bytes_as_a_notebook(tmp_path, drawn, environment):
    ranks = [environment() | {"RANK": str(k), "WORLD_SIZE": "2", "LOCAL_RANK": str(k)} for k in (0, 1)]
    command = program("--step", 2, "--epochs", 1, "--seeds", 3, "--out", tmp_path)
    done = [subprocess.run(command, env=env, capture_output=True, text=True) for env in ranks]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    written = [re.findall(r"written: .*seed_(\d)", d.stdout) for d in done]
    assert [sorted(seeds) for seeds in written] == [["0", "2"], ["1"]]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        net = STEPS[2].net()
        history = fit(net, replace(STEPS[2].recipe, epochs=1), drawn, seed=1, progress=False)
    finally:
        torch.set_num_threads(before)
    weights = torch.load(tmp_path / "step2" / "seed_1.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    run = json.loads((tmp_path / "step2" / "seed_1.json").read_text())
    assert run["history"] | {"seconds": 0} == history | {"seconds": 0}


def test_threads_divide_the_cores_among_the_seeds_and_few_share_a_gpu(capsys, tmp_path, monkeypatch):
    def pretend(_function, jobs, processes, threads):
        seen.append((len(jobs), processes, threads))
        return []

    seen = []
    monkeypatch.setattr(train, "in_processes", pretend)
    monkeypatch.setattr(train, "pick_device", torch.device)
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    for device, *extra in (("cpu",), ("cpu", "--threads", 3), ("cpu", "--threads", 9), ("cuda",)):
        assert call(capsys, "--step", 1, "--seeds", 20, "--out", tmp_path, "--device", device, *extra)[0] == 0
    assert seen == [(20, 8, 1), (20, 2, 3), (20, 1, 9), (20, 4, 1)]


def test_validation_holds_out_training_images(capsys, tmp_path):
    call(capsys, "--step", 2, "--epochs", 1, "--out", tmp_path, "--validate")
    run = json.loads((tmp_path / "step2" / "seed_0.json").read_text())
    assert run["split"] == "sixth-5"
    assert (run["history"]["train_total"], run["history"]["test_total"]) == ([500], [100])


def test_summary_shows_the_net_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "--step", 3, "--summary")
    assert code == 0
    assert "Total params: 7,866" in out
    assert re.search(r"\| head .* 42 \|", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("last", "code", "verdict"), [([9940] * 5, 0, "target met"), ([9940] * 4 + [9939], 1, "target MISSED")]
)
def test_the_verdict_decides_the_exit_code_but_does_not_stop_other_ranks(
    capsys, tmp_path, monkeypatch, last, code, verdict
):
    def pretend(*_args, **_options):
        names = "lr train_loss train_correct train_total test_loss seconds"
        history = {name: [1.0] * 15 for name in names.split()}
        return history | {"test_correct": [9000] * 10 + list(last), "test_total": [10_000] * 15}

    monkeypatch.setattr(utils, "fit", pretend)
    for _ in range(2):  # the second time the run is kept
        result = call(capsys, "--step", 3, "--out", tmp_path)
        assert result[0] == code
        assert f"{min(last) / 100:.2f} % to 99.40 %, after 15 s; {verdict}: at least 99.40 % in each" in result[1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(capsys, "--step", 3, "--out", tmp_path)[0] == 0
    monkeypatch.setenv("RANK", "1")
    assert call(capsys, "--step", 3, "--seed", 5, "--out", tmp_path) == (0, "", "")  # one seed, which is rank 0's


WRONG = (
    ";--step 0;--step three;--step 3 --epochs 0;--step 3 --seed -1;--step 3 --seed 18446744073709551616;"
    "--step 3 --seeds 0;--step 3 --seeds 1e9;--step 3 --threads 0;--step 3 --seed 1 --seeds 2;--step 3 --device gpu;"
    "--step 3 --steps;--step 3 --epoch 3;--step 3 --device cpu --graph;step3"
)


@pytest.mark.parametrize("arguments", WRONG.split(";"))
def test_wrong_arguments_are_refused(capsys, tmp_path, arguments):
    error_of(call(capsys, *arguments.split(), "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_and_what_cannot_be_written_is_told_before_training(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "step3").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken", Path("/proc/nothing")):
        error_of(call(capsys, "--step", 3, "--out", out))
    assert (tmp_path / "file").read_text() == "precious"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no device 'cuda:1' here" in error_of(call(capsys, "--step", 3, "--out", tmp_path, "--device", "cuda:1"))
    monkeypatch.setattr(train, "load_mnist", utils.load_mnist)
    assert "no MNIST in" in error_of(call(capsys, "--step", 3, "--out", tmp_path, "--data", tmp_path / "file"))


def test_a_run_that_diverges_is_a_miss(capsys, tmp_path, monkeypatch):
    recipe = replace(STEPS[1].recipe, max_lr=1e30)
    monkeypatch.setitem(STEPS, 1, replace(STEPS[1], recipe=recipe))
    code, out, err = call(capsys, "--step", 1, "--device", "cpu", "--out", tmp_path)
    assert code == 1
    assert "the loss is not finite: a lower learning rate may help; target MISSED" in out
    assert "Traceback" not in err
    assert sorted(path.name for path in (tmp_path / "step1").iterdir()) == ["seed_0.json", "seed_0.pt"]


def test_it_needs_neither_torch_distributed_nor_what_reads_pictures_and_notebooks(tmp_path, environment):
    """PyTorch for Jetson, and with ROCm on Windows, has no torch.distributed."""
    parts = "_c10d_init _rpc_init _dist_autograd_init _faulty_agent_init"
    without = {"torch._C": f"for part in {parts.split()}: globals().pop(part, None)"}
    without |= {"torch.distributed": "assert not is_available()"}
    without |= {name: f"raise ModuleNotFoundError('{name}')" for name in ("skimage", "scipy", "IPython")}
    command = program("--step", 1, "--epochs", 1, "--out", tmp_path)
    done = subprocess.run(command, env=environment(without), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "step1" / "seed_0.json").exists()


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell ignores it


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_call_loses_no_finished_run_and_the_next_goes_on(tmp_path, environment, signal_number):
    command = program("--step", 1, "--epochs", 2, "--out", tmp_path, "--seeds")
    child = subprocess.Popen(
        [*command, "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=interruptible,
        start_new_session=True,
    )
    try:
        while "written" not in (line := child.stdout.readline()):
            assert child.poll() is None, line
        if signal_number == signal.SIGKILL:
            child.kill()  # the parent alone
        else:
            os.killpg(child.pid, signal_number)  # as Ctrl-C does
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    if signal_number == signal.SIGINT:
        assert child.returncode == 130
        assert err.splitlines()[-1].startswith("train.py: interrupted")
    assert "Traceback" not in err
    finished = sorted((tmp_path / "step1").glob("seed_*.json"))
    assert finished
    assert all(json.loads(path.read_bytes())["history"]["test_correct"] for path in finished)
    assert all(zipfile.is_zipfile(path.with_suffix(".pt")) for path in finished)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):  # no process is left
            os.killpg(child.pid, 0)
            time.sleep(0.1)
        pytest.fail("a process is left")
    seeds = 1 + max(int(path.stem.removeprefix("seed_")) for path in finished)
    done = subprocess.run([*command, str(seeds)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kept: ") >= len(finished)
