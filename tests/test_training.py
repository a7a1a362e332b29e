"""Training by a recipe: what is learned, shown and the same again; rates; and what a call can open."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import utils
from model import STEPS, SetupNet
from utils import Batches, Recipe, describe_changes, expectation, fit, learning_rate, normalize

TINY = Recipe(epochs=2, batch_size=64)


def same_state(net, state):
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_nets_learn_drawn_digits(drawn, number):
    net, recipe = STEPS[number].net(), replace(STEPS[number].recipe, epochs=10, batch_size=32, max_lr=0.05)
    history = fit(net, recipe, drawn, progress=False)
    assert list(history) == "lr train_loss train_correct train_total test_loss test_correct test_total seconds".split()
    assert {len(values) for values in history.values()} == {10}
    assert (set(history["train_total"]), set(history["test_total"])) == ({600}, {200})
    assert history["test_correct"][-1] >= 140  # chance is 20


@pytest.mark.parametrize("number", STEPS)
def test_a_seed_gives_the_same_bits_also_with_the_defaults_spelled_out(drawn, number):
    def run(seed, **openings):
        torch.manual_seed(0)
        net = STEPS[number].net()
        history = fit(net, replace(STEPS[number].recipe, epochs=2), drawn, seed, progress=False, **openings)
        return {**history, "seconds": []}, net

    history, net = run(3)
    again, net_again = run(3, rate=learning_rate, batches=Batches, loss=F.cross_entropy)
    assert history == again
    assert same_state(net, net_again.state_dict())
    assert history != run(4)[0]


def test_rate_and_batches_can_be_opened(drawn):
    asked = []

    def rate(recipe, done):
        asked.append(done)
        return 1 - done

    def loader(images, labels, recipe, generator):
        assert (images.dtype, images.shape, recipe) == (torch.uint8, (600, 28, 28), TINY)
        data = TensorDataset(normalize(images[:300]), labels[:300])
        return DataLoader(data, recipe.batch_size, shuffle=True, generator=generator)

    history = fit(SetupNet(), TINY, drawn, progress=False, rate=rate, batches=loader)
    assert history["train_total"] == [300, 300]
    assert asked == pytest.approx([*((step + 0.5) / 10 for step in range(10)), 1.0])  # two epochs of five steps
    assert history["lr"] == pytest.approx([0.05 * (1 - 5.5 / 10), 0.0])


def test_the_loss_can_be_opened_and_the_test_loss_stays_that_of_the_labels(drawn):
    def next_digit(logits, labels):
        return F.cross_entropy(logits, (labels + 1) % 10)

    other = copy.deepcopy(net := SetupNet())
    history = fit(net, TINY, drawn, progress=False, loss=next_digit)
    expected = fit(other, TINY, drawn._replace(train_labels=(drawn.train_labels + 1) % 10), progress=False)
    assert same_state(net, other.state_dict())
    assert [history[name] for name in ("train_loss", "test_loss")] == [expected["train_loss"], expected["test_loss"]]


def test_fit_shows_a_bar_and_a_line_per_epoch_or_nothing(drawn, capsys):
    fit(SetupNet(), TINY, drawn)
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]
    assert "epoch  2" in err
    fit(SetupNet(), TINY, drawn, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (Recipe(), {0: 1, 0.5: 1, 1: 1}),
        (Recipe(schedule="step"), {0: 1, 0.66: 1, 0.67: 0.1, 1: 0.1}),
        (Recipe(schedule="one_cycle", warmup=0.2), {0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0}),
        (Recipe(schedule="one_cycle", warmup=0.0), {0: 1, 0.5: 0.5, 1: 0}),  # only falls
        (Recipe(schedule="one_cycle", warmup=1.0), {0: 0, 0.5: 0.5, 0.999: 0.999, 1: 0}),  # only rises
    ],
)
def test_schedules(recipe, rates):
    assert {done: learning_rate(recipe, done) for done in rates} == pytest.approx(rates)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"schedule": "cosine"}, "unknown schedule 'cosine': use one of constant, step, one_cycle"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1.5}, "batch_size must be a whole number from 1"),
        ({"max_lr": float("nan")}, "max_lr must be from 0"),
        ({"warmup": 1.5}, "warmup must be from 0 to 1, not 1.5"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields, line):
    with pytest.raises(ValueError, match=line):
        Recipe(**fields)


def test_describe_changes_names_each_difference():
    assert describe_changes(Recipe(), Recipe()) == "no change"
    text = describe_changes(Recipe(max_lr=0.1), Recipe(max_lr=0.2, schedule="step"))
    assert text.splitlines() == ["max_lr: 0.1 -> 0.2", "schedule: constant -> step"]


def test_what_to_expect_is_measured_on_a_fiftieth_and_read_from_records(drawn, monkeypatch):
    published = [{"history": {"test_correct": [0, correct], "test_total": [1000, 1000]}} for correct in (980, 990)]
    words = "Accuracy of 2 published runs: 98.50 ± 0.71 % after the last epoch."
    assert expectation(SetupNet, TINY, drawn, "cpu", published).endswith(f" s here. {words}")
    asked = []

    def fit_in_a_tenth(net, recipe, few, device, progress):
        asked.append((recipe.epochs, len(few.train_images), len(few.test_images), progress))
        return {"seconds": [0.1]}

    monkeypatch.setattr(utils, "fit", fit_in_a_tenth)
    assert expectation(SetupNet, TINY, drawn, "cpu", published) == f"2 epochs take about 10 s here. {words}"
    assert asked == [(1, 12, 4, False)] * 2
