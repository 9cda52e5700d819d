"""BatchNorm folding: at inference a BatchNorm is a scale and a shift a channel, which the layer before it can
absorb.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (CVPR 2018), section 3.2; Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qlab.graph.nodes import WEIGHTED, calls_of, kind_of, module_of, shape_of


def fold_batchnorm(network: fx.GraphModule) -> fx.GraphModule:
    """Fold each BatchNorm that follows a convolution or linear layer into that layer's weights, in place.

    A BatchNorm stays where it is when its input has another reader too or does not come from such a layer, and when it
    keeps no statistics. The equations stand at :func:`fold_layer`.

    Args:
        network: What :func:`qlab.graph.trace.trace` gave.

    Returns:
        ``network``.

    >>> import torch
    >>> from torch import nn
    >>> from qlab.graph.trace import trace
    >>> network = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [type(module).__name__ for module in fold_batchnorm(network).children()]
    ['Conv2d', 'ReLU']
    """
    for node in list(network.graph.nodes):
        norm = module_of(node)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
            continue
        before = node.args[0]
        if kind_of(before) not in WEIGHTED or len(before.users) > 1 or calls_of(before) > 1:  # would change others too
            continue
        if kind_of(before) == "linear" and len(shape_of(before) or ()) != 2:  # its channels are not the layer's outputs
            continue
        fold_layer(module_of(before), norm)
        before.meta["gives"] = node.target
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


@torch.no_grad()
def fold_layer(layer: nn.Conv2d | nn.Linear, norm: nn.Module) -> None:
    """w <- w * g,  b <- (b - mean) * g + beta  with  g = gamma / sqrt(variance + eps), one a channel: the layer gets a
    new weight and bias.

    What the BatchNorm knew is kept: over the training images, each channel that the layer now gives has
    mean beta and standard deviation abs(gamma). They become its buffers ``output_mean`` and ``output_std``,
    outside of the state dict, for the methods that need no data (Nagel et al. 2019).

    >>> conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    >>> x = torch.randn(1, 3, 8, 8)
    >>> expected = norm(conv(x))
    >>> fold_layer(conv, norm)
    >>> torch.allclose(conv(x), expected, atol=1e-5)
    True
    """
    if norm.running_var is None:
        raise ValueError("this BatchNorm keeps no running statistics (track_running_stats=False): it cannot be folded")
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    bias: Tensor = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = layer.weight * gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
    trains = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight, trains)  # a new one: another layer may share the old one
    layer.bias = nn.Parameter(bias, trains)
    one, zero = torch.ones_like(gain), torch.zeros_like(gain)
    std, mean = (default if kept is None else kept for kept, default in ((norm.weight, one), (norm.bias, zero)))
    layer.register_buffer("output_mean", mean.detach().clone(), persistent=False)
    layer.register_buffer("output_std", std.detach().abs(), persistent=False)
