"""shapes10: the same images everywhere, every class as often, each shape what its name says."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.data import shapes, shapes10

drawing = shapes
Dice, FIELDS, shapes10_kept = drawing.Dice, drawing.FIELDS, drawing.shapes10_kept

coordinates = st.floats(-2, 2, width=32)


@pytest.fixture(scope="module")
def validation():
    return shapes10("validation")


# --- the data set


def test_the_images_are_the_same_on_every_machine(validation):
    # The committed networks were trained on these very images: another digest means training them again.
    assert hashlib.sha256(validation.images.numpy().tobytes()).hexdigest() == (
        "1249cb7a5454328b3d79a36d571f20b612acf086306f52f393af0dffe6ce3013"
    )
    train = [drawing.draw(label, 3, Dice(0, 0, label)) for label in range(10)]
    assert hashlib.sha256(np.stack(train).tobytes()).hexdigest() == (
        "b59e650c334a391904baaf87a3d4e65c728d0d90c085e842f8beecc9c1f3482e"
    )


def test_every_class_is_there_as_often(validation):
    assert torch.bincount(validation.labels).tolist() == [200] * 10
    assert torch.bincount(validation.labels[:30]).tolist() == [3] * 10  # at any beginning, too
    assert validation.images.shape == (2000, 3, 32, 32) and len(validation.classes) == 10


def test_the_splits_and_seeds_have_other_images(validation, monkeypatch):
    monkeypatch.setattr(drawing, "SIZES", {"train": 100, "validation": 100, "test": 100})
    kinds = [
        shapes10("train"),
        shapes10("validation"),
        shapes10("test"),
        shapes10("train", seed=1),
        shapes10("test", seed=1),
    ]
    images = {image.numpy().tobytes() for kind in kinds for image in kind.images}
    assert len(images) == 500
    assert [kind.source for kind in kinds] == ["shapes10"] * 3 + ["shapes10, seed 1"] * 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and few images to draw."""
    monkeypatch.setenv("QLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(drawing, "SIZES", dict.fromkeys(drawing.SIZES, 20))
    return tmp_path / "data"


def test_the_lessons_images_are_drawn_once_and_kept_until_other_code_draws_them(folder, monkeypatch):
    folder.mkdir()
    for name in ("shapes10-test-00000000.safetensors", "shapes10-train-00000000.safetensors"):
        (folder / name).write_bytes(b"drawn by other code")
    first = shapes10_kept("test")
    assert len(list(folder.glob("shapes10-test-*"))) == len(list(folder.glob("shapes10-train-*"))) == 1
    assert not (folder / "shapes10-test-00000000.safetensors").exists()
    monkeypatch.setattr(drawing, "shapes10", lambda split: pytest.fail("drawn again"))
    again = shapes10_kept("test")
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert torch.equal(again.images, shapes10("test").images)


def test_a_damaged_file_is_drawn_anew(folder):
    first = shapes10_kept("test")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert torch.equal(shapes10_kept("test").images, first.images)
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_the_images_are_drawn_all_the_same(folder):
    folder.write_text("a file, no folder")
    assert torch.equal(shapes10_kept("test").images, shapes10("test").images)


def test_a_split_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="split 'tests': expected one of 'train', 'validation', 'test'"):
        shapes10_kept("tests")
    assert not folder.exists()


def test_mean_and_deviation_are_the_ones_it_says(validation):
    pixels = validation.images.double() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(validation.mean).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(validation.std).double(), atol=0.01, rtol=0)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split 'dev': expected one of 'train', 'validation', 'test'"):
        shapes10("dev")


# --- the shapes


@pytest.mark.parametrize("name", FIELDS)
@given(x=coordinates, y=coordinates, u=coordinates, v=coordinates)
def test_a_distance_never_changes_faster_than_one_moves(name, x, y, u, v):
    """The law of a distance field; an edge is then one pixel wide, however large the shape."""
    here, there = (FIELDS[name](np.float32([a]), np.float32([b]))[0] for a, b in ((x, y), (u, v)))
    assert abs(here - there) <= np.hypot(x - u, y - v) * 1.001 + 1e-5


INSIDE = {  # a point in the shape, and one beside it, that tell it from its neighbours
    "circle": [(0, 0), (0.6, -0.6)],
    "ring": [(0.72, 0), (0, -0.72)],
    "crescent": [(-0.6, 0), (0.3, 0.85)],
    "semicircle": [(0, 0), (0.7, -0.35)],
    "square": [(0, 0), (0.75, -0.75)],
    "cross": [(0.9, 0), (0, -0.9)],
    "triangle": [(0, 0.5), (0.85, 0.5), (-0.85, 0.5), (0, -1)],
    "hexagon": [(0, 0.8), (0.9, 0)],
    "heart": [(0, 0), (0.5, -0.3), (0, 0.95)],
    "star": [(0, 0), (0, -0.3), (0, 1)],
}
OUTSIDE = {
    "circle": [(0.66, 0.66), (0.95, 0)],
    "ring": [(0, 0), (0.4, 0), (1, 0)],
    "crescent": [(0.5, 0), (0, 0)],
    "semicircle": [(0, -0.5), (0, 0.6)],
    "square": [(0.85, 0), (0, 0.85)],
    "cross": [(0.5, 0.5), (1.05, 0)],
    "triangle": [(0, 0.6), (0.8, -0.5)],
    "hexagon": [(0, 0.9), (0.75, 0.75)],
    "heart": [(0, -0.75), (0.9, 0.8)],
    "star": [(0, -0.5), (0.5, 0.7)],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_distance_is_negative_inside_the_shape_and_positive_outside(name):
    value = lambda points: FIELDS[name](*np.float32(points).T)  # noqa: E731
    assert (value(INSIDE[name]) < 0).all(), value(INSIDE[name])
    assert (value(OUTSIDE[name]) > 0).all(), value(OUTSIDE[name])


def test_no_two_shapes_cover_the_same_pixels():
    y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
    masks = {name: field(x, y) < 0 for name, field in FIELDS.items()}
    assert tuple(masks) == drawing.CLASSES
    for one in masks:
        assert 0.1 < masks[one].mean() < 0.8
        for other in masks:
            if one != other:
                assert (masks[one] ^ masks[other]).sum() > 0.05 * (masks[one] | masks[other]).sum(), (
                    one,
                    other,
                )


def test_paint_covers_what_is_inside_and_half_of_an_edge_pixel():
    image = np.full((1, 3, 1, 4), 10, np.float32)
    distance = np.float32([[[-5, 0, 0.25, 5]]])
    drawing.paint(image, distance, np.float32([50, 10, 90]).reshape(1, 3, 1, 1))
    assert image[0].tolist() == [[[50, 30, 20, 10]], [[10, 10, 10, 10]], [[90, 50, 30, 10]]]


def test_each_image_shows_its_shape_in_another_colour():
    """Its colour differs from the ground's by what was asked for, in every channel."""
    dice = Dice(3)
    ground = dice.uniform(40, 215, 500, 3, 1, 1)
    step = np.abs(drawing.another_colour(ground, 500, dice) - ground)
    assert step.min() >= 45 * 0.5 - 0.01 and step.max() <= 150.01


# --- the dice


@given(seed=st.integers(0, 2**40), high=st.integers(1, 2**32))
def test_integers_are_below_their_bound(seed, high):
    rolled = Dice(seed).integers(high, 4, 5)
    assert rolled.shape == (4, 5) and rolled.min() >= 0 and rolled.max() < high


@given(seed=st.integers(0, 2**40), low=st.floats(-200, 200), width=st.floats(0.5, 200))
def test_uniform_numbers_lie_between_their_bounds(seed, low, width):
    rolled = Dice(seed).uniform(low, low + width, 100)
    assert rolled.dtype == np.float32 and rolled.min() >= low - 1e-4 and rolled.max() <= low + width + 1e-4


def test_the_dice_are_fair():
    counts = np.bincount(Dice(1).integers(6, 60_000))
    assert (np.abs(counts - 10_000) < 400).all()  # 4 standard deviations are 365
    uniform = Dice(2).uniform(0, 1, 60_000)
    assert abs(uniform.mean() - 0.5) < 0.006 and abs(uniform.std() - 12**-0.5) < 0.003
    noise = Dice(3).noise(3, 20_001)  # not a multiple of the four that come at a time
    assert noise.shape == (3, 20_001) and abs(noise.mean()) < 0.01 and abs(noise.std() - 6**-0.5) < 0.005


def test_the_raw_numbers_are_pcg64s():
    """What numpy promises never to change; its distributions it may."""
    assert Dice(7)._bits.random_raw(2).tolist() == np.random.PCG64(np.random.SeedSequence([7])).random_raw(2).tolist()
    assert Dice(7).integers(2**32, 1)[0] == int(np.random.PCG64(np.random.SeedSequence([7])).random_raw()) >> 32
