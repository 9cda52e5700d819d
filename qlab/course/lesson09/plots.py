"""Lesson 9: grids of few values, equal steps or not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from qlab import observers
from qlab.affine import choose_qparams, fake_quantize
from qlab.codebook import kmeans, look_up, round_to_float
from qlab.course.figure import CLIPPED, ERROR, FLOAT, INK, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.formats import float_format
from qlab.qconfig import QuantSpec

WIDTHS = (2, 3, 4)  # bits of a codebook
ITERATIONS = 40


@rc_context(STYLE)
def codebook(weights: Tensor) -> Callable[[int, int], Figure]:
    """k-means on ``weights`` (any shape) beside equal steps; a function from bits (2 to 4) and iterations (to 40).

    The equal steps are those with the least squared error; the codebook starts evenly from the least to the largest.
    """
    w = weights.detach().flatten()
    power = w.square().mean().item()
    tables = {bits: [kmeans(w, bits, iterations=number) for number in range(ITERATIONS + 1)] for bits in WIDTHS}
    errors = {bits: [100 * _error(w, look_up(*one)) / power for one in tables[bits]] for bits in WIDTHS}
    rounded = {bits: _equal_steps(w, bits) for bits in WIDTHS}
    even = {bits: 100 * _error(w, rounded[bits]) / power for bits in WIDTHS}
    rungs = {bits: rounded[bits].unique() for bits in WIDTHS}
    figure = Figure((10, 3.8))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.hist(w.numpy(), 81, color=FLOAT, alpha=0.7)
    left.set(xlabel=_("weight"), ylabel=_("how many"), ylim=(0, left.get_ylim()[1] * 1.15))
    left.text(0.02, 0.93, _("codebook"), color=QUANTIZED, transform=left.transAxes)
    left.text(0.02, 0.85, _("equal steps"), color=CLIPPED, transform=left.transAxes)
    places = {"transform": left.get_xaxis_transform()}
    centroids = left.vlines([], 0, 1, color=QUANTIZED, linewidth=1.5, **places)
    (steps,) = left.plot([], [], "|", color=CLIPPED, markersize=14, markeredgewidth=2, **places)
    right.set(xlabel=_("iterations of k-means"), ylabel=_("relative squared error (%)"), yscale="log")
    right.set(xlim=(0, ITERATIONS), ylim=(min(even.values()) / 4, 2 * max(one[0] for one in errors.values())))
    (curve,) = right.plot([], [], color=ERROR)
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=10)
    (level,) = right.plot([], [], color=CLIPPED, linestyle="--")
    figure.moves(centroids, steps, level, curve, now)

    def draw(bits: int, iterations: int) -> Figure:
        table, error = tables[bits][iterations][0], errors[bits]
        centroids.set_segments([[(place, 0), (place, 0.8)] for place in table.tolist()])
        steps.set_data(rungs[bits], np.full(len(rungs[bits]), 0.03))
        curve.set_data(range(iterations + 1), error[: iterations + 1])
        now.set_data([iterations], [error[iterations]])
        level.set_data([0, ITERATIONS], [even[bits]] * 2)
        words = {"bits": bits, "number": iterations, "error": error[iterations], "even": even[bits]}
        figure.finding = _(
            "{bits} bits, {number} iterations: error {error:.3g} % with the codebook, {even:.3g} % with equal steps"
        ).format(**words)
        figure.alt = _("The {count} values of the codebook: {values}.").format(
            count=len(table), values=", ".join(f"{value:.2f}" for value in table.tolist())
        )
        return figure

    return draw


def _error(x: Tensor, rounded: Tensor) -> float:
    return (x - rounded).square().mean().item()


def _equal_steps(w: Tensor, bits: int) -> Tensor:
    """The weights on the symmetric grid of equal steps that has the least squared error."""
    return fake_quantize(w, observers.grid_of(w, QuantSpec(bits, signed=True, symmetric=True, observer="mse")))


def on_three_values(rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(values, which of them are not 0): rows (N, values), each with a threshold, in mean magnitudes, and a scale.

    >>> on_three_values(np.array([[0.1, -0.3, 1.0, -2.0]]), 0.7)[0].tolist()
    [[0.0, 0.0, 1.5, -1.5]]
    """
    kept = np.abs(rows) >= threshold * np.abs(rows).mean(1, keepdims=True)
    scale = (np.abs(rows) * kept).sum(1, keepdims=True) / np.maximum(1, kept.sum(1, keepdims=True))
    return np.where(rows < 0, -1, 1) * kept * scale, kept


def ternary_error(weights: Tensor, threshold: float) -> float:
    """The squared error of filters (N, ...) on three values, as a share of their squares.

    >>> round(ternary_error(torch.tensor([[0.1, -0.3, 1.0, -2.0]]), 0.7), 4)
    0.1176
    """
    rows = weights.detach().double().flatten(1).numpy()
    return float(np.square(rows - on_three_values(rows, threshold)[0]).sum() / np.square(rows).sum())


@rc_context(STYLE)
def few_values(weights: Tensor, shown: int = 12) -> Callable[[float], Figure]:
    """Filters made ternary, or with threshold 0 binary; a function from the threshold, in mean magnitudes.

    ``weights``: (filters, inputs, height, width), each filter with a threshold and a scale of its own. The figure
    has the first input's part of some filters.
    """
    w = weights.detach().double().flatten(1).numpy()
    mean = np.abs(w).mean(1, keepdims=True)
    figure = Figure((10, 3.8))
    left, ax = figure.subplots(1, 2, width_ratios=(3, 2))
    tiles = weights[:shown, 0].detach().double().numpy() / mean[:shown, :, None]
    _show_tiles(left, tiles, 0, FLOAT)
    image = _show_tiles(left, tiles, 1, QUANTIZED)
    thresholds = np.round(np.arange(0, 2.01, 0.05), 2)
    ax.set(xlabel=_("threshold, in mean magnitudes"), ylabel=_("in %"), xlim=(0, 2), ylim=(0, 100))
    ax.text(0.03, 0.93, _("weights that are 0"), color=CLIPPED, transform=ax.transAxes)
    ax.text(0.03, 0.85, _("squared error"), color=ERROR, transform=ax.transAxes)

    def at(threshold: float) -> tuple[np.ndarray, float, float]:
        """(values in mean magnitudes, error and zeros in percent)."""
        values, kept = on_three_values(w, threshold)
        return values / mean, 100 * np.square(w - values).sum() / np.square(w).sum(), 100 * (1 - kept.mean())

    _all, errors, zeros = zip(*map(at, thresholds))
    ax.plot(thresholds, errors, color=ERROR)
    ax.plot(thresholds, zeros, color=CLIPPED)
    (now,) = ax.plot([], [], "o", color=QUANTIZED, markersize=10)
    figure.moves(image, now)

    def draw(threshold: float) -> Figure:
        values, error, zero = at(threshold)
        image.set_data(_side_by_side(values[:shown, : tiles[0].size].reshape(tiles.shape), 1))
        now.set_data([threshold], [error])
        best = thresholds[int(np.argmin(errors))]
        words = {"threshold": threshold, "zero": zero, "error": error, "best": best, "binary": errors[0]}
        name = _("ternary") if threshold > 0 else _("binary")
        figure.finding = _(
            "{name}, threshold {threshold:.2f}: {zero:.0f} % are 0, error {error:.0f} % (least at {best:.2f})"
        ).format(name=name, **words)
        figure.alt = _(
            "{shown} pairs of filters, the float one above. Each weight below is 0, or plus or minus the scale of its "
            "filter; purple is positive, orange negative. Binary, without zeros, has an error of {binary:.0f} %."
        ).format(shown=shown, **words)
        return figure

    return draw


def _show_tiles(ax: Axes, tiles: np.ndarray, below: int, colour: str) -> AxesImage:
    """Small images (count, height, width) in two double rows, in their upper or lower half, framed."""
    count, height, width = tiles.shape
    image = ax.imshow(_side_by_side(tiles, below), cmap="PuOr", vmin=-2.5, vmax=2.5)
    for number in range(count):
        row, column = divmod(number, count // 2)
        corner = column * (width + 1) - 0.6, (2 * row + below) * (height + 1) - 0.6
        ax.add_patch(Rectangle(corner, width + 0.2, height + 0.2, fill=False, color=colour, linewidth=2))
    ax.set(xlim=(-0.8, count // 2 * (width + 1) - 1.2), ylim=(4 * (height + 1) - 1.2, -0.8))
    ax.set_axis_off()
    return image


def _side_by_side(tiles: np.ndarray, below: int) -> np.ndarray:
    """One image of all tiles, with nothing (NaN) between them and in the rows of the other half."""
    count, height, width = tiles.shape
    whole = np.full((4, height + 1, count // 2, width + 1), np.nan)
    whole[below::2, :height, :, :width] = tiles.reshape(2, count // 2, height, width).transpose(0, 2, 1, 3)
    return whole.reshape(4 * (height + 1), -1)


GRIDS = ("int8", "e4m3", "e5m2")
OUTLIERS = np.round(np.arange(0, 8.01, 0.25), 2)  # powers of ten: how many times the largest weight


def eight_bits(values: Tensor, grid: str) -> Tensor:
    """``values`` on one of the :data:`GRIDS`, whose largest value is put at the largest magnitude.

    >>> eight_bits(torch.tensor([0.98, 0.3, -4.48]), "e4m3")  # 98, 30 and 448 in units of the grid
    tensor([ 0.9600,  0.3000, -4.4800])
    """
    largest = values.abs().max()
    if grid == "int8":
        return fake_quantize(values, choose_qparams(-largest, largest, 8, signed=True, symmetric=True))
    scale = largest / torch.finfo(float_format(grid)).max
    return round_to_float(values / scale, grid) * scale


def with_outlier(values: Tensor, power: float) -> Tensor:
    """``values``, the first of them 10**``power`` times as large as the largest magnitude."""
    return torch.cat([values.abs().max().reshape(1) * 10**power, values[1:]])


def others_decibel(values: Tensor, grid: str) -> float:
    """The signal-to-noise ratio of all values but the first, in decibels; infinite where nothing is lost."""
    others, error = values[1:].double(), (eight_bits(values, grid) - values)[1:].double()
    return 10 * math.log10(others.square().sum() / error.square().sum()) if error.any() else math.inf


@rc_context(STYLE)
def small_floats(weights: Tensor) -> Callable[[str, float], Figure]:
    """Eight bits and one far outlier: a function from the grid's name and the outlier's power of ten.

    Left where the other weights (any shape) lie among the grid's magnitudes, right what is left of them.
    """
    w = weights.detach().flatten().float()
    curves = {grid: [others_decibel(with_outlier(w, power), grid) for power in OUTLIERS] for grid in GRIDS}
    figure = Figure((10, 3.8))
    left, right = figure.subplots(1, 2)
    edges = np.linspace(-12, 6, 145)
    bars = left.stairs(np.zeros(144), edges, fill=True, color=FLOAT)
    left.set(xlabel=_("magnitude, in powers of ten of the grid's unit"), ylabel=_("share in %"))
    left.set(xlim=(-12, 6), ylim=(0, 17), xticks=range(-12, 7, 2), yticks=range(0, 13, 2))
    ends = left.vlines([], 0, 1, color=QUANTIZED, linewidth=1.5, transform=left.get_xaxis_transform())
    (normal,) = left.plot([], [], color=CLIPPED, linestyle="--", linewidth=1.5, transform=left.get_xaxis_transform())
    names = {_("the weights but one"): FLOAT, _("the grid's smallest and largest"): QUANTIZED}
    names |= {_("below it all steps are equal"): CLIPPED}
    for place, (name, colour) in enumerate(names.items()):
        left.text(0.02, 0.93 - 0.08 * place, name, color=colour, transform=left.transAxes)
    right.set(xlabel=_("n: the outlier is 10**n times the largest weight"), ylabel=_("SQNR of the others in dB"))
    right.set(xlim=(0, 8), ylim=(-1, 45))
    for place, (grid, colour) in enumerate(zip(GRIDS, (FLOAT, QUANTIZED, ERROR))):
        right.plot(OUTLIERS, curves[grid], color=colour)
        right.text(0.97, 0.93 - 0.08 * place, grid, color=colour, ha="right", transform=right.transAxes)
    (now,) = right.plot([], [], "o", color=INK, markersize=9)
    figure.moves(bars, ends, normal, now)
    figure.takes_guess(right, "x")

    def draw(grid: str, power: float) -> Figure:
        moved = with_outlier(w, power)
        smallest, finest, largest = _magnitudes(grid)
        magnitudes = moved[1:].abs().double() / (moved.abs().max().double() / largest)
        places = np.log10(np.maximum(magnitudes.numpy(), 1e-11))
        bars.set_data(np.minimum(12, 100 * np.histogram(places, edges)[0] / len(places)))
        ends.set_segments([[(np.log10(end), 0), (np.log10(end), 0.7)] for end in (smallest, largest)])
        normal.set_data([np.log10(finest)] * 2, [0, 0.7])
        decibel = others_decibel(moved, grid)
        now.set_data([power], [decibel])
        gone = 100 * (eight_bits(moved, grid)[1:] == 0).double().mean().item()
        words = {
            "grid": grid,
            "times": f"{10**power:,.0f}" if power >= 2 else f"{10**power:.3g}",
            "decibel": decibel,
            "gone": gone,
        }
        figure.finding = _(
            "{grid}, one weight {times} times the largest: {decibel:.1f} dB for all others, {gone:.0f} % of them are 0"
        ).format(**words)
        figure.alt = _(
            "In units of the grid, its smallest magnitude is {smallest:.3g} and its largest {largest:,.0f}; its steps grow "
            "with the magnitude from {finest:.3g} on, and are equal below. The outlier pushes all others to the left."
        ).format(smallest=smallest, largest=largest, finest=finest)
        return figure

    return draw


def _magnitudes(grid: str) -> tuple[float, float, float]:
    """(the smallest magnitude of a grid but 0, that from which on its steps grow, the largest)."""
    if grid == "int8":
        return 1.0, 127.0, 127.0
    info = torch.finfo(float_format(grid))
    return info.smallest_normal * info.eps, info.smallest_normal, info.max
