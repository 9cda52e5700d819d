"""A network as a graph: what torch.fx sees of a copy of it.

Source: Reed, DeVito, He, Ussery, Ansel, "torch.fx: Practical Program Capture and Transformation" (MLSys 2022).
"""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qlab.graph.check import Answers, answers
from qlab.graph.functional import CannotUndo, without_mutation
from qlab.graph.standard import drop_what_does_nothing, standardize


def check_model(model: object) -> None:
    """Raise TypeError for what is no network that can be traced, with what to give instead.

    >>> check_model(nn.Conv2d)
    Traceback (most recent call last):
    TypeError: prepare got a class, Conv2d: expected a network, an nn.Module; make one first
    """
    name = type(model).__name__
    if isinstance(model, type):
        raise TypeError(f"prepare got a class, {model.__name__}: expected a network, an nn.Module; make one first")
    instead = {
        "OptimizedModule": "a compiled network: give the one that was compiled, compiled._orig_mod",
        "DataParallel": "a network in DataParallel: give the one inside, parallel.module",
        "DistributedDataParallel": "a network in DistributedDataParallel: give the one inside, parallel.module",
        "ExportedProgram": "an exported program: give the network that was exported",
        "Prepared": "a prepared network: give the float network that it was made from",
        "Int8Network": "an integer network: give the float network that it was made from",
    }.get(name)
    if isinstance(model, torch.jit.ScriptModule):
        instead = "a scripted or traced network: give the nn.Module that it was made from"
    if instead or not isinstance(model, nn.Module):
        raise TypeError(f"prepare got {instead or f'a {name}: expected a network, an nn.Module'}")


def check_example(example: object) -> None:
    """Raise ValueError for what is no batch of floats, such as the tokens of a language model."""
    if not isinstance(example, Tensor):
        raise ValueError(
            f"the example is a {type(example).__name__}: expected a tensor, one batch as the network takes it "
            "(torch.from_numpy(array); of a dict or tuple, the images alone)"
        )
    if not example.is_floating_point():
        raise ValueError(
            f"the example is {example.dtype}: expected a batch of floats, such as normalized images. What reads tokens "
            "is quantized by qlab.llm"
        )
    if example.ndim < 2 or not example.numel():
        raise ValueError(
            f"the example has shape {tuple(example.shape)}: expected a batch, (N, ...), of at least one image"
        )


class _ChangesPart(Exception):
    """``y[:, 0] = 0`` while tracing: torch.fx has no node for it."""


class _Proxy(fx.Proxy):
    """Sees ``y += x`` as what it is, a change of y; torch.fx's own takes it for y = y + x."""

    def __setitem__(self, place: object, value: object) -> None:
        raise _ChangesPart("a part of a tensor is changed in place")

    def _change(self, function: Callable, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(
        _Proxy, f"__{_name}__", lambda self, other, function=getattr(operator, _name): self._change(function, other)
    )


class _Tracer(fx.Tracer):
    """Traces into every block except torch's own layers and those that the caller wants whole."""

    def __init__(self, leaves: tuple[type, ...], lines: bool) -> None:
        super().__init__()
        self.leaves = leaves
        self.record_stack_traces = lines  # which line made a node: dear, so only when a message is to say it

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(model: nn.Module, example: Tensor, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """A copy of a network in eval mode as a torch.fx graph in standard form, each node with the shape it gives.

    In-place operations are rewritten as plain ones, and optional inputs get their defaults. The model's own answers are
    kept in ``meta["answers"]`` (:func:`qlab.graph.check.answers`).

    Args:
        model: The network. It is not changed.
        example: One input batch, (N, ...).
        leaves: Types of blocks to keep whole: not looked into, left in float.

    Raises:
        ValueError: The forward pass depends on the data (the message names the line), there is more than one input
            without a default, or the example does not fit.

    >>> import torch
    >>> from torch import nn
    >>> network = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [(node.op, node.target) for node in network.graph.nodes]
    [('placeholder', 'input'), ('call_module', '0'), ('call_module', '2'), ('output', 'output')]
    """
    model = eval_copy(model)
    expected = _try_out(model, example)
    try:
        network = _captured(model, leaves)
        without_mutation(network, example)
    except CannotUndo:
        without_mutation(_captured(model, leaves, lines=True), example)
        raise
    with torch.no_grad():
        ShapeProp(network).propagate(example)
    standardize(network)
    network.meta["answers"] = expected
    return network


def _captured(model: nn.Module, leaves: tuple[type, ...], lines: bool = False) -> fx.GraphModule:
    """What torch.fx sees of a model whose further inputs get their defaults, without what does nothing in eval mode."""
    optional = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {one.name: one.default for one in optional if one.default is not one.empty}
    try:
        graph = _Tracer(leaves, lines).trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise ValueError(_why_not(error)) from error
    network = fx.GraphModule(model, graph, type(model).__name__)
    _drop_optional_inputs(network)
    drop_what_does_nothing(network)
    return network


def eval_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode that shares nothing with it, its weights computed once and for all.

    Weight norm, spectral norm, pruning and other parametrizations compute a weight anew in each call, from tensors of
    their own; in the copy they are done with, so that a weight is what is stored.

    >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> list(layer.state_dict())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    >>> list(eval_copy(layer).state_dict())
    ['bias', 'weight']
    """
    computed = {
        id(tensor): tensor.detach().clone()  # a deep copy refuses what was computed with gradients
        for module in model.modules() for tensor in vars(module).values()
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    }  # fmt: skip
    model = copy.deepcopy(model, computed).eval()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                hook(module, ())
                hook.remove(module)
                module._forward_pre_hooks.pop(key, None)
        if parametrize.is_parametrized(module):
            plain = _with_plain_weights(module)
            if not path:
                return plain
            model.set_submodule(path, plain)
    return model


def _with_plain_weights(module: nn.Module) -> nn.Module:
    """The layer as it is without its parametrizations. (torch's own way to remove them changes a class that copies share.)"""
    base: Any = type(module).__bases__[0]
    plain = base.__new__(base)
    plain.__dict__.update(vars(module))
    plain._modules = {name: part for name, part in module._modules.items() if name != "parametrizations"}
    plain._parameters = dict(module._parameters)
    for name in module.parametrizations:
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone()))
    return plain


def _try_out(model: nn.Module, example: Tensor) -> Answers:
    """Run the model as it is, so that an example that does not fit is told apart from a graph that does not trace."""
    try:
        return answers(model, example)
    except Exception as error:
        raise ValueError(
            f"the example, {tuple(example.shape)} {example.dtype}, does not run through the network: {error}. "
            "Expected one batch as the network takes it, for instance torch.randn(1, 3, 32, 32)."
        ) from error


def _drop_optional_inputs(network: fx.GraphModule) -> None:
    """Take out the inputs that have a default: the network was traced with it. Raises ValueError for further ones."""
    _, *others = [node for node in network.graph.nodes if node.op == "placeholder"]
    compared = set(others)  # with their defaults, by nodes that read nothing else
    for node in network.graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and compared.issuperset(node.all_input_nodes):
            compared.add(node)
    for node in reversed(network.graph.nodes):
        if node in compared and not node.users:
            network.graph.erase_node(node)
    left = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(left) != 1:
        raise ValueError(f"the network takes {len(left)} inputs ({left}): expected one, a batch of images")


def _why_not(error: Exception) -> str:
    """The message for a network that cannot be traced: where, why, and the way out."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/") and f.filename != __file__]
    where = f"{inside[-1].filename}:{inside[-1].lineno}: `{inside[-1].line}`" if inside else "its forward"
    what = str(error).splitlines()[0] if str(error) else type(error).__name__
    advice = (
        "Move that line into a module of its own and pass its type as prepare(..., leaves=(ThatModule,)): it stays "
    )
    if isinstance(error, _ChangesPart):
        reason = (
            "Compute a new tensor instead, for instance y = y * mask, y = torch.where(mask, value, y) or torch.cat of its "
            "parts. Or move"
        )
        advice = advice.replace("Move", reason, 1)
    else:
        advice = (
            "Tracing runs the forward pass once, without data, so it must not branch on the values of a tensor. "
            + advice
        )
    return f"this network cannot be traced, because of {where} ({what}). {advice}whole, in float."
