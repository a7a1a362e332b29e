"""What the command lines share: one line per error, exit code 2, and whole numbers within bounds."""

import argparse

import pytest

from tinymnist.cli import OneLineParser, whole_number


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
