"""Integer networks on disk: one safetensors file that any engine can load.

The file holds integers, scales and biases as tensors, and in its JSON header the steps of the network, the grids of
its values and its report. Nothing in it is code: loading a file from a stranger runs nothing.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from qlab.affine import QParams
from qlab.files import read_tensors, write_tensors
from qlab.graph.report import Report, Row
from qlab.int8.modules import LAYERS, Float, Int8Layer, Int8Network, Program, Step, Weighted

FORMAT = 1


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
        "inner": sorted(program.inner),
        "headline": report.headline,
        "report": [list(asdict(row).values()) for row in report],
    }
    return write_tensors(path, {name[len("layers.") :]: t for name, t in network.state_dict().items()}, header)


def load(path: str | Path, engine: str = "auto") -> Int8Network:
    """The integer network that :func:`save` wrote, on ``engine``. Raises ValueError when the file is damaged or foreign."""
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
        options = {"class": type(layer.module).__name__, "arguments": _arguments(layer)}
    return [layer.op, layer.name, options]


def _arguments(layer: Float) -> dict:
    """What to call a torch.nn class with to get a module like this one: its constructor's parameters, read back."""
    module = layer.module
    if getattr(nn, type(module).__name__, None) is not type(module):
        raise ValueError(
            f"{layer.name} stays in float and is a {type(module).__name__}, which is not one of torch.nn's layers: it "
            "cannot be saved. Keep the float network and convert it again, or write that step with torch.nn layers."
        )
    names = [name for name in inspect.signature(type(module).__init__).parameters if hasattr(module, name)]
    return {name: value is not None if name == "bias" else value for name in names if _is_plain(value := getattr(module, name)) or name == "bias"}


def _is_plain(value) -> bool:
    """Can JSON hold it?"""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _restore(number: int, tensors: dict, op: str, name: str, options: dict) -> Int8Layer:
    """The layer that ``_describe`` described; ``tensors`` are the whole file's, by name."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    prefix = f"{number}."
    own = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if op == Float.op:
        module = getattr(nn, options["class"])(**options["arguments"]).eval()
        module.load_state_dict({key[len("module.") :]: tensor for key, tensor in own.items()})
        return Float(name, module)
    if issubclass(LAYERS[op], Weighted):
        return LAYERS[op](name, own["weight"], own["scale"], own.get("bias"), **options)
    return LAYERS[op](name, **options)
