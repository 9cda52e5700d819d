"""Which engines there are, and what "auto" means."""

from __future__ import annotations

import re

import pytest
import torch
from kernels import REFERENCE, USABLE

from qlab.int8 import engines
from qlab.int8.engines import choice


def processor(**changes) -> engines.Cpu:
    flags = dict.fromkeys(("avx2", "avx512", "vnni", "amx", "dot_product"), False)
    facts = {"architecture": "x86_64", "model": "a processor", "capability": "AVX2", **flags}
    return engines.Cpu(**(facts | changes))


def pretend(monkeypatch, usable: tuple[str, ...], saturates: bool = False, **changes) -> None:
    def availability(name: str) -> engines.Availability:
        return engines.Availability(name, name in usable, "as the test pretends", saturates)

    monkeypatch.setattr(choice, "availability", availability)
    monkeypatch.setattr(choice, "cpu", lambda: processor(**changes))


def test_every_engine_is_listed_and_the_reference_always_works():
    found = engines.available()
    assert tuple(found) == engines.NAMES
    assert found["reference"] == engines.Availability("reference", True, "works", False)
    assert all(found[name].reason for name in found)


def test_an_engine_is_given_back_as_it_is_and_made_from_its_name():
    assert engines.get(REFERENCE) is REFERENCE
    assert engines.get("reference").name == "reference"
    assert engines.get("auto").name == engines.choose()[0]
    assert [engines.get(name).name for name in USABLE] == USABLE


def test_an_unknown_engine_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="engine='cuda': expected 'auto', 'reference', .*or an Engine"):
        engines.get("cuda")


def test_an_engine_that_is_not_built_in_is_refused_with_one_that_works(other_machine):
    other_machine.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack", "none"])
    words = r"engine='fbgemm' does not work here: .*no fbgemm kernels .*it has: qnnpack\)\. engine='\w+' does"
    with pytest.raises(ValueError, match=words):
        engines.get("fbgemm")


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_an_operator_that_is_missing_makes_an_engine_unusable_not_a_crash(other_machine, error):
    def broken(engine, bits, groups):
        raise error("no operator 'qconv2d_pointwise'\nC++ stack trace")

    other_machine.setattr(choice, "_extreme_layers", broken)
    found = engines.availability("onednn_plain")
    assert (found.usable, found.reason) == (False, "no operator 'qconv2d_pointwise'")


def test_an_engine_that_computes_nonsense_is_not_used(other_machine):
    def layers_of(engine, bits, groups):
        return [torch.full((3,), 0 if engine.name == "reference" else 9)]

    other_machine.setattr(choice, "_extreme_layers", layers_of)
    assert "its results are wrong by 9 codes" in engines.availability("onednn_plain").reason


def test_auto_prefers_the_fusing_engine_on_x86_and_warns_where_it_saturates(monkeypatch):
    pretend(monkeypatch, engines.NAMES, vnni=True)
    name, why = engines.choose.__wrapped__()
    assert name == "onednn"
    assert "one kernel" in why
    assert "reduce_range" not in why
    pretend(monkeypatch, engines.NAMES, saturates=True)
    assert re.search(
        "no VNNI.*saturate at 16 bits.*reduce_range=True \\(7-bit weights\\)", engines.choose.__wrapped__()[1]
    )


@pytest.mark.parametrize(
    ("usable", "architecture", "name", "words"),
    [
        (engines.NAMES, "arm64", "qnnpack", "made for ARM"),
        (("reference", "x86", "fbgemm"), "AMD64", "x86", "whichever suits the layer"),
        (("reference", "fbgemm"), "x86_64", "fbgemm", "fastest engine that works here"),
        (("reference", "onednn_plain"), "x86_64", "onednn_plain", "no quantized tensors"),
        (("reference", "qnnpack"), "riscv64", "qnnpack", "the one engine that works here"),
        (("reference",), "riscv64", "reference", "slowly"),
    ],
)  # fmt: skip
def test_auto_takes_what_works(monkeypatch, usable, architecture, name, words):
    pretend(monkeypatch, usable, architecture=architecture)
    chosen, why = engines.choose.__wrapped__()
    assert chosen == name
    assert words in why
