"""What the operations that qlab has in integers are called in ONNX: a graph under construction, and a function for each.

All of it is float here. The integers come from :mod:`qlab.export.qdq`, which puts a QuantizeLinear behind each
operation and a DequantizeLinear in front of it; a runtime fuses the three into one integer kernel.
Source: ONNX operator specifications, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from qlab.extras import remedy
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
    padding, dilation = options["padding"], pair(options["dilation"])
    if padding == "same":  # the odd pixel at the end, as torch has it
        total = [step * (size - 1) for step, size in zip(dilation, options["kernel_size"])]
        pads = [*(pixels // 2 for pixels in total), *(pixels - pixels // 2 for pixels in total)]
    else:
        pads = [*pair(0 if padding == "valid" else padding)] * 2
    return graph.node(
        "Conv", inputs, name, strides=pair(options["stride"]), pads=pads, dilations=dilation, group=options["groups"]
    )


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
        return _unequal_means(graph, name, inputs[0], size, shape)
    cell = [length // cells for length, cells in zip(shape[2:], size)]
    return graph.node("AveragePool", inputs, name, kernel_shape=cell, strides=cell)


def _unequal_means(graph: Graph, name: str, x: str, size: Sequence[int], shape: Shape) -> str:
    """Means over cells of unequal size, for which ONNX has no operator: a product with a matrix for each axis.

    As in torch, cell i of n begins at floor(i L / n) and ends at ceil((i + 1) L / n).
    """
    means = []
    for length, cells in zip(shape[2:], size):
        matrix = np.zeros((cells, length), np.float32)
        for cell in range(cells):
            begin, end = cell * length // cells, -((-(cell + 1) * length) // cells)
            matrix[cell, begin:end] = 1 / (end - begin)
        means.append(matrix)
    rows = graph.node("MatMul", [graph.constant(f"{name}.vertical", means[0]), x], f"{name}.rows")
    return graph.node("MatMul", [rows, graph.constant(f"{name}.horizontal", means[1].T.copy())], name)


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
