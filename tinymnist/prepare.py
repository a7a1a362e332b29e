"""Convert a picture of a digit to the format of MNIST.

MNIST's digits were scaled to fit 20x20 pixels, with their proportions kept, and centred in 28x28 pixels by their
centre of mass (LeCun et al., 1998, section III-A).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SIZE, BOX = 28, 20  # pixels of MNIST's images, and of the box that their digits fit
LARGEST = 400  # pixels; larger pictures are reduced first, to a size still far above MNIST's
FAINT = 0.12  # lower contrast than this, on a scale from black to white, is a blank picture
INK = 0.35  # a pixel above this fraction of the full contrast belongs to a stroke
STROKE = 2.0  # pixels of the 20x20 box; thinner strokes are widened, since MNIST's are wider


class PictureError(ValueError):
    """A picture cannot be read, or does not show one digit; the message says what is wrong and what to do."""


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file and apply its EXIF orientation.

    Raises:
        PictureError: the file does not exist, or is not an image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image.copy())
    except FileNotFoundError as error:
        raise PictureError("there is no such file: check the path") from error
    except (UnidentifiedImageError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError("this is not an image that can be read: use a PNG or JPEG file") from error
    except OSError as error:
        raise PictureError(f"it cannot be read ({error.strerror or error}): use a PNG or JPEG file") from error


def prepare(image: Image.Image) -> Tensor:
    """Convert a picture of one digit to an image like those of MNIST.

    The picture may have any size, be grey or coloured, dark on light or light on dark, or have a transparent
    background. The median colour of its edge is taken as the background, and what differs from it as the digit.

    Args:
        image: the picture.

    Returns:
        uint8 (28, 28), 0 = background.

    Raises:
        PictureError: the picture is blank, or does not show one digit.
    """
    ink = _ink(image)
    _check_one_digit(ink > INK)
    ink = _cropped(ink)
    width = _stroke_width(ink) * BOX / max(ink.shape)
    if width < STROKE:
        ink = _widened(ink, (STROKE - width) * max(ink.shape) / BOX)
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(n * scale)) for n in ink.shape)
    small = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0, 0]
    small = (small / small.quantile(0.98).clamp(min=0.5)).clamp(0, 1)
    return (255 * _centred(small)).round().to(torch.uint8)


def _ink(image: Image.Image) -> Tensor:
    """Contrast of each pixel with the background, in the direction of the ink's colour: float (H, W) from 0 to 1."""
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    if min(image.size) < 2:
        raise PictureError(f"{image.width}x{image.height} pixels are too few to show a digit: use a larger picture")
    if image.has_transparency_data:
        image = _flattened(image.convert("RGBA"))
    grey = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).float() / 255
    colors = grey.view(image.height, image.width, 3)
    edge = torch.cat([colors[0], colors[-1], colors[:, 0], colors[:, -1]])
    difference = colors - edge.median(dim=0).values
    # The direction in colour space from the background to the ink.
    towards = (difference * difference.norm(dim=2, keepdim=True)).sum((0, 1))
    ink = (difference @ towards / towards.norm().clamp(min=1e-6)).clamp(min=0)
    strength = 0.9 * ink.max()
    if strength < FAINT:
        raise PictureError("it is blank, or has too little contrast: use a picture of one digit")
    ink = (ink / strength).clamp(0, 1)
    return torch.where(ink > 0.1, ink, 0)


def _flattened(image: Image.Image) -> Image.Image:
    """A transparent RGBA picture on black or white, whichever contrasts more with its opaque pixels."""
    paint, alpha = image.convert("L"), image.getchannel("A")
    weight = torch.frombuffer(bytearray(alpha.tobytes()), dtype=torch.uint8).float()
    value = torch.frombuffer(bytearray(paint.tobytes()), dtype=torch.uint8).float()
    mean = (weight * value).sum() / weight.sum().clamp(min=1)
    ground = Image.new("RGBA", image.size, "black" if mean > 127 else "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _check_one_digit(mask: Tensor) -> None:
    """Raise PictureError if the shape or the connected components of the ink rule out a single digit.

    This rejects pictures that the net would still classify as some digit; it does not detect digits.
    """
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    height, width = (int(at[-1] - at[0]) + 1 for at in (rows, columns))
    if width > 1.8 * height:
        raise PictureError("it shows no single digit (too wide): use a picture of one digit")
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if inside.float().mean() > 0.8 and width > 0.5 * height:
        raise PictureError("it shows no single digit (a filled area, no strokes): use a picture of one digit")
    parts = sorted(_components(mask), key=lambda part: -part[0])
    ink = sum(count for count, _, _ in parts)
    if parts[0][0] < 0.5 * ink:
        raise PictureError("it shows no single digit (many small parts): use a picture of one digit")
    for count, left, right in parts[1:]:
        beside = left > parts[0][2] or right < parts[0][1]
        if beside and count > 0.15 * ink:
            raise PictureError("it shows no single digit (parts side by side): use a picture of one digit")


def _components(mask: Tensor) -> list[tuple[int, int, int]]:
    """The number of pixels, leftmost and rightmost column of each 8-connected component of a mask."""
    if max(mask.shape) > 100:
        small = [max(1, round(100 * n / max(mask.shape))) for n in mask.shape]
        mask = F.adaptive_max_pool2d(mask[None].float(), small)[0].bool()
    labels = torch.where(mask, torch.arange(1.0, mask.numel() + 1).view(mask.shape), 0)
    while True:
        grown = torch.where(mask, F.max_pool2d(labels[None], 3, stride=1, padding=1)[0], 0)
        if torch.equal(grown, labels):
            break
        labels = grown
    components = []
    for label in labels[mask].unique():
        at = (labels == label).nonzero()[:, 1]
        components.append((len(at), int(at.min()), int(at.max())))
    return components


def _cropped(ink: Tensor) -> Tensor:
    """The smallest rectangle that holds the strokes."""
    mask = ink > INK
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _stroke_width(ink: Tensor) -> float:
    """Estimate of the stroke width in pixels: twice the area over the length of the outline."""
    mask = F.pad((ink > INK).float(), (1, 1, 1, 1))
    outline = mask.diff(dim=0).abs().sum() + mask.diff(dim=1).abs().sum()
    return float(2 * mask.sum() / outline) * 1.27  # an outline along pixel edges is 4 / pi times too long on average


def _widened(ink: Tensor, by: float) -> Tensor:
    """Dilate the strokes by about that many pixels: each pixel becomes the maximum of its neighbourhood."""
    reach = round(by / 2)
    return F.max_pool2d(F.pad(ink[None], (reach,) * 4), 2 * reach + 1, stride=1, padding=reach)[0] if reach else ink


def _centred(small: Tensor) -> Tensor:
    """The digit in 28x28 pixels, centred by its centre of mass to the nearest pixel, as far as it fits."""
    corner = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(1 - axis)
        middle = float((mass * (torch.arange(length) + 0.5)).sum() / mass.sum())
        corner.append(min(max(round(SIZE / 2 - middle), 0), SIZE - length))
    top, left = corner
    return F.pad(small, (left, SIZE - left - small.shape[1], top, SIZE - top - small.shape[0]))
