"""Which device to train on, and that it computes the same each time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ACCELERATORS = ("cuda", "mps", "xpu")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name, or with "auto" the best there is: CUDA, else another accelerator, else the CPU.

    Raises:
        ValueError: the name is no device, or that device is not there.
    """
    if name == "auto":
        return torch.device(next((kind for kind in ACCELERATORS if _count(kind)), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", *ACCELERATORS):
        raise ValueError(f"no device {name!r}: use auto, cpu, cuda, cuda:N, {' or '.join(ACCELERATORS[1:])}")
    if device.type != "cpu" and (device.index or 0) >= (count := _count(device.type)):
        there = f"{device.type}:0 to {device.type}:{count - 1}" if count else "none"
        raise ValueError(f"no device {name!r} here ({device.type} devices: {there}): use auto or cpu")
    return device


def _count(kind: str) -> int:
    """How many accelerators of a kind there are."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return module.device_count() if module.is_available() else 0


@contextlib.contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """On a GPU the same algorithms each time; what else a program has set for cuDNN, such as TF32, stays."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
