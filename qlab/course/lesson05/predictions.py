"""Lesson 5: what a student says before it is shown."""

from __future__ import annotations

from qlab.course.language import _
from qlab.course.predict import Choices, Number

LAYERS = (_("linear 64 to 10"), _("8 channels"), _("32 channels"), _("128 channels"))

PREDICTIONS = (
    Choices(
        "5a",
        _("Inputs and weights have 8 bits. How many does the largest of the four products below need, with its sign?"),
        among=(_("8 bits: the product of two bytes is a byte"), _("up to 16 bits"), _("up to 32 bits")),
        measured=_("the largest is {largest:,}, which takes {bits} bits with its sign"),
    ),
    Choices(
        "5b",
        _("How many bits must the activations give away, so that no pair saturates?"),
        among=(_("1 bit"), _("2 bits"), _("4 bits")),
        measured=_("a pair then reaches {most:,}, and an int16 ends at 32,767"),
    ),
    Choices(
        "5c",
        _("Which of the two should give the bit, weights or activations?"),
        among=(_("the weights"), _("the activations"), _("it makes no difference")),
        measured=_(
            "{weights:.1f} dB with 7-bit weights, {activations:.1f} dB with 7-bit activations, {eight:.1f} dB with 8 bits"
        ),
    ),
    Number(
        "5d",
        _("One image, one thread: how many times as fast as float32 is int8?"),
        between=(0, 8),
        step=0.5,
        unit=_("times"),
        within=0.5,
        measured=_("{answer:.1f} times as fast on one image"),
    ),
    Number(
        "5e",
        _("And on 32 images at once?"),
        between=(0, 8),
        step=0.5,
        unit=_("times"),
        within=0.5,
        measured=_("{answer:.1f} times as fast on 32 images"),
    ),
    Choices(
        "5f",
        _("Python no longer finds the next kernel. Which gains more from that?"),
        among=(_("one image"), _("a batch of 32"), _("both the same")),
        measured=_("one image gets {one:.2f} times as fast, 32 images {many:.2f} times"),
    ),
    Choices(
        "5g",
        _("Which of the four layers gains most from int8?"),
        among=LAYERS,
        measured=_("int8 is {most:.1f} times as fast there"),
    ),
    Choices(
        "5h",
        _("And which gains least?"),
        among=LAYERS,
        measured=_("int8 is {least:.1f} times as fast there"),
    ),
)
