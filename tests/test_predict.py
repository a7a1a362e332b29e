"""predict.py: pictures of any kind are prepared like MNIST, and what is not a digit is rejected in one line."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import predict
from tinymnist.prepare import PictureError, open_picture, prepare
from utils import normalize

FONTS = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral"]
NET = predict.load_net()


def text(digits: str, font: str = "DejaVuSans", size: int = 80, ink="black", ground="white", mode="RGB") -> Image.Image:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
    image = Image.new(mode, (size * (1 + len(digits)), 2 * size), ground)
    ImageDraw.Draw(image).text((size // 2, size // 3), digits, font=face, fill=ink)
    return image


def read(image: Image.Image) -> int:
    probabilities = predict.classify(NET, prepare(image))
    return probabilities.index(max(probabilities))


@pytest.mark.parametrize("size", [32, 60, 200])
@pytest.mark.parametrize("font", FONTS)
def test_digits_of_several_fonts_and_sizes(font, size):
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
def test_colour_and_background_do_not_matter(options):
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
def test_images_of_mnist(mnist, kind):
    predictions = torch.tensor([read(mnist_like(image, kind)) for image in mnist.test_images[:200]])
    assert (predictions == mnist.test_labels[:200]).sum() >= 198


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


def test_thin_strokes_are_widened():
    image = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(image).line([(60, 40), (240, 40), (120, 260)], fill=0, width=2)
    assert read(image) == 7
    assert (prepare(image) > 128).sum() > 40


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
        (text("47"), "side by side"),
        (text("11"), "side by side"),
        (text("1234"), "too wide"),
        (blob(), "filled area"),
        (noise(), "no single digit"),
    ],
)
def test_what_is_not_one_digit_is_rejected(image, reason):
    with pytest.raises(PictureError, match=reason):
        prepare(image)


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
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


def test_no_image_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main([])
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_missing_and_damaged_weights_are_one_line(capsys, monkeypatch, tmp_path, content):
    monkeypatch.setattr(predict, "RESULTS", tmp_path)
    if content is not None:
        (tmp_path / "step3").mkdir()
        (tmp_path / "step3" / "seed_0.pt").write_bytes(content)
    code, out, err = call(capsys, "four.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "seed_0.pt" in err
    assert "run python train.py" in err


def test_the_lines_of_the_readme_classify(mnist, repository, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    monkeypatch.chdir(repository)
    names = {"images": mnist.test_images[:500]}
    exec(lines, names)
    with torch.no_grad():
        assert torch.equal(names["digits"], NET(normalize(mnist.test_images[:500])).argmax(1))
    assert (names["digits"] == mnist.test_labels[:500]).sum() > 490
