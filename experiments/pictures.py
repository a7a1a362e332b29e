"""How predict.py reads a folder of pictures.

python -m experiments.pictures FOLDER              says how many it reads right, wrong, and refuses
python -m experiments.pictures --record FOLDER     also writes results/pictures.json, the record of the README's numbers

FOLDER holds labels.csv with the columns file, label and group: "digit" for one handwritten digit, "printed" for one
printed digit, "refuse" for no single digit, so that a refusal is right.
"""

from __future__ import annotations

import collections
import csv
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch

from predict import load_net, predict
from tinymnist.cli import OneLineParser
from tinymnist.picture import PictureError, open_picture
from tinymnist.runs import RESULTS, lines_of, write_atomically

COLUMNS = {"file", "label", "group"}
GROUPS = "digit", "printed", "refuse"


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """What predict.py says of each picture that labels.csv names, in its order.

    Returns:
        for each its `sha256`, `label` (None without a single digit) and `group`, and what was read: `digit` and
        whether that is `sure`, or why it is `refused`.

    Raises:
        OSError: labels.csv or a picture cannot be read.
        ValueError: labels.csv is no table, lacks a column, has no lines, or one that cannot be scored; a file is no
            picture.
    """
    try:
        with (folder / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            missing, rows = COLUMNS - set(lines.fieldnames or ()), list(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{folder / 'labels.csv'} is no table in UTF-8 ({error})") from error
    if missing:
        raise ValueError(f"{file.name} lacks the columns {', '.join(sorted(missing))}: name them in its first line")
    if not rows:
        raise ValueError(f"{file.name} names no pictures")
    net, entries = load_net(), []
    for number, row in enumerate(rows, 2):
        digit = row["label"] in set("0123456789")
        if not row["file"] or row["group"] not in GROUPS or digit == (row["group"] == "refuse"):
            raise ValueError(f"{file.name}, line {number}: not a file, a digit and its group, or a file and refuse")
        path = folder / row["file"]
        entry: dict[str, Any] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        entry |= {"label": int(row["label"]) if digit else None, "group": row["group"]}
        try:
            open_picture(path)
        except PictureError as error:  # a file that is no picture is not refused for what it shows
            raise ValueError(f"{path}: {error}") from error
        try:
            entry |= {key: value for key, value in predict(net, path).items() if key in ("digit", "sure")}
        except PictureError as error:
            entry["refused"] = str(error).partition(":")[0]
        entries.append(entry)
    return entries


def score(entries: list[dict[str, Any]], group: str) -> collections.Counter[str]:
    """How many pictures of a group are `right`, `wrong`, of these `surely wrong`, and `refused`; `n` counts all."""
    counts: collections.Counter[str] = collections.Counter()
    for entry in entries:
        if entry["group"] == group:
            wrong = "refused" not in entry and entry["digit"] != entry["label"]
            kind = "refused" if "refused" in entry else "wrong" if wrong else "right"
            counts.update({"n": 1, kind: 1, "surely wrong": int(wrong and entry["sure"])})
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the scores of each group, and write the record if asked to."""
    parser = OneLineParser("pictures.py", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--record", action="store_true", help="write results/pictures.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that rounding, and with it the file, does not depend on the number of cores
    try:
        entries = read_folder(options.folder)
        if options.record:
            write_atomically(RESULTS / "pictures.json", lines_of(entries, "sha256"))
    except (OSError, ValueError) as error:
        return parser.failed(error)
    for group in GROUPS:
        counts = score(entries, group)
        kinds = ", ".join(f"{counts[kind]} {kind}" for kind in ("right", "wrong", "surely wrong", "refused"))
        print(f"{group}: {counts['n']} pictures, {kinds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
