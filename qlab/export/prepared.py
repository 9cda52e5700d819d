"""Prepared networks on disk, trained or calibrated: their tensors, and in the header what rounds which of them.

A prepared network is a graph of the network that it was made of, and the file does not hold that graph: it is brought
back into what ``qlab.prepare`` makes of the same network with the same configuration.
"""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor

from qlab.export.checks import digest
from qlab.files import check_tensors, load_weights, read_tensors, write_tensors
from qlab.graph.prepare import Prepared

FORMAT = 1


def save_prepared(prepared: Prepared, path: str | Path) -> Path:
    """Write the tensors of a prepared network; see :func:`qlab.save`."""
    tensors = {name: tensor.detach() for name, tensor in prepared.state_dict().items()}
    try:
        check_tensors(tensors, tensors, "this network cannot be saved")
    except ValueError as error:
        raise ValueError(f"{error}. For -inf in a mask write a large number instead, such as -1e9") from error
    header = {
        "prepared": FORMAT,
        "sha256": "",
        "input_shape": list(prepared.input_shape),
        "rounding": _rounding(prepared),
        "kinds": _kinds(prepared),
    }
    header["sha256"] = digest(header, tensors)
    return write_tensors(path, tensors, header)


def load_prepared(path: str | Path, into: Prepared) -> Prepared:
    """Bring the tensors in ``path`` into a prepared network; see :func:`qlab.load`."""
    if not isinstance(into, Prepared):
        raise TypeError(f"into takes what qlab.prepare gave, not a {type(into).__name__}")
    tensors, header = read_tensors(path)
    if "prepared" not in header:
        raise ValueError(
            f"{path} holds an integer network, no prepared one: load it with qlab.load(path), without into"
        )
    if type(header["prepared"]) is not int or header["prepared"] != FORMAT:
        raise ValueError(
            f"{path} has format {str(header['prepared'])[:20]} of prepared networks; this qlab reads {FORMAT}"
        )
    if header.get("sha256") != digest(header, tensors):
        raise ValueError(f"{path} is damaged: its checksum (sha256) is not that of its content; save it again")
    _compare(path, header, into, tensors)
    load_weights(copy.deepcopy(into), tensors, path)  # into stays as it is when they do not fit
    into.load_state_dict(tensors)
    return into


def _rounding(prepared: Prepared) -> dict[str, str]:
    """What rounds each weight and each edge, in words, in the order of the network."""
    return {name: repr(quantizer.spec) for name, quantizer in prepared.quantizers()}


def _kinds(prepared: Prepared) -> dict[str, str]:
    """The class of each layer that rounds, and of what rounds: while a network is trained they are others."""
    return {name: type(module).__name__ for name, module in (*prepared.weighted(), *prepared.quantizers())}


def _compare(path: str | Path, header: dict, into: Prepared, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError with the first difference between the network in the file and the one to load it into."""
    found, wanted = header.get("rounding"), _rounding(into)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it does not say what rounds its tensors; save it again")
    way = "prepare the network that was saved, with the QConfig that it had"
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            there, here = (f"{side.get(name, 'not rounded')}"[:150] for side in (found, wanted))
            raise ValueError(
                f"{path} is of another network or other bits: {name[:80]!r} is {there} there, {here} here: {way}"
            )
    kinds, own = header.get("kinds"), _kinds(into)  # files of older versions do not say
    for name in own if isinstance(kinds, dict) else ():
        if kinds.get(name) != own[name]:
            raise ValueError(
                f"{path} is of another stage: {name[:80]!r} is a {str(kinds.get(name))[:40]} there, a {own[name]} here. What "
                "was saved while it was trained goes into what qlab.qat.start(prepared, batches, method) makes of such a "
                "network; what was saved after qlab.qat.finish, into a prepared one"
            )
    expected = into.state_dict()
    for name, tensor in expected.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            shapes = tuple(tensors[name].shape), tuple(tensor.shape)
            raise ValueError(f"{path} is of another network: {name!r} is {shapes[0]} there, {shapes[1]} here: {way}")
    if header.get("input_shape") != list(into.input_shape):
        shapes = str(header.get("input_shape"))[:60], list(into.input_shape)
        raise ValueError(f"{path} is of a network for inputs of {shapes[0]}, this one is for {shapes[1]}: {way}")
