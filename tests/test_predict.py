"""predict.py: pictures and files of any kind are read, and what is not a digit is refused in one line."""

import functools
import io
import json
import os
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage

import predict
import utils
from tinymnist.picture import PictureError, open_picture
from tinymnist.prepare import PROBLEMS, prepare
from utils import normalize

FONTS = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral"]


def text(digits: str, font: str = "DejaVuSans", size: int = 80, ink="black", ground="white", mode="RGB") -> Image.Image:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
    image = Image.new(mode, (size * (1 + len(digits)), 2 * size), ground)
    ImageDraw.Draw(image).text((size // 2, size // 3), digits, font=face, fill=ink)
    return image


def grey(values: np.ndarray) -> Image.Image:
    """A picture of values from 0, black, to 1, white."""
    return Image.fromarray((255 * values).round().astype(np.uint8))


net = functools.cache(predict.load_net)


def read(image: Image.Image) -> int:
    """The digit that the published net reads in a picture."""
    probabilities = predict.classify(net(), prepare(image))
    return probabilities.index(max(probabilities))


@pytest.mark.parametrize("size", [32, 110])
@pytest.mark.parametrize("font", FONTS)
def test_digits_of_several_fonts_and_sizes(font, size):
    predictions = [read(text(str(digit), font, size)) for digit in range(10)]
    assert sum(a == b for a, b in enumerate(predictions)) >= 9, predictions


@pytest.mark.parametrize(
    "colors",
    [
        {"ink": "white", "ground": "black"},
        {"ink": (200, 30, 30), "ground": (235, 235, 120)},
        {"ink": (120, 200, 255), "ground": (10, 40, 10)},
        {"ink": (150, 150, 150), "ground": (200, 200, 200)},
        {"ink": (0, 0, 0, 255), "ground": (0, 0, 0, 0), "mode": "RGBA"},
        {"ink": (255, 255, 255, 255), "ground": (255, 255, 255, 0), "mode": "RGBA"},
    ],
)
def test_colour_and_background_do_not_matter(colors):
    assert [read(text(str(digit), **colors)) for digit in range(10)] == list(range(10))


def test_images_of_mnist_stay_as_they_are_and_are_read_scaled_and_shifted(mnist):
    right = 0
    for image, label in zip(mnist.test_images[:60], mnist.test_labels[:60], strict=True):
        picture, wide = Image.fromarray(image.numpy()), Image.new("L", (90, 70))
        assert torch.equal(prepare(picture), image)
        assert torch.equal(prepare(ImageOps.invert(picture)), image)
        wide.paste(picture, (50, 3))
        right += read(wide) == label
        right += read(picture.resize((280, 280), Image.Resampling.BICUBIC)) == label
    assert right >= 118


def test_size_and_centre_are_those_of_mnist():
    """The longer side fills 20 pixels, and the centre of mass is in the middle."""
    for digit in range(10):
        ink = prepare(text(str(digit), size=150)).float()
        rows, columns = (ink.amax(axis) > 60 for axis in (1, 0))
        assert 19 <= max(rows.sum(), columns.sum()) <= 20
        assert ndimage.center_of_mass(ink.numpy()) == pytest.approx((13.5, 13.5), abs=0.6)


def test_blurred_thin_and_broken_strokes_are_read():
    for digit in (1, 2, 4, 7):  # one may end in a corner of the picture
        image = text(str(digit), "DejaVuSans-Bold", 100)
        left, top, right, bottom = ImageOps.invert(image).getbbox()
        cut = image.crop((left - 15, top - 8, right - 3, bottom - 3))
        assert read(cut.filter(ImageFilter.GaussianBlur(4))) == digit
    thick = ImageOps.expand(Image.new("L", (80, 160)), (40, 0), fill=255).filter(ImageFilter.GaussianBlur(8))
    assert read(thick) == 1  # no filled area
    thin, broken = Image.new("L", (300, 300), 255), text("8", size=160)
    ImageDraw.Draw(thin).line([(60, 40), (240, 40), (120, 260)], fill=0, width=2)
    assert read(thin) == 7
    assert (prepare(thin) > 128).sum() > 40
    ImageDraw.Draw(broken).rectangle([0, 120, broken.width, 123], fill="white")
    assert read(broken) == 8


def test_pale_ink_and_ink_that_varies_are_read():
    pale, broken = Image.eval(text("5").convert("L"), lambda value: 240 + value // 17), text("5", size=160)
    assert read(pale) == 5
    fades = 1 - (1 - np.asarray(broken.convert("L"), float) / 255) * np.linspace(1, 0.42, broken.height)[:, None]
    assert read(grey(fades)) == 5
    y, x = np.indices((480, 360)) / 480
    paper = np.full((480, 360), 0.75)
    paper[100:420, 30:350] -= 0.2 * (1 - np.asarray(text("7", size=160).convert("L"), float) / 255)
    assert read(grey(paper * (1 - 0.4 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)))) == 7


def test_a_digit_on_a_panel_with_a_margin_is_read():
    for digit in range(10):
        panel = ImageOps.invert(text(str(digit), size=150)).crop((30, 0, 270, 280))
        assert read(ImageOps.expand(panel, (60, 40, 50, 70), fill="white")) == digit


@pytest.mark.parametrize("name", ["shadow-7", "uneven-2", "lined-3", "graph-2", "table-8"])
def test_photographs_of_paper_are_read(name):
    assert read(open_picture(Path(__file__).parent / "pictures" / f"{name}.jpg")) == int(name[-1])


def test_a_large_photograph_is_read_without_a_warning(monkeypatch, tmp_path, recwarn):
    text("6", size=300).resize((4000, 3000)).save(tmp_path / "six.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000_000)  # Pillow warns of more, and refuses twice as many
    assert read(open_picture(tmp_path / "six.jpg")) == 6
    assert not recwarn


def test_a_digit_in_any_light_is_prepared_as_in_even_light():
    even = 0.15 + 0.8 * np.asarray(text("5", size=120).convert("L"), float) / 255
    y, x = np.indices(even.shape) / np.array(even.shape)[:, None, None]
    shadow = np.where(x + 0.4 * y > 0.6, 0.5, 1)
    for light in (1 - 0.65 * x, 1 - 0.65 * y, shadow, shadow * (1 - 0.3 * y)):
        seen, expected = prepare(grey(even * light)).float(), prepare(grey(even)).float()
        rounded = [seen.roll((i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]  # its centre, to whole pixels
        assert min((image - expected).abs().mean() for image in rounded) < 5


def test_ruled_lines_are_removed_from_under_the_digit():
    image = text("8", size=200)
    plain, draw = prepare(image), ImageDraw.Draw(image)
    for y in range(7, image.height, 40):
        draw.line([(0, y), (image.width, y + 12)], fill=(20, 20, 60), width=3)
    draw.line([(30, 0), (22, image.height)], fill=(230, 120, 120), width=3)
    assert (prepare(image).float() - plain.float()).abs().mean() < 8


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (40, 40), "white"), "blank"),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "blank"),
        (grey(np.outer(np.linspace(0.3, 1, 100), np.linspace(0.3, 1, 100))), "blank"),
        (grey(np.random.default_rng(0).random((64, 64))), "blank"),
        (Image.new("L", (1, 1), 255), "show no digit"),
        (Image.new("L", (3, 5000), 255), "show no digit"),
        (text("47"), "side by side"),
        (text("11"), "side by side"),
        (text("12").crop((52, 0, 240, 160)), "side by side"),  # a neighbour at the edge
        (text("—"), "too wide"),
        (grey(np.tile(np.pad(np.zeros((20, 20)), 20, constant_values=1), (5, 5))), "much beside"),
        (ImageOps.expand(Image.new("L", (80, 80)), 40, fill=255), "filled area"),
    ],
)
def test_what_is_not_one_digit_is_refused(image, reason):
    with pytest.raises(PictureError, match=reason):
        prepare(image)


SEVEN = text("7")
SCALE = np.asarray(SEVEN.convert("L"), float) / 255  # from 0, ink, to 1, paper
FILES = {
    "1.png": SEVEN.convert("1"),
    "palette.png": SEVEN.quantize(3),
    "transparent.png": SEVEN.convert("LA"),
    "16-bit.png": Image.fromarray((700 + 2_000 * SCALE).astype(np.uint16)),
    "moves.gif": SEVEN,  # and then a blank picture
    "cmyk.tiff": SEVEN.convert("CMYK"),
    "32-bit.tiff": Image.fromarray((-5_000_000 * (1 - SCALE)).astype(np.int32)),
    "float.tiff": Image.fromarray((0.2 + 0.5 * SCALE).astype(np.float32)),
    "not-all-finite.tiff": Image.fromarray(np.where(SCALE < 1, 1, np.nan).astype(np.float32)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_any_mode_are_read(tmp_path, name):
    more = {"save_all": True, "append_images": [Image.new("RGB", SEVEN.size, "white")]} if name == "moves.gif" else {}
    FILES[name].save(tmp_path / name, **more)
    assert read(open_picture(tmp_path / name)) == 7


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        SEVEN.save(tmp_path / "seven.png", exif=exif)
        with Image.open(tmp_path / "seven.png") as image:
            assert open_picture(tmp_path / "seven.png").tobytes() == ImageOps.exif_transpose(image).tobytes()
    damaged = (  # orientation 6, and an aperture of -1/0, which cannot be written again
        b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x04\x92\n\0\x01\0\0\0&\0\0\0\0\0\0\0"
        b"\xff\xff\xff\xff\0\0\0\0"
    )
    SEVEN.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "seven.png", exif=damaged)
    assert open_picture(tmp_path / "seven.png").tobytes() == SEVEN.tobytes()


@pytest.mark.parametrize("content", [b"", b"no image", "cut short", "too many pixels"])
def test_files_that_cannot_be_read_are_refused_in_one_line(monkeypatch, tmp_path, content):
    SEVEN.save(tmp_path / "bad.png")
    if content == "too many pixels":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    else:
        whole = (tmp_path / "bad.png").read_bytes()
        (tmp_path / "bad.png").write_bytes(whole[:-300] if content == "cut short" else content)
    advice = "make the picture smaller" if content == "too many pixels" else "use a PNG or JPEG file"
    with pytest.raises(PictureError, match=rf"^[^\n]*: {advice}$"):
        open_picture(tmp_path / "bad.png")


def test_what_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    for path, reason in ((tmp_path / "pipe.png", "not a file"), (tmp_path, "not a file"), (tmp_path / "x", "no such")):
        with pytest.raises(PictureError, match=reason):
            open_picture(path)


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = predict.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_each_image_is_classified_and_each_error_is_one_line(capsys, monkeypatch, tmp_path):
    text("3").save(tmp_path / "three.png")
    Image.new("L", (30, 30)).save(tmp_path / "blank.png")
    Image.new("L", (40, 40)).save(tmp_path / "strange.png")
    text("8", ink="white", ground="black").save(tmp_path / "eight.jpg")

    def fails(image):  # as a library may
        if image.size == (40, 40):
            raise RuntimeError("first line\nsecond line")
        return prepare(image)

    monkeypatch.setattr(predict, "prepare", fails)
    names = [str(tmp_path / name) for name in ("three.png", "blank.png", "strange.png", "missing.png", "eight.jpg")]
    code, out, err = call(capsys, *names)
    assert code == 2
    assert re.fullmatch(rf"{names[0]}: 3 \(\d+\.\d%\), then .*\n{names[4]}: 8 \(.*\n", out)
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["predict.py", name] for name in names[1:4]]
    assert f"{names[2]}: first line\n" in err
    code, out, _ = call(capsys, "--json", *names)
    entries = json.loads(out)
    assert code == 2
    assert [entry["image"] for entry in entries] == names
    assert [entry.get("digit") for entry in entries] == [3, None, None, None, 8]
    assert entries[3]["error"] == "there is no such file: check the path"
    assert entries[0]["runner_up"]["digit"] != 3
    assert 1 >= entries[0]["probability"] > 0.5 > entries[0]["runner_up"]["probability"]
    assert call(capsys, "--json", names[0])[::2] == (0, "")


@pytest.mark.parametrize(
    ("logits", "line"),
    [
        ([0, 0, 0, 0, 20, 0, 0, 0, 0, 15], r"4 \(99\.\d%\), then 9 \(0\.\d%\)"),
        ([0, 0, 0, 0, 20, 0, 0, 0, 0, 19], r"not sure: 4 \(73\.1%\) or 9 \(26\.9%\)"),
        ([0, 0, 0, 0, 8, 0, 0, 0, 0, 0], r"not sure: 4 \(8\d\.\d%\) or \d \(0\.\d%\)"),
        ([0, 0, 0, 0, 6, 0, 0, 0, 0, 0], None),
    ],
)
def test_what_is_not_sure_is_said_with_both_candidates(capsys, monkeypatch, tmp_path, logits, line):
    text("4").save(tmp_path / "a.png")
    monkeypatch.setattr(predict, "load_net", lambda: lambda images: torch.tensor([logits], dtype=torch.float32))
    code, out, err = call(capsys, tmp_path / "a.png")
    if line is None:
        assert (code, out, err) == (2, "", f"predict.py: {tmp_path / 'a.png'}: {PROBLEMS['none']}\n")
        return
    assert code == 0
    assert re.fullmatch(f"{re.escape(str(tmp_path))}/a.png: {line}\n", out)
    (entry,) = json.loads(call(capsys, "--json", tmp_path / "a.png")[1])
    assert (entry["digit"], entry["sure"]) == (4, "not sure" not in line)


def test_one_in_1000_training_images_has_less_evidence_than_none(mnist):
    with torch.no_grad():
        logits = torch.cat([net()(normalize(images)) for images in mnist.train_images.split(2000)])
    assert (logits.logsumexp(1) < predict.NONE).float().mean() == pytest.approx(0.001, abs=2e-4)


def test_show_writes_the_input_of_the_net_and_overwrites_nothing_but_that(capsys, tmp_path):
    text("4").save(tmp_path / "a.png")
    text("7").save(tmp_path / "a.jpg")
    text("2").save(tmp_path / "b.png")
    (tmp_path / "b-seen.png").write_bytes(b"of the user")
    names = [tmp_path / name for name in ("a.png", "a.jpg", "b.png")]
    seen = [tmp_path / name for name in ("a-seen.png", "a.jpg-seen.png", "b.png-seen.png")]
    for _ in range(2):  # the second time, each finds its own file
        code, out, _ = call(capsys, "--show", *names)
        assert code == 0
        assert [line.split(", saw ")[1] for line in out.splitlines()] == [str(path) for path in seen]
        for name, path in zip(names, seen, strict=True):
            assert np.array_equal(np.asarray(Image.open(path)), prepare(open_picture(name)).numpy())
    code, out, err = call(capsys, "--show", tmp_path / ("x" * 300), names[0])
    assert (code, err.count("File name too long"), err.count("\n"), out.count(", saw ")) == (2, 1, 1, 1)
    before = sorted(tmp_path.iterdir())
    code, out, err = call(capsys, "--json", "--show", *seen)
    assert (code, json.loads(out), err.count("skipped")) == (0, [], 3)
    assert sorted(tmp_path.iterdir()) == before  # what the net saw is no picture of the user's
    code, out, _ = call(capsys, "--json", *seen)
    assert [entry["digit"] for entry in json.loads(out)] == [4, 7, 2]
    assert (tmp_path / "b-seen.png").read_bytes() == b"of the user"
    Image.new("L", (28, 28)).save(seen[2])
    code, out, err = call(capsys, "--show", names[2])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "move it" in err
    assert not np.asarray(Image.open(seen[2])).any()


def test_a_name_that_cannot_be_printed_is_escaped(capsys, monkeypatch, tmp_path):
    names = ["zwölf.png", os.fsdecode(b"\xff.png"), "two\nlines.png"]
    for name in names:
        text("3").save(tmp_path / name, format="PNG")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert predict.main([str(tmp_path / name) for name in [*names, "no\nlines.png"]]) == 2
    lines = sys.stdout.buffer.getvalue().decode("ascii").splitlines()
    starts = [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in lines]
    assert starts == ["zw\\xf6lf.png", "\\udcff.png", "two\\nlines.png"]
    assert capsys.readouterr().err == f"predict.py: {tmp_path}/no\\nlines.png: there is no such file: check the path\n"


def test_an_output_that_closes_as_after_head_is_no_traceback(monkeypatch, tmp_path):
    text("3").save(tmp_path / "three.png")
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert predict.main([str(tmp_path / "three.png")]) == 2
    sys.stdout.close()  # fails if something is left in its buffer


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_missing_and_damaged_weights_are_one_line(capsys, monkeypatch, tmp_path, content):
    monkeypatch.setattr(predict, "RESULTS", tmp_path)
    if content is not None:
        (tmp_path / "step3.pt").write_bytes(content)
    code, out, err = call(capsys, "four.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "step3.pt" in err
    assert "restore the file, or train again" in err


def test_the_lines_of_the_readme_classify_and_train(mnist, drawn, repository, monkeypatch):
    classify, train = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    monkeypatch.setattr(torch.hub, "load", functools.partial(torch.hub.load, source="local"))
    names = {}
    monkeypatch.setattr(utils, "load_mnist", lambda: mnist)
    exec(classify.replace("tiny-mnist/tiny-mnist", repository.as_posix()), names)
    with torch.no_grad():
        assert torch.equal(names["digits"], predict.load_net(7)(normalize(mnist.test_images[:100])).argmax(1))
    assert (names["digits"] == mnist.test_labels[:100]).sum() > 97
    monkeypatch.setattr(utils, "load_mnist", lambda: drawn)
    exec(train, names)
    assert len(names["history"]["test_correct"]) == 5
