"""What a step in float is made of: torch's own small operations (aten), seen while it runs, each with its ONNX form.

A layer, a function or a method, of torch or of torchvision, comes down to some dozens of such operations. A step runs on
two batches of different sizes; what differs between the two runs depends on the batch, and the graph asks its input for it.
Source: ATen operators, https://docs.pytorch.org/docs/stable/torch.compiler_ir.html.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qlab.export import operators
from qlab.export.operators import Graph

TYPES = {torch.float32: 1, torch.uint8: 2, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float64: 11}
BATCHES = (2, 3)  # images in the two runs


class NoForm(ValueError):
    """There is no ONNX form; the message says of what."""


@dataclass
class Operation:
    """One call that was seen: its name without overload, arguments and result."""

    name: str
    args: list
    kwargs: dict
    result: object


class _Recorder(TorchDispatchMode):
    """Writes down the operations that depend on the ``inputs``; what constants alone give is computed and kept."""

    def __init__(self, inputs: Sequence) -> None:
        super().__init__()
        self.depends = {id(tensor) for tensor in inputs}
        self.found: list[Operation] = []
        self._alive: list = list(inputs)  # so that no two tensors have one id

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(function).removeprefix("aten.").rpartition(".")[0]
        follows = name not in MAKES_NEW and any(id(x) in self.depends for x in tree_leaves((args, kwargs)))
        before = tree_map(self._as_it_is, (list(args), kwargs)) if follows else None
        given = function(*args, **kwargs)
        self._alive.append((args, kwargs, given))
        if before is not None:
            self.found.append(Operation(name, *before, given))
            self.depends |= {id(value) for value in tree_leaves(given) if isinstance(value, Tensor)}
        return given

    def _as_it_is(self, value: object) -> object:
        """A constant now, since it may be changed later; a tensor that depends on the input is known by its id."""
        if isinstance(value, Tensor) and id(value) not in self.depends:
            value = _row(value).detach().clone().expand(value.shape)
            self._alive.append(value)
        return value


def _row(value: Tensor) -> Tensor:
    """A tensor without its repetitions: axes along which expand() repeats it have length 1."""
    for axis, stride in enumerate(value.stride()):
        value = value.narrow(axis, 0, 1) if stride == 0 and value.shape[axis] > 1 else value
    return value


def _first(value: object) -> object:
    """The first tensor of a result of several."""
    return value if isinstance(value, Tensor) else value[0] if value else None


MAKES_NEW = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}  # of whatever values


@contextmanager
def _plainly():
    """Attention in the open, not in a kernel of its own."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass
class Both:
    """A value in the two runs."""

    first: object
    second: object


class Steps:
    """Writes steps in float into ``graph``. ``names`` are those of the tensors of the first run that depend on the input."""

    def __init__(self, graph: Graph, batch_of: str) -> None:
        self.graph, self._input = graph, batch_of
        self.names: dict[int, str] = {}
        self._alive: list = []
        self._batch: dict[int, str] = {}  # multiples of the batch's size that the graph knows

    def write(self, name: str, module: nn.Module, inputs: Sequence[Both]) -> Both:
        """Write one step, which the graph calls ``name``; its value. Raises NoForm."""
        runs = []
        for run in ("first", "second"):
            given = [getattr(value, run) for value in inputs]
            depends = [t for x, y in zip(given, inputs) for t in self._dependent(x, y)]
            with _plainly(), _Recorder(depends) as recorder:
                result = module(*given)
            runs.append((recorder.found, result))
            self._alive.append((recorder, result))
        (first, result), (second, other) = runs
        if [op.name for op in first] != [op.name for op in second]:
            raise NoForm("a computation that depends on the number of images")
        made = [number for number, op in enumerate(first) if _first(op.result) is result]
        for number, (operation, twin) in enumerate(zip(first, second)):
            part = "" if made[-1:] == [number] else f".{operation.name.strip('_')}"
            self._write(operation, twin, name if not part else self.graph.name(name + part))
        return Both(result, other)

    def _dependent(self, value: object, both: Both) -> list[Tensor]:
        """The tensors in one run's value that depend on the network's input."""
        pairs = zip(tree_leaves(value), tree_leaves(both.first))
        return [x for x, first in pairs if isinstance(x, Tensor) and id(first) in self.names]

    def _write(self, operation: Operation, twin: Operation, name: str) -> None:
        emit = ATEN.get(operation.name.removesuffix("_"))  # one in place gives the same tensor a new name
        if emit is None:
            raise NoForm(f"torch's {operation.name}")
        given, outputs = emit(One(self, operation, twin, name)), operation.result
        if isinstance(given, str):
            self.names[id(_first(outputs))] = given
        else:
            for tensor, each in zip(outputs, given):
                self.names[id(tensor)] = each

    def shape(self, first: Sequence[int], second: Sequence[int], name: str, free: bool = False) -> str:
        """The name of a shape; ``free``: one size may be -1, whatever is left."""
        different = [place for place, (a, b) in enumerate(zip(first, second)) if a != b]
        if not different or (free and len(different) == 1 and -1 not in first):
            sizes = [-1 if place in different else int(size) for place, size in enumerate(first)]
            return self.graph.constant(f"{name}.shape", np.array(sizes, np.int64))
        parts = [
            self._multiple(a, b) if a != b else self.graph.constant(f"{name}.size{place}", np.array([a], np.int64))
            for place, (a, b) in enumerate(zip(first, second))
        ]
        return self.graph.node("Concat", parts, f"{name}.shape", axis=0)

    def _multiple(self, first: int, second: int) -> str:
        """The name of so many times the number of images."""
        times = first // BATCHES[0]
        if (times * BATCHES[0], times * BATCHES[1]) != (first, second) or times == 0:
            raise NoForm("a size that is no multiple of the number of images")
        if not self._batch:
            graph, ends = self.graph, ("start", "end")
            cut = [graph.constant(f"batch.{end}", np.array([n], np.int64)) for n, end in enumerate(ends)]
            self._batch[1] = graph.node(
                "Slice", [graph.node("Shape", [self._input], "batch.shape"), *cut], "batch.size"
            )
        if times not in self._batch:
            many = self.graph.constant(f"batch.times{times}.factor", np.array([times], np.int64))
            self._batch[times] = self.graph.node("Mul", [self._batch[1], many], f"batch.times{times}")
        return self._batch[times]

    def tensor(self, first: Tensor, second: Tensor, name: str, loose: bool = False) -> str:
        """The name of a tensor: one that is known, or a constant. What repeats, such as a row for each image, is stored once
        and spread when it runs; ``loose``: who reads it spreads it.
        """
        if id(first) in self.names:
            return self.names[id(first)]
        row = _row(first)
        for axis, (a, b) in enumerate(zip(first.shape, second.shape)):
            row = row.narrow(axis, 0, 1) if a != b else row
        same = first.ndim == second.ndim and all(_equal(row.expand_as(each), each) for each in (first, second))
        if not same:
            raise NoForm("a constant that depends on the number of images")
        if row.shape == first.shape == second.shape or loose:
            return self.graph.constant(name, row.clone())
        stored = self.graph.constant(f"{name}.row", row.clone())
        return self.graph.node("Expand", [stored, self.shape(first.shape, second.shape, name)], name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))


class One:
    """One operation that is being written: its arguments by place, with their names in the graph."""

    def __init__(self, steps: Steps, operation: Operation, twin: Operation, name: str) -> None:
        self.steps, self.operation, self.twin, self.name = steps, operation, twin, name
        self.graph = steps.graph
        result = operation.result
        self.out, self.out_twin = _first(result), _first(twin.result)

    def __call__(self, place: int, default: object = None, key: str = ""):
        """An argument that must be the same in both runs."""
        first, second = self.raw(place, default, key)
        if not isinstance(first, Tensor) and first != second:
            raise NoForm(f"torch's {self.operation.name} with a size that depends on the number of images")
        return first

    def raw(self, place: int, default: object = None, key: str = "") -> tuple:
        """An argument in both runs."""
        return tuple(
            each.args[place] if len(each.args) > place else each.kwargs.get(key, default)
            for each in (self.operation, self.twin)
        )

    def x(self, place: int = 0, dtype: torch.dtype | None = None) -> str:
        """The name of a tensor, or of a number, among the arguments, in a type if one is wanted."""
        first, second = self.raw(place)
        return self.given(first, second, f"{self.name}.{place}", dtype)

    def given(self, first: object, second: object, name: str, dtype: torch.dtype | None = None) -> str:
        if not isinstance(first, Tensor):
            if first != second:
                raise NoForm("a number that depends on the number of images")
            return self.graph.constant(name, torch.tensor(first, dtype=dtype or self.out.dtype))
        if dtype is None or first.dtype is dtype:
            return self.steps.tensor(first, second, name)
        if id(first) not in self.steps.names and first.shape == second.shape:
            return self.graph.constant(name, first.to(dtype))
        if dtype not in TYPES:
            raise NoForm(f"values of type {str(dtype).removeprefix('torch.')}")
        return self.node("Cast", [self.steps.tensor(first, second, name)], f"cast{name[-1]}", to=TYPES[dtype])

    def all(self, place: int = 0) -> list[str]:
        """The names of a list of tensors."""
        return [
            self.given(a, b, f"{self.name}.{place}.{n}", self.out.dtype)
            for n, (a, b) in enumerate(zip(*self.raw(place)))
        ]

    def node(self, op: str, inputs: Sequence[str], part: str = "", **attributes) -> str:
        """A node; ``part`` names one that is not the last of the operation."""
        return self.graph.node(op, inputs, f"{self.name}.{part}" if part else self.name, **attributes)

    def number(self, part: str, value: object, dtype: torch.dtype | None = None) -> str:
        return self.graph.constant(f"{self.name}.{part}", torch.tensor(value, dtype=dtype or self.out.dtype))

    def integers(self, part: str, values: Sequence[int]) -> str:
        return self.number(part, list(values), torch.int64)

    def axis(self, place: int = 1, default: int = 0, key: str = "dim") -> int:
        axis = self(place, default, key)
        return axis % max(self.operation.args[0].ndim, 1)

    def axes(self, place: int = 1, key: str = "dim") -> list[int]:
        """The axes of a reduction; none named means all."""
        axes, ndim = self(place, None, key), self.operation.args[0].ndim
        axes = [axes] if isinstance(axes, int) else list(axes or range(ndim))
        return [axis % ndim for axis in axes]

    def reshaped(self, x: str, part: str = "") -> str:
        """``x`` in the shape of the result."""
        shape = self.steps.shape(self.out.shape, self.out_twin.shape, f"{self.name}.result", free=True)
        return self.node("Reshape", [x, shape], part)


# --- The forms


def _unary(op: str, **attributes) -> Callable[[One], str]:
    return lambda o: o.node(op, [o.x()], **attributes)


def _binary(op: str) -> Callable[[One], str]:
    def emit(o: One) -> str:
        other, alpha = o.x(1, o.out.dtype), o(2, 1, "alpha")
        if alpha not in (1, None) and not isinstance(alpha, str):
            other = o.node("Mul", [other, o.number("alpha", alpha)], "scaled")
        return o.node(op, [o.x(0, o.out.dtype), other])

    return emit


def _divide(o: One) -> str:
    mode = o(2, None, "rounding_mode")
    quotient = o.node("Div", [o.x(0, o.out.dtype), o.x(1, o.out.dtype)], "quotient" if mode else "")
    if mode and mode != "floor":
        raise NoForm(f"div(rounding_mode={mode!r})")
    return o.node("Floor", [quotient]) if mode else quotient


def _compare(op: str, negated: bool = False) -> Callable[[One], str]:
    def emit(o: One) -> str:
        a, b = o.raw(0)[0], o.raw(1)[0]
        dtype = torch.result_type(a, b)
        found = o.node(op, [o.x(0, dtype), o.x(1, dtype)], "same" if negated else "")
        return o.node("Not", [found]) if negated else found

    return emit


def _clip(low: float | None, high: float | None) -> Callable[[One], str]:
    def emit(o: One) -> str:
        return o.node(
            "Clip", [o.x(), *("" if end is None else o.number(f"end{n}", end) for n, end in enumerate((low, high)))]
        )

    return emit


def _clamp(low: int | None, high: int | None) -> Callable[[One], str]:
    """``low`` and ``high``: the places of the arguments, numbers or tensors."""

    def emit(o: One) -> str:
        places = ((low, "min"), (high, "max"))
        ends = [(None, None) if place is None else o.raw(place, None, key) for place, key in places]
        if not any(isinstance(end, Tensor) for end, _ in ends):
            return _clip(*(None if place is None else o(place, None, key) for place, key in places))(o)
        x, given = o.x(dtype=o.out.dtype), [n for n, (end, _) in enumerate(ends) if end is not None]
        for n in given:  # torch takes the lower end first too
            end = o.given(*ends[n], f"{o.name}.end{n}", o.out.dtype)
            x = o.node(("Max", "Min")[n], [x, end], "" if n == given[-1] else "above")
        return x

    return emit


def _gelu(o: One) -> str:
    """x * (1 + erf(x / sqrt(2))) / 2, or with tanh of x + 0.044715 x^3 in its place."""
    x = o.x()
    if o(1, "none", "approximate") == "none":
        inner = o.node("Erf", [o.node("Mul", [x, o.number("root", math.sqrt(0.5))], "scaled")], "erf")
    else:
        cube = o.node("Mul", [o.node("Mul", [x, x], "square"), x], "cube")
        arch = o.node("Add", [x, o.node("Mul", [cube, o.number("small", 0.044715)], "bent")], "sum")
        inner = o.node("Tanh", [o.node("Mul", [arch, o.number("root", math.sqrt(2 / math.pi))], "scaled")], "tanh")
    gate = o.node("Mul", [o.node("Add", [inner, o.number("one", 1)], "plus"), o.number("half", 0.5)], "gate")
    return o.node("Mul", [x, gate])


def _elu(o: One) -> str:
    alpha, scale, input_scale = o(1, 1), o(2, 1), o(3, 1)
    if input_scale != 1:
        raise NoForm("elu with a scale of its input")
    if scale == 1:
        return o.node("Elu", [o.x()], alpha=float(alpha))
    return o.node("Selu", [o.x()], alpha=float(alpha), gamma=float(scale))


def _softplus(o: One) -> str:
    beta = o(1, 1)
    if beta == 1:
        return o.node("Softplus", [o.x()])
    grown = o.node("Softplus", [o.node("Mul", [o.x(), o.number("beta", beta)], "scaled")], "softplus")
    return o.node("Div", [grown, o.number("by", beta)])


def _mish(o: One) -> str:
    x = o.x()
    return o.node("Mul", [x, o.node("Tanh", [o.node("Softplus", [x], "softplus")], "tanh")])


def _log_sigmoid(o: One) -> str:
    return o.node("Neg", [o.node("Softplus", [o.node("Neg", [o.x()], "minus")], "softplus")])


def _reshape(o: One) -> str:
    return o.reshaped(o.x())


def _permute(o: One) -> str:
    order = [axis % o.out.ndim for axis in o(1)]
    return o.node("Transpose", [o.x()], perm=order)


def _transpose(o: One) -> str:
    order = list(range(o.out.ndim))
    if order:
        a, b = (o.axis(1), o.axis(2)) if len(o.operation.args) > 1 else (0, len(order) - 1)
        order[a], order[b] = order[b], order[a]
    return o.node("Transpose", [o.x()], perm=order)


def _expand(o: One) -> str:
    if o.out.shape == o.operation.args[0].shape:
        return o.x()
    return o.node("Expand", [o.x(), o.steps.shape(o.out.shape, o.out_twin.shape, o.name)])


def _slice(o: One) -> str:
    axis, step = o.axis(), o(4, 1, "step")
    starts, ends = o.raw(2, None, "start"), o.raw(3, None, "end")
    sizes = [each.args[0].shape[axis] for each in (o.operation, o.twin)]
    whole = all(end is None or end >= size for end, size in zip(ends, sizes))
    if starts[0] != starts[1] or not (whole or ends[0] == ends[1]):
        raise NoForm("a slice that depends on the number of images")
    start, end = starts[0] or 0, (1 << 62) if whole else ends[0]
    if start == 0 and whole and step == 1:
        return o.x()
    return _cut(o, o.x(), axis, start, end, "", step)


def _cut(o: One, x: str, axis: int, start: int, end: int, part: str, step: int = 1) -> str:
    ends = {"start": start, "end": end, "axis": axis, "step": step}
    return o.node("Slice", [x, *(o.integers(f"{part}{key}", [value]) for key, value in ends.items())], part)


def _select(o: One) -> str:
    axis, index = o.axis(), o(2)
    return o.node("Gather", [o.x(), o.number("index", index, torch.int64)], axis=axis)


def _split(o: One) -> list[str]:
    axis = o.axis(2)
    return _pieces(o, axis, [piece.shape[axis] for piece in o.operation.result], squeeze=False)


def _unbind(o: One) -> list[str]:
    axis = o.axis()
    return _pieces(o, axis, [1] * len(o.operation.result), squeeze=True)


def _pieces(o: One, axis: int, sizes: list[int], squeeze: bool) -> list[str]:
    if len(o.operation.result) != len(o.twin.result):
        raise NoForm("parts whose number depends on the number of images")
    x, found, start = o.x(), [], 0
    for number, size in enumerate(sizes):
        if squeeze:
            index = o.number(f"index{number}", number, torch.int64)
            found.append(o.node("Gather", [x, index], f"part{number}", axis=axis))
        else:
            found.append(_cut(o, x, axis, start, start + size, f"part{number}"))
        start += size
    return found


def _cat(o: One) -> str:
    return o.node("Concat", o.all(), axis=o(1, 0, "dim") % o.out.ndim)


def _stack(o: One) -> str:
    axis = o(1, 0, "dim") % o.out.ndim
    rows = [
        o.node("Unsqueeze", [x, o.integers(f"axis{number}", [axis])], f"row{number}")
        for number, x in enumerate(o.all())
    ]
    return o.node("Concat", rows, axis=axis)


def _same(o: One) -> str:
    return o.x()


def _as_strided(o: One) -> str:
    """The same values, lying otherwise in memory."""
    if o.out.shape != o.operation.args[0].shape:
        raise NoForm("as_strided into another shape")
    return o.x()


def _cast(o: One) -> str:
    return o.x(0, o.out.dtype)


def _flip(o: One) -> str:
    x, axes = o.x(), list(o(1))
    ends = {"start": [-1] * len(axes), "end": [-(1 << 62)] * len(axes), "axes": axes, "steps": [-1] * len(axes)}
    return o.node("Slice", [x, *(o.integers(key, value) for key, value in ends.items())])


def _roll(o: One) -> str:
    x, shape = o.x(), o.out.shape
    shifts, axes = list(o(1)), [axis % o.out.ndim for axis in o(2, ())]
    if len(axes) != len(shifts):
        raise NoForm("roll of a flattened tensor")
    for number, (shift, axis) in enumerate(zip(shifts, axes)):
        if shape[axis] != o.out_twin.shape[axis]:
            raise NoForm("roll along the images")
        place = -shift % shape[axis]
        tail = _cut(o, x, axis, place, 1 << 62, f"tail{number}")
        head = _cut(o, x, axis, 0, place, f"head{number}")
        x = o.node("Concat", [tail, head], "" if number == len(shifts) - 1 else f"turn{number}", axis=axis)
    return x


def _repeat(o: One) -> str:
    times = list(o(1))
    if len(times) != o.operation.args[0].ndim:
        raise NoForm("repeat with further axes")
    return o.node("Tile", [o.x(), o.integers("times", times)])


def _pad(mode: str) -> Callable[[One], str]:
    def emit(o: One) -> str:
        pairs = list(o(1))
        before, after = [0] * o.out.ndim, [0] * o.out.ndim
        for number in range(len(pairs) // 2):
            before[-1 - number], after[-1 - number] = pairs[2 * number], pairs[2 * number + 1]
        value = [o.number("value", o(2, 0, "value"))] if mode == "constant" else []
        return o.node("Pad", [o.x(), o.integers("pads", [*before, *after]), *value], mode=mode)

    return emit


def _index(o: One) -> str:
    chosen = [(axis, index) for axis, index in enumerate(o.operation.args[1]) if index is not None]
    twins = [index for index in o.twin.args[1] if index is not None]
    if len(chosen) != 1 or chosen[0][1].dtype is not torch.int64:
        raise NoForm("indexing by several tensors, or by a mask")
    return o.node("Gather", [o.x(), o.given(chosen[0][1], twins[0], f"{o.name}.index")], axis=chosen[0][0])


def _index_select(o: One) -> str:
    return o.node("Gather", [o.x(), o.x(2)], axis=o.axis())


def _embedding(o: One) -> str:
    return o.node("Gather", [o.x(), o.x(1)], axis=0)


def _gather(o: One) -> str:
    return o.node("GatherElements", [o.x(), o.x(2)], axis=o.axis())


def _mean(o: One) -> str:
    return o.node("ReduceMean", [o.x()], axes=o.axes(), keepdims=int(bool(o(2, False, "keepdim"))))


def _sum(o: One) -> str:
    axes = o.integers("axes", o.axes())
    return o.node("ReduceSum", [o.x(0, o.out.dtype), axes], keepdims=int(bool(o(2, False, "keepdim"))))


def _reduce(op: str) -> Callable[[One], str]:
    return lambda o: o.node(op, [o.x()], axes=o.axes(), keepdims=int(bool(o(2, False, "keepdim"))))


def _spread(root: bool) -> Callable[[One], str]:
    """Variance or standard deviation."""

    def emit(o: One) -> str:
        x, axes = o.x(), o.axes()
        count = math.prod(o.operation.args[0].shape[axis] for axis in axes)
        if count != math.prod(o.twin.args[0].shape[axis] for axis in axes):
            raise NoForm("a variance over the images")
        keep = int(bool(o(99, False, "keepdim")))
        centred = o.node("Sub", [x, o.node("ReduceMean", [x], "mean", axes=axes, keepdims=1)], "centred")
        square = o.node("Mul", [centred, centred], "square")
        mean = o.node("ReduceMean", [square], "spread", axes=axes, keepdims=keep)
        correction = o.operation.kwargs.get("correction", 1)
        factor = o.number("factor", count / (count - (1 if correction is None else correction)))
        variance = o.node("Mul", [mean, factor], "variance" if root else "")
        return o.node("Sqrt", [variance]) if root else variance

    return emit


def _norm(o: One) -> str:
    order = o(1, 2)
    if order not in (1, 2):
        raise NoForm(f"norm of order {order}")
    return o.node(f"ReduceL{int(order)}", [o.x()], axes=o.axes(2), keepdims=int(bool(o(3, False, "keepdim"))))


def _layer_norm(o: One) -> str:
    shape = list(o(1))
    first, second = o.raw(2)
    ones = torch.ones(shape)
    gain = o.given(*((first, second) if first is not None else (ones, ones)), f"{o.name}.weight")
    bias = [o.x(3)] if o(3) is not None else []
    return o.node("LayerNormalization", [o.x(), gain, *bias], axis=-len(shape), epsilon=float(o(4)))


def _batch_norm(o: One) -> str:
    if o(5, False) is True and o.operation.name == "native_batch_norm" or o(3) is None:
        raise NoForm("BatchNorm with the statistics of the batch")
    mean = o(3)
    gain, bias = (
        o(place) if o(place) is not None else make(mean)
        for place, make in ((1, torch.ones_like), (2, torch.zeros_like))
    )
    stored = [o.given(value, value, f"{o.name}.{key}") for key, value in (("weight", gain), ("bias", bias))]
    epsilon = float(o(7 if o.operation.name == "native_batch_norm" else 6))
    return o.node("BatchNormalization", [o.x(), *stored, o.x(3), o.x(4)], epsilon=epsilon)


def _group_norm(o: One) -> str:
    """Each group as one channel of an InstanceNormalization, then the channels' own gains."""
    x, groups, channels, ndim = o.x(), o(6), o.operation.args[0].shape[1], o.out.ndim
    rows = o.node("Reshape", [x, o.integers("groups", [0, groups, -1])], "rows")
    ends = [o.number(key, [value] * groups) for key, value in (("one", 1.0), ("none", 0.0))]
    normed = o.node("InstanceNormalization", [rows, *ends], "normed", epsilon=float(o(7)))
    found = [o.node("Shape", [x], "sizes")]
    x = o.node("Reshape", [normed, *found], "back" if o(1) is not None or o(2) is not None else "")
    for place, op in ((1, "Mul"), (2, "Add")):
        value = o(place)
        if value is not None:
            value = value.reshape(channels, *[1] * (ndim - 2))
            last = place == 2 or o(2) is None
            x = o.node(op, [x, o.given(value, value, f"{o.name}.{op}")], "" if last else "gained")
    return x


def _convolution(o: One) -> str:
    x, weight, bias = o.x(), o.x(1), [] if o(2) is None else [o.x(2)]
    stride, padding, dilation, transposed, extra, groups = (
        list(v) if isinstance(v, (list, tuple)) else v for v in map(o, range(3, 9))
    )
    more = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    if transposed:
        return o.node("ConvTranspose", [x, weight, *bias], output_padding=extra, **more)
    return o.node("Conv", [x, weight, *bias], **more)


def _matmul(o: One) -> str:
    parts = [
        o.steps.tensor(a, b, f"{o.name}.{place}", loose=a.ndim == 3) for place, (a, b) in enumerate(map(o.raw, (0, 1)))
    ]
    return o.node("MatMul", parts)


def _addmm(o: One) -> str:
    if o.operation.kwargs.get("beta", 1) != 1 or o.operation.kwargs.get("alpha", 1) != 1:
        raise NoForm("addmm with factors")
    product = o.node("MatMul", [o.x(1), o.x(2)], "product")
    return o.node("Add", [product, o.x()])


def _where(o: One) -> str:
    return o.node("Where", [o.x(), o.x(1, o.out.dtype), o.x(2, o.out.dtype)])


def _masked_fill(o: One) -> str:
    return o.node("Where", [o.x(1), o.x(2, o.out.dtype), o.x()])


def _softmax(op: str) -> Callable[[One], str]:
    return lambda o: o.node(op, [o.x()], axis=o.axis())


def _shared(emit: operators.Emit, *names: str) -> Callable[[One], str]:
    """An operation that qlab has in integers too; ``names`` of its options, in the order of aten's arguments."""

    def write(o: One) -> str:
        options = {key: o(place + 1) for place, key in enumerate(names)}
        return emit(o.graph, o.name, [o.x()], options, tuple(o.operation.args[0].shape))

    return write


def _max_pool(o: One) -> str:
    options = {
        "kernel_size": o(1), "stride": o(2) or None, "padding": o(3, 0), "dilation": o(4, 1), "ceil_mode": o(5, False)
    }  # fmt: skip
    return operators.max_pool2d(o.graph, o.name, [o.x()], options, tuple(o.operation.args[0].shape))


def _avg_pool(o: One) -> str:
    options = {
        "kernel_size": o(1), "stride": o(2) or None, "padding": o(3, 0), "ceil_mode": o(4, False),
        "count_include_pad": o(5, True),
    }  # fmt: skip
    divisor, shape = o(6, None, "divisor_override"), tuple(o.operation.args[0].shape)
    if divisor is None:
        return operators.avg_pool2d(o.graph, o.name, [o.x()], options, shape)
    if options["ceil_mode"]:
        raise NoForm("average pooling with ceil_mode and divisor_override")
    mean = operators.avg_pool2d(o.graph, f"{o.name}.mean", [o.x()], options | {"count_include_pad": True}, shape)
    window = options["kernel_size"]
    area = math.prod(window) if len(window) > 1 else window[0] ** 2
    return o.node("Mul", [mean, o.number("factor", area / divisor)])


def _resize(mode: str) -> Callable[[One], str]:
    def emit(o: One) -> str:
        if mode == "nearest":
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        else:
            how = {"coordinate_transformation_mode": "align_corners" if o(2) else "half_pixel"}
        sizes = [o.out.shape[axis] / o.operation.args[0].shape[axis] for axis in (2, 3)]
        scales = [value for value in o.operation.args[-2:] if isinstance(value, float)]
        if scales and any(abs(scale - size) > 1e-6 for scale, size in zip(scales, sizes)):
            raise NoForm("interpolation by a factor that gives no whole number of pixels")
        scale = o.number("scale", [1.0, 1.0, *sizes])
        return o.node("Resize", [o.x(), "", scale], mode=mode, **how)

    return emit


def _pixel_shuffle(o: One) -> str:
    return o.node("DepthToSpace", [o.x()], blocksize=o(1), mode="CRD")


def _channel_shuffle(o: One) -> str:
    groups, (_, channels, *sides) = o(1), o.out.shape
    rows = o.node("Reshape", [o.x(), o.integers("groups", [0, groups, channels // groups, *sides])], "rows")
    turned = o.node("Transpose", [rows], "turned", perm=[0, 2, 1, *range(3, 3 + len(sides))])
    return o.reshaped(turned)


def _argmax(op: str) -> Callable[[One], str]:
    return lambda o: o.node(op, [o.x()], axis=o.axis(), keepdims=int(bool(o(2, False, "keepdim"))))


def _extremum(values: str, places: str) -> Callable[[One], str | list[str]]:
    def emit(o: One) -> str | list[str]:
        if isinstance(o.operation.result, Tensor):
            if len(o.operation.args) > 1:
                return o.node(values.removeprefix("Reduce"), [o.x(), o.x(1)])
            return o.node(values, [o.x()], keepdims=0)
        x, axis, keep = o.x(), o.axis(), int(bool(o(2, False, "keepdim")))
        return [
            o.node(values, [x], axes=[axis], keepdims=keep), o.node(places, [x], "places", axis=axis, keepdims=keep)
        ]  # fmt: skip

    return emit


def _power(o: One) -> str:
    if o(1) == 2:
        return o.node("Mul", [o.x(0, o.out.dtype)] * 2)
    return o.node("Pow", [o.x(0, o.out.dtype), o.x(1, o.out.dtype)])


def _rsub(o: One) -> str:
    return o.node("Sub", [o.x(1, o.out.dtype), o.x(0, o.out.dtype)])


def _rsqrt(o: One) -> str:
    return o.node("Reciprocal", [o.node("Sqrt", [o.x()], "root")])


def _silu(o: One) -> str:
    x = o.x()
    return o.node("Mul", [x, o.node("Sigmoid", [x], "sigmoid")])


def _prelu(o: One) -> str:
    return o.node("PRelu", [o.x(), o.x(1)])


def _every(names: str, emit: Callable) -> dict[str, Callable]:
    return dict.fromkeys(names.split(), emit)


ATEN: dict[str, Callable[[One], str | list[str]]] = {
    name: _unary(op) for name, op in zip(
        "neg exp log sqrt abs floor ceil round sign sin cos erf tanh sigmoid relu reciprocal hardswish logical_not bitwise_not".split(),
        "Neg Exp Log Sqrt Abs Floor Ceil Round Sign Sin Cos Erf Tanh Sigmoid Relu Reciprocal HardSwish Not Not".split(),
    )
}  # fmt: skip
ATEN |= {
    "add": _binary("Add"), "sub": _binary("Sub"), "mul": _binary("Mul"), "maximum": _binary("Max"), "minimum": _binary("Min"),
    "div": _divide, "pow": _power, "rsub": _rsub, "rsqrt": _rsqrt, "silu": _silu, "gelu": _gelu, "elu": _elu,
    "celu": lambda o: o.node("Celu", [o.x()], alpha=float(o(1, 1.0))),
    "hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5), "softplus": _softplus, "mish": _mish,
    "log_sigmoid_forward": _log_sigmoid, "_prelu_kernel": _prelu,
    "leaky_relu": lambda o: o.node("LeakyRelu", [o.x()], alpha=float(o(1, 0.01))),
    "hardtanh": lambda o: o.node("Clip", [o.x(), o.number("low", o(1, -1.0)), o.number("high", o(2, 1.0))]),
    "relu6": _clip(0.0, 6.0), "clamp": _clamp(1, 2), "clamp_min": _clamp(1, None), "clamp_max": _clamp(None, 1),
    "eq": _compare("Equal"), "ne": _compare("Equal", negated=True), "lt": _compare("Less"), "le": _compare("LessOrEqual"),
    "gt": _compare("Greater"), "ge": _compare("GreaterOrEqual"), "logical_and": _compare("And"), "logical_or": _compare("Or"),
    "bitwise_and": _compare("And"), "bitwise_or": _compare("Or"), "where": _where, "masked_fill": _masked_fill,
    **_every("view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten unflatten", _reshape),
    **_every("clone detach alias lift_fresh contiguous dropout _conj", _same), "as_strided": _as_strided,
    "_to_copy": _cast,
    "permute": _permute, "transpose": _transpose, "t": _transpose, "expand": _expand, "slice": _slice, "select": _select,
    **_every("split split_with_sizes unsafe_split", _split), "unbind": _unbind, "cat": _cat, "stack": _stack,
    "flip": _flip, "roll": _roll, "repeat": _repeat, "constant_pad_nd": _pad("constant"),
    **_every("reflection_pad1d reflection_pad2d", _pad("reflect")),
    **_every("replication_pad1d replication_pad2d", _pad("edge")), "index": _index,
    "index_select": _index_select, "embedding": _embedding, "gather": _gather, "mean": _mean, "sum": _sum,
    "amax": _reduce("ReduceMax"), "amin": _reduce("ReduceMin"), "prod": _reduce("ReduceProd"), "var": _spread(False),
    "std": _spread(True), "linalg_vector_norm": _norm, "max": _extremum("ReduceMax", "ArgMax"),
    "min": _extremum("ReduceMin", "ArgMin"), "argmax": _argmax("ArgMax"), "argmin": _argmax("ArgMin"),
    "_softmax": _softmax("Softmax"), "_safe_softmax": _softmax("Softmax"), "_log_softmax": _softmax("LogSoftmax"),
    "native_layer_norm": _layer_norm, "native_group_norm": _group_norm, "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm, "convolution": _convolution,
    **_every("mm bmm matmul mv dot", _matmul), "addmm": _addmm, "baddbmm": _addmm,
    "max_pool2d_with_indices": _max_pool, "avg_pool2d": _avg_pool,
    "_adaptive_avg_pool2d": _shared(operators.adaptive_avg_pool2d, "output_size"),
    "upsample_nearest2d": _resize("nearest"), "upsample_bilinear2d": _resize("linear"), "pixel_shuffle": _pixel_shuffle,
    "channel_shuffle": _channel_shuffle,
}  # fmt: skip
