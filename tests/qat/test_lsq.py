"""Learned scales and zero points: their gradients are those of the papers, and no step throws them away."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stripes import stripes
from tiny import PLAN, calibrated
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, PerGroup, QuantSpec, qat
from qlab.qat import stages
from qlab.qat.lsq import _dot
from qlab.quantizers import AffineQuantizer


def lsq(x, scale, zero_point=0.0, qmin=0, qmax=7, share=1.0, pact=False):
    x, scale, zero_point = (torch.as_tensor(t, dtype=torch.float64).requires_grad_() for t in (x, scale, zero_point))
    qat.LearnedStep.apply(x, scale, zero_point, qmin, qmax, share, pact).sum().backward()
    return x.grad, scale.grad, zero_point.grad


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2.3, round(2.3) - 2.3), (2.6, round(2.6) - 2.6), (9.0, 7.0), (-4.0, 0.0), (0.4, -0.4)],
)
def test_the_gradient_of_a_scale_is_equation_3_of_the_lsq_paper(value, expected):
    """round(v) - v inside the grid, Qp above it, -Qn (here 0) below it; v = x / s."""
    for scale in (1.0, 0.25, 8.0):
        assert lsq([value * scale], scale)[1].item() == pytest.approx(expected)


def test_the_gradient_of_a_signed_scale_is_minus_qn_below_the_grid():
    assert lsq([-30.0], 1.0, qmin=-7)[1].item() == -7


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20), st.floats(0.1, 4))
@settings(deadline=None, max_examples=60)
def test_the_gradient_of_a_value_is_1_inside_the_grid_and_0_where_it_is_clipped(values, scale):
    gradient = lsq(values, scale)[0]
    position = torch.tensor(values, dtype=torch.float64) * (1 / torch.tensor(scale, dtype=torch.float64))
    assert torch.equal(gradient, ((position > 0) & (position < 7)).double())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_what_is_rounded_to_an_outer_rung_still_learns(bits):
    """It clamps first, then rounds: whoever rounds first stops the gradient of all that has the last code."""
    top = 2 ** (bits - 1) - 1
    places = [-top - 0.3, -top + 0.3, top - 0.45, top - 0.01, top + 0.01]
    gradient, of_scale, _ = lsq(places, 1.0, qmin=-top, qmax=top)
    assert gradient.tolist() == [0, 1, 1, 1, 0]
    assert of_scale.item() == pytest.approx(-top - 0.3 + 0.45 + 0.01 + top)


def test_pact_moves_the_clipping_point_by_what_is_clipped_alone():
    """d y / d alpha = 1 where x >= alpha (PACT, equation 3); alpha = qmax * scale, hence qmax * d / d alpha."""
    _, gradient, _ = lsq([1.3, 2.6, 9.0, 20.0], 1.0, pact=True)
    assert gradient.item() == pytest.approx(7 + 7)


def test_the_zero_point_learns_from_what_is_clipped_alone():
    """d y / d offset = 1 where x is clipped, else 0 (LSQ+, equation 5); offset = -z * s, in steps."""
    assert lsq([-30.0, 0.1, 30.0], 0.5, zero_point=3.0)[2].item() == pytest.approx(-2 / 0.5)
    assert lsq([0.1], 0.5, zero_point=3.0)[2].item() == 0


@pytest.mark.parametrize("pact", [False, True])
def test_a_scale_has_the_same_gradient_in_bfloat16(pact):
    """Values near the grid, few of them clipped, and a gradient that runs along them: sum g * y is far larger."""
    torch.manual_seed(0)
    y = torch.randint(0, 3, (4096,)) * 0.5
    x = torch.where(torch.arange(4096) % 128 == 0, 2.0, y + 1 / 64).bfloat16()
    gradient = (x.float() + torch.randn(4096) * 0.01).bfloat16()

    def of_scale(dtype: torch.dtype) -> float:
        scale = torch.tensor(0.5, requires_grad=True)
        output = qat.LearnedStep.apply(x.to(dtype), scale, torch.tensor(0.0), 0, 3, 1.0, pact)
        assert output.dtype == dtype
        output.backward(gradient.to(dtype))
        return scale.grad.item()

    assert of_scale(torch.bfloat16) == pytest.approx(of_scale(torch.float32), rel=0.006)


@pytest.mark.parametrize("pact", [False, True])
def test_a_scale_of_eight_bits_has_the_same_gradient_in_float32_and_float64(pact):
    """It is a small difference of two large sums, which float32 has to survive."""
    torch.manual_seed(0)
    x = torch.randn(200_000).relu()
    gradient = 1e-3 * torch.randn(len(x)) + 1e-2  # and most of it of one sign

    def of_scale(dtype: torch.dtype) -> float:
        scale = torch.tensor(3 / 255, dtype=dtype, requires_grad=True)
        output = qat.LearnedStep.apply(x.to(dtype), scale, None, 0, 255, 1.0, pact)
        output.backward(gradient.to(dtype))
        return scale.grad.item()

    assert of_scale(torch.float32) == pytest.approx(of_scale(torch.float64), rel=1e-3)


def test_bfloat16_keeps_the_gradient_of_binary_weights_and_not_that_of_two_bit_activations():
    """Its rounding moves values over a threshold to the next code; binary weights have one threshold, far from most of
    them. Ten times is little of what is there, whichever images it is. What Plan says about `precision` stands on this.
    """

    def gradient(preset: str, dtype: torch.dtype) -> torch.Tensor:
        x, y = next(qlab.data.shapes10("validation").sample(8).batches(8))
        prepared = qat.start(qat.load("resnet20", preset), [x]).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(prepared(x).float(), y)
        loss.backward()
        return torch.cat([p.grad.flatten() for name, p in prepared.named_parameters() if name.endswith(".weight")])

    lost = {
        preset: 1 - F.cosine_similarity(gradient(preset, torch.float32), gradient(preset, torch.bfloat16), 0).item()
        for preset in ("w2a2", "w1a32")
    }
    assert lost["w2a2"] > 10 * lost["w1a32"]


def test_a_scale_a_channel_gets_the_gradients_of_its_own_channel():
    x = torch.tensor([[1.3, 2.6], [9.0, 0.4]], dtype=torch.float64)
    gradient = lsq(x, [[1.0], [1.0]], zero_point=[[0.0], [0.0]])[1]
    assert gradient.flatten().tolist() == pytest.approx([-0.3 + 0.4, 7 - 0.4])


def test_values_are_counted_per_channel_where_scales_are():
    """The gradient of a weight's scale is 1 / sqrt(N * Qp) times the sum, with N the weights of one channel."""
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerChannel(0), narrow_range=True)
    weight = torch.full((5, 4, 3, 3), 100.0)  # all clipped: each value's own gradient is Qp = 7
    quantizer = learning(spec, torch.full((5,), 1.0), of_weight=True)
    quantizer(weight).sum().backward()
    assert quantizer.scale.grad.tolist() == pytest.approx([36 * 7 / math.sqrt(36 * 7)] * 5)


def test_activations_are_counted_per_image():
    quantizer = learning(QuantSpec(4), torch.tensor(1.0))
    quantizer(torch.full((6, 4, 3, 3), 100.0)).sum().backward()
    assert quantizer.scale.grad.item() == pytest.approx(6 * 36 * 15 / math.sqrt(36 * 15))


def learning(spec: QuantSpec, scale, zero_point=None, of_weight=False, method="lsq") -> AffineQuantizer:
    quantizer = AffineQuantizer(spec)
    zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
    quantizer.qparams = spec.qparams(scale, zero_point.to(torch.int32))
    return stages._learner(quantizer, method, of_weight, cut_off=False).train()


@pytest.mark.parametrize("granularity", [qlab.PerTensor(), PerChannel(0), PerGroup(6)])
def test_learning_rounds_exactly_as_fake_quantize_does(granularity):
    x = torch.randn(4, 12) * 3
    spec = QuantSpec(3, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    quantizer = learning(spec, torch.rand(granularity.scale_shape(x.shape)) + 0.1, of_weight=True)
    assert torch.equal(quantizer(x), qlab.fake_quantize(x, quantizer.qparams))


@pytest.mark.parametrize(
    ("signed", "zero_point", "at_zero"),
    [(False, 0, True), (True, -4, False), (True, 0, False), (True, 1, False)],
    ids=["0 and stays so", "the lowest code", "0 but learns", "learns"],
)
def test_a_zero_point_is_left_out_only_where_it_is_0_and_stays_so(signed, zero_point, at_zero):
    x, spec = torch.randn(4, 12) * 3, QuantSpec(3, signed=signed, symmetric=False)
    quantizer = learning(spec, torch.tensor(0.3), torch.tensor(zero_point))
    moved = copy.deepcopy(quantizer)
    assert quantizer.at_zero is at_zero
    assert torch.equal(quantizer(x), qlab.fake_quantize(x, quantizer.qparams))
    moved.load_state_dict({**moved.state_dict(), "zero_point": moved.zero_point.detach() + 2})
    assert not moved.at_zero and torch.equal(moved(x), qlab.fake_quantize(x, moved.qparams))


def test_the_two_ways_to_sum_a_gradient_agree():
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    like = torch.tensor(0.0)
    last = {"memory_format": torch.channels_last}
    for first, second in ((a, b), (a.contiguous(**last), b.contiguous(**last)), (a, b.contiguous(**last))):
        assert _dot(first, second, like).item() == pytest.approx((a * b).sum().item())


def test_lsq_plus_learns_a_zero_point_only_where_zero_is_inside_the_range():
    inside = learning(QuantSpec(4), torch.tensor(0.5), torch.tensor(6))
    at_the_end = learning(QuantSpec(4), torch.tensor(0.5), torch.tensor(0))
    assert isinstance(inside.zero_point, nn.Parameter) and not isinstance(at_the_end.zero_point, nn.Parameter)
    with torch.no_grad():
        inside.zero_point.fill_(99.0)
    assert inside.qparams.zero_point == 15  # a code, whatever was learned


@pytest.mark.parametrize("thrown, kept", [(-1.0, 0.98), (100.0, 1.02), (1.01, 1.01)])
def test_a_step_changes_a_scale_by_two_percent_at_most(network, thrown, kept):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    for _, quantizer in prepared.quantizers():
        before, grid = quantizer.scale.detach().clone(), quantizer.qparams.scale
        quantizer.scale.data.mul_(thrown)
        torch.testing.assert_close(quantizer.qparams.scale, grid * kept)
        torch.testing.assert_close(quantizer.scale.data, before * kept)


def test_a_scale_survives_a_learning_rate_that_is_far_too_high(network):
    """With 8 bits a scale is small and its gradient is not: without a limit it is thrown below 0 and stays there."""
    prepared = calibrated(network, qat.qconfig("w8a8"))
    before = {name: quantizer.qparams.scale.clone() for name, quantizer in prepared.quantizers()}
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=2, lr=1.0), progress=False)
    steps, weights = 2 * 64 // PLAN.batch_size, {layer.weight_quantizer for _, layer in prepared.weighted()}
    for name, quantizer in prepared.quantizers():
        change = quantizer.qparams.scale / before[name]
        if quantizer in weights:  # counted in units of BatchNorm's gain, which has no limit
            assert (change > 0).all() and change.isfinite().all(), name
            continue
        assert (change >= 0.98**steps - 1e-4).all() and (change <= 1.02**steps + 1e-4).all(), name
