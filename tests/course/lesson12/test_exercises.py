"""Lesson 12's answers: right ones in whatever form they are written, and the slips that were taken for right before."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge

STAGES = "preprocessing", "quantization", "conversion", "engine"


def seconds_in_two_lines(weights, macs, bits, bytes_per_second, macs_per_second):
    read, compute = np.float64(weights) * bits / (8 * bytes_per_second), macs / macs_per_second
    return read if read > compute else compute


def bias_one_by_one(bias, s_x, s_w):
    return [round(float(b) / s_x / float(w)) for b, w in zip(bias, s_w)]


def bias_in_numpy(bias, s_x, s_w):
    return np.rint(bias.numpy().astype(np.float64) / (np.float64(s_x) * s_w.numpy()))


def clamp_with_an_if(scale, zero_point, bits, top=None):
    if top is None:
        return [zero_point, 2**bits - 1]
    return [zero_point, min(math.floor(top / scale + zero_point + 0.5), 2**bits - 1)]


def clamp_in_numpy(scale, zero_point, bits, top=np.inf):
    return np.array([zero_point, np.minimum(np.rint(top / scale) + zero_point, 2.0**bits - 1)])


def diagnose_by_ifs(float_here, prepared, reference, engine, expected):
    if expected - float_here > 2:
        return "preprocessing"
    if float_here - prepared > 2:
        return "quantization"
    if prepared - reference > 2:
        return "conversion"
    if reference - engine > 2:
        return "engine"
    return None


def diagnose_in_numpy(float_here, prepared, reference, engine, expected):
    lost = -np.diff([expected, float_here, prepared, reference, engine]) > 2
    return np.array(STAGES)[lost][0] if lost.any() else None


@pytest.mark.parametrize(("name", "answer"), [
    ("12.1", seconds_in_two_lines), ("12.2", bias_one_by_one), ("12.2", bias_in_numpy), ("12.3", clamp_with_an_if),
    ("12.3", clamp_in_numpy), ("12.4", diagnose_by_ifs), ("12.4", diagnose_in_numpy),
])  # fmt: skip
def test_right_answers_in_other_words_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, verdict


def with_int(scale, zero_point, bits, top=None):
    return zero_point, 2**bits - 1 if top is None else min(2**bits - 1, int(top / scale + zero_point))


def with_abs(float_here, prepared, reference, engine, expected):
    rights = expected, float_here, prepared, reference, engine
    return next((s for s, a, b in zip(STAGES, rights, rights[1:]) if abs(a - b) > 2), None)


def from_two_points_on(float_here, prepared, reference, engine, expected):
    rights = expected, float_here, prepared, reference, engine
    return next((s for s, a, b in zip(STAGES, rights, rights[1:]) if a - b >= 2), None)


def a_word_for_nothing(float_here, prepared, reference, engine, expected):
    return diagnose_by_ifs(float_here, prepared, reference, engine, expected) or "nothing"


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("12.1", lambda weights, macs, bits, b, m: weights * bits / 8 / b + macs / m, "not their sum"),
    ("12.1", lambda weights, macs, bits, b, m: max(weights * bits / b, macs / m), "a byte has 8 bits"),
    ("12.2", lambda bias, s_x, s_w: (bias / (s_x * s_w)).int().tolist(), "cuts off towards 0"),
    ("12.2", lambda bias, s_x, s_w: (bias / (s_x * s_w)).floor().numpy(), "round down"),
    ("12.3", with_int, "cut off: the code of 6 is the nearest one"),
    ("12.4", with_abs, "has lost nothing"),
    ("12.4", from_two_points_on, "not over 2"),
    ("12.4", a_word_for_nothing, "return None"),
])  # fmt: skip
def test_slips_are_wrong_and_named(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict
