"""Smaller floats: their names, their values, their bit patterns.

"e4m3" has 4 bits of exponent and 3 of mantissa, and reaches to 448; "e5m2" reaches to 57344. Micikevicius et al.,
"FP8 formats for deep learning" (2022); OCP 8-bit Floating Point Specification (2023). "e2m1", "e2m3" and "e3m2" have 4 and 6
bits, no infinity and no NaN: OCP Microscaling Formats Specification 1.0 (2023).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

FORMATS = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SMALLER = {"e2m1": (2, 1), "e2m3": (2, 3), "e3m2": (3, 2)}  # bits of exponent and mantissa


def float_format(name: str) -> torch.dtype:
    """torch's type of a format. Raises ValueError for another name.

    >>> torch.finfo(float_format("e4m3")).max
    448.0
    """
    if name not in FORMATS:
        raise ValueError(f"float format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


@cache
def magnitudes(name: str) -> Tensor:
    """The numbers from 0 up of a format with 4 or 6 bits: the place of each is its bit pattern without the sign.

    Raises ValueError for another format.

    >>> magnitudes("e2m1")
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 3.0000, 4.0000, 6.0000])
    """
    if name not in SMALLER:
        raise ValueError(f"float format {name!r}: expected one of {', '.join(SMALLER)}")
    exponents, mantissas = (2**bits for bits in SMALLER[name])
    bias = exponents // 2 - 1
    steps = torch.arange(mantissas) / mantissas
    below = steps * 2.0 ** (1 - bias)  # subnormal
    return torch.cat([below, *((1 + steps) * 2.0 ** (exponent - bias) for exponent in range(1, exponents))])


def encode(x: Tensor, name: str) -> Tensor:
    """The bit patterns of the nearest numbers of a format with 4, 6 or 8 bits: uint8 of x's shape.

    What lies beyond the largest becomes the largest; of two that are as near, the one with an even mantissa is taken, as
    IEEE 754 rounds. Raises ValueError for another format and for a NaN, for which 4 and 6 bits have no pattern.

    >>> encode(torch.tensor([0.3, 2.5, -100.0]), "e2m1")
    tensor([ 1,  4, 15], dtype=torch.uint8)
    """
    if x.isnan().any():
        raise ValueError(f"{int(x.isnan().sum())} of {x.numel():,} values are NaN: {name} has numbers alone here")
    if name in ("e4m3", "e5m2"):
        most = torch.finfo(FORMATS[name]).max
        return x.float().clamp(-most, most).to(FORMATS[name]).view(torch.uint8)
    numbers = magnitudes(name).to(x.device)
    size = x.float().abs()
    halfway = (numbers[1:] + numbers[:-1]) / 2
    place = torch.bucketize(size, halfway)  # a tie goes down ...
    tie = size == halfway[place.clamp(max=len(halfway) - 1)]
    place += tie & (place % 2 == 1)  # ... unless the even one is above
    return (place + len(numbers) * x.signbit()).to(torch.uint8)


def decode(codes: Tensor, name: str) -> Tensor:
    """The numbers of bit patterns of a format with 4, 6 or 8 bits: float32 of the codes' shape; the way back from :func:`encode`.

    >>> decode(torch.tensor([1, 4, 15], dtype=torch.uint8), "e2m1")
    tensor([ 0.5000,  2.0000, -6.0000])
    """
    if name in ("e4m3", "e5m2"):
        return codes.view(FORMATS[name]).float()
    numbers = magnitudes(name).to(codes.device)
    return torch.cat([numbers, -numbers])[codes.long()]


def largest(name: str) -> float:
    """The largest number of a format with 4, 6 or 8 bits.

    >>> largest("e2m1"), largest("e4m3")
    (6.0, 448.0)
    """
    return torch.finfo(FORMATS[name]).max if name in FORMATS else float(magnitudes(name)[-1])
