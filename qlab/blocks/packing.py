"""Codes of 4 and 6 bits in bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def two_a_byte(codes: Tensor) -> Tensor:
    """Pairs of 4-bit codes, the first in the low half: (..., n) -> (..., n / 2), uint8.

    >>> two_a_byte(torch.tensor([1, 2, 15, 0], dtype=torch.uint8))
    tensor([33, 15], dtype=torch.uint8)
    """
    return codes[..., ::2] | codes[..., 1::2] << 4


def from_two_a_byte(packed: Tensor) -> Tensor:
    """The way back: (..., n) -> (..., 2 n)."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def four_in_three(codes: Tensor) -> Tensor:
    """Fours of 6-bit codes in three bytes, the first lowest: (..., n) -> (..., 3 n / 4), uint8.

    >>> four_in_three(torch.tensor([1, 0, 0, 63], dtype=torch.uint8))
    tensor([  1,   0, 252], dtype=torch.uint8)
    """
    a, b, c, d = codes.unflatten(-1, (-1, 4)).unbind(-1)
    return torch.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], -1).flatten(-2)


def from_four_in_three(packed: Tensor) -> Tensor:
    """The way back: (..., n) -> (..., 4 n / 3)."""
    a, b, c = packed.unflatten(-1, (-1, 3)).unbind(-1)
    return torch.stack([a & 63, a >> 6 | (b & 15) << 2, b >> 4 | (c & 3) << 4, c >> 2], -1).flatten(-2)
