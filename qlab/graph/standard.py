"""The standard form of a traced network: every operation in one spelling.

``F.relu(x)``, ``torch.relu(x)`` and ``nn.ReLU()(x)`` are one operation to a processor; here they become one kind of
node, so that the passes after this one have only layers, additions and concatenations to look at.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from qlab.graph.nodes import module_of, shape_of


def _max_pool2d(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)


# Functions and methods with a module that does the same; the module is made from the call's other arguments.
_MODULE_OF: dict[object, Callable[..., nn.Module]] = {
    F.relu: lambda inplace=False: nn.ReLU(),
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    F.relu6: lambda inplace=False: nn.ReLU6(),
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
}
_ADDITIONS = {operator.add, torch.add, "add"}
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.Identity)


def drop_what_does_nothing(network: fx.GraphModule) -> None:
    """Take out what gives its input back in eval mode: dropout, identity, stochastic depth."""
    for node in list(network.graph.nodes):
        if isinstance(module_of(node), _DROPOUTS) or _is_switched_off(node):
            node.replace_all_uses_with(node.args[0] if node.args else next(iter(node.kwargs.values())))
            network.graph.erase_node(node)


def standardize(network: fx.GraphModule) -> None:
    """Calls of functions and methods become modules, plain additions or concatenations, where there is such a form.

    The nodes know their shapes.
    """
    for node in list(network.graph.nodes):
        target = node.target
        if node.op == "call_module":
            _by_position(node)
        elif node.op in ("call_function", "call_method"):
            if target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
                node.op, node.target = "call_function", operator.add
            elif target in _CONCATENATIONS:
                _standardize_cat(node)
            elif target in ("view", "reshape"):
                _standardize_view(network, node)
            elif target in _MODULE_OF:
                options = {name: value for name, value in node.kwargs.items() if name != "input"}
                _as_module(network, node, _MODULE_OF[target](*node.args[1:], **options))
    _name_functions(network)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()


def _is_switched_off(node: fx.Node) -> bool:
    """Is this a dropout or stochastic depth that is told that nobody trains?"""
    if node.op != "call_function" or not getattr(node.target, "__name__", "").endswith(("dropout", "stochastic_depth")):
        return False
    try:
        call = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    call.apply_defaults()
    return call.arguments.get("training") is False


def _by_position(node: fx.Node) -> None:
    """A module that is called with keywords alone, ``norm(input=x)``, is called by position."""
    if node.args or not node.kwargs:
        return
    call = inspect.signature(module_of(node).forward).bind(**node.kwargs)
    node.args, node.kwargs = call.args, call.kwargs


def _standardize_cat(node: fx.Node) -> None:
    """torch.cat((a, b), dim), however its arguments are called."""
    arguments = {{"axis": "dim"}.get(name, name): value for name, value in node.kwargs.items()}
    arguments |= dict(zip(("tensors", "dim"), node.args))
    tensors, dim = arguments["tensors"], arguments.get("dim", 0)
    shape = shape_of(node)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int) or shape is None:
        return  # what torch.chunk and the like gave: stays as it is
    node.target, node.args, node.kwargs = torch.cat, (tuple(tensors), dim % len(shape)), {}


def _standardize_view(network: fx.GraphModule, node: fx.Node) -> None:
    """What flattens all but the batch becomes a Flatten; another view a reshape, since memory may lie in another order."""
    if _keeps_batch(node):
        _as_module(network, node, nn.Flatten())
    elif node.target == "view" and not any(isinstance(argument, torch.dtype) for argument in node.args):
        node.target = "reshape"


def _keeps_batch(node: fx.Node) -> bool:
    """Is this x.view(x.size(0), -1) in one of its spellings, such as x.view(-1, 400)?"""
    sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    shape = shape_of(node.args[0])
    if len(sizes) != 2 or shape is None or len(shape) < 2:
        return False
    batch, rest = sizes
    whole = rest == -1 or rest == math.prod(shape[1:])
    return whole and (_is_batch_size(batch) or (batch == -1 and rest != -1))


def _is_batch_size(size: object) -> bool:
    """Is this x.size(0), x.shape[0] or x.size()[0]?"""
    if not isinstance(size, fx.Node):
        return False
    if size.target is operator.getitem and size.args[1] == 0:
        return size.args[0].target in ("size", getattr)
    return size.target == "size" and size.args[1:] == (0,)


def _as_module(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Turn ``node`` into a call of ``module``, named inside the block that it stands in."""
    source = node.args[0] if node.args else node.kwargs["input"]
    name = _in_block(node, node.name)
    network.add_submodule(name, module.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


def _name_functions(network: fx.GraphModule) -> None:
    """Name what is not a module by its block: layer1.0.add, and layer1.0.add_2 when the block adds twice."""
    seen: dict[str, int] = {}
    for node in network.graph.nodes:
        if node.op in ("call_function", "call_method"):
            name = _in_block(node, getattr(node.target, "__name__", node.target))
            seen[name] = seen.get(name, 0) + 1
            node.meta["name"] = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _in_block(node: fx.Node, name: str) -> str:
    """``name`` behind the path of the block in which the node stands."""
    stack = node.meta.get("nn_module_stack") or {}
    block = next((path for path, _ in reversed(list(stack.values())) if path), "")
    return f"{block}.{name}" if block else name
