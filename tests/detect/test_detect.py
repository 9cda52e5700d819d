"""Detection: made scenes and their truth, boxes and mAP by hand, the network in float and in integers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import qlab
from qlab import detect
from qlab.detect import Boxes, Scene, boxes, network, scene, training
from qlab.detect.coco import Coco
from qlab.int8 import engines


def some(*rows: tuple, labels=None, scores=None) -> Boxes:
    count = len(rows)
    xyxy = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Boxes(xyxy, torch.tensor(labels or [0] * count), torch.tensor(scores or [1.0] * count))


# --- scenes


def test_a_scene_is_the_same_for_the_same_seed_and_time():
    (first, truth), (second, again) = Scene(3)(0.7), Scene(3)(0.7)
    assert torch.equal(first, second) and torch.equal(truth.xyxy, again.xyxy)
    assert not torch.equal(first, Scene(4)(0.7)[0])
    assert not torch.equal(first, Scene(3, split="train")(0.7)[0])


def test_scenes_are_the_ones_the_network_was_trained_on():
    """Other images would make the committed weights' figures worth nothing."""
    image, truth = Scene(0, split="train")()
    assert int(image.long().sum()) == 8_571_900 and truth.labels.tolist() == [0, 0, 4, 5]


@pytest.mark.parametrize("side", [96, 160, 320])
def test_boxes_lie_inside_the_image_and_around_something(side):
    for seed in range(4):
        image, truth = Scene(seed, side)(0.3)
        assert image.shape == (3, side, side) and image.dtype == torch.uint8
        assert 0 < len(truth) <= 7 and truth.labels.max() < len(detect.CLASSES)
        assert (truth.xyxy[:, 2:] > truth.xyxy[:, :2]).all()
        assert truth.xyxy.min() >= 0 and truth.xyxy.max() <= side


def test_shapes_move_steadily():
    (_, before), (_, after) = Scene(1)(1.0), Scene(1)(1.02)
    assert len(before) == len(after)
    assert 0 < (before.xyxy - after.xyxy).abs().max() < 8


def test_a_hidden_shape_is_not_to_be_found():
    counts = {len(Scene(seed)(time)[1]) - Scene(seed).count for seed in range(6) for time in (0, 1, 2, 3)}
    assert max(counts) == 0 and min(counts) < 0


@pytest.mark.parametrize(
    "arguments, words", [((0, 95), "side=95: expected 96 to 320"), ((0, 160, "all"), "split 'all'")]
)
def test_what_no_scene_can_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Scene(*arguments)


@pytest.fixture(scope="module")
def few():
    return scene.scenes("test", 4)


def test_a_split_keeps_its_truth(few):
    image, truth = Scene(2)()
    assert torch.equal(few.images[2], image)
    assert torch.equal(few.boxes(2).xyxy, truth.xyxy) and torch.equal(few.boxes(2).labels, truth.labels)
    assert len(few.subset(slice(2))) == 2


@pytest.mark.parametrize("change", [scene.mirror, scene.transpose])
def test_a_changed_image_has_changed_boxes(few, change):
    """The mean colour inside a box tells that it moved along with what it surrounds."""
    which = torch.tensor([True, False, True, False])
    images, truths = change(few.images, few.truths, which)
    changed = replace(few, images=images, truths=truths)
    for number in range(4):
        assert torch.equal(few.images[number], images[number]) is (number % 2 == 1)
        for before, after in zip(few.boxes(number).xyxy.int().tolist(), changed.boxes(number).xyxy.int().tolist()):
            inside = [few.images[number][:, before[1] : before[3], before[0] : before[2]]]
            inside += [images[number][:, after[1] : after[3], after[0] : after[2]]]
            means = [part.float().mean((1, 2)) for part in inside]
            assert torch.allclose(*means, atol=0.01) and inside[0].numel() == inside[1].numel()
    assert torch.equal(change(images, truths, which)[1], few.truths)


def test_batches_are_normalized_and_augmented_alike_for_the_same_seed(few):
    x, y = next(few.batches(4))
    assert x.is_contiguous(memory_format=torch.channels_last) and abs(x.mean()) < 1.5
    assert torch.equal(y, few.truths)
    one, two = (next(few.batches(4, shuffle=True, seed=1, augment=True)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], y)


# --- boxes


def test_overlap_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 2]])
    b = torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 4], [4, 4, 8, 8]])
    assert torch.allclose(boxes.iou(a, b), torch.tensor([[1 / 3, 1, 0], [0, 0, 0]]))


def test_anchors_stand_in_the_middle_of_their_places():
    found = boxes.anchors(32, (16, 32), ((8.0, 12.0), (20.0, 24.0)))
    assert found.shape == (2 * (4 + 1), 4)
    assert found[0].tolist() == [4, 4, 12, 12] and found[1].tolist() == [20, 4, 28, 12]  # along a row first
    assert found[4].tolist() == [6, 6, 26, 26] and found[5].tolist() == [2, 2, 14, 14]  # then the second sizes


def test_rows_are_in_the_order_of_the_anchors():
    output = torch.arange(2 * 2 * 3 * 5).reshape(2, 2, 3, 5)
    assert torch.equal(boxes.rows(output)[1, 6], output[1, 1, :, 1])


def test_decoding_undoes_encoding():
    places = boxes.anchors(64, (16,), ((20.0, 30.0),))
    wanted = places + torch.randn(len(places), 4, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.allclose(boxes.decode(boxes.encode(wanted, places), places), wanted, atol=1e-4)
    assert torch.equal(boxes.decode(torch.zeros_like(places), places), places)


def test_an_anchor_finds_what_it_overlaps_and_every_box_has_an_anchor():
    places = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    truth = torch.tensor([[2.0, 1, 0, 10, 10], [5.0, 26, 20, 36, 30], [-1, -1, -1, -1, -1]])
    labels, found = boxes.match(places, truth)
    assert labels.tolist() == [3, 6, 0]  # the second one overlaps by a quarter only, but nobody overlaps more
    assert found[1].tolist() == [26, 20, 36, 30]
    assert boxes.match(places, truth[2:])[0].tolist() == [0, 0, 0]


def test_the_loss_is_least_for_the_truth_and_ignores_easy_ground():
    places = boxes.anchors(160, network.STRIDES, network.SIZES)
    truth = torch.full((1, 7, 5), -1.0)
    truth[0, 0] = torch.tensor([3.0, 20, 20, 60, 60])
    labels, found = boxes.match(places, truth[0])
    perfect = torch.zeros(1, len(places), 13)
    perfect[0, :, :4] = torch.where(labels[:, None] > 0, boxes.encode(found, places), 0)
    perfect[0, torch.arange(len(places)), 4 + labels] = 30.0
    as_output = lambda rows: rows.view(1, 2, -1, 13).transpose(2, 3)  # noqa: E731
    loss = boxes.MultiboxLoss(places)
    assert loss(None, as_output(perfect), truth) < 1e-6
    moved = perfect.clone()
    moved[0, labels > 0, 0] += 1
    assert math.isclose(float(loss(None, as_output(moved), truth)), 0.5, rel_tol=1e-4)  # smooth L1 of 1, an anchor


def test_a_box_goes_when_a_surer_one_covers_it():
    rows = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [2, 0, 12, 10]])
    scores = torch.tensor([0.8, 0.9, 0.5, 0.7])
    assert boxes.nms(rows, scores, 0.5).tolist() == [1, 2]
    assert boxes.nms(rows, scores, 0.85).tolist() == [1, 0, 3, 2]
    assert boxes.nms(rows[:0], scores[:0]).tolist() == []


def test_average_precision_by_hand():
    """Hit, miss, hit, double: precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3."""
    truths = [some((0, 0, 10, 10), (20, 20, 30, 30)), some((0, 0, 10, 10))]
    found = [
        some((0, 0, 10, 10), (40, 40, 50, 50), (0, 0, 10, 10), scores=[0.9, 0.8, 0.6]),
        some((0, 0, 10, 9), scores=[0.7]),
    ]
    assert math.isclose(boxes.average_precision(found, truths, 0), 1 / 3 + 2 / 9, rel_tol=1e-6)
    assert math.isclose(boxes.average_precision(found, truths, 0, 0.95), 1 / 3, rel_tol=1e-6)
    assert math.isnan(boxes.average_precision(found, truths, 1))


def test_perfect_boxes_have_a_map_of_100_and_none_of_0():
    truths = [some((0, 0, 10, 10), (20, 20, 30, 30), labels=[0, 2]), some((5, 5, 9, 9), labels=[2])]
    assert boxes.mean_average_precision(truths, truths, (0.5, 0.75)) == pytest.approx(100)
    assert boxes.mean_average_precision([some(), some()], truths) == 0
    wrong = [replace(truth, labels=2 - truth.labels) for truth in truths]
    assert boxes.mean_average_precision(wrong, truths) == 0
    with pytest.raises(ValueError, match="no box to find"):
        boxes.mean_average_precision([some()], [some()])


# --- the network


@pytest.fixture(scope="module")
def trained():
    return detect.load()


@pytest.fixture(scope="module")
def quantized():
    return qlab.convert(detect.load_qat())


def test_the_weights_are_the_ones_the_manifest_vouches_for():
    entries = qlab.models.manifest(network.CHECKPOINTS)
    assert set(entries) == {"ssdlite-scenes", "ssdlite-scenes-w8a8"}
    for entry in entries.values():
        assert {"command", "trained_on", "seed", "plans", "measure", "validation", "test"} <= set(entry)


def test_a_detector_that_was_not_trained_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no trained weights for 'ssdlite-scenes-w4a4': there are .*scenes-w8a8"):
        detect.load_qat("w4a4")


def test_every_layer_but_the_views_at_the_end_is_quantized(quantized):
    in_float = {row.kind for row in quantized.report() if row.float_because}
    assert in_float == {"Unflatten", "flatten", "cat"} and len(quantized.report()) == 85
    assert not [layer for layer in quantized.report().in_float if layer.startswith("features")]


def test_a_captured_detector_gives_the_same_boxes(quantized, few):
    x = next(few.batches(1))[0]
    if engines.available()["fbgemm"].usable:
        with torch.inference_mode():
            expected = quantized.on("fbgemm")(x)
            assert torch.equal(quantized.on("fbgemm").capture(x)(x), expected)


def test_looking_for_boxes_leaves_the_network_in_its_mode_whatever_happens(few):
    class Says(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2, 13, 525), torch.nan)

    network = Says().train()
    with pytest.raises(ValueError, match="the network gave NaN or infinity"):
        detect.find(network, few)
    assert network.training


def test_integers_lose_little(trained, quantized):
    """On few scenes, so with a wide margin; tools/bench_detect.py measures on many."""
    images = detect.scenes("validation", 48)
    scores = [detect.evaluate(net, images) for net in (trained, quantized)]
    assert scores[0] > 75 and scores[1] > scores[0] - 4


def test_every_engine_gives_about_the_same_boxes(quantized, few):
    x = next(few.batches(2))[0]
    with torch.inference_mode():
        expected = quantized.on("reference")(x)
        for name, engine in engines.available().items():
            if engine.usable:
                assert qlab.analysis.sqnr(expected, quantized.on(name)(x)) > 15, name


def test_an_int8_detector_is_saved_and_comes_back(quantized, few, tmp_path):
    x = next(few.batches(2))[0]
    loaded = qlab.load(qlab.save(quantized, tmp_path / "detector.safetensors"))
    with torch.inference_mode():
        assert torch.equal(loaded(x), quantized(x))


def test_a_detector_gives_boxes_in_the_images_own_pixels(trained):
    small, large = (detect.Detector(trained)(Scene(1, side)()[0]) for side in (160, 320))
    truth = Scene(1)()[1]
    assert (boxes.iou(truth.xyxy, small.xyxy).max(1).values > 0.5).float().mean() >= 0.5
    assert large.xyxy.max() > 160
    assert (boxes.iou(large.xyxy / 2, small.xyxy).max(1).values > 0.6).float().mean() >= 0.5
    assert (small.scores.diff() <= 0).all() and small.scores.min() >= 0.3
    assert len(small.above(0.99)) < len(small)


class Says(nn.Module):
    """Gives the same output for every image."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output.expand(len(x), -1, -1, -1)


def test_classes_do_not_suppress_each_other_and_doubles_go():
    output = torch.zeros(1, 2, 13, 525)
    output[0, :, 4] = 20.0  # the ground
    for place, label in ((0, 1), (1, 2)):
        output[0, 0, 4 + label, place] = 25.0
    output[0, 0, 0, 1] = -8 / 18 / 0.1  # the second anchor's box is moved onto the first one's
    found = network.read(output, 0.5)[0]
    assert sorted(found.labels.tolist()) == [0, 1]
    output[0, 0, 5:7, 1] = torch.tensor([24.0, 0])
    assert network.read(output, 0.5)[0].labels.tolist() == [0]


def test_nan_is_not_sorted_away(few):
    with pytest.raises(ValueError, match="NaN or infinity"):
        network.find(Says(torch.full((1, 2, 13, 525), math.nan)), few)


# --- training


def test_training_runs_in_two_parts_and_goes_on_where_it_stopped(tmp_path):
    plan = replace(training.PLAN, epochs=1, batch_size=2)
    for _ in range(2):  # the second time there is nothing left to do
        net, history = training.train(tmp_path, plan, plan, count=2, progress=False)
        assert [row["epoch"] for row in history] == [1, 1]
    start = training.untrained().features
    changed = [not torch.equal(a, b) for a, b in zip(start.parameters(), net.features.parameters())]
    assert all(changed) and not net.training


def test_training_with_rounding_gives_what_load_qat_reads(tmp_path, monkeypatch):
    slow = training.qat.qconfig("w8a8")  # the observer changes values only, and "mse" takes its time
    specs = {role: replace(getattr(slow, role), observer="minmax") for role in ("weight", "activation", "elementwise")}
    monkeypatch.setattr(training.qat, "qconfig", lambda preset: replace(slow, **specs))
    prepared, history = training.train_qat(tmp_path, replace(training.QAT, batch_size=2), count=2, progress=False)
    assert len(history) == 1 and math.isfinite(history[0]["loss"])
    saved = qlab.files.read_tensors(tmp_path / "prepared.safetensors")[0]
    assert set(saved) == set(detect.load_qat().state_dict())
    assert qlab.convert(prepared).report().in_float == qlab.convert(detect.load_qat()).report().in_float


# --- COCO


def test_without_a_network_the_coco_detector_says_so(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(OSError, match="could not be fetched from https://.*no route to host.*take the course's own"):
        Coco()


def test_the_coco_detector_speaks_of_boxes_and_everyday_things(monkeypatch):
    from torchvision.models import detection

    seen = []

    def pretend(weights, progress):
        def network(images):
            seen.append(images[0])
            return [{"boxes": torch.ones(2, 4), "labels": torch.tensor([1, 3]), "scores": torch.tensor([0.9, 0.2])}]

        network.eval = lambda: network
        return network

    monkeypatch.setattr(detection, "ssdlite320_mobilenet_v3_large", pretend)
    coco = Coco(threshold=0.5)
    found = coco(torch.full((3, 32, 32), 255, dtype=torch.uint8))
    assert coco.classes[found.labels[0]] == "person" and len(found) == 1
    assert seen[0].max() == 1.0
