"""Lesson 0: both networks on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text
from torch import Tensor

from qlab.analysis import paired
from qlab.course.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.course.language import _
from qlab.data.dataset import Dataset


@rc_context(STYLE)
def answers(sample: Dataset, float_scores: Tensor, int8_scores: Tensor) -> Figure:
    """Images, and below each what the float and the int8 network say it is, and how sure they are.

    ``float_scores`` and ``int8_scores`` are what the networks give for ``images``: float32 (N, classes).
    """
    same = int((float_scores.argmax(1) == int8_scores.argmax(1)).sum())
    finding = _("float and int8 give the same answer on {same} of {all} images").format(same=same, all=len(sample))
    figure = Figure((9, 4.6), finding)
    places = figure.add_gridspec(2, -(-len(sample) // 2))
    captions = zip(*show_images(figure, places, sample, 3.8, (FLOAT, QUANTIZED)))
    words = []
    for name, lines, scores in zip(("float", "int8"), captions, (float_scores, int8_scores)):
        said, sure = scores.argmax(1), scores.softmax(1).amax(1)
        for line, text, percent in zip(lines, said_of(sample, said), sure):
            line.set_text(f"{text} {percent:.0%}")
        right = int((said == sample.labels).sum())
        what = _("{name} is right on {right} of {all} and {sure:.0%} sure on average")
        words.append(what.format(name=name, right=right, all=len(sample), sure=float(sure.mean())))
    legend = {"ha": "right", "va": "top", "fontsize": 9}
    figure.text(0.995, 0.99, "int8", color=QUANTIZED, **legend)
    figure.text(0.955, 0.99, "float", color=FLOAT, **legend)
    what = _("Above each image stands what it is, below what the networks say: {words}.")
    figure.alt = what.format(words=", ".join(words))
    return figure


@rc_context(STYLE)
def fewer_bits(
    sample: Dataset, said: Mapping[int, Tensor], float_right: Tensor, shown: int = 10
) -> Callable[[int], Figure]:
    """The answers of one network quantized to fewer and fewer bits; a function from bits to the figure.

    ``said[bits]`` is what the network answers for each image of ``sample``: int64 (N,). ``float_right`` says on which the
    float network is right: bool (N,). The first ``shown`` images are drawn. The curve ends at the bits asked for: no look
    at what is to come; its bars are the standard error of the difference from float.
    """
    widths = sorted(said, reverse=True)
    right = {bits: answers == sample.labels for bits, answers in said.items()}
    loss = {bits: paired(float_right, each) for bits, each in right.items()}
    accuracy = {bits: 100 * float(each.float().mean()) for bits, each in right.items()}
    float_accuracy = 100 * float(float_right.float().mean())
    few = sample.subset(slice(shown))
    figure = Figure((9, 3.6))
    left, beside = figure.add_gridspec(1, 2, width_ratios=(3, 2))
    places = left.subgridspec(2, -(-len(few) // 2))
    captions = [line for (line,) in show_images(figure, places, few, 7, (QUANTIZED,))]
    ax = figure.add_subplot(beside)
    ax.set(xlabel=_("bits"), xlim=(widths[-1] - 0.3, widths[0] + 0.3), xticks=widths)
    ax.set(ylabel=_("right answers in %"), ylim=(0, 103))
    ax.axhline(float_accuracy, color=FLOAT, linestyle="--")
    ax.text(widths[-1], float_accuracy - 2, "float", color=FLOAT, va="top")
    figure.takes_guess(ax, "x")
    (curve,) = ax.plot([], [], "o-", color=QUANTIZED)
    bars = ax.vlines([], 0, 0, color=QUANTIZED, linewidth=4, alpha=0.5)
    (now,) = ax.plot([], [], "o", color=QUANTIZED, markersize=13)
    figure.moves(*captions, curve, bars, now)

    def draw(bits: int) -> Figure:
        drawn = [width for width in widths if width >= bits]
        for line, text in zip(captions, said_of(few, said[bits][:shown])):
            line.set_text(text)
        curve.set_data(drawn, [accuracy[width] for width in drawn])
        ends = [(width, accuracy[width], loss[width].error) for width in drawn]
        bars.set_segments([[(width, at - error), (width, at + error)] for width, at, error in ends])
        now.set_data([bits], [accuracy[bits]])
        words = {"bits": bits, "now": accuracy[bits], "loss": loss[bits].difference, "error": loss[bits].error}
        figure.finding = _("{bits} bits: {now:.1f} % right, {loss:+.1f} ± {error:.1f} points against float").format(
            **words
        )
        words |= {"right": int(right[bits][:shown].sum()), "all": len(few), "count": len(sample)}
        figure.alt = _(
            "{right} of the {all} images shown get the right answer with {bits} bits. The curve is measured on {count:,} "
            "images; what stands behind ± is the standard error."
        ).format(**words)
        return figure

    return draw


def show_images(
    target: Figure, places: GridSpec, sample: Dataset, line: float, colours: Sequence[str]
) -> list[list[Text]]:
    """The images, one a place: above each what it is, below it an empty line of each colour.

    ``line`` is the height of a line of text, in the images' pixels. Returns each image's empty lines.
    """
    side = sample.images.shape[-1]
    captions = []
    for place, image, label in zip(places, sample.images, sample.labels):
        ax = target.add_subplot(place)
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic")
        ax.set_ylim(side + line * len(colours), -line)  # room for the text
        ax.set_axis_off()
        ax.text(side / 2, -line / 2, sample.classes[label], color=CLIPPED, size=9, ha="center", va="center")
        captions.append([
            ax.text(side / 2, side + line * (number + 0.5), "", color=colour, ha="center", va="center")
            for number, colour in enumerate(colours)
        ])  # fmt: skip
    return captions


def said_of(sample: Dataset, said: Tensor) -> list[str]:
    """Answers in words, each with a mark that says whether it is right."""
    marks = np.where(said == sample.labels, "✓", "✗")
    return [f"{mark} {sample.classes[label]}" for mark, label in zip(marks, said)]
