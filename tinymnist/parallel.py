"""Many seeds at once: a process for each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm

ON_ACCELERATOR = 4  # processes that share a GPU; a guess, not measured


def cores() -> int:
    """Number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def processes_at_once(device: torch.device, threads: int = 1, share: int = 1) -> int:
    """How many processes of that many threads to run at once, if the machine's cores are shared by `share` callers."""
    processes = max(1, cores() // share // threads)
    return processes if device.type == "cpu" else min(processes, ON_ACCELERATOR)


_shared: Any = None  # in a process of the pool: the second argument of every job


def in_processes(
    function: Callable[[Any, Any], Any], jobs: Sequence[Any], shared: Any = None, processes: int = 1, threads: int = 1
) -> Iterator[Any]:
    """Call a function on each job, several at a time, each in a process with that many threads.

    With one thread per process, a trained net is bit-identical however many processes run at the same time.

    Args:
        function: takes a job and `shared`; defined at the top level of a module, so that a process can import it.
        jobs: its first arguments.
        shared: its second, copied to each process once.

    Yields:
        the results in the order in which the jobs finish.

    Raises:
        OSError: a process died, for example for lack of memory.
        Exception: what the function raised.

    The processes end with this call, and also if this process is killed.
    """
    if not jobs:
        return
    others, processes = set(multiprocessing.active_children()), min(processes, len(jobs))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _start, (threads, receiver, context.Lock()))
    # A process takes what is shared once it has imported its modules, which takes seconds: nobody waits for that.
    threading.Thread(target=_send, args=(sender, pickle.dumps(shared), processes), daemon=True).start()
    try:
        with _interrupts_held_back():  # the processes inherit it, and leave Ctrl-C to this one
            # No name holds the futures, which would keep all results.
            finished = as_completed([pool.submit(_call, function, job) for job in jobs])
        for future in finished:
            yield future.result()
    except BaseException as error:
        with _interrupts_held_back():
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise OSError("a process died, perhaps for lack of memory: call again, finished runs are kept") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        receiver.close()  # ends the thread, if a process did not come to take its share


def _send(sender: Connection, content: bytes, times: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(times):
            sender.send_bytes(content)


def _call(function: Callable[[Any, Any], Any], job: Any) -> Any:
    return function(job, _shared)


def _start(threads: int, receiver: Connection, turn: AbstractContextManager[Any]) -> None:
    """Prepare a process of the pool."""
    global _shared
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        with turn:
            _shared = pickle.loads(receiver.recv_bytes())
    except EOFError:  # the parent was killed
        os._exit(1)
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a terminated process would leave behind


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end, and never reaches processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
