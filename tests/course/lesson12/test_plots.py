"""Lesson 12's figures: the nodes give what the integer kernel gives, and the savings are those of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qlab import bench
from qlab.course import explorables, plots
from qlab.course.lessons import lesson12
from qlab.course.plots.lesson12 import nodes
from qlab.course.savings import DRAM_JOULES, MAC_JOULES, Machine, Workload, estimate

WEIGHT = torch.tensor([[0.9, -0.4, 0.3, 0.2], [-0.5, 0.7, 0.1, -0.6], [0.4, 0.5, 1.1, 0.3]])
BIAS = torch.tensor([0.2, -0.1, 0.05])
WORKS = [Workload("large layers", 100_000_000, 100_000_000), Workload("small images", 270_000, 41_000_000)]
MACHINE = Machine(memory=10e9, macs=50e9, int8_speedup=2, dollars=0.36, download=1e8)


# --- the nodes


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("first", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_the_last_node_gives_the_codes_of_the_integer_kernel(bits, first):
    found = nodes(torch.tensor([first, -0.4, 0.8, 0.25]), WEIGHT, BIAS, 1.0, bits)
    assert found.clipped.tolist() == found.kernel.tolist()
    assert found.clipped.max() <= 2**bits - 1 and found.quantized.max() <= 255
    exact = (WEIGHT @ torch.tensor([first, -0.4, 0.8, 0.25]) + BIAS).relu()
    assert (found.relu - exact).abs().max() < 2.0 / 2**bits * 2 + 0.01
    step = 2 / (2**bits - 1) * float(WEIGHT.abs().max()) / 127
    assert torch.allclose(found.bias_codes * step, found.bias, rtol=1e-4)
    assert torch.equal(
        found.bias_codes.int(), lesson12.bias_codes(BIAS, 2 / (2**bits - 1), torch.full((3,), 1.1 / 127))
    )


def test_clip_has_work_only_where_the_grid_has_fewer_codes():
    few, all_codes = (nodes(torch.tensor([1.0, -0.4, 0.8, 0.25]), WEIGHT, BIAS, 1.0, bits) for bits in (4, 8))
    assert (few.quantized > few.clipped).sum() == 2 and few.clipped.max() == 15
    assert torch.equal(all_codes.quantized, all_codes.clipped)


def test_each_step_adds_its_rows_and_says_what_it_does():
    draw = plots.qdq(WEIGHT, BIAS, 1.0)
    rows = [text for text in draw(0, 8, 0.5).axes[0].texts if text.get_fontfamily() == ["DejaVu Sans Mono"]]
    shown = []
    for step in range(8):
        figure = draw(step, 4, 1.0)
        assert figure.finding.startswith(f"Step {step}: ") and len(figure.alt) > 40
        shown.append(sum(bool(row.get_text()) for row in rows))
    assert shown == [2, 3, 4, 5, 6, 7, 8, 9]  # the weights are there from the start
    found = nodes(torch.tensor([1.0, -0.4, 0.8, 0.25]), WEIGHT, BIAS, 1.0, 4)
    assert draw(6, 4, 1.0).finding == "Step 6: a grid of 4 bits ends at 15; Clip cuts 2 codes"
    assert draw(7, 4, 1.0).finding.endswith(", ".join(map(str, found.kernel.tolist())))


# --- what it saves


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
    seconds = lesson12.seconds_per_answer(work.weights, work.macs, bits, MACHINE.memory, rate)
    assert estimate(work, MACHINE, bits).seconds == pytest.approx(seconds)


def test_the_bars_are_the_estimates():
    figure = plots.savings(WORKS)(0, 10, 50, 2.0, 0.36, 100)
    assert figure.finding == "large layers: int8 answers 4.0 times as fast; memory sets the pace"
    assert "400 MB become 100 MB; an answer takes 10 ms and 4.0 times less energy" in figure.alt
    assert figure.alt.endswith("a million answers cost 1 dollars.")
    widths = [bar.get_width() for bar in figure.axes[0].patches[6:]]
    assert widths == pytest.approx([25, 25, 50, 25, 100 / (654.6 / 162.8), 25], rel=1e-3)
    assert "arithmetic sets the pace" in plots.savings(WORKS)(1, 10, 50, 2.0, 0.36, 100).finding


@pytest.mark.parametrize("name", ["memory", "macs", "speedup", "dollars", "download"])
def test_every_number_of_the_machine_shows_whatever_sets_the_pace(name):
    machine = {"memory": 10, "macs": 50, "speedup": 2.0, "dollars": 0.36, "download": 100}
    for work in range(len(WORKS)):
        draw = plots.savings(WORKS)
        assert draw(work, **machine).frame() != draw(work, **{**machine, name: 1.5 * machine[name]}).frame()


def test_macs_are_counted_for_layers_that_multiply():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 10))
    assert bench.macs(network, torch.zeros(2, 4, 5, 5)) == 2 * (8 * 25 * 2 * 9 + 200 * 10)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert bench.macs(network.to("meta"), torch.zeros(1, 4, 5, 5, device="meta")) == 8 * 25 * 18 + 2000


# --- panels


@pytest.mark.parametrize("panel", [
    lambda: explorables.qdq(WEIGHT, BIAS, 1.0), lambda: explorables.savings(WORKS),
], ids=["qdq", "savings"])  # fmt: skip
def test_every_value_of_every_control_is_drawn_the_same_whichever_way_it_was_reached(panel):
    moved, seen = panel(), set()
    for name, control in moved.controls.items():
        if hasattr(control, "minimum"):
            steps = round((control.maximum - control.minimum) / control.step)
            places = sorted({*range(0, steps, math.ceil(steps / 3)), steps})
            values = [control.minimum + place * control.step for place in places]
        else:
            values = [value for _name, value in control.options]
        for value in values:
            control.value = type(control.value)(value)
            assert moved.error is None, (name, value)
            seen.add(moved.image.value)
    fresh = panel()
    for name, control in moved.controls.items():
        fresh.controls[name].value = control.value
    assert fresh.image.value == moved.image.value
    assert len(seen) > 9


def test_a_machine_that_costs_nothing_has_no_bar_for_its_price():
    figure = plots.savings(WORKS)(0, 10, 50, 2.0, 0.0, 100)
    assert figure.axes[0].patches[-1].get_width() == 0
