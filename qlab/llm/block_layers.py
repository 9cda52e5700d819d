"""Linear layers whose weights are kept in a block format: MXFP4, NVFP4, NF4, Q4_K and the others of :mod:`qlab.blocks`.

They compute in the type of their input, with weights that are turned back into floats at each call: exact, and for that reason
slow. (:class:`qlab.llm.WeightOnlyLinear` has torch's kernels.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTER = "q8_0"  # of the embedding and the last layer, through which every token goes
SMALLER = {"q4_k": "q5_0", "q6_k": "q8_0"}


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


def fitting(name: str, columns: int) -> str:
    """The format that rows of so many columns get: a smaller block where they are no multiple of 256, as in llama.cpp's files.

    >>> fitting("q4_k", 2048), fitting("q4_k", 576)
    ('q4_k', 'q5_0')
    """
    return SMALLER[name] if name in SMALLER and columns % blocks.format_of(name).size else name


def in_blocks(
    model: PreTrainedModel,
    which: Callable[[nn.Module], Iterable[tuple[str, nn.Linear]]],
    name: str,
    importance: Mapping[str, Tensor] | None = None,
) -> None:
    """Put a :class:`BlockLinear` in the place of each layer that ``which(model)`` names, and q8_0 into embedding and last layer.

    Raises ValueError, which names the layer, where the blocks don't fit its rows.
    """
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for place, linear in list(which(model)):
        form = fitting(name, linear.in_features)
        weighs = importance is not None and blocks.format_of(form).weighs
        _put(model, place, _made(place, linear, form, importance[place] if weighs else None))
    head = _made("lm_head", model.lm_head, OUTER)
    rows = head
    if not tied:
        embedding = model.model.embed_tokens
        as_linear = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False, device="meta")
        as_linear.weight = embedding.weight
        rows = _made("model.embed_tokens", as_linear, OUTER)
    dtype = model.model.embed_tokens.weight.dtype
    model.lm_head, model.model.embed_tokens = head, BlockEmbedding(rows, dtype)


def _made(place: str, linear: nn.Linear, name: str, importance: Tensor | None = None) -> BlockLinear:
    try:
        return BlockLinear.from_linear(linear, name, importance)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _put(model: nn.Module, place: str, layer: nn.Module) -> None:
    path, _, last = place.rpartition(".")
    setattr(model.get_submodule(path), last, layer)
