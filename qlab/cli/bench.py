"""`qlab bench`: how fast and how large a network is, in float and in int8."""

from __future__ import annotations

import argparse

from qlab import data, models
from qlab.bench import ROUNDS, compare, file_bytes, memory_bytes, peak_bytes, processor, throughput
from qlab.calibration import ptq
from qlab.cli import options
from qlab.int8 import engines
from qlab.qconfig import QConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab bench`."""
    parser.add_argument("name", type=options.network, help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument("--batch-size", type=options.count, nargs="+", default=[1, 64], help="images a call (1 64)")
    parser.add_argument("--threads", type=options.threads, default=1, help="processor threads (default: 1)")
    parser.add_argument(
        "--engine", type=_engines, nargs="+", default=[["auto"]], help="engines, or all (default: auto)"
    )
    parser.add_argument("--rounds", type=options.count, default=ROUNDS, help="turns of each (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also the memory that a call takes at its peak")
    parser.add_argument(
        "--workers", type=options.threads, nargs="+", default=[], help="processes that work at the same time (1 2)"
    )


def _engines(text: str) -> list[str]:
    """An engine, or all that work here."""
    if text == "all":
        return [name for name, engine in engines.available().items() if engine.usable]
    return [options.engine(text)]


def run(args: argparse.Namespace) -> int:
    """`qlab bench`: the sizes and the times of a trained network, in float and in int8."""
    chosen = [engines.get(name).name for names in args.engine for name in names]
    network, images = models.load(args.name, data=args.data), getattr(data, args.data)
    test = images("test")
    if max(args.batch_size) > len(test):
        raise ValueError(f"--batch-size {max(args.batch_size)}: there are {len(test)} test images of {test.source}")
    saturates = any(engines.saturates_on(name, network) for name in chosen)
    calibration = images("train").sample(1024).batches(128)
    int8 = ptq(network, calibration, QConfig.w8a8(reduce_range=saturates), engine=chosen[0])
    why = ", since products of larger ones would saturate on this processor"
    print(f"{args.name}, activations of 8 bits, weights of {'7 bits' + why if saturates else '8 bits'}")
    for name, each in (("float32", network), ("int8", int8)):
        file, memory = file_bytes(each) / 1024, memory_bytes(each) / 1024
        print(f"  {name:7}  file {file:6.0f} KiB, in memory {memory:6.0f} KiB")
    networks = {"float32": network, **{f"int8 {name}": int8.on(name) for name in chosen}}
    for batch in args.batch_size:
        x, _ = next(test.batches(batch))
        print(f"\n{compare(networks, x, threads=args.threads, rounds=args.rounds)}")
    if args.memory:
        print(f"\nmemory that batch {len(x)} takes beside the network, one thread")
        for name, each in networks.items():
            print(f"  {name:20} {peak_bytes(each, x) / 2**20:8.1f} MiB")
    for workers in args.workers:
        print(f"\n{workers} process{'es' * (workers > 1)} of one thread, batch {len(x)}, on {processor()}")
        for name, each in networks.items():
            print(f"  {name:20} {throughput(each, x, workers=workers):8.0f} images/s")
    return 0
