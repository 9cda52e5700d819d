"""Lesson 99, the challenge: the exercises and the questions."""

from __future__ import annotations

import statistics

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def file_bytes(layers, others):
    """The bytes of a file with a network in it. layers: a list of (weights, bits, scales); others: how many other numbers.

    A layer's codes are packed and begin a new byte; each scale and each other number takes 4 bytes.
    """
    codes = sum(-(-weights * bits // 8) for weights, bits, _scales in layers)
    return codes + 4 * (sum(scales for _weights, _bits, scales in layers) + others)


def times_as_long(seconds, plain):
    """How many times as long a network takes as another one: the median, over the rounds, of the two times' ratio.

    seconds, plain: lists of measured seconds, a few of them disturbed. The two were measured in turns: seconds[i] and
    plain[i] are of the same round.
    """
    ratios = sorted(mine / other for mine, other in zip(seconds, plain))
    half = len(ratios) // 2
    return (ratios[half] + ratios[~half]) / 2


def dominates(a, b):
    """Does network a dominate network b? Each is a pair (right answers in percent, KiB). True or False."""
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def pareto_front(networks):
    """The networks that no other one dominates, the smallest first: a list of pairs (right answers in percent, KiB)."""
    best, front = float("-inf"), []
    for accuracy, kib in sorted(set(networks), key=lambda network: (network[1], -network[0])):
        if accuracy > best:
            best = accuracy
            front.append((accuracy, kib))
    return front


# --- mistakes: what each of them is told stands in its docstring


def forgets_the_scales(layers, others):
    """You count the codes and the other numbers. Each scale takes 4 bytes as well."""
    return sum(-(-weights * bits // 8) for weights, bits, _scales in layers) + 4 * others


def counts_bits(layers, others):
    """Those are bits for the codes. A byte has 8 of them."""
    return sum(weights * bits + 4 * scales for weights, bits, scales in layers) + 4 * others


def cuts_off_the_last_byte(layers, others):
    """9 codes of 1 bit need 2 bytes, not 1: round up in each layer."""
    return sum(weights * bits // 8 + 4 * scales for weights, bits, scales in layers) + 4 * others


def packs_across_layers(layers, others):
    """Each layer begins a new byte: round up in each layer, not once at the end."""
    bits = sum(weights * bits for weights, bits, _scales in layers)
    return -(-bits // 8) + 4 * (sum(scales for *_codes, scales in layers) + others)


def forgets_the_others(layers, others):
    """Biases and what stays in float are in the file too: the other numbers take 4 bytes each."""
    return sum(-(-weights * bits // 8) + 4 * scales for weights, bits, scales in layers)


def keeps_parts_of_bytes(layers, others):
    """9 codes of 1 bit take 2 bytes, not 1.125: round up in each layer."""
    return sum(weights * bits / 8 + 4 * scales for weights, bits, scales in layers) + 4 * others


def one_scale_a_layer(layers, others):
    """You count one scale a layer. The third number says how many it has: often one for each channel."""
    return sum(-(-weights * bits // 8) + 4 for weights, bits, _scales in layers) + 4 * others


def scales_of_one_byte(layers, others):
    """A scale is a float32: it takes 4 bytes, not 1."""
    return sum(-(-weights * bits // 8) + scales for weights, bits, scales in layers) + 4 * others


def of_the_medians(seconds, plain):
    """You compare two medians. They may come from different rounds, one of them disturbed: divide within each round
    first, then take the median of the ratios."""
    return statistics.median(seconds) / statistics.median(plain)


def of_the_means(seconds, plain):
    """You compare means. One disturbed measurement moves a mean as far as it likes; a median hardly notices."""
    return statistics.mean(seconds) / statistics.mean(plain)


def how_much_faster(seconds, plain):
    """That is how many times as fast it is. Asked for was how many times as long it takes."""
    return statistics.median(other / mine for mine, other in zip(seconds, plain))


def mean_of_the_ratios(seconds, plain):
    """You take the mean of the ratios. One disturbed round moves a mean as far as it likes; a median hardly notices."""
    return statistics.mean(mine / other for mine, other in zip(seconds, plain))


def the_lower_of_two(seconds, plain):
    """With an even number of rounds the median is the mean of the two in the middle. (torch.median gives the lower.)"""
    return statistics.median_low(mine / other for mine, other in zip(seconds, plain))


def the_middle_unsorted(seconds, plain):
    """You take the ratio in the middle of the list. The median is in the middle when they are sorted."""
    ratios, half = [mine / other for mine, other in zip(seconds, plain)], len(seconds) // 2
    return (ratios[half] + ratios[~half]) / 2


def of_the_fastest(seconds, plain):
    """You compare the two fastest measurements. Take the one in the middle: it stands for what a user sees."""
    return min(seconds) / min(plain)


def better_in_both(a, b):
    """To be as good in one and better in the other is enough."""
    return a[0] > b[0] and a[1] < b[1]


def better_in_one(a, b):
    """Better in one is not enough: it must not be worse in the other."""
    return a[0] > b[0] or a[1] < b[1]


def dominates_itself(a, b):
    """Two equal networks: none of them is better, so none dominates."""
    return a[0] >= b[0] and a[1] <= b[1]


def larger_is_better(a, b):
    """Of the KiB fewer are better."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def the_other_way_round(a, b):
    """You answer whether b dominates a, or read a pair as (KiB, right): right answers come first."""
    return b[0] >= a[0] and b[1] <= a[1] and a != b


def only_right_answers(a, b):
    """You look at right answers alone: a larger network does not dominate a smaller one."""
    return a[0] > b[0]


def only_the_best(networks):
    """That is one point of the front. A smaller network with fewer right answers may be on it too."""
    return [max(networks, key=lambda network: (network[0], -network[1]))]


def in_the_order_given(networks):
    """The right networks, in the order that they came in. The smallest was asked for first."""
    front = pareto_front(networks)
    return [network for network in networks if network in front]


def largest_first(networks):
    """The smallest network was asked for first."""
    return pareto_front(networks)[::-1]


def keeps_equal_accuracy(networks):
    """Of two networks that are equally right the larger one is dominated."""
    return [
        n for n in sorted(set(networks), key=lambda n: (n[1], -n[0])) if not any(better_in_both(m, n) for m in networks)
    ]


def everything_sorted(networks):
    """You sort all of them. Leave out those that another one dominates."""
    return sorted(networks, key=lambda network: network[1])


def keeps_equal_size(networks):
    """Of two networks of one size the less accurate is dominated: among equal sizes look at the most accurate first."""
    best, front = float("-inf"), []
    for accuracy, kib in sorted(networks, key=lambda network: network[1]):
        if accuracy > best:
            best = accuracy
            front.append((accuracy, kib))
    return front


def dominated_by_itself(networks):
    """Nothing is left: each network is as good as itself. Compare it with others, or leave out equal pairs."""
    return [n for n in networks if not any(dominates_itself(m, n) for m in networks)]


# --- exercises and questions

NETWORKS = [(88.0, 274.0), (86.0, 142.0), (87.5, 142.5), (82.0, 76.0), (81.0, 110.0), (88.0, 208.0), (70.0, 76.0)]

EXERCISES = (
    Exercise(
        "99.1",
        file_bytes,
        cases=(
            ([(16, 4, 2)], 0),
            ([(9, 1, 1)], 3),
            ([(9, 1, 1), (9, 1, 1)], 0),
            ([(432, 8, 16), (2304, 3, 16), (640, 8, 10)], 42),
        ),
        hints=(
            _("Codes first: weights times bits, divided by 8 and rounded up, layer by layer."),
            _("-(-a // b) rounds a / b up. Then 4 bytes for each scale, and for each other number."),
        ),
        mistakes=(
            forgets_the_scales,
            counts_bits,
            cuts_off_the_last_byte,
            packs_across_layers,
            forgets_the_others,
            keeps_parts_of_bytes,
            scales_of_one_byte,
            one_scale_a_layer,
        ),
    ),
    Exercise(
        "99.2",
        times_as_long,
        cases=(
            ([2.0, 3.0, 2.5], [1.0, 1.5, 1.25]),
            ([0.5, 0.6, 9.0], [1.0, 1.2, 1.1]),
            ([2.0, 2.2, 6.0, 6.6, 6.3], [1.0, 1.1, 1.0, 3.3, 3.0]),
            ([1.1, 1.1, 1.2, 1.0], [2.0, 2.1, 7.0, 2.3]),
        ),
        hints=(
            _("A disturbance that lasts hits both networks of a round: what does their ratio say then?"),
            _("So divide round by round. Which average of the ratios hardly moves when one round is disturbed?"),
            _("The median: sort, take the one in the middle, or the mean of the two there. statistics.median does it."),
        ),
        mistakes=(
            of_the_medians,
            of_the_means,
            how_much_faster,
            of_the_fastest,
            mean_of_the_ratios,
            the_lower_of_two,
            the_middle_unsorted,
        ),
    ),
    Exercise(
        "99.3",
        dominates,
        cases=(
            ((88.0, 100.0), (87.0, 120.0)),
            ((88.0, 100.0), (88.0, 120.0)),
            ((88.0, 100.0), (87.0, 100.0)),
            ((88.0, 120.0), (87.0, 100.0)),
            ((87.0, 100.0), (88.0, 120.0)),
            ((88.0, 100.0), (88.0, 100.0)),
            ((87.0, 120.0), (88.0, 100.0)),
            ((88.0, 120.0), (88.0, 100.0)),
        ),
        hints=(
            _("Write two conditions: a is not less often right than b, and a is not larger."),
            _("Both conditions, and not the same pair."),
        ),
        mistakes=(
            better_in_both,
            better_in_one,
            dominates_itself,
            larger_is_better,
            the_other_way_round,
            only_right_answers,
        ),
    ),
    Exercise(
        "99.4",
        pareto_front,
        cases=(
            ([(87.0, 100.0), (88.0, 200.0)],),
            ([(87.0, 100.0), (86.0, 200.0)],),
            ([(87.0, 200.0), (87.0, 100.0)],),
            ([(70.0, 76.0), (82.0, 76.0)],),
            (NETWORKS,),
        ),
        hints=(
            _("Keep a network if no other network dominates it: exercise 99.3 says which do."),
            _("Or sort by size and go through the list: keep a network if it is better than all smaller ones."),
        ),
        mistakes=(
            only_the_best,
            in_the_order_given,
            largest_first,
            keeps_equal_accuracy,
            everything_sorted,
            keeps_equal_size,
            dominated_by_itself,
        ),
    ),
)

QUIZ = (
    Question(
        _("You try 50 networks and take the one that is best on the exam's images. What is its accuracy worth?"),
        Choice(
            _("it is a little too high: some of it is luck with these images"),
            _(
                "The best of 50 noisy numbers is likely to be a lucky one. So it is measured once more, on the test images."
            ),
            right=True,
        ),
        Choice(_("it is exact: no image was trained on"), _("Choosing among 50 uses the images too.")),
        Choice(_("nothing"), _("It is likely to be too high, not worthless: the test images tell what is left.")),
    ),
    Question(
        _(
            "The activations of your network need 8 bits, its weights 3. Which of them would you make smaller, for a smaller file?"
        ),
        Choice(
            _("the activations: they have more bits"),
            _("No activation is in the file. They come and go with each image."),
        ),
        Choice(
            _("the weights: only they are in the file"),
            _("Activations cost memory and time while the network runs. The file holds weights, scales and biases."),
            right=True,
        ),
        Choice(_("both by one bit"), _("A bit less for the activations saves no byte of the file.")),
    ),
    Question(
        _("Your network is on the Pareto front, your neighbour's is too. Whose is better?"),
        Choice(
            _("the more accurate one"),
            _("It is larger: else it would dominate, and the other would not be on the front."),
        ),
        Choice(_("the smaller one"), _("It is less often right: else it would dominate.")),
        Choice(
            _("that depends on the budget"),
            _("Within the front no network beats another. What you need decides."),
            right=True,
        ),
    ),
)
