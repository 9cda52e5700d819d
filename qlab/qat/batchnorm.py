"""BatchNorm in training with rounding: folded into the weights before they are rounded, as it will be in integers.

Jacob et al. (2018), section 3.2; near the end its statistics stand still (Krishnamoorthi 2018, section 3.2.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.granularity import PerChannel
from qlab.graph.layers import QuantConv2d
from qlab.graph.prepare import Prepared
from qlab.modes import in_eval_mode
from qlab.qat.lsq import LearnedQuantizer
from qlab.quantizers import Quantizer


class NormalizedConv2d(QuantConv2d):
    """Convolution and BatchNorm in training, rounding the weights as they will be when the two are one.

    In training the convolution takes ``Q(w * g) / g`` with the gain g = gamma / sqrt(running variance), so that what
    BatchNorm sees are the values of the unfolded network, but the rounding is that of the folded one. In eval mode the
    fold is carried out. Frozen, BatchNorm takes its running statistics, which gives the values of eval mode; but the
    fold is still not carried out: straight through Q, gamma's gradient would be that of the weights before they were
    rounded, and with few bits a large part of it wrong.

    A scale that learns for each channel is counted in units of g, as the weights are: then it too has the gradient of
    the unfolded network, and the two stay in step whatever g is.

    >>> from qlab import quantizers
    >>> from qlab.qconfig import Binary
    >>> layer = QuantConv2d(nn.Conv2d(3, 4, 3), quantizers.build(Binary()))
    >>> conv = NormalizedConv2d(layer, torch.zeros(4), torch.ones(4))
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.allclose(conv.eval()(x), conv.plain()(x), atol=1e-5)
    True
    """

    frozen = False

    def __init__(self, layer: QuantConv2d, mean: Tensor, variance: Tensor) -> None:
        """Take over a layer that gives channels of this mean and variance without its bias; changes nothing at first."""
        super().__init__(layer, layer.weight_quantizer)
        self.norm = nn.BatchNorm2d(len(mean), device=mean.device).train(layer.training)
        with torch.no_grad():
            variance = variance + self.norm.eps
            size = torch.minimum(he_size(self.weight), (variance / self.norm.eps).sqrt())
            self.weight.div_(size[:, None, None, None])
            self.norm.running_mean.copy_(mean / size)
            self.norm.running_var.copy_((variance / size**2 - self.norm.eps).clamp(min=0))
            self.norm.weight.copy_(variance.sqrt())
            self.norm.bias.copy_(mean if layer.bias is None else mean + layer.bias)
            if learns_by_channel(self.weight_quantizer):
                self.weight_quantizer.count_in(self._gain().abs())
        self.bias = None

    def plain(self) -> QuantConv2d:
        """The convolution alone, BatchNorm folded into it."""
        with torch.no_grad():
            weight, bias = self.folded()
        layer = QuantConv2d(self, self.weight_quantizer)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        return layer

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of the one convolution that does what both do in eval mode."""
        gain = self._gain()
        return self.weight * gain[:, None, None, None], self.norm.bias - self.norm.running_mean * gain

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            weight, bias = self.folded()
            return self._conv_forward(x, self.weight_quantizer(weight), bias)
        gain, norm = self._gain().detach()[:, None, None, None], self.norm
        y = self._conv_forward(x, self.weight_quantizer(self.weight * gain) / gain, None)
        if self.frozen:
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(y)

    def _gain(self) -> Tensor:
        """g, of which the learned scales are told."""
        gain = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        gain = torch.where(gain.abs() < 1e-6, 1e-6, gain)  # a channel that died must not divide by 0
        if learns_by_channel(self.weight_quantizer):
            self.weight_quantizer.unit = gain.detach().abs()
        return gain


def learns_by_channel(quantizer: Quantizer) -> bool:
    """Does each output channel have a scale that learns?"""
    return isinstance(quantizer, LearnedQuantizer) and quantizer.spec.granularity == PerChannel(0)


def he_size(weight: Tensor) -> Tensor:
    """By how much each output channel's weights exceed those that a training begins with (He et al. 2015).

    Folded weights differ in size by a factor of ten and more, and before a BatchNorm a weight moves by its gradient
    over its size: large channels would stand still, and small ones jump. Channels of nothing but 0 have size 1.

    >>> he_size(torch.full((1, 2, 3, 3), 0.5))  # the weights' deviation would be sqrt(2 / 18)
    tensor([1.5000])
    """
    fan_in = weight[0].numel()
    size = weight.square().mean((1, 2, 3)).mul(fan_in / 2).sqrt()
    return torch.where(size < 1e-6, 1.0, size)


@torch.inference_mode()
def channel_moments(prepared: Prepared, batches: Iterable[Tensor]) -> dict[QuantConv2d, tuple[Tensor, Tensor]]:
    """Mean and variance of the output channels of each convolution that had a BatchNorm and trains, without its bias,
    rounding included."""
    sums: dict[QuantConv2d, Tensor] = {}

    def watch(layer: QuantConv2d, inputs, output: Tensor) -> None:
        y = (output if layer.bias is None else output - layer.bias[:, None, None]).double()
        new = torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3)), torch.ones_like(y[0, :, 0, 0])])
        sums[layer] = sums.get(layer, 0) + new

    convolutions = [layer for _, layer in prepared.weighted() if type(layer) is QuantConv2d]
    layers = [layer for layer in convolutions if hasattr(layer, "output_mean") and layer.weight.requires_grad]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    device = next(prepared.parameters()).device
    try:
        with in_eval_mode(prepared):
            for x in batches:
                prepared(x.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if layers and not sums:
        raise ValueError("there is no batch to train on: expected at least one (x, y)")
    return {
        layer: ((mean / n).float().clone(), (square / n - (mean / n) ** 2).clamp(min=0).float().clone())
        for layer, (mean, square, n) in sums.items()
    }
