"""Networks and layers that fail in ways which no accuracy shows at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import choose_qparams, quantize
from qlab.course.lesson05.plots import saturating_sums
from qlab.int8.modules import Int8Network


class OwnNorm(nn.Module):
    """A BatchNorm in somebody's own words, which no tool recognizes."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def with_own_norms(network: nn.Module) -> nn.Module:
    """The network, changed in place: each BatchNorm is an OwnNorm.

    >>> type(with_own_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))[1]).__name__
    'OwnNorm'
    """
    for parent in [module for module in network.modules() if not isinstance(module, OwnNorm)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, OwnNorm(child))
    return network


def steps_of(network: Int8Network) -> dict[str, int]:
    """How many steps an integer network has, how many compute in float, and how many round or go back to float."""
    ops = [layer.op for layer in network.layers]
    conversions = sum(op in ("quantize", "dequantize") for op in ops)
    return {"steps": len(ops), "in float": ops.count("float"), "into and out of codes": conversions}


def wrong_sums(network: Int8Network, x: Tensor) -> float:
    """The share of the first convolution's sums, in percent, that 16-bit sums of two products would get wrong."""
    first = next(layer for layer in network.layers if layer.op == "conv2d")
    pieces = F.unfold(x[:8], 3, padding=1).transpose(1, 2).flatten(0, 1)[::40]
    grid = choose_qparams(float(x.min()), float(x.max()))
    exact, saturated = saturating_sums(quantize(pieces, grid).int(), first.weight.flatten(1).int())
    return 100 * float((exact.sum(-1) != saturated).float().mean())


def shares_in_8_bits(n: int = 1024) -> tuple[float, float, float]:
    """(sum, sum in 8 bits, largest share) of a softmax over ``n`` similar scores."""
    shares = (0.2 * torch.randn(1, n, generator=torch.Generator().manual_seed(0))).softmax(1)
    grid = choose_qparams(0.0, 1.0, 8)
    rounded = (quantize(shares, grid).float() - grid.zero_point) * grid.scale
    return float(shares.sum()), float(rounded.sum()), float(shares.max())
