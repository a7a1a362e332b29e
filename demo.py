"""Draw a digit in the browser: ten probabilities while you draw, and the 28x28 pixels that the net sees.

python demo.py            at http://127.0.0.1:7860, on this machine alone
python demo.py --share    also at a public address of Gradio's for some days, as Colab needs it

Needs Gradio: pip install -r requirements-demo.txt
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from predict import classify, load_net
from tinymnist.prepare import PictureError, prepare
from train import OneLineParser, whole_number

SIDE = 280  # pixels of the canvas
Shown = tuple[dict[str, float], np.ndarray | None, str]


def respond(net: nn.Module, drawing: dict[str, Any] | None) -> Shown:
    """What is shown about a drawing: a probability per digit, the 28x28 pixels magnified, and a remark.

    Args:
        net: the net.
        drawing: what Gradio's sketchpad holds, of which "composite" is the PIL image; or None.
    """
    picture: Image.Image | None = drawing and drawing["composite"]
    if picture is None:
        return {}, None, "Draw a digit."
    try:
        seen = prepare(picture)
    except PictureError as error:
        return {}, None, "Draw a digit." if "blank" in str(error) else str(error)
    found = {str(digit): probability for digit, probability in enumerate(classify(net, seen))}
    return found, seen.numpy().repeat(8, axis=0).repeat(8, axis=1), ""


def build(net: nn.Module) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio

    with gradio.Blocks(title="Tiny MNIST") as page:
        gradio.Markdown("# Tiny MNIST\nA net with fewer than 8,000 parameters reads your digit while you draw it.")
        with gradio.Row():
            canvas = gradio.Sketchpad(
                Image.new("RGB", (SIDE, SIDE), "white"),  # without a picture to draw on, no tool is chosen
                label="Draw a digit",
                type="pil",
                canvas_size=(SIDE, SIDE),
                fixed_canvas=True,
                height=SIDE + 160,
                min_width=SIDE + 120,
                layers=False,
                brush=gradio.Brush(default_size=10, colors=["#000000"], color_mode="fixed"),
            )
            probabilities = gradio.Label(label="Probabilities", num_top_classes=10)
            with gradio.Column():
                seen = gradio.Image(label="What the net sees, 28x28 pixels", image_mode="L", interactive=False)
                remark = gradio.Markdown("Draw a digit.")
        canvas.input(
            lambda drawing: respond(net, drawing),
            canvas,
            [probabilities, seen, remark],
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return page


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted.

    Returns:
        the exit code: 0, or 2 if Gradio, the weights or the port are not to be had.
    """
    parser = OneLineParser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--share", action="store_true", help="also at a public address, through Gradio's servers")
    parser.add_argument("--port", type=whole_number(1, 65535), default=None, help="default: 7860, or the next free one")
    options = parser.parse_args(arguments)
    try:
        page = build(load_net())
    except ImportError as error:
        parser.exit(2, f"demo.py: Gradio cannot be loaded ({error}): pip install -r requirements-demo.txt\n")
    except OSError as error:
        parser.exit(2, f"demo.py: no weights: {error}\n")
    torch.set_num_threads(1)
    try:
        page.launch(share=options.share, server_port=options.port)
    except OSError as error:
        parser.exit(2, f"demo.py: {str(error).splitlines()[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
