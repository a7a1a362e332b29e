"""The final net as ONNX, in float32 and in 8 bits, on the test images."""

import json

import pytest
import torch

from experiments import export
from predict import load_net
from tinymnist.runs import RESULTS

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
def folder(mnist, monkeypatch, tmp_path):
    """Where the command writes, on 200 test images."""
    few = mnist._replace(test_images=mnist.test_images[:200], test_labels=mnist.test_labels[:200])
    monkeypatch.setattr(export, "load_mnist", lambda: few)
    monkeypatch.setattr(export, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_the_published_files_are_those_of_the_record_and_compute_what_the_net_does(images, expected, mnist, name):
    record, content = json.loads((RESULTS / "onnx.json").read_text()), (RESULTS / name).read_bytes()
    logits = export.logits_of(content, images)
    assert len(content) == record[name]["bytes"]
    correct = (logits.argmax(1) == mnist.test_labels).sum().item()
    assert correct == pytest.approx(record[name]["test_correct"], abs=5)
    assert (logits.argmax(1) == expected.argmax(1)).sum() >= 0.998 * len(images)
    if name == "final.onnx":
        assert torch.allclose(logits, expected, atol=export.TOLERANCE)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
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


@pytest.mark.parametrize("kind", ["published", "with a negative scale"])
def test_a_net_is_exported_with_batch_norm_folded_where_that_is_right(images, kind):
    net = load_net()
    if kind == "with a negative scale":
        net.norm3.weight.data[0].neg_()
    content = export.to_onnx(net)
    export.check(content, net, images[:200])
    assert content == export.to_onnx(net)
    assert (b"BatchNormalization" in content) == (kind == "with a negative scale")


def test_a_net_with_other_logits_is_not_written(folder, monkeypatch, capsys):
    logits_of = export.logits_of
    monkeypatch.setattr(export, "logits_of", lambda *arguments: logits_of(*arguments) + 1.1 * export.TOLERANCE)
    assert export.main([]) == 1
    assert "of 200 predictions differ" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_the_command_writes_both_files_and_their_record(folder):
    assert export.main([]) == 0
    record = json.loads((folder / "onnx.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*FILES, "onnx.json"}
    assert [record[name]["bytes"] for name in FILES] == [(folder / name).stat().st_size for name in FILES]
    assert min(record[name]["test_correct"] for name in FILES) >= 195
    weights = [tensor for tensor in onnx.load(folder / FILES[1]).graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
