"""A moving average of the weights, which is evaluated in place of the weights that the optimizer updates."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """The exponential moving average of a net's weights and BatchNorm statistics.

    It goes back to the uniform average of Polyak and Juditsky, 1992.

    Attributes:
        model: a copy of the net that holds the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model), decay
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages = [a for a, _ in pairs if a.is_floating_point()]
        self._values = [v for _, v in pairs if v.is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # BatchNorm's num_batches_tracked

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add (1 - decay) * (weights - average) to the average, with the net's current weights.

        The decay is at most (1 + step) / (10 + step), step from 0, so that the random initial weights soon lose
        their share in the average.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        moves = torch._foreach_sub(self._values, self._averages)  # one kernel for many tensors
        torch._foreach_mul_(moves, 1 - decay)
        torch._foreach_add_(self._averages, moves)
        for average, value in self._counts:
            average.copy_(value)
