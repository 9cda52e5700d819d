"""`qlab detect` watches a video and says what it finds and how fast."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import qlab
from qlab.cli import detect
from qlab.cli.main import main
from qlab.detect.video import FolderSource, SceneSource


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        image = qlab.detect.Scene(number)()[0]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("network, name", [("int8", "SSDLite, int8, engine reference"), ("float", "SSDLite, float")])
def test_detect_says_what_it_finds_and_how_fast(images, capsys, monkeypatch, network, name, tmp_path):
    monkeypatch.setattr(detect.time, "monotonic", iter(range(100)).__next__)
    monkeypatch.setattr(detect, "open_source", lambda name: FolderSource(name, live=False))
    engine = ["--engine", "reference"] if network == "int8" else []
    words = ["detect", "--source", str(images), "--network", network, *engine, "--out"]
    threads = torch.get_num_threads()
    assert main([*words, str(tmp_path / "out"), "--threads", str(threads)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name} on {images}")
    assert re.search(r"ms a frame, could do \d+ a second; 1 frames seen, 0 dropped  \w+ 0\.\d\d", lines[1])
    assert lines[-1].endswith("3 frames seen, 0 dropped in all")
    drawn = sorted((tmp_path / "out").glob("*.jpg"))
    assert [path.name for path in drawn] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    plain = np.asarray(Image.open(images / "0.png"), dtype=int)
    assert (abs(np.asarray(Image.open(drawn[0]), dtype=int) - plain).max(2) > 60).sum() > 100  # boxes


def test_detect_stops_after_the_frames_asked_for_and_closes_its_source(monkeypatch, capsys):
    source = SceneSource(live=False)
    closed = []
    monkeypatch.setattr(source, "close", lambda: closed.append(True))
    monkeypatch.setattr(detect, "open_source", lambda name: source)
    assert main(["detect", "--frames", "2", "--network", "float"]) == 0
    assert "2 frames seen" in capsys.readouterr().out and closed == [True]


def test_ctrl_c_ends_detect_with_its_sum(monkeypatch, capsys):
    def interrupted(source, detectors):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(detect, "watch", interrupted)
    assert main(["detect", "--network", "float"]) == 0
    assert capsys.readouterr().out.endswith("0 frames seen, 0 dropped in all\n")


def test_the_network_trained_on_coco_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(detect, "Coco", lambda threshold: ("coco", threshold))
    assert detect.make("coco", "auto", 0.4) == (("coco", 0.4), "SSDLite of torchvision, float")
