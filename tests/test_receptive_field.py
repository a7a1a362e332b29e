"""The receptive-field table: published tables, hand-made cases, and a check by gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import STEPS
from utils import LayerField, receptive_field, receptive_field_table


def conv(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def fields(model, size=28):
    return [row.receptive_field for row in receptive_field(model, size)]


def test_published_table_with_average_pooling():
    net = nn.Sequential(
        conv(1, 8), conv(8, 8), conv(8, 8, 1), nn.MaxPool2d(2),
        conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 8), nn.AvgPool2d(4), nn.Conv2d(8, 10, 1), nn.Flatten(),
    )  # fmt: skip
    rows = receptive_field(net)
    assert [row.receptive_field for row in rows] == [1, 3, 5, 5, 6, 10, 14, 18, 22, 28, 28]
    assert [row.size_out for row in rows] == [28, 26, 24, 24, 12, 10, 8, 6, 4, 1, 1]
    assert [row.jump for row in rows] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 8, 8]
    assert [row.size_in for row in rows[1:]] == [row.size_out for row in rows[:-1]]
    assert [row.channels_out for row in rows] == [1] + [8] * 9 + [10]


def test_published_tables_with_global_average_pooling():
    gap = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 10, 1), nn.Flatten()]
    d = nn.Sequential(
        conv(1, 8), conv(8, 16), conv(16, 8, 1), nn.MaxPool2d(2),
        conv(8, 16), conv(16, 16), conv(16, 16), conv(16, 16, 1), *gap,
    )  # fmt: skip
    e = nn.Sequential(
        conv(1, 10), conv(10, 16), conv(16, 8), nn.MaxPool2d(2), conv(8, 16), conv(16, 16), conv(16, 16), *gap
    )
    assert fields(d) == [1, 3, 5, 5, 6, 10, 14, 18, 18, 28, 28]
    assert fields(e) == [1, 3, 5, 7, 8, 12, 16, 20, 28, 28]


def test_every_field_of_a_row():
    rows = receptive_field(nn.Sequential(nn.Conv2d(1, 4, 5, stride=2, padding=1, dilation=2)), 33)
    assert rows[0] == LayerField("input", 1, 1, 0, 1, 33, 33, 1, 1, 1)
    assert rows[1] == LayerField("0", 5, 2, 1, 2, 33, 14, 4, 2, 9)


def test_dilation_stride_and_rectangular_kernels():
    net = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=(1, 2), dilation=(2, 1), padding=(1, 0)),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(4, 4, 3, dilation=3),
        nn.AvgPool2d((2, 1)),
    )
    rows = receptive_field(net, (28, 40))
    assert [row.kernel for row in rows[1:]] == [(3, 5), 3, 3, (2, 1)]
    assert [row.stride for row in rows[1:]] == [(1, 2), 1, 1, (2, 1)]
    assert [row.padding for row in rows[1:]] == [(1, 0), 1, 0, 0]
    assert [row.dilation for row in rows[1:]] == [(2, 1), 1, 3, 1]
    assert [row.size_out for row in rows] == [(28, 40), (26, 18), (26, 18), (20, 12), (10, 12)]
    assert [row.jump for row in rows] == [1, (1, 2), (1, 2), (1, 2), 2]
    assert [row.receptive_field for row in rows] == [1, 5, (7, 9), (13, 21), (14, 21)]
    assert rows[0].channels_out == 3


def test_stride_without_pooling():
    assert fields(nn.Sequential(conv(1, 4, stride=2), conv(4, 4, stride=2), conv(4, 4))) == [1, 3, 7, 15]


def test_same_and_zero_padding_do_not_widen_the_field():
    net = nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=5))
    rows = receptive_field(net)
    assert [row.receptive_field for row in rows] == [1, 3, 5]
    assert [row.size_out for row in rows] == [28, 32, 40]


def test_overlapping_and_rounded_up_pooling():
    rows = receptive_field(nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2)))
    assert [row.size_out for row in rows] == [28, 14, 7]
    assert [row.receptive_field for row in rows] == [1, 3, 5]


@pytest.mark.parametrize(
    ("outputs", "kernel", "stride"), [(1, 26, 26), (2, 13, 13), (13, 2, 2), (26, 1, 1), (4, None, None)]
)
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_adaptive_pooling(pool, outputs, kernel, stride):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), pool(outputs))
    if kernel is None:
        with pytest.raises(ValueError, match="26 pixels to 4 has no single kernel"):
            receptive_field(net)
    else:
        row = receptive_field(net)[-1]
        assert (row.kernel, row.stride, row.size_out) == (kernel, stride, outputs)
        assert row.receptive_field == kernel + 2


def test_adaptive_pooling_with_overlap():
    row = receptive_field(nn.AdaptiveAvgPool2d(3), 7)[-1]
    assert (row.kernel, row.stride, row.receptive_field) == (3, 2, 3)


class Functional(nn.Module):
    """Poolings and a mean that are not modules, a layer used twice, and a head that is not in the table."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.leaky_relu(self.twice(x)) * 2
        x = self.twice(F.dropout(x, training=self.training))
        return F.log_softmax(self.head(x.mean(dim=(2, 3))), dim=1)


def test_functional_layers_count_too():
    rows = receptive_field(Functional())
    assert [row.name for row in rows] == ["input", "stem", "max_pool2d", "twice", "twice", "mean"]
    assert [row.receptive_field for row in rows] == [1, 3, 4, 8, 12, 28]


class Sum(nn.Module):
    """A residual sum of a 3x3 path and one of the given layers."""

    def __init__(self, other):
        super().__init__()
        self.stem, self.conv, self.other, self.last = (
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            other,
            nn.Conv2d(4, 4, 3),
        )

    def forward(self, x):
        x = self.stem(x)
        return self.last(F.relu(self.conv(x) + self.other(x)))


def test_joined_paths_give_the_union():
    assert fields(Sum(nn.Identity()))[-1] == 7
    assert fields(Sum(nn.Conv2d(4, 4, 7, padding=3)))[-1] == 11
    # In pixels of the stem's map, one branch sees -1 to 1 and the other -4 to 0: together 6 of them.
    shifted = nn.Sequential(nn.ZeroPad2d((4, 0, 4, 0)), nn.Conv2d(4, 4, 5))
    assert fields(Sum(shifted))[-1] == 3 + (6 - 1) + 2


class Mixed(nn.Module):
    """Two convolutions with something else between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(1, 4, 3), between, nn.LazyConv2d(4, 1)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "between",
    [
        nn.Upsample(scale_factor=2),
        nn.GroupNorm(2, 4),
        nn.Linear(26, 26),
        nn.Softmax(dim=3),
        Apply(lambda x: x.transpose(2, 3)),
        Apply(lambda x: x[:, :, ::2, ::2]),
        Apply(lambda x: x.roll(3, dims=3)),
        Apply(lambda x: x.flatten(1).view(-1, 4, 13, 52)),
        Apply(lambda x: x.flatten(1).view(-1, 4, 26, 26)),
        Apply(lambda x: x + x.mean((2, 3), keepdim=True)),
        Apply(lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))),
        Apply(lambda x: x + F.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)),
        nn.ConvTranspose2d(4, 4, 3),
        nn.FractionalMaxPool2d(2, output_ratio=0.5),
        nn.InstanceNorm2d(4),
        nn.PixelUnshuffle(2),
    ],
)
def test_operations_with_unknown_effect_are_errors(between):
    model = Mixed(between)
    model(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match=r"not known|no chain|differ") as caught:
        receptive_field(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        nn.ConvTranspose2d(1, 2, 3),
        nn.FractionalMaxPool2d(2, output_ratio=0.5),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ConvTranspose2d(1, 2, 4)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 2, 3)),
    ],
)
def test_layers_with_unknown_effect_are_errors(model):
    with pytest.raises(ValueError, match="not known"):
        receptive_field(model)


def test_an_image_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not take an image of 4x4 pixels"):
        receptive_field(STEPS[1].net(), 4)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        receptive_field(STEPS[1].net(), 0)


def test_the_model_is_left_as_it_was():
    model = STEPS[2].net().train()
    model.norm1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    receptive_field(model)
    assert model.training
    assert not model.norm1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks
    assert not model.conv1._forward_pre_hooks


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1),
            nn.AvgPool2d(2),
            nn.Conv2d(2, 2, (3, 2), dilation=(1, 2)),
            nn.Conv2d(2, 1, 3, stride=2),
        ),
        Sum(nn.Sequential(nn.ZeroPad2d((4, 0, 4, 0)), nn.Conv2d(4, 4, 5))),
        Sum(nn.Conv2d(4, 4, 5, dilation=2, padding=4)),
    ],
)
def test_against_gradients(model):
    """The extent of the pixels with a gradient on one output in the middle, with all weights positive."""
    for parameter in model.parameters():
        parameter.data = parameter.data.abs() + 0.1
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    used = image.grad[0, 0] != 0
    extent = tuple(int(used.any(dim).nonzero().max() - used.any(dim).nonzero().min()) + 1 for dim in (1, 0))
    row = receptive_field(model, 64)[-1]
    size = row.receptive_field if isinstance(row.receptive_field, tuple) else (row.receptive_field,) * 2
    assert size == extent


def test_table_is_aligned_markdown():
    lines = receptive_field_table(receptive_field(nn.Conv2d(1, 2, (3, 1)))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == "name"
    assert [cell.strip() for cell in lines[-1].split("|")[2:4]] == ["3x1", "1"]
