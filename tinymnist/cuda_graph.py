"""Augmentation, forward and backward pass as CUDA graphs, for nets whose kernels are too small to keep a GPU busy.

A graph is captured on batches of one size. A batch of another size, such as the last of an epoch, goes the usual way.
See Ng et al., "Accelerating PyTorch with CUDA Graphs", 2021.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from tinymnist.augmentation import Augment, Batches, normalize
from tinymnist.recipe import Recipe


def capture(net: nn.Module, batches: Any, images: Tensor) -> nn.Module:
    """Prepare a net, and the augmentation of its batches, to be replayed; what cannot be captured stays as it is.

    Args:
        net: on a CUDA device.
        batches: what it will be trained on; of `Batches`, the augmentation is captured too.
        images: uint8 (B, 28, 28), as many as a batch has.

    Returns:
        what to train in place of the net, whose parameters and buffers it shares; the net itself, with a message on
        standard error, if its passes cannot be captured, for example because they wait for the GPU.
    """
    trained = net
    try:
        trained = GraphedNet(net, normalize(images))
        if isinstance(batches, Batches):
            batches.augment = GraphedAugment(batches.augment, images, batches.recipe, batches.generator)
    except RuntimeError as error:
        what, reason = "net" if trained is net else "augmentation", " ".join(str(error).split())[:200]
        print(f"the {what} is not replayed as a CUDA graph ({reason})", file=sys.stderr)
    return trained


class GraphedNet(nn.Module):
    """A net whose training passes on batches of one shape are replayed; evaluation goes through the net as usual.

    The warm-up passes of the capture change BatchNorm's statistics and the state of the random generator; both are
    restored.

    Args:
        net: on a CUDA device; it shares its parameters and buffers with this module.
        batch: float (B, 1, 28, 28), an example of the batches to come.
    """

    def __init__(self, net: nn.Module, batch: Tensor) -> None:
        super().__init__()
        self.net, self.shape = net, batch.shape
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        random_state = torch.cuda.get_rng_state(batch.device)
        # The capture replaces a module's `forward`: an outer module is captured, so that the net stays as it is.
        self.graphed = nn.Sequential(net).train()
        try:
            torch.cuda.make_graphed_callables(self.graphed, (batch,))
        finally:
            net.load_state_dict(state)
            torch.cuda.set_rng_state(random_state, batch.device)

    def forward(self, x: Tensor) -> Tensor:
        """float (B, 1, 28, 28) to logits (B, classes)."""
        return self.graphed(x) if self.training and x.shape == self.shape else self.net(x)


class GraphedAugment:
    """An augmentation that is replayed on batches of one shape, with the random numbers that it would draw itself.

    Args:
        augment: that of `Batches`; it must not copy from the CPU, nor wait for the GPU.
        images: uint8 (B, 28, 28) on a CUDA device, an example of the batches to come.
        recipe, generator: what it will be called with, always the same.
    """

    def __init__(self, augment: Augment, images: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        self.augment, self.images, state = augment, images.clone(), generator.get_state()
        try:
            augment(self.images, recipe, generator)  # what libraries make on a first call is not captured
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph):
                self.batch = augment(self.images, recipe, generator)
        finally:
            generator.set_state(state)

    def __call__(self, images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
        """uint8 (B, 28, 28) to float (B, 1, 28, 28), which the next call overwrites."""
        if images.shape != self.images.shape:
            return self.augment(images, recipe, generator)
        self.images.copy_(images)
        self.graph.replay()
        return self.batch
