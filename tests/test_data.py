"""The data: checks of real MNIST's files, downloads, and the held-out sixths."""

import functools
import gzip
import hashlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torchvision.datasets import MNIST

from tinymnist import data
from utils import DataError, Digits, load_mnist, validation_split


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A folder with four small idx files that count as the original: image i is full of the value i, its label."""
    raw = tmp_path / "here" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_MD5:
        sizes = [12 if name.startswith("train") else 5, *([28, 28] if "images" in name else [])]
        header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
        values = torch.arange(sizes[0], dtype=torch.uint8).repeat_interleave(math.prod(sizes[1:]))
        (raw / name).write_bytes(header + values.numpy().tobytes())
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in data.MNIST_MD5}
    monkeypatch.setattr(data, "MNIST_MD5", sums)
    return tmp_path / "here"


@pytest.fixture
def mirror(small_mnist, monkeypatch):
    """The folder of the only mirror, on this machine: the small files, packed."""
    folder, resources = small_mnist.with_name("mirror"), []
    folder.mkdir()
    for path in (small_mnist / "MNIST" / "raw").iterdir():
        (folder / f"{path.name}.gz").write_bytes(packed := gzip.compress(path.read_bytes()))
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", resources)
        yield folder
        server.shutdown()


def refusal(root):
    """The one line that refuses a folder."""
    with pytest.raises(DataError) as caught:
        load_mnist(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_real_mnist_is_complete(mnist):
    assert (mnist.train_images.shape, mnist.test_images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert (mnist.train_images.dtype, mnist.train_labels.dtype) == (torch.uint8, torch.int64)
    assert torch.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_files_are_read_in_order_from_the_folder_that_the_environment_names(small_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    train_images, train_labels, test_images, test_labels = load_mnist()
    assert train_images[:, 0, 0].tolist() == train_labels.tolist() == list(range(12))
    assert test_images[:, 0, 0].tolist() == test_labels.tolist() == list(range(5))


@pytest.mark.parametrize("name", data.MNIST_MD5)
@pytest.mark.parametrize("damage", [lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""], ids=["one bit", "empty"])
def test_damaged_files_are_refused_and_left(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    path.write_bytes(damaged := damage(path.read_bytes()))
    assert f"{name} is not the original file: delete it" in refusal(small_mnist)
    assert path.read_bytes() == damaged


def test_missing_files_are_downloaded_and_packed_ones_put_there_by_hand_will_do(small_mnist, mirror):
    raw = small_mnist / "MNIST" / "raw"
    originals = {path.name: path.read_bytes() for path in raw.iterdir()}
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-images-idx3-ubyte").unlink()
    (mirror / "t10k-images-idx3-ubyte.gz").rename(raw / "t10k-images-idx3-ubyte.gz")
    assert load_mnist(small_mnist).test_labels.tolist() == list(range(5))
    assert {name: (raw / name).read_bytes() for name in data.MNIST_MD5} == originals


@pytest.mark.parametrize(
    "fault", [None, b"<html>\nPlease log in to this network\n</html>", gzip.compress(b"another", mtime=0)]
)
def test_a_failed_download_is_one_line_that_says_what_to_do_and_the_next_call_goes_on(tmp_path, mirror, fault):
    new, file = tmp_path / "new", mirror / "t10k-labels-idx1-ubyte.gz"
    right = file.read_bytes()
    file.write_bytes(fault) if fault else file.unlink()
    message = refusal(new)
    assert message.startswith(f"no MNIST in {new} (")
    assert message.endswith(f"put its four files in {new}/MNIST/raw, or name another folder")
    file.write_bytes(right)
    assert load_mnist(new).test_labels.tolist() == list(range(5))


def test_of_several_that_load_at_the_same_time_one_downloads(tmp_path, mirror, capfd):
    load_mnist(tmp_path / "once")
    asked = capfd.readouterr().err.count("GET /")
    with ThreadPoolExecutor(4) as pool:
        for digits in pool.map(load_mnist, [tmp_path / "new"] * 4):
            assert digits.test_labels.tolist() == list(range(5))
    assert capfd.readouterr().err.count("GET /") == asked >= 4


@pytest.mark.parametrize("root", ["~nobody-of-this-name/m", __file__])
def test_a_folder_that_cannot_be_is_told(root):
    assert f"no MNIST in {root} (" in refusal(root)


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


def test_a_split_is_loaded_by_name_and_one_that_there_is_not_is_refused(small_mnist):
    assert [load_mnist(small_mnist, f"sixth-{part}").test_labels.tolist() for part in (0, 5)] == [[0, 1], [10, 11]]
    with pytest.raises(ValueError, match="no split 'validation': use test or one of sixth-0, "):
        load_mnist(small_mnist, split="validation")
    with pytest.raises(ValueError, match="no part 6: use 0 to 5"):
        validation_split(load_mnist(small_mnist), 6)
