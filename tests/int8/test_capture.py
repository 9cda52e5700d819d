"""A captured network gives the same scores without Python between its kernels, and says where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import Zoo

import qlab
from qlab import QConfig, models
from qlab.int8 import engines

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CAPTURED = [name for name in engines.QUANTIZED if engines.availability(name).usable]


def integer(model: nn.Module, qconfig: QConfig, engine: str):
    prepared = qlab.calibrate(qlab.prepare(model.eval(), qconfig, X[:1]), [X], progress=False)
    return qlab.convert(prepared, engine)


@pytest.mark.parametrize("engine", CAPTURED)
@pytest.mark.parametrize("preset", ["w8a8", "w4a4"])
def test_the_scores_are_the_same_bit_for_bit(engine, preset):
    torch.manual_seed(1)
    saturates = engines.availability(engine).saturates
    int8 = integer(models.resnet20(), QConfig.preset(preset, reduce_range=saturates), engine)
    if engine == "qnnpack" and preset == "w4a4":  # it clamps the codes where they lie, which torch.jit cannot see
        with pytest.raises(ValueError, match="clamps to fewer than 8 bits where the codes lie"):
            int8.capture(X)
        return
    before = [int8(scale * X) for scale in (0.1, 1, 10)]  # at 10 times the size nearly every value is clipped
    assert int8.capture(X) is int8
    program = int8._run
    int8._run = None  # what was captured must not need it
    assert all(torch.equal(int8(scale * X), scores) for scale, scores in zip((0.1, 1, 10), before))
    int8._run = program
    with torch.inference_mode():
        assert torch.equal(int8(X), before[1])


@pytest.mark.parametrize("engine", CAPTURED)
def test_layers_in_float_and_joins_of_all_kinds_are_captured(engine):
    torch.manual_seed(0)
    for model, overrides in ((models.resnet20(), {"layer2": None}), (Zoo(), {})):
        saturates = engines.saturates_on(engine, model)
        int8 = integer(model, QConfig.w8a8(reduce_range=saturates, overrides=overrides), engine)
        before = int8(X)
        assert torch.equal(int8.capture(X)(X), before)
        assert torch.equal(int8(-X), int8.on(engine)(-X))


@pytest.mark.parametrize("engine", sorted({"onednn", "x86"} & {*CAPTURED}))
def test_a_layer_whose_inputs_are_moved_to_another_grid_runs_and_is_not_captured(engine):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 34, 3, groups=2, padding=1), nn.Flatten()
    model = nn.Sequential(*stem, nn.Linear(34 * 32 * 32, 10))
    int8 = integer(model, QConfig.w8a8(reduce_range=engines.saturates_on(engine, model)), engine)
    exact = int8.on("reference")(X)
    assert (int8(X) - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(ValueError, match="takes this layer's codes for others, which cannot be recorded"):
        int8.capture(X)


def test_other_shapes_run_as_before():
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), CAPTURED[0])
    expected = int8(X[:3])
    int8.capture(X)
    assert list(int8._captured) == [X.shape] and torch.equal(int8(X[:3]), expected)


def test_another_number_of_threads_is_captured_at_its_first_call():
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), CAPTURED[0]).capture(X)
    before, expected = torch.get_num_threads(), int8(X)
    try:
        torch.set_num_threads(before + 1)
        with torch.inference_mode():
            assert torch.equal(int8(X), expected)
        assert set(int8._captured[X.shape]) == {before, before + 1}
        int8._run = None  # from now on nothing needs it
        assert torch.equal(int8(X), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(int8(X), expected)


def test_a_captured_network_still_looks_at_its_input():
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), CAPTURED[0]).capture(X)
    with pytest.raises(ValueError, match="NaN"):
        int8(torch.full_like(X, torch.nan))
    with pytest.raises(ValueError, match="takes float32"):
        int8(X.double())
    with pytest.raises(ValueError, match="takes float32"):
        int8.capture(X[:, :1])


@pytest.mark.parametrize("engine", ["reference", "onednn_plain"])
def test_an_engine_that_cannot_be_captured_says_which_can(engine):
    if not engines.availability(engine).usable:
        pytest.skip(f"no {engine} here")
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), engine)
    with pytest.raises(ValueError, match=f"{engine}.*Choose engine='onednn'"):
        int8.capture(X)
    assert int8(X).shape == (8, 10)


def test_a_capture_that_gives_other_scores_is_not_used(monkeypatch):
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), CAPTURED[0])

    class Wrong:
        def __init__(self, traced):
            self.traced = traced

        def forward(self, x):
            return self.traced(x) + 1

        __call__ = forward

    monkeypatch.setattr(torch.jit, "freeze", Wrong)
    with pytest.raises(ValueError, match="other scores, so it is not used"):
        int8.capture(X)
    assert not int8._captured


@pytest.mark.parametrize("engine", CAPTURED)
def test_what_was_captured_runs_on_images_in_any_order_and_leaves_the_global_engine_alone(engine):
    int8 = integer(models.vgg(), QConfig.w8a8(reduce_range=True), engine)
    rows = X.contiguous()
    expected, before = int8(rows), torch.backends.quantized.engine
    int8.capture(rows)
    others = [name for name in torch.backends.quantized.supported_engines if name not in ("none", engine)]
    for selected in (before, others[0]):
        torch.backends.quantized.engine = selected
        try:
            for x in (rows, rows.contiguous(memory_format=torch.channels_last), rows.flip(0).flip(0)):
                assert torch.equal(int8(x), expected)
            assert torch.backends.quantized.engine == selected
        finally:
            torch.backends.quantized.engine = before
