"""Scale and zero point: the same bits as torch and onnxruntime, the laws of a grid, the words of errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import qlab
from qlab.affine import (
    QParams,
    choose_qparams,
    dequantize,
    fake_quantize,
    fit_grid,
    grid_limits,
    quantize,
    round_rows,
    within_range,
)
from qlab.granularity import PerChannel, PerGroup, PerTensor

# Tests alone may touch torch's historical quantized tensors; making one warns since torch 2.13.
historical = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
settings.register_profile("parity", parent=settings.get_profile("qlab"), max_examples=400)
parity = settings.get_profile("parity")

FORMS = [
    (bits, signed, narrow)
    for bits in range(1, 17)
    for signed in (False, True)
    for narrow in (False, True)
    if not narrow or (signed and bits > 1)
]
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(2.0**-100, 2.0**100, width=32)


@st.composite
def grids(draw, forms=tuple(FORMS), scale=scales):
    """A per-tensor grid of any form, with any zero point."""
    bits, signed, narrow_range = draw(st.sampled_from(forms))
    zero_point = draw(st.integers(*grid_limits(bits, signed, narrow_range)))
    return QParams(draw(scale), zero_point, bits, signed, narrow_range=narrow_range)


@st.composite
def values_on(draw, qp):
    """Values around a grid, half of them at or beside the middle of two codes, and any other float32."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    codes = torch.randint(2 * qp.qmin - qp.qmax - 1, 2 * qp.qmax - qp.qmin + 2, (2, 16), generator=generator)
    steps = codes - qp.zero_point + torch.tensor([[0.0], [0.5]])
    nudge = 1 + 2.0**-23 * torch.randint(-2, 3, steps.shape, generator=generator)
    return torch.cat([(steps * qp.scale * nudge).flatten(), torch.tensor(draw(st.lists(floats, max_size=3)))])


def same_bits(a, b):
    """Equal to the last bit, the sign of zero included."""
    view = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(view), b.contiguous().view(view))
    )


class TestEqualsTorch:
    @historical
    @parity
    @given(st.data())
    def test_per_tensor(self, data):
        qp = data.draw(grids(((8, False, False), (8, True, False))))
        x = data.draw(values_on(qp)).clamp(qp.scale * -(2.0**30), qp.scale * 2.0**30)  # theirs wraps around beyond
        theirs = torch.quantize_per_tensor(x, qp.scale, qp.zero_point, torch.qint8 if qp.signed else torch.quint8)
        assert torch.equal(quantize(x, qp), theirs.int_repr())
        assert same_bits(dequantize(quantize(x, qp), qp), theirs.dequantize())

    @historical
    @parity
    @given(st.data())
    def test_per_channel(self, data):
        x, qp = data.draw(channels())
        dtype = torch.qint8 if qp.signed else torch.quint8
        theirs = torch.quantize_per_channel(x, qp.scale, qp.zero_point, qp.granularity.of(x.shape).axis, dtype)
        assert torch.equal(quantize(x, qp), theirs.int_repr())
        assert same_bits(dequantize(quantize(x, qp), qp), theirs.dequantize())

    @parity
    @given(st.data())
    def test_fake_quantize(self, data):
        qp = data.draw(grids())
        x = data.draw(values_on(qp)).clamp(qp.scale * -(2.0**62), qp.scale * 2.0**62)  # theirs wraps around beyond
        theirs = torch.fake_quantize_per_tensor_affine(x, qp.scale, qp.zero_point, qp.qmin, qp.qmax)
        assert same_bits(fake_quantize(x, qp), theirs)

    @parity
    @given(st.data())
    def test_fake_quantize_per_channel(self, data):
        x, qp = data.draw(channels(FORMS))
        theirs = torch.fake_quantize_per_channel_affine(
            x, qp.scale, qp.zero_point, qp.granularity.of(x.shape).axis, qp.qmin, qp.qmax
        )
        assert same_bits(fake_quantize(x, qp), theirs)

    @settings(max_examples=100)
    @given(st.data())
    def test_the_gradient(self, data):
        x, qp = data.draw(channels(FORMS))
        upstream = torch.randn(x.shape)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        fake_quantize(ours, qp).backward(upstream)
        torch.fake_quantize_per_channel_affine(
            theirs, qp.scale, qp.zero_point, qp.granularity.of(x.shape).axis, qp.qmin, qp.qmax
        ).backward(upstream)
        assert torch.equal(ours.grad, theirs.grad)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    @settings(max_examples=100)
    @given(qp=grids(scale=st.floats(2.0**-9, 1.0, width=32)))
    def test_other_types(self, dtype, qp):
        x = (torch.randn(64) * (qp.qmax - qp.qmin) * qp.scale).clamp(-6e4, 6e4).to(dtype).requires_grad_()
        ours = fake_quantize(x, qp)
        theirs = torch.fake_quantize_per_tensor_affine(x, qp.scale, qp.zero_point, qp.qmin, qp.qmax)
        assert same_bits(ours, theirs)
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)))


@st.composite
def channels(draw, forms=((8, False, False), (8, True, False))):
    """A tensor and one grid for each channel of one of its axes, given from the front or from the end."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    bits, signed, narrow_range = draw(st.sampled_from(forms))
    qmin, qmax = grid_limits(bits, signed, narrow_range)
    torch.manual_seed(draw(st.integers(0, 2**32)))
    scale = torch.rand(shape[axis]).add(1) * torch.randint(-99, 99, (shape[axis],)).float().exp2()
    zero_point = torch.randint(qmin, qmax + 1, scale.shape, dtype=torch.int32)
    qp = QParams(scale, zero_point, bits, signed, PerChannel(axis), narrow_range)
    # whole and half steps, moved a little: often by less than float32 can tell
    steps = torch.randint(-(2**bits), 2**bits, shape) / 2
    steps += torch.randn(shape).sign() * 2.0 ** -(1 + 29 * torch.rand(shape))
    return (steps.movedim(axis, -1) * scale).movedim(-1, axis), qp


class TestEqualsONNX:
    @settings(max_examples=100)
    @given(st.data())
    def test_where_the_scale_is_a_power_of_two(self, data):
        exponent = st.integers(-20, 20)
        qp = data.draw(grids(tuple(ONNX_TYPES), scale=exponent.map(lambda power: 2.0**power)))
        x = data.draw(values_on(qp))
        codes, values = onnx_round_trip(x, qp)
        assert torch.equal(quantize(x, qp).int(), codes)
        assert same_bits(dequantize(codes, qp), values)

    @settings(max_examples=100)
    @given(st.data())
    def test_elsewhere_only_the_middle_between_two_codes_may_go_either_way(self, data):
        qp = data.draw(grids(tuple(ONNX_TYPES), scale=st.floats(2.0**-20, 2.0**20, width=32)))
        x = data.draw(values_on(qp))
        codes, _ = onnx_round_trip(x, qp)
        differs = quantize(x, qp).int() != codes
        steps = x.double() / qp.scale.double()
        to_the_middle = ((steps - steps.floor()) - 0.5).abs()
        assert ((quantize(x, qp).int() - codes).abs() <= 1).all()
        assert (to_the_middle[differs] <= steps[differs].abs() * 2.0**-22).all()

    def test_the_two_conventions_do_differ(self):
        """x * (1 / scale) is not always x / scale, which is why both are stated."""
        qp, x = QParams(0.1, 0), torch.arange(255) / 10 + 0.05
        assert 0 < (quantize(x, qp).int() != onnx_round_trip(x, qp)[0]).sum() < 100

    @settings(max_examples=100)
    @given(qp=grids())
    def test_dequantize_is_the_same_product(self, qp):
        codes = torch.arange(qp.qmin, qp.qmax + 1, max(1, (qp.qmax - qp.qmin) // 99))
        expected = (codes.numpy() - qp.zero_point.item()).astype(np.float32) * np.float32(qp.scale)
        assert same_bits(dequantize(codes, qp), torch.from_numpy(expected))


ONNX_TYPES = {
    (8, False, False): TensorProto.UINT8,
    (8, True, False): TensorProto.INT8,
    (16, False, False): TensorProto.UINT16,
    (16, True, False): TensorProto.INT16,
}
_sessions: dict[int, onnxruntime.InferenceSession] = {}


def onnx_round_trip(x, qp):
    """Codes (as int32) and values of onnxruntime's QuantizeLinear and DequantizeLinear."""
    kind = ONNX_TYPES[qp.bits, qp.signed, qp.narrow_range]
    if kind not in _sessions:
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero_point", kind, []),
        ]
        outputs = [
            helper.make_tensor_value_info("codes", kind, [None]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, [None]),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero_point"], ["values"]),
        ]
        graph = helper.make_graph(nodes, "round_trip", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        _sessions[kind] = onnxruntime.InferenceSession(model.SerializeToString(), options)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    codes, values = _sessions[kind].run(
        None, {"x": x.numpy(), "scale": qp.scale.numpy(), "zero_point": qp.zero_point.numpy().astype(dtype)}
    )
    return torch.from_numpy(codes.astype(np.int32)), torch.from_numpy(values)


@st.composite
def ranges(draw):
    """lo <= hi whose grids all have a usable scale."""
    lo, hi = sorted(draw(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2)))
    assume(max(-lo, hi) > 1e-30 or lo == hi == 0)
    return lo, hi


@st.composite
def chosen(draw):
    """A range, and the grid chosen for it in any form that can hold it."""
    lo, hi = draw(ranges())
    bits, signed, narrow_range = draw(st.sampled_from(FORMS))
    can_be_symmetric = bits > 1 if signed else lo >= 0
    qp = choose_qparams(lo, hi, bits, signed, can_be_symmetric and draw(st.booleans()), narrow_range)
    return lo, hi, qp


def in_range(lo, hi, count=101):
    """Numbers all over the range, in float32 and within it."""
    return torch.linspace(0, 1, count, dtype=torch.float64).mul(hi - lo).add(lo).clamp(lo, hi).float()


class TestLaws:
    @settings(max_examples=100)
    @given(chosen())
    def test_the_error_of_an_in_range_value_is_at_most_half_a_step(self, case):
        lo, hi, qp = case
        x = in_range(min(lo, 0), max(hi, 0))
        error = (fake_quantize(x, qp).double() - x.double()).abs().max()
        assert error <= qp.scale.double() * (0.5 + 2.0**-6)  # 2**-6: float32 itself, on grids of 16 bits

    @settings(max_examples=100)
    @given(chosen())
    def test_zero_is_exact(self, case):
        qp = case[2]
        assert quantize(torch.zeros(1), qp).int() == qp.zero_point
        assert same_bits(fake_quantize(torch.zeros(1), qp), torch.zeros(1))

    @settings(max_examples=100)
    @given(st.data())
    def test_the_round_trip_is_idempotent(self, data):
        qp = data.draw(grids())
        once = fake_quantize(data.draw(values_on(qp)), qp)
        assert torch.equal(fake_quantize(once, qp), once)

    @settings(max_examples=100)
    @given(grids())
    def test_every_code_comes_back_from_its_value(self, qp):
        codes = torch.arange(qp.qmin, qp.qmax + 1)
        assert torch.equal(quantize(dequantize(codes, qp), qp).int(), codes.int())

    @settings(max_examples=100)
    @given(st.data())
    def test_quantize_is_monotone(self, data):
        qp = data.draw(grids())
        x = data.draw(values_on(qp)).sort().values
        assert (quantize(x, qp).int().diff() >= 0).all()

    @settings(max_examples=100)
    @given(st.data())
    def test_fake_quantize_is_dequantize_of_quantize(self, data):
        qp = data.draw(grids())
        x = data.draw(values_on(qp))
        assert same_bits(fake_quantize(x, qp), dequantize(quantize(x, qp), qp))
        double = x.double() * (1 + 2.0**-40)
        assert same_bits(fake_quantize(double, qp), dequantize(quantize(double, qp), qp).double())

    @settings(max_examples=100)
    @given(chosen(), st.integers(-20, 20))
    def test_scaling_the_data_scales_the_grid(self, case, power):
        lo, hi, qp = case
        wider = choose_qparams(lo * 2.0**power, hi * 2.0**power, qp.bits, qp.signed, narrow_range=qp.narrow_range)
        qp = choose_qparams(lo, hi, qp.bits, qp.signed, narrow_range=qp.narrow_range)
        x = in_range(lo, hi)
        assume(hi != lo)
        assert torch.equal(wider.zero_point, qp.zero_point)
        assert torch.equal(fake_quantize(x * 2.0**power, wider), fake_quantize(x, qp) * 2.0**power)

    def test_a_bit_more_is_worth_6_decibels(self):
        """SQNR of a uniform signal: 20 log10(2) = 6.02 dB a bit."""
        x = torch.rand(100_000) * 2 - 1

        def sqnr(bits):
            noise = fake_quantize(x, choose_qparams(-1, 1, bits, signed=True)) - x
            return float(10 * torch.log10(x.square().mean() / noise.square().mean()))

        steps = [sqnr(bits + 1) - sqnr(bits) for bits in range(4, 12)]
        assert all(5.6 < step < 6.4 for step in steps)
        assert sum(steps) / len(steps) == pytest.approx(20 * math.log10(2), abs=0.1)

    @settings(max_examples=100)
    @given(seed=st.integers(0, 2**32), bits=st.integers(2, 8), symmetric=st.booleans())
    def test_per_channel_promises_no_more_error_than_per_tensor(self, seed, bits, symmetric):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, 50, generator=generator) * torch.rand(8, 1, generator=generator).exp2() ** 9
        whole = choose_qparams(x.min(), x.max(), bits, True, symmetric)
        each = choose_qparams(x.amin(1), x.amax(1), bits, True, symmetric, granularity=PerChannel(0))
        assert (each.scale <= whole.scale).all()
        assert (fake_quantize(x, each) - x).abs().max() <= whole.scale * 0.5001

    @settings(max_examples=100)
    @given(st.integers(0, 2**32))
    def test_the_gradient_is_1_inside_and_0_outside_the_clipping_range(self, seed):
        x = torch.randn(200, generator=torch.Generator().manual_seed(seed)).mul_(3).requires_grad_()
        qp = choose_qparams(-1.0, 2.0, bits=4)
        fake_quantize(x, qp).sum().backward()
        ends = dequantize(torch.tensor([qp.qmin, qp.qmax]), qp) + torch.tensor([-0.5, 0.5]) * qp.scale
        assert torch.equal(x.grad, ((x > ends[0]) & (x < ends[1])).float())

    @settings(max_examples=100)
    @given(st.data())
    def test_the_gradient_is_the_upstream_one_within_the_range(self, data):
        """The fused form gives what the plain mask does, to the bit."""
        x, qp = data.draw(channels(FORMS))
        upstream, x = torch.randn(x.shape), x.clone().requires_grad_()
        fake_quantize(x, qp).backward(upstream)
        assert torch.equal(x.grad, torch.where(within_range(x.detach(), qp), upstream, 0 * upstream))


class TestChosenGrids:
    @settings(max_examples=100)
    @given(chosen())
    def test_the_range_is_covered_and_the_steps_are_not_wasted(self, case):
        lo, hi, qp = case
        grid = dequantize(torch.tensor([qp.qmin, qp.qmax]), qp).double()
        half = qp.scale.double() * (0.5 + 2.0**-6)
        assert grid[0] <= min(lo, 0) + half and max(hi, 0) - half <= grid[1]

    def test_one_sided_data_use_the_whole_unsigned_grid(self):
        assert choose_qparams(0.5, 5.1).zero_point == 0
        assert choose_qparams(-5.1, -0.5).zero_point == 255

    @pytest.mark.parametrize(
        ("lo", "hi", "narrow", "scale"),
        [
            (-128.0, 127.0, False, 1.0),
            (-127.0, 127.0, True, 1.0),
            (-128.0, 127.0, True, 128 / 127),
            (-1.0, 127.0, False, 1.0),
            (-256.0, 127.0, False, 2.0),
        ],
    )
    def test_a_symmetric_scale_is_the_smallest_that_covers_both_ends(self, lo, hi, narrow, scale):
        qp = choose_qparams(lo, hi, signed=True, symmetric=True, narrow_range=narrow)
        assert qp.zero_point == 0 and qp.scale.item() == pytest.approx(scale, rel=1e-7)

    def test_a_range_of_nothing_but_zero_gets_scale_1(self):
        for signed in (False, True):
            qp = choose_qparams(0, 0, signed=signed)
            assert qp.scale == 1 and qp.qmin == qp.zero_point
        lo = torch.tensor([0.0, -1.0])
        assert choose_qparams(lo, -lo, granularity=PerChannel(0)).scale.tolist() == pytest.approx([1.0, 2 / 255])

    def test_symmetric_and_unsigned_has_zero_point_0(self):
        qp = choose_qparams(2.0, 5.1, symmetric=True)
        assert qp.zero_point == 0 and qp.scale.item() == pytest.approx(0.02)

    def test_ends_may_be_numbers_tensors_and_halves(self):
        expected = choose_qparams(-1, 3)
        for lo, hi in (
            (torch.tensor(-1.0), 3),
            (-1.0, torch.tensor(3, dtype=torch.float16)),
            (np.float32(-1), 3.0),
        ):
            assert choose_qparams(lo, hi) == expected

    def test_the_widest_range_of_float32_has_a_grid(self):
        big = torch.finfo(torch.float32).max * 0.99
        qp = choose_qparams(-big, big)
        assert fake_quantize(torch.tensor([-big, big]), qp).isfinite().all()

    def test_fit_grid_takes_any_shape(self):
        lo, hi = -torch.rand(2, 3, 4).double(), torch.rand(2, 3, 4).double()
        scale, zero_point = fit_grid(lo, hi, -8, 7, symmetric=False)
        one = choose_qparams(lo[1, 2, 3], hi[1, 2, 3], bits=4, signed=True)
        assert scale[1, 2, 3] == one.scale and zero_point[1, 2, 3] == one.zero_point


class TestTensors:
    @pytest.mark.parametrize(
        ("bits", "signed", "dtype"),
        [
            (1, False, torch.uint8),
            (8, False, torch.uint8),
            (9, False, torch.int16),
            (15, False, torch.int16),
            (16, False, torch.uint16),
            (1, True, torch.int8),
            (8, True, torch.int8),
            (9, True, torch.int16),
            (16, True, torch.int16),
        ],
    )
    def test_codes_have_the_smallest_type_that_holds_them(self, bits, signed, dtype):
        qp = choose_qparams(-1.0, 1.0, bits, signed)
        codes = quantize(torch.tensor([-9.0, 9.0]), qp)
        assert codes.dtype == dtype
        assert codes.tolist() == [qp.qmin, qp.qmax]
        assert same_bits(dequantize(codes, qp), fake_quantize(torch.tensor([-9.0, 9.0]), qp))

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x.contiguous(memory_format=torch.channels_last),
            lambda x: x.transpose(0, 3),
            lambda x: x[:, ::2, 1:],
            lambda x: x[:1].expand(5, 4, 6, 8),
            lambda x: x.flip(0),
        ],
    )
    @pytest.mark.parametrize("axis", [None, 1, -1])
    def test_any_strides_give_the_same_numbers(self, make, axis):
        x = make(torch.randn(2, 4, 6, 8))
        end = torch.tensor(2.0) if axis is None else torch.linspace(1, 3, x.shape[axis])
        qp = choose_qparams(-end, end, granularity=PerTensor() if axis is None else PerChannel(axis))
        straight = x.contiguous()
        assert torch.equal(quantize(x, qp), quantize(straight, qp))
        assert torch.equal(fake_quantize(x, qp), fake_quantize(straight, qp))
        assert torch.equal(dequantize(quantize(x, qp), qp), fake_quantize(straight, qp))

    def test_channels_last_stays_channels_last(self):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        for qp in (choose_qparams(-1, 1), choose_qparams(-torch.ones(3), torch.ones(3), granularity=PerChannel(1))):
            for y in (quantize(x, qp), fake_quantize(x, qp), dequantize(quantize(x, qp), qp)):
                assert y.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
    def test_single_numbers_and_empty_tensors(self, shape):
        qp, x = choose_qparams(-1, 1), torch.zeros(shape)
        assert quantize(x, qp).shape == fake_quantize(x, qp).shape == dequantize(quantize(x, qp), qp).shape == shape

    def test_an_empty_tensor_per_channel_and_per_group(self):
        assert fake_quantize(
            torch.empty(0, 3), choose_qparams(-torch.ones(3), torch.ones(3), granularity=PerChannel(1))
        ).shape == (0, 3)
        groups = choose_qparams(torch.zeros(0, 2), torch.ones(0, 2), granularity=PerGroup(4))
        assert quantize(torch.empty(0, 8), groups).shape == (0, 8)

    def test_a_large_tensor_is_the_sum_of_its_parts(self):
        x, qp = torch.randn(3, 1_000_001), choose_qparams(-4, 4)
        assert torch.equal(quantize(x, qp)[1, 123_456:123_556], quantize(x[1, 123_456:123_556], qp))

    @settings(max_examples=100)
    @given(rows=st.integers(1, 3), groups=st.integers(1, 4), size=st.integers(1, 5), seed=st.integers(0, 2**32))
    def test_groups_are_channels_of_a_reshaped_tensor(self, rows, groups, size, seed):
        x = torch.randn(rows, groups * size, 1, 1, generator=torch.Generator().manual_seed(seed))
        flat = x.reshape(rows * groups, size)
        lo, hi = flat.amin(1), flat.amax(1)
        each = choose_qparams(lo, hi, bits=4, granularity=PerChannel(0))
        qp = choose_qparams(lo.view(rows, groups), hi.view(rows, groups), bits=4, granularity=PerGroup(size))
        assert torch.equal(quantize(x, qp), quantize(flat, each).reshape(x.shape))
        assert torch.equal(fake_quantize(x, qp), fake_quantize(flat, each).reshape(x.shape))
        assert torch.equal(dequantize(quantize(x, qp), qp), fake_quantize(x, qp))

    def test_the_gradient_of_groups_has_the_shape_of_x(self):
        x = torch.tensor([[-9.0, 0.5, 0.5, 9.0]], requires_grad=True)
        qp = choose_qparams(torch.zeros(1, 2), torch.ones(1, 2), granularity=PerGroup(2))
        (fake_quantize(x, qp) * torch.arange(1.0, 5)).sum().backward()
        assert x.grad.tolist() == [[0, 2, 3, 0]]

    def test_huge_values_are_clipped_to_their_own_end(self):
        """torch's per-channel operator clips all beyond 2**63 steps to the lower end."""
        x = torch.tensor([[1e30, -1e30]])
        for qp in (choose_qparams(-1, 1), choose_qparams(-torch.ones(1), torch.ones(1), granularity=PerChannel(0))):
            assert quantize(x, qp).tolist() == [[255, 0]]
            assert fake_quantize(x, qp).sign().tolist() == [[1, -1]]

    def test_fake_quantize_hides_no_nan_and_clips_infinities(self):
        y = fake_quantize(torch.tensor([math.nan, math.inf, -math.inf]), QParams(1.0, 1, bits=2))
        assert y[0].isnan() and y[1:].tolist() == [2, -1]

    def test_a_finite_sum_too_large_for_float32_is_no_infinity(self):
        assert quantize(torch.full((9,), 3e38), choose_qparams(0, 1)).tolist() == [255] * 9
        assert quantize(torch.full((9,), 6e4, dtype=torch.float16), choose_qparams(0, 1)).tolist() == [255] * 9

    def test_no_gradient_is_recorded_where_none_is_wanted(self):
        x, qp = torch.ones(3, requires_grad=True), choose_qparams(0, 1)
        with torch.no_grad():
            assert not fake_quantize(x, qp).requires_grad
        assert not fake_quantize(x.detach(), qp).requires_grad


class TestQParams:
    @pytest.mark.parametrize(
        ("bits", "signed", "narrow", "limits"),
        [
            (1, False, False, (0, 1)),
            (1, True, False, (-1, 0)),
            (2, True, True, (-1, 1)),
            (4, False, False, (0, 15)),
            (8, False, False, (0, 255)),
            (8, True, False, (-128, 127)),
            (8, True, True, (-127, 127)),
            (16, False, False, (0, 65535)),
            (16, True, False, (-32768, 32767)),
        ],
    )
    def test_the_table_of_limits(self, bits, signed, narrow, limits):
        qp = QParams(1.0, 0, bits, signed, narrow_range=narrow)
        assert (qp.qmin, qp.qmax) == limits == grid_limits(bits, signed, narrow)

    def test_the_tensors_have_the_promised_types(self):
        for qp in (QParams(0.5, 3), QParams(torch.tensor(0.5).double(), torch.tensor(3))):
            assert qp.scale.dtype == torch.float32 and qp.zero_point.dtype == torch.int32
            assert qp.scale.shape == qp.zero_point.shape == ()

    def test_equal_means_that_every_code_has_the_same_meaning(self):
        qp = choose_qparams(-1, 1)
        assert qp == choose_qparams(-1, 1) and qp == qp.to("cpu")
        assert qp != choose_qparams(-1, 1.1) and qp != choose_qparams(-1, 1, bits=7) and qp != "qp"
        assert qp != choose_qparams(torch.tensor([-1.0]), torch.tensor([1.0]), granularity=PerChannel(0))
        assert QParams(1.0, 0, signed=True) != QParams(1.0, 0, signed=True, narrow_range=True)

    def test_a_grid_compares_its_granularity_as_it_is_written(self):
        scale, zero_point = torch.ones(2), torch.zeros(2, dtype=torch.int32)
        last, second = (QParams(scale, zero_point, granularity=PerChannel(axis)) for axis in (-1, 1))
        assert last != second  # equal for matrices, but not for images: only a tensor's shape can say
        assert replace(last, granularity=last.granularity.of((3, 2))) == second

    def test_the_order_of_its_fields(self):
        grid = QParams(torch.ones(2), torch.zeros(2, dtype=torch.int32), 4, True, PerChannel(1), True)
        assert (grid.bits, grid.signed, grid.granularity, grid.narrow_range) == (4, True, PerChannel(1), True)

    def test_a_learned_scale_is_taken_as_a_constant(self):
        assert not QParams(torch.ones((), requires_grad=True), 0).scale.requires_grad

    def test_the_names_are_in_the_package(self):
        assert qlab.QParams is QParams and qlab.quantize is quantize and qlab.choose_qparams is choose_qparams


TWO = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: choose_qparams(2.0, 1.0),
            "lo=2.0, hi=1.0: expected finite numbers with lo <= hi. Swap them",
        ),
        (lambda: choose_qparams(math.nan, 1.0), "lo=nan, hi=1.0: expected finite numbers"),
        (lambda: choose_qparams(0.0, math.inf), "hi=inf: expected finite numbers"),
        (lambda: choose_qparams(-math.inf, math.inf), "lo=-inf, hi=inf: expected finite numbers"),
        (
            lambda: choose_qparams(TWO, torch.tensor([2.0, 0.5]), granularity=PerChannel(0)),
            "lo=1.0, hi=0.5 at index [1]",
        ),
        (
            lambda: choose_qparams(TWO, 2.0, granularity=PerChannel(0)),
            "lo of shape (2,) and hi of shape (): expected the same shape",
        ),
        (lambda: choose_qparams(0, 1, bits=0), "bits=0: expected a whole number from 1 to 16"),
        (lambda: choose_qparams(0, 1, bits=17), "bits=17: expected a whole number from 1 to 16"),
        (lambda: choose_qparams(0, 1, bits=8.0), "bits=8.0: expected a whole number"),
        (lambda: choose_qparams(0, 1, bits=True), "bits=True: expected a whole number"),
        (lambda: choose_qparams(0, 1, narrow_range=True), "narrow_range=True with signed=False"),
        (
            lambda: choose_qparams(0, 1, 1, True, narrow_range=True),
            "leaves the single code 0: expected at least 2 bits",
        ),
        (
            lambda: choose_qparams(-1, 1, 1, True, symmetric=True),
            "the codes are -1 and 0, so no positive number has one; use",
        ),
        (lambda: choose_qparams(-1, 1, symmetric=True), "symmetric and unsigned with lo=-1.0"),
        (
            lambda: choose_qparams(0, 1e-37),
            "the range from 0.0 to 1e-37 needs a scale of 3.92e-40 at 8 bits: expected 1.18",
        ),
        (lambda: choose_qparams(0, 1e-60), "needs a scale of 0 at 8 bits"),
        (lambda: choose_qparams(-3e38, 3e38, bits=1), "needs a scale of inf at 1 bits"),
        (lambda: choose_qparams(-1e300, 1e300), "needs a scale of inf at 8 bits"),
        (lambda: choose_qparams(0, 3.4028234e38, bits=5), "the value of the farthest code overflows float32"),
        (
            lambda: choose_qparams(0, 1, granularity=PerChannel(0)),
            "scale of shape () and zero_point of shape () with PerChannel(axis=0)",
        ),
        (lambda: choose_qparams(-TWO, TWO), "with PerTensor(): expected both with 0 dimensions"),
        (
            lambda: QParams(1.0, 0, granularity=0),
            "granularity=0: expected PerTensor(), PerChannel(axis) or PerGroup(size)",
        ),
        (
            lambda: QParams(0.0, 0),
            "scale 0.0: expected a finite number of at least 1.18e-38, as a smaller one underflows",
        ),
        (lambda: QParams(math.nan, 0), "scale nan: expected"),
        (lambda: QParams(math.inf, 0), "scale inf: expected"),
        (
            lambda: QParams(torch.tensor([1.0, -2.0]), torch.zeros(2, dtype=torch.int32), granularity=PerChannel(0)),
            "scale -2.0: expected",
        ),
        (lambda: QParams(1.0, 256), "zero_point 256: expected a code from 0 to 255"),
        (lambda: QParams(1.0, -(2**31)), "zero_point -2147483648: expected a code from 0 to 255"),
        (lambda: QParams(1.0, 0.5), "a zero point is a code, an integer"),
        (lambda: QParams(TWO, 0, granularity=PerChannel(0)), "scale of shape (2,) and zero_point of shape ()"),
        (lambda: QParams(1.0, 0, bits=0), "bits=0"),
        (
            lambda: quantize(torch.tensor([1.0, math.nan, math.inf, math.nan]), QParams(1.0, 0)),
            "quantize: x holds 2 NaN and 1 infinite values of 4; expected finite numbers",
        ),
        (
            lambda: quantize(torch.tensor([math.inf, -math.inf]), QParams(1.0, 0)),
            "0 NaN and 2 infinite values of 2",
        ),
        (lambda: quantize(torch.arange(3), QParams(1.0, 0)), "x is torch.int64: expected a floating tensor"),
        (
            lambda: fake_quantize(torch.arange(3), QParams(1.0, 0)),
            "x is torch.int64: expected a floating tensor",
        ),
        (
            lambda: dequantize(torch.ones(3), QParams(1.0, 0)),
            "dequantize got torch.float32: expected integer codes",
        ),
        (lambda: dequantize(torch.ones(3, dtype=torch.bool), QParams(1.0, 0)), "dequantize got torch.bool"),
        (
            lambda: fake_quantize(torch.ones(3, 4), choose_qparams(-TWO, TWO, granularity=PerChannel(1))),
            "x of shape (3, 4) does not fit PerChannel(axis=1) with a scale of shape (2,): "
            "expected a scale of shape (4,)",
        ),
        (
            lambda: quantize(torch.ones(4), choose_qparams(-TWO, TWO, granularity=PerChannel(1))),
            "axis 1 is not in a tensor of shape (4,)",
        ),
        (
            lambda: quantize(
                torch.ones(2, 5), choose_qparams(torch.zeros(2, 2), torch.ones(2, 2), granularity=PerGroup(2))
            ),
            "group size 2 does not divide the 5 values a row",
        ),
    ],
)
def test_bad_input_is_named_with_what_was_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


class TestRoundRows:
    """A symmetric grid for each row of a matrix, without a QParams."""

    @settings(max_examples=100)
    @given(st.integers(0, 2**32), st.sampled_from([63, 127]), st.sampled_from([torch.float32, torch.bfloat16]))
    def test_it_is_the_symmetric_grid_of_each_row(self, seed, qmax, dtype):
        torch.manual_seed(seed)
        x = (torch.randn(5, 40) * torch.randn(5, 1).exp2()).to(dtype)
        x[3] = 0
        codes, steps = round_rows(x, qmax)
        top = x.float().abs().amax(1)
        grid = choose_qparams(-top, top, 7 if qmax == 63 else 8, True, True, True, PerChannel(0))
        alive = torch.arange(5) != 3
        torch.testing.assert_close(steps[alive, 0], grid.scale[alive])
        assert (codes - quantize(x, grid)).abs().max() <= 1  # they differ in the middle between two codes at most
        assert ((codes * steps - x.float()).abs() <= 0.5001 * steps).all()
        assert codes.abs().amax(1)[alive].eq(qmax).all() and codes[3].eq(0).all()

    def test_a_row_does_not_change_another_and_nothing_changes_the_input(self):
        x = torch.randn(2, 3, 8)
        before = x.clone()
        codes, steps = round_rows(x, 127)
        assert codes.shape == x.shape and steps.shape == (2, 3, 1) and torch.equal(x, before)
        assert torch.equal(round_rows(x[1, 2], 127)[0], codes[1, 2])
        assert round_rows(torch.tensor([1.0, math.nan]), 127)[0].isnan().all()
