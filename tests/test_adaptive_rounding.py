"""AdaRound: up or down as the layer's output wants it, on the grid that is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, PerGroup, PerTensor, QConfig, adaround, qconfig
from qlab.adaptive_rounding import Reconstruction, learn, rectified_sigmoid
from qlab.graph.run import Stop, walk

GENERATOR = torch.Generator().manual_seed(0)
# inputs as behind a relu, neighbours alike: errors of weights that see about the same do not average out
IMAGES = F.avg_pool2d(torch.rand(64, 4, 10, 10, generator=GENERATOR), 3, 1)
W3 = QConfig.preset("w3a8", first_last=None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False), nn.ReLU6(),
        nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(72, 5),
    ).eval()  # fmt: skip


def calibrated(granularity=PerChannel(0), model: nn.Module | None = None, weight=W3.weight):
    weight = replace(weight, granularity=granularity)
    qconfig = replace(W3, weight=weight)
    prepared = qlab.prepare(model or network(), qconfig, IMAGES)
    return qlab.calibrate(prepared, IMAGES.split(32), progress=False)


def first_stop(**options) -> tuple[Stop, nn.Module]:
    """A layer alone, with its float output as target."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, **options)
    prepared = calibrated(model=nn.Sequential(layer).eval())
    return next(iter(walk(prepared, IMAGES.split(32)))), layer


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(4)])
def test_the_weights_end_up_on_the_grid_next_to_where_they_were(granularity):
    # groups of 4 divide every row but the depthwise one's
    model = (
        network()
        if granularity != PerGroup(4)
        else nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    )
    prepared = calibrated(granularity, model)
    before = {name: layer.weight.detach().clone() for name, layer in prepared.weighted()}
    grids = {name: layer.weight_quantizer.qparams for name, layer in prepared.weighted()}
    assert adaround(prepared, IMAGES.split(32), steps=60, progress=False) is prepared
    moved = 0
    for name, layer in prepared.weighted():
        qparams = layer.weight_quantizer.qparams
        assert qparams == grids[name], "AdaRound takes the grid, it does not choose one"
        assert torch.equal(qlab.fake_quantize(layer.weight, qparams), layer.weight)
        view, scale = qparams.granularity.align(before[name], qparams.scale)
        assert ((layer.weight.detach().reshape(view.shape) - view).abs() < 1.001 * scale).all()
        moved += int((layer.weight != qlab.fake_quantize(before[name], qparams)).sum())
    assert moved > 10


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"groups": 2, "stride": 2, "padding": 1}, {"dilation": 2}])
def test_the_patches_compute_what_the_layer_computes(options):
    stop, layer = first_stop(**options)
    problem = Reconstruction(stop, torch.Generator().manual_seed(0), layer.bias.detach())
    outputs = problem.outputs(layer.weight.detach())
    torch.testing.assert_close(outputs, problem.targets, atol=1e-2, rtol=0)  # the inputs are rounded to 8 bits
    assert problem.targets.shape[:1] == (layer.groups,) and outputs.std() > 0.1


def test_learned_rounding_errs_far_less_than_nearest_on_the_layers_output():
    stop, layer = first_stop()
    problem = Reconstruction(stop, torch.Generator().manual_seed(0), layer.bias.detach())
    weight, qparams = layer.weight.detach(), stop.layer.weight_quantizer.qparams
    nearest = qlab.fake_quantize(weight, qparams)
    learned = learn(problem, weight, qparams, steps=400)
    assert problem.error(learned) < 0.6 * problem.error(nearest)
    assert (learned - weight).square().sum() > (nearest - weight).square().sum(), "nearest is best for weights alone"


def test_rounding_is_never_worse_than_nearest():
    stop, layer = first_stop()
    problem = Reconstruction(stop, torch.Generator().manual_seed(0), layer.bias.detach())
    weight, qparams = layer.weight.detach(), stop.layer.weight_quantizer.qparams
    learned = learn(problem, weight, qparams, steps=1)
    assert problem.error(learned) <= problem.error(qlab.fake_quantize(weight, qparams))


def test_the_whole_network_comes_nearer_to_the_float_one():
    model, prepared = network(), calibrated()
    with torch.no_grad():
        before = (prepared(IMAGES) - model(IMAGES)).square().mean()
        adaround(prepared, [(IMAGES, torch.zeros(64))], steps=200, progress=False)
        after = (prepared(IMAGES) - model(IMAGES)).square().mean()
    assert after < 0.3 * before


def test_what_the_relu_cuts_off_does_not_count():
    stop, layer = first_stop()
    weight = layer.weight.detach()
    for activation in ("", "relu", "relu6"):
        problem = Reconstruction(replace(stop, activation=activation), torch.Generator().manual_seed(0), None)
        problem.targets = problem.targets - 100
        problem.bias = problem.bias - 200
        assert (problem.error(weight) == 0) == (activation != "")


def test_the_mean_error_that_is_left_goes_into_the_bias():
    prepared = calibrated()
    adaround(prepared, [IMAGES], steps=20, progress=False)
    with torch.no_grad():
        for stop in walk(prepared, [IMAGES]):
            off = (stop.layer(stop.inputs[0]) - stop.targets[0]).flatten(2 if stop.targets[0].ndim == 4 else 1)
            assert off.transpose(0, 1).flatten(1).mean(1).abs().max() < 0.02 * stop.targets[0].std()


def test_the_same_seed_rounds_the_same_way_and_a_second_call_starts_afresh():
    prepared = calibrated()
    weights = []
    for _ in range(2):
        adaround(prepared, [IMAGES], steps=20, seed=3, progress=False)
        weights.append([layer.weight.detach().clone() for _, layer in prepared.weighted()])
    assert all(map(torch.equal, *weights))


def test_the_integers_are_those_that_were_decided():
    prepared = adaround(calibrated(), [IMAGES], steps=20, progress=False)
    layer = dict(prepared.weighted())["0"]
    codes = layer.weight.detach() / layer.weight_quantizer.qparams.scale.reshape(-1, 1, 1, 1)
    int8 = qlab.convert(prepared, "reference")
    found = next(step for step in int8.layers if step.name == "0").weight
    assert torch.equal(found.float(), codes.round())
    torch.testing.assert_close(int8(IMAGES), prepared(IMAGES), atol=0.1, rtol=0.1)


def test_the_rectified_sigmoid_reaches_both_ends_and_is_monotone():
    v = torch.linspace(-6, 6, 101)
    h = rectified_sigmoid(v)
    assert h[0] == 0 and h[-1] == 1 and (h.diff() >= 0).all()


def test_messages():
    with pytest.raises(ValueError, match="steps=0: expected 1 or more"):
        adaround(calibrated(), [IMAGES], steps=0)
    with pytest.raises(ValueError, match="got no batch"):
        adaround(calibrated(), [])
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        adaround(qlab.prepare(network(), W3, IMAGES), [IMAGES])
    with pytest.raises(ValueError, match="0 has weights on Ternary.*expected a QuantSpec"):
        adaround(calibrated(weight=qconfig.Ternary()), [IMAGES])
