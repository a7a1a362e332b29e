"""The nets and the steps: forms, budgets, and the sums in the docstrings."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from model import STEPS, FinalNet, RegularizedNet, SetupNet
from utils import Recipe, count_parameters, learning_rate, receptive_field

# "    conv1    8 x 26 x 26          1 *  8 * 3 * 3 +  8 = 80"
ROW = re.compile(r"^ +(\w+) +(\d+(?: x +\d+)*|)(?: {2,}([+\d *]*)= (\d+))?$", re.MULTILINE)
NETS = [SetupNet, RegularizedNet, FinalNet]


@pytest.mark.parametrize("net", NETS)
def test_docstring_adds_up_the_parameters(net):
    model = net()
    rows = {name: (terms, int(total)) for name, _, terms, total in ROW.findall(net.__doc__) if total}
    _, total = rows.pop("total")
    counts = {name: count_parameters(layer) for name, layer in model.named_children()}
    assert {name: count for name, count in counts.items() if count} == {name: n for name, (_, n) in rows.items()}
    assert all(eval(terms) == n for terms, n in rows.values())
    assert sum(n for _, n in rows.values()) == total == count_parameters(model)


@pytest.mark.parametrize("net", NETS)
def test_docstring_tells_the_shapes(net):
    shapes = {}
    model = net().eval()
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _m, _i, out, name=name: shapes.setdefault(name, []).append(out.shape[1:]))
    model(torch.zeros(1, 1, 28, 28))
    told = {}
    for name, shape, *_ in ROW.findall(net.__doc__):
        if shape:
            told.setdefault(name, []).append([int(n) for n in shape.split("x")])
    shapes.pop("drop", None)
    assert told == {name: [list(shape) for shape in value] for name, value in shapes.items()}


@pytest.mark.parametrize("net", NETS)
def test_logits_for_any_batch_size(net):
    for n in (1, 5):
        logits = net().eval()(torch.zeros(n, 1, 28, 28))
        assert (logits.shape, logits.dtype) == ((n, 10), torch.float32)


def test_step_1_is_plain_and_step_2_regularizes():
    kinds = {number: {type(layer) for layer in step.net().modules()} for number, step in STEPS.items()}
    assert kinds[1] & {nn.BatchNorm2d, nn.Dropout, nn.AdaptiveAvgPool2d} == set()
    assert kinds[2] >= {nn.BatchNorm2d, nn.Dropout, nn.AdaptiveAvgPool2d}
    assert STEPS[1].recipe == replace(Recipe(), max_lr=STEPS[1].recipe.max_lr)


def test_every_step_keeps_to_its_budget_15_epochs_and_a_known_schedule():
    for step in STEPS.values():
        assert count_parameters(step.net()) < 10_000
        assert step.recipe.epochs == 15
        assert learning_rate(step.recipe, 0, 100) > 0
    assert count_parameters(STEPS[3].net()) < 8_000
    assert STEPS[3].target == 99.4


def test_the_last_values_of_the_final_net_see_the_whole_upright_digit():
    rows = receptive_field(FinalNet())
    assert [row.receptive_field for row in rows] == [1, 1, 3, 4, 8, 12, 14, 22, 26, 24]
    assert rows[-2].receptive_field > rows[-1].receptive_field == rows[1].size_out == 24
