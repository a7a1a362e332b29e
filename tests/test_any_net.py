"""`fit` and what comes after it, for nets that are not this project's."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, prune

from model import STEPS, FinalNet, RegularizedNet, SetupNet
from tinymnist.runs import read_weights, state_of, write_weights
from utils import Digits, Recipe, evaluate, fit, normalize, train_run

RECIPE = Recipe(epochs=2, batch_size=64, rotation=10.0, average=0.9)


class Viewing(nn.Module):
    """Flattens with a view, as most published nets for MNIST do."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.Linear(8 * 13 * 13, 10)

    def forward(self, x):
        x = self.pool(self.conv(x).relu())
        return self.head(x.view(-1, 8 * 13 * 13))


class Capsules(nn.Module):
    """Has a parameter of five dimensions."""

    def __init__(self):
        super().__init__()
        self.conv, self.route = nn.Conv2d(1, 8, 9, 3), nn.Parameter(0.05 * torch.randn(1, 49, 10, 16, 8))

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)[:, :, None, :, None]
        return (self.route @ x).squeeze(-1).sum(1).norm(dim=-1)


class Tied(nn.Module):
    """Uses one layer twice under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(784, 32), nn.Linear(32, 10)
        self.second = self.third = nn.Linear(32, 32)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x.flatten(1)).relu()).relu()).relu())


class Doubled(nn.Module):
    def forward(self, x):
        return x.double()


def pruned():
    net = SetupNet()
    prune.l1_unstructured(net.head, "weight", amount=0.5)
    return net


def normed(function):
    net = SetupNet()
    function(net.conv2)
    return net


class Masked(nn.Module):
    """Has a constant buffer that is not finite, as an attention mask."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)
        self.register_buffer("mask", torch.full((10,), float("-inf")).where(torch.arange(10) > 9, 0.0))
        self.register_buffer("causal", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x):
        return self.head(x.flatten(1)) + self.mask + self.causal.softmax(1).sum() - 4


class Scaled(nn.Module):
    """Learns a statistic that its state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 0.01
        return self.head(x.flatten(1)) * (1 + self.seen)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(784, 10, dtype=torch.complex64))

    def forward(self, x):
        return (x.flatten(1).to(torch.complex64) @ self.weight).abs()


NETS = {
    "mask": Masked,
    "statistic": Scaled,
    "complex": Complex,
    "view": Viewing,
    "five dimensions": Capsules,
    "tied": Tied,
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    "pruned": pruned,
    "weight_norm": lambda: normed(torch.nn.utils.weight_norm),
    "spectral_norm": lambda: normed(parametrizations.spectral_norm),
    "compiled": lambda: torch.compile(FinalNet(), backend="eager"),
    "frozen": lambda: normed(lambda layer: layer.requires_grad_(False)),
    "double": lambda: nn.Sequential(Doubled(), nn.Flatten(), nn.Linear(784, 10)).double(),
    "3d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 5, 5), 3), nn.Flatten(), nn.Linear(256, 10)
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NETS)
def test_any_net_trains_and_is_evaluated_as_it_is_left(drawn, name):
    net = NETS[name]()
    history = fit(net, RECIPE, drawn, progress=False)
    loss, correct, _ = evaluate(net, drawn.test_images, drawn.test_labels)
    assert (loss, correct) == (pytest.approx(history["test_loss"][-1], rel=1e-3), history["test_correct"][-1])
    assert not any(module.training for module in net.modules() if not hasattr(module, "_orig_mod"))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_weights_keep_the_layout_that_pruning_and_vectors_need(drawn, average):
    fit(net := FinalNet(), replace(RECIPE, average=average), drawn, progress=False)
    assert parameters_to_vector(net.parameters()).shape == (7866,)
    prune.global_unstructured([(net.conv2, "weight"), (net.head, "weight")], prune.L1Unstructured, amount=0.2)
    assert net(normalize(drawn.test_images[:2])).shape == (2, 10)


@pytest.mark.parametrize("number", STEPS)
@pytest.mark.parametrize("classes", [10, 26])
def test_a_head_of_other_classes_gives_logits_of_that_shape(drawn, number, classes):
    net = STEPS[number].net()
    net.head = nn.Linear(162, classes)
    letters = Digits(*(tensor + 16 * (classes > 10) if tensor.dim() == 1 else tensor for tensor in drawn))
    fit(net, RECIPE, letters, progress=False)
    assert [net(normalize(drawn.test_images[:n])).shape for n in (1, 7)] == [(1, classes), (7, classes)]


def changed(drawn, **tensors):
    return drawn._replace(**tensors)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: {"train_images": d.train_images.float() / 255}, r"uint8 \(N, 28, 28\), not float32 \(N, 28, 28\)"),
        (lambda d: {"train_images": d.train_images[:, None]}, r"uint8 \(N, 28, 28\), not uint8 \(N, 1, 28, 28\)"),
        (lambda d: {"test_images": d.test_images.float()}, r"uint8 \(N, 28, 28\), not float32"),
        (lambda d: {"train_labels": d.train_labels.int()}, r"labels must be int64 \(600,\), not int32 \(600,\)"),
        (lambda d: {"train_labels": d.train_labels[:599]}, r"labels must be int64 \(600,\), not int64 \(599,\)"),
        (lambda d: {"test_labels": d.test_labels[:, None]}, r"labels must be int64 \(200,\), not int64 \(200, 1\)"),
        (lambda d: {"train_labels": d.train_labels - 1}, "labels must be from 0 up"),
        (lambda d: {"test_labels": d.test_labels[:0], "test_images": d.test_images[:0]}, "at least one image"),
        (
            lambda d: {"train_labels": d.train_labels + 1},
            r"the net must give logits \(N, 11\), not \(2, 10\) for 2 images",
        ),
    ],
)
def test_data_of_another_form_is_refused_in_one_line_before_training(drawn, change, line):
    with pytest.raises(ValueError, match=line) as error:
        fit(SetupNet(), RECIPE, changed(drawn, **change(drawn)), progress=False)
    assert "\n" not in str(error.value)


class Pair(SetupNet):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("net", [nn.Conv2d(1, 10, 28), nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten(0)), Pair()])
def test_a_net_that_gives_no_logits_is_refused(drawn, net):
    with pytest.raises(ValueError, match="the net must give logits"):
        fit(net, RECIPE, drawn, progress=False)


@torch.no_grad()
def test_gradients_are_on_whatever_the_caller_has_set(drawn):
    history = fit(SetupNet(), RECIPE, drawn, progress=False)
    assert history["train_loss"][1] < history["train_loss"][0]


def test_autocast_is_refused(drawn):
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"does not work under torch\.autocast"):
        fit(SetupNet(), RECIPE, drawn, progress=False)


def test_the_default_dtype_of_a_program_does_not_matter(drawn):
    net = FinalNet()
    torch.set_default_dtype(torch.float64)
    try:
        fit(net, RECIPE, drawn, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)


def test_batches_that_are_none_are_refused(drawn):
    with pytest.raises(ValueError, match="there are no batches"):
        fit(SetupNet(), RECIPE, drawn, progress=False, batches=lambda *_: [])


def test_images_of_another_size_are_refused_by_our_nets_and_taken_by_others():
    digits = Digits(*(torch.zeros(n, 32, 32, dtype=torch.uint8) if i == 0 else torch.zeros(n, dtype=torch.int64)
                      for n in (20, 10) for i in range(2)))  # fmt: skip
    with pytest.raises(AssertionError, match="28x28"):
        fit(FinalNet(), RECIPE, digits, progress=False)
    fit(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), RECIPE, digits, progress=False)


def test_what_a_program_has_set_for_tf32_stays(drawn, monkeypatch):
    seen = []

    class Watching(SetupNet):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
            return super().forward(x)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    fit(Watching(), RECIPE, drawn, progress=False)
    assert {allowed for allowed, _ in seen} == {False}
    assert seen[-1][1]
    assert not torch.backends.cudnn.deterministic


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has no fp32_precision")
def test_the_newer_switch_for_tf32_stays_too(drawn):
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        fit(SetupNet(), RECIPE, drawn, progress=False)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_weights_of_a_compiled_net_load_into_the_net(drawn, tmp_path):
    def compiled():
        return torch.compile(RegularizedNet(), backend="eager")

    _, state = train_run(compiled, RECIPE, drawn)
    write_weights(tmp_path / "net.pt", state)
    RegularizedNet().load_state_dict(read_weights(tmp_path / "net.pt"))
    inside = nn.Sequential(torch.compile(RegularizedNet(), backend="eager"))  # or a part of the net
    nn.Sequential(RegularizedNet()).load_state_dict(state_of(inside))


def test_gradients_reach_the_image_and_hooks_see_each_layer():
    net, seen = FinalNet().eval(), []
    net.norm4.register_full_backward_hook(lambda _module, _in, out: seen.append(out[0].shape))  # Grad-CAM
    net.conv1.register_full_backward_hook(lambda _module, _in, out: seen.append(out[0].shape))
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    net(x)[0, 3].backward()
    assert x.grad.abs().sum() > 0
    assert seen == [(8, 18, 3, 3), (8, 8, 24, 24)]  # four views of two images


def test_a_run_that_diverges_is_a_record_like_any_other(drawn):
    run, state = train_run(SetupNet, replace(RECIPE, max_lr=1e30, average=0.0), drawn)
    assert run["history"]["train_loss"][-1] is None  # JSON has no NaN
    assert len(run["history"]["test_correct"]) == 2
    assert 0 <= run["train_accuracy"] < 30
    assert set(state) == set(SetupNet().state_dict())
