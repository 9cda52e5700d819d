"""`qlab train`: one of the course's networks, in float or with its rounding."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from qlab import data, models, parallel, qat
from qlab.files import read_tensors
from qlab.train import Plan, evaluate, fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab train`."""
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


def run(args: argparse.Namespace) -> int:
    """`qlab train`: train one network, resuming what an earlier call left, and say how good it is."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    folder = args.out or Path("runs") / "-".join(filter(None, (args.name, args.data, args.qat)))
    given = {name: getattr(args, name) for name in asdict(Plan()) if getattr(args, name) is not None}
    plan = replace(qat.PLAN if args.qat else Plan(), **given)
    torch.manual_seed(plan.seed)
    network = models.load(args.name, args.data) if args.qat else models.ARCHITECTURES[args.name]()
    if args.init and not args.qat:
        network.load_state_dict(read_tensors(args.init)[0])
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
