"""AWQ: the few channels whose inputs are large are multiplied up before rounding, and their inputs divided.

Lin et al., "AWQ: activation-aware weight quantization for LLM compression and acceleration" (2023), section 3.2. A weight that
is larger lies nearer to its grid, relative to itself; the scale s = m**alpha grows with the channel's mean magnitude m, and alpha
is searched: at 0 nothing is scaled, at 1 the inputs would all be alike. The scales are merged into the norm or the layer before,
so that the network computes the same, and nothing is added to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qlab.llm.outliers import feeds, migrate
from qlab.llm.stages import hessians

STEPS = 20  # of the search, between 0 and 1


def awq(model: nn.Module, windows: Tensor, round_weight: Callable[[Tensor], Tensor]) -> nn.Module:
    """A float copy that computes the same function, and loses less when its weights are rounded.

    Args:
        model: a language model in float.
        windows: int64, (count, length): what the channels' magnitudes are measured on.
        round_weight: the rounding that is to come, (N, K) -> (N, K), such as ``lambda w: llm.round_weight(w, 4, PerGroup(64))``.

    Returns:
        The copy; round it afterwards, as in ``llm.weight_only(llm.awq(model, windows, rounding), bits=4)``.

    >>> from qlab import PerGroup, llm
    >>> from qlab.llm.layers import round_weight
    >>> model, windows = llm.tiny(), llm.windows("train", 2, length=32)
    >>> scaled = awq(model, windows, lambda weight: round_weight(weight, 4, PerGroup(64)))
    >>> bool(torch.allclose(model(input_ids=windows).logits, scaled(input_ids=windows).logits, atol=1e-2))
    True
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, stage in zip(model.model.layers, hessians(model, windows)):
            moments = {linear: hessian / windows.numel() for _, _, linear, hessian in stage}
            for source, readers in feeds(layer):
                scale = best_scale([linear.weight for linear in readers], moments[readers[0]], round_weight)
                migrate(source, readers, scale)
    return model


def best_scale(weights: list[Tensor], moments: Tensor, round_weight: Callable[[Tensor], Tensor]) -> Tensor:
    """The scale of each input channel, of those tried the one with the least squared output error.

    ``moments``: (K, K), the mean of x x^T over the inputs x: an error D of the weight costs tr(D moments D^T) at the output.
    The scale's geometric mean is 1.
    """
    tried = [scale_of(moments.diagonal(), step / STEPS) for step in range(STEPS + 1)]

    def error(scale: Tensor) -> float:
        off = torch.cat([round_weight(weight * scale) / scale - weight for weight in weights]).float()
        return float((off @ moments * off).sum())

    return min(tried, key=error)


def scale_of(squares: Tensor, alpha: float) -> Tensor:
    """(Root mean square of a channel's input)**alpha, around 1.

    >>> scale_of(torch.tensor([1.0, 16.0]), 0.5)
    tensor([0.7071, 1.4142])
    """
    scale = squares.clamp_min(1e-12).sqrt() ** alpha
    return scale / scale.log().mean().exp()
