"""Training with rounding in a loop of one's own: what is converted is what was trained."""

from __future__ import annotations

import copy

import pytest
import torch
from stripes import stripes
from torch import nn
from torch.optim.swa_utils import AveragedModel

import qlab
from qlab import QConfig, qat
from qlab.analysis import sqnr

IMAGES, LABELS = next(stripes(64).batches(64))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def learning(net: nn.Module | None = None, method: str = "lsq", preset: str = "w4a4"):
    prepared = qlab.prepare(network() if net is None else net, QConfig.preset(preset))
    return qat.start(qlab.calibrate(prepared, [IMAGES]), [IMAGES], method)


def train(prepared, steps: int = 12, lr: float = 0.05) -> None:
    optimizer = torch.optim.SGD([p for p in prepared.parameters() if p.requires_grad], lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(IMAGES), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("method", qat.METHODS)
def test_what_is_converted_before_finish_is_the_trained_network(method):
    prepared = learning(method=method)
    train(prepared)
    prepared.eval()
    early = qlab.convert(prepared, "reference")
    with torch.no_grad():
        assert sqnr(prepared(IMAGES), early(IMAGES)) > 40
        assert torch.equal(qlab.convert(qat.finish(prepared), "reference")(IMAGES), early(IMAGES))


def test_start_and_finish_say_in_which_mode_they_leave_the_network():
    prepared = learning()
    assert all(module.training for module in prepared.modules())
    assert not any(module.training for module in qat.finish(prepared).modules())


def test_an_average_of_learned_scales_is_not_pulled_back():
    prepared = learning()
    average = AveragedModel(prepared)
    for _ in range(4):
        train(prepared, 6)
        prepared(IMAGES)  # holds the scales behind the last step
        average.update_parameters(prepared)
    scales = {name: p.detach().clone() for name, p in average.named_parameters() if name.endswith("scale")}
    with torch.no_grad():
        average.eval()(IMAGES)
    for name, p in average.named_parameters():
        if name in scales:
            assert torch.equal(p, scales[name]), name


def test_a_scale_that_is_none_is_refused_in_eval_mode():
    prepared = learning().eval()
    next(quantizer for _, quantizer in prepared.quantizers()).scale.data.fill_(-0.1)
    with pytest.raises(ValueError, match=r"a learned scale is -0.1, which no grid has: what wrote it\?"):
        prepared(IMAGES)


def test_a_copy_in_training_is_held_to_its_own_steps():
    prepared = learning()
    twin = copy.deepcopy(prepared)
    for _, quantizer in twin.quantizers():
        quantizer.scale.data.mul_(1.5)
    with torch.no_grad():
        twin(IMAGES)
    for (_, one), (_, other) in zip(prepared.quantizers(), twin.quantizers()):
        torch.testing.assert_close(other.scale.data, one.scale.data * 1.5)


@pytest.mark.parametrize("method", qat.METHODS)
def test_a_layer_that_is_frozen_does_not_train(method):
    net = network()
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    prepared = learning(net, method)
    layer = prepared.network.get_submodule("0")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    train(prepared)
    after = layer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(
        prepared.network.get_submodule("3").weight, learning(net, method).network.get_submodule("3").weight
    )


def test_grids_that_learn_are_not_calibrated():
    with pytest.raises(RuntimeError, match=r"grids of this network learn: qlab.qat.finish\(prepared\) ends that"):
        qlab.calibrate(learning(), [IMAGES])
