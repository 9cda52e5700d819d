"""The law of the engines: whatever the kernels of torch compute, it is within one code of the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    FUSING,
    REFERENCE,
    USABLE,
    assert_within_one,
    both,
    codes,
    draw,
    every_engine,
    fitting_out,
    grids,
    layers,
    put,
    seeds,
    top,
    within,
)
from torch import Tensor

import qlab
from qlab.affine import QParams
from qlab.granularity import PerChannel
from qlab.int8 import engines
from qlab.int8.reference import Engine

# --- the law


@every_engine
@settings(max_examples=20)
@given(layers(), grids(), grids(), st.floats(0.5, 30))
def test_conv2d(name, layer, x_qp, out_qp, zoom):
    x_qp = within(x_qp, name)
    out_qp, bias = fitting_out(layer, x_qp, out_qp, zoom)
    args = (layer["weight"], bias, layer["weight_qp"], x_qp, out_qp)
    kernels = both(name, "conv2d", *args, **layer["window"], relu=layer["relu"])
    got = assert_within_one(engines.get(name), kernels, [(draw(layer["size"], x_qp, layer["extreme"]), x_qp)])
    assert int(got.max()) <= out_qp.qmax


@pytest.mark.parametrize("name", FUSING)
@settings(max_examples=20)
@given(layers(), grids(), grids(), grids(), st.floats(0.5, 30), st.booleans())
def test_conv2d_add(name, layer, x_qp, other_qp, out_qp, zoom, overwrite):
    engine, x_qp = engines.get(name), within(x_qp, name)
    out_qp, bias = fitting_out(layer, x_qp, out_qp, zoom)
    other_qp = QParams(float(out_qp.scale) * 10 ** (zoom / 30 - 0.5), other_qp.zero_point, other_qp.bits)
    args = (layer["weight"], bias, layer["weight_qp"], x_qp, other_qp, out_qp)
    options = {**layer["window"], "relu": layer["relu"], "overwrite_other": overwrite}
    kernels = both(name, "conv2d_add", *args, **options)
    x = draw(layer["size"], x_qp, layer["extreme"])
    convolution = REFERENCE.conv2d(*args[:4], out_qp, **layer["window"])
    other = draw(tuple(convolution(x).shape), other_qp)
    got = assert_within_one(engine, kernels, [(x, x_qp), (other, other_qp)])
    assert int(got.max()) <= out_qp.qmax
    kept = put(engine, other, other_qp)
    kernels[0](put(engine, x, x_qp), kept)
    assert overwrite or torch.equal(codes(kept), other)


@every_engine
@settings(max_examples=20)
@given(layers(), grids(), grids(), st.floats(0.5, 30), st.sampled_from([(3,), (1,), (2, 5)]))
def test_linear(name, layer, x_qp, out_qp, zoom, batch):
    x_qp = within(x_qp, name)
    layer["weight"] = layer["weight"].flatten(1)
    out_qp, bias = fitting_out(layer, x_qp, out_qp, zoom)
    args = (layer["weight"], bias, layer["weight_qp"], x_qp, out_qp)
    kernels = both(name, "linear", *args, relu=layer["relu"])
    x = draw((*batch, layer["weight"].shape[1]), x_qp, layer["extreme"])
    got = assert_within_one(engines.get(name), kernels, [(x, x_qp)])
    assert int(got.max()) <= out_qp.qmax


shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 16, 33]), st.integers(5, 9), st.integers(5, 9))


@every_engine
@settings(max_examples=15)
@given(grids(), grids(), grids(), shapes, st.booleans(), seeds)
def test_add_requantize_and_cat(name, a_qp, b_qp, out_qp, shape, relu, seed):
    torch.manual_seed(seed)
    engine = engines.get(name)
    a, b = draw(shape, a_qp), draw(shape, b_qp)
    got = assert_within_one(engine, both(name, "add", a_qp, b_qp, out_qp, relu=relu), [(a, a_qp), (b, b_qp)])
    assert int(got.max()) <= out_qp.qmax
    for target in (out_qp, a_qp):
        got = assert_within_one(engine, both(name, "requantize", a_qp, target, relu=relu), [(a, a_qp)])
        assert int(got.max()) <= target.qmax
    cats = both(name, "cat", [a_qp, b_qp, a_qp], a_qp, dim=1)
    kernels = tuple(lambda *parts, cat=cat: cat(list(parts)) for cat in cats)
    got = assert_within_one(engine, kernels, [(a, a_qp), (b, b_qp), (a, a_qp)])
    assert torch.equal(got[:, : shape[1]], a)


@every_engine
@settings(max_examples=15)
@given(
    grids(), grids(), shapes, st.sampled_from([2, 3, (3, 2)]), st.sampled_from([None, 1, 2, (3, 1)]),
    st.sampled_from([0, 0, 1]), st.booleans(), st.booleans(), seeds,
)  # fmt: skip
def test_pooling(name, x_qp, out_qp, shape, kernel_size, stride, padding, ceil_mode, count_include_pad, seed):
    torch.manual_seed(seed)
    engine, x = engines.get(name), [(draw(shape, x_qp), x_qp)]
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    for dilation in (1, 2):
        kernels = both(name, "max_pool2d", x_qp, **window, dilation=dilation)
        assert torch.equal(assert_within_one(engine, kernels, x), kernels[1](x[0][0]))
    for target in (out_qp, x_qp):
        kernels = both(name, "avg_pool2d", x_qp, target, **window, count_include_pad=count_include_pad)
        assert_within_one(engine, kernels, x)
        for size in (1, (2, 3)):
            assert_within_one(engine, both(name, "adaptive_avg_pool2d", x_qp, target, output_size=size), x)


@every_engine
@settings(max_examples=15)
@given(grids(), shapes, seeds)
def test_quantize_dequantize_and_flatten(name, qp, shape, seed):
    torch.manual_seed(seed)
    engine = engines.get(name)
    x = torch.randn(shape) * float(qp.scale) * qp.qmax
    q = engine.quantize(qp)(x)
    assert int((codes(q).int() - REFERENCE.quantize(qp)(x).int()).abs().max()) <= 1  # a tie may go either way
    assert q.is_contiguous(memory_format=torch.channels_last)
    floats = engine.dequantize(qp)(q)
    assert torch.allclose(floats, REFERENCE.dequantize(qp)(codes(q)), rtol=1e-6, atol=0)
    assert torch.equal(codes(engine.flatten()(q)), codes(q).flatten(1))


@every_engine
def test_the_bias_of_a_layer_of_few_bits_is_not_rounded_to_its_coarse_sums(name):
    """At 2 bits one step of the sum is 20 codes of an 8-bit output; a bias on that grid would be off by up to 10."""
    torch.manual_seed(0)
    x_qp, weight_qp, out_qp = QParams(1.0, 1, 2), QParams(1.0, 0, 2, signed=True), QParams(0.05, 128)
    weight, x = torch.randint(-1, 2, (8, 16), dtype=torch.int8), draw((32, 16), x_qp)
    bias = torch.linspace(-2, 2, 8)
    kernels = both(name, "linear", weight, bias, weight_qp, x_qp, out_qp)
    assert_within_one(engines.get(name), kernels, [(x, x_qp)])
    images = draw((2, 16, 4, 4), x_qp)
    kernels = both(name, "conv2d", weight[:, :, None, None], bias, weight_qp, x_qp, out_qp)
    assert_within_one(engines.get(name), kernels, [(images, x_qp)])


@every_engine
def test_a_relu_on_a_grid_of_negative_numbers_leaves_one_code(name):
    qp, out_qp = QParams(0.1, 5), QParams(0.1, 255)
    a, b = draw((2, 3, 4, 4), qp), draw((2, 3, 4, 4), qp)
    kernels = both(name, "add", qp, qp, out_qp, relu=True)
    assert assert_within_one(engines.get(name), kernels, [(a, qp), (b, qp)]).unique().tolist() == [255]


# --- channels without weights


@every_engine
@pytest.mark.parametrize("scale", [2e-38, 1e-3, 1e3])
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_channel_whose_codes_are_all_0_gives_its_bias_whatever_its_scale(name, scale, bias):
    """Training with few bits makes such channels, and leaves them a scale that means nothing."""
    engine, x_qp, out_qp = engines.get(name), QParams(0.05, 10, bits=7), QParams(0.02, 40)
    weight = torch.randint(-2, 3, (3, 4, 3, 3), dtype=torch.int8)
    weight[1] = 0
    weight_qp = QParams(
        torch.tensor([0.1, scale, 0.1]), torch.zeros(3, dtype=torch.int32), signed=True, granularity=PerChannel(0)
    )
    options = (weight, torch.tensor([0.1, bias, -0.2]), weight_qp, x_qp, out_qp)
    q = draw((2, 4, 6, 6), x_qp)
    got = assert_within_one(engine, (engine.conv2d(*options), REFERENCE.conv2d(*options)), [(q, x_qp)])
    assert (got[:, 1].int() - int(qlab.quantize(torch.tensor(bias), out_qp))).abs().max() <= 1


# --- saturation


def full_range(engine: Engine, weight: Tensor, sign: int) -> Tensor:
    """The largest inputs times the largest weights, on a grid that holds the sum."""
    x_qp, weight_qp = QParams(1.0, 0), QParams(1.0, 0, signed=True)
    out_qp = QParams(float(weight[0].numel()) * 127 * 255 / 100, 128)
    weight = (weight * sign).to(torch.int8)
    if weight.ndim == 2:
        kernel, x = engine.linear(weight, None, weight_qp, x_qp, out_qp), torch.full((2, 64), 255.0)
    else:
        groups = len(weight) if weight.shape[1] == 1 else 1
        # fbgemm's kernel for depthwise layers is made for this padding
        kernel = engine.conv2d(weight, None, weight_qp, x_qp, out_qp, groups=groups, padding=weight.shape[2] // 2)
        x = torch.full((2, groups * weight.shape[1], 5, 5), 255.0)
    return codes(kernel(engine.quantize(x_qp)(x))).int()


@every_engine
def test_full_range_products_differ_from_the_reference_exactly_where_the_probe_says_so(name):
    dense = [torch.full((32, 64, 3, 3), 127), torch.full((32, 64, 1, 1), 127), torch.full((32, 64), 127)]
    depthwise = [torch.full((channels, 1, 3, 3), 127) for channels in (32, 256)]  # torch's x86 has a kernel for each
    found = engines.available()[name]
    for weights, saturates in ((dense, found.saturates), (depthwise, found.depthwise_saturates)):
        worst = max(
            int((full_range(engines.get(name), weight, sign) - full_range(REFERENCE, weight, sign)).abs().max())
            for weight in weights
            for sign in (1, -1)
        )
        assert (worst > 1) == saturates


# --- memory


@pytest.mark.parametrize("name", ["reference", *USABLE])
def test_the_same_grid_costs_nothing(name):
    engine, qp = engines.get(name), QParams(0.5, 10)
    q = engine.quantize(qp)(torch.randn(2, 3, 1, 1))
    assert engine.requantize(qp, QParams(0.5, 10))(q) is q
    assert engine.flatten()(q).data_ptr() == q.data_ptr()


@pytest.mark.parametrize("name", FUSING)
def test_a_tensor_can_be_added_to_its_own_convolution(name):
    """oneDNN writes the sum into the memory of what is added, which must not be what it still reads."""
    torch.manual_seed(0)
    engine, qp = engines.get(name), QParams(0.1, 5, top(name))
    weight, weight_qp = torch.randint(-99, 99, (8, 8, 3, 3)).char(), QParams(0.001, 0, signed=True)
    x = draw((2, 8, 6, 6), qp)
    kernels = both(name, "conv2d_add", weight, None, weight_qp, qp, qp, qp, padding=1, overwrite_other=True)
    q = put(engine, x, qp)
    assert int((codes(kernels[0](q, q)).int() - kernels[1](x, x).int()).abs().max()) <= 1


@every_engine
def test_one_kernel_serves_every_batch_size_and_number_of_threads(name):
    torch.manual_seed(0)
    engine, qp = engines.get(name), QParams(0.1, 5, top(name))
    weight, weight_qp = torch.randint(-99, 99, (8, 8, 3, 3)).char(), QParams(0.001, 0, signed=True)
    kernels = both(name, "conv2d", weight, torch.randn(8), weight_qp, qp, qp, padding=1)
    threads = torch.get_num_threads()
    try:
        for batch in (1, 0, *range(2, 12), 1):  # more than are kept
            torch.set_num_threads(1 + batch % 2)
            assert_within_one(engine, kernels, [(draw((batch, 8, 6, 6), qp), qp)])
    finally:
        torch.set_num_threads(threads)


@every_engine
def test_an_empty_batch_gives_an_empty_batch(name):
    engine, qp, weight_qp = engines.get(name), QParams(0.1, 5), QParams(0.1, 0, signed=True)
    q = engine.quantize(qp)(torch.zeros(0, 4, 6, 6))
    assert engine.conv2d(torch.ones(8, 4, 3, 3).char(), None, weight_qp, qp, qp)(q).shape == (0, 8, 4, 4)
    assert engine.add(qp, qp, qp)(q, q).shape == (0, 4, 6, 6)
    pooled = engine.flatten()(engine.adaptive_avg_pool2d(qp, qp, output_size=1)(q))
    assert engine.linear(torch.ones(5, 4).char(), None, weight_qp, qp, qp)(pooled).shape == (0, 5)


@every_engine
def test_every_engine_refuses_what_the_reference_refuses(name):
    engine, good = engines.get(name), QParams(1.0, 0)
    signed, weight_qp = QParams(1.0, 0, signed=True), QParams(1.0, 0, signed=True)
    weight = torch.ones(2, 4).char()
    for make in (
        lambda: engine.quantize(signed),
        lambda: engine.dequantize(signed),
        lambda: engine.linear(weight, None, good, good, good),
        lambda: engine.conv2d(weight[:, :, None, None], None, weight_qp, signed, good),
        lambda: engine.add(good, signed, good),
        lambda: engine.requantize(good, signed),
        lambda: engine.max_pool2d(signed, kernel_size=2),
        lambda: engine.adaptive_avg_pool2d(good, signed, output_size=1),
    ):
        with pytest.raises(ValueError, match="use QuantSpec"):
            make()
    with pytest.raises(ValueError, match="1 NaN and 0 infinite values"):
        engine.quantize(good)(torch.tensor([[float("nan")]]))


@pytest.mark.parametrize("name", ["reference", *USABLE])
def test_inputs_that_do_not_fit_are_refused_before_a_kernel_sees_them(name):
    """qnnpack takes a linear layer's rows of any length, oneDNN an addend of any shape: they read or write beyond."""
    engine, qp, weight_qp = engines.get(name), QParams(0.1, 5), QParams(0.1, 0, signed=True)

    def codes_of(*shape: int) -> Tensor:
        return put(engine, draw(shape, qp), qp)

    linear = engine.linear(torch.ones(5, 16).char(), None, weight_qp, qp, qp)
    for shape in ((2, 8), (2, 32), (16,)):
        with pytest.raises(ValueError, match=r"for a linear layer with weights \(5, 16\): expected \(N, ..., 16\)"):
            linear(codes_of(*shape))
    weight = torch.ones(8, 4, 3, 3).char()
    convolution = engine.conv2d(weight, None, weight_qp, qp, qp)
    for shape in ((2, 3, 8, 8), (2, 8, 8, 8), (4, 8, 8)):
        with pytest.raises(ValueError, match=r"for a convolution with weights .* expected \(N, 4, H, W\)"):
            convolution(codes_of(*shape))
    with pytest.raises(ValueError, match="a window of 3 does not fit an image of 2"):
        convolution(codes_of(2, 4, 2, 8))
    add = engine.add(qp, qp, qp)
    for shape in ((2, 4, 8, 4), (2, 4, 1, 1), (1, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"two addends of shapes \(2, 4, 8, 8\) and .*: expected the same shape"):
            add(codes_of(2, 4, 8, 8), codes_of(*shape))
        if engine.fuses_add:
            fused = engine.conv2d_add(weight[:4], None, weight_qp, qp, qp, qp, padding=1)
            with pytest.raises(ValueError, match=r"two addends of shapes \(2, 4, 8, 8\) and"):
                fused(codes_of(2, 4, 8, 8), codes_of(*shape))


@every_engine
def test_groups_that_do_not_divide_the_outputs_are_refused(name):
    engine, qp, weight_qp = engines.get(name), QParams(0.1, 5), QParams(0.1, 0, signed=True)
    with pytest.raises(
        (ValueError, RuntimeError), match="as many outputs in each group|groups = 3 does not divide|K elem"
    ):
        kernel = engine.conv2d(torch.ones(64, 4, 3, 3).char(), None, weight_qp, qp, qp, groups=3)
        kernel(put(engine, draw((1, 12, 8, 8), qp), qp))
