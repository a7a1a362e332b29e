"""From any picture of a digit to what the nets were trained on, in the way in which MNIST was made.

MNIST's digits were scaled into 20x20 pixels, with their proportions kept, and placed in 28x28 pixels so that their
centre of mass lies in the middle (LeCun et al., 1998, section III-A).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SIZE, BOX = 28, 20  # pixels of MNIST's images, and of the box that their digits fill
LARGEST = 400  # a longer side is reduced first; strokes stay many times finer than in MNIST
FAINT = 0.12  # of the scale from black to white: less contrast than this is no drawing
INK = 0.35  # of the ink's full strength: where a stroke begins
STROKE = 2.0  # pixels of the 20x20 box: thinner strokes are widened, for MNIST's are wider


class PictureError(ValueError):
    """A picture that cannot be read, or does not show one digit; the message says what is wrong."""


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file, turned upright as its camera says.

    Raises:
        PictureError: there is no such file, or it is no image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image.copy())
    except FileNotFoundError as error:
        raise PictureError("there is no such file") from error
    except (UnidentifiedImageError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError("this is not an image that can be read: use PNG or JPEG, for example") from error
    except OSError as error:
        raise PictureError(f"it cannot be read: {error.strerror or error}") from error


def prepare(image: Image.Image) -> Tensor:
    """What the nets take, from a picture of one digit.

    The picture may have any size, be grey or coloured, dark on light or light on dark, or have a transparent
    background. The background is what most of its edge shows; the digit is what differs from it.

    Args:
        image: the picture.

    Returns:
        uint8 (28, 28), 0 = background, as MNIST's images are.

    Raises:
        PictureError: the picture is blank, or shows something else than one digit.
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
    """How much each pixel differs from the background towards the ink, float (H, W) from 0 to 1."""
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    if min(image.size) < 2:
        raise PictureError(f"{image.width}x{image.height} pixels are too few to show a digit")
    if image.has_transparency_data:
        image = _flattened(image.convert("RGBA"))
    grey = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).float() / 255
    colors = grey.view(image.height, image.width, 3)
    edge = torch.cat([colors[0], colors[-1], colors[:, 0], colors[:, -1]])
    difference = colors - edge.median(dim=0).values
    # Along the direction in colour space in which the picture differs most from its background.
    towards = (difference * difference.norm(dim=2, keepdim=True)).sum((0, 1))
    ink = (difference @ towards / towards.norm().clamp(min=1e-6)).clamp(min=0)
    strength = 0.9 * ink.max()
    if strength < FAINT:
        raise PictureError("it is blank: nothing differs from the background")
    ink = (ink / strength).clamp(0, 1)
    return torch.where(ink > 0.1, ink, 0)


def _flattened(image: Image.Image) -> Image.Image:
    """A transparent RGBA picture on the background, black or white, from which its paint differs more."""
    paint, alpha = image.convert("L"), image.getchannel("A")
    weight = torch.frombuffer(bytearray(alpha.tobytes()), dtype=torch.uint8).float()
    value = torch.frombuffer(bytearray(paint.tobytes()), dtype=torch.uint8).float()
    mean = (weight * value).sum() / weight.sum().clamp(min=1)
    ground = Image.new("RGBA", image.size, "black" if mean > 127 else "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _check_one_digit(mask: Tensor) -> None:
    """Raise PictureError unless the ink looks like one digit: strokes that belong together.

    A look at components, which keeps out what the net would answer all the same; it is no detector of digits.
    """
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    height, width = (int(at[-1] - at[0]) + 1 for at in (rows, columns))
    if width > 1.8 * height:
        raise PictureError("it shows no single digit: what is drawn is too wide")
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if inside.float().mean() > 0.8 and width > 0.5 * height:
        raise PictureError("it shows no single digit: there is a filled area, but no strokes")
    parts = sorted(_components(mask), key=lambda part: -part[0])
    ink = sum(count for count, _, _ in parts)
    if parts[0][0] < 0.5 * ink:
        raise PictureError("it shows no single digit: there are several things, and none that stands out")
    for count, left, right in parts[1:]:
        beside = left > parts[0][2] or right < parts[0][1]
        if beside and count > 0.15 * ink:
            raise PictureError("it shows no single digit: there are several things side by side")


def _components(mask: Tensor) -> list[tuple[int, int, int]]:
    """Of each connected component of a mask, 8 neighbours each: its pixels, leftmost and rightmost column."""
    if max(mask.shape) > 100:
        small = [max(1, round(100 * n / max(mask.shape))) for n in mask.shape]
        mask = F.adaptive_max_pool2d(mask[None].float(), small)[0].bool()
    labels = torch.where(mask, torch.arange(1.0, mask.numel() + 1).view(mask.shape), 0)
    while True:
        grown = torch.where(mask, F.max_pool2d(labels[None], 3, stride=1, padding=1)[0], 0)
        if torch.equal(grown, labels):
            break
        labels = grown
    found = []
    for label in labels[mask].unique():
        at = (labels == label).nonzero()[:, 1]
        found.append((len(at), int(at.min()), int(at.max())))
    return found


def _cropped(ink: Tensor) -> Tensor:
    """The smallest rectangle that holds the strokes."""
    mask = ink > INK
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _stroke_width(ink: Tensor) -> float:
    """Roughly how wide the strokes are, in pixels: twice their area over the length of their outline."""
    mask = F.pad((ink > INK).float(), (1, 1, 1, 1))
    outline = mask.diff(dim=0).abs().sum() + mask.diff(dim=1).abs().sum()
    return float(2 * mask.sum() / outline) * 1.27  # an outline along pixels is 4 / pi times too long on average


def _widened(ink: Tensor, by: float) -> Tensor:
    """Strokes wider by that many pixels: each pixel is the darkest of those around it."""
    reach = round(by / 2)
    return F.max_pool2d(F.pad(ink[None], (reach,) * 4), 2 * reach + 1, stride=1, padding=reach)[0] if reach else ink


def _centred(small: Tensor) -> Tensor:
    """The digit in 28x28 pixels, its centre of mass in the middle, as far as whole pixels and the frame allow."""
    corner = []
    for axis, length in enumerate(small.shape):
        mass = small.sum(1 - axis)
        middle = float((mass * (torch.arange(length) + 0.5)).sum() / mass.sum())
        corner.append(min(max(round(SIZE / 2 - middle), 0), SIZE - length))
    top, left = corner
    return F.pad(small, (left, SIZE - left - small.shape[1], top, SIZE - top - small.shape[0]))
