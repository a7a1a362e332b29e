"""The faster backward pass of BatchNorm: the same gradients as PyTorch's, and out of the way elsewhere."""

import contextlib

import pytest
import torch
from torch import nn

from model import FinalNet
from tinymnist import batchnorm
from tinymnist.batchnorm import fast_batchnorm


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradients(layer: nn.BatchNorm2d, x: torch.Tensor, outside: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics after one pass; the layer starts from the same state each time."""
    layer.load_state_dict(nn.BatchNorm2d(layer.num_features).state_dict())
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(outside)
    found = {"out": out.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return found | {name: value.clone() for name, value in layer.state_dict().items()}


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("channels", [1, 8, 18])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("smallest", [0, batchnorm.SMALL])
def test_gradients_are_those_of_pytorch(channels, memory_format, shift, smallest, monkeypatch):
    monkeypatch.setattr(batchnorm, "SMALL", smallest)
    layer = nn.BatchNorm2d(channels)
    x = torch.randn(6, channels, 5, 7).add(shift).to(memory_format=memory_format)
    outside = torch.randn(6, channels, 5, 7)
    expected = gradients(layer, x, outside)
    with fast_batchnorm(layer):
        assert type(layer) is not nn.BatchNorm2d
        found = gradients(layer, x, outside)
    assert type(layer) is nn.BatchNorm2d
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4 if shift else 1e-5), name


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("channels", [8, 10])
def test_relu_in_place_may_follow(memory_format, channels, monkeypatch):
    monkeypatch.setattr(batchnorm, "SMALL", 0)
    net = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)).to(
        memory_format=memory_format
    )
    x, gradients = torch.randn(4, 1, 6, 6), []
    for context in (contextlib.nullcontext(), fast_batchnorm(net)):
        net.zero_grad()
        with context:
            net(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*gradients, strict=True))


@pytest.mark.usefixtures("_two_threads")
def test_evaluation_is_untouched():
    layer = nn.BatchNorm2d(8).eval()
    x = torch.randn(4, 8, 3, 3)
    expected = layer(x)
    with fast_batchnorm(layer):
        assert torch.equal(layer(x), expected)
    assert layer.num_batches_tracked == 0


@pytest.mark.usefixtures("_two_threads")
def test_only_layers_that_gain_are_changed_and_all_come_back():
    net = nn.Sequential(FinalNet(), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, momentum=None))
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with fast_batchnorm(net):
        assert [type(m) is nn.BatchNorm2d for m in layers] == [False, True, True, False, True, True]  # 8 16 16 18
    assert all(type(m) is nn.BatchNorm2d for m in layers)


def test_one_thread_has_nothing_to_gain():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with fast_batchnorm(net := FinalNet()):
            assert type(net.norm1) is nn.BatchNorm2d
    finally:
        torch.set_num_threads(before)
