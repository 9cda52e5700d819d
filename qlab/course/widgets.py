"""Controls around a figure that follows them.

A :class:`Panel` shows a JPEG that the kernel draws anew for each value, and no output area: `interact` and `Output`
hang nbclient and swallow a callback's exception, while this can be driven and checked in plain Python. A
:class:`Drawn` is computed in the browser, and keeps up with a drag although the kernel is far away (Binder).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import anywidget
import ipywidgets
import traitlets
from torch import Tensor

from qlab.analysis import Front, LayerSQNR
from qlab.course import plots
from qlab.course.challenge import Score
from qlab.course.language import _
from qlab.course.savings import Workload
from qlab.data.dataset import Dataset
from qlab.detect.scene import Boxes

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


class Image(anywidget.AnyWidget):
    """A JPEG that a screen reader can name. (An ``ipywidgets.Image`` has no alt text.)"""

    _esm = module("image.js")
    _css = JS / "explorables.css"
    value = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)


class Still:
    """A widget that is saved with its ``figure`` as a still image, for a reader without a kernel (GitHub)."""

    figure: plots.Figure

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        data, metadata = self.figure.still()
        widget = super()._repr_mimebundle_(**options)
        return {**(widget[0] if isinstance(widget, tuple) else widget), **data}, metadata


class Panel(Still, ipywidgets.VBox):
    """Controls, below them the figure that ``draw`` gives for their values, below that the figure in words.

    ``draw`` is called with the controls' values by name and returns a :class:`qlab.course.plots.Figure`. What
    it raises stands in the panel instead of the words, until a redraw succeeds; ``error`` holds it.
    """

    def __init__(self, draw: Callable[..., plots.Figure], **controls: ipywidgets.DOMWidget) -> None:
        self.draw, self.controls, self.error = draw, controls, None
        self.image = Image()
        self.words = ipywidgets.HTML()
        self.figure = self._redraw()  # an error in the first view is the cell's own
        super().__init__([*controls.values(), self.image, self.words])
        for control in controls.values():
            control.observe(self._follow, "value")

    def _redraw(self) -> plots.Figure:
        figure = self.draw(**{name: control.value for name, control in self.controls.items()})
        with self.image.hold_sync():  # one message for both
            self.image.value, self.image.alt = figure.frame(), figure.finding
        self.words.value = f"<em role='status'>{escape(figure.alt)}</em>"
        return figure

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

    >>> wave = rounding()
    >>> wave.values
    {'bits': 3, 'shift': 0}
    >>> wave.values = {"bits": 4, "shift": 0.5}
    """

    _css = JS / "explorables.css"
    colours = traitlets.Dict(plots.COLOURS).tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)
    sliders = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)  # float32

    def __init__(
        self, name: str, draw: Callable[..., plots.Figure], texts: dict[str, str], data: bytes = b"", **sliders: dict
    ) -> None:
        values = {key: slider["value"] for key, slider in sliders.items()}
        self.figure = draw(**values)
        super().__init__(_esm=module(f"{name}.js"), texts=texts, data=data, sliders=sliders, values=values)


def fewer_bits(
    images: Dataset, said: Mapping[int, Tensor], accuracy: Mapping[int, float], float_accuracy: float
) -> Panel:
    """Drag the number of bits: the network's answers, and how many are right. Arguments as in ``plots``."""
    most, least = max(said), min(said)
    slider = Slider(label=_("bits of weights and activations"), value=most, minimum=least, maximum=most)
    return Panel(plots.fewer_bits(images, said, accuracy, float_accuracy), bits=slider)


def rounding() -> Drawn:
    """Drag the bits, and the grid up and down: what rounding makes of a sine."""
    return Drawn(
        "rounding", plots.rounding(), plots.rounding_texts(),
        bits=dict(label=_("bits"), value=3, minimum=2, maximum=8),
        shift=dict(label=_("grid moved by (steps)"), value=0, minimum=0, maximum=0.9, step=0.1),
    )  # fmt: skip


def rounding_errors(values: Tensor) -> Panel:
    """Drag the bits: how the errors of ``values`` are spread over a step."""
    return Panel(plots.rounding_errors(values), bits=Slider(label=_("bits"), value=8, minimum=2, maximum=10))


def formats() -> Drawn:
    """Drag a number, or click its bits: what each of six formats stores.

    A click makes ``values`` a pattern in one format, such as ``{"format": "float16", "pattern": 0x3C00}``.
    """
    number = dict(label=_("number"), value=0.3, minimum=-5, maximum=5, step=0.05)
    return Drawn("formats", plots.formats(), plots.formats_texts(), number=number)


def clipping(values: Tensor) -> Drawn:
    """Drag the limit of the grid: less clipping means coarser steps."""
    return Drawn(
        "clipping", plots.clipping(values), plots.clipping_texts(),
        plots.enough_of(values).astype("float32").tobytes(),
        bits=dict(label=_("bits"), value=4, minimum=2, maximum=8),
        limit=dict(label=_("limit (% of the largest)"), value=100, minimum=5, maximum=100),
    )  # fmt: skip


def chosen_limits(values: Tensor) -> Panel:
    """Drag the bits: where each observer puts the limit."""
    return Panel(plots.chosen_limits(values), bits=Slider(label=_("bits"), value=8, minimum=2, maximum=8))


def settling(batches: Sequence[Tensor]) -> Panel:
    """Drag the number of batches seen, and the moving average's momentum: where the observers put the limit."""
    return Panel(
        plots.settling(batches),
        batches=Slider(label=_("batches seen"), value=1, minimum=1, maximum=len(batches)),
        momentum=Slider(label=_("momentum of the moving average"), value=0.1, minimum=0.01, maximum=1, step=0.01),
    )


def calibration_size(largest: Tensor) -> Panel:
    """Drag the number of calibration images, and draw other ones: how much of the whole range they show."""
    return Panel(
        plots.calibration_size(largest),
        images=Slider(label=_("calibration images"), value=1, minimum=1, maximum=min(256, len(largest))),
        drawing=Slider(label=_("which drawing"), value=1, minimum=1, maximum=10),
    )


def channel_ranges(weight: Tensor) -> Panel:
    """Drag the bits, choose who shares a scale: what becomes of each channel of a depthwise layer's ``weight``."""
    names = list(plots.granularities())
    return Panel(
        plots.channel_ranges(weight),
        bits=Slider(label=_("bits"), value=4, minimum=2, maximum=8),
        share=ipywidgets.Dropdown(options=names, value=names[0], description=_("one scale")),
    )


def equalization(first: Tensor, second: Tensor) -> Panel:
    """Drag the share of equalization: the ranges of the channels that two layers have in common."""
    return Panel(
        plots.equalization(first, second),
        share=Slider(label=_("equalized (%)"), value=0, minimum=0, maximum=100, step=5),
        bits=Slider(label=_("bits"), value=6, minimum=3, maximum=8),
    )


def ptq_and_qat(ptq: Mapping[int, float], qat: Mapping[int, float], float_accuracy: float) -> Panel:
    """Drag the bits: what is right without training, and with it. Arguments as in ``plots``."""
    slider = Slider(label=_("bits of weights and activations"), value=max(ptq), minimum=min(ptq), maximum=max(ptq))
    return Panel(plots.ptq_and_qat(ptq, qat, float_accuracy), bits=slider)


def choice(candidates: Sequence[plots.Candidate]) -> Panel:
    """Drag the loss that is allowed, tick whether training is possible: the smallest network that is good enough."""
    return Panel(
        plots.choice(candidates),
        tolerance=Slider(label=_("points that may be lost"), value=1.0, minimum=0.0, maximum=10.0, step=0.5),
        can_train=ipywidgets.Checkbox(description=_("there is data and time to train"), value=False, indent=False),
    )


def dot_product(x: Tensor, w: Tensor, bias: float, ends: tuple[float, float]) -> Panel:
    """Walk through one dot product in integers, step by step."""
    return Panel(
        plots.dot_product(x, w, bias, ends),
        step=Slider(label=_("step"), value=0, minimum=0, maximum=6),
        bits=Slider(label=_("bits"), value=8, minimum=2, maximum=8),
    )


def saturation(x: Tensor, weight: Tensor) -> Panel:
    """Drag the bits of the inputs, or the size of the weights: which pairs of products fit 16 bits."""
    return Panel(
        plots.saturation(x, weight),
        bits=Slider(label=_("bits of the activations"), value=8, minimum=5, maximum=8),
        largest=Slider(label=_("largest code of the weights"), value=127, minimum=31, maximum=127, step=8),
    )


def one_weight() -> Panel:
    """Drag the steps: one weight is trained through the rounding."""
    return Panel(
        plots.one_weight(),
        start=Slider(label=_("the weight at the start"), value=-1, minimum=-1.2, maximum=3.2, step=0.1),
        steps=Slider(label=_("steps of training"), value=0, minimum=0, maximum=60),
    )


def learned_scale(values: Tensor) -> Panel:
    """Drag the scale: the error it makes, and where LSQ's gradient drives it."""
    return Panel(
        plots.learned_scale(values),
        bits=Slider(label=_("bits"), value=3, minimum=2, maximum=8),
        percent=Slider(label=_("scale (% of the one that clips nothing)"), value=100, minimum=3, maximum=100),
    )


def gathering(training: Mapping[int, Sequence[plots.Snapshot]], every: int) -> Panel:
    """Drag the training's step: where the weights lie between the rungs. Arguments as in ``plots``."""
    steps = every * (len(training[0]) - 1)
    return Panel(
        plots.gathering(training, every),
        step=Slider(label=_("step of training"), value=0, minimum=0, maximum=steps, step=every),
        pull=Slider(label=_("pull to the rungs (0: off, 1: on)"), value=0, minimum=0, maximum=1),
    )


def codebook(values: Tensor) -> Panel:
    """Drag the iterations: the values of a codebook move to where the weights are."""
    return Panel(
        plots.codebook(values),
        bits=Slider(label=_("bits"), value=3, minimum=2, maximum=4),
        iterations=Slider(label=_("iterations of k-means"), value=0, minimum=0, maximum=40),
    )


def few_values(filters: Tensor) -> Panel:
    """Drag the threshold: which weights of a filter become 0, and what that costs."""
    threshold = _("threshold (mean magnitudes)")
    return Panel(
        plots.few_values(filters),
        threshold=Slider(label=threshold, value=0, minimum=0, maximum=2, step=0.05),
    )


def suppression(image: Tensor, candidates: Boxes, truth: Boxes, classes: Sequence[str]) -> Panel:
    """Drag the least score, and the overlap that is allowed: which boxes are left. Arguments as in ``plots``."""
    return Panel(
        plots.suppression(image, candidates, truth, classes),
        score=Slider(label=_("least score (%)"), value=30, minimum=5, maximum=95, step=5),
        overlap=Slider(label=_("overlap allowed (%)"), value=95, minimum=5, maximum=95, step=5),
    )


def layer_noise(tables: Mapping[tuple[str, int], Sequence[LayerSQNR]]) -> Panel:
    """Choose what is quantized and drag the bits: the SQNR of each layer. Arguments as in ``plots``."""
    words = {"both": _("weights and activations"), "weights": _("weights"), "activations": _("activations")}
    bits = sorted({number for _what, number in tables})
    return Panel(
        plots.layer_noise(tables),
        what=ipywidgets.Dropdown(options=[(words[key], key) for key in words], description=_("quantized:")),
        bits=Slider(label=_("bits"), value=bits[-1], minimum=bits[0], maximum=bits[-1]),
    )


def bit_budget(front: Front) -> Panel:
    """Drag the budget: the bits of each layer that leave the answers the least noise."""
    bits = [cost.bits for cost in front.costs]
    slider = Slider(label=_("bits of a weight, on average"), value=5.0, minimum=min(bits), maximum=max(bits), step=0.1)
    return Panel(plots.bit_budget(front), average=slider)


def bits_of_weights(
    perplexity: Mapping[tuple[str, int], float], float_perplexity: float, written: Mapping[int, str], shown: str
) -> Panel:
    """Drag the bits of a language model's weights: its perplexity, and what it writes. Arguments as in ``plots``."""
    slider = Slider(label=_("bits of a weight"), value=max(written), minimum=min(written), maximum=max(written))
    return Panel(plots.bits_of_weights(perplexity, float_perplexity, written, shown), bits=slider)


def weight_groups(weight: Tensor, sizes: Sequence[int]) -> Panel:
    """Drag the bits, choose how many weights share a grid: the grid's steps, and error against memory."""
    return Panel(
        plots.weight_groups(weight, sizes),
        bits=Slider(label=_("bits"), value=4, minimum=2, maximum=8),
        size=ipywidgets.Dropdown(options=list(sizes), value=max(sizes), description=_("group of")),
    )


def smoothing(x: Tensor, weight: Tensor, channels: Sequence[int]) -> Panel:
    """Drag alpha, and the size of the outliers: SmoothQuant moves them from the activations to the weights."""
    return Panel(
        plots.smoothing(x, weight, channels),
        alpha=Slider(label=_("alpha"), value=0.0, minimum=0, maximum=1, step=0.05),
        size=Slider(label=_("outliers: 2 to the power of"), value=6, minimum=0, maximum=8),
    )


def pareto(scores: Sequence[Score], yours: Score) -> Panel:
    """Drag the size that is allowed: the best network that fits, and where ``yours`` lies. Arguments as in ``plots``."""
    sizes = [score.kib for score in (*scores, yours)]
    least, most = int(min(sizes)) - 5, int(max(sizes)) + 10
    slider = Slider(label=_("KiB allowed"), value=most, minimum=least, maximum=most)
    return Panel(plots.pareto(scores, yours), kib=slider)


def qdq(weight: Tensor, bias: Tensor, top: float) -> Panel:
    """Walk through the nodes around one layer of an ONNX graph. Arguments as in ``plots``."""
    return Panel(
        plots.qdq(weight, bias, top),
        step=Slider(label=_("step"), value=0, minimum=0, maximum=7),
        bits=Slider(label=_("bits of the activations"), value=8, minimum=3, maximum=8),
        first=Slider(label=_("first input"), value=0.5, minimum=-1.0, maximum=1.0, step=0.1),
    )


def savings(works: Sequence[Workload]) -> Panel:
    """Put in your own machine and prices: what int8 saves. Arguments as in ``plots``."""
    names = [(work.name, number) for number, work in enumerate(works)]
    return Panel(
        plots.savings(works),
        work=ipywidgets.Dropdown(options=names, value=0, description=_("network")),
        memory=Slider(label=_("memory, gigabytes a second"), value=10, minimum=1, maximum=200),
        macs=Slider(label=_("billion float multiplications a second"), value=50, minimum=1, maximum=500),
        speedup=Slider(label=_("int8 multiplications, times as many"), value=2.0, minimum=1.0, maximum=4.0, step=0.5),
        dollars=Slider(label=_("price of an hour, dollars"), value=0.1, minimum=0.0, maximum=5.0, step=0.05),
        download=Slider(label=_("download, megabits a second"), value=20, minimum=1, maximum=200),
    )
