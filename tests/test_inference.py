"""How fast nets evaluate: what is compared, and the record that is written."""

import json

import torch

from experiments import bench, inference
from predict import load_net
from utils import count_parameters, normalize


def test_the_example_is_that_of_pytorch():
    net = inference.ExampleNet()
    assert count_parameters(net) == 1_199_882
    assert net(torch.zeros(3, 1, 28, 28)).exp().sum(1).allclose(torch.ones(3))


def test_every_contender_is_measured_and_written(monkeypatch, drawn, in_this_process, capsys):
    monkeypatch.setattr(inference, "SECONDS", 0.01)
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(inference, "WARM_UP", 1)
    monkeypatch.setattr(inference, "load_mnist", lambda: drawn)
    monkeypatch.setattr(bench, "in_processes", in_this_process)
    written = {}
    monkeypatch.setattr(bench, "write_json", lambda path, content: written.update({path.name: content}))
    assert inference.main([]) == 0
    rows = json.loads(json.dumps(written["inference_cpu.json"]))["rows"]
    names = list(inference.CONTENDERS)
    assert [(row["net"], row["batch"]) for row in rows] == [(name, n) for name in names for n in (1, 250)]
    assert all(len(row["images_per_second"]) == 1 and row["median"] > 0 for row in rows)
    assert capsys.readouterr().out.count("images per second") == 2 * len(names)


def test_views_in_doubt_are_those_of_the_final_net(drawn):
    images = normalize(drawn.test_images[:50])
    net, final = inference.doubting().eval(), load_net()
    net.sure = 1.1  # never
    with torch.no_grad():
        torch.testing.assert_close(net(images), final(images))
