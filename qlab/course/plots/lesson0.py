"""Lesson 0: both networks on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text
from torch import Tensor

from qlab.course.language import _
from qlab.course.plots.figure import CLIPPED, FLOAT, QUANTIZED, STYLE, Figure
from qlab.data.dataset import Dataset


@rc_context(STYLE)
def answers(pictures: Dataset, float_scores: Tensor, int8_scores: Tensor) -> Figure:
    """Pictures, and below each what the float and the int8 network say it is, and how sure they are.

    ``float_scores`` and ``int8_scores`` are what the networks give for ``pictures``: float32 (N, classes).
    """
    same = int((float_scores.argmax(1) == int8_scores.argmax(1)).sum())
    finding = _("float and int8 give the same answer on {same} of {all} pictures").format(same=same, all=len(pictures))
    picture = Figure((9, 4.6), finding)
    grid = picture.add_gridspec(2, -(-len(pictures) // 2))
    captions = zip(*show_pictures(picture, grid, pictures, 3.8, (FLOAT, QUANTIZED)))
    words = []
    for name, lines, scores in zip(("float", "int8"), captions, (float_scores, int8_scores)):
        said, sure = scores.argmax(1), scores.softmax(1).amax(1)
        for line, text, percent in zip(lines, said_of(pictures, said), sure):
            line.set_text(f"{text} {percent:.0%}")
        right = int((said == pictures.labels).sum())
        what = _("{name} is right on {right} of {all} and {sure:.0%} sure on average")
        words.append(what.format(name=name, right=right, all=len(pictures), sure=float(sure.mean())))
    legend = {"ha": "right", "va": "top", "fontsize": 9}
    picture.text(0.995, 0.99, "int8", color=QUANTIZED, **legend)
    picture.text(0.955, 0.99, "float", color=FLOAT, **legend)
    what = _("Above each picture stands what it is, below what the networks say: {words}.")
    picture.alt = what.format(words=", ".join(words))
    return picture


@rc_context(STYLE)
def fewer_bits(
    pictures: Dataset, said: Mapping[int, Tensor], accuracy: Mapping[int, float], float_accuracy: float
) -> Callable[[int], Figure]:
    """The answers of one network quantized to fewer and fewer bits; a function from bits to the figure.

    ``said[bits]`` is what the network answers for ``pictures``: int64 (N,). ``accuracy[bits]`` is how much of
    a larger set it gets right, in percent. The curve ends at the bits asked for: no look at what is to come.
    """
    widths = sorted(accuracy, reverse=True)
    picture = Figure((9, 3.4))
    left, right = picture.add_gridspec(1, 2, width_ratios=(3, 2))
    grid = left.subgridspec(2, -(-len(pictures) // 2))
    captions = [line for (line,) in show_pictures(picture, grid, pictures, 7, (QUANTIZED,))]
    ax = picture.add_subplot(right)
    ax.set(xlabel=_("bits"), xlim=(widths[-1] - 0.3, widths[0] + 0.3), xticks=widths)
    ax.set(ylabel=_("right answers in %"), ylim=(0, 103))
    ax.axhline(float_accuracy, color=FLOAT, linestyle="--")
    ax.text(widths[-1], float_accuracy - 2, "float", color=FLOAT, va="top")
    (curve,) = ax.plot([], [], "o-", color=QUANTIZED)
    (now,) = ax.plot([], [], "o", color=QUANTIZED, markersize=13)
    picture.moves(*captions, curve, now)

    def draw(bits: int) -> Figure:
        shown = [width for width in widths if width >= bits]
        for line, text in zip(captions, said_of(pictures, said[bits])):
            line.set_text(text)
        curve.set_data(shown, [accuracy[width] for width in shown])
        now.set_data([bits], [accuracy[bits]])
        right = int((said[bits] == pictures.labels).sum())
        words = {"bits": bits, "now": accuracy[bits], "float": float_accuracy, "right": right, "all": len(pictures)}
        picture.finding = _("{bits} bits: {now:.1f} % right (float: {float:.1f} %)").format(**words)
        picture.alt = _("{right} of these {all} pictures get the right answer with {bits} bits.").format(**words)
        return picture

    return draw


def show_pictures(
    target: Figure, grid: GridSpec, pictures: Dataset, line: float, colours: Sequence[str]
) -> list[list[Text]]:
    """The pictures, one a place of the grid: above each what it is, below it an empty line of each colour.

    ``line`` is the height of a line of text, in the pictures' pixels. Returns each picture's empty lines.
    """
    side = pictures.images.shape[-1]
    captions = []
    for place, image, label in zip(grid, pictures.images, pictures.labels):
        ax = target.add_subplot(place)
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic")
        ax.set_ylim(side + line * len(colours), -line)  # room for the text
        ax.set_axis_off()
        ax.text(side / 2, -line / 2, pictures.classes[label], color=CLIPPED, size=9, ha="center", va="center")
        captions.append([
            ax.text(side / 2, side + line * (number + 0.5), "", color=colour, ha="center", va="center")
            for number, colour in enumerate(colours)
        ])  # fmt: skip
    return captions


def said_of(pictures: Dataset, said: Tensor) -> list[str]:
    """Answers in words, each with a mark that says whether it is right."""
    marks = np.where(said == pictures.labels, "✓", "✗")
    return [f"{mark} {pictures.classes[label]}" for mark, label in zip(marks, said)]
