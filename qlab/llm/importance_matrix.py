"""Which inputs count: the mean square of each input channel of a layer, llama.cpp's "importance matrix".

An error d in a weight changes the output by d times the input. So the squared output error of a row is, the channels taken for
independent, the sum of d**2 times the mean square of each channel's input. Searched scales (:mod:`qlab.blocks.superblocks`) and
AWQ (:mod:`qlab.llm.activation_aware`) weigh errors by it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlab.llm.convert import linears


def importance(model: nn.Module, windows: Tensor, batch_size: int = 4) -> dict[str, Tensor]:
    """The mean square of each input channel of the decoder's linear layers, over the tokens of ``windows``.

    Args:
        model: a language model in float.
        windows: int64, (count, length), text of another split than what the model is judged on.
        batch_size: how many windows are read at once.

    Returns:
        {layer's name: (inputs,)}, for ``llm.weight_only(..., importance=...)``.

    >>> from qlab import llm
    >>> found = importance(llm.tiny(), llm.windows("train", 1, length=16))
    >>> found["model.layers.0.mlp.down_proj"].shape
    torch.Size([512])
    """
    sums: dict[str, Tensor] = {}
    count = windows.numel()

    def see(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0) + x.detach().float().flatten(0, -2).square().sum(0)

    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, linear in linears(model)
    ]
    try:
        with torch.no_grad():
            for part in tqdm(windows.split(batch_size), "importance", leave=False, delay=2, unit="batch"):
                model(input_ids=part, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / count for name, total in sums.items()}
