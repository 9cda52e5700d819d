"""The command line: `qlab doctor | train | quantize | bench | detect`, also as `python -m qlab ...`.

A command's code is imported only when that command is called: what one of them lacks must not keep the others
from answering.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "doctor": "say what this machine can do, and what to do about each gap",
    "train": "train one of the course's networks",
    "quantize": "turn a trained network into an int8 network, and say what it cost",
    "bench": "measure how fast and how large a network is, in float and in int8",
    "detect": "find shapes in a video, live: a made scene, a file, a folder of images, or a webcam",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is a line on stderr, not a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        args = build_parser(chosen).parse_args(words)
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"qlab {chosen}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"qlab {chosen}: {error}. `qlab doctor` says what is missing and how to get it.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nqlab {chosen}: stopped", file=sys.stderr)
        return 130


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of every command; only the chosen one's code is imported and adds its arguments."""
    parser = argparse.ArgumentParser(
        prog="qlab", description="Neural-network quantization, from one number to an int8 network."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, does in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        if name == chosen:
            add_arguments, run = implementation(name)
            add_arguments(command)
            command.set_defaults(run=run)
    return parser


def implementation(
    name: str,
) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
    """What adds a command's arguments, and what runs it."""
    if name in OWN:
        return OWN[name]
    module = import_module(f"qlab.{name}")
    return module.add_arguments, module.run


def quantize_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab quantize`."""
    parser.add_argument("name", help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", default="cifar10", choices=["cifar10", "shapes10"], help="default: cifar10")
    parser.add_argument("--qconfig", default="w8a8", help="bits of weights and activations (default: w8a8)")
    parser.add_argument("--observer", default="minmax", help="who chooses the activations' ranges (default: minmax)")
    parser.add_argument("--engine", default="auto", help="whose arithmetic (default: auto; `qlab doctor` lists them)")
    parser.add_argument("--images", type=int, default=1024, help="training images to calibrate on (default: 1024)")
    parser.add_argument("--out", type=Path, help="where to save the int8 network (.safetensors)")


def quantize(args: argparse.Namespace) -> int:
    """`qlab quantize`: load, calibrate on training images, convert, measure on the test split, save."""
    import qlab
    from qlab.bench import file_bytes
    from qlab.int8 import engines

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
    for name, each in (("float", network), ("int8", int8)):
        print(f"  {name:5}  {qlab.evaluate(each, test):6.2f} %  {file_bytes(each) / 1024:8.1f} KiB")
    if args.out:
        qlab.save(int8, args.out)
        print(f"  saved  {args.out}")
    return 0


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab train`."""
    from qlab.train import Plan

    parser.add_argument("name", help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument("--qat", metavar="WxAy", help="train the float network on with its rounding, as in w4a4")
    parser.add_argument(
        "--init", type=Path, help="weights to start from (--qat: prepared.safetensors of the same bits, or WxA32)"
    )
    parser.add_argument("--out", type=Path, help="where the run is kept (default: runs/<name>-<data>[-<WxAy>])")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), help=f"default in float: {default}")


def train(args: argparse.Namespace) -> int:
    """`qlab train`: train one network, resuming what an earlier call left, and say how good it is."""
    import torch

    from qlab import data, models, parallel, qat
    from qlab.files import check_tensors, read_tensors
    from qlab.train import Plan, evaluate, fit

    torch.set_num_threads(args.threads or torch.get_num_threads())
    folder = args.out or Path("runs") / "-".join(filter(None, (args.name, args.data, args.qat)))
    given = {name: getattr(args, name) for name in asdict(Plan()) if getattr(args, name) is not None}
    plan = replace(qat.PLAN if args.qat else Plan(), **given)
    torch.manual_seed(plan.seed)
    network = models.load(args.name, args.data) if args.qat else models.ARCHITECTURES[args.name]()
    if args.init and not args.qat:
        initial = read_tensors(args.init)[0]
        check_tensors(initial, network.state_dict(), str(args.init))
        network.load_state_dict(initial)
    with parallel.processes(args.device or ("cuda" if torch.cuda.is_available() else "cpu")) as device:
        say = print if parallel.place()[0] == 0 else lambda *words, **options: None
        datasets = {split: getattr(data, args.data)(split) for split in ("train", "validation", "test")}
        source = datasets["train"].source
        say(f"{args.name} on {source}: {len(datasets['train'])} images, {plan.epochs} epochs", flush=True)
        about = {"command": " ".join(["qlab", *sys.argv[1:]]), "source": source}
        options = {"folder": folder, "device": device, "about": about}
        if args.qat:
            parts = datasets["train"], datasets["validation"], plan
            network, history = qat.train(network, args.qat, *parts, initial=args.init, **options)
        else:
            history = fit(network, datasets["train"], datasets["validation"], plan, **options)
            network.load_state_dict(read_tensors(folder / "best.safetensors", device)[0])
        for row in history:
            say(json.dumps(row))
        say(f"test accuracy {evaluate(network, datasets['test']):.2f} % ({datasets['test'].source})")
    return 0


# The commands without a module of their own: they are the course's public functions, one after the other.
OWN = {"quantize": (quantize_arguments, quantize), "train": (train_arguments, train)}

if __name__ == "__main__":
    sys.exit(main())
