"""Layers of a language model with integer weights: weight-only in 8 or 4 bits, and W8A8.

When a model writes one token at a time, each weight is read for two operations: memory is what takes the time. So the
weights alone are stored as integers (**weight-only**) and turned back while they are read. **W8A8** rounds the
inputs too, each token with a scale of its own (**dynamic**, per token), and multiplies integers: that pays when many
tokens come at once. LLM.int8() (Dettmers et al. 2022) multiplies the few channels with outliers in float, by float weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams, dequantize, quantize, round_rows
from qlab.granularity import Granularity, PerChannel, PerGroup
from qlab.int8 import engines
from qlab.observers import grid_of
from qlab.qconfig import QConfig, QuantSpec

BFLOAT16 = torch.bfloat16
ROWS = 1024
KERNEL_GROUPS = (32, 64, 128, 256)


def weight_qparams(weight: Tensor, bits: int = 8, granularity: Granularity = PerChannel(0)) -> QParams:
    """The grids of a weight matrix (N, K), from the smallest and the largest value of each row or group.

    With one scale a row the grid is that of any other network's weights (:class:`QConfig`): symmetric. A group has few
    values, seldom as many on either side of 0, so its grid is asymmetric and has a zero point. Scales are rounded to
    bfloat16, in which they are stored.

    >>> weight_qparams(torch.ones(4, 128), bits=4, granularity=PerGroup(64)).scale.shape
    torch.Size([4, 2])

    Raises ValueError for another granularity than PerChannel(0) and PerGroup, for groups that do not divide K, and for
    weights that are not finite.
    """
    granularity = granularity.of(weight.shape)
    if isinstance(granularity, PerGroup):
        spec = QuantSpec(bits, granularity=granularity)
    elif granularity == PerChannel(0):
        spec = replace(QConfig.weight, bits=bits)
    else:
        raise ValueError(f"{granularity}: expected PerChannel(0), one scale a row, or PerGroup(size)")
    qp = grid_of(weight, spec)
    return replace(qp, scale=qp.scale.to(BFLOAT16).float())


def quantize_weight(weight: Tensor, bits: int = 8, granularity: Granularity = PerChannel(0)) -> tuple[Tensor, QParams]:
    """Each weight of a matrix (N, K) to its nearest code; some rows at a time, to spare memory.

    Returns (codes, (N, K), int8 with one scale a row and uint8 in groups; their grids, see :func:`weight_qparams`,
    which says what is refused). :func:`qlab.dequantize` turns the two back into weights.

    >>> codes, grids = quantize_weight(torch.tensor([[-1.0, 0.5], [2.0, 0.1]]))
    >>> codes
    tensor([[-127,   64],
            [ 127,    6]], dtype=torch.int8)
    >>> grids.granularity, grids.scale
    (PerChannel(axis=0), tensor([0.0079, 0.0157]))
    """
    parts = []
    for rows in weight.split(ROWS):
        qp = weight_qparams(rows, bits, granularity)
        parts.append((quantize(rows, qp), qp.scale, qp.zero_point))
    codes, scale, zero_point = (torch.cat(part) for part in zip(*parts))
    return codes, replace(qp, scale=scale, zero_point=zero_point)


def round_weight(weight: Tensor, bits: int, granularity: Granularity = PerChannel(0)) -> Tensor:
    """The weight on its grid, in float32: what quantizing it to any number of bits costs, without the storage."""
    return dequantize(*quantize_weight(weight, bits, granularity))


class WeightOnlyLinear(nn.Module):
    """A linear layer that stores int8 codes with one scale a row, or 4-bit codes, two a byte, with one a group.

    It computes in the type of its input, (..., K) -> (..., N). :meth:`use_kernel` makes it multiply with torch's own
    kernels for bfloat16 inputs; without, it turns the weights into floats first.

    >>> WeightOnlyLinear.from_weight(torch.randn(16, 64), bits=4, granularity=PerGroup(32))
    WeightOnlyLinear(64 -> 16, 4 bits, groups of 32)

    Raises ValueError for codes and grids that have no storage here.
    """

    def __init__(self, codes: Tensor, qp: QParams) -> None:
        super().__init__()
        by_row = (qp.bits, qp.signed, qp.granularity.of(codes.shape)) == (8, True, PerChannel(0))
        if not by_row and (qp.bits, qp.signed, type(qp.granularity)) != (4, False, PerGroup):
            raise ValueError(
                f"{qp.bits} bits, {'signed' if qp.signed else 'unsigned'}, {qp.granularity}: no storage for these codes. "
                "Expected 8 bits, signed, with PerChannel(0), or 4 bits, unsigned, with PerGroup(size)"
            )
        self.out_features, self.in_features = codes.shape
        self.bits, self.granularity, self.on_kernel = qp.bits, qp.granularity, False
        self.register_buffer("codes", codes if qp.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4)
        self.register_buffer("scale", qp.scale.to(BFLOAT16))
        self.register_buffer("zero_point", None if qp.bits == 8 else qp.zero_point.to(torch.uint8))

    @classmethod
    def from_weight(cls, weight: Tensor, bits: int = 8, granularity: Granularity = PerChannel(0)) -> WeightOnlyLinear:
        """The layer of a weight (N, K), each rounded to its nearest code (:func:`quantize_weight`)."""
        return cls(*quantize_weight(weight, bits, granularity))

    def integers(self) -> Tensor:
        """The codes, one an element."""
        if self.bits == 8:
            return self.codes
        return torch.stack([self.codes & 15, self.codes >> 4], -1).flatten(1)

    def weight_rows(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Some rows of the weight in float32, or all."""
        if self.bits == 8:
            return self.codes[rows].float().mul_(self.scale[rows].float().unsqueeze(-1))
        codes = self.integers()[rows].reshape(-1, self.scale.shape[1], self.granularity.size).float()
        codes.sub_(self.zero_point[rows].float().unsqueeze(-1)).mul_(self.scale[rows].float().unsqueeze(-1))
        return codes.flatten(1)

    def use_kernel(self) -> WeightOnlyLinear:
        """From now on: torch's kernels, for bfloat16 inputs, where they work and know the size of the groups.

        4-bit codes are put in the kernel's order for good.
        """
        fits = self.bits == 8 or (self.granularity.size in KERNEL_GROUPS and self.out_features % 16 == 0)
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
            y = engines.int4_weight_product(tokens, self.codes, self.granularity.size, self.scale)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        groups = "" if self.bits == 8 else f", groups of {self.granularity.size}"
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

    ``threshold``: channels in which any token exceeds it are multiplied in float, inputs and weights, as in LLM.int8()
    (None: no such channels). Which these are shows only when inputs come, so the layer then keeps the float ``weight``
    (N, K) beside the codes. ``in_float`` says how many channels these were in the last batch.
    It computes the integers' sums in float, which holds them exactly up to about a thousand inputs;
    :meth:`use_kernel` makes it multiply with the processor's int8 kernels.

    >>> DynamicLinear.from_weight(torch.randn(16, 64), threshold=6.0)
    DynamicLinear(64 -> 16, W8A8, channels above 6 in float)

    Raises ValueError for a threshold without the float weight of that shape.
    """

    def __init__(
        self, codes: Tensor, qp: QParams, threshold: float | None = None, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        if threshold is not None and (weight is None or weight.shape != codes.shape):
            found = "none" if weight is None else f"one of {tuple(weight.shape)}"
            raise ValueError(
                f"threshold={threshold:g}, and of float weights {found}: expected those of the codes, {tuple(codes.shape)}, "
                "since channels beyond the threshold are multiplied by them"
            )
        self.out_features, self.in_features = codes.shape
        self.threshold, self.kernel, self.in_float, self.packed_bytes = threshold, None, 0, 0
        self.register_buffer("codes", codes)
        self.register_buffer("scale", qp.scale)
        self.register_buffer("weight", None if threshold is None else weight.detach().clone())

    @classmethod
    def from_weight(cls, weight: Tensor, threshold: float | None = None) -> DynamicLinear:
        """The layer of a weight (N, K), each rounded to its nearest code (:func:`quantize_weight`)."""
        return cls(*quantize_weight(weight), threshold, weight)

    def use_kernel(self) -> DynamicLinear:
        """From now on: integer sums, by the processor's int8 kernels, which keep the codes in an order of their own."""
        self.kernel = engines.dynamic_linear(self.codes, self.scale)
        self.packed_bytes, self.codes = self.codes.numel(), None
        if self.weight is not None:
            self.weight = self.weight.to(BFLOAT16)
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
                y = y + F.linear(tokens[:, large], self.weight[:, large].float())
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def product(self, tokens: Tensor) -> Tensor:
        """Inputs (tokens, K) rounded to int8, times the codes, in float32."""
        if self.kernel is not None:
            return self.kernel(tokens)
        codes, steps = round_rows(tokens, 127)
        return F.linear(codes, self.codes.float()) * steps * self.scale

    def extra_repr(self) -> str:
        floats = "" if self.threshold is None else f", channels above {self.threshold:g} in float"
        return f"{self.in_features} -> {self.out_features}, W8A8{floats}"
