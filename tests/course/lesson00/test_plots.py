"""Lesson 0's figures count the answers, and show nothing of what is to come."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qlab.analysis import paired
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


@pytest.fixture(scope="module")
def moving():
    """Of fifty images float gets 48 right; each bit less loses one more, with 2 bits thirty."""
    images = shapes10("validation").sample(50)
    wrong = {8: 2, 7: 3, 6: 4, 5: 5, 4: 6, 3: 7, 2: 30}
    said = {bits: (images.labels + (torch.arange(50) >= 50 - lost)) % 10 for bits, lost in wrong.items()}
    return lambda: plots.fewer_bits(images, said, said[8] == images.labels)


def test_fewer_bits_says_how_many_answers_are_right_and_how_sure_that_is(moving):
    figure = moving()(4)
    found = paired(torch.arange(50) < 48, torch.arange(50) < 44)
    assert figure.finding == f"4 bits: 88.0 % right, -8.0 ± {found.error:.1f} points against float"
    assert figure.alt.startswith(
        "10 of the 10 images shown get the right answer with 4 bits. The curve is measured on 50"
    )
    assert sum(text.startswith("✓") for text in texts(figure)) == 10


def test_fewer_bits_shows_no_bits_beyond_those_asked_for(moving):
    figure = moving()(5)
    curve, (bars,) = figure.axes[-1].lines[1], figure.axes[-1].collections
    assert list(curve.get_xdata()) == [8, 7, 6, 5]
    assert np.allclose(curve.get_ydata(), [96, 94, 92, 90])
    heights = [end[1] - start[1] for start, end in bars.get_segments()]
    assert len(heights) == 4 and heights[0] == 0 and heights == sorted(heights)
