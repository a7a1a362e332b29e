"""The report and the README: what they say is what the records say."""

import json
import math
import re
import statistics
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from scipy import stats

from experiments import bench, evidence, report, results
from experiments.evidence import held_out, runs_of
from experiments.pictures import score
from experiments.records import packed
from experiments.variants import ENTRIES, GROUPS
from model import STEPS
from predict import SURE
from tinymnist import runs
from tinymnist.data import SIXTHS
from tinymnist.tables import (
    accuracies,
    comparison_table,
    gap,
    in_words,
    interval,
    last_accuracies,
    last_epoch_in_words,
    lowest_of_last,
    mean_of_last,
    meets,
    pair_differences,
    run_summary,
    spread_of_last,
)


@pytest.fixture(autouse=True)
def _read_again() -> None:
    evidence.records.cache_clear()


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


@pytest.mark.parametrize("matplotlib", [version("matplotlib"), "1.0"])
def test_the_report_is_that_of_the_records_also_before_another_step_is_trained(monkeypatch, capsys, matplotlib):
    monkeypatch.setitem(STEPS, max(STEPS) + 1, replace(STEPS[3], theme="another"))
    monkeypatch.setattr(report, "version", lambda name: matplotlib)
    if not report.draws_the_same():
        monkeypatch.setattr(report, "svg", lambda draw: b"other bytes")
    assert report.main(["--check"]) == 0
    assert ("pictures not compared" in capsys.readouterr().err) != report.draws_the_same()


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
    figures = [*["+2.00±12.71"] * 2, "-1.00±25.41"]
    # A split counts once, with the mean over its seeds; seeds without a partner do not count.
    for own, others, pairs in (
        (better, base[::-1], 2),
        (better, [*base, run_of(2, "b", [100] * 5)], 2),
        ([*better, run_of(2, "b", [900] * 5)], [*base, run_of(2, "b", [870] * 5)], 3),
    ):
        row = comparison_table({"better": (own, others)}).splitlines()[-1]
        assert [cell.strip() for cell in row.split("|")[1:-1]] == [f"better ({pairs})", *figures]
    assert (mean_of_last(base[0]), lowest_of_last(base[0]), gap(base[0])) == pytest.approx((92, 90, 1))
    assert spread_of_last(base[0]) == pytest.approx(4)
    for others in ([], [run_of(0, "b", [900] * 5)]):
        with pytest.raises(ValueError, match="these runs are not pairs of the same seeds and splits"):
            comparison_table({"better": (better, others)})


def test_no_difference_has_no_sign_of_its_own():
    assert in_words(-0.001, 0.02) == "+0.00±0.02"


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
    drawn, one = evidence.bootstrap(4000)
    assert one == pytest.approx((drawn >= 99.4).mean(), abs=0.01)  # nearly all of the one net, hardly one of the other
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
    claim = "In each of the last five of 15 epochs, a net of 7,866 parameters reaches at least 99.40 % test accuracy"
    assert claim in readme


def accuracy(found) -> tuple[str, str]:
    """Mean and standard deviation after the last epoch."""
    return tuple(last_epoch_in_words(found).split(" ± "))


def average(of, found) -> str:
    return f"{statistics.mean(map(of, found)):.2f}"


def gained(of, pair) -> list[str]:
    """The mean difference, without its sign, and half of its interval."""
    return [f"{abs(value):.2f}" for value in interval(pair_differences(*pair, of))]


def told(of, pair) -> int:
    """What an interval tells: 1, it gains; -1, it loses; 0, it cannot tell."""
    mean, half = interval(pair_differences(*pair, of))
    return 0 if abs(mean) <= half else int(math.copysign(1, mean))


def on_target(number, found) -> int:
    return sum(meets(run, STEPS[number].target, STEPS[number].gap) for run in found)


SETTLING = ("one-cycle", "average of the weights", "four views")


def test_every_number_of_the_readme_is_that_of_the_records(readme):
    test = {number: runs_of("steps", f"step{number}") for number in STEPS}
    other = {number: held_out(f"step{number}") for number in STEPS}
    parameters = {number: f"{test[number][0]['parameters']:,}" for number in STEPS}
    target = {number: f"{step.target:.2f}" for number, step in STEPS.items()}
    assert {len(found) for found in test.values()} == {20} == {on_target(k, found) for k, found in test.items()}
    rows = {k: [target[k], *accuracy(test[k]), *accuracy(other[k])] for k in STEPS}
    ends = [last_accuracies(run)[-1] for run in test[3]]
    of_sixths = [
        statistics.mean(last_accuracies(run)[-1] for run in other[3] if run["split"] == split) for split in SIXTHS
    ]
    apart = [f"{max(values) - min(values):.2f}" for values in (ends, of_sixths)]
    seconds = json.loads((runs.RESULTS / "bench_cpu.json").read_bytes())
    contenders = "Step 3", bench.USUAL
    timed = [f"{round(15 * seconds['median'][name], -1):.0f}" for name in contenders]
    whole = json.loads((runs.RESULTS / "whole_run_cpu.json").read_bytes())["seconds"]
    runs_and_epochs = zip(whole[bench.WHOLE], whole[bench.USUAL], strict=True)
    faster = statistics.median(15 * epoch / run for run, epoch in runs_and_epochs)
    held = {
        name: (variant, found) for name, (variant, found) in evidence.entries().items() if evidence.is_record(found)
    }
    figures = [
        lambda variant, found: found[0]["parameters"],
        lambda variant, found: variant.recipe.epochs,
        lambda variant, found: len(packed(variant.net())),
    ]
    best = [min((of(*entry), accuracy(entry[1])[0]) for entry in held.values()) for of in figures]
    linear = f"{float(accuracy(runs_of('prior', 'linear'))[0]):.0f}"
    later = [run for run in other[2] if run["seed"] >= 6]
    two, three = evidence.gains(2), evidence.gains(3)
    alone = {part: points["alone"] for part, points in (two | three).items() if "alone" in points}
    last = {part: points["last"] for part, points in (three | evidence.gains_in_step3()).items() if "last" in points}
    both = tuple(found[:6] for found in two["all together"]["together"])  # the same pairs as for the parts
    settled = three["all together"]["together"]
    readings = sum(n for n, _ in results.EARLIER_READINGS.values())
    readings += sum(len(runs.read_runs(runs.RESULTS / f"{group}.jsonl")) for group in results.READINGS)
    all_twenty = f"{100 * (evidence.bootstrap()[0].min(1) >= STEPS[3].target).mean():.0f}"
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = [len(image["wrong"]) for image in errors["images"]]
    pictures = json.loads((runs.RESULTS / "pictures.json").read_bytes())
    digit, refuse = (score(pictures, group) for group in ("digit", "refuse"))
    assert digit["surely wrong"] == 1
    read = [str(digit[kind]) for kind in ("n", "right", "wrong")]
    expected = {
        "Tiny MNIST": [
            *["15", parameters[3], target[3], "20", "15", "8,000", *rows[1], *rows[2], *rows[3], "20"],
            *[str(len(other[3])), str(on_target(3, other[3])), *apart],
        ],
        "The net": [],
        "Run it": ["15", *timed],
        "Three steps": [],
        "Step 1: set-up": [
            *[target[1], linear, accuracy(test[1])[0]],
            *[average(gap, other[1]), average(spread_of_last, other[1])],
        ],
        "Step 2: regularize": [
            *[
                target[2],
                f"{STEPS[2].gap:.2f}",
                accuracy(test[2])[0],
                str(len(later)),
                str(on_target(2, later)),
            ],
            *[gained(of, alone[part])[0] for part in two if part in alone for of in (mean_of_last, gap)],
            *[gained(of, both)[0] for of in (mean_of_last, gap)],
        ],
        "Step 3: settle": [
            *[target[3], "2", "0", str(STEPS[3].recipe.batch_size), accuracy(test[3])[0]],
            *[f"{min(map(lowest_of_last, test[3])):.2f}"],
            *[*gained(mean_of_last, settled), *gained(lowest_of_last, settled), "95"],
        ],
        "What each part does": [
            *["95", *(gained(mean_of_last, alone[part])[0] for part in three if part in SETTLING)],
            *[gained(mean_of_last, last[part])[0] for part in ("four views", "average of the weights")],
            *[gained(mean_of_last, last[part])[0] for part in ("augmentation", "flattened head")],
        ],
        "Smaller, shorter, faster": [
            *["20", *(word for value, mean in best for word in (f"{value:,}", mean))],
            *[f"{faster:.1f}", accuracy(held[bench.FASTEST][1])[0]],
        ],
        "What is left": [f"{sum(wrong) / 20:.1f}", str(wrong.count(20))],
        "Your own digits": [f"{100 * SURE:.0f}", *read, str(refuse["n"]), str(refuse["refused"])],
        "Your own net": [],
        "How it was measured": [str(readings), "3", "10,000", target[3], all_twenty],
        "Limits": [],
        "The code": ["3.0"],
    }
    assert {heading: numbers(text) for heading, text in sections(readme).items()} == expected


def test_what_the_readme_says_of_prior_solutions():
    found = {name: [runs_of("prior", f"{net}-{name}") for net in results.SOURCES] for name in ("published", "ours")}
    held = {name: [sum(meets(run, 99.4) for run in of_net) for of_net in found[name]] for name in found}
    assert held == {"published": [0] * 6, "ours": [1, 1, 1, 2, 0, 0]}
    assert {len(of_net) for name in found for of_net in found[name]} == {2}


def test_what_the_pages_say_without_numbers():
    test, other = evidence.steps_of("steps"), evidence.steps_of("choices")
    assert not any(mean_of_last(run) >= STEPS[3].target for run in [*test[2], *other[2]])  # even the mean is below
    by_sixth = [sum(meets(run, STEPS[3].target) for run in other[3] if run["split"] == split) for split in SIXTHS]
    assert (min(by_sixth), max(by_sixth)) == (0, 4)  # from none to all of the four runs of a sixth
    assert all(lowest_of_last(run) > 90 for run in [*test[1], *other[1]])  # at a rate of 0.02, no run of Step 1 failed
    fast = held_out("step1-rate-0.05")
    assert [mean_of_last(run) < 20 for run in fast].count(True) == 1
    slower = [mean_of_last(run) for run in other[1][:6]]
    assert all(mean_of_last(run) < other for run, other in zip(fast, slower, strict=True))  # the other five, too
    guessing = [max(accuracies(run["history"])) > 90 for run in held_out("3-last-norm") if mean_of_last(run) < 20]
    assert (guessing.count(True), guessing.count(False)) == (3, 2)  # five of six end at guessing, three had learnt


def test_what_the_pages_say_of_parts():
    """Gains, losses, and what these pairs cannot tell, as README and notebooks have it."""
    two, three, early = evidence.gains(2), evidence.gains(3), evidence.gains_in_step3()
    norm, moved = two["BatchNorm"], two["augmentation"]
    assert [told(mean_of_last, pair) for points in (norm, moved) for pair in points.values()] == [1, 1, 1, 1]
    assert [told(gap, pair) for points in (norm, moved) for pair in points.values()] == [1, 0, -1, -1]
    assert [told(of, two["all together"]["together"]) for of in (mean_of_last, gap, spread_of_last)] == [1, -1, 0]
    settled = three["all together"]["together"]
    assert [told(of, settled) for of in (mean_of_last, lowest_of_last, gap, spread_of_last)] == [1, 1, 0, -1]
    assert [told(mean_of_last, three[part]["alone"]) for part in three if "alone" in three[part]] == [1, 1, 1, -1, 0]
    assert [told(mean_of_last, three[part]["last"]) for part in three if "last" in three[part]] == [0, 1, 1, 0]
    last = {part: points["last"] for part, points in (three | early).items() if "last" in points}
    assert told(lambda run: last_accuracies(run)[-1], last["average of the weights"]) == 0  # after the last epoch
    for part, overlaps in zip(SETTLING, (True, True, False), strict=True):  # of the views, they cannot tell
        added, taken = (pair_differences(*three[part][how], mean_of_last) for how in ("alone", "last"))
        mean, half = interval([a - b for a, b in zip(added, taken, strict=True)])
        assert (mean > half) == overlaps, part
    assert [told(mean_of_last, early[part]["last"]) for part in early if part != "BatchNorm"] == [1, 0, 0, 1]
    tried = {words: told(mean_of_last, points["left out"]) for words, points in evidence.left_out().items()}
    loses = {"Step 2 with global average pooling", "Step 3 with views on a 2x2 grid"}
    assert {words for words, sign in tried.items() if sign} == loses  # the others, these pairs cannot tell
    assert {tried[words] for words in loses} == {-1}
    assert len(tried) == 12


def test_the_picture_of_the_parts_marks_what_the_table_says(monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "plot_intervals", lambda groups, xlabel: drawn.append(groups))
    report.part_gains()
    [groups] = drawn
    rows = dict(re.findall(r"^\| (.*?) \(\d+\) +\| +([^|]+?) \|", results.parts(), re.M))
    assert "Step 2: augmentation, alone" in rows
    for part, points in groups["Step 3"].items():
        for how, found in points.items():
            label = f"Step 3: {part}" + (f", {how}" if how in ("alone", "last") else "")
            assert rows[label] == in_words(*found)
    assert groups["Step 2"]["BatchNorm"].keys() == {"alone", "last"}
    # What failed runs stretch beyond the picture is in the table alone.
    assert "BatchNorm" not in groups["Earlier parts, in Step 3"]
    assert "Step 1 at a rate of 0.05" not in groups["Tried and left out"]


def test_the_errors_are_those_of_the_runs():
    """Wrong by the published weights, and by the last epoch of their runs, but for rounding."""
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    wrong = sum(len(image["wrong"]) for image in errors["images"])
    by_record = [10_000 - run["history"]["test_correct"][-1] for run in runs_of("steps", "step3")]
    assert wrong == pytest.approx(sum(by_record), abs=5)


def test_every_row_of_the_records_is_that_of_its_runs():
    text = (runs.RESULTS / "README.md").read_text().partition("\n## Records\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]
    nets = {"step3": STEPS[3].net} | {name: variant.net for name, variant in GROUPS["records"].variants().items()}
    of_entries = {name: [] for name in nets}
    for line in [*(runs.RESULTS / "steps.jsonl").open(), *(runs.RESULTS / "records.jsonl").open()]:
        run = json.loads(line)
        if run["variant"] in of_entries and run["seed"] < ENTRIES.get(run["variant"], 20):
            of_entries[run["variant"]].append(run)
    for row, (name, found) in zip(rows, of_entries.items(), strict=True):
        assert sorted(run["seed"] for run in found) == [*range(ENTRIES.get(name, 20))]
        assert {run["split"] for run in found} == {"test"}
        [(parameters, epochs)] = {(run["parameters"], run["recipe"]["epochs"]) for run in found}
        [images] = {sum(run["history"]["train_total"]) for run in found}
        assert parameters < 8000
        assert epochs <= 15
        assert images <= 15 * 60_000
        ends = [run["history"]["test_correct"][-5:] for run in found]
        last, lowest = ([of(end) / 100 for end in ends] for of in (lambda end: end[-1], min))
        margin = (statistics.mean(lowest) - 99.4) / statistics.stdev(lowest)
        assert row[1:9] == [
            *[f"{parameters:,}", f"{len(packed(nets[name]())):,}", str(epochs), f"{images / 60_000:.1f}"],
            *[f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}", f"{min(lowest):.2f}"],
            *[f"{sum(value >= 99.4 for value in lowest)} of {len(found)}", f"{margin:.1f}"],
        ]


def test_the_chance_that_twenty_new_seeds_hold():
    """Against sums over what twenty runs leave open about their deviation and their mean."""
    correct = [round(9940 + 4 * (2.5 + value)) for value in np.random.default_rng(1).standard_normal(20)]
    margin, chance = evidence.margin_of(
        [{"history": {"test_correct": [value] * 5, "test_total": [10_000] * 5}} for value in correct]
    )
    assert margin == pytest.approx((statistics.mean(correct) - 9940) / statistics.stdev(correct))
    shares = (np.arange(400) + 0.5) / 400
    deviation = np.sqrt(19 / stats.chi2.ppf(shares, 19))[:, None]
    mean = margin + deviation / math.sqrt(20) * stats.norm.ppf(shares)
    assert chance == pytest.approx((stats.norm.cdf(mean / deviation) ** 20).mean(), abs=0.005)
