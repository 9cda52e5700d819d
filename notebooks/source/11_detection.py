# %% [markdown]
# # 11. Detection in real time
#
# Until now a network said *what* is in an image. A **detector** also says *where*: it puts a box around each
# thing, thirty times a second if it can. Here you take a small detector apart, measure how good it is,
# turn it into integers, and let both versions follow a video that moves. The video is made on the spot, so no
# camera is needed. If you have one, the last sections use it, on a Raspberry Pi too.
#
# **After this lesson you can**
# - say how a detector's numbers become boxes, and which part of that stays in float;
# - compute the overlap of two boxes and the average precision of a list of boxes;
# - quantize a detector with PTQ and with QAT, and judge it by mAP and by frames a second;
# - build a loop that never falls behind its camera.
#
# **Time:** 60 minutes. **You need:** lesson 4 (who shares a scale) and lesson 5 (engines); lesson 7 helps.

# %%
import math
import time
from dataclasses import replace

import torch

import qlab
from qlab import PerChannel, PerTensor, QConfig, analysis, bench, detect
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson11 import measure, panels, plots
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.int8 import engines

network = detect.load()
scenes = detect.scenes("test", 80)
calibration = detect.scenes("train", 64)
shapes = [scenes.boxes(number) for number in range(len(scenes))]
print(
    f"{len(scenes)} test scenes of {detect.SIDE}x{detect.SIDE} pixels with {sum(map(len, shapes))} shapes, at most "
    f"{max(map(len, shapes))} in one"
)
print("classes:", ", ".join(detect.CLASSES))

# %% [markdown]
# ## What a detector says
#
# This one is **SSDLite** on a MobileNetV2 (Sandler et al., 2018). The backbone makes three maps of the image,
# with 20x20, 10x10 and 5x5 places. At each place stand two **anchors**, squares of a fixed size: small ones on
# the fine map, large ones on the coarse map. For each anchor a small **head** on the map says two things:
#
# - scores: how likely is each class here, and how likely is there nothing (the **ground**)?
# - four **offsets**: by how much must this anchor be moved and stretched to become the box of the thing?
#
# Here is a scene, with the anchors that have something to find:

# %%
plots.anchors(scenes.images[0], shapes[0])

# %% tags=["nbval-check-output"]
with torch.inference_mode():
    output = torch.cat([network(x) for x, _truths in scenes.batches(16)])
print("output:", tuple(output.shape), "= images, anchors at a place, offsets and scores, places")
anchors = 2 * (20**2 + 10**2 + 5**2)
print(f"{anchors:,} anchors, each with 4 offsets, 1 score of the ground and {len(detect.CLASSES)} of the classes")
assert tuple(output.shape) == (80, 2, 4 + 1 + len(detect.CLASSES), anchors // 2)

# %% [markdown]
# ### Exercise 11.1: how much do two boxes overlap?
#
# Everything with boxes is measured by **intersection over union** (IoU): the area that both share, divided by
# the area that at least one of them covers. A box is (left, top, right, bottom), in pixels, and y points down.

# %% tags=["exercise"]
check("11.1", overlap)

# %% [markdown]
# ### Exercise 11.2: from offsets to a box
#
# The offsets are (dx, dy, dw, dh). The middle of the anchor moves by $0.1\, d_x$ times the anchor's size to the
# right, and by $0.1\, d_y$ times its size down. Its width is multiplied by $e^{0.2\, d_w}$, its height by
# $e^{0.2\, d_h}$.

# %% tags=["exercise"]
check("11.2", decode)

# %% [markdown]
# Why the factors 0.1 and 0.2? With them the numbers that the network has to say are about 1 in size, and so are its
# scores: in the loss neither should drown the other. Here is what the anchors have to say on the calibration scenes:

# %%
wanted = []
for truth in calibration.truths:
    labels, boxes = detect.match(detect.ANCHORS, truth)
    wanted.append(detect.encode(boxes, detect.ANCHORS)[labels > 0])
spread = torch.cat(wanted).std(0)
for name, values in (("with the factors", spread), ("without", spread * torch.tensor([0.1, 0.1, 0.2, 0.2]))):
    print(f"{name:16} dx, dy, dw, dh have the standard deviations", ", ".join(f"{value:.2f}" for value in values))
of_classes = float(output[:, :, 5:].std())
print(f"the network's scores of the classes: {of_classes:.2f}")
assert 0.5 < spread.min() and spread.max() < 2 and 0.5 < of_classes < 2

# %% [markdown]
# ## Many boxes for one thing
#
# Anchors that stand side by side see the same thing, and each of them says so. **Non-maximum suppression** (NMS)
# clears up: of two boxes of one class that overlap too much, the surer one stays. How much is too much?
#
# **Predict**, then, in a scene where shapes of one class overlap, **move** the overlap that is allowed from 95 %, where
# next to nothing is suppressed, down to 45 %, and on to 5 %. Go back to 45 % and move the score: what do you lose above,
# what do you get below?


# %%
def counted(allowed, score=0.3):
    """How many boxes are left in all scenes, and how many of them find a shape of their own."""
    left = detect.read(output, score, allowed)
    return sum(map(len, left)), sum(int(detect.finds(boxes, truth).sum()) for boxes, truth in zip(left, shapes))


def found_in(number, allowed):
    """How many shapes of one scene are found."""
    return int(detect.finds(detect.read(output[number : number + 1], 0.3, allowed)[0], shapes[number]).sum())


left = {allowed: counted(allowed) for allowed in (0.95, 0.45, 0.05)}
lost = left[0.45][1] - left[0.05][1]
chosen = max(range(len(scenes)), key=lambda number: found_in(number, 0.45) - found_in(number, 0.05))
candidates = detect.read(output[chosen : chosen + 1], threshold=0.05, overlap=1.0)[0]
panel = panels.suppression(scenes.images[chosen], candidates, shapes[chosen], detect.CLASSES)
numbers = {"all": sum(map(len, shapes)), "much": left[0.95][1], "usual": left[0.45][1], "little": left[0.05][1]}
answer = 0 if lost <= 0 else 1 if lost < left[0.45][1] / 2 else 2
predict("11a", panel, answer=answer, doubles=left[0.95][0] - left[0.95][1], **numbers)

# %% [markdown]
# **Explain.** With much overlap allowed, doubles stay. With little, a shape loses its box when another one of its
# class stands in front of it. This detector allows 45 %. The score is a choice of another kind: a low one finds
# more and is more often wrong. So a detector has no single accuracy. It has a curve.

# %%
for allowed, (boxes, right) in left.items():
    print(f"overlaps of up to {allowed:.0%} allowed: {boxes} boxes; {right} of {numbers['all']} shapes found, {boxes - right} wrong or double")
for score in (0.05, 0.3, 0.7):
    boxes, right = counted(0.45, score)
    print(f"scores from {score:.0%} up, overlaps of up to 45 %: {right} shapes found, {boxes - right} boxes wrong")
assert lost > 0 and left[0.95][0] > 2 * left[0.45][0] and found_in(chosen, 0.45) > found_in(chosen, 0.05)
assert counted(0.45, 0.05)[1] > counted(0.45, 0.7)[1] and counted(0.45, 0.05)[0] > counted(0.45, 0.7)[0]

# %% [markdown]
# ### Exercise 11.3: suppress

# %% tags=["exercise"]
check("11.3", suppress)

# %% [markdown]
# ## One number for the whole curve
#
# Sort all boxes of a class, in all images, the surest first. A box is **right** if it overlaps a shape of its
# class by at least one half, and no surer box has that shape already. After each box, **precision** is the
# share of right boxes so far, and **recall** the share of all shapes found so far. Precision against recall is a
# curve with teeth. At each recall the best precision at that recall *or above* counts, which fills the teeth. The
# area below is the **average precision** (AP) of the class; its mean over the classes is **mAP** (Everingham et
# al., 2015). All mAP in this lesson are of that kind, with an overlap of one half.
#
# ### Exercise 11.4: average precision

# %% tags=["exercise"]
check("11.4", average_precision)

# %%
found = {"float": detect.find(network, scenes)}
for label, name in enumerate(detect.CLASSES):
    print(f"{name:9} AP {100 * detect.average_precision(found['float'], shapes, label):5.1f} %")
maps = {"float": detect.mean_average_precision(found["float"], shapes)}
assert maps["float"] > 70

# %% [markdown]
# How sure is that number? Other scenes would give another one. So draw 80 scenes out of these 80, some of them twice and
# others not at all, compute the mAP, and do it again two hundred times: the standard deviation of what comes out is the
# **standard error** (the bootstrap; Efron, 1979). Two detectors are compared on the *same* draws, for most of the chance
# lies in the scenes, and both see the same ones.

# %%
drawn = {"float": detect.resampled(found["float"], shapes)}
print(f"float: mAP {maps['float']:.1f} % ± {drawn['float'].std():.1f}, on {len(scenes)} test scenes")

# %% [markdown]
# ## Into integers
#
# All layers, backbone and heads, become int8 by the same three lines as ever. Calibration sees training scenes
# only. The weights get 7 bits where this processor would saturate (lesson 5).
#
# The backbone is a MobileNetV2 with its depthwise convolutions, and each head begins with one. Weights get 8 bits, then
# 4, with one scale for all of a layer's weights or one for each channel. **Predict** what 4 bits and a single scale cost.


# %%
def quantized(bits, granularity):
    """PTQ: prepare, calibrate on training scenes, convert."""
    qconfig = QConfig.w8a8(reduce_range=saturates)
    qconfig = replace(qconfig, weight=replace(qconfig.weight, bits=bits, granularity=granularity))
    prepared = qlab.prepare(network, qconfig, torch.zeros(1, 3, detect.SIDE, detect.SIDE))
    qlab.calibrate(prepared, calibration.batches(16))
    return prepared, qlab.convert(prepared)


def measured(name, net):
    """Find the boxes of a network in all scenes; (points of mAP below float, their standard error), and both as a line."""
    found[name] = detect.find(net, scenes)
    maps[name], drawn[name] = detect.mean_average_precision(found[name], shapes), detect.resampled(found[name], shapes)
    below, chance = maps["float"] - maps[name], float((drawn[name] - drawn["float"]).std())
    return below, chance, f"{name:20} mAP {maps[name]:5.1f} %, {-below:+5.1f} points ± {chance:.1f}"


saturates = engines.saturates_on(engines.choose()[0], network)
prepared, int8, below = {}, {}, {}
for bits in (8, 4):
    for share in (PerTensor(), PerChannel(0)):
        name = f"{bits} bits, {'per tensor' if share == PerTensor() else 'per channel'}"
        prepared[name], int8[name] = quantized(bits, share)
        below[name] = measured(name, int8[name])
table = "\n".join(line for _below, _chance, line in below.values())
answer, chance, _line = below["4 bits, per tensor"]
channel, eight, eight_channel = (below[f"{name}"][0] for name in ("4 bits, per channel", "8 bits, per tensor", "8 bits, per channel"))
predict("11b", table, answer=answer, chance=chance, channel=channel, eight=eight, eight_channel=eight_channel)

# %% [markdown]
# **Explain.** With 8 bits there are codes enough for either way: what is lost there is within twice its standard error,
# which may be chance. With 4 bits a scale for each channel saves a part of what a single one costs, and that is not chance:

# %%
print(table)
saved = drawn["4 bits, per channel"] - drawn["4 bits, per tensor"]
points = maps["4 bits, per channel"] - maps["4 bits, per tensor"]
print(f"\n4 bits: a scale for each channel brings {points:.1f} points ± {saved.std():.1f}")
assert points > 2 * saved.std() and answer > 2 * chance
assert all(below[name][0] < 2 * below[name][1] + 0.5 for name in ("8 bits, per tensor", "8 bits, per channel"))

# %% [markdown]
# ### What stays in float
#
# Only what puts the heads' outputs into one tensor, at the very end: other shapes, and a concatenation. No arithmetic is
# done there, and so each head keeps a grid of its own. The softmax of the scores, the exponentials of exercise 11.2 and
# the suppression come behind the network, in float: they need range and order more than speed.

# %% tags=["nbval-check-output"]
report = int8["8 bits, per channel"].report()
print(report.headline.split(";")[0])
in_float = [row for row in report if row.float_because]
for kind in sorted({row.kind for row in in_float}):
    because = {row.float_because for row in in_float if row.kind == kind}
    print(f"  in float, {kind}: {', '.join(because)}")
assert not any("conv" in row.kind for row in in_float)

# %% [markdown]
# ### Which layers does a single scale hurt?
#
# The SQNR (lesson 1) of the weights tells, without a single image:

# %%
noise, layers = {}, dict(prepared["4 bits, per tensor"].weighted())
for name in ("4 bits, per tensor", "4 bits, per channel"):
    noise[name.split(", ")[1]] = {
        layer: analysis.sqnr(module.weight.detach(), module.weight_quantizer(module.weight).detach())
        for layer, module in prepared[name].weighted()
    }
gain = {layer: noise["per channel"][layer] - noise["per tensor"][layer] for layer in layers}
print("4 bits, SQNR in dB                per tensor   per channel")
for layer in sorted(gain, key=gain.get, reverse=True)[:6]:
    kind = plots.readable(layer, layers[layer])
    print(f"{kind:35} {noise['per tensor'][layer]:8.1f} {noise['per channel'][layer]:13.1f}")
gains = {
    kind: torch.tensor([gain[layer] for layer in layers if (layers[layer].groups > 1) == (kind == "depthwise")])
    for kind in ("depthwise", "other")
}
print("a scale for each channel brings", ", ".join(f"{each.median():.1f} dB in {kind} layers" for kind, each in gains.items()))
assert gains["depthwise"].median() > gains["other"].median() + 1 and min(gain.values()) > 0

# %% [markdown]
# The channels of a depthwise layer differ more in size than those of others. Under a common scale the small ones are left
# with few of the 15 codes:

# %%
largest = {name: layer.weight.detach().abs().amax((1, 2, 3)) for name, layer in layers.items()}
spreads = {
    kind: torch.tensor([largest[name].max() / largest[name].median() for name, layer in layers.items() if (layer.groups > 1) == deep])
    for kind, deep in (("depthwise", True), ("other", False))
}
for kind, each in spreads.items():
    print(f"{kind:9} layers: the largest channel is {each.median():.1f} times as large as the median one")
layer = max((layer for layer in layers if layers[layer].groups > 1), key=gain.get)
print(f"\n{plots.readable(layer, layers[layer])}, with 4 bits:")
for name in ("per tensor", "per channel"):
    module = dict(prepared[f"4 bits, {name}"].weighted())[layer]
    codes = [len(channel.unique()) for channel in module.weight_quantizer(module.weight).detach()]
    few = sum(count <= 2 for count in codes) / len(codes)
    print(f"  {name:11} {few:.0%} of the channels use one or two codes for their {module.weight[0].numel()} weights")
assert few < 0.05 and spreads["depthwise"].median() > 1.2 * spreads["other"].median()

# %% [markdown]
# ## Training with the rounding
#
# QAT (lesson 7) works for a detector as for a classifier; only the loss is another one, and `qlab.qat.fit` takes it
# as an argument:
#
# ```python
# prepared = qlab.prepare(network, qlab.qat.qconfig("w8a8"), torch.zeros(1, 3, 160, 160))
# qlab.calibrate(prepared, detect.scenes("train", 256).batches(32))
# qlab.qat.fit(prepared, detect.scenes("train", 3000), loss=detect.loss())
# ```
#
# That takes minutes (`python tools/train_detector.py --qat`), so its result comes with the course:

# %%
int8["QAT"] = qlab.convert(detect.load_qat())
below["QAT"] = measured("QAT", int8["QAT"])
for name in ("8 bits, per channel", "QAT"):
    print(below[name][2])
difference = float((drawn["QAT"] - drawn["8 bits, per channel"]).std())
points = maps["QAT"] - maps["8 bits, per channel"]
print(f"QAT against PTQ: {points:+.1f} points ± {difference:.1f}:", "more than chance" if abs(points) > 2 * difference else "may be chance")
assert maps["QAT"] > maps["float"] - 4

# %% [markdown]
# Where 8 bits lose next to nothing, there is next to nothing to bring back (lesson 8). `tools/bench_detect.py` measures on
# many more scenes.
#
# ## Frames a second
#
# The same integers run on several engines (lesson 5), and which one is fastest depends on the processor *and* on the
# network: here are many small layers, and one image at a time. Between small layers Python itself takes its time, so the
# int8 networks are **captured** (lesson 5) where an engine allows it. The float network is not: compare it with the row
# that is not captured, too.

# %% tags=["timing"]
image = scenes.images[0]
one = detect.normalize(image[None])
usable = [name for name, engine in engines.available().items() if engine.usable and name != "reference"]
on_engines = {"float": network, f"{usable[0]}, not captured": int8["QAT"].on(usable[0])}
on_engines |= {name: bench.captured(int8["QAT"].on(name), one) for name in usable}
timings = bench.compare(on_engines, one, rounds=7, sqnr=0, progress=False)
fastest = min(usable, key=lambda name: timings[name].ms)
print(timings)
if timings[usable[0]].ms < timings[f"{usable[0]}, not captured"].ms:
    print(f"capturing saves {timings[f'{usable[0]}, not captured'].ms - timings[usable[0]].ms:.1f} ms a frame")

# %% [markdown]
# What counts is the time from the frame to its boxes. It has three parts: normalizing the image, the network, and decoding
# with its suppression. int8 changes the network alone. **Predict** what the whole gains.

# %% tags=["timing"]
nets = {"float": network, "int8": on_engines[fastest]}
spent = measure.times_of_parts(nets, image)
words = {part: f"{spent[part, 'float']:.2f} and {spent[part, 'int8']:.2f}" for part in ("normalizing", "network", "decoding")}
table = "\n".join(f"{part:12} {name:6} {ms:6.2f} ms" for (part, name), ms in spent.items())
faster = {part: spent[part, "float"] / spent[part, "int8"] for part in ("network", "whole")}
predict("11c", table, answer=faster["whole"], alone=faster["network"], **words)

# %% [markdown]
# **Explain.** The rest takes its time as before, and so the whole gains less than the network does: that is **Amdahl's
# law**. The smaller the share of the network, the less is gained. (Of 15 rounds the fastest counts: the least disturbed.)

# %% tags=["timing"]
rest = spent["normalizing", "int8"] + spent["decoding", "int8"]
least = (spent["network", "float"] + rest) / rest
print(f"the network is {faster['network']:.1f} times as fast, the whole {faster['whole']:.1f} times")
print(f"with a network that takes no time at all the whole would be {least:.0f} times as fast, and no more")

# %% [markdown]
# ## Never fall behind
#
# A camera sends a frame every 33 ms, whether you are ready or not. If a detector needs 50 ms and takes every
# frame in turn, the others wait in a queue. If it always takes the *newest* frame, it drops some. **Predict** how old what
# you see is in the first case.


# %%
def age_of_what_is_shown(seconds, latency, fps, drop):
    """How old the frame is, in seconds, whose boxes are shown last before `seconds` have gone by."""
    now, number = 0.0, -1
    while now + latency <= seconds:
        newest = int(now * fps + 1e-9)
        number = max(number + 1, newest) if drop else number + 1
        now = max(now, number / fps) + latency  # a frame cannot be taken before it is there
    return now - number / fps


ages = {(latency, drop): age_of_what_is_shown(10, latency, 30, drop) for latency in (0.025, 0.05) for drop in (False, True)}
table = "\n".join(
    f"{1000 * latency:.0f} ms a frame: {ages[latency, False]:.2f} s old if frames queue up, {ages[latency, True]:.2f} s if "
    "they are dropped"
    for latency in (0.025, 0.05)
)
predict("11d", table, answer=ages[0.05, False], dropped=ages[0.05, True])

# %% [markdown]
# **Explain.** A queue that grows is worse than frames that are lost: the image stays smooth, but it shows the past, and
# the past gets longer, by a third of each second. Only a detector that is faster than the camera needs no dropping.

# %%
print(table)
twice = age_of_what_is_shown(20, 0.05, 30, False)
print(f"after 20 seconds of 50 ms a frame it is {twice:.2f} s")
assert all(ages[latency, True] <= latency + 1 / 30 for latency in (0.025, 0.05)) and ages[0.025, False] <= 0.025 + 1 / 30
assert abs(twice - ages[0.05, False] - 10 / 3) < 0.1

# %% [markdown]
# ### Frames that are dropped
#
# `detect.open_source` gives the newest frame and counts what it dropped. Here a detector rests until a tenth of a second
# is over, which is three frames of the camera:

# %% tags=["timing"]
detector = detect.Detector(network)
with detect.open_source("scene:4") as source:
    for _number, frame in zip(range(4), source):
        detector(frame.image)
        time.sleep(0.1)
        print(f"frame {frame.number}: {len(frame.truth)} shapes, {source.dropped} frames dropped so far")
assert frame.number == 3 + source.dropped and source.dropped >= 3

# %% [markdown]
# ## Live
#
# Both networks on one video: left float, right int8. The panel shows a few frames and waits. Press **start**; it
# stops by **stop**, or by itself after a minute.
#
# **Predict**, then **move** the least score down to 5 %, and watch both sides while shapes cover each other. Then 70 %.

# %% tags=["timing"]
sides = [detect.find(net, scenes, threshold=0.3) for net in (network, int8["QAT"])]
scores, twins = measure.found_too(*sides)
there = {"sure": twins[scores >= 0.7], "unsure": twins[scores < 0.7]}
missed = {name: 100 * float(1 - some.double().mean()) for name, some in there.items()}
answer = 2 if abs(missed["sure"] - missed["unsure"]) < 1 else int(missed["unsure"] > missed["sure"])
panel = panels.live_detection(lambda: detect.open_source("scene:4"), nets, {"float": maps["float"], "int8": maps["QAT"]})
predict("11e", panel, answer=answer, **missed)

# %% [markdown]
# **Explain.** Where a network is sure, the two agree. Quantization adds a little noise to every score, and a little
# noise decides only where the score was near the threshold anyhow:

# %%
for name, words in (("sure", "at least 0.7"), ("unsure", "below 0.7")):
    print(f"float boxes with scores {words}: int8 finds {int(there[name].sum())} of {len(there[name])} too")
alone, unsure = scores[~twins], scores[scores < 0.7]
if len(alone):
    print(f"the boxes that int8 misses have a median score of {alone.median():.2f}, all unsure ones {unsure.median():.2f}; the threshold is 0.30")
    assert alone.median() <= unsure.median()
assert missed["sure"] < 5 and missed["sure"] <= missed["unsure"]

# %% [markdown]
# ## Your own video
#
# A folder of images is a video too, and needs nothing. Files and webcams are read by OpenCV:
# `python3 tools/install.py video` in the course's folder adds it (Windows: `py tools\install.py video`). In this
# notebook, put one of these into the panel above in place of `"scene:4"`:
#
# ```python
# detect.open_source("webcam")         # or "webcam:1" for the second camera
# detect.open_source("holiday.mp4")
# detect.open_source("my_images")    # a folder
# ```
#
# The course's detector knows shapes: cut some out of coloured paper and hold them up. For everyday things there is
# torchvision's SSDLite, trained on the 80 classes of COCO (Lin et al., 2014). It is fetched once, 13 MB, and stays
# in float here: its hard-swish activations have no integer kernel in `qlab`. In a terminal:
#
# ```bash
# qlab detect                                     # the made scene; Ctrl-C ends it
# qlab detect --source webcam --engine auto       # a line a second: milliseconds, frames dropped, what is there
# qlab detect --source holiday.mp4 --out boxes    # frames with their boxes, as images in the folder boxes
# qlab detect --source webcam --network coco
# ```
#
# What is missing is said in one line:

# %% tags=["nbval-check-output"]
try:
    detect.open_source("my_images")
except ValueError as error:
    print(error)

# %% [markdown]
# ## On a Raspberry Pi
#
# The same command runs on a Raspberry Pi 4 or 5. PyTorch's wheels for ARM are 64-bit only, so install **Raspberry
# Pi OS (64-bit)**. Then, in a terminal on the Pi, in a clone of this course:
#
# ```bash
# sudo apt install python3-venv git          # Raspberry Pi OS wants packages in an environment of their own
# python3 -m venv pi && source pi/bin/activate
# pip install ".[video]"                     # torch, torchvision, OpenCV: all have wheels for 64-bit ARM
# qlab doctor                                # engine qnnpack should say: works, "auto" takes it
# qlab bench resnet20                        # float and int8 on your Pi
# qlab detect --source webcam --engine auto
# qlab detect --source webcam --network float   # to compare
# ```
#
# - **Engine.** On ARM, `auto` takes **qnnpack**, the kernels made for it. It adds products up in 32 bits, so nothing
#   saturates there, and 8-bit activations are fine.
# - **Camera.** A USB webcam is the simplest: it appears as `/dev/video0`, which is what `webcam` opens. The flat
#   camera modules are read through libcamera, which OpenCV does not open by itself; the package `picamera2` does.
# - **Threads.** PyTorch takes all four cores. If single frames take far longer than the others, leave two cores to
#   the camera and the desktop: `--threads 2`.
# - **Heat.** A Pi gets slower when it gets hot. Measure after some minutes, not in the first seconds.
#
# What to expect? We have not measured this detector on a Pi, so we claim nothing. PyTorch's tutorial (T. Rice, below)
# reports about 30 frames a second on a Pi 4, and 41 on a Pi 5, for a *classifier*: an int8 MobileNetV2 of full width
# at 224x224 pixels with `torch.jit`, and about 20 on the Pi 4 without. `qlab detect` prints what yours does.
#
# ## Three questions

# %%
quiz(11)

# %% [markdown]
# ## What to remember
#
# - A detector says **scores and offsets for anchors**. Integers do that part; decoding and suppression stay in
#   float, behind it.
# - Boxes are compared by **IoU**; a detector is judged by **mAP**, over all thresholds at once.
# - Depthwise layers, in the backbone and in the heads, want **one scale a channel**. QAT needs nothing but the loss.
# - An mAP on a few scenes is uncertain: compare detectors on the **same** scenes, and say how sure the difference is.
# - Time the **whole** way from frame to boxes: what is not quantized limits what int8 can gain.
# - A live system **drops** frames. A queue that grows shows the past.
#
# ## For teachers
#
# - Common misconceptions: "mAP depends on the threshold that I show boxes at"; "a loop that shows every frame is
#   more exact". The queue's cell settles the second one.
# - Students get stuck in exercise 11.3 at the ghosts: a box that went must not take others along. Draw three boxes
#   in a row.
# - With a webcam, let the class cut shapes out of paper. The network has never seen a photograph: discuss why it
#   fails where it does. Ten minutes well spent.
#
# ## Papers
#
# - W. Liu et al., *SSD: single shot multibox detector*, ECCV 2016,
#   [arXiv:1512.02325](https://arxiv.org/abs/1512.02325): anchors, matching, the loss.
# - M. Sandler et al., *MobileNetV2: inverted residuals and linear bottlenecks*, CVPR 2018,
#   [arXiv:1801.04381](https://arxiv.org/abs/1801.04381): section 6.2 is SSDLite.
# - M. Everingham et al., *The Pascal visual object classes challenge: a retrospective*, IJCV 111, 2015: average
#   precision.
# - T.-Y. Lin et al., *Microsoft COCO: common objects in context*, ECCV 2014,
#   [arXiv:1405.0312](https://arxiv.org/abs/1405.0312).
# - B. Efron, *Bootstrap methods: another look at the jackknife*, Annals of Statistics 7, 1979.
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only inference*,
#   CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): section 4.2.2 measures int8 SSD on phones.
# - T. Rice, *Real time inference on Raspberry Pi 4 and 5*, PyTorch tutorials,
#   [docs.pytorch.org](https://docs.pytorch.org/tutorials/intermediate/realtime_rpi.html).
