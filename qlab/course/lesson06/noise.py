"""Lesson 6: what can be measured at each layer of a quantized network."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from qlab import analysis
from qlab.analysis import LayerSQNR, Sensitivity, selective
from qlab.calibration import calibrate
from qlab.graph.nodes import kind_of, name_of
from qlab.graph.prepare import Prepared, prepare
from qlab.graph.run import Stepper, as_float
from qlab.modes import in_eval_mode
from qlab.qconfig import QConfig

WHAT = ("both", "weights", "activations")


def tables(network: nn.Module, x: Tensor, widths: Sequence[int]) -> dict[tuple[str, int], Sequence[LayerSQNR]]:
    """The SQNR of each layer on images (N, 3, H, W): by what is quantized (both, weights, activations), and by the bits.

    The ranges are min-max of the same images; the first and the last layer have as few bits as all others.
    """
    found = {}
    for bits in widths:
        quantized = calibrate(prepare(network, QConfig.preset(f"w{bits}a{bits}", first_last=None)), [x])
        for what in WHAT:
            with quantized.quantizing(weights=what != "activations", activations=what != "weights"):
                found[what, bits] = analysis.layer_sqnr(quantized, [x])
    gc.collect()  # a graph and its nodes know each other, so the networks of before are still there
    return found


@torch.no_grad()
def sparing(
    network: nn.Module,
    qconfig: QConfig,
    rows: Sequence[Sensitivity],
    counts: Sequence[int],
    batches: Iterable,
    x: Tensor,
) -> dict[tuple[bool, int], float]:
    """The SQNR of the answers to ``x`` when some layers keep 8 bits: by (the most sensitive first?, how many).

    ``rows`` come from :func:`qlab.analysis.sensitivity`, the most sensitive first; ``batches`` calibrate.
    """
    expected, found, known = network(x), {}, {}
    for most, count in product((True, False), counts):
        order = rows if most else rows[::-1]
        spared = frozenset(row.layer for row in order[:count])  # none and all of them are the same in either order
        if spared not in known:
            prepared = prepare(network, selective(order, qconfig, count, bits=8))
            known[spared] = analysis.sqnr(expected, calibrate(prepared, batches)(x))
        found[most, count] = known[spared]
        gc.collect()  # as above
    return found


@dataclass(frozen=True)
class Look:
    """One layer, quantized beside float: SQNR in dB of what it gives and of its weights; the rest are shares.

    - ``clipped``: of its input, the values that lie beyond the grid. ``used``: of the grid, what the input reaches.
    - ``shift``: of the error of what it gives, the part that only moves the means of channels.
    """

    layer: str
    output: float
    weight: float
    clipped: float
    used: float
    shift: float


@torch.no_grad()
def looks(prepared: Prepared, x: Tensor) -> list[Look]:
    """A :class:`Look` at each layer with weights, float and quantized in lock-step on images (N, 3, H, W)."""
    floats, layers, edges = as_float(prepared), dict(prepared.weighted()), prepared.input_quantizers()
    both, rows = (Stepper(floats, [x]), Stepper(prepared.network, [x])), []
    with in_eval_mode(prepared):
        for node in prepared.network.graph.nodes:
            name = name_of(node)
            read = both[0].inputs(node)[0] if name in layers else None
            expected, found = (stepper.step(node)[0] for stepper in both)
            if read is not None:
                weight = floats.get_submodule(name).weight
                sqnr = [analysis.sqnr(*pair) for pair in
                        ((expected, found), (weight, layers[name].weight_quantizer(layers[name].weight)))]  # fmt: skip
                rows.append(Look(name, *sqnr, *_fit(read, edges[name][0].qparams), shift_of(expected, found)))
    return rows


def _fit(x: Tensor, grid) -> tuple[float, float]:
    """(share of the values beyond the grid, share of the grid that they reach)."""
    low, high = (float((end - grid.zero_point) * grid.scale) for end in (grid.qmin, grid.qmax))
    half = float(grid.scale) / 2  # what rounds to the last value is not clipped
    clipped = ((x < low - half) | (x > high + half)).double().mean()
    reach = min(float(x.max()), high) - max(float(x.min()), low)
    return float(clipped), reach / (high - low)


def shift_of(expected: Tensor, found: Tensor) -> float:
    """Of the squared error, the share that a constant for each channel (dimension 1) would take away.

    >>> x = torch.zeros(4, 2)
    >>> shift_of(x, x + torch.tensor([1.0, -1.0])), shift_of(x, torch.tensor([[1.0, -1.0]] * 2 + [[-1.0, 1.0]] * 2))
    (1.0, 0.0)
    """
    error = (found - expected).double()
    means = error.mean([axis for axis in range(error.dim()) if axis != 1])
    return float(means.square().mean() / error.square().mean().clamp(min=1e-30))


@torch.no_grad()
def around_pool(prepared: Prepared, x: Tensor) -> tuple[float, float]:
    """The SQNR in dB before the average over all places, and behind it, on images (N, 3, H, W)."""
    both = Stepper(as_float(prepared), [x]), Stepper(prepared.network, [x])
    with in_eval_mode(prepared):
        for node in prepared.network.graph.nodes:
            before = [stepper.inputs(node)[0] for stepper in both] if kind_of(node) == "global_pool" else None
            behind = [stepper.step(node)[0] for stepper in both]
            if before is not None:
                return analysis.sqnr(*before), analysis.sqnr(*behind)
    raise ValueError("this network has no average over all places")
