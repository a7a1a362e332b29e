"""demo.html: the net on the page is that of PyTorch, and what is drawn is read as predict.py reads it."""

import base64
import html
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.morphology import skeletonize

import predict
from experiments import page as generator
from experiments.browser import DRAW, NoBrowserError, chromium, scattered, strokes_of
from experiments.page import PAGE, PROBLEMS
from model import FinalNet
from tinymnist.picture import PictureError
from tinymnist.prepare import prepare
from tinymnist.receptive_field import receptive_field
from tinymnist.runs import RESULTS, load_runs
from utils import normalize

LARGEST = 120_000  # bytes of the page
DRAWINGS = 500
SEVEN = [(0.3 + 0.05 * k, 0.25) for k in range(9)] + [(0.7 - 0.03 * k, 0.25 + 0.07 * k) for k in range(1, 9)]
ONE = [(0.5, 0.25 + 0.07 * k) for k in range(8)]
TWO_DIGITS = [[(0.25, y) for _, y in ONE], [(0.4 + 0.55 * x, y) for x, y in SEVEN]]
ACROSS = [(0.1 + 0.08 * k, 0.5) for k in range(11)]
ZIGZAG = [(0.2 + 0.6 * abs(k / 8 % 2 - 1), 0.2 + 0.003 * k) for k in range(200)]
LOOPS = [(0.2 + 0.004 * t + 0.16 * math.cos(0.14 * t), 0.5 + 0.25 * math.sin(0.14 * t)) for t in range(150)]
ALONG_THE_EDGES = [
    tuple(0.5 + 0.475 * math.copysign(abs(part) ** 0.3, part) for part in (math.cos(angle), math.sin(angle)))
    for angle in np.linspace(0, math.tau, 201)
]
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as running:
            yield running
    except NoBrowserError as error:
        pytest.skip(str(error))


@pytest.fixture
def opened(browser):
    """Opens the page from disk; in the end, it must have asked for nothing and complained of nothing."""
    contexts, noticed = [], []

    def open_page(view: str = "desktop", **options):
        contexts.append(browser.new_context(**VIEWS[view] | options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: noticed.append(message.text))
        tab.on("pageerror", lambda error: noticed.append(str(error)))
        tab.on("request", lambda request: noticed.append(request.url))
        tab.goto(PAGE.as_uri())
        says(tab, r"^\d \(")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in noticed if not line.startswith((PAGE.as_uri(), "data:"))] == []


def says(tab, pattern: str, place: str = "#verdict") -> None:
    """Wait until the page says so."""
    from playwright.sync_api import expect

    expect(tab.locator(place)).to_have_text(re.compile(pattern))


def draw(tab, strokes) -> str:
    """Draw on an empty sheet; returns what the page says."""
    tab.evaluate("document.getElementById('clear').click()")
    tab.evaluate(DRAW, strokes)
    return tab.locator("#verdict").text_content()


def saved(url: str) -> Image.Image:
    """The picture of a data: URL, as if it were saved and opened."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


# ---- The file ----


def test_the_page_is_that_of_its_template_and_the_records():
    assert generator.main(["--check"]) == 0
    assert PAGE.stat().st_size < LARGEST
    assert (RESULTS / "demo.png").stat().st_size < 100_000


@pytest.mark.parametrize("content", [b"old", None])
def test_a_stale_page_is_told(monkeypatch, tmp_path, capsys, content):
    monkeypatch.setattr(generator, "PAGE", tmp_path / "demo.html")
    if content:
        (tmp_path / "demo.html").write_bytes(content)
    assert generator.main(["--check"]) == 1
    line = "page.py: demo.html differs from its template or the records: make page\n"
    assert capsys.readouterr().err == line


def test_the_command_writes_the_page_and_its_examples(mnist, monkeypatch):
    written = {}
    monkeypatch.setattr(generator, "write_atomically", lambda path, content: written.update({path: content}))
    assert generator.main([]) == 0
    assert written == {path: path.read_bytes() for path in (RESULTS / "examples.json", PAGE)}


def test_the_page_leads_to_the_repository_alone():
    urls = re.findall(r"[a-z]+://[^\s\"'<>)]+", PAGE.read_text())
    assert set(urls) == {"https://github.com/tiny-mnist/tiny-mnist", "http://www.w3.org/2000/svg"}  # the latter a name
    assert re.findall(r"\b(?:src|href)=\"(?!https:|data:)|url\(|@import|fetch\(|XMLHttp", PAGE.read_text()) == []


def test_the_examples_are_test_images(mnist):
    for example in generator.data()["examples"]:
        pixels = np.frombuffer(base64.b64decode(example["pixels"]), np.uint8)
        assert np.array_equal(pixels, mnist.test_images[example["index"]].numpy().ravel())
        assert example["label"] == mnist.test_labels[example["index"]]


def test_a_negative_scale_is_not_folded():
    net = FinalNet()
    net.norm3.weight.data[0].neg_()
    with pytest.raises(ValueError, match="norm3 has a negative scale"):
        generator.weights_of(net)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_their_ground(theme):
    colors = {}
    for name, value in re.findall(r"--(\w+): #([\da-f]{6})", PAGE.read_text()):
        channels = np.frombuffer(bytes.fromhex(value), np.uint8) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        colors.setdefault(name, []).append(float(linear @ [0.2126, 0.7152, 0.0722]))
    for ground in ("ground", "sheet"):
        for words in ("text", "soft", "accent", "point"):
            lighter, darker = sorted((colors[words][theme], colors[ground][theme]), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (words, ground)  # WCAG 2.2, level AA


# ---- The net ----


def test_the_page_computes_what_pytorch_does_on_all_test_images(opened, mnist):
    tab = opened()
    found = tab.evaluate(
        """(text) => {
          const all = Uint8Array.from(atob(text), (character) => character.charCodeAt(0)), found = [];
          for (let at = 0; at < all.length; at += 784) found.push(tinyMnist.logits(all.subarray(at, at + 784)));
          return found;
        }""",
        base64.b64encode(mnist.test_images.numpy().tobytes()).decode(),
    )
    net = predict.load_net()
    with torch.no_grad():
        expected = torch.cat([net(normalize(batch)) for batch in mnist.test_images.split(250)])
    logits = torch.tensor(found)
    assert (logits - expected).abs().max() < 1e-3
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    correct = int((logits.argmax(1) == mnist.test_labels).sum())
    assert correct == load_runs("steps", "step3")[0]["history"]["test_correct"][-1]
    assert f"{correct:,} of MNIST's 10,000 test images right, {correct / 100:.2f} %" in tab.inner_text("#accuracy")


def test_what_a_unit_sees_is_that_of_the_table(opened):
    tab = opened()
    rows = receptive_field(FinalNet())
    layers = [row for row, after in zip(rows, [*rows[1:], None], strict=True) if after is None or after.name != "pool"]
    for number, row in enumerate(layers[1:-1]):  # without the input and the head
        canvas = tab.locator(".layer canvas").nth(number)
        canvas.focus()
        tab.keyboard.press("ArrowRight")
        words = tab.inner_text("#unit")
        assert f"Layer {number + 1}, map 1, row 1, column 2" in words
        assert f"Receptive field: {row.receptive_field}×{row.receptive_field} pixels" in words
        assert f"{row.channels_out} maps of {row.size_out} by {row.size_out}" in canvas.get_attribute("aria-label")
    assert "of which 17×24 lie in the view. Its window on layer 3: 3×4 units" in words
    tab.locator("#bars li").nth(4).hover()
    field = rows[-1].receptive_field
    assert f"Receptive field: {field}×{field} pixels, of which 24×24 lie in the view" in tab.inner_text("#unit")
    tab.locator("#digit").hover()
    assert "Point at a unit" in tab.inner_text("#unit")


# ---- Drawings ----


def test_a_pen_follows_the_skeleton_and_stays_on_the_sheet(drawn):
    random = np.random.default_rng(0)
    for image in drawn.test_images[:40].numpy() > 127:
        strokes = strokes_of(image)
        points = 28 * np.concatenate(strokes)[:, None, ::-1]
        away = np.abs(points - np.argwhere(skeletonize(image))).max(2)
        assert away.min(0).max() < 2  # each pixel of the skeleton is drawn, but for corners that are rounded
        assert away.min(1).max() < 1  # and nothing else
        moved = np.concatenate(scattered(strokes, random))
        assert moved.min() > 0.03
        assert moved.max() < 0.97


def test_drawings_are_read_as_predict_reads_the_saved_sheet(opened, mnist):
    """Test images become strokes of a pen, scaled, slanted and moved at random."""
    random, net, tab = np.random.default_rng(0), predict.load_net(), opened()
    images = mnist.test_images[:DRAWINGS].numpy() > 127
    found = tab.evaluate(
        f"""async (drawings) => {{
          const draw = {DRAW}, found = [];
          for (const strokes of drawings) {{
            document.getElementById("clear").click();
            await draw(strokes);
            found.push([document.getElementById("verdict").textContent, document.getElementById("pen").toDataURL()]);
          }}
          return found;
        }}""",
        [scattered(strokes_of(image), random) for image in images],
    )
    same = right = 0
    for (words, url), label in zip(found, mnist.test_labels.tolist(), strict=False):
        digit = re.match(r"(?:not sure: )?(\d) \(", words)
        try:
            probabilities = predict.classify(net, prepare(saved(url)))
        except PictureError as error:
            same += words.partition(":")[0] in str(error)
        else:
            same += bool(digit) and int(digit[1]) == int(np.argmax(probabilities))
        right += bool(digit) and int(digit[1]) == label
    assert same >= 0.99 * DRAWINGS
    assert right >= 0.96 * DRAWINGS


@pytest.mark.parametrize(
    ("problem", "strokes"),
    [
        ("blank", []),
        ("several", TWO_DIGITS),
        ("wide", [ACROSS]),
        ("filled", [ZIGZAG]),
        ("filled", [[(0.5, 0.5)]]),
        ("scribble", [LOOPS]),
    ],
    ids=["nothing", "two digits", "a line across", "back and forth", "a dot", "loops"],
)
def test_what_is_no_digit_is_said_to_be_none_in_the_words_of_predict(opened, problem, strokes):
    tab = opened()
    assert draw(tab, strokes) == f"{PROBLEMS[problem]}: draw one digit"
    assert tab.inner_text("#digit") == "–"
    url = tab.evaluate("document.getElementById('pen').toDataURL()")
    if len(strokes) != 1 or strokes[0] in (ACROSS, ZIGZAG):  # predict.py reads a dot and loops as digits
        with pytest.raises(PictureError, match=re.escape(PROBLEMS[problem])):
            prepare(saved(url))


@pytest.mark.parametrize("view", VIEWS)
def test_digits_are_drawn_with_mouse_and_finger_taken_back_and_cleared(opened, view):
    tab = opened(view)
    box = tab.locator("#pen").bounding_box()
    finger = tab.context.new_cdp_session(tab)

    def stroke(points):
        path = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        if view == "phone":
            for kind, (x, y) in zip(["touchStart"] + ["touchMove"] * (len(path) - 1), path, strict=True):
                finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
            finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            tab.mouse.move(*path[0])
            tab.mouse.down()
            for point in path[1:]:
                tab.mouse.move(*point)
            tab.mouse.up()

    stroke(SEVEN)
    says(tab, r"^7 \(\d+\.\d%\), then \d \(\d+\.\d%\)$")
    stroke([(x - 0.4, y) for x, y in ONE])
    says(tab, "parts side by side")
    tab.keyboard.press("Control+z")
    says(tab, "^7")
    tab.locator("#clear").click()
    says(tab, "^it is blank")
    tab.locator("#undo").click()
    says(tab, "^7")
    tab.keyboard.press("Escape")
    says(tab, "^it is blank")
    stroke(ONE)
    says(tab, "^1")
    says(tab, r"^1 \(", "#said")  # to a screen reader
    assert tab.evaluate("[scrollX, scrollY]") == [0, 0]
    assert tab.evaluate("document.documentElement.scrollWidth") == VIEWS[view]["viewport"]["width"]


def test_a_digit_along_the_edges_is_ink_on_what_is_transparent(opened):
    assert draw(opened(), [ALONG_THE_EDGES]).startswith("0 (")


def test_strokes_end_where_the_page_did_not_see_it_and_a_palm_is_no_pen(opened):
    tab = opened()
    send = """([type, id, x, y, buttons, pointerType]) => {
      const sheet = document.getElementById("pen"), box = sheet.getBoundingClientRect();
      sheet.dispatchEvent(new PointerEvent(type, {
        bubbles: true, isPrimary: true, button: 0, buttons, pointerId: id, pointerType,
        clientX: box.left + x * box.width, clientY: box.top + y * box.height,
      }));
    }"""

    def painted() -> str:
        """The sheet, once the page has painted all that was drawn until now."""
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return tab.evaluate("document.getElementById('pen').toDataURL()")

    tab.locator("#clear").click()
    for kind, point in zip(["pointerdown"] + ["pointermove"] * len(ONE[1:]), ONE, strict=True):
        tab.evaluate(send, [kind, 1, *point, 1, "mouse"])
    one = painted()
    says(tab, "^1")
    tab.evaluate(send, ["pointermove", 1, 0.9, 0.9, 0, "mouse"])  # released outside of a frame
    tab.evaluate(send, ["pointermove", 1, 0.1, 0.9, 1, "mouse"])
    assert painted() == one
    tab.locator("#clear").click()
    tab.evaluate(send, ["pointerdown", 2, *ONE[0], 1, "pen"])
    for x, y in ONE[1:]:
        for event in (["pointerdown", 3, 0.9, 0.9, 1, "touch"], ["pointermove", 3, 0.8, 0.9, 1, "touch"]):
            tab.evaluate(send, event)
        tab.evaluate(send, ["pointermove", 2, x, y, 1, "pen"])
    assert painted() == one


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("logits()", "logits needs 784 values from 0 to 255"),
        ("logits(Array(783).fill(0))", "logits needs 784 values from 0 to 255"),
        ("logits(Array(784).fill(NaN))", "logits needs 784 values from 0 to 255"),
        ("logits(Array(784).fill(256))", "logits needs 784 values from 0 to 255"),
        ("prepare()", "prepare needs an ImageData"),
        ("prepare({data: new Uint8ClampedArray(40), width: 100, height: 100})", "prepare needs an ImageData"),
    ],
)
def test_bad_arguments_are_told(opened, call, message):
    caught = opened().evaluate(f"() => {{ try {{ tinyMnist.{call}; }} catch (error) {{ return error.message; }} }}")
    assert caught == message


@pytest.mark.parametrize("size", [(844, 390), (640, 450), (768, 1024), (1280, 650)])
def test_sheet_and_answer_stand_side_by_side_where_the_page_is_wide_or_low(opened, size):
    tab = opened(viewport={"width": size[0], "height": size[1]})
    sheet, bars = tab.locator("#pen").bounding_box(), tab.locator("#bars").bounding_box()
    assert sheet["x"] + sheet["width"] < bars["x"]
    assert bars["y"] + bars["height"] < size[1]
    assert tab.evaluate("document.documentElement.scrollWidth") == size[0]


def test_what_is_not_sure_is_said_with_both_candidates(opened):
    tab = opened()
    tab.get_by_role("button", name="Test image 9729").click()  # all nets take this 5 for a 6
    says(tab, r"^not sure: 6 \(\d\d\.\d%\) or 5 \(\d\d\.\d%\)$")
    assert tab.inner_text("#remark") == "Test image 9729, labelled 5: 20 of 20 nets get it wrong"


def test_pixels_go_from_prepare_to_logits_whatever_the_colours(opened):
    tab = opened()
    found = tab.evaluate(
        """(points) => ["white", "black", null].map((ground) => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 300, height: 200 });
          const pen = canvas.getContext("2d");
          pen.fillStyle = ground;
          if (ground) pen.fillRect(0, 0, 300, 200);
          Object.assign(pen, { lineWidth: 16, strokeStyle: ground === "black" ? "white" : "black" });
          points.forEach(([x, y]) => pen.lineTo(300 * x, 200 * y));
          pen.stroke();
          const pixels = tinyMnist.prepare(pen.getImageData(0, 0, 300, 200)), logits = tinyMnist.logits(pixels);
          return [pixels, logits.indexOf(Math.max(...logits))];
        })""",
        SEVEN,
    )
    assert [digit for _, digit in found] == [7, 7, 7]
    for pixels, _ in found:
        image = np.array(pixels).reshape(28, 28)
        rows, columns = (np.flatnonzero(image.max(axis) > 60) for axis in (1, 0))
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        assert np.abs(image - np.array(found[0][0]).reshape(28, 28)).max() < 8


# ---- The page ----


def test_the_page_works_within_another_as_in_a_notebook(browser):
    tab = browser.new_page()
    tab.set_content(f'<iframe srcdoc="{html.escape(PAGE.read_text())}" width="1000" height="900"></iframe>')
    inner = tab.frames[1]
    inner.wait_for_selector(".layer canvas")
    inner.evaluate(DRAW, [SEVEN])
    assert inner.inner_text("#verdict").startswith("7 (")
    tab.close()


def test_what_can_be_operated_has_a_name_and_the_keyboard_reaches_it(opened):
    tab = opened()
    names = tab.evaluate(
        """[...document.querySelectorAll("button, input, canvas[tabindex], canvas[role]")].map((one) =>
          one.getAttribute("aria-label") ?? one.textContent + [...one.labels ?? []].map((label) => label.innerText))"""
    )
    assert len(names) == 2 + 16 + 4 + 4 + 2  # tools, examples, views, layers, sheet and image
    assert all(len(name.strip()) > 3 for name in names)
    tab.get_by_role("button", name="Test image 18").click()  # so that there is something to take back
    reached = set()
    for _ in range(30):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {"undo", "clear", "bars", "easy", "hard", "views", "layers"} <= reached
    before = tab.locator("#image").screenshot()
    tab.get_by_text("1 pixel right").click()
    assert tab.locator("#image").screenshot() != before  # the frame of another view


def test_colours_follow_the_theme(opened):
    tab = opened(color_scheme="dark")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    maps = tab.locator(".layer canvas").first
    before = maps.screenshot()
    tab.emulate_media(color_scheme="light")
    tab.wait_for_timeout(100)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert maps.screenshot() != before
