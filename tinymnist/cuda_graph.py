"""The training step as a CUDA graph: the speed of a GPU for a net whose kernels are too small to keep it busy.

A step of these nets is about a hundred small kernels, which Python can hardly launch as fast as a GPU runs
them. Captured once, a step is launched as a whole (see "CUDA graphs" in the PyTorch manual, and Ng et al.,
"Accelerating PyTorch with CUDA Graphs", 2021). Nothing here is needed to understand the training:
`utils.train_epoch` is the same loop in plain form, and what is used on a CPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PLAIN_STEPS = 3  # before the capture, so that libraries and the optimizer have made what they keep


class StepGraph:
    """Runs a training step for each batch of a random order, on a stream of its own.

    The first steps run plainly; then the step on a whole batch is captured and from there on replayed. The last
    batch of an epoch, if it is smaller, runs plainly. If the step cannot be captured, a line on stderr says
    why, and all go on plainly.

    Args:
        body: the step; takes the indices of the batch, int64 (B,), and the number of the step since the start
            of training, int64 (1,), both on the device; returns the sum of the losses and the number of
            correct answers as tensors. It must not wait for the device.
        n_images: the length of an epoch.
        batch_size: images per step; the last batch of an epoch holds what is left.
        generator: of the shuffling and of everything that `body` draws; on the device.
    """

    def __init__(
        self,
        body: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        n_images: int,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        device = generator.device
        self.body, self.generator = body, generator
        self.sizes = [min(batch_size, n_images - start) for start in range(0, n_images, batch_size)]
        self.stream = torch.cuda.Stream(device)
        self.order = torch.empty(n_images, dtype=torch.long, device=device)
        self.offsets = torch.arange(batch_size, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # of the next batch in the order
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.loss_sum, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self.plain_steps_left: float = PLAIN_STEPS
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def start_epoch(self) -> None:
        """Draw a new order and set the counters to zero."""
        with torch.cuda.stream(self.stream):
            self.order.copy_(torch.randperm(len(self.order), generator=self.generator, device=self.order.device))
            for counter in (self.position, self.loss_sum, self.correct):
                counter.zero_()

    def run(self, size: int) -> None:
        """Launch the next step, on a batch of that size, and return without waiting for it."""
        with torch.cuda.stream(self.stream):
            if size < len(self.offsets) or self.plain_steps_left > 0:
                self._plain(size)
                self.plain_steps_left -= 1
                return
            if self.graph is None:
                self._capture(size)
            if self.graph is None:
                self.plain_steps_left = math.inf
                self._plain(size)
            else:
                self.graph.replay()

    def totals(self) -> tuple[float, int, int]:
        """Mean loss of the epoch, number of correct answers and number of images; waits for the device."""
        with torch.cuda.stream(self.stream):
            return self.loss_sum.item() / len(self.order), int(self.correct), len(self.order)

    def _plain(self, size: int) -> None:
        batch = self.order.index_select(0, self.position + self.offsets[:size])
        loss, correct = self.body(batch, self.step)
        self.loss_sum += loss
        self.correct += correct
        self.position += size
        self.step += 1

    def _capture(self, size: int) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)  # replays draw on, as plain steps would
            with torch.cuda.graph(graph, stream=self.stream):
                self._plain(size)
        except (RuntimeError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            print(f"no CUDA graph of the training step, so the plain loop goes on: {reason}", file=sys.stderr)
        else:
            self.graph = graph


def train_epoch_together(
    graphs: Sequence[StepGraph], after_step: Callable[[int], object] | None = None
) -> list[tuple[float, int, int]]:
    """An epoch of several trainings at once, step by step in turn; the device runs their streams side by side.

    Args:
        graphs: trainings with the same number of images and the same batch size.
        after_step: called after each step of all, with their number.

    Returns:
        For each: mean loss over its N images, number of them classified correctly while training, and N.
    """
    for graph in graphs:
        graph.start_epoch()
    for size in graphs[0].sizes:
        for graph in graphs:
            graph.run(size)
        if after_step is not None:
            after_step(len(graphs))
    return [graph.totals() for graph in graphs]
