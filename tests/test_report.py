"""The report: what is written about the runs is what their records say, and lost evidence is named."""

import itertools
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments import pictures, report, tables
from experiments.variants import FASTEST
from model import STEPS
from tinymnist import runs
from tinymnist.augmentation import STD
from utils import count_parameters, receptive_field

COLUMNS = (
    "group variant base seed split parameters epochs last last5_mean last5_min test_loss train_accuracy seconds "
    "threads device hardware torch commit"
).split()


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.read_csv(runs.RESULTS / "runs.csv", keep_default_na=False, na_values={"train_accuracy": ""})


@pytest.fixture(scope="module")
def compared() -> pd.DataFrame:
    return pd.read_csv(runs.RESULTS / "effects.csv").set_index(["group", "variant"])


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of results/ that the report reads and writes in place of the real one."""
    shutil.copytree(runs.RESULTS, tmp_path / "results")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pictures, "draw_all", lambda again: None)
    return tmp_path / "results"


def interval(row: pd.Series, unit: str = "", low: bool = False) -> str:
    """A difference of the mean or the lowest of the last five epochs, with its interval."""
    value, *ends = (row[("last5_min" if low else "last5_mean") + end] for end in ("", "_low", "_high"))
    return f"{value:.3f}{unit} ({ends[0]:.3f} to {ends[1]:.3f})"


def cost(row: pd.Series) -> str:
    """How much lower the mean of the last five epochs is, with its interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*-row[["last5_mean", "last5_mean_high", "last5_mean_low"]])


def sentences(frame: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """What the README says in numbers, computed anew."""
    steps = {number: frame[frame.variant == f"step{number}"].query("group == 'steps'") for number in STEPS}
    mean = {number: own["last"].mean() for number, own in steps.items()}
    train = {number: own.train_accuracy.mean() for number, own in steps.items()}
    layers = {n: [row for row in receptive_field(step.net()) if row.kernel != 1] for n, step in STEPS.items()}
    fields = {n: " ".join(str(row.receptive_field) for row in rows) for n, rows in layers.items()}
    padded, _, seen = fields[3].rpartition(" ")
    norm, rung, without = compared.loc[("changes", "step2-no-batchnorm")], compared.loc["ladder"], compared.loc["parts"]
    record = pd.read_csv(runs.RESULTS / "records.csv", keep_default_na=False).set_index("name")
    holder = {word: row for _, row in record.iterrows() for word in row.holds.split(", ")}
    missed = record[(record.teacher == "no") & (record.held == 19) & record.index.str.fullmatch(r"[\d-]+")]
    compact, gpu = holder["fewest bytes"], frame[(frame.group == "gpu") & (frame.variant == "plain")]
    linear = frame[frame.group == "baseline"]
    timed, entry = (runs.load_bench(part)["contenders"] for part in ("pipelines", "records"))
    seconds = {name: np.median([np.mean(run["seconds"]) for run in one["runs"]]) for name, one in timed.items()}
    usual, whole = (np.array([run["seconds"][0] for run in entry[name]["runs"]]) for name in ("stock-0", "fastest"))
    longer = 15 * usual / whole
    errors = json.loads((runs.RESULTS / "errors.json").read_text())
    photos = json.loads((runs.RESULTS / "photos.json").read_text())
    styles, writers = photos["styles"].values(), photos["sets"]["scikit-learn's load_digits, enlarged"]
    wrong = [20 - image["votes"][image["label"]] for image in errors["images"]]
    first = runs.load_runs("step3")[0]
    fives = [runs.last_accuracies(run) for run in runs.load_runs("step1")]
    return [
        f"a net of {count_parameters(STEPS[3].net()):,} parameters",
        *(
            f"| {own.parameters.iloc[0]:,} | {mean[n]:.2f} ± {own['last'].std():.2f} | {STEPS[n].target:.2f}: "
            f"{(own.last5_min >= STEPS[n].target).sum()} of {len(own)} |"
            for n, own in steps.items()
        ),
        f"classified with the final weights: {first['train_accuracy']:.2f} %",
        f"last 5 epochs: {min(runs.last_accuracies(first)):.2f} % to {max(runs.last_accuracies(first)):.2f} %, after "
        f"{sum(epoch['seconds'] for epoch in first['history']):.0f} s",
        f"an epoch takes {seconds['final']:.2f} s, evaluation included. A typical net of this size takes "
        f"{seconds['stock-0']:.2f} s with PIL images and a `DataLoader`, and {seconds['same-net']:.2f} s in our",
        *(f"**Target: {step.target:.2f}" for step in STEPS.values()),
        f"has {linear.parameters.iloc[0]:,} parameters and reaches {linear['last'].mean():.2f}.",
        f"{mean[1]:.2f} on average. Receptive field after each layer: {fields[1]}.",
        f"{mean[2]:.2f} on average. Receptive field: {fields[2]}.",
        f"classify {train[1]:.2f} % of the training images correctly, {train[1] - mean[1]:.2f} points more",
        f"lie {np.mean([max(five) - min(five) for five in fives]):.2f} points apart",
        *(f"gap closed makes {(mean[n] + train[n]) / 2:.2f}" for n in (1, 2)),
        f"falls by {-norm.last5_mean:.3f} points (95 % interval {-norm.last5_mean_high:.3f} to "
        f"{-norm.last5_mean_low:.3f})",
        f"now fits {train[2]:.2f} % of the training images, and a gap of {train[2] - mean[2]:.2f} is left",
        f"{mean[3]:.2f} on average; the lowest of all last five epochs is {steps[3].last5_min.min():.2f}. "
        f"Receptive field: {padded} with the padding; the head sees all {seen}x{seen} pixels",
        f"one-cycle gains most: {interval(rung.loc['one-cycle'], ' points')}",
        f"the lowest of the last five epochs by {interval(rung.loc['average'], low=True)}",
        f"Augmentation gains {interval(rung.loc['augmentation'])}",
        f"deslanting {interval(rung.loc['deslant'])}",
        f"the four views {interval(rung.loc['four-views'])}",
        "a run takes {:.2f}, {:.2f} and {:.2f} times as long".format(*rung.time[["net", "crop", "batch-256"]]),
        f"augmentation costs most, {cost(without.loc['no-augmentation'])}",
        "alone they cost {:.3f}, {:.3f} and {:.3f}, together {}".format(
            *-without.last5_mean[["no-one-cycle", "no-average", "one-view"]], cost(without.loc["unsettled"])
        ),
        f"seemed to gain {interval(rung.loc['weight-decay'], ' points')}",
        f"changed the mean by {interval(compared.loc[('taken_out', 'no-weight-decay')])}",
        f"faster, but {interval(rung.loc['strided'])}",
        f"average {sum(wrong) / 20:.1f} errors; {wrong.count(20)} of the 10,000 images defeat all",
        f"reads {sum(c['right'] for c in styles) / sum(c['n'] for c in styles):.1%} of synthetic photographs".replace(
            "%", " %"
        ),
        f"and {writers['right'] / writers['n']:.1%} of the {writers['n']:,} digits".replace("%", " %"),
        f"in all twenty runs: {holder['smallest'].parameters:,} parameters; "
        f"{holder['smallest with a teacher'].parameters:,} if a larger net",
        "Without it, nets of {:,}, {:,} and {:,} miss in one run each".format(*sorted(missed.parameters)[::-1]),
        f"**Shortest**: {holder['shortest'].epochs} epochs. With eight, one run misses.",
        f"**Most accurate**: {holder['most accurate']['mean']:.2f} ± {holder['most accurate'].sd:.2f}",
        f"for 99.50 on average: {compact.bytes:,}, with 4-bit weights; one run in twenty falls to {compact.lowest:.2f}",
        f"**Fastest**: {record.epochs[FASTEST]} epochs; 15 of the usual pipeline take {np.median(longer):.1f} times as "
        f"long ({min(longer):.1f} to {max(longer):.1f}) on two CPU cores",
        f"On an H100 GPU one run took {gpu.seconds.iloc[0]:.0f} s",
        f"[{record.held['final']} of 20 random seeds](results/README.md#records) meet the target there too",
        f"up to {np.sqrt((1 / 24 + 1 / 5) * 24):.1f} times as wide",
        f"would vary by {np.sqrt(mean[3] * (100 - mean[3]) / 10_000):.2f} points",
        f"images.unsqueeze(1) / 255 / {STD})",
    ]


def test_every_number_of_the_readme_is_that_of_the_records(frame, compared, repository):
    text = (repository / "README.md").read_text()
    wrong = [sentence for sentence in sentences(frame, compared) if sentence not in text]
    assert not wrong, "the records say otherwise: " + " / ".join(wrong)
    for sentence in sentences(frame, compared):
        text = text.replace(sentence, "")
    measured = re.findall(r"\d+\.\d\d+\b(?! or newer)", text.replace("99.40", ""))
    assert measured == [], "add these numbers to `sentences`"


def test_prose_of_the_notebooks_has_no_measured_number(repository):
    for name in ("Step1_Setup", "Step2_Regularize", "Step3_Final"):
        cells = nbformat.read(repository / f"{name}.ipynb", as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        prose = re.sub(r"\]\([^)]*\)|`[^`]*`|\b9[89]\.[04]0 %", "", prose)
        assert re.findall(r"\d+\.\d\d+\b", prose) == [], name


def test_what_the_text_says_in_words(frame, compared):
    earlier = compared.loc["earlier"]
    assert len(earlier) == 30
    assert earlier.pairs.eq(5).all()
    assert earlier.p_mean.min() > 0.05
    changes = compared.loc["changes"]
    ladder, taken_out = compared.loc["ladder"], compared.loc["taken_out"]
    assert ladder.pairs.eq(24).all()
    assert (ladder.loc[["one-cycle", "average", "augmentation", "deslant", "four-views"], "p_mean"] < 0.05).all()
    assert ladder.loc["one-cycle", "last5_mean"] == ladder.last5_mean.max()
    assert ladder.loc["average", "last5_min"] > ladder.loc["average", "last5_mean"]
    for name in ("net", "crop", "batch-256"):
        assert ladder.loc[name, "last5_mean_low"] < 0 < ladder.loc[name, "last5_mean_high"], name
    assert ladder.loc["strided", "last5_mean_high"] < 0
    assert ladder.loc["weight-decay", "p_mean"] > 0.05
    assert taken_out.loc["no-weight-decay", "pairs"] == 24
    assert taken_out.loc["no-weight-decay", ["p_mean", "p_lowest"]].min() > 0.05
    parts = compared.loc["parts"]
    alone, together = parts.drop("unsettled"), parts.loc["unsettled"]
    assert alone.last5_mean.nsmallest(2).index.tolist() == ["no-augmentation", "one-view"]
    assert alone.pairs.between(6, 8).all()
    assert parts.loc["no-deslant", "pairs"] == 7
    assert parts.loc["no-deslant", "last5_mean_low"] < 0 < parts.loc["no-deslant", "last5_mean_high"]
    assert together.last5_mean_high < alone.last5_mean[["no-one-cycle", "no-average", "one-view"]].sum()
    assert (parts.loc[["no-net", "no-crop"], "last5_mean"] < 0).all()
    assert (parts.loc[["no-net", "no-crop"], "p_mean"] > 0.05).all()
    assert changes.loc["step2-no-batchnorm", "p_mean"] < 0.05
    for name in "no-dropout dropout-10 dropout-20 big-kernel".split():
        row = changes.loc[f"step2-{name}"]
        assert row.last5_mean_low < 0 < row.last5_mean_high, name
    for name in "batchnorm dropout-5 dropout-10 dropout-25".split():
        row = changes.loc[f"step1-{name}"]
        assert row.last5_mean_low > 0, name
        assert row.test_loss_high < 0, name
    low = changes.loc["step1-gap"]
    assert low.last5_mean_low < 0 < low.last5_mean_high
    last = frame[frame.group.isin(["steps", "baseline"])].groupby("variant")["last"].mean()
    assert (100 - last["linear"]) / (100 - last["step1"]) == pytest.approx(7, abs=0.5)
    prior = frame[frame.group == "prior"]
    assert (prior[prior.variant.str.endswith("earlier")].last5_min >= 99.4).sum() == 12
    assert (prior[prior.variant.str.endswith("published")].last5_min < 99.4).all()
    gained = compared.loc["prior"].p_mean < 0.05
    assert gained.to_dict() == {"A-earlier": True, "D-earlier": False, "E-earlier": True, "F-earlier": True}
    entered = pd.read_csv(runs.RESULTS / "records.csv").set_index("name")
    assert entered.held["8-epochs"] == 19
    assert entered.held[FASTEST] == entered.seeds[FASTEST] == 20
    gap = {
        n: own.train_accuracy.mean() - own["last"].mean() for n, own in frame[frame.group == "steps"].groupby("variant")
    }
    assert gap["step1"] > gap["step2"] > gap["step3"] > 0


def test_published_runs_are_complete_and_on_the_test_set(frame):
    for number, count in {1: 20, 2: 20, 3: 20}.items():
        published = runs.load_runs(f"step{number}", count)
        assert published == runs.load_runs(f"step{number}")  # none is left out
        assert len({run["commit"] for run in published}) == 1
        for run in published:
            assert (run["step"], run["data"], run["split"], run["device"]) == (number, "mnist", "test", "cpu")
            assert {(r["train_total"], r["test_total"]) for r in run["history"]} == {(60_000, 10_000)}
    assert not frame.commit.str.endswith("-dirty").any()
    fewer = frame.variant.str.contains("-epochs") | (frame.group == "short")
    assert frame.epochs[~fewer].eq(15).all()
    assert frame.epochs[fewer].lt(15).all()
    assert (
        frame[frame.group.isin(["ladder", "changes", "earlier", "search", "sizes", "short", "shared", "long"])]
        .split.ne("test")
        .all()
    )


def test_the_runs_are_a_table_with_a_row_per_record(frame):
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len(list(runs.RESULTS.glob("**/seed_*.json")))
    assert not frame.duplicated(["group", "variant", "seed"]).any()
    run = json.loads((runs.RESULTS / "step3" / "seed_7.json").read_text())
    row = frame[(frame.group == "steps") & (frame.variant == "step3") & (frame.seed == 7)].iloc[0]
    last = [record["test_correct"] / 100 for record in run["history"][-5:]]
    assert [row["last"], row.last5_mean, row.last5_min] == pytest.approx([last[-1], np.mean(last), min(last)])
    assert row.train_accuracy == pytest.approx(run["train_accuracy"], abs=1e-3)


def test_a_second_report_is_the_same_to_the_byte(copied):
    assert report.main([]) == 0
    first = {path.name: path.read_bytes() for path in copied.glob("*.*")}
    assert report.main([]) == 0
    assert first == {path.name: path.read_bytes() for path in copied.glob("*.*")}
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("step3/seed_13.json", 'steps/step3, seed 13, has no record: "The three steps" has lost its evidence'),
        ("study/changes/step2-no-dropout/seed_3.json", '"Single changes of Step 2" has lost its evidence'),
        ("study/search/gelu/seed_0.json", 'search/gelu, seed 0, has no record: "The search" has lost its evidence'),
        ("bench_cpu.json", "bench_cpu.json"),
        ("photos.json", "python -m experiments.photos writes it"),
        ("int8.json", "python -m experiments.export --all-seeds writes it"),
    ],
)
def test_lost_evidence_is_named(copied, capsys, file, says):
    (copied / file).unlink()
    assert report.main(["--check"]) == 1
    assert says in capsys.readouterr().err


def test_a_training_that_came_to_nothing_is_named_and_counts_nowhere(copied):
    (copied / "step3" / "seed_20.failed").write_text('{"seed": 20, "failed": "a loss of epoch 1 is not finite"}')
    assert report.main([]) == 0
    assert "\n- step3/seed_20.failed: a loss of epoch 1 is not finite\n" in (copied / "README.md").read_text()
    assert len(pd.read_csv(copied / "runs.csv")) == len(list(copied.glob("**/seed_*.json")))


def test_another_result_is_noticed(copied, capsys):
    path = copied / "step3" / "seed_1.json"
    run = json.loads(path.read_text())
    run["history"][-1]["test_correct"] -= 100
    path.write_text(json.dumps(run))
    assert report.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "results/runs.csv differs from the records: make report",
        "results/README.md differs from the records: make report",
    ]


def test_a_paired_interval_is_that_of_scipy():
    difference, split = pd.Series([0.1, -0.05, 0.2, 0.15, 0.0]), pd.Series(list("abcde"))
    found = tables.paired(difference, split)
    expected = stats.ttest_1samp(difference, 0)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found[""], found["p"]) == pytest.approx((difference.mean(), expected.pvalue))
    assert found["bound"] == pytest.approx(expected.confidence_interval(0.90).low)
    assert pd.Series(tables.paired(difference[:1], split[:1])).isna().sum() == 4


def test_sixths_are_blocks_where_each_has_several_pairs():
    split = pd.Series(list("aabbcc"))
    shifted = pd.Series([1.0, 1.2, -3.0, -2.8, 5.0, 5.2])  # the sixths differ widely, the pairs within them do not
    found = tables.paired(shifted, split)
    assert found[""] == pytest.approx(1.1)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(0.06 / 3 / 6))


def test_holm():
    corrected = tables.holm(pd.Series([0.01, 0.04, np.nan, 0.03], index=list("abcd")))
    assert corrected.dropna().to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert np.isnan(corrected["c"])


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_every_picture_can_be_drawn_and_is_shown_with_its_alt_text(name, repository):
    assert pictures.svg(pictures.PICTURES[name]).startswith(b"<?xml")
    assert (runs.RESULTS / name).exists()
    shown = re.findall(rf"!\[([^\]]+)\]\(results/{re.escape(name)}\)", (repository / "README.md").read_text())
    assert len(shown) == 1
    assert len(shown[0]) > 40


def test_every_section_has_runs_and_a_short_text(frame):
    labelled = tables.read_runs()
    headings = [heading for heading, *_ in report.SECTIONS]
    assert len(set(headings)) == len(headings)
    for heading, text, pick, functions in report.SECTIONS:
        assert 1 <= len(re.findall(r"[.!](?: |$)", text)) <= 3, heading
        for table in functions if len(pick(labelled)) else ():
            assert table(pick(labelled)).count("\n") >= 2, heading
    picked = list(itertools.chain.from_iterable(pick(labelled).index for _, _, pick, _ in report.SECTIONS))
    assert set(labelled.index) - set(picked) == set(), "runs that no table shows"
