"""Lesson 0's figures count the answers, and show nothing of what is to come."""

from __future__ import annotations

import pytest
import torch

from qlab.course.figure import Figure
from qlab.course.lesson00 import plots
from qlab.data import Dataset, shapes10


@pytest.fixture(scope="module")
def ten() -> Dataset:
    return shapes10("validation").sample(10)


def sure_of(labels: torch.Tensor) -> torch.Tensor:
    """Scores that make each of these labels the answer."""
    return 5.0 * torch.nn.functional.one_hot(labels, 10)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_answers_counts_where_the_two_networks_agree(ten):
    wrong = ten.labels.clone()
    wrong[3] = (wrong[3] + 1) % 10
    figure = plots.answers(ten, sure_of(ten.labels), sure_of(wrong))
    assert figure.finding == "float and int8 give the same answer on 9 of 10 images"
    assert "float is right on 10 of 10" in figure.alt and "int8 is right on 9 of 10" in figure.alt
    name, truth = ten.classes[wrong[3]], ten.classes[ten.labels[3]]
    shown = texts(figure)
    assert f"✗ {name} 94%" in shown and f"✓ {truth} 94%" in shown
    assert sum(text.startswith("✓") for text in shown) == 19


def test_nothing_sticks_out_of_the_answers(ten):
    figure = plots.answers(ten, sure_of(ten.labels), sure_of(ten.labels))
    figure.draw_without_rendering()
    for box in [text.get_window_extent() for ax in figure.axes for text in (*figure.texts, *ax.texts)]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


@pytest.fixture
def moving(ten):
    said = {bits: (ten.labels + (torch.arange(10) >= bits + 2)) % 10 for bits in range(2, 9)}
    accuracy = {bits: 90.0 - 2.0 ** (8 - bits) for bits in range(2, 9)}
    return lambda: plots.fewer_bits(ten, said, accuracy, 90.5)


def test_fewer_bits_says_how_many_answers_are_right(moving, ten):
    figure = moving()(4)
    assert figure.finding == "4 bits: 74.0 % right (float: 90.5 %)"
    assert figure.alt == "6 of these 10 images get the right answer with 4 bits."
    assert sum(text.startswith("✓") for text in texts(figure)) == 6


def test_fewer_bits_shows_no_bits_beyond_those_asked_for(moving):
    curve = moving()(5).axes[-1].lines[1]
    assert list(curve.get_xdata()) == [8, 7, 6, 5]
    assert list(curve.get_ydata()) == [89, 88, 86, 82]
