"""`demo.html`, the net on a page: the template `page.html` with weights, numbers and examples from the records.

python -m experiments.page            write it, and the examples that are easy, results/examples.json
python -m experiments.page --check    write nothing; exit code 1 and a line if the page differs
"""

from __future__ import annotations

import base64
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.export import folded
from model import FinalNet
from predict import NONE, SURE, load_net
from tinymnist import prepare, runs
from tinymnist.augmentation import STD
from tinymnist.cli import OneLineParser
from tinymnist.receptive_field import receptive_field
from tinymnist.runs import lines_of, write_atomically
from utils import DataError, Digits, count_parameters, load_mnist, load_runs

PAGE = runs.REPOSITORY / "demo.html"
TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "const DATA = null;"  # of the template
SEED = 0  # of the published run whose net the page computes
HARD = 6  # how many images that most nets get wrong are shown

# What a drawing is refused for, in the words of predict.py, and once more; the page says what to do.
PROBLEMS = {key: text.partition(":")[0] for key, text in prepare.PROBLEMS.items() if key != "clutter"}
PROBLEMS["scribble"] = "it shows no single digit (a scribble)"


def easy_examples(digits: Digits) -> bytes:
    """`results/examples.json`: the first test image of each digit, in the form of those of `errors.json`."""
    images = []
    for label in range(10):
        index = int((digits.test_labels == label).nonzero()[0, 0])
        pixels = base64.b64encode(digits.test_images[index].numpy().tobytes()).decode()
        images.append({"index": index, "label": label, "pixels": pixels})
    return lines_of(images, "index")


def weights_of(net: FinalNet) -> Tensor:
    """The weights of a net, float32 (n,): each layer's kernel (height, inputs, width, outputs), then its biases.

    A kernel runs from right to left, so that an input meets the outputs that see it in their order. BatchNorm is folded
    into the convolutions. The head is a convolution whose kernel covers the last map.

    Raises:
        ValueError: a scale of BatchNorm is negative, so that it cannot change places with max-pooling.
    """
    whole, values = folded(copy.deepcopy(net).double()), []
    for name, layer in whole.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            raise ValueError(f"{name} has a negative scale, so it cannot be folded into the convolution before pooling")
    for layer in whole.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight, bias = layer.state_dict().values()
            kernel = weight if weight.dim() == 4 else weight.unflatten(1, (-1, 3, 3))
            values += [kernel.flip(3).permute(2, 1, 3, 0).flatten(), bias]
    return torch.cat(values).float()


def data() -> dict[str, Any]:
    """What the page shows and computes with, from the records.

    Raises:
        OSError: a record or the weights are missing or damaged.
        ValueError: a record is damaged, or BatchNorm cannot be folded.
    """
    net = load_net(SEED)
    history = load_runs("steps", "step3")[SEED]["history"]
    errors = json.loads((runs.RESULTS / "errors.json").read_bytes())
    easy = json.loads((runs.RESULTS / "examples.json").read_bytes())
    hard = [
        {key: image[key] for key in ("index", "label", "pixels")} | {"wrong": len(image["wrong"])}
        for image in errors["images"][:HARD]
    ]
    fields = [
        {"layer": row.name, "kernel": row.kernel, "stride": row.stride, "padding": row.padding, "size": row.size_out}
        | {"channels": row.channels_out, "jump": row.jump, "field": row.receptive_field}
        for row in receptive_field(net)
    ]
    return {
        "parameters": count_parameters(net),
        "seed": SEED,
        "correct": history["test_correct"][-1],
        "total": history["test_total"][-1],
        "models": errors["models"],
        "scale": 255 * STD,
        "views": net.views,
        "fields": fields,
        "problems": PROBLEMS,
        "none": NONE,
        "sure": SURE,
        "digit": {"box": prepare.BOX, "thin": prepare.THIN, "thick": prepare.THICK},
        "examples": easy + hard,
        "weights": base64.b64encode(weights_of(net).numpy().astype("<f4").tobytes()).decode(),
    }


def page() -> bytes:
    """The whole of `demo.html`.

    Raises:
        OSError, ValueError: as `data`.
    """
    lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in data().items()]
    before, place, after = TEMPLATE.read_text().partition(PLACE)
    if not place:
        raise ValueError(f"{TEMPLATE.name} has no line `{PLACE}`")
    values = "{\n" + "".join(lines) + "}"
    return (before + PLACE.replace("null", values) + after).encode()


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page.

    Returns:
        the exit code: 1 if with --check the page differs; 2 if a record, the weights or the test images are missing.
    """
    parser = OneLineParser("page.py", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page differs")
    try:
        if parser.parse_args(arguments).check:
            same = PAGE.exists() and PAGE.read_bytes() == page()
            if not same:
                print(f"page.py: {PAGE.name} differs from its template or the records: make page", file=sys.stderr)
            return int(not same)
        write_atomically(runs.RESULTS / "examples.json", easy_examples(load_mnist()))
        write_atomically(PAGE, page())
        print(f"written: {PAGE}, {PAGE.stat().st_size:,} bytes")
    except (DataError, OSError, ValueError) as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
