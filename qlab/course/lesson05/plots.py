"""Lesson 5: one dot product in integers, sums that saturate, and how fast layers run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor
from torch.nn import functional as F

from qlab.affine import QParams, choose_qparams, dequantize, quantize
from qlab.bench import Roof
from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.int8.reference import fixed_point, rescale

LOWEST, HIGHEST = -(2**15), 2**15 - 1  # what an int16 holds


@dataclass(frozen=True)
class Integers:
    """One dot product in integers, from codes to the code of the result."""

    x: list[int]
    zero_point: int
    w: list[int]
    products: list[int]
    sums: list[int]  # running
    step: float  # what 1 in a sum is worth
    bias: int
    mantissa: int
    shift: int
    out_zero_point: int
    code: int
    out_step: float
    value: float


def in_integers(x: Tensor, w: Tensor, bias: float, ends: tuple[float, float], bits: int) -> Integers:
    """What an integer processor makes of ``sum(x * w) + bias``, every grid with that many bits.

    ``ends`` is the range of the result. The inputs get the range that they have.
    """
    x_qp = choose_qparams(float(x.min()), float(x.max()), bits)
    largest = float(w.abs().max())
    w_qp = choose_qparams(-largest, largest, bits, signed=True, symmetric=True, narrow_range=True)
    out_qp = choose_qparams(*ends, bits)
    codes, weights = quantize(x, x_qp).tolist(), quantize(w, w_qp).tolist()
    zero_point, step = int(x_qp.zero_point), float(x_qp.scale.double() * w_qp.scale.double())
    products = [(a - zero_point) * b for a, b in zip(codes, weights)]
    sums = np.cumsum(products).tolist()
    bias_code = round(bias / step)
    (mantissa,), shift = fixed_point(torch.tensor(step / float(out_qp.scale), dtype=torch.float64))
    scaled = int(rescale([torch.tensor(sums[-1] + bias_code)], [mantissa], shift))
    code = min(max(scaled + int(out_qp.zero_point), 0), out_qp.qmax)
    value = float(dequantize(torch.tensor(code), out_qp))
    return Integers(
        codes, zero_point, weights, products, sums, step, bias_code, int(mantissa), int(shift),
        int(out_qp.zero_point), code, float(out_qp.scale), value,
    )  # fmt: skip


@rc_context(STYLE)
def dot_product(x: Tensor, w: Tensor, bias: float, ends: tuple[float, float]) -> Callable[[int, int], Figure]:
    """One dot product on its way through the integers; a function from the step (0 to 6) and the bits (2 to 8).

    ``x`` and ``w`` have at most 5 values, with both signs; ``ends`` is the range of the result.
    """
    products = x * w
    result = float(products.sum() + bias)
    running = np.cumsum(products.tolist())
    image = Figure((9, 4))
    left, right = image.subplots(1, 2, width_ratios=(2.3, 1))
    rows = _table(left)
    for row, values in zip(rows, (x.tolist(), w.tolist(), products.tolist())):
        row.set_text(_row([f"{value:.2f}" for value in values], f"{running[-1]:.3f}" if row is rows[2] else ""))
    places = np.arange(1, len(x) + 1)
    right.plot(places, running, "o-", color=FLOAT, markersize=8)
    at = cache(lambda bits: in_integers(x, w, bias, ends, bits))
    heights = [
        total * found.step for found in map(at, range(2, 9)) for total in (*found.sums, found.sums[-1] + found.bias)
    ]
    low, high = min(*running, result, *heights), max(*running, result, *heights)
    room = 0.1 * (high - low)
    high += 2 * room  # for the key
    right.set(xlabel=_("terms added"), ylabel=_("running sum"), xlim=(0.5, len(x) + 1.6))
    right.set_ylim(low - room, high + room)
    right.set_xticks([*places, len(x) + 1], [*map(str, places), _("+ bias")])
    right.plot([len(x), len(x) + 1], [running[-1], result], "o--", color=FLOAT, markersize=8)
    (line,) = right.plot([], [], "s-", color=QUANTIZED, markersize=4)
    right.text(0.03, 0.98, _("in float"), color=FLOAT, va="top", transform=right.transAxes)
    right.text(0.03, 0.9, _("integers, each worth $s_x s_w$"), color=QUANTIZED, va="top", transform=right.transAxes)
    image.moves(line, *rows[3:])

    def draw(step: int, bits: int) -> Figure:
        found = at(bits)
        for since, (row, words) in enumerate(zip(rows[3:], _integer_rows(found))):
            row.set_text(words if step > since - (since > 0) else "")
        shown = found.sums if step >= 3 else []
        heights = [total * found.step for total in shown]
        heights += [(found.sums[-1] + found.bias) * found.step] if step >= 4 else []
        line.set_data(np.arange(1, len(heights) + 1), heights)
        image.finding = _finding(found, step, bits, running[-1], result, bias)
        image.alt = _alt(found, step, result)
        return image

    return draw


def _table(ax: Axes) -> list[Text]:
    """An empty table: a line of text for each row of the calculation."""
    ax.set(xlim=(0, 1), ylim=(9.5, -0.7))
    ax.set_axis_off()
    names = ("x", "w", "x · w", _("codes of x"), _("codes of w"), _("products"), _("running sum"))
    names += (_("+ bias"), _("requantized"), _("value"))
    rows = []
    for row, name in enumerate(names):
        colour = FLOAT if row < 3 else QUANTIZED
        ax.text(0, row, name, color=colour, va="center")
        rows.append(ax.text(0.19, row, "", color=colour, va="center", family="DejaVu Sans Mono"))
    return rows


def _row(cells: Sequence[str], last: str = "") -> str:
    """Cells of equal width, and the sum of the row behind them."""
    return "".join(f"{cell:>8}" for cell in cells) + (f"  = {last}" if last else "")


def _integer_rows(found: Integers) -> list[str]:
    """The rows below the float ones, in the order in which they are computed."""
    total = found.sums[-1] + found.bias
    return [
        *(_row([f"{value:,}" for value in row]) for row in (found.x, found.w, found.products, found.sums)),
        f"   {found.sums[-1]:,} + {found.bias:,} = {total:,}",
        f"   (({total:,} · {found.mantissa:,} + 2**{found.shift - 1}) >> {found.shift}) + {found.out_zero_point} = {found.code}",
        f"   ({found.code} - {found.out_zero_point}) · {found.out_step:.4f} = {found.value:.3f}",
    ]


def _finding(found: Integers, step: int, bits: int, plain: float, result: float, bias: float) -> str:
    total = found.sums[-1] + found.bias
    words = {
        "plain": plain, "bias": bias, "result": result, "bits": bits, "count": len(found.x), "zero": found.zero_point,
        "largest": max(map(abs, found.products)), "wide": max(map(abs, found.products)).bit_length() + 1,
        "sum": found.sums[-1], "sum_wide": max(map(abs, found.sums)).bit_length() + 1, "bias_code": found.bias,
        "total": total, "factor": found.mantissa / 2**found.shift, "code": found.code, "value": found.value,
        "off": abs(found.value - result), "steps": abs(found.value - result) / found.out_step, "step": found.out_step,
    }  # fmt: skip
    return (
        _("Float: {plain:.3f} and the bias {bias:.2f} make {result:.3f}"),
        _("Step 1: codes of {bits} bits; the value 0 of x has the code {zero}"),
        _("Step 2: integer products, up to {largest:,}: {wide} bits with the sign"),
        _("Step 3: the sum of {count} products is {sum:,}: {sum_wide} bits with the sign, of 32"),
        _("Step 4: the bias is {bias_code:,} steps of the sum, so the sum is {total:,}"),
        _("Step 5: {total:,} times {factor:.6f}, as a fixed-point number, and the zero point give code {code}"),
        _(
            "Step 6: integers say {value:.3f}, float says {result:.3f}: off by {off:.3f} ({steps:.2f} steps of {step:.3f})"
        ),
    )[step].format(**words)


def _alt(found: Integers, step: int, result: float) -> str:
    words = {
        "x": ", ".join(map(str, found.x)), "w": ", ".join(map(str, found.w)), "sum": found.sums[-1],
        "worth": found.sums[-1] * found.step, "result": result,
    }  # fmt: skip
    said = [_("A table of the float numbers x, w and their products; beside it their running sum, to {result:.3f}.")]
    said += [_("The codes of x are {x}; those of w are {w}.")] * (step >= 1)
    said += [_("The integer sum {sum:,} stands for {worth:.3f}; its line lies on the float one or near it.")] * (
        step >= 3
    )
    return " ".join(said).format(**words)


# --- saturation


def saturating_sums(q: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(pairs, sums) as processors without VNNI add: products in pairs, each pair an int16 that saturates.

    q: integer codes (rows, K); weight: integer codes (outputs, K). Returns the exact pairs (rows, outputs,
    ceil(K / 2)), and the sums of the pairs after saturation (rows, outputs).

    >>> saturating_sums(torch.tensor([[255, 255, 1]]), torch.tensor([[127, 127, 1]]))
    (tensor([[[64770,     1]]]), tensor([[32768]]))
    """
    products = q[:, None].to(torch.int64) * weight
    pairs = F.pad(products, (0, products.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return pairs, pairs.clamp(LOWEST, HIGHEST).sum(-1)


@rc_context(STYLE)
def saturation(x: Tensor, weight: Tensor) -> Callable[[int, int], Figure]:
    """Pairs of products in 16 bits; a function from the bits of x and the largest code of the weights.

    x: rows of inputs, floats (rows, K); weight: floats (outputs, K).
    """
    edges = np.linspace(-(2**16), 2**16, 65)
    middle = (edges[1:] + edges[:-1]) / 2
    outside = (middle > HIGHEST) | (middle < LOWEST)
    image = Figure((9, 3.9))
    left, right = image.subplots(1, 2, width_ratios=(3, 2))
    left.set(yscale="log", xlim=edges[[0, -1]], ylim=(0.5, 4 * x.shape[0] * weight.shape[0] * x.shape[1] / 2))
    left.set(xlabel=_("sum of two products"), ylabel=_("how many pairs (log)"))
    left.set_xticks([-65536, LOWEST, 0, HIGHEST, 65536], ["-65,536", f"{LOWEST:,}", "0", f"{HIGHEST:,}", "65,536"])
    fits, saturates = (left.stairs(edges[1:], edges, fill=True, color=colour) for colour in (QUANTIZED, CLIPPED))
    for end in (LOWEST, HIGHEST):
        left.axvline(end, color=CLIPPED, linestyle="--", linewidth=1)
    for place, words, colour in ((0.25, _("saturates "), CLIPPED), (0.5, _("fits 16 bits"), QUANTIZED)):
        left.text(
            place,
            0.97,
            words,
            color=colour,
            va="top",
            ha="right" if place < 0.5 else "center",
            transform=left.transAxes,
        )
    left.text(0.75, 0.97, _(" saturates"), color=CLIPPED, va="top", transform=left.transAxes)
    outputs = x @ weight.T
    far = 1.15 * float(outputs.abs().max())
    right.set(xlim=(-far, far), ylim=(-far, far), xlabel=_("output, exact sum"), ylabel=_("output, saturated sum"))
    right.axline((0, 0), slope=1, color=CLIPPED, linewidth=0.8)
    right.text(0.03, 0.97, _("on the line: nothing lost"), color=CLIPPED, va="top", transform=right.transAxes)
    (dots,) = right.plot([], [], "o", color=ERROR, markersize=3, linestyle="")
    image.moves(fits, saturates, dots)

    @cache
    def measured(bits: int, largest: int) -> tuple[np.ndarray, float, float, Tensor, Tensor]:
        x_qp, codes = _grid(x, bits), _codes(weight, largest)
        pairs, sums = saturating_sums(quantize(x, x_qp), codes)
        counts, exact = np.histogram(pairs.numpy(), edges)[0], pairs.sum(-1)
        share = float(((pairs > HIGHEST) | (pairs < LOWEST)).double().mean())
        zero, worth = int(x_qp.zero_point) * codes.sum(1), float(x_qp.scale) * weight.abs().amax(1) / largest
        reals = [((total - zero) * worth).flatten() for total in (exact, sums)]
        return counts, share, float((exact != sums).double().mean()), *reals

    def draw(bits: int, largest: int) -> Figure:
        counts, share, wrong, exact, found = measured(bits, largest)
        fits.set_data(np.where(outside, 0, counts))
        saturates.set_data(np.where(outside, counts, 0))
        worst = (exact - found).abs().topk(min(50, len(exact))).indices
        some = torch.cat([torch.arange(0, len(exact), max(1, len(exact) // 1500)), worst])
        dots.set_data(exact[some], found[some])
        words = {"bits": bits, "share": 100 * share, "wrong": 100 * wrong, "largest": largest}
        words |= {"off": float((exact - found).abs().max()), "reach": float(exact.abs().max())}
        words["most"] = 2 * (2**bits - 1) * largest
        image.finding = _(
            "{bits} bits: {share:.2g} % of the pairs saturate, {wrong:.2g} % of the outputs are wrong, by up to {off:.2f}"
        ).format(**words)
        image.alt = _(
            "Two products of codes up to {bits} bits and weights up to {largest} reach {most:,} at most; an int16 "
            "ends at 32,767. The worst output is wrong by {off:.2f}; the largest one is {reach:.2f}."
        ).format(**words)
        return image

    return draw


def _grid(x: Tensor, bits: int) -> QParams:
    return choose_qparams(min(0.0, float(x.min())), float(x.max()), bits)


def _codes(weight: Tensor, largest: int) -> Tensor:
    return torch.round(weight / weight.abs().amax(1, keepdim=True) * largest).to(torch.int64)


# --- speed


@dataclass(frozen=True)
class LayerSpeed:
    """One layer, timed: operations (a multiplication and an addition are two), bytes moved and seconds."""

    name: str
    operations: int
    float_bytes: int
    int8_bytes: int
    float_seconds: float
    int8_seconds: float

    @property
    def speedup(self) -> float:
        """How many times as fast the int8 layer is."""
        return self.float_seconds / self.int8_seconds


@rc_context(STYLE)
def roofline(layers: Sequence[LayerSpeed], roof: Roof) -> Figure:
    """Operations a second against operations a byte, each layer in float and in int8, under the processor's roofs."""
    image = Figure((9, 4.5))
    ax = image.subplots()
    ax.set(xscale="log", yscale="log", xlabel=_("operations per byte moved"), ylabel=_("billion operations a second"))
    for layer in layers:
        places = [layer.operations / moved for moved in (layer.float_bytes, layer.int8_bytes)]
        speeds = [layer.operations / seconds / 1e9 for seconds in (layer.float_seconds, layer.int8_seconds)]
        ax.plot(places, speeds, color=CLIPPED, linewidth=0.8)
        for place, speed, colour in zip(places, speeds, (FLOAT, QUANTIZED)):
            ax.plot(place, speed, "o", color=colour, markersize=8)
        ax.annotate(layer.name, (places[1], speeds[1]), (8, -3), textcoords="offset points", va="top")
    ax.margins(x=0.14, y=0.16)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())
    for row, (words, colour) in enumerate(((_("● in float32"), FLOAT), (_("● in int8"), QUANTIZED))):
        ax.text(0.99, 0.03 + 0.06 * row, words, color=colour, ha="right", transform=ax.transAxes)
    _roofs(ax, roof)
    slow, fast = (pick(layers, key=lambda layer: layer.speedup) for pick in (min, max))
    words = {"slow": slow.name, "least": slow.speedup, "fast": fast.name, "most": fast.speedup}
    image.finding = _("int8 is {least:.2g} times as fast on {slow}, {most:.2g} times on {fast}").format(**words)
    image.alt = _roofline_alt(layers, roof)
    return image


def _roofs(ax: Axes, roof: Roof) -> None:
    """What this processor reached: a slope where memory sets the pace, a level where the arithmetic does."""
    intensities = np.geomspace(*ax.get_xlim(), 200)
    for operations, name, colour, beside, side in (
        (roof.float_operations, _("float32 roof"), FLOAT, -4, "top"),
        (roof.int8_operations, _("int8 roof"), QUANTIZED, 4, "bottom"),
    ):  # each name at the left end of its level: below that of float, above that of int8
        heights = np.minimum(operations, intensities * roof.bandwidth) / 1e9
        ax.plot(intensities, heights, "--", color=colour, linewidth=1.2)
        corner = (operations / roof.bandwidth, heights[-1])
        ax.annotate(name, corner, (6, beside), textcoords="offset points", color=colour, va=side)


def _roofline_alt(layers: Sequence[LayerSpeed], roof: Roof) -> str:
    """Each layer's speeds, and the roofs, in words."""
    what = _("{name}: float {float:.3g}, int8 {int8:.3g} billion operations a second")
    said = []
    for layer in layers:
        speeds = (layer.operations / seconds / 1e9 for seconds in (layer.float_seconds, layer.int8_seconds))
        said.append(what.format(name=layer.name, **dict(zip(("float", "int8"), speeds))))
    words = {"float": roof.float_operations / 1e9, "int8": roof.int8_operations / 1e9, "memory": roof.bandwidth / 1e9}
    return _(
        "Each layer is a line from its float point to its int8 point. {layers}. The dashed lines are what this "
        "processor reached: float {float:.3g}, int8 {int8:.3g} billion operations and {memory:.3g} GB a second."
    ).format(layers="; ".join(said), **words)
