"""The networks of the course, and their trained weights.

``manifest.json`` says of each weight file how it was made (command, seed, data copy, epochs) and how good it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from qlab.files import read_tensors, sha256
from qlab.models.mobilenet import mobilenet_v2
from qlab.models.resnet import resnet20
from qlab.models.vgg import vgg

ARCHITECTURES = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2, "vgg": vgg}
FOLDER = Path(__file__).parent / "checkpoints"

__all__ = ["ARCHITECTURES", "load", "manifest", "mobilenet_v2", "resnet20", "vgg", "weights"]


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """What is known of each weight file in ``folder`` (default: those committed here), by "<name>-<data>"."""
    return json.loads(((folder or FOLDER) / "manifest.json").read_text())


def load(name: str, data: str = "cifar10") -> nn.Module:
    """The trained float network ``name`` ("resnet20", "mobilenet_v2", "vgg"), in eval mode and channels_last.

    ``data`` is what it was trained on, "cifar10" or "shapes10". Raises ValueError when there is no such network, or
    when its weights are not the ones that the manifest vouches for (sha256).
    """
    state = weights(f"{name}-{data}")
    network = ARCHITECTURES[name]()
    network.load_state_dict(state)
    return network.eval().to(memory_format=torch.channels_last)


def weights(key: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a committed weight file, which is checked against the folder's manifest first."""
    entries = manifest(folder)
    if key not in entries:
        raise ValueError(f"no trained weights for {key!r}: there are {', '.join(sorted(entries))}")
    entry = entries[key]
    path = (folder or FOLDER) / entry["file"]
    if not path.exists():
        raise ValueError(f"{path} is missing: restore it with `git checkout -- {path}`, or install qlab again")
    if (found := sha256(path)) != entry["sha256"]:
        raise ValueError(
            f"{path} has sha256 {found[:12]}..., its manifest says {entry['sha256'][:12]}...: the weights are damaged. "
            f"Restore them with `git checkout -- {path}`, or install qlab again."
        )
    return read_tensors(path)[0]
