"""Sources never lag behind, stop cleanly, and say what is missing."""

from __future__ import annotations

import builtins
import re
import threading
import time
from queue import Queue

import numpy as np
import pytest
import torch
from PIL import Image

from qlab.detect import Meter, Scene, open_source, video, watch
from qlab.detect.video import Camera, FileSource, FolderSource, Recorded, SceneSource
from qlab.extras import remedy


class Time:
    """A clock that stands still unless somebody sleeps or works."""

    def __init__(self):
        self.now, self.slept = 100.0, 0.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds
        self.slept += seconds

    @property
    def options(self):
        return {"clock": self.clock, "sleep": self.sleep}


def colours(folder, count=6):
    """Images 48 x 32 whose grey is 20 times their number."""
    for number in range(count):
        Image.new("RGB", (48, 32), (20 * number,) * 3).save(folder / f"{number:03}.png")
    return folder


# --- sources that know when a frame is due


def test_a_quick_reader_waits_for_each_frame_and_misses_none():
    t = Time()
    source = SceneSource(fps=10, **t.options)
    assert [source.read().number for _ in range(5)] == [0, 1, 2, 3, 4]
    assert source.dropped == 0 and t.slept == pytest.approx(0.4)


def test_a_slow_reader_drops_frames_and_is_never_late():
    t = Time()
    source = SceneSource(fps=10, **t.options)
    started = t.now
    for _ in range(8):
        frame = source.read()
        age = (t.now - started) - frame.number / 10
        assert 0 <= age + 1e-6 and age < 0.1  # the frame is the newest one
        t.now += 0.35  # a detector that takes three and a half frames
    assert frame.number >= 24 and source.dropped == frame.number - 7 and t.slept == 0


def test_without_a_clock_every_frame_is_read():
    source = SceneSource(fps=10, live=False, clock=None, sleep=None)
    assert [source.read().number for _ in range(3)] == [0, 1, 2] and source.dropped == 0


def test_a_scene_shows_the_truth_of_its_time():
    frame = SceneSource(seed=3, fps=10, live=False).read()
    assert torch.equal(frame.image, Scene(3)()[0]) and len(frame.truth) == len(Scene(3)()[1])


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(fps):
    with pytest.raises(ValueError, match="fps=.*expected a number of frames a second above 0"):
        SceneSource(fps=fps)


def test_a_base_class_has_no_frames():
    with pytest.raises(NotImplementedError):
        Recorded(5, live=False).read()
    with pytest.raises(NotImplementedError):
        video.Source().read()


def test_a_folder_is_a_video(tmp_path):
    (colours(tmp_path) / "notes.txt").write_text("not an image")
    with open_source(tmp_path, live=False) as source:
        frames = list(source)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 20, 40, 60, 80, 100]
    assert frames[0].image.shape == (3, 32, 32)  # the middle square


def test_a_folder_drops_images_too(tmp_path):
    t = Time()
    source = FolderSource(colours(tmp_path), fps=10, **t.options)
    source.read()
    t.now += 0.32
    assert source.read().number == 3 and source.dropped == 2
    t.now += 5
    assert source.read() is None


def test_a_folder_without_a_image_or_with_a_broken_one_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no image in .*expected files such as 0001.png"):
        open_source(tmp_path)
    Image.new("1", (13_500, 13_500)).save(tmp_path / "b.png")  # 182 million pixels, which Pillow refuses
    for content in (b"not an image", (tmp_path / "b.png").read_bytes()):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match="a.png is no image that can be read"):
            open_source(tmp_path).read()


def test_a_large_image_is_cut_to_its_middle_and_made_smaller():
    wide = Image.new("RGB", (1280, 720))
    wide.paste((255, 0, 0), (280, 0, 1000, 720))
    frame = video._square(wide)
    assert frame.shape == (3, 320, 320) and frame[0].min() == 255 and frame[1].max() == 0


@pytest.fixture
def film(tmp_path):
    """Ten frames, 64 x 48, 10 a second, whose red is 25 times their number."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for number in range(10):
        writer.write(np.full((48, 64, 3), (0, 0, 25 * number), np.uint8))
    writer.release()
    return path


def test_a_film_is_read_frame_by_frame(film):
    with open_source(film, live=False) as source:
        frames = list(source)
    assert source.fps == 10 and len(frames) == 10
    assert [round(float(frame.image[0].float().mean()) / 25) for frame in frames] == list(range(10))
    assert frames[9].image[2].float().mean() < 20  # red is not blue


def test_a_film_is_skipped_forward_when_the_reader_is_slow(film):
    t = Time()
    source = FileSource(film, **t.options)
    source.read()
    t.now += 0.43
    frame = source.read()
    assert frame.number == 4 and source.dropped == 3
    assert round(float(frame.image[0].float().mean()) / 25) == 4
    t.now += 3
    assert source.read() is None
    source.close()
    source.close()


def test_a_file_that_is_no_film_is_named(tmp_path, capfd):
    pytest.importorskip("cv2")
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    with pytest.raises(ValueError, match="film.mp4 cannot be opened as a video"):
        open_source(path)


def test_an_unknown_source_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no source 'tv': expected 'scene', 'scene:7', 'webcam'"):
        open_source("tv")
    assert open_source("scene:7").scene.seed[-1] == 7


@pytest.mark.parametrize("source", ["webcam", "film"])
def test_without_opencv_one_line_says_what_to_install(monkeypatch, tmp_path, source):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "film").touch()
    with pytest.raises(ImportError, match=re.escape(f"need OpenCV: {remedy('video')}") + "$"):
        open_source("webcam" if source == "webcam" else tmp_path / "film")


# --- a camera


class FakeCapture:
    """Gives what was put into its queue; None means that the camera is gone, an exception is raised."""

    def __init__(self, opened=True):
        self.queue, self.opened, self.released, self.taken = Queue(), opened, 0, 0

    def isOpened(self):
        return self.opened

    def read(self):
        item = self.queue.get()
        if isinstance(item, Exception):
            raise item
        self.taken += 1
        return item is not None, item

    def release(self):
        self.released += 1

    def put(self, *values):
        for value in values:
            self.queue.put(np.full((4, 6, 3), value, np.uint8))


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_camera_keeps_the_newest_frame_only():
    capture = FakeCapture()
    camera = Camera(capture=capture)
    capture.put(1, 2, 3, 4)
    until(lambda: camera._count == 4)
    frame = camera.read()
    assert frame.number == 3 and frame.image.unique().tolist() == [4] and camera.dropped == 3
    capture.put(5)
    assert camera.read().image.unique().tolist() == [5] and camera.dropped == 3
    capture.queue.put(None)
    camera.close()
    assert camera.read() is None


def test_a_closed_camera_is_released_and_leaves_no_thread():
    capture = FakeCapture()
    with Camera(7, capture=capture) as camera:
        capture.put(1)
        camera.read()
        capture.put(2, 3)
    assert capture.released == 1 and not camera._thread.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "camera 7"]
    camera.close()


def test_a_camera_that_is_not_there_is_a_clear_error():
    capture = FakeCapture(opened=False)
    with pytest.raises(OSError, match="camera 2 cannot be opened: is one plugged in.*take the source 'scene'"):
        Camera(2, capture=capture)
    assert capture.released == 1


def test_a_silent_camera_is_not_waited_for_forever():
    capture = FakeCapture()
    camera = Camera(capture=capture, patience=0.05)
    with pytest.raises(OSError, match="camera 0 gave no frame for 0.05 seconds"):
        camera.read()
    capture.queue.put(None)
    camera.close()


def test_what_the_cameras_thread_raises_reaches_the_reader():
    capture = FakeCapture()
    camera = Camera(capture=capture)
    capture.queue.put(RuntimeError("unplugged"))
    with pytest.raises(RuntimeError, match="unplugged"):
        camera.read()
    camera.close()
    assert capture.released == 1


# --- the loop


def test_watching_names_each_detectors_boxes_and_seconds(tmp_path):
    source = FolderSource(colours(tmp_path), live=False)
    seen = list(watch(source, {"a": lambda image: int(image[0, 0, 0]), "b": lambda image: None}))
    assert [one.found["a"] for one in seen] == [0, 20, 40, 60, 80, 100]
    assert all(set(one.seconds) == {"a", "b"} and min(one.seconds.values()) >= 0 for one in seen)


def test_a_meter_knows_the_median_of_the_latest():
    meter = Meter()
    assert np.isnan(meter.ms)
    for _ in range(300):
        meter.add(1.0)
    for _ in range(150):
        meter.add(0.05)
    assert meter.ms == pytest.approx(50) and meter.fps == pytest.approx(20) and len(meter.seconds) == 200
