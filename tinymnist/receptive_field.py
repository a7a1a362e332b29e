"""The receptive-field table of a net, by one rule: `field += (kernel - 1) * jump; jump *= stride`.

The field is what one output of a layer sees, in pixels of the image; the jump is how far apart neighbours look. After
Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, and Araujo, Norris and Sim, "Computing
Receptive Fields of Convolutional Neural Networks", Distill, 2019.

`torch.fx` lists the operations of a net, functions and slices too. A convolution or a pooling says what its kernel is.
Any other operation is tried out: rows of what goes in become NaN, and what comes out as NaN sees them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from tinymnist.tables import aligned

Pair = tuple[int, int]  # height and width

# What says its kernel, MaxPool2d and max_pool2d alike, and the arguments of the functions.
WINDOWS = {
    "conv2d": "input weight bias stride padding dilation",
    "maxpool2d": "input kernel_size stride padding dilation",
    "avgpool2d": "input kernel_size stride padding",
    "pad": "input padding mode",
    "zeropad2d": "input padding",
}
LAYERS = "conv2d maxpool2d avgpool2d adaptiveavgpool2d linear".split()  # have a row even if the kernel is 1
SHAPES = int, torch.Size, torch.dtype, torch.device  # say nothing of the values of a tensor


@dataclass(frozen=True)
class LayerField:
    """One row: a layer, its output and what that sees, in pixels; (height, width) where these differ, else one int."""

    name: str  # of the module in the net, or of the function
    kernel: int | Pair
    stride: int | Pair
    padding: int | Pair
    dilation: int | Pair
    size_out: int | Pair
    channels_out: int
    jump: int | Pair
    receptive_field: int | Pair


def receptive_field(model: nn.Module, input_size: int | Pair = 28, channels: int = 1) -> list[LayerField]:
    """The receptive-field table of a net in evaluation mode: the image, and each layer as often as it runs.

    A linear layer or an average over the map has the map for a kernel. The numbers follow the rule to the end: what has
    a field larger than the image sees all of it. Where paths join, the larger field counts; of views that are stacked
    in the batch, it is that of one, also behind the place where they meet again.

    Args:
        model: takes float (N, channels, H, W). A copy of it runs, on the CPU, hooks included; the net stays as it was.
        input_size: height and width of the image in pixels, or the pair of them.
        channels: of the image.

    Raises:
        ValueError: in one line that names the layer or function: its effect on the field is not known, what runs
            depends on values, it joins what does not fit together, or it rejects the image.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if min(*size, channels) < 1:
        raise ValueError(f"an image has at least 1 pixel and 1 channel, not {input_size} and {channels}")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            plain = copy.deepcopy(model).cpu().eval()
            others = [*inspect.signature(plain.forward).parameters.values()][1:]
            net = fx.symbolic_trace(plain, {p.name: p.default for p in others if p.default is not p.empty})
        except Exception as error:
            raise ValueError(f"{type(model).__name__}: it cannot be traced: {_line(error)}") from error
        images = torch.rand(2, channels, *size, dtype=next(net.parameters(), torch.zeros(())).dtype)
        height, width = (_Follower(net, images, axis).rows for axis in (-2, -1))
        if not _computes_the_same(net, plain, images):  # for example, it asks whether it is given a tensor
            raise ValueError(f"{type(model).__name__}: it cannot be traced: the trace computes something else")
    pairs = [zip(*rows, strict=True) for rows in zip(height, width, strict=True)]
    rows: list[list[Any]] = [[h if h == w else (h, w) for h, w in pair] for pair in pairs]
    return [LayerField(*row) for is_layer, *row in rows if is_layer or row[1] != 1]


def receptive_field_table(rows: Sequence[LayerField]) -> str:
    """The rows as an aligned Markdown table; the size is that of a layer's output.

    Dilation is left out where no layer has any; padding, which changes no field, and channels always.
    """
    heading = ["layer", "kernel", "stride", "dilation", "size", "jump", "field"]
    values = [(r.name, r.kernel, r.stride, r.dilation, r.size_out, r.jump, r.receptive_field) for r in rows]
    cells = [[f"{v[0]}x{v[1]}" if isinstance(v, tuple) else str(v) for v in row] for row in values]
    columns = [c for c in zip(heading, *cells, strict=True) if c[0] != "dilation" or {*c[1:]} != {"1"}]
    return aligned([*zip(*columns, strict=True)])


class _Seen(NamedTuple):
    """What the rows of a tensor see along the height of the image, in pixels; along its width, rows are columns."""

    field: int
    jump: int
    middles: Tensor  # (rows,), of what each row sees
    row: Tensor  # the number of the row of each value


class _Follower(fx.Interpreter):
    """Runs a net operation by operation and follows what the results see along one axis: -2 is the height."""

    def __init__(self, net: fx.GraphModule, images: Tensor, axis: int) -> None:
        super().__init__(net)
        self.axis, self.extra_traceback = axis, False  # errors stay in one line
        rows, channels = images.shape[axis], images.shape[1]
        self.seen = {next(iter(net.graph.nodes)): _Seen(1, 1, torch.arange(rows), self.numbers(images))}
        self.rows: list[tuple[Any, ...]] = [(True, "input", 1, 1, 0, 1, rows, channels, 1, 1)]
        self.run(images)

    def run_node(self, node: fx.Node) -> Any:
        """Run one operation and follow it if it depends on the image; an error names it."""
        module = self.submodules[str(node.target)] if node.op == "call_module" else None
        name = type(module).__name__ if module else getattr(node.target, "__name__", str(node.target))
        try:
            value = super().run_node(node)
            if node.op == "output" or not self.seen.keys() & node.all_input_nodes or type(value) in SHAPES:
                return value
            kind = name.replace("_", "").lower().removeprefix("lazy")
            self.follow(node, str(node.target) if module else name, kind, value)
            return torch.rand_like(value)  # no matter which values, but these have logarithms and roots
        except Exception as error:
            raise ValueError(f"{f'{node.target} ({name})' if module else name}: {_line(error)}") from error

    def follow(self, node: fx.Node, name: str, kind: str, value: Any) -> None:
        """Note what a result sees, by the rule, and its row of the table."""
        _check(isinstance(value, Tensor) and not value.isnan().any())
        inputs = [self.env[n] for n in node.all_input_nodes]
        _check(len(inputs) == 1 or all(value is not tensor for tensor in inputs), "it writes into what it is given")
        views = kind == "cat" and value.dim() == 4 and len(value) > len(inputs[0])
        field, jump, middles, _ = _join([self.seen[n] for n in node.all_input_nodes if n in self.seen], views)
        if kind in WINDOWS:
            kernel, stride, padding, dilation = self.window(node, kind)
            row = self.numbers(value)
        else:
            kernel, row = self.try_out(node, len(middles), value)
            taken = row.unique()
            strides = {*taken.diff().tolist()} or {1 if kind == "linear" else kernel}
            stride, padding, dilation = max(strides), -int(taken[0]), 1  # a slice may begin later and leave rows out
            row = (row - taken[0]) // stride
            _check(len(strides) == 1 and (value.dim() != 4 or (row == self.numbers(value)).all()))
        first = middles[0] + (dilation * (kernel - 1) / 2 - padding) * jump
        field += dilation * (kernel - 1) * jump
        jump *= stride
        rows = int(row.max()) + 1
        self.seen[node] = _Seen(field, jump, first + jump * torch.arange(rows), row)
        channels = value.shape[-1] if kind == "linear" else value.shape[1] if value.dim() > 1 else 1
        self.rows.append((kind in LAYERS, name, kernel, stride, padding, dilation, rows, channels, jump, field))

    def window(self, node: fx.Node, kind: str) -> tuple[int, int, int, int]:
        """Kernel, stride, padding and dilation of an operation that says them."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        call = kwargs | dict(zip(WINDOWS[kind].split(), args, strict=False))
        if node.op == "call_module":
            call |= vars(self.submodules[str(node.target)])
        padding = call.get("padding", 0)
        _check(call["input"].dim() == 4 and "circular" not in (call.get("mode"), call.get("padding_mode")))
        if "pad" in kind:  # left, right, top, bottom
            return 1, 1, [*padding, 0, 0][-2 - 2 * self.axis], 1
        kernel = call["weight"].shape if "weight" in call else call["kernel_size"]
        stride = call.get("stride") or (1 if kind == "conv2d" else kernel)
        values = kernel, stride, call.get("dilation", 1), 0 if isinstance(padding, str) else padding
        kernel, stride, dilation, pixels = (v if isinstance(v, int) else v[self.axis] for v in values)
        return kernel, stride, dilation * (kernel - 1) // 2 if padding == "same" else pixels, dilation

    def try_out(self, node: fx.Node, rows: int, value: Tensor) -> tuple[int, Tensor]:
        """How many rows each value of a result sees, and the number of the first of them, int64 like the result."""
        numbers, nothing = torch.arange(rows), torch.zeros(value.shape, dtype=torch.long)
        # Half of the rows at a time: what sees one row sees either those whose number has this bit, or the others.
        bits = [numbers >> bit & 1 == 1 for bit in range((rows - 1).bit_length())]
        halves = [(self.turns_nan(node, bit), self.turns_nan(node, ~bit)) for bit in bits]
        if all((one != other).all() for one, other in halves):
            return 1, sum((one.long() << bit for bit, (one, _) in enumerate(halves)), nothing)
        kernel = first = last = nothing
        for number in numbers:
            kernel = kernel + self.turns_nan(node, numbers == number)
            first = first + ~self.turns_nan(node, numbers <= number)
            last = last + self.turns_nan(node, numbers > number)
        _check((kernel == kernel.max()).all() and (last - first == kernel - 1).all())
        return int(kernel.max()), first

    def turns_nan(self, node: fx.Node, chosen: Tensor) -> Tensor:
        """Which values of a result become NaN with the chosen rows, bool (rows,), of what goes in."""

        def poison(n: fx.Node) -> Any:
            is_map = n in self.seen and len(self.seen[n].middles) > 1
            return self.env[n].masked_fill(chosen[self.seen[n].row], torch.nan) if is_map else self.env[n]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), poison)
        return getattr(self, node.op)(node.target, args, kwargs).isnan()

    def numbers(self, value: Tensor) -> Tensor:
        """The numbers of the rows of a map (..., H, W), to be broadcast."""
        return torch.arange(value.shape[self.axis]).view(-1, *[1] * (-1 - self.axis))


def _join(parts: Sequence[_Seen], views: bool) -> _Seen:
    """What joined tensors see: the largest field counts, and has to cover the others; of views, it is that of one."""
    widest = max(parts, key=lambda part: part.field)
    most = max(parts, key=lambda part: (len(part.middles), part.field))  # one row may be joined with all rows of a map
    _check(all(len(part.middles) in (1, len(most.middles)) for part in parts), "it joins maps of different sizes")
    apart = [(part.middles - widest.middles).abs().max() - (widest.field - part.field) / 2 for part in parts]
    _check(views or max(apart) <= 0, "it joins fields of which none covers the others")
    return most._replace(field=widest.field)


def _computes_the_same(net: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether two nets give the same for some images.

    Raises:
        ValueError: one does not run on images, or gives something that cannot be compared.
    """
    results = []
    try:
        for module in (net, other):
            torch.default_generator.manual_seed(0)  # all runs on the CPU
            results.append(module(images))
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-3, atol=1e-3)
    except AssertionError:
        return False
    except Exception as error:  # a net can raise anything
        raise ValueError(f"{type(net).__name__}: {_line(error)}") from error
    return True


def _check(known: Any, reason: str = "its effect on the receptive field is not known") -> None:
    if not known:
        raise ValueError(reason)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
