"""Lesson 1, numbers with few bits: the exercises and the questions."""

from __future__ import annotations

import math

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def step(lo, hi, bits):
    """The distance of two neighbours, when 2**bits numbers share out the range from lo to hi evenly."""
    return (hi - lo) / (2**bits - 1)


def to_codes(x, scale, zero_point, bits):
    """The codes of a float tensor x: whole numbers from 0 to 2**bits - 1, as a float tensor."""
    return (torch.round(x / scale) + zero_point).clamp(0, 2**bits - 1)


def to_values(codes, scale, zero_point):
    """The real numbers that the codes stand for: a float tensor."""
    return (codes - zero_point) * scale


def grid_for(lo, hi, bits):
    """(scale, zero_point) of the grid of 2**bits numbers for lo to hi, on which 0 is exact; lo <= 0 <= hi."""
    scale = (hi - lo) / (2**bits - 1)
    return scale, round(-lo / scale)


def sqnr(x, rounded):
    """The signal-to-quantization-noise ratio in decibels: 10 log10(sum of x squared / sum of errors squared)."""
    return 10 * math.log10(float((x**2).sum() / ((x - rounded) ** 2).sum()))


# --- mistakes: what each of them is told stands in its docstring


def gaps_are_numbers(lo, hi, bits):
    """You share the range among the numbers. Count the gaps between them."""
    return (hi - lo) / 2**bits


def bits_are_numbers(lo, hi, bits):
    """With b bits there are 2**b numbers, not b."""
    return (hi - lo) / (bits - 1)


def bits_are_gaps(lo, hi, bits):
    """With b bits there are 2**b numbers, and between them one gap less; not b gaps."""
    return (hi - lo) / bits


def range_from_zero(lo, hi, bits):
    """The range does not begin at 0: subtract lo."""
    return hi / (2**bits - 1)


def one_bit_less(lo, hi, bits):
    """2**bits numbers, not 2**(bits - 1)."""
    return (hi - lo) / (2 ** (bits - 1) - 1)


def adds_the_ends(lo, hi, bits):
    """How wide the range is, is the upper end minus the lower one: hi - lo."""
    return (hi + lo) / (2**bits - 1)


def truncates(x, scale, zero_point, bits):
    """You cut the fraction off instead of rounding."""
    return (torch.trunc(x / scale) + zero_point).clamp(0, 2**bits - 1)


def one_code_too_many(x, scale, zero_point, bits):
    """The highest code is 2**bits - 1, since the lowest is 0."""
    return (torch.round(x / scale) + zero_point).clamp(0, 2**bits)


def does_not_clamp(x, scale, zero_point, bits):
    """Values beyond the grid need the nearest code there is: clamp."""
    return torch.round(x / scale) + zero_point


def multiplies(x, scale, zero_point, bits):
    """Divide by the scale; you multiply by it."""
    return (torch.round(x * scale) + zero_point).clamp(0, 2**bits - 1)


def subtracts(x, scale, zero_point, bits):
    """Add the zero point; you subtract it. The value 0 has to get the code zero_point."""
    return (torch.round(x / scale) - zero_point).clamp(0, 2**bits - 1)


def clamps_too_early(x, scale, zero_point, bits):
    """Clamp last: adding the zero point afterwards leaves the codes there are."""
    return torch.round(x / scale).clamp(0, 2**bits - 1) + zero_point


def rounds_halves_up(x, scale, zero_point, bits):
    """torch.floor(x + 0.5) rounds halves up. torch.round takes the even neighbour, so that halves do not drift."""
    return (torch.floor(x / scale + 0.5) + zero_point).clamp(0, 2**bits - 1)


def subtracts_too_late(codes, scale, zero_point):
    """The zero point is a code: subtract it before you multiply."""
    return codes * scale - zero_point


def adds_the_zero_point(codes, scale, zero_point):
    """Subtract the zero point; you add it."""
    return (codes + zero_point) * scale


def forgets_the_zero_point(codes, scale, zero_point):
    """Code zero_point has to become the value 0."""
    return codes * scale


def divides(codes, scale, zero_point):
    """A code counts steps: multiply by the scale, do not divide."""
    return (codes - zero_point) / scale


def other_way_round(codes, scale, zero_point):
    """Codes above the zero point stand for positive values: code minus zero point."""
    return (zero_point - codes) * scale


def does_not_round(lo, hi, bits):
    """A zero point is a code, a whole number: round it."""
    return step(lo, hi, bits), -lo / step(lo, hi, bits)


def wrong_sign(lo, hi, bits):
    """With lo below 0, the code of 0 is above 0: mind the sign."""
    return step(lo, hi, bits), round(lo / step(lo, hi, bits))


def rounds_up(lo, hi, bits):
    """You round the zero point up. Round it to the nearest code."""
    return step(lo, hi, bits), math.ceil(-lo / step(lo, hi, bits) - 1e-9)


def rounds_down(lo, hi, bits):
    """You cut the fraction off. Round the zero point to the nearest code."""
    return step(lo, hi, bits), math.floor(-lo / step(lo, hi, bits) + 1e-9)


def steps_are_codes(lo, hi, bits):
    """2**bits codes have 2**bits - 1 steps between them."""
    return (hi - lo) / 2**bits, round(-lo / ((hi - lo) / 2**bits))


def range_is_hi(lo, hi, bits):
    """The range is hi - lo wide, not hi."""
    return hi / (2**bits - 1), round(-lo / (hi / (2**bits - 1)))


def twenty_for_ten(x, rounded):
    """Powers are squares: with sums of squares the factor is 10, not 20."""
    return 2 * sqnr(x, rounded)


def upside_down(x, rounded):
    """Signal above noise: your ratio is upside down."""
    return -sqnr(x, rounded)


def noise_is_the_result(x, rounded):
    """The noise is x - rounded, not rounded."""
    return 10 * math.log10(float((x**2).sum() / (rounded**2).sum()))


def does_not_square(x, rounded):
    """A power is a square: square the signal and the errors before you sum them up."""
    return 10 * math.log10(float(x.abs().sum() / (x - rounded).abs().sum()))


def natural_logarithm(x, rounded):
    """A decibel is 10 log10: you took the natural logarithm."""
    return sqnr(x, rounded) * math.log(10)


# --- exercises and questions

# Only 0.5, 1.5 and 2.5 lie half-way between two rungs, exactly, in any arithmetic.
X = torch.tensor([-1.0, -0.3, 0.0, 0.24, 0.27, 0.33, 0.76, 1.1, 40.0])
WAVE = torch.linspace(-1, 1, 101)

EXERCISES = (
    Exercise(
        "1.1",
        step,
        cases=((0.0, 3.0, 2), (0.0, 1.0, 3), (-1.0, 1.0, 4), (-0.5, 2.05, 8)),
        hints=(
            _("Draw it for 2 bits: four dots on a line. How many gaps are between them?"),
            _("n numbers have n - 1 gaps between them."),
        ),
        mistakes=(gaps_are_numbers, bits_are_numbers, bits_are_gaps, range_from_zero, one_bit_less, adds_the_ends),
    ),
    Exercise(
        "1.2",
        to_codes,
        cases=(
            (torch.tensor([0.0]), 1.0, 0, 2),
            (torch.tensor([0.6, 1.4]), 1.0, 0, 2),
            (torch.tensor([1.0]), 0.5, 3, 4),
            (torch.tensor([-9.0, 9.0]), 1.0, 1, 2),
            (torch.tensor([0.5, 1.5, 2.5]), 1.0, 0, 4),
            (X, 0.1, 10, 5),
        ),
        hints=(
            _("Three steps: how many steps is x from 0, which code is that, and is there such a code?"),
            _("Divide by the scale and round; add the zero point; then clamp (torch.clamp) to the codes there are."),
            _("The highest of the 2**bits codes is 2**bits - 1."),
        ),
        mistakes=(
            truncates,
            one_code_too_many,
            does_not_clamp,
            multiplies,
            clamps_too_early,
            subtracts,
            rounds_halves_up,
        ),
    ),
    Exercise(
        "1.3",
        to_values,
        cases=(
            (torch.tensor([2.0]), 0.5, 2),
            (torch.tensor([0.0, 2.0, 7.0]), 0.5, 2),
            (torch.arange(16.0), 0.25, 5),
        ),
        hints=(
            _("Which code stands for the value 0? How far is your code from that one?"),
            _("Subtract the zero point first, then multiply by the scale."),
        ),
        mistakes=(subtracts_too_late, adds_the_zero_point, forgets_the_zero_point, divides, other_way_round),
    ),
    Exercise(
        "1.4",
        grid_for,
        cases=(
            (0.0, 1.0, 1),
            (0.0, 5.1, 8),
            (-1.0, 2.0, 2),
            (-1.0, 3.0, 3),
            (-0.5, 1.0, 3),
            (-3.3, 1.1, 4),
        ),
        hints=(
            _("The scale is exercise 1.1's step."),
            _("The value lo gets the code 0 or nearly so. How many steps is it from lo to 0?"),
            _("That number of steps is -lo / scale. A zero point is a whole number: round it."),
        ),
        mistakes=(does_not_round, rounds_up, rounds_down, wrong_sign, range_is_hi, steps_are_codes),
    ),
    Exercise(
        "1.5",
        sqnr,
        cases=(
            (torch.tensor([1.0]), torch.tensor([0.9])),
            (torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.25, -2.0, 2.75])),
            (WAVE, torch.round(WAVE * 8) / 8),
        ),
        hints=(
            _("The signal is x, the noise is what rounding added: x - rounded."),
            _("Square both and sum them up before you divide."),
            _("10 * math.log10(ratio); float(...) makes a number of a tensor with one element."),
        ),
        mistakes=(twenty_for_ten, upside_down, noise_is_the_result, natural_logarithm, does_not_square),
        tolerance=1e-4,
    ),
)

QUIZ = (
    Question(
        _("A grid has the scale 0.1. How far can a value that is inside its range be from its rounded value?"),
        Choice(_("at most 0.1"), _("That is a whole step. Every value has a neighbour that is nearer than that.")),
        Choice(_("at most 0.05"), _("Half a step: further from one neighbour means nearer to the other."), right=True),
        Choice(_("it depends on the value's size"), _("That is how floating point behaves. Here all steps are equal.")),
    ),
    Question(
        _("You add one bit to every weight. What happens to the rounding noise?"),
        Choice(
            _("its power falls to a quarter, about 6 dB"), _("Half the step, a quarter of step**2 / 12."), right=True
        ),
        Choice(_("its power falls to a half, about 3 dB"), _("The step halves; power goes with its square.")),
        Choice(_("it stays, only the range grows"), _("The range stays the same: twice as many numbers share it.")),
    ),
    Question(
        _("Why must 0 be exactly on the grid?"),
        Choice(_("so that negative numbers can be stored"), _("A grid can hold those wherever 0 is.")),
        Choice(_("because the processor cannot subtract"), _("It can; the zero point is subtracted all the time.")),
        Choice(
            _("because padding and ReLU make very many zeros"),
            _("An error in the value 0 would be the same in all of them, and such errors add up."),
            right=True,
        ),
    ),
)
