"""Lesson 6: which layer is broken? A quantized network in which one layer went wrong, drawn at random.

What may be wrong, and how it shows: weights on a grid of 2 bits (their SQNR is low), an input whose grid is 64 times too
wide (nearly all of it is unused) or 8 times too narrow (values are clipped), a bias that was lost (the error of what the
layer gives is a shift of whole channels).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from qlab import analysis, quantizers
from qlab.bias_correction import mean_of_channels
from qlab.calibration import calibrate
from qlab.course.figure import Figure
from qlab.course.language import _
from qlab.course.lesson06 import plots
from qlab.course.lesson06.noise import looks
from qlab.course.mystery import Mystery
from qlab.data import Dataset
from qlab.graph.prepare import Prepared, prepare
from qlab.graph.run import walk
from qlab.qconfig import QConfig

WEIGHTS, WIDE, NARROW, BIAS = "its weights", "its input's range, too wide", "its input's range, too narrow", "its bias"
BECAUSE = {
    WEIGHTS: "Its weights had a grid of 2 bits.",
    WIDE: "The grid of its input was 64 times too wide, as after one wild image.",
    NARROW: "The grid of its input was 8 times too narrow, as after too few images.",
    BIAS: "Its bias was lost.",
}
SUFFERS = 10.0  # dB that the answers lose at least, or there would be nothing to find
SCALED = {WIDE: 64.0, NARROW: 1 / 8}


def broken_layer(network: nn.Module, calibration: Dataset, images: Dataset) -> Callable[[int], Mystery]:
    """A function from a seed to a :class:`Mystery`: one layer of the network, quantized to 8 bits, is broken.

    Args:
        network: The trained float network. It is not changed.
        calibration: Finds the ranges; its first images are those on which is measured.
        images: Count the right answers.
    """
    healthy = calibrate(prepare(network, QConfig.w8a8()), calibration.batches(64))
    x, _labels = next(calibration.batches(32))
    cases = _cases(healthy)

    with torch.no_grad():
        expected = network(x)
        whole = analysis.sqnr(expected, healthy(x))

    @torch.no_grad()
    def spoilt(seed: int) -> tuple[str, str, Prepared]:
        """The first case, in an order that the seed draws, of which the answers suffer."""
        for layer, what in random.Random(seed).sample(cases, len(cases)):
            broken = break_at(healthy, layer, what)
            if analysis.sqnr(expected, broken(x)) < whole - SUFFERS:
                return layer, what, broken
        raise ValueError(f"nothing that is broken in this network costs its answers {SUFFERS} dB")

    def draw(seed: int) -> Mystery:
        layer, what, broken = spoilt(seed)
        return Mystery(
            story=_(
                "This network was quantized to 8 bits, and one of its layers went wrong. Which one, and what is wrong with "
                "it? Ask for as few measurements as you need, commit to a diagnosis, then repair it."
            ),
            measurements=_measurements(network, broken, x, images),
            questions={
                _("layer"): tuple(name for name, _layer in healthy.weighted()),
                _("what"): tuple(map(_, BECAUSE)),
            },
            truth=(layer, _(what)),
            repairs={
                _("8 bits for its weights"): _repair(network, broken, x, images, _mend_weights),
                _("calibrate its input anew"): _repair(network, broken, x, images, _calibrated_as(healthy)),
                _("correct its bias"): _repair(network, broken, x, images, _mend_bias),
            },
            because=_(BECAUSE[what]),
        )

    return draw


def break_at(healthy: Prepared, layer: str, what: str) -> Prepared:
    """A copy of a calibrated network in which something is wrong with one layer: one of the four in ``BECAUSE``."""
    broken = copy.deepcopy(healthy)
    module = dict(broken.weighted())[layer]
    if what == WEIGHTS:
        _give_bits(module, 2)
    elif what == BIAS:
        module.keep_original()  # so that it still counts as the float network's
        module.bias = nn.Parameter(torch.zeros_like(module.bias))
    else:
        (edge,) = broken.input_quantizers()[layer]
        edge.qparams = replace(edge.qparams, scale=edge.qparams.scale * SCALED[what])
    return broken


def _cases(healthy: Prepared) -> list[tuple[str, str]]:
    """All that can be broken: a range only where no other layer reads it, and a bias where there is one that counts."""
    edges = healthy.input_quantizers()
    alone = {name for name, own in edges.items() if sum(other == own for other in edges.values()) == 1}
    return [
        (name, what) for name, layer in healthy.weighted() for what in BECAUSE
        if (what not in SCALED or name in alone) and (what != BIAS or layer.bias is not None)
    ]  # fmt: skip


def _give_bits(layer: nn.Module, bits: int) -> None:
    quantizer = quantizers.build(replace(layer.weight_quantizer.spec, bits=bits))
    quantizer.observe()
    quantizer.look_at(layer.weight.detach())
    quantizer.freeze()
    layer.weight_quantizer = quantizer


# --- what can be measured


def _measurements(network: nn.Module, broken: Prepared, x, images: Dataset) -> dict[str, Callable[[], str | Figure]]:
    def table(headline: str, value: Callable) -> Callable[[], str]:
        rows = lambda: [f"{look.layer:20} {value(look)}" for look in looks(broken, x)]  # noqa: E731
        return lambda: "\n".join([headline, *rows()])

    def noise() -> Figure:
        found = looks(broken, x)
        return plots.each_layer([look.layer for look in found], [look.output for look in found])

    return {
        _("answers"): lambda: _state(network, broken, x, images),
        _("noise behind each layer"): noise,
        _("noise of the weights"): table(_("SQNR of the weights"), lambda look: f"{look.weight:5.1f} dB"),
        _("fit of the grids"): table(
            _("of each input: beyond the grid; of its grid: used"),
            lambda look: f"{look.clipped:6.1%} {look.used:6.0%}",
        ),
        _("shift of the means"): table(
            _("of the error behind each layer: what a constant for each channel would take away"),
            lambda look: f"{look.shift:5.0%}",
        ),
    }


def _state(network: nn.Module, prepared: Prepared, x, images: Dataset) -> str:
    with torch.no_grad():
        decibel = analysis.sqnr(network(x), prepared(x))
    right = 100 * float(analysis.hits(prepared, images).double().mean())
    return _("{decibel:.1f} dB, {right:.0f} % right").format(decibel=decibel, right=right)


# --- what can be repaired


def _repair(network: nn.Module, broken: Prepared, x, images: Dataset, mend: Callable) -> Callable[[str, str], str]:
    """A function from a diagnosis to what the repair of that layer changes."""

    def repair(layer: str, _what: str) -> str:
        mended = copy.deepcopy(broken)
        mend(mended, layer, x)
        words = {"before": _state(network, broken, x, images), "after": _state(network, mended, x, images)}
        return _("before the repair: {before}\nafter it: {after}").format(**words)

    return repair


def _mend_weights(mended: Prepared, layer: str, _x) -> None:
    _give_bits(dict(mended.weighted())[layer], 8)


def _calibrated_as(healthy: Prepared) -> Callable:
    """The same images give the same range again, so it can be taken from the network before it was broken."""

    def mend(mended: Prepared, layer: str, _x) -> None:
        for edge, known in zip(mended.input_quantizers()[layer], healthy.input_quantizers()[layer]):
            edge.qparams = known.qparams

    return mend


def _mend_bias(mended: Prepared, layer: str, x) -> None:
    """As :func:`qlab.correct_bias`, at one layer: its channels get the mean that they have in float."""
    for stop in walk(mended, [x]):
        if stop.name == layer:
            axis = 1 if stop.layer.kind == "conv" else -1
            with torch.no_grad():
                found = mean_of_channels((stop.layer(each) for each in stop.inputs), axis)
            shift = mean_of_channels(stop.targets, axis) - found
            stop.layer.keep_original()
            stop.layer.bias = nn.Parameter(shift if stop.layer.bias is None else stop.layer.bias + shift)
