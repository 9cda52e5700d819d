"""What a configuration says, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab import PerChannel, PerGroup, PerTensor, QConfig, QuantSpec, choose_qparams, models
from qlab.affine import grid_limits
from qlab.granularity import Granularity
from qlab.qconfig import Binary, KMeans


@given(st.integers(2, 16), st.integers(1, 16))
def test_a_preset_says_the_bits_of_weights_and_activations(weight, activation):
    qconfig = QConfig.preset(f"w{weight}a{activation}")
    assert (qconfig.weight.bits, qconfig.activation.bits, qconfig.elementwise.bits) == (weight, activation, 8)
    assert qconfig.weight.signed and qconfig.weight.symmetric and qconfig.weight.granularity == PerChannel(0)
    assert not qconfig.activation.signed and qconfig.activation.granularity == PerTensor()


@pytest.mark.parametrize("name", ["w8a8", "w6a6", "w4a8", "w4a4", "w3a3", "w2a2"])
def test_the_usual_ones_have_a_method(name):
    assert getattr(QConfig, name)(first_last=None) == QConfig.preset(name, first_last=None)


def test_a32_leaves_activations_in_float():
    assert QConfig.preset("w4a32").activation is None


def test_the_observer_of_the_activations_can_be_chosen():
    qconfig = QConfig.w8a8(observer="mse")
    assert (qconfig.weight.observer, qconfig.activation.observer, qconfig.elementwise.observer) == (
        "minmax",
        "mse",
        "mse",
    )


def test_reduce_range_takes_one_bit_from_the_weights_only():
    qconfig = QConfig.w8a8(reduce_range=True)
    assert (qconfig.weight.bits, qconfig.activation.bits, qconfig.elementwise.bits) == (7, 8, 8)
    assert QConfig.w4a4(reduce_range=True).weight.bits == 4
    for low in (qconfig, QConfig.w4a4(reduce_range=True), QConfig.preset("w1a4", reduce_range=True)):
        assert low.layer("conv1", nn.Conv2d(1, 1, 1), edge=True).weight.bits == 7, "the first layer's too"
    assert QConfig.w4a4(reduce_range=True, first_last=None).first_last is None


def test_two_products_of_a_reduced_range_fit_16_bits():
    qconfig = QConfig.w8a8(reduce_range=True)
    specs = qconfig.weight, qconfig.activation
    (lowest, highest), (_, largest) = (grid_limits(s.bits, s.signed, s.narrow_range) for s in specs)
    assert -(2**15) <= 2 * largest * lowest and 2 * largest * highest < 2**15


@pytest.mark.parametrize("name", ["w8", "8a8", "w8a8x", "int8", ""])
def test_a_preset_that_nobody_knows_is_refused(name):
    with pytest.raises(ValueError, match=r"preset .*: expected w<bits>a<bits>, such as 'w8a8' or 'w4a32'"):
        QConfig.preset(name)


@pytest.mark.parametrize("bits", [0, 17, 8.0, True, "8"])
def test_bits_are_whole_and_from_1_to_16(bits):
    with pytest.raises(ValueError, match="bits=.*expected a whole number from 1 to 16"):
        QuantSpec(bits)


def test_forms_without_a_grid_are_refused_at_once():
    with pytest.raises(ValueError, match="narrow_range=True with signed=False"):
        QuantSpec(8, narrow_range=True)
    with pytest.raises(ValueError, match="bits=1, signed and symmetric: its codes are -1 and 0; expected at least 2"):
        QuantSpec(1, signed=True, symmetric=True)


def test_overrides_are_names_or_types_and_configurations_or_none():
    with pytest.raises(ValueError, match="overrides key 3: expected a layer's name or a module type"):
        QConfig(overrides={3: None})
    with pytest.raises(ValueError, match="overrides.*'fc'.* = 'float': expected a QConfig, or None"):
        QConfig(overrides={"fc": "float"})


def test_the_nearest_override_wins():
    two, three = QConfig.w2a2(), QConfig.w3a3()
    qconfig = QConfig.w8a8(overrides={"layer1": two, "layer1.0.conv": None, nn.Linear: three})
    conv, linear = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
    assert qconfig.layer("layer1.0.conv", conv) is None
    assert qconfig.layer("layer1.1.conv", conv) is two
    assert qconfig.layer("layer1.fc", linear) is two, "a name beats a type"
    assert qconfig.layer("fc", linear) is three
    assert qconfig.layer("layer10.conv", conv) is qconfig, "layer1 is not a prefix of letters but of the path"


def test_first_and_last_layers_get_their_bits_unless_an_override_names_them():
    qconfig = QConfig.w4a4(overrides={"fc": QConfig.w3a3()})
    conv, linear = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
    assert qconfig.layer("conv", conv, edge=True).weight.bits == 8
    assert qconfig.layer("conv", conv).weight.bits == 4
    assert qconfig.layer("fc", linear, edge=True).weight.bits == 3
    assert QConfig.w4a4(first_last=None).layer("conv", conv, edge=True).weight.bits == 4
    assert QConfig.preset("w4a32").layer("conv", conv, edge=True).activation is None


def test_shortcuts_get_their_bits_unless_an_override_names_them():
    conv = nn.Conv2d(1, 1, 1)
    qconfig = QConfig.preset("w1a1", shortcuts=4, overrides={"named": QConfig.w3a3()})
    widened = qconfig.layer("conv", conv, shortcut=True)
    assert (widened.weight.bits, widened.activation.bits) == (4, 4)
    assert qconfig.layer("conv", conv, edge=True, shortcut=True).weight.bits == 8, "the larger of the two"
    assert qconfig.layer("named", conv, shortcut=True).weight.bits == 3
    assert QConfig.preset("w1a1").layer("conv", conv, shortcut=True).weight.bits == 1


@pytest.mark.parametrize("granularity, shape", [(PerTensor(), ()), (PerChannel(1), (6,)), (PerGroup(3), (2, 4))])
def test_a_spec_makes_the_grid_of_its_form(granularity, shape):
    spec = QuantSpec(5, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    one = choose_qparams(-1.0, 1.0, bits=5, signed=True, symmetric=True, narrow_range=True)
    grid = spec.qparams(one.scale.expand(shape), one.zero_point.expand(shape))
    assert (grid.bits, grid.signed, grid.narrow_range, grid.granularity) == (5, True, True, granularity)


@pytest.mark.parametrize("granularity", [0, None, PerChannel, Granularity()])
def test_a_spec_names_one_of_the_three_granularities(granularity):
    with pytest.raises(
        ValueError, match=r"granularity=.*: expected PerTensor\(\), PerChannel\(axis\) or PerGroup\(size\)"
    ):
        QuantSpec(granularity=granularity)


@pytest.mark.parametrize("name, weight, inputs", [
    ("w1a1", "1 bit (binary), per channel", "1 bit, per tensor"),
    ("w1a2", "1 bit (binary), per channel", "2 bits, per tensor"),
    ("w1a32", "1 bit (binary), per channel", ""),
])  # fmt: skip
def test_the_shorthand_of_one_bit_means_binary_and_keeps_8_bits_at_the_ends(name, weight, inputs):
    rows = {row.layer: row for row in qlab.prepare(models.resnet20(), QConfig.preset(name)).report()}
    assert (rows["layer1.0.conv1"].weight, rows["layer1.0.conv1"].input) == (weight, inputs)
    for end in ("conv1", "fc"):
        assert rows[end].weight == "8 bits, per channel"
        assert rows[end].input == ("8 bits, per tensor" if inputs else "")


def test_grids_made_from_weights_are_not_for_activations():
    for role in ("activation", "elementwise"):
        with pytest.raises(ValueError, match=rf"{role}=Binary.*from weights.*QuantSpec\(bits=1\), or a"):
            QConfig(**{role: Binary()})


@pytest.mark.parametrize("bits", [0, 9, 2.0, True])
def test_a_table_has_2_to_256_values(bits):
    with pytest.raises(ValueError, match=r"bits=.*expected a whole number from 1 to 8"):
        KMeans(bits)
