"""Lesson 10: perplexity against bits, groups of weights, and outliers that are moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from qlab.affine import round_rows
from qlab.course.figure import CLIPPED, ERROR, FLOAT, INK, LINES, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.granularity import PerGroup
from qlab.llm.layers import round_weight, weight_qparams
from qlab.llm.outliers import smoothing_scale

ALPHAS = tuple(step / 20 for step in range(21))
GRID_BITS = 16 + 16  # of a scale and a zero point, as torch's 4-bit kernel keeps them


def stored_bits(bits: int, size: int) -> float:
    """Bits that a weight takes, with its share of the grid that a group of ``size`` weights has."""
    return bits + GRID_BITS / size


@rc_context(STYLE)
def bits_of_weights(
    perplexity: Mapping[tuple[str, int], float], float_perplexity: float, written: Mapping[int, str], shown: str
) -> Callable[[int], Figure]:
    """Perplexity against the bits of the weights; a function from bits.

    ``perplexity``: by (kind of scale, bits), of at most three kinds. ``written``: what the model writes with as many bits, its scales of the kind
    ``shown``. What is more than 20 times the float model's perplexity is drawn there.
    """
    kinds = list(dict.fromkeys(kind for kind, _bits in perplexity))
    bits_there = sorted({bits for _kind, bits in perplexity})
    top = min(20 * float_perplexity, 1.2 * max(perplexity.values()))
    image = Figure((9, 3.6))
    left, right = image.subplots(1, 2, width_ratios=(3, 4))
    left.set(yscale="log", ylim=(0.9 * float_perplexity, top), xlabel=_("bits of a weight"), ylabel=_("perplexity"))
    left.set(xlim=(bits_there[0] - 0.3, bits_there[-1] + 0.3), xticks=bits_there)
    ticks = [float_perplexity * factor for factor in (1, 1.5, 2, 3, 5, 10) if float_perplexity * factor < top]
    left.set_yticks(ticks, [f"{tick:.1f}" for tick in ticks])
    left.minorticks_off()
    left.axhline(float_perplexity, color=FLOAT, linestyle="--")
    for kind, style, colour in zip(kinds, ("s--", "^-", "o-"), (CLIPPED, INK, QUANTIZED)):
        heights = [min(perplexity[kind, bits], top) for bits in bits_there]
        left.plot(bits_there, heights, style, color=colour, label=kind)
    left.legend(loc="upper right", bbox_to_anchor=(0.96, 1), fontsize=9)
    now = left.axvline(bits_there[-1], color=ERROR)
    right.set_axis_off()
    right.text(0, 1, _("the model goes on writing:"), va="top", color=CLIPPED)
    text = right.text(0, 0.88, "", va="top", color=QUANTIZED, family="DejaVu Sans Mono", fontsize=9, parse_math=False)
    image.moves(now, text)
    image.takes_guess(left, "x")

    def draw(bits: int) -> Figure:
        now.set_xdata([bits, bits])
        text.set_text(written[bits])
        finding = _("{bits} bits: perplexity {found:.2f} ({kind}); in float {whole:.2f}")
        image.finding = finding.format(bits=bits, found=perplexity[shown, bits], kind=shown, whole=float_perplexity)
        others = "; ".join(f"{kind} {perplexity[kind, bits]:.2f}" for kind in kinds)
        lines = " / ".join(written[bits].splitlines())
        image.alt = _("Perplexity with {bits} bits: {others}. The model writes: {lines}").format(
            bits=bits, others=others, lines=lines
        )
        return image

    return draw


@rc_context(STYLE)
def weight_groups(weight: Tensor, sizes: Sequence[int]) -> Callable[[int, int], Figure]:
    """Groups of a row of weights, each with its own grid; a function from bits and the size of a group.

    ``sizes`` divide the length of the rows of ``weight`` (rows, columns). The row shown is the one with the largest
    weight for its standard deviation.
    """
    weight = weight.detach().float()
    row = int((weight.abs().amax(1) / weight.std(1)).argmax())
    w, places = weight[row].numpy(), np.arange(weight.shape[1])
    image = Figure((9, 3.6))
    left, right = image.subplots(1, 2, width_ratios=(3, 2))
    left.plot(places, w, ".", color=FLOAT, markersize=4, label=_("a weight"))
    left.set(xlabel=_("column"), ylabel=_("weight"), xlim=(0, len(w)), ylim=(1.15 * w.min(), 1.3 * w.max()))
    edges = np.arange(len(w) + 1) - 0.5
    steps = left.stairs(w, edges, fill=True, color=QUANTIZED, alpha=0.5, label=_("one step of its grid, from 0 up"))
    left.legend(loc="upper right", ncols=2, fontsize=9)
    right.set(xlabel=_("bits a weight, with scales"), ylabel=_("error (% of the weights)"), xlim=(1.8, 11))
    right.set(yscale="log", ylim=(0.2, 90))
    right.set_yticks((0.3, 1, 3, 10, 30), ("0.3", "1", "3", "10", "30"))
    right.minorticks_off()
    (line,) = right.plot([], [], "o-", color=CLIPPED)
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=11)
    right.text(0.98, 0.95, _("a curve: one number of bits;\nright end: groups of {least}").format(least=min(sizes)), color=CLIPPED, ha="right", va="top",
               transform=right.transAxes)  # fmt: skip
    image.moves(steps, line, now)

    @cache
    def errors(bits: int) -> list[float]:
        return [
            100 * float((round_weight(weight, bits, PerGroup(size)) - weight).norm() / weight.norm()) for size in sizes
        ]

    @cache
    def step_of(bits: int, size: int) -> np.ndarray:
        return weight_qparams(weight[row : row + 1], bits, PerGroup(size)).scale[0].repeat_interleave(size).numpy()

    for bits in range(2, 9):
        right.plot([stored_bits(bits, each) for each in sizes], errors(bits), color=LINES, zorder=1)

    def draw(bits: int, size: int) -> Figure:
        heights = step_of(bits, size)
        steps.set_data(heights)
        stored = [stored_bits(bits, each) for each in sizes]
        line.set_data(stored, errors(bits))
        chosen = list(sizes).index(size)
        now.set_data([stored[chosen]], [errors(bits)[chosen]])
        words = {"bits": bits, "size": size, "stored": stored[chosen], "error": errors(bits)[chosen]}
        finding = _("{bits} bits in groups of {size}: {stored:.2f} bits a weight, error {error:.2g} %")
        image.finding = finding.format(**words)
        alt = _("The steps of this row's grids are between {low:.3f} and {high:.3f}. One group a row has an error of "
                "{whole:.2g} %.")  # fmt: skip
        image.alt = alt.format(low=heights.min(), high=heights.max(), whole=errors(bits)[list(sizes).index(max(sizes))])
        return image

    return draw


def w8a8_error(x: Tensor, weight: Tensor, only: Tensor | slice = slice(None)) -> float:
    """Percent of a linear layer's output that W8A8 gets wrong: a scale for each token, and one for each row.

    ``only`` these channels (a mask or indices) count in the output and in its error; all of them share the scales.
    """
    rounded = [codes * steps for codes, steps in (round_rows(tensor, 127) for tensor in (x, weight))]
    right = x[:, only] @ weight[:, only].T
    return 100 * float((rounded[0][:, only] @ rounded[1][:, only].T - right).norm() / right.norm())


def others(columns: int, channels: Sequence[int]) -> Tensor:
    """Which of the columns are none of ``channels``, as a mask.

    >>> others(4, (1, 2))
    tensor([ True, False, False,  True])
    """
    return torch.ones(columns, dtype=torch.bool).index_fill_(0, torch.tensor(list(channels)), False)


def _smoothings(x: Tensor, weight: Tensor, channels: Sequence[int]) -> tuple[Callable, Callable]:
    """What :func:`smoothing` draws: (alpha, size) -> each channel's largest input and weight, the errors of the ordinary
    channels and of all; and size -> both errors without smoothing.
    """
    ordinary = others(x.shape[1], channels)

    def errors(x: Tensor, weight: Tensor) -> tuple[float, float]:
        return w8a8_error(x, weight, ordinary), w8a8_error(x, weight)

    @cache
    def made(size: int) -> Tensor:
        return x * torch.where(ordinary, 1.0, 2.0**size)

    @cache
    def smoothed(alpha: float, size: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
        largest = made(size).abs().amax(0), weight.abs().amax(0)
        scale = smoothing_scale(*largest, alpha)
        found = errors(made(size) / scale, weight * scale)
        return (largest[0] / scale).numpy(), (largest[1] * scale).numpy(), found

    return smoothed, cache(lambda size: errors(made(size), weight))


@rc_context(STYLE)
def smoothing(x: Tensor, weight: Tensor, channels: Sequence[int]) -> Callable[[float, int], Figure]:
    """Outliers moved from activations into weights; a function from alpha and how large the outliers are.

    ``x`` (tokens, columns) and ``weight`` (rows, columns) of a linear layer. ``channels`` of x are made 2**size times as
    large. The weights stay, so the outliers make up most of the output: what rounding costs the ordinary channels shows
    in their own part of it alone. Both errors are drawn, each relative to its part.
    """
    smoothed, plain = _smoothings(x.detach().float(), weight.detach().float(), channels)
    places = np.arange(x.shape[1])
    image = Figure((9.6, 4.2))
    left, right = image.subplots(1, 2, width_ratios=(5, 4))
    left.set(
        yscale="log", ylim=(5e-2, 2e3), xlim=(-2, len(places) + 1), xlabel=_("channel"), ylabel=_("largest magnitude")
    )
    (inputs,) = left.plot([], [], "o", color=QUANTIZED, markersize=4, label=_("activations"))
    (weights,) = left.plot([], [], "s", color=FLOAT, markersize=7, fillstyle="none", mew=1, label=_("weights"))
    left.legend(loc="upper right", ncols=2)
    right.set(xlim=(-0.05, 1.05), xlabel=_("alpha"), ylabel=_("error (%)"), yscale="log", ylim=(0.2, 300))
    right.set_yticks((0.3, 1, 3, 10, 30, 100), ("0.3", "1", "3", "10", "30", "100"))
    right.minorticks_off()
    (curve,) = right.plot([], [], color=ERROR, label=_("ordinary channels"))
    (without,) = right.plot([-0.05, 1.05], [1, 1], "--", color=ERROR, label=_("they, without smoothing"))
    (whole,) = right.plot([], [], ":", color=CLIPPED, label=_("all, mostly outliers"))
    (now,) = right.plot([], [], "o", color=ERROR, markersize=10)
    right.legend(loc="upper center")
    image.moves(inputs, weights, curve, without, whole, now)

    def draw(alpha: float, size: int) -> Figure:
        large, heavy, (error, all_error) = smoothed(alpha, size)
        inputs.set_data(places, large)
        weights.set_data(places, heavy)
        for number, line in enumerate((curve, whole)):
            line.set_data(ALPHAS, [smoothed(each, size)[2][number] for each in ALPHAS])
        without.set_ydata([plain(size)[0]] * 2)
        now.set_data([alpha], [error])
        finding = _(
            "alpha {alpha:.2f}, outliers {times} times: ordinary channels' error {error:.2g} %, unsmoothed {plain:.2g} %"
        )
        image.finding = finding.format(alpha=alpha, times=2**size, error=error, plain=plain(size)[0])
        alt = _(
            "The largest activation is {x:.3g} and the median channel has {xm:.3g}; of the weights {w:.3g} and {wm:.3g}. "
            "Of the whole output, outliers and all, {whole:.2g} % are wrong."
        )
        image.alt = alt.format(x=large.max(), xm=np.median(large), w=heavy.max(), wm=np.median(heavy), whole=all_error)
        return image

    for size in range(9):  # before a slider waits for them
        for alpha in ALPHAS:
            smoothed(alpha, size)
    return draw
