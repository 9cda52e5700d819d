"""Weights as networks have them, for several test files."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

weights = st.tuples(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 50.0]), st.booleans()).map(
    lambda drawn: made_weights(*drawn)
)


def made_weights(seed: int, size: float, heavy: bool) -> Tensor:
    """(4, 3, 3, 3) weights, normally spread or with rare large ones."""
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return size * (w**3 if heavy else w)


def squared_error(w: Tensor, values: Tensor) -> float:
    return float((w.double() - values.detach().double()).square().sum())
