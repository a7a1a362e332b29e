"""The benchmark: what it counts, what it compares, and that its parts run."""

import pytest
import torch

import utils
from experiments import bench
from model import FinalNet
from tinymnist.runs import load_bench
from utils import count_parameters

CPU = torch.device("cpu")


def test_multiply_adds_are_those_counted_by_hand():
    first, others = 72 * 24 * 24, (1152 + 2304) * 12 * 12 + 2592 * 6 * 6 + 162 * 10
    upright = 5 * 28 * 28 + 2 * 3 * 24 * 24  # the moments, and where to sample
    forward, training = upright + first + others, upright + 2 * first + 3 * others  # no gradient of the image is needed
    assert bench.multiply_adds(FinalNet()) == 60_000 * training + 10_000 * forward


def test_the_usual_net_is_the_published_one():
    assert count_parameters(bench.stock_net()) == 7830
    assert bench.stock_net()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.fixture
def _little_data(monkeypatch, drawn):
    monkeypatch.setattr(bench, "load_mnist", lambda: drawn)


@pytest.mark.usefixtures("_little_data")
@pytest.mark.parametrize("name", bench.changes(CPU))
def test_each_change_runs_and_leaves_no_trace(name):
    threads, before = torch.get_num_threads(), (utils.evaluate, utils.train_epoch, utils.augment, torch.optim.SGD)
    try:
        seconds = bench.changes(CPU)[name].epochs(CPU)
    finally:
        torch.set_num_threads(threads)
    assert len(seconds) == 2
    assert all(s > 0 for s in seconds)
    assert (utils.evaluate, utils.train_epoch, utils.augment, torch.optim.SGD) == before


@pytest.mark.usefixtures("_little_data")
def test_the_same_net_on_our_pipeline():
    assert len(bench.pipelines()["same-net"].epochs(CPU)) == 1


def test_wrong_arguments_are_refused(capsys):
    for arguments in (["speed"], ["--device", "tpu"], ["--parts"]):
        with pytest.raises(SystemExit) as stop:
            bench.main(arguments)
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)


def test_what_is_published_is_what_is_measured():
    assert set(load_bench("pipelines")["contenders"]) == set(bench.pipelines())
    assert set(load_bench("changes")["contenders"]) == set(bench.changes(CPU))
    for part in ("pipelines", "changes"):
        for contender in load_bench(part)["contenders"].values():
            assert len(contender["runs"]) == bench.REPEATS >= 3
    for part in bench.PARTS:
        assert not load_bench(part)["commit"].endswith("-dirty")
