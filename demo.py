"""Draw a digit in the browser: its ten probabilities while you draw, and the 28x28 pixels of the net's input.

python demo.py            at http://127.0.0.1:7860, on this machine only
python demo.py --share    also at a temporary public address on Gradio's servers, which Colab needs

Needs Gradio: pip install "gradio>=5"
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from model import FinalNet
from predict import classify, load_net
from tinymnist.cli import OneLineParser, whole_number
from tinymnist.prepare import PictureError, prepare

if TYPE_CHECKING:
    import gradio

SIDE = 280  # pixels of the canvas
Shown = tuple[dict[str, float], np.ndarray | None, str]


def respond(net: FinalNet, drawing: dict[str, Any] | None) -> Shown:
    """What the page shows for a drawing: a probability per digit, the net's input magnified, and a remark.

    Args:
        net: the net.
        drawing: the value of Gradio's sketchpad, whose "composite" is a PIL image; None before the first stroke.
    """
    picture = drawing["composite"] if drawing else None
    if picture is None:
        return {}, None, "Draw a digit."
    try:
        image = prepare(picture)
    except PictureError as error:
        return {}, None, "Draw a digit." if "blank" in str(error) else str(error)
    probabilities = {str(digit): probability for digit, probability in enumerate(classify(net, image))}
    return probabilities, image.numpy().repeat(8, axis=0).repeat(8, axis=1), ""


def blank() -> Image.Image:
    """The white picture that is drawn on."""
    return Image.new("RGB", (SIDE, SIDE), "white")


def build(net: FinalNet) -> gradio.Blocks:
    """The page."""
    import gradio

    with gradio.Blocks(title="Tiny MNIST") as page:
        gradio.Markdown("# Tiny MNIST\nA net with fewer than 8,000 parameters reads your digit while you draw it.")
        with gradio.Row():
            canvas = gradio.Sketchpad(
                blank(),  # without a picture to draw on, no tool is chosen
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
        # Gradio takes the brush away when the canvas is cleared, and gives it back with a new picture to draw on.
        canvas.clear(lambda: (blank(), *respond(net, None)), None, [canvas, probabilities, seen, remark])
    return page


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted.

    Returns:
        the exit code: 0, or 2 if Gradio or the weights are missing or the port is in use.
    """
    parser = OneLineParser("demo.py", __doc__)
    parser.add_argument("--share", action="store_true", help="also at a public address, through Gradio's servers")
    parser.add_argument("--port", type=whole_number(1, 65535), help="default: the first free one from 7860")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        build(load_net()).launch(share=options.share, server_port=options.port)
    except ImportError as error:
        parser.error(f'Gradio cannot be loaded ({error}): pip install "gradio>=5"')
    except OSError as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
