"""Straight through: rounding passes the gradient as if it were not there, and the grid follows the values.

Bengio et al., "Estimating or propagating gradients through stochastic neurons" (2013); Jacob et al. (2018), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.observers import MinMax, MovingAverageMinMax
from qlab.quantizers import AffineQuantizer


class FollowingQuantizer(AffineQuantizer):
    """A quantizer whose grid follows the values in training: of weights the largest, of activations an average.

    It begins with the grid of a calibrated ``quantizer``; ``frozen``, the grid stands still.
    """

    frozen = False
    observer: MinMax

    def __init__(self, quantizer: AffineQuantizer, *, of_weight: bool = False) -> None:
        super().__init__(quantizer.spec, fusible=quantizer.fusible)
        self.fused, self.mode, self.of_weight = quantizer.fused, quantizer.mode, of_weight
        self.qparams = qparams = quantizer.qparams
        if not of_weight:
            self.observer = MovingAverageMinMax(self.spec)
            ends = torch.tensor([qparams.qmin, qparams.qmax], device=qparams.scale.device)
            self.observer((ends - qparams.zero_point) * qparams.scale)
        self.train(quantizer.training)

    def rounded(self, x: Tensor) -> Tensor:
        if self.training and not self.frozen:
            if self.of_weight:
                self.observer = MinMax(self.spec)
            self.observer(x.detach())
            self.qparams = self.observer.qparams()
        return super().rounded(x)

    def get_extra_state(self) -> Tensor:
        """The averages, so that a broken training goes on as if it had not been."""
        return torch.empty(0) if self.of_weight else torch.stack([self.observer.lo, self.observer.hi])

    def set_extra_state(self, state: Tensor) -> None:
        if not self.of_weight:
            self.observer.lo, self.observer.hi = state.clone()
