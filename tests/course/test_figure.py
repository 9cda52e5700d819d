"""Figures need no colour vision, are drawn fast and whole, and bring their words."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from qlab.course import figure as figures
from qlab.course.figure import COLOURS, PAPER, Figure, jpeg
from qlab.course.widgets import JS

MEANINGS = ("float", "quantized", "error", "clipped")

# What is left of a linear RGB colour with a kind of cone missing: Machado et al. (2009), severity 1.
VISION = {
    "trichromat": np.eye(3),
    "protanope": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranope": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanope": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def linear(colour: Sequence[float]) -> np.ndarray:
    c = np.array(colour)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a linear RGB colour: a distance of 2 can just be seen, of 20 not be overlooked."""
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(xyz @ rgb.clip(0, 1) / xyz.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour: Sequence[float], ground: Sequence[float]) -> float:
    """WCAG's contrast ratio: 3 for graphics, 4.5 for text."""
    light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


# CSS's hue-rotate(180deg): https://www.w3.org/TR/filter-effects-1/#huerotateEquivalent
HALF_A_TURN = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])


def turned_over(colour: str) -> np.ndarray:
    """What the filter of explorables.css makes of a colour in a dark JupyterLab."""
    found = re.search(r"filter: invert\((.+)\) hue-rotate\(180deg\);", (JS / "explorables.css").read_text("utf-8"))
    inverted = (1 - 2 * float(found[1])) * np.array(to_rgb(colour)) + float(found[1])
    return (HALF_A_TURN @ inverted).clip(0, 1)


THEMES = {"light": to_rgb, "dark": turned_over}
EACH_THEME = pytest.mark.parametrize("theme", THEMES)


@EACH_THEME
@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("one, other", list(itertools.combinations(MEANINGS, 2)))
def test_two_meanings_never_look_alike(theme, vision, one, other):
    seen = [lab(np.array(VISION[vision]) @ linear(THEMES[theme](COLOURS[name]))) for name in (one, other)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20


@EACH_THEME
@pytest.mark.parametrize("name", [*MEANINGS, "ink"])
def test_colours_can_be_read_on_the_paper(theme, name):
    assert contrast(*(THEMES[theme](COLOURS[which]) for which in (name, "paper"))) >= 4.5


@EACH_THEME
def test_words_in_a_colour_are_not_taken_for_ink(theme):
    ink, *others = (lab(linear(THEMES[theme](COLOURS[name]))) for name in ("ink", *MEANINGS))
    assert all(np.linalg.norm(ink - other) > 20 for other in others)


def test_the_dark_side_is_dark_and_keeps_its_hues():
    assert THEMES["dark"](PAPER).max() < 0.1 and THEMES["dark"](COLOURS["ink"]).min() > 0.7
    blue, orange = (THEMES["dark"](COLOURS[name]) for name in ("float", "quantized"))
    assert blue.argmax() == 2 and orange.argmax() == 0


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
    assert {"image/jpeg", "application/vnd.jupyter.widget-view+json"} <= set(shown[0])
    assert shown[1].data == f"*{figure.alt}*"


def test_a_title_or_a_name_too_long_for_the_figure_becomes_smaller_and_the_next_has_its_size_again():
    figure = Figure((4, 2), "short")
    axes = figure.subplots()
    axes.set_ylabel("a name that is much longer than the axis, and longer than the figure is high")
    figure.frame()
    size = figure._suptitle.get_fontsize()
    assert 0 <= axes.yaxis.label.get_window_extent().y0 and axes.yaxis.label.get_window_extent().y1 <= 200
    figure.finding = "a finding that takes more words than the figure is wide, by far"
    figure.frame()
    assert figure._suptitle.get_window_extent().x1 <= 400 and figure._suptitle.get_fontsize() < size
    figure.finding = "short"
    assert figure.still()[0] and figure._suptitle.get_fontsize() == size


def test_a_figure_knows_where_its_photographs_are():
    """A photograph has colours of its own; numbers drawn as colours belong to the sheet."""
    figure = Figure((8, 4))
    photo, numbers, _plain = figure.subplots(1, 3)
    photo.imshow(np.zeros((10, 10, 3), np.uint8))
    numbers.imshow(np.zeros((10, 10)))
    seen = pixels(figure.frame())
    ((left, top, width, height),) = figure.photos()
    assert 0 < left < left + width < 1 / 3 and 0 < top < top + height < 1
    black = seen[
        round(top * 400) + 2 : round((top + height) * 400) - 2, round(left * 800) + 2 : round((left + width) * 800) - 2
    ]
    around = seen[round(top * 400) - 6 : round(top * 400) - 3, round(left * 800) : round((left + width) * 800)]
    assert black.max() < 20 and around.mean() > 200


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
