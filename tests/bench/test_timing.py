"""Times that can be trusted: in turns, warm, and with their spread."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.bench import Comparison, Timing, interleave, timing


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
    monkeypatch.setattr(timing, "time", clock)
    return clock


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
    found = Timing(interleave({"a": disturbed}, rounds=15)["a"], 1)
    assert max(found.seconds) > 1
    assert found.ms == pytest.approx(20) and found.spread == pytest.approx(0)


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
