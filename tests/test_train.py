"""One training loop: it learns, it resumes, it says when it fails; and accuracy counts what it says it counts."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
from stripes import stripes
from torch import nn
from torch.nn import functional as F

from qlab import train
from qlab.files import read_tensors, write_tensors


def tiny() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


class Watches(nn.Module):
    """``tiny`` that remembers its calls: was it in training, the width of the images, the type of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = tiny(), []

    def forward(self, x):
        logits = self.network(x)
        self.seen.append((self.training, x.shape[-1], logits.dtype))
        return logits


PLAN = train.Plan(epochs=4, batch_size=16, lr=0.05)


def test_training_learns_what_can_be_learnt():
    network = tiny()
    before = train.evaluate(network, stripes(64, "test"))
    history = train.fit(network, stripes(160), stripes(32, "validation"), PLAN, progress=False)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < history[0]["loss"]
    assert train.evaluate(network, stripes(64, "test")) > max(before, 90)
    assert not network.training


def test_layers_of_bfloat16_learn_too_and_their_weights_stay_float32():
    network = Watches()
    train.fit(network, stripes(160), stripes(32, "validation"), replace(PLAN, precision="bfloat16"), progress=False)
    assert train.evaluate(network, stripes(64, "test")) > 90
    assert {dtype for training, _, dtype in network.seen if training} == {torch.bfloat16}
    assert {dtype for training, _, dtype in network.seen if not training} == {torch.float32}, (
        "accuracy is that of float32"
    )
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_precision_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="precision 'float16': expected one of float32, bfloat16"):
        train.Plan(precision="float16")


@pytest.mark.parametrize("setting, said", [
    (dict(epochs=0), "epochs=0: expected a whole number from 1 to 1000000"),
    (dict(batch_size=2.5), "batch_size=2.5: expected a whole number from 1 to 1000000"),
    (dict(lr=math.nan), "lr=nan: expected from 0.0 to"),
    (dict(momentum=2), "momentum=2: expected from 0.0 to 0.999"),
    (dict(weight_decay=math.inf), "weight_decay=inf: expected from 0.0 to 1.0"),
    (dict(label_smoothing=2.0), "label_smoothing=2.0: expected from 0.0 to 1.0"),
    (dict(shrink=-1), "shrink=-1: expected from 0.0 to 1.0"),
    (dict(seed=2**31), "seed=2147483648: expected a whole number from 0 to 2147483647"),
])  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        train.Plan(**setting)


def with_dropout() -> nn.Module:
    return nn.Sequential(*tiny()[:-1], nn.Dropout(0.3), nn.Linear(64, 2))


@pytest.mark.parametrize("network", [tiny, with_dropout])
def test_a_broken_run_goes_on_as_if_nothing_had_happened(network, tmp_path, monkeypatch):
    whole = network()
    start = copy.deepcopy(whole)
    train.fit(whole, stripes(64), stripes(32, "validation"), PLAN, progress=False)
    real, calls = train._epoch, []

    def breaks(*arguments):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        train.fit(start, stripes(64), stripes(32, "validation"), PLAN, folder=tmp_path, progress=False)
    resumed = network()
    torch.rand(7)  # what was drawn before makes no difference
    history = train.fit(resumed, stripes(64), stripes(32, "validation"), PLAN, folder=tmp_path, progress=False)
    assert calls == [0, 1, 2, 2, 3] and len(history) == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_the_best_weights_on_validation_are_kept(tmp_path):
    validation = stripes(32, "validation")
    network = tiny()
    about = {"command": "none"}
    history = train.fit(network, stripes(96), validation, PLAN, folder=tmp_path, progress=False, about=about)
    best = tiny()
    best.load_state_dict(read_tensors(tmp_path / "best.safetensors")[0])
    assert train.evaluate(best, validation) == max(row["validation"] for row in history)
    expected = {"source": "stripes", "images": 96, "command": "none"}
    assert read_tensors(tmp_path / "last.safetensors")[1]["about"] == expected


def test_a_folder_of_another_plan_is_not_continued(tmp_path):
    train.fit(tiny(), stripes(32), stripes(32), train.Plan(epochs=1), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="is of a run with epochs 1, here it is 2: choose another folder"):
        train.fit(tiny(), stripes(32), stripes(32), train.Plan(epochs=2), folder=tmp_path, progress=False)


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path):
    train.fit(tiny(), stripes(32), stripes(32), PLAN, folder=tmp_path, progress=False)
    path = tmp_path / "last.safetensors"
    tensors, header = read_tensors(path)
    without = {name: value for name, value in asdict(PLAN).items() if name != "precision"}
    write_tensors(path, tensors, header | {"plan": without})
    assert len(train.fit(tiny(), stripes(32), stripes(32), PLAN, folder=tmp_path, progress=False)) == PLAN.epochs


@pytest.mark.parametrize("change, said", [
    (dict(about={"qconfig": "w4a4"}), "qconfig 'w8a8', here it is 'w4a4'"),
    (dict(about={}), "qconfig 'w8a8', here it is None"),
    (dict(about={"qconfig": "w8a8", "command": "another"}), None),
    (dict(train=replace(stripes(32), source="another copy")), "source 'stripes', here it is 'another copy'"),
    (dict(train=stripes(64)), "images 32, here it is 64"),
    (dict(network=nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))), "holds the weights of another network"),
])  # fmt: skip
def test_a_folder_of_another_run_is_refused_by_name(change, said, tmp_path):
    plan = train.Plan(epochs=1)
    given = {"network": tiny(), "train": stripes(32), "about": {"qconfig": "w8a8", "command": "one"}}
    options = {"validation": None, "plan": plan, "folder": tmp_path, "progress": False}
    train.fit(**given, **options)
    if said is None:
        assert len(train.fit(**given | change, **options)) == 1
    else:
        with pytest.raises(ValueError, match=said):
            train.fit(**given | change, **options)


@pytest.mark.parametrize("name, value", [("plan", 3), ("about", "x"), ("history", {"epoch": 1})])
def test_a_checkpoint_that_says_nonsense_of_its_run_is_refused(tmp_path, name, value):
    write_tensors(tmp_path / "last.safetensors", {"a": torch.zeros(1)}, {name: value})
    with pytest.raises(
        ValueError, match=f"last.safetensors is no checkpoint of a run .its {name} is .*: choose another"
    ):
        train.fit(tiny(), stripes(32), None, train.Plan(), folder=tmp_path, progress=False)


def test_a_checkpoint_that_says_nothing_of_its_run_is_refused(tmp_path):
    write_tensors(tmp_path / "last.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="is of a run with source None, here it is 'stripes'"):
        train.fit(tiny(), stripes(32), None, train.Plan(), folder=tmp_path, progress=False)


def test_a_loss_of_ones_own_is_used():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 32, 32))
    seen = []

    def loss(x, logits, y):
        seen.append(x.shape)
        return F.cross_entropy(logits, 1 - y)

    plan = train.Plan(epochs=2, batch_size=16, lr=0.01, shrink=0.0)
    train.fit(network, stripes(64), stripes(32), plan, progress=False, loss=loss)
    assert len(seen) == 8 and train.evaluate(network, stripes(64, "test")) < 10, "it was taught the wrong answers"


def test_the_first_epochs_see_small_images():
    network = Watches()
    train.fit(network, stripes(16), stripes(16), train.Plan(epochs=4, batch_size=16, shrink=0.5), progress=False)
    assert [size for training, size, _ in network.seen if training] == [24, 24, 32, 32]
    assert {size for training, size, _ in network.seen if not training} == {32}


def test_the_learning_rate_rises_for_a_quarter_and_falls_to_nothing():
    plan = train.Plan(lr=0.8)
    rates = [plan.lr_at(step / 100) for step in range(101)]
    assert rates.index(max(rates)) == 25 and math.isclose(max(rates), 0.8)
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[100] < 1e-9


def test_a_diverging_loss_stops_the_training():
    plan = train.Plan(epochs=1, batch_size=16, lr=1e30)
    with pytest.raises(ValueError, match="the loss became .* in epoch 1, by step 6: lower the learning rate"):
        train.fit(tiny(), stripes(96), stripes(16), plan, progress=False)


# --- steps that are recorded, as on a GPU; here what records them is replaced


def a_step(record: bool = True) -> train.Step:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return train.Step(network, optimizer, lambda x, logits, y: F.cross_entropy(logits, y), record)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 3, 2, 2), torch.arange(size) % 2


def test_a_step_is_recorded_once_it_has_been_taken_three_times(monkeypatch):
    recordings = []

    def record(self, x, y, share):
        recordings.append(x.shape)
        return lambda new_x, new_y: "replayed"

    monkeypatch.setattr(train.Step, "_record", record)
    step = a_step()
    answers = [step(*batch(4)) for _ in range(5)]
    assert answers[3:] == ["replayed", "replayed"] and "replayed" not in answers[:3] and len(recordings) == 1
    for other in ({"part": "frozen"}, {"share": 0.5}):
        assert step(*batch(4), **other) != "replayed", "another step"
    assert step(*batch(2)) != "replayed", "another shape"
    assert a_step(record=False)(*batch(4)) > 0 and len(recordings) == 1


def test_a_step_that_cannot_be_recorded_runs_as_it_is(monkeypatch):
    def cannot(self, x, y, share):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(train.Step, "_record", cannot)
    step = a_step()
    losses = [float(step(*batch(4))) for _ in range(3)]
    with pytest.warns(UserWarning, match="recorded as a CUDA graph, so it is slower: operation not permitted"):
        losses.append(float(step(*batch(4))))
    losses.append(float(step(*batch(4))))
    assert all(map(math.isfinite, losses))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_as_a_processor_does():
    histories = []
    for device in ("cpu", "cuda"):
        network = tiny()
        images = stripes(160), stripes(32, "validation")
        histories.append(train.fit(network, *images, PLAN, device=device, progress=False))
    losses = torch.tensor([[row["loss"] for row in history] for history in histories])
    torch.testing.assert_close(losses[1], losses[0], atol=0.02, rtol=0.02)


class Says(nn.Module):
    """A network with the given answer to everything."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_accuracy_is_the_percentage_of_right_answers():
    data = stripes(10).subset(torch.tensor([0, 1, 2, 4, 6]))
    assert train.evaluate(Says([1.0, 0.0]), data) == 80.0
    assert train.evaluate(Says([0.0, 1.0]), data, batch_size=2) == 20.0


@pytest.mark.parametrize("mode", [True, False])
def test_accuracy_leaves_each_part_of_the_network_in_the_mode_it_was_in(mode):
    network = nn.Sequential(Says([1.0, 0.0]), nn.BatchNorm1d(2), nn.Dropout()).train(mode)
    network[1].train(not mode)
    train.evaluate(network, stripes(4))
    assert [module.training for module in network] == [mode, not mode, mode] and network.training is mode


def test_nan_is_not_an_answer_and_leaves_the_network_in_its_mode():
    network = Says([math.nan, 1.0]).train()
    with pytest.raises(ValueError, match="the network gave NaN.*not finite"):
        train.evaluate(network, stripes(4))
    assert network.training
