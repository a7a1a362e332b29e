"""The data: checks of real MNIST's files, the validation split, and drawn digits."""

import gzip
import hashlib
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
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, as without a network."""

    def fail(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)


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


@pytest.mark.parametrize("name", list(data.MNIST_MD5))
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_files_are_refused(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{name} is not the original file.*delete it") as caught:
        load_mnist(small_mnist)
    assert "\n" not in str(caught.value)


def test_packed_files_are_unpacked(small_mnist, no_network):
    raw = small_mnist / "MNIST" / "raw"
    for name in data.MNIST_MD5:
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    assert len(load_mnist(small_mnist).test_images) == 5


def test_truncated_archive_is_refused(small_mnist):
    path = small_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be unpacked.*delete it"):
        load_mnist(small_mnist)
    assert not path.exists()


def test_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, no_network):
    with pytest.raises(DataError, match=r"could not be downloaded from https?://.* by hand") as caught:
        load_mnist(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "MNIST"]


def test_only_missing_files_are_downloaded(small_mnist, tmp_path, monkeypatch):
    originals = {name: (small_mnist / "MNIST" / "raw" / name).read_bytes() for name in data.MNIST_MD5}
    kept, missing = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
    (small_mnist / "MNIST" / "raw" / missing).unlink()
    time_before = (small_mnist / "MNIST" / "raw" / kept).stat().st_mtime_ns

    def deliver(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        (Path(download_root) / name).write_bytes(originals[name])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", deliver)
    assert load_mnist(small_mnist).test_labels.tolist() == list(range(5))
    assert (small_mnist / "MNIST" / "raw" / kept).stat().st_mtime_ns == time_before
    assert [p.name for p in small_mnist.iterdir()] == ["MNIST"]


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
