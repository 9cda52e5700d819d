"""One layer that learns through its rounding: what the order of clamp and round does to the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qlab.course.lesson07.layer import Snapshot, inputs_of, share, train_layer


def round_through(x):
    return x + (x.round() - x).detach()


def clamps_first(weight, scale):
    position = weight / scale
    clamped = torch.where(position.abs() <= 1, position, position.detach().clamp(-1, 1))
    return round_through(clamped) * scale


def rounds_first(weight, scale):
    return F.hardtanh(round_through(weight / scale)) * scale


@pytest.fixture(scope="module")
def layer() -> nn.Conv2d:
    torch.manual_seed(7)
    return nn.Conv2d(8, 16, 3, padding=1)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(7)).relu()


def test_a_weight_that_rounds_before_it_clamps_is_frozen_on_an_outer_rung_and_no_other_is(layer, inputs):
    for snapshot in train_layer(layer, inputs, rounds_first, steps=40):
        assert torch.equal(snapshot.held, (snapshot.weights / snapshot.scale).round().abs() >= 1)


def test_a_weight_that_clamps_first_is_held_beyond_the_ends_alone(layer, inputs):
    for snapshot in train_layer(layer, inputs, clamps_first, steps=40):
        assert torch.equal(snapshot.held, (snapshot.weights / snapshot.scale).abs() > 1)


def test_training_makes_the_output_better_and_leaves_the_layer_alone(layer, inputs):
    before = layer.weight.detach().clone()
    first, *_, last = train_layer(layer, inputs, clamps_first, steps=60, every=20)
    assert last.error < 0.6 * first.error and torch.equal(layer.weight, before)
    assert first.scale == before.abs().max().item() and torch.equal(first.weights, before)


def test_a_pull_brings_the_weights_to_the_rungs_and_a_falling_rate_does_not(layer, inputs):
    ways = {"free": {}, "falling": {"falling": True}, "pull": {"pull": 1.0}}
    end = {name: train_layer(layer, inputs, clamps_first, steps=300, **way)[-1] for name, way in ways.items()}
    on = {name: share(one, -1, 0, 1) for name, one in end.items()}
    assert on["pull"] > 2 * max(on["free"], on["falling"])
    assert end["pull"].jumped <= end["falling"].jumped < end["free"].jumped


def test_jumped_counts_the_codes_that_differ_from_the_last_snapshot(layer, inputs):
    path = train_layer(layer, inputs, clamps_first, steps=60)
    codes = [(one.weights / one.scale).round().clamp(-1, 1) for one in path]
    assert path[0].jumped == 0
    for before, now, one in zip(codes, codes[1:], path[1:]):
        assert one.jumped == pytest.approx((now != before).float().mean().item())


def test_share_counts_what_is_near_a_place_in_steps_of_the_grid():
    weights = torch.tensor([-0.2, 0.0, 0.09, 0.11, 0.2])
    assert share(Snapshot(weights, 0.2, 0.0, weights == 0, 0.0), -1, 0, 1) == pytest.approx(3 / 5)
    assert share(Snapshot(weights, 0.2, 0.0, weights == 0, 0.0), -0.5, 0.5) == pytest.approx(2 / 5)


def test_inputs_of_leaves_no_hook_behind():
    network = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
    assert torch.equal(inputs_of(network, network[1], torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 2.0]]))
    assert not network[1]._forward_pre_hooks
