"""Images per second in evaluation: the final net in PyTorch and as ONNX, beside the net of PyTorch's example.

python -m experiments.inference     writes results/inference_cpu.json

Every contender runs on one thread, in a process of its own, and is measured once before any is measured again. It
needs what tests/requirements.txt lists.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench import in_turn, write_measured
from experiments.records import DoubtingNet
from model import FinalNet
from predict import load_net
from tinymnist.cli import OneLineParser
from tinymnist.runs import RESULTS
from utils import DataError, load_mnist, normalize

BATCHES = 1, 250
WARM_UP = 5  # batches before the time counts, in which libraries make their kernels
SECONDS = 2.0  # that each measurement takes at least


class ExampleNet(nn.Module):
    """The net of PyTorch's MNIST example (github.com/pytorch/examples): 1,199,882 parameters, without its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, 1, 28, 28) to log-probabilities (N, 10)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.flatten(1)))), 1)


def of_net(net: nn.Module) -> Callable[[Tensor], object]:
    """A net in evaluation mode, without gradients."""
    net.eval()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return net(images)

    return run


def of_file(name: str) -> Callable[[Tensor], object]:
    """An ONNX file of `results/` in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(RESULTS / name, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def doubting() -> nn.Module:
    """The final net, with the crop first, and the four views only where that is less than 99 % sure."""
    net = DoubtingNet(FinalNet().views)
    net.load_state_dict(load_net().state_dict())
    return net


CONTENDERS: dict[str, Callable[[], Callable[[Tensor], object]]] = {
    "Step 3, PyTorch": lambda: of_net(load_net()),
    "Step 3, PyTorch, other views only in doubt": lambda: of_net(doubting()),
    "Step 3, ONNX, float32": lambda: of_file("final.onnx"),
    "Step 3, ONNX, 8 bits": lambda: of_file("final-int8.onnx"),
    "PyTorch's example, 1,199,882 parameters": lambda: of_net(ExampleNet()),
}


def measure(job: tuple[str, int]) -> float:
    """Images per second of a contender with batches of a size, in a process of its own."""
    name, size = job
    run, batches = CONTENDERS[name](), itertools.cycle(normalize(load_mnist().test_images[:5000]).split(size))
    for images in itertools.islice(batches, WARM_UP):
        run(images)
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < SECONDS:
        run(next(batches))
        done += size
    return done / passed


def main(arguments: list[str] | None = None) -> int:
    """Measure the contenders in turn and write what came out."""
    command = OneLineParser("inference.py", __doc__)
    command.parse_args(arguments)
    jobs = [(name, size) for name in CONTENDERS for size in BATCHES]
    found: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    try:
        for job, value in in_turn(measure, jobs):
            found[job].append(value)
        rows = [
            {"net": name, "batch": size, "images_per_second": values, "median": statistics.median(values)}
            for (name, size), values in found.items()
        ]
        write_measured("inference", torch.device("cpu"), threads=1, rows=rows)
    except (DataError, ImportError, ValueError, OSError) as error:
        return command.failed(error)
    for row in rows:
        print(f"{row['net']}, batches of {row['batch']}: {row['median']:,.0f} images per second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
