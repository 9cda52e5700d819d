"""Lesson 2's panels: the browser computes with what Python computes with."""

from __future__ import annotations

import numpy as np
import torch

from qlab.course.lesson02 import panels, plots


def test_the_browser_gets_the_values_that_python_computes_with():
    values = torch.rand(70_000)
    sent = np.frombuffer(panels.clipping(values).data, "float32")
    assert sent[0] == values.max() and len(sent) <= 50_000
    assert (sent == plots.enough_of(values)).all()
