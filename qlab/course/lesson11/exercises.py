"""Lesson 11, detection in real time: the exercises and the questions."""

from __future__ import annotations

import math

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def overlap(a, b):
    """Intersection over union of two boxes (left, top, right, bottom): a number from 0 to 1."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    return shared / (area_a + area_b - shared)


def decode(offsets, centre, size):
    """The box (left, top, right, bottom) that offsets (dx, dy, dw, dh) mean at a square anchor of that centre and size."""
    dx, dy, dw, dh = offsets
    x = centre[0] + 0.1 * dx * size
    y = centre[1] + 0.1 * dy * size
    half_width = size * math.exp(0.2 * dw) / 2
    half_height = size * math.exp(0.2 * dh) / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def suppress(overlaps, scores, allowed):
    """The indices of the boxes to keep, the surest first.

    overlaps[i][j] is how much boxes i and j overlap. A box goes if it overlaps a surer box that stays by more than
    allowed.
    """
    kept = []
    for box in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(overlaps[box][other] <= allowed for other in kept):
            kept.append(box)
    return kept


def average_precision(hits, shapes):
    """The area under precision against recall. hits: which boxes are right, the surest first. shapes: how many there are."""
    precisions, recalls, right = [], [], 0
    for number, hit in enumerate(hits):
        right += hit
        precisions.append(right / (number + 1))
        recalls.append(right / shapes)
    area, before = 0.0, 0.0
    for number, recall in enumerate(recalls):
        area += (recall - before) * max(precisions[number:])
        before = recall
    return area


# --- mistakes: what each of them is told stands in its docstring


def forgets_what_is_apart(a, b):
    """Boxes that lie apart share nothing. Two negative sides give a positive area: take max(0, ...) of each."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def counts_twice(a, b):
    """In the sum of both areas what they share counts twice. Take it off once."""
    width, height = max(0.0, min(a[2], b[2]) - max(a[0], b[0])), max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))


def of_the_smaller(a, b):
    """You divide by the smaller box. Then a tiny box inside a large one would be a perfect answer."""
    width, height = max(0.0, min(a[2], b[2]) - max(a[0], b[0])), max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def of_the_box_around_both(a, b):
    """You divide by the box around both. The union is what at least one of them covers: a + b - shared."""
    width, height = max(0.0, min(a[2], b[2]) - max(a[0], b[0])), max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / around


def counts_pixels(a, b):
    """A side is right - left, without + 1: edges are places, not numbers of pixels."""
    width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1) for k in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def width_as_height(a, b):
    """The height lies between top and bottom, box[1] and box[3]. You take left and right for it, too."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * width / (sum(areas) - width * width)


def shift_in_pixels(offsets, centre, size):
    """The shift is measured in anchor sizes: multiply it by the size, so that one network serves all sizes."""
    return decode((offsets[0] / size, offsets[1] / size, offsets[2], offsets[3]), centre, size)


def forgets_the_exponential(offsets, centre, size):
    """dw and dh are logarithms. Their exponential multiplies the size."""
    dx, dy, dw, dh = offsets
    x, y = centre[0] + 0.1 * dx * size, centre[1] + 0.1 * dy * size
    w, h = size * (1 + 0.2 * dw) / 2, size * (1 + 0.2 * dh) / 2
    return (x - w, y - h, x + w, y + h)


def forgets_the_factors(offsets, centre, size):
    """The offsets come with factors: 0.1 for the shift, 0.2 for the logarithm of the size."""
    return decode((10 * offsets[0], 10 * offsets[1], 5 * offsets[2], 5 * offsets[3]), centre, size)


def one_factor_for_all(offsets, centre, size):
    """The logarithms of the size have the factor 0.2; 0.1 is that of the shift."""
    return decode((offsets[0], offsets[1], offsets[2] / 2, offsets[3] / 2), centre, size)


def twice_as_large(offsets, centre, size):
    """From the centre to an edge it is half of the width."""
    left, top, right, bottom = decode(offsets, centre, size)
    x, y = (left + right) / 2, (top + bottom) / 2
    return (2 * left - x, 2 * top - y, 2 * right - x, 2 * bottom - y)


def middle_and_size(offsets, centre, size):
    """You give the middle, the width and the height. The four edges were asked for."""
    left, top, right, bottom = decode(offsets, centre, size)
    return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def in_the_order_given(overlaps, scores, allowed):
    """Begin with the surest box: a surer one may come later in the list."""
    kept = []
    for box in range(len(scores)):
        if all(overlaps[box][other] <= allowed for other in kept):
            kept.append(box)
    return kept


def afraid_of_ghosts(overlaps, scores, allowed):
    """You compare with all surer boxes. Those that went must not take others along."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [box for place, box in enumerate(order) if all(overlaps[box][o] <= allowed for o in order[:place])]


def last_kept_only(overlaps, scores, allowed):
    """Compare a box with all that are kept, not with the last one alone."""
    kept = []
    for box in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if not kept or overlaps[box][kept[-1]] <= allowed:
            kept.append(box)
    return kept


def less_than_allowed(overlaps, scores, allowed):
    """Exactly what is allowed is allowed still: a box goes when it overlaps by more than that. Compare with <=."""
    kept = []
    for box in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(overlaps[box][other] < allowed for other in kept):
            kept.append(box)
    return kept


def the_least_sure_first(overlaps, scores, allowed):
    """You begin with the least sure box. The surest is the first that stays."""
    return suppress(overlaps, [-score for score in scores], allowed)


def sorted_by_number(overlaps, scores, allowed):
    """The right boxes, but they were to come the surest first, not by their number."""
    return sorted(suppress(overlaps, scores, allowed))


def keeps_the_doubles(overlaps, scores, allowed):
    """You keep what overlaps and drop what stands alone. It is the other way round."""
    kept = []
    for box in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if not kept or any(overlaps[box][other] > allowed for other in kept):
            kept.append(box)
    return kept


def of_what_was_found(hits, shapes):
    """Recall is the share of all shapes. You divide by the number of those that were found."""
    return average_precision(hits, max(1, sum(hits)))


def with_the_teeth(hits, shapes):
    """At a recall, the best precision at that recall or above counts: take the maximum of all that follow."""
    area, right, before = 0.0, 0, 0.0
    for number, hit in enumerate(hits):
        right += hit
        area += (right / shapes - before) * right / (number + 1)
        before = right / shapes
    return area


def best_so_far(hits, shapes):
    """The maximum goes over the precisions from there on, not over those before: behind the teeth, not in front of them."""
    area, before, right, best = 0.0, 0.0, 0, 0.0
    for number, hit in enumerate(hits):
        right += hit
        best = max(best, right / (number + 1))
        area += (right / shapes - before) * best
        before = right / shapes
    return area


def mean_of_the_boxes(hits, shapes):
    """You take the mean over all boxes. Only where the recall grows is there any area: weigh by its growth."""
    right = [sum(hits[: number + 1]) for number in range(len(hits))]
    return sum(count / (number + 1) for number, count in enumerate(right)) / len(hits)


def recall_alone(hits, shapes):
    """That is the recall at the end. Each growth of it counts times the precision there."""
    return sum(hits) / shapes


def plain_precision(hits, shapes):
    """That is the precision of all boxes together. It does not tell sure mistakes from unsure ones."""
    return sum(hits) / len(hits)


# --- exercises and questions

SQUARES = [[1.0, 0.7, 0.1], [0.7, 1.0, 0.6], [0.1, 0.6, 1.0]]
FAR = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
HALF = [[1.0, 0.5, 0.0], [0.5, 1.0, 0.75], [0.0, 0.75, 1.0]]  # exact in every float
APART = [[1.0, 0.0, 0.75, 0.0], [0.0, 1.0, 0.0, 0.75], [0.75, 0.0, 1.0, 0.25], [0.0, 0.75, 0.25, 1.0]]

EXERCISES = (
    Exercise(
        "11.1",
        overlap,
        cases=(
            ((0.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0)),
            ((0.0, 0.0, 4.0, 4.0), (0.0, 0.0, 4.0, 4.0)),
            ((0.0, 0.0, 4.0, 4.0), (1.0, 1.0, 2.0, 2.0)),
            ((0.0, 0.0, 4.0, 4.0), (6.0, 6.0, 9.0, 8.0)),
            ((0.0, 0.0, 4.0, 4.0), (6.0, 1.0, 9.0, 3.0)),
            ((2.0, 1.0, 8.0, 5.0), (5.0, 3.0, 9.0, 11.0)),
        ),
        hints=(
            _("What they share goes from the larger left edge to the smaller right edge, if that is further right."),
            _("Both areas together count what they share twice: the union is a + b - shared."),
        ),
        mistakes=(
            forgets_what_is_apart,
            counts_twice,
            of_the_smaller,
            of_the_box_around_both,
            counts_pixels,
            width_as_height,
        ),
    ),
    Exercise(
        "11.2",
        decode,
        cases=(
            ((0.0, 0.0, 0.0, 0.0), (20.0, 30.0), 10.0),
            ((1.0, -2.0, 0.0, 0.0), (20.0, 30.0), 40.0),
            ((0.0, 0.0, 3.0, -2.0), (50.0, 50.0), 20.0),
            ((-4.0, 2.0, 1.5, 2.5), (80.0, 16.0), 64.0),
        ),
        hints=(
            _("The middle moves by 0.1 * dx * size to the right and by 0.1 * dy * size down."),
            _("The width is size * math.exp(0.2 * dw). The left edge is half of it away from the middle."),
        ),
        mistakes=(
            shift_in_pixels,
            forgets_the_exponential,
            forgets_the_factors,
            one_factor_for_all,
            twice_as_large,
            middle_and_size,
        ),
    ),
    Exercise(
        "11.3",
        suppress,
        cases=(
            ([[1.0]], [0.5], 0.5),
            (FAR, [0.2, 0.9, 0.5], 0.5),
            (SQUARES, [0.9, 0.8, 0.7], 0.5),
            (SQUARES, [0.7, 0.9, 0.8], 0.5),
            (SQUARES, [0.7, 0.8, 0.9], 0.65),
            (HALF, [0.7, 0.9, 0.8], 0.5),
            (APART, [0.9, 0.8, 0.7, 0.6], 0.5),
        ),
        hints=(
            _("sorted(range(len(scores)), key=lambda i: -scores[i]) gives the indices, the surest first."),
            _("Take the boxes in that order. Keep one if all boxes kept so far overlap it by at most what is allowed."),
        ),
        mistakes=(
            in_the_order_given,
            afraid_of_ghosts,
            last_kept_only,
            less_than_allowed,
            the_least_sure_first,
            sorted_by_number,
            keeps_the_doubles,
        ),
    ),
    Exercise(
        "11.4",
        average_precision,
        cases=(
            ([True], 1),
            ([True, True], 4),
            ([False, True], 1),
            ([True, False, True, False], 3),
            ([False, False, True, True, False, True], 5),
        ),
        hints=(
            _("After each box: precision is right / boxes so far, recall is right / shapes."),
            _("Wherever the recall grows, add its growth times the largest precision from there on."),
        ),
        mistakes=(
            of_what_was_found,
            with_the_teeth,
            best_so_far,
            mean_of_the_boxes,
            recall_alone,
            plain_precision,
        ),
    ),
)

QUIZ = (
    Question(
        _("A detector takes 50 ms a frame, the camera sends one every 33 ms. It keeps every frame. What happens?"),
        Choice(_("the image flickers"), _("All frames are shown, in order. But when?")),
        Choice(
            _("the boxes lag behind, more and more"),
            _("A third of each second is added to the queue. After a minute the boxes are 20 seconds late."),
            right=True,
        ),
        Choice(
            _("nothing: 20 frames a second are enough"), _("They are, if the others are dropped. Here they queue up.")
        ),
    ),
    Question(
        _("int8 makes the network three times as fast, yet the frames a second only double. Why?"),
        Choice(
            _("resizing, decoding and suppression take as long as before"),
            _("What is not faster sets a limit: that is Amdahl's law. Time the whole, not the network alone."),
            right=True,
        ),
        Choice(_("int8 cannot be three times as fast"), _("It can, on some processors and layers: see lesson 5.")),
        Choice(_("frames a second are always half of that"), _("There is no such rule. Measure where the time goes.")),
    ),
    Question(
        _("You raise the threshold from 0.3 to 0.6. What happens to mAP, computed from all boxes down to 0.01?"),
        Choice(_("it rises: fewer wrong boxes"), _("mAP goes through all thresholds already.")),
        Choice(
            _("it falls: fewer shapes found"),
            _("Recall at your threshold falls. But mAP was measured over all of them."),
        ),
        Choice(
            _("nothing: it does not depend on the threshold that you show boxes at"),
            _("It is the area under the whole curve. Your threshold chooses one point on it."),
            right=True,
        ),
    ),
)
