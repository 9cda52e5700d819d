"""Lesson 6's figures: the noise they show is that of the tables, the bits are the best within the budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qlab import QConfig
from qlab.analysis import BitCost, BitCosts, Front, LayerSQNR, Sensitivity
from qlab.course.lesson06 import plots

NAMES = ["conv1", "layer1.conv", "fc"]
WHAT = ("both", "weights", "activations")


def tables() -> dict[tuple[str, int], list[LayerSQNR]]:
    """With 2 bits, the middle layer of the network with everything quantized has more noise than signal."""
    return {
        (what, bits): [
            LayerSQNR(name, 1.0, 1.0, 6.0 * bits - 13 * (name == "layer1.conv") - 2 * number) for name in NAMES
        ]
        for number, what in enumerate(reversed(WHAT)) for bits in range(2, 9)
    }  # fmt: skip


def front() -> Front:
    rows = [
        BitCost(name, bits, size * bits, 6.0 * bits - worse)
        for name, size, worse in (("conv1", 10, 3), ("layer1.conv", 200, 12), ("fc", 40, 9)) for bits in (2, 4, 8)
    ]  # fmt: skip
    return Front(BitCosts(rows, QConfig.w8a8(), {name: QConfig.w8a8() for name in NAMES}))


# --- the noise of each layer


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("bits", range(2, 9))
def test_bars_are_the_tables_and_the_title_names_the_lowest(what, bits):
    figure = plots.layer_noise(tables())(what, bits)
    expected = [row.output for row in tables()[what, bits]]
    shown = [bar.get_height() + 2 * bar.get_y() for bar in figure.axes[0].patches]
    assert shown == pytest.approx(expected)
    assert figure.axes[0].get_ylim()[0] < min(expected)
    assert (
        f"with {bits} bits: answers {expected[-1]:.1f} dB; lowest layer1.conv, {min(expected):.1f} dB" in figure.finding
    )
    assert f"{expected[0]:.1f} dB in conv1" in figure.alt


def test_the_noise_behind_each_layer_stands_in_order_and_in_words():
    figure = plots.each_layer(NAMES, [40.0, 12.5, 20.0])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [40.0, 12.5, 20.0]
    assert figure.finding == "From 40.0 dB in conv1 to 20.0 dB in the answers"
    assert figure.alt == "conv1 40.0 dB; layer1.conv 12.5 dB; fc 20.0 dB"


# --- layers that keep 8 bits

ROWS = [Sensitivity("fc", 10.0), Sensitivity("conv1", 20.0), Sensitivity("layer1.conv", 30.0)]
MEASURED = {(True, 0): 10.0, (True, 1): 15.0, (True, 2): 17.0, (False, 0): 10.0, (False, 1): 9.5, (False, 2): 11.0}


@pytest.mark.parametrize("count, least, wide", [
    (0, False, set()), (1, False, {"fc"}), (2, False, {"fc", "conv1"}), (1, True, {"layer1.conv"}),
    (2, True, {"layer1.conv", "conv1"}),
])  # fmt: skip
def test_the_layers_that_get_8_bits_are_shown_and_named(count, least, wide):
    figure = plots.sparing(NAMES, ROWS, MEASURED)(count, least)
    left, right = figure.axes
    heights = dict(zip(NAMES, (bar.get_height() for bar in right.patches)))
    assert {name for name, height in heights.items() if height == 8} == wide
    assert all(height == 4 for name, height in heights.items() if name not in wide)
    sqnr = MEASURED[not least, count]
    assert left.lines[-1].get_xydata()[0] == pytest.approx([count, sqnr])
    order = f"the {'least' if least else 'most'} sensitive first" if count else "4 bits for all layers"
    assert f"{order}: {sqnr:.1f} dB" in figure.finding
    assert all(name in figure.alt for name in wide)


# --- bits under a budget


@pytest.mark.parametrize("average", [round(2 + 0.4 * step, 1) for step in range(16)])
def test_the_bits_shown_are_the_best_that_fit(average):
    costs = front().costs
    figure = plots.bit_budget(front())(average)
    by_layer = [[cost for cost in costs if cost.layer == name] for name in NAMES]
    budget = 250 * average  # in the front above, a weight takes a byte a bit
    fitting = [choice for choice in product(*by_layer) if sum(cost.size_bytes for cost in choice) <= budget + 1e-9]
    best = min(fitting, key=lambda choice: sum(cost.noise for cost in choice))
    assert [bar.get_height() for bar in figure.axes[1].patches] == [cost.bits for cost in best]
    size, noise = sum(cost.size_bytes for cost in best), sum(cost.noise for cost in best)
    assert figure.finding.startswith(f"{size / 1024:.1f} KiB: {-10 * np.log10(noise):.1f} dB predicted; ")
    place = figure.axes[0].lines[-1].get_xydata()[0]
    assert place == pytest.approx([size / 1024, -10 * np.log10(noise)])
    equal = max(bits for bits in (2, 4, 8) if 250 * bits <= budget + 1e-9)
    assert f"with {equal} bits for all, " in figure.finding
