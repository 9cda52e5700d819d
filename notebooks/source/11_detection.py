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
from dataclasses import replace

import torch

import qlab
from qlab import PerChannel, PerTensor, QConfig, analysis, bench, detect
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson11 import panels
from qlab.course.quiz import quiz
from qlab.int8 import engines

network = detect.load()
scenes = detect.scenes("test", 80)
calibration = detect.scenes("train", 64)
print(f"{len(scenes)} test scenes of {detect.SIDE}x{detect.SIDE} pixels with up to seven shapes")
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

# %% tags=["nbval-check-output"]
x, truths = next(scenes.batches(8))
with torch.inference_mode():
    output = network(x)
print("output:", tuple(output.shape), "= images, anchors at a place, offsets and scores, places")
anchors = 2 * (20**2 + 10**2 + 5**2)
print(f"{anchors:,} anchors, each with 4 offsets, 1 score of the ground and {len(detect.CLASSES)} of the classes")
assert tuple(output.shape) == (8, 2, 4 + 1 + len(detect.CLASSES), anchors // 2)

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
# $e^{0.2\, d_h}$. (The factors 0.1 and 0.2 make all four numbers about equally large, which helps the training
# and, as you will see, the quantization.)

# %% tags=["exercise"]
check("11.2", decode)

# %% [markdown]
# ## Many boxes for one thing
#
# Anchors that stand side by side see the same thing, and each of them says so. **Non-maximum suppression** (NMS)
# clears up: of two boxes of one class that overlap too much, the surer one stays.
#
# **Predict.** Below, boxes of one class may overlap by 95 %, so next to nothing is suppressed. How much overlap
# would you allow? And what goes wrong if you allow none at all?
#
# **Move** the overlap down to 45 %, then to 5 %. Then go back to 45 % and move the score: what do you lose above,
# what do you get below?

# %%
with torch.inference_mode():
    candidates = detect.read(output, threshold=0.05, overlap=1.0)
chosen = max(range(8), key=lambda number: len(scenes.boxes(number)))
panels.suppression(scenes.images[chosen], candidates[chosen], scenes.boxes(chosen), detect.CLASSES)

# %% [markdown]
# **Explain.** With much overlap allowed, doubles stay. With little, a shape loses its box when another one of its
# class stands in front of it. About one half is usual. The score is a choice of another kind: a low one finds
# more and is more often wrong. So a detector has no single accuracy. It has a curve.

# %%
count = {allowed: sum(len(found) for found in detect.read(output, 0.3, allowed)) for allowed in (0.95, 0.45, 0.05)}
for allowed, boxes in count.items():
    print(
        f"overlaps of up to {allowed:.0%} allowed: {boxes} boxes for {sum(map(len, map(scenes.boxes, range(8))))} shapes"
    )
assert count[0.95] > count[0.45] >= count[0.05]

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
found = detect.find(network, scenes)
shapes = [scenes.boxes(number) for number in range(len(scenes))]
for label, name in enumerate(detect.CLASSES):
    print(f"{name:9} AP {100 * detect.average_precision(found, shapes, label):5.1f} %")
maps = {"float": detect.mean_average_precision(found, shapes)}
print(f"\nfloat: mAP {maps['float']:.1f} % on {len(scenes)} test scenes")
assert maps["float"] > 70

# %% [markdown]
# ## Into integers
#
# All layers, backbone and heads, become int8 by the same three lines as ever. Calibration sees training scenes
# only. The weights get 7 bits where this processor would saturate (lesson 5).
#
# **Predict.** The backbone is a MobileNetV2 with its depthwise convolutions, and each head begins with one. Weights
# get 8 bits, then 4. How many points of mAP will one scale for all of a layer's weights cost? And one scale a channel?


# %%
def quantized(bits, granularity):
    """PTQ: prepare, calibrate on training scenes, convert."""
    qconfig = QConfig.w8a8(reduce_range=saturates)
    qconfig = replace(qconfig, weight=replace(qconfig.weight, bits=bits, granularity=granularity))
    prepared = qlab.prepare(network, qconfig, torch.zeros(1, 3, detect.SIDE, detect.SIDE))
    qlab.calibrate(prepared, calibration.batches(16))
    return prepared, qlab.convert(prepared)


saturates = engines.saturates_on(engines.choose()[0], network)
prepared, int8 = {}, {}
for bits in (8, 4):
    for share in (PerTensor(), PerChannel(0)):
        name = f"{bits} bits, {'per tensor' if share == PerTensor() else 'per channel'}"
        prepared[name], int8[name] = quantized(bits, share)
        maps[name] = detect.evaluate(int8[name], scenes)
for name, value in maps.items():
    print(f"{name:20} mAP {value:5.1f} %, {value - maps['float']:+.1f} points")
assert maps["8 bits, per channel"] > maps["float"] - 6
assert maps["4 bits, per channel"] > maps["4 bits, per tensor"] + 5

# %% [markdown]
# What is left in float is at the very end: other views of the heads' outputs, and their concatenation. No arithmetic is
# done there, and so each head keeps a grid of its own. The softmax of the scores, the exponentials of exercise 11.2
# and the suppression come behind the network, in float: they need range and order more than speed.

# %% tags=["nbval-check-output"]
report = int8["8 bits, per channel"].report()
print(report.headline.split(";")[0])
in_float = [row for row in report if row.float_because]
for kind in sorted({row.kind for row in in_float}):
    because = {row.float_because for row in in_float if row.kind == kind}
    print(f"  in float, {kind}: {', '.join(because)}")
assert not any("conv" in row.kind for row in in_float)

# %% [markdown]
# Which layers does a single scale hurt? The SQNR (lesson 1) of the weights tells, without a single image:

# %%
noise = {}
for name in ("4 bits, per tensor", "4 bits, per channel"):
    noise[name.split(", ")[1]] = {
        layer: analysis.sqnr(module.weight.detach(), module.weight_quantizer(module.weight).detach())
        for layer, module in prepared[name].weighted()
    }
layers = dict(prepared["4 bits, per tensor"].weighted())
worst = sorted(noise["per tensor"], key=noise["per tensor"].get)[:6]
print("4 bits, SQNR in dB     per tensor   per channel")
for layer in worst:
    kind = "depthwise" if layers[layer].groups > 1 else ""
    print(f"{layer:22} {noise['per tensor'][layer]:10.1f} {noise['per channel'][layer]:13.1f}  {kind}")
assert all(noise["per channel"][layer] > noise["per tensor"][layer] for layer in worst)

# %% [markdown]
# With 8 bits there are codes enough for both. With 4 bits a depthwise channel whose weights are small gets one or two
# codes under a common scale, and its noise goes through all layers to the boxes.

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
maps["QAT"] = detect.evaluate(int8["QAT"], scenes)
for name, value in maps.items():
    print(f"{name:20} mAP {value:5.1f} %, {value - maps['float']:+.1f} points")
assert maps["QAT"] > maps["float"] - 4

# %% [markdown]
# Mind the noise: on so few scenes a point of mAP is a handful of boxes. Where 8 bits lose next to nothing, there is
# next to nothing to bring back (lesson 8). `tools/bench_detect.py` measures on many more scenes.
#
# ## Frames a second
#
# The same integers run on several engines (lesson 5), and which one is fastest depends on the processor *and* on the
# network: here are many small layers, and one image at a time. Between small layers Python itself takes long, so the
# networks are **captured** (lesson 5) where an engine allows it.

# %% tags=["timing"]
image = scenes.images[0]
one = detect.normalize(image[None])
usable = [name for name, engine in engines.available().items() if engine.usable and name != "reference"]
on_engines = {"float": network, **{name: bench.captured(int8["QAT"].on(name), one) for name in usable}}
timings = bench.compare(on_engines, one, rounds=7, sqnr=0, progress=False)
fastest = min(usable, key=lambda name: timings[name].ms)
print(timings)

# %% [markdown]
# What counts is the time from the frame to its boxes. **Predict** which of three parts gets faster by int8:
# normalizing the image, the network, or decoding and suppression?

# %% tags=["timing"]
nets = {"float": network, "int8": on_engines[fastest]}
both = {name: detect.Detector(net) for name, net in nets.items()}
with torch.inference_mode():
    parts = {
        "normalizing": lambda: detect.normalize(image[None]),
        "decoding, NMS": lambda: detect.read(output[:1], 0.3),
    }
    for name in nets:
        parts[f"network, {name}"] = lambda name=name: nets[name](one)
        parts[f"whole, {name}"] = lambda name=name: both[name](image)
    for name, seconds in bench.interleave(parts, rounds=7, progress=False).items():
        print(f"{name:15} {1000 * sorted(seconds)[3]:6.2f} ms")

# %% [markdown]
# Only the network gets faster. The rest takes its time as before, and so the whole gains less than the network
# does: that is **Amdahl's law**.
#
# ## Never fall behind
#
# A camera sends a frame every 33 ms, whether you are ready or not. If a detector needs 50 ms and takes every
# frame in turn, the others wait in a queue. If it always takes the *newest* frame, it drops some.
#
# **Predict.** How old is the frame that is shown after ten seconds, in either case?


# %% tags=["nbval-check-output"]
def age_of_what_is_shown(seconds, latency, fps, drop):
    """How old the frame is, in seconds, whose boxes are shown last before `seconds` have gone by."""
    now, number = 0.0, -1
    while now + latency <= seconds:
        newest = int(now * fps + 1e-9)
        number = max(number + 1, newest) if drop else number + 1
        now = max(now, number / fps) + latency  # a frame cannot be taken before it is there
    return now - number / fps


for latency in (0.025, 0.050):
    queued, dropped = (age_of_what_is_shown(10, latency, 30, drop) for drop in (False, True))
    print(
        f"{1000 * latency:.0f} ms a frame: {queued:.2f} s old if frames queue up, {dropped:.2f} s if they are dropped"
    )
    assert dropped <= latency + 1 / 30
assert age_of_what_is_shown(20, 0.05, 30, False) > 1.9 * age_of_what_is_shown(10, 0.05, 30, False)

# %% [markdown]
# A queue that grows is worse than frames that are lost: the image stays smooth, but it shows the past, and the
# past gets longer. `detect.open_source` gives the newest frame and counts what it dropped:

# %% tags=["timing"]
with detect.open_source("scene:4") as source:
    for number, frame in zip(range(4), source):
        sum(len(both["float"](frame.image)) for _again in range(3))  # a detector that is three times too slow
        print(f"frame {frame.number}: {len(frame.truth)} shapes, {source.dropped} frames dropped so far")
assert frame.number == 3 + source.dropped

# %% [markdown]
# ## Live
#
# Both networks on one video: left float, right int8. The panel shows a few frames and waits. Press **start**; it
# stops by **stop**, or by itself after a minute.
#
# **Predict.** Where will the two differ: on sure boxes, or on unsure ones?
#
# **Move** the least score down to 5 %, and watch both sides while shapes cover each other. Then 70 %.

# %% tags=["timing"]
panels.live_detection(lambda: detect.open_source("scene:4"), nets, {"float": maps["float"], "int8": maps["QAT"]})

# %% [markdown]
# **Explain.** Where a network is sure, the two agree. Quantization adds a little noise to every score, and a little
# noise decides only where the score was near the threshold anyhow:

# %%
answers = {name: detect.find(net, scenes, threshold=0.3) for name, net in (("float", network), ("int8", int8["QAT"]))}
sure, unsure = [], []
for one_side, other in zip(answers["float"], answers["int8"]):
    same = detect.iou(one_side.xyxy, other.xyxy) * (one_side.labels[:, None] == other.labels)
    has_twin = (same > 0.5).any(1)
    sure += has_twin[one_side.scores >= 0.7].tolist()
    unsure += has_twin[one_side.scores < 0.7].tolist()
for name, some in (("at least 0.7", sure), ("below 0.7", unsure)):
    print(f"float boxes with scores {name}: int8 finds {sum(some) / len(some):.1%} of {len(some)} too")
assert sum(sure) / len(sure) > 0.9 and sum(sure) / len(sure) >= sum(unsure) / len(unsure)

# %% [markdown]
# ## Your own video
#
# A folder of images is a video too, and needs nothing. Files and webcams are read by OpenCV:
# `pip install "qlab[video]"`. In this notebook, put one of these into the panel above in place of `"scene:4"`:
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
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only inference*,
#   CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): section 4.2.2 measures int8 SSD on phones.
# - T. Rice, *Real time inference on Raspberry Pi 4 and 5*, PyTorch tutorials,
#   [docs.pytorch.org](https://docs.pytorch.org/tutorials/intermediate/realtime_rpi.html).
