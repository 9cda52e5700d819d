"""The noise of each layer: float against rounded, on the same images.

Nagel et al., "A white paper on neural network quantization" (2021), section 3.7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from qlab.batches import pairs
from qlab.graph.nodes import name_of
from qlab.graph.prepare import Prepared
from qlab.graph.run import Stepper, as_float
from qlab.modes import in_eval_mode
from qlab.ratio import Ratio, sqnr
from qlab.tables import Table


@dataclass(frozen=True)
class LayerSQNR:
    """One layer: the SQNR in dB of its weights, of its input, and of what it gives (before a relu)."""

    layer: str
    weight: float
    input: float
    output: float


@torch.no_grad()
def layer_sqnr(prepared: Prepared, batches: Iterable, *, progress: bool = True) -> Table:
    """How much of each layer's signal is left: float against fake-quantized, on the same images.

    Both networks run in lock-step, node by node, so no more than the live values of one batch are kept. The noise of a
    layer's input is what has come together in all layers before it.

    Args:
        prepared: A calibrated network.
        batches: A Dataset, or batches x or (x, label) whose label is not looked at.
        progress: Show a bar when it takes over 2 seconds.

    Returns:
        A table of :class:`LayerSQNR`, in dB, in the network's order.

    Raises:
        ValueError: There is no batch.
        RuntimeError: The network was not calibrated.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(64, 8)
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> prepared = qlab.calibrate(qlab.prepare(network, qlab.QConfig.w4a4(first_last=None), x[:1]), [x])
    >>> [(row.layer, round(row.input)) for row in qlab.analysis.layer_sqnr(prepared, [x])]
    [('0', 30), ('2', 22)]
    """
    floats, layers = as_float(prepared), dict(prepared.weighted())
    read, given = {name: Ratio() for name in layers}, {name: Ratio() for name in layers}
    with in_eval_mode(prepared):
        for x, _ in tqdm(pairs(batches), "SQNR", unit="batch", leave=False, delay=2, disable=not progress):
            both = Stepper(floats, [x]), Stepper(prepared.network, [x])
            for node in prepared.network.graph.nodes:
                name = name_of(node)
                if name in layers:
                    read[name].add(*(stepper.inputs(node)[0] for stepper in both))
                outputs = [stepper.step(node)[0] for stepper in both]
                if name in layers:
                    given[name].add(*outputs)
    rows = []
    for name, layer in layers.items():
        weight = sqnr(floats.get_submodule(name).weight, layer.weight_quantizer(layer.weight))
        rows.append(LayerSQNR(name, weight, read[name].decibel, given[name].decibel))
    return Table("signal to quantization noise in dB: weights, input, output of each layer", rows)
