"""From fake-quantized floats to integers: each fused group of a prepared network becomes one integer step.

Source: Jacob et al. (CVPR 2018), section 2.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from qlab.affine import QParams
from qlab.granularity import PerChannel, PerTensor
from qlab.graph.check import prove_integers
from qlab.graph.layers import QuantLayer
from qlab.graph.nodes import RELUS, WEIGHTED, joined_axis, module_of, name_of
from qlab.graph.prepare import Prepared
from qlab.int8 import engines
from qlab.int8 import modules as int8
from qlab.int8.modules import Int8Network, Program, Step
from qlab.quantizers import Quantizer


def convert(prepared: Prepared, engine: str | engines.Engine = "auto") -> Int8Network:
    """The integer network that a calibrated or trained network stands for.

    It proves itself: to within some codes it has to answer as the prepared one does.

    Args:
        prepared: What :func:`qlab.calibrate` or :func:`qlab.qat.fit` left. It is not changed.
        engine: Whose kernels compute: a name from ``qlab.int8.engines.available()``, or "auto", the fastest that works
            on this machine, or an engine itself.

    Returns:
        The integer network. It takes and gives float32.

    Raises:
        RuntimeError: The network was not calibrated.
        TypeError: ``prepared`` is not what :func:`qlab.prepare` gave.
        ValueError: A layer asks for what no 8-bit kernel does (9 bits and more, scales by group, a table of values, a
            smaller float, a range taken at run time), or the integers answer otherwise.

    >>> import qlab, torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> prepared = qlab.calibrate(qlab.prepare(network, example=torch.zeros(1, 4)), [torch.rand(8, 4)])
    >>> int8 = qlab.convert(prepared, "reference")
    >>> [layer.name for layer in int8.layers]
    ['input_1.quantize', '0', 'quantizers.0.dequantize']
    >>> int8(torch.rand(5, 4)).shape
    torch.Size([5, 2])
    """
    if not isinstance(prepared, Prepared):
        raise TypeError(f"convert takes what qlab.prepare gave, not a {type(prepared).__name__}")
    int8 = Int8Network(*_Builder(prepared).build(), prepared.report(), engine)
    if not int8.saturating:  # that was warned of, and gives other answers
        prove_integers(prepared, int8)
    return int8


@dataclass
class _Value:
    """What one node of the graph gives: as floats, as integers on a grid, or a layer that waits for its grid."""

    floats: int | None = None
    integers: int | None = None
    waiting: tuple[int8.Int8Layer, tuple[int, ...]] | None = None
    highest: float | None = None  # where a relu6 cuts off


@dataclass
class _Builder:
    """Walks the graph once, in order, and writes down the steps."""

    prepared: Prepared
    layers: list[int8.Int8Layer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    grids: list[QParams | None] = field(default_factory=lambda: [None])
    fusible: set[int] = field(default_factory=set)
    values: dict[fx.Node, _Value] = field(default_factory=dict)

    def build(self) -> tuple[list[int8.Int8Layer], Program]:
        for node in self.prepared.network.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = _Value(floats=0)
            elif node.op == "output":
                self._answer(node)
            else:
                self.values[node] = self._visit(node)
        program = Program(tuple(self.steps), tuple(self.grids), frozenset(self.fusible), self.prepared.input_shape)
        return self.layers, program

    def _visit(self, node: fx.Node) -> _Value:
        module = module_of(node)
        decision = self.prepared.decisions.get(node.name)
        if isinstance(module, Quantizer):
            return self._round(node, module)
        if decision is None or not decision.quantized:
            return self._float(node, module)
        kind = decision.kind
        if kind in RELUS:
            return self._relu(node, kind)
        inputs = tuple(self._integers(source) for source in node.all_input_nodes)
        if kind in WEIGHTED:
            return _Value(waiting=(_weighted(name_of(node), module, kind, relu=False), inputs))
        if kind == "add":
            inputs = tuple(self._integers(source) for source in node.args)  # x + x reads one value twice
            return _Value(waiting=(int8.Int8Add(name_of(node), relu=False), inputs))
        if kind == "cat":
            inputs = tuple(self._integers(source) for source in node.args[0])
            return _Value(waiting=(int8.Int8Cat(name_of(node), dim=joined_axis(node)), inputs))
        layer = _pool(name_of(node), module, kind)
        if kind in ("max_pool", "flatten"):
            return _Value(integers=self._step(layer, inputs, self.grids[inputs[0]]))
        return _Value(waiting=(layer, inputs))

    def _round(self, node: fx.Node, quantizer: Quantizer) -> _Value:
        """A quantizer: the layer that waited for its grid becomes a step, floats become integers."""
        source, grid = self.values[node.args[0]], quantizer.qparams
        if grid is None:
            raise ValueError(f"{node.target}: {quantizer.no_kernel}")
        if grid.bits > 8 or grid.signed:
            raise ValueError(
                f"{node.target} has {grid.bits} bits{', signed' if grid.signed else ''}: the integer kernels take "
                "activations of at most 8 bits, unsigned. Fewer bits, or stay with the prepared network."
            )
        if source.waiting is not None:
            _check_top(node, grid, source.highest)
            layer, inputs = source.waiting
            value = self._step(layer, inputs, grid)
        elif source.integers is not None:
            name = f"{name_of(node.args[0])}.requantize"
            value = self._step(int8.Requantize(name, relu=False), (source.integers,), grid)
        else:
            value = self._step(int8.Quantize(f"{name_of(node.args[0])}.quantize"), (self._floats(node.args[0]),), grid)
        if quantizer.fusible:
            self.fusible.add(value)
        return _Value(integers=value)

    def _relu(self, node: fx.Node, kind: str) -> _Value:
        """A relu is a clamp of codes: part of the layer before it, or a step of its own."""
        value = self.values[node.args[0]]
        if value.waiting is None:
            layer = int8.Requantize(name_of(node), relu=True)
            value = _Value(waiting=(layer, (self._integers(node.args[0]),)))
        assert value.waiting is not None
        value.waiting[0].options["relu"] = True
        value.highest = 6.0 if kind == "relu6" else None
        return value

    def _float(self, node: fx.Node, module: nn.Module | None) -> _Value:
        """A node that stays in float, or whose weights alone are integers."""
        inputs = tuple(self._floats(source) for source in node.all_input_nodes)
        if isinstance(module, QuantLayer):
            layer = _weighted(name_of(node), module, "weight_only")
        else:
            layer = int8.Float(name_of(node), self._in_float(node, module))
        return _Value(floats=self._step(layer, inputs, None))

    def _in_float(self, node: fx.Node, module: nn.Module | None) -> nn.Module:
        """What computes a node in float: its layer as it is when the inputs are all that it is called with."""
        if node.op == "get_attr":
            return int8.Constant(operator.attrgetter(node.target)(self.prepared.network))
        if module is None:
            return _call(node, node.target)
        module = copy.deepcopy(module).eval().requires_grad_(False)
        plain = list(node.args) == node.all_input_nodes and not node.kwargs
        return module if plain else _call(node, module)

    def _answer(self, node: fx.Node) -> None:
        """The last step: the network's answer in float; a step of its own when it is not one tensor."""
        answer = node.args[0]
        inputs = tuple(self._floats(source) for source in node.all_input_nodes)
        if not isinstance(answer, fx.Node):
            self._step(int8.Float("output", _call(node, int8.structure)), inputs, None)
        elif inputs[0] != self.steps[-1].output:  # it was computed before the last step
            self._step(int8.Float("output", nn.Identity()), inputs, None)

    def _step(self, layer: int8.Int8Layer, inputs: tuple[int, ...], grid: QParams | None) -> int:
        self.layers.append(layer)
        self.grids.append(grid)
        self.steps.append(Step(len(self.layers) - 1, inputs, len(self.grids) - 1))
        return len(self.grids) - 1

    def _integers(self, node: fx.Node) -> int:
        value = self.values[node].integers
        assert value is not None, f"{node} has no grid: prepare put no quantizer behind it"
        return value

    def _floats(self, node: fx.Node) -> int:
        value = self.values[node]
        if value.floats is None:
            value.floats = self._step(int8.Dequantize(f"{name_of(node)}.dequantize"), (self._integers(node),), None)
        return value.floats


def _check_top(node: fx.Node, grid: QParams, highest: float | None) -> None:
    """The top of the grid does the upper half of a relu6, so it must not lie above it."""
    top = float((grid.qmax - grid.zero_point) * grid.scale)
    if highest is not None and top > highest + 0.5 * float(grid.scale):
        raise ValueError(
            f"{node.target} reaches up to {top:.4g}, above the {highest:g} at which its relu6 cuts off: calibrate again, "
            "or use ReLU in that place"
        )


def _weighted(name: str, layer: QuantLayer, op: str, **options) -> int8.Weighted:
    """The integer layer of a convolution or linear layer: its weights as codes."""
    weight, bias = layer.folded()
    try:
        codes, qparams = layer.weight_quantizer.integers(weight)
    except ValueError as error:
        way = f"leave it in float with overrides={{{name!r}: None}}; or stay with the prepared network"
        raise ValueError(f"{name}: {error}; {way}") from error
    by_output = qparams.granularity.of(weight.shape) in (PerTensor(), PerChannel(0))
    if qparams.bits > 8 or not qparams.signed or not by_output:
        raise ValueError(
            f"{name}: weights of {qparams.bits} bits, signed={qparams.signed}, {qparams.granularity} have no "
            "integer kernel. Expected at most 8 bits, signed, PerTensor() or PerChannel(0)."
        )
    if isinstance(layer, nn.Conv2d):
        names = ("stride", "padding", "dilation", "groups")
        options = {**{name: getattr(layer, name) for name in names}, **options}
    cls = {"conv": int8.Int8Conv2d, "linear": int8.Int8Linear, "weight_only": int8.WeightOnly}[op]
    bias = None if bias is None else bias.detach().clone()
    return cls(name, codes.to(torch.int8), qparams.scale.clone(), bias, qparams.bits, **options)


def _call(node: fx.Node, target: Callable | str) -> int8.Call:
    """A call in the float network, its tensors replaced by their places among the inputs."""
    places = {source: int8.Input(place) for place, source in enumerate(node.all_input_nodes)}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.get)
    return int8.Call(target, args, dict(kwargs))


def _pool(name: str, module: nn.Module, kind: str) -> int8.Int8Layer:
    """The integer form of a pooling or flattening layer."""
    cls, names = {
        "max_pool": (int8.Int8MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
        "avg_pool": (int8.Int8AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
        "global_pool": (int8.Int8GlobalAvgPool2d, ("output_size",)),
        "flatten": (int8.Int8Flatten, ("start_dim", "end_dim")),
    }[kind]
    return cls(name, **{option: getattr(module, option) for option in names})
