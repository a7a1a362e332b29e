"""`fit` and `evaluate`, for the nets of the steps and for any other: what they do, refuse and leave as it was."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import cudnn
from torch.nn.utils import parameters_to_vector, parametrizations, prune
from torch.optim import SGD

from model import STEPS, FinalNet, RegularizedNet, SetupNet
from utils import Digits, Recipe, augment, evaluate, fit, learning_rate, normalize, train_run

RECIPE = Recipe(epochs=2, batch_size=64, schedule="step", momentum=0.0, weight_decay=0.01, rotation=10.0, average=0.6)


class Own(nn.Module):
    """A layer in a line: a function of the layer and its input, with a parameter or a buffer."""

    def __init__(self, function, weight=None, buffer=None):
        super().__init__()
        self.function, self.weight = function, weight if weight is None else nn.Parameter(weight)
        self.register_buffer("buffer", buffer, persistent=False)

    def forward(self, x):
        return self.function(self, x)


def linear(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), *layers)


def changed(change):
    net = SetupNet()
    change(net.conv2)
    return net


def tied():
    layer = nn.Linear(10, 10)
    return linear(nn.ReLU(), layer, nn.ReLU(), layer)


def capsules():
    def route(own, x):
        return (own.weight @ x.flatten(2).mT[:, :, None, :, None]).squeeze(-1).sum(1).norm(dim=-1)

    return nn.Sequential(nn.Conv2d(1, 8, 9, 3), Own(route, 0.05 * torch.randn(1, 49, 10, 16, 8)))


def complex_numbers():
    weight = 0.01 * torch.randn(784, 10, dtype=torch.complex64)
    return nn.Sequential(nn.Flatten(), Own(lambda own, x: ((x + 0j) @ own.weight).abs(), weight))


def masked():
    return linear(Own(lambda own, x: x @ own.buffer.softmax(1), buffer=torch.full((10, 10), -torch.inf).triu(1)))


def counting():
    """Learns without a gradient what its state dict leaves out."""
    return linear(Own(lambda own, x: x * own.buffer.add_(0.01 * own.training).clone(), buffer=torch.ones(())))


OTHERS = {
    "view": lambda: nn.Sequential(nn.Conv2d(1, 8, 3, 3), Own(lambda _, x: x.view(-1, 648)), nn.Linear(648, 10)),
    "3d": lambda: nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 10, (1, 28, 28)), nn.Flatten()),
    "five dimensions": capsules,
    "complex": complex_numbers,
    "infinite mask": masked,
    "statistic": counting,
    "dropout": lambda: linear(nn.Dropout(0.1)),
    "double": lambda: nn.Sequential(Own(lambda _, x: x.double()), linear()).double(),
    "tied": tied,
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    "compiled": lambda: torch.compile(FinalNet(), backend="eager"),
    "frozen": lambda: changed(lambda layer: layer.requires_grad_(False)),
    "pruned": lambda: changed(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5)),
    "weight_norm": lambda: changed(torch.nn.utils.weight_norm),
    "spectral_norm": lambda: changed(parametrizations.spectral_norm),
}
CASES = {f"step {number}": (step.net, replace(step.recipe, epochs=2)) for number, step in STEPS.items()}
CASES |= {name: (net, RECIPE) for name, net in OTHERS.items()}


def tensors_of(net):
    return [*net.parameters(), *net.buffers()]


def by_hand(net, recipe, digits, seed):
    """What `fit` does, without it; returns each epoch's mean training loss and number of correct answers."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = digits[:2]
    net.eval()(normalize(images[:2]))  # a lazy layer gets its shape
    optimizer = SGD(net.parameters(), recipe.max_lr, recipe.momentum, 0, recipe.weight_decay, recipe.momentum > 0)
    averages = [tensor.data.clone() for tensor in tensors_of(net)]
    losses, counts, step, steps = [], [], 0, recipe.epochs * math.ceil(len(images) / recipe.batch_size)
    for _ in range(recipe.epochs):
        net.train()
        loss_sum = correct = 0
        for chosen in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = recipe.max_lr * learning_rate(recipe, (step + 0.5) / steps)
            logits = net(augment(images[chosen], recipe, generator))
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(chosen)
            correct += int((logits.argmax(1) == labels[chosen]).sum())
            decay = min(recipe.average, (1 + step) / (10 + step)) if step else 0.0  # the first weights are the start
            for average, value in zip(averages, tensors_of(net), strict=True):
                blend = decay and value.dtype != torch.int64  # BatchNorm counts its batches
                average.copy_(decay * average + (1 - decay) * value.data if blend else value.data)
            step += 1
        losses.append(loss_sum / len(images))
        counts.append(correct)
    for value, average in zip(tensors_of(net), averages, strict=True):
        value.data.copy_(average)
    return losses, counts


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_fit_is_the_loop_that_a_learner_would_write(drawn, name):
    make, recipe = CASES[name]
    net, other = make(), make()
    other.load_state_dict(net.state_dict())
    history = fit(net, recipe, drawn, seed=5, progress=False)
    losses, counts = by_hand(other, recipe, drawn, seed=5)
    assert (history["train_loss"], history["train_correct"]) == (pytest.approx(losses, rel=1e-4), counts)
    torch.testing.assert_close(tensors_of(net), tensors_of(other), rtol=1e-3, atol=1e-5)
    # The net that comes back is the one that the last epoch evaluated, ready to use.
    assert not any(module.training for module in net.modules() if not hasattr(module, "_orig_mod"))
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert (loss, correct) == (pytest.approx(history["test_loss"][-1], rel=1e-3), history["test_correct"][-1])
    assert parameters_to_vector(net.parameters()).isfinite().all()  # which needs the usual layout, as pruning does


def test_accuracy_is_an_exact_count_whatever_the_batch_size():
    net = Own(lambda _, x: 50.0 * F.one_hot((x[:, 0, 0, 0] * 0.3081 * 255).round().long() % 10, 10))  # no parameters
    images = torch.arange(250, dtype=torch.uint8).view(250, 1, 1).repeat(1, 28, 28)
    images[:123, 0, 0] += 1  # 123 wrong answers
    for batch_size in (1, 64, 5000):
        loss, correct, total = evaluate(net, images, torch.arange(250) % 10, batch_size)
        assert (correct, total) == (250 - 123, 250)
        assert loss == pytest.approx(50 * 123 / 250, rel=1e-4)


def test_evaluation_leaves_the_net_as_it_was(drawn):
    net = RegularizedNet().train()
    net.norm1.eval()  # for example frozen
    before = copy.deepcopy(net)
    first = evaluate(net, drawn.test_images, drawn.test_labels)
    second = evaluate(net, drawn.test_images, drawn.test_labels, batch_size=37)
    assert first == (pytest.approx(second[0], rel=1e-5), *second[1:])  # no batch statistics
    assert [net.training, net.norm1.training, net.norm2.training] == [True, False, True]
    torch.testing.assert_close(tensors_of(net), tensors_of(before), rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_head_of_other_classes_gives_logits_of_that_shape(drawn, number):
    net = STEPS[number].net()
    net.head = nn.Linear(162, 26)
    letters = drawn._replace(train_labels=drawn.train_labels + 16, test_labels=drawn.test_labels + 16)
    fit(net, RECIPE, letters, progress=False)
    assert [net(normalize(drawn.test_images[:n])).shape for n in (1, 7)] == [(1, 26), (7, 26)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: {"train_images": d.train_images.float()}, r"must be uint8 \(N, 28, 28\), not float32 \(N, 28, 28\)"),
        (lambda d: {"test_images": d.test_images[:, None]}, r"must be uint8 \(N, 28, 28\), not uint8 \(N, 1, 28, 28\)"),
        (lambda d: {"train_labels": d.train_labels.int()}, r"labels must be int64 \(600,\), not int32 \(600,\)"),
        (lambda d: {"train_labels": d.train_labels[1:]}, r"labels must be int64 \(600,\), not int64 \(599,\)"),
        (lambda d: {"train_labels": d.train_labels - 1}, "labels must be from 0 up"),
        (lambda d: {"test_labels": d.test_labels + 1}, r"must give logits \(N, 11\), not \(2, 10\) for 2 images"),
        (lambda d: {"test_labels": d.test_labels[:0], "test_images": d.test_images[:0]}, "at least one image"),
    ],
)
def test_data_of_another_form_is_refused_in_one_line_before_training(drawn, change, line):
    before = copy.deepcopy(net := SetupNet())
    with pytest.raises(ValueError, match=line) as error:
        fit(net, RECIPE, drawn._replace(**change(drawn)), progress=False)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(tensors_of(net), tensors_of(before))


@pytest.mark.parametrize("last", [nn.Unflatten(1, (10, 1, 1)), nn.Flatten(0), Own(lambda _, x: (x, x))])
def test_a_net_that_gives_no_logits_is_refused(drawn, last):
    with pytest.raises(ValueError, match="the net must give logits"):
        fit(linear(last), RECIPE, drawn, progress=False)


def test_modes_that_stop_gradients_and_batches_that_are_none_are_refused(drawn):
    for mode in (torch.autocast("cpu"), torch.inference_mode()):
        with mode, pytest.raises(ValueError, match=r"does not work under torch\.autocast or torch\.inference_mode"):
            fit(SetupNet(), RECIPE, drawn, progress=False)
    with pytest.raises(ValueError, match="there are no batches"):
        fit(SetupNet(), RECIPE, drawn, progress=False, batches=lambda *_: [])


def test_images_of_another_size_are_refused_by_our_nets_and_taken_by_others(drawn):
    large = Digits(*(F.pad(tensor, (2, 2, 2, 2)) if tensor.dim() == 3 else tensor for tensor in drawn))
    with pytest.raises(AssertionError, match="28x28"):
        fit(FinalNet(), RECIPE, large, progress=False)
    fit(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), RECIPE, large, progress=False)


def switch(owner, name):
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


SWITCHES = {  # how it is read and set, what a program sets, and what its net sees while it is trained
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled, False, True),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float64, torch.float64),
    "deterministic": (*switch(cudnn, "deterministic"), False, True),
    "TF32": (*switch(cudnn, "allow_tf32"), False, False),
}
if hasattr(cudnn, "conv"):
    SWITCHES["newer TF32"] = (*switch(cudnn.conv, "fp32_precision"), "ieee", "ieee")


@pytest.mark.parametrize("name", SWITCHES)
def test_what_a_program_has_set_stays_and_changes_nothing(drawn, name):
    get, put, value, within = SWITCHES[name]
    seen, before = set(), get()
    net = nn.Sequential(Own(lambda own, x: (own.training and seen.add(get())) or x), FinalNet())
    other = copy.deepcopy(net)
    fit(other, RECIPE, drawn, progress=False)
    seen.clear()
    put(value)
    try:
        fit(net, RECIPE, drawn, progress=False)
        assert (get(), seen) == (value, {within})
    finally:
        put(before)
    torch.testing.assert_close(tensors_of(net), tensors_of(other))


def test_weights_of_a_compiled_net_load_into_the_net(drawn):
    _, state = train_run(lambda: nn.Sequential(torch.compile(RegularizedNet(), backend="eager")), RECIPE, drawn)
    nn.Sequential(RegularizedNet()).load_state_dict(state)
