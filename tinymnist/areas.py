"""Areas of an image, one for each value of a tensor, as four tensors of its shape: their edges.

The edges are minus the first row of the area, its last row, minus its first column, its last column; -inf where a value
depends on no pixel. So the edges of a union of areas are the maxima of their edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

Pair = tuple[int, ...]  # height and width


def spacing(edges: Sequence[Tensor], image: Sequence[int], jump: Pair) -> tuple[Pair, Pair] | None:
    """The distance between the areas of adjacent positions of a map; None if they are not evenly spaced.

    They may be uneven in the outer quarter at each side, where a padding or a shift ends.

    Args:
        edges: (1, C, H, W) each.
        image: height and width.
        jump: the distance to return where the areas do not tell it.

    Returns:
        the distances, and the same with 0 where all areas are the whole image.
    """
    areas = torch.stack([*edges]).amax((1, 2)) * torch.tensor([-1, 1, -1, 1], device="cpu")[:, None, None]
    height, width = areas.shape[1:]
    areas = areas[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    found, step = [*jump], [0, 0]
    for axis, size in enumerate(image):
        first, last = area = areas[2 * axis : 2 * axis + 2]
        steps = set(area.diff(dim=axis + 1).flatten().tolist()) or {found[axis]}
        if len(steps) == 1 and min(steps) > 0 and not area.diff(dim=2 - axis).any():
            found[axis] = step[axis] = int(steps.pop())
        elif not ((first <= 0) & (last >= size - 1) | (last == -inf)).all():
            return None
    return tuple(found), tuple(step)


def extended(edge: Tensor, dim: int, before: int, after: int, slope: int) -> Tensor:
    """The edge of a map that goes on for so many positions before its first and after its last."""
    at = torch.arange(-before, edge.shape[dim] + after, device="cpu")
    inside = at.clamp(0, edge.shape[dim] - 1)
    return edge.index_select(dim, inside) + (slope * (at - inside)).view(-1, *[1] * (3 - dim))


def within(edges: Sequence[Tensor], image: Sequence[int]) -> list[Tensor]:
    """The edges, those of the whole image where an area is larger; padding may repeat pixels, so none is cut off."""
    result = []
    for low, high, size in zip(edges[::2], edges[1::2], image, strict=True):
        larger = low + high + 1 > size
        result += [low.masked_fill(larger, 0), high.masked_fill(larger, size - 1)]
    return result


def largest(edges: Sequence[Tensor]) -> Pair:
    """Height and width of the largest area."""
    return tuple(int((low + high).max()) + 1 for low, high in zip(edges[::2], edges[1::2], strict=True))


def field_of(edges: Sequence[Tensor], image: Sequence[int]) -> Pair:
    """Height and width of the areas if they are the same all over the map, else of the largest, at most the image."""
    spans = [(low + high).unsqueeze(-1).flatten(2) for low, high in zip(edges[::2], edges[1::2], strict=True)]
    return largest(edges if all((s.amax(2) == s.amin(2)).all() for s in spans) else within(edges, image))
