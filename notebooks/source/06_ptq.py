# %% [markdown]
# # 6. PTQ from end to end
#
# **Post-training quantization** (PTQ) takes a trained network and some images without labels. With 8 bits
# it takes a minute and costs little. With 4 bits it must be done with care: here you go through the whole
# pipeline, find the layers that suffer, give them more bits, and repair what rounding has spoilt. Nothing is
# trained.
#
# **After this lesson you can**
# - take a network from float to integers step by step, and check each step;
# - find the layers that a network is sensitive to, and spend bits where they help most;
# - repair 4 bits with better ranges, bias correction and AdaRound.
#
# **Time:** 50 minutes. **You need:** lessons 2 (observers) and 5 (integers).

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import qlab
from qlab import QConfig, analysis
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson06 import panels
from qlab.course.quiz import quiz

network = qlab.models.load("resnet20", data=qlab.data.available().name)
calibration = qlab.data.at_hand("train").sample(128)
test = qlab.data.at_hand("test").sample(300)
held_out, _ = next(test.batches(64))
with torch.inference_mode():
    float_answers = network(held_out)
banner(test)

# %% [markdown]
# ## The pipeline
#
# **Prepare**: BatchNorm is folded into the convolution before it, and a fake-quantizer is put on every edge
# that will carry codes. The report says what will be quantized, and what not and why: read it each time.

# %%
prepared = qlab.prepare(network, QConfig.w8a8(reduce_range=True))
report = prepared.report()
print(len(report), "layers; in float:", ", ".join(report.in_float) or "none")
print(report[0], report[-1], sep="\n")
assert not report.in_float

# %% [markdown]
# **Calibrate**: the observers see images of the training split, and each range becomes a grid. **Evaluate**
# the fake-quantized network, against the float one on the same images.

# %%
qlab.calibrate(prepared, calibration.batches(64))
top1 = {"float": qlab.evaluate(network, test), "w8a8": qlab.evaluate(prepared, test)}
print(f"right answers: float {top1['float']:.1f} %, fake-quantized {top1['w8a8']:.1f} %")
assert top1["w8a8"] > top1["float"] - 3

# %% [markdown]
# **Convert**: real integers. Do they **agree** with the fake-quantized floats? They compute the same on
# paper; a float sum is rounded a little, so a value may fall to the neighbouring code, and that can go on
# from layer to layer. The SQNR between the two says how much that is.

# %%
int8 = qlab.convert(prepared, engine="reference")
with torch.inference_mode():
    fake, real = prepared(held_out), int8(held_out)
same = (fake.argmax(1) == real.argmax(1)).float().mean()
print(f"{analysis.sqnr(fake, real):.1f} dB; the same answer on {same:.0%} of {len(fake)} images")
print(f"beside it, fake quantization against float: {analysis.sqnr(float_answers, fake):.1f} dB")
assert analysis.sqnr(fake, real) > 20 and same > 0.9

# %% [markdown]
# **Save**: codes, scales and biases go to one file; loaded again, it gives the same answers.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "resnet20.safetensors"
    qlab.save(int8, path)
    print(f"{path.stat().st_size / 1024:.0f} KiB, in float {qlab.bench.file_bytes(network) / 1024:.0f} KiB")
    with torch.inference_mode():
        assert torch.equal(qlab.load(path, engine="reference")(held_out), real)

# %% [markdown]
# ## Where is the noise?
#
# With fewer bits, which layer suffers? Run the float and the quantized network on the same images and
# compare what each layer gives: the **SQNR** of lesson 1, layer by layer.
#
# **Predict.** In which direction does the SQNR go from the first layer to the last? And what is worse with 4
# bits: to quantize the weights or the activations?
#
# **Move** the bits from 8 down to 2. At 4, choose weights alone, then activations alone.


# %%
def tables_of(bits):
    """The SQNR of each layer with these bits: weights and activations, weights alone, activations alone."""
    quantized = qlab.prepare(network, QConfig.preset(f"w{bits}a{bits}", first_last=None))
    qlab.calibrate(quantized, [held_in])
    found = {}
    for what in ("both", "weights", "activations"):
        with quantized.quantizing(weights=what != "activations", activations=what != "weights"):
            found[what, bits] = analysis.layer_sqnr(quantized, [held_in[:16]])
    return found


held_in, _ = next(calibration.batches(32))
tables = {key: table for bits in range(2, 9) for key, table in tables_of(bits).items()}
panels.layer_noise(tables)

# %% [markdown]
# **Explain.** Each layer gets the noise of all layers before it and adds its own. A bit more gives about 6
# dB, as in lesson 1. Weights and activations together have more noise than either:

# %%
answers = {key: table[-1].output for key, table in tables.items()}
for bits in (8, 6, 4):
    words = [f"{what} {answers[what, bits]:.1f} dB" for what in ("weights", "activations", "both")]
    print(f"{bits} bits:", ", ".join(words))
a_bit = (answers["both", 8] - answers["both", 5]) / 3
print(f"{a_bit:.1f} dB a bit")
assert 4 < a_bit < 8 and answers["both", 6] < min(answers["weights", 6], answers["activations", 6]) + 0.5

# %% [markdown]
# ## Which layer hurts?
#
# The noise in a layer is one thing, what it does to the answers is another. **Sensitivity** quantizes one
# layer at a time (its weights and its input, here with 4 bits), leaves all others in float, and looks at the
# answers.

# %%
w4a4 = QConfig.preset("w4a4", first_last=None)
quantized = qlab.calibrate(qlab.prepare(network, w4a4), calibration.batches(64))
rows = analysis.sensitivity(quantized, calibration.subset(slice(48)).batches(48))
for row in (*rows[:4], *rows[-2:]):
    print(f"{row.layer:20} {row.sqnr:5.1f} dB")
assert rows[0].sqnr < rows[-1].sqnr - 5

# %% [markdown]
# **Selective quantization** leaves the layers that hurt most at more bits (Wu et al., 2020). Together with
# the percentile 99.99 for the activations (lesson 2) it is the first thing that practitioners try. To see
# that it matters *which* layers are spared, the last line spares the three that hurt least.


# %%
def judged(qconfig):
    """(SQNR in dB of the answers, right answers in percent) of the network under a configuration."""
    net = qlab.calibrate(qlab.prepare(network, qconfig), calibration.batches(64))
    with torch.inference_mode():
        return analysis.sqnr(float_answers, net(held_out)), qlab.evaluate(net, test)


percentile = QConfig.preset("w4a4", first_last=None, observer="percentile")
choices = {
    "min-max, all 4 bits": w4a4,
    "percentile, all 4 bits": percentile,
    "percentile, worst three 8 bits": analysis.selective(rows, percentile, 3, bits=8),
    "percentile, best three 8 bits": analysis.selective(rows[::-1], percentile, 3, bits=8),
}
found = {name: judged(qconfig) for name, qconfig in choices.items()}
for name, (decibel, right) in found.items():
    print(f"{name:32} {decibel:5.1f} dB {right:5.1f} %")
assert found["percentile, worst three 8 bits"][0] > found["percentile, best three 8 bits"][0] + 1

# %% [markdown]
# ## Bits under a budget
#
# More bits for some layers, fewer for others: **mixed precision**. Its size is that of the packed codes.
#
# ### Exercise 6.1: the size

# %% tags=["exercise"]
check("6.1", packed_bytes)

# %% [markdown]
# What does each layer cost in answers, and what in bytes? `bit_costs` quantizes the weights of one layer at a
# time, with each number of bits. If the noises add up, the best bits for each size can be found exactly. All
# sizes at once form a **Pareto front**: the choices that no other beats in size and noise.
#
# **Predict.** With 3 bits on average, which layers get more than 3 bits, and which fewer?
#
# **Move** the budget down from 8 bits on average. Which layers lose bits first?

# %%
costs = analysis.bit_costs(network, calibration.subset(slice(24)).batches(24), (2, 3, 4, 6, 8))
front = analysis.Front(costs)
panels.bit_budget(front)

# %% [markdown]
# **Explain.** A byte is best spent where it removes most noise. The first layer has few weights and all
# others depend on it, so more bits there are cheap and help much. The prediction adds up what single layers
# do; the network itself has the last word. Here are 3 bits for all against the best choice of the same size,
# on images that the search has not seen:

# %%
equal = QConfig.preset("w3a8", first_last=None)
budget = analysis.weight_bytes(qlab.prepare(network, equal))
mixed = front.best(budget)
measured = {name: judged(qconfig) for name, qconfig in (("3 bits for all", equal), ("mixed", mixed.qconfig))}
for name, (decibel, right) in measured.items():
    print(f"{name:15} {decibel:5.1f} dB {right:5.1f} %")
print(f"{budget:,} bytes allowed, {mixed.size_bytes:,} used; {mixed.sqnr:.1f} dB were predicted")
assert mixed.size_bytes <= budget and mixed.bits["conv1"] > 3
assert measured["mixed"][0] > measured["3 bits for all"][0]

# %% [markdown]
# ### Exercise 6.2: a greedy search
#
# A simpler search widens one layer at a time: the one whose noise falls most for each added bit of size. It
# is **greedy**: it takes the best next step and never goes back.

# %% tags=["exercise"]
check("6.2", spend)

# %% [markdown]
# ## Repair
#
# Weights and activations with 4 bits, and nothing to train with: what can still be done? (The first and the
# last layer keep 8 bits, as is usual.)
#
# **Bias correction** (Nagel et al., 2019). The rounding errors of a channel's weights do not cancel. Times
# inputs that are positive behind a ReLU, they move the mean of the whole channel. The bias can move it back.
#
# ### Exercise 6.3: correct a bias

# %% tags=["exercise"]
check("6.3", corrected_bias)

# %% [markdown]
# **AdaRound** (Nagel et al., 2020). Rounding to nearest makes the error of each weight smallest. But what
# counts is the error of the output, and there the error of one weight can make good that of another.
#
# ### Exercise 6.4: up or down?
#
# Two weights can be rounded in four ways. Find the best by trying all.

# %% tags=["exercise"]
check("6.4", best_rounding)

# %% [markdown]
# With 1,000 weights there are $2^{1000}$ ways, too many to try. AdaRound makes up and down a number between 0
# and 1 for each weight, learns these numbers by gradient descent on the layer's output, and pushes them to 0
# or 1.
#
# Now the network. Each row starts from scratch: first min-max, then the percentile, then bias correction on
# top of it.


# %%
def repaired(qconfig, *repairs):
    """(SQNR in dB, right answers in percent) after the repairs."""
    net = qlab.calibrate(qlab.prepare(network, qconfig), calibration.batches(64))
    for repair in repairs:
        repair(net, calibration.batches(64))
    with torch.inference_mode():
        return analysis.sqnr(float_answers, net(held_out)), qlab.evaluate(net, test)


clipped = QConfig.w4a4(observer="percentile")
table = {
    "min-max": repaired(QConfig.w4a4()),
    "percentile": repaired(clipped),
    "percentile + bias correction": repaired(clipped, qlab.correct_bias),
}
print(f"{'float':30}          {top1['float']:5.1f} %")
for name, (decibel, right) in table.items():
    print(f"{name:30} {decibel:5.1f} dB {right:5.1f} %")
assert table["percentile"][0] > table["min-max"][0]

# %% [markdown]
# And AdaRound on top of the percentile, with 64 images and 60 steps a layer (1,000 images and more steps
# are usual):


# %%
def adaround(net, batches):
    """Learn up or down for each weight."""
    return qlab.adaround(net, calibration.subset(slice(64)).batches(64), steps=60)


decibel, right = repaired(clipped, adaround)
print(f"{'percentile + AdaRound':30} {decibel:5.1f} dB {right:5.1f} %")
assert decibel > table["percentile"][0] + 1

# %% [markdown]
# AdaRound here also corrects the mean of each channel, so it needs no bias correction before it. With 300
# images, one image is 0.3 points: do not read too much into small differences of accuracy. The SQNR of
# the answers tells more.
#
# The order in which practitioners try things: int8 first; if that fails, look at the ranges (percentile,
# MSE); then spare the layers that hurt; then bias correction and AdaRound; and only then train (lesson 7).
#
# ## Three questions

# %%
quiz(6)

# %% [markdown]
# ## What to remember
#
# - **Prepare, report, calibrate, evaluate, convert, agree, save**: check each step before the next one.
# - The noise of a layer is what all layers before it have left, and its own. **Sensitivity** says which layer
#   the answers mind.
# - **Mixed precision** spends bytes where they remove most noise from the answers; the prediction is then
#   measured.
# - **Bias correction** gives channels their mean back. **AdaRound** rounds for the output, not for the weight.
#
# ## For teachers
#
# - Common misconception: rounding to nearest is best. Exercise 6.4 is the cure; let students find two weights
#   by hand first.
# - Students mix up the SQNR of a layer with its sensitivity. Ask: can a noisy layer be harmless?
# - Exercise 6.2 takes the longest, about 15 minutes. The pipeline at the beginning is repetition: 5 minutes.
#
# ## Papers
#
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): the pipeline, and how to find what is wrong.
# - H. Wu et al., *Integer quantization for deep learning inference*, 2020,
#   [arXiv:2004.09602](https://arxiv.org/abs/2004.09602): sensitivity, partial quantization.
# - Z. Yao et al., *HAWQ-V3: dyadic neural network quantization*, ICML 2021,
#   [arXiv:2011.10680](https://arxiv.org/abs/2011.10680): bits of each layer as an exact search.
# - M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, *Data-free quantization through weight equalization
#   and bias correction*, ICCV 2019, [arXiv:1906.04721](https://arxiv.org/abs/1906.04721).
# - M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, *Up or down? Adaptive rounding for
#   post-training quantization*, ICML 2020, [arXiv:2004.10568](https://arxiv.org/abs/2004.10568).
