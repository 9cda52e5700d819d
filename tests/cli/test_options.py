"""Every option of every command is checked where it is read: one line says what was expected, nothing has begun."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import qlab
from qlab.cli import options
from qlab.cli.main import COMMANDS, build_parser, main
from qlab.files import write_tensors

CORES = os.cpu_count() or 1
NETWORKS = "expected resnet20, mobilenet_v2 or vgg"
DATA = "'x': expected cifar10 or shapes10"
COUNT = "expected a whole number from 1 to 1,000,000,000"
THREADS = f"'1000000': expected a whole number from 1 to {CORES}"
PRESET = "expected w<bits>a<bits> with 1 to 8 bits each, as in w4a8, or a32 for activations in float"
SHARE = "expected a number from 0 to 1"
FILE = "'file': expected a folder that can be written: Not a directory"
ENGINE = "engine='tpu': expected 'auto', 'reference', "

TABLE = [  # command, option, value, words
    ("train", "name", "nonsense", f"'nonsense': {NETWORKS}"),
    ("train", "--data", "x", DATA),
    ("train", "--qat", "w0a8", f"'w0a8': {PRESET}"),
    ("train", "--qat", "w8a16", f"'w8a16': {PRESET}"),
    ("train", "--qat", "int8", f"'int8': {PRESET}"),
    ("train", "--init", "nowhere", "'nowhere': expected a file of weights (No such file or directory"),
    ("train", "--init", "file", "'file': expected a file of weights (file is damaged or no safetensors file"),
    ("train", "--out", "file", FILE),
    ("train", "--out", "file/run", "'file/run': expected a folder that can be written: Not a directory"),
    ("train", "--out", "/dev/null/run", "'/dev/null/run': expected a folder that can be written"),
    ("train", "--out", "x" * 300, "expected a folder that can be written: File name too long"),
    ("train", "--device", "gpu", "'gpu': expected one of those that are here: cpu"),
    ("train", "--device", "cuda:99", "'cuda:99': expected one of those that are here: cpu"),
    ("train", "--threads", "1000000", THREADS),
    ("train", "--threads", "0", "'0': expected a whole number from 1"),
    ("train", "--epochs", "0", "'0': expected a whole number from 1 to 1,000,000"),
    ("train", "--epochs", "2.5", "'2.5': expected a whole number from 1 to 1,000,000"),
    ("train", "--batch-size", "0", "'0': expected a whole number from 1 to 1,000,000"),
    ("train", "--batch-size", "many", "'many': expected a whole number from 1 to 1,000,000"),
    ("train", "--lr", "-1", "'-1': expected a number from 0 to 1e+30"),
    ("train", "--lr", "nan", "'nan': expected a number from 0 to 1e+30"),
    ("train", "--momentum", "2", "'2': expected a number from 0 to 0.999"),
    ("train", "--weight-decay", "inf", f"'inf': {SHARE}"),
    ("train", "--label-smoothing", "2", f"'2': {SHARE}"),
    ("train", "--shrink", "-0.1", f"'-0.1': {SHARE}"),
    ("train", "--seed", "-1", "'-1': expected a whole number from 0 to 2,147,483,647"),
    ("train", "--precision", "float16", "'float16': expected float32 or bfloat16"),
    ("quantize", "name", "nonsense", f"'nonsense': {NETWORKS}"),
    ("quantize", "--data", "x", DATA),
    ("quantize", "--qconfig", "w0a8", f"'w0a8': {PRESET}"),
    ("quantize", "--qconfig", "w9a9", f"'w9a9': {PRESET}"),
    ("quantize", "--observer", "x", "'x': expected minmax, moving_average, percentile, mse, entropy or dynamic"),
    ("quantize", "--engine", "tpu", ENGINE),
    ("quantize", "--images", "0", f"'0': {COUNT}"),
    ("quantize", "--out", "net.onnx", "'net.onnx': expected a file that can be written (.safetensors)"),
    (
        "quantize",
        "--out",
        "file/net.safetensors",
        "expected a file that can be written (.safetensors): Not a directory",
    ),
    ("quantize", "--out", "folder.safetensors", "'folder.safetensors': expected a file that can be written"),
    ("bench", "name", "nonsense", f"'nonsense': {NETWORKS}"),
    ("bench", "--data", "x", DATA),
    ("bench", "--batch-size", "0", f"'0': {COUNT}"),
    ("bench", "--threads", "1000000", THREADS),
    ("bench", "--engine", "tpu", ENGINE),
    ("bench", "--rounds", "0", f"'0': {COUNT}"),
    ("bench", "--workers", "1000000", THREADS),
    ("detect", "--source", "tv", "no source 'tv': expected 'scene', 'scene:7', 'webcam'"),
    ("detect", "--source", "scene:-1", "no source 'scene:-1'"),
    ("detect", "--source", "webcam:first", "no source 'webcam:first'"),
    ("detect", "--network", "yolo", "'yolo': expected int8, float or coco"),
    ("detect", "--engine", "tpu", ENGINE),
    ("detect", "--threshold", "2", f"'2': {SHARE}"),
    ("detect", "--frames", "0", f"'0': {COUNT}"),
    ("detect", "--threads", "1000000", THREADS),
    ("detect", "--out", "file", FILE),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, but for a file and a folder."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a network")
    Path("folder.safetensors").mkdir()
    return tmp_path


@pytest.fixture
def nothing_begins(monkeypatch):
    """Whatever loads or measures fails."""

    def begins(*words, **options):
        raise AssertionError("it has begun")

    for name in ("load", "build", "weights"):
        monkeypatch.setattr(qlab.models, name, begins)


@pytest.mark.parametrize("command, option, value, words", TABLE)
def test_what_cannot_be_is_refused_before_anything_begins(command, option, value, words, nothing_begins, here, capsys):
    before = sorted(here.iterdir())
    name = [] if command == "detect" else ["resnet20"]
    given = [value] if option == "name" else [*name, f"{option}={value}"]
    with pytest.raises(SystemExit) as stop:
        main([command, *given])
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert stop.value.code == 2 and "Traceback" not in error
    assert last.startswith(f"qlab {command}: error: argument {option}: ") and words in last
    assert sorted(here.iterdir()) == before, "nothing is left"


def test_the_table_has_every_option_that_takes_a_value():
    parsers = {command: build_parser(command) for command in COMMANDS}
    found = set()
    for command, parser in parsers.items():
        (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for action in commands.choices[command]._actions:
            if action.nargs != 0:
                found.add((command, (action.option_strings or [action.dest])[-1]))
                assert action.type is not None, "an option without a check"
    assert found == {(command, option) for command, option, _, _ in TABLE}


@pytest.mark.parametrize("read, text, value", [
    (options.number(1, 8), "8", 8),
    (options.number(0.0, 1.0), "1", 1.0),
    (options.seed, "0", 0),
    (options.threads, str(CORES), CORES),
    (options.preset, "w1a32", "w1a32"),
    (options.engine, "auto", "auto"),
    (options.engine, "reference", "reference"),
    (options.device, "cpu", "cpu"),
    (options.network, "vgg", "vgg"),
    (options.new_folder, "new/run", Path("new/run")),
    (options.new_folder, ".", Path(".")),
    (options.new_file(".png", ".svg"), "new/figure.svg", Path("new/figure.svg")),
])  # fmt: skip
def test_what_can_be_is_taken_and_leaves_no_trace(read, text, value, here):
    assert read(text) == value
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.safetensors"]


def test_a_file_of_weights_is_taken(here):
    path = write_tensors(here / "a.safetensors", nn.Linear(2, 2).state_dict())
    assert options.weights(str(path)) == path


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_refused(here):
    here.joinpath("closed").mkdir(mode=0o500)
    with pytest.raises(argparse.ArgumentTypeError, match="expected a folder that can be written: Permission denied"):
        options.new_folder("closed/run")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [options.device(name) for name in ("cuda", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(argparse.ArgumentTypeError, match="'cuda:2': expected one of .* cpu, cuda, cuda:0, cuda:1"):
        options.device("cuda:2")


def test_an_engine_for_a_network_without_integers_is_refused(capsys):
    assert main(["detect", "--network", "float", "--engine", "reference"]) == 2
    assert "--engine reference is for --network int8, not for float" in capsys.readouterr().err
