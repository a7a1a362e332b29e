"""Export the final net to ONNX, and compare it with PyTorch on the test images.

python -m experiments.export     writes results/final.onnx; needs what tests/requirements.txt lists

The exit code is 0, 1 if the exported net computes something else, and 2 if something is missing.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("export.py")

import tempfile
from pathlib import Path

import torch

from predict import load_net
from tinymnist.cli import OneLineParser, run_program
from tinymnist.runs import RESULTS, write_atomically
from utils import DataError, load_mnist, normalize

TOLERANCE = 1e-3  # largest difference of a logit


class ExportError(Exception):
    """The logits or the predictions of the exported net differ from the net's."""


def export(path: Path) -> float:
    """Write the net with its published weights; the batch size is dynamic.

    The input "images" is float32 (N, 1, 28, 28) as `utils.normalize` returns it, the output "logits" is (N, 10).

    Returns:
        the largest difference of a logit over all test images.

    Raises:
        ExportError: a prediction differs, or a logit by more than the tolerance; nothing is written.
    """
    import onnxruntime

    net, images = load_net(), normalize(load_mnist().test_images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        torch.onnx.export(
            net,
            (images[:2],),
            file,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
            opset_version=18,
            dynamo=False,
        )
        content = file.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in images.split(250)])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    worst = (logits - expected).abs().max().item()
    if same < len(images) or worst > TOLERANCE:
        raise ExportError(f"{same} of {len(images)} predictions agree, and logits differ by up to {worst:.1e}")
    write_atomically(path, content)
    return worst


def main(arguments: list[str] | None = None) -> int:
    """Export the net; returns the exit code."""
    parser = OneLineParser("export.py", __doc__)
    parser.parse_args(arguments)
    path = RESULTS / "final.onnx"
    try:
        worst = export(path)
    except ExportError as error:
        parser.failed(error)
        return 1
    except ImportError as error:
        parser.error(f"{error}: pip install -r tests/requirements.txt")
    except (DataError, OSError) as error:
        return parser.failed(error)
    print(f"written: {path}; all predictions agree with PyTorch's, and logits differ by at most {worst:.1e}")
    return 0


if __name__ == "__main__":
    run_program("export.py", main)
