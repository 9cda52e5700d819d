"""Lesson 9, a few bits: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def nearest(x, centroids):
    """For each value of x (one dimension) the index of the nearest centroid, an int64 tensor of x's shape."""
    return (x[:, None] - centroids[None, :]).abs().argmin(1)


def lloyd_step(x, centroids):
    """New centroids: each the mean of the values of x nearest to it; one that is nearest to none stays."""
    index = (x[:, None] - centroids[None, :]).abs().argmin(1)
    updated = centroids.clone()
    for number in range(len(centroids)):
        members = x[index == number]
        if len(members):
            updated[number] = members.mean()
    return updated


def codebook_bytes(weights, bits, tables):
    """Bytes of a layer of that many weights: an index of bits each, and tables with 2**bits values of 4 bytes each."""
    return -(-weights * bits // 8) + tables * 2**bits * 4


def ternary(w):
    """w on three values: 0 up to 0.7 times the mean magnitude, beyond it plus or minus the mean of those magnitudes."""
    beyond = w.abs() > 0.7 * w.abs().mean()
    scale = w.abs()[beyond].mean()
    return torch.where(beyond, torch.sign(w) * scale, 0.0)


def binary_dot(a, b, n):
    """The dot product of two vectors of n values +1 and -1, kept as the n bits of the integers a and b (1 is +1)."""
    different = bin(a ^ b).count("1")
    return n - 2 * different


# --- mistakes: what each of them is told stands in its docstring


def farthest(x, centroids):
    """You take the centroid that is farthest away."""
    return (x[:, None] - centroids[None, :]).abs().argmax(1)


def gives_values(x, centroids):
    """You give the centroids themselves. An index is asked for, the code that is stored."""
    return centroids[nearest(x, centroids)]


def without_magnitude(x, centroids):
    """Distances have no sign: take the magnitude of the difference before you compare."""
    return (x[:, None] - centroids[None, :]).argmin(1)


def rounds_down(x, centroids):
    """You take the next centroid below. The one above may be nearer."""
    return (x[:, None] >= centroids[None, :]).sum(1).sub(1).clamp(min=0)


def needs_them_sorted(x, centroids):
    """That is right for centroids in ascending order alone. Here they may come in any: compare with each of them."""
    return torch.bucketize(x, (centroids[1:] + centroids[:-1]) / 2)


def place_when_sorted(x, centroids):
    """You sort the centroids and give the place among the sorted ones. The index is that in the table as it is."""
    ordered = centroids.sort().values
    return torch.bucketize(x, (ordered[1:] + ordered[:-1]) / 2)


def forgets_the_empty(x, centroids):
    """The mean of no values is NaN: a centroid without members stays where it is."""
    index = nearest(x, centroids)
    return torch.stack([x[index == number].mean() for number in range(len(centroids))])


def empty_is_zero(x, centroids):
    """A centroid without members stays where it is; you move it to 0."""
    index = nearest(x, centroids)
    sums = [x[index == number].sum() / max(1, int((index == number).sum())) for number in range(len(centroids))]
    return torch.stack(sums)


def takes_the_median(x, centroids):
    """The median has the least sum of distances; of their squares, the mean has."""
    updated = centroids.clone()
    for number in range(len(centroids)):
        members = x[nearest(x, centroids) == number]
        if len(members):
            updated[number] = members.median()
    return updated


def middle_of_the_ends(x, centroids):
    """The middle between the smallest and the largest member is not their mean."""
    updated = centroids.clone()
    for number in range(len(centroids)):
        members = x[nearest(x, centroids) == number]
        if len(members):
            updated[number] = (members.min() + members.max()) / 2
    return updated


def counts_the_centroid(x, centroids):
    """The old centroid is no value of x: the mean is that of the members alone."""
    updated = centroids.clone()
    for number in range(len(centroids)):
        members = x[nearest(x, centroids) == number]
        updated[number] = (members.sum() + centroids[number]) / (len(members) + 1)
    return updated


def updates_at_once(x, centroids):
    """Say first for all values who is nearest to whom, then move. You look again after each move."""
    updated = centroids.clone()
    for number in range(len(centroids)):
        members = x[nearest(x, updated) == number]
        if len(members):
            updated[number] = members.mean()
    return updated


def no_table(weights, bits, tables):
    """The tables are stored too."""
    return -(-weights * bits // 8)


def bits_not_bytes(weights, bits, tables):
    """Eight bits are a byte."""
    return weights * bits + tables * 2**bits * 4


def one_table(weights, bits, tables):
    """There may be more than one table."""
    return codebook_bytes(weights, bits, 1)


def cut_off(weights, bits, tables):
    """Bits that fill only a part of the last byte need that byte: round up."""
    return weights * bits // 8 + tables * 2**bits * 4


def part_of_a_byte(weights, bits, tables):
    """Nobody stores a part of a byte: round the bytes of the indices up."""
    return weights * bits / 8 + tables * 2**bits * 4


def values_not_bytes(weights, bits, tables):
    """Each value of a table takes 4 bytes; you count it as one."""
    return -(-weights * bits // 8) + tables * 2**bits


def indices_for_each_table(weights, bits, tables):
    """However many tables there are, a weight has one index: add the tables, do not multiply the indices by them."""
    return tables * codebook_bytes(weights, bits, 1)


def bits_are_values(weights, bits, tables):
    """A table for b bits has 2**b values, not b."""
    return -(-weights * bits // 8) + tables * bits * 4


def a_byte_each(weights, bits, tables):
    """Indices are packed: two of 4 bits share a byte."""
    return weights * -(-bits // 8) + tables * 2**bits * 4


def no_threshold(w):
    """Small weights become 0: compare with 0.7 times the mean magnitude."""
    return torch.sign(w) * w.abs().mean()


def mean_of_all(w):
    """The scale is the mean magnitude of the weights beyond the threshold, not of all weights."""
    return torch.sign(w) * (w.abs() > 0.7 * w.abs().mean()) * w.abs().mean()


def share_of_the_largest(w):
    """The threshold is 0.7 times the mean magnitude, not of the largest one."""
    beyond = w.abs() > 0.7 * w.abs().max()
    return torch.sign(w) * beyond * w.abs()[beyond].mean()


def absolute_threshold(w):
    """The threshold is 0.7 times the mean magnitude, not 0.7."""
    beyond = w.abs() > 0.7
    return torch.sign(w) * beyond * w.abs()[beyond].mean()


def forgets_the_factor(w):
    """The threshold is 0.7 times the mean magnitude, not the mean magnitude."""
    beyond = w.abs() > w.abs().mean()
    return torch.sign(w) * beyond * w.abs()[beyond].mean()


def rounds_to_the_nearest(w):
    """You round w / scale. What becomes 0 is what lies below the threshold, not below half of the scale."""
    scale = w.abs()[w.abs() > 0.7 * w.abs().mean()].mean()
    return torch.round(w / scale).clamp(-1, 1) * scale


def gives_codes(w):
    """You give -1, 0 and 1. Multiply them by the scale."""
    return torch.sign(w) * (w.abs() > 0.7 * w.abs().mean())


def keeps_the_sizes(w):
    """All weights beyond the threshold get one common magnitude; you keep their own."""
    return w * (w.abs() > 0.7 * w.abs().mean())


def counts_common_ones(a, b, n):
    """Two bits 0 make (-1) * (-1) = +1 too: count where the bits are equal, not where both are 1."""
    return bin(a & b).count("1")


def counts_equal(a, b, n):
    """Where the bits differ the product is -1. Subtract those."""
    return n - bin(a ^ b).count("1")


def wrong_sign(a, b, n):
    """Equal bits give +1, different ones -1; you have it the other way round."""
    return 2 * bin(a ^ b).count("1") - n


def endless_ones(a, b, n):
    """In Python ~ of a number is negative, and bin() of it has not n bits. Count where the bits differ: a ^ b."""
    return 2 * bin(~(a ^ b)).count("1") - n


def multiplies(a, b, n):
    """The integers are only a place to keep bits: their product means nothing."""
    return a * b


# --- exercises and questions

X = torch.tensor([-1.0, -0.6, -0.1, 0.0, 0.2, 0.5, 0.55, 1.9])
CENTROIDS = torch.tensor([-0.7, 0.1, 0.6, 5.0])

EXERCISES = (
    Exercise(
        "9.1",
        nearest,
        cases=(
            (torch.tensor([0.9]), torch.tensor([0.0, 1.0])),
            (torch.tensor([-2.0, 0.4, 9.0]), torch.tensor([-1.0, 0.5, 2.0])),
            (torch.tensor([-0.6, 0.3, 1.4, 2.4]), torch.tensor([1.0, -1.0, 2.0, 0.0])),  # in no order
            (X, CENTROIDS),
        ),
        hints=(
            _("Make a table of distances: a row a value, a column a centroid."),
            _("x[:, None] - centroids[None, :] is the table of differences."),
            _("Take magnitudes with abs(), then argmin(1) gives the place of the smallest in each row."),
        ),
        mistakes=(farthest, gives_values, without_magnitude, rounds_down, needs_them_sorted, place_when_sorted),
    ),
    Exercise(
        "9.2",
        lloyd_step,
        cases=(
            (torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.0, 4.0])),
            (torch.tensor([0.0, 0.1, 1.0]), torch.tensor([0.2, 7.0])),
            (torch.tensor([0.0, 0.9, 1.1, 3.0]), torch.tensor([0.0, 2.0])),
            (torch.tensor([0.0, 0.8, 2.9, 3.0]), torch.tensor([2.0, 9.0, 0.0])),  # in no order
            (X, CENTROIDS),
        ),
        hints=(
            _("Two steps: who is nearest to whom (9.1), then the mean of each group."),
            _("x[index == 2] are the values whose nearest centroid is number 2."),
            _("Start from centroids.clone(), and replace those that have members: len(members) is not 0."),
        ),
        mistakes=(
            forgets_the_empty,
            empty_is_zero,
            takes_the_median,
            middle_of_the_ends,
            counts_the_centroid,
            updates_at_once,
        ),
    ),
    Exercise(
        "9.3",
        codebook_bytes,
        cases=((8, 1, 1), (1000, 4, 1), (1001, 3, 1), (36864, 4, 64)),
        hints=(
            _("Two parts: the indices, and the tables."),
            _("A table has 2**bits values, each of 4 bytes."),
            _("-(-n // 8) is n / 8, rounded up."),
        ),
        mistakes=(
            no_table,
            bits_not_bytes,
            one_table,
            cut_off,
            part_of_a_byte,
            values_not_bytes,
            bits_are_values,
            a_byte_each,
            indices_for_each_table,
        ),
    ),
    Exercise(
        "9.4",
        ternary,
        cases=(
            (torch.tensor([0.1, -0.3, 1.0, -2.0]),),
            (torch.tensor([-0.4, 0.5, 0.45, -0.1, 0.9]),),
            (torch.tensor([1.0, -1.0, 1.2, -0.6, 0.9]),),  # 0.6 is below the threshold, and above half of the scale
            (X,),
        ),
        hints=(
            _("Which weights are beyond the threshold? A mask says so for all at once."),
            _("The scale is the mean of w.abs()[mask]."),
            _("torch.where(mask, torch.sign(w) * scale, 0.0) puts the three values together."),
        ),
        mistakes=(
            no_threshold,
            mean_of_all,
            share_of_the_largest,
            absolute_threshold,
            forgets_the_factor,
            rounds_to_the_nearest,
            gives_codes,
            keeps_the_sizes,
        ),
    ),
    Exercise(
        "9.5",
        binary_dot,
        cases=((0b1, 0b0, 1), (0b11, 0b01, 2), (0b1011, 0b0010, 4), (0b110010, 0b110011, 8)),
        hints=(
            _("What is the product of two values when their bits are equal, and when they differ?"),
            _("a ^ b has a 1 wherever the bits differ, and bin(number).count('1') counts ones."),
            _("n places in all, d of them differ: n - d times +1, and d times -1."),
        ),
        mistakes=(counts_common_ones, counts_equal, wrong_sign, endless_ones, multiplies),
    ),
)

QUIZ = (
    Question(
        _("A codebook of 16 values has less error than 16 equal steps. What is its price?"),
        Choice(
            _("the table has to be stored, and no integer kernel multiplies indices"),
            _("Each index has to be looked up before it can be multiplied."),
            right=True,
        ),
        Choice(_("an index needs more bits than a code"), _("Both count from 0 to 15: 4 bits.")),
        Choice(_("it can only hold positive values"), _("A table may hold any values.")),
    ),
    Question(
        _("Which scale a makes the squared error of a * sign(w) smallest?"),
        Choice(_("the largest magnitude"), _("Then nearly all weights would be made much too large.")),
        Choice(
            _("the mean magnitude"),
            _("The error is a sum of (|w| - a)**2, and such a sum is smallest at the mean."),
            right=True,
        ),
        Choice(_("1"), _("Weights may be much smaller than that.")),
    ),
    Question(
        _("Weights look like a bell curve, and one grid has 8 bits in all. Which has the least error?"),
        Choice(_("fp8 with 5 bits of exponent"), _("With 2 bits of fraction its steps are coarse everywhere.")),
        Choice(_("all are alike: 8 bits are 8 bits"), _("They spend their 256 values in different places.")),
        Choice(
            _("int8: floats spend many of their values very close to 0"),
            _("For a bell curve equal steps are better. With a far outlier it would be the other way round."),
            right=True,
        ),
    ),
)
