"""Convert a picture of a digit to the format of MNIST.

MNIST's digits were scaled to fit 20x20 pixels, with their proportions kept, and centred in 28x28 pixels by their
centre of mass (LeCun et al., 1998, section III-A).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import filters, measure, morphology, transform
from torch import Tensor

SIZE, BOX = 28, 20  # pixels of MNIST's images, and of the box that their digits fit
SMALLEST, LARGEST = 200, 800  # pixels; other pictures are enlarged or reduced first
WINDOW = 0.3  # of the shorter side; wider than a stroke
FAINT = 0.12  # lower contrast than this, on a scale from black to white, is a blank picture
STROKE = 2.0  # pixels of the 20x20 box; thinner strokes are widened, since MNIST's are wider


class PictureError(ValueError):
    """A picture cannot be read, or does not show one digit; the message says what is wrong and what to do."""


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file and apply its EXIF orientation.

    Raises:
        PictureError: the file does not exist, or is not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise PictureError("there is no such file: check the path") from error


def prepare(image: Image.Image) -> Tensor:
    """Convert a picture of one digit to an image like those of MNIST.

    The picture may have any size and mode, be dark on light or light on dark, unevenly lit, lined or squared, or have
    a transparent background. A picture that is already like those of MNIST stays as it is.

    Args:
        image: the picture.

    Returns:
        uint8 (28, 28), 0 = background.

    Raises:
        PictureError: the picture is blank, or does not show one digit.
    """
    colors = _colors(image)
    if (same := _as_in_mnist(colors)) is not None:
        return same
    zoom = SMALLEST / min(colors.shape[:2])
    if zoom > 1:
        colors = transform.resize(colors, [round(zoom * n) for n in colors.shape[:2]], order=3)
    plain = _plain_corners(colors)
    try:
        digit = _digit(*(_ink_on_plain(colors) if plain == 4 else _ink(colors)))
    except PictureError:
        if plain != 3:
            raise
        return _like_mnist(_digit(*_ink_on_plain(colors)))
    if plain == 3 and _edge(digit).any():  # it fills the picture, so that the ground around it is hard to tell
        digit = _digit(*_ink_on_plain(colors))
    return _like_mnist(digit)


def _edge(values: np.ndarray) -> np.ndarray:
    """What is at the edge of the picture: (H, W, ...) to (N, ...)."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _plain_corners(colors: np.ndarray) -> int:
    """How many corners have the colour of the picture's edge, if most of that has one colour; else 0."""
    edge = _edge(colors)
    color = np.median(edge, axis=0)
    n = max(2, min(colors.shape[:2]) // 40)
    corners = [colors[rows, columns].mean((0, 1)) for rows in (slice(n), slice(-n, None)) for columns in (slice(n), slice(-n, None))]
    if np.mean(abs(edge - color).max(1) < 0.1) < 0.5:
        return 0
    return sum(bool(abs(corner - color).max() < 0.06) for corner in corners)


def _ink_on_plain(colors: np.ndarray) -> tuple[np.ndarray, float]:
    """`_ink` for a picture whose ground has one colour, that of the picture's edge."""
    difference = colors - np.median(_edge(colors), axis=0)
    towards = (difference * np.linalg.norm(difference, axis=2, keepdims=True) ** 2).sum((0, 1))
    towards = towards / max(np.linalg.norm(towards), 1e-9)
    ground = abs(np.median(_edge(colors), axis=0) @ towards)
    ink = ndimage.gaussian_filter(difference @ towards, 1) / (ground + 0.2)
    return ink, 1.48 * float(np.median(abs(_edge(ink))))


def _colors(image: Image.Image) -> np.ndarray:
    """The colours of a picture of any mode, float32 (H, W, 3) from 0 to 1, at most `LARGEST` pixels long."""
    if min(image.size) < 2:
        raise PictureError(f"{image.width}x{image.height} pixels are too few to show a digit: use a larger picture")
    if image.mode[0] in "IF":  # more than 8 bits: their range is not known, so it is taken from the picture
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        image = Image.fromarray((255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8))
    transparent = image.has_transparency_data
    image = image.convert("RGBA" if transparent else "RGB")
    if max(image.size) > LARGEST:
        image = image.reduce(-(-max(image.size) // LARGEST))
    colors = np.asarray(image, np.float32) / 255
    if transparent:  # on black or white, whichever contrasts more with what is opaque
        colors, alpha = colors[..., :3], colors[..., 3:]
        dark = (colors * alpha).sum() < 1.5 * alpha.sum()
        colors = colors * alpha + dark * (1 - alpha)
    return colors


def _as_in_mnist(colors: np.ndarray) -> Tensor | None:
    """The picture itself, white on black, if it is one as MNIST has them: 28x28, the digit in a centred box."""
    if colors.shape[:2] != (SIZE, SIZE):
        return None
    grey = colors.mean(2)
    grey = 1 - grey if np.median(grey) > 0.5 else grey
    rows, columns = (np.flatnonzero(grey.max(axis) > 0.1) for axis in (1, 0))
    if grey.max() < 0.5 or max(np.ptp(rows), np.ptp(columns)) != BOX - 1:
        return None
    middle = ndimage.center_of_mass(grey)
    return torch.from_numpy((255 * grey).round().astype(np.uint8)) if max(abs(m - 13.5) for m in middle) < 1 else None


def _ink(colors: np.ndarray) -> tuple[np.ndarray, float]:
    """Contrast of each pixel with the ground around it, towards the colour of the ink: float (H, W), about 0 to 1.

    The ground is a morphological closing (Serra, 1982) that is wider than a stroke: it fills the strokes, but keeps
    gradients, the edge of a shadow and the edge of a table.
    """
    value = ndimage.gaussian_filter(colors @ -_towards_ink(colors), 1)
    ground = _closed(value, round(WINDOW * min(value.shape)))
    ink = (ground - value) / (abs(ground) + 0.2)  # light scales the ground and the contrast alike
    low, high = np.percentile(ink, (5, 25))  # 0.97 standard deviations of a normal distribution apart
    noise = float(high - low)
    return ink - high - 0.7 * noise, noise


def _towards_ink(colors: np.ndarray) -> np.ndarray:
    """The direction from the ground to the ink in colour space, of length 1: float (3,).

    It is that of the strongest differences from the local median, as far as the closing or opening sees them as well.
    """
    size = (np.array(colors.shape[:2]) * 100 / max(colors.shape)).round().clip(8)
    small = transform.resize_local_mean(colors, size.astype(int))
    channels = [small[..., channel] for channel in range(3)]
    window = round(WINDOW * 100)
    disk = morphology.disk(window)
    median = [filters.rank.median((255 * c).round().astype(np.uint8), disk) / 255 for c in channels]
    above = [c + _closed(-c, window) for c in channels]
    below = [c - _closed(c, window) for c in channels]
    difference = np.clip(small - np.stack(median, 2), np.stack(below, 2), np.stack(above, 2))
    weighted = difference * np.linalg.norm(difference, axis=2, keepdims=True) ** 2
    lighter = difference.sum(2) > 0
    light, dark = weighted[lighter].sum(0), weighted[~lighter].sum(0)
    towards = light if np.linalg.norm(light) > 3 * np.linalg.norm(dark) else dark
    return (towards / max(np.linalg.norm(towards), 1e-9)).astype(np.float32)


def _closed(value: np.ndarray, window: int) -> np.ndarray:
    """The closing of (H, W) by a square, where ground continues beyond the picture's edge.

    A dark stretch of the edge is ground if it reaches a corner, as a table or a shadow does, and else a stroke.
    """
    framed = value.copy()
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        side[:] = np.minimum(np.maximum.accumulate(side), np.maximum.accumulate(side[::-1])[::-1])
    framed = np.pad(framed, window, mode="edge")
    return ndimage.grey_closing(framed, (window, window))[window:-window, window:-window]


def _without_lines(ink: np.ndarray, noise: float) -> np.ndarray:
    """The ink without the lines that are ruled across the page, which a Hough transform (Duda and Hart, 1972) finds."""
    size = 2 * round(0.006 * max(ink.shape)) + 3
    thick = ndimage.grey_opening(ink, (size, size))
    rows, columns = np.nonzero(ink - thick > max(0.3 * FAINT, 3 * noise))
    thin = np.zeros(ink.shape, bool)
    thin[rows, columns] = True
    upright = np.radians(np.arange(-20, 20, 0.25))
    votes = transform.hough_line(thin, np.concatenate([upright, upright + np.pi / 2]))
    _, *found = transform.hough_line_peaks(
        *votes, min_distance=size, min_angle=4, threshold=0.5 * min(ink.shape), num_peaks=300
    )
    values, ruled = ink[rows, columns], np.zeros(len(rows), bool)
    for angle, distance in zip(*found, strict=True):
        near = abs(columns * np.cos(angle) + rows * np.sin(angle) - distance) <= size / 2 + 1
        along, length = (rows, ink.shape[0]) if abs(angle) < 1 else (columns, ink.shape[1])
        profile = np.zeros(length)
        np.maximum.at(profile, along[near], values[near])
        covered = np.flatnonzero(profile)
        reaches = min(covered[0], length - covered[-1]) < 2 * size
        if reaches and len(covered) > max(0.8 * np.ptp(covered), 0.5 * length):
            ruled |= near & (values < 2 * np.median(profile[covered]))  # what is darker is a pen along the line
    cleared = ink.copy()
    at = rows[ruled], columns[ruled]
    cleared[at] = thick[at]
    cleared[at] = ndimage.grey_closing(cleared, (size, size))[at]  # strokes that cross the line
    return cleared


def _digit(ink: np.ndarray, noise: float) -> np.ndarray:
    ink = _without_lines(ink, noise)
    floor = max(FAINT, 5 * noise)
    main = _largest(measure.label(ink > floor), ink)
    level = np.percentile(main.image_intensity[main.image], 90)
    mask = ink > 0.45 * level
    labels = measure.label(mask)
    main = _largest(labels * _filled(main, labels.shape), ink)
    reach = main.bbox[2] - main.bbox[0]
    away = ndimage.distance_transform_edt(labels != main.label)
    keep = [main.label]
    parts = measure.regionprops(labels, away)
    for part in parts:
        if part.label == main.label or part.area < 0.02 * main.area or _at_edge(part, ink.shape):
            continue
        gap = part.intensity_min / reach
        apart = _apart(part, main, 0) or _apart(part, main, 1)
        tall = part.bbox[2] - part.bbox[0] > 0.5 * reach
        if gap > 0.06 and apart and tall and part.area > 0.15 * main.area or gap > 0.25 and part.area > 0.4 * main.area:
            raise PictureError("it shows no single digit (parts side by side): use a picture of one digit")
        if gap < 0.25:
            keep.append(part.label)
    digit = np.isin(labels, keep)
    _check_strokes(measure.regionprops(digit.astype(int))[0])
    return digit


def _apart(part, other, axis):
    (a, b), (c, d) = ((p.bbox[axis], p.bbox[axis + 2]) for p in (part, other))
    return min(b, d) - max(a, c) < 0.2 * min(b - a, d - c)


def _filled(main, shape):
    out = np.zeros(shape, bool)
    out[main.slice] = main.image
    return out


def _at_edge(part, shape) -> bool:
    top, left, bottom, right = part.bbox
    return top <= 1 or left <= 1 or bottom >= shape[0] - 1 or right >= shape[1] - 1


def _largest(labels, ink):
    parts = []
    for part in measure.regionprops(labels, ink):
        long = max(part.bbox[2] - part.bbox[0], part.bbox[3] - part.bbox[1])
        if long >= (0.5 * min(ink.shape) if _at_edge(part, ink.shape) else 12):
            parts.append(part)
    if not parts:
        raise PictureError("it is blank, or has too little contrast: use a picture of one digit")
    return max(parts, key=lambda part: part.area * part.intensity_mean)


def _check_strokes(part) -> None:
    height, width = (int(n) for n in part.image.shape)
    if width > 2.2 * height:
        raise PictureError("it shows no single digit (too wide): use a picture of one digit")
    if part.extent > 0.8 and width > 0.5 * height:
        raise PictureError("it shows no single digit (a filled area, no strokes): use a picture of one digit")


def _like_mnist(mask):
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    zoom = BOX / max(mask.shape)
    skeleton = morphology.skeletonize(np.pad(mask, 1))
    width = 2 * ndimage.distance_transform_edt(np.pad(mask, 1))[skeleton].mean() * zoom
    if width < STROKE:
        r = (STROKE - width) / zoom / 2
        mask = ndimage.distance_transform_edt(~np.pad(mask, round(r) + 1)) <= r
        zoom = BOX / max(mask.shape)
    small = transform.resize_local_mean(mask.astype(float), [max(1, round(zoom * n)) for n in mask.shape])
    corner = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(1 - axis)
        middle = float((mass * (np.arange(length) + 0.5)).sum() / mass.sum())
        corner.append(min(max(round(SIZE / 2 - middle), 0), SIZE - length))
    out = np.zeros((SIZE, SIZE), np.uint8)
    out[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = (255 * small).round()
    return torch.from_numpy(out)
