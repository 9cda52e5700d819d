"""Quantization-aware training: the gradients are those of the papers, training helps, and what is trained converts."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stripes import stripes
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, PerGroup, QConfig, QuantSpec, qat, train
from qlab.data.dataset import Dataset
from qlab.graph.layers import QuantConv2d
from qlab.int8 import engines
from qlab.qat import batchnorm, stages, training
from qlab.qat.loss import TEMPERATURE
from qlab.qat.lsq import _dot
from qlab.quantizers import AffineQuantizer

PLAN = train.Plan(epochs=3, batch_size=16, lr=0.05, shrink=0, label_smoothing=0.0)


class Tiny(nn.Module):
    """A residual block, so that an edge inside convolution + addition is there too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.flatten(self.pool(x)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Trained for a moment, so that its BatchNorms have seen something."""
    torch.manual_seed(3)
    tiny = Tiny()
    train.fit(tiny, stripes(160), None, train.Plan(epochs=6, batch_size=16, lr=0.1, shrink=0), progress=False)
    return tiny


def calibrated(network: nn.Module, qconfig: QConfig | None = None) -> qat.Prepared:
    prepared = qlab.prepare(network, qconfig or QConfig.w4a4())
    return qlab.calibrate(prepared, stripes(64).batches(32), progress=False)


# --- the gradients


def lsq(x, scale, zero_point=0.0, qmin=0, qmax=7, share=1.0, pact=False):
    x, scale, zero_point = (torch.as_tensor(t, dtype=torch.float64).requires_grad_() for t in (x, scale, zero_point))
    qat.LearnedStep.apply(x, scale, zero_point, qmin, qmax, share, pact).sum().backward()
    return x.grad, scale.grad, zero_point.grad


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2.3, round(2.3) - 2.3), (2.6, round(2.6) - 2.6), (9.0, 7.0), (-4.0, 0.0), (0.4, -0.4)],
)
def test_the_gradient_of_a_scale_is_equation_3_of_the_lsq_paper(value, expected):
    """round(v) - v inside the grid, Qp above it, -Qn (here 0) below it; v = x / s."""
    for scale in (1.0, 0.25, 8.0):
        assert lsq([value * scale], scale)[1].item() == pytest.approx(expected)


def test_the_gradient_of_a_signed_scale_is_minus_qn_below_the_grid():
    assert lsq([-30.0], 1.0, qmin=-7)[1].item() == -7


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20), st.floats(0.1, 4))
@settings(deadline=None, max_examples=60)
def test_the_gradient_of_a_value_is_1_inside_the_grid_and_0_where_it_is_clipped(values, scale):
    gradient = lsq(values, scale)[0]
    position = torch.tensor(values, dtype=torch.float64) * (1 / torch.tensor(scale, dtype=torch.float64))
    assert torch.equal(gradient, ((position > 0) & (position < 7)).double())


def test_pact_moves_the_clipping_point_by_what_is_clipped_alone():
    """d y / d alpha = 1 where x >= alpha (PACT, equation 3); alpha = qmax * scale, hence qmax * d / d alpha."""
    _, gradient, _ = lsq([1.3, 2.6, 9.0, 20.0], 1.0, pact=True)
    assert gradient.item() == pytest.approx(7 + 7)


def test_the_zero_point_learns_from_what_is_clipped_alone():
    """d y / d offset = 1 where x is clipped, else 0 (LSQ+, equation 5); offset = -z * s, in steps."""
    assert lsq([-30.0, 0.1, 30.0], 0.5, zero_point=3.0)[2].item() == pytest.approx(-2 / 0.5)
    assert lsq([0.1], 0.5, zero_point=3.0)[2].item() == 0


@pytest.mark.parametrize("pact", [False, True])
def test_a_scale_has_the_same_gradient_in_bfloat16(pact):
    """Values near the grid, few of them clipped, and a gradient that runs along them: sum g * y is far larger."""
    torch.manual_seed(0)
    y = torch.randint(0, 3, (4096,)) * 0.5
    x = torch.where(torch.arange(4096) % 128 == 0, 2.0, y + 1 / 64).bfloat16()
    gradient = (x.float() + torch.randn(4096) * 0.01).bfloat16()

    def of_scale(dtype: torch.dtype) -> float:
        scale = torch.tensor(0.5, requires_grad=True)
        output = qat.LearnedStep.apply(x.to(dtype), scale, torch.tensor(0.0), 0, 3, 1.0, pact)
        assert output.dtype == dtype
        output.backward(gradient.to(dtype))
        return scale.grad.item()

    assert of_scale(torch.bfloat16) == pytest.approx(of_scale(torch.float32), rel=0.006)


@pytest.mark.parametrize("pact", [False, True])
def test_a_scale_of_eight_bits_has_the_same_gradient_in_float32_and_float64(pact):
    """It is a small difference of two large sums, which float32 has to survive."""
    torch.manual_seed(0)
    x = torch.randn(200_000).relu()
    gradient = 1e-3 * torch.randn(len(x)) + 1e-2  # and most of it of one sign

    def of_scale(dtype: torch.dtype) -> float:
        scale = torch.tensor(3 / 255, dtype=dtype, requires_grad=True)
        output = qat.LearnedStep.apply(x.to(dtype), scale, None, 0, 255, 1.0, pact)
        output.backward(gradient.to(dtype))
        return scale.grad.item()

    assert of_scale(torch.float32) == pytest.approx(of_scale(torch.float64), rel=1e-3)


def test_bfloat16_keeps_the_gradient_of_binary_weights_and_not_that_of_two_bit_activations():
    """Its rounding moves values over a threshold to the next code. What Plan says about `precision` stands on this."""

    def gradient(preset: str, dtype: torch.dtype) -> torch.Tensor:
        x, y = next(qlab.data.shapes10("validation").sample(32).batches(32))
        prepared = qat.start(qat.load("resnet20", preset), [x]).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(prepared(x).float(), y)
        loss.backward()
        return torch.cat([p.grad.flatten() for name, p in prepared.named_parameters() if name.endswith(".weight")])

    same = {
        preset: F.cosine_similarity(gradient(preset, torch.float32), gradient(preset, torch.bfloat16), 0).item()
        for preset in ("w2a2", "w1a32")
    }
    assert same["w2a2"] < 0.8 and same["w1a32"] > 0.95


def test_a_scale_a_channel_gets_the_gradients_of_its_own_channel():
    x = torch.tensor([[1.3, 2.6], [9.0, 0.4]], dtype=torch.float64)
    gradient = lsq(x, [[1.0], [1.0]], zero_point=[[0.0], [0.0]])[1]
    assert gradient.flatten().tolist() == pytest.approx([-0.3 + 0.4, 7 - 0.4])


def test_values_are_counted_per_channel_where_scales_are():
    """The gradient of a weight's scale is 1 / sqrt(N * Qp) times the sum, with N the weights of one channel."""
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerChannel(0), narrow_range=True)
    weight = torch.full((5, 4, 3, 3), 100.0)  # all clipped: each value's own gradient is Qp = 7
    quantizer = learning(spec, torch.full((5,), 1.0), of_weight=True)
    quantizer(weight).sum().backward()
    assert quantizer.scale.grad.tolist() == pytest.approx([36 * 7 / math.sqrt(36 * 7)] * 5)


def test_activations_are_counted_per_image():
    quantizer = learning(QuantSpec(4), torch.tensor(1.0))
    quantizer(torch.full((6, 4, 3, 3), 100.0)).sum().backward()
    assert quantizer.scale.grad.item() == pytest.approx(6 * 36 * 15 / math.sqrt(36 * 15))


def learning(spec: QuantSpec, scale, zero_point=None, of_weight=False, method="lsq") -> AffineQuantizer:
    quantizer = AffineQuantizer(spec)
    zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
    quantizer.qparams = spec.qparams(scale, zero_point.to(torch.int32))
    return stages._learner(quantizer, method, of_weight, cut_off=False).train()


@pytest.mark.parametrize("granularity", [qlab.PerTensor(), PerChannel(0), PerGroup(6)])
def test_learning_rounds_exactly_as_fake_quantize_does(granularity):
    x = torch.randn(4, 12) * 3
    spec = QuantSpec(3, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    quantizer = learning(spec, torch.rand(granularity.scale_shape(x.shape)) + 0.1, of_weight=True)
    assert torch.equal(quantizer(x), qlab.fake_quantize(x, quantizer.qparams))


@pytest.mark.parametrize(
    ("signed", "zero_point", "at_zero"),
    [(False, 0, True), (True, -4, False), (True, 0, False), (True, 1, False)],
    ids=["0 and stays so", "the lowest code", "0 but learns", "learns"],
)
def test_a_zero_point_is_left_out_only_where_it_is_0_and_stays_so(signed, zero_point, at_zero):
    x, spec = torch.randn(4, 12) * 3, QuantSpec(3, signed=signed, symmetric=False)
    quantizer = learning(spec, torch.tensor(0.3), torch.tensor(zero_point))
    moved = copy.deepcopy(quantizer)
    assert quantizer.at_zero is at_zero
    assert torch.equal(quantizer(x), qlab.fake_quantize(x, quantizer.qparams))
    moved.load_state_dict({**moved.state_dict(), "zero_point": moved.zero_point.detach() + 2})
    assert not moved.at_zero and torch.equal(moved(x), qlab.fake_quantize(x, moved.qparams))


def test_weights_and_values_behind_a_relu_have_their_zero_at_0(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    learning = {name for name, quantizer in prepared.quantizers() if not quantizer.at_zero}
    assert learning == {"quantizers.input", "quantizers.conv2", "quantizers.fc"}


def test_the_two_ways_to_sum_a_gradient_agree():
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    like = torch.tensor(0.0)
    last = {"memory_format": torch.channels_last}
    for first, second in ((a, b), (a.contiguous(**last), b.contiguous(**last)), (a, b.contiguous(**last))):
        assert _dot(first, second, like).item() == pytest.approx((a * b).sum().item())


# --- BatchNorm


def test_starting_and_finishing_changes_nothing_that_the_network_says(network):
    prepared = calibrated(network)
    x = next(stripes(32).batches(32))[0]
    before = prepared(x)
    qat.start(prepared, [x])
    assert any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    assert torch.allclose(prepared.eval()(x), before, atol=1e-4)
    during = prepared(x)
    qat.finish(prepared)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    assert all(type(layer) is QuantConv2d for name, layer in prepared.weighted() if "conv" in name)
    assert all(type(quantizer) is AffineQuantizer for _, quantizer in prepared.quantizers())
    assert torch.equal(prepared(x), during)


def test_a_network_without_batchnorm_gets_none():
    bare = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    prepared = qat.start(calibrated(bare), [next(stripes(32).batches(32))[0]])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    qat.fit(calibrated(bare), stripes(32), None, replace(PLAN, epochs=1), progress=False)


def test_bias_correction_after_training_compares_with_the_trained_weights(network):
    prepared = qlab.correct_bias(calibrated(network), [next(stripes(32).batches(32))[0]], progress=False)
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
    trained = dict(prepared.weighted())["conv2"].weight.clone()
    qlab.correct_bias(prepared, [next(stripes(32).batches(32))[0]], progress=False)
    assert torch.equal(dict(prepared.weighted())["conv2"].original[0], trained)


def test_weights_are_rounded_as_the_folded_weights_will_be(network):
    """The convolution in training sees Q(w * g) / g: without the fold it would see Q(w)."""
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    layer = dict(prepared.weighted())["conv2"]
    with torch.no_grad():
        layer.norm.weight.mul_(torch.linspace(0.3, 1.7, 8))
    x = torch.rand(4, 8, 5, 5)
    seen = layer.norm.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    captured: list[torch.Tensor] = []
    gain = layer._gain()[:, None, None, None]
    expected = F.conv2d(x, layer.weight_quantizer(layer.weight * gain) / gain, padding=1)
    layer(x)
    seen.remove()
    assert torch.allclose(captured[0], expected, atol=1e-5)
    assert not torch.allclose(captured[0], F.conv2d(x, layer.weight_quantizer(layer.weight), padding=1), atol=1e-3)


def test_training_begins_with_weights_of_the_size_of_he_initialization(network):
    """However large the folded weights are: their size is what a gradient is divided by (He et al. 2015)."""
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    layers = [layer for _, layer in prepared.weighted() if isinstance(layer, qat.NormalizedConv2d)]
    assert len(layers) == 2
    for layer in layers:
        spread = layer.weight.square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(spread, torch.full_like(spread, (2 / layer.weight[0].numel()) ** 0.5))


def test_a_channel_of_nothing_but_0_stays_so():
    layer = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(layer.weight)
    assert torch.equal(batchnorm.he_size(layer.weight), torch.ones(2))


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=8))
@settings(deadline=None, max_examples=20)
def test_weights_and_scales_of_a_channel_learn_alike_whatever_its_gain(network, gains):
    """The gain cancels out: values and gradients, those of the learned scales too, are those of the unfolded network."""
    x = next(stripes(32).batches(32))[0]
    prepared = qat.start(calibrated(network), [x]).train()
    layer = dict(prepared.weighted())["conv1"]
    layer.weight_quantizer.scale.data.mul_(0.97)  # so that no weight lies just where the grid ends
    seen = []
    for gain in (torch.ones(8), torch.tensor(gains)):
        layer.norm.running_var.copy_((layer.norm.weight.detach() / gain) ** 2 - layer.norm.eps)
        y = layer(x)
        loss = (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum()
        seen.append((y.detach(), *torch.autograd.grad(loss, (layer.weight, layer.weight_quantizer.scale))))
    for one, other in zip(*seen):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_grid_behind_a_relu6_does_not_grow_beyond_6():
    """There the grid's top does the cutting off, so a network with a larger one could not be converted."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=4)
    nn.init.constant_(convolution.bias, 5.9)
    model = nn.Sequential(convolution, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    prepared = qat.start(calibrated(model, QConfig.w8a8()), [next(stripes(32).batches(32))[0]])
    tops = [q for _, q in prepared.quantizers() if getattr(q, "largest", None)]
    assert len(tops) == 1 and tops[0].scale.item() * 255 == pytest.approx(6, rel=0.03)
    for _ in range(9):
        with torch.no_grad():
            tops[0].scale.mul_(1.01)
        tops[0].hold()
    assert tops[0].scale.item() == pytest.approx(6 / 255)
    qlab.convert(qat.finish(prepared), "reference")


def test_frozen_statistics_stand_still_and_live_ones_move(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    norm = dict(prepared.weighted())["conv1"].norm
    x = torch.rand(8, 3, 32, 32) * 5
    training._freeze(prepared, ranges=False, batchnorm=True)
    before = norm.running_mean.clone()
    prepared(x)
    assert torch.equal(norm.running_mean, before)
    training._freeze(prepared, ranges=False, batchnorm=False)
    prepared(x)
    assert not torch.equal(norm.running_mean, before)


def test_gamma_learns_with_live_and_with_frozen_statistics(network):
    for frozen in (False, True):
        prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
        training._freeze(prepared, ranges=False, batchnorm=frozen)
        prepared(torch.rand(8, 3, 32, 32)).square().sum().backward()
        assert dict(prepared.weighted())["conv2"].norm.weight.grad.abs().sum() > 0


def test_a_frozen_layer_gives_what_it_gives_in_eval_mode(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    training._freeze(prepared, ranges=False, batchnorm=True)
    x = torch.rand(8, 3, 32, 32)
    layer = dict(prepared.weighted())["conv1"]
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), atol=1e-5, rtol=1e-5)


def test_frozen_gamma_has_the_gradient_of_the_rounded_weights(network):
    """Straight through the fold it would be that of the weights before rounding, and with 2 bits training diverges."""
    prepared = qat.start(calibrated(network, QConfig.w2a2()), [next(stripes(32).batches(32))[0]]).train()
    training._freeze(prepared, ranges=False, batchnorm=True)
    layer = dict(prepared.weighted())["conv2"]
    norm, gain = layer.norm, layer._gain()[:, None, None, None]
    x, upstream = torch.rand(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    (layer(x) * upstream).sum().backward()
    y = F.conv2d(x, layer.weight_quantizer(layer.weight * gain) / gain, padding=1)
    mean, var = (statistic[:, None, None] for statistic in (norm.running_mean, norm.running_var))
    expected = (upstream * (y - mean) / (var + norm.eps).sqrt()).sum((0, 2, 3))
    torch.testing.assert_close(norm.weight.grad, expected, atol=1e-3, rtol=1e-3)


def test_a_dead_channel_does_not_divide_by_zero(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]]).train()
    layer = dict(prepared.weighted())["conv1"]
    with torch.no_grad():
        layer.norm.weight[2] = 0
    assert prepared(torch.rand(4, 3, 32, 32)).isfinite().all()


# --- training


def test_a_training_that_diverges_says_so(network):
    with pytest.raises(ValueError, match="the loss became nan in epoch 1.*lower the learning rate"):
        qat.fit(calibrated(network), stripes(64), None, replace(PLAN, lr=1e30), progress=False)


@pytest.mark.parametrize("method", qat.METHODS)
def test_training_brings_back_what_rounding_and_clipping_took(network, method):
    exam = stripes(96, "test")
    prepared = calibrated(network, QConfig.preset("w3a3", first_last=None))
    for _, quantizer in prepared.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale / 2)
    loss = [loss_of(prepared, exam)]
    plan = replace(PLAN, epochs=6, lr=0.1)
    history = qat.fit(prepared, stripes(160), stripes(32, "validation"), plan, method=method, progress=False)
    loss.append(loss_of(prepared, exam))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert loss[0] > 0.5 > 0.25 > loss[1]


def loss_of(prepared, data: Dataset) -> float:
    x, y = next(data.batches(len(data)))
    with torch.inference_mode():
        return F.cross_entropy(prepared.eval()(x), y).item()


def test_training_in_bfloat16_brings_it_back_too(network):
    exam = stripes(96, "test")
    prepared = calibrated(network, QConfig.preset("w3a3", first_last=None))
    for _, quantizer in prepared.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale / 2)
    plan = replace(PLAN, epochs=6, lr=0.1, precision="bfloat16")
    before = loss_of(prepared, exam)
    qat.fit(prepared, stripes(160), None, plan, teacher=network, progress=False)
    assert before > 0.5 > 0.25 > loss_of(prepared, exam)
    assert {p.dtype for p in prepared.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", qat.METHODS)
def test_what_was_trained_gives_the_same_answers_in_integers(network, method):
    prepared = calibrated(network, qat.qconfig("w8a8"))
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), method=method, progress=False)
    exam = stripes(200, "test")
    x = next(exam.batches(200))[0]
    for name, there in engines.available().items():
        if there.usable:
            engine = engines.get(name)
            int8 = qlab.convert(prepared, name)
            with torch.inference_mode():
                same = int8(x).argmax(1) == prepared.fuse_additions(engine.fuses_add)(x).argmax(1)
            assert same.float().mean() >= 0.995, name


def test_the_first_axis_counted_from_the_end_learns_the_same(network):
    """Each output channel's scale is counted in units of the channel's own, whichever way the axis is written."""
    int8 = []
    for convolution, linear in ((0, 0), (-4, -2)):
        specs = [replace(QConfig.w4a4().weight, granularity=PerChannel(axis)) for axis in (convolution, linear)]
        qconfig = QConfig(specs[0], overrides={nn.Linear: QConfig(specs[1])})
        prepared = calibrated(network, qconfig)
        qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
        int8.append(qlab.convert(prepared, "reference"))
    x = next(stripes(64, "test").batches(64))[0]
    assert torch.equal(int8[0](x), int8[1](x))


def test_integers_of_two_bits_are_the_fake_quantized_network_in_exact_arithmetic(network):
    """In float32 a sum may land on the wrong side of a threshold; in float64 none of these does."""
    prepared = calibrated(network, qat.qconfig("w3a2"))
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=1), progress=False)
    x = next(stripes(200, "test").batches(200))[0]
    for name, there in engines.available().items():
        if there.usable and name != "qnnpack":  # which rounds its biases
            prepared.fuse_additions(engines.get(name).fuses_add)
            with torch.inference_mode():
                exact = copy.deepcopy(prepared).double()(x.double())
                torch.testing.assert_close(qlab.convert(prepared, name)(x).double(), exact, rtol=0, atol=1e-5)


def test_grids_that_follow_stand_still_once_frozen(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]], "straight_through").train()
    quantizer = next(q for _, q in prepared.quantizers() if not q.of_weight)
    before = quantizer.scale.clone()
    training._freeze(prepared, ranges=True, batchnorm=False)
    prepared(torch.rand(4, 3, 32, 32) * 9)
    assert torch.equal(quantizer.scale, before)
    training._freeze(prepared, ranges=False, batchnorm=False)
    prepared(torch.rand(4, 3, 32, 32) * 9)
    assert not torch.equal(quantizer.scale, before)


def test_pact_learns_the_ends_of_activations_and_weights_follow(network):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]], "pact")
    kinds = {type(layer.weight_quantizer) for _, layer in prepared.weighted()}
    assert kinds == {qat.FollowingQuantizer}
    assert any(getattr(q, "pact", False) for _, q in prepared.quantizers())


def test_lsq_plus_learns_a_zero_point_only_where_zero_is_inside_the_range():
    inside = learning(QuantSpec(4), torch.tensor(0.5), torch.tensor(6))
    at_the_end = learning(QuantSpec(4), torch.tensor(0.5), torch.tensor(0))
    assert isinstance(inside.zero_point, nn.Parameter) and not isinstance(at_the_end.zero_point, nn.Parameter)
    with torch.no_grad():
        inside.zero_point.fill_(99.0)
    assert inside.qparams.zero_point == 15  # a code, whatever was learned


@pytest.mark.parametrize("thrown, kept", [(-1.0, 0.98), (100.0, 1.02), (1.01, 1.01)])
def test_a_step_changes_a_scale_by_two_percent_at_most(network, thrown, kept):
    prepared = qat.start(calibrated(network), [next(stripes(32).batches(32))[0]])
    for _, quantizer in prepared.quantizers():
        before, grid = quantizer.scale.detach().clone(), quantizer.qparams.scale
        quantizer.scale.data.mul_(thrown)
        torch.testing.assert_close(quantizer.qparams.scale, grid * kept)
        torch.testing.assert_close(quantizer.scale.data, before * kept)


def test_a_scale_survives_a_learning_rate_that_is_far_too_high(network):
    """With 8 bits a scale is small and its gradient is not: without a limit it is thrown below 0 and stays there."""
    prepared = calibrated(network, qat.qconfig("w8a8"))
    before = {name: quantizer.qparams.scale.clone() for name, quantizer in prepared.quantizers()}
    qat.fit(prepared, stripes(64), None, replace(PLAN, epochs=2, lr=1.0), progress=False)
    steps, weights = 2 * 64 // PLAN.batch_size, {layer.weight_quantizer for _, layer in prepared.weighted()}
    for name, quantizer in prepared.quantizers():
        change = quantizer.qparams.scale / before[name]
        if quantizer in weights:  # counted in units of BatchNorm's gain, which has no limit
            assert (change > 0).all() and change.isfinite().all(), name
            continue
        assert (change >= 0.98**steps - 1e-4).all() and (change <= 1.02**steps + 1e-4).all(), name


def test_a_broken_run_goes_on_where_it_stopped(network, tmp_path, monkeypatch):
    def run(folder):
        prepared = calibrated(network)
        qat.fit(prepared, stripes(64), stripes(32, "validation"), PLAN, folder=folder, progress=False)
        return prepared.state_dict()

    whole = run(tmp_path / "whole")
    real = train._epoch

    def breaks(*arguments):
        if arguments[3] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    monkeypatch.setattr(train, "_epoch", real)
    again = run(tmp_path / "broken")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_plain_batches_will_do(network):
    prepared = calibrated(network)
    history = qat.fit(prepared, list(stripes(48).batches(16)), None, replace(PLAN, epochs=1), progress=False)
    assert [sorted(row) for row in history] == [["epoch", "loss", "seconds"]]


# --- the loss


def test_distillation_pulls_towards_the_teacher_and_not_only_to_the_label(network):
    prepared, x = calibrated(network), torch.rand(4, 3, 32, 32)
    y, logits = torch.zeros(4, dtype=torch.long), torch.zeros(4, 2, requires_grad=True)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with torch.no_grad():
        answers = teacher(x) / TEMPERATURE
    loss = qat.Loss(prepared, teacher=teacher, distillation=1.0)
    value = loss(x, logits, y)
    expected = (answers.softmax(1) * (answers.log_softmax(1) - math.log(0.5))).sum(1).mean() * TEMPERATURE**2
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert qat.Loss(prepared, teacher=teacher, distillation=0.0)(x, logits, y).item() == pytest.approx(math.log(2))
    assert loss(x, teacher(x), y).item() == pytest.approx(0, abs=1e-6)


def test_the_penalty_is_the_relative_error_of_the_weights(network):
    prepared = calibrated(network)
    logits, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    with_penalty = qat.Loss(prepared, penalty=3.0)(None, logits, y).item()
    assert with_penalty == pytest.approx(math.log(2) + 3 * qat.weight_error(prepared).item())
    coarse = qat.weight_error(calibrated(network, QConfig.preset("w2a8", first_last=None)))
    assert 0 < qat.weight_error(prepared) < coarse < 1


def test_the_penalty_pulls_weights_onto_the_grid(network):
    prepared = calibrated(network)
    layer = dict(prepared.weighted())["conv2"]
    qat.weight_error(prepared).backward()
    off = layer.weight - layer.weight_quantizer(layer.weight)
    assert (torch.sign(layer.weight.grad) == torch.sign(off)).float().mean() > 0.95


def test_a_loss_of_ones_own_takes_the_place_of_the_labels(network):
    """Here y is not looked at: the network learns to answer 1, whatever it sees."""
    seen = []

    def loss(x, output, y):
        seen.append((len(x), len(y)))
        return F.cross_entropy(output, torch.ones_like(y))

    prepared = calibrated(network)
    images = stripes(64)
    qat.fit(prepared, images, None, replace(PLAN, epochs=2, batch_size=16), loss=loss, progress=False)
    assert seen == [(16, 16)] * 8
    with torch.inference_mode():
        assert (prepared(next(images.batches(64))[0]).argmax(1) == 1).float().mean() > 0.9
    with pytest.raises(ValueError, match="a teacher teaches classes, and a loss of your own takes their place"):
        qat.fit(prepared, images, None, PLAN, loss=loss, teacher=network)


# --- what goes wrong


def test_what_is_not_calibrated_cannot_be_trained(network):
    with pytest.raises(RuntimeError, match="call qlab.calibrate"):
        qat.fit(qlab.prepare(network), stripes(32), None, PLAN)


def test_errors_name_the_value_and_what_was_expected(network):
    with pytest.raises(ValueError, match="method 'adam': expected one of lsq, pact, straight_through"):
        qat.fit(calibrated(network), stripes(32), None, PLAN, method="adam")
    with pytest.raises(ValueError, match="freeze_batchnorm=2: expected a share from 0 to 1"):
        qat.fit(calibrated(network), stripes(32), None, PLAN, freeze_batchnorm=2)
    with pytest.raises(ValueError, match="no batch to train on"):
        qat.fit(calibrated(network), [], None, PLAN)
    with pytest.raises(ValueError, match="no batch to train on"):
        qat.start(calibrated(network), [])
    with pytest.raises(ValueError, match="no trained weights for 'resnet20-cifar10-w5a5'"):
        qat.load("resnet20", "w5a5")


def test_eight_bits_become_seven_so_that_the_network_runs_on_every_engine():
    assert qat.qconfig("w8a8").activation.bits == 7
    assert qat.qconfig("w8a8").elementwise.bits == 7
    assert qat.qconfig("w2a2").weight.bits == 2


def test_beside_activations_of_one_bit_the_shortcuts_keep_eight():
    rows = {row.layer: row for row in qlab.prepare(qlab.models.resnet20(), qat.qconfig("w1a1")).report()}
    shortcut, beside = rows["layer2.0.shortcut.0"], rows["layer2.0.conv1"]
    assert (shortcut.weight, shortcut.input) == ("8 bits, per channel", "7 bits, per tensor")
    assert (beside.weight, beside.input) == ("1 bit (binary), per channel", "1 bit, per tensor")
    assert qat.qconfig("w1a2").shortcuts is None


@pytest.mark.parametrize("key", [k for k, e in qlab.models.manifest().items() if "qconfig" in e])
def test_every_committed_network_loads_and_converts(key):
    name, data, preset = key.split("-")
    prepared = qat.load(name, preset, data)
    with torch.inference_mode():
        assert prepared(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("preset", ["w4a4", "w1a32", "w1a1"])
def test_train_prepares_calibrates_trains_and_saves(network, tmp_path, preset):
    plan = replace(PLAN, epochs=1)
    data = stripes(1024)
    prepared, history = qat.train(
        network, preset, data, stripes(32, "validation"), plan, folder=tmp_path, progress=False
    )
    saved, _ = qlab.files.read_tensors(tmp_path / "prepared.safetensors")
    assert len(history) == 1
    assert all(torch.equal(saved[name], tensor) for name, tensor in prepared.state_dict().items())
    again = qlab.prepare(network, qat.qconfig(preset))
    again.load_state_dict(saved)
    x = next(data.batches(8))[0]
    with torch.inference_mode():
        assert torch.equal(again(x), prepared(x))


def test_a_run_goes_on_with_what_it_learned_and_chooses_the_grids_it_lacks(network):
    """Activations of few bits after binary weights: their ranges are those of the values that rounded weights give."""
    binary = calibrated(network, qat.qconfig("w1a32"))
    layer = dict(binary.weighted())["conv2"]
    with torch.no_grad():  # signs as before, sizes not: before rounding it is another network
        layer.weight.mul_(torch.linspace(0.1, 3, layer.weight[0].numel()).reshape(layer.weight[0].shape))
    seen, images = [], list(stripes(64).batches(32))
    binary.network.get_submodule("pool").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for x, _ in images:
        binary(x)
    prepared = qlab.prepare(network, qat.qconfig("w1a2"))
    training._go_on(prepared, binary.state_dict(), images)
    assert torch.equal(dict(prepared.weighted())["conv2"].weight, layer.weight)
    observer = qlab.observers.MSE(QuantSpec(7))
    observer(torch.cat(seen).detach())
    scale = dict(prepared.quantizers())["quantizers.add"].qparams.scale
    torch.testing.assert_close(scale, observer.qparams().scale, rtol=0.05, atol=0)


def test_a_run_of_the_same_bits_goes_on_with_the_grids_it_had(network):
    before = calibrated(network, qat.qconfig("w4a4"))
    for _, quantizer in before.quantizers():
        quantizer.qparams = replace(quantizer.qparams, scale=quantizer.qparams.scale * 1.5)
    prepared = qlab.prepare(network, qat.qconfig("w4a4"))
    training._go_on(prepared, before.state_dict(), stripes(64).batches(32))
    assert all(torch.equal(prepared.state_dict()[name], value) for name, value in before.state_dict().items())


@pytest.mark.parametrize("earlier, header, words", [
    ("w4a4", {"qconfig": "w4a4"}, "earlier.safetensors is of a run with w4a4: expected one with w1a4 or w1a32"),
    ("w1a2", {"qconfig": "w1a2"}, "is of a run with w1a2: expected one with w1a4 or w1a32"),
    ("w4a4", {}, "go on from a run with .*weight_quantizer.scale: expected this network, with weights of as many"),
])  # fmt: skip
def test_a_run_of_other_bits_is_refused(network, tmp_path, earlier, header, words):
    """By its header; a file that has none, by the grids in it, which tells other weights at least."""
    state = calibrated(network, qat.qconfig(earlier)).state_dict()
    initial = qlab.files.write_tensors(tmp_path / "earlier.safetensors", state, header)
    with pytest.raises(ValueError, match=words):
        qat.train(network, "w1a4", stripes(1024), stripes(32), PLAN, folder=tmp_path, initial=initial, progress=False)


def test_a_run_with_float_activations_is_gone_on_from(network, tmp_path):
    plan = replace(PLAN, epochs=1)
    parts = stripes(1024), stripes(32, "validation"), plan
    qat.train(network, "w1a32", *parts, folder=tmp_path / "first", progress=False)
    earlier = tmp_path / "first" / "prepared.safetensors"
    assert qlab.files.read_tensors(earlier)[1] == {"qconfig": "w1a32"}
    prepared, _ = qat.train(network, "w1a2", *parts, folder=tmp_path / "second", initial=earlier, progress=False)
    assert qlab.evaluate(prepared, stripes(64, "test")) > 90
