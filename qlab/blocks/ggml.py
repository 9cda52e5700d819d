"""llama.cpp's simple blocks: 32 weights under a float16 scale, in the bytes of a GGUF file.

Q4_0: scale * (code - 8), the weight of the largest magnitude at code 0. Q5_0: scale * (code - 16). Q4_1: scale * code + least. Q8_0: scale * code. Within a
block of 4-bit codes byte k holds those of weight k and weight k + 16. The bytes are those that llama.cpp's own reference
writes, bit for bit: hence a multiplication by the reciprocal of the scale, in float32, before the scale is rounded to float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 32


def pack_q4_0(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 18 a block."""
    blocks = x.unflatten(1, (-1, SIZE))
    outermost = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = outermost / -8
    codes = (blocks * _reciprocal(scale) + 8.5).trunc().clamp(0, 15)
    return {"bytes": _row(_bytes(scale), _halves(codes))}


def unpack_q4_0(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    scale, codes = _split(parts["bytes"], 2, 16)
    return (_float(scale) * (_from_halves(codes) - 8)).flatten(1)


def pack_q4_1(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 20 a block."""
    blocks = x.unflatten(1, (-1, SIZE))
    least = blocks.amin(2, keepdim=True)
    scale = (blocks.amax(2, keepdim=True) - least) / 15
    codes = ((blocks - least) * _reciprocal(scale) + 0.5).trunc().clamp(0, 15)
    return {"bytes": _row(_bytes(scale), _bytes(least), _halves(codes))}


def unpack_q4_1(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    scale, least, codes = _split(parts["bytes"], 2, 2, 16)
    return (_float(scale) * _from_halves(codes) + _float(least)).flatten(1)


def pack_q5_0(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 22 a block: the fifth bits of 32 codes stand together."""
    blocks = x.unflatten(1, (-1, SIZE))
    scale = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -16
    codes = (blocks * _reciprocal(scale) + 16.5).trunc().clamp(0, 31).to(torch.uint8)
    eighth = torch.arange(8, device=x.device)
    high = ((codes >> 4).unflatten(2, (4, 8)) << eighth).sum(3).to(torch.uint8)
    return {"bytes": _row(_bytes(scale), high, _halves(codes & 15))}


def unpack_q5_0(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    scale, high, low = _split(parts["bytes"], 2, 4, 16)
    fifth = (high.unsqueeze(3) >> torch.arange(8, device=high.device) & 1).flatten(2)
    return (_float(scale) * (_from_halves(low) + 16 * fifth - 16)).flatten(1)


def pack_q8_0(x: Tensor) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 34 a block."""
    blocks = x.unflatten(1, (-1, SIZE))
    scale = blocks.abs().amax(2, keepdim=True) / 127
    scaled = blocks * _reciprocal(scale)
    whole = scaled.abs().floor()  # half a step is rounded away from 0, as C's roundf does
    codes = scaled.sign() * (whole + (2 * (scaled.abs() - whole)).floor())
    return {"bytes": _row(_bytes(scale), codes.to(torch.int8).view(torch.uint8))}


def unpack_q8_0(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    scale, codes = _split(parts["bytes"], 2, 32)
    return (_float(scale) * codes.view(torch.int8).float()).flatten(1)


def _reciprocal(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _halves(codes: Tensor) -> Tensor:
    """32 codes of 4 bits a block -> 16 bytes."""
    low, high = codes.to(torch.uint8).chunk(2, 2)
    return low | high << 4


def _from_halves(packed: Tensor) -> Tensor:
    return torch.cat([packed & 15, packed >> 4], 2).float()


def _bytes(scale: Tensor) -> Tensor:
    """One number a block as float16: two bytes."""
    return scale.half().view(torch.uint8)


def _float(two_bytes: Tensor) -> Tensor:
    return two_bytes.contiguous().view(torch.float16).float()


def _row(*parts: Tensor) -> Tensor:
    """The parts of each block, one after the other: (rows, blocks, bytes of a part) each -> (rows, bytes)."""
    return torch.cat(parts, 2).flatten(1)


def _split(row: Tensor, *lengths: int) -> tuple[Tensor, ...]:
    """The way back: (rows, bytes) -> (rows, blocks, length) each."""
    return tuple(part.contiguous() for part in row.unflatten(1, (-1, sum(lengths))).split(lengths, 2))
