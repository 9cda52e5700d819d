"""The roof over every layer's speed."""

from __future__ import annotations

from qlab import bench
from qlab.bench import roofline


def test_the_roof_is_that_of_the_best_round(monkeypatch):
    times = {"float": (0.2, 0.1), "int8": (0.05, 0.06), "copy": (0.5, 0.25)}
    monkeypatch.setattr(roofline, "interleave", lambda calls, **options: {name: times[name] for name in calls})
    found = bench.roof("reference")
    assert found == bench.Roof(2 * 512**3 / 0.1, 2 * 512**3 / 0.05, 2**27 / 0.25)
