"""How a folder of pictures is scored."""

import hashlib
import json

import pytest
from PIL import Image

from experiments import pictures


@pytest.fixture
def folder(tmp_path, monkeypatch, mnist):
    """The first two test images, a 7 and a 2, the second said to be a 1; and a white page."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(pictures, "RESULTS", tmp_path / "results")
    for name, image in zip("ab", mnist.test_images[:2], strict=True):
        Image.fromarray(image.numpy()).save(tmp_path / f"{name}.png")
    Image.new("L", (40, 40), 255).save(tmp_path / "c.png")
    (tmp_path / "labels.csv").write_text("file,label,group,style\na.png,7,digit,x\nb.png,1,digit,x\nc.png,,refuse,x\n")
    return tmp_path


def test_what_is_read_wrong_and_refused_is_counted_and_kept(folder, capsys):
    assert pictures.main(["--record", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "digit: 2 pictures, 1 right, 1 wrong, 1 surely wrong, 0 refused",
        "printed: 0 pictures, 0 right, 0 wrong, 0 surely wrong, 0 refused",
        "refuse: 1 pictures, 0 right, 0 wrong, 0 surely wrong, 1 refused",
    ]
    entries = json.loads((folder / "results" / "pictures.json").read_bytes())
    assert [entry.pop("sha256") for entry in entries] == [
        hashlib.sha256((folder / f"{name}.png").read_bytes()).hexdigest() for name in "abc"
    ]
    assert entries == [
        {"label": 7, "group": "digit", "digit": 7, "sure": True},
        {"label": 1, "group": "digit", "digit": 2, "sure": True},
        {"label": None, "group": "refuse", "refused": "it is blank, or has too little contrast"},
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("file,label,group\n", "labels.csv names no pictures"),
        ("\ufefffile,label,group\nlabels.csv,,refuse\n", "labels.csv"),
        ("\x00", "labels.csv lacks the columns file, group, label"),
        ("file,label\na.png,7\n", "labels.csv lacks the columns group: name them in its first line"),
        ("file,label,group\na.png,,digit\n", "labels.csv, line 2: not a file, a digit and its group, or"),
        ("file,label,group\na.png,7,refuse\n", "labels.csv, line 2: not a file, a digit and its group, or"),
        ("file,label,group\n,7,digit\n", "labels.csv, line 2: not a file, a digit and its group, or"),
        ("file,label,group\nnone.png,7,digit\n", "none.png"),
        (None, "labels.csv"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_told_in_a_line(folder, capsys, lines, message):
    if lines is None:
        (folder / "labels.csv").unlink()
    else:
        (folder / "labels.csv").write_text(lines, encoding="utf-8")
    assert pictures.main(["--record", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "results" / "pictures.json").exists()
