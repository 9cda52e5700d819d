"""Mixed precision: for a size, the bits of each layer that cost the answers least.

The search as an exact optimization over added costs is that of Yao et al., "HAWQ-V3" (2021), section 3.4; here the
costs are measured, not taken from the Hessian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlab import quantizers
from qlab.analysis.sensitivities import answer
from qlab.batches import pairs
from qlab.graph.nodes import name_of
from qlab.graph.prepare import Prepared, prepare
from qlab.graph.run import Stepper
from qlab.qconfig import QConfig
from qlab.ratio import Ratio, decibel_of
from qlab.sizes import packed_bytes
from qlab.tables import Table


@dataclass(frozen=True)
class BitCost:
    """One layer at one width: bytes of its weights, and the SQNR in dB that they alone leave the answers."""

    layer: str
    bits: int
    size_bytes: int
    sqnr: float

    @property
    def noise(self) -> float:
        """The energy of the change of the answers relative to that of the answers; 0.01 is 20 dB."""
        return 10 ** (-self.sqnr / 10)


@dataclass(frozen=True)
class MixedPrecision:
    """A choice of bits; its ``noise`` is predicted: the sum of what the layers bring into the answers."""

    qconfig: QConfig
    bits: dict[str, int]
    size_bytes: int
    noise: float
    front: Front

    @property
    def sqnr(self) -> float:
        """The predicted SQNR of the network's answers in dB."""
        return decibel_of(self.noise)

    def __str__(self) -> str:
        chosen = [cost for cost in self.front.costs if self.bits[cost.layer] == cost.bits]
        return str(Table(f"{self.size_bytes:,} bytes of weights, {self.sqnr:.1f} dB predicted", chosen))


def mixed_precision(
    model: nn.Module, batches: Iterable, budget_bytes: int, bits: Sequence[int] = (2, 3, 4, 6, 8), *,
    qconfig: QConfig | None = None, example: Tensor | None = None, progress: bool = True,
) -> MixedPrecision:  # fmt: skip
    """The bits of each layer that bring the least noise into the answers, within a budget for the weights.

    The choice is the best for the measured costs. That they add up is an assumption, which holds while the noise is
    small and the layers' errors are not alike (Yao et al. 2021, section 3.4).

    Args:
        model: The trained float network. It is not changed.
        batches: A Dataset, or batches x or (x, label) whose label is not looked at; 128 images do.
        budget_bytes: Of all packed codes; scales and biases are the same for every choice.
        bits: The widths to choose from, none twice.
        qconfig: The rest: observer and granularity of the weights, and the activations. Its overrides stay, and what
            they leave in float is not counted. None means w8a8.
        example: As in :func:`qlab.prepare`. None: the first image.
        progress: Show a bar when it takes over 2 seconds.

    Returns:
        The choice, its ``qconfig`` ready for :func:`qlab.prepare`; its ``front`` has all other sizes.

    Raises:
        ValueError: No choice is small enough, there is no batch, or ``bits`` names a width twice.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(32, 8)
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> choice = qlab.analysis.mixed_precision(network, [x], budget_bytes=64, bits=(2, 4, 8))
    >>> choice.bits, choice.size_bytes
    ({'0': 4, '2': 8}, 64)
    """
    costs = bit_costs(model, batches, bits, qconfig=qconfig, example=example, progress=progress)
    return Front(costs).best(budget_bytes)


def weight_bytes(prepared: Prepared) -> int:
    """Bytes of the codes of all quantized weights when they are packed, without scales and biases.

    >>> import qlab, torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> weight_bytes(qlab.prepare(network, qlab.QConfig.w4a8(first_last=None), torch.zeros(1, 16)))
    64
    """
    return sum(packed_bytes(layer.weight.numel(), layer.weight_quantizer.spec.bits) for _, layer in prepared.weighted())


class BitCosts(Table):
    """The :class:`BitCost` of every layer and width, and the configuration of each."""

    def __init__(self, rows: Sequence[BitCost], qconfig: QConfig, layers: dict[str, QConfig]) -> None:
        super().__init__("noise that each layer's weights bring into the answers, alone", rows)
        self.qconfig, self.layers = qconfig, layers

    def choose(self, bits: dict[str, int]) -> QConfig:
        """The configuration with these bits for each layer's weights."""
        chosen = {name: _with_bits(self.layers[name], number) for name, number in bits.items()}
        overrides: dict[str | type, QConfig | None] = dict(self.qconfig.overrides)
        overrides.update(chosen)
        return replace(self.qconfig, overrides=overrides)


def bit_costs(
    model: nn.Module, batches: Iterable, bits: Sequence[int] = (2, 3, 4, 6, 8), *,
    qconfig: QConfig | None = None, example: Tensor | None = None, progress: bool = True,
) -> BitCosts:  # fmt: skip
    """What :func:`mixed_precision` chooses from: each layer's weights at each width, all else in float.

    The arguments and what is raised are those of :func:`mixed_precision`.

    Returns:
        A table of :class:`BitCost`, layer by layer, in the order of the widths.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> costs = qlab.analysis.bit_costs(torch.nn.Sequential(torch.nn.Linear(8, 4)), [torch.rand(32, 8)], bits=(2, 4))
    >>> [(cost.layer, cost.bits, cost.size_bytes) for cost in costs], costs[0].sqnr < costs[1].sqnr
    ([('0', 2, 8), ('0', 4, 16)], True)
    """
    if not bits or len(set(bits)) < len(bits):
        raise ValueError(f"bits={tuple(bits)}: expected at least one width, and none twice")
    qconfig = QConfig.w8a8() if qconfig is None else qconfig
    images = [x for x, _ in pairs(batches)]
    prepared = prepare(model, qconfig, images[0][:1] if example is None else example)
    layers, configs = dict(prepared.weighted()), prepared.layer_configs()
    weights = {
        (name, number): _rounded(layer.weight, _with_bits(configs[name], number))
        for name, layer in layers.items() for number in sorted(bits)
    }  # fmt: skip
    ratios = {choice: Ratio() for choice in weights}
    turns = len(layers) * len(images)
    with (
        prepared.quantizing(weights=False, activations=False),
        tqdm(None, "bits", turns, unit="layer", leave=False, delay=2, disable=not progress) as bar,
    ):
        for x in images:
            expected = answer(prepared, x)
            for name, stepper in _stops(prepared, x):
                for number in sorted(bits):
                    with _weight(layers[name], weights[name, number]):
                        ratios[name, number].add(expected, stepper.rest())
                bar.update()
    rows = [
        BitCost(name, number, packed_bytes(layers[name].weight.numel(), number), ratio.decibel)
        for (name, number), ratio in ratios.items()
    ]
    return BitCosts(rows, qconfig, configs)


def _stops(prepared: Prepared, x: Tensor) -> Iterator[tuple[str, Stepper]]:
    """(name, stepper) where each layer with weights is about to run for the first time.

    What comes before a layer does not depend on it, so it runs once and not again for each of its weights.
    """
    stepper, left = Stepper(prepared.network, [x]), {name for name, _ in prepared.weighted()}
    for node in prepared.network.graph.nodes:
        if not left:
            return
        if name_of(node) in left:
            left.remove(name_of(node))
            yield name_of(node), stepper
        stepper.step(node)


def _with_bits(qconfig: QConfig, bits: int) -> QConfig:
    """The configuration of one layer with other bits for its weights."""
    weight: Any = qconfig.weight
    if "bits" not in {field.name for field in fields(weight)}:
        raise ValueError(f"weight={qconfig.weight} has one width only; expected a QuantSpec or KMeans")
    return replace(qconfig, weight=replace(weight, bits=bits), overrides={})


def _rounded(weight: Tensor, qconfig: QConfig) -> Tensor:
    """The weight, rounded to its grid."""
    quantizer = quantizers.build(qconfig.weight)
    quantizer.observe()
    quantizer.look_at(weight.detach())
    quantizer.freeze()
    return quantizer(weight).detach()


@contextmanager
def _weight(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """The layer with another weight, for a while."""
    own = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = own


class Front:
    """Every choice of bits that no other beats in size and noise at once: the exact Pareto front.

    Built layer by layer: of all sums of size and of noise so far, keep those that are not beaten, since what
    is beaten now is beaten whatever follows. ``size_bytes`` (ascending) and ``noise`` (descending) are its
    points, to be plotted.

    >>> a = [BitCost("a", 2, 2, 9.0), BitCost("a", 4, 4, 21.0)]
    >>> b = [BitCost("b", 2, 20, 10.0), BitCost("b", 4, 40, 22.0)]
    >>> front = Front(BitCosts(a + b, QConfig.w8a8(), {"a": QConfig.w8a8(), "b": QConfig.w8a8()}))
    >>> front.size_bytes.tolist(), front.best(30).bits  # not 42: larger than 24, and noisier
    ([22, 24, 44], {'a': 4, 'b': 2})
    """

    def __init__(self, costs: BitCosts) -> None:
        self.costs = costs
        self._options: dict[str, list[BitCost]] = {}
        for cost in costs:
            self._options.setdefault(cost.layer, []).append(cost)
        self.size_bytes, self.noise = np.zeros(1, dtype=np.int64), np.zeros(1)
        self._trail: list[np.ndarray] = []  # of each layer, for each point: the point before * options + the option
        for options in self._options.values():
            size = (self.size_bytes[:, None] + np.array([option.size_bytes for option in options])).ravel()
            noise = (self.noise[:, None] + np.array([option.noise for option in options])).ravel()
            order = np.lexsort((noise, size))
            least = np.minimum.accumulate(noise[order])
            kept = order[np.concatenate([[True], noise[order][1:] < least[:-1]])]
            self.size_bytes, self.noise = size[kept], noise[kept]
            self._trail.append(kept)

    def best(self, budget_bytes: int) -> MixedPrecision:
        """The least noise within a budget. Raises ValueError when even the smallest choice is larger."""
        point = int(np.searchsorted(self.size_bytes, budget_bytes, side="right")) - 1
        if point < 0:
            raise ValueError(
                f"budget_bytes={budget_bytes:,}: the smallest choice has {self.size_bytes[0]:,} bytes of "
                "weights; expected at least that, or offer fewer bits"
            )
        size, noise, bits = int(self.size_bytes[point]), float(self.noise[point]), {}
        for (layer, options), kept in zip(reversed(self._options.items()), reversed(self._trail)):
            point, option = divmod(int(kept[point]), len(options))
            bits[layer] = options[option].bits
        bits = dict(reversed(bits.items()))
        return MixedPrecision(self.costs.choose(bits), bits, size, noise, self)
