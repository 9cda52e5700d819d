"""From a float network to one that behaves as its integer form will: a quantizer on every edge that matters.

The quantizers stand where the integer network will round: behind a whole fused group (convolution + relu,
convolution + addition + relu), not inside it. Source: Jacob et al. (CVPR 2018), sections 3 and 3.1.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor, fx, nn

from qlab import quantizers
from qlab.graph.check import prove_float, prove_graph
from qlab.graph.equalize import equalize as equalize_layers
from qlab.graph.fold import fold_batchnorm
from qlab.graph.layers import QuantConv2d, QuantLayer, QuantLinear
from qlab.graph.nodes import (
    KEEPS_GRID,
    RELUS,
    WEIGHTED,
    WEIGHTLESS,
    insert_module,
    kind_of,
    module_of,
    name_of,
    only_reader,
    shape_of,
)
from qlab.graph.report import Report, Row
from qlab.graph.run import rounding
from qlab.graph.trace import check_example, check_model, trace
from qlab.qconfig import QConfig, QuantSpec, Spec
from qlab.quantizers import Quantizer


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
    """A network with quantizers. ``network`` is the torch.fx graph, ``report()`` says what is quantized.

    >>> prepared = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    >>> [name for name, _ in prepared.weighted()], [name for name, _ in prepared.edges()]
    (['0'], ['quantizers.input', 'quantizers.0'])
    """

    def __init__(self, network: fx.GraphModule, decisions: dict[str, Decision], example: Tensor) -> None:
        super().__init__()
        self.network = network
        self.decisions = decisions  # by the node's name
        self.input_shape = tuple(example.shape[1:])
        self.sample: Tensor | None = None  # two of the images of the last calibration

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def __deepcopy__(self, memo: dict) -> Prepared:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex):
        """A pickle would be written, and could not be read: the graph's nodes know what they stand for by identity."""
        raise TypeError(
            "a prepared network cannot be pickled (torch.save, pickle.dumps): write it with qlab.save(prepared, path), and "
            "bring it back with qlab.load(path, into=qlab.prepare(model, qconfig, example))"
        )

    def weighted(self) -> Iterator[tuple[str, QuantLayer]]:
        """(name, layer) of every layer whose weights are quantized."""
        return ((name, m) for name, m in self.network.named_modules() if isinstance(m, QuantLayer))

    def quantizers(self) -> Iterator[tuple[str, Quantizer]]:
        """(name, quantizer) of every weight and every edge."""
        return ((name, m) for name, m in self.network.named_modules() if isinstance(m, Quantizer))

    def edges(self) -> Iterator[tuple[str, Quantizer]]:
        """(name, quantizer) of every edge: what :meth:`quantizers` gives but for those of the weights."""
        weights = {layer.weight_quantizer for _, layer in self.weighted()}
        return ((name, quantizer) for name, quantizer in self.quantizers() if quantizer not in weights)

    def quantizing(
        self, weights: bool | Collection[str] = True, activations: bool | Collection[str] = True
    ) -> AbstractContextManager[None]:
        """A context in which only these are rounded, in eval mode: all, none, or those of the layers named.

        The activations of a layer are what it reads. Afterwards everything is as it was.

        >>> prepared = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
        >>> with prepared.quantizing(weights=["0"], activations=False):
        ...     [name for name, quantizer in prepared.quantizers() if quantizer.mode == "quantize"]
        ['0.weight_quantizer']

        Raises ValueError for a name that is no layer with quantized weights.
        """
        layers, reads = dict(self.weighted()), self.input_quantizers()
        active = {layers[name].weight_quantizer for name in _chosen(weights, layers)}
        if activations is True:
            active |= {quantizer for _, quantizer in self.edges()}
        else:
            active |= {quantizer for name in _chosen(activations, layers) for quantizer in reads[name]}
        return rounding(self, active)

    def layer_configs(self) -> dict[str, QConfig]:
        """The configuration of each layer with quantized weights."""
        nodes = self.network.graph.nodes
        found = {name_of(node): self.decisions[node.name].qconfig for node in nodes if node.name in self.decisions}
        return {name: config for name, _ in self.weighted() if (config := found[name]) is not None}

    def input_quantizers(self) -> dict[str, list[Quantizer]]:
        """For each layer with quantized weights, the quantizers of what it reads: one a call, none for floats."""
        found: dict[str, list[Quantizer]] = {}
        for node in self.network.graph.nodes:
            if isinstance(module_of(node), QuantLayer):
                source = _source_of_grid(node.args[0])
                found.setdefault(name_of(node), []).extend(
                    [module_of(source)] if kind_of(source) == "quantizer" else []
                )
        return found

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
            module = module_of(node)
            if isinstance(module, QuantLayer):
                row["weight"] = _in_words(module.weight_quantizer.spec)
            spec = self.spec_of(next(iter(node.all_input_nodes), None))
            if decision.quantized and spec is not None:
                row["input"], row["observer"] = _in_words(spec), _observer_name(spec)
            rows.append(Row(**row))
        quantized = sum(not row.float_because for row in rows)
        return Report(f"{quantized} of {len(rows)} layers are quantized", rows)

    def _is_fused_into_head(self, node: fx.Node) -> bool:
        before = next(iter(node.all_input_nodes), node)
        return _is_quantized(before, self.decisions) and tail_of(before, self.decisions) is node is not before

    def spec_of(self, node: fx.Node | None) -> Spec | None:
        """The spec on whose grid a node's output lies, None when it is float."""
        source = None if node is None else _source_of_grid(node)
        return module_of(source).spec if source is not None and kind_of(source) == "quantizer" else None


def _chosen(which: bool | Collection[str], layers: Collection[str]) -> Collection[str]:
    """The names of layers that True (all), False (none) or a collection of names means."""
    if isinstance(which, bool):
        return layers if which else ()
    for name in which:
        if name not in layers:
            raise ValueError(f"{name!r} is no layer with quantized weights: expected one of {', '.join(layers)}")
    return which


def _source_of_grid(node: fx.Node) -> fx.Node:
    """Where the grid of this node's values comes from: behind what only moves them."""
    while kind_of(node) in KEEPS_GRID:
        node = node.args[0]
    return node


def prepare(
    model: nn.Module,
    qconfig: QConfig | None = None,
    example: Tensor | None = None,
    *,
    leaves: Iterable[type[nn.Module]] = (),
    equalize: bool = False,
) -> Prepared:
    """Trace a network, fold its BatchNorms, and put a quantizer on each weight and each edge to be quantized.

    What comes out proves itself: without rounding it has to answer as ``model`` does; with ``equalize`` before the
    channels' ranges are made alike, and after it as the network with those ranges does.

    Args:
        model: The trained float network, with one input. It is not changed; what is made is in eval mode.
        qconfig: What is quantized, and how. None means w8a8.
        example: One input batch, (N, ...); its values do not matter. None means torch.zeros(1, 3, 32, 32).
        leaves: Types of blocks to keep whole, not traced into and in float.
        equalize: Make the channels' ranges alike first (:mod:`qlab.graph.equalize`).

    Returns:
        A network that still computes in float; :func:`qlab.calibrate` finds its grids. ``report()`` says what will be
        quantized.

    Raises:
        ValueError: The network cannot be traced, the example does not fit, an override names no layer, nothing can be
            quantized, or the traced network answers otherwise.

    >>> import qlab, torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Sigmoid())
    >>> print(qlab.prepare(network, qlab.QConfig.w8a8(), torch.zeros(1, 3, 8, 8)).report())
    1 of 2 layers are quantized
    <BLANKLINE>
    layer  kind         weight               input               observer  float because
    -----  -----------  -------------------  ------------------  --------  -----------------------------
    0      conv + relu  8 bits, per channel  8 bits, per tensor  minmax
    2      Sigmoid                                                         no integer kernel for Sigmoid
    """
    qconfig = QConfig.w8a8() if qconfig is None else qconfig
    example = torch.zeros(1, 3, 32, 32) if example is None else example
    check_model(model)
    check_example(example)
    device = next((p.device for p in model.parameters()), example.device)
    example = example.to(device)
    network = fold_batchnorm(trace(model, example, tuple(leaves)))
    original, expected = model, network.meta["answers"]
    if equalize:
        prove_graph(network, model, expected)
        equalize_layers(network)  # from here on it need not answer as the model does, but as it does now
        original = copy.deepcopy(network)
        with torch.no_grad():
            expected = [(x, original(x.clone())) for x, _ in expected]
    decisions = _decide(network, qconfig)
    _require_known(qconfig, network, model)
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
    prepared = Prepared(network, decisions, example).eval()
    prove_float(prepared, original, expected)
    return prepared


def _decide(network: fx.GraphModule, qconfig: QConfig) -> dict[str, Decision]:
    """Which nodes will compute on integers; in order, since an addition follows what it adds."""
    layers = [node for node in network.graph.nodes if kind_of(node) in WEIGHTED]
    edges = layers[:1] + layers[-1:]
    decisions: dict[str, Decision] = {}
    for node in network.graph.nodes:
        kind = kind_of(node)
        if kind in ("input", "output") or node.op == "get_attr" or (shape_of(node) is None and module_of(node) is None):
            continue
        module = module_of(node) or nn.Identity()
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


def _require_known(qconfig: QConfig, network: fx.GraphModule, model: nn.Module) -> None:
    """Raise ValueError for an override whose name is no layer, no operation and no block of the network."""
    known = {name_of(node) for node in network.graph.nodes} | {name for name, _ in model.named_modules()}
    for name in qconfig.overrides:
        if isinstance(name, str) and name not in known:
            close = difflib.get_close_matches(name, known, 3, 0.0)
            raise ValueError(
                f"overrides names {name!r}, which is no layer of this network: did you mean {', '.join(close)}?"
            )


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
        if None in shapes:
            return "no integer kernel adds a number, or what is no tensor"
        if shapes[0] != shapes[1]:
            return f"no integer kernel adds shapes {shapes[0]} and {shapes[1]}"
    if kind_of(node) == "global_pool" and module_of(node).output_size not in (1, (1, 1)):
        return "only global average pooling, AdaptiveAvgPool2d(1), has an integer kernel"
    if kind_of(node) == "avg_pool" and module_of(node).divisor_override is not None:
        return "no integer kernel takes divisor_override"
    return ""


def _what(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        return type(module).__name__
    name = getattr(node.target, "__name__", str(node.target))
    return f"F.{name}" if name in WEIGHTED else name  # F.linear has no weight of its own


def _quantize_weights(network: fx.GraphModule, decisions: dict[str, Decision]) -> None:
    """Each layer that the decisions give a configuration becomes one that rounds its weights."""
    for node in network.graph.nodes:
        decision = decisions.get(node.name)
        if decision is None or decision.kind not in WEIGHTED or decision.qconfig is None:
            continue
        layer = module_of(node)
        if not isinstance(layer, QuantLayer):  # it is one already when the network calls it twice
            build = QuantConv2d if decision.kind == "conv" else QuantLinear
            spec = _spec_for(node.target, decision.qconfig.weight, layer.weight.shape)
            network.set_submodule(node.target, build(layer, quantizers.build(spec)))


def _spec_for(name: str, spec: Any, shape: Sequence[int] | None) -> Spec:
    """The spec for tensors of this shape, whose axes are counted from the front; ValueError names who has no such axis."""
    try:
        return replace(spec, granularity=spec.granularity.of(shape or ()))
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Choose PerChannel(0), or other axes with overrides") from None


def tail_of(node: fx.Node, decisions: dict[str, Decision]) -> fx.Node:
    """The last node of the fused group that ``node`` starts: its relu, if that alone reads it, else itself."""
    reader = only_reader(node)
    if reader is not None and kind_of(reader) in RELUS and kind_of(node) in (*WEIGHTED, "add"):
        decision = decisions.get(reader.name)
        if decision is not None and decision.quantized:
            return reader
    return node


def _quantize_edges(network: fx.GraphModule, decisions: dict[str, Decision], qconfig: QConfig) -> None:
    """A quantizer behind each value that integer layers give or take; a second one where readers need fewer bits."""
    nodes = [node for node in network.graph.nodes if node.op != "output"]
    integer = [node for node in nodes if _is_quantized(node, decisions)]
    fused = {tail_of(node, decisions): node for node in integer if tail_of(node, decisions) is not node}
    inside = set(fused.values())
    heads = {node: fused.get(node, node) for node in integer if node not in inside}  # by the node that gives the value
    wanted: dict[fx.Node, list[tuple[fx.Node, Spec]]] = {}
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


def _wants(reader: fx.Node, decisions, wanted, qconfig: QConfig) -> Spec | None:
    """The grid on which ``reader`` wants its input, None when it takes floats."""
    if not _is_quantized(reader, decisions):
        return None
    decision = decisions[reader.name]
    if decision.kind in WEIGHTED:
        return decision.qconfig.activation
    if decision.kind in KEEPS_GRID and wanted.get(reader):
        return max((spec for _, spec in wanted[reader]), key=lambda spec: spec.bits)
    return qconfig.elementwise


def _insert(network, node, head: fx.Node | None, readers, spec: Spec, decisions) -> None:
    """One quantizer of ``spec`` behind ``node``, and further ones for the readers that want another grid.

    ``head`` starts the fused group that ends in ``node``; None when ``node`` gives floats.
    """
    name = "input" if node.op == "placeholder" else name_of(head or node)
    spec = _spec_for(name, spec, shape_of(node))
    readers = [(reader, _spec_for(name, wish, shape_of(node))) for reader, wish in readers]
    first = node
    if head is None or decisions[head.name].kind not in KEEPS_GRID:  # else its input is on the grid already
        fusible = _inside_addition(node, decisions)
        if fusible or not readers:  # no multiplication reads it, so there is nothing to save bits for
            spec = spec if spec.bits >= 8 else replace(cast(Any, spec), bits=8)
            readers = []
        first = _quantizer_behind(network, node, name, quantizers.build(spec, fusible=fusible))
        for user in list(node.users):
            if user is not first and (head is not None or any(user is reader for reader, _ in readers)):
                user.replace_input_with(node, first)
    others: dict[Spec, fx.Node] = {}
    for reader, wish in readers:
        if wish != spec:
            if wish not in others:
                others[wish] = _quantizer_behind(network, first, f"{name}_{wish.bits}bit", quantizers.build(wish))
            reader.replace_input_with(first, others[wish])


def _quantizer_behind(network: fx.GraphModule, node: fx.Node, name: str, quantizer: Quantizer) -> fx.Node:
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
    reader = only_reader(node)
    if kind_of(node) != "conv" or reader is None or kind_of(reader) != "add" or reader.args[0] is reader.args[1]:
        return False
    if not (_is_quantized(node, decisions) and _is_quantized(reader, decisions)):
        return False
    first = reader.args[0]
    if kind_of(first) == "quantizer":  # the other input was handled before this one
        return not module_of(first).fusible
    return node is first or not _inside_addition(first, decisions)


def _run_in_place(network: fx.GraphModule) -> None:
    """A relu that alone reads what a layer or an addition gives may overwrite it: less memory traffic."""
    relus = [node for node in network.graph.nodes if kind_of(node) in RELUS]
    for node in relus:
        module_of(node).inplace = True
    for node in relus:  # one module may be called at several places: all of them have to allow it
        before = node.args[0]
        if len(before.users) > 1 or kind_of(before) not in (*WEIGHTED, "add"):
            module_of(node).inplace = False


def _in_words(spec: Spec) -> str:
    words = f"{spec.bits} bit{'s' if spec.bits > 1 else ''}"
    if not isinstance(spec, QuantSpec):
        words = f"{words} ({spec.name})"
        if spec.bits > 8:  # a float of 16 bits has no scale
            return words
    return f"{words}, {type(spec.granularity).__name__.replace('Per', 'per ').lower()}"


def _observer_name(spec: Spec) -> str:
    return spec.observer if isinstance(spec.observer, str) else getattr(spec.observer, "__name__", repr(spec.observer))
