"""An integer network as an ONNX graph with QDQ nodes: the form that onnxruntime and OpenVINO read.
(TensorRT reads it too, but takes zero points of 0 only.)

Such a graph looks like the float network. Each value is stored as uint8 codes; a DequantizeLinear node in front of an
operation turns them into floats, a QuantizeLinear node behind it turns the result into codes:

    codes -> DequantizeLinear -> Conv -> Relu -> QuantizeLinear -> codes

So every runtime can compute it as it stands, and a runtime with integer kernels sees from the grids on both sides what
the integer kernel must be, and puts it in place of the whole group. Weights are int8 with one scale an output channel,
biases int32 on the grid of the sum, ``s_x * s_w``.

Two things need care, so that the answers stay qlab's. A uint8 tensor has codes up to 255: a grid of fewer bits gets a
Clip of its *codes*, behind QuantizeLinear, where it does not come between an operation and its fusion. And an int32
bias is a multiple of ``s_x * s_w``, which is coarse when codes are few: such weights are stored with larger codes and
a finer scale, which are the same numbers.

Sources: Jacob et al. (CVPR 2018), section 2.4 for the bias; the ONNX specification of QuantizeLinear, which rounds
halves to even, and of DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qlab.affine import QParams
from qlab.export import operators
from qlab.export.operators import IR_VERSION, OPSET, Graph, Shape, library
from qlab.files import whole
from qlab.int8 import engines
from qlab.int8.modules import (
    Dequantize,
    Float,
    Int8Layer,
    Int8Network,
    Quantize,
    Requantize,
    Step,
    Weighted,
    WeightOnly,
)

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT, BATCH = "input", "output", "batch"
EMIT = {
    "conv2d": operators.conv2d, "linear": operators.linear, "add": operators.add, "cat": operators.cat,
    "max_pool2d": operators.max_pool2d, "avg_pool2d": operators.avg_pool2d,
    "adaptive_avg_pool2d": operators.adaptive_avg_pool2d, "flatten": operators.flatten,
}  # fmt: skip


def save_onnx(network: Int8Network, path: str | Path) -> Path:
    """Write an integer network as an ONNX graph with QDQ nodes (.onnx), atomically.

    The graph's input is ``input``, float32 (N, ...) normalized as in training, its output ``output``; N is free.
    onnx.checker has seen what is written.

    Args:
        network: What :func:`qlab.convert` or :func:`qlab.ptq` gave.
        path: Of the file; what is there is replaced.

    Returns:
        The path.

    Raises:
        TypeError: The network is not an integer one.
        ValueError: A step has no ONNX form.
        ImportError: The package onnx is missing; the message says what to install.

    >>> import qlab, tempfile, torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    >>> int8 = qlab.ptq(network, [torch.randn(4, 3, 8, 8)], engine="reference")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     qlab.save_onnx(int8, f"{folder}/network.onnx").name
    'network.onnx'
    """
    with whole(path) as part:
        part.write_bytes(onnx_model(network).SerializeToString())
    return Path(path)


def onnx_model(network: Int8Network) -> onnx.ModelProto:
    """What :func:`save_onnx` writes, an onnx.ModelProto; raises what it raises."""
    if not isinstance(network, Int8Network):
        raise TypeError(f"ONNX is made of what qlab.convert or qlab.ptq gave, not of a {type(network).__name__}")
    model = _Writer(network).model()
    library().checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Walks the program once, in order. ``floats[v]`` and ``codes[v]`` are the names under which value v is known."""

    def __init__(self, network: Int8Network) -> None:
        self.network, self.program = network, network.program
        self.shapes = _shapes(network)
        self.graph = Graph()
        self.floats: dict[int, str] = {0: self.graph.name(INPUT)}
        self.codes: dict[int, str] = {}
        self.graph.name(OUTPUT)  # no layer may be called so

    def model(self) -> onnx.ModelProto:
        """The graph of the whole network, with what describes it."""
        for step in self.program.steps:
            self._write(step, self.network.layers[step.layer])
        last, (batch, *sizes) = self.program.steps[-1].output, self.shapes[self.program.steps[-1].output]
        helper, float32 = self.graph.onnx.helper, self.graph.onnx.TensorProto.FLOAT
        x = helper.make_tensor_value_info(INPUT, float32, [BATCH, *self.program.input_shape])
        y = helper.make_tensor_value_info(OUTPUT, float32, [BATCH if batch == 1 else None, *sizes])
        _rename(self.graph.nodes, self._read(last), OUTPUT)
        graph = helper.make_graph(self.graph.nodes, "qlab", [x], [y], self.graph.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="qlab")
        helper.set_model_props(model, {"qlab": self.network._report.headline})
        return model

    def _write(self, step: Step, layer: Int8Layer) -> None:
        grid = self.program.grids[step.output]
        if isinstance(layer, Dequantize):
            self.floats[step.output] = self._read(step.inputs[0])
            return
        name = self.graph.name(layer.name)
        inputs = [self._read(value) for value in step.inputs]
        if isinstance(layer, (Quantize, Requantize)):
            result = inputs[0]
        elif isinstance(layer, Float):
            shapes = [self.shapes[value] for value in step.inputs]
            result = operators.module(self.graph, name, layer.module, inputs, shapes)
        else:
            inputs += (
                self._weights(name, layer, self.program.grids[step.inputs[0]]) if isinstance(layer, Weighted) else []
            )
            result = _emit(layer)(self.graph, name, inputs, layer.options, self.shapes[step.inputs[0]])
        if layer.options.get("relu"):
            result = self.graph.node("Relu", [result], f"{name}.relu")
        if grid is None:
            self.floats[step.output] = result
        else:
            self.codes[step.output] = self._quantize(name, result, grid, clip=layer.op not in ("max_pool2d", "flatten"))

    def _read(self, value: int) -> str:
        """The value as floats; a DequantizeLinear gives them when it is known by its codes."""
        if value not in self.floats:
            codes = self.codes[value]
            name = codes.removesuffix(".codes")
            ends = [f"{name}.scale", f"{name}.zero_point"]
            self.floats[value] = self.graph.node("DequantizeLinear", [codes, *ends], f"{name}.value")
        return self.floats[value]

    def _quantize(self, name: str, x: str, grid: QParams, clip: bool) -> str:
        """Floats become codes, no higher than the grid's highest. ``clip`` False: they lay on this grid before."""
        constant, codes = self.graph.constant, f"{name}.codes"
        ends = [
            constant(f"{name}.scale", np.array(float(grid.scale), np.float32)),
            constant(f"{name}.zero_point", np.array(int(grid.zero_point), np.uint8)),
        ]
        if grid.bits == 8 or not clip:
            return self.graph.node("QuantizeLinear", [x, *ends], codes)
        all_codes = self.graph.node("QuantizeLinear", [x, *ends], f"{name}.quantized")
        highest = constant(f"{name}.highest_code", np.array(grid.qmax, np.uint8))
        return self.graph.node("Clip", [all_codes, "", highest], codes)

    def _weights(self, name: str, layer: Weighted, x_grid: QParams | None) -> list[str]:
        """The names of the weights and the bias as floats, behind the DequantizeLinear that makes them from integers."""
        graph, codes, scale = self.graph, layer.weight, layer.scale.expand(len(layer.weight))
        if layer.bias is not None and x_grid is not None:
            most = min(127, (2**15 - 1) // (2 * x_grid.qmax))  # without VNNI, a pair of products has 16 bits
            codes, scale = engines.room_for_bias(codes, scale, layer.bias, x_grid, most)
        stored = (
            graph.constant(f"{name}.weight", codes),
            graph.constant(f"{name}.weight_scale", scale.float()),
            graph.constant(f"{name}.weight_zero_point", torch.zeros(len(codes), dtype=torch.int8)),
        )
        names = [graph.node("DequantizeLinear", stored, f"{name}.weight_value", axis=0)]
        if layer.bias is None:
            return names
        if x_grid is None:  # the layer computes in float
            return [*names, graph.constant(f"{name}.bias", layer.bias)]
        step = x_grid.scale.float() * scale.float()
        bias = torch.round(layer.bias.double() / step.double()).to(torch.int32)
        stored = graph.constant(f"{name}.bias", bias), graph.constant(f"{name}.bias_scale", step)
        return [*names, graph.node("DequantizeLinear", stored, f"{name}.bias_value", axis=0)]


def _emit(layer: Int8Layer) -> operators.Emit:
    """The function that writes this layer; a layer with integer weights alone is a convolution or a linear layer."""
    if isinstance(layer, WeightOnly):
        return operators.conv2d if layer.weight.ndim == 4 else operators.linear
    return EMIT[layer.op]


def _shapes(network: Int8Network) -> list[Shape]:
    """The shape of every value, found by sending one black image through, step by step."""
    program, engine = network.program, engines.get(network.engine)
    values: dict[int, Tensor] = {0: torch.zeros(1, *program.input_shape)}
    with torch.no_grad(), engine.running():
        for step in program.steps:
            layer = network.layers[step.layer]
            grids = [program.grids[value] for value in step.inputs]
            kernel = layer.kernel(engine, grids, program.grids[step.output])
            values[step.output] = kernel(*(values[value] for value in step.inputs))
    return [tuple(getattr(values.get(value), "shape", ())) for value in range(len(program.grids))]


def _rename(nodes: Sequence, before: str, after: str) -> None:
    """Call a value by another name, wherever it is made and read."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = after
