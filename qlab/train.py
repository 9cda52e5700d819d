"""One training loop, for float networks and for quantization-aware training alike; and the accuracy of a network.

Stochastic gradient descent with Nesterov momentum and one cycle of the learning rate (Smith 2018), label smoothing
(Szegedy et al. 2016), shifted and mirrored images. The first part of the epochs sees the images shrunk to 24x24,
which halves the arithmetic and costs next to no accuracy (progressive resizing; Tan and Le 2021, section 4).
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from qlab import parallel
from qlab.files import load_weights, read_tensors, write_tensors
from qlab.modes import in_eval_mode

if TYPE_CHECKING:
    from qlab.data import Dataset

SHRUNK = 24  # pixels
LIMITS = {  # of a Plan's numbers, the least and the most
    "epochs": (1, 10**6), "batch_size": (1, 10**6), "lr": (0.0, 1e30), "momentum": (0.0, 0.999),
    "weight_decay": (0.0, 1.0), "label_smoothing": (0.0, 1.0), "shrink": (0.0, 1.0), "seed": (0, 2**31 - 1),
}  # fmt: skip
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOOKS = 50  # steps from one look at the loss to the next


@dataclass(frozen=True)
class Plan:
    """How to train. ``shrink`` is the share of the epochs on shrunken images; ``lr`` the peak learning rate.

    ``precision`` is that of the layers' arithmetic, "float32" or "bfloat16"; weights and their updates are always
    float32 (Micikevicius et al. 2018). With bfloat16 instructions (AMX) a step of ResNet-20 takes 0.6 of the time.
    Where activations have few bits its rounding moves values over a threshold to the next code: the gradient of a step
    with W2A2 points elsewhere than in float32, that with W1A32 does not. That is noise, with which the committed W1A1
    learned all the same.

    >>> plan = Plan(epochs=10, lr=0.2)
    >>> [round(plan.lr_at(done), 3) for done in (0, 0.25, 0.5, 1)]
    [0.008, 0.2, 0.15, 0.0]
    """

    epochs: int = 40
    batch_size: int = 128
    lr: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 2e-4
    label_smoothing: float = 0.05
    shrink: float = 0.6
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        for name, (least, most) in LIMITS.items():
            value, whole = getattr(self, name), isinstance(least, int)
            if not least <= value <= most or (whole and not isinstance(value, int)):
                raise ValueError(f"{name}={value}: expected {'a whole number ' * whole}from {least} to {most}")

    def lr_at(self, progress: float) -> float:
        """The learning rate when ``progress`` (0 to 1) of the training is done: up for a quarter, then down to 0."""
        warm = 0.25
        if progress < warm:
            return self.lr * (0.04 + 0.96 * progress / warm)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def evaluate(network: nn.Module, data: Dataset, *, batch_size: int = 64, progress: bool = True) -> float:
    """Top-1 accuracy in percent on every image of a data set.

    Of several processes (:mod:`qlab.parallel`) each one takes its share of the batches.

    Args:
        network: Float, prepared or int8; it gives one number a class.
        data: The images and their labels.
        batch_size: Images at once; the accuracy does not depend on it where ranges are constant.
        progress: Show a bar when it takes over 2 seconds.

    Raises:
        ValueError: An output is NaN, which an arg max would hide.

    >>> import qlab, torch
    >>> images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 0, 1])
    >>> data = qlab.data.Dataset(images, labels, ("cat", "dog"), "black squares", "test", (0.5,) * 3, (0.25,) * 3)
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    >>> network[1].bias.data = torch.tensor([1e6, 0.0])  # always says cat
    >>> qlab.evaluate(network, data)
    75.0
    """
    number, processes = parallel.place()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    correct = 0
    bar = tqdm(total=len(data), desc=f"{data.split} images", unit="img", leave=False, delay=2, disable=not progress)
    with torch.inference_mode(), in_eval_mode(network), bar:
        for x, y in islice(data.batches(batch_size), number, None, processes):
            logits = network(x.to(device))
            if logits.isnan().any():
                raise ValueError("the network gave NaN: look for a layer whose weights or ranges are not finite")
            correct += int((logits.argmax(1) == y.to(device)).sum())
            bar.update(len(y))
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
    on_step: Callable[[float], Hashable] | None = None,
    about: dict | None = None,
) -> list[dict]:
    """Train a network in place.

    A run that goes on draws what it would have drawn: each epoch has a seed of its own. In several processes
    (:mod:`qlab.parallel`) each takes its share of a batch. On a GPU the images are kept there too, and steps are
    recorded (:class:`Step`).

    Args:
        network: Any module that gives one number a class; with a ``loss`` of your own, anything.
        train: The images to train on, shifted and mirrored.
        validation: The images whose accuracy is measured after each epoch. None: nothing is measured.
        plan: Epochs, learning rate and so on.
        folder: Where every epoch is saved; a broken run goes on where it stopped, and the weights with the best
            validation accuracy (without ``validation``: the last ones) are kept as best.safetensors. None: nothing is
            saved.
        device: Where to train, "cpu" or "cuda".
        progress: Show a bar for an epoch that takes over 2 seconds.
        loss: ``loss(x, logits, y)`` in place of the smoothed cross-entropy.
        on_step: Called with the share done before each step. What it returns names the part of the training that the
            step belongs to, if steps differ.
        about: What is kept with the checkpoint beside the plan and the copy of the data.

    Returns:
        One row an epoch: "epoch" from 1, "loss" (its mean), "validation" (percent, where there is one), "seconds".

    Raises:
        ValueError: The loss is not finite, or another run has begun in ``folder``: another plan, other data, anything
            else in ``about`` but its "command".

    >>> import qlab, torch
    >>> _ = torch.manual_seed(0)
    >>> labels = torch.arange(64) % 2
    >>> images = (labels * 255)[:, None, None, None].expand(64, 3, 32, 32).to(torch.uint8)
    >>> data = qlab.data.Dataset(images, labels, ("black", "white"), "squares", "train", (0.5,) * 3, (0.5,) * 3)
    >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    >>> history = qlab.train.fit(network, data, data, qlab.train.Plan(epochs=3), progress=False)
    >>> [row["validation"] for row in history][-1]
    100.0
    """
    network.to(device, memory_format=torch.channels_last)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        train = train.to(device) if hasattr(train, "to") else train
        if validation is not None and hasattr(validation, "to"):
            validation = validation.to(device)
    first = parallel.place()[0] == 0
    optimizer = _optimizer(network, plan, device)
    about = {"source": getattr(train, "source", None), "images": len(train), **(about or {})}
    history = _resume(folder, plan, about, network, optimizer, device)
    loss = loss or (lambda x, logits, y: F.cross_entropy(logits, y, label_smoothing=plan.label_smoothing))
    dtype = PRECISIONS[plan.precision]
    step = Step(parallel.together(network), optimizer, loss, record=on_gpu and parallel.place()[1] == 1, dtype=dtype)
    for epoch in range(len(history), plan.epochs):
        start = time.perf_counter()
        mean_loss = _epoch(network, train, plan, epoch, optimizer, device, progress and first, step, on_step)
        row = {"epoch": epoch + 1, "loss": round(mean_loss, 4)}
        if validation is not None:
            row["validation"] = evaluate(network, validation, batch_size=1024 if on_gpu else 64, progress=False)
        row["seconds"] = round(time.perf_counter() - start, 1)
        history.append(row)
        if folder is not None and first:
            _checkpoint(folder, network, optimizer, {"plan": asdict(plan), "history": history, "about": about})
        parallel.wait()
    network.eval()
    return history


def _optimizer(network: nn.Module, plan: Plan, device: str) -> torch.optim.SGD:
    """Stochastic gradient descent for what is to be trained; its rate is a tensor, which a replayed step reads anew."""
    trained = [p for p in network.parameters() if p.requires_grad]
    lr, on_gpu = torch.tensor(plan.lr, device=device), device.startswith("cuda")
    options = {"weight_decay": plan.weight_decay, "nesterov": plan.momentum > 0, "fused": on_gpu}
    return torch.optim.SGD(trained, lr, plan.momentum, **options)


class Step:
    """One step of training: a batch, its labels and the loss's weight -> the loss.

    A step of so small a network is a thousand small kernels, and a GPU is done with each before Python has asked for
    the next. So with ``record`` a step that was taken three times is recorded as a CUDA graph, and replayed from then
    on: one request instead of a thousand. Steps are told apart by their shapes and by ``part``; one that cannot be
    recorded runs as before, with a warning.
    """

    WARM_UP = 3

    def __init__(
        self,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        record: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.learner, self.optimizer, self.loss, self.record, self.dtype = learner, optimizer, loss, record, dtype
        self.taken: Counter[tuple] = Counter()
        self.recorded: dict[tuple, Callable[[Tensor, Tensor], Tensor]] = {}

    def __call__(self, x: Tensor, y: Tensor, share: float = 1.0, part: Hashable = None) -> Tensor:
        key = x.shape, y.shape, share, part
        if key in self.recorded:
            return self.recorded[key](x, y)
        self.taken[key] += 1
        if self.record and self.taken[key] > self.WARM_UP:
            try:
                self.recorded[key] = self._record(x.clone(), y.clone(), share)
                return self.recorded[key](x, y)
            except RuntimeError as error:
                self.record = False
                words = f"this training cannot be recorded as a CUDA graph, so it is slower: {error}"
                warnings.warn(words, stacklevel=2)
        return self._run(x, y, share)

    def _run(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        mixed = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if mixed else None, enabled=mixed, cache_enabled=False):
            value = self.loss(x, self.learner(x), y).float() * share
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.detach()

    def _record(self, x: Tensor, y: Tensor, share: float) -> Callable[[Tensor, Tensor], Tensor]:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            value = self._run(x, y, share)

        def replay(new_x: Tensor, new_y: Tensor) -> Tensor:
            x.copy_(new_x)
            y.copy_(new_y)
            graph.replay()
            return value

        return replay


def _epoch(network, train, plan, epoch, optimizer, device, progress, step, on_step) -> float:
    """One pass over the training images; the mean loss."""
    network.train()
    steps = math.ceil(len(train) / plan.batch_size)
    shrunk = epoch < plan.shrink * plan.epochs
    total = torch.zeros((), device=device)
    seed = plan.seed * 100_003 + epoch
    torch.manual_seed(seed)  # for dropout: what an epoch draws does not depend on where the run was broken
    batches = train.batches(plan.batch_size, shuffle=True, seed=seed, augment=True)
    bar = tqdm(batches, f"epoch {epoch + 1}/{plan.epochs}", steps, False, unit="step", delay=2, disable=not progress)
    for number, (x, y) in enumerate(bar, start=1):
        done = (epoch + (number - 1) / steps) / plan.epochs
        for group in optimizer.param_groups:
            group["lr"].fill_(plan.lr_at(done))
        part = on_step(done) if on_step else None
        images, processes = len(y), parallel.place()[1]
        if images < processes:
            continue  # the last few: not every process would get one
        x, y = (tensor.to(device) for tensor in parallel.share(x, y))
        if shrunk:
            x = F.interpolate(x, size=(SHRUNK, SHRUNK), mode="bilinear", antialias=True)
        # an average over processes, each by its share of the batch
        total += step(x, y, len(y) * processes / images, part)
        if number % LOOKS == 0:
            _check_finite(float(total), epoch, number)
    _check_finite(float(total), epoch, steps)
    return parallel.total(float(total) / steps, device) / parallel.place()[1]


def _check_finite(total: float, epoch: int, number: int) -> None:
    """Looked at now and then: a GPU would have to wait for each look."""
    if not math.isfinite(total):
        raise ValueError(f"the loss became {total} in epoch {epoch + 1}, by step {number}: lower the learning rate")


def _checkpoint(folder: Path, network: nn.Module, optimizer, header: dict) -> None:
    """Everything that the next epoch needs: weights, momentum, and in the header the plan and what has happened.

    Where the newest epoch is the best so far (or nothing says which one is), its weights are kept apart too.
    """
    scores = [row["validation"] for row in header["history"] if "validation" in row]
    if not scores or scores[-1] == max(scores):
        write_tensors(folder / "best.safetensors", network.state_dict())
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = state["momentum_buffer"]
    write_tensors(folder / "last.safetensors", tensors, header)


def _resume(folder: Path | None, plan: Plan, about: dict, network: nn.Module, optimizer, device: str) -> list[dict]:
    """Load the last checkpoint of the same run, if there is one; the history so far. Another run is refused by name."""
    path = folder / "last.safetensors" if folder is not None else None
    if path is None or not path.exists():
        return []
    tensors, header = read_tensors(path, device)
    for name, kind in (("plan", dict), ("about", dict), ("history", list)):
        if not isinstance(header.get(name) or kind(), kind):
            raise ValueError(
                f"{path} is no checkpoint of a run (its {name} is {header[name]!r:.50}): choose another folder"
            )
    begun = {
        **asdict(Plan()),
        **(header.get("plan") or {}),
        **(header.get("about") or {}),
    }  # an older plan: the defaults
    here = {**asdict(plan), **about}
    for name in here | begun:
        before, now = begun.get(name), here.get(name)
        if name != "command" and before != now:
            raise ValueError(f"{path} is of a run with {name} {before!r}, here it is {now!r}: choose another folder")
    load_weights(network, {n[8:]: t for n, t in tensors.items() if n.startswith("network.")}, path)
    momentum = {int(n[9:]): {"momentum_buffer": t} for n, t in tensors.items() if n.startswith("momentum.")}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
    return header["history"]
