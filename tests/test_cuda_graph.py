"""CUDA graphs: the same numbers as the plain loop.

Where there is no CUDA device, a stand-in for the capture checks on the CPU what is done around it.
"""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch

from model import STEPS, FinalNet, RegularizedNet
from tinymnist.cuda_graph import GraphedAugment, GraphedNet
from utils import Batches, Recipe, augment, evaluate, fit, moving_average, normalize, train_epoch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("number", STEPS)
def test_the_graph_does_what_the_plain_loop_does(drawn, number):
    recipe, net = replace(STEPS[number].recipe, epochs=4), STEPS[number].net()  # four batches of 128 and one of 88
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


def state_of(net: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of the weights and statistics, and the state of the random numbers."""
    return [*(value.clone() for value in net.state_dict().values()), torch.get_rng_state()]


@pytest.mark.usefixtures("replayed")
def test_capturing_leaves_weights_statistics_and_random_numbers_as_they_were(drawn):
    before = state_of(net := RegularizedNet())
    GraphedNet(net, normalize(drawn.train_images[:64]))
    assert all(map(torch.equal, state_of(net), before))


def test_only_whole_batches_are_replayed_and_the_net_itself_is_trained(drawn, replayed):
    results, states, recipe = [], [], Recipe(epochs=2, batch_size=128)
    for wrap in (lambda net, batch: net, GraphedNet):
        torch.manual_seed(0)
        net, generator = RegularizedNet(), torch.Generator().manual_seed(0)
        trained, optimizer = wrap(net, normalize(drawn.train_images[:128])), torch.optim.SGD(net.parameters(), 0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        batches, average = Batches(*drawn[:2], recipe, generator), moving_average(net, 0.9)
        for _ in range(2):
            results.append(train_epoch(trained, batches, optimizer, scheduler, average))
            results.append(evaluate(trained, *drawn[2:], batch_size=128))
        states.append(state_of(average.module))
    assert results[:4] == results[4:]
    assert all(map(torch.equal, *states))
    assert replayed == [128] * 4 * 2  # of 600 images: four whole batches and one of 88; none of the evaluation


def test_capturing_an_augmentation_draws_no_random_numbers_and_other_sizes_are_augmented_as_usual(drawn, monkeypatch):
    """A replay does nothing here, so that a whole batch is the captured one."""

    class Graph:
        registered = None

        def register_generator_state(self, generator):
            self.registered = generator

        def replay(self):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    recipe, images, generators = STEPS[3].recipe, drawn.train_images, [torch.Generator().manual_seed(5) for _ in "12"]
    graphed = GraphedAugment(augment, images[:64], recipe, generators[0])
    assert graphed.graph.registered is generators[0]
    assert torch.equal(*(generator.get_state() for generator in generators))
    few = [function(images[:20], recipe, g) for function, g in zip((graphed, augment), generators, strict=True)]
    assert torch.equal(*few)
    assert graphed(images[64:128], recipe, generators[0]) is graphed.batch
    assert torch.equal(graphed.images, images[64:128])
