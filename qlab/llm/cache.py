"""The cache of keys and values in a few bits.

Each token leaves a key and a value in every layer, and at a long context they outweigh the model. Keys have outlier channels and
want a scale a channel (over a group of tokens); values have none and want a scale a token. The newest tokens, which count most,
stay in float until they fill a group. Liu et al., "KIVI" (2024); Hooper et al., "KVQuant" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qlab.affine import choose_qparams, fake_quantize
from qlab.granularity import PerGroup

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class CacheBits:
    """How keys and values are kept.

    - ``keys``, ``values``: bits of a code; None leaves them in float.
    - ``keys_by``: "channel" (a scale for ``group`` tokens of a channel, KIVI) or "token" (a scale for a token's head).
    - ``group``: so many tokens share a scale of their channel.
    - ``window``: at least so many of the newest tokens stay in float.
    """

    keys: int | None = 4
    values: int | None = 4
    keys_by: str = "channel"
    group: int = 32
    window: int = 32

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            bits = getattr(self, name)
            if bits is not None and not 2 <= bits <= 8:
                raise ValueError(f"{name}={bits}: expected 2 to 8 bits, or None for float")
        if self.keys_by not in ("channel", "token"):
            raise ValueError(f"keys_by={self.keys_by!r}: expected 'channel' or 'token'")
        if self.group < 1 or self.window < 0:
            raise ValueError(f"group={self.group}, window={self.window}: expected at least 1 and 0 tokens")

    def bytes_a_token(self, layers: int, heads: int, size: int) -> float:
        """Bytes that one token leaves, scale and zero point in 16 bits each; float is bfloat16, the window not counted.

        ``heads`` are those of keys and values, ``size`` is that of a head.

        >>> CacheBits(None, None).bytes_a_token(layers=30, heads=3, size=64)
        23040.0
        >>> CacheBits(4, 4).bytes_a_token(layers=30, heads=3, size=64)
        6840.0
        """
        shared = self.group if self.keys_by == "channel" else size
        keys = 16 if self.keys is None else self.keys + 32 / shared
        values = 16 if self.values is None else self.values + 32 / size
        return layers * heads * size * (keys + values) / 8


def rounded(x: Tensor, bits: int, along: int, group: int) -> Tensor:
    """x on asymmetric grids, each for ``group`` neighbours along dimension ``along``."""
    moved = x.movedim(along, -1)
    lo, hi = (f(moved.unflatten(-1, (-1, group)), dim=-1) for f in (torch.amin, torch.amax))
    grid = choose_qparams(lo.flatten(0, -2), hi.flatten(0, -2), bits, granularity=PerGroup(group))
    return fake_quantize(moved.flatten(0, -2).float(), grid).reshape(moved.shape).movedim(-1, along).to(x.dtype)


def quantized_cache(bits: CacheBits) -> DynamicCache:
    """A cache for ``model(..., past_key_values=cache)`` that gives back keys and values as so many bits keep them.

    It computes what a packed cache would give, and stores floats: it shows what is lost, not what is saved
    (:meth:`CacheBits.bytes_a_token` says that). One cache for one text. A text that is read at once, as for a perplexity, is rounded
    as if its tokens had come one after the other, but for the window, which ends where the text does.

    >>> from qlab import llm
    >>> model, tokens = llm.tiny(), llm.windows("test", 1, length=64)
    >>> float = model(input_ids=tokens).logits
    >>> small = model(input_ids=tokens, past_key_values=quantized_cache(CacheBits(4, 4)), use_cache=True).logits
    >>> bool((small - float).abs().mean() < 0.3)
    True
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        """Keys and values of one decoder layer, (batch, heads, tokens, size); ``settled`` of the tokens are rounded."""

        settled = 0

        def update(self, key_states: Tensor, value_states: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
            keys, values = super().update(key_states, value_states, *arguments, **options)
            ready = (keys.shape[2] - bits.window) // bits.group * bits.group
            if ready > self.settled:
                part = slice(self.settled, ready)
                self.keys = _with(keys, part, bits.keys, 2 if bits.keys_by == "channel" else 3, bits.group)
                self.values = _with(values, part, bits.values, 3, bits.group)
                self.settled = ready
            return self.keys, self.values

    cache = DynamicCache()
    cache.layer_class_to_replicate = Layer
    return cache


def _with(x: Tensor, part: slice, bits: int | None, along: int, group: int) -> Tensor:
    """x with some of its tokens rounded; in dimension 3 a whole head shares a scale."""
    if bits is None:
        return x
    chosen = rounded(x[:, :, part], bits, along, group if along == 2 else x.shape[3])
    return torch.cat([x[:, :, : part.start], chosen, x[:, :, part.stop :]], 2)
