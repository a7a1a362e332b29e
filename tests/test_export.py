"""The final net as ONNX, in float32 and in 8 bits, on the test images."""

import json

import pytest
import torch

from experiments import export
from predict import load_net
from tinymnist.runs import RESULTS
from utils import Digits

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
pytest.importorskip("onnxruntime")

FILES = ["final.onnx", "final-int8.onnx"]


@pytest.fixture(scope="module")
def images(mnist) -> torch.Tensor:
    """The test images, from pixels by the formula of the README."""
    return mnist.test_images.unsqueeze(1) / 255 / 0.3081


@pytest.fixture(scope="module")
def expected(images) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([load_net()(batch) for batch in images.split(250)])


@pytest.fixture
def few(mnist) -> Digits:
    return mnist._replace(test_images=mnist.test_images[:200], test_labels=mnist.test_labels[:200])


def test_the_published_float32_file_computes_what_the_net_does(images, expected):
    logits = export.logits_of((RESULTS / "final.onnx").read_bytes(), images)
    assert torch.allclose(logits, expected, atol=export.TOLERANCE)
    assert torch.equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", FILES)
def test_the_published_files_are_those_of_the_record(images, expected, mnist, name):
    record, content = json.loads((RESULTS / "onnx.json").read_text()), (RESULTS / name).read_bytes()
    predicted = export.logits_of(content, images).argmax(1)
    assert len(content) == record[name]["bytes"]
    assert (predicted == mnist.test_labels).sum().item() == pytest.approx(record[name]["test_correct"], abs=5)
    assert (predicted == expected.argmax(1)).sum() >= 0.998 * len(images)
    assert not record["commit"].endswith("-dirty")


@pytest.mark.parametrize("n", [1, 7, 250])
@pytest.mark.parametrize("name", FILES)
def test_onnx_itself_evaluates_batches_of_any_size_alike(images, expected, name, n):
    (logits,) = reference.ReferenceEvaluator(str(RESULTS / name)).run(["logits"], {"images": images[:n].numpy()})
    logits = torch.from_numpy(logits)
    assert logits.shape == (n, 10)
    assert (logits.argmax(1) == expected[:n].argmax(1)).sum() >= 0.99 * n
    if name == "final.onnx":
        assert torch.allclose(logits, expected[:n], atol=export.TOLERANCE)


def test_the_small_file_has_weights_of_8_bits():
    tensors = onnx.load(RESULTS / "final-int8.onnx").graph.initializer
    weights = [tensor for tensor in tensors if len(tensor.dims) > 1]
    assert sum(onnx.numpy_helper.to_array(tensor).size for tensor in weights) == 7740
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("kind", ["published", "with a negative scale"])
def test_a_net_is_exported_with_batch_norm_folded_where_that_is_right(images, kind):
    net = load_net()
    if kind == "with a negative scale":
        net.norm3.weight.data[0].neg_()
    content = export.to_onnx(net)
    export.check(content, net, images[:200])
    assert content == export.to_onnx(net)
    assert (b"BatchNormalization" in content) == (kind == "with a negative scale")


@pytest.mark.parametrize("wrong", [export.TOLERANCE * 1.1, float("nan")])
def test_a_net_with_other_logits_is_not_written(tmp_path, monkeypatch, few, capsys, wrong):
    logits_of = export.logits_of
    monkeypatch.setattr(export, "logits_of", lambda *arguments: logits_of(*arguments) + wrong)
    monkeypatch.setattr(export, "load_mnist", lambda: few)
    monkeypatch.setattr(export, "RESULTS", tmp_path)
    assert export.main([]) == 1
    assert "of 200 predictions differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_both_files_and_their_record(tmp_path, monkeypatch, few, capsys):
    monkeypatch.setattr(export, "load_mnist", lambda: few)
    monkeypatch.setattr(export, "RESULTS", tmp_path)
    assert export.main([]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    record = json.loads((tmp_path / "onnx.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "onnx.json"}
    assert [record[name]["bytes"] for name in FILES] == [(tmp_path / name).stat().st_size for name in FILES]
    assert min(record[name]["test_correct"] for name in FILES) >= 195
