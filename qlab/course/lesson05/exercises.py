"""Lesson 5, integer arithmetic: the exercises and the questions."""

from __future__ import annotations

import math

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def integer_dot(q_x, z_x, q_w, z_w):
    """The sum of (q_x - z_x) * (q_w - z_w), an int; q_x is a uint8 tensor, q_w an int8 tensor, z_x and z_w are ints."""
    return int(((q_x.to(torch.int32) - z_x) * (q_w.to(torch.int32) - z_w)).sum())


def safe_terms(x_bits, w_bits, sum_bits):
    """How many products of an unsigned code (x_bits) and a signed one (w_bits, from -m to m) always fit a signed sum."""
    product = (2**x_bits - 1) * (2 ** (w_bits - 1) - 1)
    return (2 ** (sum_bits - 1) - 1) // product


def fixed_point(multiplier):
    """(mantissa, shift), two ints: mantissa / 2**shift is nearest to multiplier, and 2**30 <= mantissa < 2**31."""
    fraction, exponent = math.frexp(multiplier)  # multiplier = fraction * 2**exponent, 0.5 <= fraction < 1
    return round(fraction * 2**31), 31 - exponent


def requantize(total, mantissa, shift, zero_point, bits):
    """round(total * mantissa / 2**shift), halves up, plus zero_point, clamped to 0 ... 2**bits - 1; ints only."""
    scaled = (total * mantissa + (1 << (shift - 1))) >> shift
    return min(max(scaled + zero_point, 0), 2**bits - 1)


def saturating_dot(q_x, q_w):
    """The sum of q_x * q_w, products added in pairs (0 and 1, 2 and 3, ...), each pair an int16 that saturates; an int."""
    pairs = (q_x.to(torch.int32) * q_w.to(torch.int32)).reshape(-1, 2).sum(1)
    return int(pairs.clamp(-(2**15), 2**15 - 1).sum())


# --- mistakes: what each of them is told stands in its docstring


def forgets_z_x(q_x, z_x, q_w, z_w):
    """Subtract the zero point of x too: the code z_x stands for the value 0."""
    return integer_dot(q_x, 0, q_w, z_w)


def forgets_z_w(q_x, z_x, q_w, z_w):
    """The zero point of w is missing. It is 0 for symmetric weights, but not here."""
    return integer_dot(q_x, z_x, q_w, 0)


def subtracts_in_bytes(q_x, z_x, q_w, z_w):
    """A uint8 tensor less a number stays uint8: 64 - 100 wraps around to 220. Go to int32 before you subtract."""
    return int(((q_x - z_x) * (q_w - z_w)).sum())


def multiplies_in_bytes(q_x, z_x, q_w, z_w):
    """Your products do not fit 8 bits and wrap around: the product of two int8 tensors is int8. Stay in int32."""
    x, w = (q_x.to(torch.int32) - z_x).to(torch.int8), (q_w.to(torch.int32) - z_w).to(torch.int8)
    return int((x * w).sum(dtype=torch.int32))


def multiplies_in_int16(q_x, z_x, q_w, z_w):
    """uint8 times int8 is int16 in torch. Without zero points that is enough; here a product can be larger: use int32."""
    x, w = (q_x.to(torch.int16) - z_x), (q_w.to(torch.int16) - z_w)
    return int((x * w).sum())


def corrects_one_side(q_x, z_x, q_w, z_w):
    """If you multiply it out, there are four terms: do not forget n * z_x * z_w."""
    return integer_dot(q_x, z_x, q_w, z_w) - len(q_x) * z_x * z_w


def adds_the_zero_points(q_x, z_x, q_w, z_w):
    """A code less its zero point is the value in steps: subtract, do not add."""
    return integer_dot(q_x, -z_x, q_w, -z_w)


def sums_before_it_multiplies(q_x, z_x, q_w, z_w):
    """First the products, then their sum: the product of two sums is something else."""
    return int((q_x.to(torch.int32) - z_x).sum()) * int((q_w.to(torch.int32) - z_w).sum())


def unsigned_sum(x_bits, w_bits, sum_bits):
    """One of the bits of the sum is its sign."""
    return (2**sum_bits - 1) // ((2**x_bits - 1) * (2 ** (w_bits - 1) - 1))


def unsigned_weights(x_bits, w_bits, sum_bits):
    """The weights are signed: their largest code is 2**(w_bits - 1) - 1."""
    return (2 ** (sum_bits - 1) - 1) // ((2**x_bits - 1) * (2**w_bits - 1))


def counts_bits(x_bits, w_bits, sum_bits):
    """Count with the largest product itself. Its number of bits is only a rough bound."""
    return 2 ** max(0, sum_bits - 1 - (x_bits + w_bits - 1))


def largest_code_too_large(x_bits, w_bits, sum_bits):
    """2**bits is no code: the largest is one less, for x and for the weights."""
    return (2 ** (sum_bits - 1) - 1) // (2**x_bits * 2 ** (w_bits - 1))


def signed_inputs(x_bits, w_bits, sum_bits):
    """The codes of x have no sign: their largest is 2**x_bits - 1."""
    return (2 ** (sum_bits - 1) - 1) // ((2 ** (x_bits - 1) - 1 or 1) * (2 ** (w_bits - 1) - 1))


def not_whole(x_bits, w_bits, sum_bits):
    """Part of a product cannot be added: round down, with //."""
    return (2 ** (sum_bits - 1) - 1) / ((2**x_bits - 1) * (2 ** (w_bits - 1) - 1))


def rounds_the_terms(x_bits, w_bits, sum_bits):
    """To the nearest is up, now and then, and then the last product does not fit: round down, with //."""
    return round(not_whole(x_bits, w_bits, sum_bits))


def rounds_the_terms_up(x_bits, w_bits, sum_bits):
    """You round up, but the last product then fits in part only: round down, with //."""
    return math.ceil(not_whole(x_bits, w_bits, sum_bits))


def one_term_too_many(x_bits, w_bits, sum_bits):
    """Round down: the last term does not fit whole."""
    return safe_terms(x_bits, w_bits, sum_bits) + 1


def always_31(multiplier):
    """A shift of 31 leaves a small multiplier few bits. Make the mantissa large, and shift further."""
    return round(multiplier * 2**31), 31


def one_bit_less(multiplier):
    """Your mantissa is below 2**30: there is room for one more bit."""
    fraction, exponent = math.frexp(multiplier)
    return round(fraction * 2**30), 30 - exponent


def wrong_direction(multiplier):
    """multiplier = mantissa / 2**shift: a smaller multiplier needs a larger shift."""
    fraction, exponent = math.frexp(multiplier)
    return round(fraction * 2**31), 31 + exponent


def cuts_the_mantissa(multiplier):
    """int() cuts the fraction off: round to the nearest mantissa."""
    fraction, exponent = math.frexp(multiplier)
    return int(fraction * 2**31), 31 - exponent


def keeps_the_fraction(multiplier):
    """The mantissa is an integer: multiply the fraction by 2**31, and round."""
    fraction, exponent = math.frexp(multiplier)
    return fraction, -exponent


def one_bit_too_many(multiplier):
    """Your mantissa reaches 2**31, which a signed integer of 32 bits does not hold: one bit less."""
    fraction, exponent = math.frexp(multiplier)
    return round(fraction * 2**32), 32 - exponent


def shifts_without_rounding(total, mantissa, shift, zero_point, bits):
    """A shift alone rounds down. Add half of what 1 in the result is worth before you shift."""
    return min(max(((total * mantissa) >> shift) + zero_point, 0), 2**bits - 1)


def rounds_halves_to_even(total, mantissa, shift, zero_point, bits):
    """round() takes the even neighbour of a half: round(2.5) is 2, but halves go up. Add half before you shift."""
    return min(max(round(total * mantissa / 2**shift) + zero_point, 0), 2**bits - 1)


def cuts_off(total, mantissa, shift, zero_point, bits):
    """int() cuts the fraction off, towards 0. The nearest code is wanted: add half, and shift."""
    return min(max(int(total * mantissa / 2**shift) + zero_point, 0), 2**bits - 1)


def half_of_one(total, mantissa, shift, zero_point, bits):
    """Before the shift one half is 1 << (shift - 1): it is shifted together with the product."""
    return min(max(((total * mantissa + 1) >> shift) + zero_point, 0), 2**bits - 1)


def rounds_away_from_zero(total, mantissa, shift, zero_point, bits):
    """Negative sums too: halves go up, so -2.5 becomes -2. Adding half and shifting does that by itself."""
    size = (abs(total) * mantissa + (1 << (shift - 1))) >> shift
    return min(max((size if total >= 0 else -size) + zero_point, 0), 2**bits - 1)


def leaves_the_codes(total, mantissa, shift, zero_point, bits):
    """The result must be a code: clamp to 0 ... 2**bits - 1."""
    return ((total * mantissa + (1 << (shift - 1))) >> shift) + zero_point


def clamps_to_signed_codes(total, mantissa, shift, zero_point, bits):
    """The codes of the output have no sign: clamp to 0 ... 2**bits - 1."""
    code = leaves_the_codes(total, mantissa, shift, zero_point, bits)
    return min(max(code, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)


def adds_twice_the_half(total, mantissa, shift, zero_point, bits):
    """1 << shift is a whole one: half of it is 1 << (shift - 1)."""
    return min(max(((total * mantissa + (1 << shift)) >> shift) + zero_point, 0), 2**bits - 1)


def clamps_before_the_zero_point(total, mantissa, shift, zero_point, bits):
    """Clamp last: first the zero point, then the clamp."""
    return requantize(total, mantissa, shift, 0, bits) + zero_point


def wraps_around(q_x, q_w):
    """You let pairs wrap around, as numpy's int16 does. To saturate is to stop at the ends: clamp."""
    pairs = (q_x.to(torch.int32) * q_w.to(torch.int32)).reshape(-1, 2).sum(1)
    return int(pairs.to(torch.int16).sum(dtype=torch.int32))


def saturates_each_product(q_x, q_w):
    """That is the exact sum: no pair stops. A single product always fits 16 bits; it is the sum of two that saturates."""
    return int((q_x.to(torch.int32) * q_w.to(torch.int32)).clamp(-(2**15), 2**15 - 1).sum())


def saturates_as_it_goes(q_x, q_w):
    """Your running sum saturates too. Only the pairs have 16 bits; they are added up in 32."""
    total = 0
    for pair in (q_x.to(torch.int32) * q_w.to(torch.int32)).reshape(-1, 2).sum(1).tolist():
        total = min(max(total + pair, -(2**15)), 2**15 - 1)
    return total


def stops_at_one_end(q_x, q_w):
    """An int16 has two ends: clamp to -2**15 as well."""
    pairs = (q_x.to(torch.int32) * q_w.to(torch.int32)).reshape(-1, 2).sum(1)
    return int(pairs.clamp(max=2**15 - 1).sum())


def saturates_the_total(q_x, q_w):
    """Only the pairs have 16 bits; their sum has 32."""
    total = int((q_x.to(torch.int32) * q_w.to(torch.int32)).sum())
    return min(max(total, -(2**15)), 2**15 - 1)


def pairs_far_apart(q_x, q_w):
    """Neighbours make a pair: 0 and 1, 2 and 3. You pair the first half with the second."""
    pairs = (q_x.to(torch.int32) * q_w.to(torch.int32)).reshape(2, -1).sum(0)
    return int(pairs.clamp(-(2**15), 2**15 - 1).sum())


# --- exercises and questions

U8, S8 = torch.uint8, torch.int8
X = torch.tensor([182, 64, 255, 0], dtype=U8)
W = torch.tensor([87, -62, 127, 34], dtype=S8)
LARGE_X = torch.tensor([255, 255, 200, 10, 255, 250], dtype=U8)
LARGE_W = torch.tensor([127, 100, -127, 3, -127, -127], dtype=S8)

EXERCISES = (
    Exercise(
        "5.1",
        integer_dot,
        cases=(
            (torch.tensor([3], dtype=U8), 1, torch.tensor([5], dtype=S8), 0),
            (torch.tensor([3, 0], dtype=U8), 1, torch.tensor([5, 2], dtype=S8), 1),
            (X, 100, W, 0),
            (X, 100, W, -7),
            (torch.tensor([255, 255], dtype=U8), 0, torch.tensor([127, 127], dtype=S8), -100),
        ),
        hints=(
            _("What is one value of x, in steps? The code less the zero point."),
            _("A uint8 tensor less a number is uint8 again, and 0 - 1 becomes 255. x.to(torch.int32) gives room."),
            _("Subtract both zero points, multiply, .sum(), int(...)."),
        ),
        mistakes=(
            subtracts_in_bytes, forgets_z_x, forgets_z_w, multiplies_in_bytes, multiplies_in_int16, corrects_one_side,
            adds_the_zero_points, sums_before_it_multiplies,
        ),
    ),
    Exercise(
        "5.2",
        safe_terms,
        cases=((1, 2, 8), (2, 2, 8), (3, 4, 8), (8, 8, 16), (4, 4, 16), (7, 8, 16), (8, 8, 32)),
        hints=(
            _("How large can one product be? The largest code of x times the largest code of w."),
            _("The largest code of x is 2**x_bits - 1, that of w is 2**(w_bits - 1) - 1."),
            _("A signed number of sum_bits reaches 2**(sum_bits - 1) - 1. Divide, and round down with //."),
        ),
        mistakes=(
            unsigned_sum, unsigned_weights, signed_inputs, counts_bits, largest_code_too_large, not_whole, rounds_the_terms,
            rounds_the_terms_up, one_term_too_many,
        ),
    ),
    Exercise(
        "5.3",
        fixed_point,
        cases=((0.5,), (0.75,), (0.003,), (1.9,), (1e-6 / 3,)),
        hints=(
            _("math.frexp(m) gives (fraction, exponent) with m = fraction * 2**exponent and 0.5 <= fraction < 1."),
            _("fraction * 2**31 lies between 2**30 and 2**31. Round it."),
            _("m = fraction * 2**31 / 2**(31 - exponent)."),
        ),
        mistakes=(always_31, one_bit_less, one_bit_too_many, wrong_direction, cuts_the_mantissa, keeps_the_fraction),
        tolerance=1e-12,
    ),
    Exercise(
        "5.4",
        requantize,
        cases=(
            (3, 1, 1, 0, 8),
            (5, 1, 1, 0, 8),
            (-5, 1, 1, 10, 8),
            (-7, 1, 1, 10, 8),
            (9, 1, 2, 0, 8),
            (32077, 1363567565, 39, 64, 8),
            (-20000, 1363567565, 39, 64, 8),
            (-30000, 1363567565, 39, 64, 8),
            (100000, 1363567565, 39, 64, 8),
            (7, 3 * 2**29, 33, 2, 4),
        ),
        hints=(
            _("a >> s divides by 2**s and rounds down. What has to be added before, so that it rounds to the nearest?"),
            _("Half of 2**shift is 1 << (shift - 1)."),
            _("Then add the zero point, and clamp with min and max."),
        ),
        mistakes=(
            shifts_without_rounding, rounds_halves_to_even, cuts_off, half_of_one, rounds_away_from_zero,
            leaves_the_codes, clamps_before_the_zero_point, clamps_to_signed_codes, adds_twice_the_half,
        ),
    ),
    Exercise(
        "5.5",
        saturating_dot,
        cases=(
            (torch.tensor([1, 2], dtype=U8), torch.tensor([3, 4], dtype=S8)),
            (torch.tensor([255, 255], dtype=U8), torch.tensor([127, 127], dtype=S8)),
            (torch.tensor([255, 255], dtype=U8), torch.tensor([-127, -127], dtype=S8)),
            (torch.tensor([255, 9, 255, 9], dtype=U8), torch.tensor([127, 1, 100, 1], dtype=S8)),
            (LARGE_X, LARGE_W),
        ),
        hints=(
            _("First all products, in int32. Then make rows of two: .reshape(-1, 2)."),
            _("To saturate is to stop at the ends of an int16: clamp to -2**15 ... 2**15 - 1."),
            _("The clamped pairs are added in 32 bits, where nothing is lost."),
        ),
        mistakes=(
            wraps_around, saturates_each_product, saturates_the_total, pairs_far_apart, stops_at_one_end,
            saturates_as_it_goes,
        ),
    ),
)  # fmt: skip

QUIZ = (
    Question(
        _("Codes have 8 bits. Why are their products added up in 32 bits?"),
        Choice(
            _("so that the result is as exact as float32"), _("All sums of integers are exact, until they overflow.")
        ),
        Choice(
            _("a product can need 16 bits, and a layer adds hundreds of them"),
            _("16 bits hold a single such product; 32 bits hold more than 60,000."),
            right=True,
        ),
        Choice(_("because the output has 32 bits"), _("The output is a code of 8 bits again: the sum is requantized.")),
    ),
    Question(
        _("A processor has no VNNI. What does reduce_range=True (7-bit weights) change?"),
        Choice(
            _("two products always fit the 16 bits in which they are added"),
            _("255 * 63 * 2 = 32,130 is below 32,767. Nothing saturates, for one bit of resolution."),
            right=True,
        ),
        Choice(_("the network becomes smaller"), _("A code of 7 bits is stored in a byte too.")),
        Choice(_("the sums need fewer terms"), _("The number of terms is that of the layer's inputs, as before.")),
    ),
    Question(
        _("A layer with few weights runs on one image. It is slower in int8 than in float. What is the cause?"),
        Choice(
            _("integer multiplications are slower than float ones"), _("They are not; more of them fit a register.")
        ),
        Choice(_("int8 moves more bytes"), _("It moves about a quarter of them.")),
        Choice(
            _("fixed costs: each call, and turning floats to codes and back"),
            _("They are the same for a small layer as for a large one, so the small one feels them."),
            right=True,
        ),
    ),
)
