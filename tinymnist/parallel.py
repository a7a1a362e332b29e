"""Many seeds at once: a process for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

PROCESSES_PER_GPU = 4  # a guess, not measured


def cores() -> int:
    """Number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def processes_at_once(device: torch.device, threads: int = 1, share: int = 1) -> int:
    """How many processes of that many threads to run at once, if the machine's cores are shared by `share` callers."""
    processes = max(1, cores() // share // threads)
    return processes if device.type == "cpu" else min(processes, PROCESSES_PER_GPU)


def in_processes(
    function: Callable[[Any], Any], jobs: Sequence[Any], processes: int = 1, threads: int = 1
) -> Iterator[Any]:
    """Call a function on each job, several at a time, each in a process with that many threads.

    With one thread per process, a trained net is bit-identical however many processes run at the same time. The
    processes end with this call, and also if this process is killed.

    Args:
        function: takes a job; defined at the top level of a module, so that a process can import it.
        jobs: what it is called with.
        processes, threads: how many at a time, and the threads of each.

    Yields:
        the results in the order in which the jobs finish.

    Raises:
        OSError: a process died, for example for lack of memory.
        Exception: what the function raised.
    """
    if not jobs:
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(jobs)), spawn, initializer=_start, initargs=(threads,))
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it, and leave Ctrl-C to this one
        try:
            # No name holds the futures, which would keep all results.
            finished = as_completed([pool.submit(function, job) for job in jobs])
        finally:
            signal.signal(signal.SIGINT, before)
        for future in finished:
            yield future.result()
    except BrokenProcessPool as error:
        raise OSError("a process died, perhaps for lack of memory: call again, finished runs are kept") from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    """Prepare a process of the pool."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
