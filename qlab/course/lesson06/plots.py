"""Lesson 6: the noise of each layer, and bits spent under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from qlab.analysis import Front, LayerSQNR, MixedPrecision, Sensitivity
from qlab.course.figure import CLIPPED, ERROR, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _, signed


@rc_context(STYLE)
def layer_noise(tables: Mapping[tuple[str, int], Sequence[LayerSQNR]]) -> Callable[[str, int], Figure]:
    """The SQNR of what each layer gives; a function from what is quantized and the bits, the keys of ``tables``."""
    names = [row.layer for row in next(iter(tables.values()))]
    outputs = [row.output for table in tables.values() for row in table]
    highest = max(outputs)
    image = Figure((9.6, 4.1))
    ax = image.subplots()
    bars = _bars(ax, names)
    ax.set(ylim=(min(0, *outputs) - 1, 1.05 * highest), ylabel=_("SQNR in dB"))
    (lowest,) = ax.plot([], [], "v", color=ERROR, markersize=9)
    image.moves(*bars, lowest)
    words = {"both": _("weights and activations"), "weights": _("weights"), "activations": _("activations")}

    def draw(what: str, bits: int) -> Figure:
        heights = [row.output for row in tables[what, bits]]
        for bar, height in zip(bars, heights):
            bar.set_y(min(height, 0))
            bar.set_height(abs(height))
        worst = int(np.argmin(heights))
        lowest.set_data([worst], [max(heights[worst], 0) + 0.05 * highest])
        said = {
            "what": words[what],
            "bits": bits,
            "answers": heights[-1],
            "layer": names[worst],
            "least": heights[worst],
        }
        image.finding = _("{what} with {bits} bits: answers {answers:.1f} dB; lowest {layer}, {least:.1f} dB").format(
            **said
        )
        image.alt = _(
            "A bar for each layer in the order in which they run, from {first:.1f} dB in {name} to {answers:.1f} dB "
            "in the last one, which gives the answers; a triangle marks the lowest."
        ).format(first=heights[0], name=names[0], answers=heights[-1])
        return image

    return draw


@rc_context(STYLE)
def sparing(
    names: Sequence[str], rows: Sequence[Sensitivity], measured: Mapping[tuple[bool, int], float], bits: int = 4
) -> Callable[[int, bool], Figure]:
    """The SQNR when some layers keep 8 bits, and which; a function from how many, and from whether the least sensitive.

    ``names`` are the layers in the order in which they run, ``rows`` their sensitivities, the worst first. ``measured`` has
    (the most sensitive first?, how many) for as many layers as can be asked for.
    """
    counts = sorted({count for _most, count in measured})
    image = Figure((9.6, 3.9))
    left, right = image.subplots(1, 2, width_ratios=(2, 3))
    for most, word, style in ((True, _("most sensitive first"), "-"), (False, _("least sensitive first"), ":")):
        curve = [measured[most, count] for count in counts]
        left.plot(counts, curve, style, color=QUANTIZED, label=word)
    left.set(xlabel=_("layers with 8 bits"), ylabel=_("SQNR of the answers, in dB"), xticks=counts)
    left.margins(y=0.15)
    left.legend(loc="upper left")
    image.takes_guess(left, "x")
    (now,) = left.plot([], [], "o", color=QUANTIZED, markersize=11)
    bars = _bars(right, names)
    right.set(ylim=(0, 8.5), ylabel=_("bits"), yticks=(0, bits, 8))
    image.moves(now, *bars)

    def draw(count: int, least: bool) -> Figure:
        spared = [row.layer for row in (reversed(rows) if least else rows)][:count]
        now.set_data([count], [measured[not least, count]])
        for bar, name in zip(bars, names):
            bar.set_height(8 if name in spared else bits)
            bar.set_color(FLOAT if name in spared else QUANTIZED)
        words = {
            "count": count,
            "bits": bits,
            "sqnr": measured[not least, count],
            "gain": signed(measured[not least, count] - measured[not least, 0]),
        }
        what = _("{count} layers with 8 bits, the least sensitive first: {sqnr:.1f} dB, {gain} dB")
        if not least:
            what = _("{count} layers with 8 bits, the most sensitive first: {sqnr:.1f} dB, {gain} dB")
        if not count:
            what = _("{bits} bits for all layers: {sqnr:.1f} dB")
        image.finding = what.format(**words)
        said = _("8 bits for {layers}").format(layers=", ".join(spared)) if spared else _("No layer has 8 bits")
        image.alt = _("{said}; all others have {bits}. The answers keep {sqnr:.1f} dB.").format(said=said, **words)
        return image

    return draw


@rc_context(STYLE)
def bit_budget(front: Front) -> Callable[[float], Figure]:
    """The best bits of each layer within a budget; a function from the bits that a weight has on average."""
    layers = list(dict.fromkeys(cost.layer for cost in front.costs))
    widths = sorted({cost.bits for cost in front.costs})
    equal = {bits: [cost for cost in front.costs if cost.bits == bits] for bits in widths}
    sizes = {bits: sum(cost.size_bytes for cost in costs) for bits, costs in equal.items()}
    decibel = {bits: -10 * np.log10(sum(cost.noise for cost in costs)) for bits, costs in equal.items()}
    weights = sizes[widths[-1]] * 8 / widths[-1]
    image = Figure((9.6, 4.1))
    left, right = image.subplots(1, 2, width_ratios=(2, 3))
    left.plot(front.size_bytes / 1024, -10 * np.log10(front.noise), color=FLOAT)
    left.plot([size / 1024 for size in sizes.values()], list(decibel.values()), "s", color=CLIPPED)
    for bits in widths:
        place = (sizes[bits] / 1024, decibel[bits])
        left.annotate(
            _("{bits} bits").format(bits=bits), place, (8, -4), textcoords="offset points", color=CLIPPED, size=9
        )
    left.set(xlabel=_("weights in KiB"), ylabel=_("predicted SQNR in dB"))
    left.text(0.03, 0.96, _("best choice"), color=FLOAT, va="top", transform=left.transAxes)
    left.text(0.03, 0.88, _("equal bits"), color=CLIPPED, va="top", transform=left.transAxes)
    left.margins(x=0.2, y=0.1)
    (now,) = left.plot([], [], "o", color=QUANTIZED, markersize=11)
    bars = _bars(right, layers)
    right.set(ylim=(0, widths[-1] + 0.3), ylabel=_("bits"), yticks=widths)
    image.moves(now, *bars)

    @cache
    def best(budget: int) -> MixedPrecision:
        return front.best(budget)

    def draw(average: float) -> Figure:
        budget = max(int(weights * average / 8 + 1e-6), int(front.size_bytes[0]))
        chosen = best(budget)
        now.set_data([chosen.size_bytes / 1024], [chosen.sqnr])
        for bar, layer in zip(bars, layers):
            bar.set_height(chosen.bits[layer])
        fits = max(bits for bits in widths if sizes[bits] <= max(budget, min(sizes.values())))
        words = {"size": chosen.size_bytes / 1024, "sqnr": chosen.sqnr, "fits": fits, "equal": decibel[fits]}
        image.finding = _("{size:.1f} KiB: {sqnr:.1f} dB predicted; with {fits} bits for all, {equal:.1f} dB").format(
            **words
        )
        most, fewest = (pick(layers, key=chosen.bits.get) for pick in (max, min))
        image.alt = _(
            "On the left the best SQNR for each size, with a dot at this one; on the right the bits of each layer, "
            "from {low} ({fewest}) to {high} ({most})."
        ).format(low=chosen.bits[fewest], fewest=fewest, high=chosen.bits[most], most=most)
        return image

    return draw


@rc_context(STYLE)
def each_layer(names: Sequence[str], decibel: Sequence[float]) -> Figure:
    """The SQNR behind each layer, in the order in which they run: a figure that stands still."""
    image = Figure((9.6, 3.9))
    ax = image.subplots()
    bars = _bars(ax, names)
    for bar, height in zip(bars, decibel):
        bar.set_height(height)
    ax.set(ylim=(min(0, *decibel), 1.05 * max(decibel)), ylabel=_("SQNR in dB"))
    words = {"first": decibel[0], "name": names[0], "last": decibel[-1]}
    image.finding = _("From {first:.1f} dB in {name} to {last:.1f} dB in the answers").format(**words)
    image.alt = "; ".join(f"{name} {height:.1f} dB" for name, height in zip(names, decibel))
    return image


def _bars(ax: Axes, names: Sequence[str]) -> BarContainer:
    """A bar for each layer, its name below."""
    bars = ax.bar(range(len(names)), 0, width=0.75, color=QUANTIZED)
    ax.set(xlim=(-0.7, len(names) - 0.3))
    ax.set_xticks(range(len(names)), names, rotation=60, size=9, ha="right", rotation_mode="anchor")
    ax.grid(False, axis="x")
    return bars
