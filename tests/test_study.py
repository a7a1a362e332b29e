"""The study: the notation of nets, the variants, and that a run is written and kept."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import utils
from experiments import search, study, variants
from experiments.nets import build
from experiments.variants import PRIOR_NETS, Variant
from model import STEPS, FinalNet
from tinymnist import augmentation, runs
from utils import Recipe, count_parameters, evaluate, fit


@pytest.mark.parametrize(("name", "parameters"), [("A", 7712), ("D", 7720), ("E", 7830), ("F", 7918)])
def test_prior_nets_have_the_published_number_of_parameters(name, parameters):
    assert count_parameters(build(PRIOR_NETS[name])) == parameters


def test_the_notation_says_the_final_net():
    torch.manual_seed(0)
    final = FinalNet().eval()
    torch.manual_seed(0)
    written = build("U2 c8pP c16p c16pP c18pP lin").eval()
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(final(x), written(x))


@pytest.mark.parametrize(
    ("line", "parameters"),
    [
        ("c4 GAP lin", 36 + 8 + 50),
        ("c4p P k6 D5 GAP lin0", 36 + 8 + 24 + 12 + 60),
        ("c4pP d6p G lin", 36 + 8 + 36 + 24 + 12 + 6 * 196 + 12 + 70),
        ("U2 c4pO c6pO D5 lin", 36 + 8 + 216 + 12 + 6 * 36 * 10 + 10),
        ("c4pO c4pO c4pO lin", 36 + 8 + 2 * (144 + 8) + 4 * 16 * 10 + 10),
        ("c4pP S SP GAP lin", None),
        ("c4pP c4pP S GAP lin", 36 + 8 + 144 + 8 + 8 + 50),
        ("c4pP r GAP lin", 36 + 8 + 144 + 8 + 50),
    ],
)
def test_each_word_of_the_notation(line, parameters):
    if parameters is None:  # the first convolution has one input channel, and cannot be used again
        with pytest.raises(RuntimeError):
            build(line)(torch.zeros(2, 1, 28, 28))
        return
    assert count_parameters(build(line)) == parameters
    assert build(line)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("word", ["c", "x8", "c8q", "D", "lin1", "GAP2"])
def test_unknown_words_are_refused(word):
    with pytest.raises(ValueError, match=f"no layer '{word}'"):
        build(f"c8 {word} lin")


def test_the_order_of_norm_and_activation():
    kinds = [type(layer).__name__ for layer in build("c8pP lin")]
    assert kinds == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    assert [type(layer).__name__ for layer in build("c8 lin", norm_last=True)][1:3] == ["ReLU", "BatchNorm2d"]


@pytest.mark.parametrize("group", study.GROUPS)
def test_every_variant_answers_and_keeps_to_15_epochs(group):
    for variant in study.GROUPS[group].variants().values():
        assert variant.net().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        assert variant.recipe.epochs == 15


def test_a_change_is_one_of_the_net_or_of_the_recipe():
    for name, variant in variants.changes().items():
        step = STEPS[variant.step]
        changed = [str(variant.net()) != str(step.net()), variant.recipe != step.recipe]
        assert sum(changed) == (name != f"step{variant.step}"), name


TRIALS_AMONG_CHANGES = {
    "step3-no-crop": f"U {search.FIRST_NET}",
    "step3-overlapping": "U2 c8pO c16p c16pO c18pO lin",
    "step3": f"U2 {search.FIRST_NET}",
}


def test_trials_among_the_changes_are_what_their_words_say():
    assert TRIALS_AMONG_CHANGES.keys() == search.AMONG_CHANGES.keys()
    for name, line in TRIALS_AMONG_CHANGES.items():
        change = variants.changes()[name]
        assert change.recipe == replace(search.FIRST_RECIPE, boldness=0.5, distillation=0.5, temperature=2.0)
        torch.manual_seed(0)
        net = change.net().eval()
        torch.manual_seed(0)
        written = build(line).eval()
        x = torch.rand(2, 1, 28, 28)
        assert torch.equal(net(x), written(x))


def test_at_least_forty_trials_and_all_below_8000_parameters():
    trials = search.trials()
    assert len(trials) > 40
    assert set(trials) >= search.MORE_SEEDS.keys()
    assert max(count_parameters(trial.net()) for trial in trials.values()) < 8_000


PATCHED = [(utils, "train_epoch"), (utils, "learning_rate"), (utils, "augment"), (torch.optim, "SGD")]
PATCHED += [(F, "cross_entropy"), (augmentation, "affine_grid")]


def patched() -> dict[str, Variant]:
    """The variants that enter a context."""
    every = search.trials() | variants.prior()
    return {name: variant for name, variant in every.items() if variant.patch is not contextlib.nullcontext}


@pytest.mark.parametrize("name", patched())
def test_patched_variants_learn_and_leave_no_trace(name, drawn):
    variant = patched()[name]
    recipe = replace(variant.recipe, epochs=4, batch_size=32, max_lr=4 * variant.recipe.max_lr, average=0.0)
    before = [getattr(module, attribute) for module, attribute in PATCHED]
    torch.manual_seed(0)
    net = variant.net()
    with variant.patch():
        assert before != [getattr(module, attribute) for module, attribute in PATCHED]
        fit(net, recipe, drawn, progress=False)
    assert before == [getattr(module, attribute) for module, attribute in PATCHED]
    assert evaluate(net, drawn.test_images, drawn.test_labels)[1] > 150  # of 300; chance is 30


def test_the_rate_falls_after_the_stated_epoch():
    with variants.stepped(8 / 15):
        rates = [utils.learning_rate(Recipe(max_lr=1.0), step, 15) for step in range(15)]
    assert rates == [1.0] * 8 + [0.1] * 7


def test_the_rate_falls_on_a_plateau(monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.1, 2.2, 1.9, 1.8, 1.8, 1.8, 1.8])
    seen = []

    def pretend(model, optimizer, images, labels, recipe, *_rest):
        seen.append(recipe.max_lr)
        return next(losses), 0, 0

    monkeypatch.setattr(utils, "train_epoch", pretend)
    with variants.on_plateau(patience=2):
        for _ in range(10):
            utils.train_epoch(None, None, None, None, Recipe(max_lr=1.0))
    assert seen == pytest.approx([1.0] * 5 + [0.1] * 5)


def test_a_run_is_written_and_kept(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "images", lambda split: drawn)
    final = variants.changes()["step3"]
    short = replace(final, recipe=replace(final.recipe, epochs=1))
    monkeypatch.setitem(study.GROUPS, "changes", study.Group(lambda: {"step3": short}, True, 2))
    taught = dict.fromkeys(study.SPLITS, np.full((1200, 10), 0.1, np.float32))
    for seed in (0, 1):
        study.run_one(("changes", "step3", seed), (taught, "cpu"))
    found = study.load_study("changes", "step3")
    assert [run["seed"] for run in found] == [0, 1]
    assert [run["split"] for run in found] == ["validation", "validation-0"]
    assert found[0]["history"] != found[1]["history"]
    study.record_path("changes", "step3", 1).unlink()
    with pytest.raises(FileNotFoundError, match=r"seed_1\.json"):
        study.load_study("changes", "step3")


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    called = []
    monkeypatch.setattr(study, "in_processes", lambda function, jobs, *_, **__: called.extend(jobs) or [])
    assert study.main(["changes/step1"]) == 0
    expected = [job for job in study.all_jobs() if job[0] == "changes" and job[1].startswith("step1")]
    assert called == expected != []
    path = study.record_path(*expected[0])
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    called.clear()
    study.main(["changes/step1"])
    assert called == expected[1:]


def test_wrong_arguments_are_refused(capsys):
    for arguments in (["--device", "tpu"], ["--seeds", "3"]):
        with pytest.raises(SystemExit) as stop:
            study.main(arguments)
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
