"""The report: no number in the README or a notebook, and no picture, differs from results/."""

import json
import shutil
import statistics

import pytest
import torch

from experiments import effects, errors, pictures, report, search, tables, variants
from experiments.study import GROUPS, load_study, record_path, split_of
from experiments.wording import Effect
from model import STEPS
from tinymnist import runs
from tinymnist.runs import meets
from utils import accuracy, load_runs


def test_every_document_agrees_with_results():
    found = {path.name: complaints for path, _, complaints in report.documents()}
    assert found == {name: [] for name in report.DOCUMENTS}


def test_every_picture_agrees_with_results():
    found = {path.name: complaints for path, _, complaints in report.drawn()}
    assert found == {name: [] for name in pictures.PICTURES}


def test_every_document_has_places_and_none_is_left_open():
    for path, content, _ in report.documents():
        places = report.PLACE.findall(content.decode().replace("\\n", "\n"))
        assert len(places) >= 5, path
        assert all(value != "?" for _, value in places), path


@pytest.fixture
def copied_results(tmp_path, monkeypatch):
    """A copy of results/ that the report reads in place of the real one."""
    shutil.copytree(runs.RESULTS, tmp_path / "results")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_another_result_is_noticed(copied_results):
    path = copied_results / "step3" / "seed_1.json"
    run = json.loads(path.read_text())
    run["history"][-1]["test_correct"] -= 100
    path.write_text(json.dumps(run))
    complaints = [line for *_, found in report.documents() for line in found]
    assert "README.md: step3-mean differs from results/" in complaints
    assert "Step3_Final.ipynb: step3-result differs from results/" in complaints
    assert not any("step1" in line for line in complaints)
    assert ["results/learning_curves.svg differs from results/"] in [found for *_, found in report.drawn()]


@pytest.mark.parametrize(
    ("file", "claim"),
    [
        ("step3/seed_13.json", "README.md: step3-mean has lost its evidence"),
        ("study/changes/step2-no-dropout/seed_3.json", "README.md: step2-effects has lost its evidence"),
        ("errors.json", "README.md: errors-mean has lost its evidence"),
        ("teacher/seed_0.json", "Step3_Final.ipynb: teacher-accuracy has lost its evidence"),
        ("bench_cpu.json", "README.md: bench-pipelines has lost its evidence"),
    ],
)
def test_lost_evidence_is_named(copied_results, file, claim):
    (copied_results / file).unlink()
    complaints = [line for *_, found in report.documents() for line in found]
    assert any(line.startswith(claim) and file in line for line in complaints)
    assert all("has lost its evidence" in line for line in complaints)


def test_a_changed_number_in_the_text_is_noticed_and_mended():
    values = {"mean": lambda: "99.50 %"}
    text, complaints = report.fill("It is <!--mean-->99.51 %<!--/--> on average.", values, "README.md")
    assert complaints == ["README.md: mean differs from results/"]
    assert text == "It is <!--mean-->99.50 %<!--/--> on average."
    assert report.fill(text, values, "README.md") == (text, [])


def test_an_unknown_place_is_named():
    _, complaints = report.fill("<!--nothing-->1<!--/-->", {}, "README.md")
    assert complaints == ["README.md: nothing is known by the name nothing"]


def test_published_runs_are_complete_and_on_the_test_set():
    for number in STEPS:
        published = tables.step_runs(f"step{number}")
        assert [run["seed"] for run in published] == list(range(tables.SEEDS[f"step{number}"]))
        assert published == load_runs(f"step{number}")  # none is left out
        for run in published:
            assert (run["step"], run["data"], run["split"], run["device"]) == (number, "mnist", "test", "cpu")
            assert len(run["history"]) == 15
            assert {r["train_total"] for r in run["history"]} == {60_000}
            assert {r["test_total"] for r in run["history"]} == {10_000}
            assert not run["commit"].endswith("-dirty")


def test_what_was_studied_is_complete_and_choices_left_the_test_set_alone():
    for name, group in GROUPS.items():
        assert group.held_out == (name in ("search", "changes", "sizes"))
        for variant in group.variants():
            published = load_study(name, variant)
            assert len(published) == len(list(record_path(name, variant, 0).parent.iterdir()))
            for run in published:
                assert run["split"] == split_of((name, variant, run["seed"]))
                assert {r["train_total"] for r in run["history"]} == {50_000 if group.held_out else 60_000}
                assert not run["commit"].endswith("-dirty")


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        (
            "worse",
            "step2-no-batchnorm step2-weight-decay step3-no-average step3-step-schedule step3-half "
            "step3-augmentation-1.5 step3-dropout-10",
        ),
        (
            "better",
            "step1-batchnorm step1-dropout-5 step1-dropout-10 step1-dropout-25 "
            "step2-one-cycle step2-average step2-distillation",
        ),
        ("loss-higher", "step3-no-deslant step3-no-augmentation step3-no-distillation step3-constant"),
        ("loss-lower", "step3-overlapping"),
    ],
)
def test_what_the_text_says_of_single_changes(matches, expected):
    assert all(effects.SORTS[matches](name) for name in expected.split())


@pytest.mark.parametrize(
    "name",
    "step1-gap step2-no-dropout step2-dropout-10 step2-dropout-20 step2-big-kernel "
    "step3-constant step3-no-deslant step3-no-augmentation step3-no-distillation "
    "step3-label-smoothing-alone step3-no-batchnorm step3-gap step3-no-crop step3-norm-first step3-no-boldness "
    "step3-no-weight-decay step3-no-rotation step3-no-translation step3-no-scale step3-no-shear "
    "step3-augmentation-0.5 step3-early-pooling step3-late-pooling step3-overlapping step3-gelu step3-batch-64 "
    "step3-batch-256 step3-silu step3-dropout-5 step3-label-smoothing".split(),
)
def test_where_the_text_says_no_measurable_effect(name):
    assert effects.effect(name).verdict == "no measurable effect"


@pytest.mark.parametrize("name", variants.AUGMENTATION)
def test_no_single_augmentation_has_a_measurable_effect_on_the_loss(name):
    interval = effects.loss_effect(f"step3-no-{name}")
    assert interval.low < 0 < interval.high


@pytest.mark.parametrize(
    ("added", "taken_out"),
    [
        ("step2-one-cycle", "step3-constant"),
        ("step2-average", "step3-no-average"),
        ("step2-distillation", "step3-no-distillation"),
    ],
)
def test_gains_of_step_2_do_not_add_up(added, taken_out):
    assert effects.effect(added).low > -effects.effect(taken_out).low


def test_what_the_text_says_of_the_prior_nets():
    step3, verdicts = effects.means(tables.step_runs("step3")), {}
    for network in variants.PRIOR_NETS:
        ours, own = (load_study("prior", f"{network}-{recipe}") for recipe in ("ours", "published"))
        assert all(meets(run, 99.4) for run in ours)
        assert not any(meets(run, 99.4) for run in own)
        assert Effect.between(step3, effects.means(ours)).verdict == "no measurable effect"
        verdicts[network] = Effect.between(effects.means(ours), effects.means(own)).verdict
    assert verdicts == {"A": "better", "D": "no measurable effect", "E": "better", "F": "better"}
    step3_seconds, prior_seconds = (int(tables.values()[f"{name}-seconds"]()[:-2]) for name in ("step3", "prior"))
    assert 0.3 < step3_seconds / prior_seconds < 0.37  # "a third of the time"


def test_those_trained_again_are_the_best_from_one_random_seed():
    found = {name: effects.held_out(name, "search")[0] for name in search.trials().keys() - search.CLOSE}
    assert set(sorted(found, key=found.__getitem__)[-len(search.BEST_OF_OTHERS) :]) == search.BEST_OF_OTHERS


def test_the_best_trials_do_no_better_than_step_3():
    found = {words: tables.against_start(runs)[1] for words, runs in tables.searched()}
    best = [search.trials()[name].change for name in search.BEST_TWO]
    best.append(search.AMONG_CHANGES["step3-overlapping"])
    assert set(sorted(found, key=found.__getitem__)[-3:]) == set(best)
    for name in search.BEST_TWO:
        assert tables.against_step_3(name).verdict == "no measurable effect"


def test_the_smaller_nets_are_the_best_ones_on_held_out_images():
    found = {name: statistics.mean(effects.held_out(name, "sizes")) for name in variants.sizes()}
    rounds = [{budget: ("flat", "kernels") for budget in variants.SIZES}]
    rounds += [
        {budget: [name for name, *_ in changes] for budget in budgets}
        for budgets, changes in variants.LATER_ROUNDS.items()
    ]
    so_far = {budget: [] for budget in variants.SIZES}
    for candidates, best in zip(rounds, variants.BEST, strict=True):
        assert best.keys() == candidates.keys()
        for budget, names in candidates.items():
            so_far[budget] += [f"{budget}-{name}" for name in names]
            assert f"{budget}-{best[budget]}" == max(so_far[budget], key=found.__getitem__)


def test_the_errors_are_those_of_the_published_weights(mnist):
    found, run = tables.load_errors(), load_runs("step3")[0]
    answers = errors.probabilities(0, mnist.test_images).argmax(1)
    assert 100 * (answers == mnist.test_labels).sum().item() / 10_000 == accuracy(run["history"][-1])
    wrong = set((answers != mnist.test_labels).nonzero()[:, 0].tolist())
    assert wrong <= {entry["index"] for entry in found["images"]}
    confusion = torch.tensor(found["confusion"])
    assert confusion.sum() == 10_000 * found["models"]
    assert found["models"] == tables.SEEDS["step3"] == errors.MODELS
    correct = sum(r["history"][-1]["test_correct"] for r in tables.step_runs("step3"))
    assert confusion.trace() == correct
    for entry in found["images"]:
        assert sum(entry["votes"]) == found["models"]
        assert entry["label"] == mnist.test_labels[entry["index"]]
