"""Lesson 4: the ranges of a layer's channels, under one scale and under many."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from matplotlib import rc_context
from torch import Tensor

from qlab import observers
from qlab.affine import fake_quantize
from qlab.analysis import sqnr
from qlab.course.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qlab.qconfig import QuantSpec

LOWEST = -10.0  # dB: a channel whose weights all become 0 has 0 dB, one that gets worse than that has less


def rounded(weight: Tensor, bits: int, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """The weights on a symmetric grid of that many bits, and the scales; the grid clips nothing."""
    qparams = observers.grid_of(weight, QuantSpec(bits, True, True, granularity, narrow_range=True))
    return fake_quantize(weight, qparams), qparams.scale


def channel_sqnr(weight: Tensor, quantized: Tensor) -> np.ndarray:
    """The SQNR of each output channel in dB, no lower than LOWEST."""
    signal, noise = (x.double().flatten(1).square().sum(1) for x in (weight, quantized - weight))
    ratio = 10 * torch.log10(signal.clamp(min=1e-30) / noise.clamp(min=1e-30))
    return ratio.clamp(min=LOWEST).numpy()


def granularities() -> dict[str, Granularity]:
    """Names of the ways to share scales in a weight of shape (channels, 1, 3, 3), from coarse to fine."""
    return {_("per tensor"): PerTensor(), _("per channel"): PerChannel(0), _("groups of 3"): PerGroup(3)}


@rc_context(STYLE)
def channel_ranges(weight: Tensor) -> Callable[[int, str], Figure]:
    """Each channel's largest weight beside what is rounded to 0; a function from bits and one of ``granularities``.

    ``weight``: (channels, 1, 3, 3). The channels are sorted by their largest weight.
    """
    weight = weight.detach()
    largest = weight.flatten(1).abs().amax(1)
    order = largest.argsort()
    weight, largest = weight[order], largest[order].numpy()
    channel = np.arange(1, len(weight) + 1)
    image = Figure((9, 3.4))
    left, right = image.subplots(1, 2)
    left.set(yscale="log", ylim=(largest.min() / 500, largest.max() * 30), ylabel=_("largest weight"))
    right.set(ylim=(LOWEST, 75), ylabel=_("SQNR of the channel in dB"))
    for ax in (left, right):
        ax.set(xlabel=_("channel, from the smallest range to the largest"), xlim=(0, len(channel) + 1))
    left.plot(channel, largest, ".", color=FLOAT)
    left.text(0.03, 0.94, _("largest weight"), color=FLOAT, va="top", transform=left.transAxes)
    left.text(0.03, 0.84, _("half a step: what is smaller becomes 0"), color=QUANTIZED, va="top",
              transform=left.transAxes)  # fmt: skip
    right.text(0.03, 0.94, _("a channel"), color=QUANTIZED, va="top", transform=right.transAxes)
    right.text(0.03, 0.84, _("all weights become 0"), color=CLIPPED, va="top", transform=right.transAxes)
    steps = [left.plot([], [], ".", color=QUANTIZED, markersize=4)[0] for _place in range(3)]
    alive = right.plot([], [], ".", color=QUANTIZED)[0]
    dead = right.plot([], [], "x", color=CLIPPED)[0]
    image.moves(*steps, alive, dead)

    @cache
    def measured(bits: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
        quantized, scale = rounded(weight, bits, granularities()[name])
        halves = (scale / 2).reshape(-1, 1).expand(len(weight), -1) if scale.ndim < 2 else scale / 2
        gone = (quantized == 0).flatten(1).all(1).numpy()
        return halves.numpy(), channel_sqnr(weight, quantized), gone, sqnr(weight, quantized), scale.numel()

    def draw(bits: int, share: str) -> Figure:
        halves, ratio, gone, whole, scales = measured(bits, share)
        for line, half in zip(steps, [*halves.T, *([None] * 3)]):
            line.set_data(*((channel, half) if half is not None else ([], [])))
        alive.set_data(channel[~gone], ratio[~gone])
        dead.set_data(channel[gone], ratio[gone])
        words = {"bits": bits, "share": share, "whole": whole, "worst": ratio.min(), "gone": int(gone.sum())}
        finding = _("{bits} bits, {share}: SQNR {whole:.1f} dB, worst channel {worst:.1f} dB")
        image.finding = finding.format(**words)
        image.alt = _(
            "In {gone} of {channels} channels every weight becomes 0. The median channel has {median:.1f} dB. "
            "With 16 bits each, the scales add {more:.2g} bits a weight."
        ).format(gone=words["gone"], channels=len(weight), median=np.median(ratio), more=16 * scales / weight.numel())
        return image

    return draw


@rc_context(STYLE)
def equalization(first: Tensor, second: Tensor) -> Callable[[int, int], Figure]:
    """Two layers that share channels; a function from the share of equalization in percent, and bits.

    ``first``: (channels, inputs, ...), a weight whose outputs are the channels. ``second``: (channels, ...), those
    of its weights that read each channel, such as a depthwise layer's. Both have one scale for the whole tensor.
    With a share t, channel i is divided by s = (r1 / r2)**(t / 2) in the first layer and multiplied in the second.
    """
    weights = [weight.detach().flatten(1) for weight in (first, second)]
    ranges = [weight.abs().amax(1) for weight in weights]
    apart = (ranges[0] / ranges[1]).sqrt()
    channel = np.arange(1, len(apart) + 1)
    image = Figure((9, 3.4))
    axes = image.subplots(1, 2, sharey=True)
    low, high = min(float(r.min()) for r in ranges), max(float(r.max()) for r in ranges)
    axes[0].set(yscale="log", ylim=(low / 3, high * 8), ylabel=_("largest weight of the channel"))
    points, halves = [], []
    for ax, name in zip(axes, (_("first layer"), _("second layer"))):
        ax.set(xlabel=_("channel"), xlim=(0, len(channel) + 1), title=name)
        ax.text(0.03, 0.97, _("largest weight"), color=FLOAT, va="top", transform=ax.transAxes)
        ax.text(0.97, 0.97, _("half a step"), color=QUANTIZED, va="top", ha="right", transform=ax.transAxes)
        points.append(ax.plot([], [], ".", color=FLOAT)[0])
        halves.append(ax.plot([], [], color=QUANTIZED)[0])
    image.moves(*points, *halves)

    @cache
    def measured(share: int, bits: int) -> list[tuple[np.ndarray, float, np.ndarray]]:
        scale = apart ** (share / 100)
        found = []
        for weight, factor in zip(weights, (1 / scale, scale)):
            equalized = weight * factor[:, None]
            quantized, step = rounded(equalized, bits, PerTensor())
            found.append((equalized.abs().amax(1).numpy(), float(step), channel_sqnr(equalized, quantized)))
        return found

    def draw(share: int, bits: int) -> Figure:
        both = measured(share, bits)
        for point, half, (largest, step, _ratio) in zip(points, halves, both):
            point.set_data(channel, largest)
            half.set_data([0, len(channel) + 1], [step / 2] * 2)
        ratios = [ratio for _largest, _step, ratio in both]
        image.finding = _("{share} % equalized, {bits} bits: a channel has {mean:.1f} dB on average").format(
            share=share, bits=bits, mean=np.mean(ratios)
        )
        spread = [largest.max() / np.median(largest) for largest, _step, _ratio in both]
        words = {f"{what}{place}": value for what, values in (("mean", [r.mean() for r in ratios]), ("spread", spread))
                 for place, value in enumerate(values, 1)}  # fmt: skip
        image.alt = _(
            "The largest channel has {spread1:.1f} times the range of the median one in the first layer and "
            "{spread2:.1f} times in the second; the mean SQNR of a channel is {mean1:.1f} and {mean2:.1f} dB."
        ).format(**words)
        return image

    return draw
