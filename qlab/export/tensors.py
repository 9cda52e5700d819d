"""Integer networks on disk: one safetensors file that any engine can load.

The file holds integers, scales and biases as tensors, and in its JSON header the steps of the network, the grids of
its values and its report. Nothing in it is code: loading a file from a stranger runs nothing.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from qlab.affine import QParams
from qlab.files import read_tensors, write_tensors
from qlab.graph.report import Report, Row
from qlab.int8.modules import LAYERS, Call, Float, Input, Int8Layer, Int8Network, Program, Step, Weighted

FORMAT = 1
# The functions that a file may name for a step in float. A file must not be able to call anything else.
FUNCTIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "cat": torch.cat}


def save(network: Int8Network, path: str | Path) -> Path:
    """Write an integer network to ``path`` (.safetensors), atomically; returns the path.

    The file is the same whichever engine the network runs on. Raises TypeError for a network that is not integer, and
    ValueError when a layer that stayed in float is not one of torch.nn's own.
    """
    if not isinstance(network, Int8Network):
        raise TypeError(f"save takes what qlab.convert or qlab.ptq gave, not a {type(network).__name__}")
    program, report = network.program, network._report
    header = {
        "format": FORMAT,
        "input_shape": program.input_shape,
        "layers": [_describe(layer) for layer in network.layers],
        "steps": [[step.layer, list(step.inputs), step.output] for step in program.steps],
        "grids": [g and [float(g.scale), int(g.zero_point), g.bits] for g in program.grids],
        "inner": sorted(program.fusible),
        "headline": report.headline,
        "report": [list(asdict(row).values()) for row in report],
    }
    return write_tensors(path, {name[len("layers.") :]: t for name, t in network.state_dict().items()}, header)


def load(path: str | Path, engine: str = "auto") -> Int8Network:
    """The integer network that :func:`save` wrote, on ``engine``. Raises ValueError for a damaged or foreign file."""
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {header.get('format')!r}; this qlab reads format {FORMAT} of integer networks. "
            "Save it again with this version."
        )
    layers = [_restore(number, tensors, *described) for number, described in enumerate(header["layers"])]
    program = Program(
        tuple(Step(layer, tuple(inputs), output) for layer, inputs, output in header["steps"]),
        tuple(g and QParams(torch.tensor(g[0]), torch.tensor(g[1], dtype=torch.int32), g[2]) for g in header["grids"]),
        frozenset(header["inner"]),
        tuple(header["input_shape"]),
    )
    return Int8Network(layers, program, Report(header["headline"], [Row(*row) for row in header["report"]]), engine)


def _describe(layer: Int8Layer) -> list:
    """[op, name, options] of a layer, as JSON can hold it."""
    options = dict(layer.options)
    if isinstance(layer, Weighted):
        options["bits"] = layer.bits
    if isinstance(layer, Float):
        options = _describe_float(layer.name, layer.module)
    return [layer.op, layer.name, options]


def _describe_float(name: str, module: nn.Module) -> dict:
    """Which class or function to call, and with what: enough to make the layer again."""
    cls = type(module)
    if cls is Call and module.target in FUNCTIONS.values() and not module.kwargs:
        function = next(key for key, value in FUNCTIONS.items() if value is module.target)
        return {"function": function, "arguments": [_flat(argument) for argument in module.args]}
    if getattr(nn, cls.__name__, None) is not cls:
        what = module.extra_repr() if cls is Call else cls.__name__
        raise ValueError(
            f"{name} stays in float and is {what!r}, which is neither one of torch.nn's layers nor one of the functions "
            f"{', '.join(FUNCTIONS)}: it cannot be saved. Write that step with torch.nn layers, or keep the float "
            "network and convert it again."
        )
    names = [p for p in inspect.signature(cls.__init__).parameters if hasattr(module, p) and p != "bias"]
    arguments = {p: value for p in names if _is_plain(value := getattr(module, p))}
    if hasattr(module, "bias"):
        arguments["bias"] = module.bias is not None
    return {"class": cls.__name__, "arguments": arguments}


def _flat(argument):
    """An argument of a Call as JSON: {"input": 0} stands for the first input."""
    if isinstance(argument, (tuple, list)):
        return [_flat(part) for part in argument]
    return {"input": argument.place} if isinstance(argument, Input) else argument


def _unflat(argument):
    if isinstance(argument, list):
        return [_unflat(part) for part in argument]
    return Input(argument["input"]) if isinstance(argument, dict) else argument


def _is_plain(value) -> bool:
    """Can JSON hold it?"""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _restore(number: int, tensors: dict, op: str, name: str, options: dict) -> Int8Layer:
    """The layer that ``_describe`` described; ``tensors`` are the whole file's, by name."""
    prefix = f"{number}."
    own = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if op == Float.op:
        if "function" in options:
            return Float(name, Call(FUNCTIONS[options["function"]], _unflat(options["arguments"]), {}))
        arguments = {key: tuple(a) if isinstance(a, list) else a for key, a in options["arguments"].items()}
        module = getattr(nn, options["class"])(**arguments).eval().requires_grad_(False)
        module.load_state_dict({key[len("module.") :]: tensor for key, tensor in own.items()})
        return Float(name, module)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if issubclass(LAYERS[op], Weighted):
        return LAYERS[op](name, own["weight"], own["scale"], own.get("bias"), **options)
    return LAYERS[op](name, **options)
