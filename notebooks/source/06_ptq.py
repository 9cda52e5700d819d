# %% [markdown]
# # 6. PTQ from end to end
#
# **Post-training quantization** (PTQ) takes a trained network and some images without labels. With 8 bits
# it takes seconds and costs little. With 4 bits it must be done with care: here you go through the whole
# pipeline, find the layers that suffer, give them more bits, and repair what rounding has spoilt. No label is
# needed, and no epoch of training.
#
# **After this lesson you can**
# - take a network from float to integers step by step, and check each step;
# - find the layers that a network is sensitive to, and spend bits where they help most;
# - repair 4 bits with better ranges, bias correction and AdaRound;
# - find out which layer of a broken network is at fault.
#
# **Time:** 60 minutes. **You need:** lessons 2 (observers) and 5 (integers).

# %%
import gc
import tempfile
import time
from pathlib import Path

import torch

import qlab
from qlab import QConfig, analysis
from qlab.analysis import hits, paired
from qlab.course import banner, mystery
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson06 import noise, panels, plots
from qlab.course.lesson06.mystery import broken_layer
from qlab.course.predict import predict
from qlab.course.quiz import quiz

network = qlab.models.load("resnet20", data=qlab.data.available().name)
calibration = qlab.data.at_hand("train").sample(128)
test = qlab.data.at_hand("test").sample(1000)
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
# the fake-quantized network, against the float one on the same images: the difference, its standard error, and
# on how many images one is right and the other wrong. (Lesson 8 says more about that error. A difference below
# two of them may be chance.)

# %%
start = time.perf_counter()
qlab.calibrate(prepared, calibration.batches(64))
seconds = time.perf_counter() - start
right = hits(network, test)
w8a8 = paired(right, hits(prepared, test))
print(f"float: {100 * right.double().mean():.1f} % right; w8a8 against it: {w8a8}")
assert seconds < 60 and w8a8.difference > -2

# %% [markdown]
# **Convert**: real integers. Do they **agree** with the fake-quantized floats? On paper they compute the same.
# But a float sum is rounded a little, so a value in the middle between two codes may go to the other one, and that
# can go on from layer to layer. The SQNR between the two says how much that is: far less than quantization itself.

# %%
int8 = qlab.convert(prepared, engine="reference")
with torch.inference_mode():
    fake, real = prepared(held_out), int8(held_out)
same = (fake.argmax(1) == real.argmax(1)).float().mean()
print(f"{analysis.sqnr(fake, real):.1f} dB; the same answer on {same:.0%} of {len(fake)} images")
print(f"beside it, fake quantization against float: {analysis.sqnr(float_answers, fake):.1f} dB")
assert analysis.sqnr(fake, real) > analysis.sqnr(float_answers, fake) + 5 and same > 0.9

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
# Begin with 8 bits.

# %%
held_in, _ = next(calibration.batches(16))
tables = noise.tables(network, held_in, range(2, 9))
answers = {key: rows[-1].output for key, rows in tables.items()}
layers = [row.layer for row in tables["both", 8]]
behind = [row.output for row in tables["both", 8]]
first, least, last = behind[0], min(behind), behind[-1]
where = 3 if first - least < 3 > last - first else 2 if least == first else 1 if last > least + 3 else 0
predict("6a", plots.each_layer(layers, behind), answer=where, first=first, least=least, last=last)

# %% [markdown]
# **Explain.** Each layer gets the noise of all layers before it and adds its own. But it may also lose some: the
# last layer reads the average over all places of an image, and there noise of opposite sign cancels.

# %%
w8a8_all = qlab.calibrate(qlab.prepare(network, QConfig.w8a8()), [held_in])
before, after = noise.around_pool(w8a8_all, held_in)
print(f"before the average {before:.1f} dB, behind it {after:.1f} dB")
assert where == 1 and after > before + 2

# %% [markdown]
# Is it the weights or the activations? **Move** the bits from 8 down to 2. At 4, choose weights alone, then
# activations alone.

# %%
alone = {what: answers[what, 4] for what in ("weights", "activations")}
predict("6b", panels.layer_noise(tables), answer=0 if alone["weights"] < alone["activations"] else 1, **alone)

# %% [markdown]
# **Explain.** Which of the two is worse depends on the bits, too. Together they have more noise than either, since the
# two add up. A bit more gives
# about 6 dB, as in lesson 1.

# %%
for bits in (8, 6, 4):
    words = [f"{what} {answers[what, bits]:.1f} dB" for what in ("weights", "activations", "both")]
    print(f"{bits} bits:", ", ".join(words))
a_bit = (answers["both", 8] - answers["both", 5]) / 3
print(f"{a_bit:.1f} dB a bit")
assert 5 < a_bit < 7
for bits in (8, 6, 4):
    assert answers["both", bits] < min(answers["weights", bits], answers["activations", bits])

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
noises = {row.layer: row.output for row in tables["both", 4]}
noisiest, worst = min(noises, key=noises.get), rows[0].layer
print(f"the most noise stands behind {noisiest}: {noises[noisiest]:.1f} dB; behind {worst}: {noises[worst]:.1f} dB")
assert rows[0].sqnr < rows[-1].sqnr - 5 and noisiest != worst

# %% [markdown]
# The layer behind which most noise stands is not the one that spoils the answers most: there stands the noise of all
# layers before it, too.
#
# **Selective quantization** leaves the layers that hurt most at more bits (Wu et al., 2020). The
# activations have the percentile 99.99 (lesson 2) here.
#
# **Move** the number of layers that keep 8 bits, and see which they are. Then tick the box: does it matter *which*
# layers are spared?

# %%
percentile = QConfig.preset("w4a4", first_last=None, observer="percentile")
counts = (*range(9), len(rows))
gains = noise.sparing(network, percentile, rows, counts, list(calibration.batches(64)), held_out)
won = {key: value - gains[True, 0] for key, value in gains.items()}
enough = min(count for count in counts if won[True, count] >= 3)
panel = panels.sparing(layers, rows, {key: value for key, value in gains.items() if key[1] < 9})
predict("6c", panel, answer=enough, gain=won[True, enough], other=won[False, enough])

# %% [markdown]
# **Explain.** A few layers, well chosen, win several dB; as many others win next to nothing. Is it seen in the right
# answers too? Here are the three most
# sensitive layers, and the three least, against 4 bits for all:


# %%
def quantized_with(qconfig, *repairs):
    """(SQNR in dB of the answers, hits on the test images) of the network under a configuration, repaired."""
    gc.collect()  # the networks of before: a traced graph knows its nodes, and they know it
    net = qlab.calibrate(qlab.prepare(network, qconfig), calibration.batches(64))
    for repair in repairs:
        repair(net, calibration.batches(64))
    with torch.inference_mode():
        return analysis.sqnr(float_answers, net(held_out)), hits(net, test)


decibel, all_4 = quantized_with(percentile)
print(f"4 bits for all: {decibel:.1f} dB, against float {paired(right, all_4)}")
for name, order in (("most", rows), ("least", rows[::-1])):
    more, found = quantized_with(analysis.selective(order, percentile, 3, bits=8))
    spared = ", ".join(row.layer for row in order[:3])
    print(f"8 bits for the three {name} sensitive ({spared}): {more:.1f} dB, against all 4 bits {paired(all_4, found)}")
assert won[True, 3] > won[False, 3] + 1 and won[True, enough] > 2 * won[False, enough]

# %% [markdown]
# The SQNR of the answers shows changes that 1,000 right and wrong answers may not: their difference is sure only where
# it is larger than two standard errors.

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
# **Move** the budget down from 8 bits on average. Which layers lose bits first?

# %%
costs = analysis.bit_costs(network, calibration.subset(slice(24)).batches(24), (2, 3, 4, 6, 8))
front = analysis.Front(costs)
equal = QConfig.preset("w3a8", first_last=None)
budget = analysis.weight_bytes(qlab.prepare(network, equal))
mixed = front.best(budget)
sizes = {cost.layer: cost.size_bytes for cost in costs if cost.bits == 8}
more = [layer for layer, bits in mixed.bits.items() if bits > 3]
fewer = [layer for layer, bits in mixed.bits.items() if bits < 3]
ratio = sum(map(sizes.get, more)) / len(more) / (sum(sizes.values()) / len(sizes))
where = 0 if ratio < 0.5 else 1 if ratio > 2 else 2
predict("6d", panels.bit_budget(front), answer=where, more=", ".join(more), fewer=", ".join(fewer))

# %% [markdown]
# **Explain.** A byte is best spent where it removes most noise. In a small layer a bit more for each weight takes
# few bytes, and so it pays in the first and in the last layer. Here is the noise that the fourth bit removes for
# each byte that it takes, beside that of the layer in the middle of all:

# %%
noises = {(cost.layer, cost.bits): cost.noise for cost in costs}
a_byte = {layer: (noises[layer, 3] - noises[layer, 4]) / (size / 8) for layer, size in sizes.items()}
best = sorted(a_byte, key=a_byte.get, reverse=True)
middle = best[len(best) // 2]
for layer in best[:3]:
    print(f"{layer:20} {a_byte[layer] / a_byte[middle]:6.0f} times that of {middle}")
assert where == 0 and set(best[:2]) == {"conv1", "fc"} <= set(more)

# %% [markdown]
# The search adds up what single layers do; the network itself has the last word. Here are 3 bits for all against
# the best choice of the same size, on images that the search has not seen:

# %%
measured = {name: quantized_with(qconfig) for name, qconfig in (("3 bits for all", equal), ("mixed", mixed.qconfig))}
for name, (decibel, found) in measured.items():
    print(f"{name:15} {decibel:5.1f} dB, against float {paired(right, found)}")
print(f"mixed against 3 bits for all: {paired(*(found for _, found in measured.values()))}")
print(f"{budget:,} bytes allowed, {mixed.size_bytes:,} used; {mixed.sqnr:.1f} dB were predicted")
assert mixed.size_bytes <= budget and measured["mixed"][0] > measured["3 bits for all"][0]

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
# inputs whose mean is not 0, as behind a ReLU, they move the mean of the whole channel. The bias can move it back.
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
# Now the network. Each row starts from scratch: first min-max, then the percentile, then on top of it bias
# correction, or AdaRound with 32 images and 60 steps a layer (1,000 images and more steps are usual).


# %%
def adaround(net, batches):
    """Learn up or down for each weight."""
    return qlab.adaround(net, calibration.subset(slice(32)).batches(32), steps=60, progress=False)


clipped = QConfig.w4a4(observer="percentile")
table = {
    "min-max": quantized_with(QConfig.w4a4()),
    "percentile": quantized_with(clipped),
    "percentile, bias correction": quantized_with(clipped, qlab.correct_bias),
    "percentile, AdaRound": quantized_with(clipped, adaround),
}
for name, (decibel, found) in table.items():
    print(f"{name:28} {decibel:5.1f} dB, against float {paired(right, found)}")
assert table["percentile"][0] > table["min-max"][0] + 0.5
assert table["percentile, bias correction"][0] > table["percentile"][0] + 0.5
assert table["percentile, AdaRound"][0] > table["percentile"][0] + 0.5

# %% [markdown]
# A repaired network may seem better than float: look at the error of the difference before you believe it. Nor
# does the table say which of the two repairs is the better one: AdaRound saw one draw of 32 images.
#
# What has bias correction repaired? Of the error behind a layer it takes the part that moves whole channels:

# %%
net = qlab.calibrate(qlab.prepare(network, clipped), calibration.batches(64))
before = noise.looks(net, held_in)
worst = max(range(len(before)), key=lambda place: before[place].shift)
after = noise.looks(qlab.correct_bias(net, calibration.batches(64)), held_in)[worst]
print(f"of the error behind {after.layer}, {before[worst].shift:.0%} moved whole channels; corrected, {after.shift:.0%}")
assert before[worst].shift > 0.25 > 2 * after.shift

# %% [markdown]
# AdaRound corrects the mean of each channel as well, so it needs no bias correction before it.
#
# The order in which practitioners try things: int8 first; if that fails, look at the ranges (percentile,
# MSE); then spare the layers that hurt; then bias correction and AdaRound; and only then train (lesson 7).
#
# ## A mystery: which layer is broken?
#
# Something went wrong in one layer of this network, drawn anew each time. You do not get to see the code. Ask for
# measurements, as few as you need; say which layer it is, and what is wrong with it; then try the repair that
# follows. A hint: each layer hands its noise on, so look for the first one that is bad.

# %%
mystery.Box(broken_layer(network, calibration, test.subset(slice(200))))

# %% [markdown]
# Solved with one measurement? Take another one, and try it with the *noise behind each layer* and one more.
#
# ## Three questions

# %%
quiz(6)

# %% [markdown]
# ## What to remember
#
# - **Prepare, report, calibrate, evaluate, convert, agree, save**: check each step before the next one.
# - The noise of a layer is what all layers before it have left, and its own. **Sensitivity** says which layer
#   the answers mind; it need not be the one with most noise.
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
# - The mystery is a contest: the right diagnosis after the fewest measurements. `mystery.Box(..., seed=1)` gives all
#   the same one.
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
