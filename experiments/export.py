"""Export the final net to ONNX, in float32 and in 8 bits, and compare both with PyTorch on the test images.

python -m experiments.export                writes results/final.onnx and final-int8.onnx
python -m experiments.export --all-seeds    also measures every published net, and writes results/int8.json

It needs what tests/requirements.txt lists. The exit code is 0, 1 if an exported net computes something else, and 2 if
something is missing.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("export.py")

import copy
import hashlib
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from tinymnist.deslant import Deslant
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from predict import load_net
from tinymnist.cli import OneLineParser, run_program
from tinymnist.runs import RESULTS, commit, hardware, load_runs, write_atomically, write_json
from utils import DataError, Digits, load_mnist, normalize

TOLERANCE = 1e-3  # largest difference of a logit in float32
AGREEING = 0.998  # of the predictions in 8 bits
CALIBRATION = slice(0, 1_000)  # the training images that the ranges of the 8-bit values are taken from
JUDGED = slice(50_000, 60_000)  # the training images that decided against a scale for each channel of the weights


class ExportError(Exception):
    """The logits or the predictions of an exported net differ from the net's."""


class PlainDeslant(Deslant):
    """`Deslant` for 28x28 pixels without grid sampling, which not every runtime has.

    The shear moves pixels within their row, so each row is multiplied by the weights of its linear interpolation.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Float (N, 1, 28, 28) to (N, 1, 28 - 2 crop, 28 - 2 crop)."""
        rows, at, kept = images[:, 0], torch.arange(28.0) - 13.5, slice(self.crop, 28 - self.crop)
        of_row, x_of_row = rows.sum(2), rows @ at
        sums = (x_of_row.sum(1), of_row @ at, x_of_row @ at, of_row @ at**2)
        x, y, xy, yy = (value / of_row.sum(1).clamp(min=1e-6) for value in sums)
        slant = ((xy - x * y) / (yy - y**2).clamp(min=1e-3)).clamp(-1, 1)
        source = at[kept] + slant[:, None, None] * (at[kept, None] - y[:, None, None])  # (N, rows, columns)
        weights = (1 - (source[..., None] - at).abs()).relu()
        return (weights @ rows[:, kept, :, None])[..., 0][:, None]


def portable(net: nn.Module) -> nn.Module:
    """A copy for export that computes the same: without grid sampling, and BatchNorm folded into its convolution.

    Normalization and ReLU may precede max-pooling where no scale is negative. What is pooled in 8 bits then has no
    negative half; the ReLU after pooling is left without effect.
    """
    net = copy.deepcopy(net).eval()
    layers = dict(net.named_children())
    for name, layer in layers.items():
        norm = layers.get(name.replace("conv", "norm"))
        if isinstance(layer, Deslant):
            setattr(net, name, PlainDeslant(layer.crop))
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and bool((norm.weight >= 0).all()):
            setattr(net, name, nn.Sequential(fuse_conv_bn_eval(layer, norm), nn.ReLU()))
            setattr(net, name.replace("conv", "norm"), nn.Identity())
    return net


def to_onnx(net: nn.Module) -> bytes:
    """The net as ONNX: "images", float32 (N, 1, 28, 28) as `normalize` returns them, to "logits" (N, 10)."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of the two exporters writes the smaller file
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            portable(net), (torch.zeros(2, 1, 28, 28),), path, input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}}, opset_version=13, dynamo=False,
        )  # fmt: skip
        return path.read_bytes()


def quantized(content: bytes, images: Tensor, per_channel: bool = False) -> bytes:
    """The net in 8 bits, weights and values between the layers, with ranges from the images; deslanting stays float32.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018.
    """
    import onnx
    from onnxruntime.quantization import quantize_static

    net, batches = onnx.load_from_string(content), iter([{"images": images.numpy()}])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        quantize_static(
            net, path, SimpleNamespace(get_next=lambda: next(batches, None)), per_channel=per_channel,
            nodes_to_exclude=[node.name for node in net.graph.node if node.name.startswith("/deslant/")],
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # the logits stay float32
        )  # fmt: skip
        return path.read_bytes()


def logits_of(content: bytes, images: Tensor) -> Tensor:
    """What onnxruntime computes of images on the CPU: (N, 10)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"images": b.numpy()})[0]) for b in images.split(500)])


def bytes_stored(content: bytes) -> int:
    """Bytes of the weights, biases, scales and zero points: of all numbers but those of the deslanting."""
    import onnx

    return sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load_from_string(content).graph.initializer)


@torch.no_grad()
def export(net: nn.Module, digits: Digits) -> tuple[bytes, bytes]:
    """The net as ONNX, in float32 and in 8 bits; the batch size is dynamic.

    Raises:
        ExportError: on the test images, a prediction or by more than the tolerance a logit differs in float32, or too
            many predictions differ in 8 bits.
    """
    images, whole = normalize(digits.test_images), to_onnx(net)
    small = quantized(whole, normalize(digits.train_images[CALIBRATION]))
    expected = torch.cat([net(batch) for batch in images.split(250)])
    for content, least, tolerance in ((whole, 1.0, TOLERANCE), (small, AGREEING, float("inf"))):
        logits = logits_of(content, images)
        same, worst = int((logits.argmax(1) == expected.argmax(1)).sum()), (logits - expected).abs().max().item()
        if same < least * len(images) or worst > tolerance:
            raise ExportError(f"{same} of {len(images)} predictions agree, and logits differ by up to {worst:.1e}")
    return whole, small


def measure(seed: int, digits: Digits) -> dict[str, Any]:
    """A published net in float32 and in 8 bits: on the test images, and on training images what decides the form."""
    whole, few = to_onnx(load_net(seed)), normalize(digits.train_images[CALIBRATION])
    files = {"float32": whole, "int8": quantized(whole, few), "int8 per channel": quantized(whole, few, True)}
    weights = (RESULTS / "step3" / f"seed_{seed}.pt").read_bytes()
    row: dict[str, Any] = {"seed": seed, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    for name, content in files.items():
        judged = logits_of(content, normalize(digits.train_images[JUDGED]))
        row[name] = {"training_loss": F.cross_entropy(judged, digits.train_labels[JUDGED]).item()}
        row[name] |= {"bytes_stored": bytes_stored(content), "bytes_of_file": len(content)}
        if name != "int8 per channel":  # not chosen, so the test images have no part in it
            predicted = logits_of(content, normalize(digits.test_images)).argmax(1)
            row[name]["test_correct"] = int((predicted == digits.test_labels).sum())
    return row


def main(arguments: list[str] | None = None) -> int:
    """Export the net; returns the exit code."""
    parser = OneLineParser("export.py", __doc__)
    parser.add_argument("--all-seeds", action="store_true", help="also measure every published net: results/int8.json")
    options = parser.parse_args(arguments)
    try:
        digits = load_mnist()
        for name, content in zip(("final.onnx", "final-int8.onnx"), export(load_net(), digits), strict=True):
            write_atomically(RESULTS / name, content)
            print(f"written: {RESULTS / name}, {len(content):,} bytes")
        if options.all_seeds:
            record: dict[str, Any] = {f"{name}_version": version(name) for name in ("torch", "onnx", "onnxruntime")}
            record |= {"commit": commit(), "hardware": hardware(torch.device("cpu"))}
            record["runs"] = [measure(run["seed"], digits) for run in load_runs("step3")]
            write_json(RESULTS / "int8.json", record)
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
    run_program("export.py", main)
