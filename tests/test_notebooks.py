"""The committed notebooks: executed from top to bottom, readable on the repository's page, true to results/."""

import inspect
import re
import shutil
import subprocess
import sys

import nbclient
import nbconvert
import nbformat
import pytest

import model
from model import STEPS, FinalNet, RegularizedNet, SetupNet
from tinymnist.data import default_root
from utils import (
    Batches,
    count_parameters,
    describe_changes,
    load_runs,
    log_line,
    receptive_field,
    receptive_field_table,
    run_summary,
    train_epoch,
)

NAMES = {1: "Step1_Setup.ipynb", 2: "Step2_Regularize.ipynb", 3: "Step3_Final.ipynb"}
SECTIONS = [
    "Target",
    "What changes and why",
    "Model and parameters",
    "Training",
    "Exercises",
    "Receptive field",
    "Target, result, analysis",
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
    outputs = [o for cell in code(notebook) for o in cell.outputs]
    return "".join(o.text if o.output_type == "stream" else o.get("data", {}).get("text/markdown", "") for o in outputs)


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
        assert len(cell.source.splitlines()) <= 10 or cell.source.startswith("import inspect")  # one name a line


def test_opens_with_badge_and_colab_cell(number, notebook, repository):
    assert f"blob/main/{NAMES[number]}" in notebook.cells[0].source
    first = nbformat.read(repository / NAMES[1], as_version=4)
    assert notebook.cells[1].source == first.cells[1].source
    assert notebook.cells[1].source.count("\n") < 7


def test_imports_stand_in_one_cell(notebook):
    cells = [cell.source for cell in code(notebook) if re.search("^(import|from) ", cell.source, re.M)]
    assert len(cells) == 2
    assert re.findall("^(?:import|from) .*", cells[0], re.M) == ["import sys"]  # the Colab cell


def test_is_a_script_too(notebook, tmp_path):
    script, resources = nbconvert.ScriptExporter().from_notebook_node(notebook)
    assert resources["output_extension"] == ".py"
    head = script[: script.index("# ## Target")] + "\nimport os\nprint(os.getcwd())"
    done = subprocess.run([sys.executable, "-c", head], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)  # the Colab cell does nothing elsewhere
    assert list(tmp_path.iterdir()) == []
    compile(script, "script", "exec")


@pytest.fixture
def colab(tmp_path, repository, notebook, mnist, monkeypatch):
    """An empty /content as on Colab, a stand-in for its module, and a local repository in place of the real address."""
    (tmp_path / "site" / "google" / "colab").mkdir(parents=True)
    (tmp_path / "site" / "google" / "colab" / "__init__.py").write_text("")
    (tmp_path / "site" / "sitecustomize.py").write_text("import google.colab\n")
    origin = tmp_path / "tiny-mnist"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "runs", "data")
    shutil.copytree(repository, origin, ignore=ignored)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("MNIST_ROOT", str(default_root()))
    content = tmp_path / "content"
    content.mkdir()
    cell = notebook.cells[1]
    cell.source = cell.source.replace("https://github.com/tiny-mnist/tiny-mnist", str(origin))
    cell.source = cell.source.replace("/content", str(content))
    return content


def run_all(notebook, folder) -> str:
    """Execute a notebook in a folder; returns what it printed."""
    client = nbclient.NotebookClient(
        notebook, timeout=300, coalesce_streams=True, resources={"metadata": {"path": folder}}
    )
    client.execute()
    return printed(notebook)


def test_on_colab_it_fetches_the_repository_and_runs_up_to_the_training_twice(notebook, colab):
    training = next(i for i, cell in enumerate(notebook.cells) if "history = fit(" in cell.source)
    notebook.cells = [cell for cell in notebook.cells[:training] if "fit(linear" not in cell.source]
    for _ in range(2):
        assert "60,000 training images, 10,000 test images" in run_all(notebook, colab)
        assert [path.name for path in colab.iterdir()] == ["tiny-mnist"]


def test_on_colab_the_first_cell_may_run_again(notebook, colab):
    again = notebook.cells[1].source + "\n!pwd"
    notebook.cells = [notebook.cells[1], nbformat.v4.new_code_cell(again)]
    assert run_all(notebook, colab).splitlines()[-1] == str(colab / "tiny-mnist")


def trained(notebook) -> str:
    """What the cell that trains the net printed."""
    [cell] = [cell for cell in code(notebook) if "history = fit(net" in cell.source]
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def test_recipe_and_net_are_those_of_the_code(number, notebook):
    step, text = STEPS[number], printed(notebook)
    assert f"{step.recipe}\n" in trained(notebook)
    shown = {1: [SetupNet.forward, train_epoch, Batches], 2: [RegularizedNet.classify], 3: [FinalNet.forward]}
    assert all(inspect.getsource(function) in text for function in shown[number])
    assert f"Total params: {count_parameters(step.net()):,}" in text
    assert receptive_field_table(receptive_field(step.net())) in text
    if number == 1:
        assert model.__doc__ in text
    else:
        assert describe_changes(STEPS[number - 1].recipe, step.recipe) in text


def test_analysis_is_that_of_the_records(number, notebook):
    step, text = STEPS[number], printed(notebook)
    assert run_summary(load_runs("choices", f"step{number}"), step.target, step.gap) in text
    if number == 3:
        assert run_summary(load_runs("steps", "step3"), step.target) in text


def test_it_opens_on_a_gpu_and_ends_with_the_result(notebook):
    assert notebook.metadata.accelerator == "GPU"
    end = "\n".join(cell.source for cell in notebook.cells[-10:])
    assert [word for word in ("**Target", "**Result", "**Analysis") if word not in end] == []


def test_full_run_on_the_full_data(number, notebook):
    assert "60,000 training images, 10,000 test images" in printed(notebook)
    assert len(re.findall(r"^epoch +\d+  lr", trained(notebook), re.M)) == STEPS[number].recipe.epochs == 15


def test_log_equals_the_published_run_of_the_same_seed(notebook):
    version, device, threads = re.search(r"PyTorch (\S+) on (\S+), CPU threads: (\d+)", printed(notebook)).groups()
    run = load_runs("steps", "step3")[0]
    assert run["seed"] == 0
    if (version.partition("+")[0], device, int(threads)) != (run["versions"]["torch"], run["device"], run["threads"]):
        pytest.skip("the notebook was executed in another setting than results/")
    if f"{STEPS[3].recipe}\n" not in trained(notebook):
        pytest.skip("only Step 3 is published so far")
    lines = re.findall(r"^(epoch +\d+  lr.*%)", trained(notebook), re.M)
    expected = [log_line(run["history"], epoch).rpartition("%")[0] + "%" for epoch in range(15)]
    assert lines == expected
