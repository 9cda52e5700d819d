"""Lesson 2, clipping: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def quantize_up_to(x, limit, bits):
    """x rounded to 2**bits evenly spaced values from 0 to limit; values beyond the ends go to the nearest end."""
    step = limit / (2**bits - 1)
    return torch.round(x / step).clamp(0, 2**bits - 1) * step


def two_errors(x, limit, bits):
    """(rounding, clipping): the sum of squared errors of the values up to limit, and of those above; x >= 0."""
    step = limit / (2**bits - 1)
    squared = (torch.round(x / step).clamp(0, 2**bits - 1) * step - x) ** 2
    return float(squared[x <= limit].sum()), float(squared[x > limit].sum())


def best_limit(x, bits, limits):
    """The one of the limits for which the sum of all squared errors of x is smallest; x >= 0."""

    def error(limit):
        step = limit / (2**bits - 1)
        return float(((torch.round(x / step).clamp(0, 2**bits - 1) * step - x) ** 2).sum())

    return min(limits, key=error)


def percentile_limit(x, percent):
    """The smallest value of x that at least this percentage of the values of x do not exceed; 0 < percent <= 100."""
    ordered = x.flatten().sort().values
    place = -(-len(ordered) * percent // 100)  # rounded up
    return float(ordered[int(place) - 1])


# --- mistakes: what each of them is told stands in its docstring


def forgets_to_clamp(x, limit, bits):
    """A value beyond the limit needs the highest code, not one that does not exist: clamp the codes."""
    step = limit / (2**bits - 1)
    return torch.round(x / step) * step


def clamps_the_top_alone(x, limit, bits):
    """Values beyond both ends go to the nearest end: what is below 0 becomes 0."""
    step = limit / (2**bits - 1)
    return torch.round(x / step).clamp(max=2**bits - 1) * step


def cuts_off(x, limit, bits):
    """You cut the fraction off, and the value goes to the rung below. The nearest may be the one above: round."""
    step = limit / (2**bits - 1)
    return torch.floor(x / step).clamp(0, 2**bits - 1) * step


def clamps_values_to_codes(x, limit, bits):
    """Clamp the codes to 0 ... 2**bits - 1, or the values to 0 ... limit; not the values to the codes' ends."""
    step = limit / (2**bits - 1)
    return torch.round(x.clamp(0, 2**bits - 1) / step) * step


def one_value_too_few(x, limit, bits):
    """2**bits values have 2**bits - 1 steps between them."""
    step = limit / 2**bits
    return torch.round(x / step).clamp(0, 2**bits - 1) * step


def one_value_too_many(x, limit, bits):
    """2**bits values have 2**bits - 1 steps between them. You have one value and one step more."""
    step = limit / 2**bits
    return torch.round(x / step).clamp(0, 2**bits) * step


def returns_codes(x, limit, bits):
    """You give codes. Multiply by the step to get values again."""
    return torch.round(x / (limit / (2**bits - 1))).clamp(0, 2**bits - 1)


def takes_the_mean(x, limit, bits):
    """Sums were asked for, not means: only sums of the two add up to the whole error."""
    rounding, clipping = two_errors(x, limit, bits)
    return rounding / max(1, int((x <= limit).sum())), clipping / max(1, int((x > limit).sum()))


def does_not_square(x, limit, bits):
    """Square each error before you add them up."""
    error = (quantize_up_to(x, limit, bits) - x).abs()
    return float(error[x <= limit].sum()), float(error[x > limit].sum())


def clipping_first(x, limit, bits):
    """Rounding comes first, then clipping."""
    return two_errors(x, limit, bits)[::-1]


def clips_the_top_code(x, limit, bits):
    """What is clipped lies above the limit, not above the last rung but one."""
    step = limit / (2**bits - 1)
    squared = (quantize_up_to(x, limit, bits) - x) ** 2
    return float(squared[x <= limit - step].sum()), float(squared[x > limit - step].sum())


def compares_the_rounded(x, limit, bits):
    """You compare the rounded values with the limit. A value a little above it is rounded to it, but it was clipped."""
    step = limit / (2**bits - 1)
    squared = (quantize_up_to(x, limit, bits) - x) ** 2
    clipped = torch.round(x / step) > 2**bits - 1
    return float(squared[~clipped].sum()), float(squared[clipped].sum())


def nothing_is_clipped(x, limit, bits):
    """No rounded value lies above the limit, so that nothing counts as clipped: compare the values themselves with it."""
    return float(((quantize_up_to(x, limit, bits) - x) ** 2).sum()), 0.0


def clips_what_becomes_the_limit(x, limit, bits):
    """A value below the limit that is rounded up to it was rounded. Clipped is what lies above: compare x itself."""
    squared = (quantize_up_to(x, limit, bits) - x) ** 2
    clipped = torch.round(x / (limit / (2**bits - 1))) >= 2**bits - 1
    return float(squared[~clipped].sum()), float(squared[clipped].sum())


def widest(x, bits, limits):
    """The widest limit clips nothing, but its steps are coarse. Compare the sums of both errors."""
    return max(limits)


def least_clipping(x, bits, limits):
    """You compare the clipping errors alone."""
    return min(limits, key=lambda limit: two_errors(x, limit, bits)[1])


def least_rounding(x, bits, limits):
    """You compare the rounding errors alone: they are least where nearly everything is clipped."""
    return min(limits, key=lambda limit: two_errors(x, limit, bits)[0])


def least_of_the_worst(x, bits, limits):
    """You compare the largest single errors. Compare the sums of all squared errors."""
    return min(limits, key=lambda limit: float((quantize_up_to(x, limit, bits) - x).abs().max()))


def does_not_square_the_sum(x, bits, limits):
    """You add up the errors without squaring them: then a value far above the limit counts too little."""
    return min(limits, key=lambda limit: float((quantize_up_to(x, limit, bits) - x).abs().sum()))


def lets_them_cancel(x, bits, limits):
    """You add up the errors with their signs, and those above and below cancel. Square each of them first."""
    return min(limits, key=lambda limit: abs(float((quantize_up_to(x, limit, bits) - x).sum())))


def place_of_the_best(x, bits, limits):
    """That is the limit's place in the list: give the limit itself."""
    return limits.index(best_limit(x, bits, limits))


def share_of_the_largest(x, percent):
    """A percentile counts values; you take a share of the largest one."""
    return float(x.max()) * percent / 100


def from_the_top(x, percent):
    """Count from the smallest value up."""
    ordered = x.flatten().sort(descending=True).values
    return float(ordered[int(-(-len(ordered) * percent // 100)) - 1])


def one_place_too_high(x, percent):
    """The n-th value has the index n - 1."""
    ordered = x.flatten().sort().values
    return float(ordered[min(len(ordered) - 1, int(-(-len(ordered) * percent // 100)))])


def rounds_the_place_down(x, percent):
    """You round the place down, so that too few values are at or below the answer: round it up."""
    ordered = x.flatten().sort().values
    return float(ordered[max(0, int(len(ordered) * percent // 100) - 1)])


def between_two_values(x, percent):
    """You interpolate between two values, as torch.quantile does. The answer is one of the values of x."""
    return float(torch.quantile(x.flatten().double(), percent / 100))


def does_not_sort(x, percent):
    """Put the values in order first."""
    return float(x.flatten()[int(-(-x.numel() * percent // 100)) - 1])


# --- exercises and questions

# No value lies half-way between two rungs: who divides in another order, or in float64, gets the same codes.
FEW = torch.tensor([-0.3, 0.2, 0.9, 1.4, 3.1])
NEAR = torch.tensor([0.1, 1.9, 2.1, 5.0])  # two lie near the limit 2, one on each side
MANY = torch.tensor([0.05, 0.1, 0.25, 0.3, 0.52, 0.56, 0.8, 1.1, 1.3, 9.1])
CROWD = torch.cat([torch.linspace(0.021, 0.989, 41), torch.tensor([2.1])])
LIMITS = [0.5, 1.0, 1.5, 2.0, 3.0]

EXERCISES = (
    Exercise(
        "2.1",
        quantize_up_to,
        cases=((torch.tensor([0.4, 1.2]), 3.0, 2), (torch.tensor([7.0, -2.0]), 3.0, 2), (FEW, 2.0, 3), (MANY, 2.0, 4)),
        hints=(
            _("The lowest value is 0, the highest is limit. How far is one step?"),
            _("Codes are round(x / step), clamped to 0 ... 2**bits - 1. Values are codes times step."),
        ),
        mistakes=(
            forgets_to_clamp,
            clamps_the_top_alone,
            clamps_values_to_codes,
            one_value_too_few,
            one_value_too_many,
            returns_codes,
            cuts_off,
        ),
    ),
    Exercise(
        "2.2",
        two_errors,
        cases=((torch.tensor([0.4, 5.0]), 3.0, 2), (NEAR, 2.0, 2), (FEW[1:], 2.0, 2), (MANY, 1.0, 3)),
        hints=(
            _("Quantize as in 2.1, and look at the squared differences."),
            _("A mask chooses values: squared[x <= limit] are those that were not clipped."),
        ),
        mistakes=(
            takes_the_mean,
            does_not_square,
            clipping_first,
            clips_the_top_code,
            compares_the_rounded,
            nothing_is_clipped,
            clips_what_becomes_the_limit,
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "2.3",
        best_limit,
        cases=(
            (torch.tensor([1.0, 3.0]), 2, [1.0, 3.0, 3.5]),
            (CROWD, 2, LIMITS),
            (CROWD, 3, LIMITS),
            (CROWD, 6, LIMITS),
            (torch.tensor([0.27, 0.85, 0.9, 1.29, 1.42]), 2, [2.0, 0.5, 3.0, 1.0, 1.5]),
        ),
        hints=(
            _("Try every limit, and keep the one with the smallest error."),
            _("min(limits, key=f) gives the limit for which f(limit) is smallest."),
        ),
        mistakes=(
            widest,
            least_clipping,
            least_rounding,
            least_of_the_worst,
            does_not_square_the_sum,
            lets_them_cancel,
            place_of_the_best,
        ),
    ),
    Exercise(
        "2.4",
        percentile_limit,
        cases=(
            (torch.tensor([3.0, 1.0, 2.0, 4.0]), 50),
            (torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 50),
            (MANY, 90),
            (MANY.flip(0), 100),
            (torch.arange(200.0), 99),
        ),
        hints=(
            _("Sort the values. Which place does the answer have?"),
            _("With 10 values and 90 percent it is the ninth, which has the index 8."),
            _("-(-n * percent // 100) is n * percent / 100, rounded up."),
        ),
        mistakes=(
            share_of_the_largest,
            from_the_top,
            one_place_too_high,
            rounds_the_place_down,
            between_two_values,
            does_not_sort,
        ),
    ),
)

QUIZ = (
    Question(
        _("You lower the limit of the grid a little. Which error grows?"),
        Choice(_("the rounding error"), _("The steps become finer: the rounding error falls.")),
        Choice(_("the clipping error"), _("More values lie above the limit, and further above it."), right=True),
        Choice(_("both"), _("They pull in opposite directions; that is why there is a best limit.")),
    ),
    Question(
        _("With 8 bits the best limit is near the largest value, with 3 bits it is far below. Why?"),
        Choice(
            _("with few bits a step is wide, so finer steps are worth some clipping"),
            _(
                "The rounding error goes with the squared step, and with 7 steps instead of 255 each is 36 times as wide."
            ),
            right=True,
        ),
        Choice(_("with few bits there are fewer large values"), _("The values are the same; only the grid changes.")),
        Choice(
            _("the clipping error depends on the bits"),
            _("What lies above the limit ends at the limit, with any bits."),
        ),
    ),
    Question(
        _("One broken pixel gives a single activation of 1,000; all others are below 6. What does min-max do?"),
        Choice(_("it ignores the pixel"), _("It looks at nothing but the smallest and the largest value.")),
        Choice(_("it clips at 6"), _("A percentile would do that. Min-max clips nothing.")),
        Choice(
            _("it spends nearly all codes on values that do not occur"),
            _("The grid reaches to 1,000 in steps of 3.9, and everything below 6 shares 3 of the 256 codes."),
            right=True,
        ),
    ),
)
