"""What int8 saves: the roofline's time, Horowitz' energies, and what the exercise computes."""

from __future__ import annotations

import pytest

from qlab.course.lesson12 import exercises
from qlab.course.lesson12.savings import DRAM_JOULES, MAC_JOULES, Machine, Workload, estimate

WORKS = [Workload("large layers", 100_000_000, 100_000_000), Workload("small images", 270_000, 41_000_000)]
MACHINE = Machine(memory=10e9, macs=50e9, int8_speedup=2, dollars=0.36, download=1e8)


def test_an_estimate_is_the_roofline_and_horowitz_numbers():
    large, small = (estimate(WORKS[0], MACHINE, bits) for bits in (32, 8))
    assert (large.bytes, small.bytes) == (4e8, 1e8)
    assert (large.seconds, small.seconds) == (0.04, 0.01) and large.from_memory and small.from_memory
    assert small.joules == pytest.approx(1e8 * 0.3e-12 + 1e8 * 162.5e-12)
    assert large.joules / small.joules == pytest.approx((4.6 + 4 * 162.5) / (0.3 + 162.5))
    assert large.download_seconds == 32 and small.dollars_per_million == pytest.approx(1.0)
    image = estimate(WORKS[1], MACHINE, 8)
    assert not image.from_memory and image.seconds == pytest.approx(41e6 / 100e9)
    assert estimate(WORKS[1], MACHINE, 16).seconds == estimate(WORKS[1], MACHINE, 32).seconds
    assert MAC_JOULES[8] < MAC_JOULES[16] < MAC_JOULES[32] < DRAM_JOULES


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("work", WORKS)
def test_the_exercise_and_the_calculator_mean_the_same_time(work, bits):
    rate = MACHINE.macs * (MACHINE.int8_speedup if bits == 8 else 1)
    seconds = exercises.seconds_per_answer(work.weights, work.macs, bits, MACHINE.memory, rate)
    assert estimate(work, MACHINE, bits).seconds == pytest.approx(seconds)
