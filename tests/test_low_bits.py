"""Weights of few bits: the codes, their gradient, and that what is packed is all that a net needs."""

from dataclasses import replace

import pytest
import torch

from experiments.low_bits import HalfNorm, LowBitNet, codes_of
from model import STEPS
from utils import count_parameters, evaluate, fit


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_whole_numbers_up_to_the_end_of_their_range(bits):
    most = 2 ** (bits - 1) - 1
    codes = codes_of(torch.randn(7, 3, 3, 3), bits)
    assert torch.equal(codes, codes.round())
    assert codes.abs().flatten(1).amax(1).tolist() == [most] * 7
    assert torch.equal(codes_of(codes, bits), codes)
    assert codes_of(torch.zeros(2, 9), bits).tolist() == [[0.0] * 9] * 2


def test_codes_pass_the_gradient_on_as_if_nothing_had_been_rounded():
    weight = torch.tensor([[0.5, -1.0, 0.1], [2.0, 0.3, -0.7]], requires_grad=True)
    codes_of(weight, 4).sum().backward()
    assert torch.allclose(weight.grad, torch.tensor([[7.0], [3.5]]).expand(2, 3))


def test_the_norm_in_evaluation_is_batchnorm_up_to_float16():
    norm, x = HalfNorm(5), torch.randn(4, 5, 6, 6) * 3 + 1
    norm(x), norm.weight.data.uniform_(0.5, 2), norm.bias.data.normal_()
    expected = torch.nn.BatchNorm2d(5)
    expected.load_state_dict(norm.state_dict())
    assert torch.allclose(norm.eval()(x), expected.eval()(x), atol=0.02)


@pytest.mark.parametrize(("bits", "size"), [(2, 2189), (3, 3157), (4, 4124), (8, 7994)])
def test_a_packed_net_is_the_net(drawn, bits, size):
    torch.manual_seed(0)
    fit(net := LowBitNet(bits), replace(STEPS[3].recipe, epochs=2, batch_size=50), drawn, progress=False)
    data = net.pack()
    assert len(data) == size
    assert count_parameters(net) == 7866
    other = LowBitNet(bits).to(memory_format=torch.channels_last)
    other.unpack(data)
    assert other.pack() == data
    images, labels = drawn.test_images, drawn.test_labels
    assert evaluate(other, images, labels) == evaluate(net, images, labels)


@pytest.mark.parametrize("change", [-1, 1])
def test_bytes_of_another_net_are_refused(change):
    data = LowBitNet(4).pack()
    with pytest.raises(ValueError, match=r"4123 bytes, not 4124|4125 bytes, not 4124"):
        LowBitNet(4).unpack(data[:change] if change < 0 else data + b"0")
