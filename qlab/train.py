"""One training loop, for float networks and for quantization-aware training alike; and the accuracy of a network.

Stochastic gradient descent with Nesterov momentum and one cycle of the learning rate (Smith 2018), label smoothing
(Szegedy et al. 2016), shifted and mirrored pictures. The first part of the epochs sees the pictures shrunk to 24x24,
which halves the arithmetic and costs next to no accuracy (progressive resizing; Tan and Le 2021, section 4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab import parallel
from qlab.files import read_tensors, write_tensors

if TYPE_CHECKING:
    from qlab.data import Dataset

SHRUNK = 24  # pixels


@dataclass(frozen=True)
class Plan:
    """How to train. ``shrink`` is the share of the epochs on shrunken pictures; ``rate`` the peak learning rate."""

    epochs: int = 40
    batch: int = 128
    rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 2e-4
    label_smoothing: float = 0.05
    shrink: float = 0.6
    seed: int = 0

    def rate_at(self, progress: float) -> float:
        """The learning rate when ``progress`` (0 to 1) of the training is done: up for a quarter, then down to 0."""
        warm = 0.25
        if progress < warm:
            return self.rate * (0.04 + 0.96 * progress / warm)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def evaluate(network: nn.Module, data: Dataset, *, batch: int = 64, progress: bool = True) -> float:
    """Top-1 accuracy in percent of ``network`` on every picture of ``data``; float, prepared or int8.

    Raises ValueError when an output is NaN: an arg max would hide it. A bar shows when it takes over 2 seconds. Of
    several processes (:mod:`qlab.parallel`) each one takes its share of the batches.
    """
    training = network.training
    network.eval()
    number, processes = parallel.place()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    correct = 0
    bar = tqdm(total=len(data), desc=f"{data.split} images", unit="img", leave=False, delay=2, disable=not progress)
    with torch.inference_mode(), bar:
        for x, y in islice(data.batches(batch), number, None, processes):
            logits = network(x.to(device))
            if logits.isnan().any():
                raise ValueError("the network gave NaN: look for a layer whose weights or ranges are not finite")
            correct += int((logits.argmax(1).cpu() == y).sum())
            bar.update(len(y))
    network.train(training)
    return 100 * parallel.total(correct, device) / len(data)


def fit(
    network: nn.Module,
    train: Dataset,
    validation: Dataset | None,
    plan: Plan,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    on_step: Callable[[float], None] | None = None,
    about: dict | None = None,
) -> list[dict]:
    """Train ``network`` in place; returns a list with one row an epoch: loss, validation accuracy, seconds.

    With a ``folder``, every epoch is saved there, a broken run goes on where it stopped, and the weights with the best
    validation accuracy (without ``validation``: the last ones) are kept as best.safetensors. ``loss(x, logits, y)``
    replaces the smoothed cross-entropy; ``on_step(share done)`` is called before each step; ``about`` is kept with
    the checkpoint (command, data copy). In several processes (:mod:`qlab.parallel`) each takes its share of a batch.
    """
    network.to(device, memory_format=torch.channels_last)
    first = parallel.place()[0] == 0
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, plan.rate, plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.momentum > 0
    )
    torch.manual_seed(plan.seed)
    history = _resume(folder, plan, network, optimizer, device)
    learner = parallel.together(network)
    for epoch in range(len(history), plan.epochs):
        start = time.perf_counter()
        mean_loss = _epoch(learner, train, plan, epoch, optimizer, device, progress and first, loss, on_step)
        row = {"epoch": epoch + 1, "loss": round(mean_loss, 4)}
        if validation is not None:
            row["validation"] = evaluate(network, validation, progress=False)
        row["seconds"] = round(time.perf_counter() - start, 1)
        history.append(row)
        if folder is not None and first:
            if validation is None or row["validation"] == max(r["validation"] for r in history):
                write_tensors(folder / "best.safetensors", network.state_dict())
            _checkpoint(folder, network, optimizer, {"plan": asdict(plan), "history": history, "about": about})
        parallel.wait()
    network.eval()
    return history


def _epoch(network, train, plan, epoch, optimizer, device, progress, loss, on_step) -> float:
    """One pass over the training pictures; the mean loss."""
    network.train()
    steps = math.ceil(len(train) / plan.batch)
    shrunk = epoch < plan.shrink * plan.epochs
    total = 0.0
    batches = train.batches(plan.batch, shuffle=True, seed=plan.seed * 100_003 + epoch, augment=True)
    bar = tqdm(batches, f"epoch {epoch + 1}/{plan.epochs}", steps, False, unit="step", delay=2, disable=not progress)
    for step, (x, y) in enumerate(bar):
        done = (epoch + step / steps) / plan.epochs
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(done)
        if on_step:
            on_step(done)
        pictures, processes = len(y), parallel.place()[1]
        if pictures < processes:
            continue  # the last few: not every process would get one
        x, y = (tensor.to(device) for tensor in parallel.share(x, y))
        if shrunk:
            x = F.interpolate(x, size=(SHRUNK, SHRUNK), mode="bilinear", antialias=True)
        logits = network(x)
        value = loss(x, logits, y) if loss else F.cross_entropy(logits, y, label_smoothing=plan.label_smoothing)
        value = value * (len(y) * processes / pictures)  # an average over processes, each as its share of the batch
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += float(value.detach())
        if not math.isfinite(total):
            raise ValueError(f"the loss became {total} in epoch {epoch + 1}, step {step + 1}: lower the learning rate")
    return parallel.total(total / steps, device) / parallel.place()[1]


def _checkpoint(folder: Path, network: nn.Module, optimizer, header: dict) -> None:
    """Everything that the next epoch needs: weights, momentum, and in the header the plan and what has happened."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = state["momentum_buffer"]
    write_tensors(folder / "last.safetensors", tensors, header)


def _resume(folder: Path | None, plan: Plan, network: nn.Module, optimizer, device: str) -> list[dict]:
    """Load the last checkpoint of the same plan, if there is one; the history so far."""
    path = folder / "last.safetensors" if folder is not None else None
    if path is None or not path.exists():
        return []
    tensors, header = read_tensors(path, device)
    if header["plan"] != asdict(plan):
        raise ValueError(f"{path} was trained with {header['plan']}, not with {asdict(plan)}: choose another folder")
    network.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("network.")})
    momentum = {int(n[9:]): {"momentum_buffer": t} for n, t in tensors.items() if n.startswith("momentum.")}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
    return header["history"]
