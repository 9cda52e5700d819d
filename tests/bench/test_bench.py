"""A time that can be trusted: in turns, with its spread and its conditions, and only of right outputs."""

from __future__ import annotations

import gc
import math
import os
import re
import sys
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab import QConfig, bench
from qlab import __main__ as cli
from qlab.bench import Comparison, Timing, check_output, compare, compare_calls, interleave, throughput
from qlab.int8 import engines


class Clock:
    """A clock that stands still except when a call says how long it took."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def call(self, name: str, seconds):
        """A call that takes ``seconds``, a number or a function of the time."""

        def run():
            self.calls.append(name)
            self.now += seconds(self.now) if callable(seconds) else seconds

        return run


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval()


X = torch.linspace(-1, 1, 64 * 12).reshape(64, 12).sin()


# --- time


def test_the_networks_take_turns(clock):
    seconds = interleave({"a": clock.call("a", 0.02), "b": clock.call("b", 0.03)}, rounds=3, warm_up=2)
    assert clock.calls[:4] == ["a", "a", "b", "b"]
    turns = [
        clock.calls[start : start + 4] for start in range(4, 16, 4)
    ]  # two calls each, the first to fill the caches
    assert len(clock.calls) == 16 and all(turn in (["a", "a", "b", "b"], ["b", "b", "a", "a"]) for turn in turns)
    assert seconds["a"] == pytest.approx([0.02] * 3) and seconds["b"] == pytest.approx([0.03] * 3)


def test_a_quick_call_is_repeated_until_it_can_be_measured(clock):
    seconds = interleave({"quick": clock.call("quick", 0.0026)}, rounds=2, warm_up=1)
    assert len(clock.calls) == 1 + 2 * (1 + 4)  # 4 x 2.6 ms are the first to exceed 10 ms
    assert seconds["quick"] == pytest.approx([0.0026] * 2)


def test_nobody_follows_the_same_other_one_each_time(clock):
    interleave({name: clock.call(name, 0.3) for name in "abc"}, rounds=12, warm_up=1)
    rounds = [tuple(clock.calls[start : start + 3]) for start in range(3, 39, 3)]  # long calls: none to fill the caches
    assert all(set(turn) == set("abc") for turn in rounds) and len(set(rounds)) > 3


def test_what_the_one_before_left_behind_does_not_count(clock):
    """A network that finds another one's numbers in the caches takes longer, once."""
    cold = clock.call("cold", lambda now: 0.02 if clock.calls[-2:] == ["cold", "cold"] else 0.03)
    seconds = interleave({"cold": cold, "other": clock.call("other", 0.05)}, rounds=5)
    assert seconds["cold"] == pytest.approx([0.02] * 5)


def test_warm_up_does_not_count(clock):
    compiling = clock.call("first", lambda now: 5.0 if now == 0 else 0.02)
    assert max(interleave({"a": compiling}, rounds=4)["a"]) == pytest.approx(0.02)


def test_the_garbage_collector_keeps_away_while_the_clock_runs_and_comes_back(clock):
    seen = []
    interleave({"a": clock.call("a", lambda now: seen.append(gc.isenabled()) or 0.3)}, rounds=2, progress=False)
    assert seen and not any(seen) and gc.isenabled()

    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        interleave({"a": fails}, rounds=2, progress=False)
    assert gc.isenabled()


def test_a_machine_that_gets_slower_and_slower_slows_all_of_them(clock):
    def drifting(now):
        return 0.02 * (1 + now)

    timings = interleave({"a": clock.call("a", drifting), "b": clock.call("b", drifting)}, rounds=15)
    assert timings["a"][-1] > 1.5 * timings["a"][0]
    comparison = Comparison("", {name: Timing(seconds, 1) for name, seconds in timings.items()})
    assert comparison.speedup("b") == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("factor", [0.5, 3])
def test_a_slowed_network_shows_as_slower(clock, factor):
    calls = {"float": clock.call("float", 0.02), "slowed": clock.call("slowed", 0.02 * factor)}
    timings = interleave(calls, rounds=5)
    comparison = Comparison("", {name: Timing(seconds, 64) for name, seconds in timings.items()})
    assert comparison.speedup("slowed") == pytest.approx(1 / factor)


def test_one_disturbed_round_changes_nothing(clock):
    disturbed = clock.call("a", lambda now: 2.0 if len(clock.calls) == 9 else 0.02)
    timing = Timing(interleave({"a": disturbed}, rounds=15)["a"], 1)
    assert max(timing.seconds) > 1
    assert timing.ms == pytest.approx(20) and timing.spread == pytest.approx(0)


SECONDS = st.lists(st.floats(1e-5, 10), min_size=1, max_size=30).map(tuple)


@settings(max_examples=50)
@given(SECONDS, st.floats(0.1, 10), st.integers(1, 256))
def test_units_of_time_change_the_median_only(seconds, factor, images):
    timing, scaled = Timing(seconds, images), Timing(tuple(factor * s for s in seconds), images)
    assert scaled.ms == pytest.approx(factor * timing.ms)
    assert scaled.spread == pytest.approx(timing.spread, abs=1e-9)
    assert timing.images_per_second * timing.ms / 1000 == pytest.approx(images)
    assert 1000 * min(seconds) <= timing.ms * (1 + 1e-12) and timing.ms <= 1000 * max(seconds) * (1 + 1e-12)
    assert Comparison("", {"a": timing, "b": scaled}).speedup("b") == pytest.approx(1 / factor)


def test_spread_is_half_the_distance_of_the_quartiles():
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0), 1).spread == pytest.approx(1 / 3)
    assert Timing((1.0,), 1).spread == 0


def test_a_restless_machine_is_named():
    calm, restless = Timing((1.0, 1.01, 1.02), 1), Timing((1.0, 2.0, 3.0), 1)
    assert Comparison("", {"calm": calm}).warning == ""
    warning = Comparison("", {"calm": calm, "restless": restless}).warning
    assert "restless spread by 25 %" in warning and "measure again" in warning


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warm_up": 0}])
def test_no_rounds_is_an_error(options):
    with pytest.raises(ValueError, match="expected 1 or more of each"):
        interleave({"a": lambda: None}, **options)


def test_a_gpu_is_waited_for(monkeypatch, clock):
    """The clock stands still while a GPU is given work; the time passes when it is waited for."""
    pending = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pending and clock.call("wait", pending.pop())())
    seconds = interleave({"launched": lambda: pending.append(0.05)}, rounds=2)
    assert seconds["launched"] == pytest.approx([0.05, 0.05])


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
    monkeypatch.setattr(bench, "interleave", lambda calls, **options: timed.append(calls))
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


# --- what a student sees


def test_the_table_reads_in_a_terminal_and_in_a_notebook():
    result = Comparison("batch 64", {
        "float32": Timing((0.2, 0.2, 0.2), 64),
        "int8 <fast>": Timing((0.025, 0.025, 0.025), 64, sqnr=29.84),
    })  # fmt: skip
    lines = str(result).splitlines()
    assert lines[0] == "batch 64"
    assert lines[1].split() == ["ms", "spread", "images/s", "speed-up", "SQNR"]
    assert lines[3].split() == ["float32", "200", "±", "0", "%", "320", "1.00"]
    assert lines[4].split() == ["int8", "<fast>", "25", "±", "0", "%", "2560", "8.00", "29.8", "dB"]
    assert len({len(line) for line in (lines[1], lines[2], lines[4])}) == 1
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


# --- size


def convolutions() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*layers).eval()


def test_int8_is_a_quarter_in_memory_and_little_more_on_disk():
    network = convolutions()
    int8 = qlab.ptq(network, [torch.randn(4, 3, 6, 6)], engine="reference")
    assert bench.memory_bytes(network) == 4 * sum(p.numel() for p in network.parameters())
    assert bench.memory_bytes(int8) == int8.size_bytes
    assert 0.25 < bench.memory_bytes(int8) / bench.memory_bytes(network) < 0.35
    assert bench.memory_bytes(int8) < bench.file_bytes(int8) < 0.6 * bench.file_bytes(network)


# --- many processes


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("this network never answers")


def test_an_integer_network_reaches_the_process_that_counts():
    x = torch.rand(8, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], engine="reference")
    assert 0 < throughput(int8, x, workers=1, seconds=0.1) < math.inf


class Signs(nn.Module):
    """Leaves in a folder which process called it, with how many threads, and the cores it may use."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, x):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ["any"]
        name = f"{os.getpid()}-{torch.get_num_threads()}-{'+'.join(map(str, cores))}"
        open(os.path.join(self.folder, name), "a").close()
        return x


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_every_process_works_on_one_thread_and_a_core_of_its_own(tmp_path):
    assert throughput(Signs(str(tmp_path)), X, workers=2, seconds=0.05) > 0
    signed = [path.name.split("-") for path in tmp_path.iterdir()]
    assert len({process for process, _, _ in signed}) == 2 and {threads for _, threads, _ in signed} == {"1"}
    if hasattr(os, "sched_getaffinity"):
        assert len({cores for _, _, cores in signed}) == 2 and not any("+" in cores for _, _, cores in signed)


def test_the_roof_is_that_of_the_best_round(monkeypatch):
    times = {"float": (0.2, 0.1), "int8": (0.05, 0.06), "copy": (0.5, 0.25)}
    monkeypatch.setattr(bench, "interleave", lambda calls, **options: {name: times[name] for name in calls})
    found = bench.roof("reference")
    assert found == bench.Roof(2 * 512**3 / 0.1, 2 * 512**3 / 0.05, 2**27 / 0.25)


def test_throughput_of_a_network_that_fails_is_an_error_and_not_a_wait_without_end():
    with pytest.raises(RuntimeError, match="a process of the measurement failed"):
        throughput(Fails(), X, workers=1, seconds=0.1)


@pytest.mark.parametrize("workers", [0, 10_000])
def test_throughput_needs_a_core_for_each_process(network, workers):
    with pytest.raises(ValueError, match=f"workers={workers}: expected 1 to .*, the cores that this process may use"):
        throughput(network, X, workers=workers)


@pytest.mark.skipif(not bench.RESET_PEAK.exists(), reason="only Linux counts the peak of a call")
def test_a_call_takes_at_its_peak_what_it_holds_at_once():
    """Of three layers the first's output is still held when the second makes its own; the third works in place."""
    network = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True))
    assert 31 < bench.peak_bytes(network, torch.zeros(4 * 2**20)) / 2**20 < 34


def test_the_peak_of_a_call_is_refused_where_nobody_counts_it(network, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RESET_PEAK", tmp_path / "clear_refs")
    with pytest.raises(OSError, match=r"no .*clear_refs on this system.*: it takes Linux"):
        bench.peak_bytes(network, X)


def test_the_fastest_engine_is_found_among_those_that_do_not_saturate(monkeypatch):
    x = torch.rand(8, 3, 6, 6)
    int8 = qlab.ptq(convolutions(), [x], QConfig.w8a8(reduce_range=True), engine="reference")
    tried = []

    def made_up(forms, x, **options):
        tried.append(list(forms))
        return {name: SimpleNamespace(ms=1.0 if name == tried[-1][-1] else 2.0) for name in forms}

    monkeypatch.setattr(bench, "compare", made_up)
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
    monkeypatch.setattr(bench, "compare", lambda forms, x, **options: times)
    assert list(bench.fastest(int8, x)._captured) == [x.shape]
    fewer = qlab.ptq(convolutions(), [x], QConfig.w4a4(), engine="reference")
    clamps = engine == "qnnpack"  # which clamps 4 bits where the codes lie, and torch.jit cannot see that
    assert bool(bench.fastest(fewer, x)._captured) is not clamps


# --- qlab bench


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
    return cli.main(["bench", "resnet20", "--data", "shapes10", "--rounds", "2", *words])


def test_bench_prints_sizes_and_a_table_a_batch_size(small_course, capsys):
    assert run("--batch-size", "1", "4", "--engine", "reference") == 0
    output = capsys.readouterr().out
    assert "activations of 8 bits, weights of 8 bits\n" in output
    assert re.search(r"float32  file +\d+ KiB, in memory +\d+ KiB\n  int8     file", output)
    assert re.findall(r"^batch (\d+), 1 thread, ", output, re.M) == ["1", "4"]
    assert len(re.findall(r"^int8 reference ", output, re.M)) == 2


def test_bench_measures_many_processes_at_once_when_asked(small_course, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("qlab.bench.throughput", lambda network, x, workers: asked.append((len(x), workers)) or 1234.0)
    assert run("--batch-size", "4", "--engine", "reference", "--workers", "1", "2") == 0
    output = capsys.readouterr().out
    assert asked == [(4, 1), (4, 1), (4, 2), (4, 2)] and output.count("1234 images/s") == 4
    assert "\n1 process of one thread, batch 4" in output and "\n2 processes of one thread" in output


def test_bench_says_what_a_call_takes_when_asked(small_course, capsys, monkeypatch):
    monkeypatch.setattr("qlab.bench.peak_bytes", lambda network, x: 2**20 * len(x))
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
    assert run("--engine", "tpu") == 1
    assert "engine='tpu': expected 'auto'" in capsys.readouterr().err
