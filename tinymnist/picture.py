"""Picture files of any kind, as the colours of their pixels."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LARGEST = 800  # pixels; larger pictures are reduced first, to a size still far above MNIST's


class PictureError(ValueError):
    """A picture cannot be read, or does not show one digit; the message says what is wrong and what to do."""


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file, the first picture of several, and apply its EXIF orientation.

    Raises:
        PictureError: the file does not exist, or is not an image that can be read.
    """
    try:
        if not Path(path).exists():
            raise PictureError("there is no such file: check the path")
        if not Path(path).is_file():
            raise PictureError("this is not a file: use a PNG or JPEG file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                with contextlib.suppress(Exception):  # damaged EXIF, which is written again after the picture is turned
                    ImageOps.exif_transpose(image, in_place=True)
                return image.copy()
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("it has too many pixels to be read safely: make the picture smaller") from error
    except Exception as error:  # a damaged file can raise nearly anything
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PictureError(f"this is not an image that can be read ({reason}): use a PNG or JPEG file") from error


def read_colors(image: Image.Image) -> np.ndarray:
    """The colours of a picture of any mode: float32 (H, W, 3) from 0 to 1, at most `LARGEST` pixels long."""
    if min(image.size) < 2 or max(image.size) > 20 * min(image.size):
        raise PictureError(f"{image.width}x{image.height} pixels show no digit: use another picture")
    if image.mode[0] in "IF":  # more than 8 bits: their range is not known, so it is taken from the picture
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        image = Image.fromarray((255 * (values - values.min()) / (np.ptp(values) or 1)).astype(np.uint8))
    transparent = image.has_transparency_data
    image = image.convert("RGBA" if transparent else "RGB")
    image = image.reduce(max(1, -(-max(image.size) // LARGEST)))
    colors, alpha = np.split(np.asarray(image, np.float32) / 255, [3], axis=2)
    if not transparent:
        return colors
    dark = (colors * alpha).sum() < 1.5 * alpha.sum()  # on black or white, whichever contrasts more with the opaque
    return colors * alpha + dark * (1 - alpha)
