"""The data: checks of real MNIST's files, the validation split, and drawn digits."""

import gzip
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tinymnist import data
from utils import DataError, Digits, drawn_digits, load_mnist, validation_split


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write a uint8 tensor in the idx format."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.numpy().tobytes())


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small idx files that count as the original."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_MD5:
        n = 12 if name.startswith("train") else 5
        shape = (n, 28, 28) if "images" in name else (n,)
        write_idx(
            raw / name, torch.arange(n).view(-1, *[1] * (len(shape) - 1)).expand(shape).to(torch.uint8).contiguous()
        )
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in data.MNIST_MD5}
    monkeypatch.setattr(data, "MNIST_MD5", sums)
    return tmp_path


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[bytes, int]]]:
    """The only mirror, on this machine: what it answers to each name, and how many bytes it says that these are."""
    answers: dict[str, tuple[bytes, int]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = answers.get(self.path[1:], (b"", 0))
            self.send_response(200 if length else 404)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(data, "MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        yield answers
        server.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    """What all files below a folder hold."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(root: Path) -> str:
    """The one line that refuses a folder."""
    with pytest.raises(DataError) as caught:
        load_mnist(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_real_mnist_is_complete(mnist):
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert mnist.train_images.dtype == torch.uint8
    assert mnist.train_labels.dtype == torch.int64
    assert torch.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    # The published mean and standard deviation of the training images.
    assert mnist.train_images.double().mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train_images.double().std() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_files_are_read_in_order(small_mnist):
    train_images, train_labels, test_images, test_labels = load_mnist(small_mnist)
    assert train_images.shape == (12, 28, 28)
    assert train_labels.tolist() == list(range(12))
    assert test_images[:, 0, 0].tolist() == test_labels.tolist() == list(range(5))


def test_environment_variable_names_the_folder(small_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert len(load_mnist().train_images) == 12


DAMAGES = {
    "cut short": lambda b: b[:-1],
    "one bit": lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:],
    "one bit of the block's type": lambda b: b[:10] + bytes([b[10] ^ 6]) + b[11:],  # a packed file's first block
    "empty": lambda b: b"",
    "web page": lambda b: b"<!DOCTYPE html><title>404</title>",
    "too much": lambda b: gzip.compress(bytes(data.LARGEST + 1), 1),
}


@pytest.mark.parametrize("name", list(data.MNIST_MD5))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_and_left(small_mnist, name, packed, damage):
    path = small_mnist / "MNIST" / "raw" / name
    content = gzip.compress(path.read_bytes(), mtime=0) if packed else path.read_bytes()
    path.unlink()
    path = path.with_name(f"{name}.gz") if packed else path
    path.write_bytes(DAMAGES[damage](content))
    before = contents(small_mnist)
    assert re.search(rf"{path.name} is not the original file.*delete it", refusal(small_mnist))
    assert contents(small_mnist) == before


@pytest.mark.parametrize("folder", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_where_people_have_them_and_nothing_is_written(small_mnist, mirror, folder, dot, packed):
    (small_mnist / "MNIST" / "raw").rename(small_mnist / "files")
    (small_mnist / "MNIST").rmdir()
    target = small_mnist / "data" / folder
    target.parent.mkdir(parents=True, exist_ok=True)
    (small_mnist / "files").rename(target)
    for path in list(target.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path = path.with_name(path.name.replace("-idx", ".idx") if dot else path.name)
        path.with_name(f"{path.name}.gz" if packed else path.name).write_bytes(
            gzip.compress(content) if packed else content
        )
        (target / path.name.replace(".idx", "-idx")).mkdir(exist_ok=True) if dot else None  # as in one archive
    before = contents(small_mnist)
    assert load_mnist(small_mnist / "data").test_labels.tolist() == list(range(5))
    assert contents(small_mnist) == before


def test_a_mistyped_folder_is_told_and_not_made(tmp_path, mirror):
    message = refusal(tmp_path / "dta" / "mnist")
    for part in ("dta/mnist (no such folder)", "HTTP Error 404", "MNIST/raw by hand"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "photo.png").touch()
    assert f"{tmp_path} (it holds photo.png)" in refusal(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_only_missing_files_are_downloaded(small_mnist, mirror):
    raw, missing = small_mnist / "MNIST" / "raw", "t10k-labels-idx1-ubyte"
    before = contents(small_mnist)
    times = {path.name: path.stat().st_mtime_ns for path in raw.iterdir() if path.name != missing}
    packed = gzip.compress((raw / missing).read_bytes())
    mirror[f"{missing}.gz"] = packed, len(packed)
    (raw / missing).unlink()
    assert load_mnist(small_mnist).test_labels.tolist() == list(range(5))
    assert contents(small_mnist) == before
    assert times == {path.name: path.stat().st_mtime_ns for path in raw.iterdir() if path.name != missing}


@pytest.mark.parametrize("fault", ["stops half-way", "web page", "too short", "another file"])
def test_a_failed_download_is_one_line_and_writes_nothing(small_mnist, tmp_path, mirror, fault):
    for name in data.MNIST_MD5:
        packed = gzip.compress((small_mnist / "MNIST" / "raw" / name).read_bytes())
        mirror[f"{name}.gz"] = packed, len(packed)
    last = len(packed)
    page = b"<html>\nPlease log in to this network\n</html>"
    other = gzip.compress(b"another")
    answers = {"stops half-way": (packed[: last // 2], last), "too short": (packed[: last // 2], last // 2)}
    mirror[f"{name}.gz"] = (answers | {"web page": (page, len(page)), "another file": (other, len(other))})[fault]
    assert f"no {name} in " in refusal(tmp_path / "new" / "data")
    assert not (tmp_path / "new").exists()


def test_processes_may_download_at_the_same_time(small_mnist, tmp_path, mirror):
    originals = contents(small_mnist / "MNIST")
    for path, content in originals.items():
        packed = gzip.compress(content)
        mirror[f"{Path(path).name}.gz"] = packed, len(packed)
    with ThreadPoolExecutor(4) as pool:
        for digits in pool.map(load_mnist, [tmp_path / "new"] * 4):
            assert digits.test_labels.tolist() == list(range(5))
    assert contents(tmp_path / "new" / "MNIST") == originals


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(small_mnist, tmp_path, mirror, monkeypatch):
    for name in data.MNIST_MD5:
        packed = gzip.compress((small_mnist / "MNIST" / "raw" / name).read_bytes())
        mirror[f"{name}.gz"] = packed, len(packed)
    fdopen = os.fdopen

    def on_a_full_disk(handle: int, mode: str):
        os.dup2(full.fileno(), handle)
        return fdopen(handle, mode)

    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(os, "fdopen", on_a_full_disk)
        assert "No space left on device" in refusal(tmp_path / "new")
    assert contents(tmp_path / "new") == {}


def test_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot read or write MNIST"):
        load_mnist(tmp_path / "file")


def test_each_split_holds_out_a_sixth_of_the_training_images(monkeypatch):
    images, labels = torch.arange(62).view(62, 1, 1), torch.arange(62)  # two more than can be shared out
    digits, held_out = Digits(images, labels, images[:3], labels[:3]), []
    monkeypatch.setattr(data, "load_mnist", lambda: digits)
    assert data.load_split("test") is digits
    for name, part in data.HELD_OUT.items():
        train_images, train_labels, test_images, test_labels = split = data.load_split(name)
        assert all(map(torch.equal, split, validation_split(digits, part)))
        assert train_images.flatten().tolist() == train_labels.tolist()
        assert test_images.flatten().tolist() == test_labels.tolist()
        assert sorted(train_labels.tolist() + test_labels.tolist()) == list(range(62))
        held_out.append(test_labels.tolist())
    assert next(iter(data.HELD_OUT)) == "validation"
    assert held_out[0] == validation_split(digits).test_labels.tolist() == list(range(52, 62))  # the last sixth
    assert sorted(label for labels in held_out for label in labels) == list(range(2, 62))


def test_validation_split_of_mnist(mnist):
    split = validation_split(mnist)
    assert (len(split.train_images), len(split.test_labels)) == (50_000, 10_000)
    assert torch.equal(split.test_images, mnist.train_images[-10_000:])


def test_drawn_digits_have_the_form_of_mnist():
    images, labels = drawn_digits(40, seed=3)
    assert images.shape == (40, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [4] * 10
    ink = (images > 64).float().mean((1, 2))
    assert ink.min() > 0.02
    assert ink.max() < 0.5
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert border.float().mean() < 3  # dark around, as in MNIST


def test_drawn_digits_depend_on_the_seed_alone():
    images, labels = drawn_digits(20, seed=5)
    again, labels_again = drawn_digits(20, seed=5)
    other, _ = drawn_digits(20, seed=6)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(images, other)
    assert len({image.numpy().tobytes() for image in images}) == 20


@pytest.mark.parametrize("n", [0, -1])
def test_drawn_digits_need_a_number(n):
    with pytest.raises(ValueError, match="at least 1"):
        drawn_digits(n)
