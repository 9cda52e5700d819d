"""What rounds a tensor in a network: what each lets through in training, what it finds in data, what converts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spread import made_weights, squared_error, weights
from torch import Tensor, nn

import qlab
from qlab import PerChannel, PerGroup, PerTensor, QConfig, QuantSpec, formats, models, quantizers
from qlab.int8 import engines
from qlab.qconfig import Binary, KMeans, SmallFloat, Ternary

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

GRIDS = [Binary(), Ternary(), KMeans(3), KMeans(2, PerChannel(0)), SmallFloat("e4m3"), SmallFloat("float16")]


def settled(spec, w: Tensor):
    """The fake-quantizer of a spec, calibrated on w."""
    quantizer = quantizers.build(spec)
    quantizer.observe()
    quantizer(w)
    quantizer.freeze()
    return quantizer


def test_the_binary_scale_is_what_makes_signs_resemble_weights():
    w = 0.05 * made_weights(0, 1.0, False)
    quantizer = settled(Binary(), w)
    assert squared_error(w, quantizer(w)) < 0.45 * squared_error(w, 0 * w)  # 1 - 2 / pi of a normal spread
    assert squared_error(w, w.sign()) > 100 * squared_error(w, 0 * w)


def test_a_binary_scale_for_each_channel_or_one_for_the_layer():
    w = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert torch.equal(settled(Binary(), w)(w), torch.tensor([[2.0, -2.0], [0.5, 0.5]]))
    assert torch.equal(settled(Binary(PerTensor()), w)(w), torch.tensor([[1.25, -1.25], [1.25, 1.25]]))
    assert torch.equal(settled(Binary(PerGroup(1)), w)(w), w)


def test_the_sign_of_zero_is_plus_and_a_channel_of_zeros_stays_zero():
    w = torch.tensor([[0.0, -2.0], [0.0, 0.0]])
    for spec in (Binary(), Ternary()):
        values = settled(spec, w)(w)
        assert values.tolist()[1] == [0.0, 0.0]
    assert settled(Binary(), w)(w).tolist()[0] == [1.0, -1.0]


def test_binary_and_ternary_follow_weights_that_move():
    w = made_weights(1, 1.0, False)
    for spec in (Binary(), Ternary()):
        quantizer = quantizers.build(spec)  # nothing to calibrate either
        assert torch.equal(quantizer(4 * w), 4 * quantizer(w))
        assert torch.equal(quantizer(-w), -quantizer(w))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_binary_gradient_stops_beyond_three_scales_whatever_their_size(size):
    w = (size * torch.tensor([[0.1, -0.2, 0.3, -0.2, 0.2, 20.0], [1.0, 1.0, -1.0, -1.0, 1.0, 2.9]])).requires_grad_()
    settled(Binary(), w)(w).backward(torch.arange(12.0).reshape(2, 6))
    assert w.grad.tolist() == [[0, 1, 2, 3, 4, 0], [6, 7, 8, 9, 10, 11]]


def test_three_values_are_nearer_than_two():
    w = made_weights(2, 1.0, False)
    assert squared_error(w, settled(Ternary(), w)(w)) < 0.75 * squared_error(w, settled(Binary(), w)(w))


def test_the_ternary_gradient_passes_straight_through():
    w = torch.tensor([[0.1, -0.2, 5.0]], requires_grad=True)
    settled(Ternary(), w)(w).backward(torch.tensor([[1.0, 2.0, 3.0]]))
    assert w.grad.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_trained_weights_lie_much_nearer_to_a_table_than_to_even_steps(bits):
    """A bit more divides the error by 4. A table is worth a quarter of a bit at least, in any layer with a few large weights."""
    w = models.load("resnet20", data="shapes10").layer2[1].conv1.weight.detach()
    grid = qlab.choose_qparams(w.min(), w.max(), bits=bits)
    assert squared_error(w, settled(KMeans(bits), w)(w)) < 4**-0.25 * squared_error(w, qlab.fake_quantize(w, grid))


def test_a_centroids_gradient_is_the_sum_over_its_members_and_the_weight_gets_none():
    w = torch.tensor([[-1.0, -1.0, 2.0], [2.0, -1.0, 2.0]], requires_grad=True)
    quantizer = settled(KMeans(1), w)
    quantizer(w).backward(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]))
    assert quantizer.centroids.grad.tolist() == [1 + 2 + 16, 4 + 8 + 32]
    assert w.grad is None
    by_channel = settled(KMeans(1, PerChannel(0)), w)
    by_channel(w).backward(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]))
    assert by_channel.centroids.grad.tolist() == [[3, 4], [16, 40]]


def test_assignments_stay_when_the_table_learns():
    w = torch.tensor([[-1.0, 2.0, 2.0]])
    quantizer = settled(KMeans(1), w)
    with torch.no_grad():
        quantizer.centroids.copy_(torch.tensor([9.0, 3.0]))
    assert torch.equal(quantizer(100 * w), torch.tensor([[9.0, 3.0, 3.0]]))


@given(weights, st.sampled_from(["e4m3", "e5m2"]), st.sampled_from([PerTensor(), PerChannel(0)]))
def test_the_largest_magnitude_becomes_the_formats_largest(w, format, granularity):
    quantizer = settled(SmallFloat(format, granularity), w)
    largest = granularity.blocks(w.abs()).amax(1)
    step = 0.0625 if format == "e4m3" else 0.125  # half a unit in the last place, relative to the value
    assert torch.allclose(quantizer.scale.reshape(-1) * torch.finfo(formats.FORMATS[format]).max, largest)
    smallest = 2.0**-9 if format == "e4m3" else 2.0**-16
    error = (quantizer(w) - w).abs()
    assert bool((error <= step * w.abs() + 0.51 * smallest * quantizer.scale.max()).all())


def test_the_scale_follows_the_data_of_all_batches_and_clips_what_is_larger_later():
    quantizer = quantizers.build(SmallFloat("e4m3"))
    quantizer.observe()
    for x in (torch.tensor([1.0]), torch.tensor([-448.0]), torch.tensor([3.0])):
        assert torch.equal(quantizer(x), x)
    quantizer.freeze()
    x = torch.tensor([1000.0, -100.0, 1.03], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [448.0, -96.0, 1.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0]
    quantizer.observe()
    quantizer(torch.tensor([2.0]))
    quantizer.freeze()
    assert float(quantizer.scale * 448) == pytest.approx(2.0), "a second calibration starts afresh"


def test_small_values_fare_better_on_a_float_grid_and_large_ones_on_even_steps():
    x = torch.tensor([0.001, 0.013, 90.0, 100.0])
    even, floating = settled(QuantSpec(8), x)(x), settled(SmallFloat("e4m3"), x)(x)
    assert bool(((floating - x).abs() < (even - x).abs())[:2].all())
    assert bool(((floating - x).abs() > (even - x).abs())[2])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def prepared(weight, **changes):
    qconfig = QConfig(weight, **{"first_last": None, **changes})
    return qlab.calibrate(qlab.prepare(network(), qconfig, IMAGES[:1]), [IMAGES], progress=False)


@pytest.mark.parametrize("spec", GRIDS, ids=repr)
def test_every_grid_stands_where_a_quantspec_stands(spec):
    one = prepared(spec)
    row = one.report()[1]
    assert f"({spec.name})" in row.weight and row.weight.startswith(f"{spec.bits} bit")
    y = one(IMAGES)
    assert y.isfinite().all() and not torch.equal(y, network()(IMAGES))
    for _, quantizer in one.quantizers():
        quantizer.mode = "off"
    assert torch.allclose(one(IMAGES), network()(IMAGES), atol=1e-5)


@pytest.mark.parametrize("spec", GRIDS, ids=repr)
def test_a_grid_travels_with_the_state_dict(spec):
    one = prepared(spec)
    other = qlab.prepare(network(), QConfig(spec, first_last=None), IMAGES[:1])
    other.load_state_dict(one.state_dict())
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(IMAGES), one(IMAGES))


@pytest.mark.parametrize("spec", GRIDS, ids=repr)
def test_a_network_on_another_grid_learns(spec):
    one = prepared(spec).train()
    optimizer = torch.optim.SGD(one.parameters(), 0.02)
    labels = torch.arange(8) % 5
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(one(IMAGES), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[6:]) < losses[0]


@pytest.mark.parametrize("engine", [name for name, one in engines.available().items() if one.usable])
@pytest.mark.parametrize("spec", [Binary(), Binary(PerTensor()), Ternary(), Ternary(PerTensor())], ids=repr)
def test_binary_and_ternary_weights_run_on_the_integer_kernels(spec, engine):
    one = prepared(spec, activation=QuantSpec(7), elementwise=QuantSpec(7)).eval()
    int8 = qlab.convert(one, engine)
    with torch.no_grad():
        apart = (int8(IMAGES) - one(IMAGES)).abs().max() / int8.program.grids[-2].scale
    assert float(apart) < 2.01, "in codes of the output"
    values = {int(v) for layer in int8.layers if hasattr(layer, "weight") for v in layer.weight.unique()}
    assert values == ({-1, 1} if isinstance(spec, Binary) else {-1, 0, 1})


def test_binary_weights_alone_are_kept_as_integers(tmp_path):
    one = prepared(Binary(), activation=None).eval()
    int8 = qlab.convert(one, "reference")
    with torch.no_grad():
        assert torch.allclose(int8(IMAGES), one(IMAGES), atol=1e-5)
        qlab.save(int8, tmp_path / "binary.safetensors")
        assert torch.equal(qlab.load(tmp_path / "binary.safetensors", "reference")(IMAGES), int8(IMAGES))


def test_a_network_of_one_bit_converts_and_agrees():
    qconfig = QConfig.preset("w1a1", elementwise=QuantSpec(7))
    one = qlab.calibrate(qlab.prepare(models.resnet20().eval(), qconfig), [IMAGES], progress=False).eval()
    int8 = qlab.convert(one, "reference")
    with torch.no_grad():
        a, b = one(IMAGES), int8(IMAGES)
    assert (a - b).norm() < 0.05 * a.norm()


def test_activations_on_a_float_grid():
    grid = SmallFloat("e4m3")
    one = prepared(SmallFloat("e4m3", PerChannel(0)), activation=grid, elementwise=grid)
    row = one.report()[1]
    assert (row.weight, row.input, row.observer) == (
        "8 bits (e4m3), per channel", "8 bits (e4m3), per tensor", "largest magnitude"
    )  # fmt: skip
    with torch.no_grad():
        a, b = one(IMAGES), network()(IMAGES)
    assert 0 < (a - b).norm() < 0.2 * b.norm()
    half = SmallFloat("bfloat16")
    rows = qlab.prepare(network(), QConfig(half, half, half), IMAGES[:1]).report()
    assert rows[0].weight == rows[0].input == "16 bits (bfloat16)" and rows[0].observer == ""


def test_what_has_no_integer_kernel_is_refused_with_the_way_out():
    expected = r"layer1.0.conv1: weights of KMeans\(bits=4.*no integer kernel.*Binary\(\)"
    one = qlab.prepare(models.resnet20(), QConfig(KMeans(4)))
    with pytest.raises(ValueError, match=expected + r".*overrides=\{'layer1.0.conv1': None\}.*prepared network"):
        qlab.convert(qlab.calibrate(one, [IMAGES], progress=False))
    with pytest.raises(ValueError, match=r"0: weights of SmallFloat\(format='e4m3'"):
        qlab.convert(prepared(SmallFloat("e4m3")))
    grid = SmallFloat("e5m2")
    with pytest.raises(ValueError, match=r"quantizers.input: .*e5m2 are not equally.*QuantSpec\(8\)"):
        qlab.convert(prepared(Binary(), activation=grid, elementwise=grid))
    with pytest.raises(ValueError, match=r"0: weights of 2 bits, signed=True, PerGroup\(size=9\) have no"):
        qlab.convert(prepared(Binary(PerGroup(9)), overrides={"7": None}))


def test_a_grid_that_needs_calibration_says_so():
    for spec in (KMeans(3), SmallFloat("e4m3")):
        one = qlab.prepare(network(), QConfig(spec, None, first_last=None), IMAGES[:1])
        with pytest.raises(RuntimeError, match=r"has not been calibrated.*qlab.calibrate"):
            one(IMAGES)
    quantizer = quantizers.build(SmallFloat("e4m3"))
    with pytest.raises(ValueError, match=r"SmallFloat\(format='e4m3'.*has seen no data: calibrate with"):
        quantizer.freeze()


def test_nothing_that_is_not_finite_becomes_a_grid():
    bad = torch.tensor([[1.0, float("inf")]])
    with pytest.raises(ValueError, match="kmeans: x holds 2 values, 1 of them NaN or infinite; expected"):
        settled(KMeans(2), bad)
    with pytest.raises(ValueError, match="e4m3.*the data hold NaN or infinite values; expected finite"):
        settled(SmallFloat("e4m3"), bad)


def dynamic(**changes):
    return qlab.prepare(network(), QConfig.w8a8(observer="dynamic", **changes), IMAGES[:1])


def test_a_dynamic_range_is_that_of_the_batch():
    one = qlab.calibrate(dynamic(), []).eval()
    assert one.report()[0].observer == "dynamic"
    fixed = qlab.calibrate(qlab.prepare(network(), None, IMAGES[:1]), [IMAGES], progress=False).eval()
    with torch.no_grad():
        rounded = [form.network.quantizers.input(IMAGES) for form in (one, fixed)]
        assert torch.equal(*rounded), "on the batch that the other was calibrated on"
        wide = 100 * IMAGES
        error = [(form(wide) - network()(wide)).norm() / network()(wide).norm() for form in (one, fixed)]
    assert error[0] < 0.05 < 0.5 < error[1], "a range that is not known beforehand cannot be wrong"


def test_each_image_can_have_a_range_of_its_own():
    spec = QuantSpec(8, observer="dynamic", granularity=PerChannel(0))
    one = qlab.calibrate(qlab.prepare(network(), QConfig(activation=spec, elementwise=spec), IMAGES[:1]), []).eval()
    with torch.no_grad():
        alone = torch.cat([one(image[None]) for image in IMAGES])
        assert torch.allclose(one(IMAGES), alone, atol=1e-6), "so the batch that an image is in does not matter"


def test_a_dynamic_network_trains_and_lets_values_pass_when_told_to():
    one = qlab.calibrate(dynamic(), [IMAGES], progress=False).train()
    one(IMAGES).sum().backward()
    assert one.network.get_submodule("3").weight.grad.abs().sum() > 0
    for _, quantizer in one.quantizers():
        quantizer.mode = "off"
    assert torch.allclose(one.eval()(IMAGES), network()(IMAGES), atol=1e-5)


def test_a_dynamic_range_has_no_integer_kernel():
    with pytest.raises(ValueError, match='quantizers.input: .*taken anew from each batch.*"minmax", and calibrate'):
        qlab.convert(qlab.calibrate(dynamic(), []))


def test_weights_alone_need_no_data_but_activations_do():
    one = qlab.calibrate(qlab.prepare(network(), QConfig.preset("w4a32"), IMAGES[:1]), [])
    assert one(IMAGES).isfinite().all()
    half = SmallFloat("float16")
    qlab.calibrate(qlab.prepare(network(), QConfig(half, half, half, None), IMAGES[:1]), [])(IMAGES)
    eight = SmallFloat("e4m3")
    for qconfig in (QConfig.w8a8(), QConfig(eight, eight, eight)):
        with pytest.raises(ValueError, match="calibrate got no batch"):
            qlab.calibrate(qlab.prepare(network(), qconfig, IMAGES[:1]), [])


def test_weight_only_networks_of_few_bits_are_integers_in_memory_and_float_in_arithmetic():
    for name, values in (("w8a32", 255), ("w4a32", 15), ("w2a32", 3)):
        one = qlab.calibrate(qlab.prepare(network(), QConfig.preset(name, first_last=None), IMAGES[:1]), []).eval()
        int8 = qlab.convert(one, "reference")
        with torch.no_grad():
            assert torch.allclose(int8(IMAGES), one(IMAGES), atol=1e-5)
        for layer in int8.layers:
            if hasattr(layer, "weight"):
                assert layer.weight.dtype is torch.int8 and int(layer.weight.max()) == values // 2


@pytest.mark.parametrize("spec", [Binary, Ternary, lambda granularity: KMeans(2, granularity)])
def test_an_axis_counted_from_the_end_is_the_same_axis(spec):
    w = made_weights(3, 1.0, heavy=False)
    front, end = (settled(spec(PerChannel(axis)), w) for axis in (0, -4))
    assert torch.equal(front(w), end(w))
    if not front.found:  # a table of values has no grid
        assert front.integers(w)[1] == end.integers(w)[1]
