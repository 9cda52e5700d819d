"""llama.cpp's "K" blocks: 256 weights, cut into small blocks whose scales are codes too, under one or two float16.

Q4_K: 8 blocks of 32, weight = d * s * code - d_min * m, with 6-bit s and m and a 4-bit code: 4.5 bits. Q6_K: 16 blocks of 16,
weight = d * s * code, with an 8-bit s and a 6-bit code from -32 to 31: 6.5625 bits. (K stands for its author, Iwan Kawrakow;
these are no k-means.) The bytes are those of a GGUF file.

Which scale? Dividing the range evenly is not the best: of some twenty, the one with the least weighted error is taken, each
with the line through (code, weight) that least squares gives. A weight's error counts by ``importance`` where one is given, else
by the weight's own size. So the search is llama.cpp's idea, while its code, and so a few of the bytes, are our own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.blocks.ggml import _bytes, _float, _row, _split

SIZE = 256
TRIES = 20  # scales that are tried for each small block


def pack_q4_k(x: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 144 for 256 weights."""
    small = x.reshape(len(x), -1, 8, 32)
    scale, least = _lines(small, _weights(small, importance), 15)
    d, d_min = (_half(part.amax(2, keepdim=True) / 63) for part in (scale, least))
    s, m = _codes(scale, d, 63), _codes(least, d_min, 63)
    step, floor = (d * s).unsqueeze(3), (d_min * m).unsqueeze(3)
    codes = ((small + floor) / torch.where(step == 0, 1.0, step)).round().clamp(0, 15).to(torch.uint8)
    low, high = codes.unflatten(2, (4, 2)).unbind(3)  # each 32 bytes hold two neighbouring blocks
    return {"bytes": _row(_bytes(d), _bytes(d_min), _six_bits(s, m), (low | high << 4).flatten(2))}


def unpack_q4_k(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    d, d_min, scales, packed = _split(parts["bytes"], 2, 2, 12, 128)
    s, m = _from_six_bits(scales)
    packed = packed.unflatten(2, (4, 1, 32))
    codes = torch.cat([packed & 15, packed >> 4], 3).flatten(2, 3).float()
    return ((_float(d) * s).unsqueeze(3) * codes - (_float(d_min) * m).unsqueeze(3)).flatten(1)


def pack_q6_k(x: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
    """(rows, columns) -> ``bytes``, 210 for 256 weights."""
    small = x.reshape(len(x), -1, 16, 16)
    scale = _slopes(small, _weights(small, importance))
    outermost = scale.gather(2, scale.abs().argmax(2, keepdim=True))
    d = _half(outermost / -128)  # the outermost has code -128, its magnitude being what counts
    s = (scale / torch.where(d == 0, 1.0, d)).round().clamp(-128, 127)
    step = (d * s).unsqueeze(3)
    codes = (small / torch.where(step == 0, 1.0, step)).round().clamp(-32, 31) + 32
    codes = torch.where(step == 0, 32.0, codes).to(torch.uint8).reshape(*codes.shape[:2], 2, 4, 32)
    a, b, c, e = codes.unbind(3)  # of each 128 weights the first, second, third and fourth 32
    low = torch.cat([a & 15 | (c & 15) << 4, b & 15 | (e & 15) << 4], 3).flatten(2)
    high = (a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6).flatten(2)
    return {"bytes": _row(low, high, s.to(torch.int8).view(torch.uint8), _bytes(d))}


def unpack_q6_k(parts: dict[str, Tensor]) -> Tensor:
    """The way back, to float32 (rows, columns)."""
    low, high, s, d = _split(parts["bytes"], 128, 64, 16, 2)
    low, high = low.unflatten(2, (2, 1, 64)), high.unflatten(2, (2, 1, 32))
    low = torch.cat([low & 15, low >> 4], 3).unflatten(4, (2, 32)).flatten(3, 4)
    high = torch.cat([high & 3, high >> 2 & 3, high >> 4 & 3, high >> 6], 3)
    codes = (low | high << 4).float() - 32
    steps = _float(d) * s.view(torch.int8).float()
    return (steps.unsqueeze(3) * codes.reshape(*steps.shape, 16)).flatten(1)


# --- the search for a scale


def _weights(small: Tensor, importance: Tensor | None) -> Tensor:
    """How much each weight's error counts, in the shape of the small blocks."""
    if importance is None:
        return small.square().mean(3, keepdim=True).sqrt() + small.abs()
    return (
        importance.reshape(1, *small.shape[1:]) * (small.square().mean(3, keepdim=True) + small.square()).sqrt() + 1e-30
    )


def _lines(small: Tensor, weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(scale, least), each (rows, superblocks, blocks): x is near scale * code - least, neither below 0."""
    least = small.amin(3, keepdim=True).clamp_max(0)
    reach = small.amax(3, keepdim=True) - least
    best_scale, best_least = reach / most, -least
    best = _loss(small, weights, best_scale, best_least, most)
    total, sum_x = weights.sum(3, keepdim=True), (weights * small).sum(3, keepdim=True)
    for turn in range(TRIES + 1):
        codes = ((small - least) * ((most - 1 + 0.1 * turn) / _not_0(reach))).round().clamp(0, most)
        sum_q = (weights * codes).sum(3, keepdim=True)
        sum_qq, sum_qx = ((weights * codes * part).sum(3, keepdim=True) for part in (codes, small))
        spread = total * sum_qq - sum_q**2
        scale = (total * sum_qx - sum_q * sum_x) / _not_0(spread)
        offset = (sum_qq * sum_x - sum_q * sum_qx) / _not_0(spread)
        through_0 = (offset > 0) | (spread <= 0)
        scale = torch.where(through_0, sum_qx / _not_0(sum_qq), scale).clamp_min(0)
        offset = torch.where(through_0, 0.0, -offset)
        loss = _loss(small, weights, scale, offset, most)
        better = loss < best
        best = torch.where(better, loss, best)
        best_scale = torch.where(better, scale, best_scale)
        best_least = torch.where(better, offset, best_least)
    return best_scale.squeeze(3), best_least.squeeze(3)


def _loss(small: Tensor, weights: Tensor, scale: Tensor, least: Tensor, most: int) -> Tensor:
    codes = ((small + least) / _not_0(scale)).round().clamp(0, most)
    return (weights * (scale * codes - least - small).square()).sum(3, keepdim=True)


def _slopes(small: Tensor, weights: Tensor) -> Tensor:
    """The scale (rows, superblocks, blocks), of either sign, for which scale * code is nearest to x; codes -32 ... 31."""
    outermost = small.gather(3, small.abs().argmax(3, keepdim=True))
    best_scale, best = torch.zeros_like(outermost), torch.full_like(outermost, -1.0)
    for turn in range(-TRIES // 2, TRIES // 2 + 1):
        codes = (small * (-(32 + 0.1 * turn) / _not_0(outermost))).round().clamp(-32, 31)
        sum_qx, sum_qq = ((weights * codes * part).sum(3, keepdim=True) for part in (small, codes))
        gain = sum_qx.square() / _not_0(sum_qq)  # what the best scale for these codes takes off the error
        better = gain > best
        best = torch.where(better, gain, best)
        best_scale = torch.where(better, sum_qx / _not_0(sum_qq), best_scale)
    return best_scale.squeeze(3)


def _not_0(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


# --- the scales as codes


def _half(scale: Tensor) -> Tensor:
    """As float16 holds it."""
    return scale.half().float()


def _codes(scale: Tensor, d: Tensor, most: int) -> Tensor:
    return (scale / _not_0(d)).round().clamp(0, most)


def _six_bits(s: Tensor, m: Tensor) -> Tensor:
    """Eight 6-bit s and eight m in 12 bytes: four bytes with the first four s and the top bits of the others, four with m so,
    and four with the low halves of the other s and m."""
    s, m = s.to(torch.uint8), m.to(torch.uint8)
    (s0, s1), (m0, m1) = s.chunk(2, 2), m.chunk(2, 2)
    return torch.cat([s0 | (s1 >> 4) << 6, m0 | (m1 >> 4) << 6, s1 & 15 | (m1 & 15) << 4], 2)


def _from_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    s, m, both = packed.chunk(3, 2)
    s = torch.cat([s & 63, both & 15 | (s >> 6) << 4], 2)
    m = torch.cat([m & 63, both >> 4 | (m >> 6) << 4], 2)
    return s.float(), m.float()
