"""Calls that change a tensor in place become calls that give a new one, and later readers read that.

``F.relu(y, inplace=True)``, ``y.mul_(0.1)``, ``y += x`` and ``self.relu(y)`` with ``inplace=True`` change what everybody
reads who holds ``y``. A graph that moves, fuses and rounds values must not have such calls. Where a tensor is changed
through a view of it, which readers see the change depends on memory: that is refused by name.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from qlab.graph.nodes import module_of, name_of

_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
    if hasattr(operator, f"i{name}")
} | {operator.iand: operator.and_, operator.ior: operator.or_}


class CannotUndo(ValueError):
    """A tensor is changed in place where others see it."""


def without_mutation(network: fx.GraphModule, example: Tensor) -> None:
    """Rewrite each call that changes a tensor in place; the network computes the same, in new tensors.

    ``example`` is a batch that shows which values share memory. Raises ValueError that names a call which changes a
    tensor that is read through another view later, a tensor of the network itself, or has no form that gives a new one.

    >>> class Adds(torch.nn.Module):
    ...     def forward(self, x):
    ...         y = x * 2
    ...         y.relu_()
    ...         return y + 1
    >>> network = fx.symbolic_trace(Adds())
    >>> without_mutation(network, torch.tensor([1.0, -1.0]))
    >>> [node.name for node in network.graph.nodes]
    ['x', 'mul', 'relu_', 'add', 'output']
    >>> network(torch.tensor([1.0, -1.0]))
    tensor([3., 1.])
    """
    changes = _Watcher(network).changes_of(example)
    order = {node: place for place, node in enumerate(network.graph.nodes)}
    for node, changed in changes.items():
        changed.replace_all_uses_with(node, lambda reader, place=order[node]: order[reader] > place)
        _make_functional(node)
    for node in network.graph.nodes:  # `n *= s` of numbers
        node.target = _OPERATORS.get(node.target, node.target) if node.op == "call_function" else node.target
    for module in network.modules():  # those that ran in place on what nobody else holds, too
        if getattr(module, "inplace", False):
            module.inplace = False
    network.recompile()


class _Watcher(fx.Interpreter):
    """Runs a network once and finds the calls that change a tensor, and whether others would see it."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.order = {node: place for place, node in enumerate(network.graph.nodes)}
        self.changes: dict[fx.Node, fx.Node] = {}
        self.refused = ""

    def changes_of(self, example: Tensor) -> dict[fx.Node, fx.Node]:
        """{call: the node whose tensor it changes}, in the order of the calls."""
        with torch.no_grad():
            self.run(example.clone())
        if self.refused:
            raise CannotUndo(self.refused)
        return self.changes

    def run_node(self, node: fx.Node) -> object:
        changed = _changed_by(node)
        if changed is not None and isinstance(self.env.get(changed), Tensor):
            self.refused = self.refused or self._seen_elsewhere(node, changed)
            self.changes[node] = changed
        return super().run_node(node)

    def _seen_elsewhere(self, node: fx.Node, changed: fx.Node) -> str:
        """Why the change cannot be undone, since others see it; empty when it can."""
        if changed.op == "get_attr":
            return f"{_words(node)} changes {changed.target!r}, a tensor of the network itself: compute a new tensor instead"
        memory = _memory(self.env[changed])
        for other, value in self.env.items():
            read_later = any(self.order[reader] > self.order[node] for reader in other.users)
            if other is changed or not read_later or other in self.changes.values():
                continue
            if any(_memory(tensor) & memory for tensor in tree_leaves(value) if isinstance(tensor, Tensor)):
                return (
                    f"{_words(node)} changes a tensor in place that is read through another view ({name_of(other)}) "
                    "later: compute a new tensor instead, for instance y = y * 0.1 for y.mul_(0.1)"
                )
        return ""


def _memory(tensor: Tensor) -> set[int]:
    """The address of the memory that a tensor lies in; empty without any."""
    address = tensor.untyped_storage().data_ptr()
    return {address} if address else set()


def _changed_by(node: fx.Node) -> fx.Node | None:
    """The node whose tensor this call changes in place, None when it changes none."""
    if node.op == "call_module":
        return _first(node) if getattr(module_of(node), "inplace", False) else None
    if node.op == "call_method":
        return _first(node) if _in_place_name(node.target) else None
    if node.op != "call_function":
        return None
    if isinstance(node.kwargs.get("out"), fx.Node):
        return node.kwargs["out"]
    named = _in_place_name(getattr(node.target, "__name__", ""))
    return _first(node) if node.target in _OPERATORS or named or _asks_in_place(node) else None


def _first(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, fx.Node) else None


def _in_place_name(name: str) -> bool:
    return (
        name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "and_", "or_", "not_", "is_")
    )


def _asks_in_place(node: fx.Node) -> bool:
    """Has the function an argument ``inplace`` that is True?"""
    place = _place_of_inplace(node.target)
    by_place = place is not None and len(node.args) > place and node.args[place] is True
    return by_place or node.kwargs.get("inplace") is True


def _place_of_inplace(function: Callable) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _make_functional(node: fx.Node) -> None:
    """The same call, giving a new tensor."""
    if node.op == "call_method":
        node.target = _named_without(node, Tensor)
    elif node.op == "call_function":
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "out"}
        if node.target in _OPERATORS:
            node.target = _OPERATORS[node.target]
        elif _in_place_name(getattr(node.target, "__name__", "")):
            name = _named_without(node, torch, F)
            node.target = getattr(torch, name, None) or getattr(F, name)
        place = _place_of_inplace(node.target)
        if place is not None and len(node.args) > place:
            node.args = (*node.args[:place], False, *node.args[place + 1 :])
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _named_without(node: fx.Node, *places: object) -> str:
    """The name without its underscore; ValueError when there is no such function."""
    name = (node.target if isinstance(node.target, str) else node.target.__name__)[:-1]
    if not any(hasattr(place, name) for place in places):
        raise CannotUndo(
            f"{_words(node)} changes a tensor in place and has no form that gives a new one: write it anew"
        )
    return name


def _words(node: fx.Node) -> str:
    """The call and its line, for an error message."""
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    found = re.findall(r'File "(.*?)", line (\d+), in \w+\n\s*(.*)', node.stack_trace or "")
    own = [(file, line, text) for file, line, text in found if "/torch/" not in file.replace("\\", "/")]
    return f"{what}, at {own[-1][0]}:{own[-1][1]}: `{own[-1][2]}`," if own else what
