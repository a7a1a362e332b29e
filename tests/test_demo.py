"""demo.py: its response to a drawing, and the page itself in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import pairwise

import pytest
from PIL import Image, ImageDraw

import demo
from predict import load_net

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def seven() -> Image.Image:
    image = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(image).line([(80, 60), (200, 60), (120, 230)], fill="black", width=18, joint="curve")
    return image


def test_a_drawing_is_classified():
    probabilities, seen, remark = demo.respond(load_net(), {"composite": seven()})
    assert max(probabilities, key=probabilities.get) == "7"
    assert list(probabilities) == [str(digit) for digit in range(10)]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert seen.shape == (224, 224)
    assert seen.max() == 255
    assert remark == ""


@pytest.mark.parametrize("drawing", [None, {"composite": None}, {"composite": Image.new("RGB", (280, 280), "white")}])
def test_an_empty_canvas_asks_for_a_digit(drawing):
    assert demo.respond(load_net(), drawing) == ({}, None, "Draw a digit.")


def test_two_digits_get_a_remark():
    wide = Image.new("RGB", (560, 280), "white")
    wide.paste(seven(), (0, 0))
    wide.paste(seven(), (280, 0))
    probabilities, _, remark = demo.respond(load_net(), {"composite": wide})
    assert probabilities == {}
    assert "no single digit" in remark


def test_without_gradio_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        demo.main([])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.endswith("pip install -r requirements-demo.txt\n")
    assert err.count("\n") == 1


def test_a_port_in_use_is_one_line(capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert demo.main(["--port", str(taken.getsockname()[1])]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_weights_are_one_line(monkeypatch, capsys):
    def missing():
        raise FileNotFoundError(2, "No such file or directory", "step3.pt")

    monkeypatch.setattr(demo, "load_net", missing)
    assert demo.main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "step3.pt" in err


@pytest.fixture(scope="module")
def address():
    """A demo that runs in a process of its own, on a free port."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, demo.__file__, "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2).close()
                    break
                except OSError:
                    assert process.poll() is None
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


SEVEN, ONE = [(0.35, 0.25), (0.65, 0.25), (0.45, 0.75)], [(0.5, 0.25), (0.5, 0.75)]
VIEWS = {
    "desktop": {"viewport": {"width": 1200, "height": 800}},
    "phone": {"viewport": {"width": 393, "height": 727}, "has_touch": True, "is_mobile": True},
}


def box_of(canvas) -> dict[str, float]:
    """Where the canvas lies, once it has its final size."""
    boxes = [None]
    while boxes.count(boxes[-1]) < 3:
        canvas.page.wait_for_timeout(300)
        boxes.append(canvas.bounding_box())
    return boxes[-1]


def draw(page, points: list[tuple[float, float]], touch: bool) -> None:
    """Draw a line through points of the canvas with a finger or the mouse."""
    box = box_of(page.locator("canvas").first)
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    path = [
        (a + (c - a) * k / 4, b + (d - b) * k / 4) for (a, b), (c, d) in pairwise(corners) for k in range(1, 5)
    ]  # a jump would leave a gap
    if touch:
        finger = page.context.new_cdp_session(page)
        for kind, x, y in [("touchStart", *corners[0]), *(("touchMove", *point) for point in path)]:
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(*corners[0])
        page.mouse.down()
        for point in path:
            page.mouse.move(*point)
        page.mouse.up()


@pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(BROWSERS)}")
@pytest.mark.parametrize("view", VIEWS)
def test_digits_drawn_in_the_browser_are_read_also_after_the_canvas_is_cleared(address, view):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(**VIEWS[view]).new_page()
        page.goto(address)
        page.wait_for_selector("canvas", timeout=60_000)
        best = page.locator("[data-testid=label-output-value]")
        for points, digit in ((SEVEN, "7"), (ONE, "1")):
            draw(page, points, touch=view == "phone")
            playwright.expect(best).to_have_text(digit, timeout=60_000)
            page.get_by_label("Clear canvas").click()
            playwright.expect(best).to_have_count(0, timeout=60_000)
        browser.close()
