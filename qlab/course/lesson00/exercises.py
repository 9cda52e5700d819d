"""Lesson 0, from float to int8: the exercises and the questions."""

from __future__ import annotations

import math

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def how_many_codes(bits):
    """How many different codes there are with so many bits."""
    return 2**bits


def bytes_needed(weights, bits):
    """How many whole bytes hold so many weights, when each takes so many bits and none is wasted between them."""
    return -(-weights * bits // 8)  # rounded up


def error_after_rounding(x, scale):
    """How far x is off, without a sign, when it is stored as the nearest code times scale."""
    return abs(round(x / scale) * scale - x)


# --- mistakes: what each of them is told stands in its docstring


def twice_the_bits(bits):
    """Each further bit doubles the number of codes; it does not add two."""
    return 2 * bits


def highest_code(bits):
    """That is the highest code when they start at 0. Count the 0 too."""
    return 2**bits - 1


def squares(bits):
    """Two to the power of the bits, not the bits squared."""
    return bits**2


def another_operation(bits):
    """In Python ^ is no power but another operation on bits, the exclusive or. Write 2 ** bits."""
    return 2 ^ bits


def one_bit_less(bits):
    """That is half of them: bits - 1 of the bits."""
    return 2 ** (bits - 1)


def gives_bits(weights, bits):
    """Those are bits. A byte has 8."""
    return weights * bits


def whole_bytes_each(weights, bits):
    """You give each weight whole bytes of its own. Two weights of 4 bits share one."""
    return weights * math.ceil(bits / 8)


def drops_the_rest(weights, bits):
    """The bits that are left over need a byte too: round up."""
    return weights * bits // 8


def whole_weights_a_byte(weights, bits):
    """You put whole weights into each byte and waste the bits that are left. None is wasted: the weights lie end to end."""
    return math.ceil(weights / (8 // bits))


def rounds_to_nearest(weights, bits):
    """You round to the nearest number of bytes. One bit too many needs a byte more: round up."""
    return round(weights * bits / 8)


def gives_a_fraction(weights, bits):
    """There is no part of a byte: round up to a whole number."""
    return weights * bits / 8


def one_byte_more(weights, bits):
    """You always add a byte. When the bits fill all bytes, none is left over: round up."""
    return weights * bits // 8 + 1


def cuts_off(x, scale):
    """You cut the fraction off. The nearest code may be the one above."""
    return abs(math.trunc(x / scale) * scale - x)


def always_up(x, scale):
    """You round up. The nearest code may be the one below."""
    return abs(math.ceil(x / scale) * scale - x)


def keeps_the_sign(x, scale):
    """How far, without a sign: take abs of it."""
    return round(x / scale) * scale - x


def at_most(x, scale):
    """Half a scale is the most that it can be off. How far is this x off?"""
    return scale / 2


def gives_the_value(x, scale):
    """That is the number that is read again. How far is it from x?"""
    return round(x / scale) * scale


def error_in_codes(x, scale):
    """That error is in codes. One code is a step of scale."""
    return abs(round(x / scale) - x / scale)


def compares_the_code(x, scale):
    """You compare x with the code. Multiply the code by the scale first: that is the number which is read again."""
    return abs(round(x / scale) - x)


# --- exercises and questions

EXERCISES = (
    Exercise(
        "0.1",
        how_many_codes,
        cases=((1,), (2,), (3,), (8,)),
        hints=(_("One bit is 0 or 1: two codes. With a second bit each of them comes twice."), _("2 ** bits")),
        mistakes=(another_operation, twice_the_bits, highest_code, squares, one_bit_less),
    ),
    Exercise(
        "0.2",
        bytes_needed,
        cases=((3, 8), (3, 4), (5, 1), (3, 3), (5, 3), (270_000, 4)),
        hints=(
            _("All weights together take weights * bits bits. A byte has 8."),
            _("math.ceil rounds up; so does -(-bits_in_all // 8)."),
        ),
        mistakes=(
            gives_bits,
            whole_bytes_each,
            drops_the_rest,
            whole_weights_a_byte,
            rounds_to_nearest,
            one_byte_more,
            gives_a_fraction,
        ),
    ),
    Exercise(
        "0.3",
        error_after_rounding,
        cases=((0.3, 0.25), (0.9, 0.5), (-0.9, 0.5), (1.0, 0.25)),
        hints=(
            _("Which code is nearest? round(x / scale). Which number does it stand for?"),
            _("abs(code * scale - x)"),
        ),
        mistakes=(cuts_off, always_up, keeps_the_sign, at_most, gives_the_value, error_in_codes, compares_the_code),
    ),
)

QUIZ = (
    Question(
        _("What does calibration need?"),
        Choice(_("images with labels, and hours"), _("That is training. Calibration only looks at the ranges.")),
        Choice(
            _("some images, without labels"),
            _("The network looks at them once, and the range of each activation is written down."),
            right=True,
        ),
        Choice(_("the test images"), _("Those are for the measurement at the end. Nothing may be chosen on them.")),
    ),
    Question(
        _("Why is an int8 file about a quarter of a float32 file?"),
        Choice(_("three of four weights are left out"), _("All of them are there; each takes fewer bits.")),
        Choice(
            _("a weight takes 8 bits, not 32"), _("The scales come on top, but many weights share one."), right=True
        ),
        Choice(_("it is compressed like a zip file"), _("Nothing is packed. Each weight simply has a shorter number.")),
    ),
    Question(
        _("Fake quantization rounds all numbers and computes on in float. What is it good for?"),
        Choice(_("it makes the network faster"), _("It makes it slower: the rounding comes on top.")),
        Choice(_("it makes the file smaller"), _("The file would still hold float numbers.")),
        Choice(
            _("it shows what rounding does to the answers, with any number of bits"),
            _("The rounding is the same as in integers, so the accuracy is nearly the same too."),
            right=True,
        ),
    ),
)
