"""Files that are whole or not there, and that are believed only after a look at them.

What is written appears under its name in one moment, complete. What is read is an ordinary file, its JSON is strict, its
tensors are the expected ones, or a ValueError or an OSError names the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import secrets
import stat
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

MOST_HEADER = 1 << 22  # bytes of a safetensors header; that of a network of a thousand layers has 0.2 million
LEFT = re.compile(r"\.qlab-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")  # what a write that was killed leaves behind
DAY = 24 * 3600  # seconds
AGAIN = "fetch or save it again"
KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
}  # fmt: skip


# --- Writing


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write to the path that this gives: it becomes ``path`` at the end, or vanishes when an error comes in between.

    A link is followed. A new file gets the rights that the umask leaves it, one that is replaced keeps its own. What
    killed writers left in that folder is swept away. Raises OSError, which names ``path``, when it is a folder, a pipe or
    a device, and when the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, whole(Path(folder) / "new" / "a.txt") as part:
    ...     _ = part.write_text("all of it")
    """
    target = Path(os.path.realpath(path))
    there = os.path.exists(path) or target.is_symlink()  # the latter: links in a circle
    before = regular(path).stat().st_mode if there else None
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    part = target.with_name(f".qlab-{_place()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        if before is not None:
            part.chmod(stat.S_IMODE(before))
        yield part
        part.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):  # it says what is wrong, and with which file
            raise
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)


def _place() -> str:
    """Where process numbers mean what they mean here: a folder may be shared with other machines and containers."""
    with suppress(OSError):
        return _short(platform.node() + os.readlink("/proc/self/ns/pid"))
    return _short(platform.node())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove what writers left that are no more: those of this place that have ended, others after a day."""
    for part in folder.glob(".qlab-*.part"):
        if found := LEFT.fullmatch(part.name):
            with suppress(OSError):  # another process was faster, or it is not ours to remove
                here = found[1] == _place() and sys.platform != "win32"  # there, to ask for a process is to end it
                if not _lives(int(found[2])) if here else time.time() - part.lstat().st_mtime > DAY:
                    part.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict | None = None) -> Path:
    """Save tensors and a JSON header as safetensors, all or nothing: a reader never sees half a file.

    Raises ValueError for a header with NaN or infinity, which are no JSON, or one that is too long to be read again, and
    OSError where ``path`` cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        words = json.dumps(header or {}, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"the header of {path} holds NaN or infinity, which JSON has no words for") from error
    content = save(plain, {"qlab": words})  # safetensors' own writer of files takes no notice of the umask
    if (length := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ValueError(f"the header of {path} has {length:,} bytes, and more than {MOST_HEADER:,} are not read again")
    with whole(path) as part:
        part.write_bytes(content)
    return Path(path)


# --- Reading


def regular(path: str | Path) -> Path:
    """The path, if it is an ordinary file; OSError if it is a folder, a pipe or a device, or not there."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in KINDS.items() if test(mode)), "something else")
        raise OSError(f"{path} is {kind}: expected an ordinary file")
    return Path(path)


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header that :func:`write_tensors` saved. Raises ValueError when it is no such file."""
    with open(regular(path), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise ValueError(f"{path} is damaged or no safetensors file (its header has {length:,} bytes): {AGAIN}")
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({str(error)[:200]}): {AGAIN}") from error
    if "qlab" not in metadata:
        raise ValueError(
            f"{path} was not written by qlab (no 'qlab' entry in its header): expected a file of qlab.save"
        )
    return tensors, parse_json(metadata["qlab"], f"the header of {path}")


def read_json(path: str | Path, most: int = MOST_HEADER) -> dict:
    """The JSON object in a file of at most ``most`` bytes; ValueError or OSError, which names it, for anything else."""
    with open(regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is longer than {most:,} bytes: expected a JSON file")
    return parse_json(content, str(path))


def parse_json(text: str | bytes, what: str) -> dict:
    """The JSON object in ``text``, which is ``what``. ValueError for anything else, and for what readers take differently.

    That is: NaN and infinity, a key that stands there twice, and integers of more than 18 digits.

    >>> parse_json('{"bits": 8, "bits": 4}', "the header")
    Traceback (most recent call last):
    ValueError: the header is damaged (the key 'bits' stands there twice): expected a JSON object
    """
    try:
        found = json.loads(
            text, parse_constant=_number, parse_float=_number, parse_int=_integer, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged ({error}): expected a JSON object") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} is damaged (it is a {type(found).__name__}): expected a JSON object")
    return found


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > 18 + text.startswith("-"):
        raise ValueError(f"{text[:20]}... has more than 18 digits")
    return int(text)


def _object(pairs: list[tuple[str, object]]) -> dict:
    found: dict = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:50]!r} stands there twice")
        found[name] = value
    return found


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless there are the ``expected`` names, shapes and types, and no NaN or infinity.

    ``expected`` is a network's ``state_dict()``, which may be on the meta device; ``what`` says whose tensors they are.

    >>> import torch
    >>> check_tensors({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, "net.safetensors")
    Traceback (most recent call last):
    ValueError: net.safetensors: 'a' is float32 (2,), expected float32 (3,)
    """
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{what}: {name!r} is {'missing' if name in expected else 'one tensor too many'}")
    for name, tensor in found.items():
        if (tensor.dtype, tensor.shape) != (expected[name].dtype, expected[name].shape):
            raise ValueError(f"{what}: {name!r} is {_kind(tensor)}, expected {_kind(expected[name])}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{what}: {name!r} holds NaN or infinity, expected finite numbers")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def load_weights(network: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Put ``tensors`` into ``network``.

    Raises ValueError, and names ``source``, when they are another network's, of another type, or not finite.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        what = textwrap.shorten(first[0], 160, placeholder=" ...")
        raise ValueError(f"{source} holds the weights of another network: {what}") from error
    check_tensors(tensors, network.state_dict(), str(source))  # torch takes other types, and pads shapes


def verify(path: str | Path, expected: str) -> None:
    """Raise ValueError unless the file that qlab brings along at ``path`` is there, with the sha256 ``expected``."""
    path = Path(path)
    restore = f"restore it with `git checkout -- {path}`, or install qlab again"
    if not path.exists():
        raise ValueError(f"{path} is missing: {restore}")
    if (found := sha256(path)) != expected:
        raise ValueError(f"{path} is damaged (sha256 {found[:12]}..., expected {expected[:12]}...): {restore}")


def sha256(path: str | Path) -> str:
    """The sha256 of an ordinary file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(regular(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
