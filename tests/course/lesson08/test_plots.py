"""Lesson 8's figures: their titles agree with the numbers they were given, and nothing is left out in silence."""

from __future__ import annotations

import pytest
import torch

from qlab.analysis import paired
from qlab.course.lesson08 import plots
from qlab.course.lesson08.plots import Candidate

FLOAT = torch.arange(1000) % 100 < 88  # in float 88 of each 100 images are right


def worse(points: float) -> torch.Tensor:
    """Hits of a network that loses so many right answers of each 100, or wins as many."""
    return torch.arange(1000) % 100 < 88 - points


PTQ = {bits: worse(2 ** (8 - bits) - 1) for bits in range(2, 9)}  # with 8 bits none is lost, with 2 bits 63 are
QAT = {8: worse(-1), 4: worse(1), 2: worse(4)}
CANDIDATES = [
    Candidate("w8a8", 800 * 1024, 0.1, False, 0.2), Candidate("w4a4", 400 * 1024, 8.0, False, 1.0),
    Candidate("w4a4", 400 * 1024, 0.5, True, 0.3), Candidate("w2a2", 200 * 1024, 56.0, False, 2.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def draw():
    return plots.ptq_and_qat(PTQ, QAT, FLOAT)


def test_both_differences_stand_in_the_title_with_their_standard_errors(draw):
    for_ptq, for_qat = (paired(FLOAT, hits[4]).error for hits in (PTQ, QAT))
    assert draw(4, 1000).finding == (
        f"4 bits, 1,000 images: PTQ -15.0 ± {for_ptq:.1f}, QAT -1.0 ± {for_qat:.1f} points against float"
    )
    assert draw(4, 1000).alt.startswith("Right answers with 4 bits: QAT 87.0 %, PTQ 73.0 %; the float network 88.0 %.")
    assert draw(8, 1000).finding.startswith("8 bits, 1,000 images: PTQ 0.0 ± 0.0, QAT +1.0 ± ")


def test_bits_without_a_trained_network_say_so_by_silence(draw):
    figure = draw(3, 1000)
    assert "QAT" not in figure.finding and "QAT" not in figure.alt


def test_with_fewer_images_the_error_is_larger(draw):
    error = {images: float(draw(4, images).finding.split("±")[1].split(",")[0]) for images in (100, 1000)}
    assert error[100] > 3 * error[1000] * 0.95


def bars(ax) -> dict[float, tuple[float, float]]:
    """Place of a bar on the axis of bits -> its ends."""
    found = {}
    for lines in ax.collections:
        for (x, low), (_x, high) in lines.get_segments():
            found[round(x, 3)] = (low, high)
    return found


def test_each_difference_has_a_bar_of_two_standard_errors_of_the_same_images(draw):
    _left, right = draw(4, 1000).axes
    one = paired(FLOAT, QAT[4])
    assert bars(right)[3.9] == pytest.approx((one.difference - 2 * one.error, one.difference + 2 * one.error))
    left, _right = draw(4, 1000).axes
    alone = (87 * 13 / 1000) ** 0.5
    assert any(ends == pytest.approx((87 - 2 * alone, 87 + 2 * alone)) for ends in bars(left).values())


def test_what_lies_below_the_axis_stands_at_its_edge_with_its_number(draw):
    _left, right = draw(2, 1000).axes
    told = {text.get_text() for text in right.texts} - {"", "float"}
    assert told == {"-7.0", "-15.0", "-31.0", "-63.0"}
    below = [line for line in right.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert all(y == plots.WORST for line in below for y in line.get_ydata())
    assert {text.get_text() for text in draw(8, 1000).axes[1].texts} == {"", "float"}


def test_the_curves_end_at_the_bits_asked_for(draw):
    left, _right = draw(5, 1000).axes
    assert [8, 7, 6, 5] in [list(line.get_xdata()) for line in left.lines]


# --- which network to take


@pytest.mark.parametrize("tolerance, can_train, sure, name", [
    (0.0, False, False, None), (0.1, False, False, "W8A8 by PTQ"), (0.1, False, True, None),
    (1.0, False, True, "W8A8 by PTQ"), (1.0, True, False, "W4A4 by QAT"), (1.0, True, True, "W8A8 by PTQ"),
    (2.0, True, True, "W4A4 by QAT"),
])  # fmt: skip
def test_the_smallest_that_is_good_enough_is_taken(tolerance, can_train, sure, name):
    figure = plots.choice(CANDIDATES)(tolerance, can_train, sure)
    expected = f"take {name}" if name else "nothing here is good enough"
    assert figure.finding.endswith(expected)
    assert f"{tolerance:.2f} points may be lost, with{'' if can_train else 'out'} training" in figure.finding
    assert ("for sure" in figure.finding) is sure
    assert ("KiB" in figure.alt) is bool(name)


def test_every_loss_has_its_bar_and_what_is_beyond_the_axis_is_marked_with_its_number():
    (ax,) = plots.choice(CANDIDATES)(1.0, True, False).axes
    assert sorted(text.get_text() for text in ax.texts) == ["", "", "56", "8", "float"]
    up = [line for line in ax.lines if line.get_marker() == "^"]
    assert len(up[-1].get_xdata()) == 2
    ends = sorted(bars(ax).values())
    assert ends == [pytest.approx((-0.3, 0.5)), pytest.approx((-0.1, 1.1))]


def test_the_limit_moves_finely_from_none_to_two_points():
    from qlab.course.lesson08 import panels

    stops = panels.choice(CANDIDATES).choices["tolerance"]
    assert stops[0] == 0 and stops[-1] == 2 and stops[1] - stops[0] <= 0.05
