"""torch.hub: the published nets, as another program gets them from a clone."""

import subprocess
import sys

import pytest
import torch

import hubconf
from predict import load_net
from tinymnist.runs import load_runs
from utils import evaluate, normalize

LOADS = """
import io, sys
import torch

class Refuse:  # torch needs none of them
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "PIL", "matplotlib", "torchvision", "tqdm", "skimage", "scipy"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
repository = sys.argv[1]
net = torch.hub.load(repository, "tiny_mnist", source="local", seed=1)
untrained = torch.hub.load(repository, "tiny_mnist", source="local", pretrained=False)
assert untrained.training and not net.training
file = io.BytesIO()
torch.save([net, untrained], file)
file.seek(0)
again, _ = torch.load(file, weights_only=False)
torch.save(again(torch.load("images.pt")), "logits.pt")
"""
HAS_MODULES_OF_THE_SAME_NAMES = f"""
import model, tinymnist, utils
{LOADS}
assert [sys.modules[name] for name in ("model", "tinymnist", "utils")] == [model, tinymnist, utils]
import tinymnist.runs
assert model.own and utils.own and tinymnist.own and tinymnist.runs.own
"""
LOADS_ANOTHER_REPOSITORY = f"""
{LOADS}
assert torch.hub.load("another", "entry", source="local") == ["another"] * 3
"""
ANOTHER = """
import model, tinymnist.runs, utils

def entry():
    return [model.own, tinymnist.runs.own, utils.own]
"""


def write_modules(folder, hubconf="") -> None:
    (folder / "tinymnist").mkdir(parents=True)
    for name in ("model", "utils", "tinymnist/__init__", "tinymnist/runs"):
        (folder / f"{name}.py").write_text("own = 'another'\n")
    (folder / "hubconf.py").write_text(hubconf)


@pytest.mark.parametrize("program", [HAS_MODULES_OF_THE_SAME_NAMES, LOADS_ANOTHER_REPOSITORY], ids=["own", "another"])
def test_another_program_loads_the_net_and_pickles_it(tmp_path, repository, drawn, program):
    if program is HAS_MODULES_OF_THE_SAME_NAMES:
        write_modules(tmp_path)
    else:
        write_modules(tmp_path / "another", ANOTHER)
    images = normalize(drawn.test_images)
    torch.save(images, tmp_path / "images.pt")
    arguments = [sys.executable, "-c", program, str(repository)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), load_net(1)(images), atol=1e-4)


def test_the_net_is_all_that_is_listed():
    assert [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"] == ["tiny_mnist"]


def test_published_nets_classify_as_their_records_say(mnist):
    nets = [hubconf.tiny_mnist(seed=run["seed"]) for run in load_runs("steps", "step3")]
    assert [net.training for net in nets] == [False] * 20
    for seed in (0, 7, 19):  # each takes more than a second
        correct = evaluate(nets[seed], mnist.test_images, mnist.test_labels)[1]
        expected = load_runs("steps", "step3")[seed]["history"]["test_correct"][-1]
        assert correct == pytest.approx(expected, abs=2)  # rounding


def test_the_docstring_says_what_the_usual_normalization_costs(mnist):
    correct = [load_runs("steps", "step3")[0]["history"]["test_correct"][-1]]
    for seed in (0, 17):
        net = hubconf.tiny_mnist(seed=seed)
        net.register_forward_pre_hook(lambda _, x: x[0] - 0.1307 / 0.3081)
        correct.append(evaluate(net, mnist.test_images, mnist.test_labels)[1])
    right, usual, worse = (f"{n / 100:.1f} %" for n in correct)
    found = f"seed 0 reads {usual} of the test images right in place of {right}, and seed 17 only {worse}."
    assert found in " ".join(hubconf.tiny_mnist.__doc__.split())


def test_a_seed_that_is_not_published_and_missing_weights_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"seed 20: use 0 to 19$"):
        hubconf.tiny_mnist(seed=20)
    monkeypatch.setattr(hubconf, "_RESULTS", tmp_path)
    with pytest.raises(OSError, match=r"step3\.pt"):
        hubconf.tiny_mnist()
