"""Text that every Python brings along: the source of its own standard library, as bytes.

A language model over bytes needs no tokenizer: its vocabulary is the 256 values of a byte. Files are dealt out to three
splits by the hash of their name, so that a file never trains in one Python version and tests in another. The
content changes a little with every Python version; :func:`source` says which one is here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
# Not in every installation, or tables rather than text.
SKIPPED = {
    "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "encodings", "ensurepip",
    "site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__",
}  # fmt: skip


def split_of(name: str) -> str:
    """The split of a file by its name in the library, as in "json/encoder.py": about 8 % test, 5 % validation.

    >>> split_of("json/encoder.py"), split_of("enum.py"), split_of("ast.py")
    ('validation', 'test', 'train')
    """
    first = hashlib.sha256(name.encode()).digest()[0]
    return "test" if first < 20 else "validation" if first < 32 else "train"


def files(split: str) -> list[tuple[str, Path]]:
    """The standard library's files of one split, sorted by name. Raises ValueError when there is none."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted((name, path) for name, path in _sources(root) if split_of(name) == split)
    if not found:
        raise ValueError(f"no source of the standard library under {root}: use a Python that brings its .py files")
    return found


@cache
def corpus(split: str) -> Tensor:
    """The bytes of one split in one row (uint8), file after file; line ends are those of Unix everywhere.

    >>> corpus("test").dtype
    torch.uint8

    Raises ValueError for another split than "train", "validation" and "test", and without the library's source.
    """
    return torch.frombuffer(bytearray(b"\0".join(_read(path) for _, path in files(split))), dtype=torch.uint8)


def windows(split: str, count: int, length: int = 256) -> Tensor:
    """``count`` pieces of ``length`` + 1 bytes, spread evenly over a split; int64, (count, length + 1).

    A model reads all bytes of a piece but the last and says what the next one is, ``length`` times. ``split`` is
    "train", "validation" or "test".

    >>> windows("test", 3, length=8).shape
    torch.Size([3, 9])

    Raises ValueError for another split, for no windows, and for more bytes than the split has.
    """
    data = corpus(split)
    last = len(data) - length - 1
    if count < 1 or last < 0:
        raise ValueError(f"{count} windows of {length} bytes: expected at least 1, and at most {len(data) - 1} bytes")
    starts = torch.linspace(0, last, count, dtype=torch.float64).long()
    return torch.stack([data[start : start + length + 1] for start in starts]).long()


def source() -> str:
    """Whose text it is, as in "standard library of Python 3.12.4"."""
    return f"standard library of Python {platform.python_version()}"


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every source file that is not skipped, by its name from ``root`` on."""
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in SKIPPED and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def _read(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


class ByteTokenizer:
    """A byte is a token: what the tiny Granites read, called as any tokenizer of transformers is.

    >>> ByteTokenizer().decode(ByteTokenizer()("for x", return_tensors="pt").input_ids[0])
    'for x'
    """

    def __call__(self, text: str, return_tensors: str = "pt") -> SimpleNamespace:
        """``input_ids``, int64 of shape (1, bytes). Raises ValueError for other tensors than torch's."""
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt', torch's tensors")
        return SimpleNamespace(input_ids=torch.tensor([list(text.encode())], dtype=torch.int64))

    def decode(self, tokens: Tensor | list[int], **options: object) -> str:
        """The text; what is no UTF-8 becomes a replacement character."""
        return bytes(int(token) for token in tokens).decode(errors="replace")
