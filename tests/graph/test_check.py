"""Networks as people write them: prepared and converted they compute what they compute in float, or are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import QConfig, models
from qlab.analysis import sqnr
from qlab.graph import check

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ENOUGH = 30.0  # dB that 8 bits leave of a small network with random weights


class Base(nn.Module):
    """Layers to make networks of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)
        for name, values in self.norm.named_buffers():
            if values.is_floating_point():
                nn.init.uniform_(values, 0.5, 1.5)

    def head(self, y):
        return self.fc(y.mean((2, 3)))


def decibel(model: nn.Module, x: torch.Tensor = X, qconfig: QConfig | None = None, engine: str = "reference") -> float:
    """What W8A8 leaves of the answers, in integers."""
    model = model.eval()
    before = copy.deepcopy(model.state_dict())
    int8 = qlab.ptq(model, [x], qconfig, engine)
    with torch.no_grad():
        expected, given = model(x), int8(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model was changed"
    return sqnr(expected, given)


class FunctionalInPlace(Base):
    def forward(self, x):
        y = self.conv(x)
        F.relu(y, inplace=True)  # what it gives is not used
        return self.head(self.second(y))


class ModuleInPlace(Base):
    def forward(self, x):
        y = self.conv(x)
        self.relu(y)
        return self.head(self.second(y))


class InPlaceBeforeASkip(Base):
    def forward(self, x):
        y = self.conv(x)
        z = self.second(self.relu(y))
        return self.head(z + y)  # y is what the relu left


class InPlaceArithmetic(Base):
    def forward(self, x):
        y = self.conv(x)
        y.mul_(0.1)
        y += 0.05
        y.clamp_(-0.02, 0.1)
        return self.head(self.second(y))


class InPlaceAddition(Base):
    def forward(self, x):
        y = self.conv(x)
        z = y
        z += self.second(y)
        return self.head(self.third(y))  # y is z


class Out(Base):
    def forward(self, x):
        y = self.conv(x)
        torch.mul(y, 0.3, out=y)
        return self.head(self.second(y))


class FunctionWithUnderscore(Base):
    def forward(self, x):
        y = self.conv(x)
        torch.relu_(y)
        F.elu_(y)
        return self.head(self.second(y))


class TorchsTutorial(nn.Module):
    """x.view(-1, 16 * 5 * 5), as in torch's own CIFAR tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class FloatView(Base):
    def forward(self, x):
        y = torch.sigmoid(self.conv(x))
        return self.head(self.second(y.view(y.size(0), 8, 8, 32).view(-1, 8, 16, 16)))


class TiedWeights(Base):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight

    def forward(self, x):
        y = self.relu(self.norm(self.second(self.conv(x))))
        return self.head(self.third(y))


class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning):
            self.conv = nn.utils.weight_norm(self.conv)
        self.second = nn.utils.spectral_norm(self.second)
        self.third = nn.utils.parametrizations.weight_norm(self.third)
        nn.utils.prune.l1_unstructured(self.fc, "weight", 0.3)

    def forward(self, x):
        return self.head(self.third(self.relu(self.norm(self.second(self.conv(x))))))


class LinearAndChannels(nn.Module):
    """BatchNorm1d over axis 1 of (N, C, L) behind a linear layer: its channels are not the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        nn.init.uniform_(self.norm.running_var, 0.2, 3.0)

    def forward(self, x):
        return self.last(self.norm(self.fc(x[:, 0, :12])))


class NoStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x):
        return self.head(self.second(self.relu(self.norm(self.conv(x)))))


class ByKeyword(Base):
    def forward(self, x):
        return self.head(self.second(input=self.relu(input=self.norm(input=self.conv(input=x)))))


class CatByAxis(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(16, 8, 3)

    def forward(self, x):
        y = self.relu(self.conv(x))
        return self.head(self.second(torch.cat((y, y * 2), axis=-3)))


class Divisor(Base):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, divisor_override=3)

    def forward(self, x):
        return self.head(self.second(self.pool(self.conv(x))))


class Twice(Base):
    def forward(self, x):
        y = self.conv(x)
        return self.head(y + y)


class Transposed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return self.head(self.second(self.up(y, output_size=(32, 32))))


class Recurrent(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x):
        state = (torch.zeros(1, x.shape[0], 8), torch.ones(1, x.shape[0], 8))
        y, (h, _) = self.lstm(self.conv(x)[:, 0], state)
        return self.fc(y[:, -1] + h[-1])


class Attention(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.where = nn.Parameter(torch.randn(1, 256, 8))

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2) + self.where
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.fc(y.mean(1))


class Crops(Base):
    """A U-Net's skip: cropped to what the other path has."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.up = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.third = nn.Conv2d(16, 8, 3)

    def forward(self, x):
        skip = self.relu(self.conv(x))
        y, places = self.pool(skip)
        y = self.up(self.second(y), places)[:, :, 1:-1, 1:-1]
        return self.head(self.third(torch.cat([skip[:, :, : y.shape[2], : y.shape[3]], y], 1)))


class Buffers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("offset", torch.randn(1, 3, 16, 16))

    def forward(self, x):
        return self.head(self.second(self.conv(x - self.offset) * self.gain))


class Optional(Base):
    def forward(self, x, mask=None, scale: float = 0.5):
        y = self.conv(x) if mask is None else self.conv(x * mask)
        return self.head(self.second(y * scale))


class Dropouts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5, inplace=True)

    def forward(self, x):
        y = F.dropout(self.drop(self.conv(x)), 0.3, self.training)
        F.relu(y, inplace=True)
        return self.head(self.second(y))


RIGHT = [
    FunctionalInPlace, ModuleInPlace, InPlaceBeforeASkip, InPlaceArithmetic, InPlaceAddition, Out,
    FunctionWithUnderscore, FloatView, TiedWeights, WeightNorm, LinearAndChannels, NoStatistics, ByKeyword, CatByAxis,
    Divisor, Twice, Transposed, Recurrent, Attention, Crops, Buffers, Optional, Dropouts,
]  # fmt: skip


@pytest.mark.parametrize("network", RIGHT)
def test_what_people_write_comes_out_right(network):
    assert decibel(network()) > ENOUGH


def test_torchs_own_tutorial_runs_on_every_engine():
    torch.manual_seed(0)
    x, net = torch.randn(8, 3, 32, 32), TorchsTutorial()
    for name, one in qlab.int8.engines.available().items():
        if one.usable:
            assert decibel(net, x, QConfig.w8a8(reduce_range=True), name) > ENOUGH, name


@pytest.mark.parametrize("network", [TiedWeights, WeightNorm])
def test_a_network_is_prepared_after_a_run_with_gradients_too(network):
    net = network().eval()
    net(X).sum().backward()
    assert decibel(net) > ENOUGH


class ThroughAView(Base):
    def forward(self, x):
        y = self.conv(x)
        y[:, :4].mul_(0.1)
        return self.head(self.second(y))


class ThroughAnAlias(Base):
    def forward(self, x):
        y = self.conv(x)
        z = y.flatten(1)
        F.relu(y, inplace=True)
        return self.fc(z[:, :8])


class OwnState(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.head(self.conv(x)) + self.calls


@pytest.mark.parametrize("network, words", [
    (ThroughAView, r"mul_, at .*test_check.py:\d+: `y\[:, :4\].mul_\(0.1\)`, changes .*read through another view .* later: compute a new tensor"),
    (ThroughAnAlias, r"relu, at .*changes a tensor in place that is read through another view \(flatten\)"),
    (OwnState, "does not compute what the network does"),
])  # fmt: skip
def test_what_depends_on_shared_memory_is_refused_by_name(network, words):
    with pytest.raises(ValueError, match=words):
        qlab.prepare(network().eval(), example=X)


class Hooked(Base):
    """A hook changes what a layer reads; a quantized layer would not have it."""

    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))

    def forward(self, x):
        return self.head(self.third(self.second(self.relu(self.norm(self.conv(x))))))


class Random(Base):
    def forward(self, x):
        return self.head(F.dropout(self.conv(x), 0.5, True))


class Clock(Base):
    """The trace sees the first call's number only."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.conv(x) * self.calls)


@pytest.mark.parametrize("network, words", [
    (Hooked, r"does not compute what the network does: -?[\d.]+ dB .*The first layer that differs is second, behind relu"),
    (Random, "gives other values each time"),
    (Clock, r"does not compute what the network does"),
])  # fmt: skip
def test_what_the_trace_cannot_see_is_found_before_any_work(network, words):
    with pytest.raises(ValueError, match=words):
        qlab.prepare(network().eval(), example=X)


def test_the_first_layer_that_differs_is_named(monkeypatch):
    """A fold that goes wrong in one layer of a real network."""
    from qlab.graph import fold

    right, seen = fold.fold_layer, []

    def wrong(layer, norm):
        right(layer, norm)
        seen.append(layer)
        if len(seen) == 5:
            layer.weight.data[0] *= 1.5

    monkeypatch.setattr(fold, "fold_layer", wrong)
    with pytest.raises(ValueError, match=r"first layer that differs is layer1.1.bn2, behind layer1.1.relu"):
        qlab.prepare(models.resnet20())


def test_the_integers_are_compared_with_the_fake_quantized_floats(monkeypatch):
    """An engine that computes something else is found in convert."""
    from qlab.int8.reference import Engine

    right = Engine.conv2d
    monkeypatch.setattr(Engine, "conv2d", lambda self, weight, *rest, **window: right(self, -weight, *rest, **window))
    with pytest.raises(ValueError, match=r"on engine 'reference' gives other answers .* where quantization itself"):
        qlab.ptq(FunctionalInPlace().eval(), [X], engine="reference")


def test_similarity_looks_into_every_structure():
    a = {"x": torch.ones(3), "y": [torch.zeros(2), 5]}
    assert check.similarity(a, copy.deepcopy(a)) == float("inf")
    assert check.similarity(a, {"x": torch.ones(3), "y": [torch.zeros(2), 6]}) == -float("inf")
    assert check.similarity(torch.ones(3), torch.ones(2)) == -float("inf")
    assert check.similarity(torch.ones(100), torch.ones(100) * 1.1) == pytest.approx(20, abs=1e-3)
    nan = torch.tensor([1.0, float("nan")])
    assert check.similarity(nan, nan.clone()) == float("inf") and check.similarity(nan, torch.ones(2)) == -float("inf")


def test_modes_of_every_module_are_as_before():
    """A frozen BatchNorm in a training network stays in eval mode, whatever looked at it."""
    net = FunctionalInPlace().train()
    net.norm.eval()
    prepared = qlab.prepare(net, example=X)
    assert not any(module.training for module in prepared.modules()) and net.training and not net.norm.training
    prepared.train()
    prepared.network.second.eval()
    qlab.calibrate(prepared, [X])
    qlab.correct_bias(prepared, [X], progress=False)
    qlab.analysis.layer_sqnr(prepared, [X], progress=False)
    qlab.analysis.sensitivity(prepared, [X], progress=False)
    assert prepared.training and not prepared.network.second.training


def test_a_look_at_a_prepared_network_changes_nothing():
    prepared = qlab.calibrate(qlab.prepare(NoStatistics().eval(), example=X), [X])
    state = copy.deepcopy(prepared.state_dict())
    prepared(X)
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())


@pytest.mark.parametrize("name", ["layer1.0.convv1", "Layer1", "fc "])
def test_a_misspelt_override_is_refused(name):
    with pytest.raises(ValueError, match=r"overrides names .*, which is no layer of this network: did you mean "):
        qlab.prepare(models.resnet20(), QConfig.w8a8(overrides={name: None}))
