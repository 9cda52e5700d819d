"""The challenge of the last lesson: a line to beat, a budget, and a board with what every attempt was measured to be."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

from torch import Tensor, nn

from qlab import analysis, bench
from qlab.analysis.paired import Paired
from qlab.calibration import calibrate
from qlab.course.language import _
from qlab.data.dataset import Dataset
from qlab.graph.convert import convert
from qlab.graph.prepare import Prepared, prepare
from qlab.qconfig import QConfig

SURE = 2  # standard errors: a difference beyond them is hardly chance


@dataclass(frozen=True)
class Budget:
    """What an attempt may weigh, in KiB, and how long it may take, in times of the line to beat."""

    kib: float
    time: float


@dataclass(frozen=True, repr=False)
class Score:
    """What was measured of an attempt.

    ``accuracy`` are its right answers in percent, ``gain`` the difference to the line to beat, on the same images.
    ``kib`` is what its file weighs, ``time`` what it takes (None: no integer kernel runs it).
    """

    name: str
    accuracy: float
    gain: Paired
    kib: float
    time: float | None
    budget: Budget

    @property
    def objections(self) -> list[str]:
        """What is over the budget, in words; empty when it counts."""
        said = []
        if self.kib > self.budget.kib:
            over = _("{kib:.1f} KiB are {over:.1f} over the budget of {budget:g}")
            said.append(over.format(kib=self.kib, over=self.kib - self.budget.kib, budget=self.budget.kib))
        if self.time is None:
            said.append(_("no integer kernel runs it, so it has no time"))
        elif self.time > self.budget.time:
            slow = _("{time:.2f} times the time of the line to beat; the budget is {budget:g}")
            said.append(slow.format(time=self.time, budget=self.budget.time))
        return said

    @property
    def beats(self) -> bool:
        """Is it within the budget, and better than the line by more than two standard errors?"""
        return not self.objections and self.gain.difference > SURE * self.gain.error

    def dominates(self, other: Score) -> bool:
        """No worse than ``other`` in right answers and in size, and better in one of them."""
        mine, others = (self.accuracy, -self.kib), (other.accuracy, -other.kib)
        return mine != others and all(a >= b for a, b in zip(mine, others))

    @property
    def verdict(self) -> str:
        """In words: over the budget, or how it stands to the line."""
        if self.objections:
            return "; ".join(self.objections)
        if self.beats:
            return _("within the budget, and it beats the line")
        if not self.gain.changed:
            return _("within the budget, and right on the same images as the line")
        if abs(self.gain.difference) <= SURE * self.gain.error:
            return _("within the budget; its difference to the line may be chance")
        return _("within the budget, and worse than the line")

    def __str__(self) -> str:
        time = "-" if self.time is None else f"{self.time:.2f}"
        measured = _(
            "{name}: {accuracy:.1f} % right, {gain:+.1f} ± {error:.1f} against the line, {kib:.1f} KiB, time {time}"
        )
        words = {"gain": self.gain.difference, "error": self.gain.error, "kib": self.kib, "time": time}
        return f"{measured.format(name=self.name, accuracy=self.accuracy, **words)}\n    {self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div role='status' style='white-space: pre-wrap'>{escape(str(self))}</div>"


class Board:
    """Your attempts beside the line to beat: all on the same images, all timed beside the line.

    >>> import qlab, torch
    >>> images, labels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 2
    >>> exam = qlab.data.Dataset(images, labels, ("a", "b"), "noise", "validation", (0.5,) * 3, (0.25,) * 3)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> line = qlab.calibrate(qlab.prepare(network, example=torch.zeros(1, 3, 8, 8)), exam.batches(40))
    >>> Board(line, exam, Budget(kib=105, time=1.3)).enter("the line again", line).gain.changed
    0
    """

    def __init__(self, line: Prepared, exam: Dataset, budget: Budget) -> None:
        self.line, self.exam, self.budget = line, exam, budget
        self.pace = convert(line)
        self.batch = next(exam.batches(32))[0]
        self._hits = {"": analysis.hits(self.pace, exam)}
        self._scores: dict[str, Score] = {}

    @property
    def accuracy(self) -> float:
        """Right answers of the line to beat, in percent."""
        return 100 * float(self._hits[""].float().mean())

    @property
    def scores(self) -> list[Score]:
        """What has been entered so far, in order."""
        return list(self._scores.values())

    def enter(self, name: str, prepared: Prepared) -> Score:
        """Measure a calibrated or trained network, as integers where kernels compute with its grids.

        A second attempt of the same name takes the place of the first. Raises TypeError for anything else than what
        qlab.prepare gave, RuntimeError before calibration.
        """
        if not isinstance(prepared, Prepared):
            raise TypeError(
                f"a {type(prepared).__name__} was entered; expected the network that qlab.prepare gave, calibrated, "
                "and not yet converted: its weights are counted there"
            )
        try:
            network = convert(prepared)
        except ValueError:  # a grid that no integer kernel knows
            network, time = prepared, None
        else:
            time = self._time(network)
        right = self._hits[name] = analysis.hits(network, self.exam)
        accuracy, gain = 100 * float(right.float().mean()), analysis.paired(self._hits[""], right)
        self._scores[name] = Score(name, accuracy, gain, stored_kib(prepared), time, self.budget)
        return self._scores[name]

    def compare(self, first: str, second: str) -> Paired:
        """The second attempt against the first, on the same images. Raises KeyError where there is no such attempt."""
        return analysis.paired(self._hits[first], self._hits[second])

    def _time(self, network: nn.Module) -> float:
        """The time of a batch, in times of that of the line: the median of the rounds' ratios. In each round the two
        are measured one after the other, so that what disturbs the computer disturbs both.
        """
        calls = {"line": partial(self.pace, self.batch), "entered": partial(network, self.batch)}
        rounds = bench.interleave(calls, progress=False)
        return statistics.median(mine / line for line, mine in zip(rounds["line"], rounds["entered"]))


def start_from(network: nn.Module, trained: Prepared, qconfig: QConfig, batches: Iterable[Tensor]) -> Prepared:
    """A trained network's weights under another configuration: a start for what you change.

    Grids whose spec stays the same are kept as they were learned; the others are chosen anew by calibration.

    Args:
        network: The float network from which ``trained`` came. It is not changed.
        trained: Such as qlab.qat.load gives. It is not changed.
        qconfig: The new configuration, for instance with fewer bits in some layers.
        batches: Images to calibrate with, as :func:`qlab.calibrate` takes them.

    >>> import torch, qlab
    >>> x, network = torch.rand(8, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> wide = QConfig.w8a8(first_last=None)
    >>> trained = qlab.calibrate(qlab.prepare(network, wide, x), [x])
    >>> changed = start_from(network, trained, QConfig.preset("w2a8", first_last=None), [x])
    >>> stored_kib(changed) < stored_kib(trained)
    True
    """
    batches = list(batches)
    first = batches[0][0] if isinstance(batches[0], (tuple, list)) else batches[0]
    prepared, old = prepare(network, qconfig, first[:1]), trained.state_dict()
    weights = {name: tensor for name, tensor in old.items() if "quantizer" not in name}
    prepared.load_state_dict(prepared.state_dict() | weights)
    calibrate(prepared, batches, progress=False)
    specs = {name: quantizer.spec for name, quantizer in trained.quantizers()}
    same = [f"network.{name}." for name, quantizer in prepared.quantizers() if specs.get(name) == quantizer.spec]
    kept = {name: tensor for name, tensor in old.items() if name.startswith(tuple(same))}
    prepared.load_state_dict(prepared.state_dict() | kept)
    return prepared


def stored_kib(prepared: Prepared) -> float:
    """KiB of all that a file must hold: the weights' codes, packed; 4 bytes for every other number.

    The others are scales, zero points, biases, tables of values, and the weights of layers left in float. So a scale
    for every weight is no way to cheat.
    """
    coded = {f"{name}.weight" for name, _layer in prepared.weighted()}
    others = sum(tensor.numel() for name, tensor in prepared.network.state_dict().items() if name not in coded)
    return (analysis.weight_bytes(prepared) + 4 * others) / 1024


def front(scores: Sequence[Score]) -> list[Score]:
    """The Pareto front: the scores that no other one dominates, the smallest network first."""
    kept = [score for score in scores if not any(other.dominates(score) for other in scores)]
    return sorted(kept, key=lambda score: score.kib)
