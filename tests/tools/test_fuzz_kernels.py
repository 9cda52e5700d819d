"""Random small layers find no engine that computes something else than the plain formula, and would find one."""

from __future__ import annotations

import importlib
import sys
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from qlab.int8 import engines
from qlab.int8.reference import Engine

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    yield importlib.import_module("fuzz_kernels")
    sys.modules.pop("fuzz_kernels", None)


def test_no_engine_computes_a_layer_wrong(fuzz):
    usable = [name for name, found in engines.available().items() if found.usable]
    seed = int(torch.seed() % 10**6)  # another one in each run
    assert list(fuzz.failures(seed, fuzz.until(10), usable)) == []


def test_a_layer_is_the_same_on_every_run(fuzz):
    for number in range(20):
        one, two = fuzz.layer(3, number), fuzz.layer(3, number)
        assert str(one) == str(two)
        assert all(torch.equal(a, b) for x, y in zip(one.inputs, two.inputs) for a, b in zip(x, y))


@pytest.mark.parametrize(
    "op", ["conv2d", "conv2d_add", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "add"]
)
def test_an_engine_that_is_wrong_is_found(fuzz, op, monkeypatch):
    layer = next(layer for layer in (fuzz.layer(0, number) for number in count()) if layer.op == op)
    assert fuzz.wrong(layer, Engine()) == ""

    class Wrong(Engine):
        def dequantize(self, qp):
            kernel = super().dequantize(qp)
            return lambda q: kernel(q.flip(-1) if q.shape[-1] > 1 else 255 - q)

    layers = islice((layer for layer in (fuzz.layer(0, n) for n in count()) if layer.op == op), 5)
    assert any(fuzz.wrong(each, Wrong()).startswith("wrong by") for each in layers)

    class Refusing(Engine):
        def __getattribute__(self, name):
            if name == op:
                raise RuntimeError("no such kernel")
            return super().__getattribute__(name)

    assert fuzz.wrong(layer, Refusing()) == "refused, no such kernel"


def test_the_command_names_the_wrong_layers_and_fails(fuzz, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz_kernels.py", "--layer", "5", "--engine", "reference"])
    assert fuzz.main() == 0
    monkeypatch.setattr(fuzz, "wrong", lambda layer, engine: "wrong by 9 codes")
    assert fuzz.main() == 1
    assert "layer 5 on reference: wrong by 9 codes: " in capsys.readouterr().out
