"""What is minimized: labels, a teacher, the error of the weights, or a loss of one's own."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import calibrated
from torch import nn

from qlab import QConfig, qat
from qlab.qat.loss import TEMPERATURE


def test_distillation_pulls_towards_the_teacher_and_not_only_to_the_label(network):
    prepared, x = calibrated(network), torch.rand(4, 3, 32, 32)
    y, logits = torch.zeros(4, dtype=torch.long), torch.zeros(4, 2, requires_grad=True)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with torch.no_grad():
        answers = teacher(x) / TEMPERATURE
    loss = qat.Loss(prepared, teacher=teacher, distillation=1.0)
    value = loss(x, logits, y)
    expected = (answers.softmax(1) * (answers.log_softmax(1) - math.log(0.5))).sum(1).mean() * TEMPERATURE**2
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert qat.Loss(prepared, teacher=teacher, distillation=0.0)(x, logits, y).item() == pytest.approx(math.log(2))
    assert loss(x, teacher(x), y).item() == pytest.approx(0, abs=1e-6)


def test_the_penalty_is_the_relative_error_of_the_weights(network):
    prepared = calibrated(network)
    logits, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    with_penalty = qat.Loss(prepared, penalty=3.0)(None, logits, y).item()
    assert with_penalty == pytest.approx(math.log(2) + 3 * qat.weight_error(prepared).item())
    coarse = qat.weight_error(calibrated(network, QConfig.preset("w2a8", first_last=None)))
    assert 0 < qat.weight_error(prepared) < coarse < 1


def test_the_penalty_pulls_weights_onto_the_grid(network):
    prepared = calibrated(network)
    layer = dict(prepared.weighted())["conv2"]
    qat.weight_error(prepared).backward()
    off = layer.weight - layer.weight_quantizer(layer.weight)
    assert (torch.sign(layer.weight.grad) == torch.sign(off)).float().mean() > 0.95
