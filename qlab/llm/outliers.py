"""Outliers: a few channels whose activations are far larger than all others, and what can be done about them.

One scale for a whole token must reach to its largest channel, and the others get what is left of the 256 codes.
Large models have such channels (Dettmers et al., "LLM.int8()", 2022); small ones hardly, so they can be made here.
SmoothQuant (Xiao et al. 2023) moves the difficulty from the activations to the weights, which have a scale a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import GraniteForCausalLM


def feeds(layer: nn.Module) -> Iterator[tuple[Tensor, list[nn.Linear]]]:
    """(what is multiplied into each channel, the linear layers that read these channels), for a decoder layer.

    A norm's weight multiplies the channels that it gives. Each row of up_proj makes one channel of down_proj's input.
    """
    attention, mlp = layer.self_attn, layer.mlp
    yield layer.input_layernorm.weight, [attention.q_proj, attention.k_proj, attention.v_proj]
    yield layer.post_attention_layernorm.weight, [mlp.gate_proj, mlp.up_proj]
    yield mlp.up_proj.weight, [mlp.down_proj]


def largest_inputs(model: nn.Module, windows: Tensor) -> dict[nn.Module, Tensor]:
    """The largest magnitude in each input channel of every linear layer, over the tokens of ``windows``.

    ``windows``: int64, (count, length). Returns {layer: magnitudes, (inputs,)}; the last layer, which gives the scores,
    is among them.

    >>> from qlab import llm
    >>> model = llm.tiny()
    >>> found = largest_inputs(model, llm.windows("test", 1, length=16))
    >>> found[model.model.layers[0].mlp.down_proj].shape
    torch.Size([512])
    """
    found: dict[nn.Module, Tensor] = {}

    def see(linear: nn.Module, arguments: tuple) -> None:
        largest = arguments[0].detach().abs().flatten(0, -2).amax(0)
        found[linear] = torch.maximum(found[linear], largest) if linear in found else largest

    hooks = [module.register_forward_pre_hook(see) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        _read(model, windows)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def layer_inputs(model: nn.Module, name: str, windows: Tensor) -> Tensor:
    """What enters the linear layer called ``name``, token after token: (tokens, inputs).

    ``windows``: int64, (count, length).

    >>> from qlab import llm
    >>> layer_inputs(llm.tiny(), "model.layers.1.mlp.gate_proj", llm.windows("train", 2, length=16)[:, :-1]).shape
    torch.Size([32, 192])

    Raises AttributeError when there is no such layer.
    """
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0].detach()))
    try:
        _read(model, windows)
    finally:
        hook.remove()
    return torch.cat(found).flatten(0, -2)


def _read(model: nn.Module, windows: Tensor, batch_size: int = 4) -> None:
    """Let a model read windows, a few at once."""
    with torch.no_grad():
        for part in windows.split(batch_size):
            model(input_ids=part, use_cache=False)


def inject(model: GraniteForCausalLM, channels: int = 4, factor: float = 64.0, seed: int = 0) -> GraniteForCausalLM:
    """A copy that computes the same function with outliers: random channels of each norm are ``factor`` times as large.

    The weights that read them are smaller by the same factor. (Powers of two change no bit of a float's result.)
    ``channels`` of them are drawn for each norm, by ``seed``.

    >>> from qlab import llm
    >>> model = llm.tiny()
    >>> norms = [each.model.layers[0].input_layernorm.weight for each in (model, inject(model, channels=4, factor=64.0))]
    >>> int((norms[1] / norms[0] == 64).sum())
    4
    """
    model, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            for source, readers in feeds(layer):
                if source.ndim == 1:
                    chosen = torch.randperm(len(source), generator=draw)[:channels]
                    scale = torch.ones(len(source)).index_fill_(0, chosen, factor)
                    migrate(source, readers, 1 / scale)
    return model


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """SmoothQuant's scale of each channel: max|X|^alpha / max|W|^(1 - alpha) (equation 4).

    >>> smoothing_scale(torch.tensor([64.0]), torch.tensor([0.25]), 0.5)
    tensor([16.])
    """
    return (inputs.clamp(min=1e-5) ** alpha / weights.clamp(min=1e-5) ** (1 - alpha)).clamp(min=1e-5)


def smooth(model: GraniteForCausalLM, windows: Tensor, alpha: float = 0.5) -> GraniteForCausalLM:
    """A copy that computes the same function: each channel's activations divided by a scale, its weights times it.

    The scale comes from the largest activation of each channel over ``windows`` (int64, (count, length)) and from its
    largest weight, see :func:`smoothing_scale`. Raises ValueError for an ``alpha`` outside 0 to 1.

    >>> from qlab import llm
    >>> with_outliers, windows = llm.inject(llm.tiny(), factor=256.0), llm.windows("train", 1, length=16)
    >>> tops = [max(float(top.max()) for layer, top in largest_inputs(model, windows).items())
    ...         for model in (with_outliers, smooth(with_outliers, windows))]
    >>> tops[1] < tops[0] / 10
    True
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected a number from 0 (all difficulty stays) to 1 (all moves)")
    model = copy.deepcopy(model)
    inputs = largest_inputs(model, windows)
    with torch.no_grad():
        for layer in model.model.layers:
            for source, readers in feeds(layer):
                weights = torch.stack([linear.weight.abs().amax(0) for linear in readers]).amax(0)
                migrate(source, readers, smoothing_scale(inputs[readers[0]], weights, alpha))
    return model


def migrate(source: Tensor, readers: list[nn.Linear], scale: Tensor) -> None:
    """Divide channels by ``scale`` where they come from, multiply the weights that read them: the output stays."""
    source /= scale if source.ndim == 1 else scale[:, None]
    for linear in readers:
        linear.weight *= scale
