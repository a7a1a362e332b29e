"""The receptive-field table of a model, computed by following which pixels of the image each value depends on.

The model runs once on a tensor that holds, in place of values, the edges of the area that each value depends on.
Adding, multiplying or comparing values joins their areas; slicing, reshaping and copying move areas as they move
values, in place and through views too; a convolution or pooling joins the areas under its window. Weights, dead units
and the winners of a pooling play no part. An operation without such a rule is an error, and so is code that asks for
values. Size, jump and receptive field follow Dumoulin and Visin, "A guide to convolution arithmetic for deep learning",
2016, and Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
"""

from __future__ import annotations

import copy
from dataclasses import astuple, dataclass, fields, replace
from functools import partial, reduce
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from tinymnist.areas import Pair, extended, field_of, largest, spacing, within
from tinymnist.tables import aligned

Window = tuple[int, int, int, int]  # kernel, stride, padding, dilation

# Operations by what they do to values. Views need no list; elementwise operations have a tag in PyTorch, but for these.
ELEMENTWISE = """_to_copy _prelu_kernel hardswish hardsigmoid hardtanh leaky_relu elu celu mish softplus softshrink
    hardshrink threshold log_sigmoid_forward rrelu_with_noise native_dropout masked_fill""".split()
MOVES = """clone copy_ cat stack repeat roll flip index index_select index_put_ gather _unsafe_view pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle""".split()
OVERWRITES = "fill_ zero_ bernoulli_ normal_ uniform_".split()
WINDOWS = """convolution _convolution max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
    constant_pad_nd reflection_pad2d replication_pad2d""".split()
OUTSIDE = "numpy __array__ tolist data_ptr __dlpack__ apply_ map_ share_memory_ __set__".split()
PRODUCTS = "mm addmm bmm baddbmm".split()  # by weights: the left matrix is what depends on the image
REDUCTIONS = """mean sum amax amin max min prod var std logsumexp linalg_vector_norm any all _softmax _log_softmax
    native_batch_norm native_group_norm native_layer_norm""".split()


@dataclass(frozen=True)
class LayerField:
    """One row: a layer and what it does to the map, in pixels; (height, width) where these differ, else one int."""

    name: str  # of the module in the model, or of the operation if it is not a module
    kernel: int | Pair
    stride: int | Pair
    padding: int | Pair
    dilation: int | Pair
    size_in: int | Pair
    size_out: int | Pair
    channels_out: int
    jump: int | Pair  # distance, in the image, between the fields of two adjacent outputs
    receptive_field: int | Pair  # size, in the image, of the area that one output depends on


def receptive_field(model: nn.Module, input_size: int | Pair = 28, channels: int = 1) -> list[LayerField]:
    """The receptive-field table of a model: a row for the input and one per layer that joins positions of a map.

    These are convolutions, poolings, and averages and linear layers over the whole map, the kernel of which is the map.
    Where they do not tell what the model's output sees, a last row named "output" does.

    A convolution or pooling is counted with the padding beyond the border of the image, whatever the padding is filled
    with, as in published tables, so its field may be larger than the image. A layer that sees the whole map, and one
    whose outputs see areas of different size, is counted by the largest area, at most the image. Where paths join, the
    field is the smallest rectangle around all that they see. A normalization by statistics of the image or the batch
    sees the whole image.

    A layer with a true attribute `redraws_image`, as `Deslant` has, moves pixels by what it measures on the image. It
    has to be the first; fields after it are counted in pixels of the image that it returns.

    Args:
        model: takes float (1, channels, H, W). A copy of it runs, on the CPU and in evaluation mode.
        input_size: height and width of the image in pixels, or the pair of them.
        channels: channels of the image.

    Returns:
        the rows in the order of execution; a layer that is used twice has two rows.

    Raises:
        ValueError: in one line that names the layer: the effect of an operation is not known, values are used outside
            of PyTorch or decide what runs, the areas under a window are not evenly spaced, the model rejects the image
            or cannot be copied. It stays as it was in any case.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if min(*size, channels) < 1:
        raise ValueError(f"an image has at least 1 pixel and 1 channel, not {input_size} and {channels}")
    try:
        net = _copy(model).cpu().eval()
    except Exception as error:
        raise ValueError(f"the model cannot be copied: {_first_line(error)}") from error
    watch, hooks = _Watch(model, net), nn.modules.module
    watch.rows.append(LayerField("input", 1, 1, 0, 1, _short(size), _short(size), channels, 1, 1))
    before = hooks.register_module_forward_pre_hook(watch.enter)
    after = hooks.register_module_forward_hook(watch.leave)
    try:
        with before, after, torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            image = watch.image(size, channels, next(net.parameters(), torch.zeros(())).dtype)
            return watch.finish(net(image))
    except Exception as error:
        shape = f"{size[0]}x{size[1]} pixels and {channels} channel{'s' * (channels > 1)}"
        raise watch.refuse(f"it does not take an image of {shape}: {_first_line(error)}") from error


def receptive_field_table(rows: list[LayerField]) -> str:
    """The rows as an aligned Markdown table, which reads well as plain text too."""
    heading = [field.name.replace("_", " ") for field in fields(LayerField)]
    cells = [[f"{v[0]}x{v[1]}" if isinstance(v, tuple) else str(v) for v in astuple(row)] for row in rows]
    return aligned([heading, *cells])


@dataclass(frozen=True)
class _Map:
    """The map that a tensor comes from; areas are counted in pixels of the image."""

    watch: _Watch
    image: list[int]  # its size; not a tuple, because two images of one size are told apart by identity
    size: Pair
    jump: Pair = (1, 1)


class _Seen(Tensor):
    """A tensor without values.

    Attributes:
        edges: of the area that each value depends on, as in `areas.py`: the maxima of edges are those of a union.
        map: the map that it comes from.
    """

    edges: list[Tensor]
    map: _Map

    @staticmethod
    def __new__(cls: type[_Seen], edges: list[Tensor], dtype: torch.dtype, map: _Map) -> _Seen:
        like = edges[0]
        seen = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), storage_offset=like.storage_offset(), dtype=dtype
        )
        torch._C._set_throw_on_mutable_data_ptr(seen)  # code in C that reads values fails, and does not crash
        seen.edges, seen.map = edges, map
        return seen

    def __repr__(self) -> str:  # type: ignore[override]
        return f"tensor(..., size={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        seen = [t for t in tree_leaves((args, kwargs)) if isinstance(t, cls)]
        return seen[0].map.watch.follow(func, args, kwargs or {}, seen)


class _Watch(TorchFunctionMode):
    """Follows the image through a copy of the model, operation by operation, and collects the rows."""

    def __init__(self, model: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.rows: list[LayerField] = []
        self.reach: Pair = (1, 1)
        self.refused = ""
        self.originals = {id(module) for module in model.modules()}
        self.names = {id(module): name for name, module in net.named_modules()}
        self.running = [net]
        for module in net.modules():
            if getattr(module, "redraws_image", False):
                module.forward = partial(self._redraw, module)  # type: ignore[method-assign]

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Called before each module runs."""
        if id(module) in self.originals:
            raise self.refuse(f"it calls the model's own {type(module).__name__} in a way that a copy does not have")
        if id(module) in self.names:
            self.running.append(module)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Called after each module has run."""
        while id(module) in self.names and self.running.pop() is not module:
            pass

    def refuse(self, reason: str) -> ValueError:
        """The error to raise; it is kept, because the model may catch it."""
        module = self.running[-1]
        self.refused = self.refused or f"{self.names[id(module)] or 'the model'} ({type(module).__name__}): {reason}"
        return ValueError(self.refused)

    def image(self, size: Pair, channels: int, dtype: torch.dtype) -> _Seen:
        """An image, each pixel of which sees itself."""
        y, x = (torch.arange(n, dtype=torch.float32, device="cpu") for n in size)
        edges = [e.expand(1, channels, *size).clone() for e in (-y[:, None], y[:, None], -x, x)]
        return _Seen(edges, dtype, _Map(self, [*size], size))

    def _redraw(self, module: nn.Module, image: _Seen) -> _Seen:
        """The image that a layer returns which moves pixels; a blank one tells its size."""
        if field_of(image.edges, image.map.image) != (1, 1):
            raise self.refuse("only the first layer can redraw the image")
        blank = type(module).forward(module, torch.zeros(image.shape, dtype=image.dtype))
        new = self.image(tuple(blank.shape[2:]), blank.shape[1], blank.dtype)
        crop = [(a - b) // 2 for a, b in zip(new.map.size, image.shape[2:], strict=True)]
        self._add_row("", new.edges, image.map, new.map, [(1, 1, pad, 1) for pad in crop])
        return new

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in OUTSIDE and any(isinstance(t, _Seen) for t in args[name == "__set__" :]):
            raise self.refuse(f"it uses values of the image where they cannot be followed ({name.strip('_')})")
        if func is F.pad and kwargs.get("mode") == "circular":  # else copied in parts from the far border
            kwargs["mode"] = "constant"
        return func(*args, **kwargs)

    def follow(self, func: Any, args: tuple, kwargs: dict, seen: list[_Seen]) -> Any:
        """The result of one operation on areas."""
        name, arguments = func._schema.name.removeprefix("aten::"), func._schema.arguments
        call = {a.name: a.default_value for a in arguments if a.has_default_value()}
        call |= dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        written = [call[a.name] for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        x = max(seen, key=Tensor.numel)
        if not all(isinstance(t, _Seen) for t in written):
            raise self.refuse(f"it writes what depends on the image into a tensor of its own ({name})")
        if any(t.map.image is not x.map.image for t in seen):
            raise self.refuse(f"it joins the image as it was and as it was redrawn ({name})")
        if not all("Tensor" in str(result.type) for result in func._schema.returns):
            raise self.refuse("what it does depends on the values of the image")
        if name in MOVES or (func.is_view and "dtype" not in call):
            moved = self._move(func, name, call, x)
            return written[0] if written else moved
        alone = len(seen) == 1 and not written and args[-2 if name in PRODUCTS else 0] is x
        elementwise = torch.Tag.pointwise in func.tags or name.rstrip("_") in ELEMENTWISE
        if name.startswith("new_") or name.endswith("_like") or name in OVERWRITES:
            elementwise, seen = True, [t for t in seen if written and t is not written[0]]
        elif name == "native_batch_norm" and not call["training"] and alone:
            elementwise = True
        if not (elementwise or (alone and name in PRODUCTS + REDUCTIONS + WINDOWS)):
            raise self.refuse(f"the effect of {name} on the receptive field is not known")
        outputs = _on_meta(func, call)
        shape, map = tree_leaves(outputs)[0].shape, x.map
        if elementwise:
            nothing = torch.full((), -inf, device="cpu")
            edges = [reduce(torch.maximum, [t.edges[k] for t in seen], nothing).expand(shape).clone() for k in range(4)]
        else:
            edges, map = (self._slide if name in WINDOWS else self._reduce)(name, call, x, shape)
        if written:
            for old, new in zip(written[0].edges, edges, strict=True):
                old.copy_(new)
            return written[0]

        def tensor(t: Tensor) -> _Seen:  # an output of another shape, a statistic, sees all that the first sees
            return _Seen([e if t.shape == shape else e.amax().expand(t.shape).clone() for e in edges], t.dtype, map)

        return tree_map_only(Tensor, tensor, outputs)

    def _move(self, func: Any, name: str, call: dict, x: _Seen) -> Any:
        """An operation that only moves values moves their edges in the same way."""
        indices = tree_leaves([call.get("index"), call.get("indices")])
        if any(isinstance(t, _Seen) for t in indices) or call.get("accumulate"):
            raise self.refuse(f"where it reads or writes depends on the values of the image ({name})")

        def moved(*edges: Tensor) -> _Seen:
            size = tuple(edges[0].shape[2:])
            grid = spacing(edges, x.map.image, x.map.jump) if edges[0].dim() == 4 and size != x.map.size else None
            return _Seen([*edges], x.dtype, replace(x.map, size=size, jump=grid[0]) if grid else x.map)

        return tree_map(moved, *(func(**_edge(call, k)) for k in range(4)))

    def _reduce(self, name: str, call: dict, x: _Seen, shape: torch.Size) -> tuple[list[Tensor], _Map]:
        """Positions are joined along some dimensions: by a reduction, a linear layer, a normalization by statistics."""
        dims = [-1] if name in PRODUCTS else call.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or [*range(x.dim())]
        if name == "native_layer_norm":
            dims = dims[-len(call["normalized_shape"]) :]
        keep = call.get("keepdim", shape == x.shape or name in PRODUCTS)
        edges = [e.amax(dims, keep).expand(shape).clone() for e in x.edges]
        if name in PRODUCTS:
            whole = x.shape[-1] % prod(x.map.size) == 0 and all(e.amin() == e.amax() for e in edges)
            return self._whole(name, edges, x.map, (1, 1)) if whole else (edges, x.map)
        if shape.numel() < x.numel() == shape.numel() * prod(x.map.size):
            return self._whole(name, edges, x.map, x.map.size)
        return within(edges, x.map.image) if x.dim() - len(dims) <= 1 else edges, x.map

    def _whole(self, name: str, edges: list[Tensor], map: _Map, stride: Pair) -> tuple[list[Tensor], _Map]:
        """A layer that has the whole map for a kernel."""
        edges = within(edges, map.image)
        after = replace(map, size=(1, 1), jump=tuple(j * s for j, s in zip(map.jump, stride, strict=True)))
        self._add_row(name, edges, map, after, [(k, s, 0, 1) for k, s in zip(map.size, stride, strict=True)])
        return edges, after

    def _slide(self, name: str, call: dict, x: _Seen, shape: torch.Size) -> tuple[list[Tensor], _Map]:
        """A convolution, a pooling, or a padding, which is a window of one pixel that starts beyond the border."""
        if x.dim() != 4 or len(shape) != 4 or call.get("transposed"):
            raise self.refuse(f"the effect of {name} on the receptive field is not known in this form")
        grid = spacing(x.edges, x.map.image, x.map.jump)
        if grid is None:
            raise self.refuse(f"the areas that its input sees are not evenly spaced ({name})")
        jump, step = grid
        windows = self._windows(name, call, x.shape)
        kernel, stride, padding, dilation = zip(*windows, strict=True)
        groups, edges = call.get("groups", shape[1]), []  # a pooling keeps channels apart
        for k, edge in enumerate(x.edges):
            edge = F.pad(edge, [0] * 4 + call.get("pad", [])[4:], value=-inf)  # along the channels
            edge = edge.unflatten(1, (groups, -1)).amax(2)
            for axis in (0, 1):
                needed = (shape[axis + 2] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
                slope = step[axis] * (2 * (k % 2) - 1) if k // 2 == axis else 0
                edge = extended(edge, axis + 2, padding[axis], needed - padding[axis] - edge.shape[axis + 2], slope)
            edge = F.max_pool2d(edge, kernel, stride, 0, dilation)
            edges.append(edge.repeat_interleave(shape[1] // groups, 1))
        before = replace(x.map, size=tuple(x.shape[2:]))
        after = replace(x.map, size=tuple(shape[2:]), jump=tuple(j * s for j, s in zip(jump, stride, strict=True)))
        if "adaptive" in name and after.size == (1, 1):
            edges = within(edges, x.map.image)
        if "pad" not in name:
            self._add_row(name, edges, before, after, windows)
        return edges, after

    def _windows(self, name: str, call: dict, shape: torch.Size) -> list[Window]:
        """Kernel, stride, padding and dilation along height and along width."""
        if "_pad" in name:
            amounts = [*(call.get("pad") or call["padding"]), 0, 0]
            return [(1, 1, amounts[2], 1), (1, 1, amounts[0], 1)]
        if "adaptive" in name:
            return [self._adaptive(n, m) for n, m in zip(shape[2:], call["output_size"], strict=True)]
        kernel = call["weight"].shape[2:] if "weight" in call else call["kernel_size"]
        arguments = kernel, call["stride"] or kernel, call["padding"], call.get("dilation", [1])
        return [tuple(a[i] for a in arguments) for i in (0, -1)]

    def _adaptive(self, size: int, outputs: int) -> Window:
        """The window by which adaptive pooling covers `size` pixels with that many outputs."""
        stride = size // outputs
        kernel = size - (outputs - 1) * stride
        bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
        if stride == 0 or bounds != [(i * stride, i * stride + kernel) for i in range(outputs)]:
            raise self.refuse(f"adaptive pooling of {size} pixels to {outputs} has no single kernel and stride")
        return kernel, stride, 0, 1

    def _add_row(self, operation: str, edges: list[Tensor], before: _Map, after: _Map, windows: list[Window]) -> None:
        if edges[0].max() == -inf:  # a layer that works on what does not depend on the image
            return
        module, operation = self.running[-1], operation.removesuffix("_with_indices").strip("_")
        name, leaf = self.names[id(module)], not any(True for _ in module.children())
        name = name if (name and leaf) or not operation else f"{name}.{operation}".lstrip(".")
        channels, jump = edges[0].shape[1] if edges[0].dim() > 1 else 1, _short(after.jump)
        kernel, stride, padding, dilation = map(_short, zip(*windows, strict=True))
        sizes, field = (_short(before.size), _short(after.size)), _short(field_of(edges, after.image))
        self.rows.append(LayerField(name, kernel, stride, padding, dilation, *sizes, channels, jump, field))
        self.reach = largest(within(edges, after.image))

    def finish(self, output: Any) -> list[LayerField]:
        """All rows, with one for the output if the last does not tell what it sees."""
        if self.refused:
            raise ValueError(self.refused)
        outputs = [t for t in tree_leaves(output) if isinstance(t, _Seen) and t.edges[0].max() > -inf]
        if not outputs:
            raise self.refuse("its output does not depend on the image")
        reach, widest = max(((largest(within(t.edges, t.map.image)), t) for t in outputs), key=lambda pair: pair[0])
        if reach != self.reach:
            self._add_row("output", widest.edges, widest.map, widest.map, [(1, 1, 0, 1)] * 2)
        return self.rows


def _copy(model: nn.Module) -> nn.Module:
    """A copy, also of what `deepcopy` refuses: buffers without a shape yet, and results that the model has kept."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for t in [*vars(module).values(), *module.buffers(recurse=False)]:
            if isinstance(t, nn.UninitializedBuffer):
                memo[id(t)] = nn.UninitializedBuffer(dtype=t.dtype)  # type: ignore[call-arg]
            elif isinstance(t, Tensor) and not t.is_leaf:
                memo[id(t)] = t.detach().clone()
    return copy.deepcopy(model, memo)


def _on_meta(func: Any, call: dict) -> Any:
    """The result of an operation as tensors that have a shape and a type only."""
    if func is torch.ops.aten._convolution.default:  # of traced models; it has no such form in every version
        func = torch.ops.aten.convolution.default
        call = {a.name: call[a.name] for a in func._schema.arguments}
    call = tree_map_only(Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), call)
    return func(**(call | {"device": "meta"} if "device" in call else call))


def _edge(call: dict, k: int) -> dict:
    """The arguments of an operation with the k-th edge in place of each tensor, but for indices."""

    def edge(t: Tensor) -> Tensor:
        return t.edges[k] if isinstance(t, _Seen) else torch.full((), -inf, device="cpu").expand(t.shape)

    return {n: v if n in ("index", "indices") else tree_map_only(Tensor, edge, v) for n, v in call.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _short(pair: Pair) -> Any:
    """One number if both axes agree, else the pair."""
    height, width = pair
    return height if height == width else (height, width)
