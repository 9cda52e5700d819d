"""Lesson 4, granularity: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def fold(weight, bias, mean, std, gamma, beta):
    """(weight, bias) of one layer that does what the layer and the BatchNorm behind it do.

    weight is (channels, inputs), all others are (channels,); std is the square root of the variance.
    """
    gain = gamma / std
    return weight * gain[:, None], (bias - mean) * gain + beta


def channel_scales(weight, bits):
    """One scale for each row of weight (channels, inputs): the largest weight gets the code 2**(bits - 1) - 1."""
    return weight.abs().amax(1) / (2 ** (bits - 1) - 1)


def quantize_groups(weight, size, bits):
    """The weights (rows, columns) rounded to a grid of their own for every size neighbours in a row.

    The grid is symmetric: codes from -(2**(bits - 1) - 1) to 2**(bits - 1) - 1. Give values, in the shape of weight.
    """
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(groups / scale) * scale).reshape(weight.shape)


def equalizing_factors(first, second):
    """The factor s of each channel: divide it by s in first (channels, inputs), multiply in second (outputs, channels).

    Afterwards the largest weight of a channel is the same in both layers.
    """
    return (first.abs().amax(1) / second.abs().amax(0)).sqrt()


def bias_shift(weight, rounded, input_mean):
    """How much the mean of each output moves when weight (outputs, inputs) is replaced by rounded."""
    return (rounded - weight) @ input_mean


# --- mistakes: what each of them is told stands in its docstring


def forgets_the_mean(weight, bias, mean, std, gamma, beta):
    """BatchNorm subtracts the mean first, and so must the folded bias."""
    gain = gamma / std
    return weight * gain[:, None], bias * gain + beta


def does_not_scale_the_bias(weight, bias, mean, std, gamma, beta):
    """The old bias and the mean go through the BatchNorm too: multiply them by gamma / std."""
    gain = gamma / std
    return weight * gain[:, None], bias - mean + beta


def scales_columns(weight, bias, mean, std, gamma, beta):
    """BatchNorm has one factor for each output, which is a row of the weight: gain[:, None]."""
    gain = gamma / std
    return weight * gain, (bias - mean) * gain + beta


def forgets_gamma(weight, bias, mean, std, gamma, beta):
    """Multiply by gamma as well as dividing by std."""
    return fold(weight, bias, mean, std, torch.ones_like(gamma), beta)


def divides_by_the_variance(weight, bias, mean, std, gamma, beta):
    """You divide by std squared. std is the square root already: divide by it once."""
    return fold(weight, bias, mean, std**2, gamma, beta)


def takes_the_root_again(weight, bias, mean, std, gamma, beta):
    """std is the square root of the variance already: divide by it, and take no second root."""
    return fold(weight, bias, mean, std.sqrt(), gamma, beta)


def scales_the_mean_alone(weight, bias, mean, std, gamma, beta):
    """The old bias goes through the BatchNorm too: multiply it by gamma / std as well."""
    gain = gamma / std
    return weight * gain[:, None], bias - mean * gain + beta


def scales_beta(weight, bias, mean, std, gamma, beta):
    """beta is added last, behind the division: nothing multiplies it."""
    gain = gamma / std
    return weight * gain[:, None], (bias - mean + beta) * gain


def adds_the_mean(weight, bias, mean, std, gamma, beta):
    """The mean is subtracted, not added."""
    return fold(weight, bias, -mean, std, gamma, beta)


def one_scale_for_all(weight, bits):
    """You give every channel the scale of the whole tensor."""
    return torch.full_like(weight[:, 0], float(weight.abs().max())) / (2 ** (bits - 1) - 1)


def scale_of_columns(weight, bits):
    """A channel is a row: take the largest of each row, amax(1)."""
    return weight.abs().amax(0) / (2 ** (bits - 1) - 1)


def without_the_sign(weight, bits):
    """A negative weight can be the one that is farthest from 0: take abs() first."""
    return weight.amax(1) / (2 ** (bits - 1) - 1)


def unsigned_codes(weight, bits):
    """With signed codes the highest one is 2**(bits - 1) - 1."""
    return weight.abs().amax(1) / (2**bits - 1)


def one_code_too_many(weight, bits):
    """2**(bits - 1) is no code: with 8 bits the highest is 127, not 128. Subtract 1."""
    return weight.abs().amax(1) / 2 ** (bits - 1)


def spans_from_least_to_largest(weight, bits):
    """That is the scale of a grid with a zero point. Here 0 has the code 0, and the largest magnitude sets the scale."""
    return (weight.amax(1) - weight.amin(1)) / (2**bits - 1)


def takes_values_and_places(weight, bits):
    """max(1) gives two things, the values and their places: take .max(1).values, or amax(1)."""
    return weight.abs().max(1) / (2 ** (bits - 1) - 1)


def upside_down(weight, bits):
    """The scale is what one step is worth: the largest weight divided by the highest code, not the reverse."""
    return 1 / channel_scales(weight, bits)


def whole_rows(weight, size, bits):
    """You give a whole row one scale. Cut the rows into groups of size neighbours."""
    return quantize_groups(weight, weight.shape[1], bits)


def whole_tensor(weight, size, bits):
    """You give all weights one scale. Cut the rows into groups of size neighbours."""
    return quantize_groups(weight, weight.numel(), bits)


def every_other(weight, size, bits):
    """Neighbours in a row belong together: reshape(-1, size), not the transpose of something."""
    columns = weight.shape[1] // size
    apart = weight.reshape(-1, size, columns).transpose(1, 2).reshape(-1, size)
    mixed = quantize_groups(apart, size, bits).reshape(-1, columns, size)
    return mixed.transpose(1, 2).reshape(weight.shape)


def gives_codes(weight, size, bits):
    """You give codes. Multiply by each group's scale to get values again."""
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.round(groups / scale).reshape(weight.shape)


def rounds_down(weight, size, bits):
    """You round down, and so every weight gets smaller: take the nearest code, torch.round."""
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.floor(groups / scale) * scale).reshape(weight.shape)


def groups_without_the_sign(weight, size, bits):
    """A negative weight can be the one that is farthest from 0: take abs() before the largest of a group."""
    groups = weight.reshape(-1, size)
    scale = groups.amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(groups / scale) * scale).reshape(weight.shape)


def groups_with_one_code_too_many(weight, size, bits):
    """The highest code is 2**(bits - 1) - 1: with 4 bits that is 7, not 8."""
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(1, keepdim=True) / 2 ** (bits - 1)
    return (torch.round(groups / scale) * scale).reshape(weight.shape)


def size_is_how_many(weight, size, bits):
    """size is how many neighbours share a scale, not into how many groups a row is cut."""
    return quantize_groups(weight, weight.shape[1] // size, bits)


def without_the_root(first, second):
    """One layer is divided and the other multiplied, so each takes half of the ratio: the square root."""
    return first.abs().amax(1) / second.abs().amax(0)


def the_other_way_round(first, second):
    """first is divided by s: where it is the larger of the two, s must be above 1."""
    return 1 / equalizing_factors(first, second)


def rows_of_both(first, second):
    """You take rows in both layers. A channel is a row of first, but a column of second, which reads it: amax(0) there."""
    return (first.abs().amax(1) / second.abs().amax(1)).sqrt()


def columns_of_both(first, second):
    """You take columns in both layers. A channel is a column of second, but a row of first, which makes it: amax(1) there."""
    return (first.abs().amax(0) / second.abs().amax(0)).sqrt()


def the_other_sides(first, second):
    """You take the inputs of first and the outputs of second. What the layers share are the rows of first, the columns of
    second."""
    return (first.abs().amax(0) / second.abs().amax(1)).sqrt()


def ranges_without_the_sign(first, second):
    """A negative weight can be the one that is farthest from 0: take abs() before amax."""
    return (first.amax(1) / second.amax(0)).sqrt()


def moves_to_the_mean(first, second):
    """That makes the first layer's ranges equal to each other. Make each channel's range equal in both layers."""
    return first.abs().amax(1) / first.abs().amax(1).mean()


def common_range(first, second):
    """That is the range which both layers shall have. The factor that brings them there is sqrt(r1 / r2)."""
    return (first.abs().amax(1) * second.abs().amax(0)).sqrt()


def wrong_direction(weight, rounded, input_mean):
    """How the output moves is new minus old: rounded - weight."""
    return (weight - rounded) @ input_mean


def inputs_are_one(weight, rounded, input_mean):
    """Each weight's error is multiplied by the mean of its input."""
    return (rounded - weight).sum(1)


def mean_of_inputs(weight, rounded, input_mean):
    """An output is a sum over its inputs, not a mean."""
    return (rounded - weight) @ input_mean / len(input_mean)


def size_of_errors(weight, rounded, input_mean):
    """Errors of opposite sign cancel: keep the signs."""
    return (rounded - weight).abs() @ input_mean


def new_mean(weight, rounded, input_mean):
    """That is the new mean of the output. How far it moved is that less the old one."""
    return rounded @ input_mean


def one_for_the_layer(weight, rounded, input_mean):
    """Every output has a shift of its own: add up over the inputs only, and give one number a row."""
    return ((rounded - weight) @ input_mean).mean()


# --- exercises and questions

ROWS = torch.tensor([[0.5, -1.0, 0.25, 0.1], [4.0, 2.0, -3.0, 1.5], [-0.02, 0.01, 0.015, 0.004]])
# No weight of these lies near the middle between two codes, whatever the group: half a step is no matter of float32.
GROUPS = torch.tensor([[0.52, -1.0, 0.23, 0.11], [4.0, 2.1, -3.0, 1.2], [-0.022, 0.012, 0.015, 0.004]])
FIRST = torch.tensor([[0.5, -1.0, 0.25], [4.0, 2.0, -3.0], [-0.02, 0.01, 0.015]])
SECOND = torch.tensor([[1.0, 0.5, -8.0], [-2.0, 0.25, 4.0], [0.5, 0.125, 1.0]])
EACH = {
    "mean": torch.tensor([1.0, -2.0, 0.5]), "std": torch.tensor([2.0, 0.5, 0.1]),
    "gamma": torch.tensor([1.5, 1.0, 0.5]), "beta": torch.tensor([0.0, 1.0, -1.0]),
}  # fmt: skip

EXERCISES = (
    Exercise(
        "4.1",
        fold,
        cases=(
            (torch.ones(1, 1), *(torch.tensor([number]) for number in (0.0, 1.0, 2.0, 1.0, 0.0))),
            (torch.ones(1, 1), *(torch.tensor([number]) for number in (3.0, 1.0, 2.0, 6.0, 0.5))),
            (ROWS[:, :3], torch.tensor([0.1, 0.2, -0.3]), *EACH.values()),
        ),
        hints=(
            _("BatchNorm makes (y - mean) / std * gamma + beta out of the layer's y = weight @ x + bias."),
            _("Put y in and sort: what is multiplied by x, and what is left?"),
            _("gain = gamma / std multiplies each row of the weight, and bias - mean."),
        ),
        mistakes=(
            forgets_the_mean, does_not_scale_the_bias, scales_the_mean_alone, scales_columns, forgets_gamma,
            divides_by_the_variance, takes_the_root_again, scales_beta, adds_the_mean,
        ),
    ),
    Exercise(
        "4.2",
        channel_scales,
        cases=((torch.tensor([[1.0, -3.0]]), 3), (ROWS[:, :3], 4), (ROWS, 8)),
        hints=(
            _("Which weight of a row is farthest from 0?"),
            _("weight.abs().amax(1) is the largest magnitude of each row."),
        ),
        mistakes=(
            one_scale_for_all, scale_of_columns, without_the_sign, unsigned_codes, one_code_too_many,
            spans_from_least_to_largest, upside_down, takes_values_and_places,
        ),
    ),
    Exercise(
        "4.3",
        quantize_groups,
        cases=((torch.tensor([[0.9, -3.0]]), 1, 3), (GROUPS[:1], 2, 3), (GROUPS, 2, 4), (GROUPS, 4, 2), (GROUPS[:2], 1, 3)),
        hints=(
            _("weight.reshape(-1, size) has one group a row. What is the scale of each row?"),
            _("amax(1, keepdim=True) keeps the shape (groups, 1), which divides (groups, size)."),
            _("Round groups / scale, multiply by scale, and reshape to weight.shape. Nothing has to be clamped."),
        ),
        mistakes=(
            whole_rows, whole_tensor, every_other, gives_codes, rounds_down, groups_without_the_sign,
            groups_with_one_code_too_many, size_is_how_many,
        ),
    ),
    Exercise(
        "4.4",
        equalizing_factors,
        # Square weights: whoever takes rows for columns gets numbers, and is told.
        cases=(
            (torch.tensor([[4.0]]), torch.tensor([[1.0]])),
            (torch.tensor([[4.0, 3.0], [0.5, -1.0]]), torch.tensor([[1.0, -8.0], [-2.0, 0.25]])),
            (FIRST, SECOND),
        ),
        hints=(
            _("Let r1 and r2 be a channel's largest weight in the two layers. You want r1 / s = r2 * s."),
            _("So s * s = r1 / r2. A channel is a row of first and a column of second."),
        ),
        mistakes=(
            without_the_root, the_other_way_round, rows_of_both, columns_of_both, the_other_sides, ranges_without_the_sign,
            moves_to_the_mean, common_range,
        ),
    ),
    Exercise(
        "4.5",
        bias_shift,
        cases=(
            (torch.tensor([[0.4, 1.2]]), torch.tensor([[0.5, 1.0]]), torch.tensor([1.0, 2.0])),
            (ROWS, torch.round(ROWS), torch.tensor([0.5, 0.0, 1.0, 2.0])),
        ),
        hints=(
            _("The mean of weight @ x is weight @ (the mean of x). What is it with the rounded weights?"),
            _("The difference of the two is (rounded - weight) @ input_mean."),
        ),
        mistakes=(wrong_direction, inputs_are_one, mean_of_inputs, size_of_errors, new_mean, one_for_the_layer),
    ),
)  # fmt: skip

QUIZ = (
    Question(
        _("A depthwise layer has one channel whose weights are 50 times as large as those of the others. Its weights "
          "get one scale for the whole tensor and 4 bits. What happens to the other channels?"),
        Choice(_("they are clipped"), _("They are far inside the range. It is the step that is too wide for them.")),
        Choice(_("all their weights become 0"),
               _("4 bits have codes up to 7, so half a step is 1/14 of the largest weight, and theirs are 1/50 of it."),
               right=True),
        Choice(_("nothing, since the mean error of the layer is small"),
               _("The mean is ruled by the large channel. The others lose all they had to say.")),
    ),
    Question(
        _("Why do channel ranges often grow apart when BatchNorm is folded?"),
        Choice(_("each channel is multiplied by its own gamma / std"),
               _("A channel with a small deviation gets a large factor, whatever its weights were."), right=True),
        Choice(_("folding changes what the network computes"), _("It computes the same: the lesson measures that.")),
        Choice(_("folding rounds the weights"), _("Folding comes before any rounding.")),
    ),
    Question(
        _("What does cross-layer equalization need?"),
        Choice(_("labelled images"), _("It looks at the weights of two layers only.")),
        Choice(_("a few epochs of training"), _("Nothing is trained. Both layers are scaled once.")),
        Choice(_("a function between the layers that scales along, such as relu"),
               _("relu(s x) = s relu(x) for s > 0, so the factor can be taken out again in the next layer."),
               right=True),
    ),
)  # fmt: skip
