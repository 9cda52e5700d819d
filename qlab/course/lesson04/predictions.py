"""Lesson 4: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

PREDICTIONS = (
    Number(
        "4a",
        _("4 bits, and one scale for the tensor: in how many of its 96 channels does every weight become 0?"),
        between=(0, 96),
        step=1,
        unit=_("channels"),
        within=8,
        measured=_("all weights become 0 in {answer:g} of 96 channels, and in {dead:g} of those there was next to nothing before"),
    ),
    Number(
        "4b",
        _("With how many bits is one scale a tensor as good, for the median living channel, as 4 bits with one a channel?"),
        between=(4, 14),
        step=1,
        unit=_("bits"),
        within=1,
        measured=_("{answer:g} bits per tensor give the median living channel {tensor:.1f} dB, 4 bits per channel {channel:.1f} dB"),
    ),
    Number(
        "4c",
        _("One scale a tensor, all layers: how few bits keep the network within five points of float?"),
        between=(3, 8),
        step=1,
        unit=_("bits"),
        measured=_("per tensor {answer:g} bits: {accuracy:.1f} %, float has {float:.1f} %"),
    ),
    Number(
        "4d",
        _("And with one scale a channel?"),
        between=(3, 8),
        step=1,
        unit=_("bits"),
        measured=_("per channel {answer:g} bits: {accuracy:.1f} %, float has {float:.1f} %"),
    ),
    Choices(
        "4e",
        _("Both layers are equalized, with 6 bits and one scale a tensor. What happens to the SQNR of a living channel?"),
        among=(
            _("one layer gains what the other loses"),
            _("both gain about the same"),
            _("one gains much, the other little or nothing"),
            _("both lose: these are no longer the weights that were trained"),
        ),
        measured=_("the first layer goes from {first:.1f} to {first_after:.1f} dB, the depthwise one from {second:.1f} to "
                   "{second_after:.1f} dB"),
    ),
    Choices(
        "4f",
        _("4 bits and one scale a tensor: what brings the accuracy back?"),
        among=(
            _("equalization alone helps more than bias correction alone"),
            _("bias correction alone helps more than equalization alone"),
            _("neither helps alone (by ten points), only both together"),
        ),
        measured=_("no repair {nothing:.1f} %, equalization {equalized:.1f} %, bias correction {corrected:.1f} %, both {both:.1f} %"),
    ),
)  # fmt: skip
