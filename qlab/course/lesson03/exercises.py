"""Lesson 3, observers and calibration: the exercises and the questions."""

from __future__ import annotations

import math

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def watch(seen, x):
    """The min-max range (lo, hi) after one more batch x; seen is the range before it, None for the first batch."""
    lo, hi = float(x.min()), float(x.max())
    return (lo, hi) if seen is None else (min(seen[0], lo), max(seen[1], hi))


def follow(seen, x, momentum):
    """The moving average (lo, hi) after one more batch x, which weighs momentum; seen is None for the first batch."""
    lo, hi = float(x.min()), float(x.max())
    if seen is None:
        return lo, hi
    return seen[0] + momentum * (lo - seen[0]), seen[1] + momentum * (hi - seen[1])


def merge(wide, fine, doublings):
    """The counts of both histograms together, in the bins of wide, which are 2**doublings times as wide as fine's.

    wide and fine hold one count a bin, and as many bins; bin k reaches from k to k + 1 times the bin's width.
    """
    merged = wide.clone()
    for k, count in enumerate(fine):
        merged[k // 2**doublings] += count
    return merged


def limit_from_counts(counts, width, percent):
    """The right end of the first bin up to which at least percent of all values lie; bins as in exercise 3.3."""
    up_to = counts.cumsum(0)
    enough = up_to * 100 >= percent * up_to[-1]
    return float((int(enough.nonzero()[0]) + 1) * width)


def may_be_chance(first, second):
    """True when the difference of two networks on the same images is at most two standard errors, up or down.

    first and second hold 1 for each image that the network gets right and 0 for each other, the images in one order.
    """
    each = second.double() - first.double()  # 1, 0 or -1
    error = float(each.std()) / len(each) ** 0.5
    return abs(float(each.mean())) <= 2 * error


# --- mistakes: what each of them is told stands in its docstring


def forgets_the_past(seen, x):
    """That is the range of the new batch alone. Compare it with what was seen before."""
    return float(x.min()), float(x.max())


def begins_with_zero(seen, x):
    """You let the range begin at (0, 0). The first batch has its own smallest and largest value."""
    return watch((0.0, 0.0) if seen is None else seen, x)


def averages_the_ranges(seen, x):
    """Min-max keeps the extremes; you take the mean of the two ranges."""
    new = float(x.min()), float(x.max())
    return new if seen is None else ((seen[0] + new[0]) / 2, (seen[1] + new[1]) / 2)


def shrinks(seen, x):
    """Your range shrinks: the lower end is the smaller of the two, the upper end the larger."""
    new = float(x.min()), float(x.max())
    return new if seen is None else (max(seen[0], new[0]), min(seen[1], new[1]))


def upside_down(seen, x):
    """A range is (lo, hi), the lower end first."""
    return watch(seen, x)[::-1]


def weighs_the_past(seen, x, momentum):
    """The new batch weighs momentum, and what was seen before weighs 1 - momentum; you have it the other way round."""
    return follow(seen, x, 1 - momentum)


def starts_at_zero(seen, x, momentum):
    """You start from (0, 0). There is nothing to average with in the first batch: take its range."""
    return follow((0.0, 0.0) if seen is None else seen, x, momentum)


def adds_without_taking_away(seen, x, momentum):
    """The weights have to add up to 1: what was seen before weighs 1 - momentum."""
    lo, hi = float(x.min()), float(x.max())
    return (lo, hi) if seen is None else (seen[0] + momentum * lo, seen[1] + momentum * hi)


def keeps_the_extremes(seen, x, momentum):
    """That is min-max: a moving average can also become smaller."""
    return watch(seen, x)


def plain_mean(seen, x, momentum):
    """That is the plain mean of both. The new batch weighs momentum, what was seen before the rest."""
    return follow(seen, x, 0.5)


def same_bins(wide, fine, doublings):
    """Bin 3 of the fine histogram is not bin 3 of the wide one: fine bins are narrower."""
    return wide + fine


def one_doubling(wide, fine, doublings):
    """The bins are 2**doublings times as wide, not doublings times."""
    merged = wide.clone()
    for k, count in enumerate(fine):
        merged[k // max(doublings, 1)] += count
    return merged


def shares_the_counts(wide, fine, doublings):
    """Count every value once: do not divide the counts, add them up."""
    return wide + (merge(torch.zeros_like(wide), fine, doublings) // 2**doublings)


def loses_the_first(wide, fine, doublings):
    """The counts of the wide histogram are missing: start from them."""
    return merge(torch.zeros_like(wide), fine, doublings)


def overwrites(wide, fine, doublings):
    """You overwrite the count of a wide bin with that of the last fine bin in it: add them all up."""
    merged = wide.clone()
    for k, count in enumerate(fine):
        merged[k // 2**doublings] = count
    return merged


def left_end(counts, width, percent):
    """That is the bin's left end; the values in the bin reach up to its right end."""
    return limit_from_counts(counts, width, percent) - float(width)


def counts_bins(counts, width, percent):
    """You count bins. Count the values in them."""
    return float(-(-len(counts) * percent // 100) * width)


def fullest_bin(counts, width, percent):
    """You compare each bin alone. Add up the counts from the first bin on."""
    enough = counts * 100 >= percent * counts.max()
    return float((int(enough.nonzero()[0]) + 1) * width)


def returns_the_bin(counts, width, percent):
    """You give the bin's number. Multiply by the width to get a value."""
    return limit_from_counts(counts, 1, percent)


def more_than_enough(counts, width, percent):
    """At least percent of the values are enough: where they are reached exactly, the bin is found."""
    up_to = counts.cumsum(0)
    enough = up_to * 100 > percent * up_to[-1]
    return float((int(enough.nonzero()[0] if enough.any() else len(counts) - 1) + 1) * width)


def two_samples(first, second):
    """You take each network's own error, as if they had seen different images. Take the differences, image by image."""
    shares = first.double().mean(), second.double().mean()
    error = math.sqrt(sum(float(share * (1 - share)) for share in shares) / len(first))
    return abs(float(shares[1] - shares[0])) <= 2 * error


def one_error(first, second):
    """You compare with one standard error. Chance goes further than that about once in three times: take two."""
    each = second.double() - first.double()
    return abs(float(each.mean())) <= float(each.std()) / math.sqrt(len(each))


def forgets_the_root(first, second):
    """That is how far one image is from the mean. Of the mean of N images, the error is smaller by the root of N."""
    each = second.double() - first.double()
    return abs(float(each.mean())) <= 2 * float(each.std())


def divides_by_all(first, second):
    """Divide the standard deviation by the root of N, not by N."""
    each = second.double() - first.double()
    return abs(float(each.mean())) <= 2 * float(each.std()) / len(each)


def one_way(first, second):
    """A large difference downwards is no chance either: compare its size, without the sign."""
    each = second.double() - first.double()
    return float(each.mean()) <= 2 * float(each.std()) / math.sqrt(len(each))


def answers_the_opposite(first, second):
    """You answer the opposite question: True means that it may be chance."""
    return not may_be_chance(first, second)


# --- exercises and questions


def _two_networks(images, lost, won):
    """(first, second): the first is right on 8 of 10 images, the second loses some of those and wins others."""
    first = torch.arange(images) < images * 8 // 10
    second = first.clone()
    second[:lost], second[images - won :] = False, True
    return first.long(), second.long()


FIRST = torch.tensor([0.5, 2.0])
SECOND = torch.tensor([[-1.0, 0.25], [3.0, 1.0]])
THIRD = torch.tensor([-0.5, 1.5, 1.0])
WIDE = torch.tensor([4, 3, 2, 1, 0, 1, 0, 1])
FINE = torch.tensor([9, 8, 7, 6, 5, 4, 3, 2])

EXERCISES = (
    Exercise(
        "3.1",
        watch,
        cases=((None, FIRST), ((0.5, 2.0), SECOND), ((-1.0, 3.0), THIRD), ((-1.0, 1.0), SECOND), (None, -FIRST)),
        hints=(
            _("What is the range of x alone? When seen is None, that is the answer."),
            _("Else take the smaller of the two lower ends and the larger of the two upper ends."),
            _("float(x.min()) makes a number of the smallest value; min(a, b) compares two numbers."),
        ),
        mistakes=(forgets_the_past, begins_with_zero, averages_the_ranges, shrinks, upside_down),
    ),
    Exercise(
        "3.2",
        follow,
        cases=((None, FIRST, 0.1), ((0.0, 2.0), SECOND, 0.5), ((-1.0, 4.0), THIRD, 0.1), ((-1.0, 1.0), SECOND, 0.25)),
        hints=(
            _("The first batch has nothing to be averaged with: give its range."),
            _("Later, each end is (1 - momentum) * the end so far + momentum * the new one."),
        ),
        mistakes=(weighs_the_past, starts_at_zero, adds_without_taking_away, keeps_the_extremes, plain_mean),
    ),
    Exercise(
        "3.3",
        merge,
        cases=(
            (torch.tensor([0, 0]), torch.tensor([1, 0]), 1),
            (torch.tensor([5, 1]), torch.tensor([1, 2]), 0),
            (torch.tensor([1, 0, 0, 0]), torch.tensor([1, 2, 3, 4]), 1),
            (WIDE, FINE, 1),
            (WIDE, FINE, 3),
        ),
        hints=(
            _("With one doubling, bins 0 and 1 of fine lie in bin 0 of wide, bins 2 and 3 in bin 1."),
            _("Bin k of fine lies in bin k // 2**doublings of wide."),
            _("Start from wide.clone() and add the counts of fine one by one."),
        ),
        mistakes=(same_bins, one_doubling, shares_the_counts, loses_the_first, overwrites),
    ),
    Exercise(
        "3.4",
        limit_from_counts,
        cases=(
            (torch.tensor([3, 1]), 1.0, 75),
            (torch.tensor([3, 1]), 0.5, 76),
            (torch.tensor([90, 5, 4, 0, 0, 0, 0, 1]), 0.25, 99),
            (torch.tensor([90, 5, 4, 0, 0, 0, 0, 1]), 0.25, 100),
            (WIDE, 2.0, 50),
        ),
        hints=(
            _("counts.cumsum(0) says how many values lie in a bin or in one before it."),
            _("Its last entry is the number of all values. Which is the first entry with enough of them?"),
            _("Bin k ends at (k + 1) * width."),
        ),
        mistakes=(left_end, counts_bins, fullest_bin, returns_the_bin, more_than_enough),
    ),
    Exercise(
        "3.5",
        may_be_chance,
        cases=(
            _two_networks(10, 1, 1),
            _two_networks(100, 2, 1),
            _two_networks(100, 1, 9),
            _two_networks(100, 9, 1),
            _two_networks(100, 5, 1),
            _two_networks(100, 40, 0),
        ),
        hints=(
            _("second - first is 1, 0 or -1 for each image. Their mean is the difference of the two accuracies."),
            _("The standard error is their standard deviation divided by the root of the number of images."),
            _("abs(mean) <= 2 * error; with torch, each = (second - first).double(), each.mean() and each.std()."),
        ),
        mistakes=(two_samples, one_error, forgets_the_root, divides_by_all, one_way, answers_the_opposite),
    ),
)

QUIZ = (
    Question(
        _("You calibrate with twice as many images of the same kind. What can a min-max range do?"),
        Choice(_("only grow or stay"), _("It covers all that it has seen, so more images never make it narrower."),
               right=True),
        Choice(_("grow or shrink"), _("A moving average or a percentile can shrink. Min-max forgets nothing.")),
        Choice(_("settle on the true range"), _("There is always a rarer image. The records only become less frequent.")),
    ),
    Question(
        _("A network gives wrong answers only after quantization. Which mistake in calibration is the likeliest cause?"),
        Choice(_("500 images instead of 1,000"), _("Here, far fewer images were enough for 8 bits.")),
        Choice(_("images that were not normalized like those in training"),
               _("Then the layers see values on another scale, and all ranges are wrong."), right=True),
        Choice(_("images without labels"), _("Calibration never looks at labels.")),
    ),
    Question(
        _("Why does a percentile observer keep a histogram?"),
        Choice(_("to find the largest value"), _("One number is enough for that.")),
        Choice(_("to change the weights later"), _("An observer only watches activations; it changes no weight.")),
        Choice(_("because it has to count values, and cannot store them all"),
               _("A histogram counts all values in little memory, and those of two batches can be added."), right=True),
    ),
)  # fmt: skip
