"""`qlab quantize`: a trained network becomes an int8 network."""

from __future__ import annotations

import argparse

import qlab
from qlab.bench import file_bytes
from qlab.cli import options
from qlab.int8 import engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab quantize`."""
    parser.add_argument("name", type=options.network, help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--qconfig", type=options.preset, metavar="WxAy", default="w8a8",
        help="bits of weights and activations (default: w8a8)",
    )  # fmt: skip
    parser.add_argument(
        "--observer",
        type=options.observer,
        default="minmax",
        help="who chooses the activations' ranges (default: minmax)",
    )
    parser.add_argument(
        "--engine",
        type=options.engine,
        default="auto",
        help="whose arithmetic (default: auto; `qlab doctor` lists them)",
    )
    parser.add_argument(
        "--images", type=options.count, default=1024, help="training images to calibrate on (default: 1024)"
    )
    parser.add_argument(
        "--out", type=options.new_file(".safetensors"), help="where to save the int8 network (.safetensors)"
    )


def run(args: argparse.Namespace) -> int:
    """`qlab quantize`: load, calibrate on training images, convert, measure on the test split, save."""
    network = qlab.models.load(args.name, data=args.data)
    dataset = getattr(qlab.data, args.data)
    engine = engines.get(args.engine)
    saturates = engines.saturates_on(engine.name, network)
    qconfig = qlab.QConfig.preset(args.qconfig, observer=args.observer, reduce_range=saturates)
    int8 = qlab.ptq(network, dataset("train").sample(args.images).batches(128), qconfig, engine)

    test = dataset("test")
    print(f"{args.name}, {args.qconfig}, engine {int8.engine}, {len(test)} test images of {test.source}")
    if saturates:
        print("  weights have at most 7 bits: with 8, pairs of products would saturate on this processor")
    if in_float := int8.report().in_float:
        print(f"  in float: {', '.join(in_float)}")
    for name, each in (("float", network), ("int8", int8)):
        print(f"  {name:5}  {qlab.evaluate(each, test):6.2f} %  {file_bytes(each) / 1024:8.1f} KiB")
    if args.out:
        qlab.save(int8, args.out)
        print(f"  saved  {args.out}")
    return 0
