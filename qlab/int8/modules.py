"""The layers of an integer network, and the network itself: one flat list of steps.

A layer here holds what every engine needs and no engine owns: integer weights, their scales, a bias. An engine packs
that into a *kernel*, a function from integers to integers, and the network strings the kernels together.
"""

from __future__ import annotations

import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams, dequantize
from qlab.granularity import PerChannel, PerTensor
from qlab.int8 import engines
from qlab.int8.reference import without_autocast
from qlab.sizes import memory_bytes
from qlab.tables import Table


class Int8Layer(nn.Module):
    """One step of an integer network. ``name`` is the layer's in the float network, ``options`` its settings."""

    op = ""

    def __init__(self, name: str, **options) -> None:
        super().__init__()
        self.name = name
        self.options = options

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        """The function that computes this step on ``engine``, for these grids."""
        method = getattr(engine, self.op)
        return method(*inputs, output, **self.options)

    def extra_repr(self) -> str:
        return ", ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Layer:
        """half(), to(...) and their like, of this layer or of a network around it: only what changes nothing."""
        for tensor in self.state_dict().values():
            changed = fn(tensor)
            if (changed.dtype, changed.device) != (tensor.dtype, tensor.device):
                raise TypeError(
                    f"layer {self.name!r} of an integer network: {tensor.dtype} on {tensor.device} cannot become "
                    f"{changed.dtype} on {changed.device}, for its kernel is packed already. Change the float network, "
                    "and convert that"
                )
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """load_state_dict() of this layer or of a network around it: the grids between the layers are not in there."""
        if any(key.startswith(prefix) for key in state_dict):
            raise RuntimeError(
                f"layer {self.name!r} of an integer network takes no load_state_dict: its kernel is packed already, "
                "and the grids of the activations are in no state_dict. Save with qlab.save, and load with qlab.load"
            )


class Weighted(Int8Layer):
    """A step with weights: int8 codes (outputs, ...), one scale an output channel or one for all, a float bias."""

    def __init__(self, name: str, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int, **options) -> None:
        super().__init__(name, **options)
        self.bits = bits
        self.register_buffer("weight", weight.contiguous())  # some kernels read past strides
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @property
    def weight_qparams(self) -> QParams:
        """The grid of the weights."""
        zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        granularity = PerChannel(0) if self.scale.ndim else PerTensor()
        return QParams(self.scale, zero_point, self.bits, True, granularity)

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        method = getattr(engine, self.op)
        return method(self.weight, self.bias, self.weight_qparams, *inputs, output, **self.options)

    def can_saturate(self, x: QParams) -> bool:
        """Can the sum of two products of codes overflow 16 bits? The two largest weights of one sign decide."""
        rows = self.weight.reshape(len(self.weight), -1).to(torch.int32)
        largest = [signed.topk(min(2, rows.shape[1])).values.clamp(min=0).sum(1).max() for signed in (rows, -rows)]
        return x.qmax * int(max(largest)) > 2**15 - 1


class Int8Conv2d(Weighted):
    """Convolution, with the relu that follows it."""

    op = "conv2d"

    def added_kernel(
        self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams, relu: bool, last: bool
    ) -> Callable:
        """The kernel of convolution + addition (+ relu) in one; ``last``: nobody reads the added value afterwards."""
        options = {**self.options, "relu": relu, "overwrite_other": last}
        return engine.conv2d_add(self.weight, self.bias, self.weight_qparams, *inputs, output, **options)


class Int8Linear(Weighted):
    """Linear layer, with the relu that follows it."""

    op = "linear"


class Int8Add(Int8Layer):
    """The sum of two tensors on two grids, on a third one."""

    op = "add"


class Int8Cat(Int8Layer):
    """Concatenation, each input on the grid of the whole."""

    op = "cat"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        kernel = engine.cat(list(inputs), output, **self.options)
        return lambda *parts: kernel(list(parts))


class Int8MaxPool2d(Int8Layer):
    """Max-pooling: the largest code is the code of the largest value, so the grid stays."""

    op = "max_pool2d"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        return engine.max_pool2d(inputs[0], **self.options)


class Int8AvgPool2d(Int8Layer):
    """Average pooling over windows."""

    op = "avg_pool2d"


class Int8GlobalAvgPool2d(Int8Layer):
    """The average over the whole image, one number a channel."""

    op = "adaptive_avg_pool2d"


class Int8Flatten(Int8Layer):
    """Another view of the same integers."""

    op = "flatten"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        return engine.flatten(**self.options)


class Requantize(Int8Layer):
    """The same values on another grid."""

    op = "requantize"


class Quantize(Int8Layer):
    """Floats become integers: at the network's input, and behind a layer that stayed in float."""

    op = "quantize"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        return engine.quantize(output)


class Dequantize(Int8Layer):
    """Integers become floats: at the network's output, and in front of a layer that stayed in float."""

    op = "dequantize"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        return engine.dequantize(inputs[0])


class WeightOnly(Weighted):
    """A layer whose weights are kept as integers, but which computes in float (its activations are not quantized)."""

    op = "weight_only"

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        weight = dequantize(self.weight, self.weight_qparams)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
            return lambda x: F.conv2d(x, weight, self.bias, **self.options)
        return lambda x: F.linear(x, weight, self.bias)


class Float(Int8Layer):
    """A layer that stayed in float, as it was."""

    op = "float"

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name)
        self.module = module

    def kernel(self, engine: engines.Engine, inputs: Sequence[QParams], output: QParams | None) -> Callable:
        return self.module


@dataclass(frozen=True)
class Input:
    """Stands for input number ``place`` among the arguments of a :class:`Call`."""

    place: int


class Call(nn.Module):
    """A call of a function, of a layer, or of a tensor's method given by name, with its other arguments filled in."""

    def __init__(self, target: Callable | str, args: Sequence, kwargs: dict) -> None:
        super().__init__()
        self.target, self.args, self.kwargs = target, args, kwargs

    def forward(self, *inputs: object) -> object:
        args, kwargs = filled((self.args, self.kwargs), inputs)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def extra_repr(self) -> str:
        return (
            self.target
            if isinstance(self.target, str)
            else getattr(self.target, "__name__", type(self.target).__name__)
        )


def filled(arguments: object, inputs: Sequence) -> object:
    """The arguments of a call with each :class:`Input` replaced; inside tuples, lists, dicts and slices too."""
    if isinstance(arguments, Input):
        return inputs[arguments.place]
    if isinstance(arguments, slice):
        return slice(*(filled(part, inputs) for part in (arguments.start, arguments.stop, arguments.step)))
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(filled(part, inputs) for part in arguments)
    if isinstance(arguments, dict):
        return {key: filled(part, inputs) for key, part in arguments.items()}
    return arguments


class Constant(nn.Module):
    """A tensor of the network's own that no layer holds, such as the positions of a transformer."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        return self.value


def structure(value: object) -> object:
    """A network's answer when it is not one tensor: a tuple, list or dict of values."""
    return value


LAYERS = {cls.op: cls for cls in (
    Int8Conv2d, Int8Linear, Int8Add, Int8Cat, Int8MaxPool2d, Int8AvgPool2d, Int8GlobalAvgPool2d, Int8Flatten,
    Requantize, Quantize, Dequantize, WeightOnly, Float,
)}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Layer number ``layer`` reads the values ``inputs`` and gives value ``output``."""

    layer: int
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Program:
    """What an integer network computes, apart from any engine. Value 0 is the input, the last step gives the output.

    ``grids[v]`` is the grid of value v, None when it is float. ``fusible`` are values inside convolution + addition, to
    which an engine that fuses the two never rounds.
    """

    steps: tuple[Step, ...]
    grids: tuple[QParams | None, ...]
    fusible: frozenset[int]
    input_shape: tuple[int, ...]


class Int8Network(nn.Module):
    """A network that computes on integers. Call it like the float one: images in, float32 scores out.

    ``engine`` names whose kernels it runs on and ``reason`` why these; ``on(engine)`` gives the same network on
    another; ``size_bytes`` counts weights, scales and biases; ``source`` is the flat program that runs; ``capture(x)``
    makes it fast on small batches.
    """

    def __init__(
        self, layers: Sequence[Int8Layer], program: Program, report: Table, engine: str | engines.Engine = "auto"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.program = program
        self._report = report
        chosen, self.reason = engines.choose() if engine == "auto" else (engine, "asked for")
        self._engine = engines.get(chosen)
        self._warn_of_saturation()
        self.source, self._run = self._compile()
        self._captured: dict[torch.Size, dict[int, Callable[[Tensor], Tensor]]] = {}  # by shape, then threads
        self._has_run = False
        self.eval()

    def __deepcopy__(self, memo: dict) -> Int8Network:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex):
        """Kernels are functions of this process."""
        raise TypeError(
            "an integer network cannot be pickled (torch.save, pickle.dumps, a process of its own): write it with "
            "qlab.save(int8, path), and bring it back with qlab.load(path)"
        )

    @property
    def engine(self) -> str:
        """The name of the engine."""
        return self._engine.name

    @property
    def size_bytes(self) -> int:
        """Bytes of weights, scales and biases."""
        return memory_bytes(self)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self._has_run:
            if torch.compiler.is_exporting():  # kernels keep what they make of the first image's size
                raise RuntimeError("run this network once on real images of that size, then torch.export can follow it")
            self._has_run = True
        if torch.is_autocast_enabled("cpu"):  # layers in float would compute in fewer bits
            with without_autocast():
                return self.forward(x)
        if self._captured and x.shape in self._captured:
            return (self._captured[x.shape].get(torch.get_num_threads()) or self._capture(x))(x)
        with self._engine.running():
            return self._run(x)

    def capture(self, x: Tensor) -> Int8Network:
        """Record what runs for batches like ``x``: they then run without Python between the kernels. Returns self.

        The scores stay the same, bit for bit. Batches of another shape run as before; the first call on another number
        of threads records anew. Raises ValueError when the engine cannot be captured; the network then is as it was.
        """
        self.check_input(x)
        self._capture(x)
        return self

    def _capture(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        with torch.inference_mode(False), torch.no_grad(), without_autocast():
            captured = self._engine.capture(self._run, self.layers, x.detach().clone())
        self._captured.setdefault(x.shape, {})[torch.get_num_threads()] = captured
        return captured

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError where ``x`` is no batch for this network."""
        shape = self.program.input_shape
        channels = slice(1, 1) if len(shape) == 2 else slice(1, 2)  # (N, words, values): as many words as there are
        if x.dtype is not torch.float32 or x.ndim != 1 + len(shape) or x.shape[channels] != (0, *shape)[channels]:
            raise ValueError(
                f"the input is {x.dtype} {tuple(x.shape)}: this network takes float32 "
                f"(N, {', '.join(map(str, shape))}), normalized as in training"
            )

    def on(self, engine: str | engines.Engine) -> Int8Network:
        """The same integers on another engine."""
        return Int8Network(list(self.layers), self.program, self._report, engine)

    def report(self) -> Table:
        """Every layer: its bits, and why it is in float if it is; the headline names the engine."""
        return self._report.under(f"{self._report.headline}; engine {self.engine} ({self.reason})")

    @property
    def saturating(self) -> list[str]:
        """The layers in which this engine's 16-bit sums of two products can overflow on this processor."""
        return self.can_saturate(engines.available()[self.engine].saturates_in)

    def can_saturate(self, saturates_in: Callable[[int], bool]) -> list[str]:
        """The layers that overflow 16 bits where the kernel of a layer of so many groups adds pairs in them."""
        inputs = {step.layer: self.program.grids[step.inputs[0]] for step in self.program.steps if step.inputs}
        return [
            layer.name for number, layer in enumerate(self.layers)
            if isinstance(layer, (Int8Conv2d, Int8Linear)) and saturates_in(layer.options.get("groups", 1))
            and layer.can_saturate(inputs[number])
        ]  # fmt: skip

    def _warn_of_saturation(self) -> None:
        if at_risk := self.saturating:
            more = f" and {len(at_risk) - 1} more layers" if len(at_risk) > 1 else ""
            warnings.warn(
                f"engine {self.engine!r} on this processor adds pairs of products in 16 bits, which can overflow in "
                f"{at_risk[0]!r}{more} and spoil the accuracy. Quantize with QConfig.w8a8(reduce_range=True), which "
                "gives weights 7 bits, or choose engine='qnnpack' or 'reference'",
                stacklevel=_outside_qlab(),
            )

    def _compile(self) -> tuple[str, Callable[[Tensor], Tensor]]:
        """The steps as the source of one Python function, and that function."""
        steps, fused = self.program.steps, self.program.fusible if self._engine.fuses_add else frozenset()
        made_by = {step.output: step for step in steps}
        last_reader = {value: number for number, step in enumerate(steps) for value in step.inputs}
        names: dict[str, Callable] = {}
        labels = {0: "the input", **{step.output: repr(self.layers[step.layer].name) for step in steps}}
        calls: list[tuple[str, tuple[int, ...], int]] = []
        for number, step in enumerate(steps):
            if step.output in fused:
                continue
            layer, inputs, name = self.layers[step.layer], step.inputs, f"{self.layers[step.layer].op}_{number}"
            sums = next((value for value in inputs if value in fused), None)  # of a convolution: they are not rounded
            if sums is None:
                kernel = layer.kernel(self._engine, *self._grids(inputs, step.output))
            else:
                other = inputs[1] if inputs[0] == sums else inputs[0]
                inputs, name = (*made_by[sums].inputs, other), f"conv2d_{name}"
                convolution = self.layers[made_by[sums].layer]
                labels[step.output] = f"{convolution.name!r} + {layer.name!r}"
                last = last_reader[other] == number and other not in made_by[sums].inputs
                kernel = convolution.added_kernel(
                    self._engine, *self._grids(inputs, step.output), layer.options["relu"], last
                )
            names[name] = kernel
            calls.append((name, inputs, step.output))
        source, program, lines = _link(calls, names)
        return source, _naming(program, lines, labels)

    def _grids(self, inputs: tuple[int, ...], output: int) -> tuple[list[QParams | None], QParams | None]:
        return [self.program.grids[value] for value in inputs], self.program.grids[output]


def _outside_qlab() -> int:
    """The warning's stack level: the first caller that is not in this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "qlab":
        frame, level = frame.f_back, level + 1
    return level


def _link(
    calls: list[tuple[str, tuple[int, ...], int]], names: dict[str, Callable]
) -> tuple[str, Callable, dict[int, tuple[tuple[int, ...], int]]]:
    """Write the calls as one function that lets go of each value after its last reader.

    Returns its source, the function, and what the calls in its lines read and give: {line: (inputs, output)}.
    """
    last = {value: index for index, (_, inputs, _) in enumerate(calls) for value in inputs}
    lines, where = ["def program(v0):"], {}
    for index, (name, inputs, output) in enumerate(calls):
        lines.append(f"    v{output:d} = {name}({', '.join(f'v{v:d}' for v in inputs)})")
        where[len(lines)] = inputs, output
        dead = [f"v{v:d}" for v in dict.fromkeys(inputs) if last[v] == index]
        if dead:
            lines.append(f"    del {', '.join(dead)}")
    lines.append(f"    return v{calls[-1][2]:d}")
    source = "\n".join(lines)
    space = dict(names)
    exec(source, space)  # every name in it was made above, from numbers and from nothing else
    return source, space["program"], where


def _naming(program: Callable, lines: dict[int, tuple[tuple[int, ...], int]], labels: dict[int, str]) -> Callable:
    """``program`` with the names of layers in its errors: the line of its source that failed says which."""

    def run(x: Tensor) -> Tensor:
        try:
            return program(x)
        except (ValueError, RuntimeError) as error:
            frames = traceback.walk_tb(error.__traceback__)
            inputs, output = lines[next(line for frame, line in frames if frame.f_code is program.__code__)]
            words = f"{labels[output]}, which reads {' and '.join(labels[value] for value in inputs)}: {error}"
            raise (ValueError if isinstance(error, ValueError) else RuntimeError)(words) from error

    return run
