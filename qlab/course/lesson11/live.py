"""A panel that follows a video: two detectors side by side, frame after frame, until it is stopped.

It runs as a task of the notebook's own event loop and not as a thread: a cell that runs pauses it, and nothing is left
behind when it stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import ipywidgets

from qlab.course.language import _
from qlab.course.lesson11 import plots
from qlab.course.widgets import Panel, Slider
from qlab.detect.network import Detector
from qlab.detect.video import Meter, Seen, Source, watch

PAUSE = 0.01  # seconds between two frames, in which the notebook hears what is clicked


class Live(Panel):
    """``detectors`` (by name: a float and a quantized one) on the frames of ``open_source()``.

    It shows ``first`` frames, then waits for its start button. Then it runs until it is stopped, until the video ends, or
    for ``longest`` seconds. ``map_of`` is each detector's mAP. What goes wrong stands in the panel, and ends the run.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        detectors: Mapping[str, Detector],
        map_of: Mapping[str, float],
        *,
        first: int = 3,
        longest: float = 60.0,
    ) -> None:
        self.open_source, self.detectors, self.longest = open_source, detectors, longest
        self.meters = {name: Meter() for name in detectors}
        self.task: asyncio.Task | None = None
        self.dropped = 0
        with open_source() as source:
            for _number, seen in zip(range(first), watch(source, detectors)):
                self._remember(seen, source)
        classes = next(iter(detectors.values())).classes
        show = plots.side_by_side(list(detectors), classes, map_of, self.seen.frame.image.shape[-1])
        score = Slider(label=_("least score of a box (%)"), value=40, minimum=5, maximum=95, step=5)
        super().__init__(lambda score: show(self.seen, self.meters, score, self.dropped), score=score)
        buttons = {"start": self.start, "stop": self.stop}
        words = {"start": _("start"), "stop": _("stop")}
        self.buttons = {name: ipywidgets.Button(description=words[name]) for name in buttons}
        for name, button in self.buttons.items():
            button.on_click(lambda _button, name=name: buttons[name]())
        self.children = (ipywidgets.HBox(list(self.buttons.values())), *self.children)
        self._show_state()

    @property
    def running(self) -> bool:
        """Is it following a video now?"""
        return self.task is not None and not self.task.done()

    def start(self) -> None:
        """Follow a video from its beginning, as a task of the running event loop. A second click does nothing."""
        if self.running:
            return
        try:
            self.task = asyncio.get_running_loop().create_task(self._run())
        except RuntimeError as error:  # no event loop: this is no notebook
            self._show_error(error)
        self._show_state()

    def stop(self) -> None:
        """End the run; the source is closed before the next frame."""
        if self.running:
            self.task.cancel()

    async def _run(self) -> None:
        end = time.monotonic() + self.longest
        try:
            with self.open_source() as source:
                for seen in watch(source, self.detectors):
                    self._remember(seen, source)
                    self._redraw()
                    self.error = None
                    if time.monotonic() > end:
                        break
                    await asyncio.sleep(PAUSE)
        except asyncio.CancelledError:
            pass  # the stop button
        except Exception as error:  # nobody else would see it
            self._show_error(error)
        finally:
            self._show_state(running=False)

    def _remember(self, seen: Seen, source: Source) -> None:
        self.seen, self.dropped = seen, source.dropped
        for name, seconds in seen.seconds.items():
            self.meters[name].add(seconds)

    def _show_state(self, running: bool | None = None) -> None:
        running = self.running if running is None else running
        self.buttons["start"].disabled, self.buttons["stop"].disabled = running, not running
