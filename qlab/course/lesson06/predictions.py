"""Lesson 6: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Choices(
        "6a",
        _("From the first layer to the answers, with 8 bits: where does the SQNR go?"),
        among=(
            _("it falls from layer to layer to the end"),
            _("it falls at first, and rises before the answers"),
            _("it rises from layer to layer"),
            _("it stays as it is"),
        ),
        measured=_("{first:.1f} dB behind the first layer, {least:.1f} dB at the lowest, {last:.1f} dB in the answers"),
    ),
    Choices(
        "6b",
        _("With 4 bits, what spoils the answers more: to quantize the weights alone, or the activations alone?"),
        among=(_("the weights"), _("the activations")),
        measured=_("weights alone {weights:.1f} dB, activations alone {activations:.1f} dB"),
    ),
    Number(
        "6c",
        _(
            "All 22 layers have 4 bits. How many, the most sensitive first, have to get 8 bits until the answers win 3 dB?"
        ),
        between=(1, 22),
        unit=_("layers"),
        within=1,
        measured=_("{answer:g} {unit} bring {gain:.1f} dB; as many of the least sensitive bring {other:.1f} dB"),
    ),
    Choices(
        "6d",
        _("3 bits for a weight on average, well spent: which layers get more than 3?"),
        among=(_("small ones"), _("large ones"), _("size does not tell")),
        measured=_("more for {more}; fewer for {fewer}"),
    ),
)
