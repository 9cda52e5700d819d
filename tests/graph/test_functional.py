"""What is changed in place gives a new tensor, and is refused where others see it through a view."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from written import ENOUGH, Base, X, decibel

import qlab


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


@pytest.mark.parametrize(
    "network",
    [
        FunctionalInPlace,
        ModuleInPlace,
        InPlaceBeforeASkip,
        InPlaceArithmetic,
        InPlaceAddition,
        Out,
        FunctionWithUnderscore,
    ],
)
def test_what_is_changed_in_place_comes_out_right(network):
    assert decibel(network()) > ENOUGH


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


@pytest.mark.parametrize("network, words", [
    (ThroughAView, r"mul_, at .*test_functional.py:\d+: `y\[:, :4\].mul_\(0.1\)`, changes .*read through another view .* later: compute a new tensor"),
    (ThroughAnAlias, r"relu, at .*changes a tensor in place that is read through another view \(flatten\)"),
])  # fmt: skip
def test_what_depends_on_shared_memory_is_refused_by_name(network, words):
    with pytest.raises(ValueError, match=words):
        qlab.prepare(network().eval(), example=X)


def test_a_change_that_has_no_other_form_is_refused_by_its_line():
    class Copies(torch.nn.Module):
        def forward(self, x):
            y = x * 2
            y.copy_(x)
            return y

    words = r"copy_, at .*test_functional.py:\d+: `y\.copy_\(x\)`, changes a tensor in place and has no form that gives a new"
    with pytest.raises(ValueError, match=words):
        qlab.graph.trace.trace(Copies(), torch.zeros(1, 3, 4, 4))


class SetsAPart(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 0] = 0
        return y


class AddsToAPart(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, :2] += 1
        return y


@pytest.mark.parametrize("network, line", [(SetsAPart, r"y\[:, 0\] = 0"), (AddsToAPart, r"y\[:, :2\] \+= 1")])
def test_a_change_of_a_part_is_refused_by_its_line_with_what_to_write(network, line):
    words = rf"test_functional.py:\d+: `{line}` \(a part of a tensor is changed in place\). Compute a new tensor instead, .*mask"
    with pytest.raises(ValueError, match=words):
        qlab.graph.trace.trace(network(), torch.zeros(1, 3, 4, 4))
