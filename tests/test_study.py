"""The study: its variants, that each run is made once, and that a run of another definition does not count."""

import json
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from torch import nn

from experiments import study
from experiments.nets import PRIOR_NETS, PartNet, deslant, prior_net
from experiments.variants import GROUPS, Group, Plateau, Variant, eight_epochs_then_a_tenth, up_and_slowly_down
from model import STEPS, FinalNet, SetupNet
from tinymnist import runs
from utils import Recipe, count_parameters, normalize, validation_split


def test_each_word_of_the_notation_is_a_layer_and_prior_nets_have_the_published_number_of_parameters():
    net = prior_net("c4p P k6 D5 GAP lin")
    unit = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    expected = [*unit, nn.MaxPool2d, *unit, nn.Dropout, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert [type(layer) for layer in net] == expected
    assert (net[0].kernel_size, net[0].padding, net[4].kernel_size) == ((3, 3), (1, 1), (1, 1))
    assert net[7].p == 0.05
    assert [type(layer) for layer in prior_net("c8 lin", norm_last=True)][1:3] == [nn.ReLU, nn.BatchNorm2d]
    with pytest.raises(ValueError, match="no layer 'x8'"):
        prior_net("c8 x8 lin")
    counts = {name: count_parameters(prior_net(line)) for name, line in PRIOR_NETS.items()}
    assert counts == {"A": 7712, "D": 7720, "E": 7830, "F": 7918, "J": 3762, "K": 4838}


@pytest.mark.parametrize("group", GROUPS)
def test_every_variant_answers_and_what_it_is_compared_with_is_there(group):
    steps = GROUPS["choices"].variants()
    for name, variant in GROUPS[group].variants().items():
        assert variant.net().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10), name
        assert not variant.against or (variant.against in steps and variant.words), name


def test_a_part_in_another_form_changes_that_part_alone(drawn):
    x, nets = normalize(drawn.test_images), {}
    for name in ("", "norm", "early", "cropped", "flat", "deslanted"):
        torch.manual_seed(0)
        nets[name] = PartNet(**({name: name == "deslanted"} if name else {})).eval()
    torch.manual_seed(0)
    assert torch.equal(nets[""](x), FinalNet().eval()(x))
    assert all(not torch.allclose(nets[name](x), nets[""](x), atol=1e-3) for name in nets if name)
    assert [count_parameters(net) for net in nets.values()] == [7866, 7808, 7866, 7866, 6426, 7866]
    assert torch.allclose(nets["deslanted"](x), nets[""](deslant(x)), atol=1e-4)
    still = PartNet(dropout=1.0).train()
    assert torch.equal(still(x), still.head.bias.expand(200, 10))


def test_deslanted_digits_stand_upright(drawn):
    x, at = deslant(normalize(drawn.test_images))[:, 0], torch.arange(28.0)
    mass = x.sum((1, 2))
    row, column = x.sum(2) @ at / mass, x.sum(1) @ at / mass
    leaning = torch.einsum("nyx,y,x->n", x, at, at) / mass - row * column
    assert leaning.abs().max() < 0.1


def test_the_steps_are_trained_as_defined_on_the_test_set_and_on_each_sixth():
    for number, step in STEPS.items():
        for group in ("steps", "choices"):
            variant = GROUPS[group].variants()[f"step{number}"]
            assert (variant.net, variant.recipe, variant.openings) == (step.net, step.recipe, {})
    assert {study.definition_of(job)["split"] for job in study.jobs_of(["steps"])} == {"test"}
    splits = [study.definition_of(job)["split"] for job in study.jobs_of(["choices/step3"], 7)]
    assert splits == [f"sixth-{k}" for k in range(6)] + ["sixth-0"]


def test_rates_of_prior_solutions():
    assert [eight_epochs_then_a_tenth(Recipe(), done) for done in (0, 0.53, 0.54, 1)] == [1, 1, 0.1, 0.1]
    rates = [up_and_slowly_down(Recipe(), epoch / 15) for epoch in (0.5, 1.5, 2, 5, 8, 11.5, 15)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1**0.5, 0.1, 0.05, 0])
    plateau, rates = Plateau(), []
    for epoch, sureness in enumerate([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]):
        rates.append(plateau.rate(Recipe(epochs=6), (epoch + 0.5) / 6))
        plateau.loss(sureness * torch.eye(10), torch.arange(10))
    rates.append(plateau.rate(Recipe(epochs=6), 1.0))
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.1])  # three epochs without a lower loss


@pytest.fixture
def small(tmp_path, monkeypatch, drawn, in_this_process):
    """A study of one small group in a folder of its own, trained in this process; returns what it has begun."""
    recipe = Recipe(epochs=1, batch_size=64)
    variants = {"a": Variant(SetupNet, recipe, seeds=2), "b": Variant(SetupNet, replace(recipe, max_lr=0.01), seeds=2)}
    groups = {"tiny": Group(lambda: variants, held_out=True, weights={"b": 1})}
    monkeypatch.setattr(study, "GROUPS", groups)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "in_processes", in_this_process)
    monkeypatch.setattr(study, "load_mnist", lambda split="sixth-0": validation_split(drawn, int(split[-1])))
    in_this_process.variants, in_this_process.recipe = variants, recipe
    return in_this_process


def test_each_run_is_made_once_and_added_when_it_is_finished(small, tmp_path, capsys):
    assert study.main(["tiny/b", "--seeds", "1"]) == 0
    assert study.main(["tiny"]) == 0
    assert small.jobs == [("tiny", "b", 0), ("tiny", "a", 0), ("tiny", "a", 1), ("tiny", "b", 1)]
    found = runs.read_runs(tmp_path / "tiny.jsonl")
    assert [(run["variant"], run["seed"], run["split"]) for run in found] == [
        ("b", 0, "sixth-0"), ("a", 0, "sixth-0"), ("a", 1, "sixth-1"), ("b", 1, "sixth-1"),
    ]  # fmt: skip
    assert list(runs.read_weights(tmp_path / "b.pt")) == [0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["b.pt", "tiny.jsonl"]
    assert study.main(["tiny"]) == 0
    assert len(small.jobs) == 4


def test_a_run_of_another_definition_is_named_and_made_again(small, tmp_path, capsys):
    study.main(["tiny"])
    small.variants["a"] = Variant(SetupNet, replace(small.recipe, max_lr=0.02), seeds=2)
    del small.jobs[:]
    assert study.main(["tiny"]) == 0
    assert small.jobs == [("tiny", "a", 0), ("tiny", "a", 1)]
    line = "tiny/a, seed 0, is no run of today's code: recipe max_lr 0.05, not 0.02\n"
    assert line in capsys.readouterr().out
    assert len(runs.read_runs(tmp_path / "tiny.jsonl")) == 4
    del small.variants["b"]
    assert study.finished("tiny")[1] == [
        f"tiny/b, seed {k}, is no run of today's code: no such variant, delete its line" for k in "01"
    ]


def test_a_run_whose_line_was_cut_off_is_told_and_made_again(small, tmp_path, capsys):
    study.main(["tiny"])
    path = tmp_path / "tiny.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    del small.jobs[:]
    assert study.main(["tiny"]) == 0
    assert small.jobs == [("tiny", "b", 1)]
    assert f"{path}: the last line was cut off" in capsys.readouterr().err
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["other"], "study.py: no 'other': choose from tiny\n"),
        (["tiny/c"], "study.py: no 'tiny/c': choose from a, b\n"),
        (["tiny", "--seeds", "0"], "must be a whole number"),
        ([], "required"),
    ],
)
@pytest.mark.usefixtures("small")
def test_bad_input_is_one_line_and_trains_nothing(arguments, line, capsys):
    try:
        code = study.main(arguments)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert line in err


def test_a_run_whose_weights_are_gone_is_made_again_and_damaged_ones_are_told_before_training(small, tmp_path, capsys):
    study.main(["tiny"])
    (tmp_path / "b.pt").unlink()
    del small.jobs[:]
    assert study.main(["tiny"]) == 0
    assert small.jobs == [("tiny", "b", 0)]
    assert list(runs.read_weights(tmp_path / "b.pt")) == [0]
    (tmp_path / "b.pt").write_bytes(b"half")
    assert study.main(["tiny"]) == 2
    assert f"no weights in {tmp_path / 'b.pt'} (" in capsys.readouterr().err
    assert len(small.jobs) == 1


def test_what_a_record_cannot_name_is_told_before_training(small, capsys):
    small.variants["a"] = Variant(SetupNet, small.recipe, {"rate": lambda recipe, done: 1.0})
    assert study.main(["tiny"]) == 2
    assert "tiny/a: a record can only name what is defined at the top level" in capsys.readouterr().err
    assert small.jobs == []


@pytest.mark.usefixtures("small")
def test_a_second_study_at_the_same_time_is_told(tmp_path, capsys):
    with FileLock(tmp_path / ".study.lock"):
        assert study.main(["tiny"]) == 2
    assert capsys.readouterr().err == f"study.py: another study is writing to {tmp_path}: wait for its end\n"
