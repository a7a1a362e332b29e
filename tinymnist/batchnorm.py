"""BatchNorm that is faster on a CPU, for few channels and several threads.

PyTorch's own, for channels-last images, lets each thread add up its share of the images into a row of
`channels` floats. Where the rows of two threads share a cache line, the cores compete for it at each pixel. That is
so unless the channels are a multiple of 16 in the backward pass, and of 8 in the forward pass. Here the sums run
along whole images; what it saves in an epoch is measured by `experiments/bench.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

FORWARD, BACKWARD = 8, 16  # of multiples of these many channels PyTorch's own passes are fast
SMALL = 2**15  # values of a batch; below, PyTorch's own layer is fast enough


class _Normalize(torch.autograd.Function):
    """BatchNorm in training mode (Ioffe and Szegedy, 2015, section 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """The normalized images; moves the running statistics."""
        if x.shape[1] % FORWARD == 0:
            out, mean, inverse_std = torch.native_batch_norm(
                x, weight, bias, running_mean, running_var, training=True, momentum=momentum, eps=eps
            )
        else:
            rows, count = _rows(x), x.numel() // x.shape[1]
            mean = _per_channel(rows, x) / count
            centred = rows - _across(mean, x)
            var = _per_channel(centred.square(), x) / count
            inverse_std = (var + eps).rsqrt()
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (count / (count - 1)), momentum)
            out = torch.empty_like(x, memory_format=torch.channels_last)  # no view, so it may be changed in place
            torch.addcmul(_across(bias, x), centred, _across(weight * inverse_std, x), out=_rows(out))
        ctx.save_for_backward(x, weight, mean, inverse_std)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, mean, inverse_std = ctx.saved_tensors
        grads, count = _rows(grad), x.numel() // x.shape[1]
        centred = _rows(x) - _across(mean, x)
        grad_bias = _per_channel(grads, x)
        grad_weight = _per_channel(grads * centred, x) * inverse_std
        scale = weight * inverse_std
        grad_x = torch.addcmul(_across(-scale * grad_bias / count, x), grads, _across(scale, x))
        grad_x.addcmul_(centred, _across(-scale * inverse_std * grad_weight / count, x))
        n, channels, height, width = x.shape
        grad_x = grad_x.view(n, height, width, channels).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H * W * C); of a channels-last tensor this is a view."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _per_channel(rows: Tensor, like: Tensor) -> Tensor:
    """The sum of each channel, (C,)."""
    return rows.sum(0).view(-1, like.shape[1]).sum(0)


def _across(per_channel: Tensor, like: Tensor) -> Tensor:
    """(C,) repeated for each pixel, (H * W * C,)."""
    return per_channel.repeat(like.shape[2] * like.shape[3])


class _FewChannels(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that computes as above."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.numel() < SMALL:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return _Normalize.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


@contextlib.contextmanager
def fast_batchnorm(model: nn.Module) -> Iterator[None]:
    """Inside, the model's BatchNorm layers that gain by it compute as above.

    They are those of type `nn.BatchNorm2d` with scale, shift and running statistics of the usual kind, and a
    number of channels that is no multiple of 16; with one thread there are none.
    """
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.BatchNorm2d and m.affine and m.track_running_stats and m.momentum is not None
    ]
    chosen = [m for m in layers if m.weight.device.type == "cpu" and m.num_features % BACKWARD]
    if torch.get_num_threads() == 1:
        chosen = []
    for layer in chosen:
        layer.__class__ = _FewChannels
    try:
        yield
    finally:
        for layer in chosen:
            layer.__class__ = nn.BatchNorm2d
