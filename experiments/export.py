"""The final net as ONNX, checked against PyTorch on the test images.

python -m experiments.export     writes results/final.onnx; needs what tests/requirements.txt lists
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch

from predict import load_net
from tinymnist.runs import RESULTS, write_atomically
from utils import DataError, load_mnist, normalize

TOLERANCE = 1e-3  # largest difference of a logit


class ExportError(Exception):
    """The exported net does not answer as the net does."""


def export(path: Path) -> int:
    """Write the net with its published weights; takes and returns float32, any number of images at a time.

    The input "images" is (N, 1, 28, 28) as `utils.normalize` returns it, the output "logits" is (N, 10).

    Returns:
        how many of the test images both classify alike, which is all of them.

    Raises:
        ExportError: they differ; then nothing is written.
    """
    import onnxruntime

    net, buffer = load_net(), io.BytesIO()
    options = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_axes": {"images": {0: "N"}, "logits": {0: "N"}},
    }
    torch.onnx.export(net, torch.zeros(2, 1, 28, 28), buffer, opset_version=18, dynamo=False, **options)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    images = normalize(load_mnist().test_images)
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in images.split(250)])
    [logits] = session.run(None, {"images": images.numpy()})
    logits = torch.from_numpy(logits)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    worst = (logits - expected).abs().max().item()
    if same < len(images) or worst > TOLERANCE:
        raise ExportError(f"{same} of {len(images)} answers are the same, and logits differ by up to {worst:.1e}")
    write_atomically(path, buffer.getvalue())
    return same


def main() -> int:
    """Export; exit code 1 if the exported net answers otherwise, 2 if something is missing."""
    path = RESULTS / "final.onnx"
    try:
        print(f"written: {path}; the same answer to {export(path):,} test images")
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"export: {error}: pip install -r tests/requirements.txt", file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
