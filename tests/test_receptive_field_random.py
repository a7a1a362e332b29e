"""The receptive-field table of random nets against brute force: which pixels change an output."""

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_receptive_field import Apply, pair, shift
from torch import nn

from utils import receptive_field


def extents(net, size):
    """Height and width of the largest area that an output depends on: a row or a column of NaN reaches it."""
    result = []
    for axis, pixels in enumerate(size):
        images = torch.rand(pixels, 1, *size, dtype=torch.float64)
        for i in range(pixels):
            images[i].select(axis + 1, i).fill_(torch.nan)
        seen, at = net(images).isnan().flatten(1), torch.arange(pixels)[:, None]
        assume(seen.numel())
        first, last = torch.where(seen, at, pixels).amin(0), torch.where(seen, at, -1).amax(0)
        result.append(int((last - first).max()) + 1)
    return result


def join(x, left, right, how):
    if how == "write":
        x = x.clone()
        x[:, :1] += left(x)[:, 1:]
        return x
    if how == "split":
        return torch.cat([x[:, 1:], left(x)[:, :1]], 1)
    return left(x) + right(x) if how == "add" else torch.cat([left(x)[:, :1], right(x)[:, 1:]], 1)


few = st.integers(1, 2)
kernels = st.tuples(st.integers(1, 4), st.integers(1, 3))
modes = st.sampled_from(["zeros", "reflect", "replicate"])
convolutions = st.builds(
    lambda *options, mode: nn.Conv2d(2, 2, *options, padding_mode=mode),
    kernels, few, st.integers(0, 2), few, few, mode=modes,
)  # fmt: skip
poolings = st.builds(
    lambda kind, kernel, stride, ceil: kind(kernel, stride, kernel // 2, ceil_mode=ceil),
    st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]), st.integers(2, 3), few, st.booleans(),
)  # fmt: skip
odd = st.builds(lambda n, d: nn.Conv2d(2, 2, 2 * n + 1, padding=n * d, dilation=d), few, few)
same = st.one_of(st.just(nn.Identity()), odd)
joins = st.builds(
    lambda left, right, how: Apply(lambda x, a, b: join(x, a, b, how), left, right),
    same, same, st.sampled_from(["write", "split", "add", "cat"]),
)  # fmt: skip
shifted = Apply(shift)
moves = st.sampled_from([
    nn.ReLU(), nn.BatchNorm2d(2), nn.ZeroPad2d((1, 0, 2, 1)), Apply(lambda x: x[:, :, ::2, 1:]),
    Apply(lambda x: F.dropout(x, 0.0)), Apply(lambda x: x.flatten(1).view(x.shape)), shifted,
])  # fmt: skip
chains = st.lists(st.one_of(convolutions, poolings, joins, moves), min_size=1, max_size=5)
heads = st.sampled_from([[], [nn.Flatten(), nn.LazyLinear(3)], [Apply(lambda x: x.flatten(2).mean(2))]])


def answer(net, size):
    try:
        return receptive_field(net, size)
    except ValueError as error:
        return str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(chains, heads, st.tuples(st.integers(13, 40), st.integers(13, 40)))
def test_random_nets_against_brute_force(layers, head, size):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), *layers, *head).double().eval()
    try:
        brute_force = extents(net, size)
    except RuntimeError:  # a map becomes smaller than a kernel
        brute_force = None
    rows = answer(net, size)
    if isinstance(rows, str):
        assert brute_force is None or "not evenly spaced" in rows
        return
    told, jump = pair(rows[-1].receptive_field), pair(rows[-1].jump)
    for field, true, step, pixels in zip(told, brute_force, jump, size, strict=True):
        assert true <= field
        # Exact where some area lies within the image and all areas are alike.
        assert field == true or head or shifted in layers or field + 6 * step > pixels
        assert field <= pixels or not isinstance(net[-1], nn.Linear)
