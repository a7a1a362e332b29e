"""The report and the README: what they say is what the records say."""

import json
import math
import re
import statistics
from collections import Counter
from dataclasses import replace
from importlib.metadata import version

import pytest

from experiments import report
from experiments.report import held_out_steps, runs_of, summary
from model import STEPS
from tinymnist import runs
from tinymnist.data import SIXTHS
from tinymnist.tables import (
    comparison_table,
    gap,
    interval,
    last_accuracies,
    lowest_of_last,
    mean_of_last,
    meets,
    pair_differences,
)
from utils import count_parameters


@pytest.fixture
def readme(repository) -> str:
    return (repository / "README.md").read_text()


def pairs(of, variant: str, base: str) -> tuple[str, str, str]:
    """Mean and interval of the differences between two variants on the same sixths, without signs."""
    differences = pair_differences(runs_of("choices", variant), runs_of("choices", base), of)
    return tuple(re.findall(r"[\d.]+", interval(differences)))


def spread(run) -> float:
    """How far the last five epochs of a run lie apart."""
    return max(last_accuracies(run)) - min(last_accuracies(run))


def apart(found) -> str:
    """The same, on average."""
    return f"{statistics.mean(map(spread, found)):.2f}"


@pytest.fixture
def changed(monkeypatch, tmp_path):
    """Lets the report write to a folder of its own, beside the records."""
    monkeypatch.setattr(report, "documents", lambda: {"README.md": b"new", "a.svg": b"<svg>"})
    monkeypatch.setattr(runs, "RESULTS", tmp_path)


def test_the_report_is_that_of_the_records_also_before_another_step_is_trained(repository, monkeypatch):
    monkeypatch.setitem(STEPS, max(STEPS) + 1, replace(STEPS[3], theme="another"))
    documents = report.documents()
    if f"matplotlib=={version('matplotlib')}\n" not in (repository / "constraints.txt").read_text():
        documents = {"README.md": documents["README.md"]}  # another version draws other bytes
    assert [n for n, content in documents.items() if (runs.RESULTS / n).read_bytes() != content] == []


@pytest.mark.usefixtures("changed")
def test_a_changed_document_is_told(tmp_path, capsys):
    (tmp_path / "README.md").write_bytes(b"old")
    assert report.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "report.py: results/README.md differs from the records: make report",
        "report.py: results/a.svg differs from the records: make report",
    ]
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("another recipe", "steps/step3, seed 0, is no run of today's code: recipe max_lr 0.2, not 0.1"),
        ("a seed is missing", "runs of steps/step3 are missing"),
    ],
)
def test_runs_of_another_definition_and_some_seeds_alone_are_not_published(monkeypatch, capsys, fault, line):
    found = runs.load_runs("steps", "step3")
    if fault == "another recipe":
        monkeypatch.setitem(STEPS, 3, replace(STEPS[3], recipe=replace(STEPS[3].recipe, max_lr=0.1)))
    else:
        del found[7]
    monkeypatch.setattr(runs, "read_runs", lambda path: found if path.stem == "steps" else [])
    assert report.main(["--check"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"report.py: {line}: python -m experiments.study steps")
    assert err.count("\n") == 1


def test_runs_are_compared_with_those_of_the_same_seed():
    def run(seed, split, correct, train):
        history = {"test_correct": [0, *correct], "test_total": [1000] * 6}
        return {"seed": seed, "split": split, "train_accuracy": train, "history": history}

    base = [run(0, "a", [900, 910, 920, 930, 940], 95.0), run(1, "b", [900] * 5, 95.0)]
    better = [run(0, "a", [910, 920, 930, 940, 950], 97.0), run(1, "b", [930] * 5, 95.0)]
    # The differences are 1 and 3 points: 2 ± 12.706 * 1; the gaps change by 1 and -3 points.
    figures = [*["+2.00 (-10.71 to +14.71)"] * 2, "-1.00 (-26.41 to +24.41)"]
    # A split counts once, with the mean over its seeds; on one split alone, each seed counts.
    for own, others in (
        (better, base),
        ([*better, run(2, "b", [900] * 5, 95.0)], [*base, run(2, "b", [870] * 5, 95.0)]),
        ([run | {"split": "a"} for run in better], [run | {"split": "a"} for run in base]),
    ):
        row = comparison_table({"better": (own, others)}).splitlines()[-1]
        assert [cell.strip() for cell in row.split("|")[1:-1]] == ["better", str(len(own)), *figures]
    assert (mean_of_last(base[0]), lowest_of_last(base[0]), gap(base[0])) == pytest.approx((92, 90, 1))
    with pytest.raises(ValueError, match="better: these runs are not pairs"):
        comparison_table({"better": (better, base[::-1])})


def test_a_target_may_be_about_the_gap_too():
    history = {"test_correct": [990, 988, 990, 990, 990, 990], "test_total": [1000] * 6}
    run = {"train_accuracy": 99.5, "history": history}
    targets = {(98.8,): True, (98.9,): False, (98.8, 0.5): True, (98.8, 0.4): False}
    assert {target: meets(run, *target) for target in targets} == targets


def test_the_claim_is_that_of_twenty_runs(readme):
    found = runs_of("steps", "step3")
    assert [run["seed"] for run in found] == list(range(20))
    assert all(meets(run, 99.4) and run["parameters"] == 7866 < 8000 for run in found)
    assert {len(run["history"]["test_correct"]) for run in found} == {15}
    claim = "reaches at least 99.40 % test accuracy on MNIST in each of the last five, from every one of 20 seeds"
    assert claim in readme


def test_the_table_of_the_readme(readme):
    for number, found in held_out_steps().items():
        step, row, tested = STEPS[number], summary(number, found), summary(number, runs_of("steps", f"step{number}"))
        figures = " | ".join([f"{count_parameters(step.net()):,}", tested[2], row[2], row[6]])
        assert re.search(rf"^\| \[{number} {step.theme}\].* \| {re.escape(figures)} \|$", readme, re.M), figures
        assert [len(found), tested[1]] == [24, "20"]


def test_the_numbers_of_the_steps(readme):
    steps = held_out_steps()
    one, two, three = (summary(number, steps[number]) for number in (1, 2, 3))
    tested = [summary(number, runs_of("steps", f"step{number}")) for number in (1, 2, 3)]
    test = runs_of("steps", "step3")
    last = [last_accuracies(run)[-1] for run in test]
    error = 100 * math.sqrt(statistics.mean(last) / 100 * (1 - statistics.mean(last) / 100) / 10_000)
    mean, low, high = pairs(mean_of_last, "step2", "step1")
    narrowed = pairs(gap, "step2", "step1")
    risen, lowest = pairs(mean_of_last, "step3", "step2"), pairs(lowest_of_last, "step3", "step2")
    seconds = statistics.median(sum(run["history"]["seconds"]) for run in test)
    assert {(run["threads"], run["device"], run["hardware"]) for run in test} == {(1, "cpu", "AMD EPYC")}
    holding = Counter(run["split"] for run in steps[3] if meets(run, STEPS[3].target))
    by_sixth = [holding[split] for split in SIXTHS]
    assert (min(by_sixth), max(by_sixth)) == (0, 4)
    later = [meets(run, STEPS[2].target, STEPS[2].gap) for run in steps[2] if run["seed"] >= 6]
    learnt = [*steps[1], *runs_of("steps", "step1")]
    assert all(lowest_of_last(run) > 90 for run in learnt)
    for of, number in ((spread, 2), (gap, 3)):  # what cannot be told apart
        ends = re.findall(r"[-+][\d.]+", interval(pair_differences(steps[number], steps[number - 1], of)))[1:]
        assert float(ends[0]) < 0 < float(ends[1])
    guessing = [run for run in runs_of("choices", "step1-rate-0.05") if mean_of_last(run) < 20]
    assert len(guessing) == 1
    assert all(loss > 2.29 for run in guessing for loss in run["history"]["train_loss"])
    for sentence in (
        f"**Result.** {tested[0][2]} on the test set, {one[2].split()[0]} on held-out images.",
        f"the images that it was trained on {one[6]} points better than others",
        f"a run's last five epochs lie {apart(steps[1])} points apart",
        f"{STEPS[2].target:.2f} in each of the last five epochs, and a gap of at most {STEPS[2].gap:.2f}",
        f"Step 1 leaves a gap of {one[6]} points on held-out images.",
        f"**Result.** {tested[1][2]} on the test set, {two[2].split()[0]} on held-out images, with a gap of {two[6]}. "
        f"The target was set from six of the held-out runs; of the other {len(later)}, {later.count(True)} hold it.",
        f"the mean of the last five epochs rises by {mean} (95 % interval {low} to {high}) points",
        f"the gap shrinks by {narrowed[0]} ({narrowed[2]} to {narrowed[1]})",
        f"the last five epochs lie {apart(steps[2])} points apart, which cannot be told from Step 1's",
        f"the mean of its last five epochs is below that, and they lie {apart(steps[2])} points apart",
        f"over seeds the standard deviation is {statistics.stdev(last):.2f} on the test set",
        f"over 10,000 other images of the same kind the standard error {error:.2f} by the binomial formula.",
        f"**Result.** {statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} on the test set",
        f"the lowest of all last five epochs is {min(map(lowest_of_last, test)):.2f}",
        f"On held-out images {three[2].split()[0]}, and {three[7]} runs hold 99.40 there: "
        "from none to all of the four on a sixth.",
        "The gap on held-out images cannot be told from Step 2's.",
        f"the mean of the last five epochs rises by {risen[0]} ({risen[1]} to {risen[2]}) points",
        f"the lowest of them by {lowest[0]} ({lowest[1]} to {lowest[2]}); "
        f"the last five lie {apart(steps[3])} points apart",
        f"The twenty published runs took {seconds:.0f} s each (median, on one thread of an AMD EPYC",
        f"At a rate of 0.05, one run of six never learnt; at 0.02, which was kept, none of {len(learnt)}.",
    ):
        assert sentence in readme


def test_what_is_left(readme):
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    models = errors["models"]
    wrong = [models - image["votes"][image["label"]] for image in errors["images"]]
    every = sum(count == models for count in wrong)
    assert f"The {models} nets average {sum(wrong) / models:.1f} errors." in readme
    assert f"All of them get the same {every} of the 10,000 images wrong." in readme
    by_record = [10_000 - run["history"]["test_correct"][-1] for run in runs_of("steps", "step3")]
    assert sum(wrong) == pytest.approx(sum(by_record), abs=5)  # rounding
