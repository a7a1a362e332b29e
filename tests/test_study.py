"""The study: the nets and rates of the variants, what each of them changes, and that each run is written once."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from experiments import study, variants
from experiments.nets import PRIOR_NETS, OneViewNet, SharedNet, prior_net
from experiments.variants import GROUPS, Group, Plateau, Variant, falling_by, stepped
from model import STEPS, SetupNet
from tinymnist import runs
from tinymnist.data import HELD_OUT
from utils import DataError, Recipe, count_parameters, evaluate, fit, learning_rate, validation_split


@pytest.mark.parametrize(("name", "parameters"), [("A", 7712), ("D", 7720), ("E", 7830), ("F", 7918)])
def test_prior_nets_have_the_published_number_of_parameters(name, parameters):
    assert count_parameters(prior_net(PRIOR_NETS[name])) == parameters


def test_each_word_of_the_notation_is_a_layer():
    net = prior_net("c4p P k6 D5 GAP lin")
    unit = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    expected = [*unit, nn.MaxPool2d, *unit, nn.Dropout, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert [type(layer) for layer in net] == expected
    assert (net[0].kernel_size, net[0].padding, net[4].kernel_size) == ((3, 3), (1, 1), (1, 1))
    assert net[7].p == 0.05
    assert count_parameters(net) == 36 + 8 + 24 + 12 + 60
    assert all(layer.training for layer in net)
    assert [type(layer) for layer in prior_net("c8 lin", norm_last=True)][1:3] == [nn.ReLU, nn.BatchNorm2d]


@pytest.mark.parametrize("word", ["c", "x8", "c8q", "D", "lin1", "GAP2"])
def test_unknown_words_are_refused(word):
    with pytest.raises(ValueError, match=f"no layer '{word}'"):
        prior_net(f"c8 {word} lin")


@pytest.mark.parametrize("group", GROUPS)
def test_every_variant_answers_and_keeps_to_15_epochs(group):
    for name, variant in GROUPS[group].variants().items():
        assert variant.net().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10), name
        fewer = int(name.split("-")[0]) if "-epochs" in name else 8 if group == "short" else 15
        assert variant.recipe.epochs == fewer, name


# What one change of a recipe changes together; any other changes one field.
TOGETHER = {
    "one-cycle": {"schedule", "max_lr"},
    "augmentation": {"rotation", "translation", "scale", "shear"},
    "batch-256": {"batch_size", "max_lr", "average"},
}


@pytest.mark.parametrize("group", ["changes", "ladder"])
def test_a_variant_changes_the_net_or_the_recipe_or_the_options(group):
    members = GROUPS[group].variants()
    for name, variant in members.items():
        base = members[variant.base or name]
        recipes = [asdict(v.recipe) for v in (base, variant)]
        fields = {field for field, value in recipes[0].items() if recipes[1][field] != value}
        assert len(fields) <= 1 or fields == TOGETHER[name], name
        changed = [str(variant.net()) != str(base.net()), bool(fields), variant.options is not base.options]
        assert sum(changed) == bool(variant.base), name


def test_what_the_variants_of_each_group_are_compared_with():
    changes, ladder, prior = (GROUPS[name].variants() for name in ("changes", "ladder", "prior"))
    for unchanged, step in ((changes["step1"], STEPS[1]), (changes["step2"], STEPS[2]), (ladder["step2"], STEPS[2])):
        assert (unchanged.net, unchanged.recipe) == (step.net, step.recipe)
    assert all(variant.base == name.split("-")[0] for name, variant in changes.items() if variant.base)
    below = dict(zip(ladder, ["", *ladder], strict=False)) | {"four-views": "batch-256"}  # "strided" lost
    assert below == {name: variant.base for name, variant in ladder.items()}
    top, taken_out = ladder["four-views"], GROUPS["taken_out"].variants()
    decided = taken_out["no-weight-decay"]  # the one part of the top that the rule leaves out
    assert (decided.net, decided.recipe) == (STEPS[3].net, STEPS[3].recipe)
    for name, variant in taken_out.items():
        assert variant.base == "four-views"
        assert name not in ladder
        assert variant.net is top.net
    step, *without = GROUPS["parts"].variants().values()
    assert (step.net, step.recipe, step.base) == (STEPS[3].net, STEPS[3].recipe, "")
    for variant in without:
        assert variant.base == "final"
        both = variant.net is OneViewNet and variant.recipe.average == 0.0
        assert ((variant.net is step.net) == (variant.recipe != step.recipe)) != both
    for name in PRIOR_NETS:
        published, ours = prior[f"{name}-published"], prior[f"{name}-ours"]
        assert (ours.base, ours.recipe) == (f"{name}-published", STEPS[3].recipe)
        assert str(ours.net()) == str(published.net())


def test_the_rate_falls_after_the_stated_epoch():
    rates = [stepped(8 / 15)(Recipe(max_lr=1.0), step, 15 * 938) for step in range(15 * 938)]
    assert rates == [1.0] * 8 * 938 + [0.1] * 7 * 938


@pytest.mark.parametrize("power", [2, 3])
def test_the_rate_falls_along_a_power_of_what_is_left(power):
    recipe = Recipe(max_lr=0.4, schedule="one_cycle", warmup=0.1)
    rates = [falling_by(power)(recipe, step, 1000) for step in range(1000)]
    assert rates[:50] == [learning_rate(recipe, step, 1000) for step in range(50)]
    assert max(rates) == pytest.approx(0.4, rel=0.05)
    assert rates[549] == pytest.approx(0.4 * 0.5**power, rel=0.01)  # half way down
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_a_convolution_is_used_three_times():
    net = SharedNet((6, 14))
    assert count_parameters(net) == 54 + 12 + 6 * 14 * 9 + 28 + 14 * 14 * 9 + 3 * 28 + 14 * 9 + 14 * 10 + 10 == 2974
    used = []
    net.conv3.register_forward_hook(lambda layer, given, output: used.append(tuple(output.shape)))
    net.train()(torch.rand(5, 1, 28, 28)).sum().backward()
    assert used == [(5, 14, 12, 12), (5, 14, 6, 6), (5, 14, 6, 6)]
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_rate_falls_on_a_plateau_of_the_training_loss():
    plateau, recipe, seen = Plateau(patience=2), Recipe(max_lr=1.0, epochs=10), []
    batches = (((6, 1.2), (2, 0.4)), ((6, 0.5), (2, 2.5)))  # how many images, at what part of their mean loss
    for epoch, mean in enumerate([3.0, 2.0, 2.5, 2.1, 2.2, 1.9, 1.8, 1.8, 1.8, 1.8]):
        for step, (size, part) in enumerate(batches[epoch % 2], start=2 * epoch):
            seen.append(plateau.rate(recipe, step, 20))
            sure = torch.tensor(-part * mean).exp()
            logits = torch.tensor([sure, *[(1 - sure) / 9] * 9]).log().expand(size, 10)
            loss = plateau.loss(logits, torch.zeros(size, dtype=torch.long), torch.arange(size))
            assert loss.item() == pytest.approx(part * mean, rel=1e-4)
    assert seen == pytest.approx([1.0] * 10 + [0.1] * 10)


@pytest.mark.parametrize("name", ["D-published", "F-published"])
def test_variants_with_options_learn(name, drawn):
    variant = variants.prior()[name]
    assert variant.options("test")
    recipe = replace(variant.recipe, epochs=8, batch_size=20, max_lr=0.05)
    torch.manual_seed(0)
    fit(net := variant.net(), recipe, drawn, progress=False, **variant.options("test"))
    assert evaluate(net, drawn.test_images, drawn.test_labels)[1] > 100  # of 200; chance is 20


def test_random_seeds_and_what_they_are_judged_on():
    jobs = study.all_jobs()
    for group, members in GROUPS.items():
        for name in members.variants():
            assert [seed for *who, seed in jobs if who == [group, name]] == list(range(members.seeds))
    assert [seed for *_, seed in jobs] == sorted(seed for *_, seed in jobs)
    assert study.all_jobs(2) == [job for job in jobs if job[2] < 2]
    assert [study.split_of("ladder", seed) for seed in range(7)] == [*HELD_OUT, next(iter(HELD_OUT))]
    assert study.split_of("prior", 4) == "test"


def test_a_run_says_what_was_varied_and_is_not_run_again(tmp_path, monkeypatch, drawn, in_this_process):
    recipe, jobs = Recipe(epochs=1), in_this_process.jobs
    members = {
        "plain": Variant("(none)", SetupNet, recipe),
        "slow": Variant("a slow rate", SetupNet, recipe, "plain", lambda split: {"rate": lambda *_: 1e-4}),
    }
    monkeypatch.setattr(study, "GROUPS", {"tiny": Group(lambda: members, seeds=2)})
    monkeypatch.setattr(study, "load_mnist", lambda: None)
    monkeypatch.setattr(study, "load_split", lambda split: validation_split(drawn, HELD_OUT[split]))
    monkeypatch.setattr(study, "in_processes", in_this_process)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert study.main([]) == 0
    assert jobs == [("tiny", "plain", 0), ("tiny", "slow", 0), ("tiny", "plain", 1), ("tiny", "slow", 1)]
    paths = [study.record_path(*job) for job in jobs]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    plain, run = (json.loads(path.read_text()) for path in paths[2:])
    expected = {"group": "tiny", "variant": "slow", "base": "plain", "change": "a slow rate", "split": "validation-0"}
    assert (expected | {"seed": 1, "data": "mnist", "recipe": asdict(recipe)}).items() <= run.items()
    assert (run["history"][0]["train_total"], run["history"][0]["lr"]) == (500, 1e-4)
    assert 0 < run["train_accuracy"] < 100
    assert plain["base"] == ""
    assert plain["history"][0]["lr"] == Recipe().max_lr

    jobs.clear()
    assert study.main([]) == 0
    assert jobs == []
    for path in paths:
        path.unlink()
    assert study.main(["tiny/slo/"]) == 2
    assert study.main(["tiny/slow/", "--seeds", "1"]) == 0
    assert jobs == [("tiny", "slow", 0)]


def test_a_run_that_comes_to_nothing_or_is_damaged_is_not_taken_for_finished(
    tmp_path, monkeypatch, drawn, in_this_process, capsys
):
    members = {"high": Variant("a high rate", SetupNet, Recipe(epochs=1, max_lr=1e30))}
    monkeypatch.setattr(study, "GROUPS", {"tiny": Group(lambda: members, seeds=2, held_out=False)})
    monkeypatch.setattr(study, "load_mnist", lambda: None)
    monkeypatch.setattr(study, "load_split", lambda split: drawn)
    monkeypatch.setattr(study, "in_processes", in_this_process)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    damaged = study.record_path("tiny", "high", 1)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    assert study.main([]) == 1
    said = [line.rpartition("\r")[2].strip() for line in capsys.readouterr().err.splitlines() if "failed" in line]
    reason = "a loss of epoch 1 is not finite: a lower learning rate may help"
    assert said == [f"study.py: tiny/high/seed {seed} failed: {reason}" for seed in (0, 1)]
    assert json.loads(damaged.with_suffix(".failed").read_text())["variant"] == "high"
    with runs.claimed(tmp_path / "study"):
        assert study.main([]) == 2
    assert "another process is writing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--device tpu", "--seeds 0", "--seed 1", ""])
def test_wrong_arguments_and_missing_data_are_one_line(arguments, capsys, monkeypatch):
    def missing():
        raise DataError("no MNIST")

    monkeypatch.setattr(study, "load_mnist", missing)
    try:
        code = study.main(arguments.split())
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "load_mnist", interrupted)
    assert study.main([]) == 130
    assert capsys.readouterr().err == "study.py: interrupted; finished runs are kept, those under way are not written\n"


def test_a_name_without_a_variant_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(study, "load_mnist", lambda: None)
    assert study.main(["nothing-like-it"]) == 2
    assert "no variant has nothing-like-it in its name" in capsys.readouterr().err
