"""The frame of the commands: it names each of them, and every mistake in a line."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from qlab.cli import doctor
from qlab.cli.main import main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"{command} " in output for command in ("doctor", "train", "quantize", "bench", "detect"))


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "qlab", "quantize", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--engine" in done.stdout, done.stderr


@pytest.mark.parametrize("words, complaint", [([], "COMMAND"), (["quantise"], "invalid choice: 'quantise'")])
def test_an_unknown_command_is_named(words, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "bench", "detect"])
def test_every_command_of_another_module_is_there(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"usage: qlab {command}" in capsys.readouterr().out


@pytest.mark.parametrize("error, code, said", [
    (ValueError("bits=0: expected 1 to 16"), 1, "qlab doctor: bits=0: expected 1 to 16"),
    (FileNotFoundError(2, "No such file", "x.tar"), 1, "qlab doctor: x.tar: No such file"),
    (OSError(28, "No space left on device"), 1, "qlab doctor: No space left on device"),
    (ConnectionError("https://there cannot be reached"), 1, "qlab doctor: https://there cannot be reached"),
    (ModuleNotFoundError("No module named 'onnx'"), 1, "qlab doctor: No module named 'onnx'. `qlab doctor` says what is"),
    (ArgumentTypeError("'x': expected y"), 2, "qlab doctor: 'x': expected y"),
    (RuntimeError("out of memory\nat kernel 7"), 1, "qlab doctor: RuntimeError: out of memory (QLAB_TRACEBACK=1 shows"),
    (KeyError("weight"), 1, "qlab doctor: KeyError: 'weight' (QLAB_TRACEBACK=1 shows where)"),
    (AssertionError(), 1, "qlab doctor: AssertionError:  (QLAB_TRACEBACK=1 shows where)"),
    (KeyboardInterrupt(), 130, "qlab doctor: stopped"),
])  # fmt: skip
def test_what_goes_wrong_is_a_line_not_a_traceback(monkeypatch, capsys, error, code, said):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == code
    output = capsys.readouterr().err
    assert output.strip().startswith(said) and output.strip().count("\n") == 0


def test_a_traceback_can_be_asked_for(monkeypatch):
    def fail(args):
        raise KeyError("weight")

    monkeypatch.setattr(doctor, "run", fail)
    monkeypatch.setenv("QLAB_TRACEBACK", "1")
    with pytest.raises(KeyError, match="weight"):
        main(["doctor"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_output_that_cannot_be_written_is_a_line_too():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "qlab", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "qlab doctor: No space left on device\n")
