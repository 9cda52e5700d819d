"""Which observer should be the default? What each keeps of the three networks at W8A8, and what it costs.

`python tools/bench_observers.py --data cifar10 shapes10`

Calibrated with 1,024 training images, scored on the validation split, several times with other calibration images. A
loss is the float network's hits less the quantized one's on the same images: the error beside it is that of this
difference, over all images and calibrations. "vs minmax" is the same between an observer and min-max.

Why min-max is the default: MSE loses about 0.25 points less on MobileNetV2 (error 0.12 to 0.17) and, within the errors,
as much on ResNet-20 and VGG, but its counting takes 1.0 to 1.7 seconds more for 1,024 images on one core (AMD EPYC),
which doubles to triples the whole. Percentile and entropy cost as much and are never better: entropy lost 1.5 points on
MobileNetV2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

import qlab
from qlab import QConfig
from qlab.cli import options

OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")


def main(words: Sequence[str] | None = None) -> int:
    """Print a table for each network and data set; the exit code."""
    args = parse(words)
    try:
        jobs = [(name, data, qlab.models.load(name, data)) for data in args.data for name in args.network]
        splits = {data: [getattr(qlab.data, data)(split) for split in ("train", "validation")] for data in args.data}
    except (ValueError, OSError, ImportError) as error:
        print(f"bench_observers: nothing to measure: {error}", file=sys.stderr)
        return 1
    print(
        f"{'network':14}{'data':10}{'observer':16}{'loss':>7}{'+-':>6}{'vs minmax':>11}{'+-':>6}{'SQNR':>7}{'cpu s':>7}"
    )
    for name, data, network in jobs:
        for observer, row in measure(network, *splits[data], args).items():
            print(f"{name:14}{data:10}{observer:16}{row}", flush=True)
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(qlab.models.ARCHITECTURES)
    parser.add_argument("--network", type=options.network, nargs="+", default=names, help="default: all three")
    parser.add_argument("--data", type=options.dataset, nargs="+", default=["cifar10"], help="cifar10 and/or shapes10")
    parser.add_argument("--bits", type=options.preset, default="w8a8", help="default: %(default)s")
    parser.add_argument("--images", type=options.count, help="so many validation images (default: all)")
    parser.add_argument(
        "--calibrations", type=options.count, default=3, help="with so many sets (default: %(default)s)"
    )
    return parser.parse_args(words)


def measure(
    network: nn.Module, train: qlab.data.Dataset, validation: qlab.data.Dataset, args: argparse.Namespace
) -> dict[str, str]:
    """For each observer its row of the table."""
    validation = validation.sample(min(args.images or len(validation), len(validation)))
    expected = answers(network, validation)
    float_hits = hits(expected, validation)
    lost: dict[str, list[Tensor]] = {observer: [] for observer in OBSERVERS}
    noise, seconds = (dict.fromkeys(OBSERVERS, 0.0) for _ in range(2))
    for seed in tqdm(range(args.calibrations), leave=False):
        batches = [x for x, _ in train.sample(min(1024, len(train)), seed).batches(128)]
        for observer in OBSERVERS:
            start = time.process_time()
            prepared = qlab.prepare(network, QConfig.preset(args.bits, observer=observer), batches[0][:1])
            qlab.calibrate(prepared, batches, progress=False)
            seconds[observer] += (time.process_time() - start) / args.calibrations
            given = answers(prepared, validation)
            lost[observer].append(float_hits - hits(given, validation))
            noise[observer] += qlab.analysis.sqnr(expected, given) / args.calibrations
    rows = {}
    for observer in OBSERVERS:
        against = [mine - other for mine, other in zip(lost[observer], lost["minmax"])]
        points = "".join(f"{mean:{width}.2f}{error:6.2f}" for width, (mean, error) in zip(
            (7, 11), (in_points(lost[observer]), in_points(against))))  # fmt: skip
        rows[observer] = f"{points}{noise[observer]:7.1f}{seconds[observer]:7.2f}"
    return rows


@torch.no_grad()
def answers(network: nn.Module, data: qlab.data.Dataset) -> Tensor:
    return torch.cat([network(x) for x, _ in data.batches(250)])


def hits(given: Tensor, data: qlab.data.Dataset) -> Tensor:
    return (given.argmax(1) == data.labels).double()


def in_points(differences: Sequence[Tensor]) -> tuple[float, float]:
    """The mean in points of accuracy, and its standard error: images are independent, calibrations of one image not."""
    by_image = torch.stack(list(differences)).mean(0) * 100
    return float(by_image.mean()), float(by_image.std() / len(by_image) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
