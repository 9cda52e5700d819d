"""The float and the quantized network side by side, layer by layer, for methods that mend one layer after the
other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qlab.codebook import GridQuantizer
from qlab.graph.prepare import FakeQuantizer, Prepared
from qlab.graph.trace import kind_of, name_of


@dataclass(frozen=True)
class Stop:
    """A layer whose turn it is: what it sees in the quantized network, and what it gave in the float one.

    ``inputs`` and ``targets`` have one tensor a batch. All layers before it are quantized, and mended
    already.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    activation: str  # "relu" or "relu6" when that alone reads the layer, else ""
    inputs: list[Tensor]
    targets: list[Tensor]


def walk(prepared: Prepared, batches: Iterable) -> Iterator[Stop]:
    """Stop at each layer of ``prepared`` with quantized weights, in the order in which they run.

    ``batches`` yield x or (x, y). Whoever walks may change the layer's weight and bias at its stop; what
    comes after sees the changed layer. One pass, since the values of all images are kept until nobody needs
    them: at most a few layers' at a time. Raises ValueError when there is no batch, RuntimeError before
    calibration.
    """
    images = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    if not images:
        raise ValueError("got no batch: give it at least one, for instance data.sample(512).batches(64)")
    training = prepared.training
    prepared.eval()
    networks = as_float(prepared), prepared.network
    runners = [fx.Interpreter(network) for network in networks]
    values: list[dict[fx.Node, list]] = [{}, {}]
    last_reader = {source: node for node in prepared.network.graph.nodes for source in node.all_input_nodes}
    stopped: set[nn.Module] = set()
    try:
        for node in prepared.network.graph.nodes:
            if node.op == "output":
                break
            layer = prepared.network.get_submodule(node.target) if node.op == "call_module" else None
            done = [source for source in node.all_input_nodes if last_reader[source] is node]
            floats = _run(runners[0], node, values[0], images, done)
            if hasattr(layer, "weight_quantizer") and layer not in stopped:
                stopped.add(layer)
                inputs = values[1][node.all_input_nodes[0]]
                yield Stop(name_of(node), layer, _activation(node), inputs, floats)
            values[1][node] = _run(runners[1], node, values[1], images, done)
            values[0][node] = floats
    finally:
        prepared.train(training)


def as_float(prepared: Prepared) -> fx.GraphModule:
    """A copy of the network without any rounding, with the weights from before they were mended."""
    network = copy.deepcopy(prepared.network)
    for module in network.modules():
        if isinstance(module, (FakeQuantizer, GridQuantizer)):
            module.mode = "off"
        elif hasattr(module, "original"):
            module.weight.data, bias = (None if t is None else t.to(module.weight.device) for t in module.original)
            module.bias = None if bias is None else nn.Parameter(bias)
    return network


def original(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    """A layer's float weight and bias; the first call keeps a copy of them, later ones give that copy.

    So a method may be applied twice, or after another one, and still compare with the float network.
    """
    if not hasattr(layer, "original"):
        layer.original = (
            layer.weight.detach().clone(),
            None if layer.bias is None else layer.bias.detach().clone(),
        )
    return layer.original


@torch.no_grad()
def _run(runner: fx.Interpreter, node: fx.Node, values: dict, images: list[Tensor], done: list[fx.Node]) -> list:
    """What ``node`` gives for each batch.

    The values of ``done``, which nobody else reads, go as soon as they are used.
    """
    if node.op == "placeholder":
        return list(images)
    outputs = []
    for index in range(len(images)):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source][index])
        outputs.append(getattr(runner, node.op)(node.target, args, kwargs))
        for source in done:
            values[source][index] = None
    return outputs


def _activation(node: fx.Node) -> str:
    """The relu that alone reads this layer, if there is one."""
    reader = next(iter(node.users), None)
    return kind_of(reader) if len(node.users) == 1 and kind_of(reader) in ("relu", "relu6") else ""
