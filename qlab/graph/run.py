"""Running a network node by node: the one stepper of those that look inside or mend one layer after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from qlab.graph.layers import QuantLayer
from qlab.graph.nodes import RELUS, kind_of, module_of, name_of, only_reader
from qlab.modes import in_eval_mode
from qlab.quantizers import Quantizer

if TYPE_CHECKING:
    from qlab.graph.prepare import Prepared


class Stepper:
    """Runs the nodes of a graph one after the other on some batches, and forgets a value behind its last reader.

    So at most a few layers' values are kept. Between two steps a layer may be looked at, or changed.

    >>> network = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Flatten()))
    >>> stepper = Stepper(network, [torch.tensor([[-1.0, 2.0]])])
    >>> for node in network.graph.nodes:
    ...     if node.op != "output":
    ...         print(node.name, stepper.step(node))
    input_1 [tensor([[-1.,  2.]])]
    _0 [tensor([[0., 2.]])]
    _1 [tensor([[0., 2.]])]
    """

    def __init__(self, network: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self.batches = list(batches)
        self._runner = fx.Interpreter(network)
        self._values: dict[fx.Node, list] = {}
        self._last_reader = {source: node for node in network.graph.nodes for source in node.all_input_nodes}

    def inputs(self, node: fx.Node) -> list[Tensor]:
        """The first input of a node that is about to run, a tensor a batch."""
        return self._values[node.all_input_nodes[0]]

    @torch.no_grad()
    def step(self, node: fx.Node) -> list:
        """Run a node; what it gives for each batch. An output gives what the network does."""
        if node.op == "placeholder":
            given = list(self.batches)
        else:
            given = [self._run(node, index) for index in range(len(self.batches))]
        self._values[node] = given
        return given

    @torch.no_grad()
    def rest(self, index: int = 0) -> Tensor:
        """What the network gives for one batch from here on; the stepper stays where it is."""
        known = {node: values[index] for node, values in self._values.items()}
        for node, value in known.items():
            if node.op == "output":
                return value
        return self._runner.run(self.batches[index], initial_env=known)  # an Interpreter skips the nodes that it knows

    def _run(self, node: fx.Node, index: int) -> object:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self._values[source][index])
        given = getattr(self._runner, node.op)(node.target, args, kwargs)
        for source in node.all_input_nodes:
            if self._last_reader.get(source) is node:
                self._values[source][index] = None
        return given


@contextmanager
def rounding(prepared: Prepared, active: Iterable[Quantizer]) -> Iterator[None]:
    """Eval mode, and no rounding but that of the ``active`` quantizers; afterwards as before."""
    active, modes = set(active), {quantizer: quantizer.mode for _, quantizer in prepared.quantizers()}
    for quantizer in modes:
        quantizer.mode = "quantize" if quantizer in active else "off"
    try:
        with in_eval_mode(prepared):
            yield
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode


def as_float(prepared: Prepared) -> fx.GraphModule:
    """A copy of the network in eval mode without any rounding, with the weights from before they were mended.

    >>> import qlab
    >>> x, network = torch.rand(8, 4), nn.Sequential(nn.Linear(4, 2))
    >>> prepared = qlab.correct_bias(qlab.calibrate(qlab.prepare(network, example=x), [x]), [x])
    >>> torch.equal(as_float(prepared)(x), network(x))
    True
    """
    network = copy.deepcopy(prepared.network).eval()
    for module in network.modules():
        if isinstance(module, Quantizer):
            module.mode = "off"
        elif isinstance(module, QuantLayer) and module.original is not None:
            weight, bias = module.original
            module.weight.data = weight.to(module.weight.device)
            module.bias = None if bias is None else nn.Parameter(bias.to(module.weight.device))
    return network


@dataclass(frozen=True)
class Stop:
    """A layer whose turn it is: what it sees in the quantized network, and what it gave in the float one.

    ``inputs`` and ``targets`` have one tensor a batch. All layers before it are quantized, and mended already.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    activation: str  # "relu" or "relu6" when that alone reads the layer, else ""
    inputs: list[Tensor]
    targets: list[Tensor]


def walk(prepared: Prepared, batches: Sequence[Tensor]) -> Iterator[Stop]:
    """Stop at each layer of ``prepared`` with quantized weights, in the order in which they run.

    Whoever walks may change the layer's weight and bias at its stop; what comes after sees the changed layer. A layer
    that is called twice has one stop, at its first call. Raises ValueError when there is no batch, RuntimeError before
    calibration.

    >>> import qlab
    >>> x, network = torch.rand(8, 4), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> prepared = qlab.calibrate(qlab.prepare(network, example=x), [x])
    >>> [(stop.name, stop.activation, stop.targets[0].shape) for stop in walk(prepared, [x])]
    [('0', 'relu', torch.Size([8, 6])), ('2', '', torch.Size([8, 2]))]
    """
    if not batches:
        raise ValueError("got no batch: give it at least one, for instance data.sample(512).batches(64)")
    floats, rounded = Stepper(as_float(prepared), batches), Stepper(prepared.network, batches)
    stopped: set[nn.Module] = set()
    with in_eval_mode(prepared):
        for node in prepared.network.graph.nodes:
            if node.op == "output":
                return
            layer, targets = module_of(node), floats.step(node)
            if isinstance(layer, QuantLayer) and layer not in stopped:
                stopped.add(layer)
                reader = only_reader(node)
                activation = kind_of(reader) if reader is not None and kind_of(reader) in RELUS else ""
                yield Stop(name_of(node), layer, activation, rounded.inputs(node), targets)
            rounded.step(node)
