"""A net whose weights are whole numbers of few bits, trained as such, and the bytes that it is stored in."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import FinalNet


def codes_of(weight: Tensor, bits: int) -> Tensor:
    """Weights as whole numbers of a few bits, the largest of each output at the end of their range.

    In the backward pass rounding is the identity, the straight-through estimator of Bengio et al., "Estimating or
    Propagating Gradients Through Stochastic Neurons", 2013.

    Args:
        weight: float (outputs, inputs, ...).
        bits: at least 2; the codes run from 1 - 2**(bits - 1) to 2**(bits - 1) - 1.

    Returns:
        float, of the shape of the weight.
    """
    most = 2 ** (bits - 1) - 1
    scaled = weight * (most / weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12))
    return scaled + (scaled.round() - scaled).detach()


class LowBitConv(nn.Conv2d):
    """A 3x3 convolution whose kernels are codes; BatchNorm after it takes up their scale."""

    def __init__(self, inputs: int, outputs: int, bits: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """float (B, inputs, H, W) to (B, outputs, H, W)."""
        return self._conv_forward(x, codes_of(self.weight, self.bits), None)


class HalfNorm(nn.BatchNorm2d):
    """BatchNorm that has, in evaluation, one float16 factor and one float16 offset for each channel."""

    def folded(self) -> tuple[Tensor, Tensor]:
        """The factor and the offset, float16 (C,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        return factor.half(), (self.bias - self.running_mean * factor).half()

    def forward(self, x: Tensor) -> Tensor:
        """float (B, C, H, W) to the same shape."""
        if self.training:
            return super().forward(x)
        factor, offset = (value.to(x.dtype).view(-1, 1, 1) for value in self.folded())
        return x * factor + offset


class LowBitLinear(nn.Linear):
    """A linear layer of codes, one float16 factor for all of them and a float16 bias."""

    def __init__(self, inputs: int, outputs: int, bits: int) -> None:
        super().__init__(inputs, outputs)
        self.bits = bits

    def codes(self) -> Tensor:
        """Float (outputs, inputs)."""
        return codes_of(self.weight.view(1, -1), self.bits).view_as(self.weight)

    def factor(self) -> Tensor:
        """The float16 number that the codes are multiplied by."""
        return (self.weight.detach().abs().max() / (2 ** (self.bits - 1) - 1)).half()

    def forward(self, x: Tensor) -> Tensor:
        """float (B, inputs) to (B, outputs)."""
        return F.linear(x, self.codes()) * self.factor().to(x.dtype) + self.bias.half().to(x.dtype)


class LowBitNet(FinalNet):
    """Step 3 with weights of a few bits.

    What `pack` writes is all that evaluation needs: a net that `unpack` has filled gives the same logits.
    """

    head: LowBitLinear

    def __init__(self, bits: int, channels: tuple[int, int, int, int] = (8, 16, 16, 18)) -> None:
        super().__init__(channels)
        for i, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            setattr(self, f"conv{i}", LowBitConv(inputs, outputs, bits))
            setattr(self, f"norm{i}", HalfNorm(outputs))
        self.head = LowBitLinear(9 * channels[-1], 10, bits)
        self.bits = bits

    def _layers(self) -> list[tuple[LowBitConv, HalfNorm]]:
        return [(getattr(self, f"conv{i}"), getattr(self, f"norm{i}")) for i in range(1, 5)]

    @torch.no_grad()
    def pack(self) -> bytes:
        """All stored numbers: the codes as one stream of bits, then the float16 numbers."""
        codes = [codes_of(conv.weight, self.bits).flatten() for conv, _ in self._layers()]
        codes.append(self.head.codes().flatten())
        whole = (torch.cat(codes).cpu().numpy() + 2 ** (self.bits - 1) - 1).astype(np.uint8)
        stream = np.packbits(whole[:, None] >> np.arange(self.bits, dtype=np.uint8) & 1)
        halves = [half for _, norm in self._layers() for half in norm.folded()]
        halves += [self.head.bias.half(), self.head.factor().view(1)]
        return stream.tobytes() + torch.cat(halves).cpu().numpy().astype("<f2").tobytes()

    @torch.no_grad()
    def unpack(self, data: bytes) -> None:
        """Fill the net from what `pack` gave for a net of the same bits and channels.

        Raises:
            ValueError: the data are too short or too long.
        """
        weights = [conv.weight for conv, _ in self._layers()] + [self.head.weight]
        count = sum(weight.numel() for weight in weights)
        split = -(-count * self.bits // 8)
        sizes = [norm.num_features for _, norm in self._layers() for _ in range(2)] + [10, 1]
        if len(data) != split + 2 * sum(sizes):
            raise ValueError(f"{len(data)} bytes, not {split + 2 * sum(sizes)}: no net of these bits and channels")
        bits = np.unpackbits(np.frombuffer(data[:split], np.uint8))[: count * self.bits].reshape(-1, self.bits)
        whole = torch.from_numpy((bits << np.arange(self.bits, dtype=np.uint8)).sum(1).astype(np.float32))
        whole -= 2 ** (self.bits - 1) - 1
        halves = torch.from_numpy(np.frombuffer(data[split:], "<f2").astype(np.float32)).split(sizes)
        for weight, own in zip(weights, whole.split([w.numel() for w in weights]), strict=True):
            weight.copy_(own.view_as(weight))
        self.head.weight *= halves[-1].item()
        self.head.bias.copy_(halves[-2])
        for (_, norm), factor, offset in zip(self._layers(), halves[0:8:2], halves[1:8:2], strict=True):
            norm.weight.copy_(factor * (1 + norm.eps) ** 0.5)
            norm.bias.copy_(offset)
            norm.reset_running_stats()  # mean 0 and variance 1
