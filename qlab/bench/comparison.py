"""Networks side by side: how fast each one is, and whether it answers as the first one does.

No time counts before the output was checked: a wrong answer may well be fast.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from qlab import analysis
from qlab.bench.conditions import setting, using_threads
from qlab.bench.timing import ROUNDS, Timing, interleave
from qlab.export import OnnxNetwork
from qlab.int8 import engines
from qlab.int8.modules import Int8Network
from qlab.tables import Shown

LEAST_SQNR = 15.0  # decibels: 8-bit networks have 20 to 40, and at 10 the answers already differ
QUIET = 0.1  # a spread above this says that something else was running


class Comparison(Shown, Mapping[str, Timing]):
    """The timings by name, the baseline first, and a headline."""

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

    def _layout(self) -> tuple[str, list[list[str]], range, str]:
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
        return self.headline, rows, range(1, len(rows[0])), self.warning


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
    with using_threads(threads) as count, torch.inference_mode():
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
    """SQNR of ``output`` against ``reference``, both (N, ...), in dB: ``10 log10(|reference|^2 / |error|^2)``.

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
    found = analysis.sqnr(reference, output)
    worst = found - 10 * math.log10(error.max() / error.mean())  # by as much more noise as that image has
    if found < sqnr or worst < sqnr - 10:
        raise ValueError(
            f"{name!r} gives wrong outputs: its SQNR against the baseline is {found:.1f} dB, {worst:.1f} dB "
            f"at the worst image; expected at least {sqnr:g} and {sqnr - 10:g} dB. A wrong answer may well "
            "be fast, so it is not timed. (Is it meant to be this coarse? Then lower sqnr=.)"
        )
    return found


def fastest(
    network: Int8Network, x: Tensor, *, threads: int | None = None, rounds: int = 7
) -> Int8Network | OnnxNetwork:
    """The same integers in the form that is the fastest here for batches like ``x``: which engine, captured if it can be.

    That depends on the layers, the batch and the processor, so every engine of :func:`qlab.int8.engines.available` is
    tried, and onnxruntime where it is installed; but not the reference, nor those on which this network's sums can
    saturate. ``threads`` as in :func:`compare`.
    """
    names = [name for name, engine in engines.available().items() if engine.usable and name != "reference"]
    with warnings.catch_warnings(), using_threads(threads):
        warnings.simplefilter("ignore")  # who saturates is left out below
        forms = {name: captured(form, x) for name in names if not (form := network.on(name)).saturating}
        with suppress(ImportError, ValueError):  # it is not installed, or a layer has no ONNX form
            if not (form := OnnxNetwork(network)).saturating:
                forms[form.engine] = form
    forms = forms or {network.engine: network}
    timings = compare(forms, x, threads=threads, rounds=rounds, progress=False)
    return forms[min(forms, key=lambda name: timings[name].ms)]


def captured(network: Int8Network, x: Tensor) -> Int8Network:
    """``network``, without Python between its kernels for batches like ``x`` where its engine can do that."""
    with suppress(ValueError):
        network.capture(x)
    return network
