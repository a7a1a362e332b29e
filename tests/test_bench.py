"""The benchmark: what it counts, what it compares, and that its parts run."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from experiments import bench
from experiments.variants import GROUPS, Group
from model import STEPS, FinalNet
from tinymnist.runs import load_bench
from utils import Recipe, augment, count_parameters, fit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_usual_net_is_the_published_one():
    assert count_parameters(bench.stock_net()) == 7830
    assert bench.stock_net()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_augmentation_by_library_moves_images_as_ours_does(drawn):
    images, recipe = drawn.train_images[:100], STEPS[3].recipe
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.testing.assert_close(
        bench.augment_by_library(images, recipe, seeds[0]), augment(images, recipe, seeds[1]), rtol=0, atol=1e-3
    )


def test_weights_and_maps_are_channels_first(drawn):
    net, maps = FinalNet(), []
    net.conv2.register_forward_hook(lambda layer, given, output: maps.append(output))
    fit(net, replace(STEPS[3].recipe, epochs=1), drawn, progress=False, make_optimizer=bench.channels_first)
    assert maps
    assert all(tensor.is_contiguous() for tensor in [*maps, *net.parameters()])


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


@pytest.mark.usefixtures("_little_data")
def test_the_time_of_a_run_counts_only_if_it_held(monkeypatch):
    entry = GROUPS["records"].variants()[bench.FASTEST]
    little = {"records": Group(lambda: {bench.FASTEST: replace(entry, recipe=Recipe(epochs=1))}, seeds=1)}
    monkeypatch.setattr(bench, "GROUPS", little)
    run = bench.train_fastest("cpu", None)
    assert (run["seed"], len(run["history"])) == (0, 1)
    for correct, held in ((9940, True), (9939, False)):
        run["history"] = [{"test_correct": 9990 if i else correct, "test_total": 10_000} for i in range(5)]
        monkeypatch.setattr(bench, "in_processes", lambda *_, **__: iter([run]))
        if held:
            assert bench.fastest(CPU)[0] > 0
        else:
            with pytest.raises(OSError, match="missed the target"):
                bench.fastest(CPU)


def test_on_a_gpu_the_plain_loop_is_compared_with_graphs():
    names = bench.contenders("changes", CUDA)
    assert {"shipped", "graph"} <= set(names)
    assert not {"one-thread", "nchw"} & set(names)


@pytest.mark.usefixtures("_little_data")
def test_a_part_is_written_beside_the_others(monkeypatch, tmp_path):
    called = []

    def in_this_process(function, jobs, threads):
        called.append((function, threads))
        return [function(job, None) for job in jobs]

    def two_changes(part, device):
        return {name: changes[name] for name in ("shipped", "one-thread")}

    changes = bench.contenders("changes", CPU)
    monkeypatch.setattr(bench, "in_processes", in_this_process)
    monkeypatch.setattr(bench, "contenders", two_changes)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    path = tmp_path / "bench_cpu.json"
    path.write_text('{"seeds": {"count": 4}}')
    assert bench.main(["changes", "--device", "cpu"]) == 0
    written = json.loads(path.read_text())
    assert written["seeds"] == {"count": 4}
    part = written["changes"]
    assert {"hardware", "torch_version", "commit", "threads"} < set(part)
    assert list(part["contenders"]) == ["shipped", "one-thread"]
    for contender in part["contenders"].values():
        assert set(contender) == {"what", "threads", "runs"}
        assert len(contender["runs"]) == bench.REPEATS
        for run in contender["runs"]:
            assert set(run) == {"seconds"}
            assert len(run["seconds"]) == 2
    default = torch.get_num_threads()
    names = ["shipped", "one-thread"] * bench.REPEATS  # in turn
    assert [threads for _, threads in called] == [1 if name == "one-thread" else default for name in names]


@pytest.mark.usefixtures("_little_data")
def test_runs_that_were_not_written_are_an_error(monkeypatch, tmp_path, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "seed 0: bar\nOut of memory\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(bench, "commit", lambda: None)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.main(["seeds", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "bench.py: Out of memory\n"
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(capsys):
    for arguments in (["speed"], ["--parts"]):
        with pytest.raises(SystemExit) as stop:
            bench.main(arguments)
        assert stop.value.code == 2
    assert bench.main(["--device", "tpu"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 3)


def test_what_is_published_is_what_is_measured():
    for part in ("pipelines", "changes", "records"):
        published = load_bench(part)["contenders"]
        assert set(published) == set(bench.contenders(part, CPU))
        for contender in published.values():
            assert len(contender["runs"]) == bench.REPEATS >= 3
    for part in bench.PARTS:
        assert not load_bench(part)["commit"].endswith("-dirty")
