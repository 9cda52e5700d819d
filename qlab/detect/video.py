"""Where frames come from, and a loop that never falls behind them.

A detector that is slower than its camera has two choices: let the frames queue up, and show what happened seconds ago,
or skip some. Here a source is asked for its newest frame, and those in between are dropped and counted. A scene, a file
and a folder know when each frame is due, so they need no thread: being late means a higher frame number. A camera fills
its buffer whether anybody reads or not, so a thread reads it and keeps one frame.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlab.detect.scene import SIDE, Boxes, Scene
from qlab.extras import remedy
from qlab.files import regular

FPS = 30.0  # of a scene and of a folder
LARGEST = 320  # pixels a side: a frame is cut to its middle square, and made no larger than this
PATIENCE = 5.0  # seconds without a frame from a camera
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Frame:
    """One image of a video: ``image`` uint8 (3, side, side), its ``number``, and the ``truth`` where it is known."""

    image: Tensor
    number: int
    truth: Boxes | None = None


class Source:
    """Frames, the newest first. Iterate over it, and close it or use it in a `with`; ``dropped`` counts what it skipped."""

    def __init__(self) -> None:
        self.dropped = 0

    def read(self) -> Frame | None:
        """The newest frame that was not read yet, waiting for one if need be; None when there are no more."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file or the camera. A second time does no harm."""

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Recorded(Source):
    """Frames by number, each due at its time: number / fps seconds after the first one was read.

    ``live=False`` gives every frame, at the reader's pace. ``clock`` and ``sleep`` are those of the module time.
    """

    def __init__(
        self,
        fps: float,
        *,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps}: expected a number of frames a second above 0")
        self.fps, self.live, self.clock, self.sleep = fps, live, clock, sleep
        self._start: float | None = None
        self._last = -1

    def frame(self, number: int) -> Frame | None:
        """Frame ``number``, None behind the last. Numbers only grow from call to call."""
        raise NotImplementedError

    def read(self) -> Frame | None:
        number = self._last + 1
        if self.live:
            self._start = self.clock() if self._start is None else self._start
            age = self.clock() - self._start
            if number / self.fps > age:
                self.sleep(number / self.fps - age)
            number = max(number, int(age * self.fps + 1e-6))
        self.dropped += number - self._last - 1
        self._last = number
        return self.frame(number)


class SceneSource(Recorded):
    """A made scene, without end; its truth is known."""

    def __init__(self, seed: int = 0, side: int = SIDE, fps: float = FPS, **options: Any) -> None:
        super().__init__(fps, **options)
        self.scene = Scene(seed, side)

    def frame(self, number: int) -> Frame:
        image, truth = self.scene(number / self.fps)
        return Frame(image, number, truth)


class FolderSource(Recorded):
    """The images of a folder, by name. Raises ValueError when there is none, or when one cannot be read."""

    def __init__(self, folder: str | Path, fps: float = FPS, **options: Any) -> None:
        super().__init__(fps, **options)
        self.paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGES)
        if not self.paths:
            raise ValueError(f"there is no image in {folder}: expected files such as 0001.png ({', '.join(IMAGES)})")

    def frame(self, number: int) -> Frame | None:
        if number >= len(self.paths):
            return None
        try:
            with Image.open(regular(self.paths[number])) as image:
                return Frame(_square(image), number)
        except Exception as error:
            raise ValueError(f"{self.paths[number]} is no image that can be read: {error}") from error


class FileSource(Recorded):
    """A video file, through OpenCV. Raises ValueError when it cannot be opened."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        cv2 = opencv()
        self.capture = cv2.VideoCapture(str(path))
        if not self.capture.isOpened():
            raise ValueError(f"{path} cannot be opened as a video: is it one, and in a format that OpenCV reads?")
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        super().__init__(fps if math.isfinite(fps) and fps > 0 else FPS, **options)
        self._next = 0

    def frame(self, number: int) -> Frame | None:
        while self._next < number:  # skipped, not decoded
            if not self.capture.grab():
                return None
            self._next += 1
        there, image = self.capture.read()
        self._next += 1
        return Frame(_square(_from_opencv(image)), number) if there else None

    def close(self) -> None:
        self.capture.release()


class Camera(Source):
    """A webcam, through OpenCV: a thread reads it all the time and keeps the newest frame.

    Raises OSError when it cannot be opened; `read` raises it when the camera gives nothing for five seconds, and raises
    what the thread raised.
    """

    def __init__(self, number: int = 0, capture: Any = None, patience: float = PATIENCE) -> None:
        super().__init__()
        self.number, self.patience = number, patience
        self.capture = opencv().VideoCapture(number) if capture is None else capture
        if not self.capture.isOpened():
            self.capture.release()
            raise OSError(
                f"camera {number} cannot be opened: is one plugged in, and does no other program use it? "
                "Without a camera, take the source 'scene'"
            )
        self._newest, self._count, self._over, self._error = None, 0, False, None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name=f"camera {number}", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        """Read until told to stop, or until the camera is gone."""
        try:
            while not self._over:
                there, image = self.capture.read()
                if not there:
                    break
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest, self._count = image, self._count + 1
                    self._changed.notify_all()
        except Exception as error:  # it belongs to whoever reads
            self._error = error
        finally:
            self.capture.release()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def read(self) -> Frame | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._newest is not None or self._over, self.patience):
                raise OSError(f"camera {self.number} gave no frame for {self.patience:g} seconds")
            image, number, self._newest = self._newest, self._count - 1, None
        if image is None:
            if self._error is not None:
                raise self._error
            return None
        return Frame(_square(_from_opencv(image)), number)

    def close(self) -> None:
        self._over = True
        self._thread.join(self.patience)


def open_source(name: str | Path = "scene", **options: Any) -> Source:
    """The source that a word names: "scene" or "scene:7" (the seed), "webcam" or "webcam:1", a video file, a folder.

    ``options`` are those of the source, such as ``live=False``. Raises ValueError when there is no such source,
    ImportError when it needs OpenCV and that is not installed, OSError when the camera is missing.
    """
    kind, place = find_source(name)
    return kind(place, **options)


def find_source(name: str | Path) -> tuple[type[Source], int | Path]:
    """The kind of source that a word names, and where it is; it is not opened. Raises ValueError when there is none."""
    word, _colon, number = str(name).partition(":")
    if word in ("scene", "webcam") and re.fullmatch("[0-9]{0,9}", number):
        return (SceneSource if word == "scene" else Camera), int(number or 0)
    path = Path(name)
    if path.is_dir():
        return FolderSource, path
    if path.is_file():
        return FileSource, path
    raise ValueError(
        f"no source {str(name)!r}: expected 'scene', 'scene:7', 'webcam', 'webcam:1', a video file, or a folder of images"
    )


def opencv() -> ModuleType:
    """The module cv2. Raises ImportError that says how to get it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what it warns of becomes an error of ours, in one line
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"webcams and video files need OpenCV: {remedy('video')}") from error
    return cv2


def _from_opencv(image: np.ndarray) -> Image.Image:
    """OpenCV's blue comes first."""
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))


def _square(image: Image.Image) -> Tensor:
    """The middle square of an image, at most LARGEST pixels a side: uint8 (3, side, side)."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.convert("RGB").crop((left, top, left + side, top + side))
    if side > LARGEST:
        image = image.resize((LARGEST, LARGEST), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


# --- the loop


@dataclass(frozen=True)
class Seen:
    """One frame, what each detector found in it, and the seconds that took, by the detectors' names."""

    frame: Frame
    found: dict[str, Boxes]
    seconds: dict[str, float]


def watch(source: Source, detectors: Mapping[str, Callable[[Tensor], Boxes]]) -> Iterator[Seen]:
    """What each of ``detectors`` finds in the newest frame of ``source``, again and again, until there are no more."""
    for frame in source:
        found, seconds = {}, {}
        for name, detector in detectors.items():
            start = time.perf_counter()
            found[name] = detector(frame.image)
            seconds[name] = time.perf_counter() - start
        yield Seen(frame, found, seconds)


@dataclass
class Meter:
    """The latest latencies of a detector, in seconds.

    >>> meter = Meter(); meter.add(0.02); meter.add(0.04); meter.add(0.025)
    >>> round(meter.fps)
    40
    """

    seconds: deque = field(default_factory=lambda: deque(maxlen=200))

    def add(self, seconds: float) -> None:
        """One more frame."""
        self.seconds.append(seconds)

    @property
    def ms(self) -> float:
        """The median latency in milliseconds, NaN before the first frame."""
        return 1000 * statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def fps(self) -> float:
        """Frames a second at the median latency: what the detector could do if a frame were always waiting."""
        return 1000 / self.ms
