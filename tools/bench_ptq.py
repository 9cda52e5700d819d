"""How long post-training quantization takes beside torch.ao's: prepare, calibrate on 1,024 images, convert.

`python tools/bench_ptq.py --network resnet20 --threads 2`

The same weights and the same images, in turns; a time counts only when the int8 network agrees with the
float one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from baselines import Task, fx_backends, fx_convert, silenced
from bench_int8 import reason
from torch import Tensor, nn

import qlab
from qlab import bench
from qlab.cli import options

OBSERVERS = ("minmax", "percentile", "mse", "entropy")


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    args = parse(words)
    torch.set_num_threads(args.threads)
    try:
        network = qlab.models.load(args.network, data=args.data)
        dataset = getattr(qlab.data, args.data)
        calibration, test = dataset("train").sample(args.images), dataset("test")
    except (ValueError, OSError, ImportError) as error:
        print(f"bench_ptq: nothing to measure: {error}", file=sys.stderr)
        return 1
    task = Task(network, [x for x, _ in calibration.batches(args.batch_size)], args.threads, Path())
    with silenced(), torch.no_grad():
        comparison, left_out = measure(contenders(task), task, next(test.batches(256))[0], args.rounds)
    print(f"{args.network} quantized with {args.images} images, {comparison}")
    for name, why in left_out.items():
        print(f"  without {name}: {why}")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", type=options.network, default="resnet20", help="resnet20 (default), mobilenet_v2 or vgg"
    )
    parser.add_argument("--data", type=options.dataset, default="cifar10", help="cifar10 (default) or shapes10")
    parser.add_argument("--images", type=options.count, default=1024, help="calibration images (default: 1024)")
    parser.add_argument(
        "--batch-size", type=options.count, default=128, help="images a calibration batch (default: 128)"
    )
    parser.add_argument("--threads", type=options.threads, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=options.count, default=5, help="default: 5")
    return parser.parse_args(words)


def contenders(task: Task) -> dict[str, Callable[[], nn.Module]]:
    """What makes an int8 network out of the task, by name; torch.ao as it is by default is the baseline."""
    backend = fx_backends()[0]
    calls = {
        "torch.ao FX histogram": partial(fx_convert, task, backend),
        "torch.ao FX minmax": partial(fx_convert, task, backend, histogram=False),
    }
    for observer in OBSERVERS:
        qconfig = qlab.QConfig.w8a8(observer=observer, reduce_range=task.reduce_range)
        calls[f"qlab {observer}"] = partial(quantize, task, qconfig)
    return calls


def quantize(task: Task, qconfig: qlab.QConfig) -> nn.Module:
    """qlab.ptq's three lines, without its progress bar."""
    prepared = qlab.prepare(task.network, qconfig, task.calibration[0][:1])
    qlab.calibrate(prepared, task.calibration, progress=False)
    return qlab.convert(prepared)


def measure(
    calls: Mapping[str, Callable[[], nn.Module]], task: Task, x: Tensor, rounds: int
) -> tuple[bench.Comparison, dict[str, str]]:
    """The times of those whose network gives the right outputs for ``x``, and for the others the reason."""
    reference = task.network(x)
    right, sqnr, left_out = {}, {}, {}
    for name, call in calls.items():
        try:
            sqnr[name] = bench.check_output(name, call()(x), reference)
            right[name] = call
        except Exception as error:  # a peer may fail in any way, but must not vanish
            left_out[name] = reason(error)
    seconds = bench.interleave(right, rounds=rounds, warm_up=1)
    images = sum(map(len, task.calibration))
    timings = {name: bench.Timing(seconds[name], images, sqnr[name]) for name in right}
    headline = f"{bench.setting(task.threads)}; medians of {rounds} interleaved rounds"
    return bench.Comparison(headline, timings), left_out


if __name__ == "__main__":
    sys.exit(main())
