"""Lesson 0's exercises take every right answer, however it was computed, and name the likely slips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.course.exercises import Kind, exercise, judge


def codes_counted(bits):
    return len({tuple(code >> place & 1 for place in range(bits)) for code in range(2 ** (bits + 1))})


def bytes_as_a_list(weights, bits):
    return len(np.packbits(np.ones(weights * bits, bool)))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("0.1", lambda bits: 1 << bits), ("0.1", codes_counted), ("0.1", lambda bits: np.power(2, bits)),
        ("0.1", lambda bits: math.pow(2, bits)), ("0.1", lambda bits: torch.tensor(2) ** bits),
        ("0.2", lambda weights, bits: math.ceil(weights * bits / 8)), ("0.2", bytes_as_a_list),
        ("0.2", lambda weights, bits: (weights * bits + 7) // 8), ("0.2", lambda weights, bits: np.ceil(weights / 8 * bits)),
        ("0.3", lambda x, scale: np.abs(np.rint(np.float64(x) / scale) * scale - x)),
        ("0.3", lambda x, scale: min(abs(code * scale - x) for code in range(-9, 10))),
        ("0.3", lambda x, scale: abs(torch.tensor(x) - torch.round(torch.tensor(x) / scale) * scale)),
    ],
)  # fmt: skip
def test_right_numbers_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, str(verdict)


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("0.1", lambda bits: 2 ^ bits, "exclusive or"),
        ("0.1", lambda bits: bits * bits, "not the bits squared"),
        ("0.2", lambda weights, bits: math.ceil(weights / (8 // bits)), "None is wasted"),
        ("0.2", lambda weights, bits: round(weights * bits / 8), "round up"),
        ("0.2", lambda weights, bits: int(weights * bits / 8), "round up"),
        ("0.2", lambda weights, bits: weights * bits / 8, "no part of a byte"),
        ("0.3", lambda x, scale: x % scale, "expected"),
        ("0.3", lambda x, scale: abs(round(x / scale) - x), "compare x with the code"),
        ("0.3", lambda x, scale: abs(math.floor(x / scale) * scale - x), "expected"),
    ],
)
def test_a_slip_is_wrong_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, str(verdict)


@pytest.mark.parametrize("name", ["0.1", "0.2", "0.3"])
def test_at_least_five_mistakes_are_known(name):
    assert len(exercise(name).mistakes) >= 5
