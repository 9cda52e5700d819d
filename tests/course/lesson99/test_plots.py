"""The challenge's figure: the front, who beats yours, and names that can be read."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from qlab.analysis import Paired
from qlab.course.lesson99 import panels, plots
from qlab.course.lesson99.challenge import Budget, Score


def a_score(name: str, accuracy: float, kib: float) -> Score:
    return Score(name, accuracy, Paired(accuracy - 88, 0.5, 50), kib, 1.0, Budget(kib=100, time=1.5))


SCORES = [a_score("large", 89.0, 270), a_score("middle", 86.0, 140), a_score("small", 80.0, 75)]


@pytest.mark.parametrize("kib, name", [(300, "large"), (200, "middle"), (100, "yours"), (75, "small"), (60, None)])
def test_the_ring_marks_the_best_that_fits(kib, name):
    figure = plots.pareto(SCORES, a_score("yours", 85.0, 100))(kib)
    expected = f"{kib} KiB: {name} is best" if name else f"{kib} KiB: nothing fits"
    assert figure.finding.startswith(expected)
    assert figure.finding.endswith("yours is on the front")
    assert "Yours, the star: 85.0 % with 100.0 KiB" in figure.alt


def test_who_beats_yours_is_named():
    figure = plots.pareto(SCORES, a_score("yours", 79.0, 100))(300)
    assert figure.finding.endswith("yours is beaten by small")


def test_two_networks_of_nearly_one_size_and_accuracy_have_names_that_can_be_read():
    scores = [a_score("W4A4 by PTQ", 87.0, 142), a_score("W4A4 by QAT", 88.0, 142), a_score("W8A8", 89.6, 274)]
    figure = plots.pareto(scores, a_score("mine", 61.0, 100))(300)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_the_strokes_from_names_to_points_do_not_cross():
    networks = {"W8A8 by PTQ": (89.4, 274), "W4A4 by PTQ": (87.4, 142), "W4A4 by QAT": (88.8, 142.5)}
    networks |= {"W3A3 by QAT": (89.2, 109.5), "W2A2 by QAT": (88.4, 76.6)}
    scores = [a_score(name, *place) for name, place in networks.items()]
    figure = plots.pareto(scores, a_score("mixed", 59.4, 99.7))(284)
    figure.draw_without_rendering()
    left = {text.get_text(): text.get_window_extent().x0 for text in figure.axes[0].texts}
    assert left["W2A2 by QAT"] < left["W3A3 by QAT"], "as their points do"


def test_yours_may_be_among_the_scores():
    line = plots.pareto(SCORES, SCORES[1])(300).axes[0].lines[1]
    assert list(line.get_xdata()) == [75, 140, 270]


def test_the_slider_reaches_from_below_the_smallest_to_beyond_the_largest():
    sizes = panels.pareto(SCORES, a_score("yours", 85.0, 100)).choices["kib"]
    assert sizes[0] < 75 and sizes[-1] > 270


# --- the board


def test_the_board_says_who_beats_the_line_and_by_how_much():
    scores = [a_score("large", 90.0, 270), a_score("mine", 89.2, 90), a_score("other", 88.3, 80)]
    draw = plots.board(scores)
    assert draw(2).finding == "mine beats the line by +1.2 ± 0.5: more than 2 standard errors"
    assert draw(3).finding == "Within the budget nothing beats the line by more than 3 standard errors"
    assert "Hollow points are over the budget: large." in draw(2).alt
    assert plots.board(scores[:1])(2).finding == "No attempt is within the budget"


@pytest.mark.parametrize("errors", [1, 2, 3])
def test_the_bars_are_so_many_standard_errors(errors):
    bars = plots.board([a_score("mine", 89.2, 90)])(errors).axes[0].collections[0]
    (start, end) = bars.get_segments()[0][:, 0]
    assert end - start == pytest.approx(2 * errors * 0.5) and (start + end) / 2 == pytest.approx(1.2)


@pytest.mark.parametrize("kib, time, words", [
    (90, 1.0, "90.0 KiB, time 1.00"), (101, 1.0, "101.0 KiB: too large"), (90, 2.0, "time 2.00: too slow"),
    (90, None, "time -: too slow"),
])  # fmt: skip
def test_what_is_over_the_budget_says_so_on_the_board(kib, time, words):
    figure = plots.board([replace(a_score("mine", 89.2, kib), time=time)])(2)
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == [words]
