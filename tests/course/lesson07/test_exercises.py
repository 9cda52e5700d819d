"""Lesson 7's exercises take a right answer in whatever form it comes, and refuse the slips that are likely."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from qlab.course.exercises import exercise
from qlab.course.judging import Kind, judge


def round_through(x):
    return x + (torch.round(x) - x).detach()


def inside(x, low, high):
    """clamp, with the gradient of x at the ends too."""
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


# --- right answers


def straight_in_numpy(x, target):
    return 2 * (np.rint(x.numpy().astype(np.float64)) - target)


def straight_in_lists(x, target):
    return [2 * (math.floor(float(one) + 0.5) - target) for one in x]


def straight_by_pytorch(x, target):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((round_through(x) - target).square().sum(), x)
    return gradient


def one_weight_in_numpy(weight, target, lr, steps):
    path = np.empty(steps)
    for step in range(steps):
        weight -= 2 * lr * (np.rint(weight) - target)
        path[step] = weight
    return path


def one_weight_in_torch(weight, target, lr, steps):
    weight, path = torch.tensor(weight, requires_grad=True), []
    optimizer = torch.optim.SGD([weight], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (round_through(weight) - target).square().backward()
        optimizer.step()
        path.append(weight.item())
    return tuple(path)


def values_in_numpy(gradient, x, scale, qmin, qmax):
    position = x.double().numpy() / scale
    return gradient.numpy() * ((qmin <= position) & (position <= qmax))


def values_in_lists(gradient, x, scale, qmin, qmax):
    return [g if qmin * scale <= v <= qmax * scale else 0 for g, v in zip(gradient.tolist(), x.tolist())]


def values_by_pytorch(gradient, x, scale, qmin, qmax):
    x = x.clone().requires_grad_()
    round_through(inside(x / scale, qmin, qmax)).mul(scale).backward(gradient)
    return x.grad


def scale_in_numpy(gradient, x, scale, qmin, qmax):
    position = x.double().numpy() / scale
    codes = np.clip(np.rint(position), qmin, qmax)
    clipped = (position < qmin) | (position > qmax)
    return np.sum(gradient.numpy() * np.where(clipped, codes, codes - position))


def scale_in_lists(gradient, x, scale, qmin, qmax):
    total = 0
    for g, value in zip(gradient.tolist(), x.tolist()):
        place = value / scale
        total += g * (qmin if place < qmin else qmax if place > qmax else round(place) - place)
    return total


def scale_as_the_lesson_does(gradient, x, scale, qmin, qmax):
    scale = torch.tensor(scale, requires_grad=True)
    (round_through(inside(x / scale, qmin, qmax)) * scale).backward(gradient)
    return scale.grad


def scale_with_torchs_own_clamp(gradient, x, scale, qmin, qmax):
    scale = torch.tensor(scale, requires_grad=True)
    (round_through((x / scale).clamp(qmin, qmax)) * scale).backward(gradient)
    return scale.grad.item()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("7.1", straight_in_numpy),
        ("7.1", straight_in_lists),
        ("7.1", straight_by_pytorch),
        ("7.2", one_weight_in_numpy),
        ("7.2", one_weight_in_torch),
        ("7.3", values_in_numpy),
        ("7.3", values_in_lists),
        ("7.3", values_by_pytorch),
        ("7.4", scale_in_numpy),
        ("7.4", scale_in_lists),
        ("7.4", scale_as_the_lesson_does),
        ("7.4", scale_with_torchs_own_clamp),
    ],
)
def test_a_right_answer_is_right_in_numpy_in_lists_and_by_autograd(name, answer):
    verdict = judge(exercise(name), answer)
    assert verdict.right, verdict


# --- wrong ones


def cuts_off(x, target):
    return 2 * (x.int() - target)


def by_the_true_gradient(x, target):
    x = x.clone().requires_grad_()
    ((torch.round(x) - target) ** 2).sum().backward()
    return x.grad


def rounds_what_it_keeps(weight, target, lr, steps):
    path = []
    for _ in range(steps):
        weight = round(weight - lr * 2 * (round(weight) - target))
        path.append(weight)
    return path


def clamps_by_pytorch(gradient, x, scale, qmin, qmax):
    x = x.clone().requires_grad_()
    round_through((x / scale).clamp(qmin, qmax)).mul(scale).backward(gradient)
    return x.grad


def rounds_first_by_pytorch(gradient, x, scale, qmin, qmax):
    x = x.clone().requires_grad_()
    round_through(x / scale).clamp(qmin, qmax).mul(scale).backward(gradient)
    return x.grad


def one_end_only(gradient, x, scale, qmin, qmax):
    return torch.where(x / scale <= qmax, gradient, 0.0)


def scale_rounds_first(gradient, x, scale, qmin, qmax):
    scale = torch.tensor(scale, requires_grad=True)
    (round_through(x / scale).clamp(qmin, qmax) * scale).backward(gradient)
    return scale.grad


def negated(gradient, x, scale, qmin, qmax):
    return -exercise("7.4").solution(gradient, x, scale, qmin, qmax)


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("7.1", cuts_off, "cut off what stands behind the point"),
        ("7.1", by_the_true_gradient, "true slope of the stairs"),
        ("7.2", rounds_what_it_keeps, "you give"),
        ("7.3", clamps_by_pytorch, "At the ends themselves the gradient passes"),
        ("7.3", rounds_first_by_pytorch, "You round first and clamp then"),
        ("7.3", one_end_only, "expected"),
        ("7.4", scale_rounds_first, "Clamp x / scale, then round"),
        ("7.4", negated, "expected"),
    ],
)
def test_a_likely_slip_is_refused_and_told(name, answer, words):
    verdict = judge(exercise(name), answer)
    assert verdict.kind is Kind.WRONG
    assert re.search(words, verdict.message), verdict


def test_no_case_hangs_on_a_tie():
    """A weight or a position in the middle between two rungs would be rounded one way in float32, the other in float64."""
    values = [start for start, *_ in exercise("7.2").cases]
    for case in exercise("7.2").cases:
        values += exercise("7.2").solution(*case)
    for x, _target in exercise("7.1").cases:
        values += x.tolist()
    for _gradient, x, scale, *_ in (*exercise("7.3").cases, *exercise("7.4").cases):
        values += (x / scale).tolist()
    for value in values:
        assert abs(value - math.floor(value) - 0.5) > 1e-3, value
