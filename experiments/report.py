"""The report: puts what `results/` says into the README, the notebooks' text and the pictures.

A place for a value looks like `<!--name-->value<!--/-->`, which a rendered page shows as the value alone.
`tables.values()` computes them all; nobody types a measured number. The repository's address stands here alone, and
is put where the notebooks and badges need it.

    python -m experiments.report            fill in every place, and draw the pictures
    python -m experiments.report --check    write nothing; exit code 1 and a line per place that differs
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from experiments import pictures, tables
from experiments.notebooks import NOTEBOOKS
from tinymnist.runs import REPOSITORY, RESULTS, write_atomically

ADDRESS = "https://github.com/tiny-mnist/tiny-mnist"  # a fork puts its own here, then runs make report
ADDRESSED = re.compile(
    r'(colab\.research\.google\.com/github/|"TINY_MNIST_REPOSITORY", "https://github\.com/)[\w.-]+/[\w.-]+'
)
PLACE = re.compile(r"<!--([a-z][\w.-]*)-->(.*?)<!--/-->", re.DOTALL)
DOCUMENTS = ("README.md", *NOTEBOOKS)


def fill(text: str, values: dict[str, Callable[[], str]], where: str) -> tuple[str, list[str]]:
    """The text with every place filled in, and a line for each place that differed or lacks its evidence."""
    complaints = []

    def replacement(match: re.Match[str]) -> str:
        name, old = match.groups()
        if name not in values:
            complaints.append(f"{where}: nothing is known by the name {name}")
            return match.group()
        try:
            new = values[name]()
        except FileNotFoundError as error:
            complaints.append(f"{where}: {name} has lost its evidence: {error}")
            return match.group()
        if new != old:
            complaints.append(f"{where}: {name} differs from results/")
        return f"<!--{name}-->{new}<!--/-->"

    filled = PLACE.sub(replacement, text)
    addressed = ADDRESSED.sub(rf"\g<1>{ADDRESS.removeprefix('https://github.com/')}", filled)
    if addressed != filled:
        complaints.append(f"{where}: the repository's address differs from experiments/report.py")
    return addressed, complaints


def documents() -> Iterator[tuple[Path, bytes, list[str]]]:
    """Each document with its filled-in content, and what differed in it."""
    values = tables.values()
    for name in DOCUMENTS:
        path = REPOSITORY / name
        if path.suffix == ".md":
            content, complaints = fill(path.read_text(), values, name)
            yield path, content.encode(), complaints
            continue
        notebook, complaints = nbformat.read(path, as_version=4), []
        for cell in notebook.cells:
            cell.source, found = fill(cell.source, values, name)
            complaints += found
        yield path, (nbformat.writes(notebook) + "\n").encode(), complaints


def drawn() -> Iterator[tuple[Path, bytes, list[str]]]:
    """Each picture with its content, and what differed in it."""
    for name, draw in pictures.PICTURES.items():
        path = RESULTS / name
        try:
            content = pictures.svg(draw)
        except FileNotFoundError as error:
            yield path, b"", [f"results/{name} has lost its evidence: {error}"]
            continue
        same = path.exists() and pictures.fingerprint_in(path.read_bytes()) == pictures.fingerprint_in(content)
        yield path, content, [] if same else [f"results/{name} differs from results/"]


def main(arguments: list[str]) -> int:
    """Fill in or check every document and picture.

    Returns:
        the exit code: 1 if with --check anything differs, or if a value has no evidence.
    """
    check, failed = arguments == ["--check"], False
    for path, content, complaints in itertools.chain(documents(), drawn()):
        for complaint in complaints:
            if check or " differs from " not in complaint:
                print(complaint, file=sys.stderr)
                failed = True
        if not check and complaints and content:
            write_atomically(path, content)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
