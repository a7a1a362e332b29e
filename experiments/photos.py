"""Pictures of digits as people take them: drawn pages, pens, light and cameras; and how predict.py reads them.

python -m experiments.photos            measures every style and writes results/photos.json

Each picture is drawn from a random seed. Half of the digits are test images of MNIST, enlarged smoothly, half are
strokes of a pen. An even seed takes MNIST's images with an even index, an odd seed the others, so that what was looked
at while the code was written shares no digit with what is reported.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("photos.py")

import io
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.transform import resize, warp

from model import FinalNet
from predict import THRESHOLD, classify, load_net
from tinymnist.cli import OneLineParser, run_program
from tinymnist.prepare import PictureError, prepare
from tinymnist.runs import RESULTS, commit, write_atomically
from utils import DataError, Digits, load_mnist

SEED, COUNT = 1, 50  # of the published table: its random seed, and the pictures of each style
SURE = 0.9
# The paths of a pen, in a box from (0, 0), top left, to (1, 1); a point that is repeated is a corner.
PATHS: dict[int, list[list[list[tuple[float, float]]]]] = {
    0: [[[(0.5, 0), (0.1, 0.15), (0, 0.5), (0.1, 0.85), (0.5, 1), (0.9, 0.85), (1, 0.5), (0.9, 0.15), (0.5, 0)]]],
    1: [[[(0.5, 0), (0.5, 1)]], [[(0.2, 0.25), (0.5, 0), (0.5, 0), (0.5, 1)]]],
    2: [[[(0.05, 0.25), (0.3, 0), (0.8, 0.05), (0.9, 0.3), (0.6, 0.6), (0, 1), (0, 1), (1, 0.98)]]],
    3: [
        [
            [(0.05, 0.12), (0.4, 0), (0.85, 0.1), (0.85, 0.35), (0.4, 0.48)],
            [(0.4, 0.48), (0.9, 0.55), (1, 0.8), (0.6, 1), (0, 0.9)],
        ]
    ],
    4: [
        [[(0.2, 0), (0, 0.6), (0, 0.6), (1, 0.58)], [(0.75, 0.2), (0.7, 1)]],
        [[(0.7, 1), (0.7, 0), (0.7, 0), (0, 0.68), (0, 0.68), (1, 0.66)]],
    ],
    5: [
        [[(0.9, 0), (0.15, 0.02), (0.15, 0.02), (0.1, 0.45), (0.1, 0.45), (0.6, 0.4), (1, 0.7), (0.6, 1), (0, 0.92)]],
        [[(0.15, 0), (0.1, 0.45), (0.1, 0.45), (0.6, 0.4), (1, 0.7), (0.6, 1), (0, 0.92)], [(0.15, 0.01), (0.95, 0)]],
    ],
    6: [[[(0.75, 0), (0.25, 0.3), (0, 0.75), (0.4, 1), (0.95, 0.85), (0.8, 0.55), (0.4, 0.52), (0.05, 0.75)]]],
    7: [
        [[(0, 0.03), (0.95, 0), (0.95, 0), (0.55, 0.5), (0.35, 1)]],
        [[(0, 0.03), (0.95, 0), (0.95, 0), (0.55, 0.5), (0.35, 1)], [(0.3, 0.5), (0.85, 0.47)]],
    ],
    8: [
        [
            [(0.85, 0.12), (0.4, 0), (0.1, 0.22), (0.5, 0.48), (0.95, 0.75), (0.5, 1), (0.05, 0.78), (0.45, 0.5)],
            [(0.45, 0.5), (0.9, 0.25), (0.8, 0.08)],
        ]
    ],
    9: [
        [[(0.9, 0.12), (0.4, 0), (0.05, 0.25), (0.4, 0.5), (0.85, 0.3), (0.9, 0.1), (0.9, 0.1), (0.85, 0.6), (0.7, 1)]]
    ],
}

LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabdefhkmnpqrtuwxy"  # I, i, l, O, o, S, s, Z, z and g look like digits
NO_DIGITS = ["blank page", "gradient", "noise", "two digits", "letter", "four letters"]


def pen_strokes(digit: int, height: int, width: float, rng: Generator) -> np.ndarray:
    """A digit drawn by a pen: coverage, float (H, W) from 0 to 1; `width` is that of the strokes, over the height."""
    angle, shear, aspect = rng.normal(0, 0.06), rng.normal(0.08, 0.12), rng.uniform(0.5, 0.75)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    paths = PATHS[digit]
    lines = []
    for path in paths[rng.integers(len(paths))]:
        points = np.array(path) * [aspect if digit != 1 else 0.5 * aspect, 1] + rng.normal(0, 0.015, (len(path), 2))
        ends = np.linspace(0, len(path) - 1, 12 * len(path))
        dense = np.stack([np.interp(ends, range(len(path)), points[:, axis]) for axis in (0, 1)], 1)
        lines.append(ndimage.gaussian_filter1d(dense, 4, axis=0, mode="nearest") @ turn.T)
    together = np.concatenate(lines)
    zoom = 2 * height * (1 - width) / max(np.ptp(together[:, 1]), 0.5 * np.ptp(together[:, 0]))
    pen = max(2.0, 2 * height * width)
    lines = [(line - together.min(0)) * zoom + pen for line in lines]
    right, bottom = (np.concatenate(lines).max(0) + pen).astype(int) + 1
    canvas = Image.new("L", (int(right), int(bottom)))
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        draw.line([tuple(point) for point in line], fill=255, width=round(pen))
        for x, y in line:
            draw.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=255)
    return np.asarray(canvas.reduce(2), np.float32) / 255


def enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """A digit of MNIST, uint8 (28, 28), enlarged so that its ink is that high, with edges as sharp as a pen's."""
    rows, columns = (np.flatnonzero(image.max(axis) > 60) for axis in (1, 0))
    tight = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(tight.astype(np.float32) / 255, 1)
    zoom = height / max(tight.shape[0], 0.5 * tight.shape[1])
    large = resize(padded, [max(2, round(zoom * n)) for n in padded.shape], order=3)
    return np.clip((large - 0.5) * max(1, zoom / 3) + 0.5, 0, 1).astype(np.float32)


def letter(text: str, height: int, rng: Generator) -> np.ndarray:
    """Text in one of matplotlib's fonts: coverage, float (H, W) from 0 to 1."""
    name = rng.choice(["DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "STIXGeneral", "DejaVuSansMono"])
    face = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), height)
    left, top, right, bottom = face.getbbox(text)
    canvas = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), text, font=face, fill=255)
    return np.asarray(canvas, np.float32) / 255


def smooth_noise(shape: tuple[int, int], scale: float, rng: Generator) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1 that varies over about `scale` pixels: float (H, W)."""
    small = rng.standard_normal([int(n / max(scale, 1)) + 3 for n in shape]).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))


def distance(shape: tuple[int, int], angle: float) -> np.ndarray:
    """Along a direction (radians), from -0.5 to 0.5 about across the picture: float (H, W)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    along = (x - shape[1] / 2) * np.cos(angle) + (y - shape[0] / 2) * np.sin(angle)
    return (along / (abs(np.cos(angle)) * shape[1] + abs(np.sin(angle)) * shape[0])).astype(np.float32)


def lines(page: np.ndarray, pitch: float, width: float, angle: float, color: np.ndarray, only: int | None) -> None:
    """Rule a page with parallel lines, or with one line at that many pixels from the middle, in place."""
    y, x = np.ogrid[: page.shape[0], : page.shape[1]]
    along = (y - page.shape[0] / 2) * np.cos(angle) - (x - page.shape[1] / 2) * np.sin(angle)
    away = abs(along - only) if only is not None else abs((along + pitch / 2) % pitch - pitch / 2)
    cover = np.clip(width / 2 + 0.5 - away, 0, 1)[..., None]
    page *= 1 - cover * (1 - color)


PENS = {
    "felt": {"width": (0.09, 0.16), "ink": (0.03, 0.2)},
    "ballpoint": {"width": (0.03, 0.055), "ink": (0.1, 0.3)},
    "pencil": {"width": (0.035, 0.08), "ink": (0.35, 0.6)},
    "chalk": {"width": (0.06, 0.12), "ink": (0.8, 0.95)},
}
# A style is what differs from a plain photograph of a page.
STYLES: dict[str, dict[str, Any]] = {
    "clean scan": {"noise": 0, "blur": 0, "texture": 0, "cast": 0},
    "felt pen": {"pen": "felt"},
    "ballpoint": {"pen": "ballpoint"},
    "pencil": {"pen": "pencil"},
    "coloured paper and ink": {"colored": True},
    "dark screenshot": {"dark": (0.0, 0.2), "noise": 0, "texture": 0, "blur": 0, "pen": "chalk"},
    "light screenshot": {"noise": 0, "texture": 0, "blur": 0, "colored": True, "bar": True},
    "chalk on a blackboard": {"dark": (0.1, 0.3), "pen": "chalk", "texture": 0.05, "light": 0.6},
    "light falls off to 60 %": {"light": 0.6},
    "light falls off to 35 %": {"light": 0.35},
    "edge of a shadow": {"shadow": (0.35, 0.75)},
    "vignette and colour cast": {"vignette": (0.3, 0.6), "cast": 0.2},
    "ruled paper, red margin line": {"ruled": True},
    "graph paper": {"graph": True},
    "table beside the paper": {"table": True},
    "blur and noise": {"noise": 0.06, "blur": 0.012},
    "tilted": {"tilt": 15},
    "perspective": {"perspective": 0.5},
    "strong JPEG": {"quality": (8, 25), "side": (250, 600)},
    "small digit, 4000x3000": {"side": (4000, 4000), "share": (0.05, 0.12), "noise": 0.04},
    "digit fills the picture": {"share": (0.7, 0.85)},
    "small picture": {"side": (48, 120), "share": (0.4, 0.8), "pen": "felt"},
    "shining through from the back": {"back": True},
    "ruled paper in a shadow": {"ruled": True, "shadow": (0.5, 0.8), "light": 0.7, "tilt": 4},
    "graph paper on a table": {"graph": True, "table": True, "light": 0.7, "perspective": 0.2},
}


def paper(shape: tuple[int, int], rng: Generator, style: dict[str, Any]) -> np.ndarray:
    """A page without writing, as it reflects light: float (H, W, 3) from 0 to 1."""
    color = rng.uniform(0.82, 0.98) * (1 - rng.uniform(0, style.get("cast", 0.06), 3))
    if style.get("colored"):
        color = rng.uniform(0.55, 1, 3)
    if "dark" in style:
        color = rng.uniform(*style["dark"]) * rng.uniform(0.6, 1, 3)
    page = np.broadcast_to(color.astype(np.float32), (*shape, 3)).copy()
    texture, side = style.get("texture", 0.015), max(shape)
    if texture:
        fine, coarse = (smooth_noise(shape, scale, rng) for scale in (side / 300, side / rng.uniform(8, 40)))
        page *= (1 + texture * (0.7 * fine + 0.5 * coarse))[..., None]
    angle = np.radians(rng.uniform(-4, 4))
    blue, red = np.array([0.6, 0.72, 0.9]), np.array([0.9, 0.45, 0.45])
    width = max(1.0, side * rng.uniform(0.0015, 0.005))
    if style.get("ruled"):
        pitch, strength = side * rng.uniform(0.05, 0.2), rng.uniform(0.6, 1.2)
        lines(page, pitch, width, angle, 1 - strength * (1 - blue), None)
        lines(
            page,
            1,
            1.3 * width,
            angle + np.pi / 2,
            red,
            round(rng.choice([-1, 1]) * rng.uniform(0.36, 0.46) * shape[1]),
        )
    if style.get("graph"):
        pitch, tone = side * rng.uniform(0.02, 0.08), 1 - rng.uniform(0.5, 1.2) * (1 - blue)
        for turn in (0, np.pi / 2):
            lines(page, pitch, width, angle + turn, tone, None)
    return page.clip(0, 1)


def write(page: np.ndarray, mask: np.ndarray, ink: np.ndarray, where: tuple[int, int]) -> None:
    """Lay ink of a colour on a page, in place; `where` is the top left corner."""
    top, left = where
    area = page[top : top + mask.shape[0], left : left + mask.shape[1]]
    cover = mask[: area.shape[0], : area.shape[1], None]
    area *= 1 - cover
    area += cover * ink


def pen_ink(pen: str, rng: Generator, style: dict[str, Any], page: np.ndarray) -> np.ndarray:
    """The colour of a pen that can be told from the page: float (3,)."""
    ink = rng.uniform(*PENS[pen]["ink"]) * (1 + rng.uniform(-0.3, 0.6, 3) * (pen == "ballpoint"))
    if style.get("colored"):
        ink = rng.uniform(0, 0.8, 3) * page.mean((0, 1)) * rng.uniform(0.2, 0.8)
    return ink.clip(0, 1)


def put_on_table(page: np.ndarray, rng: Generator) -> np.ndarray:
    """The page with a darker or, seldom, lighter table beside it, on one or two sides."""
    shape = page.shape[:2]
    wood = rng.uniform(0.08, 0.5) * np.array([1, rng.uniform(0.6, 1), rng.uniform(0.4, 1)])
    grain = 1 + rng.uniform(0.02, 0.12) * smooth_noise(shape, max(shape) / 60, rng)
    table = (wood * grain[..., None]).astype(np.float32)
    side = rng.integers(4)
    for turn in (side, side + 1)[: rng.integers(1, 3)]:
        angle = np.pi / 2 * turn + np.radians(rng.uniform(-5, 5))
        beyond = (distance(shape, angle) - rng.uniform(0.3, 0.48)) * max(shape)
        page = np.where((beyond > 0)[..., None], table, page)
    return page


def lit(page: np.ndarray, rng: Generator, style: dict[str, Any]) -> np.ndarray:
    """The page under the light of a style."""
    shape, light = page.shape[:2], np.float32(rng.uniform(0.85, 1.0))
    if "light" in style:
        light = light * (1 - (1 - style["light"]) * (distance(shape, rng.uniform(0, 2 * np.pi)) + 0.5).clip(0, 1))
    if "vignette" in style:
        y, x = (distance(shape, angle) for angle in (np.pi / 2, 0))
        light = light * (1 - rng.uniform(*style["vignette"]) * 2 * (x**2 + y**2))
    if "shadow" in style:
        soft = rng.uniform(0.003, 0.06)
        beyond = distance(shape, rng.uniform(0, 2 * np.pi)) - rng.uniform(-0.25, 0.25)
        light = light * (1 - (1 - rng.uniform(*style["shadow"])) * (beyond / soft + 0.5).clip(0, 1))
    return page * np.broadcast_to(light, shape)[..., None]


def photographed(page: np.ndarray, rng: Generator, style: dict[str, Any]) -> Image.Image:
    """What a camera makes of a page: tilt, perspective, blur, noise, JPEG."""
    height, width = page.shape[:2]
    if "tilt" in style or "perspective" in style:
        angle = np.radians(rng.uniform(-1, 1) * style.get("tilt", 3))
        middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.1]])
        turn[2, :2] = rng.uniform(-1, 1, 2) * style.get("perspective", 0) / max(height, width)
        page = warp(page, middle @ turn @ np.linalg.inv(middle), mode="edge").astype(np.float32)
    blur = style.get("blur", 0.002) * max(height, width) * rng.uniform(0.3, 1)
    page = ndimage.gaussian_filter(page, (blur, blur, 0)) if blur > 0.3 else page
    noise = style.get("noise", 0.02) * rng.uniform(0.3, 1)
    page = page + noise * rng.standard_normal(page.shape, np.float32)
    image = Image.fromarray((page.clip(0, 1) * 255).round().astype(np.uint8))
    quality = int(rng.integers(*style.get("quality", (60, 96))))
    if quality > 90 and "quality" not in style:
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer)


def draw_picture(masks: Callable[[int, str], list[np.ndarray]], style: dict[str, Any], rng: Generator) -> Image.Image:
    """A picture in a style; `masks` gives what is written on it, for a height in pixels and a pen, left to right."""
    low, high = style.get("side", (300, 1100))
    side = round(low * (high / low) ** rng.uniform())
    shape = (side, round(side * rng.uniform(0.75, 1)))[:: int(rng.choice([-1, 1]))] if side > 150 else (side, side)
    shape = (3000, 4000) if side == 4000 else shape
    page = paper(shape, rng, style)
    pen = style.get("pen", str(rng.choice(["felt", "ballpoint", "pencil"])))
    inner = (
        0.95 if style.get("share", (0, 0))[1] > 0.6 else 0.55 if "table" in style else 0.72
    )  # lines, tables and tilt need room beside the digit
    low, high = style.get("share", (0.15, 0.55 if "table" in style else 0.6))
    written = masks(round(min(shape) * rng.uniform(low, high)), pen)
    wide, tall = sum(mask.shape[1] for mask in written), max(mask.shape[0] for mask in written)
    gap = round(0.15 * tall)
    free = [max(0, inner * n - size) for n, size in zip(shape, (tall, wide + gap * (len(written) - 1)), strict=True)]
    top, left = (int((1 - inner) / 2 * n + rng.uniform() * f) for n, f in zip(shape, free, strict=True))
    ink = pen_ink(pen, rng, style, page)
    if style.get("back"):
        back = pen_strokes(int(rng.integers(10)), round(0.5 * min(shape)), 0.08, rng)[:, ::-1]
        faint = rng.uniform(0.04, 0.12) * ndimage.gaussian_filter(back, min(shape) / 100)
        write(page, faint, ink, (round(rng.uniform(0, 0.4) * shape[0]), round(rng.uniform(0, 0.4) * shape[1])))
    for mask in written:
        if pen in ("pencil", "chalk") and "noise" not in style:
            mask = mask * (1 - 0.25 * abs(smooth_noise(mask.shape, max(1, tall / 100), rng))).clip(0.2, 1)
        write(page, mask, ink, (top, left))
        left += mask.shape[1] + gap
    if style.get("bar"):
        page[: round(0.06 * shape[0])] = page.mean((0, 1)) * 0.8
    if style.get("table"):
        page = put_on_table(page, rng)
    return photographed(lit(page, rng, style), rng, style)


def digit_masks(digit: int, images: list[np.ndarray] | None, rng: Generator) -> Callable[[int, str], list[np.ndarray]]:
    """What `draw_picture` writes for a digit: an image of MNIST, of those by digit, or strokes of a pen."""
    if images is not None and rng.uniform() < 0.5:
        image = images[digit][rng.integers(len(images[digit]))]
        return lambda height, pen: [enlarged(image, height)]
    return lambda height, pen: [pen_strokes(digit, height, rng.uniform(*PENS[pen]["width"]), rng)]


def photos(name: str, count: int, seed: int, images: list[np.ndarray] | None) -> Iterator[tuple[int, Image.Image]]:
    """Digits in a style, each with its label; `images` has, for each digit, images of MNIST as uint8 (N, 28, 28)."""
    for i in range(count):
        rng = np.random.default_rng([seed, list(STYLES).index(name), i])
        digit = i % 10
        yield digit, draw_picture(digit_masks(digit, images, rng), STYLES[name], rng)


def no_digit_masks(
    kind: str, images: list[np.ndarray] | None, rng: Generator
) -> Callable[[int, str], list[np.ndarray]]:
    """What `draw_picture` writes where it should not be read: nothing, two digits, or letters."""
    if kind == "blank page":
        return lambda height, pen: [np.zeros((height, height // 2), np.float32)]
    if kind == "two digits":
        pair = [digit_masks(int(digit), images, rng) for digit in rng.integers(0, 10, 2)]
        return lambda height, pen: [mask for masks in pair for mask in masks(height, pen)]
    text = "".join(rng.choice(list(LETTERS), 1 if kind == "letter" else 4))
    return lambda height, pen: [letter(text, height // (1 + (len(text) > 1)), rng)]


def no_digits(kind: str, count: int, seed: int, images: list[np.ndarray] | None) -> Iterator[Image.Image]:
    """Pictures that show no single digit, in the styles in turn."""
    for i in range(count):
        rng = np.random.default_rng([seed, len(STYLES) + NO_DIGITS.index(kind), i])
        style = list(STYLES.values())[i % len(STYLES)]
        style = {"side": (300, 900)} | style if style.get("side", (0,))[0] < 2000 else {}
        if kind == "gradient":
            shape = tuple(rng.integers(100, 600, 2))
            value = 0.5 + rng.uniform(0.3, 1) * distance(shape, rng.uniform(0, 7))
            yield Image.fromarray((255 * value.clip(0, 1)).astype(np.uint8))
        elif kind == "noise":
            shape = tuple(rng.integers(28, 400, 2))
            noise = smooth_noise(shape, rng.choice([1, 2, 5]), rng)
            yield Image.fromarray((128 + 50 * noise).clip(0, 255).astype(np.uint8))
        else:
            yield draw_picture(
                no_digit_masks(kind, images, rng), style | ({"share": (0.15, 0.4)} if kind == "two digits" else {}), rng
            )


def measured(pictures: Iterator[tuple[int, Image.Image]], net: FinalNet) -> dict[str, int]:
    """How many pictures are read right, wrong, wrong and surer than 90 %, and refused, as predict.py does."""
    counts = dict.fromkeys(("n", "right", "wrong", "sure", "refused"), 0)
    for label, picture in pictures:
        counts["n"] += 1
        try:
            probabilities = classify(net, prepare(picture))
        except PictureError:
            counts["refused"] += 1
            continue
        best = max(probabilities)
        digit = probabilities.index(best)
        outcome = "refused" if best < THRESHOLD else "right" if digit == label else "wrong"
        counts[outcome] += 1
        counts["sure"] += outcome == "wrong" and best > SURE
    return counts


def other_writers() -> Iterator[tuple[int, Image.Image]]:
    """The 1,797 digits of scikit-learn's `load_digits` (Alpaydin and Kaynak, 1998), 8x8 pixels enlarged to 160x160."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for image, label in zip((found.images * 255 / 16).round().astype(np.uint8), found.target.tolist(), strict=True):
        yield label, Image.fromarray(image).resize((160, 160), Image.Resampling.BICUBIC)


def measure_all(digits: Digits, seed: int, count: int) -> dict[str, dict[str, dict[str, int]]]:
    """The tables of `results/photos.json`: styles, pictures without a digit, and other sets of digits."""
    net, labels, own = load_net(), digits.test_labels.numpy(), np.arange(len(digits.test_labels)) % 2 == seed % 2
    images = [digits.test_images.numpy()[own & (labels == digit)] for digit in range(10)]
    tables: dict[str, dict[str, dict[str, int]]] = {"styles": {}, "no digits": {}, "sets": {}}
    for name, style in STYLES.items():
        few = count // 4 if style.get("side", (0,))[0] == 4000 else count
        tables["styles"][name] = measured(photos(name, few, seed, images), net)
        print(f"{name}: {tables['styles'][name]}", flush=True)
    for kind in NO_DIGITS:
        pictures = ((-1, picture) for picture in no_digits(kind, count, seed, images))
        tables["no digits"][kind] = measured(pictures, net)
    plain = zip(digits.test_labels.tolist(), map(Image.fromarray, digits.test_images.numpy()), strict=True)
    tables["sets"]["MNIST's test images"] = measured(plain, net)
    tables["sets"]["scikit-learn's load_digits, enlarged"] = measured(other_writers(), net)
    return tables


def main(arguments: list[str] | None = None) -> int:
    """Write the record."""
    parser = OneLineParser("photos.py", __doc__)
    parser.parse_args(arguments)
    torch.set_num_threads(1)
    facts = {"seed": SEED, "torch_version": torch.__version__, "skimage_version": version("scikit-image")}
    facts["commit"] = commit()
    try:
        record = facts | measure_all(load_mnist(), SEED, COUNT)
        write_atomically(RESULTS / "photos.json", (json.dumps(record, indent=1) + "\n").encode())
    except (DataError, OSError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    run_program("photos.py", main)
