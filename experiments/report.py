"""The report: `results/runs.csv`, a row per run, `effects.csv`, `records.csv`, and `README.md` with every table.

    python -m experiments.report            write both, and draw the pictures again if the runs have changed
    python -m experiments.report --check    write nothing; exit code 1 and a line for everything that differs

A new table is one more entry of `SECTIONS`: its heading, how to read it, its runs, and what makes a table of them.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("report.py")

import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import pictures
from experiments.tables import (
    effects,
    effects_table,
    entries,
    entries_table,
    onnx_files,
    photos,
    read_runs,
    setting,
    speed,
    steps_table,
    summary_table,
)
from experiments.variants import ladder
from tinymnist import runs
from tinymnist.cli import OneLineParser, run_program
from tinymnist.runs import write_atomically


def groups(*names: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Picks the runs of some groups."""
    return lambda frame: frame[frame.group.isin(names)]


def changes_of(step: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Picks the single changes of a step, and the step itself."""
    return lambda frame: frame[(frame.group == "changes") & frame.variant.str.startswith(step)]


def group_and_base(group: str, base_group: str, base: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Picks the runs of a group, if there are any, and those of another one that they are compared with."""

    def pick(frame: pd.DataFrame) -> pd.DataFrame:
        own = frame.group == group
        return frame[own | own.any() & (frame.group == base_group) & (frame.variant == base)]

    return pick


def in_order(frame: pd.DataFrame, variants: list[str]) -> pd.DataFrame:
    """The runs in the order of their variants."""
    return frame.sort_values("variant", key=lambda names: names.map(variants.index), kind="stable")


Pick = Callable[[pd.DataFrame], pd.DataFrame]
# Heading, how to read the table, which runs it is about, and the functions that make its tables from them.
SECTIONS: list[tuple[str, str, Pick, list[Callable[[pd.DataFrame], str]]]] = [
    (
        "The three steps",
        "Trained on all 60,000 images and tested on the 10,000 test images; a target is held by a run if each of its "
        "last five epochs reaches it. *Training images* is the accuracy on the plain training images with the final "
        "weights.",
        groups("steps"),
        [steps_table],
    ),
    (
        "A linear classifier",
        "One weight for each pixel and digit, trained with the recipe of Step 1 on all 60,000 images and tested on the "
        "test set: what the parameters of the three steps buy without convolution.",
        groups("baseline"),
        [lambda frame: summary_table(frame, target=None)],
    ),
    (
        "The ladder from Step 2 to Step 3",
        "One part is added at a time, and each rung is compared with the one below it; the rule that decides stands "
        "in `experiments/variants.py`, `ladder`.",
        lambda frame: in_order(frame[frame.group == "ladder"], list(ladder())),
        [lambda frame: effects_table(frame, by_size=False)],
    ),
    (
        "Parts taken out",
        "What the ladder leaves open, taken out of its top; the rule stands in `experiments/variants.py`, `taken_out`.",
        group_and_base("taken_out", "ladder", "four-views"),
        [effects_table],
    ),
    (
        "Step 3 without one of its parts",
        "Step 3 as published without one of its parts, or without all that make the weights settle, trained on a GPU. "
        "Twenty-four pairs were planned; the time on the GPU ended after six to eight, so small differences stay open.",
        groups("parts"),
        [effects_table],
    ),
    (
        "Candidates for the records",
        "Smaller nets, fewer epochs and fewer bits, with nine views in evaluation where nothing else is said, against "
        "Step 3 on the same held-out images. Two or three pairs each are leads, whose intervals and p-values say next "
        "to nothing; the entries below were chosen from them. The code is that of the commits in `runs.csv`.",
        group_and_base("candidates", "parts", "final"),
        [effects_table],
    ),
    (
        "Candidates for eight epochs",
        "Nine views in evaluation where nothing else is said, on held-out images. With the parabola the rate has a "
        "peak of 0.07 in place of 0.05, with the cubic of 0.09. The rule that chose the entry stands in "
        "`experiments/variants.py`, `short`.",
        groups("short"),
        [effects_table],
    ),
    (
        "Candidates for 3,000 parameters",
        "A net that uses its third convolution three times, with a BatchNorm of its own each time, and whose head has "
        "one kernel per channel over the last map, against a plain one; then a parabola against none. No teacher; the "
        "rule stands in `experiments/variants.py`, `shared`, and the twenty runs that it asks for have not been made.",
        groups("shared"),
        [lambda frame: summary_table(frame, target=None), effects_table],
    ),
    (
        "Records",
        "All 60,000 training images, every random seed from 0 to 19, the last five epochs on the 10,000 test images. "
        "`python -m experiments.records` trains what is missing, and `records.csv` has the rows. To enter your own, "
        "add it to `records` in `experiments/variants.py`.",
        groups("records"),
        [entries_table],
    ),
    (
        "Single changes of Step 1",
        "Parts of Step 2, added to Step 1 one at a time and judged on held-out training images. A difference above "
        "zero means that the part improves the accuracy.",
        changes_of("step1"),
        [effects_table],
    ),
    (
        "Single changes of Step 2",
        "Parts of Step 2 taken out or replaced, one at a time, on held-out training images.",
        changes_of("step2"),
        [effects_table],
    ),
    (
        "Single changes of the earlier Step 3",
        "An earlier Step 3 also had soft labels from a wider net, the teacher, and a random boldness of the strokes; "
        "each line changes one thing of it. Most intervals hold zero: there, five pairs cannot tell whether the change "
        "helps or hurts.",
        groups("earlier"),
        [effects_table],
    ),
    (
        "The search",
        "Variants tried on the way to the earlier Step 3, against the start of the search on the same held-out "
        "images; *all three* means boldness, soft labels and deslanting. One or three pairs show what hurts, but not "
        "which of the better ones is best.",
        groups("search"),
        [effects_table],
    ),
    (
        "Prior solutions",
        "Four published nets, trained on all 60,000 images and tested on the test set: with their own recipe, where "
        "what is not stated had to be assumed, and with the recipe of the earlier Step 3 and its soft labels. The "
        "second table compares the recipes, net by net.",
        groups("prior"),
        [summary_table, effects_table],
    ),
    (
        "Smaller nets: candidates",
        "The net of Step 3 with fewer channels, trained with the earlier recipe and its teacher, on held-out training "
        "images. *A kernel per channel* sums up the last map with one kernel for each channel, which costs less than "
        "a linear layer.",
        groups("sizes"),
        [lambda frame: summary_table(frame, target=None)],
    ),
    (
        "Smaller nets: the best candidates",
        "The best candidate of each budget, trained on all 60,000 images and tested on the test set. A net holds the "
        "target if all of its runs do.",
        groups("small"),
        [summary_table],
    ),
    (
        "Earlier candidates and teachers",
        "What was published as Step 3 before, candidates for it that were read on the test set and not chosen, and the "
        "teachers behind soft labels. They count among the readings of the test set.",
        groups("given_up", "teacher", "gpu", "threads"),
        [summary_table],
    ),
]
INTRODUCTION = """# Results

Written by `make report` from the records below this folder; nothing here is typed. `runs.csv` has one row per finished
run, `effects.csv` one per comparison, `records.csv` one per entry. All accuracies are in percent, all differences in
points, losses in thousandths.

**How a difference is measured.** A variant and its base are trained from the same random seeds on the same images, and
compared pair by pair: in the mean of the last five epochs, in the lowest of them, and in the test loss. Random seed K
holds out one of six sixths of the training images (K modulo 6), and trains on the other five. The 95 % intervals are
Student's t over the pairs; where there are several pairs on each sixth, the sixths are blocks. They cover the random
seeds, with MNIST's images as they are. For another draw of handwriting they would be wider, since the training sets of
two sixths share most of their images: by a factor of {few:.1f} for 5 pairs and of {many:.1f} for 24, after Nadeau and
Bengio (2003). `p mean` and `p lowest` are the p-values of the first two differences, each corrected for the number of
lines of its table (Holm, 1979). *Time* is the median ratio of the seconds of the two runs of a pair, over the pairs
that were trained at one commit, and so on one machine.
"""


def readme(frame: pd.DataFrame) -> str:
    """The whole text of `results/README.md`."""
    few, many = (np.sqrt((1 / n + 1 / 5) * n) for n in (5, 24))
    parts = [INTRODUCTION.format(few=few, many=many)]
    for heading, text, pick, tables in SECTIONS:
        picked = pick(frame)
        if len(picked):
            parts += [f"## {heading}", f"{text} ({setting(picked)})", *(table(picked) for table in tables)]
    if failed := sorted(runs.RESULTS.glob("**/seed_*.failed")):
        lines = (f"- {p.relative_to(runs.RESULTS)}: {runs.read_json(p, itemgetter('failed'))}" for p in failed)
        parts += ["## Trainings that came to nothing", "They are in no table.", "\n".join(lines)]
    parts += ["## Pictures of digits", photos(), "## ONNX files", onnx_files(), "## Speed", speed()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def all_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Every comparison of the study, each table a family of its own."""
    families = (pick(frame) for _, _, pick, _ in SECTIONS)
    return pd.concat(map(effects, families), ignore_index=True)


def documents() -> dict[Path, bytes]:
    """What the report writes, by path."""
    frame = read_runs()
    return {
        runs.RESULTS / "runs.csv": frame.drop(columns="change").to_csv(index=False, lineterminator="\n").encode(),
        runs.RESULTS / "effects.csv": all_effects(frame).to_csv(index=False, lineterminator="\n").encode(),
        runs.RESULTS / "records.csv": entries(frame).to_csv(index=False, lineterminator="\n").encode(),
        runs.RESULTS / "README.md": readme(frame).encode(),
    }


def lost_evidence() -> list[str]:
    """A line for each run of the committed table that has no record any more, with the tables that rest on it."""
    path, lines = runs.RESULTS / "runs.csv", []
    if not path.exists():
        return [f"{path} is missing: make report writes it"]
    keys = ["group", "variant", "seed"]
    committed, there = pd.read_csv(path, keep_default_na=False), read_runs()
    gone = committed.merge(there[keys], how="left", on=keys, indicator=True).query("_merge == 'left_only'")
    for row in gone.itertuples():
        tables = [heading for heading, _, pick, _ in SECTIONS if len(pick(gone.loc[[row.Index]]))]
        lost = f'"{tables[0]}" has lost its evidence' if tables else "no table rests on it"
        lines.append(f"{row.group}/{row.variant}, seed {row.seed}, has no record: {lost}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write or check.

    Returns:
        the exit code: 1 if with --check anything differs, or if evidence is missing.
    """
    command = OneLineParser("report.py", __doc__)
    command.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = command.parse_args(arguments).check
    try:
        complaints = lost_evidence() if check else []
        written = documents()
        changed = [path for path, content in written.items() if not path.exists() or path.read_bytes() != content]
        if check:
            complaints += [f"results/{path.name} differs from the records: make report" for path in changed]
        else:
            for path in changed:
                write_atomically(path, written[path])
            pictures.draw_all(again=bool(changed))
    except (OSError, ValueError) as error:
        complaints = [str(error)]
    print("\n".join(complaints), file=sys.stderr, end="\n" if complaints else "")
    return int(bool(complaints))


if __name__ == "__main__":
    run_program("report.py", main)
