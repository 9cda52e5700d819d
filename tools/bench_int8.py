"""int8 speed beside other libraries': the same weights, the same images, one run, in turns.

`python tools/bench_int8.py --network resnet20 --batch-size 1 8 64 256 --threads 1 --json speed.json --plot
speed.png`

No time counts before the output agrees with the float network's (qlab.bench.check_output); what is not
installed, fails or gives wrong outputs is named under the table with the reason.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from baselines import Bind, Task, all_baselines, silenced
from torch import Tensor
from tqdm import tqdm

import qlab
from qlab import bench
from qlab.cli import options
from qlab.int8 import engines


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; the exit code."""
    args = parse(words)
    torch.set_num_threads(args.threads)
    try:
        network = qlab.models.load(args.network, data=args.data)
        dataset = getattr(qlab.data, args.data)
        calibration, test = dataset("train").sample(1024), dataset("test")
    except (ValueError, OSError, ImportError) as error:
        print(f"bench_int8: nothing to measure: {error}", file=sys.stderr)
        return 1
    with silenced(), tempfile.TemporaryDirectory(prefix="qlab-bench-") as folder:
        task = Task(network, [x for x, _ in calibration.batches(128)], args.threads, Path(folder))
        ready, left_out = build(chosen(args.only), task)
        runs = []
        for size in args.batch_size:
            comparison, missing = measure(ready, next(test.batches(size))[0], args.threads, args.rounds)
            print(f"\n{args.network}, {comparison}", flush=True)
            for name, reason in {**left_out, **missing}.items():
                print(f"  without {name}: {reason}", flush=True)
            runs.append(as_dict(size, comparison, {**left_out, **missing}))
    about = {"network": args.network, "data": test.source, "threads": args.threads, "runs": runs}
    if args.json:
        args.json.write_text(json.dumps(about, indent=2) + "\n")
    if args.plot:
        plot(about).savefig(args.plot, dpi=120, metadata={"Title": title(about)})
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", type=options.network, default="resnet20", help="resnet20 (default), mobilenet_v2 or vgg"
    )
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument(
        "--batch-size", type=options.count, nargs="+", default=[1, 8, 64, 256], help="default: 1 8 64 256"
    )
    parser.add_argument("--threads", type=options.threads, default=1, help="processor threads (default: 1)")
    parser.add_argument("--rounds", type=options.count, default=bench.ROUNDS, help=f"default: {bench.ROUNDS}")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only those with such a word in the name")
    parser.add_argument("--json", type=options.new_file(".json"), help="write every measurement to this file")
    parser.add_argument(
        "--plot", type=options.new_file(".png", ".svg", ".pdf"), help="write a figure to this file (.png, .svg, .pdf)"
    )
    return parser.parse_args(words)


def chosen(words: Sequence[str] | None) -> dict[str, Callable[[Task], Bind]]:
    """Every peer and every engine of qlab, or those whose name has one of the words in it; the baseline
    always.
    """
    own = {f"int8 qlab {name}": partial(qlab_engine, engine=name) for name in engines.NAMES}
    own |= {f"int8 qlab {name} captured": partial(captured, engine=name) for name in engines.QUANTIZED}
    own |= {"int8 qlab onnxruntime": on_onnxruntime}
    everything = {**all_baselines(), **own}
    baseline = next(iter(everything))
    return {
        name: build for name, build in everything.items()
        if words is None or name == baseline or any(word.lower() in name.lower() for word in words)
    }  # fmt: skip


def qlab_engine(task: Task, engine: str) -> Bind:
    """qlab's integer network as it is by default."""
    network = qlab.ptq(task.network, task.calibration, engine=engine)
    return lambda x: partial(network, x)


def captured(task: Task, engine: str) -> Bind:
    """The same, with no Python between its kernels."""
    network = qlab.ptq(task.network, task.calibration, engine=engine)
    return lambda x: partial(network.capture(x), x)


def on_onnxruntime(task: Task) -> Bind:
    """The same integers on onnxruntime's kernels."""
    qconfig = qlab.QConfig.w8a8(reduce_range=task.reduce_range)
    network = qlab.OnnxNetwork(qlab.ptq(task.network, task.calibration, qconfig, engine="reference"))
    return lambda x: partial(network, x)


def build(makers: Mapping[str, Callable[[Task], Bind]], task: Task) -> tuple[dict[str, Bind], dict[str, str]]:
    """What could be built, and for the rest the reason. The first, the baseline, has to work."""
    ready, left_out = {}, {}
    for name, make in (bar := tqdm(makers.items(), leave=False, delay=2)):
        bar.set_description(name)
        try:
            with torch.no_grad():
                ready[name] = make(task)
        except Exception as error:  # a peer may fail in any way, but must not vanish
            left_out[name] = reason(error)
    return ready, left_out


def measure(ready: Mapping[str, Bind], x: Tensor, threads: int, rounds: int) -> tuple[bench.Comparison, dict[str, str]]:
    """The times on one batch of those whose output is right, and for the others the reason."""
    calls: dict[str, Callable[[], Tensor]] = {}
    left_out: dict[str, str] = {}
    reference = None
    with torch.inference_mode():
        for name, bind in (bar := tqdm(ready.items(), leave=False, delay=2)):
            bar.set_description(f"batch {len(x)}: {name}")
            try:
                call = bind(x)
                reference = call().clone() if reference is None else reference
                bench.check_output(name, call(), reference)
                calls[name] = call
            except Exception as error:  # as above
                left_out[name] = reason(error)
    return bench.compare_calls(calls, len(x), threads=threads, rounds=rounds), left_out


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, ModuleNotFoundError):
        text += " (`make bench` installs it)"
    return f"{type(error).__name__}: {text[:300]}"


def as_dict(batch: int, comparison: bench.Comparison, left_out: Mapping[str, str]) -> dict:
    """One batch size's figures, as JSON can hold them."""
    rows = [
        {
            "name": name,
            "ms": timing.ms,
            "spread": timing.spread,
            "images_per_second": timing.images_per_second,
            "speedup": comparison.speedup(name),
            "sqnr": timing.sqnr if math.isfinite(timing.sqnr) else None,  # None: the same output, bit for bit
            "seconds": timing.seconds,
        }
        for name, timing in comparison.items()
    ]
    return {"batch": batch, "headline": comparison.headline, "rows": rows, "left_out": dict(left_out)}


def title(about: Mapping) -> str:
    """The finding: the quickest at the largest batch."""
    run = max(about["runs"], key=lambda run: run["batch"])
    best = max(run["rows"], key=lambda row: row["speedup"])
    return (
        f"{about['network']}, batch {run['batch']}: quickest is {best['name']}, "
        f"{best['speedup']:.1f} times as fast as eager float32"
    )


def plot(about: Mapping):
    """A panel a batch size, a bar a network: images a second, qlab's bars dark."""
    from matplotlib.figure import Figure

    runs = about["runs"]
    names = list(dict.fromkeys(row["name"] for run in runs for row in run["rows"]))
    figure = Figure(figsize=(3 + 2.6 * len(runs), 1.2 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, run in zip(panels, runs):
        for row in run["rows"]:
            color = "#1b4f72" if "qlab" in row["name"] else "#aab7b8"
            bars = panel.barh(names.index(row["name"]), row["images_per_second"], color=color)
            panel.bar_label(bars, [f"{row['speedup']:.1f}x"], padding=2, fontsize=7)
        panel.set(title=f"batch {run['batch']}", xlabel="images / second")
        panel.margins(x=0.2)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle(f"{title(about)}\n{bench.setting(about['threads'])}; {about['data']}", fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(main())
