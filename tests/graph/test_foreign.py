"""Networks from elsewhere, written as people write them: right, or refused in words before any work is put into them."""

from __future__ import annotations

import dataclasses
import keyword
import threading
import typing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written import ENOUGH, Base, X, decibel

import qlab
from qlab.analysis import sqnr


class PoolOfAll(Base):
    """The window is as large as the map is."""

    def forward(self, x):
        y = self.conv(x)
        return self.fc(F.avg_pool2d(y, y.size()[2:]).flatten(1)) + self.fc(
            F.adaptive_avg_pool2d(y, self.second(y).shape[2:]).mean((2, 3))
        )


class Positions(Base):
    """For one image they have the shape of what they are added to."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.randn(1, 8, 16, 16))

    def forward(self, x):
        return self.head(self.second(self.conv(x) + self.where))


class MeanOfTheBatch(Base):
    def forward(self, x):
        y = self.conv(x)
        return self.head(self.second(y + y.mean(0, keepdim=True)))


class OtherTypes(Base):
    """Integers and booleans among the floats."""

    def forward(self, x):
        y = self.conv(x)
        ahead = torch.ones_like(y).cumsum(3).long()
        return self.head(self.third(torch.cat([y + ahead, ahead > 3], 1)[:, :8]))


class Windows(Base):
    """A view by the batch that the windows were cut from is no flattening of each."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(8 * 256, 5)

    def forward(self, x):
        n, y = x.shape[0], self.conv(x)
        y = y.view(n, 8, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 8, 8)
        return self.all(self.second(y).view(n, -1)) + self.fc(y.reshape(shape=(n, 8, 256)).mean(2))


class NamedAlike(Base):
    """F.relu(x) gets a layer of its own, not the name of the one that is called relu."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x):
        return self.head(self.relu(20 * self.second(F.relu(self.conv(x)))))


class Same(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)


class MadeOtherwise(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Same(3, 8, 3)


class CutBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(1, 8, 20, 20))

    def forward(self, x):
        y = self.conv(x)
        return self.head(self.second(y - self.offset[:, :, : y.size(2), : y.size(3)].expand(y.size(0), -1, -1, -1)))


class SetBuffer(Base):
    """A switch may still be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(True))

    def forward(self, x):
        return self.head(self.second(self.conv(x)) if self.ready else x)


class MadeInForward(Base):
    def forward(self, x):
        return nn.Softmax(dim=1)(self.head(self.second(nn.ReLU()(self.conv(x)))))


class Iterates(Base):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(16 * 256, 5)

    def forward(self, x, weights=(1.0, 2.0), mask=None):
        parts = list(self.conv(x).chunk(2, 1))
        parts.extend(part * weights[0] for part in self.second(torch.cat(parts, 1)).split(4, 1))
        y, number = torch.cat(parts, 1), 1
        for size in y.size()[1:]:
            number *= size
        return self.all(y.view(-1, number))


class Compiled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second = torch.compile(nn.Sequential(self.second, nn.ReLU()), backend="eager")


class Remembers(Base):
    """A list of what was computed with gradients, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list = []
        self(X)

    def forward(self, x):
        self.maps.append(self.conv(x))
        return self.head(self.second(self.maps[-1]))


class ReadsItsWeights(Base):
    """A tied decoder: what is folded into the encoder is not for it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm1d = nn.Linear(768, 32), nn.BatchNorm1d(32)
        nn.init.uniform_(self.norm1d.running_var, 0.2, 0.5)

    def forward(self, x):
        return F.linear(F.relu(self.norm1d(self.encoder(x.flatten(1)))), self.encoder.weight.t())


class PoolsWords(Base):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(16, 10)

    def forward(self, x):
        return F.max_pool2d(self.words(x.mean(1)), 2) + F.avg_pool2d(self.words(x.mean(1)), 2)


class AskedAsFloat(Base):
    """A quantizer cannot be called float: a module has that already."""

    def forward(self, x):
        return self.head(self.second(torch.sigmoid(self.conv(x)).double().float()))


RIGHT = [
    PoolOfAll, Positions, MeanOfTheBatch, OtherTypes, Windows, NamedAlike, MadeOtherwise, CutBuffer, SetBuffer, MadeInForward,
    Iterates, Compiled, Remembers, ReadsItsWeights, PoolsWords, AskedAsFloat,
]  # fmt: skip


@pytest.mark.parametrize("network", RIGHT)
def test_what_people_write_elsewhere_comes_out_right(network):
    assert decibel(network()) > ENOUGH


class OneAxis(Base):
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)).squeeze())


def test_one_image_whose_batch_axis_is_squeezed_away_is_served_like_many():
    network = OneAxis().eval()
    int8 = qlab.ptq(network, [X], engine="reference")
    for x in (X, X[:1]):
        assert int8(x).shape == network(x).shape and sqnr(network(x), int8(x)) > ENOUGH


@pytest.mark.parametrize("layer", [nn.Linear(16, 8), Same(3, 8, 3)])
def test_a_leaf_stays_in_float_whatever_it_is(layer):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    row = qlab.prepare(network, example=X, leaves=(type(layer),)).report().rows[1]
    assert row.layer == "1" and row.float_because


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    more: typing.Any = None


class Structured(Base):
    def forward(self, x):
        y = self.conv(x)
        return Answer(self.head(self.second(y)), [y, None])


def test_a_dataclass_is_an_answer_too():
    network = Structured().eval()
    given = qlab.ptq(network, [X], engine="reference")(X)
    assert sqnr(network(X).scores, given.scores) > ENOUGH and given.more[1] is None


class Lazy(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.LazyConv2d(8, 3)


class Locked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Called(Base):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(3, 8, 3)) if keyword.iskeyword(name) else setattr(
            self, name, nn.Conv2d(3, 8, 3)
        )

    def forward(self, x):
        return self.head(next(part for name, part in self.named_children() if name in ("graph", "for"))(x))


class Many(Base):
    def forward(self, *xs):
        return self.head(self.conv(xs[0]))


class Stray(Base):
    def forward(self, x):
        return self.head(self.second(nn.Conv2d(3, 8, 1)(x)))


class Replaced(Base):
    def __init__(self) -> None:
        super().__init__()
        own = self.second.forward
        self.second.forward = lambda x: own(x) * 2


class Answers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, inputs, scores: scores.softmax(1))


@pytest.mark.parametrize("network, words", [
    (Lazy, "second, a lazy layer, has no weights yet: run the network once"),
    (Locked, "cannot be copied, because of its lock .*take that off the network first"),
    (lambda: Called("graph"), "a part of this network is called 'graph', a name that .* needs: give it another"),
    (lambda: Called("for"), "a part of this network is called 'for'"),
    (Many, r"the network's forward takes \(\*xs\): expected one input"),
    (Stray, "calls a Conv2d that is no part of the network. Make it in __init__"),
    (Replaced, "second was given another forward from outside, which no graph runs"),
    (Answers, "The network has hooks, which no graph runs"),
    (lambda: Base().bfloat16().requires_grad_(False), "does not run through the network"),
])  # fmt: skip
def test_what_cannot_be_right_is_refused_by_prepare_in_words(network, words):
    with pytest.raises(ValueError, match=words):
        qlab.prepare(network().eval(), example=X)


def test_another_type_than_float32_is_refused_before_and_after():
    with pytest.raises(ValueError, match=r"the example is torch.float64: expected torch.float32.*model\).float\(\)"):
        qlab.prepare(Base().double(), example=X.double())
    prepared = qlab.calibrate(qlab.prepare(Base().eval(), example=X), [X])
    with pytest.raises(ValueError, match=r"conv.* is torch.float16: integers are made from torch.float32"):
        qlab.convert(prepared.half())


def test_single_images_are_no_batches():
    with pytest.raises(
        ValueError, match=r"a batch is torch.float32 \(3, 16, 16\): expected .*in batches from a DataLoader"
    ):
        qlab.calibrate(qlab.prepare(Base().eval(), example=X), list(X))


def test_autocast_around_everything_changes_nothing():
    expected = qlab.ptq(Base().eval(), [X], engine="reference")(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(qlab.ptq(Base().eval(), [X], engine="reference")(X), expected)


def test_networks_are_prepared_in_several_threads_at_once_while_others_run():
    network, prepared = Base().eval(), []
    expected = network(X)

    def work(number: int) -> bool:
        if number % 2:
            prepared.append(qlab.prepare(network, example=X))
        return torch.equal(network(X), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16))) and len(prepared) == 8


def test_as_many_words_as_there_are():
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    words = torch.randn(8, 20, 6, generator=torch.Generator().manual_seed(0))
    int8 = qlab.ptq(network, [words], engine="reference")
    assert sqnr(network(words[:2, :13]), int8(words[:2, :13])) > ENOUGH


def test_weights_in_another_order_of_memory_are_the_same_weights():
    network = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 5))
    network[2].weight = nn.Parameter(torch.randn(8, 5).t())
    x = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
    prepared = qlab.calibrate(qlab.prepare(network, example=x), [x])
    for engine in qlab.int8.engines.available():
        assert sqnr(network(x), qlab.convert(prepared, engine)(x)) > ENOUGH, engine
