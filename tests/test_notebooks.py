"""The notebooks: as committed, readable on the repository's page and true to results/; on Colab, from end to end."""

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
    fit,
    last_epoch_in_words,
    load_runs,
    log_line,
    moving_average,
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
    "Target, result, analysis",
]
SHOWN = {
    1: [SetupNet.forward, train_epoch, Batches, fit],
    2: [RegularizedNet.classify],
    3: [FinalNet.forward, moving_average],
}
ONE_EPOCH = """
import dataclasses
import model
for number, step in model.STEPS.items():
    model.STEPS[number] = dataclasses.replace(step, recipe=dataclasses.replace(step.recipe, epochs=1))
"""


@pytest.fixture(params=NAMES)
def number(request) -> int:
    return request.param


@pytest.fixture
def notebook(number, repository):
    return nbformat.read(repository / NAMES[number], as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells) -> str:
    outputs = [o for cell in cells for o in cell.outputs]
    return "".join(o.text if o.output_type == "stream" else o.data.get("text/markdown", "") + "\n\n" for o in outputs)


def trained(notebook) -> str:
    """What the cell that trains the net printed."""
    return printed([cell for cell in code(notebook) if "history = fit(net" in cell.source])


def differences(text: str) -> dict[str, tuple[str, ...]]:
    """The rows of tables of comparisons, by their label."""
    found = {}
    for table in re.findall(r"^\| \(pairs\).*\n\|-.*\n((?:\|.*\n)+)", text + "\n", re.M):
        for line in table.splitlines():
            label, *figures = (cell.strip() for cell in line.split("|")[1:-1])
            found[label] = tuple(figures)
    return found


def test_executed_from_top_to_bottom_and_shown_as_text_and_pictures(number, notebook):
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [o for cell in code(notebook) for o in cell.outputs]
    assert {o.output_type for o in outputs} == {"stream", "execute_result", "display_data"}
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    assert kinds - {"text/html"} == {"image/png", "text/markdown", "text/plain"}
    pages = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert [page[:20] for page in pages] == ["<div><iframe srcdoc="] * (number == 3)
    for cell in code(notebook):
        streams = [o.name for o in cell.outputs if o.output_type == "stream"]
        assert streams in ([], ["stdout"])  # joined, and no progress bar is left


def test_sections_in_the_same_order_end_with_the_result(number, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall("^## (.*)", text, re.M) == SECTIONS
    end = text[text.index("## Target, result, analysis") :]
    parts = re.findall(r"^\*\*(Target|Result|Analysis|Receptive field)\b", end, re.M)
    assert parts == ["Target", "Result", "Analysis", "Receptive field"]
    target, gap = f"At least {STEPS[number].target:.2f} % in each of the last five epochs", STEPS[number].gap
    assert text.count(f"## Target\n\n**{target}") == end.count(f"**Target.** {target}") == 1
    assert gap is None or text.count(f" a gap of at most {gap:.2f} points") == 2
    assert "<details><summary>What to expect</summary>" in text[text.index("## Exercises") : text.index(end)]


def test_cells_hold_few_calls_and_no_definitions(number, notebook, repository):
    for cell in code(notebook):
        assert not re.search(r"^\s*(def|class) ", cell.source, re.M)
        assert len(cell.source.splitlines()) <= 10
    assert notebook.metadata.accelerator == "GPU"
    for name in NAMES.values():  # its own badge, and links to the other two that work on Colab too
        assert (
            f"(https://colab.research.google.com/github/tiny-mnist/tiny-mnist/blob/main/{name})"
            in notebook.cells[0].source
        )
    assert notebook.cells[1].source == nbformat.read(repository / NAMES[1], as_version=4).cells[1].source


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
    """An empty /content as on Colab, a stand-in for its module, and beside it the repository in place of GitHub's."""
    (tmp_path / "site" / "google" / "colab").mkdir(parents=True)
    (tmp_path / "site" / "google" / "colab" / "__init__.py").write_text("")
    (tmp_path / "site" / "sitecustomize.py").write_text("import google.colab\n")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "runs", "data")
    shutil.copytree(repository, tmp_path / "tiny-mnist", ignore=ignored)
    tag = re.search(r"--branch (\S+)", notebook.cells[1].source)[1]
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(tmp_path / "tiny-mnist")]
    for command in ("init -q", "add .", "commit -qm first", f"tag {tag}"):
        subprocess.run([*git, *command.split()], check=True)
    (tmp_path / "tiny-mnist" / "later").write_text("")  # what the notebooks were not written for
    for command in ("add .", "commit -qm later"):
        subprocess.run([*git, *command.split()], check=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("MNIST_ROOT", str(default_root()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def test_on_colab_it_fetches_its_version_and_runs_from_end_to_end(notebook, colab):
    fetch, make = notebook.cells[1], nbformat.v4.new_code_cell
    fetch.source = fetch.source.replace("https://github.com/tiny-mnist/tiny-mnist", str(colab.parent / "tiny-mnist"))
    fetch.source = fetch.source.replace("/content", str(colab))
    again = [make(fetch.source + "\n!pwd"), make(ONE_EPOCH)]  # the first cell may run a second time
    notebook.cells[2:2] = again
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": colab}})
    client.execute()
    assert printed(again).strip() == str(colab / "tiny-mnist")
    assert [path.name for path in colab.iterdir()] == ["tiny-mnist"]
    assert not (colab / "tiny-mnist" / "later").exists()
    assert "60,000 training images, 10,000 test images" in printed(code(notebook))
    assert re.findall(r"epoch +(\d+)  lr", trained(notebook)) == ["1"]
    assert "last five epochs: " in printed(code(notebook))


def test_nets_recipes_and_results_are_those_of_the_code_and_the_records(number, notebook):
    step, text = STEPS[number], printed(code(notebook))
    fields = "\n".join(f"{name:13} {value}" for name, value in vars(step.recipe).items())
    assert (fields if number == 1 else describe_changes(STEPS[number - 1].recipe, step.recipe)) in text
    for shown in SHOWN[number]:
        source = inspect.getsource(shown)
        assert (source.split('"""')[2] if shown is fit else source) in text
    assert number > 1 or model.__doc__ in text
    assert f"Total params: {count_parameters(step.net()):,}" in text
    assert receptive_field_table(receptive_field(step.net())) in text
    published = {"test images": load_runs("steps", f"step{number}")}
    published["held-out images"] = load_runs("choices", f"step{number}")
    assert run_summary(published, step.target, step.gap) in text
    assert (
        f"Accuracy of 20 published runs: {last_epoch_in_words(published['test images'])} % after the last epoch."
        in text
    )
    assert "60,000 training images, 10,000 test images" in text
    assert len(re.findall(r"^epoch +\d+  lr", trained(notebook), re.M)) == 15


def test_what_the_parts_do_is_what_the_report_says(number, notebook, repository):
    rows = differences((repository / "results" / "README.md").read_text())
    own = {re.sub(f"^(Step|in Step) {number}: ", "", label): figures for label, figures in rows.items()
           if re.match(f"(Step|in Step) {number}\\b", label)}  # fmt: skip
    assert len(own) > 1
    assert differences(printed(code(notebook))) == own


def test_log_equals_the_published_run_of_the_same_seed(repository):
    notebook, run = nbformat.read(repository / NAMES[3], as_version=4), load_runs("steps", "step3")[0]
    setting = re.search(r"PyTorch (\S+?)(?:\+\S+)? on (\S+), CPU threads: (\d+)", printed(code(notebook))).groups()
    assert setting == (run["versions"]["torch"], run["device"], str(run["threads"]))
    lines = re.findall(r"^(epoch +\d+  lr.*%)", trained(notebook), re.M)
    expected = [log_line(run["history"], epoch).rpartition("%")[0] + "%" for epoch in range(15)]
    assert (run["seed"], lines) == (0, expected)
