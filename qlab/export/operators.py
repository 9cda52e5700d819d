"""What each operation is called in ONNX: a graph under construction, and a function for each kind of layer.

All of it is float here. The integers come from :mod:`qlab.export.qdq`, which puts a QuantizeLinear behind each
operation and a DequantizeLinear in front of it; a runtime fuses the three into one integer kernel.
Source: ONNX operator specifications, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlab.extras import remedy
from qlab.int8.modules import Call, Input
from qlab.int8.reference import fit_windows, pair

OPSET, IR_VERSION = 17, 8  # of 2022: the first opset with LayerNormalization; what any runtime in use today reads


def library() -> ModuleType:
    """The package ``onnx``, imported on the first call. Raises ImportError with what to install."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"ONNX files need the package onnx: {remedy('onnx')}") from error
    return onnx


class Graph:
    """Nodes and constants, each with a name of its own. ``shapes`` of values are known: images have one size."""

    def __init__(self) -> None:
        self.onnx = library()
        self.nodes: list = []
        self.constants: list = []
        self._taken: Counter[str] = Counter()

    def name(self, wanted: str) -> str:
        """``wanted``, or ``wanted_2`` when a layer is called a second time."""
        self._taken[wanted] += 1
        return wanted if self._taken[wanted] == 1 else f"{wanted}_{self._taken[wanted]}"

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """A tensor that is stored in the file; its name."""
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output; the name of the output, and of the node."""
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output


# --- operations that qlab has in integers too: (graph, output name, inputs, options, shape of the first input)

Shape = tuple[int, ...]
Emit = Callable[[Graph, str, Sequence[str], Mapping, Shape], str]


def conv2d(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    """Inputs: image, weights, bias if there is one."""
    padding = pair(options["padding"])
    return graph.node(
        "Conv", inputs, name, strides=pair(options["stride"]), pads=[*padding, *padding],
        dilations=pair(options["dilation"]), group=options["groups"],
    )  # fmt: skip


def linear(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    """Inputs: rows, weights (outputs, inputs), bias if there is one."""
    if len(shape) == 2:
        return graph.node("Gemm", inputs, name, transB=1)
    x, weight, *bias = inputs  # Gemm takes matrices only
    turned = graph.node("Transpose", [weight], f"{name}.transposed", perm=[1, 0])
    product = graph.node("MatMul", [x, turned], f"{name}.product" if bias else name)
    return graph.node("Add", [product, *bias], name) if bias else product


def add(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    return graph.node("Add", inputs, name)


def cat(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    return graph.node("Concat", inputs, name, axis=options["dim"])


def max_pool2d(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    window, _overhang = _window(options, shape)
    return graph.node("MaxPool", inputs, name, **window)


def avg_pool2d(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    """torch counts padding as zeros where it is asked to, but never what a last window (ceil_mode) has beyond it."""
    window, overhang = _window(options, shape)
    counts = bool(options["count_include_pad"]) and any(pair(options["padding"]))
    if counts and overhang:
        raise ValueError(
            f"{name}: average pooling with ceil_mode, padding and count_include_pad has no ONNX form that is the same: "
            "use count_include_pad=False or ceil_mode=False"
        )
    del window["dilations"]  # this opset's AveragePool has none
    return graph.node("AveragePool", inputs, name, **window, count_include_pad=int(counts))


def adaptive_avg_pool2d(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    size = pair(options["output_size"])
    if size == (1, 1):
        return graph.node("GlobalAveragePool", inputs, name)
    if any(length % cells for length, cells in zip(shape[2:], size)):
        raise ValueError(
            f"{name}: {size[0]}x{size[1]} means of a {shape[2]}x{shape[3]} image are over cells of unequal size, for "
            "which ONNX has no operator: choose an output_size that divides the image's, such as 1"
        )
    cell = [length // cells for length, cells in zip(shape[2:], size)]
    return graph.node("AveragePool", inputs, name, kernel_shape=cell, strides=cell)


def flatten(graph: Graph, name: str, inputs: Sequence[str], options: Mapping, shape: Shape) -> str:
    start, end = (axis % len(shape) for axis in (options["start_dim"], options["end_dim"]))
    if (start, end) == (1, len(shape) - 1):
        return graph.node("Flatten", inputs, name, axis=1)
    sizes = [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]
    sizes[0] = -1  # the batch, whatever its size
    return graph.node("Reshape", [*inputs, graph.constant(f"{name}.shape", np.array(sizes, np.int64))], name)


def _window(options: Mapping, shape: Shape) -> tuple[dict, bool]:
    """ONNX's attributes of a pooling window, and whether the last window reaches beyond the padding.

    With ceil_mode torch and ONNX's versions disagree on the number of windows, so the padding at the end is
    made such that exactly torch's number fits.
    """
    kernel, padding = pair(options["kernel_size"]), pair(options["padding"])
    stride = kernel if options["stride"] is None else pair(options["stride"])
    dilation = pair(options.get("dilation", 1))
    axes = zip(shape[2:], kernel, stride, padding, dilation)
    after = [fit_windows(*axis, bool(options["ceil_mode"]))[1] for axis in axes]
    window = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *after], "dilations": dilation}
    return window, any(end > p for end, p in zip(after, padding))


# --- layers that stay in float


def module(graph: Graph, name: str, layer: nn.Module, inputs: Sequence[str], shapes: Sequence[Shape]) -> str:
    """A torch.nn layer, or a function of :data:`FUNCTIONS`, in float. Raises ValueError where there is no ONNX form."""
    if isinstance(layer, Call):
        return _call(graph, name, layer, inputs)
    cls = type(layer)
    if cls in LIKE_INTEGERS:
        emit, options = LIKE_INTEGERS[cls]
        weights = [graph.constant(f"{name}.{key}", value) for key, value in layer.named_parameters()]
        return emit(graph, name, [*inputs, *weights], {key: getattr(layer, key) for key in options}, shapes[0])
    if cls not in FLOAT:
        raise ValueError(_no_form(name, cls.__name__))
    return FLOAT[cls](graph, name, layer, inputs[0])


def _no_form(name: str, what: str) -> str:
    known = sorted({cls.__name__ for cls in (*FLOAT, *LIKE_INTEGERS)})
    return (
        f"{name} stays in float and is {what!r}, for which qlab knows no ONNX form: it knows {', '.join(known)}, "
        "addition, subtraction, multiplication and torch.cat. Write that step with these"
    )


def _call(graph: Graph, name: str, call: Call, inputs: Sequence[str]) -> str:
    """A function of the graph: what is no input among its arguments becomes a constant."""
    if call.kwargs or call.target not in FUNCTIONS:
        raise ValueError(_no_form(name, call.extra_repr()))
    if call.target is torch.cat:
        parts, *dim = call.args
        return graph.node("Concat", [inputs[part.place] for part in parts], name, axis=dim[0] if dim else 0)

    def operand(index: int, argument) -> str:
        if isinstance(argument, Input):
            return inputs[argument.place]
        return graph.constant(f"{name}.constant{index}", np.array(argument, np.float32))

    return graph.node(FUNCTIONS[call.target], [operand(*each) for each in enumerate(call.args)], name)


def _named(op: str, **attributes: str) -> Callable:
    """A layer that is one node; ``attributes`` maps ONNX's names to the layer's."""

    def emit(graph: Graph, name: str, layer: nn.Module, x: str) -> str:
        return graph.node(op, [x], name, **{ours: getattr(layer, theirs) for ours, theirs in attributes.items()})

    return emit


def _relu6(graph: Graph, name: str, layer: nn.Module, x: str) -> str:
    ends = [graph.constant(f"{name}.{end}", np.array(value, np.float32)) for end, value in (("low", 0), ("high", 6))]
    return graph.node("Clip", [x, *ends], name)


def _silu(graph: Graph, name: str, layer: nn.Module, x: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)


def _hardsigmoid(graph: Graph, name: str, layer: nn.Module, x: str) -> str:
    return graph.node("HardSigmoid", [x], name, alpha=1 / 6, beta=0.5)


def _gelu(graph: Graph, name: str, layer: nn.GELU, x: str) -> str:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    if layer.approximate != "none":
        raise ValueError(_no_form(name, f"GELU(approximate={layer.approximate!r})"))
    parts = {"root": math.sqrt(0.5), "one": 1.0, "half": 0.5}
    parts = {key: graph.constant(f"{name}.{key}", np.array(value, np.float32)) for key, value in parts.items()}
    erf = graph.node("Erf", [graph.node("Mul", [x, parts["root"]], f"{name}.scaled")], f"{name}.erf")
    gate = graph.node("Mul", [graph.node("Add", [erf, parts["one"]], f"{name}.plus"), parts["half"]], f"{name}.gate")
    return graph.node("Mul", [x, gate], name)


def _layer_norm(graph: Graph, name: str, layer: nn.LayerNorm, x: str) -> str:
    gain = torch.ones(layer.normalized_shape) if layer.weight is None else layer.weight
    inputs = [x, graph.constant(f"{name}.weight", gain)]
    inputs += [] if layer.bias is None else [graph.constant(f"{name}.bias", layer.bias)]
    return graph.node("LayerNormalization", inputs, name, axis=-len(layer.normalized_shape), epsilon=layer.eps)


def _batch_norm(graph: Graph, name: str, layer: nn.BatchNorm2d, x: str) -> str:
    mean, variance = layer.running_mean, layer.running_var
    gain = torch.ones_like(mean) if layer.weight is None else layer.weight
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    parts = {"weight": gain, "bias": bias, "mean": mean, "variance": variance}
    stored = [graph.constant(f"{name}.{key}", value) for key, value in parts.items()]
    return graph.node("BatchNormalization", [x, *stored], name, epsilon=layer.eps)


POOL = ("kernel_size", "stride", "padding", "ceil_mode")
LIKE_INTEGERS: dict[type, tuple[Emit, tuple[str, ...]]] = {
    nn.Conv2d: (conv2d, ("stride", "padding", "dilation", "groups")),
    nn.Linear: (linear, ()),
    nn.MaxPool2d: (max_pool2d, (*POOL, "dilation")),
    nn.AvgPool2d: (avg_pool2d, (*POOL, "count_include_pad")),
    nn.AdaptiveAvgPool2d: (adaptive_avg_pool2d, ("output_size",)),
    nn.Flatten: (flatten, ("start_dim", "end_dim")),
}
FLOAT: dict[type, Callable] = {
    nn.ReLU: _named("Relu"), nn.ReLU6: _relu6, nn.Sigmoid: _named("Sigmoid"), nn.Tanh: _named("Tanh"),
    nn.SiLU: _silu, nn.Hardswish: _named("HardSwish"), nn.Hardsigmoid: _hardsigmoid, nn.GELU: _gelu,
    nn.LeakyReLU: _named("LeakyRelu", alpha="negative_slope"), nn.ELU: _named("Elu", alpha="alpha"),
    nn.Softmax: _named("Softmax", axis="dim"), nn.LayerNorm: _layer_norm, nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm, nn.Identity: _named("Identity"), nn.Dropout: _named("Identity"),
}  # fmt: skip
FUNCTIONS: dict[Callable, str] = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", torch.cat: "Concat"}
