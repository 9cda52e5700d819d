"""Lesson 7, quantization-aware training: the exercises and the questions."""

from __future__ import annotations

import torch

from qlab.course.exercises import Exercise
from qlab.course.language import _
from qlab.course.quiz import Choice, Question


def straight_through_gradient(x, target):
    """The gradient of the sum of (round(x) - target)**2 with respect to x, rounding passed straight through."""
    x = x.detach().clone().requires_grad_()
    rounded = x + (torch.round(x) - x).detach()
    ((rounded - target) ** 2).sum().backward()
    return x.grad


def train_one_weight(weight, target, lr, steps):
    """The float weight after each step, a list: a step subtracts lr times 2 * (round(weight) - target)."""
    path = []
    for _step in range(steps):
        weight = weight - lr * 2 * (round(weight) - target)
        path.append(weight)
    return path


def gradient_of_values(gradient, x, scale, qmin, qmax):
    """The gradient of x, given that of its values on the grid: it passes where qmin <= x / scale <= qmax, else 0."""
    position = x / scale
    return torch.where((position >= qmin) & (position <= qmax), gradient, torch.zeros_like(gradient))


def gradient_of_scale(gradient, x, scale, qmin, qmax):
    """LSQ's gradient of the scale, a number: the sum of the gradients of the values, times what each one moves."""
    position = x / scale
    codes = torch.round(position.clamp(qmin, qmax))
    clipped = (position < qmin) | (position > qmax)
    moves = torch.where(clipped, codes, codes - position)
    return float((gradient * moves).sum())


# --- mistakes: what each of them is told stands in its docstring


def true_slope(x, target):
    """That is the true slope of the stairs, 0 everywhere. Let rounding pass the gradient on."""
    return torch.zeros_like(x)


def forgets_to_round(x, target):
    """The loss is that of the rounded x: round going forward, only the way back ignores the rounding."""
    return 2 * (x - target)


def forgets_the_two(x, target):
    """The derivative of a square has a factor 2."""
    return torch.round(x) - target


def downhill(x, target):
    """The gradient points uphill. You give the direction that training goes."""
    return -2 * (torch.round(x) - target)


def cuts_off(x, target):
    """int() and trunc cut off what stands behind the point. Round to the nearest whole number: 0.8 becomes 1."""
    return 2 * (torch.trunc(x) - target)


def averages(x, target):
    """The loss is a sum, not a mean."""
    return 2 * (torch.round(x) - target) / x.numel()


def keeps_the_rounded_weight(weight, target, lr, steps):
    """You keep the rounded weight. Small steps are then rounded away: keep the float one, round only for the slope."""
    path = []
    for _step in range(steps):
        weight = round(weight) - lr * 2 * (round(weight) - target)
        path.append(weight)
    return path


def does_not_round(weight, target, lr, steps):
    """The network uses the rounded weight, so the slope is taken there: 2 * (round(weight) - target)."""
    path = []
    for _step in range(steps):
        weight = weight - lr * 2 * (weight - target)
        path.append(weight)
    return path


def climbs(weight, target, lr, steps):
    """Subtract the gradient; you add it and climb."""
    path = []
    for _step in range(steps):
        weight = weight + lr * 2 * (round(weight) - target)
        path.append(weight)
    return path


def forgets_the_factor(weight, target, lr, steps):
    """The slope of a square has a factor 2: a step is lr * 2 * (round(weight) - target)."""
    path = []
    for _step in range(steps):
        weight = weight - lr * (round(weight) - target)
        path.append(weight)
    return path


def gives_what_is_used(weight, target, lr, steps):
    """The float weights were asked for, not the rounded ones."""
    return [round(one) for one in train_one_weight(weight, target, lr, steps)]


def with_the_start(weight, target, lr, steps):
    """The list begins with the weight after the first step, not with the one before it."""
    return [weight, *train_one_weight(weight, target, lr, steps)]


def without_the_end(weight, target, lr, steps):
    """You append before you step: the list holds the weight after each step."""
    return [weight, *train_one_weight(weight, target, lr, steps)][:-1]


def only_the_end(weight, target, lr, steps):
    """A list is asked for, with the weight after each step; you give the last one alone."""
    return train_one_weight(weight, target, lr, steps)[-1]


def stops_at_the_ends(gradient, x, scale, qmin, qmax):
    """At the ends themselves the gradient passes: compare with >= and <=. (PyTorch's clamp gives 0 there.)"""
    position = x / scale
    return torch.where((position > qmin) & (position < qmax), gradient, torch.zeros_like(gradient))


def freezes_the_outer_rungs(gradient, x, scale, qmin, qmax):
    """You round first and clamp then. All that is rounded to an outer rung is stopped: look at x / scale itself."""
    codes = torch.round(x / scale)
    return torch.where((codes > qmin) & (codes < qmax), gradient, torch.zeros_like(gradient))


def looks_at_the_code(gradient, x, scale, qmin, qmax):
    """You compare the rounded code. Up to half a step beyond an end it is still qmin or qmax: compare x / scale."""
    codes = torch.round(x / scale)
    return torch.where((codes >= qmin) & (codes <= qmax), gradient, torch.zeros_like(gradient))


def lets_all_pass(gradient, x, scale, qmin, qmax):
    """What is clipped stays at the end of the grid when x moves a little: its gradient is 0."""
    return gradient.clone()


def clips_the_gradient(gradient, x, scale, qmin, qmax):
    """Clip nothing here: the gradient passes whole, or not at all."""
    return gradient.clamp(qmin, qmax)


def compares_values(gradient, x, scale, qmin, qmax):
    """qmin and qmax are codes: compare x / scale with them, not x."""
    return torch.where((x >= qmin) & (x <= qmax), gradient, torch.zeros_like(gradient))


def looks_at_magnitudes(gradient, x, scale, qmin, qmax):
    """The grid need not be symmetric: compare x / scale with qmin too, not its magnitude with qmax."""
    return torch.where((x / scale).abs() <= qmax, gradient, torch.zeros_like(gradient))


def upside_down(gradient, x, scale, qmin, qmax):
    """You stop the gradient inside the grid, and let it pass where x is clipped."""
    return gradient - gradient_of_values(gradient, x, scale, qmin, qmax)


def multiplies(gradient, x, scale, qmin, qmax):
    """Straight through means times 1: the scale has no part in the gradient of x."""
    return gradient_of_values(gradient, x, scale, qmin, qmax) / scale


def only_the_clipped(gradient, x, scale, qmin, qmax):
    """Values inside the grid have a say too: each moves by code - x / scale. What you have is PACT's gradient."""
    position = x / scale
    clipped = (position < qmin) | (position > qmax)
    return float((gradient * torch.where(clipped, position.clamp(qmin, qmax), torch.zeros_like(x))).sum())


def codes_everywhere(gradient, x, scale, qmin, qmax):
    """Inside the grid x / scale changes with the scale too, straight through: the code minus x / scale."""
    return float((gradient * torch.round(x / scale).clamp(qmin, qmax)).sum())


def wrong_way(gradient, x, scale, qmin, qmax):
    """Inside the grid it is code minus x / scale; you subtract the other way round."""
    position = x / scale
    codes = torch.round(position).clamp(qmin, qmax)
    clipped = (position < qmin) | (position > qmax)
    return float((gradient * torch.where(clipped, codes, position - codes)).sum())


def rounds_before_it_clamps(gradient, x, scale, qmin, qmax):
    """All on the outer rungs count as clipped: did you round first and clamp then? Clamp x / scale, then round."""
    position = x / scale
    codes = torch.round(position).clamp(qmin, qmax)
    return float((gradient * torch.where((codes == qmin) | (codes == qmax), codes, codes - position)).sum())


def code_minus_position(gradient, x, scale, qmin, qmax):
    """Code minus x / scale is right inside the grid alone. Beyond an end a value moves by its code, qmin or qmax."""
    position = x / scale
    return float((gradient * (torch.round(position).clamp(qmin, qmax) - position)).sum())


def does_not_clip(gradient, x, scale, qmin, qmax):
    """A grid has ends: clamp the codes. A clipped value moves by its code, qmin or qmax."""
    position = x / scale
    return float((gradient * (torch.round(position) - position)).sum())


def clipped_by_the_code(gradient, x, scale, qmin, qmax):
    """Is it clipped? You ask the rounded code, which lies on the grid still up to half a step beyond. Ask x / scale."""
    position = x / scale
    codes = torch.round(position)
    beyond = (codes < qmin) | (codes > qmax)
    return float((gradient * torch.where(beyond, codes.clamp(qmin, qmax), codes - position)).sum())


def takes_the_mean(gradient, x, scale, qmin, qmax):
    """One scale moves all values: their parts add up. You take the mean."""
    return gradient_of_scale(gradient, x, scale, qmin, qmax) / x.numel()


def forgets_the_gradient(gradient, x, scale, qmin, qmax):
    """Chain rule: what each value moves is multiplied by that value's gradient before summing."""
    return gradient_of_scale(torch.ones_like(gradient), x, scale, qmin, qmax)


# --- exercises and questions

X = torch.tensor([-2.7, -0.4, 0.3, 0.8, 1.3, 5.0])
G = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 10.0])

EXERCISES = (
    Exercise(
        "7.1",
        straight_through_gradient,
        cases=(
            (torch.tensor([0.3]), 1.0),
            (torch.tensor([0.8, 1.7]), 1.3),
            (X, 0.25),
        ),
        hints=(
            _("Make x a leaf first: x = x.detach().clone().requires_grad_()."),
            _("x + (torch.round(x) - x).detach() has the value of round(x) and the gradient of x."),
            _("Sum up the squares, call backward() on the sum, and return x.grad."),
        ),
        mistakes=(true_slope, forgets_to_round, forgets_the_two, downhill, cuts_off, averages),
    ),
    Exercise(
        "7.2",
        train_one_weight,
        cases=((0.2, 1.0, 0.25, 1), (0.2, 1.3, 0.1, 3), (-0.95, 1.3, 0.1, 40)),
        hints=(
            _("A loop of that many steps. In each, the slope is taken at the rounded weight."),
            _("The float weight is changed and kept; round(weight) is used for the slope and then forgotten."),
            _("weight = weight - lr * 2 * (round(weight) - target); then append it to a list."),
        ),
        mistakes=(
            keeps_the_rounded_weight,
            does_not_round,
            climbs,
            forgets_the_factor,
            gives_what_is_used,
            with_the_start,
            without_the_end,
            only_the_end,
        ),
    ),
    Exercise(
        "7.3",
        gradient_of_values,
        cases=(
            (torch.tensor([3.0]), torch.tensor([0.6]), 0.5, -1, 1),
            (torch.tensor([3.0, 7.0]), torch.tensor([0.4, 9.0]), 0.5, 0, 3),
            (torch.tensor([3.0, 5.0, 7.0, 2.0]), torch.tensor([-1.5, 1.5, 1.6, -0.2]), 0.5, -3, 3),  # two at the ends
            (G, X, 0.5, 0, 3),
            (G, X, 0.5, -3, 3),
        ),
        hints=(
            _("Where does x lie, counted in steps of the grid?"),
            _("A mask: (x / scale >= qmin) & (x / scale <= qmax)."),
            _("torch.where(mask, gradient, 0.0) keeps the gradient where the mask is True."),
        ),
        mistakes=(
            stops_at_the_ends,
            freezes_the_outer_rungs,
            looks_at_the_code,
            lets_all_pass,
            clips_the_gradient,
            compares_values,
            looks_at_magnitudes,
            upside_down,
            multiplies,
        ),
    ),
    Exercise(
        "7.4",
        gradient_of_scale,
        cases=(  # no value lies at an end itself: LSQ counts it as clipped, 7.3 as inside
            (torch.tensor([1.0]), torch.tensor([0.6]), 0.5, -1, 1),
            (torch.tensor([1.0]), torch.tensor([0.7]), 1.0, -3, 3),
            (torch.tensor([1.0]), torch.tensor([0.7]), 1.0, -1, 1),
            (torch.tensor([2.0, 1.0]), torch.tensor([0.3, -4.0]), 1.0, -2, 2),
            (torch.tensor([2.0, 1.0]), torch.tensor([-0.8, 1.2]), 1.0, 0, 3),
            (G, X, 0.5, -3, 3),
        ),
        hints=(
            _("First the position x / scale of each value, and its code: clamped to qmin and qmax, then rounded."),
            _("Inside the grid a value moves by code - position, beyond an end by its code."),
            _("Multiply by the gradients, sum up, and make a number of it: float(...)."),
        ),
        mistakes=(
            rounds_before_it_clamps,
            code_minus_position,
            only_the_clipped,
            codes_everywhere,
            wrong_way,
            does_not_clip,
            clipped_by_the_code,
            takes_the_mean,
            forgets_the_gradient,
        ),
        tolerance=1e-5,
    ),
)

QUIZ = (
    Question(
        _("Why can a network with rounded weights not be trained with the true gradient?"),
        Choice(_("it is too large"), _("It is the opposite of large: rounding is flat between its jumps.")),
        Choice(
            _("it is 0 nearly everywhere"),
            _("A weight that moves a little is rounded to the same rung, so the loss does not change."),
            right=True,
        ),
        Choice(_("integers have no gradient"), _("Training keeps float weights; the loss is a function of those.")),
    ),
    Question(
        _("What does an optimizer change during quantization-aware training?"),
        Choice(
            _("float weights, which are rounded anew in each forward pass"),
            _("Many small steps add up until a weight crosses a threshold and its code changes."),
            right=True,
        ),
        Choice(_("the codes, one rung up or down"), _("A step of the optimizer is much smaller than a rung.")),
        Choice(
            _("the rounded weights, which are rounded again after each step"),
            _("Then every small step would be rounded away, and nothing would ever move."),
        ),
    ),
    Question(
        _("Most of a layer's values are clipped, and that hurts. What does LSQ's gradient do to the scale?"),
        Choice(_("it shrinks it"), _("Then even more would be clipped. Rounding errors shrink a scale.")),
        Choice(_("nothing: clipped values have no gradient"), _("Those of x are 0, but each moves with the scale.")),
        Choice(
            _("it grows it"),
            _("A clipped value is its code times the scale, so a larger scale brings it nearer to where it belongs."),
            right=True,
        ),
    ),
)
