"""predict.py: pictures of any kind are prepared like MNIST, and what is not a digit is rejected in one line."""

import functools
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

import predict
import utils
from tinymnist.picture import PictureError, open_picture
from tinymnist.prepare import prepare
from utils import normalize

FONTS = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral"]
CASES = Path(__file__).parent / "pictures"


def text(digits: str, font: str = "DejaVuSans", size: int = 80, ink="black", ground="white", mode="RGB") -> Image.Image:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
    image = Image.new(mode, (size * (1 + len(digits)), 2 * size), ground)
    ImageDraw.Draw(image).text((size // 2, size // 3), digits, font=face, fill=ink)
    return image


@pytest.fixture(scope="module")
def read() -> Callable[[Image.Image], int]:
    """The digit that the published net reads in a picture."""
    net = predict.load_net()

    def digit(image: Image.Image) -> int:
        probabilities = predict.classify(net, prepare(image))
        return probabilities.index(max(probabilities))

    return digit


@pytest.mark.parametrize("size", [32, 60, 200])
@pytest.mark.parametrize("font", FONTS)
def test_digits_of_several_fonts_and_sizes(read, font, size):
    predictions = [read(text(str(digit), font, size)) for digit in range(10)]
    assert sum(a == b for a, b in enumerate(predictions)) >= 9, predictions


@pytest.mark.parametrize(
    "options",
    [
        {"ink": "white", "ground": "black"},
        {"ink": (200, 30, 30), "ground": (235, 235, 120)},
        {"ink": (120, 200, 255), "ground": (10, 40, 10)},
        {"ink": (150, 150, 150), "ground": (200, 200, 200)},
        {"ink": 0, "ground": 255, "mode": "L"},
        {"ink": (0, 0, 0, 255), "ground": (0, 0, 0, 0), "mode": "RGBA"},
        {"ink": (255, 255, 255, 255), "ground": (255, 255, 255, 0), "mode": "RGBA"},
        {"ink": (40, 90, 200, 255), "ground": (0, 0, 0, 0), "mode": "RGBA"},
    ],
)
def test_colour_and_background_do_not_matter(read, options):
    assert [read(text(str(digit), **options)) for digit in range(10)] == list(range(10))


def mnist_like(image: torch.Tensor, kind: str) -> Image.Image:
    picture = Image.fromarray(image.numpy())
    if kind == "inverted":
        return ImageOps.invert(picture)
    if kind == "shifted":
        wide = Image.new("L", (90, 70))
        wide.paste(picture, (50, 3))
        return wide
    return picture.resize((280, 280), Image.Resampling.BICUBIC) if kind == "scaled" else picture


@pytest.mark.parametrize("kind", ["as it is", "scaled", "inverted", "shifted"])
def test_images_of_mnist(read, mnist, kind):
    count = 200 if kind in ("as it is", "inverted") else 50
    predictions = torch.tensor([read(mnist_like(image, kind)) for image in mnist.test_images[:count]])
    assert (predictions == mnist.test_labels[:count]).sum() >= 0.98 * count


def test_size_and_centre_are_those_of_mnist():
    """The longer side fills 20 pixels, and the centre of mass is in the middle."""
    for digit in range(10):
        seen = prepare(text(str(digit), size=150))
        assert (seen.shape, seen.dtype) == ((28, 28), torch.uint8)
        ink = seen.float()
        rows, columns = (ink.amax(axis) > 60 for axis in (1, 0))
        assert 19 <= max(rows.sum(), columns.sum()) <= 20
        at = torch.arange(28) + 0.5
        assert (ink.sum(1) @ at / ink.sum()).item() == pytest.approx(14, abs=0.6)
        assert (ink.sum(0) @ at / ink.sum()).item() == pytest.approx(14, abs=0.6)


@pytest.mark.parametrize("digit", [1, 2, 4, 7])
def test_a_blurred_digit_may_end_in_a_corner_of_the_picture(read, digit):
    image = text(str(digit), "DejaVuSans-Bold", 100)
    left, top, right, bottom = ImageOps.invert(image).getbbox()
    cut = image.crop((left - 15, top - 8, right - 3, bottom - 3))
    assert read(cut.filter(ImageFilter.GaussianBlur(4))) == digit


def test_a_thick_blurred_stroke_is_no_filled_area(read):
    image = Image.new("L", (160, 160), 255)
    ImageDraw.Draw(image).rectangle([40, 0, 120, 160], fill=0)
    assert read(image.filter(ImageFilter.GaussianBlur(8))) == 1


def test_thin_strokes_are_widened(read):
    image = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(image).line([(60, 40), (240, 40), (120, 260)], fill=0, width=2)
    assert read(image) == 7
    assert (prepare(image) > 128).sum() > 40


@pytest.mark.parametrize("name", ["shadow-7", "uneven-2", "lined-3", "graph-2", "table-8"])
def test_photographs_of_paper_are_read(read, name):
    assert read(open_picture(CASES / f"{name}.jpg")) == int(name[-1])


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values).round().astype(np.uint8))


@pytest.mark.parametrize("across", [True, False])
def test_a_gradient_is_blank(across):
    values = np.linspace(0.3, 1, 100)
    with pytest.raises(PictureError, match="blank"):
        prepare(grey(np.tile(values, (80, 1)) if across else np.outer(values, values)))


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
        draw.line([(0, y), (image.width, y + 12)], fill=(120, 160, 230), width=2)
    draw.line([(30, 0), (22, image.height)], fill=(230, 120, 120), width=3)
    assert (prepare(image).float() - plain.float()).abs().mean() < 8


def test_a_stroke_that_is_broken_stays_one_digit(read):
    image = text("8", size=160)
    ImageDraw.Draw(image).rectangle([0, 120, image.width, 123], fill="white")
    assert read(image) == 8


def test_images_of_mnist_stay_as_they_are(mnist):
    for image in mnist.test_images[:300]:
        assert torch.equal(prepare(mnist_like(image, "as it is")), image)
        assert torch.equal(prepare(mnist_like(image, "inverted")), image)


def test_a_large_photograph_takes_about_a_second(read):
    image = text("6", size=300).resize((4000, 3000))
    start = time.process_time()
    assert read(image) == 6
    assert time.process_time() - start < 2


def blob() -> Image.Image:
    image = Image.new("L", (90, 90), 255)
    ImageDraw.Draw(image).rectangle([20, 20, 70, 70], fill=0)
    return image


def noise() -> Image.Image:
    return Image.fromarray(torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0)).byte().numpy())


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (40, 40), "white"), "blank"),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "blank"),
        (Image.new("L", (1, 1), 255), "too few"),
        (Image.new("L", (3, 5000), 255), "too few"),
        (text("47"), "side by side"),
        (text("11"), "side by side"),
        (text("1234"), "side by side"),
        (text("—"), "too wide"),
        (blob(), "filled area"),
        (noise(), "blank"),
    ],
)
def test_what_is_not_one_digit_is_rejected(image, reason):
    with pytest.raises(PictureError, match=reason):
        prepare(image)


def test_the_orientation_of_a_photograph_is_applied(read, tmp_path):
    upright = text("7")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "seven.jpg", exif=exif, quality=95)
    assert read(open_picture(tmp_path / "seven.jpg")) == 7


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = predict.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_each_image_is_classified_and_each_error_is_one_line(capsys, tmp_path):
    text("3").save(tmp_path / "three.png")
    text("8", ink="white", ground="black").save(tmp_path / "eight.jpg")
    Image.new("L", (30, 30)).save(tmp_path / "blank.png")
    (tmp_path / "notes.txt").write_text("not an image")
    names = ["three.png", "blank.png", "notes.txt", "missing.png", ".", "eight.jpg"]
    code, out, err = call(capsys, *(tmp_path / name for name in names))
    assert code == 2
    lines = out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'three.png'}: 3 (")
    assert lines[1].startswith(f"{tmp_path / 'eight.jpg'}: 8 (")
    assert len(lines) == 2
    errors = err.splitlines()
    assert [line.split(": ")[1] for line in errors] == [str(tmp_path / name) for name in names[1:5]]
    assert all(line.startswith("predict.py: ") for line in errors)


def test_json(capsys, tmp_path):
    text("5").save(tmp_path / "five.png")
    code, out, _ = call(capsys, "--json", tmp_path / "five.png", tmp_path / "missing.png")
    assert code == 2
    five, missing = json.loads(out)
    assert five["digit"] == 5
    assert 0.5 < five["probability"] <= 1
    assert five["runner_up"]["digit"] != 5
    assert missing["error"] == "there is no such file: check the path"
    code, out, err = call(capsys, "--json", tmp_path / "five.png")
    assert (code, err, json.loads(out)) == (0, "", [five])


def test_show_writes_the_input_of_the_net(capsys, tmp_path):
    text("4").save(tmp_path / "four.png")
    code, out, _ = call(capsys, "--show", tmp_path / "four.png")
    assert code == 0
    assert out.endswith(f"saw {tmp_path / 'four-seen.png'}\n")
    with Image.open(tmp_path / "four-seen.png") as seen:
        assert (seen.size, seen.mode) == ((28, 28), "L")
        assert torch.equal(
            torch.frombuffer(bytearray(seen.tobytes()), dtype=torch.uint8).view(28, 28), prepare(text("4"))
        )


def test_whatever_a_picture_raises_costs_one_line(capsys, monkeypatch, tmp_path):
    for name in ("one", "two", "three"):
        text("3").save(tmp_path / f"{name}.png")
    errors = iter([MemoryError(), RuntimeError("first line\nsecond line")])

    def fails(image):
        for error in errors:
            raise error
        return prepare(image)

    monkeypatch.setattr(predict, "prepare", fails)
    names = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    code, out, err = call(capsys, *names)
    assert (code, out.count("\n"), out.startswith(f"{names[2]}: 3 (")) == (2, 1, True)
    assert err.splitlines() == [f"predict.py: {names[0]}: MemoryError", f"predict.py: {names[1]}: first line"]
    errors = iter([MemoryError(), RuntimeError("first line")])
    code, out, _ = call(capsys, "--json", *names)
    assert [entry.get("digit") for entry in json.loads(out)] == [None, None, 3]


def test_what_the_net_saw_overwrites_nothing_but_itself(read, capsys, tmp_path):
    text("4").save(tmp_path / "a.png")
    text("7").save(tmp_path / "a.jpg")
    text("2").save(tmp_path / "b.png")
    (tmp_path / "b-seen.png").write_bytes(b"of the user")
    names = [tmp_path / name for name in ("a.png", "a.jpg", "b.png")]
    for _ in range(2):  # the second time, each finds its own file
        code, out, _ = call(capsys, "--json", "--show", *names)
        seen = [entry["seen"] for entry in json.loads(out)]
        assert code == 0
        assert seen == [str(tmp_path / name) for name in ("a-seen.png", "a.jpg-seen.png", "b.png-seen.png")]
        assert [read(open_picture(path)) for path in seen] == [4, 7, 2]
    assert (tmp_path / "b-seen.png").read_bytes() == b"of the user"
    (tmp_path / "b.png-seen.png").write_bytes(b"of the user too")
    code, out, err = call(capsys, "--show", names[2])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "move it" in err


def test_a_name_that_cannot_be_printed_is_escaped(monkeypatch, tmp_path):
    names = ["zwölf.png", os.fsdecode(b"\xff.png"), "two\nlines.png"]
    for name in names:
        text("3").save(tmp_path / name, format="PNG")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    missing = str(tmp_path / "no\nlines.png")
    assert predict.main([*(str(tmp_path / name) for name in names), missing]) == 2
    err.flush()
    lines, errors = (stream.buffer.getvalue().decode("ascii").splitlines() for stream in (out, err))
    starts = [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in lines]
    assert starts == ["zw\\xf6lf.png", "\\udcff.png", "two\\nlines.png"]
    assert errors == [f"predict.py: {tmp_path}/no\\nlines.png: there is no such file: check the path"]


@pytest.mark.parametrize("kind", ["head", "closed", "full"])
def test_an_output_that_takes_nothing_is_one_line(capsys, monkeypatch, tmp_path, kind):
    for name in ("one", "two"):
        text("3").save(tmp_path / f"{name}.png")
    if kind == "closed":
        monkeypatch.setattr(sys, "stdout", None)
    elif kind == "full":
        monkeypatch.setattr(sys, "stdout", os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
    else:
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    code = predict.main(["--show", str(tmp_path / "one.png"), str(tmp_path / "two.png")])
    assert code == 2
    if sys.stdout is not None:
        sys.stdout.close()  # fails if something is left in its buffer
    monkeypatch.undo()
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.glob("*-seen.png")} == {"one-seen.png", "two-seen.png"}


def test_no_image_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main([])
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
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
    names = {"images": mnist.test_images[:500]}
    exec(classify.replace("tiny-mnist/tiny-mnist", repository.as_posix()), names)
    with torch.no_grad():
        assert torch.equal(names["digits"], predict.load_net(7)(normalize(mnist.test_images[:500])).argmax(1))
    assert (names["digits"] == mnist.test_labels[:500]).sum() > 490
    monkeypatch.setattr(utils, "load_mnist", lambda: drawn)
    exec(train, names)
    assert len(names["history"]["test_correct"]) == 5
