"""What all figures share: the colours, the style, and a figure that a notebook shows with its words.

A lesson's ``plots`` make them: data in, a figure out, without widgets and without pyplot. One that moves is a function from
the controls' values to the figure: always the same one, changed in place, since drawing a new one takes too long for a
drag. What it shows depends on the values alone.

The colours can be told apart without colour vision, and read, in a light and in a dark JupyterLab: there the browser turns
the sheet over (``filter`` in js/explorables.css), all but the photographs on it. tests/course/test_figure.py simulates both.
"""

from __future__ import annotations

import io

import numpy as np
from IPython.display import Markdown, display
from matplotlib import figure
from matplotlib.artist import Artist, setp
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

# A colour means the same thing in the whole course.
FLOAT, QUANTIZED, ERROR, CLIPPED = "#2268DB", "#C2540A", "#4D0385", "#757575"  # blue, orange, purple, grey
INK, PAPER, LINES = "#222222", "#FFFFFF", "#DDDDDD"
COLOURS = {
    "float": FLOAT, "quantized": QUANTIZED, "error": ERROR, "clipped": CLIPPED,
    "ink": INK, "paper": PAPER, "lines": LINES,
}  # fmt: skip
UNIT = 100  # pixels on the page: Figure((9, 3)) is 900 wide and 300 high
DPI = 115  # pixels an inch: what makes texts and lines larger or smaller
EDGE = 16  # pixels that a line keeps free, on both sides together
SHARPER = 1.5  # a still image has so many times more, for screens that show them

STYLE = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": CLIPPED, "axes.axisbelow": True,
    "font.family": "DejaVu Sans", "font.size": 10, "figure.titlesize": 12, "figure.titleweight": "bold",
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": LINES, "lines.linewidth": 2, "legend.frameon": False,
}  # fmt: skip


class Figure(figure.Figure):
    """A figure whose title is its finding, and whose ``alt`` says in words what there is to see.

    A notebook shows it as a widget with ``alt`` below: JupyterLab's own images have no alt text and no dark side.
    What a control changes is named in :meth:`moves`; a frame draws that alone, on a copy of all else.
    """

    def __init__(self, size: tuple[float, float], finding: str = "") -> None:
        super().__init__([UNIT * units / DPI for units in size], DPI, layout="constrained")
        FigureCanvasAgg(self)
        self.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        self.alt = ""
        self._moving: list[Artist] = [self.suptitle(finding, x=0.01, ha="left")]
        self._sizes: dict[Text, float] = {}
        self._background = None
        self._guessed_on: tuple[Axes, str] | None = None

    def moves(self, *artists: Artist) -> None:
        """These artists move, and take no part in the layout: it must not depend on the first value shown."""
        for artist in artists:
            artist.set_in_layout(False)
        self._moving += artists

    def takes_guess(self, axes: Axes, along: str) -> None:
        """What a student predicts is a place on this axis, "x" or "y": :meth:`mark` draws it there."""
        self._guessed_on = (axes, along)

    def mark(self, guess: float, words: str) -> None:
        """Draw a guess as a dashed line across the axis that takes it, with ``words`` at its end; else nothing."""
        if self._guessed_on is None:
            return
        axes, along = self._guessed_on
        across = axes.axvline if along == "x" else axes.axhline
        place = (guess, 0.98) if along == "x" else (0.98, guess)
        text = axes.text(
            *place, words, color=INK, transform=axes.get_xaxis_transform() if along == "x" else axes.get_yaxis_transform(),
            rotation=90 if along == "x" else 0, ha="right", va="top" if along == "x" else "bottom", clip_on=True,
        )  # fmt: skip
        self.moves(across(guess, color=INK, linestyle="--", linewidth=1.5), text)

    def place_of(self, guess: float) -> tuple[str, float] | None:
        """Where :meth:`mark` draws a guess: ("x", share of the picture from its left) or ("y", ... from its top); else None.

        True of a picture that :meth:`frame` has drawn.
        """
        if self._guessed_on is None:
            return None
        axes, along = self._guessed_on
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        least, most = sorted((left, right) if along == "x" else (bottom, top))
        corner = (guess, bottom) if along == "x" else (left, guess)
        x, y = self.transFigure.inverted().transform(axes.transData.transform(corner))
        return (along, float(x) if along == "x" else float(1 - y)) if least <= guess <= most else None

    @property
    def finding(self) -> str:
        """What the figure shows, in a sentence: its title."""
        return self.get_suptitle()

    @finding.setter
    def finding(self, text: str) -> None:
        self._suptitle.set_text(text)

    def frame(self) -> bytes:
        """The figure as a JPEG, made fast: what does not move is drawn the first time only."""
        self._fit(self._suptitle, self.get_size_inches()[0] * self.dpi)
        if self._background is None:
            self._lay_out()
            self.set_layout_engine("none")  # so it stays
            moving = [artist for artist in self._moving if artist.get_visible()]
            setp(moving, visible=False)
            self.canvas.draw()
            self._background = self.canvas.copy_from_bbox(self.bbox)
            setp(moving, visible=True)
        self.canvas.restore_region(self._background)
        for artist in self._moving:
            self.draw_artist(artist)
        return jpeg(np.asarray(self.canvas.buffer_rgba()))

    def photos(self) -> list[list[float]]:
        """Where on the figure its photographs are, as it was last drawn: [left, top, width, height], the figure being 1."""
        parts = []
        for image in (image for axes in self.axes for image in axes.get_images()):
            if np.ndim(image.get_array()) == 3:  # pixels with colours of their own, not numbers on a scale
                box = Bbox.intersection(image.get_window_extent(), image.axes.bbox)
                if box is not None and image.get_visible():
                    left, bottom, width, height = box.transformed(self.transFigure.inverted()).bounds
                    parts.append([left, 1 - bottom - height, width, height])
        return parts

    def _lay_out(self) -> None:
        """Give everything its place; an axis's name too long for the figure becomes smaller."""
        self.draw_without_rendering()
        for axes in self.axes:
            for axis, ends in ((axes.xaxis, self.bbox.intervalx), (axes.yaxis, self.bbox.intervaly)):
                box = axis.label.get_window_extent()
                middle = np.mean(box.intervalx if axis is axes.xaxis else box.intervaly)
                self._fit(axis.label, 2 * min(middle - ends[0], ends[1] - middle))

    def _fit(self, text: Text, room: float) -> None:
        """Set a text smaller, if it is longer than so many pixels; the next, shorter one has its own size again."""
        size = self._sizes.setdefault(text, text.get_fontsize())
        text.set_fontsize(size)
        for _again in range(3):  # glyphs have whole pixels, so that half the size is not quite half as long
            box = text.get_window_extent(self.canvas.get_renderer())
            length = box.height if text.get_rotation() == 90 else box.width
            if length <= room - EDGE:
                break
            text.set_fontsize(text.get_fontsize() * (room - EDGE) / length)

    def still(self) -> tuple[dict, dict]:
        """(data, metadata) of a notebook's output: the figure as a JPEG with more pixels, and its words."""
        self._fit(self._suptitle, self.get_size_inches()[0] * self.dpi)
        self._lay_out()
        pixels = io.BytesIO()
        self.savefig(pixels, format="rgba", dpi=DPI * SHARPER)
        width, height = (round(DPI * inches) for inches in self.get_size_inches())
        image = np.frombuffer(pixels.getvalue(), np.uint8).reshape(round(height * SHARPER), -1, 4)
        words = f"{self.finding}. {self.alt}"
        shown = {"alt": words, "width": width, "height": height}
        return {"image/jpeg": jpeg(image), "text/plain": words}, {"image/jpeg": shown}

    def _ipython_display_(self) -> None:
        from qlab.course.widgets import Image  # which stands above this file

        data, metadata = self.still()
        widget = Image.of(self)._repr_mimebundle_()
        widget = widget[0] if isinstance(widget, tuple) else widget
        display({**widget, **data}, metadata=metadata, raw=True)
        display(Markdown(f"*{self.alt}*"))


def jpeg(pixels: np.ndarray) -> bytes:
    """RGBA pixels as a JPEG: with photographs in it, a fifth of a PNG's time and a third of its bytes.

    Colours keep their full resolution (no chroma subsampling), or thin coloured text would smear.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "jpeg", quality=92, subsampling=0)  # slicing would copy slower
    return buffer.getvalue()
