"""The figures of the course: data in, a matplotlib Figure out. No widgets, no pyplot.

A figure that moves is a function from the controls' values to the figure: always the same one, changed in
place, since drawing a new one takes too long for a drag. What it shows depends on the values alone.

The colours can be told apart without colour vision (tests/test_plots.py simulates it); blue and purple are
Okabe and Ito's, "Color Universal Design" (2008).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib import figure, rc_context
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from qlab import observers
from qlab.data.dataset import Dataset
from qlab.qconfig import QuantSpec

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
    What a control changes is named in :meth:`moves`; a frame draws that alone, on a copy of all else.
    """

    def __init__(self, size: tuple[float, float], finding: str = "") -> None:
        super().__init__(size, DPI, layout="constrained")
        FigureCanvasAgg(self)
        self.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        self.alt = ""
        self._moving: list[Artist] = [self.suptitle(finding, x=0.01, ha="left")]
        self._background = None

    def moves(self, *artists: Artist) -> None:
        """These artists move, and take no part in the layout: it must not depend on the first value shown."""
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
        words.append(f"{name} is right on {right} of {len(pictures)} and {sure.mean():.0%} sure on average")
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

    ``said[bits]`` is what the network answers for ``pictures``: int64 (N,). ``accuracy[bits]`` is how much of
    a larger set it gets right, in percent. The curve ends at the bits asked for: no look at what is to come.
    """
    widths = sorted(accuracy, reverse=True)
    picture = Figure((9, 3.4))
    left, right = picture.add_gridspec(1, 2, width_ratios=(3, 2))
    grid = left.subgridspec(2, -(-len(pictures) // 2))
    captions = [line for (line,) in show_pictures(picture, grid, pictures, 7, (QUANTIZED,))]
    ax = picture.add_subplot(right)
    ax.set(xlabel="bits", xlim=(widths[-1] - 0.3, widths[0] + 0.3), xticks=widths)
    ax.set(ylabel="right answers in %", ylim=(0, 103))
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


@rc_context(STYLE)
def rounding(signal: Callable[[np.ndarray], np.ndarray] = np.sin) -> Callable[[int, float], Figure]:
    """A signal between -1 and 1 and what a grid makes of it, above the error; a function from bits (>= 2) and shift.

    ``shift`` moves the grid by that share of a step: with 0, the value 0 is on the grid.
    """
    time = np.linspace(0, 2 * np.pi, 400)
    x = signal(time)
    picture = Figure((9, 4.2))
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(time, x, color=FLOAT)
    above.text(0.02, 0.06, "signal", color=FLOAT, transform=above.transAxes)
    above.text(0.09, 0.06, "rounded", color=QUANTIZED, transform=above.transAxes)
    above.set(ylim=(-1.5, 1.5), ylabel="value", xlim=(0, time[-1]))
    above.grid(False)
    below.set(ylim=(-0.45, 0.45), ylabel="error", xlabel="time")
    levels = above.hlines([], 0, time[-1], color=CLIPPED, linewidth=0.4)
    (stairs,) = above.plot([], [], color=QUANTIZED)
    (error,) = below.plot([], [], color=ERROR)
    band = below.hlines([], 0, time[-1], color=CLIPPED, linestyle="--", linewidth=1)
    picture.moves(levels, stairs, error, band)

    def draw(bits: int, shift: float) -> Figure:
        step = 2 / (2**bits - 1)
        grid = (np.arange(2**bits) - 2 ** (bits - 1) + shift) * step
        rounded = grid[np.abs(x[:, None] - grid).argmin(1)]
        levels.set_segments([[(0, y), (time[-1], y)] for y in grid])
        stairs.set_data(time, rounded)
        error.set_data(time, x - rounded)
        band.set_segments([[(0, y), (time[-1], y)] for y in (-step / 2, step / 2)])
        worst, near = np.abs(x - rounded).max(), np.abs(grid).min()
        zero = "0 is on the grid" if near < 1e-9 else f"0 becomes {near:.3f}"
        picture.finding = f"{bits} bits: step {step:.3f}, largest error {worst:.3f}; {zero}"
        picture.alt = (
            f"The stairs have {len(grid)} levels. The error, below, stays between the dashed lines at half a step, "
            f"{step / 2:.3f}, above and below 0."
        )
        return picture

    return draw


@rc_context(STYLE)
def rounding_errors(values: Tensor) -> Callable[[int], Figure]:
    """How the rounding errors of ``values`` (any shape, all inside the grid) are spread; a function from bits."""
    x = values.detach().double().flatten().numpy()
    edges = np.linspace(-0.5, 0.5, 21)
    middle = (edges[1:] + edges[:-1]) / 2
    picture = Figure((9, 3.2))
    ax = picture.subplots()
    ax.set(xlim=(-0.55, 0.55), ylim=(0, 2), xlabel="error in steps", ylabel="share, evenly spread = 1")
    ax.axhline(1, color=FLOAT, linestyle="--")
    ax.text(0.54, 1.1, "evenly spread", color=FLOAT, ha="right")
    bars = ax.bar(middle, np.zeros(20), width=0.045, color=ERROR)
    picture.moves(*bars)

    def draw(bits: int) -> Figure:
        step = np.abs(x).max() / (2 ** (bits - 1) - 1)
        error = x / step - np.round(x / step)
        counts = np.histogram(error, edges)[0] / len(x) * 20
        for bar, height in zip(bars, counts):
            bar.set_height(min(height, 2))
        ratio = (error**2).mean() * 12
        decibels = 10 * np.log10((x**2).mean() / ((error * step) ** 2).mean())
        picture.finding = f"{bits} bits: mean squared error {ratio:.2f} times step²/12, SQNR {decibels:.1f} dB"
        picture.alt = (
            f"Twenty bars of the errors from half a step below to half a step above; the lowest is {counts.min():.2f} "
            f"and the highest {counts.max():.2f} times what an even spread would have."
        )
        return picture

    return draw


# bits of the exponent and of the fraction; torch's type of that format
FORMATS = {
    "float32": (8, 23, torch.float32), "bfloat16": (8, 7, torch.bfloat16), "float16": (5, 10, torch.float16),
    "fp8 e5m2": (5, 2, torch.float8_e5m2), "fp8 e4m3": (4, 3, torch.float8_e4m3fn),
}  # fmt: skip


@rc_context(STYLE)
def formats(scale: float = 1 / 32) -> Callable[[float], Figure]:
    """One number in six formats, bit by bit: what each of them stores; a function from the number.

    int8 stores the code round(number / ``scale``), between -128 and 127.
    """
    names = [*FORMATS, "int8"]
    picture = Figure((9, 3.2))
    picture.set_layout_engine("none")
    ax = picture.add_axes((0, 0, 1, 0.9), xlim=(0, 900), ylim=(len(names) - 0.4, -1))
    ax.set_axis_off()
    wide = 2 * 0.602 * 10 * DPI / 72  # pixels of a digit and a space in DejaVu Sans Mono of 10 points
    fields, stored = [], []
    for row, name in enumerate(names):
        exponent, fraction, _ = FORMATS.get(name, (0, 7, None))
        ax.text(90, row, name, ha="right", va="center")
        starts = ((0, 1, CLIPPED), (1, 1 + exponent, FLOAT), (1 + exponent, 1 + exponent + fraction, QUANTIZED))
        fields.append([
            (ax.text(105 + wide * first, row, "", color=colour, va="center", family="DejaVu Sans Mono"), first, last)
            for first, last, colour in starts
        ])  # fmt: skip
        stored.append(ax.text(690, row, "", va="center"))
    for x, text, colour in ((105, "sign", CLIPPED), (150, "exponent", FLOAT), (330, "fraction", QUANTIZED)):
        ax.text(x, -0.7, text, color=colour, size=9)
    ax.text(690, -0.7, "what is stored", size=9)
    picture.moves(*(text for row in fields for text, _, _ in row), *stored)

    def draw(number: float) -> Figure:
        values = {name: _in_format(number, name, scale) for name in names}
        for row, (value, bits) in enumerate(values.values()):
            for text, first, last in fields[row]:
                text.set_text(" ".join(bits[first:last]))
            stored[row].set_text(f"{value:.9g}")
        off = {name: abs(value - number) for name, (value, _) in values.items()}
        small = min(("bfloat16", "float16", "fp8 e5m2", "fp8 e4m3", "int8"), key=off.get)
        picture.finding = f"{number:g}: with at most 16 bits, {small} is nearest (off by {off[small]:.2g})"
        picture.alt = "; ".join(f"{name} stores {value:.7g}" for name, (value, _) in values.items()) + "."
        return picture

    return draw


def _in_format(number: float, name: str, scale: float) -> tuple[float, str]:
    """(what the format stores for a number, its bits from the sign on)."""
    if name == "int8":
        code = int(np.clip(np.rint(number / scale), -128, 127))
        return code * scale, f"{code & 255:08b}"
    exponent, fraction, dtype = FORMATS[name]
    width = 1 + exponent + fraction
    value = torch.tensor([number], dtype=torch.float32).to(dtype)
    pattern = int(value.view({8: torch.uint8, 16: torch.int16, 32: torch.int32}[width]).item()) % 2**width
    return float(value.float()), f"{pattern:0{width}b}"


@rc_context(STYLE)
def clipping(values: Tensor) -> Callable[[int, float], Figure]:
    """Rounding against clipping; a function from bits and the limit, in percent of the largest value.

    ``values`` are activations behind a relu: any shape, none below 0.
    """
    x = np.sort(values.detach().float().flatten().numpy())
    x = x[:: -max(1, len(x) // 50_000)]  # enough for a figure, the largest among them
    limits = x.max() * np.linspace(0.02, 1, 50)
    picture = Figure((9, 3.4))
    left, right = picture.subplots(1, 2)
    left.hist(x, 60, color=FLOAT)
    left.set(yscale="log", xlim=(0, x.max()), xlabel="activation", ylabel="how many")
    cut = left.add_patch(Rectangle((0, 0), 0, 1, transform=left.get_xaxis_transform(), color=CLIPPED, alpha=0.4))
    right.set(yscale="log", xlim=(0, x.max()), xlabel="limit of the grid", ylabel="mean squared error")
    right.set_ylim(1e-4 * np.square(x).mean(), 2 * np.square(x).mean())
    kinds = {"rounding": ERROR, "clipping": CLIPPED, "both": QUANTIZED}
    for place, (name, colour) in enumerate(kinds.items()):
        right.text(0.97, 0.95 - 0.09 * place, name, color=colour, ha="right", va="top", transform=right.transAxes)
    curves = [right.plot([], [], color=colour)[0] for colour in kinds.values()]
    (now,) = right.plot([], [], "o", color=QUANTIZED, markersize=10)
    picture.moves(cut, *curves, now)

    def errors(bits: int, limit: float) -> tuple[float, float, float]:
        step = limit / (2**bits - 1)
        squared = np.square(np.minimum(np.round(x / step), 2**bits - 1) * step - x)
        total, clipped = squared.mean(), squared[x > limit].sum() / len(x)
        return total - clipped, clipped, total

    @cache
    def whole(bits: int) -> np.ndarray:
        return np.array([errors(bits, limit) for limit in limits]).T

    def draw(bits: int, limit: float) -> Figure:
        at = x.max() * limit / 100
        rounding, clipped, total = errors(bits, at)
        for curve, line in zip(curves, whole(bits)):
            curve.set_data(limits, np.maximum(line, 1e-12))
        now.set_data([at], [total])
        cut.set_bounds(at, 0, x.max() - at, 1)
        best = limits[whole(bits)[2].argmin()]
        picture.finding = f"{bits} bits, limit {at:.2f}: mean squared error {total:.2g}; least at {best:.2f}"
        picture.alt = (
            f"Of the error, {rounding:.2g} comes from rounding and {clipped:.2g} from clipping the "
            f"{100 * (x > at).mean():.2g} % of the values that lie above the limit."
        )
        return picture

    return draw


@rc_context(STYLE)
def chosen_limits(values: Tensor) -> Callable[[int], Figure]:
    """Where each observer puts the limit for these values (any shape, none below 0); a function from bits."""
    names = {"minmax": "min-max", "percentile": "percentile 99.99", "entropy": "entropy (KL)", "mse": "MSE"}
    picture = Figure((9, 3.4))
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    largest = float(values.max())
    above.hist(values.detach().float().flatten().numpy(), 80, color=FLOAT)
    above.set(yscale="log", xlim=(0, largest * 1.02), ylabel="how many")
    below.set(ylim=(3.6, -0.6), xlabel="activation", yticks=range(4), yticklabels=names.values())
    (points,) = below.plot([], [], "o", color=QUANTIZED, markersize=10)
    picture.moves(points)

    @cache
    def limit(name: str, bits: int) -> float:
        observer = observers.build(QuantSpec(bits, observer=name))
        observer(values)
        qparams = observer.qparams()
        return float(qparams.scale) * (qparams.qmax - int(qparams.zero_point))

    def draw(bits: int) -> Figure:
        found = [limit(name, bits) for name in names]
        points.set_data(found, range(4))
        picture.finding = f"{bits} bits: MSE clips at {found[3]:.2f}, entropy at {found[2]:.2f}, min-max at {found[0]:.2f}"
        words = ", ".join(f"{name} at {value:.2f}" for name, value in zip(names.values(), found))
        picture.alt = f"The limits on the axis of the activations: {words}."
        return picture

    return draw


def jpeg(pixels: np.ndarray) -> bytes:
    """RGBA pixels as a JPEG: with photographs in it, a fifth of a PNG's time and a third of its bytes.

    Colours keep their full resolution (no chroma subsampling), or thin coloured text would smear.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(buffer, "jpeg", quality=92, subsampling=0)
    return buffer.getvalue()


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
