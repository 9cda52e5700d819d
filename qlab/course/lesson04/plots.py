"""Lesson 4: the ranges of a layer's channels under one scale and under many, and what that does to the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from qlab import observers
from qlab.affine import fake_quantize
from qlab.analysis import sqnr
from qlab.course.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qlab.graph.equalize import DEAD
from qlab.qconfig import QuantSpec

LOWEST = -10.0  # dB: a channel whose weights all become 0 has 0 dB, one that gets worse than that has less


def rounded(weight: Tensor, bits: int, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """The weights on a symmetric grid of that many bits, and the scales; the grid clips nothing."""
    qparams = observers.grid_of(weight, QuantSpec(bits, True, True, granularity, narrow_range=True))
    return fake_quantize(weight, qparams), qparams.scale


def ranges(weight: Tensor) -> Tensor:
    """The largest weight of each output channel: shape (channels,)."""
    return weight.detach().flatten(1).abs().amax(1)


def living(*weights: Tensor) -> Tensor:
    """Which channels have a weight of at least a thousandth of the layer's largest, in all these weights: (channels,).

    The others are dead: training has taken them back to almost nothing, and nobody misses them.

    >>> living(torch.tensor([[8.0], [0.001], [2.0]]))
    tensor([ True, False,  True])
    """
    return torch.stack([ranges(weight) > DEAD * ranges(weight).max() for weight in weights]).all(0)


def vanished(weight: Tensor, quantized: Tensor) -> Tensor:
    """Which living channels have nothing but zeros left: (channels,)."""
    return living(weight) & (ranges(quantized) == 0)


def channel_sqnr(weight: Tensor, quantized: Tensor) -> np.ndarray:
    """The SQNR of each output channel in dB, no lower than LOWEST."""
    signal, noise = (x.detach().double().flatten(1).square().sum(1) for x in (weight, quantized - weight))
    ratio = 10 * torch.log10(signal.clamp(min=1e-30) / noise.clamp(min=1e-30))
    return ratio.clamp(min=LOWEST).numpy()


def granularities() -> dict[str, Granularity]:
    """Names of the ways to share scales in a weight of shape (channels, 1, 3, 3), from coarse to fine."""
    return {_("per tensor"): PerTensor(), _("per channel"): PerChannel(0), _("groups of 3"): PerGroup(3)}


@rc_context(STYLE)
def channel_ranges(weight: Tensor) -> Callable[[int, str], Figure]:
    """Each channel's largest weight beside what is rounded to 0; a function from bits and one of ``granularities``.

    ``weight``: (channels, 1, 3, 3). The channels are sorted by their largest weight; dead ones are drawn as dead.
    """
    weight = weight.detach()
    weight = weight[ranges(weight).argsort()]
    largest, alive = ranges(weight).numpy(), living(weight).numpy()
    channel, first = np.arange(1, len(weight) + 1), int((~alive).sum())  # the dead come first, they are the smallest
    image = Figure((9, 3.9))
    left, right = image.subplots(1, 2)
    left.set(yscale="log", ylim=(largest[alive].min() / 300, largest.max() * 300), ylabel=_("largest weight (log)"))
    right.set(ylim=(LOWEST, 100), ylabel=_("SQNR of the channel in dB"))
    for ax in (left, right):
        ax.set(xlabel=_("channel, from the smallest range to the largest"), xlim=(0, len(channel) + 1))
        _grave(ax, first)
    left.plot(channel[alive], largest[alive], ".", color=FLOAT)
    _key(left, (_("a channel's largest weight"), FLOAT), (_("half a step: what is smaller becomes 0"), QUANTIZED))
    _key(right, (_("a living channel"), QUANTIZED), (_("× one whose weights all become 0"), CLIPPED))
    steps = [left.plot([], [], ".", color=QUANTIZED, markersize=4)[0] for _place in range(3)]
    some = right.plot([], [], ".", color=QUANTIZED)[0]
    none = right.plot([], [], "x", color=CLIPPED, markersize=7)[0]
    image.moves(*steps, some, none)

    @cache
    def measured(bits: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
        quantized, scale = rounded(weight, bits, granularities()[name])
        halves = (scale / 2).reshape(-1, 1).expand(len(weight), -1) if scale.ndim < 2 else scale / 2
        gone = vanished(weight, quantized).numpy()
        return halves.numpy(), channel_sqnr(weight, quantized), gone, sqnr(weight, quantized), scale.numel()

    def draw(bits: int, share: str) -> Figure:
        halves, ratio, gone, whole, scales = measured(bits, share)
        for line, half in zip(steps, [*halves[alive].T, *([None] * 3)]):
            line.set_data(*((channel[alive], half) if half is not None else ([], [])))
        some.set_data(channel[alive & ~gone], ratio[alive & ~gone])
        none.set_data(channel[gone], ratio[gone])
        words = {"bits": bits, "share": share, "whole": whole, "worst": ratio[alive].min(), "gone": int(gone.sum())}
        words |= {"median": np.median(ratio[alive]), "all": len(weight), "dead": first, "living": len(weight) - first}
        words["cost"] = 16 * scales / weight.numel()
        image.finding = _(
            "{bits} bits, {share}: whole layer {whole:.1f} dB; median living channel {median:.1f} dB, worst {worst:.1f} dB"
        ).format(**words)
        said = _("In {gone} of {living} living channels every weight becomes 0. ")
        if first:
            said += _("{dead} of all {all} channels are dead: their weights were next to nothing before any rounding. ")
        said += _("With 16 bits each, the scales add {cost:.2g} bits a weight.")
        image.alt = said.format(**words)
        return image

    return draw


def _grave(ax: Axes, dead: int) -> None:
    """The first channels are dead: a grey field with its name."""
    if dead:
        ax.axvspan(0, dead + 0.5, color=CLIPPED, alpha=0.25, linewidth=0)
        ax.text(dead + 1, 0.03, _("← dead"), color=CLIPPED, va="bottom", transform=ax.get_xaxis_transform())


def _key(ax: Axes, *lines: tuple[str, str]) -> None:
    """What a colour stands for, as coloured words at the top of the axes."""
    for row, (words, colour) in enumerate(lines):
        ax.text(0.02, 0.98 - 0.085 * row, words, color=colour, va="top", transform=ax.transAxes)


def equalized(first: Tensor, second: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two weights after a share of cross-layer equalization; channels that are dead in one of the two stay as they are.

    ``first``: (channels, inputs, ...), whose outputs are the channels; ``second``: (channels, ...), those weights that
    read each of them. Channel i is divided by ``s = (r1 / r2)**(share / 2)`` in the first and multiplied in the second.

    >>> first, second = equalized(torch.tensor([[8.0], [2.0]]), torch.tensor([[2.0], [8.0]]))
    >>> first.flatten().tolist(), second.flatten().tolist()
    ([4.0, 4.0], [4.0, 4.0])
    """
    s = torch.where(living(first, second), ranges(first) / ranges(second), 1.0) ** (share / 2)
    return first.detach().flatten(1) / s[:, None], second.detach().flatten(1) * s[:, None]


@dataclass(frozen=True)
class Living:
    """The living channels of a weight with one scale for the whole tensor: what rounding makes of them."""

    largest: np.ndarray  # each channel's largest weight
    step: float
    decibels: float  # the SQNR of a channel, on average
    gone: int  # channels whose weights all became 0


def pair(first: Tensor, second: Tensor, share: float, bits: int) -> tuple[Living, Living]:
    """Two weights that share channels, after a share of equalization (0 to 1), rounded: see :func:`equalized`.

    >>> layers = pair(torch.tensor([[8.0, 7.9], [2.0, 1.7]]), torch.tensor([[2.0, 1.7], [8.0, 7.9]]), 1.0, bits=4)
    >>> [layer.gone for layer in layers]
    [0, 0]
    """
    alive, found = living(first, second).numpy(), []
    for weight in equalized(first, second, share):
        quantized, step = rounded(weight, bits, PerTensor())
        ratio, gone = channel_sqnr(weight, quantized)[alive], (ranges(quantized).numpy() == 0)[alive]
        found.append(Living(ranges(weight).numpy()[alive], float(step), float(ratio.mean()), int(gone.sum())))
    return found[0], found[1]


@rc_context(STYLE)
def equalization(first: Tensor, second: Tensor) -> Callable[[int, int], Figure]:
    """Two layers that share channels; a function from the share of equalization in percent, and bits.

    The weights are those of :func:`equalized`; each layer has one scale for the whole tensor.
    """
    alive = living(first, second).numpy()
    channel = np.arange(1, len(alive) + 1)
    image = Figure((9, 3.9))
    axes = image.subplots(1, 2, sharey=True)
    least, most = (pick(float(x) for w in (first, second) for x in ranges(w)[alive]) for pick in (min, max))
    axes[0].set(yscale="log", ylim=(least / 3, most * 20), ylabel=_("largest weight of the channel (log)"))
    points, halves = [], []
    for ax, name in zip(axes, (_("first layer"), _("second layer"))):
        ax.set(xlabel=_("channel"), xlim=(0, len(channel) + 1), title=name)
        for place in channel[~alive]:
            ax.axvspan(place - 0.5, place + 0.5, color=CLIPPED, alpha=0.25, linewidth=0)
        keys = [
            (_("largest weight of a living channel"), FLOAT),
            (_("half a step: what is smaller becomes 0"), QUANTIZED),
        ]
        _key(ax, *keys, *([(_("dead in one of the two layers"), CLIPPED)] if not alive.all() else []))
        points.append(ax.plot([], [], ".", color=FLOAT)[0])
        halves.append(ax.plot([], [], color=QUANTIZED)[0])
    image.moves(*points, *halves)

    measured = cache(lambda share, bits: pair(first, second, share / 100, bits))

    def draw(share: int, bits: int) -> Figure:
        both = measured(share, bits)
        for point, half, layer in zip(points, halves, both):
            point.set_data(channel[alive], layer.largest)
            half.set_data([0, len(channel) + 1], [layer.step / 2] * 2)
        words = {"share": share, "bits": bits, "count": int(alive.sum())}
        for place, layer in enumerate(both, 1):
            spread = layer.largest.max() / np.median(layer.largest)
            words |= {f"mean{place}": layer.decibels, f"spread{place}": spread, f"gone{place}": layer.gone}
        image.finding = _(
            "{share} % equalized, {bits} bits: a living channel has {mean1:.1f} dB in the first layer, {mean2:.1f} dB "
            "in the second"
        ).format(**words)
        image.alt = _(
            "The largest channel has {spread1:.1f} times the range of the median one in the first layer and {spread2:.1f} "
            "times in the second. Of {count} living channels {gone1} become 0 in the first layer and {gone2} in the second."
        ).format(**words)
        return image

    return draw


# --- the whole network


def _standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy in percent, measured on so many images."""
    return 100 * (accuracy / 100 * (1 - accuracy / 100) / images) ** 0.5


def _bits_axis(ax: Axes, bits: list[int], float_accuracy: float) -> None:
    ax.set(xlabel=_("bits of the weights"), ylabel=_("accuracy in %"), xticks=bits, ylim=(0, 104))
    ax.set_xlim(min(bits) - 0.4, max(bits) + 0.25 * len(bits) + 0.2)
    ax.hlines(float_accuracy, min(bits) - 0.4, max(bits), color=FLOAT, linestyle="--", linewidth=1.2)
    ax.text(min(bits) - 0.3, float_accuracy + 1, _("float"), color=FLOAT, va="bottom")


@rc_context(STYLE)
def accuracy_of_bits(curves: Mapping[str, Mapping[int, float]], float_accuracy: float, images: int) -> Figure:
    """The accuracy in percent over the bits of the weights, a line a way to share scales; bars: one standard error.

    ``curves``: for each name the accuracy at each number of bits, measured on ``images`` images.
    """
    image = Figure((9, 3.6))
    ax = image.subplots()
    every = sorted({bits for curve in curves.values() for bits in curve})
    _bits_axis(ax, every, float_accuracy)
    image.takes_guess(ax, "x")
    for (name, curve), colour, marker in zip(curves.items(), (CLIPPED, QUANTIZED), "so"):
        bits = sorted(curve)
        heights = [curve[count] for count in bits]
        errors = [_standard_error(height, images) for height in heights]
        ax.errorbar(bits, heights, errors, color=colour, marker=marker, capsize=3)
        place = 1 if len(curves) > 1 and colour == CLIPPED else 0  # the two names apart where both lines are high
        ax.text(bits[-1] + 0.15, heights[-1] - 9 * place, name, color=colour, va="center")
    ax.fill_between(
        [every[0] - 0.4, every[-1]], float_accuracy - 5, float_accuracy, color=FLOAT, alpha=0.12, linewidth=0
    )
    least = {name: fewest_bits(curve, float_accuracy) for name, curve in curves.items()}
    each = _("{bits} bits {name}")
    words = _(" and ").join(each.format(name=name, bits=bits) for name, bits in least.items())
    image.finding = _("Within five points of float: down to {words}").format(words=words)
    said = _("{name}: {numbers}.")
    image.alt = " ".join(
        said.format(name=name, numbers=", ".join(f"{curve[bits]:.1f} % ({bits} bits)" for bits in sorted(curve)))
        for name, curve in curves.items()
    )
    image.alt += _(
        " Float has {float:.1f} %; the field below it is five points high. Measured on {images} images."
    ).format(float=float_accuracy, images=images)
    return image


def fewest_bits(curve: Mapping[int, float], float_accuracy: float, points: float = 5.0) -> int:
    """The fewest bits from which on the accuracy stays within so many points of float; the most there are, when none do.

    >>> fewest_bits({8: 90.0, 6: 89.0, 4: 40.0}, 91.0)
    6
    """
    least = max(curve)
    for bits in sorted(curve, reverse=True):
        if curve[bits] < float_accuracy - points:
            break
        least = bits
    return least


@rc_context(STYLE)
def repairs(
    found: Mapping[tuple[int, bool, bool], float], per_channel: Mapping[int, float], float_accuracy: float
) -> Callable[[bool, bool], Figure]:
    """The accuracy of one scale a tensor with the repairs that are switched on; a function from two switches.

    ``found``: the accuracy in percent for (bits, equalized, bias corrected); ``per_channel``: that of one scale a channel
    without a repair, for the same bits or more.
    """
    bits = sorted({count for count, _equalized, _corrected in found})
    few = bits[1]  # the one that the title speaks of
    image = Figure((9, 3.6))
    ax = image.subplots()
    _bits_axis(ax, bits, float_accuracy)
    lines = {}
    for name, heights, look, drop in (
        (_("per channel, no repair"), [per_channel[b] for b in bits], {"color": QUANTIZED, "linestyle": ":"}, 0),
        (_("per tensor, no repair"), [found[b, False, False] for b in bits], {"color": CLIPPED, "marker": "s"}, 9),
    ):
        lines[name] = ax.plot(bits, heights, **look)
        ax.text(bits[-1] + 0.15, heights[-1] - drop, name, color=look["color"], va="center")
    (chosen,) = ax.plot([], [], "o-", color=QUANTIZED, markersize=8)
    label = ax.text(bits[-1] + 0.15, 25, "", color=QUANTIZED, va="center")
    image.moves(chosen, label)
    names = {
        (False, False): _("nothing is repaired"), (True, False): _("equalized"), (False, True): _("bias corrected"),
        (True, True): _("equalized and bias corrected"),
    }  # fmt: skip

    def draw(equalize: bool, correct: bool) -> Figure:
        heights = [found[b, equalize, correct] for b in bits]
        chosen.set_data(bits, heights)
        label.set_text(_("● per tensor,") + "\n" + names[equalize, correct].replace(_(" and "), "\n" + _("and ")))
        words = {"few": few, "what": names[equalize, correct], "here": found[few, equalize, correct]}
        words |= {"channel": per_channel[few], "float": float_accuracy}
        image.finding = _(
            "{few} bits per tensor, {what}: {here:.1f} %; per channel, no repair: {channel:.1f} %"
        ).format(**words)
        each = ", ".join(f"{height:.1f} % ({b} bits)" for b, height in zip(bits, heights))
        image.alt = _(
            "The accuracy per tensor, {what}: {each}. One scale a channel without a repair has {channel:.1f} % with {few} "
            "bits, float {float:.1f} %."
        ).format(each=each, **words)
        return image

    return draw
