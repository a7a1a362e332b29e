"""The nets and the steps: the table of shapes and parameters, the views, gradients, and how the steps differ."""

import re
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model
from model import STEPS, FinalNet, RegularizedNet, SetupNet, crop
from utils import count_parameters

NETS = [SetupNet, RegularizedNet, FinalNet]
# "conv1    8 x 24 x 24    1 *  8 * 3 * 3 =   72          8                16"
ROW = re.compile(r"^(\w+) +(\d+(?: x +\d+)*)(?: +([\d *]+) = +(\d+) +(\d+) +(\d+).*)?$", re.MULTILINE)
ROWS = ROW.findall(model.__doc__)


@pytest.mark.parametrize(("net", "column"), [(SetupNet, 4), (RegularizedNet, 5), (FinalNet, 5)])
def test_the_table_adds_up_the_parameters(net, column):
    counts, told = {}, {row[0]: [int(row[3]), int(row[column])] for row in ROWS if row[2]}
    for name, parameter in net().named_parameters():
        weight = name.endswith("weight") and not name.startswith("norm")
        layer = name.partition(".")[0].replace("norm", "conv")
        counts.setdefault(layer, [0, 0])[0 if weight else 1] += parameter.numel()
    assert counts == told
    assert all(eval(row[2]) == int(row[3]) for row in ROWS if row[2])
    totals = [int(n) for n in re.findall(r"\d+", re.search(r"^total .*$", model.__doc__, re.M)[0])]
    weights, others = (sum(values) for values in zip(*told.values(), strict=True))
    assert [weights, others, weights + others] == [totals[0], *totals[2 * column - 7 : 2 * column - 5]]
    assert count_parameters(net()) == weights + others < 8000
    assert f"{weights + others:,} parameters" in (net.__doc__ + RegularizedNet.__doc__)


@pytest.mark.parametrize("net", NETS)
def test_the_table_tells_the_shapes(net):
    found, made = [("crop", list(crop(torch.zeros(1, 1, 28, 28)).shape[1:]))], net().train()
    for name, layer in made.named_children():
        layer.register_forward_hook(lambda _m, _i, out, name=name: found.append((name, list(out.shape[1:]))))
    made(torch.zeros(2, 1, 28, 28))
    told = [(row[0], [int(n) for n in row[1].split("x")]) for row in ROWS]
    assert told == [(name, shape) for name, shape in found if not name.startswith("norm")]


def test_views_are_shifted_crops_whose_logits_are_averaged():
    assert sorted(FinalNet().views) == [(-1, 0), (0, -1), (0, 1), (1, 0)]
    net, x = FinalNet(views=[(-1, 2), (0, 1)]).eval(), torch.rand(3, 1, 28, 28)
    views = [net.classify(F.pad(x, (-dx, dx, -dy, dy))[:, :, 2:26, 2:26]) for dy, dx in net.views]
    assert torch.allclose(net(x), torch.stack(views).mean(0), atol=1e-5)
    one, plain = FinalNet(views=[(0, 0)]).eval(), RegularizedNet().eval()
    for other in (one, plain):
        other.load_state_dict(net.state_dict())  # no view adds a parameter
    assert torch.allclose(one(x), plain(x), atol=1e-5)
    net.train(), plain.train()
    assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize("views", [[], [(3, 0)], [(0, 0), (0, -3)]])
def test_views_that_leave_the_image_are_refused(views):
    with pytest.raises(ValueError, match="views are shifts from -2 to 2"):
        FinalNet(views=views)


def test_gradients_reach_the_image_and_hooks_see_each_layer():
    net, seen = FinalNet().eval(), []
    for layer in (net.norm4, net.conv1):  # as Grad-CAM
        layer.register_full_backward_hook(lambda _module, _in, out: seen.append(out[0].shape))
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    net(x)[0, 3].backward()
    assert x.grad.abs().sum() > 0
    assert seen == [(8, 18, 3, 3), (8, 8, 24, 24)]  # four views of two images


def test_each_step_is_one_idea():
    nets, recipes = zip(*((STEPS[number].net, asdict(STEPS[number].recipe)) for number in (1, 2, 3)), strict=True)
    layers = [[(type(m), tuple(getattr(m, "weight", torch.ones(1)).shape)) for m in net().children()] for net in nets]
    assert list(nets) == NETS
    assert layers[0] == [layer for layer in layers[1] if layer[0] is not nn.BatchNorm2d]
    assert layers[1] == layers[2]
    first, second = ({name for name in recipes[0] if recipes[i][name] != recipes[i + 1][name]} for i in (0, 1))
    assert (first, second) == ({"rotation", "translation", "scale"}, {"batch_size", "schedule", "max_lr", "average"})
    assert {recipe["epochs"] for recipe in recipes} == {15}
    assert STEPS[3].target == 99.4
