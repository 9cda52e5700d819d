"""Signal to quantization noise ratio: how much of a tensor is left when it was rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


def sqnr(signal: Tensor, noisy: Tensor) -> float:
    """Signal to quantization noise ratio in decibel: 10 * log10(sum(signal**2) / sum((noisy - signal)**2)).

    Each halving of the step adds 6 dB. Infinite without noise, minus infinite without signal.

    >>> import torch
    >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    20.0

    Raises ValueError when the shapes differ.
    """
    ratio = Ratio()
    ratio.add(signal, noisy)
    return ratio.decibel


@dataclass
class Ratio:
    """The energies of a signal and of its noise, added up over batches.

    >>> import torch
    >>> ratio = Ratio()
    >>> for signal in (torch.ones(10), 3 * torch.ones(10)):
    ...     ratio.add(signal, signal + 0.1)
    >>> round(ratio.decibel, 1)  # 100 to 0.2
    27.0
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, signal: Tensor, noisy: Tensor) -> None:
        """Take in a batch."""
        if signal.shape != noisy.shape:
            raise ValueError(
                f"a signal of shape {tuple(signal.shape)} and a noisy one of shape {tuple(noisy.shape)}: "
                "expected the same tensor twice, float and quantized"
            )
        self.signal += float(signal.detach().double().square().sum())
        self.noise += float((noisy.detach().double() - signal.detach().double()).square().sum())

    @property
    def decibel(self) -> float:
        """Signal by noise, in dB."""
        return decibel_of(self.noise / self.signal) if self.signal else -math.inf if self.noise else math.inf


def decibel_of(noise: float) -> float:
    """The SQNR of this much noise relative to the signal.

    >>> decibel_of(0.01)
    20.0
    """
    return -10 * math.log10(noise) if noise else math.inf
