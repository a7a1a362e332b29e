"""What the command lines share: errors are one line on stderr, and bad input ends with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


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
        interrupted = isinstance(error, KeyboardInterrupt)
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"{self.prog}: {'interrupted; finished runs are kept' if interrupted else line}", file=sys.stderr)
        return 130 if interrupted else 2


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
