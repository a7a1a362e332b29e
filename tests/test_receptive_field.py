"""The receptive-field table: published tables, hand-made cases, refusals."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from experiments.nets import prior_net
from model import STEPS
from utils import LayerField, receptive_field, receptive_field_table


def conv(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def fields(model, size=28, channels=1):
    return [row.receptive_field for row in receptive_field(model, size, channels)]


def pair(field):
    return field if isinstance(field, tuple) else (field, field)


class Apply(nn.Module):
    """Any function of the input and of layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


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


@pytest.mark.parametrize(
    ("net", "expected", "sizes"),
    [
        (prior_net("c8 c16 k8 P c16 c16 c16 k16 GAP k10"), [1, 3, 5, 5, 6, 10, 14, 18, 18, 28, 28],
         [28, 26, 24, 24, 12, 10, 8, 6, 6, 1, 1]),
        (prior_net("c10 c16 c8 P c16 c16 c16 GAP k10"), [1, 3, 5, 7, 8, 12, 16, 20, 28, 28],
         [28, 26, 24, 22, 11, 9, 7, 5, 1, 1]),
        (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2)), [1, 3, 5], [28, 14, 7]),
        (nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=5)), [1, 3, 5],
         [28, 32, 40]),
    ],
)  # fmt: skip
def test_published_tables_with_global_average_pooling_and_hand_made_ones(net, expected, sizes):
    rows = receptive_field(net.eval())
    assert [row.receptive_field for row in rows] == expected
    assert [row.size_out for row in rows] == sizes


@pytest.mark.parametrize(
    ("name", "field"), [("resnet18", 435), ("resnet50", 427), ("mobilenet_v2", 491), ("densenet121", 2071)]
)
def test_published_nets(name, field):
    """The largest field before the global average; torchvision's ResNet-50 strides in its 3x3 convolutions."""
    rows = receptive_field(torchvision.models.get_model(name), 224, channels=3)
    assert max(row.receptive_field for row in rows) == field
    assert (rows[-1].receptive_field, rows[-1].channels_out) == (224, 1000)


def test_published_inception_and_vgg():
    inception = torchvision.models.inception_v3(init_weights=False)
    assert max(max(pair(field)) for field in fields(inception, 299, 3)) == 1311
    assert fields(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]), 224, 3)[-1] == 212


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, [3, 5, 6, 10, 14, 16, 28]), (2, [3, 5, 6, 10, 14, 18, 28, 28]), (3, [1, 3, 4, 8, 12, 14, 22, 26, 24])],
)
def test_the_three_nets(step, expected):
    rows = receptive_field(STEPS[step].net())
    assert [row.receptive_field for row in rows[1:]] == expected
    assert (rows[-1].name, rows[-1].size_out, rows[-1].channels_out) == ("head", 1, 10)


def test_a_layer_that_redraws_the_image_starts_anew():
    deslant = STEPS[3].net().deslant
    rows = receptive_field(nn.Sequential(deslant, nn.Conv2d(1, 2, 3)), (28, 32))
    assert [row.receptive_field for row in rows] == [1, 1, 3]
    assert (rows[1].padding, rows[1].size_out) == (-2, (24, 28))
    with pytest.raises(ValueError, match=r"1 \(Deslant\): only the first layer"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), deslant))
    with pytest.raises(ValueError, match="as it was and as it was redrawn"):
        receptive_field(Apply(lambda x, d: torch.cat([d(x), x[:, :, 2:-2, 2:-2]], 1), deslant))


def test_a_linear_head_has_the_map_for_a_kernel():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Flatten(), nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, 10))
    rows = receptive_field(net, (28, 41))
    assert rows[:2] == [
        LayerField("input", 1, 1, 0, 1, (28, 41), (28, 41), 1, 1, 1),
        LayerField("0", 3, 2, 0, 1, (28, 41), (13, 20), 4, 2, 3),
    ]
    assert rows[2] == LayerField("2", (13, 20), 1, 0, 1, (13, 20), 1, 20, 2, (27, 41))  # the stride leaves one row out
    assert rows[3] == LayerField("4", 1, 1, 0, 1, 1, 1, 10, 2, (27, 41))


def test_views_stacked_in_the_batch_are_seen_by_one_head():
    moves = (0, 0, -1, 1), (1, -1, 0, 0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 5, 2, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 10))
    views = Apply(lambda x, net: net(torch.cat([F.pad(x, move) for move in moves])).view(2, -1, 10).mean(0), layers)
    assert fields(views) == fields(layers) == [1, 5, 7, 28]


def test_dilation_stride_and_rectangular_kernels():
    net = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=(1, 2), dilation=(2, 1), padding=(1, 0)),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(4, 4, 3, dilation=3),
        nn.AvgPool2d((2, 1)),
    )
    rows = receptive_field(net, (28, 40), channels=3)
    assert [row.kernel for row in rows[1:]] == [(3, 5), 3, 3, (2, 1)]
    assert [row.stride for row in rows[1:]] == [(1, 2), 1, 1, (2, 1)]
    assert [row.padding for row in rows[1:]] == [(1, 0), 1, 0, 0]
    assert [row.dilation for row in rows[1:]] == [(2, 1), 1, 3, 1]
    assert [row.size_out for row in rows] == [(28, 40), (26, 18), (26, 18), (20, 12), (10, 12)]
    assert [row.jump for row in rows] == [1, (1, 2), (1, 2), (1, 2), 2]
    assert [row.receptive_field for row in rows] == [1, 5, (7, 9), (13, 21), (14, 21)]
    assert rows[0].channels_out == 3


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_any_kind_counts_alike(mode):
    net = nn.Sequential(*(nn.Conv2d(n, 2, 3, 2, padding=1, padding_mode=mode) for n in (1, 2, 2, 2)), nn.Flatten())
    assert fields(net) == [1, 3, 7, 15, 31]
    mode = mode.replace("zeros", "constant")
    assert fields(Apply(lambda x, c: c(F.pad(x, (1, 2, 0, 3), mode)), conv(1, 2))) == [1, 3]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_head_on_nothing_but_padding_sees_the_pixels_that_it_repeats(mode):
    net = nn.Sequential(Apply(lambda x: F.pad(x, (0, 0, 3, 3), mode)[:, :, :3]), nn.Flatten(), nn.LazyLinear(3))
    assert fields(net)[-1] == (3, 28)


@pytest.mark.parametrize(("outputs", "kernel", "stride"), [(1, 26, 26), (2, 13, 13), (5, 6, 5), (13, 2, 2), (26, 1, 1)])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_adaptive_pooling(pool, outputs, kernel, stride):
    row = receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), pool(outputs)))[-1]
    assert (row.kernel, row.stride, row.size_out, row.receptive_field) == (kernel, stride, outputs, kernel + 2)
    assert fields(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), pool(1)))[-1] == 28


def functional(x, head, twice, stem):
    """Poolings and a mean that are not modules, a layer used twice, layers that run in another order."""
    x = F.max_pool2d(F.relu(stem(x)), 2)
    x = twice(F.dropout(F.leaky_relu(twice(x)) * 2))
    return F.log_softmax(head(x.mean(dim=(2, 3))), dim=1)


def test_functional_layers_count_too_in_the_order_in_which_they_run():
    net = Apply(functional, nn.Linear(4, 10), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3))
    rows = receptive_field(net, channels=2)
    assert [row.name.removeprefix("layers.") for row in rows] == ["input", "2", "max_pool2d", "1", "1", "mean", "0"]
    assert [row.receptive_field for row in rows] == [1, 3, 4, 8, 12, 28, 28]


def shift(x):
    out, half = x.clone(), x.shape[1] // 2
    out[:, :half, 2:] = x[:, half:, :-2]
    return out


def add_to_a_slice(x, layer):
    x[:, :2] += layer(x)[:, :2]
    return x


wide = nn.Conv2d(4, 4, 7, padding=3)


@pytest.mark.parametrize(
    ("between", "last"),
    [
        (Apply(shift), (7, 5)),
        (Apply(add_to_a_slice, wide), 11),
        (Apply(lambda x, c: (x.data[:, :1].copy_(c(x)[:, :1]), x)[1], wide), 11),
        (Apply(lambda x, c: torch.zeros_like(x).copy_(c(x)), wide), 11),
        (Apply(lambda x: x.view(-1, 4, 26, 26)), 5),
        (Apply(lambda x: x.flatten(1).reshape(-1, 4, 26, 26)), 5),
        (Apply(lambda x: F.dropout(F.dropout2d(x))), 5),
        (Apply(lambda x: x + torch.randn_like(x)), 5),
        (Apply(lambda x: x.masked_fill_(x < 0, 0)), 5),
        (Apply(lambda x: torch.where(x > 0, x, 0.1 * x)), 5),
        (Apply(lambda x: x.softmax(1)), 5),
        (Apply(lambda x, c: torch.cat([x.chunk(2, 1)[0], c(x[:, 2:])], 1), nn.Conv2d(2, 2, 5, padding=2)), 9),
        (Apply(lambda x: torch.cat([x[:, 2:], x[:, :2]], 1)), 5),
        (Apply(lambda x: F.pad(x[:, :2], (0, 0, 0, 0, 1, 1))), 5),
        # A grouped convolution keeps the wide field of two channels from the other two.
        (Apply(lambda x, c, d: d(torch.cat([c(x)[:, :2], x[:, 2:]], 1))[:, 2:].repeat(1, 2, 1, 1), wide,
               nn.Conv2d(4, 4, 3, groups=2)), 7),
        (Apply(lambda x: x[:, :, ::2, ::2]), 7),
        (Apply(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), 5),
        (Apply(lambda x, c: x + c(x), wide), 11),
        # In pixels of the map, one branch sees -1 to 1 and the other -4 to 0: together 6 of them.
        (Apply(lambda x, c, d: c(x) + d(x), nn.Conv2d(4, 4, 3, padding=1),
               nn.Sequential(nn.ZeroPad2d((4, 0, 4, 0)), nn.Conv2d(4, 4, 5))), 10),
        (nn.Linear(26, 26), (5, 28)),
        (nn.GroupNorm(2, 4), 28),
        (nn.InstanceNorm2d(4), 28),
        (nn.BatchNorm2d(4, track_running_stats=False), 28),
        (Apply(lambda x: x + x.mean((2, 3), keepdim=True)), 28),
        (Apply(lambda x, c: x * torch.sigmoid(c(F.adaptive_avg_pool2d(x, 1))), nn.Conv2d(4, 4, 1)), 28),
        (torch.jit.script(conv(4, 4)), 7),
        (torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), 7),
    ],
)  # fmt: skip
def test_what_lies_between_two_layers_is_followed(between, last):
    assert fields(nn.Sequential(nn.Conv2d(1, 4, 3), between, nn.Conv2d(4, 4, 3)))[-1] == last


@pytest.mark.parametrize(
    "average", [lambda x: x.flatten(2).mean(2), lambda x: x.amax((2, 3)), lambda x: F.avg_pool2d(x, 26).squeeze()]
)
def test_a_global_average_by_any_way_is_followed_by_its_head(average):
    rows = receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), Apply(average), nn.Linear(4, 10)))
    assert [(row.kernel, row.receptive_field) for row in rows] == [(1, 1), (3, 3), (26, 28), (1, 28)]


def test_the_table_reaches_the_output():
    rows = receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)))
    assert [(row.name, row.receptive_field) for row in rows[1:]] == [("0", 3), ("output", 28)]


def catch_the_refusal(x):
    try:
        return torch.zeros(x.shape).copy_(x)
    except ValueError:
        return x


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Apply(lambda x: torch.zeros(x.shape).copy_(x)), "tensor of its own"),
        (Apply(catch_the_refusal), "tensor of its own"),
        (Apply(lambda x: torch.from_numpy(x.detach().cpu().numpy() * 2)), "cannot be followed"),
        (Apply(lambda x, c: (setattr(x, "data", c(x)), x)[1], wide), "cannot be followed"),
        (Apply(lambda x: [y := torch.zeros(x.shape), setattr(y, "data", x)][0]), "cannot be followed"),
        (Apply(lambda x: torch.from_dlpack(x)), "cannot be followed|depends on the values"),
        (Apply(lambda x: torch.tensor(x.tolist())), "cannot be followed"),
        (Apply(lambda x: x * x.mean().item()), "depends on the values"),
        (Apply(lambda x: x if x.sum() > 0 else -x), "depends on the values"),
        (Apply(lambda x: x[:, :, x[0, 0, 0].argsort()]), "not known"),
        (Apply(lambda x: x[x > 0].view(1, 4, 26, 26)), "depends on the values"),
        (Apply(lambda x: x.view(torch.int32)), "not known"),
        (nn.Upsample(scale_factor=2), "not known"),
        (nn.ConvTranspose2d(4, 4, 3), "not known"),
        (nn.FractionalMaxPool2d(2, output_ratio=0.5), "not known"),
        (nn.LocalResponseNorm(2), "not known"),
        (Apply(lambda x: F.scaled_dot_product_attention(x, x, x)), "not known"),
        (Apply(lambda x: F.conv2d(x, x[:, :, :3, :3])), "not known"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)), "not known"),
        (nn.AdaptiveAvgPool2d(4), "26 pixels to 4 has no single kernel and stride"),
        (nn.AdaptiveMaxPool2d(4), "26 pixels to 4 has no single kernel and stride"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(between, reason):
    with pytest.raises(ValueError, match=rf"^1[.\w]* \(({type(between).__name__}|Conv1d)\): .*({reason})") as caught:
        receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), between))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(3),
        lambda x: x.roll(13, dims=3),
        lambda x: x.flatten(1).view(-1, 4, 13, 52),
        lambda x: x + F.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),
        lambda x: F.pixel_shuffle(x, 2),
    ],
)
def test_a_window_on_areas_that_are_not_evenly_spaced_is_refused(between):
    with pytest.raises(ValueError, match=r"^2 \(LazyConv2d|Conv2d\): the areas .* not evenly spaced"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), Apply(between), nn.LazyConv2d(4, 3)))


def fail(x):
    raise AssertionError("made to fail\nwith two lines")


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        (STEPS[1].net(), {"input_size": 4}, r"conv2 \(Conv2d\): it does not take .* 4x4 pixels and 1 channel:"),
        (STEPS[1].net(), {"channels": 3}, r"conv1 \(Conv2d\): .* 28x28 pixels and 3 channels"),
        (STEPS[1].net(), {"input_size": 0}, "at least 1 pixel"),
        (Apply(fail), {}, r"the model \(Apply\): .*made to fail$"),
        (Apply(lambda x: torch.ones(1, 4, 3, 3)), {}, "does not depend on the image"),
        (Apply(item for item in "generator"), {}, "^the model cannot be copied: .*generator"),
    ],
)
def test_a_model_that_does_not_run_is_an_error(model, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        receptive_field(model, **arguments)


def state(model):
    """All that a caller may see of a model, and PyTorch's hooks and random numbers."""
    modules = [(type(m), m.training, [*m._forward_hooks], [*m._forward_pre_hooks], [*vars(m)]) for m in model.modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    values = [(name, type(t), None if nn.parameter.is_lazy(t) else t.tolist()) for name, t in tensors]
    hooks = [[*nn.modules.module._global_forward_hooks], [*nn.modules.module._global_forward_pre_hooks]]
    return modules, values, hooks, torch.get_rng_state().tolist()


class Restless(nn.Module):
    """Changes all that a forward pass can change, and fails if it is told to."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.calls, self.kept = fails, 0, torch.ones(1, requires_grad=True) * 2
        self.norm = nn.BatchNorm2d(1, momentum=None).train()

    def forward(self, x):
        self.calls, self.kept, self.new = self.calls + 1, x, x
        self.norm.running_mean.add_(1)
        self.norm.train()
        if self.fails:
            raise RuntimeError("made to fail")
        return F.relu(x)


half_trained = STEPS[2].net().train()
half_trained.norm1.eval()
half_trained.conv1.register_forward_hook(lambda module, inputs, output: output * 2)
lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))
closure = nn.LazyBatchNorm2d()


@pytest.mark.parametrize(
    ("model", "works"),
    [
        (half_trained, True),
        (lazy, True),
        (nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyConvTranspose2d(4, 3)), False),
        (torch.jit.script(conv(1, 4)), True),
        (torch.jit.trace(conv(1, 4).eval(), torch.zeros(1, 1, 28, 28)), True),
        (Restless(fails=False), True),
        (nn.Sequential(conv(1, 1), Restless(fails=True)), False),
        (Apply(lambda x, _: closure(x), closure), False),
    ],
)
def test_the_model_is_left_as_it_was(model, works):
    before = state(model)
    if works:
        assert receptive_field(model)
    else:
        with pytest.raises(ValueError, match=r"^[\w ]+ \(\w+\): "):
            receptive_field(model)
    assert state(model) == before
    assert getattr(model, "calls", 0) == 0


def test_table_is_aligned_markdown():
    lines = receptive_field_table(receptive_field(nn.Conv2d(1, 2, (3, 1)))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == "name"
    assert [cell.strip() for cell in lines[-1].split("|")[2:4]] == ["3x1", "1"]
