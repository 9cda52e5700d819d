"""Lesson 6, PTQ from end to end: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def packed_bytes(counts, bits):
    """Bytes of the packed weights: layer i has counts[i] weights of bits[i] bits, and begins a new byte."""
    return sum(-(-count * width // 8) for count, width in zip(counts, bits))


def spend(counts, noise, budget):
    """The bits of each layer, as a list: 2, 4 or 8. Begin with 2 for all layers. Then, step by step, widen one layer
    (2 to 4, or 4 to 8): of those that still fit the budget, the one whose noise falls most for each bit of size.

    counts[i]: weights of layer i; noise[i]: a dict from 2, 4 and 8 to its noise; budget: bits for all weights together.
    """
    bits = [2] * len(counts)
    while True:
        left = budget - sum(count * width for count, width in zip(counts, bits))
        gains = {
            i: (noise[i][width] - noise[i][2 * width]) / (counts[i] * width)
            for i, width in enumerate(bits) if width < 8 and counts[i] * width <= left
        }  # fmt: skip
        if not gains:
            return bits
        bits[max(gains, key=gains.get)] *= 2


def corrected_bias(x, weight, rounded, bias):
    """The bias with which the rounded weights give each output the same mean over the rows of x as the float weights.

    x: (rows, inputs); weight and rounded: (outputs, inputs); bias: (outputs,).
    """
    return bias + (x @ (weight - rounded).T).mean(0)


def best_rounding(x, w):
    """Each weight of w rounded down or up to a whole number, so that the outputs x @ w change least.

    Least is the sum of the squared changes over the rows of x. x: (rows, n), w: (n,), n small; none of w is whole.
    """
    best, least = None, float("inf")
    for number in range(2 ** len(w)):
        up = torch.tensor([(number >> place) & 1 for place in range(len(w))])
        rounded = w.floor() + up
        error = float((x @ (rounded - w)).square().sum())
        if error < least:
            best, least = rounded, error
    return best


# --- mistakes: what each of them is told stands in its docstring


def in_bits(counts, bits):
    """That is the number of bits. A byte has 8 of them."""
    return sum(count * width for count, width in zip(counts, bits))


def rounds_down(counts, bits):
    """A layer that ends inside a byte needs that byte too: round up."""
    return sum(count * width // 8 for count, width in zip(counts, bits))


def rounds_once(counts, bits):
    """Each layer begins a new byte, so round each layer up, not the sum."""
    return -(-sum(count * width for count, width in zip(counts, bits)) // 8)


def average_bits(counts, bits):
    """A large layer counts more than a small one: do not average the bits first."""
    return -(-int(sum(counts) * sum(bits) / len(bits)) // 8)


def whole_bytes_a_weight(counts, bits):
    """Codes are packed: 3 bits take 3 bits, not a byte for each weight."""
    return sum(count * -(-width // 8) for count, width in zip(counts, bits))


def one_byte_more(counts, bits):
    """Whoever adds a byte always gives one too many to a layer that ends with a byte."""
    return sum(count * width // 8 + 1 for count, width in zip(counts, bits))


def rounds_to_nearest(counts, bits):
    """A layer that ends inside a byte needs the whole byte: round up, not to the nearest."""
    return sum(int(count * width / 8 + 0.5) for count, width in zip(counts, bits))


def ignores_size(counts, noise, budget):
    """You compare how far the noise falls, but a large layer pays more for it: divide by the added bits of size."""
    return _spend(counts, noise, budget, lambda fall, size: fall)


def divides_by_the_weights(counts, noise, budget):
    """You divide by the number of weights. From 4 to 8 adds twice as many bits as from 2 to 4: divide by the added bits."""
    bits = [2] * len(counts)
    while True:
        left = budget - in_bits(counts, bits)
        gains = {
            i: (noise[i][width] - noise[i][2 * width]) / counts[i]
            for i, width in enumerate(bits) if width < 8 and counts[i] * width <= left
        }  # fmt: skip
        if not gains:
            return bits
        bits[max(gains, key=gains.get)] *= 2


def jumps_to_8(counts, noise, budget):
    """One step goes from 2 to 4, or from 4 to 8: not from 2 to 8 at once."""
    bits = [2] * len(counts)
    while True:
        left = budget - in_bits(counts, bits)
        gains = {
            (i, then): (noise[i][now] - noise[i][then]) / (counts[i] * (then - now))
            for i, now in enumerate(bits) for then in (4, 8) if then > now and counts[i] * (then - now) <= left
        }  # fmt: skip
        if not gains:
            return bits
        layer, then = max(gains, key=gains.get)
        bits[layer] = then


def all_to_4_first(counts, noise, budget):
    """You take all layers to 4 bits before one gets 8. A second step of one may be worth more than the first of another."""
    bits = [2] * len(counts)
    for now in (2, 4):
        gains = [(row[now] - row[2 * now]) / count for row, count in zip(noise, counts)]
        for i in sorted(range(len(counts)), key=lambda i: -gains[i]):
            if bits[i] == now and in_bits(counts, bits) + counts[i] * now <= budget:
                bits[i] = 2 * now
    return bits


def smallest_first(counts, noise, budget):
    """You widen the layer that is cheapest. Look also at how far its noise falls."""
    return _spend(counts, noise, budget, lambda fall, size: -size)


def stops_too_early(counts, noise, budget):
    """When the best one does not fit, another one may: look at those that fit only."""
    bits = [2] * len(counts)
    while any(width < 8 for width in bits):
        gains = [(row[w] - row[2 * w]) / (n * w) if w < 8 else -1 for row, n, w in zip(noise, counts, bits)]
        best = gains.index(max(gains))
        if in_bits(counts, bits) + counts[best] * bits[best] > budget:
            break
        bits[best] *= 2
    return bits


def forgets_what_is_spent(counts, noise, budget):
    """Subtract what all layers take now, the 2 bits of the start among it, before you ask what fits."""
    return spend(counts, noise, budget + 2 * sum(counts))


def noisiest_first(counts, noise, budget):
    """You widen the layer with the most noise. What counts is how far its noise falls, for each added bit of size."""
    bits = [2] * len(counts)
    while True:
        left = budget - in_bits(counts, bits)
        fits = [i for i, width in enumerate(bits) if width < 8 and counts[i] * width <= left]
        if not fits:
            return bits
        bits[max(fits, key=lambda i: noise[i][bits[i]])] *= 2


def once_each(counts, noise, budget):
    """A layer that was widened to 4 bits may be widened again, to 8."""
    bits = [2] * len(counts)
    gains = {i: (noise[i][2] - noise[i][4]) / (2 * counts[i]) for i in range(len(counts))}
    for i in sorted(gains, key=gains.get, reverse=True):
        if in_bits(counts, bits) + 2 * counts[i] <= budget:
            bits[i] = 4
    return bits


def spends_too_much(counts, noise, budget):
    """The last step went over the budget: ask whether the wider layer fits before you widen it."""
    bits = [2] * len(counts)
    while in_bits(counts, bits) < budget and min(bits) < 8:
        gains = {i: (noise[i][w] - noise[i][2 * w]) / (counts[i] * w) for i, w in enumerate(bits) if w < 8}
        bits[max(gains, key=gains.get)] *= 2
    return bits


def _spend(counts, noise, budget, worth):
    bits = [2] * len(counts)
    while True:
        left = budget - in_bits(counts, bits)
        gains = {
            i: worth(noise[i][width] - noise[i][2 * width], counts[i] * width)
            for i, width in enumerate(bits) if width < 8 and counts[i] * width <= left
        }  # fmt: skip
        if not gains:
            return bits
        bits[max(gains, key=gains.get)] *= 2


def wrong_sign(x, weight, rounded, bias):
    """The bias must give back what rounding took: float minus rounded, not the other way round."""
    return bias - (x @ (weight - rounded).T).mean(0)


def sums_rows(x, weight, rounded, bias):
    """Take the mean over the rows of x, not the sum."""
    return bias + (x @ (weight - rounded).T).sum(0)


def forgets_the_inputs(x, weight, rounded, bias):
    """An error of a weight counts as much as its input is large: multiply by x."""
    return bias + (weight - rounded).mean(1)


def one_mean_for_all(x, weight, rounded, bias):
    """Each output has a mean of its own: .mean(0), over the rows alone."""
    return bias + (x @ (weight - rounded).T).mean()


def the_shift_alone(x, weight, rounded, bias):
    """That is the shift. The new bias is the old one plus it."""
    return (x @ (weight - rounded).T).mean(0)


def forgets_the_old_bias(x, weight, rounded, bias):
    """That is the mean of the outputs with the float weights. Subtract the mean with the rounded ones, and add the bias."""
    return (x @ weight.T).mean(0)


def of_sizes(x, weight, rounded, bias):
    """Errors of opposite sign cancel in the mean: do not take their size."""
    return bias + (x @ (weight - rounded).T).abs().mean(0)


def mean_over_outputs(x, weight, rounded, bias):
    """You take the mean over the outputs, .mean(1). Each output wants its own, over the rows of x: .mean(0)."""
    return bias + (x @ (weight - rounded).T).mean(1)


def to_nearest(x, w):
    """That is rounding to nearest: the error of each weight is least, but not that of the outputs."""
    return torch.round(w)


def ignores_the_inputs(x, w):
    """You make the errors of the weights cancel, but what counts is x times them."""
    return best_rounding(torch.ones(1, len(w)), w)


def cancels_over_rows(x, w):
    """Square the change of each row before you add them up; else errors of different rows cancel."""
    return best_rounding(x.sum(0, keepdim=True), w)


def _best(x, w, error):
    ways = [w.floor() + torch.tensor([(n >> i) & 1 for i in range(len(w))]) for n in range(2 ** len(w))]
    return min(ways, key=lambda rounded: float(error(x @ (rounded - w))))


def without_squares(x, w):
    """You add up the sizes of the changes. Their squares are asked for: a large one counts more."""
    return _best(x, w, lambda change: change.abs().sum())


def largest_change(x, w):
    """You look at the largest change alone. The sum of all squared changes is to be least."""
    return _best(x, w, lambda change: change.abs().max())


def always_down(x, w):
    """Each weight may also go up: try w.floor() + 1."""
    return w.floor()


def one_after_the_other(x, w):
    """You settle one weight after the other. What is best for one depends on the others: try all ways."""
    rounded = w.round()
    for place in range(len(w)):
        ways = [torch.cat([rounded[:place], end[place : place + 1], w[place + 1 :]]) for end in (w.floor(), w.ceil())]
        rounded = min(ways, key=lambda way: float((x @ (way - w)).square().sum()))
    return rounded


def one_change_at_a_time(x, w):
    """You begin at the nearest and change one weight at a time. Two changes that help together are missed: try all ways."""
    best = torch.round(w)
    for place in range(len(w)):
        other = best.clone()
        other[place] = 2 * w[place].floor() + 1 - best[place]
        if float((x @ (other - w)).square().sum()) < float((x @ (best - w)).square().sum()):
            best = other
    return best


def worst_rounding(x, w):
    """You keep the rounding with the largest error."""
    choices = [w.floor() + torch.tensor([(n >> i) & 1 for i in range(len(w))]) for n in range(2 ** len(w))]
    return max(choices, key=lambda rounded: float((x @ (rounded - w)).square().sum()))


# --- exercises and questions

SMALL = {2: 0.3, 4: 0.02, 8: 0.0001}
STEEP = {2: 0.9, 4: 0.05, 8: 0.0002}
FLAT = {2: 0.05, 4: 0.04, 8: 0.0003}
X = torch.tensor([[1.0, 0.9], [0.8, 1.0], [0.2, 0.1]])
X3 = torch.tensor([[1.0, 2.0, 0.5], [0.5, 2.2, -1.0], [1.5, 0.1, 0.3], [0.0, 1.0, 2.0]])
WEIGHT = torch.tensor([[0.31, -0.22, 0.45], [0.12, 0.9, -0.6]])

EXERCISES = (
    Exercise(
        "6.1",
        packed_bytes,
        cases=(
            ([8], [4]),
            ([3], [3]),
            ([3, 5], [3, 2]),
            ([432, 2304, 640], [8, 3, 4]),
            ([5, 9], [3, 5]),
            ([101, 7, 33], [2, 8, 3]),
        ),
        hints=(
            _("One layer has count * bits bits. How many bytes hold them?"),
            _("-(-n // 8) is n / 8, rounded up. Add the layers up after that."),
        ),
        mistakes=(
            in_bits,
            rounds_down,
            rounds_once,
            average_bits,
            whole_bytes_a_weight,
            one_byte_more,
            rounds_to_nearest,
        ),
    ),
    Exercise(
        "6.2",
        spend,
        cases=(
            ([10], [SMALL], 20),
            ([10, 10], [SMALL, STEEP], 60),
            ([10, 100], [SMALL, STEEP], 430),
            ([10, 100], [SMALL, STEEP], 300),
            ([10, 100, 20], [FLAT, STEEP, SMALL], 420),
            ([10, 20, 30], [FLAT, SMALL, STEEP], 10**6),
            ([10, 10], [{2: 1.0, 4: 0.9, 8: 0.0}, {2: 1.0, 4: 0.75, 8: 0.7}], 100),
            ([10, 10], [{2: 1.0, 4: 0.5, 8: 0.0}, {2: 0.6, 4: 0.2, 8: 0.1}], 100),
            ([1, 10], [{2: 1.0, 4: 0.5, 8: 0.0}, {2: 0.3, 4: 0.2, 8: 0.1}], 44),
        ),
        hints=(
            _("All layers at 2 bits take 2 * sum(counts) bits. From 2 to 4 adds 2 bits a weight, from 4 to 8 adds 4."),
            _("For each layer below 8 bits: does it fit? If so, its gain is (noise now - noise then) / added bits."),
            _("Take the layer with the largest gain, double its bits, and begin again. No layer left: you are done."),
        ),
        mistakes=(
            ignores_size,
            divides_by_the_weights,
            jumps_to_8,
            all_to_4_first,
            smallest_first,
            noisiest_first,
            stops_too_early,
            forgets_what_is_spent,
            once_each,
            spends_too_much,
        ),
    ),
    Exercise(
        "6.3",
        corrected_bias,
        cases=(
            (torch.tensor([[2.0]]), torch.tensor([[0.4]]), torch.tensor([[0.5]]), torch.tensor([1.0])),
            (X3[:, :3].abs(), WEIGHT, torch.round(WEIGHT * 4) / 4, torch.tensor([0.5, -0.25])),
            (X3, WEIGHT, torch.round(WEIGHT * 2) / 2, torch.tensor([0.0, 1.0])),
        ),
        hints=(
            _("What is the mean of each output with the float weights? And with the rounded ones?"),
            _("x @ weight.T has a row for each row of x, a column for each output. .mean(0) is each output's mean."),
        ),
        mistakes=(
            wrong_sign,
            sums_rows,
            forgets_the_inputs,
            one_mean_for_all,
            the_shift_alone,
            forgets_the_old_bias,
            of_sizes,
            mean_over_outputs,
        ),
    ),
    Exercise(
        "6.4",
        best_rounding,
        cases=(
            (torch.tensor([[1.0, 1.1]]), torch.tensor([0.4, 0.4])),
            (X, torch.tensor([1.4, -0.6])),
            (torch.tensor([[1.0, -1.0], [0.9, -1.2]]), torch.tensor([0.6, 0.3])),
            (X3, torch.tensor([0.45, 1.4, -0.7])),
            (torch.tensor([[1.0, 1.0], [1.0, -1.1]]), torch.tensor([0.45, 0.4])),
            (torch.tensor([[-1.4, -1.7], [1.2, 1.4]]), torch.tensor([-1.2, 0.3])),
            (torch.tensor([[-2.0, -1.1, 1.6], [-0.6, 1.0, 2.0], [-0.3, -1.7, 0.8]]), torch.tensor([1.4, -1.3, -1.3])),
        ),
        hints=(
            _("With n weights there are 2**n ways to round. Try them all, and keep the best."),
            _("w.floor() rounds down. Adding 1 where a weight goes up gives each of the ways."),
            _("The error of one way is (x @ (rounded - w)).square().sum()."),
        ),
        mistakes=(
            to_nearest,
            ignores_the_inputs,
            cancels_over_rows,
            without_squares,
            largest_change,
            always_down,
            one_after_the_other,
            one_change_at_a_time,
            worst_rounding,
        ),
    ),
)

QUIZ = (
    Question(
        _("With one layer alone quantized the answers keep 35 dB, with another layer alone 10 dB. What follows?"),
        Choice(_("the first layer should keep more bits"), _("It does little harm: it can do with fewer.")),
        Choice(
            _("the second layer is the one that should keep more bits"), _("It alone spoils the answers."), right=True
        ),
        Choice(_("both together keep 45 dB"), _("Noise adds up. Together they keep less than 10 dB, or about that.")),
    ),
    Question(
        _("AdaRound rounds some weights to the code that is farther away. Why can that be better?"),
        Choice(_("it makes the weights smaller"), _("It does not look at their size.")),
        Choice(
            _("the errors of a channel's weights then cancel in its output"),
            _("What counts is the error of the output, and there errors of opposite effect cancel."),
            right=True,
        ),
        Choice(_("the grid becomes finer"), _("The grid stays; only up or down is chosen for each weight.")),
    ),
    Question(
        _("A search gives most bits to the first and the last layer, which are small. What is the reason?"),
        Choice(
            _("small layers have more outliers"),
            _("The search looks at noise in the answers and at bytes, nothing else."),
        ),
        Choice(_("these two are the slowest"), _("Speed plays no part in this search.")),
        Choice(
            _("bits there cost few bytes and remove much noise"),
            _("A byte is best spent where it removes the most noise from the answers."),
            right=True,
        ),
    ),
)
