"""Blocks: codes of a few bits that share a scale.

One idea in a dozen file formats: cut each row of a tensor into blocks, give each block a scale, and keep the numbers as codes of
a few bits relative to it. What differs is how long a block is, what the scale is kept in and which numbers the codes stand for.

- :mod:`qlab.blocks.microscaling`: 4-, 6- and 8-bit floats under a power of two (MX) or under an 8-bit float (NVFP4).
- :mod:`qlab.blocks.normal`: NF4, whose 16 values are quantiles of the normal distribution.
- :mod:`qlab.blocks.ggml`: llama.cpp's Q4_0, Q4_1, Q5_0 and Q8_0.
- :mod:`qlab.blocks.superblocks`: llama.cpp's Q4_K and Q6_K, whose scales are codes themselves.

>>> import torch
>>> from qlab import blocks
>>> x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
>>> packed = blocks.quantize(x, "nvfp4")
>>> packed
nvfp4 (4, 64): 148 bytes, 4.625 bits a weight
>>> bool((blocks.dequantize(packed) - x).abs().max() < 0.5)
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlab.blocks import ggml, microscaling, normal, superblocks

__all__ = ["FORMATS", "Format", "Packed", "bits_per_weight", "dequantize", "format_of", "quantize"]


@dataclass(frozen=True)
class Format:
    """A block format.

    - ``size``: how many numbers share a scale. ``bits``: of one weight, its share of the block's scales included.
    - ``pack``: float32 (rows, columns), columns a multiple of ``size`` -> the parts of a :class:`Packed`.
    - ``unpack``: the way back, to float32 (rows, columns).
    - ``weighs``: ``pack`` takes ``importance``, (columns,), too.
    """

    name: str
    size: int
    bits: float
    pack: Callable[..., dict[str, Tensor]] = field(repr=False)
    unpack: Callable[[dict[str, Tensor]], Tensor] = field(repr=False)
    weighs: bool = False


def _microscaling(name: str, element: str, bits: int) -> Format:
    return Format(
        name, microscaling.SIZE, bits + 8 / microscaling.SIZE,
        lambda x: microscaling.pack(x, element), lambda parts: microscaling.unpack(parts, element),
    )  # fmt: skip


FORMATS = {
    each.name: each
    for each in (
        _microscaling("mxfp8", "e4m3", 8),
        _microscaling("mxfp8_e5m2", "e5m2", 8),
        _microscaling("mxfp6", "e2m3", 6),
        _microscaling("mxfp6_e3m2", "e3m2", 6),
        _microscaling("mxfp4", "e2m1", 4),
        Format("nvfp4", 16, 4 + 8 / 16, microscaling.pack_nvfp4, microscaling.unpack_nvfp4),
        Format(
            "nf4", normal.SIZE, 4 + 8 / normal.SIZE + 32 / (normal.SIZE * normal.SCALES), normal.pack, normal.unpack
        ),
        Format("q4_0", 32, 4.5, ggml.pack_q4_0, ggml.unpack_q4_0),
        Format("q4_1", 32, 5.0, ggml.pack_q4_1, ggml.unpack_q4_1),
        Format("q5_0", 32, 5.5, ggml.pack_q5_0, ggml.unpack_q5_0),
        Format("q8_0", 32, 8.5, ggml.pack_q8_0, ggml.unpack_q8_0),
        Format("q4_k", 256, 4.5, superblocks.pack_q4_k, superblocks.unpack_q4_k, weighs=True),
        Format("q6_k", 256, 6.5625, superblocks.pack_q6_k, superblocks.unpack_q6_k, weighs=True),
    )
}


@dataclass(frozen=True, repr=False)
class Packed:
    """A tensor in a block format: its ``shape``, and the ``parts`` that are kept of it (codes, scales), rows first."""

    format: str
    shape: tuple[int, ...]
    parts: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def __repr__(self) -> str:
        count = max(1, torch.Size(self.shape).numel())
        return f"{self.format} {self.shape}: {self.nbytes:,} bytes, {8 * self.nbytes / count:.4g} bits a weight"


def quantize(x: Tensor, name: str, importance: Tensor | None = None) -> Packed:
    """A tensor in blocks along its last dimension.

    Args:
        x: floats of any shape; its last dimension is a multiple of the block's size.
        name: one of :data:`FORMATS`, such as "nvfp4" or "q4_k".
        importance: (columns,), how much an error in each column counts, as llama.cpp's "imatrix" says it (the mean square of
            what the column is multiplied with). Q4_K and Q6_K look for the scales with it.

    Returns:
        The codes and scales, packed. Each row of ``parts`` is a row of x.

    Raises:
        ValueError: The format is unknown, x is no float tensor or not finite, its columns don't make whole blocks, or the
            format has no use for an importance.

    >>> quantize(torch.ones(2, 32), "q8_0").nbytes
    68
    """
    form = format_of(name)
    if not x.is_floating_point():
        raise ValueError(f"a {x.dtype} tensor has codes already: blocks.quantize takes floats")
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % form.size:
        raise ValueError(f"a tensor of shape {tuple(x.shape)}: {name} needs rows of a multiple of {form.size} numbers")
    if not x.isfinite().all():
        raise ValueError(
            f"{int((~x.isfinite()).sum())} of {x.numel():,} values are NaN or infinite: a block has no code for them"
        )
    if importance is not None and not form.weighs:
        able = ", ".join(each.name for each in FORMATS.values() if each.weighs)
        raise ValueError(f"{name} looks for no scale, so an importance changes nothing: {able} take one")
    if importance is not None and (importance.shape != x.shape[-1:] or not (importance >= 0).all()):
        raise ValueError(
            f"an importance of shape {tuple(importance.shape)}: expected {tuple(x.shape[-1:])}, none below 0"
        )
    rows = x.detach().float().reshape(-1, x.shape[-1])
    options = {} if importance is None else {"importance": importance.detach().float()}
    return Packed(name, tuple(x.shape), form.pack(rows, **options))


def dequantize(packed: Packed) -> Tensor:
    """The float32 tensor that the codes and scales stand for.

    >>> dequantize(quantize(torch.tensor([[1.0, -0.25] * 16]), "mxfp4"))[0, :2]
    tensor([ 1.0000, -0.2500])
    """
    return format_of(packed.format).unpack(packed.parts).reshape(packed.shape)


def bits_per_weight(name: str) -> float:
    """Bits of one weight, its share of the scales included. (NVFP4 has 32 bits more a tensor.)

    >>> bits_per_weight("q4_k"), bits_per_weight("nvfp4"), bits_per_weight("mxfp4")
    (4.5, 4.5, 4.25)
    """
    return format_of(name).bits


def format_of(name: str) -> Format:
    """The format of that name. Raises ValueError when there is none."""
    if name not in FORMATS:
        raise ValueError(f"block format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
