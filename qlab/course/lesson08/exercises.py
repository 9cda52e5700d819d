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


def of_the_float_accuracy(float_answers, int_answers, labels):
    """You divide by the float accuracy. Points are the plain difference of two percentages."""
    right = float((float_answers == labels).float().mean())
    return points_lost(float_answers, int_answers, labels) / right


def what_is_left(float_accuracy, ptq_accuracy, qat_accuracy):
    """That is the share still lost. What came back is 1 minus it."""
    return (float_accuracy - qat_accuracy) / (float_accuracy - ptq_accuracy)


def points_not_share(float_accuracy, ptq_accuracy, qat_accuracy):
    """Those are points. Divide by what PTQ had lost."""
    return qat_accuracy - ptq_accuracy


def of_the_whole(float_accuracy, ptq_accuracy, qat_accuracy):
    """Divide by the loss of PTQ, not by the accuracy of the float network."""
    return (qat_accuracy - ptq_accuracy) / float_accuracy


def percent_as_share(accuracy, images):
    """The formula wants the accuracy as a share from 0 to 1."""
    return math.sqrt(abs(accuracy * (1 - accuracy)) / images)


def forgets_the_root(accuracy, images):
    """That is the variance. Its square root is wanted."""
    share = accuracy / 100
    return 100 * share * (1 - share) / images


def one_over_root(accuracy, images):
    """The accuracy matters too: at 99 percent there is little left to vary."""
    return 100 / math.sqrt(images)


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

EXERCISES = (
    Exercise(
        "8.1",
        points_lost,
        cases=(
            (torch.tensor([1, 2]), torch.tensor([1, 1]), torch.tensor([1, 2])),
            (FLOAT, INT, LABELS),
            (INT, FLOAT, LABELS),
            (FLOAT, FLOAT, LABELS),
        ),
        hints=(
            _("Which share of the answers equals the labels? (answers == labels).float().mean() says it."),
            _("Take the two shares, in percent, and subtract that of the int network."),
        ),
        mistakes=(forgets_percent, counts_disagreement, wrong_way_round, of_the_float_accuracy),
    ),
    Exercise(
        "8.2",
        standard_error,
        cases=((50.0, 100), (90.0, 1000), (88.0, 10_000), (100.0, 500)),
        hints=(
            _("With p the share of right answers and N images it is the square root of p (1 - p) / N."),
            _("First divide the accuracy by 100; at the end multiply by 100."),
        ),
        mistakes=(percent_as_share, forgets_the_root, one_over_root),
    ),
    Exercise(
        "8.3",
        recovered,
        cases=((90.0, 80.0, 85.0), (88.0, 20.0, 86.0), (88.0, 84.0, 89.0), (90.0, 70.0, 60.0)),
        hints=(
            _("How much did PTQ lose? How much is that smaller with QAT?"),
            _("(QAT - PTQ) / (float - PTQ)."),
        ),
        mistakes=(what_is_left, points_not_share, of_the_whole),
    ),
    Exercise(
        "8.4",
        good_enough,
        cases=((SIZES[:3], 0.12), (SIZES, 0.4), (SIZES, 0.5), (SIZES, 3.0), (SIZES, 0.05)),
        hints=(
            _("First keep those that lose at most the tolerance."),
            _("min of (bytes, name) pairs compares the bytes first. Nothing left: return the word none."),
        ),
        mistakes=(best_of_all, smallest_of_all, largest, strictly_less),
    ),
)

QUIZ = (
    Question(
        _("With 8 bits PTQ loses 0.1 points. A colleague wants to train with QAT all the same. What do you say?"),
        Choice(_("good: QAT is always better"), _("There is next to nothing to bring back, and training is not free.")),
        Choice(
            _("measure first: 0.1 points are within the error of the test"),
            _("On 10,000 images the standard error is about 0.3 points. Nobody could tell the two apart."),
            right=True,
        ),
        Choice(_("no: QAT does not work with 8 bits"), _("It works. There is little for it to do.")),
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
