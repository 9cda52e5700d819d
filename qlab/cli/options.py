"""What may stand behind an option. Each function here is, or makes, a ``type=`` for argparse.

Whatever is wrong is said where it is read, before anything begins: what stood there, and what was expected.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from qlab.files import read_tensors
from qlab.int8 import engines
from qlab.models import ARCHITECTURES
from qlab.observers import OBSERVERS

Number = TypeVar("Number", int, float)
MANY = 10**9  # rounds, frames: more than anybody waits for


def number(least: Number, most: Number) -> Callable[[str], Number]:
    """A number from ``least`` to ``most``; a whole one where these are.

    >>> number(1, 16)("8"), number(0.0, 1.0)("0.5")
    (8, 0.5)
    """
    kind, name = type(least), "a whole number" if isinstance(least, int) else "a number"

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise refuse(text, f"{name} from {_in_words(least)} to {_in_words(most)}")
        return value

    return read


def _in_words(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def one_of(*names: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in names:
            raise refuse(text, f"{', '.join(names[:-1])} or {names[-1]}")
        return text

    return read


def refuse(text: str, expected: str) -> ArgumentTypeError:
    """The error that says what stood there, and what was expected."""
    return ArgumentTypeError(f"{text!r}: expected {expected}")


count = number(1, MANY)
seed = number(0, 2**31 - 1)
share = number(0.0, 1.0)
threads = number(1, os.cpu_count() or 1)
dataset = one_of("cifar10", "shapes10")
observer = one_of(*OBSERVERS)


def network(text: str) -> str:
    """The name of one of the course's networks."""
    return one_of(*ARCHITECTURES)(text)


def preset(text: str) -> str:
    """Bits of weights and activations, as in w4a8; a32 leaves activations in float."""
    if not re.fullmatch("w[1-8]a([1-8]|32)", text):
        raise refuse(text, "w<bits>a<bits> with 1 to 8 bits each, as in w4a8, or a32 for activations in float")
    return text


def engine(text: str) -> str:
    """The name of an engine that works here, or auto."""
    try:
        engines.get(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def device(text: str) -> str:
    """The processor, or a GPU that is there."""
    gpus = torch.cuda.device_count()
    names = ["cpu", *["cuda"][:gpus], *(f"cuda:{number}" for number in range(gpus))]
    if text not in names:
        raise refuse(text, f"one of those that are here: {', '.join(names)}")
    return text


def weights(text: str) -> Path:
    """A file of weights that qlab wrote."""
    try:
        read_tensors(text)
    except (ValueError, OSError) as error:
        raise refuse(text, f"a file of weights ({getattr(error, 'strerror', None) or error})") from error
    return Path(text)


def new_folder(text: str) -> Path:
    """A folder that is there or can be made, and written into."""
    path = Path(text)
    _try_to_write(path, "a folder that can be written")
    return path


def new_file(*suffixes: str) -> Callable[[str], Path]:
    """A file that can be written, whose name ends so."""

    def read(text: str) -> Path:
        path, expected = Path(text), f"a file that can be written ({', '.join(suffixes)})"
        if path.suffix not in suffixes or path.is_dir():
            raise refuse(text, expected)
        _try_to_write(path.parent, expected, path.name)
        return path

    return read


def _try_to_write(folder: Path, expected: str, name: str = "") -> None:
    """Make something for a moment where ``folder`` is or begins, and under such a name."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        missing = [part for part in folder.parts[len(there.parts) :]] + [name]
        with tempfile.TemporaryDirectory(prefix=max(missing, key=len), dir=there):
            pass
    except OSError as error:
        raise refuse(str(folder / name), f"{expected}: {error.strerror}") from error
