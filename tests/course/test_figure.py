"""Figures need no colour vision, are drawn fast and whole, and bring their words."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from qlab.course import figure as figures
from qlab.course.figure import COLOURS, PAPER, Figure, jpeg

MEANINGS = ("float", "quantized", "error", "clipped")

# What is left of a linear RGB colour with a kind of cone missing: Machado et al. (2009), severity 1.
VISION = {
    "trichromat": np.eye(3),
    "protanope": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranope": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanope": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def linear(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a linear RGB colour: a distance of 2 can just be seen, of 20 not be overlooked."""
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(xyz @ rgb.clip(0, 1) / xyz.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour: str, ground: str) -> float:
    """WCAG's contrast ratio: 3 for graphics, 4.5 for text."""
    light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("one, other", list(itertools.combinations(MEANINGS, 2)))
def test_two_meanings_never_look_alike(vision, one, other):
    seen = [lab(np.array(VISION[vision]) @ linear(COLOURS[name])) for name in (one, other)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20


@pytest.mark.parametrize("name", MEANINGS)
def test_colours_stand_out_from_the_paper(name):
    least = 3.0 if name == "error" else 4.5  # that one is for areas and lines, not for text
    assert contrast(COLOURS[name], PAPER) >= least


def moving() -> Callable[[int], Figure]:
    """A figure with a dot that a value moves."""
    image = Figure((9, 3.4))
    ax = image.subplots()
    ax.set(xlim=(0, 9), ylim=(0, 9), xlabel="stays")
    (dot,) = ax.plot([], [], "o", markersize=40)
    image.moves(dot)

    def draw(value: int) -> Figure:
        dot.set_data([value], [value])
        image.finding, image.alt = f"{value} of 9", f"A dot stands at {value}."
        return image

    return draw


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


def test_a_frame_is_the_whole_figure():
    """What is drawn fast, on a copy of what stands still, is what matplotlib draws in full."""
    draw = moving()
    draw(8).frame()
    fast = pixels(draw(3).frame())
    figure = draw(3)
    figure.canvas.draw()
    whole = pixels(jpeg(np.asarray(figure.canvas.buffer_rgba())))
    assert fast.shape == (340, 900, 3)
    assert np.abs(fast - whole).mean() < 0.1
    assert np.abs(fast - pixels(draw(8).frame())).mean() > 0.3


def test_a_still_figure_brings_its_words_and_is_drawn_the_same_each_time():
    data, metadata = moving()(6).still()
    assert data == moving()(6).still()[0]
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == "6 of 9. A dot stands at 6."
    assert pixels(data["image/jpeg"]).shape == (510, 1350, 3)
    assert (metadata["image/jpeg"]["width"], metadata["image/jpeg"]["height"]) == (900, 340)
    assert len(data["image/jpeg"]) < 250_000


def test_a_notebook_shows_a_figure_and_its_words(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, **options: shown.append(data))
    figure = moving()(6)
    figure._ipython_display_()
    assert "image/jpeg" in shown[0] and shown[1].data == f"*{figure.alt}*"


@pytest.mark.parametrize("along", ["x", "y"])
def test_the_place_of_a_guess_is_where_the_figure_draws_it(along):
    figure = Figure((4, 3), "a guess")
    axes = figure.add_subplot()
    axes.set(xlim=(1, 100), ylim=(1, 100), xscale="log", yscale="log")
    figure.takes_guess(axes, along)
    before = np.asarray(Image.open(io.BytesIO(figure.frame())).convert("L"), float)
    (direction, share), beyond = figure.place_of(20), figure.place_of(101)
    figure.mark(20, "")
    after = np.asarray(Image.open(io.BytesIO(figure.frame())).convert("L"), float)
    darker = (before - after).sum(axis=0 if along == "x" else 1)
    assert direction == along and abs(share - (darker.argmax() + 0.5) / darker.size) < 0.01
    assert beyond is None and Figure((4, 3)).place_of(20) is None
