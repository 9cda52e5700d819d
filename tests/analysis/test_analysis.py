"""Where the noise comes from, which layers mind, and where bits are well spent."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qlab
from qlab import QConfig, analysis, data, models
from qlab.analysis import BitCost, BitCosts, Front, Sensitivity
from qlab.qconfig import Binary, KMeans, SmallFloat

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


class Net(nn.Module):
    """A first layer, a residual block, max-pooling in front of a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.MaxPool2d(16), nn.Flatten()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.fc(self.flatten(self.pool(self.relu(self.left(x) + self.right(x)))))


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def calibrated(qconfig: QConfig | None = None, net: nn.Module | None = None):
    prepared = qlab.prepare(net or network(), qconfig, IMAGES[:1])
    return qlab.calibrate(prepared, [IMAGES], progress=False)


# ---- SQNR ----


@given(st.integers(0, 10**6), st.floats(-60, 60))
def test_sqnr_is_the_share_of_noise_in_decibel_whatever_the_size_of_both(seed, decibel):
    signal, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise *= signal.norm() / noise.norm() * 10 ** (-decibel / 20)
    assert analysis.sqnr(signal, signal + noise) == pytest.approx(decibel, abs=1e-4)
    assert analysis.sqnr(1e3 * signal, 1e3 * (signal + noise)) == pytest.approx(decibel, abs=1e-4)


def test_a_bit_more_is_worth_six_decibel():
    x = torch.rand(10_000)
    values = [analysis.sqnr(x, qlab.fake_quantize(x, qlab.choose_qparams(0.0, 1.0, bits))) for bits in (4, 5, 6, 7)]
    assert all(5.5 < b - a < 6.6 for a, b in zip(values, values[1:]))


def test_no_noise_and_no_signal():
    one, none = torch.ones(3), torch.zeros(3)
    assert analysis.sqnr(one, one) == analysis.sqnr(none, none) == math.inf
    assert analysis.sqnr(none, one) == -math.inf
    with pytest.raises(ValueError, match=r"shape \(3,\) and a noisy one of shape \(2,\): expected the same tensor"):
        analysis.sqnr(one, one[:2])


def test_each_layers_sqnr_is_that_of_its_tensors_in_the_two_networks():
    prepared = calibrated(QConfig.w4a4(first_last=None))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str, inputs: tuple, output: Tensor) -> None:
        seen.setdefault(name, []).append((inputs[0].clone(), output.clone()))

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: watch(name, inputs, output))
        for name, layer in prepared.weighted()
    ]
    with torch.no_grad():
        prepared(IMAGES)
        for _, quantizer in prepared.quantizers():
            quantizer.mode = "off"
        prepared(IMAGES)
    for _, quantizer in prepared.quantizers():
        quantizer.mode = "quantize"
    for hook in hooks:
        hook.remove()
    table = analysis.layer_sqnr(prepared, [IMAGES[:3], (IMAGES[3:], LABELS[3:])], progress=False)
    assert [row.layer for row in table] == ["stem", "left", "right", "fc"]
    for row in table:
        (quantized_in, quantized_out), (float_in, float_out) = seen[row.layer]
        weight = prepared.network.get_submodule(row.layer).weight
        assert row.input == pytest.approx(analysis.sqnr(float_in, quantized_in), abs=1e-3)
        assert row.output == pytest.approx(analysis.sqnr(float_out, quantized_out), abs=1e-3)
        assert row.weight == pytest.approx(
            analysis.sqnr(weight, dict(prepared.weighted())[row.layer].weight_quantizer(weight))
        )
    assert "weights, input, output" in str(table) and "<td" in table._repr_html_()


def test_more_bits_more_decibel_and_float_is_without_noise():
    few, many = (
        analysis.layer_sqnr(calibrated(QConfig.preset(name, first_last=None)), [IMAGES]) for name in ("w4a4", "w8a8")
    )
    assert all(a.output < b.output for a, b in zip(few, many))
    half = SmallFloat("bfloat16")
    assert all(40 < row.output < 60 for row in analysis.layer_sqnr(calibrated(QConfig(half, half, half)), [IMAGES]))
    weights_alone = analysis.layer_sqnr(calibrated(QConfig.preset("w4a32")), [IMAGES])
    assert weights_alone[0].input == math.inf


def test_looking_changes_nothing():
    prepared = calibrated(QConfig.w4a4()).train()
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    modes = [quantizer.mode for _, quantizer in prepared.quantizers()]
    analysis.layer_sqnr(prepared, [IMAGES], progress=False)
    analysis.sensitivity(prepared, [(IMAGES, LABELS)], progress=False)
    assert prepared.training and modes == [quantizer.mode for _, quantizer in prepared.quantizers()]
    assert all(torch.equal(before[name], tensor) for name, tensor in prepared.state_dict().items())


# ---- sensitivity ----


FEW = QConfig.preset("w2a32", first_last=None)


@pytest.mark.parametrize("alone", [True, False])
def test_the_layer_that_cannot_do_with_few_bits_is_found_both_ways(alone):
    prepared = calibrated(QConfig.preset("w8a32", overrides={"right": FEW}))
    table = analysis.sensitivity(prepared, [IMAGES], alone=alone, progress=False)
    values = [row.sqnr for row in table]
    assert table[0].layer == "right"
    assert values == sorted(values, reverse=not alone)
    assert ("only this layer" if alone else "all layers but this one") in table.headline
    assert "loss" not in str(table), "there were no labels"


def test_one_layer_alone_means_its_weights_and_its_input_and_nothing_else():
    net = network()
    prepared = calibrated(QConfig.w4a4(first_last=None), net)
    rows = {row.layer: row for row in analysis.sensitivity(prepared, [(IMAGES, LABELS)], progress=False)}
    with torch.no_grad():
        x = net.flatten(
            net.pool(net.relu(net.left(net.relu(net.stem(IMAGES))) + net.right(net.relu(net.stem(IMAGES)))))
        )
        source = prepared.network.quantizers.get_submodule("add").qparams
        fc = prepared.network.fc
        logits = nn.functional.linear(qlab.fake_quantize(x, source), fc.weight_quantizer(fc.weight), fc.bias)
    assert rows["fc"].sqnr == pytest.approx(analysis.sqnr(net(IMAGES), logits), abs=1e-3)
    assert rows["fc"].loss == pytest.approx(float(nn.functional.cross_entropy(logits, LABELS)), abs=1e-4)
    assert rows["fc"].accuracy == 100 * float((logits.argmax(1) == LABELS).float().mean())


def test_a_dataset_will_do_too():
    some = data.shapes10("validation").sample(6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    prepared = qlab.calibrate(qlab.prepare(net, QConfig.w2a2()), some.batches(6), progress=False)
    assert analysis.sensitivity(prepared, some)[:] == analysis.sensitivity(prepared, some.batches(6))[:]


def test_the_worst_layers_stay_in_float_or_keep_more_bits():
    net = network()
    plain = QConfig.w6a6(observer="percentile", overrides={"stem": QConfig.w8a8(), "right": QConfig.w2a2()})
    rows = analysis.sensitivity(calibrated(plain, net), [IMAGES], progress=False)
    assert rows[0].layer == "right"
    kept = analysis.selective(rows, plain, 1, bits=8)
    assert kept.overrides["right"].weight.bits == kept.overrides["right"].activation.bits == 8
    assert kept.overrides["stem"] == QConfig.w8a8() and plain.overrides["right"] == QConfig.w2a2()
    in_float = analysis.selective(rows, plain, 1)
    assert calibrated(in_float, net).report().in_float == ("right",)
    with torch.no_grad():
        better, best, before = (
            analysis.sqnr(net(IMAGES), calibrated(qconfig, net)(IMAGES)) for qconfig in (kept, in_float, plain)
        )
    assert min(better, best) > before + 3
    assert analysis.selective(rows, plain, 0) == plain
    with pytest.raises(ValueError, match="worst=9: expected 0 to 4, the number of rows"):
        analysis.selective(rows, plain, 9)
    assert (
        analysis.selective([Sensitivity("fc", 1.0)], QConfig.preset("w1a1"), 1, bits=4).overrides["fc"].weight.bits == 4
    )


# ---- mixed precision ----


def made_costs(sizes: list[int], noises: list[list[float]]) -> BitCosts:
    bits = (2, 4, 8)
    rows = [
        BitCost(f"layer{i}", b, size * b, -10 * math.log10(noise))
        for i, (size, noise) in enumerate(zip(sizes, noises)) for b, noise in zip(bits, noise)
    ]  # fmt: skip
    return BitCosts(rows, QConfig.w8a8(), {f"layer{i}": QConfig.w8a8() for i in range(len(sizes))})


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 500),
)
@settings(max_examples=60)
def test_no_choice_within_the_budget_is_better_by_exhaustion(layers, extra):
    sizes, noises = [size for size, _ in layers], [noise for _, noise in layers]
    costs = made_costs(sizes, noises)
    budget = 2 * sum(sizes) + extra
    chosen = Front(costs).best(budget)
    by_layer = [[cost for cost in costs if cost.layer == f"layer{i}"] for i in range(len(sizes))]
    best = min(
        sum(cost.noise for cost in choice) for choice in product(*by_layer)
        if sum(cost.size_bytes for cost in choice) <= budget
    )  # fmt: skip
    assert chosen.noise == pytest.approx(best, rel=1e-9)
    own = [next(c for c in options if c.bits == chosen.bits[c.layer]) for options in by_layer]
    assert sum(cost.size_bytes for cost in own) == chosen.size_bytes <= budget
    assert sum(cost.noise for cost in own) == pytest.approx(chosen.noise)


def test_along_the_front_more_bytes_mean_less_noise():
    front = Front(made_costs([3, 5, 7], [[0.5, 0.1, 0.01], [0.4, 0.2, 0.02], [0.1, 0.2, 0.05]]))
    assert (front.size_bytes[1:] > front.size_bytes[:-1]).all() and (front.noise[1:] < front.noise[:-1]).all()
    assert front.best(10**9).bits == {"layer0": 8, "layer1": 8, "layer2": 8}
    assert front.best(35).bits["layer2"] == 2, "a width that is larger and noisier is never chosen"
    with pytest.raises(ValueError, match="budget_bytes=29: the smallest choice has 30 bytes of weights; expected"):
        front.best(29)


def test_the_cost_of_a_width_is_the_noise_of_that_layer_alone():
    net = network()
    costs = analysis.bit_costs(net, [IMAGES], (3, 8), progress=False)
    assert [(cost.layer, cost.bits) for cost in costs][:2] == [("stem", 3), ("stem", 8)] and len(costs) == 8
    cost = costs[2]
    assert (cost.layer, cost.size_bytes) == ("left", 8 * 8 * 9 * 3 // 8)
    spec = replace(QConfig.weight, bits=3)
    with torch.no_grad():
        expected = net(IMAGES)
        scale = net.left.weight.abs().amax((1, 2, 3)) / 3
        net.left.weight.copy_((net.left.weight / scale[:, None, None, None]).round() * scale[:, None, None, None])
        assert cost.sqnr == pytest.approx(analysis.sqnr(expected, net(IMAGES)), abs=0.01)
    assert costs.choose({"left": 3}).overrides["left"].weight == spec


def test_what_comes_before_a_layer_runs_once_for_all_its_widths(monkeypatch):
    runs, forward = [], nn.Conv2d._conv_forward

    def counted(layer, x, weight, bias):
        runs.append(tuple(x.shape[:2]))
        return forward(layer, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counted)
    costs = analysis.bit_costs(network(), [IMAGES[:5], IMAGES[5:]], (2, 3, 4, 5), progress=False)
    assert runs.count((5, 3)) == runs.count((3, 3)) == 1 + 4 + 1, "the float answer, its own widths, what follows"
    whole = analysis.bit_costs(network(), [IMAGES], (2, 3, 4, 5), progress=False)
    assert [cost.sqnr for cost in costs] == pytest.approx([cost.sqnr for cost in whole], abs=1e-3)


def test_the_choice_is_a_configuration_of_the_size_that_was_asked_for():
    overrides = {"right": None}
    qconfig = QConfig.w4a4(overrides=overrides)
    budget = analysis.weight_bytes(qlab.prepare(network(), QConfig.w4a4(overrides=overrides), IMAGES[:1]))
    chosen = analysis.mixed_precision(network(), [(IMAGES, LABELS)], budget, qconfig=qconfig, progress=False)
    assert list(chosen.bits) == ["stem", "left", "fc"] and chosen.size_bytes <= budget
    prepared = calibrated(chosen.qconfig)
    assert analysis.weight_bytes(prepared) == chosen.size_bytes
    assert {name: layer.weight_quantizer.spec.bits for name, layer in prepared.weighted()} == chosen.bits
    rows = {row.layer: row for row in prepared.report()}
    assert rows["right"].float_because and rows["left"].input.startswith("4 bits")
    assert rows["fc"].input.startswith("8 bits"), "the activations of first and last layer as without a search"
    assert f"{chosen.size_bytes:,} bytes of weights, {chosen.sqnr:.1f} dB predicted" in str(chosen)
    assert "stem" in str(chosen) and len(str(chosen).splitlines()) == 3 + 1 + 3
    tables = QConfig(KMeans(4), None, first_last=None)
    tables = analysis.mixed_precision(network(), [IMAGES], 400, (1, 4), qconfig=tables, progress=False)  # fmt: skip
    assert tables.qconfig.overrides["left"].weight == KMeans(tables.bits["left"])


def test_a_network_of_mixed_bits_beats_one_of_equal_bits_and_size():
    """On ResNet-20, judged on other images than those that the search has seen."""
    net = models.load("resnet20", data="shapes10")
    images = data.shapes10("validation").sample(208)
    some, others = images.subset(slice(8)), images.subset(slice(8, None))
    uniform = QConfig.preset("w3a32", first_last=None)
    budget = analysis.weight_bytes(qlab.prepare(net, uniform))
    chosen = analysis.mixed_precision(net, some.batches(8), budget, (2, 3, 4), qconfig=uniform, progress=False)
    assert len(set(chosen.bits.values())) > 1 and chosen.size_bytes <= budget
    ((x, _),) = others.batches(200)
    with torch.no_grad():
        mixed, equal = (
            analysis.sqnr(net(x), qlab.calibrate(qlab.prepare(net, qconfig), [])(x))
            for qconfig in (chosen.qconfig, uniform)
        )
    assert mixed > equal + 0.5


def test_what_cannot_be_searched_is_refused():
    for empty in (lambda: analysis.sensitivity(calibrated(), []),
                  lambda: analysis.layer_sqnr(calibrated(), []),
                  lambda: analysis.bit_costs(network(), [])):  # fmt: skip
        with pytest.raises(ValueError, match=r"got no batch: give it at least one, for instance data.sample\(256\)"):
            empty()
    for bits in ((), (4, 4)):
        with pytest.raises(ValueError, match="bits=.*expected at least one width, and none twice"):
            analysis.bit_costs(network(), [IMAGES], bits)
    with pytest.raises(ValueError, match=r"weight=Binary\(.*has one width only; expected a QuantSpec or KMeans"):
        analysis.bit_costs(network(), [IMAGES], qconfig=QConfig(Binary()))
    with pytest.raises(ValueError, match="at least 2 bits"):
        analysis.bit_costs(network(), [IMAGES], (1,))
    for look in (analysis.sensitivity, analysis.layer_sqnr):
        with pytest.raises(RuntimeError, match="has not been calibrated"):
            look(qlab.prepare(network(), None, IMAGES[:1]), [IMAGES])
