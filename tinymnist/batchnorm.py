"""A faster backward pass of BatchNorm on a CPU, for few channels and several threads.

PyTorch's own, for channels-last images, lets each thread add up its share of the image into a row of
`channels` floats. With fewer than 16 channels the rows of two threads lie in one cache line of 64 bytes, for
which the processor's cores then compete at each pixel. Here the sums run along whole images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CACHE_LINE = 64  # bytes


class _Normalize(torch.autograd.Function):
    """BatchNorm in training mode; forward as in PyTorch, backward by Ioffe and Szegedy, 2015, section 3."""

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
        """As `torch.native_batch_norm` does."""
        out, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, training=True, momentum=momentum, eps=eps
        )
        ctx.save_for_backward(x, weight, mean, inverse_std)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, mean, inverse_std = ctx.saved_tensors
        n, channels, height, width = x.shape
        count = n * height * width

        def rows(t: Tensor) -> Tensor:  # (N, C, H, W) -> (N, H * W * C), a view of a channels-last tensor
            return t.permute(0, 2, 3, 1).reshape(n, -1)

        def across(per_channel: Tensor) -> Tensor:  # (C,) -> (H * W * C,)
            return per_channel.repeat(height * width)

        grads, centred = rows(grad), rows(x) - across(mean)
        grad_bias = grads.sum(0).view(-1, channels).sum(0)
        grad_weight = (grads * centred).sum(0).view(-1, channels).sum(0) * inverse_std
        scale = weight * inverse_std
        grad_x = torch.addcmul(across(-scale * grad_bias / count), grads, across(scale))
        grad_x.addcmul_(centred, across(-scale * inverse_std * grad_weight / count))
        grad_x = grad_x.view(n, height, width, channels).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad_bias, None, None, None, None


class _FewChannels(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the backward pass above."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return _Normalize.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


@contextlib.contextmanager
def fast_batchnorm(model: nn.Module) -> Iterator[None]:
    """Inside, the model's BatchNorm layers that gain by it use the backward pass above.

    They are those of type `nn.BatchNorm2d` with scale, shift and running statistics of the usual kind, whose
    channels do not fill whole cache lines; with one thread there are none.
    """
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.BatchNorm2d and m.affine and m.track_running_stats and m.momentum is not None
    ]
    chosen = [m for m in layers if m.weight.device.type == "cpu" and 4 * m.num_features % CACHE_LINE]
    if torch.get_num_threads() == 1:
        chosen = []
    for layer in chosen:
        layer.__class__ = _FewChannels
    try:
        yield
    finally:
        for layer in chosen:
            layer.__class__ = nn.BatchNorm2d
