"""The loops: shuffling, modes and buffers, exact counts, schedules, averaging, determinism."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import STEPS, FinalNet, RegularizedNet
from tinymnist.batchnorm import fast_batchnorm
from tinymnist.distillation import distillation_loss
from utils import (
    Digits,
    Recipe,
    WeightAverage,
    describe_changes,
    evaluate,
    fit,
    learning_rate,
    learning_rates,
    normalize,
    pick_device,
    soft_labels,
    train_epoch,
)

TINY = Recipe(epochs=2, batch_size=64, max_lr=0.05)


class Recorder(nn.Module):
    """Remembers its inputs; answers with trainable logits that do not depend on them."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))
        self.batches = []

    def forward(self, x):
        self.batches.append((self.training, x.detach().clone()))
        return self.logits.expand(len(x), 10)


class FromPixels(nn.Module):
    """Reads the answer off the first pixel: its value is the class."""

    def forward(self, x):
        value = x[:, 0, 0, 0] * 0.3081 * 255
        return F.one_hot(value.round().long(), 10).float() * 50


def numbered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n images, image i full of the value i, all with label 0."""
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1).expand(n, 28, 28), torch.zeros(n, dtype=torch.long)


def seen(recorder: Recorder) -> list[int]:
    """The values of the images that a recorder saw, in order."""
    pixels = torch.cat([x for _, x in recorder.batches])[:, 0, 0, 0]
    return (pixels * 0.3081 * 255).round().int().tolist()


def test_an_epoch_visits_each_image_once_in_a_new_order():
    images, labels = numbered(200)
    recorder, generator = Recorder(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(recorder.parameters(), 0.1)
    orders = []
    for epoch in range(2):
        recorder.batches = []
        train_epoch(recorder, optimizer, images, labels, TINY, epoch, generator)
        orders.append(seen(recorder))
        assert [len(x) for _, x in recorder.batches] == [64, 64, 64, 8]
        assert all(training for training, _ in recorder.batches)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(200))
    assert orders[0] != orders[1]
    assert orders[0] != list(range(200))


def test_images_and_labels_stay_together(drawn):
    images = drawn.train_labels.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)  # the image tells its label
    net = nn.Sequential(FromPixels(), nn.Linear(10, 10, bias=False))
    net[1].weight.data = torch.eye(10)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    loss, correct, total = train_epoch(net, optimizer, images, drawn.train_labels, replace(TINY, max_lr=0.0))
    assert (correct, total) == (1200, 1200)
    assert loss < 1e-6


def test_train_epoch_learns_and_follows_the_schedule():
    images, labels = numbered(100)
    recorder = Recorder()
    optimizer = torch.optim.SGD(recorder.parameters(), 1.0)
    steps = []
    recipe = replace(TINY, schedule="one_cycle", max_lr=0.5)
    loss, _, total = train_epoch(recorder, optimizer, images, labels, recipe, 1, after_step=steps.append)
    assert steps == [2, 3]  # two batches per epoch, and this is the second epoch
    assert optimizer.param_groups[0]["lr"] == learning_rate(recipe, 3, 4)
    assert recorder.logits.argmax() == 0
    assert total == 100
    # 64 images at even odds; one step along the gradient (0.1 for each class, 0.9 less for the label)
    # moves the label's logit ahead by the learning rate; then the other 36.
    first = torch.log(torch.tensor(10.0))
    second = torch.log(1 + 9 * torch.exp(torch.tensor(-learning_rate(recipe, 2, 4))))
    assert loss == pytest.approx(float(64 * first + 36 * second) / 100, rel=1e-5)  # a mean over images, not batches


def test_accuracy_is_an_exact_count_whatever_the_batch_size():
    labels = torch.arange(10).repeat(77)
    images = labels.to(torch.uint8).view(-1, 1, 1).repeat(1, 28, 28)
    images[:123, 0, 0] = (images[:123, 0, 0] + 1) % 10  # 123 wrong answers
    for batch_size in (1, 7, 64, 770, 5000):
        loss, correct, total = evaluate(FromPixels(), images, labels, batch_size)
        assert (correct, total) == (770 - 123, 770)
        assert loss == pytest.approx(50 * 123 / 770, rel=1e-4)


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(drawn, was_training):
    net = RegularizedNet().train(was_training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = evaluate(net, drawn.test_images, drawn.test_labels)
    second = evaluate(net, drawn.test_images, drawn.test_labels, batch_size=37)
    assert net.training is was_training
    assert first[1:] == second[1:]  # no dropout, no batch statistics
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in net.parameters())


def test_normalize_keeps_the_background_at_zero(drawn):
    x = normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 28, 28))
    assert x.shape == (2, 1, 28, 28)
    assert x.dtype == torch.float32
    assert x[0].abs().max() == 0
    assert x[1, 0, 0, 0] == pytest.approx(1 / 0.3081)
    images = drawn.test_images
    assert torch.equal(normalize(images), normalize(images[:, None].float() / 255))


def test_normalized_mnist_has_standard_deviation_one(mnist):
    assert normalize(mnist.train_images).std() == pytest.approx(1, abs=1e-3)


def test_schedules():
    constant, step, cycle = (Recipe(schedule=s, max_lr=0.2, warmup=0.25) for s in ("constant", "step", "one_cycle"))
    assert {learning_rate(constant, i, 30) for i in range(30)} == {0.2}
    assert [learning_rate(step, i, 30) for i in (0, 19)] == [0.2, 0.2]
    assert [learning_rate(step, i, 30) for i in (20, 29)] == pytest.approx([0.02, 0.02])
    rates = [learning_rate(cycle, i, 400) for i in range(400)]
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert abs(rates.index(max(rates)) - 100) <= 1
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert 0 < rates[0] < 0.002
    with pytest.raises(ValueError, match=r"unknown schedule 'cosine'.*one_cycle"):
        learning_rate(Recipe(schedule="cosine"), 0, 10)


def test_learning_rates_are_those_that_training_uses(drawn):
    recipe = replace(TINY, schedule="one_cycle")
    rates = learning_rates(recipe, len(drawn.train_images))
    assert len(rates) == 2 * 19  # the last batch of an epoch is not full
    history = fit(FinalNet(), recipe, drawn, progress=False)
    assert [record["lr"] for record in history] == [rates[18], rates[37]]


def test_weight_average_follows_the_definition():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(net, decay=0.9)
    expected = net[0].weight.detach().clone()
    for step in range(300):
        with torch.no_grad():
            net[0].weight += 1
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    assert torch.allclose(average.model[0].weight, expected, rtol=1e-4)
    assert torch.allclose(net[0].weight - average.model[0].weight, torch.tensor(9.0), rtol=0.01)  # decay / (1 - decay)


def test_weight_average_takes_its_step_from_a_tensor_too():
    net = FinalNet()
    averages = [WeightAverage(net, decay=0.5) for _ in range(2)]
    for step in (0, 1, 20):
        with torch.no_grad():
            for value in net.state_dict().values():
                value += 1
        averages[0].update(step)
        averages[1].update(torch.tensor([step]))
    for name, value in averages[0].model.state_dict().items():
        assert torch.allclose(value.float(), averages[1].model.state_dict()[name].float()), name
        assert not torch.equal(value, net.state_dict()[name]) or not value.is_floating_point(), name


def test_without_an_average_the_net_itself_is_evaluated(drawn):
    recipe = replace(TINY, epochs=1)
    torch.manual_seed(0)
    net = FinalNet()
    history = fit(net, recipe, drawn, progress=False)
    torch.manual_seed(0)
    again = FinalNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(again.parameters(), recipe.max_lr, recipe.momentum, nesterov=True, fused=True)
    with fast_batchnorm(again):
        generator = torch.Generator().manual_seed(0)
        trained = train_epoch(again, optimizer, drawn.train_images, drawn.train_labels, recipe, 0, generator)
    assert trained[0] == history[0]["train_loss"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


@pytest.mark.parametrize("number", STEPS)
def test_fit_learns_drawn_digits(drawn, drawn_soft, number):
    torch.manual_seed(0)
    net, recipe = STEPS[number].net(), replace(STEPS[number].recipe, epochs=8, batch_size=32)
    history = fit(net, recipe, drawn, progress=False, soft=drawn_soft(recipe))
    assert [record["epoch"] for record in history] == list(range(1, 9))
    assert list(history[0]) == [
        "epoch", "lr", "train_loss", "train_correct", "train_total",
        "test_loss", "test_correct", "test_total", "seconds",
    ]  # fmt: skip
    assert all(record["train_total"] == 1200 and record["test_total"] == 300 for record in history)
    assert history[-1]["test_correct"] >= 240  # chance is 30
    # The net that comes back is the one that the last epoch evaluated.
    assert evaluate(net, drawn.test_images, drawn.test_labels)[1] == history[-1]["test_correct"]


def run(digits: Digits, soft: torch.Tensor | None, seed: int, number: int) -> tuple[list, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    net = STEPS[number].net()
    recipe = replace(STEPS[number].recipe, epochs=2)
    history = fit(net, recipe, digits, seed=seed, progress=False, soft=soft)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history], net.state_dict()


@pytest.mark.parametrize("number", STEPS)
def test_the_same_seed_gives_the_same_bits(drawn, drawn_soft, number):
    soft = drawn_soft(STEPS[number].recipe)
    history, state = run(drawn, soft, 3, number)
    torch.rand(7)  # whatever else was drawn in between
    again, state_again = run(drawn, soft, 3, number)
    other, _ = run(drawn, soft, 4, number)
    assert history == again
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert history != other


def test_augmentation_and_dropout_change_training_alone(drawn):
    torch.manual_seed(0)
    net = FinalNet()
    recipe = replace(TINY, max_lr=0.0, rotation=30.0, epochs=1)  # nothing is learned, but images are turned
    turned = fit(net, recipe, drawn, progress=False)
    torch.manual_seed(0)
    plain = fit(FinalNet(), replace(recipe, rotation=0.0), drawn, progress=False)
    assert turned[0]["train_loss"] != plain[0]["train_loss"]


def test_fit_shows_a_bar_and_a_line_per_epoch(drawn, capsys):
    fit(FinalNet(), TINY, drawn)
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]
    assert len({len(line) for line in out.splitlines()}) == 1
    assert "38/38" in err  # 2 epochs of 19 steps


def test_fit_can_be_silent(drawn, capsys):
    fit(FinalNet(), replace(TINY, epochs=1), drawn, progress=False)
    assert capsys.readouterr() == ("", "")


def test_sgd_without_momentum(drawn):
    history = fit(FinalNet(), replace(TINY, momentum=0.0), drawn, progress=False)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_describe_changes_names_each_difference():
    assert describe_changes(Recipe(), Recipe()) == "no change"
    text = describe_changes(Recipe(max_lr=0.1), Recipe(max_lr=0.2, schedule="step"))
    assert text.splitlines() == ["max_lr: 0.1 -> 0.2", "schedule: constant -> step"]


def test_soft_labels_are_probabilities_at_the_temperature():
    images, _ = numbered(5)
    hot, cold = Recipe(distillation=0.5, temperature=100.0), Recipe(distillation=0.5, temperature=1.0)
    teacher = FromPixels().train()
    soft = soft_labels(teacher, images, cold, batch_size=2)
    assert soft.shape == (5, 10)
    assert soft.dtype == torch.float32
    assert torch.allclose(soft, torch.eye(10)[:5], atol=1e-6)
    assert soft_labels(teacher, images, hot).max() < 0.2
    assert teacher.training


def test_soft_labels_have_the_same_bits_from_any_layout_in_memory_and_number_of_threads(drawn):
    """A net that was trained has its weights channels last, one that was loaded has them contiguous."""
    torch.manual_seed(0)
    recipe, teacher = STEPS[3].recipe, STEPS[3].teacher()
    soft = soft_labels(teacher, drawn.train_images[:64], recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = soft_labels(teacher.to(memory_format=torch.channels_last), drawn.train_images[:64], recipe)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, soft)


def test_soft_labels_average_over_augmented_copies(drawn):
    recipe = Recipe(distillation=0.5, rotation=30.0, translation=0.2)
    net = FinalNet()
    many = soft_labels(net, drawn.train_images[:64], recipe)
    assert torch.equal(many, soft_labels(net, drawn.train_images[:64], recipe))
    assert not torch.allclose(many, soft_labels(net, drawn.train_images[:64], recipe, views=1))
    assert torch.allclose(many.sum(1), torch.ones(64))


def test_distillation_loss_is_what_hinton_wrote():
    logits, labels = torch.randn(6, 10), torch.arange(6)
    soft = torch.randn(6, 10).softmax(1)
    recipe = Recipe(distillation=0.3, temperature=2.0)
    hard = F.cross_entropy(logits, labels)
    by_hand = 0.7 * hard - 0.3 * 4 * (soft * (logits / 2).log_softmax(1)).sum(1).mean()
    assert distillation_loss(hard, logits, soft, recipe).item() == pytest.approx(by_hand.item())
    assert distillation_loss(hard, logits, soft, replace(recipe, distillation=0.0)) == hard


def test_a_pupil_follows_its_teacher_and_not_the_labels(drawn):
    """With all of the loss on soft labels that say the digit plus one, the net answers that."""
    recipe = replace(TINY, epochs=3, distillation=1.0)
    soft = torch.eye(10)[(drawn.train_labels + 1) % 10]
    torch.manual_seed(0)
    net = FinalNet()
    fit(net, recipe, drawn, progress=False, soft=soft)
    _, correct, total = evaluate(net, drawn.test_images, (drawn.test_labels + 1) % 10)
    assert correct > 0.8 * total


def test_soft_labels_and_recipe_have_to_fit(drawn):
    soft = torch.full((len(drawn.train_images), 10), 0.1)
    with pytest.raises(ValueError, match="needs soft labels"):
        fit(FinalNet(), replace(TINY, distillation=0.5), drawn, progress=False)
    with pytest.raises(ValueError, match="no use for soft labels"):
        fit(FinalNet(), TINY, drawn, progress=False, soft=soft)
    with pytest.raises(ValueError, match="one for each training image"):
        fit(FinalNet(), replace(TINY, distillation=0.5), drawn, progress=False, soft=soft[1:])


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match="use auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_devices(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device here"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:0 to cuda:1"):
        pick_device("cuda:2")
