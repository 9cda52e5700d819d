"""A model run one decoder layer at a time: what calibrates layer by layer keeps the inputs of one layer only.

Layers see what the *quantized* layers before them give, so that a later layer can make up for an earlier one's errors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm


class Stopped(Exception):
    """Ends a forward pass once the first layer's inputs are known."""


def first_inputs(model: nn.Module, windows: Tensor) -> tuple[Tensor, dict]:
    """What enters the first decoder layer: hidden states, and the other arguments (positions, mask)."""
    caught = {}

    def catch(layer: nn.Module, arguments: tuple, others: dict) -> None:
        caught["hidden"], caught["others"] = arguments[0], others
        raise Stopped

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=windows, use_cache=False)
    except Stopped:
        pass
    finally:
        hook.remove()
    return caught["hidden"], caught["others"]


def hessians(model: nn.Module, windows: Tensor) -> Iterator[list[tuple[nn.Module, str, nn.Linear, Tensor]]]:
    """For each decoder layer in turn (parent, name, linear, x^T x of its inputs) of its linear layers.

    The layer then runs again, with whatever the caller has put in the place of its linear layers.
    """
    hidden, others = first_inputs(model, windows)
    for layer in tqdm(model.model.layers, "layer by layer", leave=False, delay=2, unit="layer"):
        places = [
            (parent, name, child)
            for parent in layer.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Linear)
        ]
        sums: dict[nn.Module, Tensor] = {}

        def add(linear: nn.Module, arguments: tuple, sums: dict = sums) -> None:
            x = arguments[0].flatten(0, -2).float()
            sums[linear] = sums.get(linear, 0) + x.T @ x

        hooks = [linear.register_forward_pre_hook(add) for _, _, linear in places]
        with torch.no_grad():
            layer(hidden, **others)
            for hook in hooks:
                hook.remove()
            yield [(parent, name, linear, sums[linear]) for parent, name, linear in places]
            hidden = layer(hidden, **others)
