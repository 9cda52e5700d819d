"""Lesson 1: numbers with few bits, and how far rounding moves them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from qlab.course.figure import CLIPPED, DPI, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _


def rounding_texts() -> dict[str, str]:
    """What is said of a rounded wave, here and in js/rounding.js."""
    return {
        "signal": _("signal"), "rounded": _("rounded"), "value": _("value"), "error": _("error"), "time": _("time"),
        "exact": _("0 is on the grid"), "moved": _("0 becomes {near:.3f}"),
        "finding": _("{bits} bits: step {step:.3f}, largest error {worst:.3f}; {zero}"),
        "alt": _("The grid has {levels} rungs, and the stairs use {used} of them. The error, below, stays between the dashed "
                 "lines at half a step, {half:.3f}, above and below 0."),
    }  # fmt: skip


def rounded(x: np.ndarray, bits: int, shift: float) -> tuple[float, np.ndarray, np.ndarray]:
    """(step, rungs, what becomes of x) for 2**bits values from about -1 to 1, moved by ``shift`` steps."""
    step = 2 / (2**bits - 1)
    rungs = (np.arange(2**bits) - 2 ** (bits - 1) + shift) * step
    return step, rungs, rungs[np.abs(x[:, None] - rungs).argmin(1)]


@rc_context(STYLE)
def rounding() -> Callable[[int, float], Figure]:
    """A sine and what a grid makes of it, above the error; a function from bits (>= 2) and shift.

    ``shift`` moves the grid by that share of a step: with 0, the value 0 is on the grid.
    """
    texts = rounding_texts()
    time = np.linspace(0, 2 * np.pi, 400)
    x = np.sin(time)
    image = Figure((9, 4.2))
    above, below = image.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(time, x, color=FLOAT)
    above.text(0.02, 0.06, texts["signal"], color=FLOAT, transform=above.transAxes)
    above.text(0.09, 0.06, texts["rounded"], color=QUANTIZED, transform=above.transAxes)
    above.set(ylim=(-1.5, 1.5), ylabel=texts["value"], xlim=(0, time[-1]))
    above.grid(False)
    below.set(ylim=(-0.45, 0.45), ylabel=texts["error"], xlabel=texts["time"])
    levels = above.hlines([], 0, time[-1], color=CLIPPED, linewidth=0.4)
    (stairs,) = above.plot([], [], color=QUANTIZED)
    (error,) = below.plot([], [], color=ERROR)
    band = below.hlines([], 0, time[-1], color=CLIPPED, linestyle="--", linewidth=1)
    image.moves(levels, stairs, error, band)

    def draw(bits: int, shift: float) -> Figure:
        step, rungs, values = rounded(x, bits, shift)
        levels.set_segments([[(0, y), (time[-1], y)] for y in rungs])
        levels.set_linewidth(min(0.4, 13 / len(rungs)))  # thinner where they touch
        stairs.set_data(time, values)
        error.set_data(time, x - values)
        band.set_segments([[(0, y), (time[-1], y)] for y in (-step / 2, step / 2)])
        worst, near = np.abs(x - values).max(), np.abs(rungs).min()
        zero = texts["exact"] if near < 1e-9 else texts["moved"].format(near=near)
        image.finding = texts["finding"].format(bits=bits, step=step, worst=worst, zero=zero)
        image.alt = texts["alt"].format(levels=len(rungs), used=len(np.unique(values)), half=step / 2)
        return image

    return draw


@rc_context(STYLE)
def rounding_errors(values: Tensor) -> Callable[[int], Figure]:
    """How the rounding errors of ``values`` (any shape, all inside the grid) are spread; a function from bits."""
    x = values.detach().double().flatten().numpy()
    edges = np.linspace(-0.5, 0.5, 21)
    middle = (edges[1:] + edges[:-1]) / 2
    image = Figure((9, 3.2))
    ax = image.subplots()
    ax.set(xlim=(-0.55, 0.55), ylim=(0, 2), xlabel=_("error in steps"), ylabel=_("share, evenly spread = 1"))
    ax.axhline(1, color=FLOAT, linestyle="--")
    ax.text(0.54, 1.1, _("evenly spread"), color=FLOAT, ha="right")
    bars = ax.bar(middle, np.zeros(20), width=0.045, color=ERROR)
    image.moves(*bars)

    def draw(bits: int) -> Figure:
        step = np.abs(x).max() / (2 ** (bits - 1) - 1)
        error = x / step - np.round(x / step)
        counts = np.histogram(error, edges)[0] / len(x) * 20
        for bar, height in zip(bars, counts):
            bar.set_height(min(height, 2))
        ratio = (error**2).mean() * 12
        decibels = 10 * np.log10((x**2).mean() / ((error * step) ** 2).mean())
        image.finding = _("{bits} bits: mean squared error {ratio:.2f} times step²/12, SQNR {decibels:.1f} dB").format(
            bits=bits, ratio=ratio, decibels=decibels
        )
        image.alt = _(
            "Twenty bars of the errors from half a step below to half a step above; the lowest is {least:.2f} "
            "and the highest {most:.2f} times what an even spread would have."
        ).format(least=counts.min(), most=counts.max())
        return image

    return draw


# bits of the exponent and of the fraction; torch's type of that format
FORMATS = {
    "float32": (8, 23, torch.float32), "bfloat16": (8, 7, torch.bfloat16), "float16": (5, 10, torch.float16),
    "fp8 e5m2": (5, 2, torch.float8_e5m2), "fp8 e4m3": (4, 3, torch.float8_e4m3fn),
}  # fmt: skip
INT8_SCALE = 1 / 32  # int8 stores the code round(number / scale), between -128 and 127


def formats_texts() -> dict[str, str]:
    """What is said of a number in six formats, here and in js/formats.js."""
    return {
        "sign": _("sign"), "exponent": _("exponent"), "fraction": _("fraction"), "code": _("code"),
        "bit": _("{name} bit {place} {field}, {bit}"), "none": _("no pattern"),
        "nearest": _("{number:g}: with at most 16 bits, {name} is nearest (off by {off:.2g})"),
        "exact": _("{number:g}: with at most 16 bits, exact in {names}"),
        "infinite": _("{number:g}: fp8 e4m3 and int8 have no infinity"),
        "nan": _("nan, not a number: int8 has no pattern for it"),
        "what": _("{name} stores {value:.9g}"), "nothing": _("{name} has no pattern for it"),
    }  # fmt: skip


@rc_context(STYLE)
def formats() -> Callable[[float], Figure]:
    """One number in six formats, bit by bit: what each of them stores; a function from the number."""
    texts = formats_texts()
    names = [*FORMATS, "int8"]
    image = Figure((9, 3.2))
    image.set_layout_engine("none")
    ax = image.add_axes((0, 0, 1, 0.9), xlim=(0, 900), ylim=(len(names) - 0.4, -1))
    ax.set_axis_off()
    wide = 2 * round(0.602 * 10 * DPI / 72)  # pixels of a digit and a space in DejaVu Sans Mono of 10 points
    fields, stored = [], []
    for row, name in enumerate(names):
        exponent, fraction, *_dtype = FORMATS.get(name, (0, 7))
        ax.text(90, row, name, ha="right", va="center")
        starts = ((0, 1, CLIPPED), (1, 1 + exponent, FLOAT), (1 + exponent, 1 + exponent + fraction, QUANTIZED))
        fields.append([
            (ax.text(105 + wide * first, row, "", color=colour, va="center", family="DejaVu Sans Mono"), first, last)
            for first, last, colour in starts
        ])  # fmt: skip
        stored.append(ax.text(765, row, "", va="center"))
    for x, text, colour in ((105, "sign", CLIPPED), (150, "exponent", FLOAT), (330, "fraction", QUANTIZED)):
        ax.text(x, -0.7, texts[text], color=colour, size=9)
    ax.text(765, -0.7, _("what is stored"), size=9)
    image.moves(*(text for row in fields for text, *_ends in row), *stored)

    def draw(number: float) -> Figure:
        values = {name: in_format(number, name) for name in names}
        for row, (value, bits) in enumerate(values.values()):
            for text, first, last in fields[row]:
                text.set_text(" ".join(bits[first:last]))
            stored[row].set_text(texts["none"] if value is None else f"{value:.9g}")
        image.finding = finding(number, {name: value for name, (value, _bits) in values.items()})
        what = {name: texts["nothing" if value is None else "what"] for name, (value, _bits) in values.items()}
        words = (what[name].format(name=name, value=value) for name, (value, _bits) in values.items())
        image.alt = "; ".join(words) + "."
        return image

    def finding(number: float, values: dict[str, float | None]) -> str:
        if not math.isfinite(number):
            return texts["nan" if math.isnan(number) else "infinite"].format(number=number)
        off = {
            name: abs(value - number) for name, value in values.items() if name != "float32" and math.isfinite(value)
        }
        exact = ", ".join(name for name in off if off[name] == 0)
        if exact:
            return texts["exact"].format(number=number, names=exact)
        nearest = min(off, key=off.get)
        return texts["nearest"].format(number=number, name=nearest, off=off[nearest])

    return draw


def in_format(number: float, name: str) -> tuple[float | None, str]:
    """(what the format stores for a number, its bits from the sign on); (None, dashes) where it has no pattern."""
    if name == "int8":
        if math.isnan(number):
            return None, "-" * 8
        code = int(np.clip(np.rint(number / INT8_SCALE), -128, 127))
        return code * INT8_SCALE, f"{code & 255:08b}"
    exponent, fraction, dtype = FORMATS[name]
    width = 1 + exponent + fraction
    single = torch.tensor([number], dtype=torch.float32)
    if name == "fp8 e4m3":
        single = single.clamp(-448, 448)  # it has no infinity; older versions of torch make nan of what is larger
    value = single.to(dtype)
    pattern = int(value.view({8: torch.uint8, 16: torch.int16, 32: torch.int32}[width]).item()) % 2**width
    return float(value.float()), f"{pattern:0{width}b}"
