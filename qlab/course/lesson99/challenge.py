"""The challenge of the last lesson: what a quantized network gets right, what it weighs, and how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

from torch import nn

from qlab import analysis, bench
from qlab.calibration import ptq
from qlab.course.language import _, signed
from qlab.data.dataset import Dataset
from qlab.graph.convert import convert
from qlab.graph.prepare import Prepared
from qlab.train import evaluate


@dataclass(frozen=True)
class Budget:
    """What a submission may weigh, in KiB, and how long it may take, in times of the plain 8-bit network."""

    kib: float
    time: float


@dataclass(frozen=True, repr=False)
class Score:
    """What was measured of a network: right answers in percent, points lost, KiB, and the time (None: no kernel)."""

    name: str
    accuracy: float
    lost: float
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
            slow = _("{time:.2f} times the plain 8-bit network's time; the budget is {budget:g}")
            said.append(slow.format(time=self.time, budget=self.budget.time))
        return said

    def dominates(self, other: Score) -> bool:
        """No worse than ``other`` in right answers and in size, and better in one of them."""
        mine, others = (self.accuracy, -self.kib), (other.accuracy, -other.kib)
        return mine != others and all(a >= b for a, b in zip(mine, others))

    def __str__(self) -> str:
        time = "-" if self.time is None else f"{self.time:.2f}"
        measured = _("{name}: {accuracy:.1f} % right ({change} points against float), {kib:.1f} KiB, time {time}")
        verdict = "; ".join(self.objections) or _("within the budget")
        measured = measured.format(
            name=self.name, accuracy=self.accuracy, change=signed(-self.lost), kib=self.kib, time=time
        )
        return f"{measured}\n    {verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div role='status' style='white-space: pre-wrap'>{escape(str(self))}</div>"


class Judge:
    """Scores prepared networks on the same images, against the same float network and the same 8-bit one.

    ``exam`` are the images that count, ``calibration`` those with which the plain 8-bit network is made.
    """

    def __init__(self, network: nn.Module, exam: Dataset, calibration: Dataset, budget: Budget) -> None:
        self.exam, self.budget = exam, budget
        self.float_accuracy = evaluate(network, exam)
        self.pace = ptq(network, calibration.batches(64))
        self.batch = next(exam.batches(32))[0]

    def score(self, name: str, prepared: Prepared) -> Score:
        """Measure a calibrated or trained network, as integers where kernels compute with its grids.

        Raises TypeError for anything else than what qlab.prepare gave, RuntimeError before calibration.
        """
        if not isinstance(prepared, Prepared):
            raise TypeError(
                f"a {type(prepared).__name__} was submitted; expected the network that qlab.prepare gave, calibrated, "
                "and not yet converted: its weights are counted there"
            )
        try:
            network = convert(prepared)
        except ValueError:  # a grid that no integer kernel knows
            network, time = prepared, None
        else:
            time = self._time(network)
        accuracy = evaluate(network, self.exam)
        return Score(name, accuracy, self.float_accuracy - accuracy, stored_kib(prepared), time, self.budget)

    def _time(self, network: nn.Module) -> float:
        """The time of a batch, in times of that of the plain 8-bit network: the median of the rounds, in each of which
        the two are measured one after the other, so that what disturbs the computer disturbs both.
        """
        calls = {"plain": partial(self.pace, self.batch), "submitted": partial(network, self.batch)}
        rounds = bench.interleave(calls, progress=False)
        return statistics.median(mine / plain for plain, mine in zip(rounds["plain"], rounds["submitted"]))


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
