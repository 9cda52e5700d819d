"""Lesson 3's exercises take every right answer, however it was computed, and name the likely slips."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from qlab.analysis import paired
from qlab.course.exercises import Kind, exercise, judge

# --- written otherwise: in numpy's float64, and in plain Python


def watch_with_numpy(seen, x):
    x = np.asarray(x)
    ends = (x.min(), x.max())
    return ends if seen is None else np.array([np.minimum(seen[0], ends[0]), np.maximum(seen[1], ends[1])])


def watch_with_lists(seen, x):
    values = x.flatten().tolist() + list(seen or ())
    return [min(values), max(values)]


def follow_with_numpy(seen, x, momentum):
    new = np.array([np.asarray(x).min(), np.asarray(x).max()], "float64")
    return new if seen is None else (1 - momentum) * np.array(seen) + momentum * new


def follow_with_lists(seen, x, momentum):
    values = x.flatten().tolist()
    new = [min(values), max(values)]
    return new if seen is None else [old * (1 - momentum) + end * momentum for old, end in zip(seen, new)]


def merge_with_numpy(wide, fine, doublings):
    merged = np.asarray(wide).copy()
    np.add.at(merged, np.arange(len(fine)) // 2**doublings, np.asarray(fine))
    return merged


def merge_with_lists(wide, fine, doublings):
    size = 2**doublings
    return [int(count) + int(sum(fine[k * size : (k + 1) * size])) for k, count in enumerate(wide)]


def counts_with_numpy(counts, width, percent):
    up_to = np.cumsum(np.asarray(counts))
    return (np.searchsorted(up_to, percent / 100 * up_to[-1]) + 1) * width


def counts_with_lists(counts, width, percent):
    so_far, needed = 0, percent * sum(counts.tolist()) / 100
    for k, count in enumerate(counts.tolist()):
        so_far += count
        if so_far >= needed:
            return width * (k + 1)
    raise AssertionError


def chance_with_numpy(first, second):
    each = np.asarray(second, "float64") - np.asarray(first)
    return np.abs(each.mean()) <= 2 * each.std() / np.sqrt(len(each))


def chance_with_lists(first, second):
    each = [b - a for a, b in zip(first.tolist(), second.tolist())]
    return abs(statistics.mean(each)) <= 2 * statistics.stdev(each) / math.sqrt(len(each))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("3.1", watch_with_numpy), ("3.1", watch_with_lists),
        ("3.2", follow_with_numpy), ("3.2", follow_with_lists),
        ("3.3", merge_with_numpy), ("3.3", merge_with_lists),
        ("3.4", counts_with_numpy), ("3.4", counts_with_lists),
        ("3.5", chance_with_numpy), ("3.5", chance_with_lists),
    ],
)  # fmt: skip
def test_right_numbers_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, str(verdict)


def test_whether_it_is_chance_hangs_on_no_detail():
    """Each case is well on one side of two standard errors, and qlab's own comparison says the same."""
    for first, second in exercise("3.5").cases:
        found = paired(first.bool(), second.bool())
        assert abs(abs(found.difference) - 2 * found.error) > 0.1 * found.error
        assert exercise("3.5").solution(first, second) is (abs(found.difference) <= 2 * found.error)


# --- slips


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("3.1", lambda seen, x: (float(x.min()), float(x.max())), "the range of the new batch alone"),
        ("3.2", lambda seen, x, momentum: follow_with_lists(seen or (0, 0), x, momentum), "You start from (0, 0)"),
        ("3.3", lambda wide, fine, doublings: merge_with_numpy(wide, fine, 0), "fine bins are narrower"),
        ("3.4", lambda counts, width, percent: counts_with_lists(counts, width, percent) - width, "the bin's left end"),
        ("3.5", lambda first, second: (first != second).sum() < 4, "expected"),
        ("3.5", lambda first, second: not chance_with_numpy(first, second), "You answer the opposite question"),
        ("3.5", lambda first, second: first.sum() == second.sum(), "expected"),
    ],
)
def test_a_slip_is_wrong_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, str(verdict)


@pytest.mark.parametrize("name", ["3.1", "3.2", "3.3", "3.4", "3.5"])
def test_at_least_five_mistakes_are_known(name):
    assert len(exercise(name).mistakes) >= 5
