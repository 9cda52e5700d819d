"""The conditions under which a time was measured are stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlab import bench
from qlab.int8 import engines


@pytest.mark.parametrize("facts, expected", [
    (dict(architecture="x86_64", capability="AVX2", vnni=False, amx=False), "chip, AVX2, no VNNI"),
    (dict(architecture="x86_64", capability="AVX512", vnni=True, amx=False), "chip, AVX512, VNNI"),
    (dict(architecture="AMD64", capability="AVX512", vnni=True, amx=True), "chip, AVX512, AMX"),
    (dict(architecture="arm64", capability="DEFAULT", dot_product=True), "chip, DEFAULT, int8 dot product"),
    (dict(architecture="aarch64", capability="SVE", dot_product=False), "chip, SVE, no int8 dot product"),
])  # fmt: skip
def test_the_instructions_that_decide_are_stated(monkeypatch, facts, expected):
    monkeypatch.setattr(engines, "cpu", lambda known=engines.cpu(): replace(known, model="chip", **facts))
    assert bench.processor() == expected
    assert bench.setting(1) == f"1 thread, {expected}, torch {torch.__version__}"
    assert bench.setting(2, "cuda:0") == f"cuda:0, torch {torch.__version__}"
