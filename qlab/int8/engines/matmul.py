"""Matrix products of language models: integer weights alone, or inputs that are rounded token by token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from qlab.affine import round_rows
from qlab.int8.engines.choice import availability
from qlab.int8.engines.packing import direct


def int8_weight_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x @ (codes * scale).T``: bfloat16 inputs (tokens, K), int8 codes (N, K), a bfloat16 scale for each row."""
    return torch.ops.aten._weight_int8pack_mm(x, codes, scale)


def pack_int4(codes: Tensor) -> Tensor:
    """Codes from 0 to 15, (N, K) -> two a byte, in the order that :func:`int4_weight_product` reads them."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)


def int4_weight_product(x: Tensor, packed: Tensor, group_size: int, scales_and_offsets: Tensor) -> Tensor:
    """``x @ w.T`` with ``w = (code - 8) * scale + offset`` in groups: bfloat16 inputs (tokens, K).

    ``scales_and_offsets``: bfloat16, (groups a row, N, 2).
    """
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, scales_and_offsets)


@cache
def has_weight_products() -> bool:
    """Whether the two products above work here, tried on a small layer.

    >>> has_weight_products() in (True, False)
    True
    """
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 64), generator=draw)
    x = torch.randn(2, 64, generator=draw).to(torch.bfloat16)
    scale = torch.full((32,), 0.5, dtype=torch.bfloat16)
    pairs = torch.stack([scale, 2 * scale], 1)[None].contiguous()
    try:
        eight = int8_weight_product(x, codes.to(torch.int8), scale)
        four = int4_weight_product(x, pack_int4(codes), 64, pairs)
    except (RuntimeError, AttributeError):  # no such operator in this torch, or no such kernel for this processor
        return False
    expected = x.float() @ codes.float().T * 0.5, x.float() @ ((codes.float() - 8) * 0.5 + 1).T
    return all(torch.allclose(y.float(), z, rtol=0.02, atol=0.5) for y, z in zip((eight, four), expected))


def dynamic_linear(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of float inputs (tokens, K) that rounds each token to 8 bits and multiplies integers: W8A8.

    ``weight``: int8 codes (N, K) from -127 to 127; ``scale``: (N,). The codes of a token are symmetric, with a scale
    of its own (Yao et al., "ZeroQuant", 2022); 7 bits where pairs of products would saturate. The result is float32.
    """
    scale = scale.to(torch.float32).contiguous()
    if not availability("onednn_plain").usable:  # int32 sums by torch itself: exact, and slow on most processors
        transposed = weight.t()

        def kernel(x: Tensor) -> Tensor:
            codes, step = round_rows(x, 127)
            return torch._int_mm(codes.to(torch.int8), transposed).to(torch.float32).mul_(step).mul_(scale)

        return kernel
    middle = 64 if availability("onednn_plain").saturates else 128
    packed = torch.ops.onednn.qlinear_prepack(
        weight, None
    )  # once: a copy for each length of prompt takes too much memory
    op, zeros = direct(torch.ops.onednn.qlinear_pointwise.default), torch.zeros(len(scale), dtype=torch.int32)

    def kernel(x: Tensor) -> Tensor:
        codes, step = round_rows(x, middle - 1)
        q = codes.add_(middle).to(torch.uint8)
        return op(q, 1.0, middle, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "").mul_(step)

    return kernel
