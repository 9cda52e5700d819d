"""Layers to try on the engines, and what it means that a kernel is right: within one code of the reference."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

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
