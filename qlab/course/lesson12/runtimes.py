"""A network's file in onnxruntime: its scores, and how far they are from another engine's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlab.analysis import sqnr
from qlab.course.language import _


def in_onnxruntime(path: Path, x: Tensor, integer_kernels: bool = True) -> Tensor:
    """The scores that onnxruntime gives; without integer kernels it computes node by node, in float."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not integer_kernels:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.contiguous().numpy()})[0])


@dataclass(frozen=True)
class Agreement:
    """How far two engines' scores of the same images agree: shares in percent, the largest difference in steps."""

    answers: float
    scores: float
    steps: int
    decibel: float

    def __str__(self) -> str:
        words = _(
            "same answer on {answers:.1f} %, same score {scores:.1f} %, at most {steps} steps apart, SQNR {db:.1f} dB"
        )
        return words.format(answers=self.answers, scores=self.scores, steps=self.steps, db=self.decibel)


def agreement(first: Tensor, second: Tensor, step: float) -> Agreement:
    """Two engines' scores (N, classes), of which one ``step`` is a code of the last grid.

    >>> print(agreement(torch.tensor([[0.0, 1.0], [1.0, 0.5]]), torch.tensor([[0.0, 1.0], [1.0, 1.5]]), 0.5))
    same answer on 50.0 %, same score 75.0 %, at most 2 steps apart, SQNR 3.5 dB
    """
    apart = torch.round((first - second) / step).abs()
    answers = float((first.argmax(1) == second.argmax(1)).float().mean())
    scores = float((apart == 0).float().mean())
    return Agreement(100 * answers, 100 * scores, int(apart.max()), sqnr(first, second))
