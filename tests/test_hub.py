"""torch.hub: the published nets, as another program gets them from a clone."""

import re
import subprocess
import sys

import pytest
import torch

import hubconf
from predict import load_net
from tinymnist import runs
from utils import evaluate, normalize

PROGRAM = """
import sys, torch, utils

class Refuse:  # what is not among the dependencies, and once the net is there, whatever is in the repository
    names = set(sys.argv[2].split())

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
net = torch.hub.load(sys.argv[1], "tiny_mnist", source="local", seed=3)
Refuse.names |= {"model", "tinymnist", "predict", "hubconf"}
assert not net.training and utils.own and sys.modules["utils"] is utils
assert type(torch.hub.load(sys.argv[1], "tiny_mnist", source="local", pretrained=False)) is type(net)
with torch.no_grad():
    torch.save(torch.cat([net(batch) for batch in torch.load("images.pt").split(250)]), "logits.pt")
"""


def test_another_program_gets_the_net_of_the_record(tmp_path, repository, mnist):
    (tmp_path / "utils.py").write_text("own = True\n")  # a module of the other program
    torch.save(normalize(mnist.test_images), tmp_path / "images.pt")
    required = re.findall(r"^[\w-]+", (repository / "requirements.txt").read_text(), re.M)
    refused = {"skimage", "onnx", "pandas", *required} - {*hubconf.dependencies, "pillow", "scikit-image"}
    assert {"skimage", "scipy", "torchvision"} <= refused
    arguments = [sys.executable, "-c", PROGRAM, str(repository), " ".join(refused)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        expected = load_net(3)(normalize(mnist.test_images[:250]))
    assert torch.allclose(logits[:250], expected, atol=1e-4)
    correct = runs.load_runs("step3")[3]["history"][-1]["test_correct"]
    assert (logits.argmax(1) == mnist.test_labels).sum().item() == pytest.approx(correct, abs=1)  # rounding


def test_the_net_is_all_that_is_listed():
    assert [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"] == ["tiny_mnist"]


def test_every_published_net_is_there(mnist):
    for seed, run in enumerate(runs.load_runs("step3", 20)):
        net = hubconf.tiny_mnist(seed=seed)
        few = mnist.test_images[:500], mnist.test_labels[:500]
        assert not net.training
        assert evaluate(net, *few)[1] >= 490
        assert run["seed"] == seed


@pytest.mark.parametrize("seed", [-1, 20, 0.5, "0", None])
def test_a_seed_that_is_not_published_is_named(seed):
    with pytest.raises(ValueError, match=rf"^no published weights of random seed {seed!r}: use 0 to 19$"):
        hubconf.tiny_mnist(seed=seed)


def test_without_weights_it_is_as_before_training():
    torch.manual_seed(7)
    net = hubconf.tiny_mnist(pretrained=False)
    torch.manual_seed(7)
    expected = hubconf._FinalNet().state_dict()
    assert net.training
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_weights_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hubconf, "_RESULTS", tmp_path)
    with pytest.raises(OSError, match=r"seed_0\.pt"):
        hubconf.tiny_mnist()


def test_weights_of_another_run_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hubconf, "_RESULTS", tmp_path)
    (tmp_path / "step3").mkdir()
    weights = (runs.RESULTS / "step3" / "seed_0.pt").read_bytes()
    (tmp_path / "step3" / "seed_0.pt").write_bytes(weights)
    (tmp_path / "step3" / "seed_0.json").write_text('{"weights_sha256": "0123"}')
    with pytest.raises(OSError, match=r"SHA-256"):
        hubconf.tiny_mnist()
