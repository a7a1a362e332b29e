"""The committed notebooks: executed from top to bottom, readable on the repository's page, true to results/."""

import re
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest

from model import STEPS
from tinymnist.data import default_root
from utils import load_runs, log_line

NAMES = {1: "Step1_Setup.ipynb", 2: "Step2_Regularize.ipynb", 3: "Step3_Final.ipynb"}
SECTIONS = [
    "Target",
    "What changes and why",
    "Model and parameters",
    "Receptive field",
    "Training",
    "Result",
    "Analysis",
    "Exercises",
    "Next",
]


@pytest.fixture(params=NAMES)
def number(request) -> int:
    return request.param


@pytest.fixture
def notebook(number, repository):
    return nbformat.read(repository / NAMES[number], as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    return "".join(o.text for cell in code(notebook) for o in cell.outputs if o.output_type == "stream")


def test_executed_from_top_to_bottom_without_errors(notebook):
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert [o for cell in code(notebook) for o in cell.outputs if o.output_type == "error"] == []


def test_renders_as_plain_text_and_pictures(notebook):
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code(notebook) for o in cell.outputs for kind in o.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert "image/png" in kinds
    for cell in code(notebook):
        names = [o.name for o in cell.outputs if o.output_type == "stream"]
        assert len(names) == len(set(names)), "streams are joined"
        assert all(o.text.count("\r") < 5 for o in cell.outputs if o.output_type == "stream")


def test_sections_in_the_same_order(notebook):
    headings = [
        h for cell in notebook.cells if cell.cell_type == "markdown" for h in re.findall("^## (.*)", cell.source, re.M)
    ]
    assert headings == SECTIONS


def test_cells_hold_calls_and_no_definitions(notebook):
    for cell in code(notebook):
        assert not re.search(r"^\s*(def|class) ", cell.source, re.M)
        assert len(cell.source.splitlines()) <= 20 or cell.source.startswith("import inspect")  # one name a line
        assert "pip install" not in cell.source


def test_opens_with_badge_and_colab_cell(number, notebook, repository):
    assert f"blob/main/{NAMES[number]}" in notebook.cells[0].source
    first = nbformat.read(repository / NAMES[1], as_version=4)
    assert notebook.cells[1].source == first.cells[1].source


def test_colab_cell_does_nothing_elsewhere(notebook, tmp_path):
    source = notebook.cells[1].source + "\nprint(os.getcwd())"
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def colab(tmp_path, repository, mnist, monkeypatch):
    """An empty /content as on Colab, a stand-in for its module, and a local repository in place of the real address."""
    (tmp_path / "site" / "google" / "colab").mkdir(parents=True)
    (tmp_path / "site" / "google" / "colab" / "__init__.py").write_text("")
    origin = tmp_path / "origin"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "runs", "data", "study")
    shutil.copytree(repository, origin, ignore=ignored)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TINY_MNIST_REPOSITORY", str(origin))
    monkeypatch.setenv("MNIST_ROOT", str(default_root()))
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def run_all(notebook, folder) -> str:
    """Execute a notebook in a folder; returns what it printed."""
    client = nbclient.NotebookClient(
        notebook, timeout=300, coalesce_streams=True, resources={"metadata": {"path": folder}}
    )
    client.execute()
    return printed(notebook)


def test_on_colab_it_fetches_the_repository_and_runs_up_to_the_training_twice(notebook, colab):
    training = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## Training"))
    notebook.cells = notebook.cells[:training]
    for _ in range(2):
        text = run_all(notebook, colab)
        assert re.search(r"^device: \S", text, re.M)
        assert "60,000 training images, 10,000 test images" in text
        assert [path.name for path in colab.iterdir()] == ["tiny-mnist"]


def test_on_colab_the_first_cell_may_run_again(notebook, colab):
    notebook.cells = [notebook.cells[1], nbformat.v4.new_code_cell(notebook.cells[1].source + "\nprint(os.getcwd())")]
    assert run_all(notebook, colab).splitlines()[-1] == str(colab / "tiny-mnist")


def test_on_colab_without_a_network_it_says_so(notebook, colab, monkeypatch):
    address = str(colab / "nothing")
    monkeypatch.setenv("TINY_MNIST_REPOSITORY", address)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=f"{address} cannot be fetched"):
        run_all(notebook, colab)
    assert list(colab.iterdir()) == []


def test_full_run_on_the_full_data(number, notebook):
    text = printed(notebook)
    assert "60,000 training images, 10,000 test images" in text
    assert len(re.findall(r"^epoch +\d+  lr", text, re.M)) == STEPS[number].recipe.epochs == 15


def test_log_equals_the_published_run_of_the_same_seed(number, notebook):
    text = printed(notebook)
    version, device, threads = re.search(r"PyTorch (\S+) on (\S+), CPU threads: (\d+)", text).groups()
    run = load_runs(f"step{number}")[0]
    assert run["seed"] == 0
    if (version, device, int(threads)) != (run["torch_version"], run["device"], run["threads"]):
        pytest.skip("the notebook was executed in another setting than results/")
    lines = re.findall(r"^(epoch +\d+  lr.*%)", text, re.M)
    assert lines == [log_line(record).rpartition("%")[0] + "%" for record in run["history"]]
