"""`qlab detect`: boxes in a video, live, in a terminal. The same command on a laptop and on a Raspberry Pi."""

from __future__ import annotations

import argparse
import time
from itertools import islice

import torch

from qlab import detect
from qlab.bench import captured
from qlab.cli import options
from qlab.detect.coco import Coco
from qlab.detect.scene import SIDE
from qlab.detect.show import draw, save, words
from qlab.detect.video import Meter, find_source, open_source, watch
from qlab.graph.convert import convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab detect`."""
    parser.add_argument(
        "--source", type=_source, default="scene",
        help="scene (default), scene:SEED, webcam, webcam:NUMBER, a video file, or a folder",
    )  # fmt: skip
    parser.add_argument(
        "--network", type=options.one_of("int8", "float", "coco"), default="int8",
        help="int8 (default) or float: the course's detector of shapes; coco: torchvision's for 80 everyday things",
    )  # fmt: skip
    parser.add_argument("--engine", type=options.engine, default="auto", help="whose int8 arithmetic (default: auto)")
    parser.add_argument("--threshold", type=options.share, default=0.4, help="least score of a box (default: 0.4)")
    parser.add_argument("--frames", type=options.count, help="stop after so many frames (default: until Ctrl-C)")
    parser.add_argument("--threads", type=options.threads, help="processor threads (default: torch's choice)")
    parser.add_argument(
        "--out", type=options.new_folder, help="a folder for the frames, with their boxes drawn in (.jpg)"
    )


def _source(text: str) -> str:
    """What names a source of video; it is opened later."""
    try:
        find_source(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def run(args: argparse.Namespace) -> int:
    """`qlab detect`: a line a second, and a last one with the whole; Ctrl-C ends it."""
    if args.network != "int8" and args.engine != "auto":
        raise argparse.ArgumentTypeError(f"--engine {args.engine} is for --network int8, not for {args.network}")
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


def make(network: str, engine: str, threshold: float) -> tuple[detect.Detector | Coco, str]:
    """The detector that --network names, and what to call it."""
    if network == "coco":
        return Coco(threshold), "SSDLite of torchvision, float"
    if network == "float":
        return detect.Detector(detect.load(), threshold), "SSDLite, float"
    int8 = captured(convert(detect.load_qat(), engine), torch.zeros(1, 3, SIDE, SIDE))
    return detect.Detector(int8, threshold), f"SSDLite, int8, engine {int8.engine}"


def line(meter: Meter, count: int, dropped: int) -> str:
    """How fast it goes, in words."""
    speed = f"{meter.ms:.1f} ms a frame, could do {meter.fps:.0f} a second; " if count else ""
    return f"{speed}{count} frames seen, {dropped} dropped"
