"""How good and how fast lesson 11's detector is in float and in integers: mAP, frames a second, and frames dropped.

`python tools/bench_detect.py --threads 2`

mAP on held-out test scenes, at an overlap of 0.5 and averaged over 0.5 to 0.95 as for COCO. PTQ is calibrated on
training scenes. A frame's time is that from the image to its boxes; the networks take turns, and are captured where
their engine allows it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

import qlab
from qlab import PerTensor, QConfig, bench, detect
from qlab.bench import captured, file_bytes
from qlab.cli import options
from qlab.graph.prepare import Prepared
from qlab.int8 import engines

COCO = [0.5 + 0.05 * step for step in range(10)]
CALIBRATION = 256  # training scenes


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    args = parse(words)
    torch.set_num_threads(args.threads)
    prepared = networks()
    float_network = detect.load()
    scenes = detect.scenes("test", args.scenes)
    print(f"{len(scenes)} test scenes\n{'':24}  mAP@0.5  mAP@0.5:0.95       KiB")
    rows = {"float": float_network, **{name: qlab.convert(net, args.engine) for name, net in prepared.items()}}
    for name, net in rows.items():
        print(accuracy(name, net, scenes), flush=True)
    one = torch.zeros(1, 3, detect.SIDE, detect.SIDE)
    int8 = {name: captured(qlab.convert(prepared["int8 QAT"], name), one) for name in usable()}
    print(speed({"float": float_network, **int8}, scenes.images[0], args.rounds))
    chosen, why = engines.choose()
    print(f'engine "auto" is {chosen} here: {why}')
    print(f"a live scene, 30 frames a second: {live(detect.Detector(captured(rows['int8 QAT'], one)), args.seconds)}")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=options.count, default=500, help="test scenes (default: 500)")
    parser.add_argument(
        "--engine", type=options.engine, default="auto", help="whose arithmetic mAP is measured on (default: auto)"
    )
    parser.add_argument("--threads", type=options.threads, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=options.count, default=15, help="rounds of timing (default: 15)")
    parser.add_argument("--seconds", type=options.number(0.1, 3600.0), default=5.0, help="of a live scene (default: 5)")
    return parser.parse_args(words)


def networks() -> dict[str, Prepared]:
    """The detector quantized by PTQ with one scale a tensor and one a channel, and the one that QAT made."""
    batches = list(detect.scenes("train", CALIBRATION).batches(32))
    example = torch.zeros(1, 3, detect.SIDE, detect.SIDE)
    found = {name: qlab.calibrate(qlab.prepare(detect.load(), c, example), batches) for name, c in configs().items()}
    return {**found, "int8 QAT": detect.load_qat()}


def configs() -> dict[str, QConfig]:
    """The two configurations of PTQ, by name. Weights have 7 bits, so that no engine saturates."""
    channel = QConfig.w8a8(observer="mse", reduce_range=True)
    tensor = replace(channel, weight=replace(channel.weight, granularity=PerTensor()))
    return {"int8 PTQ, per tensor": tensor, "int8 PTQ, per channel": channel}


def accuracy(name: str, network: nn.Module, scenes: detect.Scenes) -> str:
    """One row: both kinds of mAP, and the size of the file."""
    truths = [scenes.boxes(number) for number in range(len(scenes))]
    found = detect.find(network, scenes)
    scores = [detect.mean_average_precision(found, truths, thresholds) for thresholds in ([0.5], COCO)]
    return f"{name:24} {scores[0]:6.2f} % {scores[1]:11.2f} % {file_bytes(network) / 1024:9.0f}"


def usable() -> list[str]:
    """The fast engines of this machine."""
    return [name for name, engine in engines.available().items() if engine.usable and name != "reference"]


def speed(networks: dict[str, nn.Module], image: Tensor, rounds: int) -> str:
    """A table: milliseconds and frames a second of each network, and of the whole way from the image to its boxes."""
    detectors = {name: detect.Detector(net) for name, net in networks.items()}
    x = detect.normalize(image[None])
    with torch.inference_mode():
        alone = bench.interleave({name: (lambda n=n: n(x)) for name, n in networks.items()}, rounds=rounds)
        whole = bench.interleave({name: (lambda d=d: d(image)) for name, d in detectors.items()}, rounds=rounds)
    lines = [f"\n{torch.get_num_threads()} threads, {bench.processor()}; medians of {rounds} rounds in turns"]
    lines.append(f"{'':14} network ms  speed-up  frame to boxes ms  frames/s  speed-up")
    middle = {name: [1000 * sorted(times[name])[rounds // 2] for times in (alone, whole)] for name in networks}
    for name, (network, frame) in middle.items():
        gains = [base / own for base, own in zip(middle["float"], (network, frame))]
        lines.append(f"{name:14} {network:10.2f} {gains[0]:9.2f} {frame:18.2f} {1000 / frame:9.0f} {gains[1]:9.2f}")
    return "\n".join(lines)


def live(detector: detect.Detector, seconds: float) -> str:
    """A made scene of 30 frames a second, watched for some seconds: how many frames were seen, and how many dropped."""
    with detect.open_source("scene:4") as source:
        meter = detect.Meter()
        for seen in islice(detect.watch(source, {"it": detector}), int(seconds * source.fps)):
            meter.add(seen.seconds["it"])
            if seen.frame.number >= seconds * source.fps:
                break
        return f"{len(meter.seconds)} frames seen, {source.dropped} dropped, {meter.ms:.1f} ms a frame"


if __name__ == "__main__":
    sys.exit(main())
