"""The final net as ONNX, in float32 and in 8 bits, on the test images."""

import hashlib
import json

import pytest
import torch
from tinymnist.deslant import Deslant

from experiments import export
from predict import load_net
from tinymnist import runs
from tinymnist.runs import RESULTS
from utils import Digits, accuracy

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((RESULTS / "int8.json").read_text())


@pytest.fixture(scope="module")
def images(mnist) -> torch.Tensor:
    """The test images, from pixels by the formula of results/README.md."""
    return mnist.test_images.unsqueeze(1) / 255 / 0.3081


@pytest.fixture(scope="module")
def expected(images) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([load_net()(batch) for batch in images.split(250)])


@pytest.fixture(scope="module")
def few(mnist) -> Digits:
    return mnist._replace(test_images=mnist.test_images[:200], test_labels=mnist.test_labels[:200])


def test_the_published_files_compute_what_the_published_net_does(images, expected, mnist, record):
    whole, small = ((RESULTS / name).read_bytes() for name in ("final.onnx", "final-int8.onnx"))
    logits = export.logits_of(whole, images)
    assert torch.allclose(logits, expected, atol=export.TOLERANCE)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert torch.allclose(export.logits_of(whole, images[:1]), expected[:1], atol=export.TOLERANCE)
    predicted = export.logits_of(small, images).argmax(1)
    assert (predicted == expected.argmax(1)).sum() >= export.AGREEING * len(images)
    correct = record["runs"][0]["int8"]["test_correct"]
    assert (predicted == mnist.test_labels).sum().item() == pytest.approx(correct, abs=5)  # processors differ
    assert [len(whole), len(small)] == [record["runs"][0][name]["bytes_of_file"] for name in ("float32", "int8")]


def test_no_file_samples_a_grid_and_the_small_one_has_weights_of_8_bits(record):
    for name, stored, types in (("", "float32", {"float32"}), ("-int8", "int8", {"int8", "int32", "float32"})):
        content = (RESULTS / f"final{name}.onnx").read_bytes()
        graph = onnx.load_from_string(content).graph
        assert "GridSample" not in {node.op_type for node in graph.node}
        assert export.bytes_stored(content) == record["runs"][0][stored]["bytes_stored"]
        assert {str(onnx.numpy_helper.to_array(tensor).dtype) for tensor in graph.initializer} == types
        scales = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.name.endswith("_scale")]
        assert all(onnx.numpy_helper.to_array(tensor).size == 1 for tensor in scales)


def test_the_record_is_about_the_published_weights(record):
    assert not record["commit"].endswith("-dirty")
    assert [row["seed"] for row in record["runs"]] == list(range(20))
    for row, run in zip(record["runs"], runs.load_runs("step3", 20), strict=True):
        weights = RESULTS / "step3" / f"seed_{row['seed']}.pt"
        assert row["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), "make export"
        assert row["float32"]["test_correct"] / 100 == pytest.approx(accuracy(run["history"][-1]), abs=0.011)


@pytest.mark.parametrize("crop", [0, 1, 2])
def test_deslanting_without_grid_sampling_is_the_same(images, crop):
    some = torch.cat([images[:200], torch.zeros(1, 1, 28, 28)])
    assert torch.allclose(export.PlainDeslant(crop)(some), Deslant(crop)(some), atol=1e-4)


@pytest.mark.parametrize("kind", ["final", "a negative scale"])
def test_a_net_exports_and_quantizes_to_the_same_bytes_twice(kind, few):
    net = load_net().eval()
    if kind == "a negative scale":
        net.norm3.weight.data[0].neg_()  # this one cannot be folded
    files = export.export(net, few)
    assert files == export.export(net, few)
    assert [b"BatchNormalization" in content for content in files] == [kind == "a negative scale"] * 2


@pytest.mark.parametrize(("name", "value"), [("TOLERANCE", -1.0), ("AGREEING", 1.1)])
def test_a_net_with_other_logits_is_not_written(tmp_path, monkeypatch, few, capsys, name, value):
    monkeypatch.setattr(export, "load_mnist", lambda: few)
    monkeypatch.setattr(export, name, value)
    monkeypatch.setattr(export, "RESULTS", tmp_path)
    assert export.main([]) == 1
    assert "200 of 200 predictions agree" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_record_of_one_net_has_what_the_report_needs(few, record):
    row = export.measure(0, few)
    assert row.keys() == record["runs"][0].keys()
    assert {name: value.keys() for name, value in row.items() if isinstance(value, dict)} == {
        name: value.keys() for name, value in record["runs"][0].items() if isinstance(value, dict)
    }
