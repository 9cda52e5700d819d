"""The networks of the course, and their trained weights.

``manifest.json`` says of each weight file how it was made (command, seed, data copy, epochs) and how good it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.files import load_weights, read_json, read_tensors, verify
from qlab.models.mobilenet import mobilenet_v2
from qlab.models.resnet import resnet20
from qlab.models.vgg import vgg

ARCHITECTURES = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2, "vgg": vgg}
FOLDER = Path(__file__).parent / "checkpoints"

__all__ = ["ARCHITECTURES", "build", "load", "manifest", "mobilenet_v2", "resnet20", "trained", "vgg", "weights"]


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """What is known of each weight file in ``folder`` (default: those committed here), by "<name>-<data>".

    Raises ValueError or OSError, which names it, when it is damaged or missing.
    """
    path = (folder or FOLDER) / "manifest.json"
    try:
        entries = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {_remedy(path)}") from error
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("file", "sha256")):
            raise ValueError(f"{path} is damaged (no file and sha256 of {key[:50]!r}). {_remedy(path)}")
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"{path} is damaged ({key[:50]!r} is not in its folder). {_remedy(path)}")
    return entries


def _remedy(path: Path) -> str:
    return f"Restore it with `git checkout -- {path}`, or install qlab again."


def build(name: str) -> nn.Module:
    """The network ``name``, with random weights. Raises ValueError when there is no such network."""
    if name not in ARCHITECTURES:
        raise ValueError(f"network {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]()


def load(name: str, data: str = "cifar10") -> nn.Module:
    """The trained float network ``name`` ("resnet20", "mobilenet_v2", "vgg"), in eval mode and channels_last.

    ``data`` is what it was trained on, "cifar10" or "shapes10". Raises ValueError when there is no such network, or
    when its weights are not the ones that the manifest vouches for (sha256).
    """
    return trained(lambda: build(name), f"{name}-{data}")


def trained(make: Callable[[], nn.Module], key: str, folder: Path | None = None) -> nn.Module:
    """The network that ``make`` gives, with committed weights, in eval mode and channels_last.

    Raises ValueError when there are none of that name, they are damaged, or are those of another network.
    """
    tensors, path = weights(key, folder), (folder or FOLDER) / manifest(folder)[key]["file"]
    network = make()
    load_weights(network, tensors, path)
    return network.eval().to(memory_format=torch.channels_last)


def weights(key: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a committed weight file, which is checked against the folder's manifest first."""
    entries = manifest(folder)
    if key not in entries:
        known = ", ".join(sorted(entries))[:1000]
        raise ValueError(f"no trained weights for {key!r}: there are {known} in {folder or FOLDER}")
    entry = entries[key]
    path = (folder or FOLDER) / entry["file"]
    verify(path, entry["sha256"])
    return read_tensors(path)[0]
