"""Lesson 2's exercises take every right answer, however it was computed, and name the likely slips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.course.exercises import Kind, exercise, judge

# --- written otherwise: in numpy's float64, and in plain Python


def with_numpy(x, limit, bits):
    grid = np.linspace(0, limit, 2**bits)
    x = np.asarray(x, "float64")
    return grid[np.abs(x[:, None] - grid).argmin(1)]


def with_lists(x, limit, bits):
    top = 2**bits - 1
    return [min(max(0, round(float(value) * top / limit)), top) * limit / top for value in x]


def clamped_first(x, limit, bits):
    step = limit / (2**bits - 1)
    return torch.round(x.clamp(0, limit) / step) * step


def errors_with_numpy(x, limit, bits):
    squared = (with_numpy(x, limit, bits) - np.asarray(x)) ** 2
    clipped = np.asarray(x) > limit
    return squared[~clipped].sum(), squared[clipped].sum()


def errors_with_lists(x, limit, bits):
    both = [0.0, 0.0]
    for value, again in zip(x.tolist(), with_lists(x, limit, bits)):
        both[value > limit] += (value - again) ** 2
    return both


def best_with_numpy(x, bits, limits):
    return np.array(limits)[np.argmin([sum(errors_with_numpy(x, limit, bits)) for limit in limits])]


def best_with_a_loop(x, bits, limits):
    best = None
    for limit in limits:
        error = sum(errors_with_lists(x, limit, bits))
        if best is None or error < best[0]:
            best = error, limit
    return best[1]


def percentile_with_numpy(x, percent):
    return np.percentile(np.asarray(x), percent, method="inverted_cdf")


def percentile_with_lists(x, percent):
    return sorted(x.tolist())[math.ceil(percent / 100 * len(x)) - 1]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("2.1", with_numpy), ("2.1", with_lists), ("2.1", clamped_first),
        ("2.2", errors_with_numpy), ("2.2", errors_with_lists),
        ("2.3", best_with_numpy), ("2.3", best_with_a_loop),
        ("2.4", percentile_with_numpy), ("2.4", percentile_with_lists),
    ],
)  # fmt: skip
def test_right_numbers_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, str(verdict)


def test_no_value_lies_half_way_between_two_rungs():
    for name in ("2.1", "2.2"):
        for x, limit, bits in exercise(name).cases:
            places = x.double().clamp(0, limit) / (limit / (2**bits - 1))
            assert ((places - places.floor() - 0.5).abs() > 0.01).all(), (name, x, limit, bits)


# --- slips


def no_lower_end(x, limit, bits):
    step = limit / (2**bits - 1)
    return torch.minimum(torch.round(x / step) * step, torch.tensor(limit))


def mask_of_the_rounded(x, limit, bits):
    step = limit / (2**bits - 1)
    rounded = torch.round(x / step) * step
    squared = (rounded.clamp(0, limit) - x) ** 2
    return float(squared[rounded <= limit + 1e-6].sum()), float(squared[rounded > limit + 1e-6].sum())


def mask_of_the_rounded_with_equal(x, limit, bits):
    step = limit / (2**bits - 1)
    rounded = (torch.round(x / step) * step).clamp(0, limit)
    squared = (rounded - x) ** 2
    return float(squared[rounded < limit - 1e-6].sum()), float(squared[rounded >= limit - 1e-6].sum())


def everything_is_rounding(x, limit, bits):
    squared = torch.as_tensor((with_numpy(x, limit, bits) - x.numpy()) ** 2)
    return float(squared.sum()), 0.0


def with_a_step_more(x, limit, bits):
    return torch.round(x.clamp(0, limit) / limit * 2**bits) / 2**bits * limit


def least_sum_with_signs(x, bits, limits):
    return min(limits, key=lambda limit: abs(float((with_numpy(x, limit, bits) - x.numpy()).sum())))


def floored_place(x, percent):
    return sorted(x.tolist())[int(len(x) * percent / 100) - 1]


def rounded_place(x, percent):
    return sorted(x.tolist())[round(len(x) * percent / 100) - 1]


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("2.1", no_lower_end, "what is below 0 becomes 0"),
        ("2.1", with_a_step_more, "one value and one step more"),
        ("2.3", least_sum_with_signs, "cancel"),
        ("2.3", lambda x, bits, limits: limits[0], "expected"),
        ("2.2", mask_of_the_rounded, "A value a little above it is rounded to it, but it was clipped"),
        ("2.2", mask_of_the_rounded_with_equal, "rounded up to it was rounded"),
        ("2.2", everything_is_rounding, "No rounded value lies above the limit"),
        ("2.4", floored_place, "round it up"),
        ("2.4", rounded_place, "expected"),
        ("2.4", lambda x, percent: np.percentile(x, percent), "The answer is one of the values of x"),
    ],
)
def test_a_slip_is_wrong_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, str(verdict)


@pytest.mark.parametrize("name", ["2.1", "2.2", "2.3", "2.4"])
def test_at_least_five_mistakes_are_known(name):
    assert len(exercise(name).mistakes) >= 5
