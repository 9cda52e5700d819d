"""Mystery networks: something is broken. Ask for measurements, commit a diagnosis, try a repair.

A lesson has a function from a seed to a :class:`Mystery`: the seed draws what is broken. Nothing in it knows a widget, so
a mystery can be solved in plain Python too; :class:`Box` puts buttons around it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import ipywidgets

from qlab.course.figure import Figure
from qlab.course.language import _
from qlab.course.widgets import Image


@dataclass
class Mystery:
    """A broken network, and what can be done with it.

    - ``story``: what is known at the beginning.
    - ``measurements``: by their name, functions that measure: each gives text (a table) or a figure.
    - ``questions``: what the diagnosis has to say, each with the choices there are. ``truth`` has an answer for each.
    - ``repairs``: by their name, functions that repair a copy as the diagnosis says: they are called with its answers,
      and tell what that changed. ``because`` tells in the end what had been done to the network.

    Raises ValueError when ``truth`` answers something else than ``questions`` ask.

    >>> mystery = Mystery(
    ...     story="One of two layers is broken.",
    ...     measurements={"SQNR": lambda: "conv 30 dB, fc 3 dB"},
    ...     questions={"layer": ("conv", "fc")},
    ...     truth=("fc",),
    ...     repairs={"8 bits": lambda layer: f"{layer} has 8 bits: 29 dB"},
    ...     because="fc had 2 bits.",
    ... )
    >>> mystery.measure("SQNR")
    'conv 30 dB, fc 3 dB'
    >>> mystery.diagnose("conv")
    >>> print(mystery.repair("8 bits"))
    conv has 8 bits: 29 dB
    You said: conv. It was: fc. fc had 2 bits.
    """

    story: str
    measurements: Mapping[str, Callable[[], str | Figure]]
    questions: Mapping[str, Sequence[str]]
    truth: tuple[str, ...]
    repairs: Mapping[str, Callable[..., str]]
    because: str
    asked: list[str] = field(default_factory=list, init=False)
    said: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._require_choices(self.truth)

    def measure(self, name: str) -> str | Figure:
        """What a measurement shows. It is noted in ``asked``. Raises ValueError when there is no such measurement."""
        measure = _named(name, self.measurements, _("measurement"))
        if name not in self.asked:
            self.asked.append(name)
        return measure()

    def diagnose(self, *said: str) -> None:
        """Commit a diagnosis, an answer for each question. Raises ValueError for a second one, and for no choice."""
        if self.said:
            raise ValueError(_("the diagnosis is made: {said}").format(said=", ".join(self.said)))
        self._require_choices(said)
        self.said = tuple(said)

    def repair(self, name: str) -> str:
        """Try a repair as the diagnosis says: what it changed, and what had been broken.

        Raises ValueError when there is no such repair, or no diagnosis yet.
        """
        mend = _named(name, self.repairs, _("repair"))
        if not self.said:
            raise ValueError(_("commit a diagnosis first: it says where the repair is made"))
        return f"{mend(*self.said)}\n{self.verdict}"

    @property
    def verdict(self) -> str:
        """The diagnosis beside the truth, in a line."""
        said, truth = ", ".join(self.said), ", ".join(self.truth)
        if self.said == self.truth:
            return _("You said: {said}. That is it. {because}").format(said=said, because=self.because)
        return _("You said: {said}. It was: {truth}. {because}").format(said=said, truth=truth, because=self.because)

    def _require_choices(self, answers: Sequence[str]) -> None:
        if len(answers) != len(self.questions):
            what = _("{n} answers: expected one for each of {questions}")
            raise ValueError(what.format(n=len(answers), questions=", ".join(self.questions)))
        for answer, (question, choices) in zip(answers, self.questions.items()):
            if answer not in choices:
                what = _("{question}: {answer!r} is no choice, expected one of {choices}")
                raise ValueError(what.format(question=question, answer=answer, choices=", ".join(choices)))


def _named(name: str, known: Mapping[str, Callable], what: str) -> Callable:
    """The function of that name. Raises ValueError when there is none."""
    if name not in known:
        words = {"what": what, "name": name, "known": ", ".join(known)}
        raise ValueError(_("no {what} {name!r}: there are {known}").format(**words))
    return known[name]


class Box(ipywidgets.VBox):
    """Buttons around mysteries: measure, commit the diagnosis, try a repair, take another one.

    Args:
        make: The mystery of a seed, such as ``lesson06.mystery.broken_layer``'s.
        seed: Draws the first one; None draws the seed too, so that no two students get the same.
    """

    def __init__(self, make: Callable[[int], Mystery], seed: int | None = None) -> None:
        super().__init__()
        self.make = make
        self.show(random.SystemRandom().randrange(10**6) if seed is None else seed)

    def show(self, seed: int) -> None:
        """The mystery of this seed, from the beginning."""
        self.seed, self.mystery = seed, self.make(seed)
        self.found = ipywidgets.VBox()
        self.measuring = [_button(name, self._measure) for name in self.mystery.measurements]
        self.answers = [
            ipywidgets.Dropdown(options=[("", None), *((choice, choice) for choice in choices)], description=question)
            for question, choices in self.mystery.questions.items()
        ]
        self.commit = _button(_("commit the diagnosis"), self._commit, disabled=True)
        self.repairing = [_button(name, self._repair, disabled=True) for name in self.mystery.repairs]
        self.said = ipywidgets.HTML()
        self.another = _button(_("another mystery"), lambda _pressed: self.show(self.seed + 1), disabled=True)
        for answer in self.answers:
            answer.observe(self._ready, "value")
        self.children = [
            _words(self.mystery.story, "div"), _row(_("Measure:"), self.measuring), self.found,
            _row(_("Diagnosis:"), [*self.answers, self.commit]),
            _row(_("Repair:"), [*self.repairing, self.another]), self.said,
        ]  # fmt: skip

    def _measure(self, button: ipywidgets.Button) -> None:
        name = button.description
        button.disabled = True  # it would say the same again
        with _told(self.said):
            shown = self.mystery.measure(name)
            self.found.children = [*self.found.children, _words(name, "strong"), *_shown(shown)]

    def _ready(self, _change: object) -> None:
        self.commit.disabled = any(answer.value is None for answer in self.answers)

    def _commit(self, _button: ipywidgets.Button) -> None:
        with _told(self.said):
            self.mystery.diagnose(*(answer.value for answer in self.answers))
            for control in (*self.answers, self.commit):
                control.disabled = True
            for button in self.repairing:
                button.disabled = False
            words = {"said": ", ".join(self.mystery.said), "n": len(self.mystery.asked)}
            self.said.value = _status(_("You say: {said}, after {n} measurements. Now try a repair.").format(**words))

    def _repair(self, button: ipywidgets.Button) -> None:
        with _told(self.said):
            self.said.value = _status(self.mystery.repair(button.description))
            self.another.disabled = False

    def _repr_mimebundle_(self, **options) -> dict:
        """The box, and for a reader without a kernel what there is to do. It says the same whatever is broken."""
        items = "".join(
            f"<li>{escape(what)} {escape(', '.join(names))}</li>"
            for what, names in (
                (_("Measure:"), self.mystery.measurements), (_("Diagnosis:"), self.mystery.questions),
                (_("Repair:"), self.mystery.repairs),
            )
        )  # fmt: skip
        html = f"<p>{escape(self.mystery.story)}</p><ul>{items}</ul>"
        return {**super()._repr_mimebundle_(**options), "text/html": html, "text/plain": self.mystery.story}


class _told:
    """Whatever is raised inside stands in the box: nobody catches what a callback raises."""

    def __init__(self, place: ipywidgets.HTML) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.place.value = f"<strong role='alert'>{type(error).__name__}: {escape(str(error))}</strong>"
        return True


def _button(text: str, pressed: Callable, disabled: bool = False) -> ipywidgets.Button:
    button = ipywidgets.Button(description=text, disabled=disabled, layout={"width": "auto"})
    button.on_click(pressed)
    return button


def _row(label: str, controls: Sequence[ipywidgets.Widget]) -> ipywidgets.HBox:
    return ipywidgets.HBox([_words(label, "strong"), *controls], layout={"flex_flow": "row wrap"})


def _words(text: str, tag: str) -> ipywidgets.HTML:
    return ipywidgets.HTML(f"<{tag}>{escape(text)}</{tag}>")


def _status(text: str) -> str:
    return f"<div role='status' style='white-space: pre-wrap'>{escape(text)}</div>"


def _shown(shown: str | Figure) -> list[ipywidgets.Widget]:
    """A figure as an image and its words; text as it is, in columns."""
    if isinstance(shown, str):
        return [_words(shown, "pre")]
    return [Image(value=shown.frame(), alt=shown.finding), ipywidgets.HTML(f"<em>{escape(shown.alt)}</em>")]
