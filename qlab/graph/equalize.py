"""Cross-layer equalization: the same function with weights whose channels have about the same range.

Where only a positively homogeneous function f (relu, pooling) stands between two layers, a channel can be
made smaller in the first and larger in the second by the same factor: W2 f(W1 x) = (W2 S) f(S^-1 W1 x). With
one scale for a whole tensor, a channel whose weights are a hundredth of the others' would round to zero;
equalized, it does not. Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through
Weight Equalization and Bias Correction" (ICCV 2019), sections 4.1 (ranges) and 4.1.3 (high biases).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn

from qlab.graph.check import prove_graph
from qlab.graph.nodes import RELUS, WEIGHTED, calls_of, kind_of, module_of, only_reader

Layer: TypeAlias = nn.Conv2d | nn.Linear
HOMOGENEOUS = (*RELUS, "max_pool", "avg_pool", "global_pool", "flatten")  # f(s x) = s f(x) for s > 0
SWEEPS = 100
CONVERGED = 1e-3  # a sweep that changes no channel by more than this share ends the iteration
DEAD = 1e-3  # a channel whose weights are below this share of its layer's largest says next to nothing


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the first, and the nodes in between."""

    first: Layer
    second: Layer
    between: tuple[fx.Node, ...]

    @property
    def kinds(self) -> set[str]:
        """What stands in between."""
        return {kind_of(node) for node in self.between}


def equalize(network: fx.GraphModule) -> fx.GraphModule:
    """Equalize the channels of every :func:`pairs` of layers, then absorb high biases; in place.

    What the network computes stays the same but for two things: the relu6 inside a pair is replaced by relu, as in the
    paper (a cut at 6 is not homogeneous), and a high bias is absorbed as if the few values below its threshold were not
    there.

    Args:
        network: Traced, and its BatchNorms folded.

    Returns:
        ``network``.

    Raises:
        ValueError: The scaled network answers otherwise than it did, for the inputs that ``network`` was traced with.

    >>> import torch
    >>> from torch import nn
    >>> from qlab.graph.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> model[0].weight.data = torch.tensor([[100.0, 50.0], [1.0, 0.5]])
    >>> network = equalize(trace(model, torch.zeros(1, 2)))
    >>> first, second = (network.get_submodule(name).weight.abs() for name in ("0", "2"))
    >>> torch.allclose(first.amax(1), second.amax(0))  # a channel is as wide where it is read as where it is made
    True
    """
    found = pairs(network)
    for layer in {layer for pair in found for layer in (pair.first, pair.second)}:
        for name, values in list(layer.named_parameters(recurse=False)):  # of its own: another layer may share them
            setattr(layer, name, nn.Parameter(values.detach().clone(), values.requires_grad))
    for pair in found:
        for node in pair.between:
            if kind_of(node) == "relu6":
                network.add_submodule(f"{node.target}_equalized", nn.ReLU())
                node.target = f"{node.target}_equalized"
    network.delete_all_unused_submodules()
    network.recompile()
    original = copy.deepcopy(network)
    with torch.no_grad():
        before = [(x, original(x.clone())) for x, _ in network.meta.get("answers", ())]
    for _ in range(SWEEPS):
        changes = [equalize_pair(pair.first, pair.second) for pair in found]
        if max(changes, default=0.0) < CONVERGED:
            break
    prove_graph(network, original, before)
    for pair in found:
        if "relu" in pair.kinds and pair.kinds <= {"relu", "global_pool", "flatten"}:
            absorb_high_bias(pair.first, pair.second)
    return network


def pairs(network: fx.GraphModule) -> list[Pair]:
    """Each layer whose output one layer alone reads, through nothing but homogeneous functions; in order.

    >>> from qlab.graph.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2))
    >>> [(pair.first, pair.second) for pair in pairs(trace(model, torch.zeros(1, 2)))]  # none across a sigmoid
    [(Linear(in_features=2, out_features=3, bias=True), Linear(in_features=3, out_features=3, bias=True))]
    """
    found = []
    for node in network.graph.nodes:
        if kind_of(node) not in WEIGHTED or calls_of(node) > 1:
            continue
        between, reader = [], only_reader(node)
        while reader is not None and kind_of(reader) in HOMOGENEOUS:
            between.append(reader)
            reader = only_reader(reader)
        if reader is None or kind_of(reader) not in WEIGHTED or calls_of(reader) > 1:
            continue
        pair = Pair(module_of(node), module_of(reader), tuple(between))
        if _keeps_channels_apart(pair):
            found.append(pair)
    return found


def _keeps_channels_apart(pair: Pair) -> bool:
    """Does each input of the second layer belong to one channel of the first?"""
    if isinstance(pair.first, nn.Linear) or isinstance(pair.second, nn.Conv2d):
        return type(pair.first) is type(pair.second) and "flatten" not in pair.kinds
    flattens = [node for node in pair.between if kind_of(node) == "flatten"]
    modules = [module_of(node) for node in flattens]
    return [(module.start_dim, module.end_dim) for module in modules] == [(1, -1)]


@torch.no_grad()
def equalize_pair(first: Layer, second: Layer) -> float:
    """Give each channel the same largest weight in two layers; returns the largest change of a factor.

    The paper's equation 11: s = sqrt(r1 / r2), where r1 and r2 are a channel's largest weight in the first
    and in the second layer; the first is divided by s, bias included, and the second multiplied. A channel
    that is zero in one of the two (or next to it, :data:`DEAD`) is left as it is: to blow it up would blow up
    its bias too.

    >>> first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    >>> first.weight.data, second.weight.data = torch.tensor([[8.0, 1], [0, 1]]), torch.tensor([[0.5, 4.0]])
    >>> equalize_pair(first, second)
    3.0
    >>> first.weight.abs().amax(1), second.weight.abs().amax(0)
    (tensor([2., 2.], grad_fn=<AmaxBackward0>), tensor([2., 2.], grad_fn=<AmaxBackward0>))
    """
    r1, r2 = first.weight.flatten(1).abs().amax(1), input_ranges(second, _outputs(first))
    alive = (r1 > DEAD * r1.max()) & (r2 > DEAD * r2.max())
    scale = torch.where(alive, (r1 / r2).sqrt(), 1.0)
    _multiply_outputs(first, scale.reciprocal())
    _multiply_inputs(second, scale)
    return float(torch.maximum(scale, scale.reciprocal()).max()) - 1


@torch.no_grad()
def absorb_high_bias(first: Layer, second: Layer) -> Tensor | None:
    """Move what all values of a channel have in common over a relu into the second bias; returns how much.

    With BatchNorm's mean and standard deviation of the first layer's output, nearly all its values (99.87 %
    of a normal distribution) lie above c = max(0, mean - 3 * std), where relu(x) - c = relu(x - c) (the
    paper's equation 13). So the first bias gives c away, W2 c is added to the second, and the values in
    between need a smaller range. Nothing moves (None) without BatchNorm's statistics, nor where the second
    layer pads with zeros, which stand for real zeros and not for c: the paper overlooks those, on small
    images they are many.
    """
    padding = getattr(second, "padding", 0)
    if not hasattr(first, "output_mean") or padding not in (0, (0, 0)) or first.bias is None:
        return None
    c = (first.output_mean - 3 * first.output_std).clamp(min=0)
    shift = through(second, second.weight, c)
    first.bias -= c
    first.output_mean -= c
    bias = shift if second.bias is None else second.bias + shift
    second.bias = nn.Parameter(bias, second.weight.requires_grad)
    return c


def through(layer: Layer, weight: Tensor, channels: Tensor) -> Tensor:
    """What a layer with this weight gives for an input of one constant a channel, away from borders.

    >>> conv = nn.Conv2d(2, 1, 3, bias=False)
    >>> channels = torch.tensor([1.0, 2.0])
    >>> x = channels[:, None, None].expand(1, 2, 5, 5)
    >>> torch.allclose(conv(x), through(conv, conv.weight, channels), atol=1e-5)
    True
    """
    groups = getattr(layer, "groups", 1)
    rows = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(3)
    inputs = channels.repeat_interleave(_inputs(layer) // len(channels)).reshape(groups, -1, 1)
    return (rows @ inputs).flatten()


def input_ranges(layer: Layer, channels: int) -> Tensor:
    """The largest weight that reads each of ``channels`` inputs: shape (channels,).

    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    >>> input_ranges(layer, 2).tolist()
    [3.0, 4.0]
    """
    return _by_inputs(layer, channels).abs().amax((1, 3)).reshape(channels, -1).amax(1)


def _multiply_outputs(layer: Layer, factor: Tensor) -> None:
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    for values in (layer.bias, getattr(layer, "output_mean", None), getattr(layer, "output_std", None)):
        if values is not None:
            values.mul_(factor)


def _multiply_inputs(layer: Layer, factor: Tensor) -> None:
    each = factor.repeat_interleave(_inputs(layer) // len(factor))
    weight = _by_inputs(layer, len(factor))
    scaled = weight * each.reshape(weight.shape[0], 1, weight.shape[2], 1)
    layer.weight.copy_(scaled.reshape(layer.weight.shape))


def _by_inputs(layer: Layer, channels: int) -> Tensor:
    """The weight as (groups, outputs a group, inputs a group, kernel)."""
    groups = getattr(layer, "groups", 1)
    return layer.weight.reshape(groups, layer.weight.shape[0] // groups, layer.weight.shape[1], -1)


def _inputs(layer: Layer) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _outputs(layer: Layer) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
