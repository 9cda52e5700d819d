"""Lesson 1: numbers with few bits, and how far rounding moves them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from qlab.course.language import _
from qlab.course.plots.figure import CLIPPED, DPI, ERROR, FLOAT, QUANTIZED, STYLE, Figure


@rc_context(STYLE)
def rounding(signal: Callable[[np.ndarray], np.ndarray] = np.sin) -> Callable[[int, float], Figure]:
    """A signal between -1 and 1 and what a grid makes of it, above the error; a function from bits (>= 2) and shift.

    ``shift`` moves the grid by that share of a step: with 0, the value 0 is on the grid.
    """
    time = np.linspace(0, 2 * np.pi, 400)
    x = signal(time)
    picture = Figure((9, 4.2))
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(time, x, color=FLOAT)
    above.text(0.02, 0.06, _("signal"), color=FLOAT, transform=above.transAxes)
    above.text(0.09, 0.06, _("rounded"), color=QUANTIZED, transform=above.transAxes)
    above.set(ylim=(-1.5, 1.5), ylabel=_("value"), xlim=(0, time[-1]))
    above.grid(False)
    below.set(ylim=(-0.45, 0.45), ylabel=_("error"), xlabel=_("time"))
    levels = above.hlines([], 0, time[-1], color=CLIPPED, linewidth=0.4)
    (stairs,) = above.plot([], [], color=QUANTIZED)
    (error,) = below.plot([], [], color=ERROR)
    band = below.hlines([], 0, time[-1], color=CLIPPED, linestyle="--", linewidth=1)
    picture.moves(levels, stairs, error, band)

    def draw(bits: int, shift: float) -> Figure:
        step = 2 / (2**bits - 1)
        grid = (np.arange(2**bits) - 2 ** (bits - 1) + shift) * step
        rounded = grid[np.abs(x[:, None] - grid).argmin(1)]
        levels.set_segments([[(0, y), (time[-1], y)] for y in grid])
        stairs.set_data(time, rounded)
        error.set_data(time, x - rounded)
        band.set_segments([[(0, y), (time[-1], y)] for y in (-step / 2, step / 2)])
        worst, near = np.abs(x - rounded).max(), np.abs(grid).min()
        zero = _("0 is on the grid") if near < 1e-9 else _("0 becomes {near:.3f}").format(near=near)
        picture.finding = _("{bits} bits: step {step:.3f}, largest error {worst:.3f}; {zero}").format(
            bits=bits, step=step, worst=worst, zero=zero
        )
        picture.alt = _(
            "The stairs have {levels} levels. The error, below, stays between the dashed lines at half a step, "
            "{half:.3f}, above and below 0."
        ).format(levels=len(grid), half=step / 2)
        return picture

    return draw


@rc_context(STYLE)
def rounding_errors(values: Tensor) -> Callable[[int], Figure]:
    """How the rounding errors of ``values`` (any shape, all inside the grid) are spread; a function from bits."""
    x = values.detach().double().flatten().numpy()
    edges = np.linspace(-0.5, 0.5, 21)
    middle = (edges[1:] + edges[:-1]) / 2
    picture = Figure((9, 3.2))
    ax = picture.subplots()
    ax.set(xlim=(-0.55, 0.55), ylim=(0, 2), xlabel=_("error in steps"), ylabel=_("share, evenly spread = 1"))
    ax.axhline(1, color=FLOAT, linestyle="--")
    ax.text(0.54, 1.1, _("evenly spread"), color=FLOAT, ha="right")
    bars = ax.bar(middle, np.zeros(20), width=0.045, color=ERROR)
    picture.moves(*bars)

    def draw(bits: int) -> Figure:
        step = np.abs(x).max() / (2 ** (bits - 1) - 1)
        error = x / step - np.round(x / step)
        counts = np.histogram(error, edges)[0] / len(x) * 20
        for bar, height in zip(bars, counts):
            bar.set_height(min(height, 2))
        ratio = (error**2).mean() * 12
        decibels = 10 * np.log10((x**2).mean() / ((error * step) ** 2).mean())
        picture.finding = _(
            "{bits} bits: mean squared error {ratio:.2f} times step²/12, SQNR {decibels:.1f} dB"
        ).format(bits=bits, ratio=ratio, decibels=decibels)
        picture.alt = _(
            "Twenty bars of the errors from half a step below to half a step above; the lowest is {least:.2f} "
            "and the highest {most:.2f} times what an even spread would have."
        ).format(least=counts.min(), most=counts.max())
        return picture

    return draw


# bits of the exponent and of the fraction; torch's type of that format
FORMATS = {
    "float32": (8, 23, torch.float32), "bfloat16": (8, 7, torch.bfloat16), "float16": (5, 10, torch.float16),
    "fp8 e5m2": (5, 2, torch.float8_e5m2), "fp8 e4m3": (4, 3, torch.float8_e4m3fn),
}  # fmt: skip


@rc_context(STYLE)
def formats(scale: float = 1 / 32) -> Callable[[float], Figure]:
    """One number in six formats, bit by bit: what each of them stores; a function from the number.

    int8 stores the code round(number / ``scale``), between -128 and 127.
    """
    names = [*FORMATS, "int8"]
    picture = Figure((9, 3.2))
    picture.set_layout_engine("none")
    ax = picture.add_axes((0, 0, 1, 0.9), xlim=(0, 900), ylim=(len(names) - 0.4, -1))
    ax.set_axis_off()
    wide = 2 * 0.602 * 10 * DPI / 72  # pixels of a digit and a space in DejaVu Sans Mono of 10 points
    fields, stored = [], []
    for row, name in enumerate(names):
        exponent, fraction, *_dtype = FORMATS.get(name, (0, 7))
        ax.text(90, row, name, ha="right", va="center")
        starts = ((0, 1, CLIPPED), (1, 1 + exponent, FLOAT), (1 + exponent, 1 + exponent + fraction, QUANTIZED))
        fields.append([
            (ax.text(105 + wide * first, row, "", color=colour, va="center", family="DejaVu Sans Mono"), first, last)
            for first, last, colour in starts
        ])  # fmt: skip
        stored.append(ax.text(690, row, "", va="center"))
    for x, text, colour in ((105, _("sign"), CLIPPED), (150, _("exponent"), FLOAT), (330, _("fraction"), QUANTIZED)):
        ax.text(x, -0.7, text, color=colour, size=9)
    ax.text(690, -0.7, _("what is stored"), size=9)
    picture.moves(*(text for row in fields for text, *_ends in row), *stored)

    def draw(number: float) -> Figure:
        values = {name: _in_format(number, name, scale) for name in names}
        for row, (value, bits) in enumerate(values.values()):
            for text, first, last in fields[row]:
                text.set_text(" ".join(bits[first:last]))
            stored[row].set_text(f"{value:.9g}")
        off = {name: abs(value - number) for name, (value, *_bits) in values.items()}
        small = min(("bfloat16", "float16", "fp8 e5m2", "fp8 e4m3", "int8"), key=off.get)
        picture.finding = _("{number:g}: with at most 16 bits, {name} is nearest (off by {off:.2g})").format(
            number=number, name=small, off=off[small]
        )
        what = _("{name} stores {value:.7g}")
        picture.alt = "; ".join(what.format(name=name, value=value) for name, (value, *_bits) in values.items()) + "."
        return picture

    return draw


def _in_format(number: float, name: str, scale: float) -> tuple[float, str]:
    """(what the format stores for a number, its bits from the sign on)."""
    if name == "int8":
        code = int(np.clip(np.rint(number / scale), -128, 127))
        return code * scale, f"{code & 255:08b}"
    exponent, fraction, dtype = FORMATS[name]
    width = 1 + exponent + fraction
    value = torch.tensor([number], dtype=torch.float32).to(dtype)
    pattern = int(value.view({8: torch.uint8, 16: torch.int16, 32: torch.int32}[width]).item()) % 2**width
    return float(value.float()), f"{pattern:0{width}b}"
