"""Lesson 3: the figures say what the observers say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from qlab import QuantSpec, observers
from qlab.course.figure import Figure
from qlab.course.lesson03 import plots


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    """Twelve batches behind a relu; the sixth holds an outlier."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(4, 500, generator=generator).relu() for _ in range(12)]
    made[5][0, 0] = 9.0
    return made


@pytest.fixture(scope="module")
def largest() -> torch.Tensor:
    return 1 + torch.rand(300, 5, generator=torch.Generator().manual_seed(4))


def said(figure: Figure) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", figure.finding)]


@pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seen", [1, 5, 12])
def test_the_limits_in_the_title_are_those_of_the_observers(batches, seen, momentum):
    found = []
    for name in ("minmax", "moving_average", "percentile", "mse"):
        spec = QuantSpec(4, observer=name)
        average = name == "moving_average"
        observer = observers.MovingAverageMinMax(spec, momentum) if average else observers.build(spec)
        for batch in batches[:seen]:
            observer(batch)
        found.append(float(observer.range()[1]))
    figure = plots.settling(batches)(seen, momentum)
    assert said(figure) == pytest.approx(found, abs=0.0051)
    assert figure.finding.startswith(f"{seen} of 12 batches")


def test_min_max_never_falls_and_its_records_are_counted(batches):
    figure = plots.settling(batches)(12, 0.1)
    dots, minmax = (figure.axes[0].lines[place].get_ydata() for place in (-3, -2))
    assert (np.diff(minmax) >= 0).all()
    assert minmax[-1] == pytest.approx(9.0)
    records = sum(value > max(dots[:place]) for place, value in enumerate(dots) if place)
    assert f"has grown {records} times" in figure.alt
    assert "min-max has 100 %, percentile 100 %, MSE 100 %" in figure.alt


def test_nothing_is_shown_of_batches_that_are_still_to_come(batches):
    figure = plots.settling(batches)(4, 0.1)
    moving = [line for ax in figure.axes for line in ax.lines if not line.get_in_layout()]
    assert len(moving) == 5
    assert all(list(line.get_xdata()) == [1, 2, 3, 4] for line in moving)


@pytest.mark.parametrize("images", [1, 7, 256])
@pytest.mark.parametrize("drawing", [1, 10])
def test_the_share_of_the_range_is_that_of_the_images_drawn(largest, images, drawing):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(drawing - 1))
    share = 100 * largest[order[:images]].amax(0) / largest.amax(0)
    figure = plots.calibration_size(largest)(images, drawing)
    assert f"{images} of 300 images: {share.mean():.0f} % of the range" in figure.finding
    assert figure.finding.endswith(f"{share.min():.0f} % in layer {share.argmin() + 1}")
    points = next(line for line in figure.axes[0].lines if len(line.get_xdata()) == 5)
    assert np.allclose(points.get_ydata(), share, atol=1e-3)


def test_more_images_never_show_less_and_all_of_them_show_all(largest):
    draw = plots.calibration_size(largest)
    heights = draw(256, 3).axes[1].lines[-2].get_ydata()
    assert len(heights) == 256 and (np.diff(heights) >= 0).all()
    assert "300 of 300 images: 100 % of the range on average, 100 %" in draw(300, 3).finding
