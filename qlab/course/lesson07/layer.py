"""One layer learns through its rounding: the training behind lesson 7's third panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm


class Snapshot(NamedTuple):
    """One layer at one moment of its training.

    ``weights`` and their ``scale``; ``error`` of the output, relative and squared, on average since the last snapshot;
    ``held``, where the loss has the gradient 0 (bool, of the weights' shape); ``jumped``, the share of the weights whose
    code has changed since the last snapshot.
    """

    weights: Tensor
    scale: float
    error: float
    held: Tensor
    jumped: float


@torch.no_grad()
def inputs_of(network: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of the network gets when the network gets ``x``.

    >>> network = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
    >>> inputs_of(network, network[1], torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2.]])
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        network(x)
    finally:
        hook.remove()
    return seen[0]


def train_layer(
    layer: nn.Conv2d,
    inputs: Tensor,
    rounded: Callable[[Tensor, Tensor], Tensor],
    *,
    pull: float = 0.0,
    falling: bool = False,
    steps: int = 300,
    every: int = 5,
) -> list[Snapshot]:
    """Train a convolution's weights and their scale, so that the rounded ones give the outputs of the float ones.

    Adam with a learning rate of 0.003 for the weights (and of 1 % of its start for the scale, which starts at the largest
    weight). The layer is not changed.

    Args:
        layer: The convolution; without its bias, which rounding does not change.
        inputs: What it gets, (N, C, H, W).
        rounded: ``rounded(weight, scale)``: the weights that are used, with a gradient; codes from -1 to 1.
        pull: How strongly each weight is drawn to the rung that it is rounded to, at the end; it begins with 0.
        falling: Does the learning rate fall to 0 in the second half?
        steps: Of training.
        every: So many steps from one snapshot to the next; the first is made before them all.

    Returns:
        ``steps // every + 1`` snapshots.

    >>> _ = torch.manual_seed(0)
    >>> path = train_layer(nn.Conv2d(1, 2, 3), torch.rand(2, 1, 5, 5), lambda w, scale: w, steps=10)
    >>> [round(one.error, 3) for one in path]  # nothing is rounded, so nothing has to be learned
    [0.0, 0.0, 0.0]
    """
    convolve = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    weight = layer.weight.detach().clone().requires_grad_()
    scale = weight.detach().abs().max().clone().requires_grad_()
    wanted = F.conv2d(inputs, weight.detach(), **convolve)
    rates = {weight: 0.003, scale: 0.01 * scale.item()}
    optimizer = torch.optim.Adam([{"params": [one], "lr": rate} for one, rate in rates.items()])
    power, size = wanted.square().mean(), weight.detach().square().mean()
    snapshots, errors, codes = [], [], _codes(weight, scale)
    for step in tqdm(range(steps + 1), leave=False, delay=2):
        values = rounded(weight, scale)
        error = (F.conv2d(inputs, values, **convolve) - wanted).square().mean() / power
        away = (weight - values.detach()).square().mean() / size
        optimizer.zero_grad()
        (error + pull * step / steps * away).backward()
        errors.append(error.item())
        if step % every == 0:
            now = _codes(weight, scale)
            jumped = (now != codes).float().mean().item()
            held = weight.grad == 0
            snapshots.append(Snapshot(weight.detach().clone(), scale.item(), sum(errors) / len(errors), held, jumped))
            errors, codes = [], now
        for group, rate in zip(optimizer.param_groups, rates.values()):
            group["lr"] = rate * min(1.0, 2 - 2 * step / steps) if falling else rate
        optimizer.step()
    return snapshots


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight.detach() / scale.detach()).round().clamp(-1, 1)


def share(snapshot: Snapshot, *places: float, within: float = 0.1) -> float:
    """The share of the weights that are at most so far, in steps of the grid, from one of the places.

    >>> weights = torch.tensor([0.0, 0.45, 0.9, 1.5])
    >>> share(Snapshot(weights, 1.0, 0.0, weights == 0, 0.0), -0.5, 0.5)
    0.25
    """
    position = (snapshot.weights / snapshot.scale).flatten()
    return (position[:, None] - torch.tensor(places)).abs().amin(1).le(within).float().mean().item()
