"""The receptive-field table of convolutions and poolings, computed from the model itself.

The model runs once on a blank image, and every tensor operation is traced. Operations are traced, not
modules, so that `F.max_pool2d(x, 2)` or `x.mean((2, 3))` in a forward pass count like a layer. After
an operation whose effect is not known, a convolution or pooling is an error.

Size, jump and receptive field follow Dumoulin and Visin, "A guide to convolution arithmetic for deep
learning", 2016, and Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks", Distill, 2019.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinymnist.deslant import Deslant
from tinymnist.tables import aligned

Pair = tuple[int, int]

# In evaluation mode each output value depends only on the input values at the same position.
POINTWISE = frozenset(
    """add sub rsub mul div neg abs sign pow sqrt exp log clamp clamp_min clamp_max maximum minimum relu
    leaky_relu prelu _prelu_kernel elu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus
    threshold log_sigmoid_forward native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm
    miopen_batch_norm _to_copy clone detach alias lift_fresh cat""".split()
)


@dataclass(frozen=True)
class LayerField:
    """One row: a layer and what it does to the map.

    Where height and width agree a field is one int, else the pair (height, width).

    Attributes:
        name: the module's name in the model, or the operation's if it is not a module.
        kernel, stride, padding, dilation: of the layer, in pixels of its input.
        size_in, size_out: pixels of its input and its output map.
        channels_out: channels of its output map.
        jump: distance, in pixels of the image, between the fields of two adjacent outputs.
        receptive_field: size, in pixels of the image, of the area that one output depends on.
    """

    name: str
    kernel: int | Pair
    stride: int | Pair
    padding: int | Pair
    dilation: int | Pair
    size_in: int | Pair
    size_out: int | Pair
    channels_out: int
    jump: int | Pair
    receptive_field: int | Pair


@dataclass(frozen=True)
class _Axis:
    """What is known of a map along one axis: its size, its jump, and the field [start, stop) of its first output."""

    size: int
    jump: int = 1
    start: int = 0
    stop: int = 1

    def window(self, size: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
        """The axis after a layer with this window and an output of `size` pixels."""
        start = self.start - padding * self.jump
        return _Axis(
            size, self.jump * stride, start, start + self.stop - self.start + dilation * (kernel - 1) * self.jump
        )


@dataclass(frozen=True)
class _Map:
    """What is known of a tensor that depends on the image: height and width, or the operation that ended the map."""

    axes: tuple[_Axis, ...]
    ended_by: str | None = None

    @property
    def size(self) -> Pair:
        return self.axes[0].size, self.axes[1].size


def receptive_field(model: nn.Module, input_size: int | Pair = 28) -> list[LayerField]:
    """The receptive-field table of a model: a row for the input and one per convolution and pooling.

    Where paths join (a residual sum, a concatenation), the field is the union of the paths'. After a `Deslant`
    layer, fields are counted in pixels of the deslanted image.

    Args:
        model: takes float (1, C, H, W), C as in its first convolution; it runs in evaluation mode
            without gradients, and its mode is restored.
        input_size: height and width of the image in pixels, or the pair of them.

    Returns:
        the rows in the order of execution; a layer that is used twice has two rows.

    Raises:
        ValueError: paths of different jumps join, a layer follows an operation whose effect is not known or has no
            single kernel and stride (uneven adaptive pooling), or the model rejects the image.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise ValueError(f"input_size must be at least 1 pixel, not {input_size}")
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 1)
    like = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, channels, height, width, device=like.device, dtype=like.dtype)
    modes = [(module, module.training) for module in model.modules()]
    watch = _Watch(model, image)
    try:
        with torch.no_grad(), watch:
            model.eval()(image)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model does not take an image of {height}x{width} pixels: {reason}") from error
    finally:
        watch.remove()
        for module, training in modes:
            module.training = training
    return watch.rows


def receptive_field_table(rows: list[LayerField]) -> str:
    """The rows as an aligned Markdown table, which reads well as plain text too."""
    heading = [field.name.replace("_", " ") for field in fields(LayerField)]
    cells = [[f"{v[0]}x{v[1]}" if isinstance(v, tuple) else str(v) for v in astuple(row)] for row in rows]
    return aligned([heading, *cells])


class _Watch(TorchDispatchMode):
    """Follows the image through the model, operation by operation, and collects the rows."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        height, width = image.shape[-2:]
        size = _short((height, width))
        self.rows = [LayerField("input", 1, 1, 0, 1, size, size, image.shape[1], 1, 1)]
        # The tensors are kept beside what is known of them, because an id is unique among living objects only.
        self.known: dict[int, tuple[Tensor, _Map]] = {id(image): (image, _Map((_Axis(height), _Axis(width))))}
        self.running: list[tuple[str, nn.Module]] = []
        self.handles = []
        for name, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str) -> Any:
        return lambda module, _inputs: self.running.append((name, module))

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        name, _ = self.running.pop()
        if isinstance(module, Deslant) and isinstance(output, Tensor):
            height, width = output.shape[-2:]
            before, after = _short(tuple(inputs[0].shape[-2:])), _short((height, width))
            self.known[id(output)] = (output, _Map((_Axis(height), _Axis(width))))
            self.rows.append(LayerField(name, 1, 1, -module.crop, 1, before, after, output.shape[1], 1, 1))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and id(t) in self.known]
        if inputs:
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            after = self.follow(func._schema.name.removeprefix("aten::"), inputs, outputs, args)
            self.known |= {id(t): (t, after) for t in outputs}
        return result

    def follow(self, operation: str, inputs: list[Tensor], outputs: list[Tensor], args: tuple) -> _Map:
        """What is known of the outputs of one operation."""
        name = self.layer_name(operation)
        maps = [self.known[id(t)][1] for t in inputs]
        before, operation = maps[0], operation.rstrip("_")
        windows = _windows(operation, args)
        if windows is not None:
            self._require_map(name, before, inputs)
            sizes = outputs[0].shape[2:] if outputs[0].dim() == 4 else (1, 1)
            after = _Map(tuple(axis.window(s, *w) for axis, s, w in zip(before.axes, sizes, windows, strict=True)))
            self._add_row(name, before, after, windows, channels=outputs[0].shape[1])
            return after
        if "conv" in operation or "pool" in operation:
            raise ValueError(f"the effect of {self.kind(name, operation)} on the receptive field is not known")
        ended = next((m for m in maps if m.ended_by), None)
        if ended:
            return ended
        if before.size == (1, 1) and all(m == before for m in maps):
            return before  # a single pixel: no operation changes its field
        if operation in POINTWISE and all(t.shape[2:] == m.size for t, m in zip(inputs, maps, strict=True)):
            return self._join(name, maps, outputs[0])
        if operation == "constant_pad_nd" and outputs[0].dim() == 4:
            left, top = (args[1][0], args[1][2] if len(args[1]) > 2 else 0)
            return _Map(
                tuple(
                    replace(axis, size=size, start=axis.start - pad * axis.jump, stop=axis.stop - pad * axis.jump)
                    for axis, size, pad in zip(before.axes, outputs[0].shape[2:], (top, left), strict=True)
                )
            )
        return replace(before, ended_by=self.kind(name, operation))

    def layer_name(self, operation: str) -> str:
        """The running module's name if it has no submodules, else that name and the operation's."""
        name, module = self.running[-1]
        leaf = name and not any(True for _ in module.children())
        return name if leaf else f"{name}.{operation.removesuffix('_with_indices')}".lstrip(".")

    def kind(self, name: str, operation: str) -> str:
        """The layer for messages: its name, and its class if it is a module, else the operation."""
        own_name, module = self.running[-1]
        return f"{name} ({type(module).__name__ if name == own_name else operation})"

    @staticmethod
    def _require_map(name: str, before: _Map, inputs: list[Tensor]) -> None:
        if before.ended_by:
            raise ValueError(f"{name} comes after {before.ended_by}, whose effect on the receptive field is not known")
        if inputs[0].dim() != 4 or inputs[0].shape[2:] != before.size or len(inputs) > 1:
            raise ValueError(f"{name} does not work on the map of the layer before it: there is no chain to follow")

    @staticmethod
    def _join(name: str, maps: list[_Map], output: Tensor) -> _Map:
        """The union of the fields of all paths, which line up only if size and jump agree."""
        if any((a.size, a.jump) != (b.size, b.jump) for m in maps for a, b in zip(m.axes, maps[0].axes, strict=True)):
            raise ValueError(f"the layers form no chain: {name} joins paths whose size or jump differ")
        if output.shape[2:] != maps[0].size:
            return replace(maps[0], ended_by=name)
        along = zip(*(m.axes for m in maps), strict=True)
        return _Map(tuple(replace(a[0], start=min(x.start for x in a), stop=max(x.stop for x in a)) for a in along))

    def _add_row(self, name: str, before: _Map, after: _Map, windows: list[tuple[int, ...]], channels: int) -> None:
        kernel, stride, padding, dilation = (_short(pair) for pair in zip(*windows, strict=True))
        jump, field = _short(a.jump for a in after.axes), _short(a.stop - a.start for a in after.axes)
        sizes = _short(before.size), _short(after.size)
        self.rows.append(LayerField(name, kernel, stride, padding, dilation, *sizes, channels, jump, field))


def _windows(operation: str, args: tuple) -> list[tuple[int, ...]] | None:
    """(kernel, stride, padding, dilation) along height and width if the operation is a layer with a window."""
    if operation == "convolution":
        _, weight, _, stride, padding, dilation, transposed = args[:7]
        if transposed or weight.dim() != 4:
            return None
        return list(zip(weight.shape[2:], *map(_long, (stride, padding, dilation)), strict=True))
    if operation in ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d"):
        kernel, stride, padding, dilation = args[1:5] + (None, 0, 1)[len(args) - 2 :]
        dilation = 1 if operation == "avg_pool2d" else dilation  # its argument there is ceil_mode
        return list(zip(*map(_long, (kernel, stride or kernel, padding, dilation)), strict=True))
    if operation in ("_adaptive_avg_pool2d", "adaptive_max_pool2d"):
        return [_adaptive_window(n, m) for n, m in zip(args[0].shape[-2:], _long(args[1]), strict=True)]
    if operation in ("mean", "sum", "amax") and len(args) > 1 and args[0].dim() == 4:
        dims = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        if {d % 4 for d in dims} == {2, 3}:
            return [(n, n, 0, 1) for n in args[0].shape[2:]]
    return None


def _adaptive_window(size: int, outputs: int) -> tuple[int, ...]:
    """The window by which adaptive pooling covers `size` pixels with that many outputs."""
    starts = [i * size // outputs for i in range(outputs)]
    stops = [-(-(i + 1) * size // outputs) for i in range(outputs)]
    kernels = {stop - start for start, stop in zip(starts, stops, strict=True)}
    strides = {b - a for a, b in zip(starts, starts[1:], strict=False)} or {size}
    if len(kernels) > 1 or len(strides) > 1:
        raise ValueError(f"adaptive pooling of {size} pixels to {outputs} has no single kernel and stride")
    return kernels.pop(), strides.pop(), 0, 1


def _long(value: int | list[int] | tuple[int, ...]) -> Pair:
    """An argument as a pair: it may be one number for both axes."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _short(pair: Any) -> int | Pair:
    """One number if both axes agree, else the pair."""
    height, width = pair
    return height if height == width else (height, width)
