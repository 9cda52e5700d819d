"""Post-training quantization: a trained network, a few hundred images without labels, and no training.

Source: Nagel et al., "A White Paper on Neural Network Quantization" (2021), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import length_hint

import torch
from torch import nn
from tqdm.auto import tqdm

from qlab.batches import Batches, inputs
from qlab.graph.convert import convert
from qlab.graph.prepare import Prepared, prepare
from qlab.int8 import engines
from qlab.int8.modules import Int8Network
from qlab.modes import in_eval_mode
from qlab.qconfig import QConfig
from qlab.quantizers import Quantizer


@torch.no_grad()  # not inference_mode: the grids that are found here are trained with later
def calibrate(prepared: Prepared, batches: Batches, *, progress: bool = True) -> Prepared:
    """Show ``batches`` to a prepared network, so that its observers see the ranges; each range becomes a grid.

    ``batches`` yield inputs x, or pairs (x, label) whose label is not looked at. The network runs in float. A second
    calibration starts afresh. Weights need no data, nor do ranges taken at run time: where there is nothing else,
    ``batches`` may be empty. Returns ``prepared``. Raises ValueError when there is no batch, or one is not finite.
    """
    edges = [quantizer for _, quantizer in prepared.edges()]
    count = 0
    total = length_hint(batches) or None
    with _observing(prepared, edges):
        bar = tqdm(inputs(batches), "calibrating", total, leave=False, unit="batch", delay=2, disable=not progress)
        for x in bar:
            prepared(x)
            count += len(x)
            prepared.sample = x[:2].detach()
    if count == 0 and any(quantizer.needs_data for quantizer in edges):
        raise ValueError("calibrate got no batch: give it at least one, for instance data.sample(512).batches(64)")
    for name, layer in prepared.weighted():
        try:
            layer.weight_quantizer.observe()
            layer.weight_quantizer.look_at(layer.weight.detach())
        except ValueError as error:
            raise ValueError(f"the weights of {name}: {error}") from error
    for _, quantizer in prepared.quantizers():
        quantizer.freeze()
    return prepared


@contextmanager
def _observing(prepared: Prepared, edges: Iterable[Quantizer]) -> Iterator[None]:
    """The network in eval mode and in float, its edges watched; afterwards as before, whatever happened."""
    for _, quantizer in prepared.quantizers():
        quantizer.mode = "off"  # a weight does not change from batch to batch: it is looked at once, at the end
    for quantizer in edges:
        quantizer.observe()
    try:
        with in_eval_mode(prepared):
            yield
    finally:
        for _, quantizer in prepared.quantizers():
            quantizer.mode = "quantize"


def ptq(model: nn.Module, batches: Batches, qconfig: QConfig | None = None, engine: str = "auto") -> Int8Network:
    """Prepare, calibrate, convert: from a trained float network to an integer one in one call.

    ``batches`` are calibration inputs, with or without labels; ``engine`` as in :func:`qlab.convert`. ``qconfig`` None
    means w8a8, with ``reduce_range`` where the engine needs it. ``model`` is not changed.
    """
    batches = inputs(batches)
    x = next(batches, None)
    if x is None:
        raise ValueError("ptq got no batch: give it at least one, for instance data.sample(512).batches(64)")
    if qconfig is None:
        name = engines.choose()[0] if engine == "auto" else engines.get(engine).name
        qconfig = QConfig.w8a8(reduce_range=engines.saturates_on(name, model))
    prepared = prepare(model, qconfig, x[:1])
    return convert(calibrate(prepared, chain([x], batches)), engine)
