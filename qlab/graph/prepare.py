"""From a float network to one that behaves as its integer form will: a fake-quantizer on every edge that matters.

The fake-quantizers stand where the integer network will round: behind a whole fused group (convolution + relu,
convolution + addition + relu), not inside it. Source: Jacob et al. (CVPR 2018), sections 3 and 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qlab import observers
from qlab.affine import QParams, fake_quantize
from qlab.codebook import Grid, GridQuantizer
from qlab.graph.equalize import equalize as equalize_layers
from qlab.graph.fold import fold_batchnorm
from qlab.graph.report import Report, Row
from qlab.graph.trace import insert_module, kind_of, name_of, shape_of, trace
from qlab.qconfig import QConfig, QuantSpec

WEIGHTED = ("conv", "linear")
KEEPS_GRID = ("max_pool", "flatten")  # what comes out lies on the grid of what went in
WEIGHTLESS = ("add", "cat", "relu", "relu6", "avg_pool", "global_pool", *KEEPS_GRID)


class FakeQuantizer(nn.Module):
    """Rounds a tensor to the grid of its :class:`QParams`.

    ``mode`` is "quantize"; or "observe", which lets the values pass and collects them; or "off", which lets them pass.
    ``fusible`` marks an edge inside convolution + addition, and ``fused`` says that the two are one step there, which
    does not round between them. ``needs_data`` says whether it can only be used after calibration.
    """

    needs_data = True

    def __init__(self, spec: QuantSpec, *, fusible: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.fusible = self.fused = fusible
        self.mode = "quantize"
        self.observer = observers.build(spec)
        self.register_buffer("scale", None)  # None until the range is known
        self.register_buffer("zero_point", None)
        self._qparams: QParams | None = None  # made once from the buffers, since a training step is made of these

    @property
    def qparams(self) -> QParams:
        """The grid; raises RuntimeError before calibration."""
        if self._qparams is None:
            if self.scale is None:
                raise RuntimeError(
                    "this network has not been calibrated, so no range is known: "
                    "call qlab.calibrate(prepared, batches) first"
                )
            self._qparams = self.spec.qparams(self.scale, self.zero_point)
        return self._qparams

    @qparams.setter
    def qparams(self, value: QParams) -> None:
        self.scale, self.zero_point = value.scale, value.zero_point
        self._qparams = None

    def _apply(self, fn, recurse=True):
        self._qparams = None  # the buffers move to another device or type
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in ("scale", "zero_point"):  # a fresh quantizer has no grid yet: make room for the one that comes
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        self._qparams = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def observe(self) -> None:
        """Begin to observe, forgetting what was seen before."""
        self.observer = observers.build(self.spec)
        self.mode = "observe"

    def freeze(self) -> None:
        """End observing: the observer's range becomes the grid."""
        self.qparams = self.observer.qparams()
        self.mode = "quantize"

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "quantize":
            return x if self.fused else fake_quantize(x, self.qparams)
        if self.mode == "observe":
            self.observer(x.detach())
        return x


class DynamicQuantizer(FakeQuantizer):
    """Takes its range anew from each batch that it rounds: nothing to calibrate, but a search for the ends every time.

    PerTensor() shares one range among the batch, PerChannel(0) gives each image its own.
    """

    needs_data = False

    @property
    def qparams(self) -> None:
        """None: there is a grid only where there is a batch."""
        return None

    def freeze(self) -> None:
        """End observing."""
        self.mode = "quantize"

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "quantize" or self.fused:
            return x
        observer = observers.build(self.spec)
        observer(x.detach())
        return fake_quantize(x, observer.qparams())


def fake_quantizer(spec: QuantSpec | Grid, *, fusible: bool = False) -> FakeQuantizer | GridQuantizer:
    """The fake-quantizer that a spec asks for."""
    if isinstance(spec, Grid):
        return spec.quantizer(fusible=fusible)
    return (DynamicQuantizer if spec.observer == "dynamic" else FakeQuantizer)(spec, fusible=fusible)


class QuantConv2d(nn.Conv2d):
    """A convolution that sees its own weights through a fake-quantizer."""

    kind = "conv"
    weight_quantizer: FakeQuantizer | GridQuantizer

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """A linear layer that sees its own weights through a fake-quantizer."""

    kind = "linear"
    weight_quantizer: FakeQuantizer | GridQuantizer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


@dataclass
class Decision:
    """What happens to one node: its configuration, and the reason when it stays in float (empty: quantized)."""

    kind: str
    qconfig: QConfig | None
    float_because: str = ""

    @property
    def quantized(self) -> bool:
        """Will this node compute on integers?"""
        return not self.float_because


class Prepared(nn.Module):
    """A network with fake-quantizers. ``network`` is the torch.fx graph, ``report()`` says what is quantized."""

    def __init__(self, network: fx.GraphModule, decisions: dict[str, Decision], example: Tensor) -> None:
        super().__init__()
        self.network = network
        self.decisions = decisions  # by the node's name
        self.input_shape = tuple(example.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def weighted(self) -> Iterator[tuple[str, QuantConv2d | QuantLinear]]:
        """(name, layer) of every layer whose weights are quantized."""
        return ((name, m) for name, m in self.network.named_modules() if hasattr(m, "weight_quantizer"))

    def quantizers(self) -> Iterator[tuple[str, FakeQuantizer | GridQuantizer]]:
        """(name, fake-quantizer) of every weight and every edge."""
        kinds = (FakeQuantizer, GridQuantizer)
        return ((name, m) for name, m in self.network.named_modules() if isinstance(m, kinds))

    def fuse_additions(self, fused: bool = True) -> Prepared:
        """Whether convolution + addition is rounded once, behind both (the default), or also in between; returns self.

        Engines differ in this: onednn and the reference fuse the two, fbgemm, qnnpack and x86 cannot.
        """
        for _, quantizer in self.quantizers():
            quantizer.fused = quantizer.fusible and fused
        return self

    def report(self) -> Report:
        """Every layer: bits, granularity, observer; and why, if it stays in float."""
        rows = []
        for node in self.network.graph.nodes:
            decision = self.decisions.get(node.name)
            if decision is None or self._is_fused_into_head(node):
                continue
            tail = tail_of(node, self.decisions)
            kind = decision.kind if tail is node else f"{decision.kind} + {self.decisions[tail.name].kind}"
            row = {"layer": name_of(node), "kind": kind, "float_because": decision.float_because}
            module = self.network.get_submodule(node.target) if node.op == "call_module" else None
            if hasattr(module, "weight_quantizer"):
                row["weight"] = _in_words(module.weight_quantizer.spec)
            spec = self.grid(next(iter(node.all_input_nodes), None))
            if decision.quantized and spec is not None:
                row["input"], row["observer"] = _in_words(spec), _observer_name(spec)
            rows.append(Row(**row))
        quantized = sum(not row.float_because for row in rows)
        return Report(f"{quantized} of {len(rows)} layers are quantized", rows)

    def _is_fused_into_head(self, node: fx.Node) -> bool:
        before = next(iter(node.all_input_nodes), node)
        return _is_quantized(before, self.decisions) and tail_of(before, self.decisions) is node is not before

    def grid(self, node: fx.Node | None) -> QuantSpec | Grid | None:
        """The spec of the grid on which a node's output lies, None when it is float."""
        while node is not None and node.op == "call_module":
            module = self.network.get_submodule(node.target)
            if isinstance(module, (FakeQuantizer, GridQuantizer)):
                return module.spec
            if kind_of(node) not in KEEPS_GRID:
                return None
            node = node.args[0]
        return None


def prepare(
    model: nn.Module,
    qconfig: QConfig | None = None,
    example: Tensor | None = None,
    *,
    leaves=(),
    equalize: bool = False,
) -> Prepared:
    """Trace ``model``, fold its BatchNorms, and put a fake-quantizer on each weight and each edge to be quantized.

    ``qconfig`` None means w8a8; ``example`` is one input batch, by default torch.zeros(1, 3, 32, 32); ``leaves`` are
    block types to leave whole and in float; ``equalize`` evens out the channels' ranges (:mod:`qlab.graph.equalize`).
    The model itself is not changed. Raises ValueError when the network cannot be traced, when the example does not
    fit, and when nothing in it can be quantized.
    """
    qconfig = QConfig.w8a8() if qconfig is None else qconfig
    example = torch.zeros(1, 3, 32, 32) if example is None else example
    device = next((p.device for p in model.parameters()), example.device)
    example = example.to(device)
    network = fold_batchnorm(trace(model, example, tuple(leaves)))
    if equalize:
        equalize_layers(network)
    decisions = _decide(network, qconfig)
    weighted = [d for d in decisions.values() if d.kind in WEIGHTED and (d.quantized or d.qconfig is not None)]
    if not weighted:
        found = ", ".join(sorted({type(m).__name__ for _, m in model.named_modules() if not list(m.children())}))
        raise ValueError(
            f"nothing to quantize: {type(model).__name__} has no Conv2d or Linear that the QConfig does not leave in "
            f"float. It has: {found or 'no layers'}. Check `overrides` and `leaves`."
        )
    _quantize_weights(network, decisions)
    _quantize_edges(network, decisions, qconfig)
    _run_in_place(network)
    network.recompile()
    return Prepared(network, decisions, example)


def _decide(network: fx.GraphModule, qconfig: QConfig) -> dict[str, Decision]:
    """Which nodes will compute on integers; in order, since an addition follows what it adds."""
    layers = [node for node in network.graph.nodes if kind_of(node) in WEIGHTED]
    edges = layers[:1] + layers[-1:]
    decisions: dict[str, Decision] = {}
    for node in network.graph.nodes:
        kind = kind_of(node)
        if kind in ("input", "output") or node.op == "get_attr" or shape_of(node) is None:
            continue
        module = network.get_submodule(node.target) if node.op == "call_module" else nn.Identity()
        config = qconfig.layer(name_of(node), module, edge=node in edges, shortcut=_is_shortcut(node, module))
        if config is None:
            because = "left in float by overrides"
        elif kind in WEIGHTED:
            because = _no_kernel(module) or ("" if config.activation else "weights only: activations stay in float")
        elif kind in WEIGHTLESS:
            feeds = [decisions.get(source.name) for source in node.all_input_nodes]
            because = _cannot_carry(node) or ("" if any(d and d.quantized for d in feeds) else "its inputs are float")
        else:
            because = f"no integer kernel for {_what(node, module)}"
        if because and kind in WEIGHTED and _no_kernel(module):
            config = None
        decisions[node.name] = Decision(kind if kind != "other" else _what(node, module), config, because)
    return decisions


def _is_shortcut(node: fx.Node, module: nn.Module) -> bool:
    """Is this a 1x1 convolution that begins where another layer does, and ends in an addition?"""
    if kind_of(node) != "conv" or set(module.kernel_size) != {1}:
        return False
    others = [user for user in node.all_input_nodes[0].users if user is not node and kind_of(user) in WEIGHTED]
    return bool(others) and any(kind_of(user) == "add" for user in node.users)


def _no_kernel(layer: nn.Module) -> str:
    """Why this convolution or linear layer has no integer kernel; empty when it has one."""
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            return f"no integer kernel pads with padding_mode={layer.padding_mode!r}"
        if isinstance(layer.padding, str):
            return f"no integer kernel takes padding={layer.padding!r}: give it in numbers"
    return ""


def _cannot_carry(node: fx.Node) -> str:
    """Why this addition or concatenation cannot be done on integers; empty when it can."""
    if kind_of(node) == "add":
        shapes = [shape_of(arg) if isinstance(arg, fx.Node) else None for arg in node.args]
        if shapes[0] is None or shapes[0] != shapes[1]:
            return f"no integer kernel adds shapes {shapes[0]} and {shapes[1]}"
    if kind_of(node) == "global_pool" and node.graph.owning_module.get_submodule(node.target).output_size not in (
        1,
        (1, 1),
    ):
        return "only global average pooling, AdaptiveAvgPool2d(1), has an integer kernel"
    return ""


def _what(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        return type(module).__name__
    return getattr(node.target, "__name__", str(node.target))


def _quantize_weights(network: fx.GraphModule, decisions: dict[str, Decision]) -> None:
    """Each layer that the decisions give a configuration becomes one that fake-quantizes its weights."""
    for node in network.graph.nodes:
        decision = decisions.get(node.name)
        if decision is None or decision.kind not in WEIGHTED or decision.qconfig is None:
            continue
        layer = network.get_submodule(node.target)
        layer.__class__ = QuantConv2d if decision.kind == "conv" else QuantLinear
        layer.weight_quantizer = fake_quantizer(_spec_of(node.target, decision.qconfig.weight, layer.weight.shape))


def _spec_of(name: str, spec: QuantSpec | Grid, shape: Sequence[int]) -> QuantSpec | Grid:
    """The spec for tensors of this shape, whose axes are counted from the front; ValueError names who has no such axis."""
    try:
        return replace(spec, granularity=spec.granularity.of(shape))
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Choose PerChannel(0), or other axes with overrides") from None


def tail_of(node: fx.Node, decisions: dict[str, Decision]) -> fx.Node:
    """The last node of the fused group that ``node`` starts: its relu, if that alone reads it, else itself."""
    reader = next(iter(node.users), None)
    if len(node.users) == 1 and kind_of(reader) in ("relu", "relu6") and kind_of(node) in (*WEIGHTED, "add"):
        decision = decisions.get(reader.name)
        if decision is not None and decision.quantized:
            return reader
    return node


def _quantize_edges(network: fx.GraphModule, decisions: dict[str, Decision], qconfig: QConfig) -> None:
    """A fake-quantizer behind each value that integer layers give or take; a second one where readers need fewer bits."""
    nodes = [node for node in network.graph.nodes if node.op != "output"]
    integer = [node for node in nodes if _is_quantized(node, decisions)]
    fused = {tail_of(node, decisions): node for node in integer if tail_of(node, decisions) is not node}
    inside = set(fused.values())
    heads = {node: fused.get(node, node) for node in integer if node not in inside}  # by the node that gives the value
    wanted: dict[fx.Node, list[tuple[fx.Node, QuantSpec]]] = {}
    for node in reversed(nodes):  # readers first: what only passes values on wants what its own readers want
        if node in inside or shape_of(node) is None:
            continue
        wanted[node] = [(u, s) for u in node.users if (s := _wants(u, decisions, wanted, qconfig)) is not None]
    for node in nodes:
        specs = [spec for _, spec in wanted.get(node, [])]
        gives_integers = node in heads
        if not specs and gives_integers:
            specs = [qconfig.elementwise]
        if node in wanted and specs:
            _insert(network, node, heads.get(node), wanted[node], max(specs, key=lambda spec: spec.bits), decisions)


def _is_quantized(node: fx.Node, decisions: dict[str, Decision]) -> bool:
    return node.name in decisions and decisions[node.name].quantized


def _wants(reader: fx.Node, decisions, wanted, qconfig: QConfig) -> QuantSpec | None:
    """The grid on which ``reader`` wants its input, None when it takes floats."""
    if not _is_quantized(reader, decisions):
        return None
    decision = decisions[reader.name]
    if decision.kind in WEIGHTED:
        return decision.qconfig.activation
    if decision.kind in KEEPS_GRID and wanted.get(reader):
        return max((spec for _, spec in wanted[reader]), key=lambda spec: spec.bits)
    return qconfig.elementwise


def _insert(network, node, head: fx.Node | None, readers, spec: QuantSpec, decisions) -> None:
    """One fake-quantizer of ``spec`` behind ``node``, and further ones for the readers that want another grid.

    ``head`` starts the fused group that ends in ``node``; None when ``node`` gives floats.
    """
    name = "input" if node.op == "placeholder" else name_of(head or node)
    spec = _spec_of(name, spec, shape_of(node))
    readers = [(reader, _spec_of(name, wish, shape_of(node))) for reader, wish in readers]
    first = node
    if head is None or decisions[head.name].kind not in KEEPS_GRID:  # else its input is on the grid already
        fusible = _inside_addition(node, decisions)
        if fusible or not readers:  # no multiplication reads it, so there is nothing to save bits for
            spec = spec if spec.bits >= 8 else replace(spec, bits=8)
            readers = []
        first = _quantizer_behind(network, node, name, fake_quantizer(spec, fusible=fusible))
        for user in list(node.users):
            if user is not first and (head is not None or any(user is reader for reader, _ in readers)):
                user.replace_input_with(node, first)
    others: dict[QuantSpec, fx.Node] = {}
    for reader, wish in readers:
        if wish != spec:
            if wish not in others:
                others[wish] = _quantizer_behind(network, first, f"{name}_{wish.bits}bit", fake_quantizer(wish))
            reader.replace_input_with(first, others[wish])


def _quantizer_behind(network: fx.GraphModule, node: fx.Node, name: str, quantizer: FakeQuantizer) -> fx.Node:
    """Insert under quantizers.<name>, with a number behind it when a layer is called more than once."""
    taken = network.get_submodule("quantizers")._modules if hasattr(network, "quantizers") else {}
    name = base = name.replace(".", "_")
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return insert_module(network, f"quantizers.{name}", quantizer, node)


def _inside_addition(node: fx.Node, decisions: dict[str, Decision]) -> bool:
    """Is this a convolution that only an addition reads, so that an engine may fuse the two? One input at most."""
    reader = next(iter(node.users), None)
    if kind_of(node) != "conv" or len(node.users) != 1 or kind_of(reader) != "add":
        return False
    if not (_is_quantized(node, decisions) and _is_quantized(reader, decisions)):
        return False
    first = reader.args[0]
    rival = first if first.op == "call_module" and "quantizers." in first.target else None
    if rival is not None:  # the other input was handled before this one
        return not node.graph.owning_module.get_submodule(rival.target).fusible
    return node is first or not _inside_addition(first, decisions)


def _run_in_place(network: fx.GraphModule) -> None:
    """A relu that alone reads what a layer or an addition gives may overwrite it: less memory traffic."""
    relus = [node for node in network.graph.nodes if kind_of(node) in ("relu", "relu6")]
    for node in relus:
        network.get_submodule(node.target).inplace = True
    for node in relus:  # one module may be called at several places: all of them have to allow it
        before = node.args[0]
        if len(before.users) > 1 or kind_of(before) not in (*WEIGHTED, "add"):
            network.get_submodule(node.target).inplace = False


def _in_words(spec: QuantSpec | Grid) -> str:
    words = f"{spec.bits} bit{'s' if spec.bits > 1 else ''}"
    if isinstance(spec, Grid):
        words = f"{words} ({spec.name})"
        if spec.bits > 8:  # a float of 16 bits has no scale
            return words
    return f"{words}, {type(spec.granularity).__name__.replace('Per', 'per ').lower()}"


def _observer_name(spec: QuantSpec | Grid) -> str:
    return spec.observer if isinstance(spec.observer, str) else getattr(spec.observer, "__name__", repr(spec.observer))
