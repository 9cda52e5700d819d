"""VGG-16 at its true size, float32 against int8: files, download, loading, memory, latency, memory traffic.

`python tools/bench_deploy.py --threads 1` (needs 4 GB of memory, 1 GB of disk, and two minutes)

138 million random weights: the answers mean nothing, the times are those of the real network. Loading and memory are
measured in a process of their own, so that nothing of the making is left in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, QConfig, QParams, bench
from qlab.cli import options
from qlab.files import read_tensors, write_tensors
from qlab.int8 import engines

NEEDED = 4e9  # bytes: float network, its prepared copy, and what quantizing the largest layer takes
LINES = (10, 100)  # megabits a second
LOAD = """
import json, sys, time, psutil, torch
torch.set_num_threads(int(sys.argv[3]))
sys.path.insert(0, {folder!r})
import qlab, bench_deploy
before, start = psutil.Process().memory_info().rss, time.perf_counter()
network = bench_deploy.read(sys.argv[1], sys.argv[2])
ready = time.perf_counter() - start
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
print(json.dumps([ready, time.perf_counter() - start, psutil.Process().memory_info().rss - before]))
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=options.threads, default=1, help="processor threads (default: 1)")
    parser.add_argument("--rounds", type=options.count, default=7, help="turns of each (default: %(default)s)")
    args = parser.parse_args(words)
    free = psutil.virtual_memory().available
    if free < NEEDED:
        print(f"bench_deploy: needs {NEEDED / 1e9:g} GB of memory, {free / 1e9:.1f} are free", file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"VGG-16 with random weights; {bench.setting(args.threads)}")
    with tempfile.TemporaryDirectory(prefix="qlab-deploy-") as folder:
        network, int8 = make()
        files = write(network, int8, Path(folder))
        for kind, path in files.items():
            print(on_the_way(kind, path.stat().st_size))
        for kind in ("float32", "int8"):
            ready, first, memory = load(kind, files[kind], args.threads)
            print(
                f"{kind:8} loaded in {ready:.2f} s, first answer after {first:.2f} s, {memory / 1e6:.0f} MB of memory"
            )
    x = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    networks = {"float32": network, f"int8 {int8.engine}": int8, **others(int8)}
    print(f"\n{bench.compare(networks, x, threads=args.threads, rounds=args.rounds, sqnr=10)}")
    print(f"\n{first_linear(args.rounds)}")
    return 0


def make() -> tuple[nn.Module, qlab.int8.modules.Int8Network]:
    """VGG-16 in float and in int8, calibrated on noise; 7-bit weights where 8 would saturate."""
    from torchvision.models import vgg16

    network = vgg16().eval().to(memory_format=torch.channels_last)
    saturates = engines.saturates_on(engines.choose()[0], network)
    return network, qlab.ptq(network, [torch.randn(2, 3, 224, 224)], QConfig.w8a8(reduce_range=saturates))


def others(int8) -> dict[str, nn.Module]:
    """The same integers on the engine that is good at one row by a large matrix, where there is one."""
    name = "fbgemm"
    return {f"int8 {name}": int8.on(name)} if engines.availability(name).usable and int8.engine != name else {}


def write(network: nn.Module, int8, folder: Path) -> dict[str, Path]:
    """The files of both networks, by what they hold."""
    files = {"float32": write_tensors(folder / "float32.safetensors", network.state_dict())}
    files["int8"] = qlab.save(int8, folder / "int8.safetensors")
    files["ONNX"] = qlab.save_onnx(int8, folder / "int8.onnx")
    return files


def read(kind: str, path: str) -> nn.Module:
    """The network in a file that :func:`write` wrote."""
    if kind == "int8":
        return qlab.load(path)
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16()
    network.load_state_dict(read_tensors(path)[0], assign=True)
    return network.eval()


def on_the_way(kind: str, size: int) -> str:
    """A file's size, and how long it takes to fetch."""
    waits = ", ".join(f"{8 * size / rate / 1e6:6.1f} s at {rate} Mbit/s" for rate in LINES)
    return f"{kind:8} {size / 1e6:6.1f} MB: {waits}"


def load(kind: str, path: Path, threads: int) -> tuple[float, float, float]:
    """(seconds until it is loaded, until the first answer, bytes more in memory), in a process of its own."""
    code = LOAD.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, kind, str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def first_linear(rounds: int, inputs: int = 25_088, outputs: int = 4_096) -> str:
    """VGG-16's largest layer alone on one image: times and bytes a second, in float32 and in int8."""
    codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    grids = QParams(
        torch.full((outputs,), 1e-4), torch.zeros(outputs, dtype=torch.int32), signed=True, granularity=PerChannel(0)
    )
    x_grid, y_grid = qlab.choose_qparams(0.0, 1.0, 7), qlab.choose_qparams(-4.0, 4.0, 8)
    row, weight = torch.rand(1, inputs), codes.float().mul_(1e-4)
    calls = {"float32": lambda: F.linear(row, weight)}
    for name in ("fbgemm", "onednn", "qnnpack"):
        if engines.availability(name).usable:
            calls[f"int8 {name}"] = _kernel(engines.get(name), codes, grids, x_grid, y_grid, row)
    with torch.inference_mode():
        seconds = {name: sorted(times)[rounds // 2] for name, times in bench.interleave(calls, rounds=rounds).items()}
    lines = [f"one linear layer, {inputs:,} to {outputs:,}, one image"]
    for name, time in seconds.items():
        size = codes.numel() * (4 if name == "float32" else 1)
        times = seconds["float32"] / time
        lines.append(
            f"  {name:13} {1000 * time:6.1f} ms, {size / time / 1e9:5.1f} GB/s from memory, {times:.2f} times as fast"
        )
    return "\n".join(lines)


def _kernel(engine, codes: Tensor, grids: QParams, x_grid: QParams, y_grid: QParams, row: Tensor):
    kernel, q = engine.linear(codes, None, grids, x_grid, y_grid), engine.quantize(x_grid)(row)

    def call() -> Tensor:
        with engine.running():
            return kernel(q)

    return call


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*which can overflow in")  # said by others() where it is wanted
        sys.exit(main())
