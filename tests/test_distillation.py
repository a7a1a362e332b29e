"""Distillation: the loss, the soft labels, and the teachers that give them."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments import distillation
from experiments.distillation import Distillation, TeacherNet, labels_path, soft_labels, soft_labels_of, teacher_path
from experiments.variants import GROUPS
from model import STEPS, FinalNet
from tinymnist import runs
from utils import Recipe, count_parameters, evaluate, fit


class FromPixels(nn.Module):
    """Reads the answer off the first pixel: its value is the class."""

    def forward(self, x):
        return F.one_hot((x[:, 0, 0, 0] * 0.3081 * 255).round().long(), 10) * 50.0


def test_the_teacher_is_as_large_as_stated():
    assert f"{count_parameters(TeacherNet()):,} parameters" in TeacherNet.__doc__
    assert TeacherNet().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_loss_is_what_hinton_wrote():
    logits, labels, indices = torch.randn(6, 10), torch.arange(6), torch.tensor([5, 0, 3, 1, 9, 7])
    soft = torch.randn(20, 10).softmax(1)
    hard = F.cross_entropy(logits, labels)
    by_hand = 0.7 * hard - 0.3 * 4 * (soft[indices] * (logits / 2).log_softmax(1)).sum(1).mean()
    found = Distillation(soft, share=0.3, temperature=2.0)(logits, labels, indices)
    assert found.item() == pytest.approx(by_hand.item())
    assert Distillation(soft, share=0.0)(logits, labels, indices) == hard


def test_a_pupil_follows_its_teacher_and_not_the_labels(drawn):
    """With all of the loss on soft labels that say the digit plus one, the net answers that."""
    soft = torch.eye(10)[(drawn.train_labels + 1) % 10]
    fit(net := FinalNet(), Recipe(epochs=6, batch_size=64), drawn, progress=False, loss=Distillation(soft, share=1.0))
    assert evaluate(net, drawn.test_images, (drawn.test_labels + 1) % 10)[1] > 150  # of 200


def test_soft_labels_are_probabilities_at_the_temperature():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1).expand(5, 28, 28)
    teacher = FromPixels().train()
    soft = soft_labels(teacher, images, Recipe(), temperature=1.0)
    assert (soft.shape, soft.dtype) == ((5, 10), torch.float32)
    assert torch.allclose(soft, torch.eye(10)[:5], atol=1e-6)
    warm = soft_labels(teacher, images, Recipe(), temperature=100.0)
    assert torch.allclose(warm, (torch.eye(10)[:5] * 0.5).softmax(1))
    assert teacher.training


def test_soft_labels_have_the_same_bits_from_any_layout_in_memory_and_number_of_threads(drawn):
    """A net that was trained has its weights channels last, one that was loaded has them contiguous."""
    recipe, teacher, images, used = STEPS[3].recipe, TeacherNet(), drawn.train_images[:64], set()
    teacher.register_forward_hook(lambda *_: used.add(torch.get_num_threads()))
    soft = soft_labels(teacher, images, recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = soft_labels(teacher.to(memory_format=torch.channels_last), images, recipe)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, soft)
    assert used == {1}


def test_soft_labels_average_over_augmented_copies(drawn):
    recipe, net, images = Recipe(rotation=30.0, translation=0.2), FinalNet(), drawn.train_images[:64]
    many = soft_labels(net, images, recipe)
    assert not torch.allclose(many, soft_labels(net, images, recipe, views=1))
    assert torch.allclose(many.sum(1), torch.ones(64))


def test_teachers_that_are_missing_are_trained_and_teach_their_split(tmp_path, monkeypatch, drawn, in_this_process):
    short, trained = replace(STEPS[3], recipe=replace(STEPS[3].recipe, epochs=1)), in_this_process.jobs
    monkeypatch.setitem(STEPS, 3, short)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(distillation, "load_mnist", lambda: None)
    monkeypatch.setattr(distillation, "load_split", lambda split: drawn)
    monkeypatch.setattr(distillation, "in_processes", in_this_process)
    with pytest.raises(
        FileNotFoundError, match=r"no soft labels .*python -m experiments\.distillation validation makes them"
    ):
        soft_labels_of("validation")
    assert distillation.main(["validation-0", "test"]) == 0
    labels_path("validation-0").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(OSError, match=r"no soft labels in .*seed_1\.labels\.pt \(.*restore the file, or delete it"):
        soft_labels_of("validation-0")
    labels_path("validation-0").unlink()
    assert distillation.main(["validation-0"]) == distillation.main([]) == 0
    assert trained == [("validation-0", "cpu"), ("test", "cpu"), ("validation-0", "cpu")]
    teachers = [runs.read_run(teacher_path(split), {"split": split, "params": 196_778}) for split, _ in trained[:2]]
    assert [teacher["seed"] for teacher in teachers] == [1, 6]

    teacher = TeacherNet()
    teacher.load_state_dict(torch.load(teacher_path("validation-0").with_suffix(".pt"), weights_only=True))
    expected = soft_labels(copy.deepcopy(teacher), drawn.train_images, short.recipe)
    options = GROUPS["records"].variants()["6-12-12-13-taught"].options("validation-0")
    assert torch.equal(options["loss"].soft, expected)
    assert (options["loss"].share, options["loss"].temperature) == (0.5, 2.0)


@pytest.mark.parametrize("arguments", ["--seeds 3", "validation-5"])
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        distillation.main(arguments.split())
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
