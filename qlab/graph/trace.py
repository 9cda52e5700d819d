"""A network as a graph: what torch.fx sees, with every operation in one standard form.

``F.relu(x)``, ``torch.relu(x)`` and ``nn.ReLU()(x)`` are one operation to a processor; here they become one kind of
node, so that the passes after this one have only layers, additions and concatenations to look at.
Source: Reed, DeVito, He, Ussery, Ansel, "torch.fx: Practical Program Capture and Transformation" (MLSys 2022).
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

# Functions and methods with a module that does the same; the module is made from the call's other arguments.
_MODULE_OF: dict[object, Callable[..., nn.Module]] = {
    F.relu: lambda inplace=False: nn.ReLU(),
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: lambda inplace=False: nn.ReLU6(),
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    F.dropout: lambda p=0.5, training=True, inplace=False: nn.Identity(),
}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


class _Tracer(fx.Tracer):
    """Traces into every block except torch's own layers and those that the caller wants whole."""

    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, name)


def trace(model: nn.Module, example: Tensor, leaves: tuple[type, ...] = ()) -> fx.GraphModule:
    """A copy of ``model`` in eval mode as a torch.fx graph in standard form, each node with the shape it gives.

    ``example`` is one input batch. ``leaves`` are block types to keep whole: not looked into, left in float.
    Raises ValueError that names the line when the forward pass depends on the data, or when the example does not fit.
    """
    model = copy.deepcopy(model).eval()
    _try_out(model, example)
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise ValueError(_why_not(error)) from error
    network = fx.GraphModule(model, graph, type(model).__name__)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ValueError(f"the network takes {len(inputs)} inputs ({inputs}): expected one, a batch of images")
    _standardize(network)
    with torch.no_grad():
        ShapeProp(network).propagate(example)
    return network


def _try_out(model: nn.Module, example: Tensor) -> None:
    """Run the model once as it is, so that an example that does not fit is told apart from a graph that does not trace."""
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:
        raise ValueError(
            f"the example, {tuple(example.shape)} {example.dtype}, does not run through the network: {error}. "
            "Expected one batch as the network takes it, for instance torch.randn(1, 3, 32, 32)."
        ) from error


def _standardize(network: fx.GraphModule) -> None:
    """Calls of functions and methods become modules or plain additions; what does nothing in eval mode goes."""
    for node in list(network.graph.nodes):
        target = node.target
        if node.op in ("call_function", "call_method"):
            if target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
                node.op, node.target = "call_function", operator.add
            elif target in ("view", "reshape") and _keeps_batch(node):
                _as_module(network, node, nn.Flatten())
            elif target in _MODULE_OF:
                options = {name: value for name, value in node.kwargs.items() if name != "input"}
                _as_module(network, node, _MODULE_OF[target](*node.args[1:], **options))
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), (nn.Dropout, nn.Identity)):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    _name_functions(network)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()


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


def _as_module(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Turn ``node`` into a call of ``module``, named inside the block that it stands in."""
    source = node.args[0] if node.args else node.kwargs["input"]
    name = _in_block(node, node.name)
    network.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


def _keeps_batch(node: fx.Node) -> bool:
    """Is this x.view(x.size(0), -1) in one of its spellings?"""
    sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if len(sizes) != 2 or sizes[1] != -1 or not isinstance(sizes[0], fx.Node):
        return False
    first = sizes[0]
    if first.target is operator.getitem and first.args[1] == 0:  # x.shape[0], x.size()[0]
        return first.args[0].target in ("size", getattr)
    return first.target == "size" and first.args[1:] == (0,)


def _why_not(error: Exception) -> str:
    """The message for a network that cannot be traced: where, why, and the way out."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/") and f.filename != __file__]
    where = f"{inside[-1].filename}:{inside[-1].lineno}: `{inside[-1].line}`" if inside else "its forward"
    return (
        f"this network cannot be traced, because of {where} ({str(error).splitlines()[0]}). Tracing runs the forward "
        "pass once, without data, so it must not branch on the values of a tensor. Move that line into a module of "
        "its own and pass its type as prepare(..., leaves=(ThatModule,)): it stays whole, in float."
    )
