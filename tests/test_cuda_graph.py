"""CUDA graphs: the same numbers as the plain loop.

Where there is no CUDA device, a stand-in for the capture checks on the CPU what is done around it.
"""

import copy
from dataclasses import replace

import pytest
import torch

from model import STEPS, FinalNet, RegularizedNet
from tinymnist.cuda_graph import GraphedNet
from utils import Recipe, evaluate, fit, normalize, sgd, train_epoch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("number", STEPS)
def test_the_graph_does_what_the_plain_loop_does(drawn, number):
    recipe, histories = replace(STEPS[number].recipe, epochs=4), []  # four batches of 128 and one of 88
    for graph in (False, True):
        torch.manual_seed(0)
        histories.append(fit(STEPS[number].net(), recipe, drawn, 3, "cuda", progress=False, graph=graph))
    for key, tolerance in (("lr", 0), ("train_loss", 1e-3), ("test_loss", 1e-2)):
        plain, graphed = ([record[key] for record in history] for history in histories)
        assert graphed == pytest.approx(plain, rel=tolerance), key


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_the_same_seed_gives_the_same_bits_on_cuda(drawn, graph):
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        net = FinalNet()
        fit(net, replace(STEPS[3].recipe, epochs=3), drawn, 3, "cuda", progress=False, graph=graph)
        states.append(net.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@needs_cuda
def test_evaluation_takes_images_from_the_cpu(drawn):
    net = FinalNet().cuda()
    here = evaluate(net, drawn.test_images, drawn.test_labels)
    there = evaluate(net, drawn.test_images.cuda(), drawn.test_labels.cuda())
    assert here == pytest.approx(there)


def test_a_graph_needs_a_cuda_device(drawn):
    net = FinalNet()
    before = copy.deepcopy(net).state_dict()
    with pytest.raises(ValueError, match="graph=True needs a CUDA device, not cpu"):
        fit(net, Recipe(), drawn, progress=False, graph=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.fixture
def replayed(monkeypatch):
    """A stand-in for the capture, which warms up as the real one does; returns the sizes of what it replays."""

    def make_graphed_callables(module, examples):
        assert module.training
        forward, sizes[:] = module.forward, []
        for _ in range(3):
            forward(*examples)

        def replay(x):
            sizes.append(len(x))
            return forward(x)

        module.forward = replay
        return module

    sizes = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    return sizes


@pytest.mark.usefixtures("replayed")
def test_capturing_leaves_weights_statistics_and_random_numbers_as_they_were(drawn):
    net = RegularizedNet()
    before, random_state = copy.deepcopy(net).state_dict(), torch.get_rng_state()
    GraphedNet(net, normalize(drawn.train_images[:64]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_only_whole_batches_are_replayed_and_the_net_itself_is_trained(drawn, replayed):
    results, recipe = [], Recipe(epochs=2, batch_size=128)
    nets = [net := RegularizedNet(), copy.deepcopy(net)]
    for net, wrap in zip(nets, (lambda net, batch: net, GraphedNet), strict=True):
        torch.manual_seed(1)  # for dropout
        trained, optimizer = wrap(net, normalize(drawn.train_images[:128])), sgd(net, recipe)
        for epoch in range(2):
            generator = torch.Generator().manual_seed(epoch)
            images, labels, test_images, test_labels = drawn
            results.append(train_epoch(trained, optimizer, images, labels, recipe, epoch, generator))
            results.append(evaluate(trained, test_images, test_labels, batch_size=128))
    assert results[:4] == results[4:]
    assert all(torch.equal(value, nets[1].state_dict()[name]) for name, value in nets[0].state_dict().items())
    assert replayed == [128] * 4 * 2  # of 600 images: four whole batches and one of 88; none of the evaluation
