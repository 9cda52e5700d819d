"""Files that are whole or not there: safetensors written atomically, and checked by their sha256 when read."""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write to the path that this gives: it becomes ``path`` at the end, or vanishes when an error comes in between.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, whole(Path(folder) / "new" / "a.txt") as part:
    ...     _ = part.write_text("all of it")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict | None = None) -> Path:
    """Save tensors and a JSON header as safetensors, all or nothing: a reader never sees half a file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as part:
        save_file(plain, part, {"qlab": json.dumps(header or {}, separators=(",", ":"))})
    return Path(path)


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header that :func:`write_tensors` saved. Raises ValueError when it is no such file."""
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): fetch or save it again") from error
    if "qlab" not in metadata:
        raise ValueError(
            f"{path} was not written by qlab (no 'qlab' entry in its header): expected a file of qlab.save"
        )
    return tensors, json.loads(metadata["qlab"])


def load_weights(network: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Put ``tensors`` into ``network``. Raises ValueError, and names ``source``, when they are another network's."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        what = textwrap.shorten(first[0], 160, placeholder=" ...")
        raise ValueError(f"{source} holds the weights of another network: {what}") from error


def verify(path: str | Path, expected: str) -> None:
    """Raise ValueError unless the file that qlab brings along at ``path`` is there, with the sha256 ``expected``."""
    path = Path(path)
    restore = f"restore it with `git checkout -- {path}`, or install qlab again"
    if not path.exists():
        raise ValueError(f"{path} is missing: {restore}")
    if (found := sha256(path)) != expected:
        raise ValueError(f"{path} is damaged (sha256 {found[:12]}..., expected {expected[:12]}...): {restore}")


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
