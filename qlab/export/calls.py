"""Calls in float that a file may name: functions and methods that only compute, and their arguments as JSON.

A file must not be able to call anything else, nor make anything large: every number that it names is bounded, and every
value that a call gives is looked at, as a shape, before anything is built.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlab.int8.modules import Call, Input, filled, structure

MOST_VALUES = 1 << 28  # that one image may become between two layers
MOST_NUMBER = 1 << 31  # sizes and ends of slices
MOST_PARTS, MOST_DEPTH = 1000, 6  # of an argument

_OPERATORS = (
    "add sub mul truediv floordiv mod neg pow matmul getitem eq ne lt le gt ge and_ or_ xor invert not_ getattr"
).split()
_TORCH = (
    "abs add amax amin arange argmax argmin baddbmm bmm broadcast_to chunk clamp clone cos cumsum diff div einsum eq erf exp "
    "expand_copy flatten flip floor floor_divide full full_like gather ge gt index_select le log log1p log_softmax "
    "logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum mean meshgrid min minimum movedim mul ne "
    "neg norm ones ones_like permute pow prod reciprocal repeat_interleave reshape roll round rsqrt rsub select sigmoid sign "
    "sin softmax split sqrt square squeeze stack std sub sum swapaxes swapdims t tanh tile transpose tril triu true_divide "
    "unbind unflatten unsqueeze var where zeros zeros_like _assert"
).split()
_FUNCTIONAL = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d avg_pool2d batch_norm celu conv1d conv2d "
    "conv_transpose2d cosine_similarity dropout elu embedding fold gelu glu grid_sample group_norm hardsigmoid hardswish hardtanh "
    "instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid max_pool2d mish "
    "normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm scaled_dot_product_attention selu sigmoid "
    "silu softmax softmin softplus softsign tanh unfold upsample"
).split()
METHODS = frozenset(
    "abs add amax amin bmm chunk clamp clone contiguous cos cumsum detach dim div eq erf exp expand expand_as flatten flip "
    "float floor gather ge gt index_select le log log_softmax logical_not lt masked_fill matmul max mean min movedim mul "
    "narrow ne neg norm numel permute pow prod reciprocal repeat reshape reshape_as roll round rsqrt select sigmoid sign sin "
    "size softmax split sqrt square squeeze std sub sum swapaxes swapdims t tanh tile to transpose tril triu true_divide "
    "type_as unbind unflatten unsqueeze var view view_as".split()
)
# Blocks of torchvision that torch.fx keeps whole: read from it when a file names one.
_TORCHVISION = tuple(
    f"torchvision.models.swin_transformer.{name}"
    for name in ("shifted_window_attention", "_get_relative_position_bias", "_patch_merging_pad")
)
ATTRIBUTES = ("shape", "ndim", "T", "mT")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
}
NOT_A_FILES_BUSINESS = {"out", "device", "generator", "pin_memory", "layout", "names", "memory_format"}


def _functions() -> dict[str, Callable]:
    found: dict[str, Callable] = {name: getattr(operator, name) for name in _OPERATORS if name != "getattr"}
    found |= {"getattr": getattr, "cat": torch.cat, "structure": structure}
    found |= {f"torch.{name}": getattr(torch, name) for name in _TORCH}
    found |= {f"functional.{name}": getattr(F, name) for name in _FUNCTIONAL}
    return found


FUNCTIONS = _functions()
_NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}
_ON_NUMBERS = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.neg,
}
_COMPARES = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_}


def name_of(function: Callable) -> str | None:
    """The name under which a file may call ``function``; None where it must not.

    >>> name_of(torch.nn.functional.gelu), name_of(print)
    ('functional.gelu', None)
    """
    whole = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
    if whole in _TORCHVISION and function_of(whole) is function:
        return whole
    try:
        return _NAMES.get(function)
    except TypeError:  # something that cannot be looked up is no function
        return None


def is_name(name: object) -> bool:
    """May a file name that function?"""
    return type(name) is str and (name in FUNCTIONS or name in _TORCHVISION)


def function_of(name: str) -> Callable:
    """The function of such a name. Raises ValueError where torchvision, which has it, is missing."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    module, _, own = name.rpartition(".")
    try:
        return getattr(import_module(module), own)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"it needs {name} of the package torchvision, which is not there ({error})") from error


# --- Arguments as JSON


def encode(argument: object) -> object:
    """An argument of a call as JSON holds it. Raises ValueError for what it has no words for.

    >>> encode((Input(0), slice(None, 3), ..., torch.int64))
    {'tuple': [{'input': 0}, {'slice': [None, 3, None]}, {'ellipsis': True}, {'dtype': 'int64'}]}
    """
    if isinstance(argument, Input):
        return {"input": argument.place}
    if isinstance(argument, slice):
        return {"slice": [encode(part) for part in (argument.start, argument.stop, argument.step)]}
    if isinstance(argument, list):
        return [encode(part) for part in argument]
    if isinstance(argument, tuple):
        return {"tuple": [encode(part) for part in argument]}
    if isinstance(argument, dict) and all(isinstance(key, str) for key in argument):
        return {"dict": {key: encode(part) for key, part in argument.items()}}
    if argument is Ellipsis:
        return {"ellipsis": True}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if type(argument) is float and math.isinf(argument):
        return {"infinity": 1 if argument > 0 else -1}
    if argument is None or type(argument) in (bool, int, float, str):
        return argument
    raise ValueError(f"an argument of it is a {type(argument).__name__}, which a file has no words for")


def decode(value: object) -> object:
    """The argument that :func:`encode` wrote, and :func:`check_argument` let pass."""
    if isinstance(value, list):
        return list(map(decode, value))
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    makers: dict[str, Callable] = {
        "input": Input,
        "slice": lambda parts: slice(*map(decode, parts)),
        "tuple": lambda parts: tuple(map(decode, parts)),
        "dict": lambda parts: {key: decode(part) for key, part in parts.items()},
        "ellipsis": lambda _: Ellipsis,
        "dtype": DTYPES.__getitem__,
        "infinity": lambda sign: sign * math.inf,
    }
    return makers[kind](content)


def is_argument(value: object, depth: int = MOST_DEPTH) -> bool:
    """Is this JSON value an argument that a file may give to a call?"""
    if value is None or type(value) in (bool, float):
        return True
    if type(value) is int:
        return abs(value) <= MOST_NUMBER
    if type(value) is str:
        return len(value) <= 200
    if type(value) is list:
        return depth > 0 and len(value) <= MOST_PARTS and all(is_argument(part, depth - 1) for part in value)
    if type(value) is not dict or len(value) != 1:
        return False
    ((kind, content),) = value.items()
    tests: dict[str, Callable[[object], bool]] = {
        "input": lambda place: type(place) is int and 0 <= place < MOST_PARTS,
        "slice": lambda parts: type(parts) is list and len(parts) == 3 and is_argument(parts, depth),
        "tuple": lambda parts: type(parts) is list and is_argument(parts, depth),
        "dict": lambda parts: type(parts) is dict and is_argument([*parts, *parts.values()], depth),
        "ellipsis": lambda given: given is True,
        "dtype": lambda name: type(name) is str and name in DTYPES,
        "infinity": lambda sign: type(sign) is int and sign in (1, -1),
    }
    return kind in tests and tests[kind](content)


def is_keywords(value: object) -> bool:
    """Are these keyword arguments that a file may give?"""
    return (
        type(value) is dict and len(value) <= 20 and all(value[name] is None for name in NOT_A_FILES_BUSINESS & value.keys())
        and all(name.isidentifier() and len(name) <= 50 for name in value) and all(map(is_argument, value.values()))
        and value.get("inplace") in (None, False)
    )  # fmt: skip


# --- What a call gives, as shapes


_NOT_OF_BOOLS = ("aten.sub.", "aten.rsub.", "aten.neg.")


class _Bounded(TorchDispatchMode):
    """Refuses whatever makes a tensor of more than MOST_VALUES numbers, inside a call too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        _check_parts(str(function), args, kwargs or {})
        if str(function).startswith(_NOT_OF_BOOLS) and any(
            x.dtype is torch.bool for x in args if isinstance(x, Tensor)
        ):
            raise ValueError("it subtracts truth values")  # which shapes alone do not tell
        given = function(*args, **(kwargs or {}))
        for value in tree_leaves(given):
            if isinstance(value, Tensor) and value.numel() > MOST_VALUES:
                raise ValueError(f"it makes a tensor of more than {MOST_VALUES:,} numbers")
        return given


def _check_parts(function: str, args: tuple, kwargs: dict) -> None:
    """Refuse what would cut a tensor into more parts than memory takes."""
    if function.startswith(("aten.unbind", "aten.split.", "aten.unsafe_split.")):
        unbind = "unbind" in function
        dim = kwargs.get("dim", args[2 - unbind] if len(args) > 2 - unbind else 0)
        size = 1 if unbind else args[1]
        if args[0].shape[dim] > MOST_PARTS * max(size, 1):
            raise ValueError(f"it cuts a tensor into more than {MOST_PARTS:,} parts")


def flow(module: nn.Module, inputs: tuple) -> object:
    """What a module gives, for tensors on the meta device, where the largest takes no memory, and for sizes.

    Raises ValueError where that is too large, or no value that may stand between two steps.
    """
    if isinstance(module, Call):
        _check_call(module, inputs)
    with torch.device("meta"), torch.no_grad(), _Bounded():
        given = module(*inputs)
    check_value(given)
    return given


def _check_call(call: Call, inputs: tuple) -> None:
    """A method needs a tensor; numbers are only added, multiplied, compared and the like, where nothing can grow."""
    args = filled(tuple(call.args), inputs)
    first = args[0] if args else None
    if isinstance(call.target, str) or call.target is getattr:
        if not isinstance(first, Tensor):
            raise ValueError("it takes something of what is no tensor")
        if call.target is getattr and args[1:] not in [(name,) for name in ATTRIBUTES]:
            raise ValueError(f"it reads an attribute that is none of {', '.join(ATTRIBUTES)}")
    elif any(isinstance(value, Tensor) for value in tree_leaves(args)):
        if call.target in _ON_NUMBERS and any(isinstance(value, (list, tuple, str)) for value in args):
            raise ValueError("it computes with a list")
    elif call.target in _ON_NUMBERS:
        sizes = call.target is operator.add and all(isinstance(value, (list, tuple)) for value in args)
        if not sizes and not all(isinstance(value, (bool, int, float)) for value in args):
            raise ValueError("it computes with what is neither a tensor nor a number")
    elif call.target is operator.pow and len(args) == 2:
        if not all(isinstance(value, (int, float)) for value in args) or abs(args[1]) > 8:
            raise ValueError("it computes a power without a tensor, above the 8th")
    elif getattr(call.target, "__module__", None) == "_operator" and call.target not in {*_COMPARES, operator.getitem}:
        raise ValueError("it computes without a tensor")


def check_value(value: object) -> None:
    """Raise ValueError for what may not stand between two steps: too large, or of a strange type."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        if len(value) > MOST_PARTS:
            raise ValueError(f"it gives more than {MOST_PARTS:,} values")
        for part in value:
            check_value(part)
    elif isinstance(value, Tensor):
        if not 0 < value.numel() <= MOST_VALUES or value.dtype not in DTYPES.values():
            raise ValueError(f"it gives no tensor of 1 to {MOST_VALUES:,} numbers")
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise ValueError("it gives a number beyond all sizes")
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise ValueError(f"it gives a {type(value).__name__}")
