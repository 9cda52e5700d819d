"""Lesson 1's exercises take every right answer, however it was computed, and name the likely slips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.course.exercises import Kind, exercise, judge

# --- written otherwise: in numpy's float64, and in plain Python


def step_with_numpy(lo, hi, bits):
    return np.diff(np.linspace(lo, hi, 2**bits))[0]


def step_of_a_list(lo, hi, bits):
    gaps = len(range(2**bits)) - 1
    return hi / gaps - lo / gaps


def codes_with_numpy(x, scale, zero_point, bits):
    return np.clip(np.rint(np.asarray(x, "float64") / scale) + zero_point, 0, 2**bits - 1)


def codes_with_lists(x, scale, zero_point, bits):
    return [max(0, min(2**bits - 1, zero_point + round(float(value) / scale))) for value in x]


def codes_as_bytes(x, scale, zero_point, bits):
    return (x * (1 / scale)).round().add(zero_point).clamp(0, 2**bits - 1).to(torch.uint8)


def values_with_numpy(codes, scale, zero_point):
    return scale * np.asarray(codes) - scale * zero_point


def values_with_lists(codes, scale, zero_point):
    return tuple((int(code) - zero_point) * scale for code in codes)


def grid_with_numpy(lo, hi, bits):
    scale = np.float64(hi - lo) / (2**bits - 1)
    return np.array([scale, np.rint(-lo / scale)])


def grid_with_integers(lo, hi, bits):
    top = 2**bits - 1
    return [(hi - lo) / top, int(-lo * top / (hi - lo) + 0.5)]


def grid_with_tensors(lo, hi, bits):
    scale = torch.tensor((hi - lo) / (2**bits - 1))
    return scale, torch.round(-lo / scale)


def sqnr_with_numpy(x, rounded):
    x, rounded = np.asarray(x, "float64"), np.asarray(rounded, "float64")
    return 20 * np.log10(np.linalg.norm(x) / np.linalg.norm(x - rounded))


def sqnr_with_lists(x, rounded):
    signal = sum(value**2 for value in x.tolist())
    noise = sum((value - again) ** 2 for value, again in zip(x.tolist(), rounded.tolist()))
    return 10 * (math.log10(signal) - math.log10(noise))


def sqnr_with_means(x, rounded):
    return 10 * torch.log10(x.square().mean() / (x - rounded).square().mean())


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("1.1", step_with_numpy), ("1.1", step_of_a_list),
        ("1.2", codes_with_numpy), ("1.2", codes_with_lists), ("1.2", codes_as_bytes),
        ("1.3", values_with_numpy), ("1.3", values_with_lists),
        ("1.4", grid_with_numpy), ("1.4", grid_with_integers), ("1.4", grid_with_tensors),
        ("1.5", sqnr_with_numpy), ("1.5", sqnr_with_lists), ("1.5", sqnr_with_means),
    ],
)  # fmt: skip
def test_right_numbers_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, str(verdict)


def test_a_half_is_a_half_in_any_arithmetic():
    """Either a value is an exact half in float32 and in float64 alike, or it is far from one."""
    for x, scale, *_ in exercise("1.2").cases:
        places = x.double() / scale
        off = (places - places.floor() - 0.5).abs()
        exact = (x / scale).double() == places
        assert ((off > 0.01) | ((off == 0) & exact)).all(), (x, scale)
    for lo, hi, bits in exercise("1.4").cases:
        place = -lo * (2**bits - 1) / (hi - lo)
        assert abs(place - math.floor(place) - 0.5) > 0.01, (lo, hi, bits)


# --- slips


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("1.1", lambda lo, hi, bits: (hi - lo) / 2**bits, "Count the gaps"),
        ("1.1", lambda lo, hi, bits: (hi - lo) / (bits - 1), "there are 2**b numbers, not b"),
        ("1.1", lambda lo, hi, bits: (hi - lo) / bits, "not b gaps"),
        ("1.2", lambda x, scale, zero_point, bits: (x / scale + zero_point).round(), "clamp"),
        ("1.2", lambda x, scale, zero_point, bits: (x / scale).int() + zero_point, "expected"),
        (
            "1.2",
            lambda x, scale, zero_point, bits: (x / scale).round().sub(zero_point).clamp(0, 2**bits - 1),
            "you subtract it",
        ),
        (
            "1.4",
            lambda lo, hi, bits: ((hi - lo) / (2**bits - 1), math.ceil(-lo / ((hi - lo) / (2**bits - 1)))),
            "expected",
        ),
        ("1.4", lambda lo, hi, bits: ((hi - lo) / (2**bits - 1), int(-lo / ((hi - lo) / (2**bits - 1)))), "expected"),
        ("1.4", lambda lo, hi, bits: ((hi - lo) / (2**bits - 1), -lo / ((hi - lo) / (2**bits - 1))), "round it"),
        (
            "1.5",
            lambda x, rounded: 10 * math.log(float((x**2).sum() / ((x - rounded) ** 2).sum())),
            "natural logarithm",
        ),
    ],
)
def test_a_slip_is_wrong_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, str(verdict)


@pytest.mark.parametrize("name", ["1.1", "1.2", "1.3", "1.4", "1.5"])
def test_at_least_five_mistakes_are_known(name):
    assert len(exercise(name).mistakes) >= 5
