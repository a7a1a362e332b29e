"""The training step as a CUDA graph: the same numbers as the plain loop, and no waiting within an epoch.

Where there is no CUDA device, a stand-in for the capture checks the bookkeeping around it on the CPU.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import STEPS
from tinymnist.cuda_graph import PLAIN_STEPS, StepGraph, train_epoch_together
from utils import Recipe, Training, fit, fit_together

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
RECIPE = replace(STEPS[3].recipe, epochs=5, distillation=0.0)  # 1,200 images: nine batches of 128 and one of 48


def nets(number: int, seeds: range) -> list[torch.nn.Module]:
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(STEPS[number].net())
    return found


def figures(history: list[dict], key: str) -> list[float]:
    return [record[key] for record in history]


@needs_cuda
@pytest.mark.parametrize("number", STEPS)
def test_the_graph_does_what_the_plain_loop_does(drawn, drawn_soft, number, capsys):
    recipe = replace(STEPS[number].recipe, epochs=5)
    options = {"device": "cuda", "progress": False, "soft": drawn_soft(recipe)}
    plain, graphed = (fit(nets(number, range(1))[0], recipe, drawn, 3, graph=graph, **options) for graph in (0, 1))
    assert capsys.readouterr().err == ""  # captured, not fallen back
    assert figures(graphed, "train_loss") == pytest.approx(figures(plain, "train_loss"), rel=1e-3)
    assert figures(graphed, "test_loss") == pytest.approx(figures(plain, "test_loss"), rel=1e-2)
    assert figures(graphed, "lr") == figures(plain, "lr")


@needs_cuda
def test_the_random_numbers_are_those_of_the_plain_loop(drawn):
    draws = {}
    for graph in (False, True):
        training = Training(nets(3, range(1))[0], RECIPE, 3, torch.device("cuda"))
        seen = draws[graph] = torch.zeros(5, 10, device="cuda")
        images = drawn.train_images.cuda()

        def body(batch, step, training=training, seen=seen):
            u = torch.rand(10, generator=training.generator, device="cuda")
            seen.index_copy_(0, (step % 5), u[None] + batch[:10].sum() * 0)
            return u.sum(), u.sum()

        steps = StepGraph(body, len(images), 128, training.generator)
        if not graph:
            steps.plain_steps_left = float("inf")
        for _ in range(3):
            train_epoch_together([steps])
        assert (steps.graph is not None) is graph
    assert torch.equal(draws[False], draws[True])


@needs_cuda
def test_the_same_seed_gives_the_same_bits_on_cuda(drawn):
    states = []
    for _ in range(2):
        net = nets(3, range(1))[0]
        history = fit(net, RECIPE, drawn, 3, "cuda", progress=False)
        states.append((figures(history, "train_loss"), net.state_dict()))
    assert states[0][0] == states[1][0]
    assert all(torch.equal(value, states[1][1][name]) for name, value in states[0][1].items())


@needs_cuda
def test_seeds_side_by_side_do_what_each_does_alone(drawn):
    together = fit_together(nets(3, range(3)), RECIPE, drawn, range(3), "cuda", progress=False)
    alone = [fit(net, RECIPE, drawn, seed, "cuda", progress=False) for seed, net in enumerate(nets(3, range(3)))]
    for a, b in zip(together, alone, strict=True):
        assert figures(a, "train_loss") == pytest.approx(figures(b, "train_loss"), rel=1e-4)


@needs_cuda
def test_an_epoch_waits_for_nothing(drawn):
    training = Training(nets(3, range(1))[0], RECIPE, 0, torch.device("cuda"))
    steps = training.graphed(drawn.train_images.cuda(), drawn.train_labels.cuda())
    train_epoch_together([steps])
    assert steps.graph is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.start_epoch()
        for size in steps.sizes:
            steps.run(size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps.totals()[2] == 1200


class NoStream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """CUDA's streams and graphs, acted on the CPU: a capture remembers the step and undoes it, a replay runs it."""

    class Graph:
        def register_generator_state(self, generator):
            self.generator = generator

        def replay(self):
            replays.append(self.size)
            self.owner._plain(self.size)

    @contextlib.contextmanager
    def capture(graph, stream):
        owner = next(s for s in everyone if s.stream is stream)
        real, owner._plain = owner._plain, lambda size: setattr(graph, "size", size)
        yield
        owner._plain = real
        graph.owner = owner

    def begin(self, *args, real=StepGraph.__init__):
        real(self, *args)
        everyone.append(self)

    everyone, replays = [], []
    monkeypatch.setattr(StepGraph, "__init__", begin)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: NoStream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: NoStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, fit's BatchNorm rounds otherwise than these nets'
    yield replays
    torch.set_num_threads(threads)


def epochs(drawn, number: int, seeds: range) -> list[list[tuple[float, int, int]]]:
    """Per epoch and net, what a graphed training returns."""
    recipe = replace(RECIPE, epochs=5)
    trainings = [
        Training(net, recipe, seed, torch.device("cpu")) for seed, net in zip(seeds, nets(number, seeds), strict=True)
    ]
    graphs = [t.graphed(drawn.train_images, drawn.train_labels) for t in trainings]
    return [train_epoch_together(graphs) for _ in range(5)]


def test_bookkeeping_of_the_graph(drawn, stand_in):
    found = epochs(drawn, 3, range(2))
    for seed, net in enumerate(nets(3, range(2))):
        history = fit(net, RECIPE, drawn, seed, progress=False)
        assert [epoch[seed][0] for epoch in found] == pytest.approx(figures(history, "train_loss"), rel=1e-3)
        assert [epoch[seed][2] for epoch in found] == [1200] * 5
    # Nine whole batches per epoch, for two nets; the first ones ran plainly, and so did the last of each epoch, of 48.
    assert stand_in == [128] * 2 * (5 * 9 - PLAIN_STEPS)


@pytest.mark.parametrize("number", STEPS)
@pytest.mark.usefixtures("stand_in")
def test_a_step_asks_the_device_for_no_number(drawn, drawn_soft, number):
    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    seen = set()
    recipe = STEPS[number].recipe
    training = Training(nets(number, range(1))[0], recipe, 0, torch.device("cpu"), drawn_soft(recipe))
    steps = training.graphed(drawn.train_images, drawn.train_labels)
    steps.start_epoch()
    steps.run(128)
    with Watcher():
        steps.run(128)
    aten = torch.ops.aten
    assert aten.convolution_backward in seen
    assert not seen & {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.lift_fresh}
    steps.totals()
    with Watcher():
        steps.totals()
    assert aten._local_scalar_dense in seen  # so would a number asked for in the step


def test_without_a_capture_the_plain_loop_goes_on(drawn, stand_in, monkeypatch, capsys):
    def refuse():
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    found = epochs(drawn, 3, range(1))
    history = fit(nets(3, range(1))[0], RECIPE, drawn, 0, progress=False)
    assert [epoch[0][0] for epoch in found] == pytest.approx(figures(history, "train_loss"), rel=1e-3)
    err = capsys.readouterr().err
    assert err == (
        "no CUDA graph of the training step, so the plain loop goes on: "
        "operation not permitted when stream is capturing\n"
    )
    assert stand_in == []


def test_nets_that_take_turns_do_what_each_does_alone(drawn):
    recipe = Recipe(epochs=2, schedule="one_cycle", rotation=10.0, average=0.9)
    together = fit_together(nets(3, range(2)), recipe, drawn, [5, 6], progress=False)
    for seed, net, history in zip([5, 6], nets(3, range(2)), together, strict=True):
        alone = fit(net, recipe, drawn, seed, progress=False)
        assert figures(history, "train_loss") == figures(alone, "train_loss")
        assert figures(history, "test_correct") == figures(alone, "test_correct")


def test_nets_with_dropout_are_not_trained_together(drawn):
    with pytest.raises(ValueError, match="one after the other"):
        fit_together(nets(2, range(2)), RECIPE, drawn, [0, 1])
