"""Layers of a language model with integer weights: weight-only in 8 or 4 bits, and W8A8.

When a model writes one token at a time, each weight is read for two operations: memory is what takes the time. So the
weights alone are stored as integers (**weight-only**) and turned back while they are read. **W8A8** rounds the
inputs too, each token with a scale of its own (**dynamic**, per token), and multiplies integers: that pays when many
tokens come at once. LLM.int8() (Dettmers et al. 2022) leaves the few channels with outliers in float.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams, choose_qparams, dequantize, quantize
from qlab.granularity import PerChannel, PerGroup
from qlab.int8 import engines

BFLOAT16 = torch.bfloat16
ROWS = 1024
KERNEL_GROUPS = (32, 64, 128, 256)


def weight_qparams(weight: Tensor, bits: int = 8, group_size: int | None = None) -> QParams:
    """The grids of a weight matrix (N, K): symmetric, one a row; with ``group_size`` asymmetric, one a group.

    Scales are rounded to bfloat16, in which they are stored.

    >>> weight_qparams(torch.ones(4, 128), bits=4, group_size=64).scale.shape
    torch.Size([4, 2])
    """
    if group_size is None:
        top = weight.abs().amax(1)
        qp = choose_qparams(-top, top, bits, True, True, True, PerChannel(0))
    else:
        groups = PerGroup(group_size).blocks(weight).reshape(len(weight), -1, group_size)
        qp = choose_qparams(groups.amin(-1), groups.amax(-1), bits, granularity=PerGroup(group_size))
    return replace(qp, scale=qp.scale.to(BFLOAT16).float())


def quantize_weight(weight: Tensor, bits: int = 8, group_size: int | None = None) -> tuple[Tensor, QParams]:
    """(codes, grids) of a weight matrix, each weight to its nearest code; some rows at a time, to spare memory."""
    parts = []
    for rows in weight.split(ROWS):
        qp = weight_qparams(rows, bits, group_size)
        parts.append((quantize(rows, qp), qp.scale, qp.zero_point))
    codes, scale, zero_point = (torch.cat(part) for part in zip(*parts))
    return codes, replace(qp, scale=scale, zero_point=zero_point)


def round_weight(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """The weight on its grid, in float: what quantizing it to any number of bits costs, without the storage."""
    return dequantize(*quantize_weight(weight, bits, group_size))


class WeightOnlyLinear(nn.Module):
    """A linear layer that stores int8 codes (one scale a row), or 4-bit codes (one scale a group), two a byte.

    It computes in the type of its input. :meth:`use_kernel` makes it multiply with torch's own kernels for bfloat16
    inputs; without, it turns the weights into floats first.
    """

    def __init__(self, codes: Tensor, qp: QParams) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.bits, self.group_size, self.on_kernel = qp.bits, getattr(qp.granularity, "size", None), False
        self.register_buffer("codes", codes if qp.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4)
        self.register_buffer("scale", qp.scale.to(BFLOAT16))
        self.register_buffer("zero_point", None if qp.bits == 8 else qp.zero_point.to(torch.uint8))

    @classmethod
    def from_weight(cls, weight: Tensor, bits: int = 8, group_size: int | None = None) -> WeightOnlyLinear:
        """Round to nearest. Raises ValueError for bits that have no storage here."""
        if (bits, group_size is None) not in ((8, True), (4, False)):
            raise ValueError(f"bits={bits}, group_size={group_size}: expected 8 bits without groups, or 4 with groups")
        return cls(*quantize_weight(weight, bits, group_size))

    def integers(self) -> Tensor:
        """The codes, one an element."""
        if self.bits == 8:
            return self.codes
        return torch.stack([self.codes & 15, self.codes >> 4], -1).flatten(1)

    def weight_rows(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Some rows of the weight in float32, or all."""
        if self.bits == 8:
            return self.codes[rows].float().mul_(self.scale[rows].float().unsqueeze(-1))
        codes = self.integers()[rows].reshape(-1, self.scale.shape[1], self.group_size).float()
        codes.sub_(self.zero_point[rows].float().unsqueeze(-1)).mul_(self.scale[rows].float().unsqueeze(-1))
        return codes.flatten(1)

    def use_kernel(self) -> WeightOnlyLinear:
        """From now on: torch's kernels, for bfloat16 inputs, where they work and know the size of the groups.

        4-bit codes are put in the kernel's order for good.
        """
        fits = self.bits == 8 or (self.group_size in KERNEL_GROUPS and self.out_features % 16 == 0)
        self.on_kernel = fits and engines.has_weight_products()
        if self.on_kernel and self.bits == 4:
            offset = (8 - self.zero_point.float()) * self.scale.float()
            pairs = torch.stack([self.scale.float(), offset], -1).transpose(0, 1)
            self.codes, self.scale = engines.pack_int4(self.integers()), pairs.to(BFLOAT16).contiguous()
            self.zero_point = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.on_kernel:
            return F.linear(x, self.weight_rows().to(x.dtype))
        tokens = x.reshape(-1, self.in_features)
        if self.bits == 8:
            y = engines.int8_weight_product(tokens, self.codes, self.scale)
        else:
            y = engines.int4_weight_product(tokens, self.codes, self.group_size, self.scale)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        groups = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.in_features} -> {self.out_features}, {self.bits} bits{groups}"


class WeightOnlyEmbedding(nn.Module):
    """An embedding that looks its vectors up among the rows of a :class:`WeightOnlyLinear`.

    In a model whose embedding and last layer share their weight, the two share the codes.
    """

    def __init__(self, rows: WeightOnlyLinear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rows, self.dtype = rows, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows.weight_rows(tokens.flatten()).to(self.dtype).unflatten(0, tokens.shape)


class DynamicLinear(nn.Module):
    """A W8A8 linear layer: int8 weights, one scale a row; inputs rounded to int8, one scale a token.

    ``threshold``: channels in which any token exceeds it stay in float, as in LLM.int8() (None: no such channels);
    their weights are read from the codes.
    It computes the integers' sums in float, which holds them exactly up to about a thousand inputs;
    :meth:`use_kernel` makes it multiply with the processor's int8 kernels.
    """

    def __init__(self, codes: Tensor, qp: QParams, threshold: float | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.threshold, self.kernel, self.in_float, self.packed_bytes = threshold, None, 0, 0
        self.register_buffer("codes", codes)
        self.register_buffer("scale", qp.scale)

    @classmethod
    def from_weight(cls, weight: Tensor, threshold: float | None = None) -> DynamicLinear:
        """Round to nearest."""
        return cls(*quantize_weight(weight), threshold)

    def use_kernel(self) -> DynamicLinear:
        """From now on: integer sums, by the processor's int8 kernels, which keep the codes in an order of their own."""
        self.kernel = engines.dynamic_linear(self.codes, self.scale)
        if self.threshold is None:
            self.packed_bytes, self.codes = self.codes.numel(), None
        return self

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, self.in_features).float()
        if self.threshold is None:
            y = self.product(tokens)
        else:
            large = tokens.abs().amax(0) > self.threshold
            self.in_float = int(large.sum())
            y = self.product(tokens.masked_fill(large, 0.0))
            if self.in_float:
                y = y + tokens[:, large] @ (self.codes[:, large] * self.scale[:, None]).T
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def product(self, tokens: Tensor) -> Tensor:
        """Inputs (tokens, K) rounded to int8, times the codes, in float32."""
        if self.kernel is not None:
            return self.kernel(tokens)
        step = tokens.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return F.linear((tokens / step).round(), self.codes.float()) * step * self.scale

    def extra_repr(self) -> str:
        floats = "" if self.threshold is None else f", channels above {self.threshold:g} in float"
        return f"{self.in_features} -> {self.out_features}, W8A8{floats}"
