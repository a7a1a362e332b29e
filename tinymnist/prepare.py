"""Convert a picture of a digit to the format of MNIST.

MNIST's digits were scaled to fit 20x20 pixels, with their proportions kept, and centred in 28x28 pixels by their
centre of mass (LeCun et al., 1998, section III-A).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage import filters, measure, morphology, transform
from torch import Tensor

from tinymnist.picture import PictureError, read_colors

PROBLEMS = {  # why a picture, or a drawing, is refused
    "blank": "it is blank, or has too little contrast: show one digit",
    "clutter": "it shows much beside a digit: crop the picture to the digit",
    "several": "it shows no single digit (parts side by side): show one digit",
    "wide": "it shows no single digit (too wide): show one digit",
    "filled": "it shows no single digit (a filled area, no strokes): crop the picture to the digit",
    "none": "it looks like none of the ten digits: show one digit",
}
SIZE, BOX = 28, 20  # pixels of MNIST's images, and of the box that their digits fit
SMALLEST = 200  # pixels of a side; smaller pictures are enlarged first
WINDOW = 0.3  # of the shorter side: wider than a stroke, narrower than what belongs to the ground
FAINT, FAINT_IN_LIGHT = 0.04, 0.12  # less contrast, from black to white, is no ink: on one colour, in any light
LOW, HIGH = 0.38, 0.5  # of full ink: a stroke is above LOW, and somewhere above HIGH
THIN, THICK = 2.0, 3.5  # pixels of the 20x20 box; most strokes of MNIST are between them
MANY = 12  # parts beside the digit; a page has a few specks, photographs of rooms and gardens have a hundred


def prepare(image: Image.Image) -> Tensor:
    """Convert a picture of one digit to an image like those of MNIST.

    The picture may have any size and mode, be dark on light or light on dark, unevenly lit, ruled or squared, or have
    a transparent background. A picture that is already like those of MNIST stays as it is.

    Returns:
        uint8 (28, 28), 0 = background.

    Raises:
        PictureError: the picture is blank, or does not show one digit.
    """
    same = as_in_mnist(image)
    return _like_mnist(_digit(read_colors(image))) if same is None else same


def as_in_mnist(image: Image.Image) -> Tensor | None:
    """The picture itself, uint8 (28, 28), white on black; None if its digit has not the box and centre of MNIST's."""
    if image.size != (SIZE, SIZE):
        return None
    grey = read_colors(image).mean(2)
    grey = 1 - grey if np.median(grey) > 0.5 else grey
    rows, columns = (np.flatnonzero(grey.max(axis) > 0.1) for axis in (1, 0))
    if grey.max() < 0.5 or max(np.ptp(rows), np.ptp(columns)) != BOX - 1:
        return None
    away = max(abs(at - (SIZE - 1) / 2) for at in ndimage.center_of_mass(grey))
    return torch.from_numpy((255 * grey).round().astype(np.uint8)) if away < 1 else None


def _edge(values: np.ndarray) -> np.ndarray:
    """What is at the edge of the picture: (H, W, ...) to (N, ...)."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _is_plain(colors: np.ndarray) -> bool:
    """Whether most of the picture's edge has one colour, and all corners too, but for one where a stroke ends.

    A shadow or a table that covers a corner goes on along both of its sides, a stroke along one.
    """
    color, n, far = np.median(_edge(colors), axis=0), max(2, min(colors.shape[:2]) // 40), min(colors.shape[:2]) // 3
    near = abs(ndimage.uniform_filter(colors, (n, n, 1)) - color).max(2) < 0.06
    odd = [turned for turned in map(partial(np.rot90, near), range(4)) if not turned[0, 0]]
    some = np.mean(abs(_edge(colors) - color).max(1) < 0.1) > 0.5
    return bool(some and (not odd or (len(odd) == 1 and (odd[0][far, 0] or odd[0][0, far]))))


def _direction(difference: np.ndarray) -> np.ndarray:
    """The sum of differences (..., 3) from the ground, weighted so that the strongest count."""
    return (difference * np.linalg.norm(difference, axis=-1, keepdims=True) ** 2).reshape(-1, 3).sum(0)


def _ink(colors: np.ndarray) -> tuple[np.ndarray, float]:
    """Contrast of each pixel with the ground, towards the colour of the ink: float (H, W); below the second, is none.

    Where the ground has one colour, it is that of the picture's edge, unless light that falls off drowns the ink.
    """
    ground = np.median(_edge(colors), axis=0)
    towards = _direction(colors - ground)
    towards /= max(np.linalg.norm(towards), 1e-9)
    ink = ndimage.gaussian_filter((colors - ground) @ towards, 1) / (abs(ground @ towards) + 0.2)
    noise = 1.48 * float(np.median(abs(_edge(ink))))
    return (ink, max(FAINT, 5 * noise)) if _is_plain(colors) and ink.max() > 15 * noise else _ink_in_light(colors)


def _ink_in_light(colors: np.ndarray) -> tuple[np.ndarray, float]:
    """`_ink` where the ground varies.

    The ground is a morphological closing (Serra, 1982) that is wider than a stroke: it fills the strokes, but keeps
    gradients, the edge of a shadow and the edge of a table. Light scales ground and contrast alike, so it cancels.
    """
    size = (np.array(colors.shape[:2]) * 100 / max(colors.shape)).round().clip(8).astype(int)
    small, window = transform.resize_local_mean(colors, size), round(WINDOW * 100)
    levels, disk = (255 * small).round().astype(np.uint8), morphology.disk(window)
    difference = small - np.stack([filters.rank.median(levels[..., i], disk) / 255 for i in range(3)], 2)
    lighter = difference.sum(2) > 0
    light, dark = _direction(difference[lighter]), _direction(difference[~lighter])
    # Paper in a shadow looks like light ink as well.
    towards = light if np.linalg.norm(light) > 10 * np.linalg.norm(dark) else dark
    value = ndimage.gaussian_filter(colors @ (-towards / max(np.linalg.norm(towards), 1e-9)), 1)
    ground = _closed(value, round(WINDOW * min(value.shape)))
    ink = (ground - value) / (abs(ground) + 0.15)
    low, high = np.percentile(ink, (5, 25))  # of a normal distribution: 0.97 standard deviations apart
    return ink - high - 0.7 * (high - low), max(FAINT_IN_LIGHT, 5 * float(high - low))


def _closed(value: np.ndarray, window: int) -> np.ndarray:
    """The closing of (H, W) by a square.

    A dark stretch of the picture's edge is ground if it reaches a corner, as a table or a shadow does, else a stroke.
    """
    framed = value.copy()
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        side[:] = np.minimum(np.maximum.accumulate(side), np.maximum.accumulate(side[::-1])[::-1])
    framed = np.pad(framed, window, mode="edge")
    return ndimage.grey_closing(framed, (window, window))[window:-window, window:-window]


def _without_lines(ink: np.ndarray, least: float) -> np.ndarray:
    """The ink without the lines that are ruled across the page, found by a Hough transform (Duda and Hart, 1972)."""
    size = 2 * round(0.006 * max(ink.shape)) + 3  # a ruled line is thinner
    thick = ndimage.grey_opening(ink, (size, size))
    thin = ink - thick > max(0.036, 0.6 * least)
    rows, columns = np.nonzero(thin)
    values, ruled = ink[thin], np.zeros(len(rows), bool)
    level = np.radians(np.arange(-20, 20, 0.25))
    found = transform.hough_line(thin, np.concatenate([level, level + np.pi / 2]))
    peaks = {"min_distance": size, "min_angle": 4, "threshold": 0.5 * min(ink.shape), "num_peaks": 300}
    _, angles, distances = transform.hough_line_peaks(*found, **peaks)
    for angle, distance in zip(angles, distances, strict=True):
        near = abs(columns * np.cos(angle) + rows * np.sin(angle) - distance) <= size / 2 + 1
        along, length = (rows, ink.shape[0]) if abs(angle) < 1 else (columns, ink.shape[1])
        profile = np.zeros(length)
        np.maximum.at(profile, along[near], values[near])
        covered = np.flatnonzero(profile > 0)
        reaches_edge = len(covered) and min(covered[0], length - covered[-1]) < 2 * size
        if reaches_edge and len(covered) > max(0.8 * np.ptp(covered), 0.5 * length):
            ruled |= near & (values < 2 * np.median(profile[covered]))  # what is darker is a pen along the line
    at = rows[ruled], columns[ruled]
    cleared = ink.copy()
    cleared[at] = thick[at]
    cleared[at] = ndimage.grey_closing(cleared, (size, size))[at]  # strokes that cross the line
    return cleared


def _digit(colors: np.ndarray, in_panel: bool = False) -> np.ndarray:
    """The strokes of the digit, float (H, W) from 0 to 1: the region with most ink, and parts of it that are near.

    The checks reject pictures that the net would still classify as some digit; they do not detect digits.
    """
    if min(colors.shape[:2]) < SMALLEST:
        size = [round(n * SMALLEST / min(colors.shape[:2])) for n in colors.shape[1::-1]]
        channels = [Image.fromarray(colors[..., channel]) for channel in range(3)]
        colors = np.stack([np.asarray(one.resize(size, Image.Resampling.BICUBIC)) for one in channels], 2).clip(0, 1)
    ink, least = _ink(colors)
    ink = _without_lines(ink, least)
    first = measure.label(ink > least)
    main = _largest(first, ink)
    full_panel = main.area_filled > max(0.95 * main.area_bbox, 1.005 * main.area) and main.extent > 0.6
    if full_panel and not in_panel and min(main.image.shape) > SIZE:  # as programs save images with a margin
        return _digit(colors[tuple(slice(s.start + SIZE // 4, s.stop - SIZE // 4) for s in main.slice)], in_panel=True)
    full = np.percentile(main.image_intensity[main.image], 90)
    labels = measure.label(filters.apply_hysteresis_threshold(ink, max(least, LOW * full), HIGH * full))  # Canny, 1986
    mask = _joined(labels, _largest(np.where(first == main.label, labels, 0), ink))
    part = measure.regionprops(mask.astype(np.uint8))[0]
    height, width = part.image.shape
    if width > 2.2 * height:
        raise PictureError(PROBLEMS["wide"])
    shadow = _at_edge(part, ink.shape) and part.solidity > 0.95 and part.extent > 0.4
    if (part.extent > 0.8 or shadow) and width > 0.6 * height:
        raise PictureError(PROBLEMS["filled"])
    around = max(2, max(height, width) // BOX)  # a pixel of MNIST's images, for the soft edge of a stroke
    return (ink / full - 0.15).clip(0, 0.85) / 0.85 * ndimage.binary_dilation(mask, iterations=around)


def _joined(labels: np.ndarray, main: Any) -> np.ndarray:
    """The main region and the parts of the digit around it, bool (H, W): the nearest first, each to all before it."""
    parts = [part for part in measure.regionprops(labels) if part.label != main.label]
    if len(parts) > MANY:
        raise PictureError(PROBLEMS["clutter"])
    mask, parts = labels == main.label, [part for part in parts if part.area > 0.02 * main.area]
    while parts:
        whole = measure.regionprops(mask.astype(np.uint8))[0]
        away = ndimage.distance_transform_edt(~mask) / max(whole.image.shape)
        gap, part = min(((away[part.slice][part.image].min(), part) for part in parts), key=lambda pair: pair[0])
        parts.remove(part)
        large, tall = part.area / whole.area, part.image.shape[0] / whole.image.shape[0]
        spans = [[(one.bbox[axis], one.bbox[axis + 2]) for one in (part, whole)] for axis in (0, 1)]
        apart = [min(b, d) - max(a, c) < 0.2 * min(b - a, d - c) for (a, b), (c, d) in spans]  # they hardly overlap
        several = (gap > 0.1 and tall > 0.5 and any(apart) and large > 0.15) or (gap > 0.25 and large > 0.4)
        if beyond := _at_edge(part, mask.shape) and not _at_edge(whole, mask.shape):
            in_corner = part.bbox[0] <= 1 or part.bbox[2] >= len(mask) - 1  # as a table or a shadow
            several = apart[1] and not apart[0] and 0.7 < tall < 1.5 and not in_corner  # as tall as the digit
        if several:
            raise PictureError(PROBLEMS["several"])
        if gap < 0.25 and not beyond:
            mask |= labels == part.label
    return mask


def _largest(labels: np.ndarray, ink: np.ndarray) -> Any:
    """The region with the most ink; at the edge of the picture, only large ones count."""
    side, parts = min(ink.shape), []
    for part in measure.regionprops(labels, ink):
        short, long = sorted(part.image.shape)
        parts += [part] * (short > 0.1 * side and long > 0.5 * side if _at_edge(part, ink.shape) else long >= 12)
    if not parts:
        raise PictureError(PROBLEMS["blank"])
    return max(parts, key=lambda part: part.area * part.intensity_mean)


def _at_edge(part: Any, shape: tuple[int, ...]) -> bool:
    """Whether a region touches the edge of a picture of that shape."""
    top, left, bottom, right = part.bbox
    return min(top, left) <= 1 or bottom >= shape[0] - 1 or right >= shape[1] - 1


def _like_mnist(digit: np.ndarray) -> Tensor:
    """Strokes, float (H, W) from 0 to 1, as an image of MNIST: uint8 (28, 28)."""
    part = measure.regionprops((digit > 0.1).astype(np.uint8))[0]
    inside = np.pad(part.image, 1)
    zoom = BOX / max(part.image.shape)
    width = 2 * zoom * ndimage.distance_transform_edt(inside)[morphology.skeletonize(inside)].mean()
    strokes = np.pad(digit[part.slice], 1)
    if width < THIN:
        strokes = ndimage.grey_dilation(strokes, footprint=morphology.disk(round((THIN - width) / zoom / 2)))
    zoom *= 0.9 if width > THICK else 1
    small = transform.resize_local_mean(strokes, [max(1, round(zoom * n)) for n in strokes.shape])
    image = np.zeros((SIZE, SIZE), np.uint8)
    middle = zip(ndimage.center_of_mass(small), small.shape, strict=True)
    top, left = (min(max(round((SIZE - 1) / 2 - at), 0), SIZE - n) for at, n in middle)
    image[top : top + small.shape[0], left : left + small.shape[1]] = (255 * small).round()
    return torch.from_numpy(image)
