"""The graph proves itself: what people write passes, and what the trace cannot see is found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written import ENOUGH, Base, X, decibel

import qlab
from qlab import models
from qlab.graph import check


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


@pytest.mark.parametrize("network", [Divisor, Twice, Transposed, Recurrent, Attention, Crops, Buffers])
def test_what_people_write_comes_out_right(network):
    assert decibel(network()) > ENOUGH


class OwnState(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.head(self.conv(x)) + self.calls


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
    (OwnState, "does not compute what the network does"),
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


class OneBatchSize(Base):
    """What the trace sees holds for the example's batch alone."""

    def forward(self, x):
        count = 1 if isinstance(x, torch.fx.Proxy) else len(x)
        return self.head(self.conv(x).reshape(count, 8, 16, 16))


def test_a_graph_for_one_batch_size_of_a_network_for_all_is_refused(capfd):
    words = r"the traced network fails on a batch of shape \(2, 3, 16, 16\), which the network itself takes: shape .*leaves="
    with pytest.raises(ValueError, match=words):
        qlab.prepare(OneBatchSize().eval(), example=X[:1])
    assert capfd.readouterr().err == ""  # the words are in the error


def test_a_network_for_one_batch_size_alone_is_not_asked_for_others():
    class Fixed(Base):
        def forward(self, x):
            return self.head(self.conv(x).reshape(len(X), 8, 16, 16))

    assert qlab.prepare(Fixed().eval(), example=X).report()


@pytest.mark.parametrize("part", ["fold.fold_layer", "equalize.equalize_pair"])
def test_what_is_equalized_proves_itself_too(monkeypatch, part):
    """Before and after: a fold that goes wrong, and channels that are scaled in one of two layers alone."""
    from qlab.graph import equalize, fold

    where, name = ({"fold": fold, "equalize": equalize}[part.split(".")[0]], part.split(".")[1])
    right, calls = getattr(where, name), []

    def wrong(first, second):
        given = right(first, second)
        first.weight.data[0] *= 1 if calls else 1.5
        calls.append(first)
        return given

    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.Flatten()
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    assert qlab.prepare(network, example=X, equalize=True).report()  # though a relu6 becomes a relu
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(ValueError, match="does not compute what the network does.* first layer that differs is "):
        qlab.prepare(network, example=X, equalize=True)


def test_the_integers_are_compared_with_the_fake_quantized_floats(monkeypatch):
    """An engine that computes something else is found in convert."""
    from qlab.int8.reference import Engine

    right = Engine.conv2d
    monkeypatch.setattr(Engine, "conv2d", lambda self, weight, *rest, **window: right(self, -weight, *rest, **window))
    with pytest.raises(ValueError, match=r"on engine 'reference' gives other answers .* where quantization itself"):
        qlab.ptq(Base().eval(), [X], engine="reference")


def test_similarity_looks_into_every_structure():
    a = {"x": torch.ones(3), "y": [torch.zeros(2), 5]}
    assert check.similarity(a, copy.deepcopy(a)) == float("inf")
    assert check.similarity(a, {"x": torch.ones(3), "y": [torch.zeros(2), 6]}) == -float("inf")
    assert check.similarity(torch.ones(3), torch.ones(2)) == -float("inf")
    assert check.similarity(torch.ones(100), torch.ones(100) * 1.1) == pytest.approx(20, abs=1e-3)
    nan = torch.tensor([1.0, float("nan")])
    assert check.similarity(nan, nan.clone()) == float("inf") and check.similarity(nan, torch.ones(2)) == -float("inf")
