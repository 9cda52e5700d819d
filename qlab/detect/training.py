"""Training a detector, in float and with rounding: qlab's loops, with a loss for boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qlab import models, qat
from qlab import train as loop
from qlab.calibration import calibrate
from qlab.detect.boxes import MultiboxLoss
from qlab.detect.network import ANCHORS, SSDLite, load
from qlab.detect.scene import SIDE, scenes
from qlab.files import write_tensors
from qlab.graph.prepare import Prepared, prepare

COUNT, QAT_COUNT = 3000, 1500  # training images
FROZEN = 7  # blocks of the backbone that keep what they learned on shapes10 at first: edges and textures
PLAN = loop.Plan(epochs=8, batch_size=16, lr=0.03, weight_decay=1e-4, label_smoothing=0.0, shrink=0.0)
AFTERWARDS = replace(PLAN, epochs=2, lr=0.01)  # with all blocks
QAT = replace(PLAN, epochs=1, lr=0.002)


def loss() -> MultiboxLoss:
    """The loss of :class:`SSDLite`, for the loops of qlab.train and qlab.qat."""
    return MultiboxLoss(ANCHORS)


def untrained(seed: int = 0) -> SSDLite:
    """A detector whose backbone knows single shapes already (mobilenet_v2 on shapes10), and whose heads know nothing."""
    torch.manual_seed(seed)
    network = SSDLite()
    backbone = {n: t for n, t in models.weights("mobilenet_v2-shapes10").items() if n.startswith("features.")}
    wanted = network.features.state_dict()
    network.features.load_state_dict({name: backbone[f"features.{name}"] for name in wanted})
    return network


def train(
    folder: Path, plan: loop.Plan = PLAN, afterwards: loop.Plan = AFTERWARDS, count: int = COUNT, **options: Any
) -> tuple[SSDLite, list[dict]]:
    """Train a float detector on ``count`` training images, in two parts; returns it and its history.

    ``options`` are those of qlab.train.fit. A broken run goes on where it stopped.
    """
    network, images, history = untrained(plan.seed), scenes("train", count), []
    for name, part in (("first", plan), ("all", afterwards)):
        network.features[:FROZEN].requires_grad_(name == "all")
        history += loop.fit(network, images, None, part, folder=folder / name, loss=loss(), **options)
    return network, history


def train_qat(
    folder: Path, plan: loop.Plan = QAT, count: int = QAT_COUNT, **options: Any
) -> tuple[Prepared, list[dict]]:
    """Train the trained detector on with its rounding; returns it, prepared, and its history.

    It is also saved as prepared.safetensors in ``folder``. Only training scenes are used, to calibrate too.
    """
    images = scenes("train", count)
    prepared = prepare(load(), qat.qconfig("w8a8"), torch.zeros(1, 3, SIDE, SIDE))
    calibrate(prepared, images.subset(slice(256)).batches(32))
    history = qat.fit(prepared, images, None, plan, loss=loss(), folder=folder, **options)
    write_tensors(folder / "prepared.safetensors", prepared.state_dict())
    return prepared, history
