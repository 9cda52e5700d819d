"""Lesson 6's panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets

from qlab.analysis import BitCost, BitCosts, Front, LayerSQNR, Sensitivity
from qlab.course.language import _
from qlab.course.lesson06 import plots
from qlab.course.registry import explorable
from qlab.course.widgets import Panel, Slider
from qlab.qconfig import QConfig


def _tables() -> tuple[dict[tuple[str, int], list[LayerSQNR]]]:
    """Two layers of 6 dB a bit; the second one has more noise, how much depends on what is quantized."""
    less = {"both": 3, "weights": 1, "activations": 2}
    return ({
        (what, bits): [LayerSQNR(name, 6.0 * bits, 6.0 * bits, 6.0 * bits - number * less[what])
                       for number, name in enumerate(("first", "second"))]
        for what in less for bits in (2, 3, 4)
    },)  # fmt: skip


def _front() -> tuple[Front]:
    """A small layer that needs bits, and a large one that needs fewer."""
    sizes = {"small": (10, 3), "large": (200, 9)}
    rows = [BitCost(name, bits, n * bits, 6.0 * bits - less) for name, (n, less) in sizes.items() for bits in (2, 4, 8)]
    return (Front(BitCosts(rows, QConfig.w8a8(), dict.fromkeys(sizes, QConfig.w8a8()))),)


def _sparing() -> tuple:
    """Three layers; 8 bits for the most sensitive one are worth most."""
    names = ["first", "second", "third"]
    rows = [Sensitivity("second", 10.0), Sensitivity("first", 20.0), Sensitivity("third", 30.0)]
    gains = {True: (10.0, 16.0, 18.0, 19.0), False: (10.0, 10.5, 12.0, 19.0)}
    return names, rows, {(most, count): gain for most in gains for count, gain in enumerate(gains[most])}


@explorable(example=_tables)
def layer_noise(tables: Mapping[tuple[str, int], Sequence[LayerSQNR]]) -> Panel:
    """Choose what is quantized and drag the bits: the SQNR of each layer. Arguments as in ``plots``."""
    words = {"both": _("weights and activations"), "weights": _("weights"), "activations": _("activations")}
    bits = sorted({number for _what, number in tables})
    return Panel(
        plots.layer_noise(tables),
        what=ipywidgets.Dropdown(options=[(words[key], key) for key in words], description=_("quantized:")),
        bits=Slider(label=_("bits"), value=bits[-1], minimum=bits[0], maximum=bits[-1]),
    )


@explorable(example=_sparing)
def sparing(names: Sequence[str], rows: Sequence[Sensitivity], measured: Mapping[tuple[bool, int], float]) -> Panel:
    """Drag how many layers keep 8 bits: what the answers gain, and which layers these are. Arguments as in ``plots``."""
    most = max(count for _most, count in measured)
    return Panel(
        plots.sparing(names, rows, measured),
        count=Slider(label=_("layers with 8 bits"), value=0, minimum=0, maximum=most),
        least=ipywidgets.Checkbox(description=_("the least sensitive first instead"), value=False, indent=False),
    )


@explorable(example=_front)
def bit_budget(front: Front) -> Panel:
    """Drag the budget: the bits of each layer that leave the answers the least noise."""
    bits = [cost.bits for cost in front.costs]
    slider = Slider(label=_("bits of a weight, on average"), value=5.0, minimum=min(bits), maximum=max(bits), step=0.1)
    return Panel(plots.bit_budget(front), average=slider)
