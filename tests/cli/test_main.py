"""The frame of the commands: it names each of them, and every mistake in a line."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("bits=0: expected 1 to 16"), 1, "qlab doctor: bits=0: expected 1 to 16\n"),
        (FileNotFoundError(2, "No such file", "x.tar"), 1, "qlab doctor: [Errno 2] No such file: 'x.tar'\n"),
        (
            ModuleNotFoundError("No module named 'onnx'"),
            1,
            "No module named 'onnx'. `qlab doctor` says what is missing",
        ),
        (KeyboardInterrupt(), 130, "qlab doctor: stopped"),
    ],
)
def test_a_mistake_is_a_line_not_a_traceback(monkeypatch, capsys, error, code, said):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == code
    output = capsys.readouterr().err
    assert said in output and "Traceback" not in output
