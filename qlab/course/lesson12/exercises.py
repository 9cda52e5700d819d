"""Lesson 12, deployment: the exercises and the questions."""

from __future__ import annotations

import math

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def seconds_per_answer(weights, macs, bits, bytes_per_second, macs_per_second):
    """Seconds for one answer: each weight (of ``bits`` bits) is read once while ``macs`` are done; the slower counts."""
    return max(weights * bits / 8 / bytes_per_second, macs / macs_per_second)


def bias_codes(bias, s_x, s_w):
    """The int32 codes of a bias, one a channel: its grid is that of the sum. bias and s_w are tensors, s_x a float."""
    return torch.round(bias / (s_x * s_w)).to(torch.int32)


def clamp_of_codes(scale, zero_point, bits, top=None):
    """(lowest, highest) code of an output after a ReLU; ``top``: where a ReLU6 cuts off (6.0), None for a plain ReLU."""
    highest = 2**bits - 1
    if top is not None:
        highest = min(highest, round(top / scale) + zero_point)
    return zero_point, highest


def diagnose(float_here, prepared, reference, engine, expected):
    """Where points got lost: "preprocessing", "quantization", "conversion" or "engine"; None where nothing was lost.

    The arguments are right answers in percent: of the float network as it is fed on this machine, of the prepared
    network, of the integer network on the reference and on the engine; and what the float network has in training's
    own test. A stage that has over 2 points less than the one before it lost them; the first such stage counts.
    """
    stages = ("preprocessing", "quantization", "conversion", "engine")
    rights = (expected, float_here, prepared, reference, engine)
    for stage, before, after in zip(stages, rights, rights[1:]):
        if before - after > 2:
            return stage
    return None


# --- mistakes: what each of them is told stands in its docstring


def adds_both(weights, macs, bits, bytes_per_second, macs_per_second):
    """Reading and computing go on at the same time, so the slower of the two counts, not their sum."""
    return weights * bits / 8 / bytes_per_second + macs / macs_per_second


def takes_bits_for_bytes(weights, macs, bits, bytes_per_second, macs_per_second):
    """The memory is given in bytes a second, and a byte has 8 bits."""
    return max(weights * bits / bytes_per_second, macs / macs_per_second)


def takes_the_faster(weights, macs, bits, bytes_per_second, macs_per_second):
    """Both have to be done before the answer is there: the slower one decides."""
    return min(weights * bits / 8 / bytes_per_second, macs / macs_per_second)


def forgets_the_memory(weights, macs, bits, bytes_per_second, macs_per_second):
    """Before a weight can be multiplied it must be read: that may take longer than the multiplications."""
    return macs / macs_per_second


def reads_float_weights(weights, macs, bits, bytes_per_second, macs_per_second):
    """You read 4 bytes a weight whatever its bits are: weights * bits / 8 bytes have to be read."""
    return max(weights * 4 / bytes_per_second, macs / macs_per_second)


def forgets_the_arithmetic(weights, macs, bits, bytes_per_second, macs_per_second):
    """That is the time of reading alone. A layer that uses each weight often takes longer to compute than to read."""
    return weights * bits / 8 / bytes_per_second


def on_the_grid_of_the_input(bias, s_x, s_w):
    """The sum is in steps of s_x * s_w, so the bias must be too; you divide by s_x alone."""
    return torch.round(bias / s_x).expand(len(s_w)).to(torch.int32)


def on_the_grid_of_the_weights(bias, s_x, s_w):
    """The sum is in steps of s_x * s_w, so the bias must be too; you divide by s_w alone."""
    return torch.round(bias / s_w).to(torch.int32)


def in_eight_bits(bias, s_x, s_w):
    """A bias is no code of 8 bits: steps of s_x * s_w are small, so it needs thousands of them. Keep all 32 bits."""
    return torch.round(bias / (s_x * s_w)).clamp(-128, 127).to(torch.int32)


def cuts_off(bias, s_x, s_w):
    """.to(torch.int32) alone cuts off towards 0: round first."""
    return (bias / (s_x * s_w)).to(torch.int32)


def always_down(bias, s_x, s_w):
    """You round down (floor): the nearest code is asked for, so torch.round."""
    return torch.floor(bias / (s_x * s_w)).to(torch.int32)


def multiplies(bias, s_x, s_w):
    """You multiply by the step. A code counts steps: divide the bias by s_x * s_w."""
    return torch.round(bias * s_x * s_w).to(torch.int32)


def one_step_for_all(bias, s_x, s_w):
    """You take one step for all channels. Each channel's weights have a scale of their own, so its bias has too."""
    return torch.round(bias / (s_x * s_w.max())).to(torch.int32)


def starts_at_zero(scale, zero_point, bits, top=None):
    """The value 0 has the code zero_point, and a ReLU lets nothing below it through."""
    return 0, clamp_of_codes(scale, zero_point, bits, top)[1]


def forgets_the_bits(scale, zero_point, bits, top=None):
    """The grid has 2**bits codes: the highest is 2**bits - 1, also when it has fewer than 8 bits."""
    return zero_point, 255 if top is None else min(255, round(top / scale) + zero_point)


def forgets_the_zero_point(scale, zero_point, bits, top=None):
    """A value v has the code round(v / scale) + zero_point: add the zero point to the top as well."""
    highest = 2**bits - 1
    return zero_point, highest if top is None else min(highest, round(top / scale))


def beyond_the_grid(scale, zero_point, bits, top=None):
    """When 6 lies above the grid's own end, the grid's highest code is the limit: take the smaller of the two."""
    return zero_point, 2**bits - 1 if top is None else round(top / scale) + zero_point


def cuts_off_the_top(scale, zero_point, bits, top=None):
    """int() and // cut off: the code of 6 is the nearest one, so round(top / scale)."""
    return zero_point, 2**bits - 1 if top is None else min(2**bits - 1, int(top / scale) + zero_point)


def rounds_the_top_up(scale, zero_point, bits, top=None):
    """You round the top up (ceil): the code of 6 is the nearest one, so round(top / scale)."""
    highest = 2**bits - 1
    return zero_point, highest if top is None else min(highest, math.ceil(top / scale) + zero_point)


def one_code_too_many(scale, zero_point, bits, top=None):
    """A grid of so many bits has 2**bits codes, from 0: the highest is 2**bits - 1."""
    return zero_point, 2**bits if top is None else min(2**bits, round(top / scale) + zero_point)


def blames_the_last(float_here, prepared, reference, engine, expected):
    """The first stage that loses points is the cause; what comes after it inherits the loss."""
    return _blame(_drops(float_here, prepared, reference, engine, expected)[::-1], lambda drop: drop > 2)


def blames_the_largest(float_here, prepared, reference, engine, expected):
    """You take the stage that loses most. The first one with over 2 points counts: mend that, then measure again."""
    drops = _drops(float_here, prepared, reference, engine, expected)
    return _blame(sorted(drops, key=lambda drop: -drop[1]), lambda drop: drop > 2)


def blames_quantization(float_here, prepared, reference, engine, expected):
    """Look at the float network first: where it is wrong already, quantization is not to blame."""
    return diagnose(expected, prepared, reference, engine, expected)


def trusts_the_prepared_network(float_here, prepared, reference, engine, expected):
    """The integers too may differ from the prepared network: compare the reference with it."""
    found = diagnose(float_here, prepared, prepared, engine, expected)
    return "engine" if found == "conversion" else found


def forgives_too_little(float_here, prepared, reference, engine, expected):
    """A loss of 2 points or less counts as none: rounding alone may cost that."""
    return _blame(_drops(float_here, prepared, reference, engine, expected), lambda drop: drop > 0.5)


def minds_two_points(float_here, prepared, reference, engine, expected):
    """Exactly 2 points are not over 2: > and not >=."""
    return _blame(_drops(float_here, prepared, reference, engine, expected), lambda drop: drop >= 2)


def minds_a_gain(float_here, prepared, reference, engine, expected):
    """You take the size of the change (abs). A stage that has more points than the one before it has lost nothing."""
    return _blame(_drops(float_here, prepared, reference, engine, expected), lambda drop: abs(drop) > 2)


def compares_all_with_the_first(float_here, prepared, reference, engine, expected):
    """You compare each stage with ``expected``, so small losses add up. Compare each with the one just before it."""
    stages = ("preprocessing", "quantization", "conversion", "engine")
    return _blame(
        [(stage, expected - right) for stage, right in zip(stages, (float_here, prepared, reference, engine))],
        lambda drop: drop > 2,
    )


def says_nothing(float_here, prepared, reference, engine, expected):
    """Where no stage lost over 2 points return None: there is no stage to name, and no word for it either."""
    return diagnose(float_here, prepared, reference, engine, expected) or "nothing"


def _drops(float_here, prepared, reference, engine, expected):
    rights = (expected, float_here, prepared, reference, engine)
    stages = ("preprocessing", "quantization", "conversion", "engine")
    return [(stage, before - after) for stage, before, after in zip(stages, rights, rights[1:])]


def _blame(drops, guilty):
    return next((stage for stage, drop in drops if guilty(drop)), None)


# --- exercises and questions

EXERCISES = (
    Exercise(
        "12.1",
        seconds_per_answer,
        cases=(
            (8, 1, 8, 4, 10),
            (1, 8, 8, 4, 10),
            (100_000_000, 100_000_000, 32, 10e9, 50e9),
            (100_000_000, 100_000_000, 8, 10e9, 50e9),
            (270_000, 41_000_000, 8, 10e9, 50e9),
        ),
        hints=(
            _("Two times: that of reading the weights, and that of computing."),
            _("The weights take weights * bits / 8 bytes."),
            _("Both run at the same time: max."),
        ),
        mistakes=(
            adds_both,
            takes_bits_for_bytes,
            takes_the_faster,
            forgets_the_memory,
            reads_float_weights,
            forgets_the_arithmetic,
        ),
    ),
    Exercise(
        "12.2",
        bias_codes,
        cases=(
            (torch.tensor([1.0]), 0.5, torch.tensor([0.5])),
            (torch.tensor([0.3, -0.3]), 0.1, torch.tensor([0.02, 0.02])),
            (torch.tensor([0.7, -1.3, 0.0004]), 0.023, torch.tensor([0.004, 0.0007, 0.01])),
        ),
        hints=(
            _("What is 1 worth in a sum of products of codes? Lesson 5 has it."),
            _("A step of the sum is s_x * s_w, another one in each channel."),
            _("torch.round(bias / step), then .to(torch.int32)."),
        ),
        mistakes=(
            on_the_grid_of_the_input,
            on_the_grid_of_the_weights,
            in_eight_bits,
            cuts_off,
            always_down,
            multiplies,
            one_step_for_all,
        ),
    ),
    Exercise(
        "12.3",
        clamp_of_codes,
        cases=(
            (0.1, 0, 8),
            (0.1, 3, 4),
            (0.1, 20, 8, 6.0),
            (0.03, 0, 7, 6.0),
            (0.02, 10, 8, 6.0),
            (0.07, 12, 8, 6.0),
            (0.035, 9, 8, 6.0),
        ),
        hints=(
            _("Which code has the value 0? Everything below it is negative."),
            _("Without a ReLU6 the highest code is the grid's own: 2**bits - 1."),
            _("The value 6 has the code round(6 / scale) + zero_point; the grid may end before that: min."),
        ),
        mistakes=(
            starts_at_zero,
            forgets_the_bits,
            forgets_the_zero_point,
            beyond_the_grid,
            cuts_off_the_top,
            rounds_the_top_up,
            one_code_too_many,
        ),
    ),
    Exercise(
        "12.4",
        diagnose,
        cases=(
            (31.0, 30.0, 30.0, 30.0, 88.0),
            (88.0, 40.0, 40.0, 40.0, 88.0),
            (88.0, 87.5, 60.0, 60.0, 88.0),
            (88.0, 87.5, 87.4, 70.0, 88.0),
            (88.0, 60.0, 60.0, 20.0, 88.0),
            (88.0, 87.9, 87.8, 87.8, 88.0),
            (87.0, 86.2, 85.0, 83.5, 88.0),
            (86.0, 84.0, 82.0, 80.0, 88.0),
            (91.5, 91.0, 91.0, 70.0, 88.0),
            (85.0, 45.0, 40.0, 40.0, 88.0),
            (88.0, 80.0, 84.0, 84.0, 88.0),
            (88.0, 87.5, 91.0, 90.5, 88.0),
        ),
        hints=(
            _("Write the five numbers in the order of the stages: expected, float_here, prepared, reference, engine."),
            _("Each stage is compared with the one before it; the first that has over 2 points less is the cause."),
            _("for stage, before, after in zip(stages, rights, rights[1:]): if before - after > 2: return stage"),
            _("When the loop ends without a return, nothing was lost: None, which a function returns by itself."),
        ),
        mistakes=(
            blames_the_last,
            blames_the_largest,
            blames_quantization,
            trusts_the_prepared_network,
            forgives_too_little,
            minds_two_points,
            minds_a_gain,
            compares_all_with_the_first,
            says_nothing,
        ),
    ),
)

QUIZ = (
    Question(
        _("An ONNX file has QuantizeLinear and DequantizeLinear nodes around a Conv. What does the processor compute?"),
        Choice(
            _("always a float convolution, since Conv is a float node"),
            _("A runtime without integer kernels does that. One that has them replaces the whole group."),
        ),
        Choice(
            _("an integer convolution, where the runtime has one for these grids"),
            _("The nodes say which grids there are; the runtime puts its integer kernel in place of the group."),
            right=True,
        ),
        Choice(_("nothing new: the nodes only make the file smaller"), _("They also say how each value is rounded.")),
    ),
    Question(
        _("A large linear layer answers one question at a time. Why can int8 be up to four times as fast?"),
        Choice(
            _("a quarter of the bytes comes from memory, and memory sets the pace"),
            _("Each weight is used once, so its way from the memory takes longer than its multiplication."),
            right=True,
        ),
        Choice(
            _("integer multiplications take a quarter of the time"),
            _("The processor waits for weights here, whatever it multiplies with."),
        ),
        Choice(_("a quarter of the multiplications is left out"), _("All of them are done, on smaller numbers.")),
    ),
    Question(
        _("In the app float is right in 31 % of the cases, int8 in 30 %; in training it was 88 %. What now?"),
        Choice(_("calibrate with more images"), _("Calibration changes int8 only; float is wrong already.")),
        Choice(_("train with QAT"), _("QAT brings back what rounding lost. Here rounding lost one point.")),
        Choice(
            _("look at how the app makes its input: size, colours, normalization"),
            _("Float is wrong already, so the fault lies before quantization."),
            right=True,
        ),
    ),
)  # fmt: skip
