"""The final net as ONNX."""

import pytest
import torch

from experiments import export
from predict import load_net
from tinymnist.runs import RESULTS
from utils import normalize

onnxruntime = pytest.importorskip("onnxruntime")


def logits(path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_the_published_file_computes_the_logits_of_the_published_weights(mnist):
    for count in (1, 7):
        images = normalize(mnist.test_images[:count])
        with torch.no_grad():
            expected = load_net()(images)
        assert torch.allclose(logits(RESULTS / "final.onnx", images), expected, atol=export.TOLERANCE)


def test_the_exported_file_agrees_with_the_published_one(tmp_path, mnist):
    path = tmp_path / "final.onnx"
    assert 0 <= export.export(path) <= export.TOLERANCE
    images = normalize(mnist.test_images[:20])
    assert torch.allclose(logits(path, images), logits(RESULTS / "final.onnx", images), atol=export.TOLERANCE)


def test_a_net_with_other_logits_is_not_written(tmp_path, monkeypatch, mnist, capsys):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    monkeypatch.setattr(export, "RESULTS", tmp_path)
    assert export.main([]) == 1
    assert "10000 of 10000 predictions agree" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
