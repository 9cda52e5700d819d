"""Lesson 8, PTQ or QAT: the exercises and the questions."""

from __future__ import annotations

import math

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def points_lost(float_answers, int_answers, labels):
    """How many percentage points fewer of int_answers than of float_answers are right: three int64 tensors (N,)."""
    right = [float((answers == labels).float().mean()) for answers in (float_answers, int_answers)]
    return 100 * (right[0] - right[1])


def recovered(float_accuracy, ptq_accuracy, qat_accuracy):
    """The share of what PTQ lost that QAT brought back: 0 for nothing, 1 for all of it. PTQ lost something."""
    return (qat_accuracy - ptq_accuracy) / (float_accuracy - ptq_accuracy)


def standard_error(accuracy, images):
    """The standard error, in points, of an accuracy in percent that was measured on so many images."""
    share = accuracy / 100
    return 100 * (share * (1 - share) / images) ** 0.5


def good_enough(candidates, tolerance):
    """The name of the smallest of the candidates (name, bytes, points lost) that loses at most tolerance; or "none"."""
    good = [(size, name) for name, size, lost in candidates if lost <= tolerance]
    return min(good)[1] if good else "none"


def paired_difference(float_right, int_right):
    """(difference, its standard error), both in points: the accuracy of the int network minus that of the float one.

    float_right, int_right: bool tensors (N,), which of the same N images each got right. Each image gives d = 1 where the
    int network alone is right, -1 where the float network alone is, else 0. The difference is the mean of d, its standard
    error the root of (mean of d squared - squared mean of d) / N.
    """
    d = int_right.double() - float_right.double()
    error = ((d.square().mean() - d.mean().square()) / len(d)).sqrt()
    return float(100 * d.mean()), float(100 * error)


# --- mistakes: what each of them is told stands in its docstring


def forgets_percent(float_answers, int_answers, labels):
    """Give percentage points: 0.01 of all images is one point."""
    return points_lost(float_answers, int_answers, labels) / 100


def counts_disagreement(float_answers, int_answers, labels):
    """You count where the two differ. They may differ and both be wrong: compare each with the labels."""
    return 100 * float((float_answers != int_answers).float().mean())


def wrong_way_round(float_answers, int_answers, labels):
    """A loss is positive when the int network is worse."""
    return -points_lost(float_answers, int_answers, labels)


def without_sign(float_answers, int_answers, labels):
    """Where the int network is better, it loses less than nothing: keep the sign."""
    return abs(points_lost(float_answers, int_answers, labels))


def only_the_lost(float_answers, int_answers, labels):
    """You count the right answers that became wrong. Some wrong ones became right: subtract them."""
    return 100 * float(((float_answers == labels) & (int_answers != labels)).float().mean())


def of_the_float_accuracy(float_answers, int_answers, labels):
    """You divide by the float accuracy. Points are the plain difference of two percentages."""
    right = float((float_answers == labels).float().mean())
    return points_lost(float_answers, int_answers, labels) / right


def in_images(float_answers, int_answers, labels):
    """That is a number of images. Divide by how many there are, times 100."""
    return int((float_answers == labels).sum()) - int((int_answers == labels).sum())


def what_is_left(float_accuracy, ptq_accuracy, qat_accuracy):
    """That is the share still lost. What came back is 1 minus it."""
    return (float_accuracy - qat_accuracy) / (float_accuracy - ptq_accuracy)


def points_not_share(float_accuracy, ptq_accuracy, qat_accuracy):
    """Those are points. Divide by what PTQ had lost."""
    return qat_accuracy - ptq_accuracy


def of_the_whole(float_accuracy, ptq_accuracy, qat_accuracy):
    """Divide by the loss of PTQ, not by the accuracy of the float network."""
    return (qat_accuracy - ptq_accuracy) / float_accuracy


def in_percent(float_accuracy, ptq_accuracy, qat_accuracy):
    """A share is 1 for all of it, not 100."""
    return 100 * recovered(float_accuracy, ptq_accuracy, qat_accuracy)


def upside_down(float_accuracy, ptq_accuracy, qat_accuracy):
    """Upside down: what came back, divided by what was lost."""
    return (float_accuracy - ptq_accuracy) / (qat_accuracy - ptq_accuracy)


def kept_within_one(float_accuracy, ptq_accuracy, qat_accuracy):
    """QAT may end above float or below PTQ: do not clip the share to 0 and 1."""
    return min(max(recovered(float_accuracy, ptq_accuracy, qat_accuracy), 0.0), 1.0)


def percent_as_share(accuracy, images):
    """The formula wants the accuracy as a share from 0 to 1: divide it by 100 first."""
    return (accuracy * (1 - accuracy) / images) ** 0.5


def percent_as_share_of_math(accuracy, images):
    """The formula wants the accuracy as a share from 0 to 1: divide it by 100 first. With percent the root is of less than 0."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def in_shares(accuracy, images):
    """That is a share. In points it is 100 times as much."""
    return standard_error(accuracy, images) / 100


def forgets_the_root(accuracy, images):
    """That is the variance. Its square root is wanted."""
    share = accuracy / 100
    return 100 * share * (1 - share) / images


def root_above_alone(accuracy, images):
    """Put the number of images below the root too."""
    share = accuracy / 100
    return 100 * (share * (1 - share)) ** 0.5 / images


def forgets_the_images(accuracy, images):
    """The more images, the smaller the error: divide by their number below the root."""
    share = accuracy / 100
    return 100 * (share * (1 - share)) ** 0.5


def one_over_root(accuracy, images):
    """The accuracy matters too: at 99 percent there is little left to vary."""
    return 100 / math.sqrt(images)


def two_of_them(accuracy, images):
    """Those are two standard errors; one was asked for."""
    return 2 * standard_error(accuracy, images)


def best_of_all(candidates, tolerance):
    """You take the one that loses least. The smallest that is good enough was asked for."""
    good = [(lost, name) for name, size, lost in candidates if lost <= tolerance]
    return min(good)[1] if good else "none"


def smallest_of_all(candidates, tolerance):
    """The smallest of all may lose too much."""
    return min((size, name) for name, size, lost in candidates)[1]


def largest(candidates, tolerance):
    """Of those that are good enough you take the largest."""
    good = [(size, name) for name, size, lost in candidates if lost <= tolerance]
    return max(good)[1] if good else "none"


def strictly_less(candidates, tolerance):
    """Losing exactly the tolerance is still allowed."""
    good = [(size, name) for name, size, lost in candidates if lost < tolerance]
    return min(good)[1] if good else "none"


def size_of_the_loss(candidates, tolerance):
    """Less than 0 points lost is a gain, however large, and good enough: take no abs() of the loss."""
    return good_enough([(name, size, abs(lost)) for name, size, lost in candidates], tolerance)


def smallest_by_name(candidates, tolerance):
    """You take the first name in the alphabet. Compare the bytes: min of (bytes, name) does."""
    good = [name for name, size, lost in candidates if lost <= tolerance]
    return min(good) if good else "none"


def first_that_fits(candidates, tolerance):
    """You take the first that is good enough. A later one may be smaller."""
    return next((name for name, size, lost in candidates if lost <= tolerance), "none")


def last_that_fits(candidates, tolerance):
    """You take the last that is good enough. The list is in no order of size."""
    return first_that_fits(candidates[::-1], tolerance)


def loses_most(candidates, tolerance):
    """You take the one whose loss is nearest to the tolerance. Compare the bytes."""
    good = [(lost, -size, name) for name, size, lost in candidates if lost <= tolerance]
    return max(good)[2] if good else "none"


def nothing_for_none(candidates, tolerance):
    """Where none is good enough the answer is the text "none", in quotes, not None."""
    found = good_enough(candidates, tolerance)
    return None if found == "none" else found


def size_and_name(candidates, tolerance):
    """You return bytes and name together: the name alone was asked for."""
    good = [(size, name) for name, size, lost in candidates if lost <= tolerance]
    return min(good) if good else "none"


def as_if_independent(float_right, int_right):
    """That is the error for two networks on different images. Here they share theirs: take the mean and the spread of d."""
    shares = [float(right.double().mean()) for right in (float_right, int_right)]
    error = (sum(share * (1 - share) for share in shares) / len(float_right)) ** 0.5
    return 100 * (shares[1] - shares[0]), 100 * error


def float_minus_int(float_right, int_right):
    """The difference is int minus float: negative where the int network is worse."""
    difference, error = paired_difference(float_right, int_right)
    return -difference, error


def shares_not_points(float_right, int_right):
    """Both are wanted in points: 100 times as much."""
    return tuple(value / 100 for value in paired_difference(float_right, int_right))


def spread_of_one_image(float_right, int_right):
    """That is the spread of a single image. Divide it by the root of N: the more images, the surer the mean."""
    difference, error = paired_difference(float_right, int_right)
    return difference, error * len(float_right) ** 0.5


def forgets_the_mean(float_right, int_right):
    """You take the root of mean(d squared) / N. Subtract the squared mean of d first."""
    d = int_right.double() - float_right.double()
    return float(100 * d.mean()), float(100 * (d.square().mean() / len(d)).sqrt())


def one_less(float_right, int_right):
    """You divide by N - 1 on the way, as torch.std does. Here it is N: torch.std(correction=0)."""
    d = int_right.double() - float_right.double()
    return float(100 * d.mean()), float(100 * d.std() / len(d) ** 0.5)


def variance_of_the_mean(float_right, int_right):
    """That is the variance. Its square root is the standard error."""
    difference, error = paired_difference(float_right, int_right)
    return difference, error**2 / 100


def subtracts_bools(float_right, int_right):
    """Two bool tensors cannot be subtracted: make numbers of them first, int_right.double()."""
    return float((int_right - float_right).mean()), 0.0


# --- exercises and questions

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
FLOAT = torch.tensor([0, 1, 2, 3, 4, 5, 9, 9])
INT = torch.tensor([0, 1, 2, 3, 9, 5, 9, 8])
SIZES = [
    ("w8a8", 800, 0.1),
    ("w8a8 minmax", 801, 0.15),
    ("w6a6", 600, 0.4),
    ("w4a4", 400, 2.5),
    ("w4a4 QAT", 401, 0.5),
    ("w2a2 QAT", 200, 2.5),
]
UNSORTED = [
    ("w2a16", 700, 0.25),
    ("w3a16", 600, 0.75),
    ("w4a4 QAT", 400, 0.5),
    ("w8a8", 800, 0.125),
    ("w2a2 QAT", 200, 4.0),
]
BETTER = torch.tensor([0, 1, 9, 3, 4, 5, 6, 7])
RIGHT = torch.tensor([True] * 9 + [False] * 3)
OTHER = torch.tensor([True] * 6 + [False] * 3 + [True] * 2 + [False])

EXERCISES = (
    Exercise(
        "8.1",
        points_lost,
        cases=(
            (torch.tensor([1, 2]), torch.tensor([1, 1]), torch.tensor([1, 2])),
            (FLOAT, INT, LABELS),
            (INT, FLOAT, LABELS),
            (FLOAT, BETTER, LABELS),
            (FLOAT, FLOAT, LABELS),
        ),
        hints=(
            _("Which share of the answers equals the labels? (answers == labels).float().mean() says it."),
            _("Take the two shares, in percent, and subtract that of the int network."),
        ),
        mistakes=(
            forgets_percent,
            counts_disagreement,
            wrong_way_round,
            without_sign,
            only_the_lost,
            of_the_float_accuracy,
            in_images,
        ),
    ),
    Exercise(
        "8.2",
        standard_error,
        cases=((50.0, 100), (90.0, 1000), (88.0, 10_000), (100.0, 500)),
        hints=(
            _("With p the share of right answers and N images it is the square root of p (1 - p) / N."),
            _("First divide the accuracy by 100; at the end multiply by 100."),
        ),
        mistakes=(
            percent_as_share,
            percent_as_share_of_math,
            in_shares,
            forgets_the_root,
            root_above_alone,
            forgets_the_images,
            one_over_root,
            two_of_them,
        ),
    ),
    Exercise(
        "8.3",
        recovered,
        cases=((90.0, 80.0, 85.0), (88.0, 20.0, 86.0), (88.0, 84.0, 89.0), (90.0, 70.0, 60.0)),
        hints=(
            _("How much did PTQ lose? How much is that smaller with QAT?"),
            _("(QAT - PTQ) / (float - PTQ)."),
        ),
        mistakes=(what_is_left, points_not_share, of_the_whole, in_percent, upside_down, kept_within_one),
    ),
    Exercise(
        "8.4",
        good_enough,
        cases=(
            (SIZES[:3], 0.12),
            (UNSORTED, 1.0),
            (SIZES, 0.45),
            (SIZES, 0.5),
            (SIZES, 3.0),
            (SIZES, 0.05),
            ([("w8a8", 800, 0.1), ("w4a4 QAT", 400, -1.5), ("w2a2", 200, 79.0)], 0.5),
        ),
        hints=(
            _("First keep those that lose at most the tolerance."),
            _("min of (bytes, name) pairs compares the bytes first. Nothing left: return the word none."),
        ),
        mistakes=(
            best_of_all,
            smallest_of_all,
            largest,
            strictly_less,
            size_of_the_loss,
            smallest_by_name,
            first_that_fits,
            last_that_fits,
            loses_most,
            nothing_for_none,
            size_and_name,
        ),
    ),
    Exercise(
        "8.5",
        paired_difference,
        cases=(
            (torch.tensor([True, True, False, False]), torch.tensor([True, False, False, False])),
            (RIGHT, OTHER),
            (OTHER, RIGHT),
            (RIGHT, RIGHT),
        ),
        hints=(
            _("d is int_right.double() - float_right.double(): one number an image, 1, -1 or 0."),
            _("Its mean is the difference; d.square().mean() - d.mean() ** 2 is its variance."),
            _("Divide the variance by the number of images, take the root, and make points of both."),
        ),
        mistakes=(
            as_if_independent,
            float_minus_int,
            shares_not_points,
            spread_of_one_image,
            forgets_the_mean,
            one_less,
            variance_of_the_mean,
            subtracts_bools,
        ),
    ),
)

QUIZ = (
    Question(
        _(
            "On the same 10,000 images PTQ with 8 bits loses 0.1 points: 30 right answers became wrong, 20 wrong ones right. "
            "Each of the two accuracies has a standard error of 0.3 points. What follows?"
        ),
        Choice(
            _("nothing: 0.1 points are less than 0.3"),
            _(
                "0.3 is the error of one accuracy on other images. Here both saw the same: only the 50 that changed count."
            ),
        ),
        Choice(
            _("the loss may be chance, and is hardly more than 0.24 points"),
            _(
                "50 images changed, so the difference has a standard error of about 7 images, 0.07 points. 0.1 is less than "
                "two of them; and 0.1 plus two of them is 0.24."
            ),
            right=True,
        ),
        Choice(
            _("PTQ is worse, that is proven: 30 is more than 20"),
            _("Of 50 coins, 30 or more show heads about once in ten times. That is no proof."),
        ),
    ),
    Question(
        _("You may not see the training data, and 8 bits are too large. What is left?"),
        Choice(
            _("QAT on the test images"),
            _("Then nothing is left to measure with: the test would be part of training."),
        ),
        Choice(
            _("PTQ with 4 or 6 bits, with AdaRound or bias correction, on a few images or on made-up ones"),
            _("These methods need no labels, and calibration images can be distilled from the network itself."),
            right=True,
        ),
        Choice(_("nothing"), _("Much can be done between plain PTQ and training: see lesson 6.")),
    ),
    Question(
        _("A paper reports that its 4-bit network reaches 91.2 %. What else do you need to know?"),
        Choice(
            _("the accuracy of its float network, on the same images"),
            _("A loss is a difference. Without its own float network 91.2 % says little about quantization."),
            right=True,
        ),
        Choice(_("the scale of each layer"), _("That would let you rebuild it, but not judge it.")),
        Choice(_("nothing: 91.2 % is a good result"), _("If the float network reached 94 %, it lost nearly 3 points.")),
    ),
)
