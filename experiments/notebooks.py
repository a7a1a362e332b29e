"""Execute the three notebooks from top to bottom, several at a time, each on one thread.

python -m experiments.notebooks          in place; a notebook that fails is left as it was
python -m experiments.notebooks --check  into a temporary folder, which is removed; each trains for two epochs only
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("notebooks.py")

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tinymnist.cli import OneLineParser, run_program
from tinymnist.parallel import cores, in_processes
from tinymnist.runs import REPOSITORY, write_atomically

NOTEBOOKS = ("Step1_Setup.ipynb", "Step2_Regularize.ipynb", "Step3_Final.ipynb")


# What a check executes first, so that it takes a minute, not five.
SHORTER = """
import dataclasses
import model
for number, step in model.STEPS.items():
    model.STEPS[number] = dataclasses.replace(step, recipe=dataclasses.replace(step.recipe, epochs=2))
"""


def execute(name: str, folder: Path) -> None:
    """Execute a notebook of the repository and write the result to a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; nothing is written.
    """
    notebook = nbformat.read(REPOSITORY / name, as_version=4)
    if folder != REPOSITORY:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORTER))
    # Coalesced streams keep one line of a progress bar; the times of cells would differ with each execution.
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(REPOSITORY)}},
    )
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    for cell in notebook.cells:  # a progress bar that has gone leaves an empty stream
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or o.text.strip()]
    language = {"name": "python", "file_extension": ".py", "nbconvert_exporter": "python"}  # for nbconvert --to script
    notebook.metadata.language_info = language
    write_atomically(folder / name, (nbformat.writes(notebook) + "\n").encode())
    print(f"executed: {folder / name}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Execute all notebooks."""
    parser = OneLineParser("notebooks.py", __doc__)
    parser.add_argument("--check", action="store_true", help="into a temporary folder, with two epochs each")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.check else REPOSITORY
            for _ in in_processes(execute, NOTEBOOKS, folder, processes=cores()):
                pass
    except OSError as error:
        return parser.failed(error)
    return 0


if __name__ == "__main__":
    run_program("notebooks.py", main)
