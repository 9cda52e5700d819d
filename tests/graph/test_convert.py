"""From fake-quantized floats to integers: the same answers, in integers from end to end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from zoo import Zoo

import qlab
from qlab import PerChannel, PerGroup, QConfig, QuantSpec, models
from qlab.int8.modules import Float, Quantize, WeightOnly
from qlab.qconfig import Binary, Ternary

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def both(model: nn.Module, qconfig: QConfig | None = None, engine: str = "reference", **options):
    """The prepared and the integer form of a network, calibrated on the same images."""
    prepared = qlab.calibrate(qlab.prepare(model.eval(), qconfig, IMAGES[:1], **options), [IMAGES])
    return prepared.eval(), qlab.convert(prepared, engine)


def steps_apart(prepared, int8) -> int:
    """How many codes of the output grid the two forms differ by, at most."""
    with torch.no_grad():
        difference = (prepared(IMAGES) - int8(IMAGES)).abs().max()
    return round(float(difference / int8.program.grids[-2].scale))


def ops(int8) -> list[str]:
    return [int8.layers[step.layer].op for step in int8.program.steps]


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("preset", ["w8a8", "w4a4"])
def test_the_integer_network_says_what_the_prepared_one_says(name, preset):
    torch.manual_seed(1)
    prepared, int8 = both(models.ARCHITECTURES[name](), QConfig.preset(preset))
    with torch.no_grad():
        a, b = prepared(IMAGES), int8(IMAGES)
    assert (a - b).norm() < (0.02 if preset == "w8a8" else 0.1) * a.norm()
    assert "float" not in ops(int8) and ops(int8).count("quantize") == 1
    assert not any(tensor.is_floating_point() and tensor.ndim > 1 for tensor in int8.state_dict().values())


def test_every_kind_of_layer_has_an_integer_form():
    torch.manual_seed(0)
    prepared, int8 = both(Zoo())
    assert steps_apart(prepared, int8) <= 3
    kinds = ops(int8)
    for op in ("conv2d", "linear", "add", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten"):
        assert op in kinds
    assert (kinds.count("float"), kinds.count("quantize"), kinds.count("dequantize")) == (1, 2, 2)


@pytest.mark.parametrize("name", ["layer1.1.conv2", "fc", "conv1", "layer2"])
def test_a_layer_left_in_float_is_computed_in_float(name):
    prepared, int8 = both(models.resnet20(), QConfig.w8a8(overrides={name: None}))
    floats = [layer.name for layer in int8.layers if isinstance(layer, Float)]
    assert floats and set(floats) <= set(int8.report().in_float)
    with torch.no_grad():
        a, b = prepared(IMAGES), int8(IMAGES)
    assert (a - b).norm() < 0.02 * a.norm()


def test_weights_alone_are_kept_as_integers_and_computed_in_float():
    prepared, int8 = both(models.resnet20(), QConfig.preset("w8a32"))
    assert sum(isinstance(layer, WeightOnly) for layer in int8.layers) == 22
    assert not any(isinstance(layer, Quantize) for layer in int8.layers)
    with torch.no_grad():
        torch.testing.assert_close(int8(IMAGES), prepared(IMAGES))


def test_the_program_reads_as_one_flat_function():
    _, int8 = both(models.resnet20())
    lines = int8.source.splitlines()
    assert lines[0] == "def program(v0):" and lines[1].startswith("    v1 = quantize_0(v0)")
    assert lines[-1].startswith("    return v")
    assert "conv2d_add_" in int8.source, "the reference fuses convolution and addition"


def test_an_engine_that_cannot_fuse_rounds_between_convolution_and_addition(monkeypatch):
    prepared, int8 = both(models.resnet20())
    monkeypatch.setattr(type(int8._engine), "fuses_add", False)
    unfused = int8.on("reference")
    assert "conv2d_add_" not in unfused.source
    with torch.no_grad():
        other = (prepared(IMAGES) - unfused(IMAGES)).norm()
        same = (prepared.fuse_additions(False)(IMAGES) - unfused(IMAGES)).norm()
        again = (prepared.fuse_additions(True)(IMAGES) - int8(IMAGES)).norm()
    assert same < 0.8 * other, "told not to fuse, the prepared network rounds where the engine does"
    assert again < 0.8 * other


def test_the_same_network_moves_to_another_engine():
    _, int8 = both(models.resnet20())
    other = int8.on("reference")
    assert other.engine == "reference" and other.reason == "asked for"
    assert torch.equal(other(IMAGES), int8(IMAGES))


def test_auto_says_what_it_picked_and_why():
    _, int8 = both(models.resnet20(), QConfig.w8a8(reduce_range=True), engine="auto")
    assert int8.engine in int8.report().headline and int8.reason in int8.report().headline
    assert int8.reason != "asked for"


def test_a_quarter_of_the_size_is_left():
    model = models.resnet20()
    _, int8 = both(model)
    assert int8.size_bytes < 0.27 * sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_an_input_that_does_not_fit_is_refused():
    _, int8 = both(models.resnet20())
    for wrong in (IMAGES.double(), IMAGES[:, :1], torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"the input is .*this network takes float32 \(N, 3, 32, 32\), normalized"):
            int8(wrong)


def test_only_a_prepared_and_calibrated_network_is_converted():
    with pytest.raises(TypeError, match="convert takes what qlab.prepare gave, not a ResNet"):
        qlab.convert(models.resnet20())
    with pytest.raises(RuntimeError, match="has not been calibrated"):
        qlab.convert(qlab.prepare(models.resnet20()))


def by_axis(spec, conv: int, linear: int, **options) -> QConfig:
    """8-bit activations; weights per channel of one axis in convolutions, of another in linear layers."""
    convolutions, linears = (dataclasses.replace(spec, granularity=PerChannel(axis)) for axis in (conv, linear))
    return QConfig(convolutions, overrides={nn.Linear: QConfig(linears, **options)}, first_last=None, **options)


@pytest.mark.parametrize("spec", [QConfig.w8a8().weight, QConfig.w4a8().weight, Binary(), Ternary()])
@pytest.mark.parametrize("options", [{}, {"activation": None}])
def test_the_first_axis_counted_from_the_end_gives_the_same_integers(spec, options):
    torch.manual_seed(0)
    model = Zoo()
    (front, front_int8), (end, end_int8) = (both(model, by_axis(spec, *axes, **options)) for axes in ((0, 0), (-4, -2)))
    for (name, a), (_, b) in zip(front.weighted(), end.weighted(), strict=True):
        assert a.weight_quantizer.spec == b.weight_quantizer.spec, name
    assert torch.equal(front(IMAGES), end(IMAGES)) and torch.equal(front_int8(IMAGES), end_int8(IMAGES))
    tensors, others = front_int8.state_dict(), end_int8.state_dict()
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert str(front_int8.report()) == str(end_int8.report())


@pytest.mark.parametrize("spec", [QConfig.w8a8().weight, Binary(), Ternary()])
def test_a_scale_for_another_axis_is_refused_by_name(spec):
    for axes, layer, axis in (((-1, 0), "stem", 3), ((0, -1), "fc1", 1)):
        message = rf"{layer}: weights of . bits.*PerChannel\(axis={axis}\) have no integer kernel.*PerChannel\(0\)"
        with pytest.raises(ValueError, match=message):
            both(Zoo(), by_axis(spec, *axes))


def test_an_axis_that_a_layer_does_not_have_is_refused_before_calibration():
    with pytest.raises(
        ValueError, match=r"fc1: axis -4 is not in a tensor of shape \(12, 24\).*Choose PerChannel\(0\)"
    ):
        qlab.prepare(Zoo(), by_axis(QConfig.w8a8().weight, -4, -4), IMAGES[:1])
    activation = QuantSpec(8, granularity=PerChannel(3))
    with pytest.raises(ValueError, match=r"flatten: axis 3 is not in a tensor of shape \(1, 24\).*Choose PerChannel"):
        qlab.prepare(Zoo(), QConfig(activation=activation), IMAGES[:1])


def test_what_no_kernel_computes_is_refused_by_name():
    w, a = QConfig.w8a8().weight, QuantSpec(8)
    by_group = QuantSpec(8, signed=True, symmetric=True, granularity=PerGroup(3))
    with pytest.raises(ValueError, match=r"conv1: weights of 8 bits.*PerGroup.*no integer kernel.*PerChannel\(0\)"):
        both(models.resnet20(), QConfig.w8a8(overrides={"conv1": QConfig(by_group, a)}))
    with pytest.raises(ValueError, match="conv1: weights of 10 bits"):
        both(models.resnet20(), QConfig(QuantSpec(10, signed=True, symmetric=True, granularity=PerChannel(0)), a))
    with pytest.raises(ValueError, match="has 9 bits: the integer kernels take activations of at most 8"):
        both(models.resnet20(), QConfig(w, QuantSpec(9)))


def test_calls_with_other_arguments_keep_them():
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return torch.clamp(self.conv(x), min=-0.5).mean(dim=(2, 3), keepdim=True) * 2

    prepared, int8 = both(Calls())
    with torch.no_grad():
        torch.testing.assert_close(int8(IMAGES), prepared(IMAGES), atol=0.02, rtol=0)


def test_a_grid_that_reaches_above_a_relu6_is_refused():
    prepared, _ = both(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1)))
    quantizer = prepared.network.quantizers.get_submodule("0")
    quantizer.qparams = qlab.choose_qparams(0.0, 7.0)
    with pytest.raises(ValueError, match="reaches up to 7, above the 6 at which its relu6 cuts off: calibrate again"):
        qlab.convert(prepared, "reference")
    quantizer.qparams = qlab.choose_qparams(0.0, 6.0)
    assert qlab.convert(prepared, "reference")(IMAGES).isfinite().all()


def test_saturation_is_announced_where_it_can_happen(monkeypatch):
    from qlab.int8 import engines

    real = dict(engines.available())
    saturating = {name: dataclasses.replace(one, saturates=True) for name, one in real.items()}
    monkeypatch.setattr(engines, "available", lambda: saturating)
    monkeypatch.setattr(engines.choice, "availability", saturating.get)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    expected = r"engine 'reference' on this processor adds pairs.*'0' and 1 more layers.*reduce_range=True.*gives weights 7 bits"
    with pytest.warns(UserWarning, match=expected) as seen:
        both(model)
    assert seen[0].filename == __file__
    both(model, QConfig.w8a8(reduce_range=True))  # 255 * (63 + 63) fits: no warning, or this test fails
    both(model, QConfig.w4a8(first_last=None))
    assert qlab.ptq(model, [IMAGES], engine="reference").layers[1].bits == 7, "ptq's own choice is safe"
    monkeypatch.setattr(engines, "available", lambda: real)
    monkeypatch.setattr(engines.choice, "availability", real.get)
    assert qlab.ptq(model, [IMAGES], engine="reference").layers[1].bits == 8
