"""Forward and backward pass as CUDA graphs, for nets whose kernels are too small to keep a GPU busy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GraphedNet(nn.Module):
    """A net whose training passes on batches of one shape are replayed as CUDA graphs.

    The capture is `torch.cuda.make_graphed_callables` (Ng et al., "Accelerating PyTorch with CUDA Graphs", 2021).
    Its warm-up passes change BatchNorm's statistics and the state of the random generator; both are restored.
    A batch of another shape, such as the last of an epoch, goes through the net as usual, and so does evaluation.

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
        torch.cuda.make_graphed_callables(self.graphed, (batch,))
        net.load_state_dict(state)
        torch.cuda.set_rng_state(random_state, batch.device)

    def forward(self, x: Tensor) -> Tensor:
        """float (B, 1, 28, 28) to logits (B, 10)."""
        return self.graphed(x) if self.training and x.shape == self.shape else self.net(x)
