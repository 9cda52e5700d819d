"""Figures say what the data says, look the same whichever way they were reached, need no colour vision."""

from __future__ import annotations

import ast
import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

import qlab
from qlab.course import banner, plots
from qlab.data import Dataset, shapes10

COLOURS = {name: getattr(plots, name.upper()) for name in ("float", "quantized", "error", "clipped")}

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
@pytest.mark.parametrize("one, other", list(itertools.combinations(COLOURS, 2)))
def test_two_meanings_never_look_alike(vision, one, other):
    seen = [lab(np.array(VISION[vision]) @ linear(COLOURS[name])) for name in (one, other)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20


@pytest.mark.parametrize("name", COLOURS)
def test_colours_stand_out_from_the_paper(name):
    least = 3.0 if name == "error" else 4.5  # that one is for areas and lines, not for text
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
    assert figure.finding == "float and int8 give the same answer on 9 of 10 images"
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
    assert figure.alt == "6 of these 10 images get the right answer with 4 bits."
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
        inside = [text for ax in figure.axes for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label)]
        for box in [text.get_window_extent() for text in (*figure.texts, *inside) if text.get_text()]:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_a_still_figure_brings_its_words_and_is_drawn_the_same_each_time(moving):
    data, metadata = moving()(6).still()
    assert data == moving()(6).still()[0]
    words = "6 bits: 86.0 % right (float: 90.5 %). 8 of these 10 images get the right answer with 6 bits."
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == words
    assert pixels(data["image/jpeg"]).shape == (510, 1350, 3)
    assert (metadata["image/jpeg"]["width"], metadata["image/jpeg"]["height"]) == (900, 340)
    assert len(data["image/jpeg"]) < 250_000


def test_a_notebook_shows_a_figure_and_its_words(moving, monkeypatch):
    shown = []
    monkeypatch.setattr(plots.figure, "display", lambda data, **options: shown.append(data))
    figure = moving()(6)
    figure._ipython_display_()
    assert "image/jpeg" in shown[0] and shown[1].data == f"*{figure.alt}*"


def test_the_banner_says_which_images_a_lesson_runs_on(ten):
    said = banner(ten).data
    assert said.startswith("**Images: shapes10** (10 in the validation split; 10 classes: circle, ")
    assert "qlab.data.cifar10()" in said
    assert "qlab.data.cifar10()" not in banner(replace(ten, source="CIFAR-10, JPEG copy")).data


# --- lesson 1


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.9])
def test_rounding_is_off_by_half_a_step_at_most_wherever_the_grid_stands(bits, shift):
    figure = plots.rounding()(bits, shift)
    step = 2 / (2**bits - 1)
    above, below = figure.axes
    stairs, error = above.lines[1].get_ydata(), below.lines[0].get_ydata()
    assert np.abs(error).max() <= step / 2 + 1e-9
    assert len(above.collections[0].get_segments()) == 2**bits >= len(np.unique(stairs))
    assert np.allclose(above.lines[0].get_ydata() - stairs, error)
    assert ("0 is on the grid" in figure.finding) is (shift == 0)
    assert f"largest error {np.abs(error).max():.3f}" in figure.finding


def test_errors_are_evenly_spread_while_steps_are_small_and_not_with_two_bits():
    draw = plots.rounding_errors(torch.randn(20_000, generator=torch.Generator().manual_seed(1)))
    assert "8 bits: mean squared error 1.0" in draw(8).finding
    heights = [bar.get_height() for bar in draw(8).axes[0].patches]
    assert len(heights) == 20 and 0.85 < min(heights) and max(heights) < 1.15
    assert "mean squared error 1.0" not in draw(2).finding


@pytest.mark.parametrize("number", [0.3, -1.0, 0.0, 4.5, -5.0, 1e-3])
def test_formats_store_what_the_formats_store(number):
    texts_of = [text.get_text() for text in plots.formats()(number).axes[0].texts]
    for name, (exponent, fraction, dtype) in plots.FORMATS.items():
        bits = "".join(texts_of[texts_of.index(name) + 1 :][:3]).replace(" ", "")
        sign, power, rest = int(bits[0]), int(bits[1 : 1 + exponent], 2), int(bits[1 + exponent :], 2)
        bias = 2 ** (exponent - 1) - 1
        size = (1 + rest / 2**fraction) * 2.0 ** (power - bias) if power else rest / 2**fraction * 2.0 ** (1 - bias)
        assert (-1) ** sign * size == torch.tensor(number).to(dtype).double()
        assert f"{name} stores {torch.tensor(number).to(dtype).double().item():.9g}" in plots.formats()(number).alt
    code = int("".join(texts_of[texts_of.index("int8") + 1 :][:3]).replace(" ", ""), 2)
    assert code - 256 * (code > 127) == max(-128, min(127, round(number * 32)))


# --- lesson 2


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    return torch.randn(20_000, generator=torch.Generator().manual_seed(2)).relu() ** 1.5


def test_rounding_and_clipping_add_up_and_the_title_knows_the_best_limit(activations):
    draw = plots.clipping(activations)
    figure = draw(4, 50)
    limits, rounding = figure.axes[1].lines[0].get_data()
    clipped, both = (line.get_ydata() for line in figure.axes[1].lines[1:3])
    assert np.allclose(rounding + clipped, both, rtol=1e-4, atol=1e-10)
    assert (np.diff(clipped) <= 1e-12).all()
    assert f"least at {limits[both.argmin()]:.2f}" in figure.finding
    half = activations.max() / 2
    error = (qlab.fake_quantize(activations, qlab.choose_qparams(0.0, half, 4)) - activations).square().mean()
    assert figure.axes[1].lines[3].get_ydata()[0] == pytest.approx(error.item(), rel=1e-4)
    best = {bits: float(draw(bits, 100).finding.split("least at ")[1]) for bits in (2, 4, 8)}
    assert best[2] < best[4] < best[8]


def test_the_limits_are_those_of_the_observers_and_the_mse_is_best(activations):
    figure = plots.chosen_limits(activations)(3)
    minmax, percentile, entropy, mse = figure.axes[1].lines[0].get_xdata()
    assert minmax == pytest.approx(float(activations.max()), rel=1e-3)
    assert mse < percentile < minmax

    def error(limit):
        grid = qlab.choose_qparams(0.0, float(limit), 3)
        return (qlab.fake_quantize(activations, grid) - activations).square().mean()

    assert error(mse) == min(error(limit) for limit in (minmax, percentile, entropy, mse))
    assert f"MSE clips at {mse:.2f}" in figure.finding and f"percentile 99.99 at {percentile:.2f}" in figure.alt


# --- language


def texts_of(tree: ast.AST) -> Iterator[ast.AST]:
    """What a student will read: titles, descriptions, labels of controls and axes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield from [node.value] if node.targets[0].attr in ("finding", "alt") else []
        if isinstance(node, ast.keyword) and node.arg in ("label", "xlabel", "ylabel", "title"):
            yield node.value
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_texts"):
            yield from next(part.values for part in ast.walk(node) if isinstance(part, ast.Dict))


def is_translated(node: ast.AST) -> bool:
    return not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and node.value)


FILES = [*sorted(Path(plots.__file__).parent.glob("*.py")), Path(plots.__file__).parents[1] / "explorables.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_student_reads_can_be_translated(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert [ast.unparse(node) for node in texts_of(tree) if not is_translated(node)] == []


@pytest.mark.parametrize("code, translated", [
    ("def wave_texts():\n    return {'time': 'time'}", False), ("def wave_texts():\n    return {'x': _('x')}", True),
    ("figure.alt = f'{x} bits'", False), ("Slider(label='bits')", False), ("ax.set(xlabel=_('bits'))", True),
    ("figure.finding = words.format(bits=3)", True), ("self.alt = ''", True),
])  # fmt: skip
def test_a_text_that_cannot_be_translated_is_found(code, translated):
    assert [is_translated(node) for node in texts_of(ast.parse(code))] == [translated]
