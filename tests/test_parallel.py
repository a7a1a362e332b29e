"""Many seeds at once: results come back as they are made, and what goes wrong in a process is told."""

import os
import signal
import weakref
from typing import ClassVar

import pytest
import torch

from tinymnist.parallel import in_processes


class Result:
    """Remembers all of its kind that are still there."""

    alive: ClassVar[weakref.WeakSet["Result"]] = weakref.WeakSet()

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self.alive.add(self)


def make(job: int) -> Result:
    result = Result()
    result.job, result.threads = job, torch.get_num_threads()
    return result


def fail(job: int) -> int:
    raise ValueError(f"job {job} is wrong")


def die(_job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_back_from_processes_with_one_thread_and_are_not_kept():
    jobs, counts = [], []
    for result in in_processes(make, list(range(30)), processes=2):
        assert result.threads == 1
        jobs.append(result.job)
        counts.append(len(Result.alive))
    assert sorted(jobs) == list(range(30))
    assert counts[-1] <= 2  # this result and the one before


def test_no_jobs_start_nothing():
    assert list(in_processes(make, [], processes=2)) == []


def test_an_error_comes_through_and_a_dead_process_is_one():
    with pytest.raises(ValueError, match="job 1 is wrong"):
        list(in_processes(fail, [1]))
    with pytest.raises(OSError, match=r"a process died.*call again"):
        list(in_processes(die, [0]))
