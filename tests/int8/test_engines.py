"""The law of the engines: whatever the kernels of torch compute, it is within one code of the reference."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import qlab
from qlab.affine import QParams
from qlab.granularity import PerChannel, PerTensor
from qlab.int8 import engines
from qlab.int8.reference import Engine

REFERENCE = Engine()
USABLE = [name for name, found in engines.available().items() if found.usable and name != "reference"]
FUSING = [name for name in USABLE if engines.get(name).fuses_add]
every_engine = pytest.mark.parametrize("name", USABLE)
seeds = st.integers(0, 2**31)


def codes(q: Tensor) -> Tensor:
    return q.int_repr() if q.is_quantized else q


def top(name: str) -> int:
    """The bits that activations may have where no two products overflow 16 bits."""
    found = engines.available()[name]
    return 7 if found.saturates or found.depthwise_saturates else 8


def put(engine: Engine, q: Tensor, qp: QParams) -> Tensor:
    """Codes as a tensor of the engine, by the engine's own quantize: the middle of each step."""
    return engine.quantize(qp)((q.float() - int(qp.zero_point)) * qp.scale)


def draw(shape: tuple[int, ...], qp: QParams, extreme: bool = False) -> Tensor:
    q = torch.randint(0, 2, shape) * qp.qmax if extreme else torch.randint(0, qp.qmax + 1, shape)
    q = q.to(torch.uint8)
    return q.contiguous(memory_format=torch.channels_last) if q.ndim == 4 else q


def assert_within_one(engine: Engine, kernels: tuple, inputs: list[tuple[Tensor, QParams]]) -> Tensor:
    """An engine's kernel agrees with the reference's to one code, in running() and out of it."""
    fast, slow = kernels
    expected = slow(*(q for q, _ in inputs)).int()
    for context in (nullcontext(), engine.running()):
        with context:
            got = fast(*(put(engine, q, qp) for q, qp in inputs))
        assert got.shape == expected.shape
        assert expected.numel() == 0 or int((codes(got).int() - expected).abs().max()) <= 1
        assert got.ndim != 4 or not got.numel() or got.is_contiguous(memory_format=torch.channels_last)
    return codes(got)


def both(name: str, op: str, *args, **kwargs) -> tuple:
    return tuple(getattr(engine, op)(*args, **kwargs) for engine in (engines.get(name), REFERENCE))


@st.composite
def grids(draw_) -> QParams:
    width = draw_(st.sampled_from([8, 8, 7, 4, 2]))
    where = draw_(st.sampled_from([0.0, 0.4, 1.0]))
    return QParams(10 ** draw_(st.floats(-3, 0.5)), round(where * (2**width - 1)), width)


@st.composite
def layers(draw_) -> dict:
    """A convolution: its shapes, its window, its weights (extreme or not), and how large its bias is."""
    torch.manual_seed(draw_(seeds))
    groups = draw_(st.sampled_from([1, 1, 1, 2, 3]))
    depthwise = draw_(st.integers(0, 4)) == 0
    if depthwise:
        groups = draw_(st.integers(2, 33))
    inputs = groups if depthwise else groups * draw_(st.integers(1, 20))
    outputs = groups * draw_(st.integers(1, 2) if depthwise else st.integers(1, 40))
    kernel = draw_(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 3), (7, 1), (3, 7)]))
    two = st.tuples(st.integers(0, 2), st.integers(0, 2))
    weight_bits = draw_(st.sampled_from([8, 8, 8, 4, 2]))
    limit = 2 ** (weight_bits - 1) - 1
    shape = (outputs, inputs // groups, *kernel)
    weight = torch.randint(-limit - 1, limit + 1, shape)
    if draw_(st.booleans()):
        weight = torch.where(weight < 0, -limit, limit)  # all weights at the ends of their range
    by_channel = draw_(st.booleans())
    scale = torch.rand(outputs) * 0.1 + 0.001 if by_channel else torch.tensor(0.03)
    granularity = PerChannel(0) if by_channel else PerTensor()
    dilation, padding = draw_(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)])), draw_(two)
    return {
        "weight": weight.to(torch.int8),
        "weight_qp": QParams(scale, torch.zeros_like(scale).int(), weight_bits, True, granularity),
        "bias": draw_(st.sampled_from([None, 0.1, 1.0])),
        "window": {
            "stride": tuple(1 + n for n in draw_(two)), "padding": padding, "dilation": dilation, "groups": groups,
        },
        "size": (draw_(st.sampled_from([1, 3])), inputs, *draw_(st.sampled_from([(14, 14), (13, 16), (32, 13)]))),
        "extreme": draw_(st.booleans()),
        "relu": draw_(st.booleans()),
    }  # fmt: skip


def fitting_out(layer: dict, x_qp: QParams, out_qp: QParams, zoom: float) -> tuple[QParams, Tensor | None]:
    """out_qp with a scale on which the layer's outputs fill the grid (zoom 1) or more; the bias, if any."""
    step_of_sums = layer["weight_qp"].scale * x_qp.scale
    reach = layer["weight"].float().flatten(1).abs().sum(1) * step_of_sums * x_qp.qmax
    # qnnpack rounds its bias to the grid of the sums, so that must not be coarser than the output's.
    step = max(float(reach.max()) / zoom / out_qp.qmax, float(step_of_sums.max()))
    bias = layer["bias"]
    if bias is not None:
        bias = torch.randn(layer["weight"].shape[0]) * step * out_qp.qmax * bias
    return QParams(step, out_qp.zero_point, out_qp.bits), bias


def within(x_qp: QParams, name: str) -> QParams:
    """The same grid, with no more bits than the engine can multiply without saturation."""
    bits = min(x_qp.bits, top(name))
    return QParams(x_qp.scale, min(int(x_qp.zero_point), 2**bits - 1), bits)


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


# Layers that oneDNN 3.x gets wrong on some processors: (groups, inputs and outputs of one, kernel), window, zero point.
HARD = {
    "groups of many outputs": ((2, 1, 17, 3, 3), {"stride": 2, "padding": 1}, 102),
    "groups of many outputs, no padding": ((3, 1, 48, 3, 3), {"stride": 2}, 102),
    "groups of one output": ((2, 4, 1, 7, 1), {"padding": (1, 0)}, 102),
    "kernels one pixel wide": ((1, 8, 16, 7, 1), {"padding": (1, 0)}, 102),
    "outputs one pixel wide": ((1, 7, 17, 1, 9), {"stride": (1, 2), "padding": (0, 3), "dilation": (1, 2)}, 0),
    "padding alone, one group": ((1, 1, 8, 2, 3), {"padding": (2, 0)}, 50),
    "padding alone, groups": ((4, 1, 2, 2, 3), {"padding": (2, 0)}, 50),
    "padding alone, one weight": ((16, 1, 1, 1, 1), {"padding": (1, 0)}, 102),
}


@every_engine
@pytest.mark.parametrize("bias", [None, 20.0])
@pytest.mark.parametrize("case", HARD)
def test_layers_that_are_wrong_in_onednn_are_right_here(name, case, bias):
    (groups, inputs, outputs, *kernel), window, zero_point = HARD[case]
    weight = torch.randint(-127, 128, (groups * outputs, inputs, *kernel), dtype=torch.int8)
    x_qp, weight_qp = within(QParams(1.0, zero_point), name), QParams(0.03, 0, signed=True)
    step = float(weight.float().flatten(1).abs().sum(1).max()) * 0.03
    out_qp, bias = QParams(step, 128), None if bias is None else torch.randn(len(weight)) * bias * step
    args, window = (weight, bias, weight_qp, x_qp), {**window, "groups": groups}
    for side in (12, 14, 16):
        x = draw((2, groups * inputs, side, side), x_qp)
        kernels = both(name, "conv2d", *args, out_qp, **window)
        shape = tuple(assert_within_one(engines.get(name), kernels, [(x, x_qp)]).shape)
        if name in FUSING:
            other = draw(shape, out_qp)
            kernels = both(name, "conv2d_add", *args, out_qp, out_qp, **window)
            assert_within_one(engines.get(name), kernels, [(x, x_qp), (other, out_qp)])


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
def test_running_leaves_everything_as_it_was(name):
    before = torch.backends.quantized.engine
    with pytest.raises(KeyError), engines.get(name).running():
        raise KeyError("an error inside")
    assert torch.backends.quantized.engine == before
    assert torch._C._is_torch_function_enabled()


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


@pytest.mark.parametrize("name", [name for name in USABLE if name not in FUSING])
def test_an_engine_that_does_not_fuse_says_which_does(name):
    qp, weight_qp, weight = QParams(1.0, 0), QParams(1.0, 0, signed=True), torch.ones(2, 2, 1, 1).char()
    with pytest.raises(ValueError, match=f"engine '{name}' has no conv2d_add.*use engine='onednn'"):
        engines.get(name).conv2d_add(weight, None, weight_qp, qp, qp, qp)


# --- which engines there are


@pytest.fixture
def other_machine(monkeypatch):
    """Forget what was found out about this machine, before and after a test that pretends it is another."""

    def forget():
        for function in (engines.availability, engines.choose, engines.cpu):
            function.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def processor(**changes) -> engines.Cpu:
    flags = dict.fromkeys(("avx2", "avx512", "vnni", "amx", "dot_product"), False)
    facts = {"architecture": "x86_64", "model": "a processor", "capability": "AVX2", **flags}
    return engines.Cpu(**(facts | changes))


def pretend(monkeypatch, usable: tuple[str, ...], saturates: bool = False, **changes) -> None:
    def availability(name: str) -> engines.Availability:
        return engines.Availability(name, name in usable, "as the test pretends", saturates)

    monkeypatch.setattr(engines, "availability", availability)
    monkeypatch.setattr(engines, "cpu", lambda: processor(**changes))


def test_every_engine_is_listed_and_the_reference_always_works():
    found = engines.available()
    assert tuple(found) == engines.NAMES
    assert found["reference"] == engines.Availability("reference", True, "works", False)
    assert all(found[name].reason for name in found)


def test_an_engine_is_given_back_as_it_is_and_made_from_its_name():
    assert engines.get(REFERENCE) is REFERENCE
    assert engines.get("reference").name == "reference"
    assert engines.get("auto").name == engines.choose()[0]
    assert [engines.get(name).name for name in USABLE] == USABLE


def test_an_unknown_engine_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="engine='cuda': expected 'auto', 'reference', .*or an Engine"):
        engines.get("cuda")


def test_an_engine_that_is_not_built_in_is_refused_with_one_that_works(other_machine):
    other_machine.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack", "none"])
    words = r"engine='fbgemm' does not work here: .*no fbgemm kernels .*it has: qnnpack\)\. engine='\w+' does"
    with pytest.raises(ValueError, match=words):
        engines.get("fbgemm")


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_an_operator_that_is_missing_makes_an_engine_unusable_not_a_crash(other_machine, error):
    def broken(engine, bits, groups):
        raise error("no operator 'qconv2d_pointwise'\nC++ stack trace")

    other_machine.setattr(engines, "_extreme_layers", broken)
    found = engines.availability("onednn_plain")
    assert (found.usable, found.reason) == (False, "no operator 'qconv2d_pointwise'")


def test_an_engine_that_computes_nonsense_is_not_used(other_machine):
    def layers_of(engine, bits, groups):
        return [torch.full((3,), 0 if engine.name == "reference" else 9)]

    other_machine.setattr(engines, "_extreme_layers", layers_of)
    assert "its results are wrong by 9 codes" in engines.availability("onednn_plain").reason


def test_auto_prefers_the_fusing_engine_on_x86_and_warns_where_it_saturates(monkeypatch):
    pretend(monkeypatch, engines.NAMES, vnni=True)
    name, why = engines.choose.__wrapped__()
    assert name == "onednn"
    assert "one kernel" in why
    assert "reduce_range" not in why
    pretend(monkeypatch, engines.NAMES, saturates=True)
    assert re.search(
        "no VNNI.*saturate at 16 bits.*reduce_range=True \\(7-bit weights\\)", engines.choose.__wrapped__()[1]
    )


@pytest.mark.parametrize(
    ("usable", "architecture", "name", "words"),
    [
        (engines.NAMES, "arm64", "qnnpack", "made for ARM"),
        (("reference", "x86", "fbgemm"), "AMD64", "x86", "whichever suits the layer"),
        (("reference", "fbgemm"), "x86_64", "fbgemm", "fastest engine that works here"),
        (("reference", "onednn_plain"), "x86_64", "onednn_plain", "no quantized tensors"),
        (("reference", "qnnpack"), "riscv64", "qnnpack", "the one engine that works here"),
        (("reference",), "riscv64", "reference", "slowly"),
    ],
)  # fmt: skip
def test_auto_takes_what_works(monkeypatch, usable, architecture, name, words):
    pretend(monkeypatch, usable, architecture=architecture)
    chosen, why = engines.choose.__wrapped__()
    assert chosen == name
    assert words in why


X86 = "model name\t: A fast one\nflags\t\t: avx2 avx512f avx512_vnni amx_int8\n\nmodel name\t: A slow one\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"


def test_the_processor_is_read_from_linux(other_machine, tmp_path):
    for text, expected in ((X86, (True, True, True, True, False)), (ARM, (False, False, False, False, True))):
        (tmp_path / "cpuinfo").write_text(text)
        other_machine.setattr(engines, "Path", lambda _: tmp_path / "cpuinfo")
        for ask in ("avx2", "avx512", "vnni", "amx_tile"):
            other_machine.setattr(torch.cpu, f"_is_{ask}_supported", lambda: False, raising=False)
        cpu = engines.cpu.__wrapped__()
        assert (cpu.avx2, cpu.avx512, cpu.vnni, cpu.amx, cpu.dot_product) == expected
        assert cpu.model == "A fast one" or text is ARM


def test_what_cannot_be_found_out_is_none(other_machine, tmp_path):
    other_machine.setattr(engines, "Path", lambda _: tmp_path / "there is none")
    other_machine.setattr(engines.platform, "machine", lambda: "arm64")
    other_machine.setattr(engines.sys, "platform", "darwin")
    for ask in ("avx2", "avx512", "vnni", "amx_tile"):
        other_machine.delattr(torch.cpu, f"_is_{ask}_supported", raising=False)
    cpu = engines.cpu.__wrapped__()
    assert (cpu.avx2, cpu.vnni, cpu.amx, cpu.dot_product, cpu.is_arm) == (None, None, None, True, True)


@given(st.lists(st.tuples(*[st.integers(-128, 127)] * 3), min_size=1, max_size=5), st.sampled_from([127, 63]))
@example([(-128, -63, 18)], 127)
def test_room_for_a_bias_is_made_without_changing_a_weight(rows, most):
    weight, x_qp = torch.tensor(rows, dtype=torch.int8), QParams(0.5, 7)
    codes, scale = engines.room_for_bias(weight, torch.tensor(0.03), torch.full((len(rows),), 0.1), x_qp, most)
    assert torch.allclose(codes * scale[:, None], weight * torch.tensor(0.03).double(), rtol=1e-12, atol=0)
    grown = (codes != weight).any(1)
    assert (codes[grown].int().abs() <= most).all() and (codes[grown].int().abs().amax(1) > most // 2).all()


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


# --- the seam


def test_no_other_file_touches_the_kernels_of_torch():
    forbidden = re.compile(r"torch\.(ops\.(quantized|onednn)|quint8|qint8|backends\.quantized)")
    files = Path(qlab.__file__).parent.rglob("*.py")
    assert [file.name for file in files if forbidden.search(file.read_text("utf-8"))] == ["engines.py"]


def test_nobody_is_told_that_quantized_tensors_are_deprecated():
    script = (
        "import torch; from qlab.int8 import engines; from qlab.affine import QParams\n"
        "engine = engines.get('auto'); engine.quantize(QParams(0.5, 0))(torch.ones(1, 2)); print(engine.name)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
