"""The receptive-field table against fields that are measured, against published tables, and its refusals."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from experiments.nets import prior_net
from model import STEPS
from utils import LayerField, receptive_field, receptive_field_table


class Apply(nn.Module):
    """Any function of the input and of layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs), nn.ReLU())


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


def measure(net, size, channels):
    """For each layer and axis: the first and the last row of the image that each of its rows depends on.

    A row of NaN goes into each image, and spreads to all that depends on it. In float64 no convolution takes shortcuts.
    """
    net, measured = copy.deepcopy(net).double().eval(), []
    for axis, pixels in enumerate(size):
        images = torch.rand(pixels, channels, *size, dtype=torch.float64)
        for i, image in enumerate(images):
            image.select(axis + 1, i).fill_(torch.nan)
        with torch.no_grad(), Outputs() as outputs:
            net(images)
        seen = [m[:pixels].isnan().any(1).any(2 - axis) for m in outputs.maps]  # (pixels, rows); of the first view
        row = torch.arange(pixels)[:, None]
        measured.append([(torch.where(s, row, pixels).amin(0), torch.where(s, row, -1).amax(0)) for s in seen])
    return zip(*measured, strict=True)


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def check(net, size=(28, 28), channels=1, gaps=False):
    """Compare each row with what is measured; returns the number of comparisons of fields that lie within the image.

    With gaps in what an output sees, as by dilation, an output near the border may not show that its field is cut.
    """
    rows, compared = receptive_field(net, size, channels), 0
    measured = [*measure(net, size, channels)]
    assert len(rows) == len(measured) + 1
    for axis in (0, 1):
        layers = [layer[axis] for layer in measured]
        low, high, gap = min(int(a.min()) for a, _ in layers), max(int(b.max()) for _, b in layers), 0
        for row, (first, last) in zip(rows[1:], layers, strict=True):
            field, jump, rows_out = both(row.receptive_field)[axis], both(row.jump)[axis], both(row.size_out)[axis]
            gap = max(gap, both(row.dilation)[axis] * jump * gaps)
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


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip


def functional(x, head, twice, stem):
    """Functions in place of modules, a layer that is used twice, layers that run in another order."""
    x = F.max_pool2d(F.relu(stem(x)), 2)
    x = torch.max_pool2d(twice(F.dropout(F.leaky_relu(twice(x)) * 2)), 3, stride=1, padding=1)
    x = F.avg_pool2d(F.conv2d(x, twice.weight[:, :1], None, 1, 1, 1, 4), kernel_size=2)
    return F.log_softmax(head(x.mean(dim=(2, 3))), dim=1)


def excite(x, down, up):
    return x * torch.sigmoid(up(F.relu(down(F.adaptive_avg_pool2d(x, 1)))))


def shuffle(x):
    x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.view(x.size(0), 2, 2, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)


def vgg(letter):
    config = [c if c == "M" else c // 16 for c in torchvision.models.vgg.cfgs[letter]]
    return torchvision.models.vgg.make_layers(config)


same = nn.Conv2d(4, 4, 5, padding=2)
paths = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 1, 5, padding=2), nn.MaxPool2d(3, 1, 1)


@pytest.mark.parametrize(
    ("layers", "arguments"),
    [
        *(([STEPS[number].net()], []) for number in (1, 2, 3)),
        ([*STEPS[1].net().children()][:-2], [(64, 64)]),
        (lenet(), []),
        ([torchvision.models.resnet18()], [(64, 32), 3]),
        (vgg("A"), [(96, 64), 3]),
        (prior_net("c8 c16 k8 P c16 c16 c16 k16 GAP k10"), []),
        (prior_net("c10p c10p c10p P c16 c16 c8 c8 k8 k16 GAP lin"), []),
        ([Apply(functional, nn.Linear(4, 10), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3))], [(28, 40), 2]),
        ([nn.Conv2d(1, 4, (3, 5), (1, 2), (2, 0)), nn.AvgPool2d((2, 1)), nn.Flatten(), nn.LazyLinear(5),
          nn.Linear(5, 2)], [(20, 40)]),
        ([nn.Conv2d(2, 4, 3, groups=2, padding="same"), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
          nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 4, 4, 2), nn.AdaptiveAvgPool2d((5, 11))], [(38, 42), 2]),
        ([nn.Conv2d(1, 4, 3, 2, 1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, 2, 1, padding_mode="replicate")], []),
        ([nn.Conv2d(1, 4, 3), Apply(lambda x, c: x + c(x), same), Apply(excite, nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)),
          nn.Conv2d(4, 2, 3), nn.Conv2d(2, 10, 24)], []),
        ([conv(1, 4, stride=2), Apply(lambda x, *b: torch.cat([f(x) for f in b], 1), *paths), conv(7, 4)], [(40, 41)]),
        ([conv(1, 4), Apply(lambda x: F.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 1, 1))), conv(6, 4)], [(28, 41)]),
        ([conv(1, 4), Apply(shuffle), Apply(lambda x: x[:, :, 1:-1] * x.mean(1, True)[:, :, 1:-1]), conv(4, 4)], []),
        ([conv(1, 4), Apply(lambda x: torch.stack([x, 2 * x]).mean(0).squeeze()), nn.MaxPool2d(2), conv(4, 4)], []),
        ([conv(1, 4), Apply(lambda x: torch.cat([x.flatten(2).mean(2), x.amax((2, 3))], 1)), nn.Linear(8, 3)], []),
    ],
)  # fmt: skip
def test_fields_are_as_measured(layers, arguments):
    assert check(nn.Sequential(*layers), *arguments) > 20


@pytest.mark.parametrize("seed", range(30))
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
    ("net", "expected", "sizes"),
    [
        (STEPS[1].net(), [1, 3, 4, 8, 12, 14, 22, 26, 42], [28, 24, 12, 12, 12, 6, 6, 3, 1]),
        (STEPS[3].net(), [1, 3, 4, 8, 12, 14, 22, 26, 42], [28, 24, 12, 12, 12, 6, 6, 3, 1]),
        (prior_net("c8 c16 k8 P c16 c16 c16 k16 GAP k10"), [1, 3, 5, 5, 6, 10, 14, 18, 18, 28, 28],
         [28, 26, 24, 24, 12, 10, 8, 6, 6, 1, 1]),
        (prior_net("c10 c16 c8 P c16 c16 c16 GAP k10"), [1, 3, 5, 7, 8, 12, 16, 20, 28, 28],
         [28, 26, 24, 22, 11, 9, 7, 5, 1, 1]),
        (lenet(), [1, 5, 6, 14, 16, 28, 28, 28], [28, 24, 12, 8, 4, 1, 1, 1]),
        (nn.Conv2d(1, 2, 28), [1, 28], [28, 1]),
    ],
)  # fmt: skip
def test_published_tables_and_those_of_the_project(net, expected, sizes):
    rows = receptive_field(net)
    assert [row.receptive_field for row in rows] == expected
    assert [row.size_out for row in rows] == sizes


@pytest.mark.parametrize(
    ("name", "field"), [("resnet18", 435), ("resnet50", 427), ("mobilenet_v2", 491), ("densenet121", 2071)]
)
def test_published_fields_before_the_global_average(name, field):
    """Those of Araujo, Norris and Sim; torchvision's ResNet-50 strides in its 3x3 convolutions."""
    average, rows = "avgpool adaptive_avg_pool2d".split(), receptive_field(torchvision.models.get_model(name), 64, 3)
    [at] = [i for i, row in enumerate(rows) if row.name in average]
    assert max(row.receptive_field for row in rows[:at]) == field
    assert (rows[at].kernel, rows[at].receptive_field, rows[-1].channels_out) == (2, field + 32, 1000)
    assert receptive_field(vgg("D"), 32, 3)[-1].receptive_field == 212


def test_a_row_follows_the_rule():
    net = nn.Sequential(nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), dilation=(1, 4)), nn.Flatten(),
                        nn.LazyLinear(5), nn.Linear(5, 2))  # fmt: skip
    assert receptive_field(net, (28, 41)) == [
        LayerField("input", 1, 1, 0, 1, (28, 41), 1, 1, 1),
        LayerField("0", 5, 3, 0, 1, (8, 13), 4, 3, 5),
        LayerField("1", (3, 2), (2, 1), (1, 0), (1, 4), (4, 9), 6, (6, 3), (5 + 2 * 3, 5 + 4 * 3)),
        LayerField("3", (4, 9), 1, 0, 1, 1, 5, (6, 3), (11 + 3 * 6, 17 + 8 * 3)),
        LayerField("4", 1, 1, 0, 1, 1, 2, (6, 3), (29, 41)),
    ]


def test_rows_are_named_in_the_order_in_which_layers_run():
    rows = receptive_field(Apply(functional, nn.Linear(4, 10), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3)), 28, 2)
    names = "input layers.2 max_pool2d layers.1 layers.1 max_pool2d conv2d avg_pool2d mean layers.0".split()
    assert [row.name for row in rows] == names


def test_the_table_is_aligned_and_leaves_out_what_no_layer_has():
    assert receptive_field_table(receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d((2, 1))))) == (
        "| layer | kernel | stride |  size | channels | jump | field |\n"
        "|-------|-------:|-------:|------:|---------:|-----:|------:|\n"
        "| input |      1 |      1 |    28 |        1 |    1 |     1 |\n"
        "| 0     |      3 |      1 |    26 |        2 |    1 |     3 |\n"
        "| 1     |    2x1 |    2x1 | 13x26 |        2 |  2x1 |   4x3 |"
    )
    heading = receptive_field_table(receptive_field(nn.Conv2d(1, 2, 3, padding=2, dilation=2))).splitlines()[0]
    assert heading.replace(" ", "") == "|layer|kernel|stride|padding|dilation|size|channels|jump|field|"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Apply(lambda x, heads: heads(x[0], x[0], x[0])[0], nn.MultiheadAttention(26, 2)),
         r"1\.layers\.0 \(MultiheadAttention\): its effect"),
        (nn.Upsample(scale_factor=2), r"1 \(Upsample\): its effect"),
        (nn.ConvTranspose2d(4, 4, 3), r"1 \(ConvTranspose2d\): its effect"),
        (nn.GroupNorm(2, 4), r"1 \(GroupNorm\): its effect"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"1 \(BatchNorm2d\): its effect"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), r"1 \(Conv2d\): its effect"),
        (nn.AdaptiveAvgPool2d(4), r"1 \(AdaptiveAvgPool2d\): it divides 26 pixels into 4"),
        (nn.Softmax(3), r"1 \(Softmax\): it joins some"),
        (nn.Linear(26, 26), r"2 \(Conv2d\): its input is no map"),
        (Apply(lambda x: F.interpolate(x, scale_factor=2)), "interpolate: its effect"),
        (Apply(lambda x: x @ x), "matmul: its effect"),
        (Apply(lambda x: F.conv2d(x, x[:, :, :3, :3])), "conv2d: its effect"),
        (Apply(lambda x: torch.fft.fft2(x).real), "fft_fft2: its effect"),
        (Apply(lambda x: x * x[:1, 0, 0, 0].item()), "item: its effect"),
        (Apply(lambda x, c: torch.zeros(2, 4, 26, 26).add_(c(x)), same), "add_: it writes"),
        (Apply(lambda x: x if x.sum() > 0 else -x), "Sequential: it cannot be traced: .* control flow"),
        (Apply(lambda x: x.transpose(2, 3)), r"2 \(Conv2d\): its input is no map"),
        (Apply(lambda x: x.flatten(1).view(-1, 4, 13, 52)), r"2 \(Conv2d\): its input is no map"),
        (Apply(lambda x: torch.cat([x[:, :2, 1:], x[:, 2:, :-1]], 1)), r"2 \(Conv2d\): its input is no map"),
        (Apply(lambda x: x[:, :, 1:] + x[:, :, :-1]), "add: it joins fields"),
        (Apply(lambda x: torch.stack([x[:, :, 1:], x[:, :, :-1]]).mean(0)), "mean: it joins some"),
        (Apply(lambda x: x.permute(2, 0, 1, 3).mean(0)), "mean: it joins some"),
        (Apply(lambda x: x[:, :, 6:19, 6:19] + F.max_pool2d(x, 2)), "add: it joins fields"),
        (Apply(lambda x, c: torch.cat([x[:, :, 2:].flatten(1), c(x).flatten(1)], 1), same), "cat: it joins"),
        (Apply(lambda x: torch.ones(2, 4, 8, 8)), "output: it does not depend on the image"),
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
        receptive_field(lenet(), 0)


def state(net):
    """All that a caller may see of a net, and PyTorch's random numbers."""
    modules = [(type(m), m.training, [*m._forward_hooks], [*vars(m)]) for m in net.modules()]
    return modules, [(name, t.tolist()) for name, t in net.state_dict().items()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_the_net_is_left_as_it_was(fails):
    net = nn.Sequential(
        STEPS[2].net(), nn.Dropout(), Apply(lambda x: F.dropout(x) if not fails else x.sort()[0])
    ).train()
    net[0].norm1.eval()
    net[0].conv1.register_forward_hook(lambda module, inputs, output: output * 2)
    before = state(net)
    if fails:
        with pytest.raises(ValueError, match="sort"):
            receptive_field(net)
    else:
        assert len(receptive_field(net)) == 9
    assert state(net) == before
