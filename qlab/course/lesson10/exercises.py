"""Lesson 10, language models: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def perplexity(probabilities, following):
    """e to the mean of -log p; p is the probability, in each row of probabilities, of the token that follows it."""
    rows = torch.arange(len(following))
    return float(torch.exp(-torch.log(probabilities[rows, following]).mean()))


def bits_per_weight(bits, group_size, grid_bits):
    """Bits that a weight takes on average, when each group of weights stores grid_bits for its scale and zero point."""
    return bits + grid_bits / group_size


def push_error(w, column, value, inverse):
    """GPTQ: w (1-D) after w[column] became value, and the columns behind it made up for the error.

    inverse (columns, columns) is the inverse Hessian over this column and those behind. The columns before stay as they
    are.
    """
    w = w.clone()
    error = (w[column] - value) / inverse[column, column]
    w[column] = value
    w[column + 1 :] -= error * inverse[column, column + 1 :]
    return w


def smooth(x, w, alpha):
    """(x / s, w * s) with s = max|x| ** alpha / max|w| ** (1 - alpha), one s for each column; x and w have columns."""
    s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    return x / s, w * s


# --- mistakes: what each of them is told stands in its docstring


def mean_probability(probabilities, following):
    """Take the mean of the logarithms, not the logarithm of the mean."""
    rows = torch.arange(len(following))
    return float(1 / probabilities[rows, following].mean())


def forgets_to_exponentiate(probabilities, following):
    """This is the mean cross-entropy in nats. Perplexity is e to that power."""
    rows = torch.arange(len(following))
    return float(-torch.log(probabilities[rows, following]).mean())


def of_the_likeliest(probabilities, following):
    """Take the probability of the token that follows, not that of the likeliest one."""
    return float(torch.exp(-torch.log(probabilities.amax(1)).mean()))


def softmax_of_chances(probabilities, following):
    """cross_entropy takes the outputs before the softmax and applies it itself. These are probabilities already."""
    return float(torch.exp(torch.nn.functional.cross_entropy(probabilities, following)))


def base_two(probabilities, following):
    """The base of logarithm and power must be the same: log goes with exp, log2 with 2 to the power."""
    rows = torch.arange(len(following))
    return float(torch.exp(-torch.log2(probabilities[rows, following]).mean()))


def adds_the_logarithms(probabilities, following):
    """Take the mean of the logarithms, not their sum: a longer text is not a harder one."""
    rows = torch.arange(len(following))
    return float(torch.exp(-torch.log(probabilities[rows, following]).sum()))


def of_all_tokens(probabilities, following):
    """Only the probability of the token that follows counts, one in each row; you take all of them."""
    return float(torch.exp(-torch.log(probabilities).mean()))


def without_the_minus(probabilities, following):
    """Probabilities are below 1, so their logarithms are negative: a minus belongs before the mean."""
    rows = torch.arange(len(following))
    return float(torch.exp(torch.log(probabilities[rows, following]).mean()))


def no_grids(bits, group_size, grid_bits):
    """The grids need memory too: each group stores one."""
    return float(bits)


def a_grid_each(bits, group_size, grid_bits):
    """The weights of a group share one grid: divide its bits by their number."""
    return float(bits + grid_bits)


def times_the_group(bits, group_size, grid_bits):
    """Larger groups have fewer grids: divide by the size of the group."""
    return float(bits + grid_bits * group_size)


def one_group(bits, group_size, grid_bits):
    """This is what a whole group takes. Divide by the number of its weights."""
    return float(bits * group_size + grid_bits)


def whole_bits(bits, group_size, grid_bits):
    """An average need not be a whole number: divide with /, not with //, and do not round."""
    return bits + grid_bits // group_size


def the_wrong_way_round(bits, group_size, grid_bits):
    """You divide the size of the group by the bits of the grid. It is the other way round."""
    return bits + group_size / grid_bits


def grids_alone(bits, group_size, grid_bits):
    """That is the grid's share alone. The weight's own code comes on top."""
    return grid_bits / group_size


def rounds_only(w, column, value, inverse):
    """This is plain rounding: nothing behind has changed. Take the error before you write the value into w."""
    w = w.clone()
    w[column] = value
    return w


def forgets_the_value(w, column, value, inverse):
    """The columns behind are right; now write the value into w[column]."""
    changed = push_error(w, column, value, inverse)
    changed[column] = w[column]
    return changed


def wrong_way(w, column, value, inverse):
    """You push the error the wrong way: it has to be taken away from the columns behind."""
    w = w.clone()
    error = (w[column] - value) / inverse[column, column]
    w[column] = value
    w[column + 1 :] += error * inverse[column, column + 1 :]
    return w


def forgets_the_diagonal(w, column, value, inverse):
    """Divide the error by inverse[column, column]."""
    w = w.clone()
    error = w[column] - value
    w[column] = value
    w[column + 1 :] -= error * inverse[column, column + 1 :]
    return w


def changes_all_columns(w, column, value, inverse):
    """The columns before are rounded already: only those behind make up for the error."""
    w = w.clone()
    error = (w[column] - value) / inverse[column, column]
    w -= error * inverse[column]
    w[column] = value
    return w


def moves_the_column_too(w, column, value, inverse):
    """The column itself has to hold the value: only those behind it, from column + 1 on, make up for the error."""
    w = w.clone()
    error = (w[column] - value) / inverse[column, column]
    w[column] = value
    w[column:] -= error * inverse[column, column:]
    return w


def root_of_the_diagonal(w, column, value, inverse):
    """Divide by inverse[column, column] itself. Its root is for the rows of a Cholesky factor, which these are not."""
    w = w.clone()
    error = (w[column] - value) / inverse[column, column] ** 0.5
    w[column] = value
    w[column + 1 :] -= error * inverse[column, column + 1 :]
    return w


def diagonal_of_the_others(w, column, value, inverse):
    """Divide by the diagonal's entry of the column that was rounded, not by those of the columns behind."""
    w = w.clone()
    error = w[column] - value
    w[column] = value
    w[column + 1 :] -= error * inverse[column, column + 1 :] / inverse.diagonal()[column + 1 :]
    return w


def scales_the_wrong_one(x, w, alpha):
    """Activations are divided by s and weights multiplied: the outliers are in the activations."""
    s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    return x * s, w / s


def one_scale_for_all(x, w, alpha):
    """Each column needs an s of its own: take the maximum over the rows only."""
    s = x.abs().amax() ** alpha / w.abs().amax() ** (1 - alpha)
    return x / s, w * s


def a_scale_a_row(x, w, alpha):
    """You take the largest of each row. A channel is a column: amax(0) goes down the rows."""
    s = x.abs().amax(1) ** alpha / w.abs().amax(1) ** (1 - alpha)
    return x / s, w * s


def same_power(x, w, alpha):
    """max|w| has the power 1 - alpha."""
    s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** alpha
    return x / s, w * s


def powers_swapped(x, w, alpha):
    """alpha and 1 - alpha have changed places: with alpha = 1 the activations become equally large."""
    s = x.abs().amax(0) ** (1 - alpha) / w.abs().amax(0) ** alpha
    return x / s, w * s


def multiplies_the_maxima(x, w, alpha):
    """Divide by max|w| ** (1 - alpha): where the weights are large already, less can move into them."""
    s = x.abs().amax(0) ** alpha * w.abs().amax(0) ** (1 - alpha)
    return x / s, w * s


def leaves_the_weights(x, w, alpha):
    """Multiply the weights by s too, or the layer's output is another one."""
    s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    return x / s, w


def forgets_magnitudes(x, w, alpha):
    """Take the largest magnitude: a large negative value is an outlier too."""
    s = x.amax(0) ** alpha / w.amax(0) ** (1 - alpha)
    return x / s, w * s


# --- exercises and questions

CHANCES = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
ROW = torch.tensor([0.34, -0.71, 0.12, 0.55])
INVERSE = torch.tensor([[2.0, 0.6, -0.4, 0.2], [0.6, 1.5, 0.3, -0.5], [-0.4, 0.3, 1.0, 0.1], [0.2, -0.5, 0.1, 1.2]])
X = torch.tensor([[0.5, -40.0, 1.0], [-1.0, 36.0, 0.25], [0.75, 12.0, -2.0]])
W = torch.tensor([[0.2, -0.1, 0.4], [-0.5, 0.05, 0.1], [0.3, 0.02, -0.6]])

EXERCISES = (
    Exercise(
        "10.1",
        perplexity,
        cases=(
            (torch.tensor([[0.5, 0.5]]), torch.tensor([1])),
            (torch.full((3, 4), 0.25), torch.tensor([0, 3, 2])),
            (CHANCES, torch.tensor([0, 1, 0, 2])),
        ),
        hints=(
            _("For each row, pick the probability of the token that follows: probabilities[row, following[row]]."),
            _("torch.arange(len(following)) gives the numbers of all rows at once."),
            _("Then the mean of the logarithms, a minus, and torch.exp."),
        ),
        mistakes=(
            mean_probability,
            forgets_to_exponentiate,
            of_the_likeliest,
            softmax_of_chances,
            base_two,
            adds_the_logarithms,
            of_all_tokens,
            without_the_minus,
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "10.2",
        bits_per_weight,
        cases=((4, 64, 32), (4, 32, 32), (8, 2048, 16), (3, 128, 20)),
        hints=(
            _("How many bits does one whole group take, codes and grid together?"),
            _("group_size * bits + grid_bits, divided by the number of weights in a group."),
        ),
        mistakes=(
            no_grids,
            a_grid_each,
            times_the_group,
            one_group,
            whole_bits,
            the_wrong_way_round,
            grids_alone,
        ),
    ),
    Exercise(
        "10.3",
        push_error,
        cases=((ROW, 0, 0.5, INVERSE), (ROW, 1, -0.75, INVERSE), (ROW, 3, 0.5, INVERSE)),
        hints=(
            _("error = (w[column] - value) / inverse[column, column]. Take it before you change w."),
            _("Only w[column + 1:] changes, by error times the same part of the row inverse[column]."),
        ),
        mistakes=(
            rounds_only,
            forgets_the_value,
            wrong_way,
            forgets_the_diagonal,
            changes_all_columns,
            moves_the_column_too,
            root_of_the_diagonal,
            diagonal_of_the_others,
        ),
    ),
    Exercise(
        "10.4",
        smooth,
        cases=((X, W, 0.5), (X, W, 0.0), (X, W, 1.0), (X.flip(0), W.flip(1), 0.7)),
        hints=(
            _("x.abs().amax(0) is the largest magnitude of each column."),
            _("Divide x by s and multiply w by s: then x @ w.T stays what it was."),
        ),
        mistakes=(
            scales_the_wrong_one,
            one_scale_for_all,
            a_scale_a_row,
            same_power,
            powers_swapped,
            multiplies_the_maxima,
            leaves_the_weights,
            forgets_magnitudes,
        ),
        tolerance=1e-5,
    ),
)

QUIZ = (
    Question(
        _("Why can int8 weights make a model write faster, even when it multiplies in float?"),
        Choice(_("it needs fewer multiplications"), _("Their number is the same: one for each weight and token.")),
        Choice(
            _("each token reads every weight from memory, and there are fewer bytes to read"),
            _("Reading the weights sets the limit for writing. How near a kernel comes to it is another question."),
            right=True,
        ),
        Choice(_("integers need no scale"), _("They do: each code is multiplied by its scale after it was read.")),
    ),
    Question(
        _("GPTQ's weights are further from the float weights than rounded ones are. Why is it better?"),
        Choice(
            _("it keeps the layer's outputs close, and errors of different weights cancel there"),
            _("Inputs are correlated, so one weight can make up for another."),
            right=True,
        ),
        Choice(_("it uses more bits"), _("It stores exactly as many.")),
        Choice(_("it trains the model on the test text"), _("It only looks at inputs of calibration text.")),
    ),
    Question(
        _("One channel's activations are 100 times as large as the others'. Which of these does not help W8A8?"),
        Choice(
            _("multiply that channel in float, as LLM.int8() does"), _("It helps: the others get their codes back.")
        ),
        Choice(
            _("divide it by a number and multiply its weights by the same, as SmoothQuant does"),
            _("It helps: weights have a scale a row, and a little more range costs them little."),
        ),
        Choice(
            _("a scale for each token"),
            _("Every token has the large channel, so each token's scale has to reach up to it."),
            right=True,
        ),
    ),
)
