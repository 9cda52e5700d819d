"""Lesson 12's figures: the nodes give what the integer kernel gives, and the bars are the savings."""

from __future__ import annotations

import pytest
import torch

from qlab.course.lesson12 import exercises, plots
from qlab.course.lesson12.plots import nodes
from qlab.course.lesson12.savings import Workload

WEIGHT = torch.tensor([[0.9, -0.4, 0.3, 0.2], [-0.5, 0.7, 0.1, -0.6], [0.4, 0.5, 1.1, 0.3]])
BIAS = torch.tensor([0.2, -0.1, 0.05])
WORKS = [Workload("large layers", 100_000_000, 100_000_000), Workload("small images", 270_000, 41_000_000)]


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
        found.bias_codes.int(), exercises.bias_codes(BIAS, 2 / (2**bits - 1), torch.full((3,), 1.1 / 127))
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


def test_a_machine_that_costs_nothing_has_no_bar_for_its_price():
    figure = plots.savings(WORKS)(0, 10, 50, 2.0, 0.0, 100)
    assert figure.axes[0].patches[-1].get_width() == 0
