"""The two ends of a training with rounding: a calibrated network becomes one that learns, and an ordinary one again."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from torch import Tensor, nn

from qlab.graph.nodes import kind_of, module_of
from qlab.graph.prepare import Prepared
from qlab.qat.batchnorm import NormalizedConv2d, channel_moments
from qlab.qat.lsq import LearnedQuantizer
from qlab.qat.straight_through import FollowingQuantizer
from qlab.quantizers import AffineQuantizer

METHODS = ("lsq", "pact", "straight_through")


def start(prepared: Prepared, batches: Iterable[Tensor], method: str = "lsq") -> Prepared:
    """Give a calibrated network what it learns with: grids that move, and each convolution's BatchNorm again.

    That BatchNorm is set to change nothing at first, by what 8 of the batches show of each channel: the one that was
    folded need no longer fit, after equalization, bias correction or AdaRound. What does not train
    (``requires_grad_(False)``) stays as it is, its grid and BatchNorm too.

    Args:
        prepared: A calibrated network. It is changed in place.
        batches: Inputs x as in training, (N, ...).
        method: How the grids move, one of :data:`METHODS`; :func:`qlab.qat.fit` says what they do.

    Returns:
        ``prepared``, in training mode: for a training loop of your own.

    Raises:
        RuntimeError: The network was not calibrated.
        ValueError: ``method`` is another one, or there is no batch.

    >>> import qlab, torch
    >>> x = torch.randn(8, 3, 8, 8)
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    >>> prepared = qlab.qat.start(qlab.calibrate(qlab.prepare(network, qlab.qat.qconfig("w4a4"), x), [x]), [x])
    >>> [name.removeprefix("network.") for name, _ in prepared.named_parameters()]
    ['0.weight', '0.weight_quantizer.scale', '0.norm.weight', '0.norm.bias', 'quantizers.input.scale',
    'quantizers.input.zero_point', 'quantizers.0.scale']
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    for _, quantizer in prepared.quantizers():
        quantizer.require_calibration()
    moments = channel_moments(prepared, islice(batches, 8))
    weights = {layer.weight_quantizer: layer.weight.requires_grad for _, layer in prepared.weighted()}
    cut_off = _behind_relu6(prepared)
    for name, quantizer in list(prepared.quantizers()):
        if type(quantizer) is AffineQuantizer and weights.get(quantizer, True):
            learner = _learner(quantizer, method, quantizer in weights, quantizer in cut_off)
            prepared.network.set_submodule(name, learner)
    for name, layer in list(prepared.weighted()):
        layer.original = None  # what bias correction and AdaRound compare with: it moves from now on
        if layer in moments:
            prepared.network.set_submodule(name, NormalizedConv2d(layer, *moments[layer]))
    return prepared.train()


def finish(prepared: Prepared) -> Prepared:
    """Undo :func:`start` but keep what was learned: grids stand still, BatchNorms are part of the weights.

    Returns:
        ``prepared``, in eval mode, ready for :func:`qlab.convert`.

    >>> import qlab, torch
    >>> x, network = torch.randn(8, 3, 8, 8), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    >>> prepared = qlab.qat.start(qlab.calibrate(qlab.prepare(network, qlab.qat.qconfig("w4a4"), x), [x]), [x])
    >>> prepared(x).square().mean().backward()  # and an optimizer's step, and so on
    >>> [name for name, _ in qlab.qat.finish(prepared).named_parameters()]
    ['network.0.weight', 'network.0.bias']
    """
    prepared.eval()
    for name, layer in list(prepared.weighted()):
        if isinstance(layer, NormalizedConv2d):
            prepared.network.set_submodule(name, layer.plain())
    for name, quantizer in list(prepared.quantizers()):
        if isinstance(quantizer, (LearnedQuantizer, FollowingQuantizer)):
            still = AffineQuantizer(quantizer.spec, fusible=quantizer.fusible)
            still.fused, still.mode, still.qparams = quantizer.fused, quantizer.mode, quantizer.qparams
            prepared.network.set_submodule(name, still.eval())
    return prepared


def _learner(quantizer: AffineQuantizer, method: str, of_weight: bool, cut_off: bool) -> AffineQuantizer:
    """What takes a quantizer's place in training."""
    if method == "straight_through" or (method == "pact" and of_weight):
        return FollowingQuantizer(quantizer, of_weight=of_weight)
    return LearnedQuantizer(quantizer, of_weight=of_weight, pact=method == "pact", behind_relu6=cut_off)


def _behind_relu6(prepared: Prepared) -> set[nn.Module]:
    """The modules that get what a relu6 gives. No grid there may grow beyond 6: its top does the cutting off."""
    nodes = [node for node in prepared.network.graph.nodes if module_of(node) is not None and node.all_input_nodes]
    return {module_of(node) for node in nodes if kind_of(node.all_input_nodes[0]) == "relu6"}
