"""The trained networks that come with the course: how long they trained, and what they reach on all test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qlab.tables import Table


@dataclass(frozen=True)
class Trained:
    """One of them: its epochs, and the right answers in percent of it and of its own float network."""

    network: str
    epochs: int
    quantized: float
    float: float

    @property
    def loss(self) -> float:
        """Points lost against its own float network."""
        return self.float - self.quantized


def trained_networks(manifest: Mapping[str, dict]) -> Table:
    """A table of :class:`Trained`, from the list that is kept with the weights (:func:`qlab.models.manifest`).

    >>> import qlab
    >>> rows = trained_networks(qlab.models.manifest())
    >>> [(row.network, row.epochs, round(row.loss, 2)) for row in rows if row.network.endswith("cifar10-w2a2")]
    [('resnet20-cifar10-w2a2', 56, 2.16)]
    """
    rows = [
        Trained(name, epochs(entry), entry["test"], entry["float_test"])
        for name, entry in manifest.items() if "qconfig" in entry
    ]  # fmt: skip
    return Table("right answers in % on all test images", rows)


def epochs(entry: dict) -> int:
    """The epochs of a run, and of the runs that it went on from."""
    before = epochs(entry["goes_on_from"]) if "goes_on_from" in entry else 0
    return before + int(entry["epochs"].split()[-1])
