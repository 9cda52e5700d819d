"""Images out of a network's BatchNorms, with which it can be calibrated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab import QConfig, datafree
from qlab.datafree import Statistics, natural_noise

SHAPE = (3, 12, 12)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that was trained on images of its own kind, as its BatchNorms see them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(40):
            network.train()(real(32))
    return network.eval()


def real(count: int) -> torch.Tensor:
    """Stripes of one colour: far from noise."""
    colour = torch.randn(count, 3, 1, 1)
    return colour * torch.sin(torch.arange(12.0)).reshape(1, 1, 12, 1).expand(count, 1, 12, 12) * 2


def distance(model: nn.Module, x: torch.Tensor) -> float:
    with Statistics(model) as statistics, torch.no_grad():
        return float(statistics.distance(x))


def test_distilled_images_match_the_statistics_far_better_than_noise(model):
    batch = datafree.images(model, count=32, steps=60, shape=SHAPE, progress=False)[0]
    noise = natural_noise(batch.shape, torch.Generator().manual_seed(0))
    for other in (noise, torch.randn_like(batch)):
        assert distance(model, batch) < 0.2 * distance(model, other)


def test_their_activations_have_the_ranges_of_real_ones(model):
    found = datafree.images(model, count=64, steps=60, shape=SHAPE, progress=False)
    scales = {}
    for name, batches in (("distilled", found), ("real", [real(64)]), ("noise", [torch.randn(64, *SHAPE)])):
        prepared = qlab.calibrate(qlab.prepare(model, QConfig.w8a8(), found[0][:1]), batches, progress=False)
        scales[name] = torch.stack(
            [q.qparams.scale for n, q in prepared.quantizers() if n.startswith("quantizers.")]
        ).log()
    # the input itself is left out: nothing is known of it
    off = {name: float((scale - scales["real"])[1:].abs().mean()) for name, scale in scales.items()}
    assert off["distilled"] < 0.6 * off["noise"]


def test_batches_have_the_asked_number_and_form(model):
    batches = datafree.images(model, count=5, steps=1, shape=SHAPE, batch_size=2, progress=False)
    assert [tuple(x.shape) for x in batches] == [(2, *SHAPE), (2, *SHAPE), (1, *SHAPE)]
    for x in batches:
        assert x.dtype == torch.float32 and not x.requires_grad
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_same_seed_gives_the_same_images_and_the_model_stays_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b, c = (datafree.images(model, 2, 2, seed, shape=SHAPE, progress=False)[0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False)])
def test_without_statistics_there_is_nothing_to_distil(norm):
    with pytest.raises(ValueError, match="Sequential has no BatchNorm that keeps running statistics.*real ones"):
        datafree.images(nn.Sequential(nn.Conv2d(3, 4, 1), norm))


@pytest.mark.parametrize("options", [{"count": 0}, {"steps": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(model, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0.*expected 1 or more"):
        datafree.images(model, **options)


def test_natural_noise_has_more_power_in_low_frequencies():
    x = natural_noise((16, 3, 32, 32), torch.Generator().manual_seed(0))
    power = torch.fft.rfft2(x).abs().square().mean((0, 1))
    assert power[1, 1] > 20 * power[16, 16]
    assert abs(float(x.mean())) < 1e-5 and abs(float(x.std()) - 1) < 1e-5
