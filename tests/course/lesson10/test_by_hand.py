"""GPTQ column by column is GPTQ, when each column meets the inverse over the columns that are left."""

from __future__ import annotations

import pytest
import torch

import qlab
from qlab import PerGroup, llm
from qlab.course.lesson10 import by_hand
from qlab.course.lesson10.exercises import push_error, wrong_way
from qlab.llm.layers import round_weight


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs whose channels are correlated."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=draw) @ torch.randn(16, 64, generator=draw)
    return torch.randn(6, 64, generator=draw), x + 0.3 * torch.randn(300, 64, generator=draw)


def error(w, x, other):
    return float((x @ (other - w).T).norm() / (x @ w.T).norm())


def test_the_students_steps_are_the_packages_gptq(layer):
    w, x = layer
    mine = by_hand.gptq(w, by_hand.inverse_hessian(x), push_error, bits=3, size=32)
    packages = qlab.dequantize(*llm.gptq_quantize(w, x.T @ x, 3, PerGroup(32)))
    assert torch.allclose(mine, packages, atol=1e-3)


def test_one_fixed_inverse_is_better_than_rounding_and_worse_than_the_one_over_the_columns_left(layer):
    w, x = layer
    ways = (
        by_hand.gptq(w, by_hand.inverse_hessian(x), push_error, bits=3, size=32),
        by_hand.gptq(w, by_hand.inverse_hessian(x), push_error, bits=3, size=32, updated=False),
        round_weight(w, 3, PerGroup(32)),
    )
    updated, fixed, rounded = (error(w, x, each) for each in ways)
    assert updated < 0.9 * fixed < 0.9 * rounded


def test_a_column_taken_out_of_the_inverse_leaves_the_inverse_of_the_others(layer):
    hessian = (layer[1].T @ layer[1]).double()[:5, :5]
    inverse = torch.linalg.inv(hessian)
    for column in (0, 1):
        inverse = by_hand.without(inverse, column)
    assert torch.allclose(inverse[2:, 2:], torch.linalg.inv(hessian[2:, 2:]))
    assert torch.allclose(inverse[:2], torch.zeros(2, 5).double(), atol=1e-12)


def numpys(w, column, value, inverse):
    w, inverse = w.numpy().copy(), inverse.numpy()
    w[column + 1 :] -= (w[column] - value) / inverse[column, column] * inverse[column, column + 1 :]
    w[column] = value
    return w


def test_a_students_function_may_give_arrays(layer):
    w, x = layer
    inverse = by_hand.inverse_hessian(x)
    ways = [by_hand.gptq(w[:2], inverse, push, bits=4, size=64) for push in (push_error, numpys)]
    assert torch.allclose(*ways, atol=1e-5)


def test_a_function_that_is_not_right_yet_is_replaced_and_that_is_said(capsys):
    assert by_hand.yours("10.3", numpys) is numpys and capsys.readouterr().out == ""
    assert by_hand.yours("10.3", wrong_way) is push_error
    assert capsys.readouterr().out == "push_error does not solve exercise 10.3 yet: here the solution takes its place\n"
