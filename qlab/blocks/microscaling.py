"""Microscaling floats: MX (a power of two for 32 small floats) and NVFP4 (an 8-bit float for 16 of them).

OCP Microscaling Formats Specification 1.0 (2023), section 6.3: the scale of a block is the largest power of two that is no more
than its largest magnitude, divided by the largest power of two of the small float. So up to two thirds of a binade's top are
clipped (7.9 becomes 6 in e2m1, under a scale of 1). NVIDIA's NVFP4 spends the scale's 8 bits on an e4m3 number instead, which
fits the block's largest value to 6 within 6 %, and one float32 a tensor brings these scales into e4m3's range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.blocks.packing import four_in_three, from_four_in_three, from_two_a_byte, two_a_byte
from qlab.formats import decode, encode, largest

SIZE = 32  # numbers that share a scale in MX
NVFP4_SIZE = 16
BIAS = 127  # of the scale's exponent: e8m0 127 is 1
_PACKING = {
    "e2m1": (two_a_byte, from_two_a_byte),
    "e2m3": (four_in_three, from_four_in_three),
    "e3m2": (four_in_three, from_four_in_three),
    "e4m3": (torch.clone, torch.clone),
    "e5m2": (torch.clone, torch.clone),
}


def pack(x: Tensor, element: str) -> dict[str, Tensor]:
    """(rows, columns) -> ``codes``, and one ``scale`` for 32 of them: an exponent of 2, with 127 for 1 (e8m0)."""
    blocks = x.unflatten(1, (-1, SIZE))
    _, exponent = torch.frexp(blocks.abs().amax(2))  # of a fraction in [0.5, 1): one more than the floor of log2
    _, top = torch.frexp(torch.tensor(largest(element)))
    scale = (exponent - int(top) + BIAS).clamp(0, 2 * BIAS)
    scale[blocks.abs().amax(2) == 0] = 0
    codes = encode(torch.ldexp(blocks, (BIAS - scale).unsqueeze(2)), element)
    return {"codes": _PACKING[element][0](codes.flatten(1)), "scale": scale.to(torch.uint8)}


def unpack(parts: dict[str, Tensor], element: str) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    numbers = decode(_PACKING[element][1](parts["codes"]), element).unflatten(1, (-1, SIZE))
    return torch.ldexp(numbers, parts["scale"].int().unsqueeze(2) - BIAS).flatten(1)


def pack_nvfp4(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> e2m1 ``codes``, an e4m3 ``scale`` for 16 of them, and the ``tensor_scale`` that multiplies these."""
    blocks = x.unflatten(1, (-1, NVFP4_SIZE))
    most = blocks.abs().amax(2)
    tensor_scale = most.amax() / (largest("e4m3") * largest("e2m1"))
    if tensor_scale == 0:
        tensor_scale = torch.ones_like(tensor_scale)
    scale = encode(most / largest("e2m1") / tensor_scale, "e4m3")
    step = decode(scale, "e4m3") * tensor_scale
    codes = encode(blocks / torch.where(step == 0, 1.0, step).unsqueeze(2), "e2m1")
    return {"codes": two_a_byte(codes.flatten(1)), "scale": scale, "tensor_scale": tensor_scale.reshape(1)}


def unpack_nvfp4(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    step = decode(parts["scale"], "e4m3") * parts["tensor_scale"]
    return (decode(from_two_a_byte(parts["codes"]), "e2m1").unflatten(1, (-1, NVFP4_SIZE)) * step.unsqueeze(2)).flatten(
        1
    )
