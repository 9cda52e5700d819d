"""Lesson 5's exercises: right answers written another way are right, likely slips are told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qlab.course.exercises import exercise, of_lesson
from qlab.course.judging import Kind, judge

# --- right, in NumPy and in plain Python


def dot_numpy(q_x, z_x, q_w, z_w):
    return np.dot(q_x.numpy().astype(np.int64) - z_x, q_w.numpy().astype(np.int64) - z_w)


def dot_lists(q_x, z_x, q_w, z_w):
    return sum((a - z_x) * (b - z_w) for a, b in zip(q_x.tolist(), q_w.tolist()))


def dot_in_four_terms(q_x, z_x, q_w, z_w):
    x, w = q_x.long(), q_w.long()
    return (x * w).sum() - z_x * w.sum() - z_w * x.sum() + len(x) * z_x * z_w


def dot_in_float(q_x, z_x, q_w, z_w):
    return (q_x.double() - z_x) @ (q_w.double() - z_w)


def terms_by_trying(x_bits, w_bits, sum_bits):
    product, most = (2**x_bits - 1) * (2 ** (w_bits - 1) - 1), 2 ** (sum_bits - 1) - 1
    return math.floor(most / product)


def terms_numpy(x_bits, w_bits, sum_bits):
    return np.floor_divide(np.int64(2) ** (sum_bits - 1) - 1, (2**x_bits - 1) * (2 ** (w_bits - 1) - 1))


def point_by_doubling(multiplier):
    shift = 0
    while multiplier * 2**shift < 2**30:
        shift += 1
    return round(multiplier * 2**shift), shift


def point_by_logarithm(multiplier):
    shift = 30 - math.floor(math.log2(multiplier))
    return [int(multiplier * 2**shift + 0.5), shift]


def point_numpy(multiplier):
    fraction, exponent = np.frexp(multiplier)
    return np.array([np.rint(fraction * 2**31), 31 - exponent])


def requantize_floor(total, mantissa, shift, zero_point, bits):
    code = math.floor(total * mantissa / 2**shift + 0.5) + zero_point
    return max(0, min(2**bits - 1, code))


def requantize_by_division(total, mantissa, shift, zero_point, bits):
    code = (2 * total * mantissa + 2**shift) // 2 ** (shift + 1) + zero_point
    return np.clip(code, 0, 2**bits - 1)


def saturating_numpy(q_x, q_w):
    products = q_x.numpy().astype(np.int32) * q_w.numpy().astype(np.int32)
    return np.clip(products[0::2] + products[1::2], -32768, 32767).sum()


def saturating_lists(q_x, q_w):
    total, x, w = 0, q_x.tolist(), q_w.tolist()
    for i in range(0, len(x), 2):
        total += max(-32768, min(32767, x[i] * w[i] + x[i + 1] * w[i + 1]))
    return total


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("5.1", dot_numpy), ("5.1", dot_lists), ("5.1", dot_in_four_terms), ("5.1", dot_in_float), ("5.2", terms_by_trying),
        ("5.2", terms_numpy), ("5.3", point_by_doubling), ("5.3", point_by_logarithm), ("5.3", point_numpy),
        ("5.4", requantize_floor), ("5.4", requantize_by_division), ("5.5", saturating_numpy), ("5.5", saturating_lists),
    ],
)  # fmt: skip
def test_a_right_answer_in_other_words_is_right(name, answer):
    assert judge(exercise(name), answer).right, judge(exercise(name), answer)


# --- wrong


def dot_of_numpys_bytes(q_x, z_x, q_w, z_w):
    x, w = q_x.numpy(), q_w.numpy()
    return int(((x - np.uint8(z_x)).astype(np.int64) * (w.astype(np.int64) - z_w)).sum())


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("5.1", lambda q_x, z_x, q_w, z_w: ((q_x - z_x) * (q_w - z_w)).sum(), "stays uint8"),
        ("5.1", dot_of_numpys_bytes, "you give"),
        ("5.1", lambda q_x, z_x, q_w, z_w: (q_x.int() * q_w.int()).sum() - z_x * z_w, "you give"),
        ("5.2", lambda x, w, s: 2 ** (s - x - w), "you give"),
        (
            "5.2",
            lambda x, w, s: round((2 ** (s - 1) - 1) / ((2**x - 1) * (2 ** (w - 1) - 1))),
            "To the nearest is up, now and then",
        ),
        ("5.3", lambda m: (round(m * 2**31), 31), "leaves a small multiplier few bits"),
        ("5.3", lambda m: (m * 2**31, 31), "you give"),
        ("5.4", lambda t, m, s, z, b: min(max(round(t * m / 2**s) + z, 0), 2**b - 1), "takes the even neighbour"),
        ("5.4", lambda t, m, s, z, b: min(max(round(t * m / 2**s + z), 0), 2**b - 1), "you give"),
        ("5.4", lambda t, m, s, z, b: min(max((t * m >> s) + z, 0), 2**b - 1), "A shift alone rounds down"),
        ("5.5", lambda q_x, q_w: (q_x.int() @ q_w.int()).clamp(-(2**15), 2**15 - 1), "Only the pairs have 16 bits"),
        ("5.5", lambda q_x, q_w: (q_x.int() * q_w.int()).sum(), "no pair stops"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_place_or_its_mistake(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict


def test_each_exercise_knows_five_slips():
    assert all(len(task.mistakes) >= 5 for task in of_lesson(5))


def test_the_numbers_of_the_quiz_are_those_of_the_exercises():
    assert exercise("5.2").solution(8, 8, 32) > 60_000 and exercise("5.2").solution(8, 8, 16) == 1
    assert 255 * 63 * 2 == 32_130 < 2**15 - 1 < 255 * 127 * 2
