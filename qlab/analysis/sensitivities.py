"""Sensitivity: one layer quantized at a time, or all but one; and what to do with the layers that suffer most.

Wu et al., "Integer quantization for deep learning inference" (2020), section 5, which calls the latter partial
quantization; Nagel et al., "A white paper on neural network quantization" (2021), section 3.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab.batches import pairs
from qlab.graph.prepare import Prepared
from qlab.graph.run import rounding
from qlab.qconfig import QConfig
from qlab.ratio import Ratio
from qlab.tables import Table


@dataclass(frozen=True)
class Sensitivity:
    """What the answers are worth with one layer quantized, or all but one: SQNR in dB, loss, percent."""

    layer: str
    sqnr: float
    loss: float | None = None
    accuracy: float | None = None


def sensitivity(prepared: Prepared, batches: Iterable, *, alone: bool = True, progress: bool = True) -> Table:
    """Quantize one layer at a time, its weights and its input, and see what that does to the network's answers.

    Args:
        prepared: A calibrated network; without rounding it is the float one.
        batches: A Dataset, or batches x or (x, label). With labels, loss and accuracy are measured too.
        alone: False asks the converse: all layers are quantized but this one.
        progress: Show a bar when it takes over 2 seconds.

    Returns:
        A table of :class:`Sensitivity`, the most sensitive layer first: the one that alone leaves the lowest SQNR, or
        whose sparing gives the highest.

    Raises:
        ValueError: There is no batch.
        RuntimeError: The network was not calibrated.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(64, 8)
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> qconfig = qlab.QConfig.w8a8(overrides={"2": qlab.QConfig.preset("w2a8")})
    >>> prepared = qlab.calibrate(qlab.prepare(network, qconfig, x[:1]), [x])
    >>> [row.layer for row in qlab.analysis.sensitivity(prepared, [x])]  # the one of 2 bits comes first
    ['2', '0']
    """
    labelled = pairs(batches)
    everything, reads = {quantizer for _, quantizer in prepared.quantizers()}, prepared.input_quantizers()
    with prepared.quantizing(weights=False, activations=False):
        floats = [answer(prepared, x) for x, _ in labelled]
    rows, layers = [], list(prepared.weighted())
    for name, layer in tqdm(layers, "sensitivity", unit="layer", leave=False, delay=2, disable=not progress):
        own = {layer.weight_quantizer, *reads[name]}
        with rounding(prepared, own if alone else everything - own):
            rows.append(Sensitivity(name, *_score(prepared, labelled, floats)))
    rows.sort(key=lambda row: row.sqnr, reverse=not alone)
    return Table(f"answers with {'only this layer' if alone else 'all layers but this one'} quantized", rows)


def selective(rows: Sequence[Sensitivity], qconfig: QConfig, worst: int, *, bits: int | None = None) -> QConfig:
    """``qconfig``, but the ``worst`` most sensitive layers keep at least ``bits``, or stay in float (None).

    ``rows`` come from :func:`sensitivity`, the most sensitive first. What practitioners do before they train:
    calibrate with QConfig.preset(..., observer="percentile"), leave the few layers that suffer, fine-tune the
    rest.

    >>> rows = [Sensitivity("conv1", 8.0), Sensitivity("fc", 20.0)]
    >>> qconfig = selective(rows, QConfig.w4a4(), 1, bits=8)
    >>> qconfig.overrides["conv1"].weight.bits, "fc" in qconfig.overrides
    (8, False)

    Raises ValueError when ``worst`` is not from 0 to the number of rows.
    """
    if not 0 <= worst <= len(rows):
        raise ValueError(f"worst={worst}: expected 0 to {len(rows)}, the number of rows")
    plain = replace(qconfig, overrides={})
    spared: dict[str | type, QConfig | None] = {
        row.layer: plain.at_least(bits) if bits else None for row in rows[:worst]
    }
    return replace(qconfig, overrides={**qconfig.overrides, **spared})


@torch.no_grad()
def answer(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


def _score(network: nn.Module, labelled: list, floats: list[Tensor]) -> tuple[float, float | None, float | None]:
    """SQNR of the answers against the float network's; mean loss and accuracy where there are labels."""
    ratio, loss, correct, count = Ratio(), 0.0, 0, 0
    for (x, y), expected in zip(labelled, floats):
        logits = answer(network, x)
        ratio.add(expected, logits)
        if y is not None:
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
            count += len(y)
    return ratio.decibel, loss / count if count else None, 100 * correct / count if count else None
