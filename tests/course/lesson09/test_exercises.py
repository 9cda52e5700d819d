"""Lesson 9's exercises take a right answer in whatever form it comes, and refuse the slips that are likely."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge

# --- right answers


def nearest_in_numpy(x, centroids):
    return np.argmin((x.double().numpy()[:, None] - centroids.double().numpy()) ** 2, axis=1)


def nearest_in_lists(x, centroids):
    table = centroids.tolist()
    return [min(range(len(table)), key=lambda place: abs(table[place] - value)) for value in x.tolist()]


def nearest_by_cdist(x, centroids):
    return torch.cdist(x[:, None], centroids[:, None]).argmin(1).int()


def step_in_numpy(x, centroids):
    x, centroids = x.double().numpy(), centroids.double().numpy()
    index = np.abs(x[:, None] - centroids).argmin(1)
    return np.array([x[index == k].mean() if (index == k).any() else centroids[k] for k in range(len(centroids))])


def step_in_lists(x, centroids):
    members = [[] for _ in centroids]
    for value, place in zip(x.tolist(), nearest_in_lists(x, centroids)):
        members[place].append(value)
    return [sum(some) / len(some) if some else old for some, old in zip(members, centroids.tolist())]


def bytes_by_ceil(weights, bits, tables):
    return math.ceil(weights * bits / 8) + 4 * tables * 2**bits


def bytes_in_numpy(weights, bits, tables):
    return np.ceil(weights * bits / 8) + np.float64(4 * tables * (1 << bits))


def ternary_in_numpy(w):
    w = w.double().numpy()
    size = np.abs(w)
    beyond = size > 0.7 * size.mean()
    return np.where(beyond, np.sign(w) * size[beyond].mean(), 0)


def ternary_in_lists(w):
    w = w.tolist()
    threshold = 0.7 * sum(map(abs, w)) / len(w)
    kept = [abs(value) for value in w if abs(value) > threshold]
    scale = sum(kept) / len(kept)
    return [0 if abs(value) <= threshold else math.copysign(scale, value) for value in w]


def dot_bit_by_bit(a, b, n):
    return sum((2 * (a >> k & 1) - 1) * (2 * (b >> k & 1) - 1) for k in range(n))


def dot_in_numpy(a, b, n):
    signs = [np.array([1 if bit == "1" else -1 for bit in f"{one:0{n}b}"]) for one in (a, b)]
    return signs[0] @ signs[1]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("9.1", nearest_in_numpy),
        ("9.1", nearest_in_lists),
        ("9.1", nearest_by_cdist),
        ("9.2", step_in_numpy),
        ("9.2", step_in_lists),
        ("9.3", bytes_by_ceil),
        ("9.3", bytes_in_numpy),
        ("9.4", ternary_in_numpy),
        ("9.4", ternary_in_lists),
        ("9.5", dot_bit_by_bit),
        ("9.5", dot_in_numpy),
    ],
)
def test_a_right_answer_is_right_in_numpy_and_in_lists(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, verdict


# --- wrong ones


def bucketize(x, centroids):
    return torch.bucketize(x, (centroids[:-1] + centroids[1:]) / 2)


def searches_numpys_sorted_table(x, centroids):
    table = np.sort(centroids.numpy())
    return np.searchsorted((table[:-1] + table[1:]) / 2, x.numpy())


def one_too_many(x, centroids):
    return exercise("9.1").solution(x, centroids) + 1


def sorted_centroids(x, centroids):
    return exercise("9.2").solution(x, centroids).sort().values


def drops_the_empty(x, centroids):
    index = exercise("9.1").solution(x, centroids)
    return torch.stack([x[index == k].mean() for k in index.unique()])


def floats_of_two_bytes(weights, bits, tables):
    return math.ceil(weights * bits / 8) + 2 * tables * 2**bits


def rounds_to_the_nearest_byte(weights, bits, tables):
    return round(weights * bits / 8) + 4 * tables * 2**bits


def a_scale_for_each_sign(w):
    beyond = w.abs() > 0.7 * w.abs().mean()
    up, down = w[beyond & (w > 0)].mean(), w[beyond & (w < 0)].mean()
    return torch.where(beyond, torch.where(w > 0, up, down), 0.0)


def median_of_the_sizes(w):
    beyond = w.abs() > 0.7 * w.abs().mean()
    return w.sign() * beyond * w.abs()[beyond].median()


def not_the_places_that_differ(a, b, n):
    return 2 * bin(a & b).count("1") - n


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("9.1", bucketize, "centroids in ascending order alone"),
        ("9.1", searches_numpys_sorted_table, "The index is that in the table as it is"),
        ("9.1", one_too_many, "expected"),
        ("9.2", sorted_centroids, "expected"),
        ("9.2", drops_the_empty, "expected"),
        ("9.3", floats_of_two_bytes, "expected"),
        ("9.3", rounds_to_the_nearest_byte, "expected"),
        ("9.4", a_scale_for_each_sign, "expected"),
        ("9.4", median_of_the_sizes, "expected"),
        ("9.5", not_the_places_that_differ, "expected"),
    ],
)
def test_a_likely_slip_is_refused_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG
    assert re.search(words, verdict.message), verdict


def test_no_case_hangs_on_a_tie():
    """Two centroids equally near, or a weight at the threshold, would go one way in float32, the other in float64."""
    for x, centroids in (*exercise("9.1").cases, *exercise("9.2").cases):
        near = (x.double()[:, None] - centroids.double()).abs().sort(1).values
        assert bool((near[:, 1] - near[:, 0] > 1e-3).all()), (x, centroids)
    for (w,) in exercise("9.4").cases:
        assert bool(((w.abs() - 0.7 * w.abs().mean()).abs() > 1e-3).all()), w
