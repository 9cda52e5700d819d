"""Which layers suffer, and where bits are well spent.

- Signal to quantization noise of each layer, float against fake-quantized on the same images.
- Sensitivity: one layer quantized at a time, or all but one. Wu et al., "Integer quantization for deep
  learning inference" (2020), section 5; Nagel et al., "A white paper on neural network quantization" (2021),
  section 3.7.
- Selective quantization: the layers that suffer most keep more bits (Wu et al. 2020, "partial quantization").
- Mixed precision: for a size, the bits of each layer that cost least. The search as an exact optimization
  over added costs is that of Yao et al., "HAWQ-V3" (2021), section 3.4; here the costs are measured, not
  taken from the Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab.graph.prepare import KEEPS_GRID, WEIGHTED, Prepared, fake_quantizer, prepare
from qlab.graph.report import Table
from qlab.graph.trace import kind_of
from qlab.graph.walk import as_float
from qlab.qconfig import QConfig


def sqnr(signal: Tensor, noisy: Tensor) -> float:
    """Signal to quantization noise ratio in decibel: 10 * log10(sum(signal**2) / sum((noisy - signal)**2)).

    Each halving of the step adds 6 dB. Infinite without noise, minus infinite without signal.

    >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    20.0

    Raises ValueError when the shapes differ.
    """
    ratio = Ratio()
    ratio.add(signal, noisy)
    return ratio.decibel


@dataclass
class Ratio:
    """The energies of a signal and of its noise, added up over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, signal: Tensor, noisy: Tensor) -> None:
        """Take in a batch."""
        if signal.shape != noisy.shape:
            raise ValueError(
                f"a signal of shape {tuple(signal.shape)} and a noisy one of shape {tuple(noisy.shape)}: "
                "expected the same tensor twice, float and quantized"
            )
        self.signal += float(signal.detach().double().square().sum())
        self.noise += float((noisy.detach().double() - signal.detach().double()).square().sum())

    @property
    def decibel(self) -> float:
        """Signal by noise, in dB."""
        return _decibel(self.noise / self.signal) if self.signal else -math.inf if self.noise else math.inf


def _decibel(noise: float) -> float:
    """The SQNR of this much noise relative to the signal."""
    return -10 * math.log10(noise) if noise else math.inf


# ---- signal and noise of each layer ----


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

    ``batches`` yield x or (x, y). Both networks run in lock-step, node by node, so no more than the live
    values of one batch are kept. The noise of a layer's input is what has come together in all layers before
    it. Returns a table of :class:`LayerSQNR` in the network's order. Raises ValueError when there is no
    batch, RuntimeError before calibration.
    """
    floats, training = as_float(prepared).eval(), prepared.training
    prepared.eval()
    inputs: dict[str, Ratio] = {}
    outputs: dict[str, Ratio] = {}
    try:
        for x, _ in tqdm(_pairs(batches), "SQNR", unit="batch", leave=False, delay=2, disable=not progress):
            for name, seen, given in _lock_step(prepared.network, floats, x):
                inputs.setdefault(name, Ratio()).add(*seen)
                outputs.setdefault(name, Ratio()).add(*given)
    finally:
        prepared.train(training)
    rows = []
    for name, layer in prepared.weighted():
        weight = sqnr(floats.get_submodule(name).weight, layer.weight_quantizer(layer.weight))
        rows.append(LayerSQNR(name, weight, inputs[name].decibel, outputs[name].decibel))
    return Table("signal to quantization noise in dB: weights, input, output of each layer", rows)


def _lock_step(network: fx.GraphModule, floats: fx.GraphModule, x: Tensor) -> Iterator[tuple[str, tuple, tuple]]:
    """(name, (float input, quantized input), (float output, quantized output)) of each layer with weights."""
    runners = fx.Interpreter(floats), fx.Interpreter(network)
    last_reader = {source: node for node in network.graph.nodes for source in node.all_input_nodes}
    values: dict[fx.Node, tuple[Tensor, Tensor]] = {}
    for node in network.graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = x, x
            continue
        pair = []
        for side, runner in enumerate(runners):
            known = {source: values[source][side] for source in node.all_input_nodes}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.get)
            pair.append(getattr(runner, node.op)(node.target, args, kwargs))
        if node.op == "call_module" and hasattr(network.get_submodule(node.target), "weight_quantizer"):
            yield str(node.target), values[node.args[0]], tuple(pair)
        values[node] = tuple(pair)
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                values.pop(source, None)


# ---- one layer at a time ----


@dataclass(frozen=True)
class Sensitivity:
    """What the answers are worth with one layer quantized, or all but one: SQNR in dB, loss, percent."""

    layer: str
    sqnr: float
    loss: float | None = None
    accuracy: float | None = None


def sensitivity(prepared: Prepared, batches: Iterable, *, alone: bool = True, progress: bool = True) -> Table:
    """Quantize one layer at a time, its weights and its input, and see what that does to the network's
    answers.

    ``batches`` is a Dataset, or yields x or (x, y); with labels, loss and accuracy are measured too.
    ``alone`` False asks the converse: all layers are quantized but this one. Returns a table of
    :class:`Sensitivity`, the most sensitive layer first: the one that alone leaves the lowest SQNR, or whose
    sparing gives the highest. The float network is ``prepared`` without rounding. Raises ValueError when
    there is no batch, RuntimeError before calibration.
    """
    pairs = _pairs(batches)
    everything = [quantizer for _, quantizer in prepared.quantizers()]
    with _quantizing(prepared, []):
        floats = [_answer(prepared, x) for x, _ in pairs]
    rows = []
    layers = _own_quantizers(prepared).items()
    for name, own in tqdm(layers, "sensitivity", unit="layer", leave=False, delay=2, disable=not progress):
        active = own if alone else [quantizer for quantizer in everything if quantizer not in own]
        with _quantizing(prepared, active):
            rows.append(Sensitivity(name, *_score(prepared, pairs, floats)))
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
    spared = {row.layer: plain.at_least(bits) if bits else None for row in rows[:worst]}
    return replace(qconfig, overrides={**qconfig.overrides, **spared})


def _own_quantizers(prepared: Prepared) -> dict[str, list[nn.Module]]:
    """For each layer with weights: the fake-quantizers of its weights and of its input."""
    found: dict[str, list[nn.Module]] = {}
    for node in prepared.network.graph.nodes:
        layer = prepared.network.get_submodule(node.target) if node.op == "call_module" else None
        if hasattr(layer, "weight_quantizer"):
            source = node.args[0]
            while kind_of(source) in KEEPS_GRID:
                source = source.args[0]
            behind = prepared.network.get_submodule(source.target) if source.op == "call_module" else None
            own = found.setdefault(str(node.target), [layer.weight_quantizer])
            own += [behind] if hasattr(behind, "freeze") else []
    return found


@contextmanager
def _quantizing(prepared: Prepared, active: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode, and no rounding but that of the ``active`` fake-quantizers; afterwards as before."""
    training, modes = prepared.training, {quantizer: quantizer.mode for _, quantizer in prepared.quantizers()}
    prepared.eval()
    for quantizer in modes:
        quantizer.mode = "quantize" if quantizer in active else "off"
    try:
        yield
    finally:
        prepared.train(training)
        for quantizer, mode in modes.items():
            quantizer.mode = mode


@torch.no_grad()
def _answer(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


def _score(network: nn.Module, pairs: list, floats: list[Tensor]) -> tuple[float, float | None, float | None]:
    """SQNR of the answers against the float network's; mean loss and accuracy where there are labels."""
    ratio, loss, correct, count = Ratio(), 0.0, 0, 0
    for (x, y), expected in zip(pairs, floats):
        logits = _answer(network, x)
        ratio.add(expected, logits)
        if y is not None:
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
            count += len(y)
    return ratio.decibel, loss / count if count else None, 100 * correct / count if count else None


def _pairs(batches: Iterable) -> list[tuple[Tensor, Tensor | None]]:
    """A Dataset, or batches of x or (x, y), as a list of (x, y or None)."""
    batches = batches.batches(64) if hasattr(batches, "batches") else batches
    pairs = [tuple(batch) if isinstance(batch, (tuple, list)) else (batch, None) for batch in batches]
    if not pairs:
        raise ValueError("got no batch: give it at least one, for instance data.sample(256).batches(64)")
    return pairs


# ---- mixed precision ----


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
        return _decibel(self.noise)

    def __str__(self) -> str:
        chosen = [cost for cost in self.front.costs if self.bits[cost.layer] == cost.bits]
        return str(Table(f"{self.size_bytes:,} bytes of weights, {self.sqnr:.1f} dB predicted", chosen))


def mixed_precision(
    model: nn.Module, batches: Iterable, budget_bytes: int, bits: Sequence[int] = (2, 3, 4, 6, 8), *,
    qconfig: QConfig | None = None, example: Tensor | None = None, progress: bool = True,
) -> MixedPrecision:  # fmt: skip
    """The bits of each layer that bring the least noise into the answers, within ``budget_bytes`` of weights.

    ``batches`` is a Dataset or yields x or (x, y); labels are not looked at, 128 images do. ``qconfig``
    (None: w8a8) says the rest: observer and granularity of the weights, and the activations; its overrides
    stay, and what they leave in float is not counted. The size is that of the packed codes; scales and biases
    are the same for every choice. The choice is the best for the measured costs. That they add up is an
    assumption, which holds while the noise is small and the layers' errors are not alike. ``front`` of the
    result has all other sizes. Raises ValueError when no choice is small enough.
    """
    costs = bit_costs(model, batches, bits, qconfig=qconfig, example=example, progress=progress)
    return Front(costs).best(budget_bytes)


def weight_bytes(prepared: Prepared) -> int:
    """Bytes of the codes of all quantized weights when they are packed, without scales and biases."""
    return sum(_packed(layer, layer.weight_quantizer.spec.bits) for _, layer in prepared.weighted())


def _packed(layer: nn.Module, bits: int) -> int:
    return math.ceil(layer.weight.numel() * bits / 8)


class BitCosts(Table):
    """The :class:`BitCost` of every layer and width, and the configuration of each."""

    def __init__(self, rows: Sequence[BitCost], qconfig: QConfig, layers: dict[str, QConfig]) -> None:
        super().__init__("noise that each layer's weights bring into the answers, alone", rows)
        self.qconfig, self.layers = qconfig, layers

    def choose(self, bits: dict[str, int]) -> QConfig:
        """The configuration with these bits for each layer's weights."""
        chosen = {name: _with_bits(self.layers[name], number) for name, number in bits.items()}
        return replace(self.qconfig, overrides={**self.qconfig.overrides, **chosen})


def bit_costs(
    model: nn.Module, batches: Iterable, bits: Sequence[int] = (2, 3, 4, 6, 8), *,
    qconfig: QConfig | None = None, example: Tensor | None = None, progress: bool = True,
) -> BitCosts:  # fmt: skip
    """What :func:`mixed_precision` chooses from: each layer's weights at each width, all else in float."""
    if not bits or len(set(bits)) < len(bits):
        raise ValueError(f"bits={tuple(bits)}: expected at least one width, and none twice")
    qconfig = QConfig.w8a8() if qconfig is None else qconfig
    pairs = _pairs(batches)
    prepared = prepare(model, qconfig, pairs[0][0][:1] if example is None else example)
    layers = {
        str(node.target): prepared.decisions[node.name].qconfig for node in prepared.network.graph.nodes
        if node.name in prepared.decisions and prepared.decisions[node.name].kind in WEIGHTED
        and prepared.decisions[node.name].qconfig is not None
    }  # fmt: skip
    weights = {
        (name, number): _rounded(prepared.network.get_submodule(name).weight, _with_bits(config, number))
        for name, config in layers.items() for number in sorted(bits)
    }  # fmt: skip
    ratios = {choice: Ratio() for choice in weights}
    turns = len(layers) * len(pairs)
    with (
        _quantizing(prepared, []),
        tqdm(None, "bits", turns, unit="layer", leave=False, delay=2, disable=not progress) as bar,
    ):
        for x, _ in pairs:
            expected = _answer(prepared, x)
            for name, rest in _resume_at_layers(prepared.network, x, layers):
                layer = prepared.network.get_submodule(name)
                for number in sorted(bits):
                    with _weight(layer, weights[name, number]):
                        ratios[name, number].add(expected, rest())
                bar.update()
    rows = [
        BitCost(name, number, _packed(prepared.network.get_submodule(name), number), ratio.decibel)
        for (name, number), ratio in ratios.items()
    ]
    return BitCosts(rows, qconfig, layers)


def _with_bits(qconfig: QConfig, bits: int) -> QConfig:
    """The configuration of one layer with other bits for its weights."""
    if "bits" not in {field.name for field in fields(qconfig.weight)}:
        raise ValueError(f"weight={qconfig.weight} has one width only; expected a QuantSpec or codebook.KMeans")
    return replace(qconfig, weight=replace(qconfig.weight, bits=bits), overrides={})


def _rounded(weight: Tensor, qconfig: QConfig) -> Tensor:
    """The weight, rounded to its grid."""
    quantizer = fake_quantizer(qconfig.weight)
    quantizer.observe()
    quantizer.observer(weight.detach())
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


@torch.no_grad()
def _resume_at_layers(
    network: fx.GraphModule, x: Tensor, layers: Iterable[str]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, a function that runs the network from there on) of each of the layers, in the order in which they run.

    What comes before a layer does not depend on it, so it runs once and not again for each of its weights.
    """
    runner, values = fx.Interpreter(network), {}
    left = set(layers)

    def rest() -> Tensor:
        return runner.run(initial_env=dict(values))  # an Interpreter skips the nodes that it knows

    last_reader = {source: node for node in network.graph.nodes for source in node.all_input_nodes}
    for node in network.graph.nodes:
        if node.op == "output":
            return
        if node.op == "call_module" and str(node.target) in left:
            left.remove(str(node.target))
            yield str(node.target), torch.no_grad()(rest)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.get)
        values[node] = x if node.op == "placeholder" else getattr(runner, node.op)(node.target, args, kwargs)
        values.update({source: None for source in node.all_input_nodes if last_reader[source] is node})


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
