"""CUDA: the same bits from the same seed, and graphs that compute what the plain loop does.

Where there is no CUDA device, a stand-in for the capture checks on the CPU what is done around it.
"""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch

from model import STEPS, FinalNet, RegularizedNet
from tinymnist.cuda_graph import GraphedAugment, capture
from utils import Batches, Recipe, augment, evaluate, fit, moving_average, train_epoch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
RECIPE = Recipe(epochs=2, batch_size=128, rotation=10.0)  # of 600 images: four whole batches and one of 88


@needs_cuda
@pytest.mark.parametrize("number", STEPS)
def test_the_graph_does_what_the_plain_loop_does(drawn, number):
    recipe, net = replace(STEPS[number].recipe, epochs=4), STEPS[number].net()
    nets = [(copy.deepcopy(net), graph) for graph in (False, True)]
    histories = [fit(net, recipe, drawn, 3, "cuda", progress=False, graph=graph) for net, graph in nets]
    for key, tolerance in (("lr", 0), ("train_loss", 1e-3), ("test_loss", 1e-2)):
        assert histories[1][key] == pytest.approx(histories[0][key], rel=tolerance), key


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_the_same_seed_gives_the_same_bits_on_cuda(drawn, graph):
    nets = [FinalNet()]
    nets.append(copy.deepcopy(nets[0]))
    for net in nets:
        fit(net, replace(STEPS[3].recipe, epochs=3), drawn, 3, "cuda", progress=False, graph=graph)
    assert all(map(torch.equal, *(net.state_dict().values() for net in nets)))


class Waits(RegularizedNet):
    """Waits for the GPU, which no graph can."""

    def forward(self, x):
        return super().forward(x) * (1 if x.sum().item() else 2)


@needs_cuda
def test_a_net_that_cannot_be_captured_is_trained_the_usual_way(drawn, capsys):
    net = Waits()
    nets = [(copy.deepcopy(net), graph) for graph in (False, True)]
    histories = [fit(net, RECIPE, drawn, 3, "cuda", progress=False, graph=graph) for net, graph in nets]
    assert "the net is not replayed as a CUDA graph (" in capsys.readouterr().err
    assert histories[1]["train_loss"] == pytest.approx(histories[0]["train_loss"], rel=1e-3)


@needs_cuda
def test_evaluation_takes_images_from_the_cpu(drawn):
    net = FinalNet().cuda()
    here = evaluate(net, drawn.test_images, drawn.test_labels)
    there = evaluate(net, drawn.test_images.cuda(), drawn.test_labels.cuda())
    assert here == pytest.approx(there)


def test_a_graph_needs_a_cuda_device(drawn):
    with pytest.raises(ValueError, match="graph=True needs a CUDA device, not cpu"):
        fit(FinalNet(), Recipe(), drawn, progress=False, graph=True)


@pytest.fixture
def replayed(monkeypatch):
    """A stand-in for the capture, which warms up as the real one does; returns the sizes of what it replays."""

    def make_graphed_callables(module, examples):
        assert module.training
        forward, sizes[:] = module.forward, []
        for _ in range(3):
            forward(*examples)
        if isinstance(module[0], Waits):
            raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

        def replay(x):
            sizes.append(len(x))
            return forward(x)

        module.forward = replay
        return module

    class Graph:
        """A replay does nothing here, so that a whole batch is the captured one."""

        def register_generator_state(self, generator):
            pass

        def replay(self):
            pass

    sizes = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    return sizes


@pytest.mark.parametrize("kind", [RegularizedNet, Waits])
def test_what_is_trained_is_the_net_itself_and_a_capture_leaves_no_trace(drawn, replayed, capsys, kind):
    """The batches are no `Batches` here, so that the augmentation is not captured."""
    results, states = [], []
    for graph in (False, True):
        torch.manual_seed(0)
        net, generator = kind(), torch.Generator().manual_seed(0)
        own = Batches(*drawn[:2], RECIPE, generator)
        trained = capture(net, list(own), drawn.train_images[:128]) if graph else net
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        average, generator = moving_average(net, 0.9), generator.manual_seed(0)
        for _ in range(2):
            results.append(train_epoch(trained, own, optimizer, scheduler, average))
            results.append(evaluate(trained, *drawn[2:], batch_size=128))
        states.append([*average.module.state_dict().values(), torch.get_rng_state()])
    assert results[:4] == results[4:]
    assert all(map(torch.equal, *states))
    err = capsys.readouterr().err
    if kind is Waits:
        assert trained is net
        assert err.startswith("the net is not replayed as a CUDA graph (CUDA error: ")
        assert err.count("\n") == 1
    else:
        assert (replayed, err) == ([128] * 4 * 2, "")  # whole batches alone, and none of the evaluation


def test_capturing_an_augmentation_draws_no_random_numbers_and_other_sizes_are_augmented_as_usual(drawn, replayed):
    recipe, images, generators = STEPS[3].recipe, drawn.train_images, [torch.Generator().manual_seed(5) for _ in "12"]
    batches = Batches(*drawn[:2], recipe, generators[0])
    capture(RegularizedNet(), batches, images[:64])
    graphed = batches.augment
    assert isinstance(graphed, GraphedAugment)
    assert torch.equal(*(generator.get_state() for generator in generators))
    few = [function(images[:20], recipe, g) for function, g in zip((graphed, augment), generators, strict=True)]
    assert torch.equal(*few)
    assert graphed(images[64:128], recipe, generators[0]) is graphed.batch
    assert torch.equal(graphed.images, images[64:128])
