"""What a node of a network's graph is: its kind, its name, its shape. Every pass over a graph asks here.

The kinds: "conv", "linear" (:data:`WEIGHTED`); "relu", "relu6", "max_pool", "avg_pool", "global_pool", "flatten",
"add", "cat" (:data:`WEIGHTLESS`); "quantizer"; "input", "output"; and "other", which stays in float.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

# What a node does, by the module it calls. Everything that is not here stays in float.
KINDS: dict[type, str] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "avg_pool",
    nn.AdaptiveAvgPool2d: "global_pool",
    nn.Flatten: "flatten",
}
WEIGHTED = ("conv", "linear")
RELUS = ("relu", "relu6")
KEEPS_GRID = ("max_pool", "flatten")  # what comes out lies on the grid of what went in
WEIGHTLESS = ("add", "cat", *RELUS, "avg_pool", "global_pool", *KEEPS_GRID)


def kind_of(node: fx.Node) -> str:
    """The kind of a node (see above). A subclass of a layer is "other": it may compute something else.

    >>> graph = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sigmoid())).graph
    >>> [kind_of(node) for node in graph.nodes]
    ['input', 'conv', 'relu', 'other', 'output']
    """
    if node.op == "call_module":
        module = module_of(node)
        if getattr(module, "return_indices", False):  # a max_pool that gives two things
            return "other"
        return getattr(type(module), "kind", None) or KINDS.get(type(module), "other")
    if node.op == "call_function" and node.target is operator.add:
        return "add"
    if node.op == "call_function" and node.target is torch.cat and isinstance(node.args[0], (tuple, list)):
        return "cat"
    return {"placeholder": "input", "output": "output"}.get(node.op, "other")


def module_of(node: fx.Node) -> Any:
    """The module that the node calls, None when it calls a function or nothing."""
    return node.graph.owning_module.get_submodule(node.target) if node.op == "call_module" else None


def name_of(node: fx.Node) -> str:
    """The layer's path in the model; an operation without a module of its own is named inside its block.

    >>> [name_of(node) for node in fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.ReLU()))).graph.nodes]
    ['input_1', '0.0', 'output']
    """
    return node.target if node.op == "call_module" else node.meta.get("name", node.name)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of what the node gave for the example, None when that is not a tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def joined_axis(node: fx.Node) -> int:
    """The axis along which a "cat" joins, counted from the front."""
    return node.args[1]


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that alone reads what this one gives, None when there are several, or none.

    >>> x, relu, output = fx.symbolic_trace(nn.Sequential(nn.ReLU())).graph.nodes
    >>> only_reader(x) is relu, only_reader(output)
    (True, None)
    """
    return next(iter(node.users)) if len(node.users) == 1 else None


def calls_of(node: fx.Node) -> int:
    """How many nodes call the module that this one calls."""
    return sum(other.op == "call_module" and other.target == node.target for other in node.graph.nodes)


def insert_module(network: fx.GraphModule, name: str, module: nn.Module, node: fx.Node) -> fx.Node:
    """A new node right after ``node`` that calls ``module``, kept under ``name``, on what ``node`` gives."""
    network.add_submodule(name, module)
    with network.graph.inserting_after(node):
        new = network.graph.call_module(name, (node,))
    new.meta["tensor_meta"] = node.meta.get("tensor_meta")
    new.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    return new
