"""How fast and how large a network is, measured so that the figure can be trusted.

The networks are timed in turns, so that whatever slows the machine down meanwhile slows all of them, and in an
order that is drawn anew in each round, so that none always follows the same other one; a time is the median of
many rounds and comes with its spread; and no time counts before the output was checked. Source of these habits:
Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems" (SC 2015), rules 4 to 9.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import queue
import random
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import torch
from torch import Tensor, multiprocessing, nn
from tqdm.auto import tqdm

from qlab.affine import QParams
from qlab.calibration import ptq
from qlab.export import OnnxNetwork, load, save
from qlab.files import write_tensors
from qlab.int8 import engines
from qlab.int8.modules import Int8Network
from qlab.qconfig import QConfig

ROUNDS = 15
LONG = 0.2  # seconds: to begin such a call with full caches or empty ones makes no difference
SAMPLE = 0.01  # seconds: a quicker call is repeated until it takes this long, as it would be at work
LEAST_SQNR = 15.0  # decibels: 8-bit networks have 20 to 40, and at 10 the answers already differ
RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 into it starts VmHWM anew (proc_pid_clear_refs(5))
QUIET = 0.1  # a spread above this says that something else was running


@dataclass(frozen=True)
class Timing:
    """The times of one network: seconds a call, one number a round; and how close its output is to the
    baseline's.
    """

    seconds: tuple[float, ...]
    images: int
    sqnr: float = math.inf  # decibels

    @property
    def ms(self) -> float:
        """The median, in milliseconds a call."""
        return 1000 * statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of what lies between the quartiles, as a share of the median: half of the rounds are within
        it.
        """
        if len(self.seconds) == 1:
            return 0.0
        low, middle, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / middle

    @property
    def images_per_second(self) -> float:
        """Images a second, at the median."""
        return 1000 * self.images / self.ms


class Comparison(Mapping[str, Timing]):
    """The timings by name, the baseline first, and a headline. ``print`` it, or let a notebook show it."""

    def __init__(self, headline: str, timings: Mapping[str, Timing]) -> None:
        self.headline = headline
        self._timings = dict(timings)

    def __getitem__(self, name: str) -> Timing:
        return self._timings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._timings)

    def __len__(self) -> int:
        return len(self._timings)

    @property
    def baseline(self) -> str:
        """The name of the first network, with which the others are compared."""
        return next(iter(self))

    def speedup(self, name: str) -> float:
        """How many times as fast as the baseline ``name`` is: the ratio of the medians."""
        return self[self.baseline].ms / self[name].ms

    @property
    def warning(self) -> str:
        """What makes these times doubtful; empty when nothing does."""
        name = max(self, key=lambda name: self[name].spread)
        if self[name].spread <= QUIET:
            return ""
        return (
            f"The times of {name} spread by {100 * self[name].spread:.0f} %: something else keeps this "
            "processor busy. Close it and measure again before you trust a ratio."
        )

    def _table(self) -> list[list[str]]:
        rows = [["", "ms", "spread", "images/s", "speed-up", "SQNR"]]
        for name, timing in self.items():
            rows.append([
                name,
                f"{timing.ms:.3g}" if timing.ms < 100 else f"{timing.ms:.0f}",
                f"± {100 * timing.spread:.0f} %",
                f"{timing.images_per_second:.0f}",
                f"{self.speedup(name):.2f}",
                "" if timing.sqnr == math.inf else f"{timing.sqnr:.1f} dB",
            ])  # fmt: skip
        return rows

    def __str__(self) -> str:
        table = self._table()
        first, *widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]).rstrip() for row in table]
        rule = "  ".join("-" * width for width in (first, *widths))
        return "\n".join(filter(None, [self.headline, lines[0], rule, *lines[1:], self.warning]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(row: list[str], tag: str) -> str:
            sides = ["left", *["right"] * (len(row) - 1)]
            cells = (f"<{tag} style='text-align:{s}'>{escape(cell)}</{tag}>" for cell, s in zip(row, sides))
            return f"<tr>{''.join(cells)}</tr>"

        head, *body = self._table()
        rows = "".join(line(row, "td") for row in body)
        table = f"<table><thead>{line(head, 'th')}</thead><tbody>{rows}</tbody></table>"
        below = f"<p>{escape(self.warning)}</p>" if self.warning else ""
        return f"<p>{escape(self.headline)}</p>{table}{below}"


def compare(
    networks: Mapping[str, Callable[[Tensor], Tensor]],
    x: Tensor,
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    sqnr: float = LEAST_SQNR,
    progress: bool = True,
) -> Comparison:
    """Time ``networks`` (by name, the baseline first) on one batch ``x``, (N, ...), and say how they compare.

    ``threads`` None leaves torch's number. Raises ValueError when a network is on another device than ``x``,
    is in training mode, or gives outputs that are not the baseline's to within ``sqnr`` decibels
    (:func:`check_output`).

    >>> network = torch.nn.Linear(8, 10).eval()
    >>> result = compare({"one": network, "the same": network}, torch.randn(4, 8), rounds=3)
    >>> list(result), result["the same"].sqnr, result.speedup("one")
    (['one', 'the same'], inf, 1.0)
    """
    for name, network in networks.items():
        if isinstance(network, nn.Module):
            _check_network(name, network, x)
    calls = {name: partial(network, x) for name, network in networks.items()}
    return compare_calls(calls, len(x), threads=threads, rounds=rounds, sqnr=sqnr, progress=progress)


def _check_network(name: str, network: nn.Module, x: Tensor) -> None:
    """A time counts for a network as it is used: in eval mode, and where its input is."""
    if getattr(network, "training", False):  # a frozen torch.jit module knows no other mode than eval
        raise ValueError(f"{name!r} is in training mode, where it computes something else: call its .eval()")
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device != x.device:
            raise ValueError(
                f"{name!r} is on {tensor.device}, its input on {x.device}: times on different devices say "
                f"nothing about the networks. Move all to one, for instance with .to({str(x.device)!r})."
            )


def fastest(
    network: Int8Network, x: Tensor, *, threads: int | None = None, rounds: int = 7
) -> Int8Network | OnnxNetwork:
    """The same integers in the form that is the fastest here for batches like ``x``: which engine, captured where possible.

    That depends on the layers, the batch and the processor, so every engine of :func:`qlab.int8.engines.available` is
    tried, and onnxruntime where it is installed; but not the reference, nor those on which this network's sums can
    saturate. ``threads`` as in :func:`compare`.
    """
    names = [name for name, engine in engines.available().items() if engine.usable and name != "reference"]
    with warnings.catch_warnings(), _threads(threads):
        warnings.simplefilter("ignore")  # who saturates is left out below
        forms = {name: form for name in names if not (form := network.on(name)).saturating}
        for form in forms.values():
            with suppress(ValueError):  # it runs as it is
                form.capture(x)
        with suppress(ImportError, ValueError):  # it is not installed, or a layer has no ONNX form
            if not (form := OnnxNetwork(network)).saturating:
                forms[form.engine] = form
    forms = forms or {network.engine: network}
    timings = compare(forms, x, threads=threads, rounds=rounds, progress=False)
    return forms[min(forms, key=lambda name: timings[name].ms)]


def compare_calls(
    calls: Mapping[str, Callable[[], Tensor]],
    images: int,
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    sqnr: float = LEAST_SQNR,
    progress: bool = True,
) -> Comparison:
    """:func:`compare` for what takes its input in a form of its own: each call gives the outputs of
    ``images`` images.

    >>> x, w = torch.ones(4, 8), torch.ones(8, 8)
    >>> list(compare_calls({"x @ w": lambda: x @ w, "w @ x.T": lambda: (w @ x.T).T}, 4, rounds=3))
    ['x @ w', 'w @ x.T']
    """
    if not calls:
        raise ValueError("there is nothing to compare: give at least one network, by name")
    with _threads(threads) as count, torch.inference_mode():
        reference = next(iter(calls.values()))().clone()
        found = {name: check_output(name, call(), reference, sqnr) for name, call in calls.items()}
        seconds = interleave(calls, rounds=rounds, progress=progress)
        for name, call in calls.items():  # once more: all the while it must have computed the same
            check_output(name, call(), reference, sqnr)
    timings = {name: Timing(seconds[name], images, found[name]) for name in calls}
    where = setting(count, str(reference.device))
    return Comparison(f"batch {images}, {where}; medians of {rounds} interleaved rounds", timings)


@torch.no_grad()
def check_output(name: str, output: Tensor, reference: Tensor, sqnr: float = LEAST_SQNR) -> float:
    """SQNR of ``output`` against ``reference``, both (N, ...), in dB: 10 log10(|reference|^2 / |error|^2).

    Raises ValueError when it is below ``sqnr``, when a single image's is more than 10 dB lower, or when the
    output has another shape or device or is not finite: such a network computes something else, and its time
    says nothing.

    >>> check_output("half a step off", torch.tensor([[10.5, 0.0]]), torch.tensor([[10.0, 0.0]])) > 26
    True
    """
    if output.shape != reference.shape or output.device != reference.device:
        raise ValueError(
            f"{name!r} gives {tuple(output.shape)} on {output.device}, the baseline {tuple(reference.shape)} "
            f"on {reference.device}: compare networks with the same outputs on the same device"
        )
    error = (output.double() - reference.double()).flatten(1).square().sum(1)
    if not error.isfinite().all():
        raise ValueError(f"{name!r} gives NaN or infinity (or the baseline does): its time says nothing")
    if not error.any():
        return math.inf
    signal = reference.double().square().sum()
    found = 10 * float(torch.log10(signal / error.sum()))
    worst = 10 * float(torch.log10(signal / len(error) / error.max()))
    if found < sqnr or worst < sqnr - 10:
        raise ValueError(
            f"{name!r} gives wrong outputs: its SQNR against the baseline is {found:.1f} dB, {worst:.1f} dB "
            f"at the worst image; expected at least {sqnr:g} and {sqnr - 10:g} dB. A wrong answer may well "
            "be fast, so it is not timed. (Is it meant to be this coarse? Then lower sqnr=.)"
        )
    return found


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    warm_up: int = 3,
    progress: bool = True,
) -> dict[str, tuple[float, ...]]:
    """Seconds a call, one number a round, for each of ``calls``, which take turns in an order drawn anew each time.

    Before, each is called ``warm_up`` times, so that compilers are done. A turn begins with a call that does not
    count (unless it takes over 0.2 s), since caches and memory are as the one before left them. A call that is
    quicker than 10 ms is repeated several times in each turn. A bar shows when it takes over 2 s.

    >>> times = interleave({"short": lambda: sum(range(1000)), "long": lambda: sum(range(100_000))}, rounds=3)
    >>> [len(seconds) for seconds in times.values()]
    [3, 3]
    """
    if rounds < 1 or warm_up < 1:
        raise ValueError(f"rounds={rounds}, warm_up={warm_up}: expected 1 or more of each")
    repeats: dict[str, int] = {}
    quick: set[str] = set()
    order, draw = list(calls), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    turns = (1 + rounds) * len(calls)
    with tqdm(total=turns, desc="timing", leave=False, delay=2, disable=not progress) as bar:
        for name, call in calls.items():
            warm = [_sample(call, 1) for _ in range(warm_up)]
            repeats[name] = max(1, math.ceil(SAMPLE / max(warm[-1], 1e-6)))
            if warm[-1] < LONG:
                quick.add(name)
            bar.update()
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                if name in quick:
                    calls[name]()
                seconds[name].append(_sample(calls[name], repeats[name]))
                bar.update()
    return {name: tuple(times) for name, times in seconds.items()}


@dataclass(frozen=True)
class Roof:
    """What a processor can do at most, measured: operations a second in float32 and in int8, bytes a second from memory.

    A layer that does ``n`` operations for each byte it moves cannot do more than the smaller of its operations a second
    and ``n * bandwidth`` (the roofline model; Williams et al. 2009).
    """

    float_operations: float
    int8_operations: float
    bandwidth: float


def roof(engine: str = "auto", *, threads: int = 1, rounds: int = 7) -> Roof:
    """Measure this processor's roof: the best time of a product of 512x512 matrices, in float32 and on ``engine``'s
    int8 kernels, and of a copy of 64 MB, which fits into no cache. A multiplication and an addition are two operations.

    >>> here = roof(rounds=2)
    >>> min(here.float_operations, here.int8_operations, here.bandwidth) > 1e6
    True
    """
    size, chosen = 512, engines.get(engine)
    x_qp, w_qp, y_qp = QParams(1 / 127, 0, 7), QParams(1 / 127, 0, signed=True), QParams(4.0, 64, 7)
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    x, weight, source = torch.rand(size, size), codes / 127, torch.zeros(2**24)
    with _threads(threads), torch.inference_mode(), chosen.running():
        kernel, q, target = chosen.linear(codes, None, w_qp, x_qp, y_qp), chosen.quantize(x_qp)(x), source.clone()
        calls = {"float": lambda: x @ weight, "int8": lambda: kernel(q), "copy": lambda: target.copy_(source)}
        best = {name: min(times) for name, times in interleave(calls, rounds=rounds, progress=False).items()}
    moved = 2 * source.numel() * source.element_size()  # read and written
    return Roof(2 * size**3 / best["float"], 2 * size**3 / best["int8"], moved / best["copy"])


def throughput(network: nn.Module, x: Tensor, *, workers: int = 1, seconds: float = 2.0) -> float:
    """Images a second of ``workers`` processes, each with the network on one thread and a core of its own.

    A server that answers many users is measured like this. Every process goes through the batch ``x`` again and
    again; they start together when all are warm. A script needs ``if __name__ == "__main__":`` around the call.
    Raises ValueError for fewer than 1 worker or more than there are cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= workers <= len(cores):
        raise ValueError(f"workers={workers}: expected 1 to {len(cores)}, the cores that this process may use")
    return sum(_in_processes(_images_a_second, network, x, cores[:workers], seconds))


def peak_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that a call with the batch ``x`` takes at its peak beside the network itself: activations, scratch space.

    Measured in a warm process of its own on one thread, as the growth of what it holds in memory. A script needs
    ``if __name__ == "__main__":`` around the call. Raises OSError where the system does not count that (only Linux does).
    """
    if not RESET_PEAK.exists():
        raise OSError(f"no {RESET_PEAK} on this system, so the peak of one call cannot be measured: it takes Linux")
    (core, *_others) = sorted(os.sched_getaffinity(0))
    return _in_processes(_growth, network, x, [core])[0]


def _in_processes(measure: Callable, network: nn.Module, x: Tensor, cores: Sequence[int], *options) -> list:
    """What ``measure(network, x, *options)`` gives in a process on each of the cores, all at the same time."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="qlab-") as folder:
        given: object = network
        if isinstance(network, Int8Network):
            given = (str(save(network, Path(folder) / "network.safetensors")), network.engine)
        results = spawn.Queue()
        shared = given, x, spawn.Barrier(len(cores)), results
        processes = [
            spawn.Process(target=_work, args=(core, measure, *shared, *options), daemon=True) for core in cores
        ]
        for process in processes:
            process.start()
        found = [_result(results, processes) for _ in processes]
        for process in processes:
            process.join()
    return found


def _work(core: int, measure: Callable, given, x: Tensor, start, results, *options) -> None:
    """One process of :func:`_in_processes`: what it measures goes into ``results``."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the process that asked has seen them
        network = load(*given) if isinstance(given, tuple) else given
        for _ in range(3):
            network(x)
        start.wait()
        results.put(measure(network, x, *options))


def _images_a_second(network: nn.Module, x: Tensor, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        network(x)
        done += len(x)
    return done / passed


def _growth(network: nn.Module, x: Tensor) -> int:
    """Bytes by which this process grows at most during one call."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory for later, which would hide the growth
    RESET_PEAK.write_text("5")
    before = _held("VmRSS")
    network(x)
    return max(0, _held("VmHWM") - before)


def _held(what: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most (proc_pid_status(5))."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def _result(counts, processes):
    """The next process's result. Raises RuntimeError when one ended without any."""
    while True:
        try:
            return counts.get(timeout=0.5)
        except queue.Empty:
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.terminate()
                raise RuntimeError("a process of the measurement failed; its own message stands above") from None


def _sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call, over ``repeats`` calls in a row, without Python's garbage collector: it would come in at random."""
    collects = gc.isenabled()
    gc.disable()
    try:
        _wait_for_gpu()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _wait_for_gpu()
        return (time.perf_counter() - start) / repeats
    finally:
        if collects:
            gc.enable()


def _wait_for_gpu() -> None:
    """A GPU works behind the back of the program: wait until it has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Let torch use ``count`` threads, then as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"threads={count}: expected 1 or more, or None for torch's number ({before})")
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def setting(threads: int, device: str = "cpu") -> str:
    """Under which conditions a time was measured: threads and processor, or which GPU; torch."""
    where = f"{threads} thread{'s' * (threads > 1)}, {processor()}" if device == "cpu" else device
    return f"{where}, torch {torch.__version__}"


def processor() -> str:
    """The processor in words: its model, and the instructions that decide how fast integers are."""
    cpu = engines.cpu()
    if cpu.is_arm:
        int8 = "int8 dot product" if cpu.dot_product else "no int8 dot product"
    else:
        int8 = "AMX" if cpu.amx else "VNNI" if cpu.vnni else "no VNNI"
    return f"{cpu.model}, {cpu.capability}, {int8}"


def memory_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers; of an integer network, of its weights, scales and biases.

    >>> memory_bytes(torch.nn.Linear(10, 5))
    220
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


@torch.no_grad()
def macs(network: nn.Module, x: Tensor) -> int:
    """Multiplications, each with its addition, that convolutions and linear layers do for the batch ``x``.

    >>> macs(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 5, 5))                      # 27 for each of 8 * 9 outputs
    1944
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def file_bytes(network: nn.Module) -> int:
    """Bytes of the safetensors file that a network makes: it is written to a temporary folder and measured.

    >>> file_bytes(torch.nn.Linear(10, 5)) > 220
    True
    """
    with tempfile.TemporaryDirectory(prefix="qlab-") as folder:
        path = Path(folder) / "network.safetensors"
        if isinstance(network, Int8Network):
            save(network, path)
        else:
            write_tensors(path, network.state_dict())
        return path.stat().st_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qlab bench`."""
    parser.add_argument("name", help="resnet20, mobilenet_v2 or vgg")
    parser.add_argument("--data", default="cifar10", choices=["cifar10", "shapes10"], help="default: cifar10")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 64], help="images a call (1 64)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    parser.add_argument("--engine", nargs="+", default=["auto"], help="engines, or all (default: auto)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also the memory that a call takes at its peak")
    parser.add_argument("--workers", type=int, nargs="+", default=[], help="processes that work at the same time (1 2)")


def run(args: argparse.Namespace) -> int:
    """`qlab bench`: the sizes and the times of a trained network, in float and in int8."""
    from qlab import data, models

    chosen = args.engine
    if chosen == ["all"]:
        chosen = [name for name, engine in engines.available().items() if engine.usable]
    chosen = [engines.get(name).name for name in chosen]
    network, images = models.load(args.name, data=args.data), getattr(data, args.data)
    saturates = any(engines.saturates_on(name, network) for name in chosen)
    calibration = images("train").sample(1024).batches(128)
    int8 = ptq(network, calibration, QConfig.w8a8(reduce_range=saturates), engine=chosen[0])
    why = ", since products of larger ones would saturate on this processor"
    print(f"{args.name}, activations of 8 bits, weights of {'7 bits' + why if saturates else '8 bits'}")
    for name, each in (("float32", network), ("int8", int8)):
        file, memory = file_bytes(each) / 1024, memory_bytes(each) / 1024
        print(f"  {name:7}  file {file:6.0f} KiB, in memory {memory:6.0f} KiB")
    networks = {"float32": network, **{f"int8 {name}": int8.on(name) for name in chosen}}
    test = images("test")
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
