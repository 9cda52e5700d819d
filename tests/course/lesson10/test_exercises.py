"""Lesson 10's exercises: right answers however they are written, and slips that must not pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qlab import PerGroup, llm
from qlab.course.exercises import exercise, of_lesson
from qlab.course.judging import Kind, judge
from qlab.course.lesson10 import exercises

# --- right, and written another way


def perplexity_in_numpy(probabilities, following):
    chosen = np.take_along_axis(np.asarray(probabilities, np.float64), np.asarray(following)[:, None], 1)
    return np.exp(-np.log(chosen).mean())


def perplexity_in_plain_python(probabilities, following):
    product = 1.0
    for row, token in zip(probabilities.tolist(), following.tolist()):
        product *= row[token]
    return product ** (-1 / len(following))


def perplexity_by_cross_entropy(probabilities, following):
    return F.cross_entropy(probabilities.log(), following).exp()


def perplexity_in_bits(probabilities, following):
    bits = [-math.log2(row[token]) for row, token in zip(probabilities.tolist(), following.tolist())]
    return 2 ** (sum(bits) / len(bits))


def bits_of_a_group(bits, group_size, grid_bits):
    return (bits * group_size + grid_bits) / group_size


def push_in_numpy(w, column, value, inverse):
    w, inverse = w.numpy().astype(np.float64), inverse.numpy().astype(np.float64)
    error = w[column] - value
    w[column:] -= error * inverse[column, column:] / inverse[column, column]
    return w


def push_in_plain_python(w, column, value, inverse):
    w, row = w.tolist(), inverse[column].tolist()
    return [each if j < column else value if j == column else each - (w[column] - value) * row[j] / row[column]
            for j, each in enumerate(w)]  # fmt: skip


def push_by_the_column(w, column, value, inverse):
    error, w[column] = float(w[column]) - value, value
    w[column + 1 :] -= error * inverse[column + 1 :, column] / inverse[column, column]
    return w


def smooth_in_numpy(x, w, alpha):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    s = np.exp(alpha * np.log(np.abs(x).max(0)) - (1 - alpha) * np.log(np.abs(w).max(0)))
    return [x / s, s * w]


def smooth_in_plain_python(x, w, alpha):
    x, w = x.tolist(), w.tolist()
    s = [max(map(abs, a)) ** alpha * max(map(abs, b)) ** (alpha - 1) for a, b in zip(zip(*x), zip(*w))]
    return [[v / f for v, f in zip(row, s)] for row in x], [[v * f for v, f in zip(row, s)] for row in w]


def smooth_with_keepdim(x, w, alpha):
    largest = [t.abs().max(dim=0, keepdim=True).values for t in (x, w)]
    s = largest[0].pow(alpha).div(largest[1].pow(1 - alpha))
    return torch.div(x, s), torch.mul(w, s)


@pytest.mark.parametrize("name, answer", [
    ("10.1", perplexity_in_numpy), ("10.1", perplexity_in_plain_python), ("10.1", perplexity_by_cross_entropy),
    ("10.1", perplexity_in_bits), ("10.2", bits_of_a_group), ("10.2", lambda b, g, s: np.float32(b) + np.float32(s) / g),
    ("10.3", push_in_numpy), ("10.3", push_in_plain_python), ("10.3", push_by_the_column),
    ("10.4", smooth_in_numpy), ("10.4", smooth_in_plain_python), ("10.4", smooth_with_keepdim),
])  # fmt: skip
def test_right_answers_are_right_however_they_are_written(name, answer):
    assert judge(exercise(name), answer).right


# --- wrong


def wraps(name, change):
    """The solution, its result changed."""
    task = exercise(name)
    return lambda *arguments: change(task.solution(*arguments))


def reads_the_next_row(probabilities, following):
    return exercises.perplexity(probabilities.roll(1, 0), following)


def uses_the_first_token(probabilities, following):
    return exercises.perplexity(probabilities, torch.zeros_like(following))


def overwrites_first(w, column, value, inverse):
    w = w.clone()
    w[column] = value
    w[column + 1 :] -= (w[column] - value) / inverse[column, column] * inverse[column, column + 1 :]
    return w


def overwrites_a_row_only_behind(w, column, value, inverse):
    return exercises.push_error(w, column, value, inverse)[column:]


def smooths_by_the_mean(x, w, alpha):
    s = x.abs().mean(0) ** alpha / w.abs().mean(0) ** (1 - alpha)
    return x / s, w * s


@pytest.mark.parametrize("name, answer, words", [
    ("10.1", wraps("10.1", round), "you give 2, expected"),
    ("10.1", reads_the_next_row, "expected"),
    ("10.1", uses_the_first_token, "expected"),
    ("10.1", wraps("10.1", lambda p: 1 / p), "a minus belongs before the mean"),
    ("10.2", wraps("10.2", math.ceil), "expected 4.5"),
    ("10.2", wraps("10.2", round), "expected 4.5"),
    ("10.3", overwrites_first, "before you write the value into w"),
    ("10.3", overwrites_a_row_only_behind, "shape"),
    ("10.4", wraps("10.4", lambda both: both[::-1]), "the first that differs is [0]"),
    ("10.4", wraps("10.4", lambda both: both[0]), "expected"),
    ("10.4", smooths_by_the_mean, "the first that differs is [0][0, 0]"),
])  # fmt: skip
def test_slips_are_refused_with_words(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict


def test_what_teachers_are_told_is_the_common_mistake_has_its_words():
    """The sign in 10.3."""
    assert "wrong way" in judge(exercise("10.3"), exercises.wrong_way).message


def test_each_exercise_has_thought_of_five_slips():
    assert all(len(task.mistakes) >= 5 for task in of_lesson(10))


# --- the package computes the same


def test_the_exercises_agree_with_the_package():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 8, generator=draw), torch.randn(6, 8, generator=draw)
    s = llm.smoothing_scale(x.abs().amax(0), w.abs().amax(0), 0.3)
    for mine, packages in zip(exercises.smooth(x, w, 0.3), (x / s, w * s)):
        assert torch.allclose(mine, packages)
    layer = llm.WeightOnlyLinear.from_weight(torch.randn(16, 128), 4, PerGroup(64))
    stored = 8 * sum(t.numel() * t.element_size() for t in layer.buffers()) / (16 * 128)
    assert stored == exercises.bits_per_weight(4, 64, 24)  # bfloat16 and one byte
