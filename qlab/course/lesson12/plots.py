"""Lesson 12: one layer as the nodes of an ONNX graph, and what quantization saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from matplotlib import rc_context
from torch import Tensor

from qlab.affine import QParams, choose_qparams, quantize
from qlab.course.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.course.lesson12.savings import Estimate, Machine, Workload, estimate
from qlab.int8.reference import Engine

STEPS = 7


@dataclass(frozen=True)
class Nodes:
    """What each node of a quantized linear layer with a ReLU gives, in order, and the integer kernel's codes."""

    x: Tensor  # codes
    floats: Tensor
    weight: Tensor  # of the first output
    bias_codes: Tensor
    bias: Tensor  # the floats that they stand for
    gemm: Tensor
    relu: Tensor
    quantized: Tensor  # codes up to 255
    clipped: Tensor  # codes of the grid
    kernel: Tensor


def nodes(x: Tensor, weight: Tensor, bias: Tensor, top: float, bits: int) -> Nodes:
    """A linear layer and its ReLU, node by node. ``top``: the largest output that calibration saw."""
    x_qp = choose_qparams(-1.0, 1.0, bits)
    limit = float(weight.abs().max())
    w_qp = choose_qparams(-limit, limit, 8, signed=True, symmetric=True, narrow_range=True)
    out_qp = choose_qparams(0.0, top, bits)
    codes, w_codes = quantize(x, x_qp), quantize(weight, w_qp)
    floats, w = _values(codes, x_qp), _values(w_codes, w_qp)
    step = x_qp.scale * w_qp.scale
    bias_codes = torch.round(bias / step)
    gemm = floats @ w.T + bias_codes * step
    relu = gemm.relu()
    quantized = (torch.round(relu / out_qp.scale) + out_qp.zero_point).clamp(0, 255)
    kernel = Engine().linear(w_codes, bias_codes * step, w_qp, x_qp, out_qp, relu=True)(codes[None].to(torch.uint8))[0]
    clipped = quantized.clamp(max=out_qp.qmax)
    return Nodes(codes, floats, w[0], bias_codes, bias_codes * step, gemm, relu, quantized, clipped, kernel)


def _values(codes: Tensor, qp: QParams) -> Tensor:
    return (codes.float() - qp.zero_point) * qp.scale


@rc_context(STYLE)
def qdq(weight: Tensor, bias: Tensor, top: float) -> Callable[[int, int, float], Figure]:
    """The nodes around one layer and what each gives; a function from the step (0 to 7), the bits and the first input.

    weight: (3, 4), bias: (3,), top: the largest output that calibration saw.
    """
    rest = torch.tensor([-0.4, 0.8, 0.25])
    image = Figure((9, 4.2))
    ax = image.subplots()
    ax.set(xlim=(0, 1), ylim=(8.6, -0.7))
    ax.set_axis_off()
    names = (
        _("codes of x"), "DequantizeLinear", _("DequantizeLinear (weights)"), _("DequantizeLinear (bias)"), "Gemm",
        "Relu", "QuantizeLinear", "Clip", _("integer kernel"),
    )  # fmt: skip
    kinds = ("uint8", "float", "float", "float", "float", "float", "uint8", "uint8", "uint8")
    rows = []
    for row, (name, kind) in enumerate(zip(names, kinds)):
        colour = QUANTIZED if kind == "uint8" else FLOAT
        ax.text(0, row, name, color=colour, va="center")
        ax.text(0.34, row, kind, color=colour, va="center")
        rows.append(ax.text(0.44, row, "", color=colour, va="center", family="DejaVu Sans Mono"))
    ax.axhline(7.5, color=CLIPPED, linewidth=0.8)
    stored = nodes(torch.zeros(4), weight, bias, top, 8).weight  # int8 whatever the activations have: it never moves
    rows.pop(2).set_text(_("{values}  (first row)").format(values=_numbers(stored, 2)))
    image.moves(*rows)

    @cache
    def computed(bits: int, first: float) -> Nodes:
        return nodes(torch.cat([torch.tensor([first]), rest]), weight, bias, top, bits)

    def draw(step: int, bits: int, first: float) -> Figure:
        found = computed(bits, first)
        codes = ", ".join(f"{int(code)}" for code in found.bias_codes)
        bias_row = _("{values}  (codes {codes})").format(values=_numbers(found.bias, 2), codes=codes)
        said = (
            _numbers(found.x), _numbers(found.floats, 2), bias_row, _numbers(found.gemm, 2),
            _numbers(found.relu, 2), _numbers(found.quantized), _numbers(found.clipped), _numbers(found.kernel),
        )  # fmt: skip
        shown = (0, 1, 2, 3, 4, 5, 6, 7)  # from which step on a row is there
        for row, text, when in zip(rows, said, shown):
            row.set_text(text if step >= when else "")
        words = {"bits": bits, "highest": 2**bits - 1, "cut": int((found.quantized > found.clipped).sum())}
        words |= {"below": int((found.gemm < 0).sum()), "codes": ", ".join(map(str, found.kernel.tolist()))}
        image.finding = _findings()[step].format(**words)
        what = _("Nodes of one layer from top to bottom, each with its numbers. The outputs have {bits} bits: {codes}.")
        image.alt = what.format(**words) if step == STEPS else _not_yet(step)
        return image

    return draw


def _not_yet(step: int) -> str:
    words = _("A table of the nodes of one layer from top to bottom; {step} of {all} steps have been computed.")
    return words.format(step=step, all=STEPS)


def _findings() -> tuple[str, ...]:
    return (
        _("Step 0: the file knows x by its codes of {bits} bits"),
        _("Step 1: DequantizeLinear makes floats of them, on the grid"),
        _("Step 2: the same for the weights (int8, always there) and the bias (int32)"),
        _("Step 3: Gemm multiplies and adds, in float"),
        _("Step 4: Relu sets {below} negative results to 0"),
        _("Step 5: QuantizeLinear makes codes, up to 255"),
        _("Step 6: a grid of {bits} bits ends at {highest}; Clip cuts {cut} codes"),
        _("Step 7: an integer kernel does all of that at once: {codes}"),
    )


def _numbers(values: Tensor, digits: int = 0) -> str:
    return " ".join(f"{value:6.{digits}f}" if digits else f"{int(value):6d}" for value in values.tolist())


# --- what it saves


@rc_context(STYLE)
def savings(works: Sequence[Workload]) -> Callable[..., Figure]:
    """int8 beside float32 in six measures; a function from the workload's number and the machine's numbers.

    The machine's: gigabytes a second from memory, billion float multiplications a second, times as many in int8, the
    price of an hour, and the line's megabits a second.
    """
    image = Figure((9, 4.2))
    ax = image.subplots()
    names = (
        _("download"),
        _("reading the weights"),
        _("arithmetic"),
        _("answer"),
        _("energy"),
        _("price of a million"),
    )
    rows = range(len(names))
    ax.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6), xlabel=_("int8, in % of float32"))
    ax.set_yticks(rows, names)
    ax.grid(axis="y", visible=False)
    ax.axvline(25, color=CLIPPED, linestyle="--", linewidth=1)
    ax.barh(rows, 100, color=FLOAT, alpha=0.12, height=0.62)
    bars = ax.barh(rows, 0, color=QUANTIZED, height=0.62)
    inside = [ax.text(99, row, "", va="center", ha="right") for row in rows]
    image.moves(*bars, *inside)

    def draw(work: int, memory: float, macs: float, speedup: float, dollars: float, download: float) -> Figure:
        machine = Machine(memory * 1e9, macs * 1e9, speedup, dollars, download * 1e6)
        large, small = (estimate(works[work], machine, bits) for bits in (32, 8))
        for bar, text, (before, after, unit, words) in zip(bars, inside, _measures(large, small)):
            bar.set_width(100 * after / before if before else 0)
            text.set_text(words.format(before=before, after=after, unit=unit))
        times = large.seconds / small.seconds
        words = {"name": works[work].name, "times": times, "what": _limits(small)}
        image.finding = _("{name}: int8 answers {times:.1f} times as fast; {what}").format(**words)
        words |= {"mb": small.bytes / 1e6, "ms": 1000 * small.seconds, "large": large.bytes / 1e6}
        words |= {"joules": large.joules / small.joules, "cost": small.dollars_per_million}
        image.alt = _(
            "Bars for int8 in percent of float32. {large:.3g} MB become {mb:.3g} MB; an answer takes {ms:.3g} ms and "
            "{joules:.1f} times less energy; a million answers cost {cost:.3g} dollars."
        ).format(**words)
        return image

    return draw


def _limits(found: Estimate) -> str:
    return _("memory sets the pace") if found.from_memory else _("arithmetic sets the pace")


def _measures(large: Estimate, small: Estimate) -> list[tuple[float, float, str, str]]:
    """(float32, int8, unit, words) of each bar."""
    words = "{before:.3g} → {after:.3g} {unit}"
    return [
        (large.download_seconds, small.download_seconds, _("s"), words),
        (1000 * large.reading_seconds, 1000 * small.reading_seconds, _("ms"), words),
        (1000 * large.computing_seconds, 1000 * small.computing_seconds, _("ms"), words),
        (1000 * large.seconds, 1000 * small.seconds, _("ms"), words),
        (1000 * large.joules, 1000 * small.joules, _("mJ"), words),
        (large.dollars_per_million, small.dollars_per_million, _("dollars"), words),
    ]
