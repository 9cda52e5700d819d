"""What each engine makes of a trained network: accuracy on the whole test split, agreement with the prepared one.

`python tools/bench_engines.py --network resnet20 mobilenet_v2 vgg`

W8A8, calibrated with 1,024 training images. Each engine is compared with the fake-quantized network that rounds where
it does. Weights have 7 bits where this processor's sums of two products would saturate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from tqdm import tqdm

import qlab
from qlab import QConfig
from qlab.cli import options
from qlab.int8 import engines


def main(words: Sequence[str] | None = None) -> int:
    """Print a line an engine; the exit code says whether all of them keep what is wanted."""
    args = parse(words)
    dataset = getattr(qlab.data, args.data)
    train, test = dataset("train").sample(1024), dataset("test")
    test = test.sample(args.images) if args.images else test
    print(f"{len(test):,} test images of {test.source}; {qlab.bench.setting(torch.get_num_threads())}")
    print(f"{'network':14} {'engine':14} {'bits':>4} {'top-1 %':>8} {'drop':>6} {'agreement %':>12}")
    short = 0
    for name in args.network:
        network = qlab.models.load(name, args.data)
        float_top1 = right(answers(network, test), test)
        print(f"{name:14} {'float':14} {32:4} {float_top1:8.2f}", flush=True)
        for line, drop, agreement in measure(network, train, test, float_top1, args.observer):
            print(f"{name:14} {line}", flush=True)
            short += drop > args.drop or agreement < args.agreement
    print(f"{short} of them lose more than {args.drop:g} points or agree in less than {args.agreement:g} %")
    return int(short > 0)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", type=options.network, nargs="+", default=list(qlab.models.ARCHITECTURES), help="default: all three"
    )
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--observer",
        type=options.observer,
        default="minmax",
        help="who chooses the activations' ranges (default: minmax)",
    )
    parser.add_argument("--images", type=options.count, help="so many test images (default: all)")
    parser.add_argument(
        "--drop", type=options.number(0.0, 100.0), default=0.2, help="points that may be lost (default: 0.2)"
    )
    parser.add_argument(
        "--agreement", type=options.number(0.0, 100.0), default=99.5, help="%% of equal answers wanted (default: 99.5)"
    )
    return parser.parse_args(words)


def measure(network: nn.Module, train, test, float_top1: float, observer: str):
    """(the line to print, points lost, percent of equal answers) of each engine that works here."""
    batches = list(train.batches(128))
    for bits in (8, 7):
        usable = [name for name, found in engines.available().items() if found.usable]
        here = [name for name in usable if engines.saturates_on(name, network) is (bits == 7)]
        if not here:
            continue
        qconfig = QConfig.preset("w8a8", observer=observer, reduce_range=bits == 7)
        prepared = qlab.calibrate(qlab.prepare(network, qconfig), batches)
        expected = cache(lambda fused, prepared=prepared: answers(prepared.fuse_additions(fused), test))
        for name in here:
            found = answers(qlab.convert(prepared, name), test)
            same = 100 * float((found == expected(engines.get(name).fuses_add)).float().mean())
            top1 = right(found, test)
            yield f"{name:14} {bits:4} {top1:8.2f} {float_top1 - top1:6.2f} {same:12.2f}", float_top1 - top1, same


def answers(network: nn.Module, test) -> Tensor:
    """The class that the network says of each image."""
    bar = tqdm(test.batches(250), total=-(-len(test) // 250), leave=False, delay=2)
    with torch.inference_mode():
        return torch.cat([network(x).argmax(1) for x, _ in bar])


def right(found: Tensor, test) -> float:
    """Percent of right answers."""
    return 100 * float((found == test.labels).float().mean())


if __name__ == "__main__":
    sys.exit(main())
