"""Controls around a figure that follows them.

A :class:`Panel` shows a JPEG that the kernel draws anew for each value, and no output area: `interact` and `Output`
hang nbclient and swallow a callback's exception, while this can be driven and checked in plain Python. A
:class:`Drawn` is computed in the browser, and keeps up with a drag although the kernel is far away (Binder).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import anywidget
import ipywidgets
import traitlets

from qlab.course.figure import COLOURS, Figure

JS = Path(__file__).parent / "js"


def module(name: str) -> str:
    """A module of js/ with those that it imports put before it: a widget is one file to the browser."""
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        text = (JS / name).read_text("utf-8")
        for other in re.findall(r'^import .* from "\./(.+)";$', text, re.MULTILINE):
            if other not in parts:
                add(other)
        parts[name] = re.sub(r"^import .*\n", "", text, flags=re.MULTILINE)

    add(name)
    return "\n".join(parts.values())


class Slider(anywidget.AnyWidget):
    """A slider with a real label, for mouse, finger and keyboard.

    >>> slider = Slider(label="bits", value=8, minimum=2, maximum=8)
    >>> slider.value = 4
    """

    _esm = module("slider.js")
    _css = JS / "explorables.css"
    label = traitlets.Unicode().tag(sync=True)
    value = traitlets.Union([traitlets.Int(), traitlets.Float()]).tag(sync=True)  # 4 stays 4, not 4.0
    minimum = traitlets.Float(0).tag(sync=True)
    maximum = traitlets.Float(1).tag(sync=True)
    step = traitlets.Float(1).tag(sync=True)


def values_of(control: ipywidgets.DOMWidget) -> list:
    """Every value that a control can take: a slider's stops, the options of a list, no and yes for a box.

    >>> values_of(Slider(label="shift", value=0, minimum=0, maximum=1, step=0.25))
    [0, 0.25, 0.5, 0.75, 1]
    """
    if isinstance(control, Slider):
        return _stops(control.minimum, control.maximum, control.step)
    options = getattr(control, "options", (False, True))
    return [option[1] if isinstance(option, tuple) else option for option in options]


def _stops(minimum: float, maximum: float, step: float = 1.0) -> list[float]:
    """As a browser says them: in decimals, and whole ones as integers."""
    count = int((maximum - minimum) / step + 1e-6)
    stops = [round(minimum + place * step, 9) for place in range(count + 1)]
    return [int(stop) if stop == int(stop) else stop for stop in stops]


def thinned(values: list, most: int) -> list:
    """At most so many of the values, evenly spread, both ends among them.

    >>> thinned(list(range(100)), 4)
    [0, 33, 66, 99]
    """
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


class Image(anywidget.AnyWidget):
    """A JPEG that a screen reader can name, and that a dark JupyterLab shows dark, all but its ``photos``."""

    _esm = module("image.js")
    _css = JS / "explorables.css"
    value = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    photos = traitlets.List().tag(sync=True)  # [left, top, width, height] of each, parts of the whole

    def show(self, figure: Figure) -> None:
        """Show this figure from now on."""
        with self.hold_sync():  # one message for all
            self.value, self.alt, self.photos = figure.frame(), figure.finding, figure.photos()

    @classmethod
    def of(cls, figure: Figure) -> Image:
        """A figure that does not move."""
        image = cls()
        image.show(figure)
        return image


class Still:
    """A widget that is saved with its ``figure`` as a still image, for a reader without a kernel (GitHub)."""

    figure: Figure

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        data, metadata = self.figure.still()
        widget = super()._repr_mimebundle_(**options)
        return {**(widget[0] if isinstance(widget, tuple) else widget), **data}, metadata


class Panel(Still, ipywidgets.VBox):
    """Controls, below them the figure that ``draw`` gives for their values, below that the figure in words.

    ``draw`` is called with the controls' values by name and returns a :class:`qlab.course.figure.Figure`. What
    it raises stands in the panel instead of the words, until a redraw succeeds; ``error`` holds it.
    """

    def __init__(self, draw: Callable[..., Figure], **controls: ipywidgets.DOMWidget) -> None:
        self.draw, self.controls, self.error = draw, controls, None
        self.image = Image()
        self.words = ipywidgets.HTML()
        self.figure = self._redraw()  # an error in the first view is the cell's own
        super().__init__([*controls.values(), self.image, self.words])
        for control in controls.values():
            control.observe(self._follow, "value")

    @property
    def choices(self) -> dict[str, list]:
        """Every value of each control, by its name: what ``draw`` can be asked for."""
        return {name: values_of(control) for name, control in self.controls.items()}

    def _redraw(self) -> Figure:
        figure = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.image.show(figure)
        self.words.value = f"<em role='status'>{escape(figure.alt)}</em>"
        return figure

    def mark(self, guess: float, words: str) -> None:
        """Draw what a student predicted, in a figure that has an axis for it."""
        self.figure.mark(guess, words)
        self._follow(None)

    def _follow(self, change: object) -> None:
        """A control has moved. Nobody catches what a callback raises, so it is shown here."""
        try:
            self._redraw()
            self.error = None
        except Exception as error:
            self._show_error(error)

    def _show_error(self, error: Exception) -> None:
        self.error = error
        self.words.value = f"<strong role='alert'>{type(error).__name__}: {escape(str(error))}</strong>"


class Drawn(Still, anywidget.AnyWidget):
    """Sliders and a figure that the browser computes, draws and describes: js/``name``.js.

    ``draw`` is the same in Python: what the JavaScript is tested against, and the still figure. ``sliders`` are
    :class:`Slider`'s arguments. ``values`` follows them, and they follow it:

    >>> from qlab.course.lesson01 import panels
    >>> wave = panels.rounding()
    >>> wave.values
    {'bits': 3, 'shift': 0}
    >>> wave.values = {"bits": 4, "shift": 0.5}
    """

    _css = JS / "explorables.css"
    colours = traitlets.Dict(COLOURS).tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)
    sliders = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)  # float32
    guess = traitlets.Any(None, allow_none=True).tag(sync=True)  # what a student predicted, for a script that marks it

    def __init__(
        self, name: str, draw: Callable[..., Figure], texts: dict[str, str], data: bytes = b"", **sliders: dict
    ) -> None:
        values = {key: slider["value"] for key, slider in sliders.items()}
        self.name, self.draw, self.figure = name, draw, draw(**values)
        super().__init__(_esm=module(f"{name}.js"), texts=texts, data=data, sliders=sliders, values=values)

    @property
    def choices(self) -> dict[str, list]:
        """Every value of each slider, by its name: what ``draw`` can be asked for."""
        ends = ("minimum", "maximum", "step")
        return {name: _stops(**{end: s[end] for end in ends if end in s}) for name, s in self.sliders.items()}
