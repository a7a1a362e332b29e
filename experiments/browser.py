"""`demo.html` in a browser: digits drawn on it with strokes of a pen, and its picture for the README.

python -m experiments.browser     writes results/demo.png

It needs Playwright, which tests/requirements.txt lists, and Chromium or Chrome. The exit code is 0, or 2 without them.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from skimage.morphology import skeletonize

from experiments.page import PAGE
from tinymnist.cli import OneLineParser
from tinymnist.runs import RESULTS, write_atomically
from utils import DataError, load_mnist

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = "chromium", "chromium-browser", "google-chrome"
PICTURED = 32  # the test image that is drawn for the README
Stroke = list[tuple[float, float]]  # points, as parts of the sheet's side, across and down

# Draws with a pen as a hand does, and waits until the page has read it.
DRAW = """async (strokes) => {
  const sheet = document.getElementById("pen"), box = sheet.getBoundingClientRect();
  const send = (type, [x, y]) => sheet.dispatchEvent(new PointerEvent(type, {
    bubbles: true, isPrimary: true, pointerType: "pen", button: 0,
    clientX: box.left + x * box.width, clientY: box.top + y * box.height,
  }));
  for (const points of strokes) {
    send("pointerdown", points[0]);
    for (const point of points.slice(1)) send("pointermove", point);
    send("pointerup", points.at(-1));
  }
  await new Promise((done) => requestAnimationFrame(done));
}"""


class NoBrowserError(Exception):
    """There is no Playwright, or no browser that it can start."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium or Chrome without a window: that of the system, or else the one that Playwright has fetched.

    Raises:
        NoBrowserError: there is neither.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowserError(f"Playwright cannot be loaded ({error}): pip install -r tests/requirements.txt") from error
    with sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            raise NoBrowserError(f"no Chromium starts ({error.message.splitlines()[0]})") from error
        yield browser
        browser.close()


def strokes_of(image: np.ndarray) -> list[Stroke]:
    """The strokes of a pen that writes the digit of an image, bool (H, W): the lines of its skeleton."""
    skeleton = {(int(y), int(x)) for y, x in np.argwhere(skeletonize(image))}
    left = set(skeleton)

    def around(point: tuple[int, int], points: set[tuple[int, int]]) -> list[tuple[int, int]]:
        """The neighbours of a point, the nearest first."""
        y, x = point
        near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))]
        return [n for n in near if n in points]

    strokes = []
    while left:
        line = [min(left, key=lambda point: (len(around(point, left)), point))]  # an end, where there is one
        left.remove(line[0])
        while near := around(line[-1], left):
            line.append(near[0])
            left.remove(near[0])
        drawn = skeleton - left - set(line[1:-1])
        joined = [*around(line[0], drawn - {line[-1]})[:1], *line, *around(line[-1], drawn)[:1]]
        if len(line) > 1 or len(joined) == 1:  # a single point beside another line is that line's
            points = np.array(joined, float)
            for _ in range(2):  # a hand does not go from pixel to pixel
                points[1:-1] = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
            strokes.append([(float(x), float(y)) for y, x in points / image.shape])
    return strokes


def scattered(strokes: list[Stroke], random: np.random.Generator) -> list[Stroke]:
    """Strokes scaled, slanted and moved at random; they stay on the sheet."""
    points = np.concatenate(strokes)
    middle, size = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0)
    slant = random.uniform(-0.25, 0.25)
    shear = np.array([[1, 0], [slant, 1]])  # points are rows
    zoom = random.uniform(0.35, 0.8) / max(size[1], size[0] + abs(slant) * size[1])
    reach = zoom * np.ptp((points - middle) @ shear, axis=0) / 2 + 0.06  # and half of the pen's width
    place = random.uniform(reach, 1 - reach)
    moved = [zoom * (np.array(stroke) - middle) @ shear + place for stroke in strokes]
    return [[(float(x), float(y)) for x, y in stroke] for stroke in moved]


def picture(browser: Browser, strokes: list[Stroke]) -> bytes:
    """The page with a digit drawn on it and a unit of Layer 2 pointed at, down to that layer, as PNG."""
    page = browser.new_page(viewport={"width": 1216, "height": 1500}, color_scheme="light")
    page.goto(PAGE.as_uri())
    page.evaluate(DRAW, strokes)
    layer = page.locator(".layer canvas").nth(1)
    layer.hover(position={"x": 391, "y": 53})
    page.wait_for_timeout(200)  # for the next frame
    box = layer.bounding_box()
    assert box is not None
    image, buffer = Image.open(io.BytesIO(page.screenshot())).convert("RGB"), io.BytesIO()
    image = image.crop((0, 0, image.width, round(box["y"] + box["height"] + 28)))
    image.quantize(128).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write the picture; returns the exit code."""
    parser = OneLineParser("browser.py", __doc__)
    parser.parse_args(arguments)
    try:
        strokes = strokes_of(load_mnist().test_images[PICTURED].numpy() > 127)
        with chromium() as browser:
            write_atomically(RESULTS / "demo.png", picture(browser, strokes))
    except (DataError, NoBrowserError, OSError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
