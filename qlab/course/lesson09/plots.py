"""Lesson 9: grids of few values, equal steps or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from qlab import observers
from qlab.affine import fake_quantize
from qlab.codebook import kmeans, look_up
from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
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
    figure = Figure((9, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.hist(w.numpy(), 81, color=FLOAT, alpha=0.7)
    left.set(xlabel=_("weight"), ylabel=_("how many"), ylim=(0, left.get_ylim()[1] * 1.15))
    left.text(0.02, 0.93, _("codebook"), color=QUANTIZED, transform=left.transAxes)
    left.text(0.02, 0.85, _("equal steps"), color=CLIPPED, transform=left.transAxes)
    places = {"transform": left.get_xaxis_transform()}
    centroids = left.vlines([], 0, 1, color=QUANTIZED, linewidth=1.5, **places)
    (steps,) = left.plot([], [], "|", color=CLIPPED, markersize=14, markeredgewidth=2, **places)
    right.set(xlabel=_("iterations of k-means"), ylabel=_("squared error, in % of the weights'"), yscale="log")
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


@rc_context(STYLE)
def few_values(weights: Tensor, shown: int = 12) -> Callable[[float], Figure]:
    """Filters made ternary, or with threshold 0 binary; a function from the threshold, in mean magnitudes.

    ``weights``: (filters, inputs, height, width), each filter with a threshold and a scale of its own. The figure
    has the first input's part of some filters.
    """
    w = weights.detach().double().flatten(1).numpy()
    mean = np.abs(w).mean(1, keepdims=True)
    figure = Figure((9, 3.6))
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
        kept = np.abs(w) >= threshold * mean
        scale = (np.abs(w) * kept).sum(1, keepdims=True) / np.maximum(1, kept.sum(1, keepdims=True))
        values = np.where(w < 0, -1, 1) * kept * scale
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
