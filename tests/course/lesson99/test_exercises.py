"""Lesson 99's answers: right ones in whatever form they are written, and the likely slips by their names."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge


def bytes_in_a_loop(layers, others):
    total = others * 4
    for weights, bits, scales in layers:
        total += math.ceil(weights * bits / 8) + 4 * scales
    return total


def bytes_in_numpy(layers, others):
    weights, bits, scales = np.array(layers).T
    return np.ceil(weights * bits / 8).sum() + 4 * scales.sum() + 4 * others


def dominates_in_words(a, b):
    if a == b:
        return False
    return not (a[0] < b[0] or a[1] > b[1])


def front_by_pairs(networks):
    kept = [n for n in networks if not any(dominates_in_words(m, n) for m in networks)]
    return sorted(kept, key=lambda n: n[1])


def front_in_numpy(networks):
    found = np.array(sorted(networks, key=lambda n: (n[1], -n[0])))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(found[:, 0])[:-1]])
    return found[found[:, 0] > before]


@pytest.mark.parametrize(("name", "answer"), [
    ("99.1", bytes_in_a_loop), ("99.1", bytes_in_numpy),
    ("99.2", lambda seconds, plain: np.median(np.array(seconds) / np.array(plain))),
    ("99.2", lambda seconds, plain: statistics.median(a / b for a, b in zip(seconds, plain))),
    ("99.2", lambda seconds, plain: (torch.tensor(seconds).double() / torch.tensor(plain)).quantile(0.5)),
    ("99.3", dominates_in_words),
    ("99.3", lambda a, b: np.bool_(a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1]))),
    ("99.4", front_by_pairs), ("99.4", front_in_numpy), ("99.4", lambda networks: tuple(front_by_pairs(networks))),
])  # fmt: skip
def test_right_answers_in_other_words_are_right(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, verdict


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("99.1", lambda layers, others: sum(w * b // 8 + 4 * s for w, b, s in layers) + 4 * others, "round up in each"),
    ("99.1", lambda layers, others: sum(-(-w * b // 8) + 4 * s for w, b, s in layers), "other numbers take 4 bytes"),
    ("99.2", lambda seconds, plain: np.median(seconds) / np.median(plain), "divide within each round"),
    ("99.2", lambda seconds, plain: np.mean(seconds) / np.mean(plain), "compare means"),
    ("99.2", lambda seconds, plain: np.median(np.array(plain) / seconds), "how many times as fast"),
    ("99.2", lambda seconds, plain: (torch.tensor(seconds) / torch.tensor(plain)).median(), "gives the lower"),
    ("99.3", lambda a, b: a[0] > b[0] and a[1] < b[1], "as good in one and better in the other"),
    ("99.3", lambda a, b: a[0] >= b[0] and a[1] <= b[1], "Two equal networks"),
    ("99.4", lambda networks: sorted(networks, key=lambda n: n[1]), "Leave out those"),
    ("99.4", lambda networks: front_by_pairs(networks)[::-1], "smallest network was asked for first"),
])  # fmt: skip
def test_slips_are_wrong_and_named(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict
