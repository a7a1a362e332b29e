"""The report and the README: what they say is what the records say."""

import json
import math
import re
import statistics
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest

from experiments import report
from experiments.report import held_out, runs_of
from model import STEPS
from tinymnist import runs
from tinymnist.data import SIXTHS
from tinymnist.tables import (
    comparison_table,
    gap,
    in_words,
    interval,
    last_accuracies,
    last_epoch,
    lowest_of_last,
    mean_of_last,
    meets,
    pair_differences,
    run_summary,
    spread_of_last,
)


@pytest.fixture(autouse=True)
def _read_again() -> None:
    report.records.cache_clear()


@pytest.fixture
def readme(repository) -> str:
    return (repository / "README.md").read_text()


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of a page, without code, the addresses of links, and pictures."""
    text = re.sub(r"```.*?```|`[^`]*`|!\[[^\]]*\]|(?<=\])\([^)]*\)", "", text, flags=re.S)
    heading, *others = re.split(r"^#+ (.*)\n", text, flags=re.M)[1:]
    return dict(zip([heading, *others[1::2]], others[::2], strict=True))


def numbers(text: str) -> list[str]:
    """The numbers of a text in their order; 3x3 and the like are none."""
    return re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])", text)


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


def run_of(seed, split, correct, train=95.0):
    history = {"test_correct": [0, *correct], "test_total": [1000] * 6}
    return {"seed": seed, "split": split, "train_accuracy": train, "history": history}


def test_runs_are_compared_with_those_of_the_same_seed():
    base = [run_of(0, "a", [900, 910, 920, 930, 940]), run_of(1, "b", [900] * 5)]
    better = [run_of(0, "a", [910, 920, 930, 940, 950], 97.0), run_of(1, "b", [930] * 5)]
    # The differences are 1 and 3 points: 2 ± 12.706 * 1; the gaps change by 1 and -3 points.
    figures = [*["+2.00 ± 12.71"] * 2, "-1.00 ± 25.41"]
    # A split counts once, with the mean over its seeds; on one split alone, each seed counts. Seeds without a partner
    # do not count.
    for own, others, pairs in (
        (better, base[::-1], 2),
        (better, [*base, run_of(2, "b", [100] * 5)], 2),
        ([*better, run_of(2, "b", [900] * 5)], [*base, run_of(2, "b", [870] * 5)], 3),
        ([run | {"split": "a"} for run in better], [run | {"split": "a"} for run in base], 2),
    ):
        row = comparison_table({"better": (own, others)}).splitlines()[-1].replace("\N{NO-BREAK SPACE}", " ")
        assert [cell.strip() for cell in row.split("|")[1:-1]] == ["better", str(pairs), *figures]
    assert (mean_of_last(base[0]), lowest_of_last(base[0]), gap(base[0])) == pytest.approx((92, 90, 1))
    assert spread_of_last(base[0]) == pytest.approx(4)
    for others in ([], [run_of(0, "b", [900] * 5)]):
        with pytest.raises(ValueError, match="these runs are not pairs of the same seeds and splits"):
            comparison_table({"better": (better, others)})


def test_no_difference_has_no_sign_of_its_own():
    assert in_words((-0.001, -0.021, 0.019)) == "+0.00\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.02"


def test_runs_are_summed_up_in_a_column_each():
    runs_of_column = [run_of(0, "a", [980, 990, 990, 990, 990], 99.5), run_of(1, "a", [990] * 5, 99.3)]
    rows = run_summary({"test": runs_of_column, "other": runs_of_column * 2}, 98.5).splitlines()
    assert [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows if "---" not in row] == [
        ["test", "other"],
        ["1 of 2", "2 of 4"],
        ["99.00 ± 0.00"] * 2,
        ["98.50"] * 2,
        ["98.00"] * 2,
        ["0.50"] * 2,
        ["99.40"] * 2,
        ["0.40"] * 2,
    ]


def test_what_other_test_images_would_give(monkeypatch, tmp_path):
    """Two nets that are wrong on the same 40 images, one of them on another 60: means and spread are the binomial's."""
    images = [{"wrong": [0, 1] if index < 40 else [1]} for index in range(100)]
    (tmp_path / "errors.json").write_text(json.dumps({"models": 2, "images": images}))
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    drawn = report.bootstrap(4000)
    for net, share in ((0, 0.004), (1, 0.01)):
        assert drawn[:, net].mean() == pytest.approx(100 - 100 * share, abs=0.01)
        assert drawn[:, net].std() == pytest.approx(100 * math.sqrt(share * (1 - share) / 10_000), rel=0.05)
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(math.sqrt(0.4), abs=0.05)
    assert (drawn[:, 0] >= drawn[:, 1]).all()


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


def accuracy(found) -> tuple[str, str]:
    """Mean and standard deviation after the last epoch."""
    return tuple(last_epoch(found).split(" ± "))


def average(of, found) -> str:
    return f"{statistics.mean(map(of, found)):.2f}"


def gained(of, runs, others) -> list[str]:
    """The size of the mean difference, and of the ends of its interval."""
    return [f"{abs(value):.2f}" for value in interval(pair_differences(runs, others, of))]


def pairs_of(*numbers):
    """The pairs of runs that say what a part gains alone, and last."""
    for number in numbers:
        for name, pair in report.gains(number).items():
            part, _, how = name.rpartition(", ")
            yield part, how, pair


def on_target(number, found) -> int:
    return sum(meets(run, STEPS[number].target, STEPS[number].gap) for run in found)


def test_every_number_of_the_readme_is_that_of_the_records(readme):
    test = {number: runs_of("steps", f"step{number}") for number in STEPS}
    other = {number: held_out(f"step{number}") for number in STEPS}
    parameters = {number: f"{test[number][0]['parameters']:,}" for number in STEPS}
    target = {number: f"{step.target:.2f}" for number, step in STEPS.items()}
    assert {len(found) for found in test.values()} == {20} == {on_target(k, found) for k, found in test.items()}
    rows = {k: [str(k), target[k], *accuracy(test[k]), *accuracy(other[k])] for k in STEPS}
    ends = [last_accuracies(run)[-1] for run in test[3]]
    of_sixths = [
        statistics.mean(last_accuracies(run)[-1] for run in other[3] if run["split"] == split) for split in SIXTHS
    ]
    apart = [f"{max(values) - min(values):.2f}" for values in (ends, of_sixths)]
    bench = json.loads((runs.RESULTS / "bench_cpu.json").read_bytes())["median"]
    contenders = "Step 3", "usual pipeline, no workers", "the same net on our pipeline"
    timed = [f"{15 * bench[name]:.0f}" for name in contenders]
    linear = f"{float(accuracy(runs_of('prior', 'linear'))[0]):.0f}"
    later = [run for run in other[2] if run["seed"] >= 6]
    gains = {f"{part} {how}": gained(mean_of_last, *pair) for part, how, pair in pairs_of(2, 3)}
    gaps = {f"{part} {how}": gained(gap, *pair) for part, how, pair in pairs_of(2)}
    in_step3 = {part: gained(mean_of_last, *pair) for part, pair in report.gains_in_step3().items()}
    readings = sum(n for n, _ in report.EARLIER_READINGS.values())
    readings += sum(len(runs.read_runs(runs.RESULTS / f"{group}.jsonl")) for group in ("steps", "prior"))
    all_twenty = f"{100 * (report.bootstrap().min(1) >= STEPS[3].target).mean():.0f}"
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = [len(image["wrong"]) for image in errors["images"]]
    expected = {
        "Tiny MNIST": [
            *["15", parameters[3], target[3], "20", "15", "8,000", *rows[1], *rows[2], *rows[3], "20"],
            *[str(len(other[3])), str(on_target(3, other[3])), "3", *apart],
        ],
        "The net": ["1", parameters[1]],
        "Run it": ["15", *timed, "7"],
        "Three steps": [],
        "Step 1: set-up": [
            *[target[1], linear, "98", accuracy(test[1])[0], accuracy(other[1])[0]],
            *[average(gap, other[1]), average(spread_of_last, other[1])],
        ],
        "Step 2: regularize": [
            *[target[2], f"{STEPS[2].gap:.2f}", accuracy(test[2])[0], accuracy(other[2])[0]],
            *[str(len(later)), str(on_target(2, later)), gains["BatchNorm alone"][0], gaps["BatchNorm alone"][0]],
            *[gains["augmentation alone"][0], gaps["augmentation alone"][0]],
            *[gained(of, other[2], other[1])[0] for of in (mean_of_last, gap)],
        ],
        "Step 3: settle": [
            *[target[3], "2", "0", str(STEPS[3].recipe.batch_size), accuracy(test[3])[0]],
            *[f"{min(map(lowest_of_last, test[3])):.2f}", accuracy(other[3])[0]],
            *[*gained(mean_of_last, other[3], other[2]), *gained(lowest_of_last, other[3], other[2]), "2"],
        ],
        "What each part does": [
            *[
                "0",
                "95",
                *(gains[f"{part} alone"][0] for part in ("one-cycle", "average of the weights", "four views")),
            ],
            *[gains["four views last"][0], gains["average of the weights last"][0], in_step3["augmentation"][0]],
        ],
        "What is left": ["20", f"{sum(wrong) / 20:.1f}", str(wrong.count(20))],
        "Your own digits": ["8"],
        "Your own net": [],
        "How it was measured": ["0", str(readings), "10,000", target[3], all_twenty],
        "Limits": [],
        "The code": ["3.0"],
    }
    assert {heading: numbers(text) for heading, text in sections(readme).items()} == expected


def test_what_the_pages_say_without_numbers():
    test, other = ({k: runs for k, runs in report.steps_of(group).items()} for group in ("steps", "choices"))
    assert not any(meets(run, STEPS[3].target) for run in [*test[2], *other[2]])  # no run of Step 2 meets it
    by_sixth = [sum(meets(run, STEPS[3].target) for run in other[3] if run["split"] == split) for split in SIXTHS]
    assert (min(by_sixth), max(by_sixth)) == (0, 4)  # from none to all of the four runs of a sixth
    assert all(lowest_of_last(run) > 90 for run in [*test[1], *other[1]])  # at a rate of 0.02, no run of Step 1 failed
    fast = held_out("step1-rate-0.05")
    assert [mean_of_last(run) < 20 for run in fast].count(True) == 1
    slower = [mean_of_last(run) for run in other[1][:6]]
    assert all(mean_of_last(run) < other for run, other in zip(fast, slower, strict=True))  # the other five, too


def test_the_errors_are_those_of_the_runs():
    """Wrong by the published weights, and by the last epoch of their runs, but for rounding."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = sum(len(image["wrong"]) for image in errors["images"])
    by_record = [10_000 - run["history"]["test_correct"][-1] for run in runs_of("steps", "step3")]
    assert wrong == pytest.approx(sum(by_record), abs=5)
