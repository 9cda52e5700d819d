"""What the file of an integer network may say: a network that runs, and nothing else.

A file may come from anybody. So its header is compared with a schema, its tensors with the header, and the whole is gone
through once with shapes alone, on torch's meta device, where the largest layer takes no memory. What passes is built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from qlab.export import calls
from qlab.export.calls import MOST_VALUES
from qlab.files import check_tensors
from qlab.graph.report import Row
from qlab.int8.modules import Float, Int8Layer, Weighted

MOST_LAYERS = 10_000
FLOAT_OPS = ("float", "weight_only")
KEEPS_GRID = ("max_pool2d", "flatten")

# torch.nn's layers that a file may name: one tensor in, one out, nothing beside it.
FLOAT_LAYERS = frozenset(
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d "
    "AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d CELU ChannelShuffle ConstantPad1d ConstantPad2d Conv1d Conv2d "
    "Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Dropout Dropout1d Dropout2d Dropout3d ELU Flatten Fold "
    "GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh Identity InstanceNorm1d InstanceNorm2d "
    "InstanceNorm3d LPPool1d LPPool2d LayerNorm LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d "
    "MaxPool2d MaxPool3d Mish PReLU PixelShuffle PixelUnshuffle RMSNorm ReLU ReLU6 ReflectionPad1d ReflectionPad2d "
    "ReplicationPad1d ReplicationPad2d SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh "
    "Tanhshrink Threshold Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d".split()
)
# Those that read or give several tensors: a file says how they are called.
CALLED_LAYERS = frozenset("Bilinear Embedding GRU LSTM MaxUnpool1d MaxUnpool2d MultiheadAttention RNN".split())


# --- The schema


@dataclass(frozen=True)
class Kind:
    """Values that are allowed at a place: in words, and as a test."""

    words: str
    test: Callable[[object], bool]

    def check(self, value: object, where: str) -> None:
        """Raise ValueError for another value at the place ``where``."""
        if not self.test(value):
            raise ValueError(f"{where} is {_short(value)}, expected {self.words}")


def integer(lowest: int, highest: int) -> Kind:
    """Whole numbers in a range; true and 1.0 are none."""
    words = f"a whole number from {lowest} to {highest}"
    return Kind(words, lambda value: type(value) is int and lowest <= value <= highest)


def either(kind: Kind) -> Kind:
    """One value for both axes, or one for each."""

    def test(value: object) -> bool:
        return all(map(kind.test, value)) and len(value) == 2 if type(value) is list else kind.test(value)

    return Kind(f"{kind.words}, or two of them", test)


def _is_plain(value: object, depth: int = 1) -> bool:
    if type(value) is list:
        return depth > 0 and len(value) <= 8 and all(_is_plain(part, depth - 1) for part in value)
    return value is None or type(value) in (bool, int, float) or type(value) is str and len(value) <= 100


FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("a text", lambda value: type(value) is str and len(value) <= 10_000)
NUMBER = Kind("a number", lambda value: type(value) in (int, float))
PLAIN = Kind("a number, a word, nothing, or a short list of those", _is_plain)
SIZE, PADDING, AXIS = either(integer(1, 1024)), either(integer(0, 1024)), integer(-8, 8)
WORD = Kind(f"{PADDING.words}, 'same' or 'valid'", lambda value: value in ("same", "valid") or PADDING.test(value))

LAYER = Kind("one of torch.nn's plain layers", lambda name: type(name) is str and name in FLOAT_LAYERS | CALLED_LAYERS)
OBJECT = Kind("an object", lambda value: type(value) is dict and len(value) <= 20)
ARGUMENTS = Kind(
    "a list of values, inputs and sizes",
    lambda value: type(value) is list and len(value) <= 20 and calls.is_argument(value),
)
KEYWORDS = Kind("an object of values, inputs and sizes", calls.is_keywords)
FUNCTION = Kind("a function that only computes, such as 'add' or 'functional.gelu'", calls.is_name)
METHOD = Kind(
    "a method of tensors that only computes, such as 'permute'",
    lambda name: type(name) is str and name in calls.METHODS,
)
DTYPE = Kind(f"one of {', '.join(calls.DTYPES)}", lambda name: type(name) is str and name in calls.DTYPES)
SHAPE = Kind(
    "a list of sizes",
    lambda value: type(value) is list and len(value) <= 8 and all(map(integer(0, MOST_VALUES).test, value)),
)
CONVOLUTION = {"stride": SIZE, "padding": PADDING, "dilation": SIZE, "groups": integer(1, 1 << 20)}
WEIGHTS = {"bits": integer(1, 8), "bias": FLAG}
POOLING = {"kernel_size": SIZE, "stride": SIZE, "padding": PADDING, "ceil_mode": FLAG}
# Of each operation, the options that it may have: the one or the other set, all of them.
OPTIONS: dict[str, list[dict[str, Kind]]] = {
    "conv2d": [{**CONVOLUTION, **WEIGHTS, "relu": FLAG}],
    "linear": [{**WEIGHTS, "relu": FLAG}],
    "add": [{"relu": FLAG}],
    "cat": [{"dim": AXIS}],
    "max_pool2d": [{**POOLING, "dilation": SIZE}],
    "avg_pool2d": [{**POOLING, "count_include_pad": FLAG}],
    "adaptive_avg_pool2d": [{"output_size": either(integer(1, 1))}],
    "flatten": [{"start_dim": AXIS, "end_dim": AXIS}],
    "requantize": [{"relu": FLAG}],
    "quantize": [{}],
    "dequantize": [{}],
    "weight_only": [WEIGHTS, {**CONVOLUTION, **WEIGHTS, "padding": WORD}],
    "float": [
        {"class": LAYER, "arguments": OBJECT},
        {"class": LAYER, "arguments": OBJECT, "call": ARGUMENTS, "keywords": KEYWORDS},
        {"function": FUNCTION, "arguments": ARGUMENTS},
        {"function": FUNCTION, "arguments": ARGUMENTS, "keywords": KEYWORDS},
        {"method": METHOD, "arguments": ARGUMENTS, "keywords": KEYWORDS},
        {"constant": DTYPE, "shape": SHAPE},
    ],
}
HEADER = {
    "format", "sha256", "input_shape", "layers", "steps", "grids", "fusible", "headline", "report",
}  # fmt: skip


def check_header(header: dict) -> None:
    """Raise ValueError unless the header is one of format 2, each value of its type and in its range.

    Steps stand in the order in which they run. Number n belongs to layer n, reads values that were there before (value 0
    is the input) and gives value n + 1: so no index is out of range, and no value depends on itself.
    """
    _same_keys(header, HEADER, "the header")
    count = len(_list(header, "layers", 1, MOST_LAYERS))
    for size in _list(header, "input_shape", 1, 4):
        integer(1, 1 << 20).check(size, "a size of input_shape")
    for number, layer in enumerate(header["layers"]):
        _check_layer(layer, f"layer {number}")
    for number, step in enumerate(_list(header, "steps", count, count)):
        least = 0 if "constant" in header["layers"][number][2] else 1
        fine = type(step) is list and len(step) == 3 and type(step[1]) is list and least <= len(step[1]) <= 1000
        if not fine or [type(step[0]), step[0], type(step[2]), step[2]] != [int, number, int, number + 1]:
            raise ValueError(f"step {number} is {_short(step)}, expected [{number}, [what it reads], {number + 1}]")
        for value in step[1]:
            integer(0, number).check(value, f"what step {number} reads")
    for number, grid in enumerate(_list(header, "grids", count + 1, count + 1)):
        if grid is not None:
            _check_grid(grid, f"grid {number}")
    for value in _list(header, "fusible", 0, count):
        integer(1, count).check(value, "a fusible value")
    TEXT.check(header["headline"], "headline")
    for row in _list(header, "report", 0, MOST_LAYERS):
        if type(row) is not list or len(row) != len(fields(Row)) or not all(map(TEXT.test, row)):
            raise ValueError(f"a row of the report is {_short(row)}, expected {len(fields(Row))} texts")


def _list(header: dict, name: str, least: int, most: int) -> list:
    value = header[name]
    if type(value) is not list or not least <= len(value) <= most:
        count = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(f"{name} is {_short(value)}, expected a list of {count}")
    return value


def _same_keys(found: dict, expected: set | dict, where: str) -> None:
    for name in sorted(found.keys() ^ set(expected)):
        raise ValueError(f"{where} {'lacks' if name in expected else 'has'} {name[:50]!r}")


def _check_layer(layer: object, where: str) -> None:
    if type(layer) is not list or len(layer) != 3 or type(layer[2]) is not dict:
        raise ValueError(f"{where} is {_short(layer)}, expected an operation, a name and options")
    op, name, options = layer
    TEXT.check(name, f"the name of {where}")
    if type(op) is not str or op not in OPTIONS:
        raise ValueError(f"{where} is {_short(op)}, expected one of {', '.join(OPTIONS)}")
    allowed = next((kinds for kinds in OPTIONS[op] if kinds.keys() == options.keys()), OPTIONS[op][0])
    _same_keys(options, allowed, f"{where}, {op},")
    for option, kind in allowed.items():
        kind.check(options[option], f"{option} of {where}")
    if "class" in options:
        _check_arguments(options, where)


def _check_arguments(options: dict, where: str) -> None:
    """The arguments of a layer of torch.nn: plain values."""
    for name, value in options["arguments"].items():
        kind = integer(1, 100) if name == "num_layers" else PLAIN  # each is built
        kind.check(value, f"{name[:50]!r} of {where}")


def _check_grid(grid: object, where: str) -> None:
    if type(grid) is not list or len(grid) != 3:
        raise ValueError(f"{where} is {_short(grid)}, expected a scale, a zero point and bits")
    scale, zero_point, bits = grid
    integer(1, 8).check(bits, f"the bits of {where}")
    integer(0, 2**bits - 1).check(zero_point, f"the zero point of {where}")
    tiny, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max / 2**bits
    if type(scale) is not float or not tiny <= scale <= largest or float(torch.tensor(scale)) != scale:
        raise ValueError(f"the scale of {where} is {_short(scale)}, expected a float32 number from {tiny:.3g} on")


def _short(value: object) -> str:
    """A value in at most 60 characters, however large it is."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


# --- The tensors


def digest(header: dict, tensors: dict[str, Tensor]) -> str:
    """The sha256 of a whole file, but for the digest itself: header, names, types, shapes and bytes of the tensors."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def check_weights(options: dict, own: dict[str, Tensor], where: str) -> None:
    """Raise ValueError unless these are the tensors of such a layer: codes of so many bits, scales, perhaps a bias."""
    weight, scale = own.get("weight"), own.get("scale")
    ndim = 4 if "groups" in options else 2
    if weight is None or scale is None:
        raise ValueError(f"{where}: {'weight' if weight is None else 'scale'!r} is missing")
    if weight.ndim != ndim or weight.numel() == 0:
        raise ValueError(f"{where}: 'weight' is {tuple(weight.shape)}, expected {ndim} dimensions and no empty one")
    shapes = {"weight": weight.shape, "scale": weight.shape[:1] if scale.ndim else ()}
    if options["bias"]:
        shapes["bias"] = weight.shape[:1]
    types = {"weight": torch.int8, "scale": torch.float32, "bias": torch.float32}
    check_tensors(own, {n: torch.empty(shape, dtype=types[n], device="meta") for n, shape in shapes.items()}, where)
    highest = 2 ** (options["bits"] - 1) - 1
    if int(weight.min()) < -highest - 1 or int(weight.max()) > highest:
        raise ValueError(f"{where}: codes from {weight.min()} to {weight.max()} do not fit {options['bits']} bits")
    if not (scale >= torch.finfo(torch.float32).tiny).all():
        raise ValueError(f"{where}: a scale of {float(scale.min()):.3g}, expected positive ones")


# --- What runs


def check_flow(layers: Sequence[Int8Layer], header: dict) -> None:
    """Raise ValueError unless every step fits what it reads: as many inputs, of such shapes, on a grid or in float.

    Layers in float are on the meta device. The last value has to be float scores.
    """
    grids = header["grids"]
    shapes = [torch.empty(1, *header["input_shape"], device="meta")]
    if grids[0] is not None or grids[-1] is not None:
        raise ValueError("the first or the last value is on a grid, expected images in float, and scores in float")
    for layer, (number, inputs, output) in zip(layers, header["steps"]):
        where = f"step {number}, {layer.name[:50]!r}"
        _check_grids(layer.op, [grids[value] for value in inputs], grids[output], where)
        try:
            shapes.append(flow(layer, *(shapes[value] for value in inputs)))
        except Exception as error:
            raise ValueError(f"{where} cannot be done ({str(error)[:200] or type(error).__name__})") from error
    if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(shapes[-1])):
        raise ValueError("the last value is no scores: expected a tensor, or a structure of tensors")
    _check_fusible(layers, header)


def _check_grids(op: str, inputs: list, output: list | None, where: str) -> None:
    takes_float, gives_float = op in (*FLOAT_OPS, "quantize"), op in (*FLOAT_OPS, "dequantize")
    if any((grid is None) != takes_float for grid in inputs) or (output is None) != gives_float:
        raise ValueError(f"{where} reads or gives floats where integers belong, or integers where floats belong")
    if op in KEEPS_GRID and inputs[0] != output:
        raise ValueError(f"{where} gives integers on another grid than it reads")


def flow(layer: Int8Layer, *inputs: object) -> object:
    """What the layer gives, as a shape: the float counterpart of its operation, on the meta device.

    A layer in float has its module there. Sizes and other numbers are what they are.
    """
    if isinstance(layer, Float):
        return _flow_in_float(layer.module, inputs)
    if not all(isinstance(x, Tensor) and x.dtype is torch.float32 for x in inputs):
        _refuse("it reads what is no tensor of float32")
    given = _flow_in_integers(layer, *inputs)
    calls.check_value(given)
    return given


def _flow_in_integers(layer: Int8Layer, *inputs: Tensor) -> Tensor:
    x, options, op = inputs[0], {name: value for name, value in layer.options.items() if name != "relu"}, layer.op
    if op == "add":
        a, b = inputs
        return a + b.expand(a.shape) if a.shape == b.shape else _refuse("two different shapes")
    if op == "cat":
        return torch.cat(inputs, **options)
    if len(inputs) != 1:
        _refuse(f"{len(inputs)} inputs, expected one")
    if isinstance(layer, Weighted):
        weight = torch.empty(layer.weight.shape, device="meta")
        return _convolve(x, weight, **options) if weight.ndim == 4 else F.linear(x, weight)
    if op.endswith("pool2d"):
        return getattr(F, op)(x, **options) if x.ndim == 4 else _refuse("no images")
    return x.flatten(**options) if op == "flatten" else x.clone()


def _convolve(x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    if x.ndim != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        _refuse(f"{tuple(x.shape)} with weights of {tuple(weight.shape)} in {groups} groups")
    if not isinstance(padding, str):  # an engine may pad before it convolves
        pads = padding if isinstance(padding, tuple) else (padding, padding)
        if math.prod(x.shape[:2]) * math.prod(s + 2 * p for s, p in zip(x.shape[2:], pads)) > MOST_VALUES:
            _refuse("too much padding")
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def _flow_in_float(module: nn.Module, inputs: tuple) -> object:
    if type(module).__name__ in FLOAT_LAYERS:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            _refuse(f"{len(inputs)} inputs, expected one tensor")
        dim = getattr(module, "dim", None)  # which torch looks at where there are numbers only
        if isinstance(dim, int) and not -inputs[0].ndim <= dim < inputs[0].ndim:
            _refuse(f"no axis {dim}")
    return calls.flow(module, inputs)


def _refuse(words: str):
    raise ValueError(words)


def _check_fusible(layers: Sequence[Int8Layer], header: dict) -> None:
    """A fusible value goes from a convolution without relu to an addition, which reads no other such value."""
    readers = [(number, value) for number, inputs, _ in header["steps"] for value in inputs]
    fusible = set(header["fusible"])
    for value in fusible:
        made, read = layers[value - 1], [number for number, each in readers if each == value]
        other = {each for number, each in readers if [number] == read} - {value}
        if (
            made.op != "conv2d"
            or made.options["relu"]
            or len(read) != 1
            or layers[read[0]].op != "add"
            or other & fusible
        ):
            raise ValueError(f"value {value} is fusible, but not what one convolution gives to one addition")
