"""The data: checks of real MNIST's files, downloads, and the held-out sixths."""

import gzip
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torchvision.datasets import MNIST

from tinymnist import data
from utils import DataError, Digits, load_mnist, validation_split


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write a uint8 tensor in the idx format."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.numpy().tobytes())


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small idx files that count as the original."""
    raw = tmp_path / "here" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_MD5:
        n = 12 if name.startswith("train") else 5
        values = torch.arange(n, dtype=torch.uint8)
        write_idx(raw / name, values.view(n, 1, 1).repeat(1, 28, 28) if "images" in name else values)
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in data.MNIST_MD5}
    monkeypatch.setattr(data, "MNIST_MD5", sums)
    return tmp_path / "here"


@pytest.fixture
def mirror(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What the only mirror, on this machine, answers to each name: the small files, packed."""
    raw = small_mnist / "MNIST" / "raw"
    answers = {f"{name}.gz": gzip.compress((raw / name).read_bytes()) for name in data.MNIST_MD5}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers.get(self.path[1:], b"")
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(name, hashlib.md5(content).hexdigest()) for name, content in answers.items()]
        monkeypatch.setattr(MNIST, "resources", resources)
        yield answers
        server.shutdown()


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
    assert mnist.train_images.double().std() / 255 == pytest.approx(0.3081, abs=5e-5)  # as published


def test_files_are_read_in_order(small_mnist, monkeypatch):
    train_images, train_labels, test_images, test_labels = load_mnist(small_mnist)
    assert train_images.shape == (12, 28, 28)
    assert train_labels.tolist() == list(range(12))
    assert test_images[:, 0, 0].tolist() == test_labels.tolist() == list(range(5))
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert len(load_mnist().train_images) == 12


@pytest.mark.parametrize("name", list(data.MNIST_MD5))
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_files_are_refused_and_left(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    assert re.search(rf"{name} is not the original file: delete it", refusal(small_mnist))
    assert path.read_bytes() == before


def test_missing_files_are_downloaded_and_packed_ones_put_there_by_hand_will_do(small_mnist, mirror):
    raw = small_mnist / "MNIST" / "raw"
    originals = {path.name: path.read_bytes() for path in raw.iterdir()}
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-images-idx3-ubyte").unlink()
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(mirror.pop("t10k-images-idx3-ubyte.gz"))
    assert load_mnist(small_mnist).test_labels.tolist() == list(range(5))
    assert {name: (raw / name).read_bytes() for name in data.MNIST_MD5} == originals


@pytest.mark.parametrize("fault", [b"", b"<html>\nPlease log in to this network\n</html>", gzip.compress(b"another")])
def test_a_failed_download_is_one_line_that_says_what_to_do_and_the_next_call_goes_on(tmp_path, mirror, fault):
    right, mirror["t10k-labels-idx1-ubyte.gz"] = mirror["t10k-labels-idx1-ubyte.gz"], fault
    message = refusal(tmp_path / "new")
    assert message.startswith(f"no MNIST in {tmp_path / 'new'} (")
    assert message.endswith(f"put its four files in {tmp_path / 'new' / 'MNIST' / 'raw'}, or name another folder")
    mirror["t10k-labels-idx1-ubyte.gz"] = right
    assert load_mnist(tmp_path / "new").test_labels.tolist() == list(range(5))


def test_processes_may_download_at_the_same_time(tmp_path, mirror):
    with ThreadPoolExecutor(4) as pool:
        for digits in pool.map(load_mnist, [tmp_path / "new"] * 4):
            assert digits.test_labels.tolist() == list(range(5))


def test_files_of_an_older_torchvision_are_not_read(small_mnist):
    (small_mnist / "MNIST" / "processed").mkdir()
    for name in ("training", "test"):
        torch.save(
            (torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3)), small_mnist / f"MNIST/processed/{name}.pt"
        )
    assert load_mnist(small_mnist).test_labels.tolist() == list(range(5))


def test_a_home_that_there_is_not_is_told():
    assert "no MNIST in ~nobody-of-this-name/m" in refusal(Path("~nobody-of-this-name/m"))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "no MNIST in" in refusal(tmp_path / "file")


def test_each_split_holds_out_a_sixth_of_the_training_images():
    images, labels = torch.arange(62).view(62, 1, 1), torch.arange(62)  # two more than can be shared out
    digits, held_out = Digits(images, labels, images[:3], labels[:3]), []
    for part in range(6):
        train_images, train_labels, test_images, test_labels = validation_split(digits, part)
        assert train_images.flatten().tolist() == train_labels.tolist()
        assert test_images.flatten().tolist() == test_labels.tolist()
        assert sorted(train_labels.tolist() + test_labels.tolist()) == list(range(62))
        held_out.append(test_labels.tolist())
    assert held_out[5] == validation_split(digits).test_labels.tolist() == list(range(52, 62))  # the last sixth
    assert sorted(label for labels in held_out for label in labels) == list(range(2, 62))


def test_a_split_that_there_is_not_is_refused(small_mnist):
    with pytest.raises(ValueError, match="no split 'validation': use test or one of sixth-0, "):
        load_mnist(small_mnist, split="validation")
    for part in (-1, 6):
        with pytest.raises(ValueError, match=f"no part {part}: use 0 to 5"):
            validation_split(load_mnist(small_mnist), part)


def test_a_split_can_be_loaded_by_name(mnist):
    split = load_mnist(split="sixth-5")
    assert (len(split.train_images), len(split.test_labels)) == (50_000, 10_000)
    assert torch.equal(split.test_images, mnist.train_images[-10_000:])
