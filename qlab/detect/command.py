"""`qlab detect`: boxes in a video, live, in a terminal. The same command on a laptop and on a Raspberry Pi."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from qlab.detect import network as networks
from qlab.detect.coco import Coco
from qlab.detect.network import Detector
from qlab.detect.scene import SIDE, Boxes
from qlab.detect.video import Meter, open_source, watch
from qlab.graph.convert import convert
from qlab.int8.modules import Int8Network

INK = "#C85200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab detect`."""
    parser.add_argument(
        "--source",
        default="scene",
        help="scene (default), scene:SEED, webcam, webcam:NUMBER, a video file, or a folder",
    )
    parser.add_argument(
        "--network", default="int8", choices=["int8", "float", "coco"],
        help="the course's detector of shapes in int8 (default) or in float, or torchvision's for 80 everyday things",
    )  # fmt: skip
    parser.add_argument("--engine", default="auto", help="whose int8 arithmetic (default: auto)")
    parser.add_argument("--threshold", type=float, default=0.4, help="least score of a box (default: 0.4)")
    parser.add_argument("--frames", type=int, help="stop after so many frames (default: until Ctrl-C)")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, help="a folder for the frames, with their boxes drawn in (.jpg)")


def run(args: argparse.Namespace) -> int:
    """`qlab detect`: a line a second, and a last one with the whole; Ctrl-C ends it."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: expected 0 to 1")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with open_source(args.source) as source:
        detector, name = make(args.network, args.engine, args.threshold)
        print(f"{name} on {args.source}; Ctrl-C ends it", flush=True)
        meter, count, said = Meter(), 0, time.monotonic()
        try:
            for seen in islice(watch(source, {"it": detector}), args.frames):
                meter.add(seen.seconds["it"])
                count += 1
                if args.out:
                    save(args.out, seen.frame.number, draw(seen.frame.image, seen.found["it"], detector.classes))
                if time.monotonic() - said >= 1:
                    said = time.monotonic()
                    print(
                        f"{line(meter, count, source.dropped)}  {words(seen.found['it'], detector.classes)}", flush=True
                    )
        except KeyboardInterrupt:
            print()
        print(f"{line(meter, count, source.dropped)} in all")
    return 0


def make(network: str, engine: str, threshold: float) -> tuple[Detector | Coco, str]:
    """The detector that --network names, and what to call it."""
    if network == "coco":
        return Coco(threshold), "SSDLite of torchvision, float"
    if network == "float":
        return Detector(networks.load(), threshold), "SSDLite, float"
    int8 = captured(convert(networks.load_qat(), engine))
    return Detector(int8, threshold), f"SSDLite, int8, engine {int8.engine}"


def captured(int8: Int8Network) -> Int8Network:
    """The same network without Python between its kernels, where its engine can do that."""
    try:
        return int8.capture(torch.zeros(1, 3, SIDE, SIDE))
    except ValueError:
        return int8


def line(meter: Meter, count: int, dropped: int) -> str:
    """How fast it goes, in words."""
    speed = f"{meter.ms:.1f} ms a frame, could do {meter.fps:.0f} a second; " if count else ""
    return f"{speed}{count} frames seen, {dropped} dropped"


def words(found: Boxes, classes: Sequence[str]) -> str:
    """The boxes in words, the surest first.

    >>> words(Boxes(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0.9])), ("ring", "star"))
    'star 0.90'
    """
    return ", ".join(f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores.tolist()))


def draw(image: Tensor, found: Boxes, classes: Sequence[str]) -> Image.Image:
    """The frame with its boxes, for a look at it."""
    drawn = Image.fromarray(image.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(drawn)
    for (left, top, right, bottom), label in zip(found.xyxy.tolist(), found.labels):
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=INK, width=2)
        pen.text((left + 3, top + 2), classes[label], fill="white", stroke_width=1, stroke_fill="black")
    return drawn


def save(folder: Path, number: int, drawn: Image.Image) -> None:
    """Write one frame."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn.save(folder / f"{number:06}.jpg", quality=90)
