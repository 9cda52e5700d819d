"""Lesson 6's exercises: right in any form; what is wrong is refused, with words that say why."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge

# --- right, written in other ways


def bytes_in_numpy(counts, bits):
    return np.ceil(np.array(counts) * np.array(bits) / 8).sum()


def bytes_by_hand(counts, bits):
    total = 0
    for count, width in zip(counts, bits):
        total += math.ceil(count * width / 8)
    return total


def bytes_as_tensor(counts, bits):
    return torch.ceil(torch.tensor(counts) * torch.tensor(bits) / 8).sum()


def spend_by_hand(counts, noise, budget):
    bits, used = [2 for _ in counts], 2 * sum(counts)
    while True:
        best, most = None, -1.0
        for i in range(len(counts)):
            if bits[i] == 8 or used + counts[i] * bits[i] > budget:
                continue
            gain = (noise[i][bits[i]] - noise[i][bits[i] * 2]) / (counts[i] * bits[i])
            if gain > most:
                best, most = i, gain
        if best is None:
            return tuple(bits)
        used += counts[best] * bits[best]
        bits[best] *= 2


def spend_in_numpy(counts, noise, budget):
    return np.array(spend_by_hand(counts, noise, budget))


def bias_in_numpy(x, weight, rounded, bias):
    x, weight, rounded, bias = (each.numpy().astype(np.float64) for each in (x, weight, rounded, bias))
    return bias + x.mean(0) @ weight.T - x.mean(0) @ rounded.T


def bias_by_hand(x, weight, rounded, bias):
    x, weight, rounded, bias = (each.tolist() for each in (x, weight, rounded, bias))
    given = []
    for w, r, b in zip(weight, rounded, bias):
        shifts = [sum(a * (p - q) for a, p, q in zip(row, w, r)) for row in x]
        given.append(b + sum(shifts) / len(shifts))
    return given


def bias_of_two_means(x, weight, rounded, bias):
    return (x @ weight.T + bias).mean(0, keepdim=True) - (x @ rounded.T).mean(0, keepdim=True)


def rounding_in_numpy(x, w):
    x, w = x.numpy(), w.numpy()
    ways = np.array(list(product(*zip(np.floor(w), np.floor(w) + 1))))
    errors = ((x @ (ways - w).T) ** 2).sum(0)
    return ways[errors.argmin()].astype(int)


def rounding_by_hand(x, w):
    x, w = x.tolist(), w.tolist()

    def error(way):
        return sum(sum(a * (r - v) for a, r, v in zip(row, way, w)) ** 2 for row in x)

    return min(product(*((math.floor(v), math.ceil(v)) for v in w)), key=error)


def rounding_from_above(x, w):
    ways = [torch.tensor(way) for way in product(*((v, v - 1) for v in w.ceil().tolist()))]
    return sorted(ways, key=lambda way: (x @ way - x @ w).norm().item())[0]


@pytest.mark.parametrize(("name", "answer"), [
    ("6.1", bytes_in_numpy), ("6.1", bytes_by_hand), ("6.1", bytes_as_tensor),
    ("6.2", spend_by_hand), ("6.2", spend_in_numpy),
    ("6.3", bias_in_numpy), ("6.3", bias_by_hand), ("6.3", bias_of_two_means),
    ("6.4", rounding_in_numpy), ("6.4", rounding_by_hand), ("6.4", rounding_from_above),
], ids=lambda each: getattr(each, "__name__", each))  # fmt: skip
def test_right_numbers_are_right_in_any_form(name, answer):
    assert judge(exercise(name), answer).right


# --- wrong


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("6.1", lambda counts, bits: bytes_by_hand(counts, bits) * 8, "you give 32, expected 4"),
    ("6.1", lambda counts, bits: sum(c * b / 8 for c, b in zip(counts, bits)), "you give 1.125, expected 2"),
    ("6.2", lambda counts, noise, budget: spend_by_hand(counts, noise, 8 * budget), "expected [2]"),
    ("6.2", lambda counts, noise, budget: sum(spend_by_hand(counts, noise, budget)), "expected [2, 4]"),
    ("6.3", lambda x, w, r, b: b + ((w - r) * x.mean()).sum(1), "the first that differs is [0]"),
    ("6.3", lambda x, w, r, b: b + ((w - r) @ x.T).sum(1) / w.shape[1], "the first that differs is [0]"),
    ("6.4", lambda x, w: torch.tensor(rounding_by_hand(x, w)) - w, "the first that differs is [0]"),
    ("6.4", lambda x, w: w.ceil(), "the first that differs is [1]"),
])  # fmt: skip
def test_wrong_ones_are_refused_and_told_where(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message


def by_size_of_the_change(x, w):
    ways = [torch.tensor(way) for way in product(*((v, v + 1) for v in w.floor().tolist()))]
    return min(ways, key=lambda way: (x @ (way - w)).abs().sum().item())


def by_single_changes(x, w):
    way = w.round().tolist()
    for place, value in enumerate(w.tolist()):
        other = [*way[:place], math.floor(value) + math.ceil(value) - way[place], *way[place + 1 :]]
        way = min(way, other, key=lambda way: float(((torch.tensor(way) - w) @ x.T).square().sum()))
    return way


def two_steps_at_once(counts, noise, budget):
    bits = [2] * len(counts)
    while True:
        left = budget - sum(count * width for count, width in zip(counts, bits))
        steps = [
            ((row[now] - row[then]) / (count * (then - now)), place, then)
            for place, (row, count, now) in enumerate(zip(noise, counts, bits)) for then in (4, 8)
            if now < then and count * (then - now) <= left
        ]  # fmt: skip
        if not steps:
            return bits
        bits[max(steps)[1]] = max(steps)[2]


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("6.2", two_steps_at_once, "jumps_to_8"),
    ("6.1", lambda counts, bits: sum(c * b for c, b in zip(counts, bits)) // 8, "rounds_down"),
    ("6.1", lambda counts, bits: sum(round(c * b / 8) for c, b in zip(counts, bits)), "rounds_to_nearest"),
    ("6.3", lambda x, w, r, b: b + (x @ (r - w).T).mean(0), "wrong_sign"),
    ("6.3", lambda x, w, r, b: (x @ (w - r).T).mean(0), "the_shift_alone"),
    ("6.4", lambda x, w: w.round(), "to_nearest"),
    ("6.4", by_size_of_the_change, "without_squares"),
    ("6.4", by_single_changes, "one_change_at_a_time"),
])  # fmt: skip
def test_the_likely_slips_are_named(name, answer, words):
    known = {mistake.__name__: mistake.__doc__ for mistake in exercise(name).mistakes}
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG
    if words == "rounds_down":  # the sum alone, rounded down: neither of the two mistakes
        assert "expected" in verdict.message
    else:
        assert verdict.message.endswith(known[words])


def test_no_case_of_the_search_hangs_on_equal_gains():
    """Whoever takes the last of equal ones would be as right as who takes the first."""

    def from_the_end(counts, noise, budget):
        return spend_by_hand(counts[::-1], noise[::-1], budget)[::-1]

    assert judge(exercise("6.2"), from_the_end).right


def test_no_rounding_is_nearly_as_good_as_the_best():
    for x, w in exercise("6.4").cases:
        ways = [torch.tensor(way) for way in product(*((v, v + 1) for v in w.floor().tolist()))]
        best, second, *_ = sorted(float((x @ (way - w)).square().sum()) for way in ways)
        assert second > 1.05 * best
