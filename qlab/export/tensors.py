"""Networks on disk. An integer network: one safetensors file that any engine can load.

The file holds integers, scales and biases as tensors, and in its JSON header the steps of the network, the grids of
its values and its report. Nothing in it is code: loading a file from a stranger runs nothing.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.affine import QParams
from qlab.export import calls
from qlab.export.checks import CALLED_LAYERS, FLOAT_LAYERS, check_flow, check_header, check_weights, digest
from qlab.export.prepared import load_prepared, save_prepared
from qlab.files import check_tensors, read_tensors, write_tensors
from qlab.graph.prepare import Prepared
from qlab.graph.report import Report, Row
from qlab.int8 import engines
from qlab.int8.modules import LAYERS, Call, Constant, Float, Int8Layer, Int8Network, Program, Step, Weighted

FORMAT = 2
PLACES = {"device", "dtype"}  # arguments that say where a layer's tensors are, and of which type: not a file's business


def save(network: Int8Network | Prepared, path: str | Path) -> Path:
    """Write an integer network, or a prepared one, to ``path`` (.safetensors), atomically; returns the path.

    The file of an integer network is the same whichever engine it runs on. That of a prepared network, perhaps trained for
    hours, holds its tensors and what rounds them; :func:`load` brings them back ``into`` the same network, prepared anew.

    >>> import tempfile, qlab
    >>> model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval(), torch.randn(2, 3, 8, 8)
    >>> trained = qlab.calibrate(qlab.prepare(model, example=x), [x])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(trained, Path(folder) / "trained.safetensors")
    ...     back = load(path, into=qlab.prepare(model, example=x))
    >>> torch.equal(back(x), trained(x))
    True

    Raises TypeError for another network, ValueError when a layer that stayed in float is none that a file may name, or
    tensors hold NaN, and OSError where nothing can be written.
    """
    if isinstance(network, Prepared):
        return save_prepared(network, path)
    if not isinstance(network, Int8Network):
        raise TypeError(f"save takes what qlab.convert, qlab.ptq or qlab.prepare gave, not a {type(network).__name__}")
    program, report = network.program, network._report
    for layer in network.layers:
        _require_finite(layer.name, layer.state_dict())
    tensors = {name[len("layers.") :]: tensor.detach() for name, tensor in network.state_dict().items()}
    header = {
        "format": FORMAT,
        "sha256": "",
        "input_shape": program.input_shape,
        "layers": [_describe(layer) for layer in network.layers],
        "steps": [[step.layer, step.inputs, step.output] for step in program.steps],
        "grids": [g and [float(g.scale), int(g.zero_point), g.bits] for g in program.grids],
        "fusible": sorted(program.fusible),
        "headline": report.headline,
        "report": [list(asdict(row).values()) for row in report],
    }
    header = json.loads(json.dumps(header))  # lists for tuples: as it will be read
    header["sha256"] = digest(header, tensors)
    try:
        _restore(header, tensors)  # what load would refuse is not written
    except ValueError as error:
        raise ValueError(f"this network cannot be saved: {error}") from error
    return write_tensors(path, tensors, header)


def load(path: str | Path, engine: str = "auto", *, into: Prepared | None = None) -> Int8Network | Prepared:
    """The network that :func:`save` wrote: an integer one, on ``engine``; or a prepared one, which comes back ``into`` what
    ``qlab.prepare(model, qconfig, example)`` gives for the same network, and is returned.

    Raises ValueError for a damaged, forged or foreign file; nothing that it says is executed, and nothing is built before
    all of it fits together. For a prepared network it names the first difference when it was another one, or had other
    bits, and ``into`` stays as it was. What no file holds is the two images of the last calibration (convert then proves
    itself on noise) and the weights from before a method such as bias correction. Files of format 1 have no checksum of
    the whole.
    """
    if into is not None:
        return load_prepared(path, into)
    engines.get(engine)  # a wrong name is no fault of the file
    tensors, header = read_tensors(path)
    if "prepared" in header:
        raise ValueError(
            f"{path} holds a prepared network: load it with qlab.load(path, into=qlab.prepare(model, qconfig, example))"
        )
    version = header.get("format")
    if type(version) is not int or version not in (1, FORMAT):
        raise ValueError(
            f"{path} has format {str(version)[:20]}; this qlab reads formats 1 and {FORMAT} of integer networks. "
            "Save it again with this version."
        )
    try:
        layers, program, report = _restore(_as_format_2(header, tensors) if version == 1 else header, tensors)
        return Int8Network(layers, program, report, engine)
    except (ValueError, RuntimeError) as error:  # the latter is how torch's kernels refuse a layer
        raise ValueError(f"{path} is damaged, or no network for engine {engine!r}: {error}") from error


def _as_format_2(header: dict, tensors: dict[str, Tensor]) -> dict:
    """A header of format 1 with what was called otherwise or was not said yet: fusible, biases, the checksum."""
    header = {**header, "format": FORMAT, "fusible": header.get("inner"), "sha256": ""}
    header.pop("inner", None)
    for number, layer in enumerate(header["layers"] if isinstance(header.get("layers"), list) else ()):
        if isinstance(layer, list) and len(layer) == 3 and isinstance(layer[2], dict) and "bits" in layer[2]:
            layer[2]["bias"] = f"{number}.bias" in tensors
    header["sha256"] = digest(header, tensors)
    return header


def _restore(header: dict, tensors: dict[str, Tensor]) -> tuple[list[Int8Layer], Program, Report]:
    """What a file describes. Raises ValueError, before anything is built, for what is no network."""
    check_header(header)
    if header["sha256"] != digest(header, tensors):
        raise ValueError("its checksum (sha256) is not that of its content; fetch or save it again")
    own: list[dict[str, Tensor]] = [{} for _ in header["layers"]]
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        if not (number.isdecimal() and len(number) < 6 and int(number) < len(own) and str(int(number)) == number):
            raise ValueError(f"the tensor {name[:50]!r} belongs to no layer")
        own[int(number)][rest] = tensor
    layers = [_layer(*layer, own[number], f"layer {number}") for number, layer in enumerate(header["layers"])]
    check_flow(layers, header)
    for number, layer in enumerate(layers):
        if isinstance(layer, Float):
            _fill(layer.module, own[number], f"layer {number}")
    program = Program(
        tuple(Step(layer, tuple(inputs), output) for layer, inputs, output in header["steps"]),
        tuple(g and QParams(torch.tensor(g[0]), torch.tensor(g[1], dtype=torch.int32), g[2]) for g in header["grids"]),
        frozenset(header["fusible"]),
        tuple(header["input_shape"]),
    )
    return layers, program, Report(header["headline"], [Row(*row) for row in header["report"]])


def _describe(layer: Int8Layer) -> list:
    """[op, name, options] of a layer, as JSON can hold it."""
    options = dict(layer.options)
    if isinstance(layer, Weighted):
        options |= {"bits": layer.bits, "bias": layer.bias is not None}
    if isinstance(layer, Float):
        options = _describe_float(layer.name, layer.module)
    return [layer.op, layer.name, options]


def _describe_float(name: str, module: nn.Module) -> dict:
    """Which class, function or method to call, and with what: enough to make the layer again."""
    if isinstance(module, Constant):
        return {"constant": str(module.value.dtype).removeprefix("torch."), "shape": list(module.value.shape)}
    if not isinstance(module, Call):
        return _describe_layer(name, module)
    try:
        arguments, keywords = calls.encode(list(module.args)), calls.encode(module.kwargs)["dict"]
    except ValueError as error:
        raise ValueError(f"{name} stays in float and cannot be saved: {error}") from error
    if isinstance(module.target, nn.Module):
        return _describe_layer(name, module.target) | {"call": arguments, "keywords": keywords}
    if isinstance(module.target, str) and module.target in calls.METHODS:
        return {"method": module.target, "arguments": arguments, "keywords": keywords}
    if not isinstance(module.target, str) and (function := calls.name_of(module.target)) is not None:
        return {"function": function, "arguments": arguments} | ({"keywords": keywords} if keywords else {})
    raise ValueError(_cannot_save(name, module.extra_repr()))


def _describe_layer(name: str, module: nn.Module) -> dict:
    cls = type(module)
    if cls.__name__ not in FLOAT_LAYERS | CALLED_LAYERS or getattr(nn, cls.__name__) is not cls:
        raise ValueError(_cannot_save(name, cls.__name__))
    return {"class": cls.__name__, "arguments": _arguments(module)}


def _require_finite(name: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError with the layer's name unless all its numbers are finite: a file holds no others."""
    for own, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"this network cannot be saved: {name}: {own.removeprefix('module.')!r} holds NaN or infinity, expected "
                "finite numbers. For -inf in a mask write a large number instead, such as -1e9"
            )


def _cannot_save(name: str, what: str) -> str:
    return (
        f"{name} stays in float and is {what!r}, which is neither one of torch.nn's plain layers nor one of torch's "
        "functions that a file may name (qlab.export.calls): it cannot be saved. Write that step with those, or keep the "
        "float network and convert it again."
    )


def _arguments(module: nn.Module) -> dict:
    """What to make one of torch.nn's layers with, as JSON can hold it."""
    names = [name for name in _parameters(type(module)) if hasattr(module, name)]
    values = {name: getattr(module, name) for name in names if name != "bias"}
    found = {name: _listed(value) for name, value in values.items() if _is_plain(value)}
    if isinstance(module, nn.RNNBase):
        return found | {"bias": module.bias}
    if isinstance(module, nn.MultiheadAttention):
        return found | {"bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None}
    return found | {"bias": module.bias is not None} if "bias" in _parameters(type(module)) else found


def _parameters(cls: type[nn.Module]) -> list[str]:
    """The names of the arguments with which a layer of torch.nn is made."""
    if issubclass(cls, nn.RNNBase):  # whose own signature says *args
        names = [*inspect.signature(nn.RNNBase).parameters, *(["nonlinearity"] if cls is nn.RNN else [])]
        return [name for name in names if name != "mode"]
    return list(inspect.signature(cls).parameters)


def _listed(value):
    """Lists for tuples, as JSON has it."""
    return list(map(_listed, value)) if isinstance(value, (tuple, list)) else value


def _tupled(value):
    """Tuples for lists, as torch has it."""
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _is_plain(value) -> bool:
    """Can JSON hold it?"""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _layer(op: str, name: str, options: dict, own: dict[str, Tensor], where: str) -> Int8Layer:
    """The layer that ``_describe`` described, with its ``own`` tensors; one in float has none yet: it is on meta."""
    if op == Float.op:
        return Float(name, _in_float(options, where))
    options = {key: _tupled(value) for key, value in options.items()}
    if not issubclass(LAYERS[op], Weighted):
        check_tensors(own, {}, where)
        return LAYERS[op](name, **options)
    check_weights(options, own, where)
    del options["bias"]
    return LAYERS[op](name, own["weight"], own["scale"], own.get("bias"), **options)


def _in_float(options: dict, where: str) -> nn.Module:
    """A step in float: a constant, a layer, or a call of a layer, a function or a method."""
    if "constant" in options:
        return Constant(torch.empty(options["shape"], dtype=calls.DTYPES[options["constant"]], device="meta"))
    target: object = options.get("method")
    if "class" in options:
        target = _float_layer(options["class"], options["arguments"], where)
        if "call" not in options:
            return target
    elif "function" in options:
        target = calls.function_of(options["function"])
    keywords = {name: calls.decode(value) for name, value in options.get("keywords", {}).items()}
    return Call(target, calls.decode(options.get("call", options["arguments"])), keywords)


def _float_layer(name: str, arguments: dict, where: str) -> nn.Module:
    """A layer of torch.nn on the meta device, where the largest takes no memory."""
    cls = getattr(nn, name)
    for argument in sorted(arguments.keys() - set(_parameters(cls)) | arguments.keys() & PLACES):
        raise ValueError(f"{where}: {name} has no argument {argument[:50]!r}")
    try:
        with torch.device("meta"):
            module = cls(**{argument: _tupled(value) for argument, value in arguments.items()}).eval()
        made = _arguments(module)
    except Exception as error:
        raise ValueError(f"{where}: no {name} with these arguments ({str(error)[:200]})") from error
    for argument, value in arguments.items():
        if argument not in made or (type(made[argument]), made[argument]) != (type(value), value):
            raise ValueError(f"{where}: {name} does not keep its argument {argument[:50]!r}")
    return module.requires_grad_(False)


def _fill(module: nn.Module, own: dict[str, Tensor], where: str) -> None:
    """Give a layer on the meta device its tensors."""
    own = {name.removeprefix("module."): tensor for name, tensor in own.items()}
    check_tensors(own, module.state_dict(), where)
    if "running_var" in own and (own["running_var"] < 0).any():
        raise ValueError(f"{where}: 'running_var' holds numbers below 0, which no variance is")
    module.load_state_dict(own, assign=True)
