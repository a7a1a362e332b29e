"""The receptive-field table against fields that are measured, against published fields, and its refusals."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from experiments.nets import PRIOR_NETS, prior_net
from model import STEPS
from utils import LayerField, receptive_field, receptive_field_table


class Apply(nn.Module):
    """Any function of the input and of layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class Outputs(TorchFunctionMode):
    """Collects what the layers of a table return, in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        layer = name in ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "linear")
        if layer or (name in ("mean", "amax") and [*args[1:], *(kwargs or {}).values()][0] in (2, (2, 3))):
            self.maps.append(result if result.dim() == 4 else result[:, :, None, None])
        return result


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def check(net, size=(28, 28), channels=1, gaps=False):
    """Compare each row with what is measured; returns the number of comparisons of fields that lie within the image.

    A row of each image is NaN, and so is all that depends on it, whatever the operation. In float64 no convolution
    takes shortcuts. With gaps in what an output sees, as by dilation, the border may not show that its field is cut.
    """
    rows, compared, net = receptive_field(net, size, channels), 0, copy.deepcopy(net).double().eval()
    for axis, pixels in enumerate(size):
        pixel = torch.arange(pixels)
        images = torch.rand(pixels, channels, *size, dtype=torch.float64)
        images.movedim(axis + 2, 1)[pixel, pixel] = torch.nan
        with torch.no_grad(), Outputs() as outputs:
            net(images)
        sees = [m[:pixels].isnan().any(1).any(2 - axis).T for m in outputs.maps]  # (rows, pixels); of the first view
        layers = [(torch.where(s, pixel, pixels).amin(1), torch.where(s, pixel, -1).amax(1)) for s in sees]
        low, high, gap = min(int(a.min()) for a, _ in layers), max(int(b.max()) for _, b in layers), 0
        for row, (first, last) in zip(rows[1:], layers, strict=True):
            cells = row.size_out, row.dilation, row.jump, row.receptive_field
            rows_out, dilation, jump, field = (both(cell)[axis] for cell in cells)
            gap = max(gap, dilation * jump * gaps)
            assert len(first) == rows_out
            assert (last - first < field).all()
            if rows_out == 1 and not gaps:
                assert last - first + 1 == min(field, high - low + 1), row
            # The first row of what output i sees, and the last of what j sees, lie within the image.
            for i in (i for i in range(rows_out) if first[i] > low + gap):
                for j in (j for j in range(rows_out) if last[j] < high - gap):
                    assert last[j] - first[i] + 1 == field + jump * (j - i), row
                    compared += 1
    return compared


def conv(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs), nn.GELU())


def functional():
    """Functions in place of modules, a layer that is used twice, layers that run in another order."""

    def run(x, head, twice, stem):
        x = F.max_pool2d(F.relu(stem(x)), 2)
        x = torch.max_pool2d(twice(F.dropout(F.leaky_relu(twice(x)) * 2)), 3, stride=1, padding=1)
        x = F.avg_pool2d(F.conv2d(x, twice.weight[:, :1], None, 1, 1, 1, 4), kernel_size=2)
        return F.log_softmax(head(x.mean(dim=(2, 3))), dim=1)

    return Apply(run, nn.Linear(4, 10), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3))


def vgg(letter):
    config = [c if c == "M" else c // 16 for c in torchvision.models.vgg.cfgs[letter]]
    return torchvision.models.vgg.make_layers(config)


same = nn.Conv2d(4, 4, 5, padding="same")
paths = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 1, 5, padding=2), nn.MaxPool2d(3, 1, 1)


@pytest.mark.parametrize(
    ("layers", "arguments"),
    [
        *(([STEPS[number].net()], []) for number in (1, 2, 3)),
        *(([prior_net(PRIOR_NETS[letter])], []) for letter in "AF"),
        ([nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
          nn.Flatten(), nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)], []),
        ([functional()], [(28, 40), 2]),
        ([torchvision.models.resnet18()], [(48, 32), 3]),
        (vgg("A"), [(64, 32), 3]),
        ([nn.Conv2d(1, 4, (3, 5), (1, 2), (2, 0)), nn.AvgPool2d((2, 1)), nn.Flatten(), nn.LazyLinear(5),
          nn.Linear(5, 2)], [(20, 40)]),
        ([nn.Conv2d(2, 4, 3, groups=2, padding="same", padding_mode="reflect"), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
          nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 4, 4, 2), nn.AdaptiveAvgPool2d((5, 11))], [(38, 42), 2]),
        ([nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3),
          Apply(lambda x, c, d: F.pad(c(x), (0, 0, 1, 1))[:, :, 1:-1] + d(x), nn.Conv2d(4, 4, 5, padding=2), same),
          Apply(lambda x, c: x * c(F.adaptive_avg_pool2d(x, 1)).sigmoid(), nn.Conv2d(4, 4, 1)), conv(4, 4)], []),
        ([conv(1, 4, stride=2), Apply(lambda x, *b: torch.cat([f(x) for f in b], 1), *paths), conv(7, 4)], [(40, 41)]),
        ([conv(1, 4), Apply(lambda x: F.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 1, 1))), conv(6, 4)], [(28, 41)]),
        ([conv(1, 4), Apply(lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)[..., 1:]), conv(4, 4)], []),
        ([conv(1, 4), Apply(lambda x: torch.stack([x, x.square()]).mean(0).squeeze()), conv(4, 4)], []),
        ([conv(1, 4), Apply(lambda x: torch.cat([x.flatten(2).mean(2), x.amax((2, 3))], 1)), nn.Linear(8, 3)], []),
    ],
)  # fmt: skip
def test_fields_are_as_measured(layers, arguments):
    assert check(nn.Sequential(*layers), *arguments) > 20


@pytest.mark.parametrize("seed", range(12))
def test_fields_of_random_chains_are_as_measured(seed):
    draw, layers, channels = random.Random(seed), [], 1
    for _ in range(draw.randint(2, 5)):
        kernel, stride = draw.choice([1, 2, 3, (3, 2), (1, 4)]), draw.choice([1, 1, 2, (1, 2)])
        padding, dilation = draw.choice([0, min(both(kernel)) // 2]), draw.choice([1, 1, 2])
        kind = draw.choice([nn.Conv2d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, "slice", "join"])
        if kind is nn.Conv2d:
            layers += [nn.Conv2d(channels, 2, kernel, stride, padding, dilation), nn.ReLU()]
            channels = 2
        elif kind == "slice":
            layers.append(Apply(lambda x: x[:, :, 1:, ::2]))
        elif kind == "join":
            wide = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            layers.append(Apply(lambda x, wide: x + wide(x), wide))
        else:
            layers.append(kind(kernel, stride, padding))
    check(nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)), (44, 52), gaps=True)


@pytest.mark.parametrize(
    ("name", "field"),
    [("resnet18", 435), ("resnet50", 427), ("mobilenet_v2", 491), ("densenet121", 2071), ("vgg16", 212)],
)
def test_published_fields_before_the_last_average(name, field):
    """Those of Araujo, Norris and Sim; torchvision's ResNet-50 strides in its 3x3 convolutions."""
    rows = receptive_field(vgg("D") if name == "vgg16" else torchvision.models.get_model(name), 32, 3)
    before = [row for row in rows if row.name not in ("avgpool", "adaptive_avg_pool2d", "fc", "classifier")]
    assert max(row.receptive_field for row in before) == field


def test_a_row_follows_the_rule():
    layers = nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), dilation=(1, 4))
    net = nn.Sequential(*layers, Apply(torch.log), nn.Flatten(), nn.LazyLinear(5), nn.Linear(5, 2))
    assert receptive_field(net, (28, 41)) == [
        LayerField("input", 1, 1, 0, 1, (28, 41), 1, 1, 1),
        LayerField("0", 5, 3, 0, 1, (8, 13), 4, 3, 5),
        LayerField("1", (3, 2), (2, 1), (1, 0), (1, 4), (4, 9), 6, (6, 3), (5 + 2 * 3, 5 + 4 * 3)),
        LayerField("4", (4, 9), 1, 0, 1, 1, 5, (6, 3), (11 + 3 * 6, 17 + 8 * 3)),
        LayerField("5", 1, 1, 0, 1, 1, 2, (6, 3), (29, 41)),
    ]


def test_rows_are_those_of_layers_in_the_order_in_which_they_run():
    for number in STEPS:
        rows = receptive_field(STEPS[number].net())
        assert [row.name for row in rows] == "input conv1 pool conv2 conv3 pool conv4 pool head".split()
        assert [row.receptive_field for row in rows] == [1, 3, 4, 8, 12, 14, 22, 26, 26 + 2 * 8]
    names = "input layers.2 max_pool2d layers.1 layers.1 max_pool2d conv2d avg_pool2d mean layers.0".split()
    assert [row.name for row in receptive_field(functional(), 28, 2)] == names


def test_the_table_is_aligned_and_leaves_out_what_no_layer_has():
    assert receptive_field_table(receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d((2, 1))))) == (
        "| layer | kernel | stride |  size | jump | field |\n"
        "|-------|-------:|-------:|------:|-----:|------:|\n"
        "| input |      1 |      1 |    28 |    1 |     1 |\n"
        "| 0     |      3 |      1 |    26 |    1 |     3 |\n"
        "| 1     |    2x1 |    2x1 | 13x26 |  2x1 |   4x3 |"
    )
    heading = receptive_field_table(receptive_field(nn.Conv2d(1, 2, 3, padding=2, dilation=2))).splitlines()[0]
    assert heading.replace(" ", "") == "|layer|kernel|stride|dilation|size|jump|field|"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Apply(lambda x, heads: heads(x[0], x[0], x[0])[0], nn.MultiheadAttention(26, 2)),
         r"1\.layers\.0 \(MultiheadAttention\): its effect"),
        (nn.GroupNorm(2, 4), r"1 \(GroupNorm\): its effect"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"1 \(BatchNorm2d\): its effect"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), r"1 \(Conv2d\): its effect"),
        (nn.AdaptiveAvgPool2d(4), r"1 \(AdaptiveAvgPool2d\): its effect"),
        (nn.MaxPool3d((1, 2, 2), 1, 0, (1, 2, 2)), r"1 \(MaxPool3d\): its effect"),
        (nn.Softmax(3), r"1 \(Softmax\): its effect"),
        (Apply(lambda x: F.interpolate(x, scale_factor=2)), "interpolate: its effect"),
        (Apply(lambda x: F.conv2d(x, x[:, :, :3, :3])), "conv2d: it joins"),
        (Apply(lambda x: x.transpose(2, 3)), "transpose: its effect"),
        (Apply(lambda x: x * x[0, 0, 0, 0].item()), "item: its effect"),
        (Apply(lambda x: x * (x > 1)), "gt: its effect"),
        (Apply(lambda x, c: torch.zeros(2, 4, 26, 26).add_(c(x)), same), "add_: it writes"),
        (Apply(lambda x: torch.cat([x[:, :2, 1:], x[:, 2:, :-1]], 1)), "cat: it joins"),
        (Apply(lambda x: x[:, :, 1:] + x[:, :, :-1]), "add: it joins"),
        (Apply(lambda x: x[:, :, 6:19, 6:19] + F.max_pool2d(x, 2)), "add: it joins"),
        (Apply(lambda x: x if x.sum() > 0 else -x), "Sequential: it cannot be traced: .* control flow"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(between, reason):
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), between, nn.Conv2d(4, 4, 3)))
    assert "\n" not in str(caught.value)


def test_a_net_that_rejects_the_image_is_an_error():
    with pytest.raises(ValueError, match=r"^_assert: the nets of this project take images of 28x28"):
        receptive_field(STEPS[1].net(), 26)
    with pytest.raises(ValueError, match=r"^conv1 \(Conv2d\): .* to have 1 channels, but got 3"):
        receptive_field(STEPS[1].net(), channels=3)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        receptive_field(nn.Conv2d(1, 1, 3), 0)


def state(net):
    """All that a caller may see of a net, and PyTorch's random numbers."""
    modules = [(type(m), m.training, [*m._forward_hooks], [*vars(m)]) for m in net.modules()]
    return modules, [(name, t.tolist()) for name, t in net.state_dict().items()], torch.get_rng_state().tolist()


class Optional(nn.Module):
    """Leaves its wide layer out if it is given a state."""

    def __init__(self, asks):
        super().__init__()
        self.asks, self.narrow, self.wide = asks, nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 9)

    def forward(self, x, state=None):
        x = self.narrow(x)
        return self.wide(x) if self.asks(x, state) else x


def test_optional_arguments_have_their_defaults_and_what_tells_a_trace_from_a_tensor_is_refused():
    assert receptive_field(Optional(lambda x, state: state is None))[-1].receptive_field == 11
    assert receptive_field(Optional(lambda x, state: state is not None))[-1].receptive_field == 3
    assert receptive_field(Optional(lambda x, state: torch.is_grad_enabled()))[-1].receptive_field == 3
    with pytest.raises(ValueError, match="Optional: it cannot be traced: the trace computes something else"):
        receptive_field(Optional(lambda x, state: isinstance(x, torch.Tensor)))


@pytest.mark.parametrize("last", [F.dropout, torch.sort])
def test_the_net_is_left_as_it_was(last):
    net = nn.Sequential(STEPS[2].net(), nn.Dropout(), Apply(lambda x: last(x.unflatten(1, (2, 5))[0]))).train()
    net[0].norm1.eval()
    net[0].conv1.register_forward_hook(lambda module, inputs, output: output * 2)
    before = state(net)
    if last is torch.sort:
        with pytest.raises(ValueError, match="sort"):
            receptive_field(net)
    else:
        assert len(receptive_field(net)) == 9
    assert state(net) == before
