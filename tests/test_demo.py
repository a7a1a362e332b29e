"""demo.py: its response to a drawing, and the page itself in a browser."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image, ImageDraw

import demo
import predict

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Points of the canvas, as parts of its sides; a long way from one to the next would leave a gap.
SEVEN = [(0.35 + 0.06 * k, 0.25) for k in range(6)] + [(0.65 - 0.04 * k, 0.25 + 0.1 * k) for k in range(1, 6)]
ONE = [(0.5, 0.25 + 0.1 * k) for k in range(6)]
VIEWS = {
    "desktop": {"viewport": {"width": 1200, "height": 800}},
    "phone": {"viewport": {"width": 393, "height": 727}, "has_touch": True, "is_mobile": True},
}


def test_a_drawing_is_classified_and_what_is_no_digit_gets_a_remark():
    net, picture = predict.load_net(), demo.blank()
    assert demo.respond(net, {"composite": picture}) == ({}, None, "Draw a digit.")
    line = [(demo.SIDE * x, demo.SIDE * y) for x, y in SEVEN]
    ImageDraw.Draw(picture).line(line, fill="black", width=18, joint="curve")
    probabilities, seen, remark = demo.respond(net, {"composite": picture})
    assert max(probabilities, key=probabilities.get) == "7"
    assert (len(probabilities), seen.shape, remark) == (10, (224, 224), "")
    two = Image.new("RGB", (2 * demo.SIDE, demo.SIDE), "white")
    two.paste(picture, (0, 0))
    two.paste(picture, (demo.SIDE, 0))
    probabilities, _, remark = demo.respond(net, {"composite": two})
    assert probabilities == {}
    assert "no single digit" in remark


def test_without_gradio_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        demo.main([])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert err.endswith('pip install "gradio>=5"\n')


def test_missing_weights_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(predict, "RESULTS", tmp_path)
    assert demo.main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "step3.pt" in err


@pytest.fixture(scope="module")
def address():
    """Where a demo runs, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, demo.__file__, "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert any(f":{port}" in line for line in process.stdout)  # it says where it is once it is there
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def draw(page, points: list[tuple[float, float]], touch: bool) -> None:
    """Draw a line through points of the canvas with a finger or the mouse."""
    boxes = [None]
    while boxes.count(boxes[-1]) < 3:  # until the canvas has its final size
        page.wait_for_timeout(300)
        boxes.append(page.locator("canvas").first.bounding_box())
    left, top, width, height = (boxes[-1][name] for name in ("x", "y", "width", "height"))
    path = [(left + x * width, top + y * height) for x, y in points]
    if touch:
        finger, kinds = page.context.new_cdp_session(page), ["touchStart"] + (len(path) - 1) * ["touchMove"]
        for kind, (x, y) in zip(kinds, path, strict=True):
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(*path[0])
        page.mouse.down()
        for point in path[1:]:
            page.mouse.move(*point)
        page.mouse.up()


@pytest.mark.skipif(not BROWSER or not find_spec("gradio"), reason="needs Gradio, and Chromium or Chrome")
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
