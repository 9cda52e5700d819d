"""The networks of the course, and their trained weights.

``manifest.json`` says of each weight file how it was made (command, seed, data copy, epochs) and how good it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.files import load_weights, read_tensors, verify
from qlab.models.mobilenet import mobilenet_v2
from qlab.models.resnet import resnet20
from qlab.models.vgg import vgg

ARCHITECTURES = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2, "vgg": vgg}
FOLDER = Path(__file__).parent / "checkpoints"

__all__ = ["ARCHITECTURES", "build", "load", "manifest", "mobilenet_v2", "resnet20", "vgg", "weights"]


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """What is known of each weight file in ``folder`` (default: those committed here), by "<name>-<data>"."""
    return json.loads(((folder or FOLDER) / "manifest.json").read_text())


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
    key = f"{name}-{data}"
    tensors = weights(key)
    network = build(name)
    load_weights(network, tensors, key)
    return network.eval().to(memory_format=torch.channels_last)


def weights(key: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a committed weight file, which is checked against the folder's manifest first."""
    entries = manifest(folder)
    if key not in entries:
        raise ValueError(f"no trained weights for {key!r}: there are {', '.join(sorted(entries))}")
    entry = entries[key]
    path = (folder or FOLDER) / entry["file"]
    verify(path, entry["sha256"])
    return read_tensors(path)[0]
