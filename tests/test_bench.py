"""The benchmark: what it compares, and that its parts run."""

import json
import subprocess

import pytest
import torch

from experiments import bench
from model import STEPS
from utils import augment, count_parameters

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_usual_net_is_the_published_one():
    assert count_parameters(bench.stock_net()) == 7830


def test_the_augmentation_by_library_moves_images_as_ours_does(drawn):
    images, recipe = drawn.train_images[:100], STEPS[3].recipe
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.testing.assert_close(
        bench.augment_by_library(images, recipe, seeds[0]), augment(images, recipe, seeds[1]), rtol=0, atol=1e-3
    )


def test_maps_are_channels_first_in_one_contender_and_last_as_shipped():
    for make, first in ((bench.ChannelsFirstNet, True), (bench.FinalNet, False)):
        net, maps = make(), []
        net.conv2.register_forward_hook(lambda _layer, _given, output, maps=maps: maps.append(output))
        for mode in (True, False):
            net.train(mode)(torch.zeros(2, 1, 28, 28))
        assert [tensor.is_contiguous() for tensor in maps] == [first, first]


@pytest.fixture
def _little_data(monkeypatch, drawn):
    monkeypatch.setattr(bench, "load_mnist", lambda: drawn)


@pytest.mark.usefixtures("_little_data")
@pytest.mark.parametrize("name", bench.contenders("changes", CPU))
def test_each_change_runs(name):
    seconds = bench.contenders("changes", CPU)[name].epochs(CPU)
    assert len(seconds) == 2
    assert all(s > 0 for s in seconds)


@pytest.mark.usefixtures("_little_data")
def test_the_same_net_on_our_pipeline():
    assert len(bench.contenders("pipelines", CPU)["same-net"].epochs(CPU)) == 1


def test_on_a_gpu_the_plain_loop_is_compared_with_graphs():
    names = bench.contenders("changes", CUDA)
    assert {"shipped", "graph"} <= set(names)
    assert "one-thread" not in names


@pytest.mark.usefixtures("_little_data")
def test_a_part_is_written_beside_the_others(monkeypatch, tmp_path):
    called, changes = [], bench.contenders("changes", CPU)

    def in_this_process(function, jobs, threads):
        called.append(threads)
        return [function(job, None) for job in jobs]

    monkeypatch.setattr(bench, "in_processes", in_this_process)
    monkeypatch.setattr(bench, "contenders", lambda *_: {name: changes[name] for name in ("shipped", "one-thread")})
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    path = tmp_path / "bench_cpu.json"
    path.write_text('{"seeds": {"count": 4}}')
    assert bench.main(["changes", "--device", "cpu"]) == 0
    written = json.loads(path.read_text())
    assert written["seeds"] == {"count": 4}
    assert {"hardware", "torch_version", "commit", "threads"} < set(written["changes"])
    for contender in written["changes"]["contenders"].values():
        assert [len(run["seconds"]) for run in contender["runs"]] == [2] * bench.REPEATS
    assert called == [torch.get_num_threads(), 1] * bench.REPEATS  # in turn


@pytest.mark.usefixtures("_little_data")
def test_runs_that_were_not_written_are_an_error(monkeypatch, tmp_path, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "seed 0: bar\nOut of memory\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(bench, "commit", lambda: None)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.main(["seeds", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "bench.py: Out of memory\n"
    assert not list(tmp_path.iterdir())
