"""Where images are kept: a copy of CIFAR-10 is decoded once into one file of plain uint8 numbers.

That file is then mapped into memory instead of being read, and so opens at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from qlab.data.copies import BATCHES, copy_folders, read_copy
from qlab.data.official import CLASSES
from qlab.files import read_tensors, write_tensors

LAYOUT = 1  # of the file; another one would be decoded anew
MAKE_ROOM = "Make room, or set QLAB_DATA to a folder on another disk"


class NoRoom(OSError):
    """The disk is full, or may not be written to: no other source of the images would help."""


def data_folder() -> Path:
    """Where downloads and decoded images are kept; not made yet.

    ``QLAB_DATA`` if it is set; else ``data/`` of the clone that qlab runs from; else the user's cache folder.
    """
    if named := os.environ.get("QLAB_DATA"):
        return Path(named).expanduser()
    clone = Path(__file__).parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "data" / "README.md").is_file():
        return clone / "data"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "qlab"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qlab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlab"


def lock(folder: Path) -> FileLock:
    """What the first of several processes holds while it fetches or decodes, and the others wait for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "cifar10.lock")
    except OSError as error:
        words = f"cannot keep images in {folder} ({error}): set QLAB_DATA to another folder"
        raise NoRoom(error.errno, words) from error


def stored(path: Path) -> Path:
    """The file that the copy at ``path`` is decoded into, as it is now; it may not be there yet.

    A copy is known by its place, size and time of change, a folder by those of the folders in it: an image
    that is overwritten in its place goes unnoticed, one that comes or goes does not.
    """
    path = path.resolve()
    looked_at = [path]
    if path.is_dir():
        for folder in copy_folders(path):
            looked_at += [folder, *(folder / name for name in BATCHES if (folder / name).exists())]
    states = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in looked_at]
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    state = hashlib.sha256(repr((LAYOUT, states)).encode()).hexdigest()[:8]
    return data_folder() / f"cifar10-{place}-{state}.safetensors"


def decode_into(file: Path, path: Path, check: Callable[[dict[str, Tensor]], None] | None = None) -> None:
    """Decode the copy at ``path`` into ``file``, all or nothing; ``check`` may refuse it by raising."""
    print(f"CIFAR-10: decoding {path} into {file}, once (about 15 s)", flush=True)
    tensors, source = read_copy(path)
    if check is not None:
        check(tensors)
    need_space(file.parent, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    try:
        write_tensors(file, tensors, {"source": source})
    except OSError as error:
        raise NoRoom(error.errno, f"{error.strerror}. {MAKE_ROOM}") from error
    for outdated in file.parent.glob(f"{file.name.rpartition('-')[0]}-*"):
        if outdated != file:  # of the same place: before it changed, or half written
            with suppress(OSError):  # Windows keeps a file that someone has open
                outdated.unlink()


def open_stored(file: Path) -> tuple[dict[str, Tensor], str]:
    """The decoded images, mapped into memory, and which copy they come from."""
    try:
        tensors, header = read_tensors(file)
        check_stored(file, tensors, header)
    except ValueError as error:
        raise ValueError(f"{error}. Delete {file}: it will be decoded again") from error
    return tensors, header["source"]


def check_stored(file: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Raise ValueError unless these are splits of CIFAR-10, each with a label for every image."""
    splits = sorted({name.partition(".")[0] for name in tensors} | {"train", "test"})
    expected = {f"{split}.{kind}" for split in splits for kind in ("images", "labels")}
    if tensors.keys() != expected or not isinstance(header.get("source"), str):
        raise ValueError(f"{file} holds {', '.join(sorted(tensors))[:200] or 'nothing'}: expected decoded images")
    for split in splits:
        images, labels = tensors[f"{split}.images"], tensors[f"{split}.labels"]
        shapes = (images.dtype, images.shape[1:], labels.dtype, labels.shape)
        if shapes != (torch.uint8, (3, 32, 32), torch.int64, images.shape[:1]):
            raise ValueError(f"{file} holds other tensors than decoded images and their labels")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
            raise ValueError(f"{file} holds labels that are no class of CIFAR-10")


def need_space(folder: Path, size: int) -> None:
    """Raise NoRoom when ``folder`` has no room for ``size`` more bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise NoRoom(
            errno.ENOSPC,
            f"the disk is full: {folder} needs {size / 1e6:.0f} MB more and has {free / 1e6:.0f} MB. {MAKE_ROOM}",
        )


def cannot_write(file: Path, error: OSError) -> NoRoom:
    """The error to raise when writing ``file`` ended in ``error``."""
    return NoRoom(error.errno or errno.EIO, f"cannot write {file} ({error}). {MAKE_ROOM}")
