"""Export the final net to ONNX, in float32 and in 8 bits, and compare both with PyTorch on the test images.

python -m experiments.export     writes results/final.onnx, results/final-int8.onnx and their record, results/onnx.json

It needs what tests/requirements.txt lists. The exit code is 0, 1 if the float32 file computes something else than the
net, and 2 if something is missing.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import FinalNet, crop
from predict import load_net
from tinymnist.cli import OneLineParser
from tinymnist.runs import RESULTS, commit, hardware, write_atomically, write_json
from utils import DataError, load_mnist, normalize

TOLERANCE = 1e-3  # largest difference of a logit in float32
CALIBRATION = 1_000  # training images that the ranges of the 8-bit values are taken from


class ExportError(Exception):
    """The logits or the predictions of the float32 file differ from the net's."""


def folded(net: FinalNet) -> FinalNet:
    """A copy of a net in evaluation mode that computes the same, with BatchNorm folded into the convolution before it.

    Normalization and ReLU may precede max-pooling where no scale is negative. What is pooled in 8 bits then has no
    negative half; the ReLU after pooling is left without effect.
    """
    net = copy.deepcopy(net).eval()
    layers = dict(net.named_children())
    for name, layer in layers.items():
        norm = layers.get(name.replace("conv", "norm"))
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and bool((norm.weight >= 0).all()):
            setattr(net, name, nn.Sequential(fuse_conv_bn_eval(layer, norm), nn.ReLU()))
            setattr(net, name.replace("conv", "norm"), nn.Identity())
    return net


class SpelledOut(nn.Module):
    """Computes what a `FinalNet` does in evaluation, with the shape of the logits spelled out.

    The file then has no arithmetic on shapes, which OpenCV 4 does not follow.
    """

    def __init__(self, net: FinalNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, 1, 28, 28) to logits (N, 10), for N from 1 on."""
        views = torch.cat([crop(x, dy, dx) for dy, dx in self.net.views])
        return self.net.classify(views).reshape(len(self.net.views), -1, 10).mean(0)


def to_onnx(net: FinalNet, opset: int = 13) -> bytes:
    """The net as ONNX: "images", float32 (N, 1, 28, 28) as `normalize` returns them, to "logits", float32 (N, 10)."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of the two exporters writes the smaller file
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            SpelledOut(folded(net)), (torch.zeros(2, 1, 28, 28),), str(path), opset_version=opset, dynamo=False,
            input_names=["images"], output_names=["logits"], dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip
        return path.read_bytes()


def to_int8(net: FinalNet, images: Tensor) -> bytes:
    """The net as ONNX in 8 bits, weights and values between the layers; the logits stay float32.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018.

    Args:
        net: the net in float32.
        images: float32 (N, 1, 28, 28) that the ranges of the values are taken from.
    """
    import onnx
    from onnxruntime.quantization import quantize_static

    whole = onnx.load_from_string(to_onnx(net, opset=19))  # the lowest whose 8 bits onnx itself evaluates
    batches = iter([{"images": images.numpy()}])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        quantize_static(
            whole, path, SimpleNamespace(get_next=lambda: next(batches, None)),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )  # fmt: skip
        return path.read_bytes()


def logits_of(content: bytes, images: Tensor) -> Tensor:
    """What onnxruntime computes of images, float32 (N, 1, 28, 28), on the CPU: float32 (N, 10)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"images": b.numpy()})[0]) for b in images.split(250)])


@torch.no_grad()
def check(content: bytes, net: FinalNet, images: Tensor) -> None:
    """Compare an exported net with the net itself on images, float32 (N, 1, 28, 28).

    Raises:
        ExportError: a logit differs by more than the tolerance, or a prediction differs.
    """
    expected, logits = torch.cat([net(batch) for batch in images.split(250)]), logits_of(content, images)
    worst, others = (logits - expected).abs().max().item(), int((logits.argmax(1) != expected.argmax(1)).sum())
    if others or not worst <= TOLERANCE:  # it may be nan
        raise ExportError(f"{others} of {len(images)} predictions differ, and logits by up to {worst:.1e}")


def main(arguments: list[str] | None = None) -> int:
    """Export the net; returns the exit code."""
    parser = OneLineParser("export.py", __doc__)
    parser.parse_args(arguments)
    try:
        digits, net = load_mnist(), load_net()
        images = normalize(digits.test_images)
        small, whole = to_int8(net, normalize(digits.train_images[:CALIBRATION])), to_onnx(net)
        check(whole, net, images)
        record: dict[str, Any] = {"seed": 0, "test_total": len(images)}
        for name, content in (("final.onnx", whole), ("final-int8.onnx", small)):
            correct = int((logits_of(content, images).argmax(1) == digits.test_labels).sum())
            record[name] = {"bytes": len(content), "test_correct": correct}
            write_atomically(RESULTS / name, content)
            print(f"written: {RESULTS / name}, {len(content):,} bytes, {correct:,} of {len(images):,} images correct")
        record["versions"] = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
        record |= {"commit": commit(), "hardware": hardware(torch.device("cpu"))}
        write_json(RESULTS / "onnx.json", record)
    except ExportError as error:
        parser.failed(error)
        return 1
    except ImportError as error:
        parser.error(f"{error}: pip install -r tests/requirements.txt")
    except (DataError, OSError, ValueError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # onnxruntime advises to fold BatchNorm, which is done
    sys.exit(main())
