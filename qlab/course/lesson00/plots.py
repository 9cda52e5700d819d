"""Lesson 0: both networks on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text
from torch import Tensor

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
    sample: Dataset, said: Mapping[int, Tensor], accuracy: Mapping[int, float], float_accuracy: float
) -> Callable[[int], Figure]:
    """The answers of one network quantized to fewer and fewer bits; a function from bits to the figure.

    ``said[bits]`` is what the network answers for ``images``: int64 (N,). ``accuracy[bits]`` is how much of
    a larger set it gets right, in percent. The curve ends at the bits asked for: no look at what is to come.
    """
    widths = sorted(accuracy, reverse=True)
    figure = Figure((9, 3.4))
    left, right = figure.add_gridspec(1, 2, width_ratios=(3, 2))
    places = left.subgridspec(2, -(-len(sample) // 2))
    captions = [line for (line,) in show_images(figure, places, sample, 7, (QUANTIZED,))]
    ax = figure.add_subplot(right)
    ax.set(xlabel=_("bits"), xlim=(widths[-1] - 0.3, widths[0] + 0.3), xticks=widths)
    ax.set(ylabel=_("right answers in %"), ylim=(0, 103))
    ax.axhline(float_accuracy, color=FLOAT, linestyle="--")
    ax.text(widths[-1], float_accuracy - 2, "float", color=FLOAT, va="top")
    (curve,) = ax.plot([], [], "o-", color=QUANTIZED)
    (now,) = ax.plot([], [], "o", color=QUANTIZED, markersize=13)
    figure.moves(*captions, curve, now)

    def draw(bits: int) -> Figure:
        shown = [width for width in widths if width >= bits]
        for line, text in zip(captions, said_of(sample, said[bits])):
            line.set_text(text)
        curve.set_data(shown, [accuracy[width] for width in shown])
        now.set_data([bits], [accuracy[bits]])
        right = int((said[bits] == sample.labels).sum())
        words = {"bits": bits, "now": accuracy[bits], "float": float_accuracy, "right": right, "all": len(sample)}
        figure.finding = _("{bits} bits: {now:.1f} % right (float: {float:.1f} %)").format(**words)
        figure.alt = _("{right} of these {all} images get the right answer with {bits} bits.").format(**words)
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
