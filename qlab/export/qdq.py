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

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qlab.affine import QParams
from qlab.export import aten, operators
from qlab.export.aten import Both
from qlab.export.checks import flow
from qlab.export.operators import IR_VERSION, OPSET, Graph, library
from qlab.files import whole
from qlab.graph.check import similarity
from qlab.int8 import engines, reference
from qlab.int8.modules import (
    Call,
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
    onnx.checker has seen what is written, and where onnxruntime is installed, each step of it was compared with the
    network's on noise.

    Args:
        network: What :func:`qlab.convert` or :func:`qlab.ptq` gave.
        path: Of the file; what is there is replaced.

    Returns:
        The path.

    Raises:
        TypeError: The network is not an integer one.
        ValueError: A step has no ONNX form, or gives other answers there.
        ImportError: The package onnx is missing; the message says what to install.

    >>> import qlab, tempfile, torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    >>> int8 = qlab.ptq(network, [torch.randn(4, 3, 8, 8)], engine="reference")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     qlab.save_onnx(int8, f"{folder}/network.onnx").name
    'network.onnx'
    """
    content = onnx_model(network).SerializeToString()
    with whole(path) as part:
        part.write_bytes(content)
    return Path(path)


def onnx_model(network: Int8Network) -> onnx.ModelProto:
    """What :func:`save_onnx` writes, an onnx.ModelProto; raises what it raises."""
    if not isinstance(network, Int8Network):
        raise TypeError(f"ONNX is made of what qlab.convert or qlab.ptq gave, not of a {type(network).__name__}")
    writer = _Writer(network)
    model = writer.model()
    try:
        library().checker.check_model(model, full_check=True)
        if find_spec("onnxruntime") is not None:
            prove_onnx(network, model, writer.names)
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"this network has no valid ONNX graph; nothing is written. {type(error).__name__}: {str(error)[:400]}"
        ) from error
    return model


class _Writer:
    """Walks the program once, in order.

    ``floats[v]`` and ``codes[v]`` are the names under which value v is known, ``values[v]`` is what it is, in float, for
    two batches of different sizes: of a layer in integers the shape is what matters, so it stands for itself by zeros.
    """

    def __init__(self, network: Int8Network) -> None:
        self.network, self.program = network, network.program
        self.graph = Graph()
        self.floats: dict[int, str] = {0: self.graph.name(INPUT)}
        self.codes: dict[int, str] = {}
        self.graph.name(OUTPUT)  # no layer may be called so
        self.steps = aten.Steps(self.graph, INPUT)
        sizes = network.program.input_shape
        self.values = {0: Both(*(torch.zeros(batch, *sizes) for batch in aten.BATCHES))}
        self.steps.names[id(self.values[0].first)] = INPUT
        self.names: dict[int, str] = {}  # of the values that steps give

    def model(self) -> onnx.ModelProto:
        """The graph of the whole network, with what describes it."""
        for step in self.program.steps:
            self._write(step, self.network.layers[step.layer])
        last = self.program.steps[-1].output
        answer = self.values[last]
        if not isinstance(answer.first, Tensor):
            raise ValueError(
                f"the network answers with a {type(answer.first).__name__}: in ONNX it would have several outputs, which "
                "save_onnx does not write: give it one tensor as its answer"
            )
        helper, float32 = self.graph.onnx.helper, self.graph.onnx.TensorProto.FLOAT
        x = helper.make_tensor_value_info(INPUT, float32, [BATCH, *self.program.input_shape])
        batch, *sizes = zip(answer.first.shape, answer.second.shape)
        free = [BATCH if batch == aten.BATCHES else batch[0] if batch[0] == batch[1] else None]
        y = helper.make_tensor_value_info(OUTPUT, float32, free + [a if a == b else None for a, b in sizes])
        result = self._read(last)
        if result == INPUT or result in {constant.name for constant in self.graph.constants}:
            result = self.graph.node("Identity", [result], f"{OUTPUT}.identity")
        _rename(self.graph.nodes, result, OUTPUT)
        self.names = {value: OUTPUT if name == result else name for value, name in self.names.items()}
        graph = helper.make_graph(self.graph.nodes, "qlab", [x], [y], self.graph.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="qlab")
        helper.set_model_props(model, {"qlab": self.network._report.headline})
        return model

    def _write(self, step: Step, layer: Int8Layer) -> None:
        if isinstance(layer, Dequantize):
            self.floats[step.output] = self._read(step.inputs[0])
            self.values[step.output] = self.values[step.inputs[0]]
            return
        name = self.graph.name(layer.name)
        inputs = [self.values[value] for value in step.inputs]
        if isinstance(layer, Float):
            self.values[step.output] = both = self._write_float(name, layer, step.inputs)
            self.names[step.output] = self.steps.names.get(id(both.first), "")
            return
        self.values[step.output] = both = Both(
            *(_zeros(layer, *(getattr(value, run) for value in inputs)) for run in ("first", "second"))
        )
        if layer.options.get("relu"):
            result = self.graph.node("Relu", [self._emit(name, step, layer)], f"{name}.relu")
        else:
            result = self._emit(name, step, layer)
        grid = self.program.grids[step.output]
        if grid is None:
            self.floats[step.output] = result
        else:
            self.codes[step.output] = result = self._quantize(
                name, result, grid, clip=layer.op not in ("max_pool2d", "flatten")
            )
        self.names[step.output] = result
        self.steps.names[id(both.first)] = ""  # it depends on the input; its name comes when somebody reads it

    def _emit(self, name: str, step: Step, layer: Int8Layer) -> str:
        """A layer in integers, as it would be in float: the name of what it gives."""
        inputs = [self._read(value) for value in step.inputs]
        if isinstance(layer, (Quantize, Requantize)):
            return inputs[0]
        options = layer.options
        if isinstance(layer, Weighted):
            inputs += self._weights(name, layer, self.program.grids[step.inputs[0]])
            options = options | {"kernel_size": layer.weight.shape[2:]}
        return _emit(layer)(self.graph, name, inputs, options, tuple(self.values[step.inputs[0]].first.shape))

    def _write_float(self, name: str, layer: Float, inputs: Sequence[int]) -> Both:
        """A step in float, as the operations that it consists of. Raises ValueError, with its name, for what has no form."""
        for value in inputs:
            self._name(value)
        try:
            both = self.steps.write(name, layer.module, [self.values[value] for value in inputs])
        except aten.NoForm as error:
            what = layer.module.extra_repr() if isinstance(layer.module, Call) else type(layer.module).__name__
            raise ValueError(
                f"{name} stays in float and is {what!r}, for which qlab knows no ONNX form: it comes down to {error}. Write "
                "that step with other layers or functions"
            ) from error
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"{name} does not run on {aten.BATCHES} images of zeros: {error}") from error
        return both

    def _name(self, value: int) -> None:
        """Let steps in float know what a value of an integer layer is called."""
        first = self.values[value].first
        if isinstance(first, Tensor) and self.steps.names.get(id(first)) == "":
            self.steps.names[id(first)] = self._read(value)

    def _read(self, value: int) -> str:
        """The value as floats; a DequantizeLinear gives them when it is known by its codes."""
        if value not in self.floats and value in self.codes:
            codes = self.codes[value]
            name = codes.removesuffix(".codes")
            ends = [f"{name}.scale", f"{name}.zero_point"]
            self.floats[value] = self.graph.node("DequantizeLinear", [codes, *ends], f"{name}.value")
        if value not in self.floats:  # of a step in float
            both = self.values[value]
            self.floats[value] = self.steps.tensor(both.first, both.second, self.graph.name("constant"))
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


def _zeros(layer: Int8Layer, *inputs: Tensor) -> Tensor:
    """Zeros in the shape of what a layer gives."""
    return torch.zeros(flow(layer, *(x.to("meta") for x in inputs)).shape)


def _rename(nodes: Sequence, before: str, after: str) -> None:
    """Call a value by another name, wherever it is made and read."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = after


# --- The proof

SAME = 60.0  # dB: what float32's own rounding leaves of a step in float is 90 and more


@torch.no_grad()
def prove_onnx(network: Int8Network, model: onnx.ModelProto, names: Mapping[int, str]) -> None:
    """Raise ValueError unless each step of the graph gives what the network's does, on one image of noise.

    Each step is given what the graph itself had before it: then integers may differ by one code, where a bias or a half
    was rounded, and floats by their own rounding.
    """
    program, engine = network.program, reference.Engine()
    x = torch.randn(1, *program.input_shape, generator=torch.Generator().manual_seed(0))
    found = _values(model, set(names.values()), x)
    known: dict[int, object] = {0: x}
    for step in program.steps:
        layer, grid = network.layers[step.layer], program.grids[step.output]
        kernel = layer.kernel(engine, [program.grids[value] for value in step.inputs], grid)
        expected = known[step.output] = kernel(*(known[value] for value in step.inputs))
        if step.output not in names or not isinstance(expected, Tensor) or names[step.output] not in found:
            continue
        given = found[names[step.output]]
        decibel = similarity(expected, given)
        near = (
            grid is not None and given.shape == expected.shape and int((given.int() - expected.int()).abs().max()) <= 1
        )
        if not near and decibel < SAME:
            raise ValueError(
                f"the ONNX graph gives other answers than the network: {decibel:.1f} dB between the two in layer "
                f"{layer.name!r}, on noise. Nothing is written; leave that layer out of what you save, or in another form"
            )
        known[step.output] = given


def _values(model, names: set[str], x: Tensor) -> dict[str, Tensor]:
    """The values of these names in the graph, computed node by node by onnxruntime."""
    import onnxruntime

    onnx, named = library(), onnx_copy(model)
    types = {info.name: info for info in onnx.shape_inference.infer_shapes(model).graph.value_info}
    named.graph.output.extend(types[name] for name in sorted(names & types.keys()))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(named.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [output.name for output in session.get_outputs()]
    return dict(zip(wanted, map(torch.from_numpy, session.run(wanted, {INPUT: x.numpy()}))))


def onnx_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an onnx.ModelProto."""
    copied = type(model)()
    copied.CopyFrom(model)
    return copied
