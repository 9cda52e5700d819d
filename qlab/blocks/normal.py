"""NF4: 16 values that normally distributed weights use equally often, under a scale for 64, itself kept in 8 bits.

Dettmers et al., "QLoRA" (2023), section 3: 4-bit NormalFloat (the quantiles of a normal distribution between -1 and 1, with an
exact 0) and double quantization (the scales less their mean, as 8-bit floats, 256 of them under one float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.blocks.packing import from_two_a_byte, two_a_byte
from qlab.formats import decode, encode, largest

SIZE = 64  # weights that share a scale
SCALES = 256  # scales that share one of float32
OUTERMOST = (
    0.9677083  # the probability below the largest value: midway between 1 - 1 / 32 and 1 - 1 / 30 (QLoRA's code)
)


def _values() -> Tensor:
    """The 16 values from -1 to 1: 8 quantiles above 0, 7 below it, and 0."""
    above = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([-below, above, torch.zeros(1, dtype=torch.float64)]).sort().values
    return (values / values.abs().max()).float()


VALUES = _values()


def pack(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> ``codes``; 8-bit ``scale`` s, ``mean`` and ``outer``: a block's scale is mean + s * outer."""
    blocks = x.unflatten(1, (-1, SIZE))
    most = blocks.abs().amax(2)
    mean = most.mean()
    groups = _groups(most - mean)
    outer = groups.abs().amax(1) / largest("e4m3")
    scale = encode(groups / torch.where(outer == 0, 1.0, outer).unsqueeze(1), "e4m3")
    scale = scale.flatten()[: most.numel()].reshape(most.shape)
    parts = {"scale": scale, "mean": mean.reshape(1), "outer": outer}
    step = _scales(parts)
    nearest = (VALUES[1:] + VALUES[:-1]) / 2
    codes = torch.bucketize(blocks / torch.where(step == 0, 1.0, step).unsqueeze(2), nearest.to(x.device)).to(
        torch.uint8
    )
    return {"codes": two_a_byte(codes.flatten(1)), **parts}


def unpack(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    codes = from_two_a_byte(parts["codes"]).long().unflatten(1, (-1, SIZE))
    return (VALUES.to(codes.device)[codes] * _scales(parts).unsqueeze(2)).flatten(1)


def _groups(scales: Tensor) -> Tensor:
    """(rows, blocks) -> (groups, 256), with zeros behind the last."""
    return torch.nn.functional.pad(scales.flatten(), (0, -scales.numel() % SCALES)).reshape(-1, SCALES)


def _scales(parts: dict[str, Tensor]) -> Tensor:
    """The blocks' scales in float32."""
    outer = parts["outer"].repeat_interleave(SCALES)[: parts["scale"].numel()].reshape(parts["scale"].shape)
    return (parts["mean"] + decode(parts["scale"], "e4m3") * outer).clamp_min(0)
