"""Bias correction: rounding shifts the mean of a layer's output, and the bias can take the shift back.

The rounding errors of a channel's few weights do not cancel: with inputs of a meanother than 0, as behind a
relu, their sum moves the whole channel. Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free
Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2 and appendices B to D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from qlab.batches import Batches, inputs
from qlab.graph.equalize import through
from qlab.graph.layers import QuantLayer
from qlab.graph.nodes import RELUS, WEIGHTED, joined_axis, kind_of, module_of
from qlab.graph.prepare import Prepared
from qlab.graph.run import walk

Moments = tuple[Tensor, Tensor] | None  # mean and variance a channel, None when unknown


def correct_bias(prepared: Prepared, batches: Batches | None = None, *, progress: bool = True) -> Prepared:
    """Give every channel of every layer the mean back that it has in the float network, by its bias.

    With ``batches``, layer by layer, each one behind those that are corrected already: the mean of the float output
    less that of the quantized one. Without any, from what BatchNorm knew of each layer's input, only the weights'
    error; a layer whose input is unknown is left as it is (Nagel et al. 2019, section 4.2). A second call starts from
    the float biases again.

    Args:
        prepared: A calibrated network. Its biases are changed in place; a layer without one gets one.
        batches: Inputs x, or pairs (x, label) whose label is not looked at; 512 images do. None: no data.
        progress: Show a bar when it takes over 2 seconds.

    Returns:
        ``prepared``.

    Raises:
        ValueError: ``batches`` holds no batch, or there are neither data nor BatchNorm's statistics.
        RuntimeError: The network was not calibrated.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x, network = torch.rand(256, 16), torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> qconfig = qlab.QConfig.preset("w3a8", first_last=None)
    >>> prepared = qlab.calibrate(qlab.prepare(network, qconfig, x[:1]), [x])
    >>> before = (prepared(x) - network(x)).mean(0).abs().max()
    >>> after = (qlab.correct_bias(prepared, [x])(x) - network(x)).mean(0).abs().max()
    >>> bool(after < before / 10)
    True
    """
    if batches is None:
        return _correct_from_statistics(prepared)
    count = sum(1 for _ in prepared.weighted())
    stops = walk(prepared, list(inputs(batches)))
    stops = tqdm(stops, "bias correction", count, False, unit="layer", delay=2, disable=not progress)
    for stop in stops:
        _, bias = stop.layer.keep_original()
        axis = 1 if stop.layer.kind == "conv" else -1
        stop.layer.bias = None if bias is None else nn.Parameter(bias.clone())
        with torch.no_grad():
            found = mean_of_channels((stop.layer(x) for x in stop.inputs), axis)
        shift = mean_of_channels(stop.targets, axis) - found
        stop.layer.bias = nn.Parameter(shift if bias is None else bias + shift)
    return prepared


def mean_of_channels(batches: Iterable[Tensor], axis: int) -> Tensor:
    """The mean a channel, over batches, images and places; channels lie along ``axis``: 1 or, of linear layers, -1.

    >>> mean_of_channels([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)], axis=1)
    tensor([0.5000, 0.5000, 0.5000])
    """
    total: Tensor | float = 0.0
    count = 0
    for y in batches:
        rows = y.movedim(axis, -1)
        total = total + rows.flatten(0, -2).double().sum(0)
        count += rows[..., 0].numel()
    return torch.as_tensor(total / count).float()


def rectified_moments(mean: Tensor, variance: Tensor, top: float = math.inf) -> tuple[Tensor, Tensor]:
    """Mean and variance of clamp(x, 0, top) for a normal x: relu, or relu6 (the paper's appendix C).

    >>> mean, variance = rectified_moments(torch.tensor(0.0), torch.tensor(1.0))
    >>> round(mean.item(), 4), round((2 * math.pi) ** -0.5, 4)
    (0.3989, 0.3989)
    """
    std = variance.clamp(min=1e-24).sqrt()
    low = -mean / std
    high = (top - mean) / std if top < math.inf else torch.full_like(low, math.inf)
    inside = _cdf(high) - _cdf(low)
    above = 1 - _cdf(high)
    slope = _density(low) - _density(high)
    tail = _density(low) * low - torch.where(high.isinf(), 0.0, _density(high) * high)
    cut = top if top < math.inf else 0.0
    first = mean * inside + std * slope + cut * above
    # E[x**2; inside] of a normal, less the squared mean; rounding may leave a tiny negative number
    second = (mean**2 + variance) * inside + 2 * mean * std * slope + variance * tail + cut**2 * above
    return first, (second - first**2).clamp(min=0)


def _correct_from_statistics(prepared: Prepared) -> Prepared:
    """The analytic form: E[(fake_quantize(W) - W) x] with E[x] from BatchNorm's statistics."""
    moments: dict[fx.Node, Moments] = {}
    corrected = 0
    for node in prepared.network.graph.nodes:
        layer = module_of(node)
        moments[node] = _moments(node, [moments[source] for source in node.all_input_nodes])
        read = moments[node.all_input_nodes[0]] if isinstance(layer, QuantLayer) else None
        if read is None:
            continue
        weight, bias = layer.keep_original()
        with torch.no_grad():
            error = layer.weight_quantizer(layer.weight) - weight
            shift = through(layer, error, read[0])
        layer.bias = nn.Parameter(-shift if bias is None else bias - shift)
        corrected += 1
    if not corrected:
        raise ValueError(
            "no BatchNorm was folded into this network, so nothing is known of its layers' inputs: "
            "give images, correct_bias(prepared, data.sample(512).batches(64))"
        )
    return prepared


def _moments(node: fx.Node, inputs: list[Moments]) -> Moments:
    """Mean and variance of what a node gives, as if all values were normal and independent of each other."""
    kind = kind_of(node)
    if kind in WEIGHTED:
        layer = module_of(node)
        return (layer.output_mean, layer.output_std**2) if hasattr(layer, "output_mean") else None
    known = [moments for moments in inputs if moments is not None]
    if not inputs or len(known) < len(inputs):
        return None
    if kind in RELUS:
        return rectified_moments(*known[0], top=6.0 if kind == "relu6" else math.inf)
    if kind == "add" and len(inputs) == 2:
        return tuple(a + b for a, b in zip(*known))
    if kind == "cat" and joined_axis(node) == 1:
        return tuple(torch.cat(parts) for parts in zip(*known))
    keeps = kind in ("quantizer", "avg_pool", "global_pool", "flatten")  # averages keep the mean
    return inputs[0] if keeps else None


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
