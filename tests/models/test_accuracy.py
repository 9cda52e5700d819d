"""The trained networks keep their accuracy in integers, on every engine of this machine."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import qlab
from qlab import QConfig, data, models
from qlab.int8 import engines

USABLE = [name for name, engine in engines.available().items() if engine.usable]
# The share of equal answers and of right ones that may be lost, on 250 images. qnnpack rounds each bias to a step of
# the layer's sum. One code in a few hundred is then off by one, and 53 layers of MobileNetV2 make much of that.
EXACT, ROUNDS_BIASES = (0.99, 0.01), (0.96, 0.02)

TRAINED = [key.partition("-")[0] for key in sorted(models.manifest()) if key.endswith(f"-{data.available().name}")]


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    """A trained network with test images and calibration images of the data at hand."""
    train = data.at_hand("train").sample(256)
    return models.load(request.param, data.available().name), data.at_hand("test").sample(250), list(train.batches(64))


def answers(network, images):
    with torch.inference_mode():
        return torch.cat([network(x) for x, _ in images.batches(50)]).argmax(1)


def test_every_engine_keeps_the_accuracy_and_agrees_with_the_prepared_network(trained):
    model, images, batches = trained
    right = (answers(model, images) == images.labels).float().mean()
    for reduce_range in (False, True):
        qconfig = QConfig.preset("w8a8", observer="mse", reduce_range=reduce_range)  # min-max costs MobileNetV2 more
        prepared = qlab.calibrate(qlab.prepare(model, qconfig), batches)
        prepared_answers = cache(lambda fused: answers(prepared.fuse_additions(fused), images))
        for name in USABLE:
            if engines.saturates_on(name, model) is not reduce_range:
                continue
            int8 = qlab.convert(prepared, name)
            found = answers(int8, images)
            expected = prepared_answers(engines.get(name).fuses_add)
            same, lost = ROUNDS_BIASES if name == "qnnpack" else EXACT
            assert (found == expected).float().mean() >= same, name
            assert (found == images.labels).float().mean() >= right - lost, name
