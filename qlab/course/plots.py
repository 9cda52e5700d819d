"""The figures of the course: data in, a matplotlib Figure out. No widgets, no pyplot.

A figure that moves is a function from the controls' values to the figure: always the same one, changed in place, since
drawing a new one takes too long for a drag. What it shows depends on the values alone, not on those before.

The colours can be told apart without colour vision (tests/test_plots.py simulates it); blue and purple are Okabe and
Ito's, "Color Universal Design" (2008).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from IPython.display import Markdown, display
from matplotlib import figure, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from qlab.data.dataset import Dataset

# A colour means the same thing in the whole course.
FLOAT, QUANTIZED, ERROR, CLIPPED = "#0072B2", "#C85200", "#CC79A7", "#595959"
INK, PAPER, LINES = "#222222", "#FFFFFF", "#DDDDDD"
DPI = 100  # pixels an inch on the page
SHARPER = 1.5  # a still picture has so many times more, for screens that show them

# Black on white in a dark JupyterLab too: a figure is a sheet of paper on the desk, legible in either theme.
STYLE = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": CLIPPED, "axes.axisbelow": True,
    "font.family": "DejaVu Sans", "font.size": 10, "figure.titlesize": 12, "figure.titleweight": "bold",
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": LINES, "lines.linewidth": 2, "legend.frameon": False,
}  # fmt: skip


class Figure(figure.Figure):
    """A figure whose title is its finding, and whose ``alt`` says in words what there is to see.

    A notebook shows it as a picture with ``alt`` below, because JupyterLab gives screen readers no alt text.
    What a control changes is named in :meth:`moves`: a frame draws that alone, on a copy of all that stands still.
    """

    def __init__(self, size: tuple[float, float], finding: str = "") -> None:
        super().__init__(size, DPI, layout="constrained")
        FigureCanvasAgg(self)
        self.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        self.alt = ""
        self._moving: list[Artist] = [self.suptitle(finding, x=0.01, ha="left")]
        self._background = None

    def moves(self, *artists: Artist) -> None:
        """These artists move; they take no part in the layout, which must not depend on the first value shown."""
        for artist in artists:
            artist.set_in_layout(False)
        self._moving += artists

    @property
    def finding(self) -> str:
        """What the figure shows, in a sentence: its title."""
        return self.get_suptitle()

    @finding.setter
    def finding(self, text: str) -> None:
        self._suptitle.set_text(text)

    def frame(self) -> bytes:
        """The figure as a JPEG, made fast: what does not move is drawn the first time only."""
        if self._background is None:
            self.draw_without_rendering()  # lays the figure out ...
            self.set_layout_engine("none")  # ... and so it stays
            self._show_moving(False)
            self.canvas.draw()
            self._background = self.canvas.copy_from_bbox(self.bbox)
            self._show_moving(True)
        self.canvas.restore_region(self._background)
        for artist in self._moving:
            self.draw_artist(artist)
        return jpeg(np.asarray(self.canvas.buffer_rgba()))

    def _show_moving(self, visible: bool) -> None:
        for artist in self._moving:
            artist.set_visible(visible)

    def still(self) -> tuple[dict, dict]:
        """(data, metadata) of a notebook's output: the figure as a JPEG with more pixels, and its words."""
        pixels = io.BytesIO()
        self.savefig(pixels, format="rgba", dpi=DPI * SHARPER)
        width, height = (round(DPI * inches) for inches in self.get_size_inches())
        image = np.frombuffer(pixels.getvalue(), np.uint8).reshape(round(height * SHARPER), -1, 4)
        words = f"{self.finding}. {self.alt}"
        shown = {"alt": words, "width": width, "height": height}
        return {"image/jpeg": jpeg(image), "text/plain": words}, {"image/jpeg": shown}

    def _ipython_display_(self) -> None:
        data, metadata = self.still()
        display(data, metadata=metadata, raw=True)
        display(Markdown(f"*{self.alt}*"))


@rc_context(STYLE)
def answers(pictures: Dataset, float_scores: Tensor, int8_scores: Tensor) -> Figure:
    """Pictures, and below each what the float and the int8 network say it is, and how sure they are.

    ``float_scores`` and ``int8_scores`` are what the networks give for ``pictures``: float32 (N, classes).
    """
    same = int((float_scores.argmax(1) == int8_scores.argmax(1)).sum())
    picture = Figure((9, 4.6), f"float and int8 give the same answer on {same} of {len(pictures)} pictures")
    grid = picture.add_gridspec(2, -(-len(pictures) // 2))
    captions = zip(*show_pictures(picture, grid, pictures, 3.8, (FLOAT, QUANTIZED)))
    words = []
    for name, lines, scores in zip(("float", "int8"), captions, (float_scores, int8_scores)):
        said, sure = scores.argmax(1), scores.softmax(1).amax(1)
        for line, text, percent in zip(lines, said_of(pictures, said), sure):
            line.set_text(f"{text} {percent:.0%}")
        right = int((said == pictures.labels).sum())
        words.append(f"{name} is right on {right} of {len(pictures)} and on average {float(sure.mean()):.0%} sure")
    legend = {"ha": "right", "va": "top", "fontsize": 9}
    picture.text(0.995, 0.99, "int8", color=QUANTIZED, **legend)
    picture.text(0.955, 0.99, "float", color=FLOAT, **legend)
    picture.alt = f"Above each picture stands what it is, below what the networks say: {', '.join(words)}."
    return picture


@rc_context(STYLE)
def fewer_bits(
    pictures: Dataset, said: Mapping[int, Tensor], accuracy: Mapping[int, float], float_accuracy: float
) -> Callable[[int], Figure]:
    """The answers of one network quantized to fewer and fewer bits; a function from bits to the figure.

    ``said[bits]`` is what the network answers for ``pictures``: int64 (N,). ``accuracy[bits]`` is how much of a larger
    set it gets right, in percent. The curve shows no fewer bits than were asked for, so nobody sees the end too soon.
    """
    widths = sorted(accuracy, reverse=True)
    picture = Figure((9, 3.4))
    left, right = picture.add_gridspec(1, 2, width_ratios=(3, 2))
    grid = left.subgridspec(2, -(-len(pictures) // 2))
    captions = [line for (line,) in show_pictures(picture, grid, pictures, 7, (QUANTIZED,))]
    ax = picture.add_subplot(right)
    ax.set(xlabel="bits", ylabel="right answers in %", xlim=(widths[-1] - 0.3, widths[0] + 0.3), ylim=(0, 103))
    ax.set_xticks(widths)
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
        picture.finding = f"{bits} bits: {accuracy[bits]:.1f} % right (float: {float_accuracy:.1f} %)"
        picture.alt = f"{right} of these {len(pictures)} pictures get the right answer with {bits} bits."
        return picture

    return draw


def jpeg(pixels: np.ndarray) -> bytes:
    """RGBA pixels as a JPEG. A figure with photographs takes a fifth of a PNG's time, and a third of its bytes.

    Colours keep their full resolution (no chroma subsampling), without which thin coloured text would smear.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(buffer, "jpeg", quality=92, subsampling=0)
    return buffer.getvalue()


def show_pictures(target: Figure, grid: GridSpec, pictures: Dataset, line: float, colours: Sequence[str]) -> list:
    """The pictures, one a place of the grid: what each of them is above it, an empty line of each colour below it.

    ``line`` is the height of a line of text, in the pictures' pixels. Returns the empty lines of each picture.
    """
    side = pictures.images.shape[-1]
    captions = []
    for place, image, label in zip(grid, pictures.images, pictures.labels):
        ax = target.add_subplot(place)
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic")
        ax.set_ylim(side + line * len(colours), -line)  # room for the text
        ax.set_axis_off()
        ax.text(side / 2, -line / 2, pictures.classes[label], color=CLIPPED, size=9, ha="center", va="center")
        heights = [side + line * (number + 0.5) for number in range(len(colours))]
        captions.append([ax.text(side / 2, y, "", color=c, ha="center", va="center") for y, c in zip(heights, colours)])
    return captions


def said_of(pictures: Dataset, said: Tensor) -> list[str]:
    """Answers in words, each with a mark that says whether it is right."""
    marks = np.where(said == pictures.labels, "✓", "✗")
    return [f"{mark} {pictures.classes[label]}" for mark, label in zip(marks, said)]
