"""Calibration and the whole of post-training quantization in one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab import PerGroup, QConfig, QuantSpec, models

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(32, 3, 32, 32, generator=GENERATOR)


def test_one_call_is_prepare_calibrate_convert():
    torch.manual_seed(0)
    model = models.vgg().eval()
    batches = IMAGES.split(8)
    prepared = qlab.calibrate(qlab.prepare(model, None, IMAGES[:1]), batches)
    expected = qlab.convert(prepared, "reference")(IMAGES)
    assert torch.equal(qlab.ptq(model, batches, engine="reference")(IMAGES), expected)


def test_batches_may_be_inputs_pairs_or_a_generator():
    model = models.vgg().eval()
    labels = torch.zeros(8, dtype=torch.int64)
    forms = [
        IMAGES.split(8),
        [(x, labels) for x in IMAGES.split(8)],
        ([x, labels] for x in IMAGES.split(8)),
    ]
    outputs = [qlab.ptq(model, form, engine="reference")(IMAGES) for form in forms]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_calibration_sees_the_float_network_and_every_batch():
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)).eval()
    prepared = qlab.calibrate(qlab.prepare(model, QConfig.preset("w2a2", first_last=None), IMAGES), IMAGES.split(8))
    with torch.no_grad():
        hidden = model[0](IMAGES)
    grid = prepared.network.quantizers.get_submodule("0").qparams
    lowest, highest = (qlab.dequantize(torch.tensor(code), grid) for code in (grid.qmin, grid.qmax))
    assert abs(lowest - hidden.min()) <= grid.scale and abs(highest - hidden.max()) <= grid.scale


def test_a_second_calibration_starts_afresh():
    model = models.vgg().eval()
    prepared = qlab.calibrate(qlab.prepare(model), [100 * IMAGES])
    wide = prepared.network.quantizers.input.qparams.scale
    qlab.calibrate(prepared, [IMAGES])
    narrow = prepared.network.quantizers.input.qparams.scale
    assert torch.isclose(narrow * 100, wide, rtol=1e-4)


def test_calibration_restores_the_mode_even_when_it_fails():
    prepared = qlab.prepare(models.vgg()).train()

    def broken():
        yield IMAGES
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        qlab.calibrate(prepared, broken())
    assert prepared.training
    assert all(quantizer.mode == "quantize" for _, quantizer in prepared.quantizers())


@pytest.mark.parametrize(
    "call", [lambda b: qlab.calibrate(qlab.prepare(models.vgg()), b), lambda b: qlab.ptq(models.vgg(), b)]
)
def test_no_batch_is_an_error_that_says_what_to_give(call):
    with pytest.raises(ValueError, match=r"got no batch.*data.sample\(512\).batches\(64\)"):
        call([])


def test_nan_in_the_data_is_found_in_calibration():
    with pytest.raises(ValueError, match="(?i)nan"):
        qlab.ptq(models.vgg(), [IMAGES * float("nan")])


def test_weights_may_have_a_scale_for_every_group():
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerGroup(8))
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)).eval()
    x = torch.randn(4, 8, 4, 4)
    prepared = qlab.calibrate(qlab.prepare(model, QConfig(weight=spec, activation=None, first_last=None), x), [x])
    layers = dict(prepared.weighted())
    assert layers["0"].weight_quantizer.scale.shape == (8, 9) and layers["3"].weight_quantizer.scale.shape == (5, 4)
    for name, layer in layers.items():
        rounded = qlab.fake_quantize(model.get_submodule(name).weight, layer.weight_quantizer.qparams)
        model.get_submodule(name).weight.data = rounded
    torch.testing.assert_close(prepared(x), model(x))


def test_a_group_that_does_not_fit_names_the_layer():
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerGroup(16))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    prepared = qlab.prepare(model, QConfig(weight=spec, activation=None, first_last=None), IMAGES)
    with pytest.raises(ValueError, match="the weights of 0: group size 16 does not divide the 27 values a row"):
        qlab.calibrate(prepared, [IMAGES])
