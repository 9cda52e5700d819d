"""Parts of a detector's time add up to the whole, and a box has a twin only where there is one."""

from __future__ import annotations

import torch
from torch import nn

from qlab import detect
from qlab.course.lesson11 import measure
from qlab.detect import Boxes


class Slow(nn.Module):
    """The detector, some milliseconds later."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        for _again in range(4):
            said = self.network(x)
        return said


def test_what_makes_one_part_slower_shows_in_that_part_and_in_the_whole():
    network = detect.load()
    spent = measure.times_of_parts({"float": network, "slow": Slow(network)}, detect.Scene(4)()[0], rounds=5)
    assert {part for part, _name in spent} == {"normalizing", "network", "decoding", "whole"}
    assert (
        spent["network", "slow"] > 2 * spent["network", "float"]
        and spent["whole", "slow"] > 1.5 * spent["whole", "float"]
    )
    assert 0 < spent["decoding", "slow"] < 3 * spent["decoding", "float"]


def test_a_twin_has_the_class_and_the_place():
    corners = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    mine = Boxes(corners, torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.6, 0.4]))
    its = Boxes(torch.stack([corners[0] + 1, corners[1] + 15, corners[2]]), torch.tensor([0, 1, 1]), torch.ones(3))
    scores, twins = measure.found_too([mine], [its])
    assert scores.tolist() == mine.scores.tolist() and twins.tolist() == [True, False, False]
