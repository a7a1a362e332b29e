"""Many random seeds at once: processes on one machine, and ranks under torchrun on several."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm


def cores() -> int:
    """Number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


_shared: Any = None  # in a process of the pool: what all its jobs read


def in_processes(
    function: Callable[[Any, Any], Any], jobs: Sequence[Any], shared: Any = None, processes: int = 1, threads: int = 1
) -> Iterator[Any]:
    """Call a function on each job, several at a time, each in a process with that many threads.

    Two processes with one thread each do more work than one process with two threads, and a net trained on
    one thread has the same bits however many processes run beside it.

    Args:
        function: takes a job and `shared`; stands at the top level of a module, so that a process can import it.
        jobs: its first arguments.
        shared: its second, copied to each process once.

    Yields:
        the results, as they come.

    Raises:
        OSError: a process died, of too little memory for example.
        Exception: what the function raised.

    However this ends, no process is left behind, also if this one is killed.
    """
    if not jobs:
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), multiprocessing.get_context("spawn"), initializer=_start, initargs=(threads, shared)
    )
    try:
        with _interrupts_ignored():  # the processes inherit it, and leave Ctrl-C to this one
            futures = [pool.submit(_call, function, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise OSError("a process died, perhaps of too little memory: call again, finished runs are kept") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable[[Any, Any], Any], job: Any) -> Any:
    return function(job, _shared)


def _start(threads: int, shared: Any) -> None:
    """Prepare a process of the pool."""
    global _shared
    _shared = shared
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a terminated process would leave behind
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started, or alone.

    Attributes:
        rank, world: its number and how many there are, on all machines.
        local_rank, local_world: the same on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order; each rank has to call it and waits for the others."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def first_alone(self, function: Callable[[], Any]) -> Any:
        """The result of a function that is called in the first rank of each machine, and after it in the others.

        What the first downloads or writes is there for the others; each rank has to call this.
        """
        value = function() if self.local_rank == 0 else None
        self.gather(None)
        return value if self.local_rank == 0 else function()

    def share(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Those of the jobs that fall to this rank."""
        return jobs[self.rank :: self.world]


@contextlib.contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, connected by gloo; without torchrun, this process alone."""
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=timedelta(days=7))  # the first to finish waits for the last
    try:
        yield Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    finally:
        dist.destroy_process_group()
