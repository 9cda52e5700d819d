"""A data set and how a network is fed from it: normalization, order, augmentation, balanced samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.data.dataset import Dataset, shift_and_mirror

CLASSES = ("cat", "dog", "ship")


def numbered(count: int, labels: torch.Tensor | None = None, side: int = 8) -> Dataset:
    """Image i has the value i in every pixel, so that it is known again."""
    images = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, side, side).contiguous()
    labels = torch.arange(count) % 3 if labels is None else labels
    return Dataset(images, labels, CLASSES, "numbers", "train", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def numbers(x: torch.Tensor) -> list[int]:
    """Which images these are."""
    return (x[:, 0, 4, 4] * 255).round().int().tolist()


# --- what it is made of


@pytest.mark.parametrize(
    "images, complaint",
    [
        (torch.zeros(3, 3, 8, 8), r"images are torch.float32 \(3, 3, 8, 8\): expected uint8 \(N, 3, H, W\)"),
        (torch.zeros(3, 8, 8, 3, dtype=torch.uint8), r"images are torch.uint8 \(3, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"images are torch.uint8 \(3, 8, 8\)"),
    ],
)
def test_images_of_another_form_are_refused(images, complaint):
    with pytest.raises(ValueError, match=complaint):
        Dataset(images, torch.zeros(3, dtype=torch.int64), CLASSES, "", "train", (0,) * 3, (1,) * 3)


@pytest.mark.parametrize(
    "labels, complaint",
    [
        (torch.tensor([0, 1]), r"labels are torch.int64 \(2,\): expected int64 \(3,\), one an image"),
        (torch.tensor([0.0, 1.0, 2.0]), r"labels are torch.float32"),
        (torch.tensor([0, 1, 3]), r"labels from 0 to 3: expected 0 to 2, an index into the 3 classes"),
        (torch.tensor([-1, 1, 2]), r"labels from -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        numbered(3, labels)


def test_it_shows_itself_in_a_line_and_not_as_numbers():
    assert repr(numbered(6)) == "Dataset(numbers, train split: 6 images of 8x8 in 3 classes)"


def test_two_data_sets_can_be_compared_and_collected():
    one, other = numbered(3), numbered(3)
    assert one == one and one != other and len({one, other}) == 2


# --- normalization


def test_normalized_pixels_have_mean_zero_and_variance_one():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    pixels = images.double() / 255
    mean, std = (tuple(f(dim=(0, 2, 3)).tolist()) for f in (pixels.mean, pixels.std))
    x, _ = next(Dataset(images, torch.zeros(50, dtype=torch.int64), CLASSES, "", "train", mean, std).batches(50))
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)


def test_each_channel_has_its_own_mean_and_deviation():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    data = Dataset(images, torch.tensor([0]), CLASSES, "", "train", (0.5, 0.2, 0.0), (0.5, 1.0, 0.25))
    torch.testing.assert_close(data.normalize(images).flatten(), torch.tensor([-1.0, 0.0, 4.0]), atol=1e-6, rtol=0)


# --- batches


@given(count=st.integers(1, 40), size=st.integers(1, 50), shuffle=st.booleans(), augment=st.booleans())
def test_an_epoch_shows_each_image_once_with_its_label(count, size, shuffle, augment):
    seen = [
        (n, y)
        for x, ys in numbered(count).batches(size, shuffle=shuffle, augment=augment)
        for n, y in zip(numbers(x), ys.tolist())
    ]
    assert sorted(seen) == [(n, n % 3) for n in range(count)]


def test_only_the_last_batch_is_smaller():
    assert [len(y) for _, y in numbered(10).batches(4)] == [4, 4, 2]


def test_the_order_is_the_data_sets_unless_shuffled_and_the_seed_decides_it():
    data = numbered(40)

    def order(**options) -> list[int]:
        return [n for x, _ in data.batches(7, **options) for n in numbers(x)]

    assert order() == list(range(40))
    assert order(shuffle=True, seed=3) == order(shuffle=True, seed=3)
    assert order(shuffle=True, seed=3) != order(shuffle=True, seed=4)
    torch.manual_seed(5)  # the global seed has no say
    assert order(shuffle=True, seed=3) == order(shuffle=True, seed=3)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_an_error_at_once(size):
    with pytest.raises(ValueError, match=f"batch size {size}: expected 1 or more"):
        numbered(3).batches(size)


def test_an_empty_split_is_an_error_at_once():
    with pytest.raises(ValueError, match="the train split of numbers is empty"):
        numbered(3).subset(slice(0, 0)).batches(4)


# --- augmentation


def possible(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """Every image that shifting and mirroring may make of one."""
    side = image.shape[-1]
    wide = torch.nn.functional.pad(image[None].float(), (pad,) * 4, mode="reflect")[0].to(torch.uint8)
    crops = [wide[:, r : r + side, c : c + side] for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
    return crops + [crop.flip(-1) for crop in crops]


@given(seed=st.integers(0, 2**31), pad=st.integers(0, 3))
def test_an_augmented_image_is_the_image_shifted_and_perhaps_mirrored(seed, pad):
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    changed = shift_and_mirror(images, torch.Generator().manual_seed(seed), pad)
    for before, after in zip(images, changed):
        assert any(torch.equal(after, candidate) for candidate in possible(before, pad))


def test_all_shifts_are_as_likely_and_half_of_the_images_are_mirrored():
    position = torch.arange(64, dtype=torch.uint8).view(8, 8)  # the value of a pixel says where it comes from
    images = position.expand(8100, 3, 8, 8).contiguous()
    changed = shift_and_mirror(images, torch.Generator().manual_seed(0), pad=4)[:, 0].int()
    mirrored = changed[:, 4, 3] > changed[:, 4, 4]
    # Whether the columns run backwards tells it; the fold of the border is never in the middle.
    assert 0.45 < mirrored.float().mean() < 0.55
    middle = changed[:, 4, 4] // 8  # the row that came to the middle: 0 to 7, and row 8 reflected is 6
    counts = torch.bincount(middle, minlength=8).float() / 900
    expected = torch.tensor([1, 1, 1, 1, 1, 1, 2, 1.0])
    torch.testing.assert_close(counts, expected, atol=0.15, rtol=0)


def test_the_augmentation_changes_from_seed_to_seed_and_only_with_it():
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    data = Dataset(images, torch.zeros(20, dtype=torch.int64), CLASSES, "", "train", (0,) * 3, (1,) * 3)
    first, again, other = (next(data.batches(20, augment=True, seed=s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(data.images, images)


# --- samples


@given(st.data())
def test_a_sample_is_as_even_over_the_classes_as_the_data_set_allows(data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=60)))
    count = data.draw(st.integers(1, len(labels)))
    drawn = torch.bincount(numbered(len(labels), labels).sample(count, seed=1).labels, minlength=3)
    there = torch.bincount(labels, minlength=3)
    assert drawn.sum() == count
    for label in range(3):  # a class may be behind another one only when all of it was taken
        assert drawn[label] == there[label] or drawn[label] >= drawn.max() - 1


@given(count=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_sample_takes_no_image_twice_and_keeps_the_labels(count, seed):
    some = numbered(50).sample(count, seed)
    which = some.images[:, 0, 0, 0].tolist()
    assert len(set(which)) == count and [n % 3 for n in which] == some.labels.tolist()
    assert (some.source, some.split, some.classes) == ("numbers", "train", CLASSES)


def test_a_sample_is_mixed_and_its_seed_decides_it():
    data = numbered(60, torch.arange(60) // 20)
    first, again, other = (data.sample(30, seed=s).images[:, 0, 0, 0].tolist() for s in (1, 1, 2))
    assert first == again != other
    labels = data.sample(30, seed=1).labels
    assert not torch.equal(labels, labels.sort().values)


@pytest.mark.parametrize("count", [0, -1, 51])
def test_a_sample_of_a_size_that_is_not_there_is_an_error(count):
    with pytest.raises(ValueError, match=rf"sample\({count}\): expected 1 to 50, the size of this split"):
        numbered(50).sample(count)


def test_a_subset_is_what_the_index_names():
    data = numbered(10)
    assert data.subset(torch.tensor([7, 2])).images[:, 0, 0, 0].tolist() == [7, 2]
    assert data.subset(slice(4, 6)).labels.tolist() == [1, 2]
