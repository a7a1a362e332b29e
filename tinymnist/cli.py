"""What the command lines share: errors are one line on stderr, and bad input ends with exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = "interrupted; finished runs are kept, those under way are not written"


def stop_at_once(program: str) -> None:
    """From now on Ctrl-C ends the process with one line: while modules are imported, and once there is no more to do.

    A shell that starts a process in the background may have it ignore Ctrl-C; then it still does.
    """

    def stop(*_: object) -> NoReturn:
        os.write(2, f"{program}: {INTERRUPTED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)


def run_program(program: str, main: Callable[[], int]) -> NoReturn:
    """Run a `main` that takes Ctrl-C as KeyboardInterrupt, and exit with its code."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt as error:
        code = OneLineParser(program, None).failed(error)
    finally:
        stop_at_once(program)
    sys.exit(code)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; options cannot be abbreviated."""

    def __init__(self, program: str, description: str | None) -> None:
        super().__init__(
            prog=program,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message on stderr and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    def failed(self, error: BaseException) -> int:
        """Print the first line of an error on stderr; returns the exit code: 2, or 130 after Ctrl-C."""
        if isinstance(error, KeyboardInterrupt):
            print(f"{self.prog}: {INTERRUPTED}", file=sys.stderr)
            return 130
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if sys.stderr is not None:  # print would take standard output in its place
            print(f"{self.prog}: {line}", file=sys.stderr)
        return 2


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: an integer in a range, its ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {lowest} to {highest}, not {text!r}")
        return value

    return parse
