"""Seconds a call, so that they can be compared: in turns, and many rounds of them.

The calls take turns, so that whatever slows the machine down meanwhile slows all of them, and in an order that is
drawn anew in each round, so that none always follows the same other one; a time is the median of many rounds and
comes with its spread. Source of these habits: Hoefler and Belli, "Scientific Benchmarking of Parallel Computing
Systems" (SC 2015), rules 4 to 9.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

ROUNDS = 15
LONG = 0.2  # seconds: to begin such a call with full caches or empty ones makes no difference
SAMPLE = 0.01  # seconds: a quicker call is repeated until it takes this long, as it would be at work


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


def _sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call, over ``repeats`` calls in a row, without Python's garbage collector, which comes in at random."""
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
