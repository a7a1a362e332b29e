"""Training and evaluation: batches, exact counts, rates, the average, and what a call can open."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from model import STEPS, FinalNet, RegularizedNet, SetupNet
from tinymnist.recipe import Recipe, describe_changes, learning_rate
from utils import Batches, augment, evaluate, fit, moving_average, normalize, train_epoch

TINY = Recipe(epochs=2, batch_size=64)


class FromPixels(nn.Module):
    """Reads the answer off the first pixel, is as sure of it as its one parameter says, and remembers what it saw."""

    def __init__(self, sureness: float):
        super().__init__()
        self.sureness = nn.Parameter(torch.tensor(sureness))
        self.seen, self.modes = [], []

    def forward(self, x):
        values = (x[:, 0, 0, 0] * 0.3081 * 255).round().long()
        self.seen.append(values.tolist())
        self.modes.append(self.training)
        return self.sureness * F.one_hot(values % 10, 10)


def numbered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n images, image i full of the value i, and its last digit as the label."""
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1).repeat(1, 28, 28), torch.arange(n) % 10


def by_hand(net, recipe, digits, seed):
    """What `fit` trains, without it: the net, and the mean training loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(digits.train_images, digits.train_labels, recipe, generator)
    optimizer = torch.optim.SGD(net.parameters(), recipe.max_lr, recipe.momentum, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, (step + 0.5) / (recipe.epochs * len(batches)))
    )
    losses = [train_epoch(net, batches, optimizer, scheduler)[0] for _ in range(recipe.epochs)]
    return net, losses


def same_state(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_batches_have_each_image_once_with_its_label_in_a_new_order_each_time():
    images, labels = numbered(200)
    batches = Batches(images, labels, TINY, torch.Generator().manual_seed(0))
    epochs = []
    for _ in range(2):
        found = list(batches)
        assert [len(x) for x, _ in found] == [64, 64, 64, 8]
        assert len(batches) == 4
        values = torch.cat([(x[:, 0, 0, 0] * 0.3081 * 255).round().long() for x, _ in found])
        assert torch.equal(values % 10, torch.cat([y for _, y in found]))
        epochs.append(values.tolist())
    first, second = epochs
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second != list(range(200)) != first
    again = Batches(images, labels, TINY, torch.Generator().manual_seed(0))
    assert [y.tolist() for _, y in again] == [[value % 10 for value in first][i : i + 64] for i in range(0, 200, 64)]


def test_batches_are_augmented_as_the_recipe_says(drawn):
    recipe = replace(STEPS[3].recipe, batch_size=600)
    x, _ = next(iter(Batches(*drawn[:2], recipe, torch.Generator().manual_seed(3))))
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(600, generator=generator)
    assert torch.equal(x, augment(drawn.train_images[order], recipe, generator))


def test_an_epoch_follows_the_schedule_and_returns_the_mean_over_images():
    images, labels = numbered(100)
    net, recipe = FromPixels(0.0), replace(TINY, max_lr=0.5)
    batches = Batches(images, labels, recipe, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loss, correct, total = train_epoch(net, batches, optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.5 / 3  # two steps are over
    # 64 images at even odds, of which the answer is 0; the gradient of the sureness is then 0.1 - 1. Then the other 36.
    first, second = torch.tensor([10.0, 1 + 9 * torch.exp(torch.tensor(-0.9 * 0.5))]).log()
    assert loss == pytest.approx(float(64 * first + 36 * second) / 100, rel=1e-5)
    assert (correct, total) == (sum(value % 10 == 0 for value in net.seen[0]) + 36, 100)
    assert all(net.modes)


def test_accuracy_is_an_exact_count_whatever_the_batch_size():
    images, labels = numbered(250)
    images[:123, 0, 0] += 1  # 123 wrong answers
    for batch_size in (1, 7, 64, 250, 5000):
        loss, correct, total = evaluate(FromPixels(50.0), images, labels, batch_size)
        assert (correct, total) == (250 - 123, 250)
        assert loss == pytest.approx(50 * 123 / 250, rel=1e-4)


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(drawn, was_training):
    net = RegularizedNet().train(was_training)
    net.norm1.train(not was_training)  # for example frozen
    before = copy.deepcopy(net).state_dict()
    first = evaluate(net, drawn.test_images, drawn.test_labels)
    second = evaluate(net, drawn.test_images, drawn.test_labels, batch_size=37)
    assert [net.training, net.norm1.training, net.norm2.training] == [was_training, not was_training, was_training]
    assert first[1:] == second[1:]  # no batch statistics
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert same_state(net, before)
    assert all(p.grad is None for p in net.parameters())


def test_a_net_without_parameters_is_evaluated(drawn):
    assert (
        evaluate(nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), drawn.test_images, drawn.test_labels)[2] == 200
    )


def test_schedules():
    done = [(step + 0.5) / 400 for step in range(400)]
    constant, step, cycle = (Recipe(schedule=s, warmup=0.25) for s in ("constant", "step", "one_cycle"))
    assert {learning_rate(constant, d) for d in done} == {1.0}
    assert [learning_rate(step, d) for d in (0, 0.66, 0.67, 1)] == [1, 1, 0.1, 0.1]
    rates = [learning_rate(cycle, d) for d in done]
    assert max(rates) == pytest.approx(1, rel=0.01)
    assert abs(rates.index(max(rates)) - 100) <= 1
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 0.005
    assert learning_rate(cycle, 1.0) == 0


def test_a_cycle_may_only_rise_or_only_fall():
    done = [i / 100 for i in range(101)]
    rises, falls = ([learning_rate(Recipe(schedule="one_cycle", warmup=w), d) for d in done] for w in (1.0, 0.0))
    assert rises[:-1] == pytest.approx(done[:-1])
    assert falls == pytest.approx([1 - d for d in done])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"schedule": "cosine"}, r"unknown schedule 'cosine': use one of constant, step, one_cycle"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"epochs": 1.5}, "epochs must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"max_lr": float("nan")}, "max_lr must be from 0"),
        ({"weight_decay": float("inf")}, "weight_decay must be from 0"),
        ({"scale": 1.5}, "scale must be from 0 to 0.99, not 1.5"),
        ({"warmup": 1.5}, "warmup must be from 0 to 1, not 1.5"),
        ({"average": 1.5}, "average must be from 0 to 1, not 1.5"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields, line):
    with pytest.raises(ValueError, match=line):
        Recipe(**fields)


def test_moving_average_follows_the_definition():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = moving_average(net, decay=0.9)
    expected = {}
    for step in range(300):
        with torch.no_grad():
            net[0].weight += 1
        net(torch.rand(4, 3))
        average.update_parameters(net)
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0  # it begins with the weights after the first step
        for name, value in net.state_dict().items():
            moved = decay * expected.get(name, 0) + (1 - decay) * value
            expected[name] = moved if value.is_floating_point() else value.clone()
    for name, value in average.module.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-4), name
    assert average.module[1].num_batches_tracked == 300
    lag = net[0].weight - average.module[0].weight
    assert torch.allclose(lag, torch.tensor(9.0), rtol=0.01)  # decay / (1 - decay)


@pytest.mark.parametrize("number", STEPS)
def test_fit_learns_drawn_digits(drawn, number):
    net, recipe = STEPS[number].net(), replace(STEPS[number].recipe, epochs=20, batch_size=32, max_lr=0.05)
    history = fit(net, recipe, drawn, progress=False)
    names = "lr train_loss train_correct train_total test_loss test_correct test_total seconds"
    assert list(history) == names.split()
    assert {len(values) for values in history.values()} == {20}
    assert (set(history["train_total"]), set(history["test_total"])) == ({600}, {200})
    assert history["test_correct"][-1] >= 150  # chance is 20
    # The net that comes back is the one that the last epoch evaluated, ready to read a single image.
    assert not any(module.training for module in net.modules())
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert (loss, correct) == (pytest.approx(history["test_loss"][-1], rel=1e-4), history["test_correct"][-1])
    assert (net(normalize(drawn.test_images[:1])).argmax(1) == net(normalize(drawn.test_images)).argmax(1)[:1]).all()


def test_fit_is_the_loop_that_a_learner_would_write(drawn):
    recipe = replace(TINY, schedule="one_cycle", rotation=10.0)
    again = copy.deepcopy(net := RegularizedNet())
    history = fit(net, recipe, drawn, seed=5, progress=False)
    again, losses = by_hand(again, recipe, drawn, seed=5)
    assert history["train_loss"] == losses
    assert same_state(net, again.state_dict())
    assert history["lr"] == [pytest.approx(recipe.max_lr * learning_rate(recipe, 10.5 / 20)), 0.0]


@pytest.mark.parametrize("number", STEPS)
def test_a_seed_gives_the_same_bits_also_with_the_defaults_spelled_out(drawn, number):
    def run(seed, **openings):
        torch.manual_seed(0)
        net = STEPS[number].net()
        torch.rand(len(openings))  # whatever else was drawn before
        history = fit(net, replace(STEPS[number].recipe, epochs=2), drawn, seed, progress=False, **openings)
        return {**history, "seconds": []}, net

    history, net = run(3)
    again, net_again = run(3, rate=learning_rate, batches=Batches, loss=F.cross_entropy)
    assert history == again
    assert same_state(net, net_again.state_dict())
    assert history != run(4)[0]


def test_the_rate_can_be_opened(drawn):
    asked = []

    def rate(recipe, done):
        asked.append(done)
        return 1 - done

    history = fit(SetupNet(), TINY, drawn, progress=False, rate=rate)
    assert asked == pytest.approx([*((step + 0.5) / 20 for step in range(20)), 1.0])
    assert history["lr"] == pytest.approx([0.05 * (1 - 10.5 / 20), 0.0])


def test_the_batches_can_be_a_data_loader(drawn):
    def loader(images, labels, recipe, generator):
        assert (images.dtype, images.shape, recipe) == (torch.uint8, (600, 28, 28), TINY)
        data = TensorDataset(normalize(images[:300]), labels[:300])
        return DataLoader(data, recipe.batch_size, shuffle=True, generator=generator)

    asked = []
    history = fit(
        SetupNet(), TINY, drawn, progress=False, batches=loader, rate=lambda recipe, done: asked.append(done) or 1.0
    )
    assert set(history["train_total"]) == {300}
    assert len(asked) == 2 * 5 + 1  # the run has as many steps as the loader has batches


def test_the_loss_can_be_opened(drawn):
    def next_digit(logits, labels):
        return F.cross_entropy(logits, (labels + 1) % 10)

    recipe = replace(TINY, epochs=8, max_lr=0.1)
    history = fit(net := FinalNet(), recipe, drawn, progress=False, loss=next_digit)
    assert evaluate(net, drawn.test_images, (drawn.test_labels + 1) % 10)[1] >= 150  # of 200
    assert history["test_loss"][-1] > 1  # the test loss stays the cross-entropy of the labels


def test_augmentation_changes_training_alone(drawn):
    def run(recipe):
        torch.manual_seed(0)
        return fit(SetupNet(), recipe, drawn, progress=False)

    still = replace(TINY, epochs=1, max_lr=0.0)  # nothing is learned
    plain, turned = run(still), run(replace(still, rotation=30.0))
    assert plain["test_loss"] == turned["test_loss"]
    assert plain["train_loss"] != turned["train_loss"]


def test_fit_shows_a_bar_and_a_line_per_epoch_or_nothing(drawn, capsys):
    fit(FinalNet(), TINY, drawn)
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]
    assert len({len(line) for line in out.splitlines()}) == 1
    assert "epoch  2" in err
    fit(FinalNet(), replace(TINY, epochs=1), drawn, progress=False)
    assert capsys.readouterr() == ("", "")


def test_describe_changes_names_each_difference():
    assert describe_changes(Recipe(), Recipe()) == "no change"
    text = describe_changes(Recipe(max_lr=0.1), Recipe(max_lr=0.2, schedule="step"))
    assert text.splitlines() == ["max_lr: 0.1 -> 0.2", "schedule: constant -> step"]
