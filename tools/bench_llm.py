"""What integer weights cost and save in a language model: perplexity, memory, tokens a second.

    python tools/bench_llm.py               # the trained tiny Granite, and the speed of a slice of the 2B configuration
    python tools/bench_llm.py --full        # the true 2B configuration too, with random weights; needs 14 GB of memory

Perplexity is that of held-out source of the standard library. Speed is measured with random weights: what a model says
takes no part in how long it takes. All networks of one table take turns in the same run. torchao (extra "bench")
quantizes the same bfloat16 network; it runs as it is, without torch.compile.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from qlab import bench, llm
from qlab.cli import options

NEEDED = 14e9  # bytes
FULL = """import json, sys, time
sys.path.insert(0, {tools!r})
import bench_llm
print(json.dumps(bench_llm.measure_large({kind!r}, {threads}, {small})))"""
SMALL = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """A quantized model beside the float one: perplexity, and the share of the weights' memory."""

    name: str
    perplexity: float
    change: float  # percent
    memory: float  # percent of float32


def quality(model: nn.Module, test: Tensor, calibration: Tensor) -> list[Quality]:
    """Every method on a float model, and those for outliers on the same model with outliers made."""
    made = llm.inject(model, factor=256.0)
    ways: Mapping[str, Callable[[], nn.Module]] = {
        "float32": lambda: model,
        "bfloat16": lambda: llm.as_bfloat16(model),
        "int8 weights": lambda: llm.weight_only(model),
        "int8 weights, bfloat16": lambda: llm.as_bfloat16(llm.weight_only(model)),
        "int4 weights, nearest": lambda: llm.weight_only(model, 4),
        "int4 weights, GPTQ": lambda: llm.weight_only(model, 4, windows=calibration),
        "int4 weights, GPTQ, bfloat16": lambda: llm.as_bfloat16(llm.weight_only(model, 4, windows=calibration)),
        "W8A8": lambda: llm.dynamic(model),
        "outliers made, float32": lambda: made,
        "outliers, W8A8": lambda: llm.dynamic(made),
        "outliers, LLM.int8()": lambda: llm.dynamic(made, threshold=60.0),
        "outliers, SmoothQuant, W8A8": lambda: llm.dynamic(llm.smooth(made, calibration)),
    }
    rows: list[Quality] = []
    for name, make in ways.items():
        quantized = make()
        found = llm.perplexity(quantized, test)
        first = rows[0].perplexity if rows else found
        memory = 100 * bench.memory_bytes(quantized) / bench.memory_bytes(model)
        rows.append(Quality(name, found, 100 * (found / first - 1), memory))
    return rows


def verdicts(rows: list[Quality]) -> list[str]:
    """What was wanted of the tiny model, and whether it came out so."""
    by_name = {row.name: row for row in rows}
    wanted = (
        ("int8 weights", "change", 0.5), ("int4 weights, GPTQ", "change", 3.0),
        ("int8 weights", "memory", 27.0), ("int4 weights, GPTQ", "memory", 16.0),
    )  # fmt: skip
    said = []
    for name, what, limit in wanted:
        value = getattr(by_name[name], what)
        words = "perplexity against float32" if what == "change" else "memory, share of float32"
        said.append(f"{'met   ' if value <= limit else 'MISSED'}  {name}: {words} {value:.2f} %, wanted <= {limit:g} %")
    return said


def torchao_int8(model: nn.Module) -> nn.Module:
    """torchao's int8 weight-only copy of a bfloat16 model. Raises ImportError when it is not installed."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model.model, Int8WeightOnlyConfig())
    return model


def networks(configuration) -> dict[str, nn.Module]:
    """The same random model in each form; torchao's where it is installed."""
    made = {kind: llm.random_model(configuration, kind) for kind in ("bf16", "int8", "int4", "w8a8")}
    try:
        made["torchao int8"] = torchao_int8(made["bf16"])
    except Exception as error:  # another library: whatever stops it must not stop the others
        print(f"torchao takes no part: {str(error).splitlines()[0][:120]}")
    return {"float32": copy.deepcopy(made["bf16"]).float(), **made}


def speeds(models: Mapping[str, nn.Module], prompt: Tensor, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median (prefill, decode) in tokens a second of each model; they take turns, ``rounds`` times."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for model in models.values():
        llm.speed(model, prompt, 2)  # caches are full, kernels prepared
    for _ in range(rounds):
        for name, model in models.items():
            found[name].append(llm.speed(model, prompt, count))
    return {name: tuple(statistics.median(part) for part in zip(*pairs)) for name, pairs in found.items()}


def measure_large(kind: str, threads: int, small: bool = False) -> dict[str, float]:
    """The 2B configuration in one form, in a process of its own: seconds to make it, GB, tokens a second."""
    torch.set_num_threads(threads)
    llm.random_model(llm.config(llm.GRANITE_2B, **SMALL), kind)  # all is imported, and kernels are tried
    configuration = llm.config(llm.GRANITE_2B, **(SMALL if small else {}))
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    model = llm.random_model(configuration, kind)
    seconds = time.perf_counter() - start
    gc.collect()
    prompt = torch.arange(16)
    llm.speed(model, prompt, 1)
    prefill, decode = llm.speed(model, prompt, 4)
    peak = peak_bytes()
    return {
        "made in": seconds, "weights": bench.memory_bytes(model) / 1e9, "before": before / 1e9, "peak": peak / 1e9,
        "prefill": prefill, "decode": decode,
    }  # fmt: skip


def peak_bytes() -> int:
    """The most memory that this process ever held. (getrusage would say its parent's, where that held more.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)  # Windows knows the peak, macOS the present


def large(threads: int, small: bool = False) -> dict[str, dict]:
    """The 2B configuration in every form, each in a process of its own. Nothing where memory is short."""
    free = psutil.virtual_memory().available
    if free < NEEDED and not small:
        print(f"the 2B configuration is left out: it needs {NEEDED / 1e9:.0f} GB, {free / 1e9:.1f} GB are free")
        return {}
    rows = {}
    for kind in ("bf16", "int8", "int4", "w8a8"):
        code = FULL.format(tools=str(Path(__file__).parent), kind=kind, threads=threads, small=small)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            print(f"{kind} failed: {done.stderr.strip().splitlines()[-1]}")
        else:
            rows[kind] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="measure the 2B configuration too")
    parser.add_argument("--windows", type=options.count, default=200, help="test windows of 256 bytes (200)")
    parser.add_argument(
        "--layers", type=options.number(1, 40), default=2, help="decoder layers of the slice (2; the 2B model has 40)"
    )
    parser.add_argument("--rounds", type=options.count, default=5, help="turns of each network (5)")
    parser.add_argument("--threads", type=options.threads, default=1, help="processor threads (1)")
    parser.add_argument("--small", action="store_true", help="tiny shapes everywhere: shows that it runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)

    print(f"tiny Granite, {args.windows} windows of the {llm.source()}, test split")
    rows = quality(llm.tiny(), llm.windows("test", args.windows), llm.windows("train", 32)[:, :-1])
    for row in rows:
        print(f"  {row.name:30} perplexity {row.perplexity:7.3f}  {row.change:+8.2f} %  weights {row.memory:5.1f} %")
    print("\n".join(verdicts(rows)))

    changes = {**SMALL, "num_hidden_layers": args.layers} if args.small else {"num_hidden_layers": args.layers}
    configuration = llm.config(llm.GRANITE_2B, **{"vocab_size": 4096, **changes})
    print(f"\nspeed, {args.layers} of the 2B configuration's 40 layers, random weights, {bench.setting(args.threads)}")
    found = speeds(networks(configuration), torch.arange(64), 16, args.rounds)
    for name, (prefill, decode) in found.items():
        print(f"  {name:14} prefill {prefill:8.1f} tokens/s, decode {decode:7.2f} tokens/s")
    met = found["int8"][1] >= found["bf16"][1]
    print(f"{'met   ' if met else 'MISSED'}  int8 decodes at least as fast as bfloat16")

    if args.full:
        print("\nthe 2B configuration, random weights: what it says is noise, what it takes is not")
        for kind, row in large(args.threads, args.small).items():
            print(
                f"  {kind:5} weights {row['weights']:5.2f} GB, peak {row['peak']:5.2f} GB ({row['before']:.2f} before), made in "
                f"{row['made in']:4.0f} s, prefill {row['prefill']:6.2f}, decode {row['decode']:5.2f} tokens/s"
            )


if __name__ == "__main__":
    main()
