"""What passes through a layer while a network runs: a hook, put on and taken off again.

Lessons 2 and 3 look at the numbers that observers see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from qlab.batches import inputs


@torch.inference_mode()
def inputs_of(layer: nn.Module, network: nn.Module, batches: Iterable) -> list[Tensor]:
    """What enters ``layer`` while ``network`` runs on each of the batches, which yield x or (x, label).

    >>> network = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> inputs_of(network[1], network, [torch.tensor([[-1.0, 2.0]])])
    [tensor([[0., 2.]])]
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    try:
        for x in inputs(batches):
            network(x)
    finally:
        hook.remove()
    return seen


@torch.inference_mode()
def largest_inputs(layers: Sequence[nn.Module], network: nn.Module, batches: Iterable) -> Tensor:
    """The largest value that enters each of the layers, of every image: shape (images, layers).

    >>> network = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> largest_inputs(list(network), network, [torch.tensor([[-1.0, 2.0], [3.0, 1.0]]), torch.tensor([[-4.0, -1.0]])])
    tensor([[ 2.,  2.],
            [ 3.,  3.],
            [-1.,  0.]])
    """
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, found=found: found.append(_largest(given[0])))
        for layer, found in zip(layers, seen)
    ]
    try:
        for x in inputs(batches):
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.cat(found) for found in seen], 1)


def _largest(x: Tensor) -> Tensor:
    """The largest value of each image. (Flattening would copy what lies in memory as channels_last.)"""
    return x.amax(tuple(range(1, x.dim())))
