"""Lesson 8's figures: their titles agree with the numbers they were given."""

from __future__ import annotations

import pytest

from qlab.course.lesson08 import plots
from qlab.course.lesson08.plots import Candidate

PTQ = {bits: 88.0 - 2.0 ** (8 - bits) / 2 for bits in range(2, 9)}
QAT = {8: 88.2, 4: 87.5, 2: 80.0}
CANDIDATES = [
    Candidate("w8a8", 800 * 1024, 0.1, False), Candidate("w4a4", 400 * 1024, 8.0, False),
    Candidate("w4a4", 400 * 1024, 0.5, True), Candidate("w2a2", 200 * 1024, 56.0, False),
]  # fmt: skip


def test_both_losses_stand_in_the_title():
    draw = plots.ptq_and_qat(PTQ, QAT, 88.0)
    assert draw(4).finding == "4 bits against float: PTQ -8.0 points, QAT -0.5"
    assert draw(4).alt == "Right answers with 4 bits: QAT 87.5 %, PTQ 80.0 %; the float network 88.0 %."
    assert draw(8).finding == "8 bits against float: PTQ -0.5 points, QAT +0.2"


def test_bits_without_a_trained_network_say_so_by_silence():
    figure = plots.ptq_and_qat(PTQ, QAT, 88.0)(3)
    assert figure.finding == "3 bits against float: PTQ -16.0 points"
    assert "QAT" not in figure.alt


def test_the_curves_end_at_the_bits_asked_for():
    *_, qat, ptq = plots.ptq_and_qat(PTQ, QAT, 88.0)(4).axes[0].lines
    curves = sorted((list(line.get_xdata()) for line in (qat, ptq)), key=len)
    assert [8, 7, 6, 5, 4] in curves


@pytest.mark.parametrize("tolerance, can_train, name", [
    (0.0, False, None), (0.1, False, "W8A8 by PTQ"), (1.0, False, "W8A8 by PTQ"), (1.0, True, "W4A4 by QAT"),
    (8.0, False, "W4A4 by PTQ"), (8.0, True, "W4A4 by QAT"), (60.0, True, "W2A2 by PTQ"),
])  # fmt: skip
def test_the_smallest_that_is_good_enough_is_taken(tolerance, can_train, name):
    figure = plots.choice(CANDIDATES)(tolerance, can_train)
    expected = f"take {name}" if name else "nothing here is good enough"
    assert figure.finding.endswith(expected)
    assert f"{tolerance:.1f} points may be lost, with{'' if can_train else 'out'} training" in figure.finding
    assert ("KiB" in figure.alt) is bool(name)
