"""`qlab train`: one of the course's networks, in float or with its rounding."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from qlab import data, models, parallel, qat
from qlab.cli import options
from qlab.files import load_weights, read_tensors, sha256
from qlab.train import LIMITS, PRECISIONS, Plan, evaluate, fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab train`."""
    parser.add_argument("name", type=options.network, help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--qat", type=options.preset, metavar="WxAy", help="train the float network on with its rounding, as in w4a4"
    )
    parser.add_argument(
        "--init", type=options.weights,
        help="weights to start from (--qat: prepared.safetensors of the same bits, or WxA32)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=options.new_folder, help="where the run is kept (default: runs/<name>-<data>[-<WxAy>])"
    )
    parser.add_argument("--device", type=options.device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=options.threads, help="processor threads (default: torch's choice)")
    for name, default in asdict(Plan()).items():
        kind = options.number(*LIMITS[name]) if name in LIMITS else options.one_of(*PRECISIONS)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"default in float: {default}")


def run(args: argparse.Namespace) -> int:
    """`qlab train`: train one network, resuming what an earlier call left, and say how good it is."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    default = Path("runs") / "-".join(filter(None, (args.name, args.data, args.qat)))
    folder = args.out or options.new_folder(str(default))
    given = {name: getattr(args, name) for name in asdict(Plan()) if getattr(args, name) is not None}
    plan = replace(qat.PLAN if args.qat else Plan(), **given)
    torch.manual_seed(plan.seed)
    network = models.load(args.name, args.data) if args.qat else models.build(args.name)
    if args.init and not args.qat:
        load_weights(network, read_tensors(args.init)[0], args.init)
    with parallel.processes(args.device or ("cuda" if torch.cuda.is_available() else "cpu")) as device:
        say = print if parallel.place()[0] == 0 else lambda *words, **options: None
        datasets = {split: getattr(data, args.data)(split) for split in ("train", "validation", "test")}
        images = datasets["train"]
        say(f"{args.name} on {images.source}: {len(images)} images, {plan.epochs} epochs", flush=True)
        history, network = _train(args, network, datasets, plan, folder, device)
        for row in history:
            say(json.dumps(row))
        say(f"test accuracy {evaluate(network, datasets['test']):.2f} % ({datasets['test'].source})")
    return 0


def _train(
    args: argparse.Namespace, network: nn.Module, datasets: dict, plan: Plan, folder: Path, device: str
) -> tuple[list[dict], nn.Module]:
    """The history, and the network of the best epoch.

    What the run is goes along: another one, which has other weights or other bits, does not go on in its folder.
    """
    command = " ".join(["qlab", *sys.argv[1:]])
    initial = args.init and sha256(args.init)
    about = {"command": command, "network": args.name, "qconfig": args.qat, "init": initial}
    parts, kept = (datasets["train"], datasets["validation"], plan), dict(folder=folder, device=device, about=about)
    if args.qat:
        network, history = qat.train(network, args.qat, *parts, initial=args.init, **kept)
        return history, network
    history, best = fit(network, *parts, **kept), folder / "best.safetensors"
    load_weights(network, read_tensors(best, device)[0], best)
    return history, network
