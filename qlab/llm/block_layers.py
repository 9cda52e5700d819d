"""Linear layers whose weights are kept in a block format: MXFP4, NVFP4, NF4, Q4_K and the others of :mod:`qlab.blocks`.

They compute in the type of their input, with weights that are turned back into floats at each call: exact, and for that reason
slow. (:class:`qlab.llm.WeightOnlyLinear` has torch's kernels.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab import blocks


class BlockLinear(nn.Module):
    """A linear layer (..., K) -> (..., N) with its weight (N, K) in a block format; its bias stays in float.

    >>> BlockLinear.from_linear(nn.Linear(64, 16, bias=False), "nvfp4")
    BlockLinear(64 -> 16, nvfp4, 4.5 bits)
    """

    def __init__(self, packed: blocks.Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.format = packed.format
        self.out_features, self.in_features = packed.shape
        for name, part in packed.parts.items():
            self.register_buffer(f"packed_{name}", part)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str, importance: Tensor | None = None) -> BlockLinear:
        """The layer with its weight in blocks. Raises ValueError where they don't fit (:func:`qlab.blocks.quantize`)."""
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(blocks.quantize(linear.weight, name, importance), bias)

    @property
    def packed(self) -> blocks.Packed:
        """The weight as it is kept."""
        parts = {
            name.removeprefix("packed_"): part for name, part in self.named_buffers() if name.startswith("packed_")
        }
        return blocks.Packed(self.format, (self.out_features, self.in_features), parts)

    def weight_rows(self) -> Tensor:
        """The weight in float32."""
        return blocks.dequantize(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight_rows().to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.format}, {blocks.bits_per_weight(self.format):g} bits"


class BlockEmbedding(nn.Module):
    """An embedding that looks its vectors up among the rows of a :class:`BlockLinear`, with which it shares them."""

    def __init__(self, rows: BlockLinear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rows, self.dtype = rows, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        chosen, place = tokens.unique(return_inverse=True)
        packed = self.rows.packed
        parts = {name: part[chosen] if part.ndim == 2 else part for name, part in packed.parts.items()}
        some = blocks.Packed(packed.format, (len(chosen), packed.shape[1]), parts)
        return blocks.dequantize(some).to(self.dtype)[place]


def in_blocks(
    which: Callable[[nn.Linear], str], name: str, linear: nn.Linear, importance: Tensor | None = None
) -> BlockLinear:
    """:meth:`BlockLinear.from_linear`, with an error that names the layer."""
    try:
        return BlockLinear.from_linear(linear, which(linear), importance)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
