"""`qlab bench` prints sizes and times."""

from __future__ import annotations

import re

import pytest
import torch
from zoo import convolutions

import qlab
from qlab.cli import bench
from qlab.cli.main import main
from qlab.int8 import engines


@pytest.fixture
def small_course(monkeypatch):
    """A small network and 40 images under the names that `qlab bench` asks for."""

    def shapes(split="train"):
        images = torch.randint(0, 256, (1024, 3, 6, 6), dtype=torch.uint8)
        labels = torch.arange(1024) % 10
        return qlab.data.Dataset(images, labels, tuple("abcdefghij"), "noise", split, (0.5,) * 3, (0.25,) * 3)

    network = convolutions()
    monkeypatch.setattr(qlab.data, "shapes10", shapes)
    monkeypatch.setattr(qlab.models, "load", lambda name, data: network)


def run(*words: str) -> int:
    return main(["bench", "resnet20", "--data", "shapes10", "--rounds", "2", *words])


def test_bench_prints_sizes_and_a_table_a_batch_size(small_course, capsys):
    assert run("--batch-size", "1", "4", "--engine", "reference") == 0
    output = capsys.readouterr().out
    assert "activations of 8 bits, weights of 8 bits\n" in output
    assert re.search(r"float32  file +\d+ KiB, in memory +\d+ KiB\n  int8     file", output)
    assert re.findall(r"^batch (\d+), 1 thread, ", output, re.M) == ["1", "4"]
    assert len(re.findall(r"^int8 reference ", output, re.M)) == 2


def test_bench_measures_many_processes_at_once_when_asked(small_course, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "throughput", lambda network, x, workers: asked.append((len(x), workers)) or 1234.0)
    assert run("--batch-size", "4", "--engine", "reference", "--workers", "1", "2") == 0
    output = capsys.readouterr().out
    assert asked == [(4, 1), (4, 1), (4, 2), (4, 2)] and output.count("1234 images/s") == 4
    assert "\n1 process of one thread, batch 4" in output and "\n2 processes of one thread" in output


def test_bench_says_what_a_call_takes_when_asked(small_course, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peak_bytes", lambda network, x: 2**20 * len(x))
    assert run("--batch-size", "3", "--engine", "reference", "--memory") == 0
    output = capsys.readouterr().out
    assert "\nmemory that batch 3 takes beside the network, one thread\n" in output and output.count(" 3.0 MiB") == 2


def test_bench_measures_every_engine_that_works(small_course, capsys):
    assert run("--batch-size", "4", "--engine", "all") == 0
    output = capsys.readouterr().out
    for name, engine in engines.available().items():
        assert (f"int8 {name} " in output) == engine.usable


def test_bench_says_when_activations_get_7_bits(small_course, capsys, monkeypatch):
    monkeypatch.setattr(engines, "saturates_on", lambda name, network: True)
    assert run("--batch-size", "4", "--engine", "reference") == 0
    assert "weights of 7 bits, since products of larger ones would saturate" in capsys.readouterr().out


def test_bench_names_an_engine_that_is_not_there(small_course, capsys):
    with pytest.raises(SystemExit):
        run("--engine", "reference", "tpu")
    assert "engine='tpu': expected 'auto'" in capsys.readouterr().err


def test_bench_names_a_batch_that_is_larger_than_the_test_split(small_course, capsys):
    assert run("--batch-size", "4", "2000", "--engine", "reference") == 1
    assert "--batch-size 2000: there are 1024 test images of noise" in capsys.readouterr().err
