"""Networks side by side: only of right outputs does the time count, and the conditions stand beside it."""

from __future__ import annotations

import math
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import convolutions

import qlab
from qlab import QConfig, bench
from qlab.bench import Comparison, Timing, check_output, compare, compare_calls, comparison
from qlab.int8 import engines

X = torch.linspace(-1, 1, 64 * 12).reshape(64, 12).sin()


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval()


# --- outputs


def shuffled(y):
    return y.roll(1, 0)


def last_is_wrong(y):
    return torch.cat([y[:-1], y[:1]])


WRONG = {
    "another image's": shuffled,
    "the last image's is wrong": last_is_wrong,
    "classes mixed up": lambda y: y.flip(1),
    "zeros": torch.zeros_like,
    "twice as large": lambda y: 2 * y,
    "negated": torch.neg,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_output_is_refused_before_its_time_counts(monkeypatch, what):
    y = torch.randn(64, 10)
    timed = []
    monkeypatch.setattr(comparison, "interleave", lambda calls, **options: timed.append(calls))
    with pytest.raises(ValueError, match="'wrong' gives wrong outputs: its SQNR .* is .* dB") as error:
        compare_calls({"right": lambda: y, "wrong": lambda: WRONG[what](y)}, 64)
    assert "expected at least 15 and 5 dB" in str(error.value) and "not timed" in str(error.value)
    assert timed == []


def test_rounding_to_8_bits_is_no_wrong_output():
    y = torch.randn(64, 10)
    coarse = qlab.fake_quantize(y, qlab.choose_qparams(float(y.min()), float(y.max())))
    assert 30 < check_output("coarse", coarse, y) < 60
    assert check_output("same", y.clone(), y) == math.inf


def test_sqnr_is_the_ratio_of_powers_in_decibels():
    y = torch.tensor([[3.0, 4.0]])
    assert check_output("a tenth off", y * 1.1, y) == pytest.approx(20, abs=1e-4)
    with pytest.raises(ValueError, match=r"is 20\.0 dB.*expected at least 21 and 11 dB"):
        check_output("a tenth off", y * 1.1, y, sqnr=21)


@pytest.mark.parametrize("output, complaint", [
    (torch.ones(64, 9), r"'odd' gives \(64, 9\) on cpu, the baseline \(64, 10\) on cpu"),
    (torch.ones(64, 10, device="meta"), r"'odd' gives \(64, 10\) on meta, .*the same device"),
    (torch.full((64, 10), math.nan), "'odd' gives NaN or infinity"),
    (torch.full((64, 10), math.inf), "'odd' gives NaN or infinity"),
])  # fmt: skip
def test_outputs_that_cannot_be_compared_are_refused(output, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_output("odd", output, torch.ones(64, 10))


def test_a_network_that_goes_wrong_later_is_refused():
    y, count = torch.randn(8, 10), []

    def tires():
        count.append(1)
        return y if len(count) < 5 else -y

    with pytest.raises(ValueError, match="'tires' gives wrong outputs"):
        compare_calls({"right": lambda: y, "tires": tires}, 8, rounds=2)


def test_a_network_that_overwrites_its_input_is_refused(network):
    class Greedy(nn.Module):
        def forward(self, x):
            y = network(x)
            x.zero_()
            return y

    with pytest.raises(ValueError, match="gives wrong outputs"):
        compare({"float": network, "greedy": Greedy().eval()}, X.clone(), rounds=2)


# --- conditions


def test_networks_on_different_devices_are_refused(network):
    elsewhere = nn.Linear(12, 10, device="meta").eval()
    with pytest.raises(ValueError, match=r"'elsewhere' is on meta, its input on cpu: .*\.to\('cpu'\)"):
        compare({"float": network, "elsewhere": elsewhere}, X)


def test_a_network_in_training_mode_is_refused(network):
    with pytest.raises(ValueError, match=r"'float' is in training mode.*\.eval\(\)"):
        compare({"float": network.train()}, X)


def test_a_frozen_network_is_timed_like_any_other(network):
    with pytest.warns(FutureWarning, match="torch.jit"):
        frozen = torch.jit.freeze(torch.jit.trace(network.eval(), X))
    assert compare({"float": network, "frozen": frozen}, X, rounds=2, progress=False)["frozen"].sqnr > 60


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="give at least one network"):
        compare({}, X)


def test_the_number_of_threads_is_set_stated_and_restored(network):
    before, seen = torch.get_num_threads(), set()

    def watching(x):
        seen.add(torch.get_num_threads())
        return network(x)

    result = compare({"float": network, "watching": watching}, X, threads=before + 1, rounds=1)
    assert seen == {before + 1} and torch.get_num_threads() == before
    assert f"{before + 1} threads" in result.headline
    with pytest.raises(ValueError, match="threads=0: expected 1 or more"):
        compare({"float": network}, X, threads=0)


def test_gradients_are_not_recorded(network):
    modes = []

    def watching(x):
        modes.append(torch.is_inference_mode_enabled())
        return network(x)

    compare({"float": watching}, X, rounds=1)
    assert set(modes) == {True}


# --- what a student sees


def test_a_restless_machine_is_named():
    calm, restless = Timing((1.0, 1.01, 1.02), 1), Timing((1.0, 2.0, 3.0), 1)
    assert Comparison("", {"calm": calm}).warning == ""
    warning = Comparison("", {"calm": calm, "restless": restless}).warning
    assert "restless spread by 25 %" in warning and "measure again" in warning


def test_the_table_reads_in_a_terminal_and_in_a_notebook():
    result = Comparison("batch 64", {
        "float32": Timing((0.2, 0.2, 0.2), 64),
        "int8 <fast>": Timing((0.025, 0.025, 0.025), 64, sqnr=29.84),
    })  # fmt: skip
    lines = str(result).splitlines()
    assert lines[:2] == ["batch 64", ""]
    assert lines[2].split() == ["ms", "spread", "images/s", "speed-up", "SQNR"]
    assert lines[4].split() == ["float32", "200", "±", "0", "%", "320", "1.00"]
    assert lines[5].split() == ["int8", "<fast>", "25", "±", "0", "%", "2560", "8.00", "29.8", "dB"]
    assert len({len(line) for line in (lines[2], lines[3], lines[5])}) == 1
    html = result._repr_html_()
    assert "int8 &lt;fast&gt;" in html and html.count("<tr>") == 3 and "29.8 dB" in html
    assert repr(result) == str(result) and "something else" not in html
    restless = Comparison("", {"a": Timing((1.0, 2.0, 3.0), 1)})
    assert restless.warning in str(restless) and "something else" in restless._repr_html_()


def test_timings_are_found_by_name(network):
    result = compare({"float32": network, "again": network}, X, rounds=2)
    assert list(result) == ["float32", "again"] and len(result) == 2 and result.baseline == "float32"
    assert len(result["again"].seconds) == 2 and result["again"].images == 64
    assert result.headline.startswith("batch 64, ") and "medians of 2 interleaved rounds" in result.headline


# --- the fastest form


def test_the_fastest_engine_is_found_among_those_that_do_not_saturate(monkeypatch):
    x = torch.rand(8, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], QConfig.w8a8(reduce_range=True), engine="reference")
    tried = []

    def made_up(forms, x, **options):
        tried.append(list(forms))
        return {name: SimpleNamespace(ms=1.0 if name == tried[-1][-1] else 2.0) for name in forms}

    monkeypatch.setattr(comparison, "compare", made_up)
    found = bench.fastest(int8, x)
    usable = [name for name, engine in engines.available().items() if engine.usable and name != "reference"]
    assert tried == [[*usable, "onnxruntime"]] and found.engine == "onnxruntime"
    assert torch.equal(found(x), qlab.OnnxNetwork(int8)(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = qlab.ptq(convolutions(), [x], engine="reference")
    steady = [name for name in usable if not engines.availability(name).saturates]
    for vnni, more in ((True, ["onnxruntime"]), (False, [])):
        monkeypatch.setattr(engines, "cpu", lambda: SimpleNamespace(is_arm=False, vnni=vnni))
        bench.fastest(wide, x)
        assert tried[-1] == (steady + more or ["reference"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert bench.fastest(int8, x).engine == tried[-1][-1] == (usable or ["reference"])[-1]


@pytest.mark.parametrize("quick", [name for name, engine in engines.available().items() if engine.usable][:3])
def test_an_engine_that_is_slowed_down_is_not_the_fastest(quick, monkeypatch):
    x = torch.rand(2, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], QConfig.w8a8(reduce_range=True), engine="reference")
    forward = type(int8).forward

    def slowed(network, x):
        time.sleep(0 if network.engine == quick else 0.02)
        return forward(network, x)

    monkeypatch.setattr(type(int8), "forward", slowed)
    slow = lambda network, x: time.sleep(0.02) or forward(network.network, x)  # noqa: E731
    monkeypatch.setattr(qlab.OnnxNetwork, "forward", slow)
    found = bench.fastest(int8, x, threads=1, rounds=2)
    assert found.engine == quick or quick == "reference"


@pytest.mark.parametrize("engine", engines.QUANTIZED)
def test_the_fastest_form_is_captured_where_that_can_be(engine, monkeypatch):
    if not engines.availability(engine).usable:
        pytest.skip(f"no {engine} here")
    x = torch.rand(2, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], QConfig.w8a8(reduce_range=True), engine="reference")
    times = {name: SimpleNamespace(ms=float(name != engine)) for name in (*engines.NAMES, "onnxruntime")}
    monkeypatch.setattr(comparison, "compare", lambda forms, x, **options: times)
    assert list(bench.fastest(int8, x)._captured) == [x.shape]
    fewer = qlab.ptq(convolutions(), [x], QConfig.w4a4(), engine="reference")
    clamps = engine == "qnnpack"  # which clamps 4 bits where the codes lie, and torch.jit cannot see that
    assert bool(bench.fastest(fewer, x)._captured) is not clamps


def test_a_network_is_captured_where_its_engine_can_do_that():
    x = torch.rand(2, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], QConfig.w8a8(reduce_range=True), engine="reference")
    assert bench.captured(int8, x) is int8 and not int8._captured
    for name in engines.QUANTIZED:
        if engines.availability(name).usable:
            assert list(bench.captured(int8.on(name), x)._captured) == [x.shape]
