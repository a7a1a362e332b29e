"""Training and evaluation: order, exact counts, rates, the average, what a call can replace, and devices."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tinymnist.average import WeightAverage
from torch import nn

from model import STEPS, FinalNet, RegularizedNet, SetupNet
from tinymnist.recipe import Recipe, describe_changes, learning_rate, learning_rates
from utils import augment, cross_entropy, evaluate, fit, normalize, pick_device, sgd, train_epoch

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


def same_state(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_an_epoch_takes_each_image_once_in_a_new_order_with_its_label_and_index():
    (images, labels), generator, drawn_indices = numbered(200), torch.Generator().manual_seed(0), []
    net = FromPixels(50.0).eval()

    def loss(logits, labels, indices):
        assert logits.argmax(1).tolist() == labels.tolist() == (indices % 10).tolist()
        drawn_indices.append(indices.tolist())
        return cross_entropy(logits, labels, indices)

    for epoch in range(2):
        trained = train_epoch(net, sgd(net, TINY), images, labels, TINY, epoch, generator, loss=loss)
        assert trained == (pytest.approx(0, abs=1e-6), 200, 200)
    assert net.seen == drawn_indices
    assert [len(batch) for batch in net.seen] == [64, 64, 64, 8] * 2
    first, second = ([value for batch in batches for value in batch] for batches in (net.seen[:4], net.seen[4:]))
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second != list(range(200)) != first
    assert all(net.modes)


def test_an_epoch_learns_at_its_place_on_the_schedule_and_returns_the_mean_over_images():
    (images, labels), steps, net = numbered(100), [], FromPixels(0.0)
    recipe = replace(TINY, schedule="one_cycle", max_lr=0.5)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    loss, correct, total = train_epoch(net, optimizer, images, labels, recipe, 1, after_step=steps.append)
    assert steps == [2, 3]  # two batches per epoch, and this is the second epoch
    assert optimizer.param_groups[0]["lr"] == learning_rate(recipe, 3, 4)
    # 64 images at even odds, of which the answer is 0; the gradient of the sureness is then 0.1 - 1. Then the other 36.
    sureness = 0.9 * learning_rate(recipe, 2, 4)
    first, second = torch.tensor([10.0, 1 + 9 * torch.exp(torch.tensor(-sureness))]).log()
    assert loss == pytest.approx(float(64 * first + 36 * second) / 100, rel=1e-5)
    assert (correct, total) == (sum(value % 10 == 0 for value in net.seen[0]) + 36, 100)


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
    before = copy.deepcopy(net).state_dict()
    first = evaluate(net, drawn.test_images, drawn.test_labels)
    second = evaluate(net, drawn.test_images, drawn.test_labels, batch_size=37)
    assert net.training is was_training
    assert first[1:] == second[1:]  # no dropout, no batch statistics
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert same_state(net, before)
    assert all(p.grad is None for p in net.parameters())


def test_schedules():
    constant, step, cycle = (Recipe(schedule=s, max_lr=0.2, warmup=0.25) for s in ("constant", "step", "one_cycle"))
    assert {learning_rate(constant, i, 30) for i in range(30)} == {0.2}
    assert [learning_rate(step, i, 30) for i in (0, 19, 20, 29)] == pytest.approx([0.2, 0.2, 0.02, 0.02])
    rates = [learning_rate(cycle, i, 400) for i in range(400)]
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert abs(rates.index(max(rates)) - 100) <= 1
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert 0 < rates[0] < 0.002
    with pytest.raises(ValueError, match=r"unknown schedule 'cosine'.*one_cycle"):
        learning_rate(Recipe(schedule="cosine"), 0, 10)


def test_sgd_is_set_as_the_recipe_says():
    for recipe in (Recipe(momentum=0.8, weight_decay=0.01, max_lr=0.3), Recipe(momentum=0.0)):
        optimizer = sgd(net := SetupNet(), recipe)
        (group,) = optimizer.param_groups
        found = [group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")]
        assert found == [recipe.max_lr, recipe.momentum, recipe.weight_decay, recipe.momentum > 0]
        assert group["params"] == list(net.parameters())


def test_weight_average_follows_the_definition():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(net, decay=0.9)
    expected = copy.deepcopy(net).state_dict()
    for step in range(300):
        with torch.no_grad():
            net[0].weight += 1
        net(torch.rand(4, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
    for name, value in average.model.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-4), name
    assert average.model[1].num_batches_tracked == 300
    assert torch.allclose(net[0].weight - average.model[0].weight, torch.tensor(9.0), rtol=0.01)  # decay / (1 - decay)


@pytest.mark.parametrize("number", STEPS)
def test_fit_learns_drawn_digits(drawn, number):
    net, recipe = STEPS[number].net(), replace(STEPS[number].recipe, epochs=12, batch_size=32)
    history = fit(net, recipe, drawn, progress=False)
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert list(history[0]) == [
        "epoch", "lr", "train_loss", "train_correct", "train_total",
        "test_loss", "test_correct", "test_total", "seconds",
    ]  # fmt: skip
    assert all(record["train_total"] == 600 and record["test_total"] == 200 for record in history)
    assert history[-1]["test_correct"] >= 150  # chance is 20
    # The net that comes back is the one that the last epoch evaluated.
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert (loss, correct) == (pytest.approx(history[-1]["test_loss"], rel=1e-4), history[-1]["test_correct"])


def test_fit_trains_by_train_epoch_along_the_schedule_and_without_an_average_evaluates_the_net_itself(drawn):
    recipe = replace(TINY, schedule="one_cycle")
    again = copy.deepcopy(net := FinalNet()).to(memory_format=torch.channels_last)
    history = fit(net, recipe, drawn, progress=False)
    optimizer, generator = sgd(again, recipe), torch.Generator().manual_seed(0)
    for epoch, record in enumerate(history):
        trained = train_epoch(again, optimizer, drawn.train_images, drawn.train_labels, recipe, epoch, generator)
        assert trained[0] == record["train_loss"]
        assert evaluate(again, drawn.test_images, drawn.test_labels)[0] == record["test_loss"]
    assert same_state(net, again.state_dict())
    rates = learning_rates(recipe, len(drawn.train_images))
    assert len(rates) == 2 * 10  # the last batch of an epoch is not full
    assert [record["lr"] for record in history] == [rates[9], rates[19]]


@pytest.mark.parametrize("number", STEPS)
def test_a_seed_gives_the_same_bits_also_with_the_defaults_spelled_out(drawn, number):
    def run(seed, **options):
        torch.manual_seed(0)
        net = STEPS[number].net()
        torch.rand(len(options))  # whatever else was drawn before
        history = fit(net, replace(STEPS[number].recipe, epochs=2), drawn, seed, progress=False, **options)
        return [{**record, "seconds": 0} for record in history], net

    history, net = run(3)
    again, net_again = run(3, make_optimizer=sgd, rate=learning_rate, augment=augment, loss=cross_entropy)
    assert history == again
    assert same_state(net, net_again.state_dict())
    assert history != run(4)[0]


def test_optimizer_and_rate_can_be_replaced(drawn):
    asked, used = [], []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            used.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def two_groups(model, recipe):
        assert recipe is TINY
        head = list(model.head.parameters())
        return Watched([{"params": list(model.parameters())[:-2]}, {"params": head, "lr": 7.0}])

    def rate(recipe, step, total_steps):
        asked.append((recipe, step, total_steps))
        return 0.01 / (1 + step)

    before = copy.deepcopy(net := SetupNet()).state_dict()
    history = fit(net, TINY, drawn, progress=False, make_optimizer=two_groups, rate=rate)
    assert list(dict.fromkeys(asked)) == [(TINY, step, 20) for step in range(20)]
    assert used == [[0.01 / (1 + step)] * 2 for step in range(20)]
    assert [record["lr"] for record in history] == [0.01 / 10, 0.01 / 20]
    assert not any(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_augmentation_changes_training_alone_and_can_be_replaced(drawn):
    still, nets = replace(TINY, epochs=1, max_lr=0.0), []  # nothing is learned

    def run(recipe, **options):
        torch.manual_seed(0)
        nets.append(SetupNet())
        return fit(nets[-1], recipe, drawn, progress=False, **options)[0]

    def invert(images, recipe, generator):
        assert (images.dtype, images.shape[1:], recipe) == (torch.uint8, (28, 28), still)
        assert isinstance(generator, torch.Generator)
        return normalize(255 - images)

    plain, turned, inverted = run(still), run(replace(still, rotation=30.0)), run(still, augment=invert)
    assert plain["test_loss"] == turned["test_loss"] == inverted["test_loss"]
    assert plain["train_loss"] != turned["train_loss"]
    expected = evaluate(nets[0], 255 - drawn.train_images, drawn.train_labels)
    assert inverted["train_loss"] == pytest.approx(expected[0], rel=1e-4)


def test_the_loss_can_be_replaced_and_is_told_which_training_images_it_is_about(drawn):
    def next_digit(logits, labels, indices):
        assert torch.equal(labels, drawn.train_labels[indices])
        return F.cross_entropy(logits, (labels + 1) % 10)

    history = fit(net := FinalNet(), replace(TINY, epochs=6), drawn, progress=False, loss=next_digit)
    assert evaluate(net, drawn.test_images, (drawn.test_labels + 1) % 10)[1] >= 150  # of 200
    assert history[-1]["test_loss"] > 1  # the test loss stays the cross-entropy of the labels


def test_fit_shows_a_bar_and_a_line_per_epoch_or_nothing(drawn, capsys):
    fit(FinalNet(), TINY, drawn)
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]
    assert len({len(line) for line in out.splitlines()}) == 1
    assert "20/20" in err  # 2 epochs of 10 steps
    fit(FinalNet(), replace(TINY, epochs=1), drawn, progress=False)
    assert capsys.readouterr() == ("", "")


def test_describe_changes_names_each_difference():
    assert describe_changes(Recipe(), Recipe()) == "no change"
    text = describe_changes(Recipe(max_lr=0.1), Recipe(max_lr=0.2, schedule="step"))
    assert text.splitlines() == ["max_lr: 0.1 -> 0.2", "schedule: constant -> step"]


@pytest.fixture
def accelerators(monkeypatch):
    """Sets how many accelerators of each kind there seem to be."""

    def there_are(cuda=0, mps=0, xpu=0):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps > 0)
        for module, count in ((torch.cuda, cuda), (torch.xpu, xpu)):
            monkeypatch.setattr(module, "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(module, "device_count", lambda count=count: count)

    return there_are


def test_devices(accelerators):
    every = {"cuda": 2, "mps": 1, "xpu": 1}
    for there, best in (({"xpu": 1}, "xpu"), ({"mps": 1}, "mps"), (every, "cuda"), ({}, "cpu")):
        accelerators(**there)
        assert pick_device() == pick_device("auto") == torch.device(best)
        assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps", "xpu"):
        with pytest.raises(ValueError, match=rf"no device '{name}' here \(\w+ devices: none\): use auto or cpu"):
            pick_device(name)
    for name in ("gpu", "cuda:x", "meta", ""):
        with pytest.raises(ValueError, match=f"no device '{name}': use auto, cpu, cuda, cuda:N, mps or xpu"):
            pick_device(name)
    accelerators(**every)
    assert all(pick_device(name) == torch.device(name) for name in ("cuda:1", "mps", "xpu:0"))
    with pytest.raises(ValueError, match="cuda:0 to cuda:1"):
        pick_device("cuda:2")
