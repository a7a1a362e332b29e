"""demo.py: its response to a drawing, and the page itself in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

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
        raise FileNotFoundError(2, "No such file or directory", "seed_0.pt")

    monkeypatch.setattr(demo, "load_net", missing)
    assert demo.main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "seed_0.pt" in err


@pytest.fixture
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


@pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(BROWSERS)}")
def test_a_stroke_in_the_browser_is_read(address):
    """The mouse draws a seven, and the page says 7."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(address)
        page.wait_for_selector("canvas", timeout=60_000)
        page.wait_for_timeout(3_000)  # until the canvas has its final size
        box = page.query_selector("canvas").bounding_box()
        points = [(0.35, 0.25), (0.65, 0.25), (0.45, 0.75)]
        path = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*path[0])
        page.mouse.down()
        for point in path[1:]:
            page.mouse.move(*point, steps=12)
        page.mouse.up()
        best = page.wait_for_selector("[data-testid=label-output-value]", timeout=60_000)
        assert best.inner_text() == "7"
        browser.close()
