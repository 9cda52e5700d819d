"""Which values share a scale: shapes, broadcasting, and the rows that observers look at."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.granularity import Granularity, PerChannel, PerGroup, PerTensor


@st.composite
def tensors_and_granularities(draw):
    """A tensor in any memory order, and a granularity that fits it."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    x = torch.arange(float(torch.Size(shape).numel())).reshape([shape[dim] for dim in order])
    x = x.permute([order.index(dim) for dim in range(len(shape))])
    row = torch.Size(shape[1:]).numel()
    sizes = [size for size in range(1, row + 1) if row % size == 0]
    return x, draw(
        st.one_of(
            st.just(PerTensor()),
            st.builds(PerChannel, st.integers(-len(shape), len(shape) - 1)),
            st.builds(PerGroup, st.sampled_from(sizes)),
        )
    )


@settings(max_examples=200)
@given(tensors_and_granularities())
def test_blocks_hold_the_values_that_share_a_scale(case):
    x, granularity = case
    shape = granularity.scale_shape(x.shape)
    blocks = granularity.blocks(x)
    assert blocks.shape == (torch.Size(shape).numel(), x.numel() // torch.Size(shape).numel())
    # what align broadcasts to every value is the number of its block
    view, number = granularity.align(x, torch.arange(len(blocks)).reshape(shape))
    number = number.expand_as(view).reshape(x.shape)
    for block, values in enumerate(blocks):
        assert sorted(values.tolist()) == sorted(x[number == block].tolist())


@settings(max_examples=100)
@given(tensors_and_granularities())
def test_counting_axes_from_the_front_changes_nothing_but_the_spelling(case):
    x, granularity = case
    canonical = granularity.of(x.shape)
    assert canonical.scale_shape(x.shape) == granularity.scale_shape(x.shape)
    assert torch.equal(canonical.blocks(x), granularity.blocks(x))
    assert canonical.of(x.shape) == canonical
    if isinstance(granularity, PerChannel):
        assert canonical == PerChannel(granularity.axis % x.ndim)
    else:
        assert canonical == granularity


@settings(max_examples=100)
@given(tensors_and_granularities())
def test_align_keeps_every_value_at_its_place(case):
    x, granularity = case
    (view,) = granularity.align(x)
    assert torch.equal(view.reshape(x.shape), x)


def test_groups_are_consecutive_values_of_a_row():
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert PerGroup(3).blocks(x).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_channels_last_image_is_observed_without_a_copy():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert PerTensor().blocks(x).data_ptr() == x.data_ptr()
    assert PerChannel(0).blocks(x).data_ptr() == x.data_ptr()


def test_an_empty_tensor_has_empty_blocks():
    assert PerTensor().blocks(torch.empty(0, 3)).shape == (1, 0)
    assert PerChannel(1).blocks(torch.empty(0, 3)).shape == (3, 0)
    assert PerChannel(0).blocks(torch.empty(0, 3)).shape == (0, 3)
    assert PerGroup(3).blocks(torch.empty(0, 6)).shape == (0, 3)


def test_granularities_compare_and_hash_by_value():
    assert PerChannel(1) == PerChannel(1) != PerChannel(0)
    assert len({PerTensor(), PerTensor(), PerGroup(32), PerGroup(64)}) == 3


@pytest.mark.parametrize(
    ("granularity", "shape", "words"),
    [
        (PerChannel(4), (2, 3), "axis 4 is not in a tensor of shape (2, 3): its axes are -2 to 1"),
        (PerChannel(-3), (2, 3), "axis -3 is not in a tensor of shape (2, 3)"),
        (PerChannel(0), (), "none: use PerTensor()"),
        (
            PerGroup(5),
            (2, 12),
            "group size 5 does not divide the 12 values a row of shape (2, 12): expected one of 1, 2, 3",
        ),
        (PerGroup(2), (), "got one number of shape (): use PerTensor()"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(granularity, shape, words):
    with pytest.raises(ValueError) as error:
        granularity.scale_shape(shape)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerGroup(0), "group size 0: expected at least 1"),
        (lambda: PerGroup(2.0), "group size 2.0: expected a whole number"),
        (lambda: PerChannel(None), "axis None: expected a whole number"),
        (lambda: PerChannel(True), "axis True: expected a whole number"),
    ],
)
def test_a_granularity_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_base_class_is_no_granularity():
    with pytest.raises(TypeError, match="use PerTensor"):
        Granularity().scale_shape((2, 3))


def test_an_axis_that_the_shape_does_not_have_has_no_spelling_from_the_front():
    with pytest.raises(ValueError, match=r"axis -5 is not in a tensor of shape \(8, 3, 3, 3\): its axes are -4 to 3"):
        PerChannel(-5).of((8, 3, 3, 3))
