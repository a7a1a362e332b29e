"""The report: no number in the README or a notebook differs from results/."""

import json
import shutil

import pytest

from experiments import report
from tinymnist import runs
from utils import load_runs


def test_every_document_agrees_with_results():
    found = {path.name: complaints for path, _, complaints in report.documents()}
    assert found == {name: [] for name in report.DOCUMENTS}


def test_every_document_has_places_and_none_is_left_open():
    for path, content, _ in report.documents():
        places = report.PLACE.findall(content.decode().replace("\\n", "\n"))
        assert len(places) >= 5, path
        assert all(value != "?" for _, value in places), path


@pytest.fixture
def copied_results(tmp_path, monkeypatch):
    """A copy of results/ that the report reads in place of the real one."""
    shutil.copytree(runs.RESULTS, tmp_path / "results")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_another_result_is_noticed(copied_results):
    path = copied_results / "step3" / "seed_1.json"
    run = json.loads(path.read_text())
    run["history"][-1]["test_correct"] -= 10
    path.write_text(json.dumps(run))
    complaints = [line for *_, found in report.documents() for line in found]
    assert "README.md: step3-mean differs from results/" in complaints
    assert "Step3_Final.ipynb: step3-result differs from results/" in complaints
    assert not any("step1" in line for line in complaints)


def test_lost_evidence_is_named(copied_results):
    shutil.rmtree(copied_results / "study" / "step2-no-dropout")
    complaints = [line for *_, found in report.documents() for line in found]
    assert any("README.md: step2-effects has lost its evidence" in line and "no-dropout" in line for line in complaints)


def test_a_changed_number_in_the_text_is_noticed_and_mended():
    values = {"mean": lambda: "99.50 %"}
    text, complaints = report.fill("It is <!--mean-->99.51 %<!--/--> on average.", values, "README.md")
    assert complaints == ["README.md: mean differs from results/"]
    assert text == "It is <!--mean-->99.50 %<!--/--> on average."
    assert report.fill(text, values, "README.md") == (text, [])


def test_an_unknown_place_is_named():
    _, complaints = report.fill("<!--nothing-->1<!--/-->", {}, "README.md")
    assert complaints == ["README.md: nothing is known by the name nothing"]


def test_the_figure_is_the_same_each_time():
    first = report.learning_curves()
    assert first == report.learning_curves() == report.FIGURE.read_bytes()


def test_published_runs_are_complete_and_on_the_test_set():
    for number in (1, 2, 3):
        published = load_runs(f"step{number}")
        assert [run["seed"] for run in published] == [0, 1, 2, 3, 4]
        for run in published:
            assert (run["step"], run["data"], run["split"], run["device"]) == (number, "mnist", "test", "cpu")
            assert len(run["history"]) == 15
            assert {r["train_total"] for r in run["history"]} == {60_000}
            assert {r["test_total"] for r in run["history"]} == {10_000}
            assert not run["commit"].endswith("-dirty")


def test_the_study_left_the_test_set_alone():
    for name in report.variants():
        published = load_runs(f"study/{name}")
        assert [run["seed"] for run in published] == [0, 1, 2, 3, 4]
        for run in published:
            assert run["split"] == "validation"
            assert {r["train_total"] for r in run["history"]} == {50_000}
