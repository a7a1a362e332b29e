"""Many seeds at once: processes that end as they should, none of which is left behind."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import ClassVar

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


def beat(job: int, folder: str) -> None:
    for _ in range(600):
        Path(folder, f"beat_{job}").touch()
        time.sleep(0.05)


def test_results_come_back_from_processes_with_one_thread():
    found = list(in_processes(square, [1, 2, 3], shared=100, processes=2))
    assert sorted(found) == [(101, 1), (104, 1), (109, 1)]


def test_no_jobs_start_nothing():
    assert list(in_processes(square, [], processes=2)) == []


def test_an_error_comes_through():
    with pytest.raises(ValueError, match="job 1 is wrong"):
        list(in_processes(fail, [1], processes=1))


class Result:
    """Remembers all of its kind that are still there."""

    alive: ClassVar[weakref.WeakSet["Result"]] = weakref.WeakSet()

    def __setstate__(self, state: dict):
        self.alive.add(self)


def make(_job: int, _: None) -> Result:
    result = Result()
    result.content = "something"
    return result


def test_results_are_not_kept():
    counts = [len(Result.alive) for _ in in_processes(make, list(range(30)))]
    assert len(counts) == 30
    assert counts[-1] <= 2  # this result and the one before


def test_a_dead_process_is_an_error_and_not_a_wait():
    with pytest.raises(OSError, match=r"a process died.*call again"):
        list(in_processes(die, [0], processes=1))


def test_no_process_outlives_its_parent(repository, tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_parallel import beat, in_processes\n"
        f"if __name__ == '__main__': list(in_processes(beat, [0, 1], {str(tmp_path)!r}, processes=2))\n"
    )
    (tmp_path / "main.py").write_text(code)
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")], cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)}
    )
    while len(list(tmp_path.glob("beat_*"))) < 2:
        assert child.poll() is None
        time.sleep(0.1)
    child.kill()
    child.wait()
    last = []
    for _ in range(2):
        time.sleep(1)
        last.append([file.stat().st_mtime_ns for file in sorted(tmp_path.glob("beat_*"))])
    assert last[0] == last[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    assert cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
