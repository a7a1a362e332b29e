"""tinymnist/picture.py: picture files of any mode are read, and what cannot be read is refused in one line."""

import functools
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from predict import classify, load_net
from tinymnist.picture import PictureError, open_picture
from tinymnist.prepare import prepare

# Orientation 6, and an aperture of -1/0, which cannot be written again.
BAD_EXIF = (
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x04\x92\n\0\x01\0\0\0&\0\0\0\0\0\0\0"
    b"\xff\xff\xff\xff\0\0\0\0"
)


def seven() -> Image.Image:
    image = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(image).line([(80, 60), (200, 60), (120, 230)], fill=0, width=18, joint="curve")
    return image


net = functools.cache(load_net)


def read(image: Image.Image) -> int:
    probabilities = classify(net(), prepare(image))
    return probabilities.index(max(probabilities))


SCALE = np.asarray(seven(), float) / 255  # from 0, ink, to 1, paper
DEEP = {
    "16 bits, dark": Image.fromarray((700 + 2_000 * SCALE).astype(np.uint16)),
    "16 bits, bright": Image.fromarray((60_000 + 5_000 * SCALE).astype(np.uint16)),
    "32 bits": Image.fromarray((-5_000_000 * (1 - SCALE)).astype(np.int32)),
    "float from 0 to 1": Image.fromarray((0.2 + 0.5 * SCALE).astype(np.float32)),
    "float, not all finite": Image.fromarray(
        np.where(np.indices(SCALE.shape)[0] > 1, SCALE, np.nan).astype(np.float32)
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_pictures_of_more_than_8_bits(name, tmp_path):
    DEEP[name].save(tmp_path / "deep.tiff")
    assert read(open_picture(tmp_path / "deep.tiff")) == 7


def test_16_bits_in_a_png(tmp_path):
    DEEP["16 bits, dark"].save(tmp_path / "deep.png")
    assert read(open_picture(tmp_path / "deep.png")) == 7


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_pictures_of_other_modes(mode, tmp_path):
    kind = "png" if mode in ("1", "L", "P", "LA", "RGB", "RGBA") else "tiff"
    image = seven().convert("RGB").quantize(3) if mode == "P" else seven().convert(mode)
    image.save(tmp_path / f"seven.{kind}")
    assert read(open_picture(tmp_path / f"seven.{kind}")) == 7


def test_the_first_picture_of_an_animation(tmp_path):
    blank = Image.new("L", (280, 280), 255)
    seven().save(tmp_path / "moves.gif", save_all=True, append_images=[blank, blank])
    assert read(open_picture(tmp_path / "moves.gif")) == 7


def test_damaged_exif_is_ignored_beside_the_orientation(tmp_path):
    seven().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "seven.jpg", exif=BAD_EXIF)
    assert read(open_picture(tmp_path / "seven.jpg")) == 7


def big_text() -> bytes:
    """A PNG with more compressed text than Pillow unpacks."""
    data = b"note\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))
    return png(280, 280, (b"zTXt", data))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = (b"IDAT", zlib.compress(bytes((width + 1) * min(height, 300))))
    parts = [header, *chunks, body, (b"IEND", b"")]
    check = (struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + crc for (name, data), crc in zip(parts, check, strict=True)
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff\xe0",
        big_text(),
        png(60_000, 60_000),
        png(300, 300)[:90],
        b"P5 9 9 70000 " + bytes(9),
    ],
    ids=["empty", "text", "JPEG cut short", "compressed text", "bomb", "PNG cut short", "PGM"],
)
def test_files_that_cannot_be_read_are_one_line(content, tmp_path):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(PictureError, match="use a PNG or JPEG file") as raised:
        open_picture(tmp_path / "bad.png")
    assert "\n" not in str(raised.value)


def test_what_pillow_warns_of_is_no_line_of_its_own(monkeypatch, tmp_path, recwarn):
    seven().save(tmp_path / "seven.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # a picture may have twice as many, with a warning
    assert read(open_picture(tmp_path / "seven.png")) == 7
    assert not recwarn


def test_what_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    for path, reason in ((tmp_path / "pipe.png", "not a file"), (tmp_path, "not a file"), (tmp_path / "x", "no such")):
        with pytest.raises(PictureError, match=reason):
            open_picture(path)
