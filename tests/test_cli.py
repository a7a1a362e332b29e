"""What the command lines share: one line per error, exit code 2, and whole numbers within bounds."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from tinymnist.cli import OneLineParser, whole_number
from tinymnist.runs import REPOSITORY

COMMANDS = [path.stem for path in (REPOSITORY / "experiments").glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("text", ["1", "7", "10"])
def test_whole_numbers_within_the_bounds(text):
    assert whole_number(1, 10)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "11", "-3", "1.5", "three", "", "1e1"])
def test_other_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"from 1 to 10, not {text!r}"):
        whole_number(1, 10)(text)


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--epoch", "3"], ["--other"], ["word"]])
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys):
    command = OneLineParser("tool.py", "What it does.")
    command.add_argument("--epochs", type=whole_number(1, 10))
    with pytest.raises(SystemExit) as stop:
        command.parse_args(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tool.py: ")
    assert command.parse_args(["--epochs", "10"]).epochs == 10


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("\nno such thing\nmore"), "no such thing"), (OSError(), "OSError")]
)
def test_a_failure_is_the_first_line_of_its_error(error, line, capsys):
    assert OneLineParser("tool.py", None).failed(error) == 2
    assert capsys.readouterr() == ("", f"tool.py: {line}\n")


@pytest.mark.parametrize("command", [["train.py"], *(["-m", f"experiments.{name}"] for name in sorted(COMMANDS))])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path, command):
    for name in ("numpy", "torch", "nbformat"):  # one of them is the first import that takes long
        (tmp_path / f"{name}.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    ) as child:
        assert child.stdout.readline() == "importing\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err.count("\n")) == (130, 1)
    assert err.startswith(f"{command[-1].removeprefix('experiments.').removesuffix('.py')}.py: interrupted")
