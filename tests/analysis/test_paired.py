"""Two networks on the same images: the difference, and how much of it may be chance."""

from __future__ import annotations

import math

import pytest
import torch

import qlab
from qlab import analysis


def test_the_difference_is_that_of_the_two_accuracies_and_its_error_that_of_drawing_images():
    """The error is what it claims: how much the difference scatters when the images are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(300, generator=generator) < 0.9
    second = first ^ (torch.rand(300, generator=generator) < 0.05)
    found = analysis.paired(first, second)
    assert found.difference == pytest.approx(100 * (second.float().mean() - first.float().mean()).item(), abs=1e-4)
    assert found.changed == int((first != second).sum())
    again = torch.randint(0, 300, (4000, 300), generator=generator)
    scatter = 100 * (second[again].float().mean(1) - first[again].float().mean(1)).std().item()
    assert found.error == pytest.approx(scatter, rel=0.05)


def test_images_that_both_get_right_or_wrong_only_make_the_difference_surer():
    first, second = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    few = analysis.paired(first, second)
    both_right = torch.ones(297, dtype=torch.bool)
    more = analysis.paired(torch.cat([first, both_right]), torch.cat([second, both_right]))
    assert few.changed == more.changed == 2 and few.difference == more.difference == 0
    assert more.error == pytest.approx(100 * math.sqrt(2) / 300)


def test_networks_that_agree_everywhere_do_not_differ():
    right = torch.tensor([True, False, True])
    assert analysis.paired(right, right) == analysis.Paired(0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.ones(3), torch.ones(3) > 0, r"first is torch.float32 \(3,\): expected bool \(N,\)"),
        (torch.ones(3) > 0, [True, True, False], r"second is list: expected bool"),
        (torch.ones(0) > 0, torch.ones(0) > 0, r"first is torch.bool \(0,\)"),
        (torch.ones(3, 1) > 0, torch.ones(3) > 0, r"first is torch.bool \(3, 1\)"),
        (torch.ones(3) > 0, torch.ones(4) > 0, "3 images and 4: pair what two networks say of the same images"),
    ],
)
def test_what_is_no_pair_is_refused(first, second, words):
    with pytest.raises(ValueError, match=words):
        analysis.paired(first, second)


def test_the_mean_of_the_hits_is_the_accuracy_and_the_order_that_of_the_images():
    data = qlab.data.shapes10("validation").sample(100)
    network = qlab.models.load("resnet20", data="shapes10")
    right = analysis.hits(network, data)
    assert right.dtype == torch.bool and right.shape == (100,)
    assert 100 * right.float().mean().item() == pytest.approx(qlab.evaluate(network, data))
    assert torch.equal(analysis.hits(network, data.subset(slice(90, 100)), batch_size=3), right[90:])


def test_a_network_that_gives_nan_is_refused():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    network[1].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="gave NaN"):
        analysis.hits(network, qlab.data.shapes10("validation").sample(10))
