"""The reference engine computes what the formulas say: exact integers, half a step from the real layer."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from zoo import Zoo

import qlab
from qlab import affine
from qlab.affine import QParams
from qlab.granularity import PerChannel, PerGroup, PerTensor
from qlab.int8 import reference
from qlab.int8.reference import Engine

ENGINE = Engine()
WEIGHT_QP = QParams(0.01, 0, signed=True)


def channels_last(shape: tuple[int, ...], high: int = 256) -> Tensor:
    return torch.randint(0, high, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def weights(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def values(codes: Tensor, qp: QParams) -> Tensor:
    return (codes.double() - int(qp.zero_point)) * qp.scale.double()


def assert_rounded(codes: Tensor, real: Tensor, qp: QParams) -> None:
    """The codes are those of the real numbers, each rounded once (and clamped to the grid)."""
    lowest, highest = values(torch.tensor([qp.qmin, qp.qmax]), qp)
    step = float(qp.scale)
    assert codes.dtype is torch.uint8
    assert codes.shape == real.shape
    assert float((values(codes, qp) - real.clamp(lowest, highest)).abs().max()) <= 0.5 * step * (
        1 + 1e-3
    )  # 31 bits of a multiplier, times a sum of up to a million


grids = st.builds(
    lambda exponent, bits, where: QParams(10.0**exponent, round(where * (2**bits - 1)), bits),
    st.floats(-3, 1), st.sampled_from([8, 8, 7, 4, 2]), st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
seeds = st.integers(0, 2**31)


# --- fixed point


@settings(max_examples=30)
@given(st.floats(1e-5, 1e9))
def test_a_multiplier_keeps_31_bits(multiplier):
    [mantissa], shift = reference.fixed_point(torch.tensor(multiplier, dtype=torch.float64))
    assert 2**30 <= int(mantissa) < 2**31
    assert float(mantissa) / 2.0 ** int(shift) == pytest.approx(multiplier, rel=2**-31)


@settings(max_examples=30)
@given(st.floats(1e-12, 1e-6))
def test_a_tiny_multiplier_keeps_what_an_int32_sum_can_show(multiplier):
    [mantissa], shift = reference.fixed_point(torch.tensor(multiplier, dtype=torch.float64))
    assert float(mantissa) / 2.0 ** int(shift) == pytest.approx(multiplier, abs=2**-49, rel=0)


@settings(max_examples=30)
@given(st.floats(1e-5, 1e3), st.floats(1e-5, 1e3))
def test_two_multipliers_share_one_shift_which_the_larger_fills(a, b):
    mantissas, shift = reference.fixed_point(*torch.tensor([a, b], dtype=torch.float64))
    assert 2**30 <= max(map(int, mantissas)) < 2**31
    for mantissa, multiplier in zip(mantissas, (a, b)):
        assert float(mantissa) / 2.0 ** int(shift) == pytest.approx(multiplier, abs=max(a, b) * 2**-31)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, 2.0**30, float("nan")])
def test_a_multiplier_that_is_no_ratio_of_steps_is_refused(multiplier):
    with pytest.raises(ValueError, match="expected more than 0 and less than 2.*30; look for a scale"):
        reference.fixed_point(torch.tensor(multiplier))


@settings(max_examples=30)
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    st.floats(1e-6, 1e3), st.floats(1e-6, 1e3),
)  # fmt: skip
def test_rescaling_rounds_the_exact_sum_once(sums, a, b):
    mantissas, shift = reference.fixed_point(*torch.tensor([a, b], dtype=torch.float64))
    other = list(range(-len(sums) // 2, -len(sums) // 2 + len(sums)))
    got = reference.rescale([torch.tensor(sums), torch.tensor(other)], mantissas, shift)
    first, second = map(int, mantissas)
    exact = [Fraction(x * first + y * second, 2 ** int(shift)) for x, y in zip(sums, other)]
    assert got.tolist() == [floor(value + Fraction(1, 2)) for value in exact]


def test_a_relu_is_the_zero_point_as_the_lowest_code():
    kernel = reference.to_codes([torch.tensor(1.0)], QParams(1.0, 5, bits=4), relu=True)
    assert kernel(torch.tensor([-100, -1, 0, 1, 100])).tolist() == [5, 5, 5, 6, 15]


# --- sums

convolutions = st.fixed_dictionaries({
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "groups": st.sampled_from([1, 1, 2, 3]),
})  # fmt: skip


@settings(max_examples=30)
@given(convolutions, st.sampled_from([(1, 1), (3, 3), (2, 4)]), st.sampled_from([0, 100, 255]), seeds)
def test_the_sums_are_the_convolution_of_the_values_without_their_scales(window, kernel, zero_point, seed):
    torch.manual_seed(seed)
    groups = window["groups"]
    q, weight = channels_last((2, 2 * groups, 8, 9)), weights(3 * groups, 2, *kernel)
    sums = reference.conv2d_sums(q, zero_point, weight, **window)
    expected = F.conv2d(q.double() - zero_point, weight.double(), **window)
    assert sums.dtype is torch.int32
    assert torch.equal(sums.double(), expected)


@settings(max_examples=30)
@given(convolutions, st.sampled_from([0, 100, 255]), seeds)
def test_the_fast_convolution_gives_the_sums_of_the_plain_one(window, zero_point, seed):
    torch.manual_seed(seed)
    groups = window["groups"]
    q, weight = channels_last((2, 4 * groups, 8, 9)), weights(3 * groups, 4, 3, 3)
    x_qp, out_qp, bias = QParams(0.02, zero_point), QParams(0.5, 100), torch.randn(3 * groups)
    kernel = ENGINE.conv2d(weight, bias, WEIGHT_QP, x_qp, out_qp, **window)
    sums = reference.conv2d_sums(q, zero_point, weight, **window)
    step = float(x_qp.scale) * float(WEIGHT_QP.scale)
    real = sums.double() * step + bias.double()[:, None, None]
    assert_rounded(kernel(q), real, out_qp)
    assert kernel(q).is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=30)
@given(convolutions, st.sampled_from([0, 100, 255]), st.sampled_from([0, 1, 3]), seeds)
def test_the_plain_engine_gives_the_codes_of_the_fast_one(window, zero_point, batch, seed):
    torch.manual_seed(seed)
    groups = window["groups"]
    q, weight = channels_last((batch, 4 * groups, 8, 9)), weights(3 * groups, 4, 3, 3)
    x_qp, out_qp, bias = QParams(0.02, zero_point), QParams(0.5, 100), torch.randn(3 * groups)
    fast, plain = (e.conv2d(weight, bias, WEIGHT_QP, x_qp, out_qp, **window) for e in (ENGINE, Engine(plain=True)))
    assert torch.equal(fast(q), plain(q)) and plain(q).is_contiguous(memory_format=torch.channels_last)
    other = plain(q)
    fast, plain = (
        e.conv2d_add(weight, bias, WEIGHT_QP, x_qp, out_qp, out_qp, **window) for e in (ENGINE, Engine(plain=True))
    )
    assert torch.equal(fast(q, other), plain(q, other))
    rows, matrix = q.flatten(1), weights(5, 4 * groups * 8 * 9)
    fast, plain = (e.linear(matrix, None, WEIGHT_QP, x_qp, out_qp) for e in (ENGINE, Engine(plain=True)))
    assert torch.equal(fast(rows), plain(rows))


def test_a_network_runs_on_the_plain_sums_when_asked_and_gives_the_same_scores(monkeypatch):
    x = torch.randn(2, 3, 32, 32)
    int8 = qlab.ptq(Zoo().eval(), [x], engine="reference", qconfig=qlab.QConfig.w8a8())
    expected, taken = int8(x), []
    plain = int8.on(Engine(plain=True))
    for name in ("conv2d_sums", "linear_sums"):
        sums = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *args, sums=sums, **kw: taken.append(sums) or sums(*args, **kw))
    assert torch.equal(plain(x), expected)
    assert len(set(taken)) == 2
    taken.clear()
    assert torch.equal(int8(x), expected) and not taken


def test_images_of_one_channel_and_outputs_of_one_column_are_summed_plainly():
    """torch's float convolution is wrong there on some processors, and another time otherwise."""
    q, weight = channels_last((3, 1, 9, 3)), weights(16, 1, 3, 3)
    window = {"stride": (1, 2), "padding": (1, 0), "dilation": (1, 1), "groups": 1}
    sums = reference.conv2d_sums(q, 7, weight, **window)
    expected = F.conv2d(q.double() - 7, weight.double(), stride=(1, 2), padding=(1, 0))
    assert torch.equal(sums.double(), expected)
    kernel = ENGINE._conv2d_sums(weight, QParams(1.0, 7), *window.values())
    assert torch.equal(kernel(q), sums) and kernel(q).dtype is torch.int32
    assert kernel(channels_last((3, 1, 9, 9))).dtype is torch.float32


def test_float_sums_are_exact_under_autocast_and_leave_nnpack_as_it_was():
    q, weight, before = channels_last((2, 8, 9, 9)), weights(16, 8, 3, 3), torch._C._get_nnpack_enabled()
    x_qp, out_qp = QParams(0.02, 7), QParams(0.5, 100)
    kernel, rows = ENGINE.conv2d(weight, None, WEIGHT_QP, x_qp, out_qp), q.flatten(1)
    linear = ENGINE.linear(weights(4, rows.shape[1]), None, WEIGHT_QP, x_qp, QParams(5.0, 100))
    expected = kernel(q), linear(rows)
    with torch.autocast("cpu"):
        assert torch.equal(kernel(q), expected[0]) and torch.equal(linear(rows), expected[1])
    assert torch._C._get_nnpack_enabled() == before


def test_float32_is_used_up_to_its_last_exact_sum_and_not_beyond():
    x_qp = QParams(1.0, 0)
    weight = torch.full((1, 2**24 // (255 * 127)), 127, dtype=torch.int8)
    longer = F.pad(weight, (0, 1), value=127)
    assert reference.sum_bound(weight, x_qp) < 2**24 <= reference.sum_bound(longer, x_qp)
    assert reference.exact_float(weight, x_qp) is torch.float32
    assert reference.exact_float(longer, x_qp) is torch.float64


@settings(max_examples=30)
@given(st.sampled_from([0, 77, 255]), seeds)
def test_no_partial_sum_exceeds_the_bound(zero_point, seed):
    torch.manual_seed(seed)
    weight = weights(4, 9)
    bound = reference.sum_bound(weight, QParams(1.0, zero_point))
    codes = torch.where(weight > 0, 255, 0) - zero_point
    products = torch.cat([codes * weight, (torch.where(weight < 0, 255, 0) - zero_point) * weight])
    signs = [products.clamp(min=0).sum(1).max(), -products.clamp(max=0).sum(1).min()]
    assert max(map(int, signs)) == bound


def test_a_layer_without_inputs_sums_to_zero():
    assert reference.sum_bound(torch.zeros(3, 0, dtype=torch.int8), QParams(1.0, 0)) == 0


def test_large_layers_are_exact_in_float64():
    q, weight = torch.full((1, 4608), 255, dtype=torch.uint8), torch.full((2, 4608), 127, dtype=torch.int8)
    weight[1, -1] = 126  # the sum is one product of 255 less
    kernel = ENGINE.linear(weight, None, QParams(1.0, 0, signed=True), QParams(1.0, 0), QParams(1.0e6, 0))
    assert reference.exact_float(weight, QParams(1.0, 0)) is torch.float64
    assert kernel(q).tolist() == [[149, 149]]


# --- bias


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(1, 8), st.floats(-2, 1.5), seeds)
def test_a_bias_costs_next_to_nothing_at_any_width(weight_bits, x_bits, exponent, seed):
    """Half a step is lost by rounding the output. A bias rounded to s_x * s_w would cost W2A2 many codes more."""
    torch.manual_seed(seed)
    limit = 2 ** (weight_bits - 1) - 1
    weight = torch.randint(-limit, limit + 1, (4, 8)).to(torch.int8)
    weight_qp, x_qp = QParams(1.0 / max(1, limit), 0, weight_bits, signed=True), QParams(1.0, 0, x_bits)
    out_qp = QParams(10.0**exponent, 128)
    bias = torch.randn(4) * 20 * float(out_qp.scale)
    q = torch.randint(0, x_qp.qmax + 1, (16, 8), dtype=torch.uint8)
    got = values(ENGINE.linear(weight, bias, weight_qp, x_qp, out_qp)(q), out_qp)
    lowest, highest = values(torch.tensor([0, 255]), out_qp)
    real = (values(q, x_qp) @ values(weight, weight_qp).T + bias.double()).clamp(lowest, highest)
    assert float((got - real).abs().max()) <= 0.5 * float(out_qp.scale) * (1 + 1e-5)


@pytest.mark.parametrize("tiny", [1e-8, 1e-20, 1.2e-38])
def test_a_channel_of_almost_no_weight_gives_its_bias(tiny):
    """Its bias is some 1e9 steps of its sums or more."""
    weight_qp = QParams(
        torch.tensor([tiny, 0.01]), torch.zeros(2, dtype=torch.int32), signed=True, granularity=PerChannel(0)
    )
    x_qp, out_qp, bias = QParams(1e-4, 0), QParams(0.1, 0), torch.tensor([7.0, 7.0])
    kernel = ENGINE.linear(torch.full((2, 4), 100).char(), bias, weight_qp, x_qp, out_qp)
    assert kernel(torch.full((1, 4), 255, dtype=torch.uint8)).tolist() == [[70, 71]]


# --- layers


@settings(max_examples=30)
@given(grids, grids, st.booleans(), st.booleans(), seeds)
def test_linear_rounds_the_real_layer_once(x_qp, out_qp, relu, by_channel, seed):
    torch.manual_seed(seed)
    scale = torch.rand(5) + 0.1 if by_channel else torch.tensor(0.5)
    scale = scale * float(out_qp.scale) / float(x_qp.scale) / 50
    weight_qp = QParams(
        scale, torch.zeros_like(scale).int(), signed=True, granularity=PerChannel(0) if by_channel else PerTensor()
    )
    q, weight = torch.randint(0, x_qp.qmax + 1, (3, 2, 12), dtype=torch.uint8), weights(5, 12)
    real = values(q, x_qp) @ (weight.double() * scale.double().reshape(-1, 1)).T
    kernel = ENGINE.linear(weight, None, weight_qp, x_qp, out_qp, relu=relu)
    assert_rounded(kernel(q), real.clamp(min=0) if relu else real, out_qp)


@settings(max_examples=30)
@given(convolutions, grids, grids, grids, st.booleans(), seeds)
def test_conv2d_add_rounds_the_real_sum_once(window, x_qp, other_qp, out_qp, relu, seed):
    torch.manual_seed(seed)
    groups = window["groups"]
    weight_qp = QParams(float(out_qp.scale) / float(x_qp.scale) / 50, 0, signed=True)
    other_qp = QParams(float(out_qp.scale) * 1.7, other_qp.zero_point, other_qp.bits)
    q, weight = channels_last((2, 3 * groups, 8, 9), x_qp.qmax + 1), weights(2 * groups, 3, 3, 3)
    real = F.conv2d(values(q, x_qp), values(weight, weight_qp), **window)
    other = channels_last(tuple(real.shape), other_qp.qmax + 1)
    real = real + values(other, other_qp)
    kernel = ENGINE.conv2d_add(weight, None, weight_qp, x_qp, other_qp, out_qp, **window, relu=relu)
    before = other.clone()
    assert_rounded(kernel(q, other), real.clamp(min=0) if relu else real, out_qp)
    assert torch.equal(other, before)


@settings(max_examples=30)
@given(grids, grids, grids, st.booleans(), seeds)
def test_add_cat_and_requantize_round_once(a_qp, b_qp, out_qp, relu, seed):
    torch.manual_seed(seed)
    a, b = channels_last((2, 3, 4, 5), a_qp.qmax + 1), channels_last((2, 3, 4, 5), b_qp.qmax + 1)
    low = 0.0 if relu else -float("inf")
    total = (values(a, a_qp) + values(b, b_qp)).clamp(min=low)
    assert_rounded(ENGINE.add(a_qp, b_qp, out_qp, relu=relu)(a, b), total, out_qp)
    assert_rounded(ENGINE.requantize(a_qp, out_qp, relu=relu)(a), values(a, a_qp).clamp(min=low), out_qp)
    both = torch.cat([values(a, a_qp), values(b, b_qp)], 1)
    assert_rounded(ENGINE.cat([a_qp, b_qp], out_qp, dim=1)([a, b]), both, out_qp)


def test_requantize_to_the_same_grid_is_nothing_at_all():
    qp, q = QParams(0.5, 10), channels_last((1, 2, 3, 3))
    assert ENGINE.requantize(qp, QParams(0.5, 10))(q) is q
    assert torch.equal(ENGINE.requantize(qp, qp, relu=True)(q), q.clamp(min=10))


pools = st.fixed_dictionaries({
    "kernel_size": st.sampled_from([2, 3, (3, 2), (2, 4)]),
    "stride": st.sampled_from([None, 1, 2, (3, 1)]),
    "padding": st.sampled_from([0, 0, (1, 0)]),
    "ceil_mode": st.booleans(),
})  # fmt: skip


@settings(max_examples=30)
@given(pools, st.sampled_from([1, 2, (1, 2)]), seeds)
def test_max_pooling_takes_the_largest_code(window, dilation, seed):
    torch.manual_seed(seed)
    q = channels_last((2, 3, 9, 11))
    got = ENGINE.max_pool2d(QParams(1.0, 7), **window, dilation=dilation)(q)
    assert torch.equal(got.double(), F.max_pool2d(q.double(), **window, dilation=dilation))
    assert got.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=30)
@given(pools, st.booleans(), grids, grids, seeds)
def test_average_pooling_divides_as_torch_does(window, count_include_pad, x_qp, out_qp, seed):
    torch.manual_seed(seed)
    q = channels_last((2, 3, 9, 11), x_qp.qmax + 1)
    real = F.avg_pool2d(values(q, x_qp), **window, count_include_pad=count_include_pad)
    kernel = ENGINE.avg_pool2d(x_qp, out_qp, **window, count_include_pad=count_include_pad)
    assert_rounded(kernel(q), real, out_qp)
    assert kernel(q).is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=30)
@given(st.sampled_from([1, (1, 1), 3, (2, 5)]), grids, grids, seeds)
def test_adaptive_pooling_takes_the_mean_of_each_cell(size, x_qp, out_qp, seed):
    torch.manual_seed(seed)
    q = channels_last((2, 3, 7, 8), x_qp.qmax + 1)
    got = ENGINE.adaptive_avg_pool2d(x_qp, out_qp, output_size=size)(q)
    assert_rounded(got, F.adaptive_avg_pool2d(values(q, x_qp), size), out_qp)
    assert got.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=30)
@given(grids, seeds)
def test_quantize_and_dequantize_are_those_of_lesson_1(qp, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 4, 5) * float(qp.scale) * qp.qmax
    q = ENGINE.quantize(qp)(x)
    assert torch.equal(q, affine.quantize(x, qp))
    assert torch.equal(ENGINE.dequantize(qp)(q), affine.dequantize(q, qp))
    assert q.is_contiguous(memory_format=torch.channels_last)


def test_an_input_that_needs_a_gradient_is_quantized_like_any_other():
    x = torch.ones(1, 2, requires_grad=True)
    q = ENGINE.quantize(QParams(0.5, 0))(x)
    assert q.tolist() == [[2, 2]]
    assert not q.requires_grad


def test_flatten_of_a_pooled_image_is_a_view():
    q = channels_last((2, 3, 1, 1))
    flat = ENGINE.flatten()(q)
    assert flat.shape == (2, 3)
    assert flat.data_ptr() == q.data_ptr()


# --- errors


def test_numbers_without_a_code_are_refused():
    with pytest.raises(ValueError, match="1 NaN and 2 infinite values of 4.*look at what computed it"):
        ENGINE.quantize(QParams(1.0, 0))(torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]))


def test_numbers_whose_sum_overflows_are_fine():
    assert ENGINE.quantize(QParams(1e36, 0))(torch.full((4,), 3e38)).tolist() == [255] * 4


@pytest.mark.parametrize(
    ("qp", "words"),
    [
        (QParams(1.0, 0, signed=True), "signed, has 8 bits"),
        (QParams(1.0, 0, bits=9), "unsigned, has 9 bits"),
        (QParams(torch.ones(3), torch.zeros(3, dtype=torch.int32), granularity=PerChannel(0)), r"scale of shape \(3,\)"),
    ],
)  # fmt: skip
def test_activations_that_no_kernel_takes_are_refused(qp, words):
    for make in (
        lambda: ENGINE.quantize(qp),
        lambda: ENGINE.add(qp, QParams(1.0, 0), QParams(1.0, 0)),
        lambda: ENGINE.max_pool2d(qp, kernel_size=2),
        lambda: ENGINE.linear(weights(3, 4), None, WEIGHT_QP, qp, QParams(1.0, 0)),
    ):
        with pytest.raises(ValueError, match=words + r".*use QuantSpec\(bits=8\)"):
            make()


def grid_of_weights(*shape: int, **kind: int) -> QParams:
    return QParams(torch.ones(shape), torch.zeros(shape, dtype=torch.int32), signed=True, **kind)


@pytest.mark.parametrize(
    ("weight", "qp", "words"),
    [
        (weights(2, 4).to(torch.int16), WEIGHT_QP, "weight codes of torch.int16"),
        (weights(2, 4), QParams(1.0, 3, signed=True), r"zero point\(s\) \[3\].*symmetric=True"),
        (weights(2, 4), QParams(1.0, 0), "an unsigned grid"),
        (weights(2, 4), grid_of_weights(4, granularity=PerChannel(1)), r"PerChannel\(axis=1\)"),
        (weights(2, 4), grid_of_weights(3, granularity=PerChannel(0)), r"scale of shape \(3,\)"),
        (weights(2, 4), grid_of_weights(2, 2, granularity=PerGroup(2)), r"PerGroup\(size=2\).*out of the integer sum"),
    ],
)  # fmt: skip
def test_weights_that_no_kernel_takes_are_refused(weight, qp, words):
    with pytest.raises(ValueError, match=words):
        ENGINE.linear(weight, None, qp, QParams(1.0, 0), QParams(1.0, 0))


def test_a_sum_that_can_overflow_int32_is_refused():
    weight = torch.full((1, 70_000), 127, dtype=torch.int8)
    with pytest.raises(ValueError, match="more than an int32 accumulator holds.*fewer inputs .70000 now"):
        ENGINE.linear(weight, None, WEIGHT_QP, QParams(1.0, 0), QParams(1.0, 0))


def test_a_window_must_be_made_of_whole_numbers():
    qp = QParams(1.0, 0)
    with pytest.raises(ValueError, match="'same': expected a whole number, or one for height and one for"):
        ENGINE.conv2d(weights(2, 3, 3, 3), None, WEIGHT_QP, qp, qp, padding="same")


def test_a_window_must_fit_the_image():
    kernel = ENGINE.max_pool2d(QParams(1.0, 0), kernel_size=5)
    with pytest.raises(ValueError, match="a window of 5 does not fit an image of 4 padded by 0"):
        kernel(channels_last((1, 1, 4, 4)))
