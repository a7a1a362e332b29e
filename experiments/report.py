"""The report: `results/README.md` and the pictures, from the records.

    python -m experiments.report            write them
    python -m experiments.report --check    write nothing; exit code 1 and a line for each file that differs

A table is one more function in `TABLES`, a picture one in `PICTURES`.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.study import finished
from experiments.variants import GROUPS
from model import STEPS
from tinymnist import runs
from tinymnist.cli import OneLineParser
from tinymnist.data import SIXTHS
from tinymnist.figures import plot_curves, plot_digits
from tinymnist.runs import Run, write_atomically
from tinymnist.tables import (
    aligned,
    comparison_table,
    gap,
    interval,
    last_epoch,
    lowest_of_last,
    mean_of_last,
    meets,
    pair_differences,
)

records = functools.cache(finished)  # which are asked for some hundred times


def runs_of(group: str, variant: str) -> list[Run]:
    """The finished runs of a variant, by seed.

    Raises:
        ValueError: a record of the group is not of today's code, or a run is missing.
    """
    done, stale = records(group)
    if stale:
        raise ValueError(f"{stale[0]}: python -m experiments.study {group}")
    seeds = range(GROUPS[group].variants()[variant].seeds)
    found = [run for run in done.values() if run["variant"] == variant and run["seed"] in seeds]
    if len(found) < len(seeds):
        raise ValueError(f"runs of {group}/{variant} are missing: python -m experiments.study {group}/{variant}")
    return sorted(found, key=lambda run: run["seed"])


def steps_of(group: str) -> dict[int, list[Run]]:
    """The runs of the three steps in a group; a step that has none yet is left out."""
    there = {run["variant"] for run in runs.read_runs(runs.RESULTS / f"{group}.jsonl")}
    return {k: runs_of(group, f"step{k}") for k in STEPS if f"step{k}" in there}


def held_out(variant: str) -> list[Run]:
    """The runs of a variant on held-out images, whichever group it is in."""
    return runs_of("choices" if variant in GROUPS["choices"].variants() else "parts", variant)


Pairs = dict[str, tuple[list[Run], list[Run]]]
# A part: the runs of the step before with it alone, and those of the finished step without it.
ALONE_AND_LAST = {
    2: {
        "BatchNorm": ("2-alone-norm", "2-alone-augmentation"),
        "augmentation": ("2-alone-augmentation", "2-alone-norm"),
    },
    3: {
        "one-cycle": ("3-alone-cycle", "3-last-cycle"),
        "average of the weights": ("3-alone-average", "3-last-average"),
        "four views": ("3-alone-views", "3-last-views"),
        "batches of 256, rate doubled": ("3-alone-batch-rate", "3-last-batch"),
    },
}
ONLY_LAST = {
    "augmentation": "3-last-augmentation",
}
LEFT_OUT = (
    "step3-four-grids",
    "step2-rate-0.05",
    "step2-rate-0.1",
)


def gains(number: int) -> Pairs:
    """What each part of a step gains alone and last: runs with it, and runs without."""
    before, finished = held_out(f"step{number - 1}"), held_out(f"step{number}")
    found: Pairs = {}
    for part, (alone, last) in ALONE_AND_LAST[number].items():
        found[f"{part}, alone"] = held_out(alone), before
        found[f"{part}, last"] = finished, held_out(last)
    return found | {"all together": (finished, before)}


def gains_in_step3() -> Pairs:
    """What the parts that came before Step 3 gain in it."""
    return {part: (held_out("step3"), held_out(without)) for part, without in ONLY_LAST.items()}


def left_out() -> Pairs:
    """What was tried and left out, and the step that it would have changed."""
    variants = GROUPS["choices"].variants() | GROUPS["parts"].variants()
    return {variants[name].words: (held_out(name), held_out(variants[name].against)) for name in LEFT_OUT}


HEADING = "step|images|runs|last epoch|lowest of five, mean|lowest, any|training images|gap|target held".split("|")


def summary(number: int, images: str, found: list[Run]) -> list[str]:
    """A row of the table of the steps."""
    step = STEPS[number]
    row = [str(number), images, str(len(found)), last_epoch(found)]
    lowest = [lowest_of_last(run) for run in found]
    row += [f"{statistics.mean(lowest):.2f}", f"{min(lowest):.2f}"]
    row.append(f"{statistics.mean(run['train_accuracy'] for run in found):.2f}")
    row.append(f"{statistics.mean(map(gap, found)):.2f}")
    return [*row, f"{sum(meets(run, step.target, step.gap) for run in found)} of {len(found)}"]


def the_steps() -> str:
    """What the steps hold on the test set, and on held-out images."""
    rows = [HEADING]
    for images, group in (("test set", "steps"), ("held out", "choices")):
        rows += [summary(number, images, found) for number, found in steps_of(group).items()]
    text = """## The steps

Above, twenty seeds, each trained on all 60,000 training images and tested on the 10,000 test images. Below, the same on
other images: each sixth of the training images in turn is held out and tested on, the other five are trained on, with
four seeds for each sixth. *Lowest of five* is the lowest of the last five epochs. A run holds its target if that
reaches it, and in Step 2 if the gap is small enough too. The target of Step 2 was set from the held-out seeds 0 to 5.

"""
    return text + aligned(rows)


def other_images() -> str:
    """Step 3 on each sixth, and what a bootstrap over the test images gives."""
    rows = [["images", *HEADING[2:6], HEADING[-1]]]
    of_step3 = held_out("step3")
    for number, split in enumerate(SIXTHS):
        of_sixth = summary(3, "", [run for run in of_step3 if run["split"] == split])
        rows.append([f"{10_000 * number:,} to {10_000 * number + 9_999:,}", *of_sixth[2:6], of_sixth[-1]])
    drawn = bootstrap()
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    held = 100 * (drawn >= STEPS[3].target).mean(), 100 * (drawn.min(1) >= STEPS[3].target).mean()
    return f"""## Step 3 on other images

A row has the four seeds that learnt from the same 50,000 images and were tested on the same other 10,000. They differ
within a row, by the seed, and between rows, by the images.

{aligned(rows)}

What other test images would give can be estimated by drawing 10,000 of them again and again, with replacement, for the
final weights of the twenty published nets (bootstrap, {len(drawn):,} draws): the mean of the twenty lies between
{low:.2f} and {high:.2f} in 95 % of the draws. In {held[0]:.0f} % of all cases a net reaches {STEPS[3].target:.2f} after
its last epoch, and in {held[1]:.0f} % of the draws all twenty do."""


def bootstrap(draws: int = 20_000) -> np.ndarray:
    """Accuracies in percent of the published nets, (draws, nets), on test images drawn with replacement."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = np.array([[seed in image["wrong"] for seed in range(errors["models"])] for image in errors["images"]])
    share = np.full(len(wrong) + 1, 1 / 10_000)  # of each image that some net gets wrong, and of all others together
    share[-1] -= share.sum() - 1
    times = np.random.default_rng(0).multinomial(10_000, share, size=draws)[:, :-1]
    return 100 - times @ wrong / 100


def parts() -> str:
    """What each part does."""
    rows = {f"Step {number}: {name}": pair for number in ALONE_AND_LAST for name, pair in gains(number).items()}
    rows |= {f"in Step 3: {name}": pair for name, pair in gains_in_step3().items()}
    without = held_out("3-last-norm")
    never = sum(mean_of_last(run) < 20 for run in without)
    return f"""## What each part does

Differences in points between runs with the part and runs without it, of the same seeds on the same sixths, ± half of
the 95 % interval: *alone*, added to the step before, and *last*, in the finished step against the step without it. The
seeds of a sixth are averaged; the interval is Student's t over the six sixths, and approximate, since their training
images overlap. Without BatchNorm, {never} of {len(without)} runs of Step 3 never learnt; it has no row.

{comparison_table(rows)}"""


def tried() -> str:
    """What was tried and left out."""
    fast = held_out("step1-rate-0.05")
    guessing = sum(mean_of_last(run) < 20 for run in fast)
    rows = {"Step 1 at a rate of 0.05": (fast, held_out("step1"))} | left_out()
    return f"""## Tried and left out

What each of these would change, measured in the same way. Of Step 1 at a rate of 0.05, {guessing} of {len(fast)} runs
never learnt, its loss stayed at that of guessing, {math.log(10):.2f}; it counts like any other.

{comparison_table(rows)}"""


# Readings of the test set that are in no record of this edition: runs and epochs, each of which was evaluated. Those of
# the first edition are its records at commit 51ef65a; the others are from notes.
EARLIER_READINGS = {
    "first edition, among whose runs designs were chosen": (485, 6855),
    "trial runs before this edition, nothing chosen": (5, 75),
    "trial runs while it was built, nothing chosen": (3, 32),
}


def readings() -> str:
    """How often the test set was read."""
    rows = dict(EARLIER_READINGS)
    for group, words in (("steps", "the published runs"), ("prior", "prior solutions and the linear classifier")):
        found = runs.read_runs(runs.RESULTS / f"{group}.jsonl")
        rows[words] = len(found), sum(len(run["history"]["lr"]) for run in found)
    rows["in all"] = sum(number for number, _ in rows.values()), sum(epochs for _, epochs in rows.values())
    table = aligned([["", "runs", "epochs"], *([words, f"{n:,}", f"{e:,}"] for words, (n, e) in rows.items())])
    return f"""## Readings of the test set

A run reads the test set after each epoch. Timings, the notebooks, the list of errors and the checks of the published
nets read it too, and chose nothing.

{table}

The layers, the augmentation, the views and the recipe of Step 3 come from the first edition, which chose among designs
while reading the test set; its records and code end with commit 51ef65a. It deleted 47 runs before that: 35 with single
additions to its Step 2, and twelve with two views. What they were about is measured again above. Its deslanting is left
out here: it gains little, and without it the net is plain convolutions from the image on, gradients reach the image,
and the ONNX file has no special operation."""


SOURCES = {"A": "EVA7, stage 7", "D": "S7, Model_3", "E": "ERA V3, model 3", "F": "ERA, assignment 6"} | {
    "J": "woolly-of-cv, 3762",
    "K": "woolly-of-cv, 4838",
}


def prior_solutions() -> str:
    """The prior solutions with their recipe and with ours."""
    rows = [["", "parameters", "as published", "held", "our recipe", "held"]]
    for name, source in SOURCES.items():
        row = [f"{name}, {source}"]
        for recipe in ("published", "ours"):
            found = runs_of("prior", f"{name}-{recipe}")
            held = sum(meets(run, STEPS[3].target) for run in found)
            row += [last_epoch(found), f"{held} of {len(found)}"]
        rows.append([row[0], f"{found[0]['parameters']:,}", *row[1:]])
    linear = runs_of("prior", "linear")
    return f"""## Prior solutions

Nets published for the same task, trained again from three seeds on all training images and tested on the test set: with
their own recipe, gaps in it filled as `experiments/variants.py` says, and with that of Step 3, without views. *Held*
counts the runs with at least {STEPS[3].target:.2f} in each of the last five epochs; three seeds do not rank them. A
linear classifier with the recipe of Step 1 reaches {last_epoch(linear)}.

{aligned(rows)}"""


def timing() -> str:
    """Seconds of an epoch."""
    bench = json.loads((runs.RESULTS / "bench_cpu.json").read_bytes())
    rows = [["", "median", "all"]]
    for name, seconds in bench["seconds"].items():
        rows.append([name, f"{bench['median'][name]:.1f}", " ".join(f"{value:.1f}" for value in sorted(seconds))])
    return f"""## Time

Seconds of one epoch with evaluation, each measured in a process of its own, in turn ({bench["hardware"]},
{bench["threads"]} threads, PyTorch {bench["torch_version"]}). The usual pipeline has PIL images, a `DataLoader`
and a net of 7,830 parameters.

{aligned(rows)}"""


INTRODUCTION = """# Results

Written by `make report` from the records beside this file, one run a line: `steps.jsonl` and `prior.jsonl` on the test
set, `choices.jsonl` and `parts.jsonl` on held-out training images. `step3.pt` holds the weights of the twenty runs of
Step 3, by seed; `step1.pt` and `step2.pt` those of seed 0. Accuracies are in percent, differences
and gaps in points."""
TABLES: list[Callable[[], str]] = [the_steps, other_images, parts, tried, readings, timing]


def learning_curves() -> Figure:
    """Accuracy on held-out images over the epochs, each step on each sixth."""
    steps = steps_of("choices").items()
    curves = {
        f"Step {number}: {STEPS[number].theme} ({len(found)} runs)": [run["history"] for run in found]
        for number, found in steps
    }
    return plot_curves(curves, STEPS[3].target)


Gain = tuple[float, float, float]  # mean and 95 % interval


def part_gains() -> Figure:
    """What each part gains, alone and last, and what was left out would change."""

    def gain(pair: tuple[list[Run], list[Run]]) -> Gain:
        return interval(pair_differences(*pair, mean_of_last))

    rows: list[tuple[str, dict[str, Gain]]] = []  # a line of words, and its points
    for number, parts_of_step in ALONE_AND_LAST.items():
        found = gains(number)
        rows.append((f"Step {number}", {}))
        rows += [(part, {how: gain(found[f"{part}, {how}"]) for how in ("alone", "last")}) for part in parts_of_step]
        rows.append(("all together", {"together": gain(found["all together"])}))
    rows.append(("Earlier parts, in Step 3", {}))
    rows += [(part, {"last": gain(pair)}) for part, pair in gains_in_step3().items()]
    rows.append(("Tried and left out", {}))
    rows += [(name, {"left out": gain(pair)}) for name, pair in left_out().items()]

    figure, axis = plt.subplots(figsize=(5.6, 0.27 * len(rows) + 0.9), layout="constrained")
    shifts, markers = {"alone": -0.16, "last": 0.16}, {"left out": "x", "together": "s"}
    labels = {"alone": "added alone", "last": "taken out last", "together": "all together", "left out": "left out"}
    for y, (_, points) in enumerate(rows):
        for how, (mean, low, high) in points.items():
            axis.errorbar(
                mean,
                y + (shifts[how] if len(points) > 1 else 0),
                xerr=[[mean - low], [high - mean]],
                color=(color := "tab:red" if how == "left out" else "tab:blue"),
                marker=markers.get(how, "o"),
                markerfacecolor="white" if how == "alone" else color,
                capsize=2,
                label=labels.pop(how, None),
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel="mean of the last five epochs, points")
    axis.set_yticks(range(len(rows)), [words for words, _ in rows])
    for label, (_, points) in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if points else "bold")
    axis.tick_params("y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def misclassified() -> Figure:
    """The test images that most nets of Step 3 get wrong: label, most frequent wrong answer, how many are wrong."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    images = [entry for entry in errors["images"] if "pixels" in entry]
    pixels = [np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(28, 28) for entry in images]
    titles = []
    for entry in images:
        wrong = [0 if digit == entry["label"] else votes for digit, votes in enumerate(entry["votes"])]
        said = int(np.argmax(wrong))
        titles.append(f"{entry['label']} → {said}\n{sum(wrong)} of {errors['models']}")
    return plot_digits(torch.tensor(np.stack(pixels)), titles, columns=8)


PICTURES: dict[str, Callable[[], Figure]] = {
    "learning_curves.svg": learning_curves,
    "parts.svg": part_gains,
    "misclassified.svg": misclassified,
}


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as SVG; the same records give the same bytes on one version of matplotlib."""
    with plt.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "path"}):
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)
    return buffer.getvalue()


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)


def documents() -> dict[str, bytes]:
    """What the report writes below `results/`, by name."""
    blocks = "\n\n".join([INTRODUCTION, *(table() for table in TABLES)]).split("\n\n")
    text = "\n\n".join(block if block[0] in "#|" else wrapped(block) for block in blocks) + "\n"
    return {"README.md": text.encode()} | {name: svg(draw) for name, draw in PICTURES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write or check.

    Returns:
        the exit code: 1 if with --check a file differs; 2 if a record is missing, damaged, or not of today's code.
    """
    command = OneLineParser("report.py", __doc__)
    command.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = command.parse_args(arguments).check
    records.cache_clear()
    try:
        changed = {}
        for name, content in documents().items():
            path = runs.RESULTS / name
            if not path.exists() or path.read_bytes() != content:
                changed[path] = content
        for path, content in changed.items():
            if check:
                print(f"report.py: results/{path.name} differs from the records: make report", file=sys.stderr)
            else:
                write_atomically(path, content)
    except (OSError, ValueError) as error:
        return command.failed(error)
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
