"""The training itself: ``fit`` trains a calibrated network in place, ``train`` does all from a float network on.

What moves in it stands in :mod:`qlab.qat.lsq`, :mod:`qlab.qat.straight_through` and :mod:`qlab.qat.batchnorm`; a float
network may teach: its answers say more than labels do (Hinton et al. 2015; Mishra and Marr 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qlab import parallel
from qlab import train as loop
from qlab.calibration import calibrate
from qlab.files import read_tensors, write_tensors
from qlab.graph.prepare import Prepared, prepare
from qlab.qat.batchnorm import NormalizedConv2d
from qlab.qat.loss import Loss
from qlab.qat.networks import qconfig
from qlab.qat.stages import finish, start
from qlab.qat.straight_through import FollowingQuantizer
from qlab.quantizers import AffineQuantizer

if TYPE_CHECKING:
    from qlab.data import Dataset

PLAN = loop.Plan(epochs=15, lr=0.04, weight_decay=1e-4, shrink=0.0)


def fit(
    prepared: Prepared,
    train: Dataset | Iterable[tuple[Tensor, Tensor]],
    validation: Dataset | None = None,
    plan: loop.Plan = PLAN,
    *,
    method: str = "lsq",
    teacher: nn.Module | None = None,
    distillation: float = 0.5,
    penalty: float = 0.0,
    freeze_ranges: float = 0.5,
    freeze_batchnorm: float = 0.97,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    about: dict | None = None,
) -> list[dict]:
    """Train a calibrated network in place, with its rounding.

    Args:
        prepared: What :func:`qlab.calibrate` gave. Afterwards it is an ordinary prepared network, ready for
            :func:`qlab.convert`; with a ``folder``, that of the best epoch.
        train: A Dataset, or batches (x, label) that are gone through once an epoch; ``plan.batch_size`` is then theirs.
        validation: A Dataset whose accuracy is measured after each epoch. None: the last epoch counts as the best.
        plan: Epochs, learning rate and so on (:class:`qlab.train.Plan`).
        method: How the grids move. "lsq" learns every scale; "pact" learns the activations' upper ends, and the
            weights' grids follow; "straight_through" lets all grids follow the largest values.
        teacher: The float network, whose answers are learned too. None: the labels alone.
        distillation: The teacher's share of the loss, from 0 to 1.
        penalty: The weight in the loss of the weights' relative quantization error (:func:`weight_error`).
        freeze_ranges: The share of the training after which grids that follow stand still.
        freeze_batchnorm: The share after which BatchNorm's statistics stand still. Late, since with few bits and a
            learning rate that is not tiny yet, a network that is no longer normalized diverges.
        loss: ``loss(x, output, y)`` in place of the labels' cross-entropy, for networks that do not classify; they have
            no teacher here.
        folder: Where each epoch is saved, so that a broken run goes on; as in :func:`qlab.train.fit`.
        device: Where to train, "cpu" or "cuda".
        progress: Show a bar for an epoch that takes over 2 seconds.
        about: What else is kept with the checkpoints, as in :func:`qlab.train.fit`.

    Returns:
        One row an epoch, as :func:`qlab.train.fit` gives it.

    Raises:
        RuntimeError: The network was not calibrated.
        ValueError: ``method`` is another one, a share is not from 0 to 1, there are a teacher and a loss, or no batch.

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 4)
    >>> y, network = (x.sum(1) > 0).long(), torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> prepared = qlab.calibrate(qlab.prepare(network, qlab.qat.qconfig("w4a4"), x[:1]), [x])
    >>> plan = qlab.train.Plan(epochs=5, lr=0.1, shrink=0.0)
    >>> history = qlab.qat.fit(prepared, [(x, y)] * 4, plan=plan, progress=False)
    >>> history[-1]["loss"] < history[0]["loss"]
    True
    """
    if loss is not None and teacher is not None:
        raise ValueError("a teacher teaches classes, and a loss of your own takes their place: give one of the two")
    shares = dict(distillation=distillation, freeze_ranges=freeze_ranges, freeze_batchnorm=freeze_batchnorm)
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: expected a share from 0 to 1")
    data: Any = train if hasattr(train, "batches") else _Batches(train)
    plan = plan if data is train else replace(plan, batch_size=data.size)
    prepared.to(device, memory_format=torch.channels_last)
    start(prepared, (x for x, _ in data.batches(plan.batch_size, shuffle=True, seed=plan.seed)), method)
    try:
        history = loop.fit(
            prepared, data, validation, plan, folder=folder, device=device, progress=progress, about=about,
            loss=Loss(prepared, plan.label_smoothing, teacher and teacher.to(device).eval(), distillation, penalty, loss),
            on_step=lambda progress: _freeze(prepared, progress >= freeze_ranges, progress >= freeze_batchnorm),
        )  # fmt: skip
        if folder is not None and history:
            prepared.load_state_dict(read_tensors(folder / "best.safetensors", device)[0])
    except BaseException:
        with suppress(ValueError):  # what diverged has no grid; that it did is the error to show
            finish(prepared)
        raise
    finish(prepared)
    return history


def train(
    network: nn.Module,
    preset: str,
    train: Dataset,
    validation: Dataset,
    plan: loop.Plan = PLAN,
    *,
    folder: Path,
    initial: Path | None = None,
    **options: Any,
) -> tuple[Prepared, list[dict]]:
    """Prepare, calibrate and train a float network, which also is the teacher: what `qlab train --qat` does.

    Args:
        network: The trained float network. It is not changed.
        preset: With which bits to train on, such as "w4a4" (:func:`qlab.qat.qconfig`).
        train: The images to train on; 1,024 of them calibrate.
        validation: The images by which the best epoch is chosen.
        plan: As in :func:`fit`.
        folder: As in :func:`fit`; the trained network is also saved there, as prepared.safetensors.
        initial: The prepared.safetensors of an earlier run to go on from, with the same bits or float activations
            ("w1a32" before "w1a1"): grids that it lacks are chosen anew, those that it has are kept.
        options: Further ones of :func:`fit`.

    Returns:
        The trained network, and one row an epoch.

    Raises:
        ValueError: ``initial`` is of a run with other bits or of another network; and what :func:`fit` raises.
    """
    prepared = prepare(network, qconfig(preset))
    sample = train.sample(1024).batches(128)
    if initial is None:
        calibrate(prepared, sample)
    else:
        _go_on(prepared, _earlier(initial, preset), sample)
    history = fit(prepared, train, validation, plan, teacher=network, folder=folder, **options)
    if parallel.place()[0] == 0:
        write_tensors(folder / "prepared.safetensors", prepared.state_dict(), {"qconfig": preset})
    return prepared, history


def _earlier(path: Path, preset: str) -> dict[str, Tensor]:
    """What the run that left this file has learned, if ``preset`` can go on from it. The first files do not say."""
    initial, header = read_tensors(path)
    expected = dict.fromkeys((preset, f"{preset.partition('a')[0]}a32"))
    if header.get("qconfig", preset) not in expected:
        raise ValueError(f"{path} is of a run with {header['qconfig']}: expected one with {' or '.join(expected)}")
    return initial


def _go_on(prepared: Prepared, initial: dict[str, Tensor], batches: Iterable) -> None:
    """Take over what an earlier run has learned; where it had no grid, choose one for the values that come there now.

    Those values are what the rounded weights give: a binary network is another one than its weights before rounding.
    """
    with torch.no_grad():
        prepared.load_state_dict(prepared.state_dict() | {n: v for n, v in initial.items() if "quantizer" not in n})
        latent = [(layer.weight, layer.weight.clone()) for _, layer in prepared.weighted()]
        for _, layer in prepared.weighted():
            if not isinstance(layer.weight_quantizer, AffineQuantizer):
                layer.weight.copy_(layer.weight_quantizer(layer.weight))
        calibrate(prepared, batches)
        for weight, before in latent:
            weight.copy_(before)
    own = prepared.state_dict()
    if unknown := sorted(initial.keys() - own.keys()):
        raise ValueError(
            f"cannot go on from a run with {unknown[0]}: expected this network, with weights of as many bits"
        )
    prepared.load_state_dict(own | initial)


def _freeze(prepared: Prepared, ranges: bool, batchnorm: bool) -> tuple[bool, bool]:
    """Before each step: what has to stand still from now on does. Returns what that is: steps differ by it."""
    for _, layer in prepared.weighted():
        if isinstance(layer, NormalizedConv2d):
            layer.frozen = batchnorm
    for _, quantizer in prepared.quantizers():
        if isinstance(quantizer, FollowingQuantizer):
            quantizer.frozen = ranges
    return ranges, batchnorm


class _Batches:
    """A plain list of batches (x, y) in the form of a Dataset, as the training loop wants it."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.list = list(batches)
        if not self.list:
            raise ValueError("there is no batch to train on: expected at least one (x, y)")
        self.size = len(self.list[0][0])

    def __len__(self) -> int:
        return sum(len(x) for x, _ in self.list)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, augment: bool = False) -> Iterator:
        order = torch.randperm(len(self.list), generator=torch.Generator().manual_seed(seed))
        yield from (self.list[i] for i in order.tolist())
