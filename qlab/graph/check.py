"""The graph proves itself: it computes what the network does, and the integers what the fake-quantized floats do.

A network that was traced, folded and rearranged is another program. Before any work is put into it, it runs beside the
network that it came from, on two small batches, and the answers are compared.
"""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from qlab.graph.nodes import kind_of
from qlab.graph.run import rounding
from qlab.ratio import Ratio

if TYPE_CHECKING:
    from qlab.graph.prepare import Prepared
    from qlab.int8.modules import Int8Network

SAME = 60.0  # dB: float32's own rounding, in another order, leaves 90 to 130
ALIKE = 30.0  # dB between integers and fake-quantized floats: some codes fall to their neighbours ...
MARGIN = 6.0  # ... or where quantization itself leaves less: the integers may add up to four times that noise

Answers = list[tuple[Tensor, object]]


@torch.no_grad()
def answers(model: nn.Module, example: Tensor) -> Answers:
    """(batch, what the model gives for it) for the example and for noise of another batch size, if the model takes it."""
    found = [(example, model(example.clone()))]
    noise = torch.randn(
        (2 if len(example) != 2 else 3, *example.shape[1:]), generator=torch.Generator().manual_seed(0)
    ).to(example)
    for x in (noise, noise[: len(example)]):
        try:
            return [*found, (x, model(x.clone()))]
        except Exception:  # a network for one batch size only: what it says to that is nobody's business here
            continue
    return found


@torch.no_grad()
def prove_float(prepared: Prepared, model: nn.Module, expected: Answers) -> None:
    """Raise ValueError, with the first layer that differs, unless the prepared network without rounding gives ``expected``.

    ``expected`` is :func:`answers` of a copy of ``model`` in eval mode.
    """
    with rounding(prepared, ()):
        prove_graph(prepared.network, model, expected)


@torch.no_grad()
def prove_graph(network: fx.GraphModule, model: nn.Module, expected: Answers) -> None:
    """The same of a graph that rounds nothing."""
    for x, wanted in expected:
        try:
            given = network.forward(x.clone())  # in a call torch.fx prints what goes wrong
        except Exception as error:
            raise ValueError(
                f"the traced network fails on a batch of shape {tuple(x.shape)}, which the network itself takes: "
                f"{error}. {_WAY_OUT}"
            ) from error
        found = similarity(wanted, given)
        if found < SAME:
            where = _first_difference(network, model, x)
            raise ValueError(
                f"the traced network does not compute what the network does: {found:.1f} dB between their answers, "
                f"before anything is quantized. {where}. {_WAY_OUT}"
            )


@torch.no_grad()
def prove_integers(prepared: Prepared, int8: Int8Network) -> None:
    """Raise ValueError unless the integers give what the fake-quantized network gives, to within some codes.

    On two of the images that the network was calibrated with, or on noise.
    """
    x = prepared.sample
    if x is None:
        x = torch.randn(2, *prepared.input_shape, generator=torch.Generator().manual_seed(0))
    with rounding(prepared, [quantizer for _, quantizer in prepared.quantizers()]):
        fake = prepared(x.clone())
    found = similarity(fake, int8(x.clone()))
    if found >= ALIKE:
        return
    with rounding(prepared, ()):
        quantization = similarity(prepared(x.clone()), fake)
    if found < quantization - MARGIN:
        raise ValueError(
            f"the integer network on engine {int8.engine!r} gives other answers than the prepared one: {found:.1f} dB "
            f"between them, where quantization itself leaves {quantization:.1f} dB. Try convert(..., "
            "engine='reference'); if that is right, the engine's kernels are wrong on this processor"
        )


_WAY_OUT = (
    "Put what differs into a module of its own and pass its type as prepare(..., leaves=(ThatModule,)): it stays whole, "
    "in float"
)


def similarity(wanted: object, given: object) -> float:
    """SQNR in dB between two answers, tensors anywhere in them; minus infinity where their structure differs, or which of
    their values are finite.

    >>> similarity({"scores": torch.ones(2)}, {"scores": torch.tensor([1.0, 1.1])})
    23.0...
    """
    leaves, found = tree_leaves(wanted), tree_leaves(given)
    ratio = Ratio()
    if len(leaves) != len(found):
        return -math.inf
    for a, b in zip(leaves, found):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
                return -math.inf
        elif a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return -math.inf
        else:
            ratio.add(a[a.isfinite()], b[b.isfinite()])
    return ratio.decibel


def _first_difference(network: fx.GraphModule, model: nn.Module, x: Tensor) -> str:
    """In words: the first layer that gives something else in the graph than in the model."""
    given = _Recorder(network).of(x)
    wanted, again = _outputs_by_name(model, x), _outputs_by_name(model, x)
    calls: dict[str, int] = {}
    before = ""
    for name, value in given:
        number = calls.get(name, 0)
        calls[name] = number + 1
        if number < len(wanted.get(name, ())):
            if similarity(wanted[name][number], again[name][number]) < SAME:
                return f"The network itself gives other values each time, first in {name}"
            if similarity(wanted[name][number], value) < SAME:
                return f"The first layer that differs is {name}" + (f", behind {before}" if before else "")
            before = name
    return f"All layers agree up to {before}: what comes behind it differs" if before else "No layer could be compared"


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each layer gives, by its name in the model, in order."""

    def of(self, x: Tensor) -> list[tuple[str, object]]:
        self.kept: list[tuple[str, object]] = []
        with suppress(Exception):  # what ran until then is enough to compare
            self.run(x.clone())
        return self.kept

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.op == "call_module" and kind_of(node) != "quantizer":
            self.kept.append((node.meta.get("gives", node.target), copy.deepcopy(value)))  # a relu may overwrite it
        return value


def _outputs_by_name(model: nn.Module, x: Tensor) -> dict[str, list]:
    """What each module of a copy of the model gives, call by call, without touching the model."""
    from qlab.graph.trace import eval_copy

    model = eval_copy(model)
    found: dict[str, list] = {}
    for name, module in model.named_modules():
        keep = lambda _module, _inputs, output, name=name: found.setdefault(name, []).append(copy.deepcopy(output))  # noqa: E731
        module.register_forward_hook(keep)
    model(x.clone())
    return found
