"""How much accuracy every method keeps at every number of bits: one table, filled row by row, resumable.

`python tools/bench_accuracy.py --network resnet20 --only w4a4`

A row is a network, the data it is tested on, a method and a number of bits. It is written to a file of JSON
lines as soon as it is known, with the seed, the seconds and the float network's accuracy on the same
images; a row that is there already is not measured again. To add a method, write a function `Task ->
network` and name it in METHODS.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import qlab
from qlab import PerTensor, QConfig
from qlab.cli import options
from qlab.graph.prepare import Prepared


@dataclass(frozen=True)
class Task:
    """What a method is given. ``calibration`` has 1,024 images of the training split, in batches of 128."""

    network: nn.Module
    bits: str
    train: qlab.data.Dataset
    seed: int
    name: str = ""  # of the network, and of its data
    data: str = ""

    @cached_property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """Images to calibrate with."""
        return list(self.train.sample(min(1024, len(self.train)), self.seed).batches(128))

    def qconfig(self, weight: str = "mse", activation: str = "mse", *, per_tensor: bool = False) -> QConfig:
        """The preset of these bits, with observers for weights and activations."""
        qconfig = QConfig.preset(self.bits, observer=activation)
        spec = replace(qconfig.weight, observer=weight)
        return replace(qconfig, weight=replace(spec, granularity=PerTensor()) if per_tensor else spec)

    def prepared(self, *observers: str, per_tensor: bool = False, equalize: bool = False, batches=None) -> Prepared:
        """Prepared and calibrated."""
        qconfig = self.qconfig(*observers, per_tensor=per_tensor)
        prepared = qlab.prepare(self.network, qconfig, self.calibration[0][0][:1], equalize=equalize)
        return qlab.calibrate(prepared, self.calibration if batches is None else batches, progress=False)


def minmax(task: Task) -> nn.Module:
    """The widest range that was seen."""
    return task.prepared("minmax", "minmax")


def mse(task: Task) -> nn.Module:
    """Ranges of weights and activations with the least squared error."""
    return task.prepared()


def mse_bias(task: Task) -> nn.Module:
    """mse, then bias correction with data."""
    return qlab.correct_bias(task.prepared(), task.calibration, progress=False)


def mse_bias_analytic(task: Task) -> nn.Module:
    """mse, then bias correction from BatchNorm's statistics."""
    return qlab.correct_bias(task.prepared())


def adaround(task: Task) -> nn.Module:
    """mse, then learned rounding."""
    return qlab.adaround(task.prepared(), task.calibration, seed=task.seed)


def data_free(task: Task) -> nn.Module:
    """mse, calibrated with images distilled from BatchNorm."""
    shape = task.calibration[0][0].shape[1:]
    return task.prepared(batches=qlab.datafree.images(task.network, seed=task.seed, shape=shape))


def data_free_bias(task: Task) -> nn.Module:
    """The same, then bias correction from BatchNorm's statistics: no data at all."""
    return qlab.correct_bias(data_free(task))


def per_tensor(task: Task, *, bias: bool = False, equalize: bool = False) -> nn.Module:
    """One scale for all weights of a layer, min-max; with or without equalization and bias correction."""
    prepared = task.prepared("minmax", "minmax", per_tensor=True, equalize=equalize)
    return qlab.correct_bias(prepared, task.calibration, progress=False) if bias else prepared


def equalized(task: Task) -> nn.Module:
    """Per channel, min-max, with equalization."""
    return task.prepared("minmax", "minmax", equalize=True)


def qat(task: Task) -> nn.Module:
    """The committed network that was trained with the rounding of these bits."""
    return qlab.qat.load(task.name, task.bits, task.data)


METHODS: dict[str, Callable[[Task], nn.Module]] = {
    "minmax": minmax,
    "mse": mse,
    "mse + bias correction": mse_bias,
    "mse + analytic bias correction": mse_bias_analytic,
    "mse + AdaRound": adaround,
    "data-free": data_free,
    "data-free + analytic bias correction": data_free_bias,
    "minmax per tensor": per_tensor,
    "minmax per tensor + bias correction": partial(per_tensor, bias=True),
    "minmax per tensor + CLE": partial(per_tensor, equalize=True),
    "minmax per tensor + CLE + bias correction": partial(per_tensor, equalize=True, bias=True),
    "minmax + CLE": equalized,
    "QAT": qat,
}
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the table; the exit code."""
    args = parse(words)
    try:
        network = qlab.models.load(args.network, data=args.data)
        dataset = getattr(qlab.data, args.data)
        train, test = dataset("train"), dataset(args.split)
    except (ValueError, OSError, ImportError) as error:
        print(f"bench_accuracy: nothing to measure: {error}", file=sys.stderr)
        return 1
    if args.images:
        test = test.sample(min(args.images, len(test)))
    about = {
        "network": args.network,
        "weights": weights_of(network),
        "data": test.source,
        "split": test.split,
    }
    about.update(images=len(test), seed=args.seed)
    chosen = [(method, bits) for bits in args.bits for method in METHODS if selected(method, bits, args.only)]
    entries = qlab.models.manifest()
    trained = {bits: entries[key] for bits in args.bits if (key := f"{args.network}-{args.data}-{bits}") in entries}
    chosen = [(method, bits) for method, bits in chosen if method != "QAT" or bits in trained]
    rows = read(args.rows)
    for method, bits in (bar := tqdm(chosen, leave=False)):
        bar.set_description(f"{args.network} {bits} {method}")
        if find(rows, {**about, "method": method, "bits": bits}) is None:
            row = measure(
                Task(network, bits, train, args.seed, args.network, args.data),
                method,
                test,
                float_accuracy(rows, about, network, test),
            )
            if method == "QAT":  # what it cost was paid when it was trained
                row |= {"seconds": "", "cpu_seconds": "", "epochs": trained[bits]["epochs"]}
            rows.append({**about, **row})
            append(args.rows, rows[-1])
    print(table([row for row in rows if row["network"] == args.network and row["split"] == args.split]))
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", type=options.network, default="resnet20", help="resnet20 (default), mobilenet_v2 or vgg"
    )
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--split",
        type=options.one_of("test", "validation"),
        default="test",
        help="test (default), or validation for trials",
    )
    parser.add_argument("--bits", type=options.preset, nargs="+", default=BITS, help=f"default: {' '.join(BITS)}")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help=f"of: {'; '.join(METHODS)}")
    parser.add_argument("--images", type=options.count, help="so many of the split's images (default: all)")
    parser.add_argument(
        "--seed", type=options.seed, default=0, help="of calibration images and of rounding (default: 0)"
    )
    parser.add_argument(
        "--rows", type=options.new_file(".jsonl"), default=Path("runs/accuracy.jsonl"), help="default: %(default)s"
    )
    args = parser.parse_args(words)
    unknown = [word for word in args.only or () if word not in METHODS and word not in args.bits]
    if unknown:
        parser.error(f"--only {unknown[0]!r}: expected one of {'; '.join([*METHODS, *args.bits])}")
    return args


def selected(method: str, bits: str, only: Sequence[str] | None) -> bool:
    """Is this row asked for? ``only`` names methods, bits, or both."""
    methods, widths = ([word for word in only or () if (word in METHODS) is named] for named in (True, False))
    return (not methods or method in methods) and (not widths or bits in widths)


def measure(task: Task, method: str, test: qlab.data.Dataset, float_top1: float) -> dict:
    """One row: the accuracy of a method, and the seconds (cpu: of all cores) to make the network."""
    torch.manual_seed(task.seed)
    start, cpu = time.perf_counter(), time.process_time()
    network = METHODS[method](task)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    top1 = qlab.evaluate(network, test, batch_size=250, progress=False)
    row = {"method": method, "bits": task.bits, "top1": round(top1, 2), "fp32": round(float_top1, 2)}
    return {
        **row,
        "drop": round(float_top1 - top1, 2),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def float_accuracy(rows: list[dict], about: dict, network: nn.Module, test: qlab.data.Dataset) -> float:
    """The float network's accuracy on the same images, from an earlier row if there is one."""
    row = find(rows, about)
    return qlab.evaluate(network, test, batch_size=250, progress=False) if row is None else row["fp32"]


def weights_of(network: nn.Module) -> str:
    """A fingerprint of the trained weights: rows of older ones must not pass for rows of these."""
    total = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
    return f"{total:.6f}"


def find(rows: list[dict], wanted: dict) -> dict | None:
    """The first row that has all these values."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def read(path: Path) -> list[dict]:
    """The rows of earlier calls; a line that a killed process left half-written is skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    names = "network bits method top1 drop fp32 images data seed seconds cpu_seconds epochs".split()
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
