"""Lesson 8's exercises: right in any form; what is wrong is refused, with words that say why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge

# --- right, written in other ways


def points_in_numpy(float_answers, int_answers, labels):
    first, second, labels = (each.numpy() for each in (float_answers, int_answers, labels))
    return np.mean(first == labels) * 100 - np.mean(second == labels) * 100


def points_by_hand(float_answers, int_answers, labels):
    lost = 0
    for one, other, label in zip(float_answers.tolist(), int_answers.tolist(), labels.tolist()):
        lost += (one == label) - (other == label)
    return lost * 100 / len(labels)


def points_as_tensor(float_answers, int_answers, labels):
    return ((float_answers == labels).sum() - (int_answers == labels).sum()) / labels.numel() * 100


def error_in_numpy(accuracy, images):
    return np.float32(np.sqrt(accuracy * (100 - accuracy) / images))


def error_with_math(accuracy, images):
    wrong = 100 - accuracy
    return math.sqrt(accuracy / images * wrong)


def recovered_from_the_losses(float_accuracy, ptq_accuracy, qat_accuracy):
    before, after = float_accuracy - ptq_accuracy, float_accuracy - qat_accuracy
    return 1 - after / before


def recovered_in_numpy(float_accuracy, ptq_accuracy, qat_accuracy):
    return np.array([(ptq_accuracy - qat_accuracy) / (ptq_accuracy - float_accuracy)])


def enough_by_sorting(candidates, tolerance):
    for name, _size, lost in sorted(candidates, key=lambda candidate: candidate[1]):
        if not lost > tolerance:
            return name
    return "none"


def enough_in_numpy(candidates, tolerance):
    names, sizes, losses = (np.array(column) for column in zip(*candidates))
    good = losses <= tolerance
    return names[good][sizes[good].argmin()] if good.any() else np.str_("none")


def paired_in_numpy(float_right, int_right):
    d = int_right.numpy().astype(int) - float_right.numpy().astype(int)
    return np.array([d.mean(), d.std() / np.sqrt(d.size)]) * 100


def paired_by_hand(float_right, int_right):
    won = sum(b and not a for a, b in zip(float_right.tolist(), int_right.tolist()))
    lost = sum(a and not b for a, b in zip(float_right.tolist(), int_right.tolist()))
    n = len(float_right)
    return [100 * (won - lost) / n, 100 / n * math.sqrt(won + lost - (won - lost) ** 2 / n)]


def paired_with_std(float_right, int_right):
    d = int_right.float() - float_right.float()
    return d.mean() * 100, d.std(correction=0) * 100 / len(d) ** 0.5


@pytest.mark.parametrize(("name", "answer"), [
    ("8.1", points_in_numpy), ("8.1", points_by_hand), ("8.1", points_as_tensor),
    ("8.2", error_in_numpy), ("8.2", error_with_math),
    ("8.3", recovered_from_the_losses), ("8.3", recovered_in_numpy),
    ("8.4", enough_by_sorting), ("8.4", enough_in_numpy),
    ("8.5", paired_in_numpy), ("8.5", paired_by_hand), ("8.5", paired_with_std),
], ids=lambda each: getattr(each, "__name__", each))  # fmt: skip
def test_right_numbers_are_right_in_any_form(name, answer):
    assert judge(exercise(name), answer).right


# --- wrong, and not among the mistakes with words of their own


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("8.1", lambda f, i, y: round(points_by_hand(f, i, y)), "you give 12"),
    ("8.1", lambda f, i, y: 100 * (1 - float((i == y).float().mean())), "expected 12.5"),
    ("8.2", lambda accuracy, n: round(error_with_math(accuracy, n), 1), "expected 0.94868"),
    ("8.2", lambda accuracy, n: accuracy / n**0.5, "accuracy = 90.0"),
    ("8.3", lambda f, p, q: round(recovered_from_the_losses(f, p, q), 1), "expected 0.97"),
    ("8.3", lambda f, p, q: abs(q - p) / abs(f - p), "qat_accuracy = 60.0"),
    ("8.4", lambda cs, t: enough_by_sorting(cs, t).replace("none", ""), "expected 'none'"),
    ("8.4", lambda cs, t: min(cs, key=lambda c: abs(c[2] - t))[0], "you give 'w3a16'"),
    ("8.4", lambda cs, t: enough_by_sorting(cs, t - 1e-9), "tolerance = 0.5"),
    ("8.5", lambda f, i: (paired_by_hand(f, i)[0], 100 * (int((f != i).sum()) / len(f)) ** 0.5), "the first that differs is [1]"),
    ("8.5", lambda f, i: paired_by_hand(f, i)[0], "expected (-25.0, 21.65"),
])  # fmt: skip
def test_wrong_ones_are_refused_and_told_where(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message


@pytest.mark.parametrize(("name", "answer", "words"), [
    ("8.1", lambda f, i, y: float((i == y).float().mean() - (f == y).float().mean()) * 100, "positive when the int"),
    ("8.2", lambda accuracy, n: (accuracy * (1 - accuracy) / n) ** 0.5, "share from 0 to 1"),
    ("8.2", lambda accuracy, n: math.sqrt(accuracy * (1 - accuracy) / n), "With percent the root is of less than 0"),
    ("8.3", lambda f, p, q: 100 * (q - p) / (f - p), "1 for all of it, not 100"),
    ("8.4", lambda cs, t: min((c[0] for c in cs if c[2] <= t), default="none"), "first name in the alphabet"),
    ("8.4", lambda cs, t: next((c[0] for c in sorted(cs, key=lambda c: c[1]) if c[2] <= t), None), "not None"),
    ("8.4", lambda cs, t: next((c[0] for c in sorted(cs, key=lambda c: c[1]) if c[2] < t), "none"), "exactly the tolerance"),
    ("8.4", lambda cs, t: enough_by_sorting([c for c in cs if abs(c[2]) <= t], t), "is a gain"),
    ("8.5", lambda f, i: (float((i - f).mean()), 0), "cannot be subtracted"),
])  # fmt: skip
def test_the_likely_slips_are_named(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG and words in verdict.message


def test_a_difference_on_the_same_images_is_that_of_the_package():
    from qlab.analysis import paired

    for case in exercise("8.5").cases:
        found = paired(*case)
        assert exercise("8.5").solution(*case) == pytest.approx((found.difference, found.error))


def test_the_question_about_fifty_images_says_what_the_numbers_give():
    float_right = torch.tensor([True] * 9000 + [False] * 1000)
    int_right = float_right.clone()
    int_right[:30], int_right[-20:] = False, True
    difference, error = exercise("8.5").solution(float_right, int_right)
    assert difference == pytest.approx(-0.1) and round(error, 2) == 0.07 and round(0.1 + 2 * error, 2) == 0.24
    alone = exercise("8.2").solution(90.0, 10_000)
    assert round(alone, 1) == 0.3
    heads = sum(math.comb(50, k) for k in range(30, 51)) / 2**50
    assert 0.09 < heads < 0.11
