"""The benchmark: what it compares, and the record that it writes."""

import json

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
    ours, others = augment(images, recipe, seeds[0]), bench.augment_by_library(images, recipe, seeds[1])
    torch.testing.assert_close(others, ours, rtol=0, atol=1e-3)


def test_maps_are_channels_first_in_one_contender_and_last_as_shipped():
    for make, first in ((bench.ChannelsFirstNet, True), (bench.FinalNet, False)):
        net, maps = make(), []
        net.conv2.register_forward_hook(lambda _layer, _given, output, maps=maps: maps.append(output))
        for mode in (True, False):
            net.train(mode)(torch.zeros(2, 1, 28, 28))
        assert [tensor.is_contiguous() for tensor in maps] == [first, first]


@pytest.mark.parametrize("whole", [False, True])
def test_contenders_are_measured_in_turn_and_written(monkeypatch, tmp_path, drawn, in_this_process, whole):
    monkeypatch.setattr(bench, "load_mnist", lambda: drawn)
    monkeypatch.setattr(bench, "stock_epoch", lambda device, workers: 1.0)  # it needs MNIST
    monkeypatch.setattr(bench, "in_processes", in_this_process)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.main(["--device", "cpu", *(["--whole"] if whole else [])]) == 0
    written = json.loads((tmp_path / ("whole_run_cpu.json" if whole else "bench_cpu.json")).read_text())
    names = list(bench.contenders(CPU, whole))
    assert [name for name, *_ in in_this_process.jobs] == names * bench.REPEATS
    assert {bench.USUAL, "Step 3"} < set(names)
    assert (bench.WHOLE in names) == whole
    assert {"hardware", "torch_version", "commit", "threads", "median", "seconds"} == set(written)
    assert written["seconds"]["usual pipeline, no workers"] == [1.0] * bench.REPEATS
    assert all(0 < min(values) <= written["median"][name] for name, values in written["seconds"].items())
    assert "Step 3, CUDA graphs" in bench.contenders(CUDA)


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert bench.main(["--device", "gpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
