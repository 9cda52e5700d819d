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
from qlab.int8.reference import without_autocast
from qlab.modes import in_eval_mode
from qlab.qconfig import QConfig
from qlab.quantizers import Quantizer


@torch.no_grad()  # not inference_mode: the grids that are found here are trained with later
def calibrate(prepared: Prepared, batches: Batches, *, progress: bool = True) -> Prepared:
    """Show batches to a prepared network: its observers see the ranges, and each range becomes a grid.

    The network runs in float and in eval mode. Weights need no data, nor do ranges taken at run time: where there is
    nothing else, ``batches`` may be empty. A second calibration starts afresh.

    Args:
        prepared: What :func:`qlab.prepare` gave. It is changed in place.
        batches: Inputs x, float32 (N, ...) normalized as in training, or pairs (x, label) whose label is not looked at.
            A few hundred images do.
        progress: Show a bar when it takes over 2 seconds.

    Returns:
        ``prepared``, which from now on rounds.

    Raises:
        ValueError: There is no batch, or values are not finite.

    >>> import qlab, torch
    >>> prepared = qlab.prepare(torch.nn.Sequential(torch.nn.Linear(3, 2)), example=torch.zeros(1, 3))
    >>> prepared = qlab.calibrate(prepared, [torch.tensor([[0.0, 1.0, 2.55]])])
    >>> name, quantizer = next(prepared.edges())
    >>> name, quantizer.qparams.scale  # 2.55 in 255 steps
    ('quantizers.input', tensor(0.0100))
    """
    if torch.is_autocast_enabled("cpu"):  # ranges of what the integers will see
        with without_autocast():
            return calibrate(prepared, batches, progress=progress)
    edges = [quantizer for _, quantizer in prepared.edges()]
    dtype = next(layer.weight.dtype for _, layer in prepared.weighted())
    count = 0
    total = length_hint(batches) or None
    with _observing(prepared, edges):
        bar = tqdm(inputs(batches), "calibrating", total, leave=False, unit="batch", delay=2, disable=not progress)
        for x in bar:
            if x.ndim != 1 + len(prepared.input_shape) or x.dtype is not dtype:
                raise ValueError(
                    f"a batch is {x.dtype} {tuple(x.shape)}: expected {dtype} (N, {', '.join(map(str, prepared.input_shape))}), "
                    "normalized as in training; a data set of single images comes in batches from a DataLoader"
                )
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
    for name, quantizer in prepared.quantizers():
        try:
            quantizer.freeze()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
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


def ptq(
    model: nn.Module, batches: Batches, qconfig: QConfig | None = None, engine: str | engines.Engine = "auto"
) -> Int8Network:
    """Prepare, calibrate, convert: from a trained float network to an integer one in one call.

    Args:
        model: The trained float network. It is not changed.
        batches: What :func:`qlab.calibrate` takes; the first image is also the example of :func:`qlab.prepare`.
        qconfig: What is quantized, and how. None means w8a8, with ``reduce_range`` where the engine needs it.
        engine: As in :func:`qlab.convert`; "auto" is the fastest that works on this machine.

    Returns:
        The integer network. It takes and gives float32, as ``model`` does.

    Raises:
        ValueError: There is no batch; and what the three steps raise.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 3, 8, 8)
    >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
    >>> network = torch.nn.Sequential(*layers)
    >>> int8 = qlab.ptq(network, x.split(16), engine="reference")
    >>> qlab.analysis.sqnr(network(x), int8(x)) > 30  # dB
    True
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
