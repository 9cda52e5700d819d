"""Layers that see their own weights through a quantizer: what a convolution or linear layer becomes in ``prepare``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from qlab.quantizers import Quantizer


class QuantLayer(nn.Module):
    """What :class:`QuantConv2d` and :class:`QuantLinear` share: they take over a float layer's parameters.

    ``weight_quantizer`` rounds the weights at each forward pass. ``original`` is the float weight and bias from before
    a method such as bias correction or AdaRound changed them, None where none did.
    """

    kind: str  # what it is as a node of a graph
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_quantizer: Quantizer
    original: tuple[Tensor, Tensor | None] | None = None

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the integer layer will have them, before the weight is rounded."""
        return self.weight, self.bias

    def keep_original(self) -> tuple[Tensor, Tensor | None]:
        """The float weight and bias; the first call keeps a copy of them, later ones give that copy.

        So a method may be applied twice, or after another one, and still compare with the float network.
        """
        if self.original is None:
            bias = None if self.bias is None else self.bias.detach().clone()
            self.original = self.weight.detach().clone(), bias
        return self.original

    def _take_over(self, layer: nn.Module, weight_quantizer: Quantizer) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer = weight_quantizer
        for name in ("output_mean", "output_std"):  # what BatchNorm knew of the outputs (qlab.graph.fold)
            if hasattr(layer, name):
                self.register_buffer(name, getattr(layer, name), persistent=False)
        self.train(layer.training)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution with the parameters of ``layer``, rounded by ``weight_quantizer``."""

    kind = "conv"

    def __init__(self, layer: nn.Conv2d, weight_quantizer: Quantizer) -> None:
        nn.Conv2d.__init__(
            self, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, bias=layer.bias is not None, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
        self._take_over(layer, weight_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(QuantLayer, nn.Linear):
    """A linear layer with the parameters of ``layer``, rounded by ``weight_quantizer``."""

    kind = "linear"

    def __init__(self, layer: nn.Linear, weight_quantizer: Quantizer) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self._take_over(layer, weight_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)
