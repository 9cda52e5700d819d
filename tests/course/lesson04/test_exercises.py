"""Lesson 4's exercises: right answers written another way are right, likely slips are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise, of_lesson
from qlab.course.judging import Kind, judge

# --- right, in NumPy and in plain Python


def fold_numpy(weight, bias, mean, std, gamma, beta):
    weight, bias, mean, std, gamma, beta = (np.asarray(x, np.float64) for x in (weight, bias, mean, std, gamma, beta))
    return (weight.T * gamma / std).T, gamma * bias / std - gamma * mean / std + beta


def fold_lists(weight, bias, mean, std, gamma, beta):
    rows, numbers = [], []
    for row, *each in zip(weight.tolist(), *(x.tolist() for x in (bias, mean, std, gamma, beta))):
        b, m, s, g, e = each
        rows.append([w / s * g for w in row])
        numbers.append((b - m) / s * g + e)
    return rows, numbers


def fold_as_a_layer(weight, bias, mean, std, gamma, beta):
    """What the two do to 0 and to each unit vector says all."""
    bias_of = torch.nn.functional.batch_norm(bias[None], mean, std**2, gamma, beta, eps=0.0)[0]
    columns = torch.nn.functional.batch_norm(weight.T + bias, mean, std**2, gamma, beta, eps=0.0) - bias_of
    return columns.T, bias_of


def scales_numpy(weight, bits):
    return np.maximum(weight.numpy().max(axis=1), -weight.numpy().min(axis=1)) / (2 ** (bits - 1) - 1)


def scales_lists(weight, bits):
    return [max(abs(w) for w in row) / (2 ** (bits - 1) - 1) for row in weight.tolist()]


def scales_keepdim(weight, bits):
    return weight.abs().max(dim=1, keepdim=True).values / (2 ** (bits - 1) - 1)


def groups_numpy(weight, size, bits):
    groups = weight.numpy().astype(np.float64).reshape(-1, size)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(groups).max(1, keepdims=True)
    return (np.rint(groups * top / largest) * largest / top).reshape(weight.shape)


def groups_lists(weight, size, bits):
    top, rows = 2 ** (bits - 1) - 1, []
    for row in weight.tolist():
        rows.append([])
        for start in range(0, len(row), size):
            group = row[start : start + size]
            scale = max(map(abs, group)) / top
            rows[-1] += [math.floor(w / scale + 0.5) * scale for w in group]
    return rows


def factors_numpy(first, second):
    r1, r2 = np.abs(first.numpy()).max(1), np.abs(second.numpy()).max(0)
    return np.sqrt(r1) / np.sqrt(r2)


def factors_by_the_papers_formula(first, second):
    r1, r2 = first.abs().amax(1), second.abs().amax(0)
    return r1 / (r1 * r2).sqrt()


def factors_lists(first, second):
    columns = list(zip(*second.tolist()))
    return [(max(map(abs, row)) / max(map(abs, column))) ** 0.5 for row, column in zip(first.tolist(), columns)]


def shift_numpy(weight, rounded, input_mean):
    return rounded.numpy() @ input_mean.numpy() - weight.numpy() @ input_mean.numpy()


def shift_lists(weight, rounded, input_mean):
    pairs = zip(weight.tolist(), rounded.tolist())
    return [sum((r - w) * m for w, r, m in zip(a, b, input_mean.tolist())) for a, b in pairs]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("4.1", fold_numpy), ("4.1", fold_lists), ("4.1", fold_as_a_layer), ("4.2", scales_numpy), ("4.2", scales_lists),
        ("4.2", scales_keepdim), ("4.3", groups_numpy), ("4.3", groups_lists), ("4.4", factors_numpy), ("4.4", factors_lists),
        ("4.4", factors_by_the_papers_formula), ("4.5", shift_numpy), ("4.5", shift_lists),
    ],
)  # fmt: skip
def test_a_right_answer_in_other_words_is_right(name, answer):
    assert judge(exercise(name), answer).right, judge(exercise(name), answer)


# --- wrong


def rows_of_both_numpy(first, second):
    return np.sqrt(np.abs(first.numpy()).max(1) / np.abs(second.numpy()).max(1))


def truncates(weight, size, bits):
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.trunc(groups / scale) * scale).reshape(weight.shape)


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("4.1", lambda w, b, m, s, g, e: (w * (g / s)[:, None], b + e - m * g / s), "the first that differs is [1]"),
        ("4.1", lambda w, b, m, s, g, e: w * (g / s)[:, None], "expected"),
        ("4.1", lambda w, b, m, s, g, e: (w * (g / s)[:, None], b - m * g / s + e), "The old bias goes through"),
        ("4.2", lambda w, bits: w.abs().max(1) / (2 ** (bits - 1) - 1), "the values and their places"),
        ("4.2", lambda w, bits: w.abs().mean(1) / (2 ** (bits - 1) - 1), "expected"),
        ("4.2", lambda w, bits: 2 * w.abs().amax(1) / (2**bits - 1), "you give tensor([0.8571]), expected"),
        ("4.3", truncates, "the first that differs is [0, 0]"),
        ("4.3", lambda w, size, bits: w, "you give"),
        ("4.4", rows_of_both_numpy, "You take rows in both layers"),
        ("4.4", lambda a, b: (a.abs().mean(1) / b.abs().mean(0)).sqrt(), "the first that differs is"),
        ("4.5", lambda w, r, m: (r - w).mean(1) * m.mean(), "expected"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_place_or_its_mistake(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message, verdict


def test_each_exercise_knows_five_slips():
    assert all(len(task.mistakes) >= 5 for task in of_lesson(4))
