"""The receptive-field table of a net, by one rule: `field += (kernel - 1) * jump; jump *= stride`.

The field is what one output of a layer sees, in pixels of the image, and the jump is how far apart neighbouring outputs
look. After Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, and Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.

`torch.fx` lists all that a net does to its image, functions and slices too, and `_Follower` goes through the list.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from operator import add
from typing import Any

import torch
from torch import Tensor, fx, nn

from tinymnist.tables import aligned

Pair = tuple[int, int]  # height and width
Window = tuple[int, int, int, int]  # kernel, stride, padding, dilation

# What is followed, functions and modules alike: max_pool2d and MaxPool2d are both "maxpool2d".
WINDOWS = "conv2d maxpool2d avgpool2d adaptiveavgpool2d adaptivemaxpool2d".split()
PADS = "pad zeropad2d constantpad2d reflectionpad2d replicationpad2d".split()
MEANS = "mean sum amax".split()
SOFTMAX = "softmax logsoftmax".split()
MOVES = "view reshape flatten unflatten permute transpose squeeze unsqueeze expand narrow select getitem".split()
ELEMENTWISE = """relu relu6 leakyrelu prelu elu selu celu gelu silu mish softplus tanh sigmoid logsigmoid hardtanh
    hardsigmoid hardswish dropout dropout2d alphadropout stochasticdepth identity batchnorm1d batchnorm2d add sub mul
    div truediv neg pow square sqrt exp log abs clamp maximum minimum where gt ge lt le contiguous clone detach to
    float double""".split()
SHAPES = "size dim numel shape ndim dtype device".split()  # say nothing of the values
ARGUMENTS = dict.fromkeys(MEANS + SOFTMAX, "input dim") | {
    "conv2d": "input weight bias stride padding dilation",
    "maxpool2d": "input kernel_size stride padding dilation",
    "avgpool2d": "input kernel_size stride padding",
    "pad": "input pad mode",
}


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
    """The receptive-field table of a net in evaluation mode: a row for the image and one for each layer with a kernel.

    These are convolutions, poolings, and linear layers and averages over the map, which have the map for a kernel. The
    numbers follow the rule to the end, padding included, so a field may be larger than the image: such an output sees
    all of it. Where paths join, the larger field counts; of views that are stacked in the batch, it is that of one.

    Args:
        model: takes float (N, channels, H, W). A copy of it runs, on the CPU; the net stays as it was.
        input_size: height and width of the image in pixels, or the pair of them.
        channels: of the image.

    Returns:
        the rows in the order of execution; a layer that is used twice has two rows.

    Raises:
        ValueError: in one line that names the layer or function: its effect on the field is not known here, what runs
            depends on values, it joins what does not fit together, or it rejects the image.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if min(*size, channels) < 1:
        raise ValueError(f"an image has at least 1 pixel and 1 channel, not {input_size} and {channels}")
    try:
        net = copy.deepcopy(model).cpu().eval()
        follower = _Follower(net, graph=fx.Tracer().trace(net))
    except Exception as error:
        raise ValueError(f"{type(model).__name__}: it cannot be traced: {_first_line(error)}") from error
    dtype = next(net.parameters(), torch.zeros(())).dtype
    follower.extra_traceback = False  # errors stay in one line
    follower.rows, follower.seen = [], {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        follower.run(torch.zeros(2, channels, *size, dtype=dtype))  # two images, so that squeeze() leaves the batch
    return follower.rows


def receptive_field_table(rows: Sequence[LayerField]) -> str:
    """The rows as an aligned Markdown table; size and channels are those of a layer's output.

    Padding and dilation are left out where no layer has any.
    """
    heading = ["layer", "kernel", "stride", "padding", "dilation", "size", "channels", "jump", "field"]
    cells = [[f"{v[0]}x{v[1]}" if isinstance(v, tuple) else str(v) for v in astuple(row)] for row in rows]
    plain = {"padding": {"0"}, "dilation": {"1"}}
    columns = [column for column in zip(heading, *cells, strict=True) if {*column[1:]} != plain.get(column[0])]
    return aligned([*zip(*columns, strict=True)])


@dataclass(frozen=True)
class _Seen:
    """What the values of a tensor see along the height or the width of the image, in pixels."""

    field: int
    jump: int
    middle: Tensor  # of what each value sees; it goes wherever the value goes, and so tells rows and columns of the map

    def places(self) -> Tensor:
        """The middles of the rows, or of the columns, in order; of one view, if the batch holds several of an image."""
        return self.middle[:1].unique()

    def through(self, window: Window, middle: Tensor) -> _Seen:
        """The rule: what the outputs of a layer see, and the middles of that."""
        kernel, stride, _, dilation = window
        field, jump = self.field, self.jump
        field += dilation * (kernel - 1) * jump
        jump *= stride
        return _Seen(field, jump, middle)


class _Follower(fx.Interpreter):
    """Runs the operations of a net one by one, as `torch.fx` lists them, and collects the rows."""

    rows: list[LayerField]
    seen: dict[fx.Node, Sequence[_Seen]]  # along height and width, by each result that depends on the image

    def run_node(self, node: fx.Node) -> Any:
        """Run one operation and note what its result sees; an error names the operation."""
        module = self.submodules[str(node.target)] if node.op == "call_module" else None
        name = type(module).__name__.removeprefix("Lazy") if module else str(node.target)
        if node.op == "call_function":
            name = str(node.args[1]) if node.target is getattr else getattr(node.target, "__name__", name)
        try:
            value = super().run_node(node)
            inputs = [n for n in node.all_input_nodes if n in self.seen]
            if node.op == "placeholder" and not self.seen:
                self.seen[node] = [_Seen(1, 1, _line(value.shape[dim], dim).expand(value.shape)) for dim in (2, 3)]
                self.add_row("input", [(1, 1, 0, 1)] * 2, self.seen[node], value.shape[1])
            elif node.op == "output" and not inputs:
                raise ValueError("it does not depend on the image")
            elif node.op != "output" and inputs:
                self.follow(node, inputs, name, module, value)
        except Exception as error:
            raise ValueError(f"{f'{node.target} ({name})' if module else name}: {_first_line(error)}") from error
        return value

    def follow(self, node: fx.Node, inputs: list[fx.Node], name: str, module: nn.Module | None, value: Any) -> None:
        """Note what the values of a result see that depends on the image."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        kind = name.replace("_", "").lower()
        call = vars(module) if module else kwargs | dict(zip(ARGUMENTS.get(kind, "").split(), args, strict=False))
        axes, alone = [*zip(*(self.seen[n] for n in inputs), strict=True)], inputs == [*node.args[:1]]
        if kind in SHAPES:
            return
        if "out" in kwargs or (name.endswith("_") and not (alone and kind in ELEMENTWISE)):
            raise ValueError("it writes into a tensor that may be used elsewhere")
        statistics = module and kind.startswith("batchnorm") and (module.training or not call["track_running_stats"])
        if statistics or "circular" in (call.get("mode"), call.get("padding_mode")) or not isinstance(value, Tensor):
            raise ValueError("its effect on the receptive field is not known")
        if kind in ELEMENTWISE:
            self.seen[node] = [_join(parts, value.shape) for parts in axes]
        elif (alone and kind in MOVES) or (kind in ("cat", "stack") and inputs == node.all_input_nodes):
            self.seen[node] = [self.move(node, parts, axis) for axis, parts in enumerate(axes)]
        elif alone and kind in [*WINDOWS, *PADS, "linear", *MEANS, *SOFTMAX]:
            layer = _slide if kind in WINDOWS + PADS else _span
            both = [layer(kind, call, parts[0], value.shape, axis) for axis, parts in enumerate(axes)]
            windows, self.seen[node] = zip(*both, strict=True)
            if kind in [*WINDOWS, "linear"] or (kind in MEANS and windows != ((1, 1, 0, 1),) * 2):
                channels = value.shape[-1 if kind == "linear" else 1]
                self.add_row(str(node.target) if module else name, windows, self.seen[node], channels)
        else:
            raise ValueError("its effect on the receptive field is not known")

    def move(self, node: fx.Node, parts: Sequence[_Seen], axis: int) -> _Seen:
        """The middles move as the values do; a slice with a step changes the jump."""

        def middle(n: fx.Node) -> Any:
            return self.seen[n][axis].middle.contiguous() if n in self.seen else self.env[n]

        widest = max(parts, key=lambda part: part.field)
        if any(part.field != widest.field and not torch.equal(part.places(), widest.places()) for part in parts):
            raise ValueError("it joins different fields at different places")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), middle)
        moved = replace(widest, middle=getattr(self, node.op)(node.target, args, kwargs))
        return replace(moved, jump=int(min(moved.places().diff(), default=moved.jump)))

    def add_row(self, name: str, windows: Sequence[Window], seen: Sequence[_Seen], channels: int) -> None:
        """Add the row of a layer: its windows, and what its outputs see, along height and width."""
        sees = [(len(part.places()), part.jump, part.field) for part in seen]
        cells: list[Any] = [h if h == w else (h, w) for h, w in zip(*map(add, windows, sees), strict=True)]
        kernel, stride, padding, dilation, size, jump, field = cells
        self.rows.append(LayerField(name, kernel, stride, padding, dilation, size, channels, jump, field))


def _join(parts: Sequence[_Seen], shape: torch.Size) -> _Seen:
    """Values are joined one by one: the larger field counts, and has to cover the others."""
    widest = max(parts, key=lambda part: part.field)
    if any(((part.middle - widest.middle).abs() > (widest.field - part.field) / 2).any() for part in parts):
        raise ValueError("it joins fields of which none covers the others")
    place = max(parts, key=lambda part: (len(part.places()) > 1, part.field))  # a map, if one value is for all of it
    return _Seen(widest.field, place.jump, place.middle.expand(shape))


def _slide(kind: str, call: dict[str, Any], seen: _Seen, shape: torch.Size, axis: int) -> tuple[Window, _Seen]:
    """A layer with a window that slides over a map (N, C, H, W)."""
    at, dim = seen.middle, axis + 2
    if at.dim() != 4 or (at.diff(dim=dim) != seen.jump).any() or at.diff(dim=1).any() or at.diff(dim=5 - dim).any():
        raise ValueError("its input is no map (N, C, H, W) with evenly spaced rows and columns of the image")
    kernel, stride, padding, dilation = window = _window(kind, call, at.shape[dim], shape[dim], axis)
    first = at[:, :1, :1, :1] + (dilation * (kernel - 1) / 2 - padding) * seen.jump
    return window, seen.through(window, (first + _line(shape[dim], dim) * stride * seen.jump).expand(shape))


def _span(kind: str, call: dict[str, Any], seen: _Seen, shape: torch.Size, axis: int) -> tuple[Window, _Seen]:
    """A layer that joins all values along some dimensions; its kernel is the number of rows, or columns, in these."""
    dims = -1 if kind == "linear" else call.get("dim")
    if dims is None:
        raise ValueError("it does not name its dimensions")
    low, high, kernel = seen.middle.amin(dims, True), seen.middle.amax(dims, True), len(seen.places())
    if dims == 0 and kernel == 1 and (high - low < seen.jump).all():
        high = low  # an average over shifted views: the table is that of one
    if (low == high).all():
        kernel = 1
    if (high - low != (kernel - 1) * seen.jump).any() or (kernel > 1 and kind in SOFTMAX):
        raise ValueError("it joins some rows or columns of the map, or what is not evenly spaced")
    middle = (low + high) / 2
    middle = middle.expand(shape) if middle.dim() == len(shape) else middle.reshape(shape)
    window = (kernel, 1 if kind == "linear" else kernel, 0, 1)
    return window, seen.through(window, middle)


def _window(kind: str, call: dict[str, Any], size: int, size_out: int, axis: int) -> Window:
    """Kernel, stride, padding and dilation of a layer that slides, along the height (axis 0) or the width (axis 1)."""

    def along(value: int | Sequence[int]) -> int:
        return value if isinstance(value, int) else value[axis]

    if kind in PADS:
        left_right_top_bottom = [*(call.get("pad") or call["padding"]), 0, 0]
        return 1, 1, left_right_top_bottom[2 - 2 * axis], 1
    if kind.startswith("adaptive"):
        if size % size_out:
            raise ValueError(f"it divides {size} pixels into {size_out} parts, which are not of one size")
        return size // size_out, size // size_out, 0, 1
    kernel = along(call["weight"].shape[2:] if "weight" in call else call["kernel_size"])
    stride = along(call.get("stride") or (1 if kind == "conv2d" else kernel))
    padding, dilation = call.get("padding", 0), along(call.get("dilation", 1))
    if isinstance(padding, str):
        padding = dilation * (kernel - 1) // 2 if padding == "same" else 0
    return kernel, stride, along(padding), dilation


def _line(size: int, dim: int) -> Tensor:
    """0, 1, 2... along one dimension of a map (N, C, H, W)."""
    return torch.arange(float(size)).view(-1, *[1] * (3 - dim))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
