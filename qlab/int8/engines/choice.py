"""Which engines work on this machine, and which one "auto" means: each is really tried."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from qlab.affine import QParams
from qlab.int8.engines.onednn import OnednnOps
from qlab.int8.engines.processor import cpu
from qlab.int8.engines.quantized import QUANTIZED, QuantizedOps
from qlab.int8.reference import Engine, sum_bound

NAMES = ("reference", *QUANTIZED, "onednn_plain")


@dataclass(frozen=True)
class Availability:
    """Whether an engine works on this machine, why not, and whether its sums of two products saturate.

    ``saturates`` says so of all layers, ``depthwise_saturates`` of those with groups: fbgemm's kernel for them, which
    x86 takes too when there are many, adds up in 16 bits even where there is VNNI.
    """

    name: str
    usable: bool
    reason: str
    saturates: bool = False
    depthwise_saturates: bool = False

    def saturates_in(self, groups: int) -> bool:
        """In a layer of so many groups?"""
        return self.saturates or self.depthwise_saturates and groups > 1


def available() -> dict[str, Availability]:
    """Every engine, really tried: {name: :class:`Availability`}. The first call takes about half a second.

    >>> available()["reference"]
    Availability(name='reference', usable=True, reason='works', saturates=False, depthwise_saturates=False)
    """
    return {name: availability(name) for name in NAMES}


@cache
def availability(name: str) -> Availability:
    """One engine, tried with small layers: does it compute what the reference does, and does it saturate?

    >>> availability("reference").usable
    True

    Raises ValueError for a name that is none.
    """
    engine = _make(name)
    if name in QUANTIZED and name not in torch.backends.quantized.supported_engines:
        has = ", ".join(other for other in torch.backends.quantized.supported_engines if other != "none")
        why = f"this torch has no {name} kernels for {platform.machine()} (it has: {has or 'none'})"
        return Availability(name, False, why)
    with warnings.catch_warnings():
        # torch says once a process that quint8 is deprecated. That is known here, and nobody else need know.
        warnings.filterwarnings("ignore", message=".*deprecated.*", category=UserWarning)
        try:
            moderate, dense, depthwise = (
                _disagreement(engine, bits, groups) for bits, groups in ((7, (1, 16, 128)), (8, (1,)), (8, (16, 128)))
            )
        except (RuntimeError, AttributeError) as error:  # no such kernel, no such operator
            return Availability(name, False, str(error).strip().splitlines()[0][:200])
    if moderate > 1:
        return Availability(name, False, f"its results are wrong by {moderate} codes on small layers")
    return Availability(name, True, "works", saturates=dense > 1, depthwise_saturates=depthwise > 1)


def saturates_on(name: str, network: nn.Module) -> bool:
    """Can 8-bit codes saturate in a convolution or linear layer of this float network, on this engine?

    >>> saturates_on("reference", nn.Linear(2, 2))
    False
    """
    groups = [getattr(layer, "groups", 1) for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return any(map(availability(name).saturates_in, groups))


def _disagreement(engine: Engine, bits: int, groups: Sequence[int]) -> int:
    """By how many codes an engine and the reference differ at most, with numbers as large as can be."""
    expected = _extreme_layers(Engine(), bits, groups)
    return max(int((a - b).abs().max()) for a, b in zip(_extreme_layers(engine, bits, groups), expected))


def _extreme_layers(engine: Engine, bits: int, groups: Sequence[int]) -> list[Tensor]:
    """What small layers give (in codes) when all inputs are the largest and all weights 127 or -127.

    More than 100 groups are another kernel of torch's x86.
    """
    x_qp, weight_qp, outputs = QParams(1.0, 0, bits), QParams(0.01, 0, signed=True), []
    for sign, count in product((127, -127), groups):
        channels = max(16, count)
        x, bias = torch.full((1, channels, 4, 4), float(x_qp.qmax)), torch.ones(channels)
        weight = torch.full((channels, channels // count, 3, 3), sign, dtype=torch.int8)
        for weight in (weight,) if count > 1 else (weight, weight[:, :, :1, :1], weight[:, :, 0, 0]):
            out_qp = QParams(sum_bound(weight, x_qp) * 0.01 / 100, 128)  # no sum may leave the grid
            if weight.ndim == 4:
                kernel = engine.conv2d(weight, bias, weight_qp, x_qp, out_qp, padding=1, groups=count)
            else:
                kernel = engine.linear(weight, bias, weight_qp, x_qp, out_qp)
            with engine.running(), torch.no_grad():
                q = kernel(engine.quantize(x_qp)(x if weight.ndim == 4 else x[:, :, 0, 0]))
                outputs.append(engine.dequantize(out_qp)(q).div(out_qp.scale).round())
    return outputs


@cache
def choose() -> tuple[str, str]:
    """What engine="auto" means on this machine: the name, and a sentence that says why.

    >>> name, why = choose()
    >>> availability(name).usable
    True
    """
    arm = cpu().is_arm
    order = ("qnnpack", "onednn") if arm else ("onednn", "x86", "fbgemm", "onednn_plain", "qnnpack")
    name = next((name for name in order if availability(name).usable), "reference")
    why = {
        "qnnpack": "the kernels made for ARM" if arm else "the one engine that works here",
        "onednn": "convolution, addition and relu in one kernel, the fastest on one image and on many",
        "x86": "fbgemm's and oneDNN's kernels, whichever suits the layer",
        "fbgemm": "the fastest engine that works here",
        "onednn_plain": "oneDNN's kernels on plain uint8 tensors; this torch has no quantized tensors",
        "reference": "none of torch's int8 kernels works here; plain torch computes the same integers slowly",
    }[name]
    if availability(name).saturates:
        why += (
            ". This processor has no VNNI, so pairs of large products saturate at 16 bits: quantize with "
            "reduce_range=True (7-bit weights), with which no pair of products overflows"
        )
    return name, why


def get(engine: str | Engine) -> Engine:
    """The engine of that name ("auto": the one :func:`choose` picks); an Engine is given back as it is.

    >>> get("reference").name
    'reference'

    Raises ValueError for a name that is none, and for an engine that does not work here; the error says which
    does.
    """
    if isinstance(engine, Engine):
        return engine
    name = choose()[0] if engine == "auto" else engine
    made = _make(name)
    if not availability(name).usable:
        raise ValueError(
            f"engine={name!r} does not work here: {availability(name).reason}. engine={choose()[0]!r} does"
        )
    return made


def _make(name: str) -> Engine:
    """The engine of that name, whether it works here or not."""
    if name not in NAMES:
        raise ValueError(f"engine={name!r}: expected 'auto', {', '.join(map(repr, NAMES))}, or an Engine")
    if name in QUANTIZED:
        return QuantizedOps(name)
    return Engine() if name == "reference" else OnednnOps()
