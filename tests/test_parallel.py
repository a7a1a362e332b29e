"""Many random seeds at once: processes that end as they should, and ranks that torchrun starts."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from tinymnist.parallel import cores, in_processes


def square(job: int, shared: int) -> tuple[int, int]:
    return shared + job**2, torch.get_num_threads()


def fail(job: int, _: None) -> int:
    if job == 1:
        raise ValueError(f"job {job} is wrong")
    return job


def die(_job: int, _: None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_slowly(job: int, folder: str) -> None:
    open(f"{folder}/begun_{job}", "w").close()
    time.sleep(5)
    open(f"{folder}/done_{job}", "w").close()


def test_results_come_back_from_processes_with_one_thread():
    found = list(in_processes(square, [1, 2, 3], shared=100, processes=2))
    assert sorted(found) == [(101, 1), (104, 1), (109, 1)]


def test_no_jobs_start_nothing():
    assert list(in_processes(square, [], processes=2)) == []


def test_an_error_comes_through():
    with pytest.raises(ValueError, match="job 1 is wrong"):
        list(in_processes(fail, [1], processes=1))


def test_a_dead_process_is_an_error_and_not_a_wait():
    with pytest.raises(OSError, match=r"a process died.*call again"):
        list(in_processes(die, [0], processes=1))


def test_no_process_outlives_its_parent(repository, tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_parallel import in_processes, write_slowly\n"
        f"if __name__ == '__main__': list(in_processes(write_slowly, [0, 1], {str(tmp_path)!r}, processes=2))\n"
    )
    (tmp_path / "main.py").write_text(code)
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")], cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)}
    )
    while len(list(tmp_path.glob("begun_*"))) < 2:
        assert child.poll() is None
        time.sleep(0.1)
    child.kill()
    child.wait()
    time.sleep(6)
    assert list(tmp_path.glob("done_*")) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from tinymnist.parallel import cores; print(cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def torchrun(repository):
    """Calls train.py in two ranks on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def call(*arguments: object) -> subprocess.CompletedProcess:
        command = [*launcher, "train.py", "--step", "1", "--data", "drawn", "--epochs", "1", "--device", "cpu"]
        return subprocess.run([*command, *map(str, arguments)], cwd=repository, capture_output=True, text=True)

    return call


def test_torchrun_shares_the_seeds_between_two_ranks(torchrun, tmp_path):
    (tmp_path / "step1").mkdir()
    done = torchrun("--seeds", 3, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "step1").glob("*.json"))
    assert [f.name for f in files] == ["seed_0.json", "seed_1.json", "seed_2.json"]
    assert [json.loads(f.read_text())["seed"] for f in files] == [0, 1, 2]
    # The ranks share one standard output, where a line of the one may run into a line of the other.
    assert sorted(re.findall(r"step 1: (\d+) random seeds to train", done.stdout)) == ["1", "2"]
    assert done.stdout.count("written: ") == 3

    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    done = torchrun("--seeds", 3, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kept: ") == 2
    assert done.stdout.count("written: ") == 1
    assert files[1].exists()
    assert files[0].stat().st_mtime_ns == before


def test_torchrun_without_seeds_is_refused(torchrun, tmp_path):
    done = torchrun("--out", tmp_path)
    assert done.returncode != 0
    assert "use --seeds N" in done.stderr
    assert not (tmp_path / "step1").exists()
