"""The figures say what the data says, look the same whichever way they were reached, and can be read without colour."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from qlab.course import banner, plots
from qlab.data import Dataset, shapes10

COLOURS = {"float": plots.FLOAT, "quantized": plots.QUANTIZED, "error": plots.ERROR, "clipped": plots.CLIPPED}

# What is left of a colour with a kind of cone missing: Machado, Oliveira and Fernandes (2009), severity 1, linear RGB.
VISION = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a linear RGB colour: a distance of 2 can just be seen, of 20 not be overlooked."""
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    x, y, z = np.cbrt(xyz @ rgb.clip(0, 1) / np.array([0.95047, 1, 1.08883]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour: str, ground: str) -> float:
    """WCAG's contrast ratio: 3 for graphics, 4.5 for text."""
    light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("one, other", list(itertools.combinations(COLOURS, 2)))
def test_two_meanings_never_look_alike(vision, one, other):
    seen = [lab(np.array(VISION[vision]) @ linear(COLOURS[name])) for name in (one, other)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20


@pytest.mark.parametrize("name, least", [("float", 4.5), ("quantized", 4.5), ("clipped", 4.5), ("error", 3.0)])
def test_colours_stand_out_from_the_paper(name, least):
    """Text is written in the first three; `error` is for areas and lines."""
    assert contrast(COLOURS[name], plots.PAPER) >= least


@pytest.fixture(scope="module")
def ten() -> Dataset:
    return shapes10("validation").sample(10)


def sure_of(labels: torch.Tensor) -> torch.Tensor:
    """Scores that make each of these labels the answer."""
    return 5.0 * torch.nn.functional.one_hot(labels, 10)


def texts(figure: plots.Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_answers_counts_where_the_two_networks_agree(ten):
    wrong = ten.labels.clone()
    wrong[3] = (wrong[3] + 1) % 10
    figure = plots.answers(ten, sure_of(ten.labels), sure_of(wrong))
    assert figure.finding == "float and int8 give the same answer on 9 of 10 pictures"
    assert "float is right on 10 of 10" in figure.alt and "int8 is right on 9 of 10" in figure.alt
    name, truth = ten.classes[wrong[3]], ten.classes[ten.labels[3]]
    shown = texts(figure)
    assert f"✗ {name} 94%" in shown and f"✓ {truth} 94%" in shown
    assert sum(text.startswith("✓") for text in shown) == 19


@pytest.fixture
def moving(ten):
    said = {bits: (ten.labels + (torch.arange(10) >= bits + 2)) % 10 for bits in range(2, 9)}
    accuracy = {bits: 90.0 - 2.0 ** (8 - bits) for bits in range(2, 9)}
    return lambda: plots.fewer_bits(ten, said, accuracy, 90.5)


def test_fewer_bits_says_how_many_answers_are_right(moving, ten):
    figure = moving()(4)
    assert figure.finding == "4 bits: 74.0 % right (float: 90.5 %)"
    assert figure.alt == "6 of these 10 pictures get the right answer with 4 bits."
    assert sum(text.startswith("✓") for text in texts(figure)) == 6


def test_fewer_bits_shows_no_bits_beyond_those_asked_for(moving):
    curve = moving()(5).axes[-1].lines[1]
    assert list(curve.get_xdata()) == [8, 7, 6, 5]
    assert list(curve.get_ydata()) == [89, 88, 86, 82]


def test_a_frame_depends_on_the_value_and_not_on_the_way_there(moving):
    draw = moving()
    for first in (2, 4, 8):
        fresh = moving()(first).frame()
        draw(9 - first // 2).frame()
        assert draw(first).frame() == fresh


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


def test_a_frame_is_the_whole_figure(moving):
    """What is drawn fast, on a copy of what stands still, is what matplotlib draws in full."""
    draw = moving()
    fast = pixels(draw(3).frame())
    figure = draw(3)
    figure.canvas.draw()
    whole = pixels(plots.jpeg(np.asarray(figure.canvas.buffer_rgba())))
    assert fast.shape == (340, 900, 3)
    assert np.abs(fast - whole).mean() < 0.1
    assert np.abs(fast - pixels(draw(8).frame())).mean() > 0.3


def test_nothing_sticks_out_of_the_figure(moving, ten):
    for figure in (moving()(2), plots.answers(ten, sure_of(ten.labels), sure_of(ten.labels))):
        figure.draw_without_rendering()
        shown = [*figure.texts, *(t for ax in figure.axes for t in (*ax.texts, ax.xaxis.label, ax.yaxis.label))]
        for box in [text.get_window_extent() for text in shown if text.get_text()]:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_a_still_figure_brings_its_words_and_is_drawn_the_same_each_time(moving):
    data, metadata = moving()(6).still()
    assert data == moving()(6).still()[0]
    words = "6 bits: 86.0 % right (float: 90.5 %). 8 of these 10 pictures get the right answer with 6 bits."
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == words
    assert pixels(data["image/jpeg"]).shape == (510, 1350, 3)
    assert (metadata["image/jpeg"]["width"], metadata["image/jpeg"]["height"]) == (900, 340)
    assert len(data["image/jpeg"]) < 250_000


def test_a_notebook_shows_a_figure_and_its_words(moving, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, **options: shown.append(data))
    figure = moving()(6)
    figure._ipython_display_()
    assert "image/jpeg" in shown[0] and shown[1].data == f"*{figure.alt}*"


def test_the_banner_says_which_pictures_a_lesson_runs_on(ten):
    said = banner(ten).data
    assert said.startswith("**Pictures: shapes10** (10 in the validation split; 10 classes: circle, ")
    assert "qlab.data.cifar10()" in said
    assert "qlab.data.cifar10()" not in banner(replace(ten, source="CIFAR-10, JPEG copy")).data
