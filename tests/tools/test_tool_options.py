"""The tools read their options as the commands of qlab do: what cannot be is refused before anything begins."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
WITH_OPTIONS = sorted(path.stem for path in TOOLS.glob("*.py") if ".add_argument(" in path.read_text("utf-8"))
WORDS = {  # parts of names, which the tools look up themselves
    ("bench_int8", "--only"), ("bench_accuracy", "--only"), ("build_notebooks", "names"),
    ("build_site", "names"),
}  # fmt: skip


class Parsed(Exception):
    """Carries the parser out of a tool that was about to read its options."""


@pytest.fixture
def tool(monkeypatch):
    """Imports a module of tools/ as it is when its scripts run."""
    monkeypatch.syspath_prepend(TOOLS)
    yield importlib.import_module
    for name in [name for name in sys.modules if (TOOLS / f"{name}.py").exists()]:
        sys.modules.pop(name, None)


def test_there_are_tools_with_options():
    assert {"bench_int8", "bench_llm", "train_llm", "train_detector", "adopt_checkpoint"} <= set(WITH_OPTIONS)


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_every_option_that_takes_a_value_checks_it(name, tool, monkeypatch):
    def stop(parser, *words):
        raise Parsed(parser)

    main = tool(name).main
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as stopped:
        main()
    (parser,) = stopped.value.args
    values = [action for action in parser._actions if action.nargs != 0]
    unchecked = [action for action in values if action.type is None and action.choices is None]
    assert {(name, (action.option_strings or [action.dest])[-1]) for action in unchecked} <= WORDS


@pytest.mark.parametrize("name, words, said", [
    ("bench_int8", ["--threads", "1000000"], "argument --threads: '1000000': expected a whole number from 1"),
    ("bench_int8", ["--plot", "figure.txt"], "'figure.txt': expected a file that can be written (.png, .svg, .pdf)"),
    ("bench_accuracy", ["--bits", "w0a8"], "argument --bits: 'w0a8': expected w<bits>a<bits>"),
    ("bench_detect", ["--seconds", "nan"], "argument --seconds: 'nan': expected a number from 0.1 to 3600"),
    ("train_llm", ["--warmup", "1"], "argument --warmup: '1': expected a number from 0 to 0.99"),
    ("adopt_checkpoint", ["nowhere"], "nowhere/last.safetensors': expected a file of weights (No such file"),
])  # fmt: skip
def test_what_cannot_be_is_named(name, words, said, tool, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as stop:
        tool(name).main()
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_adopted_under_the_name_of_its_network(tool, tmp_path):
    from qlab.files import write_tensors

    adopt = tool("adopt_checkpoint")
    for name in ("resnet20-cifar10-w4a4", "my-run-number-2"):
        write_tensors(tmp_path / name / "last.safetensors", {})
    assert adopt.run_folder(str(tmp_path / "resnet20-cifar10-w4a4")) == (tmp_path / "resnet20-cifar10-w4a4").resolve()
    with pytest.raises(argparse.ArgumentTypeError, match="expected a folder named <network>-<data> or"):
        adopt.run_folder(str(tmp_path / "my-run-number-2"))
