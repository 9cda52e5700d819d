# %% [markdown]
# # 8. PTQ or QAT?
#
# You can quantize a network after its training (**PTQ**, lessons 3 to 6), or train it on with the rounding in
# place (**QAT**, lesson 7). One takes seconds, the other often hours. Here you compare them fairly,
# and learn to choose.
#
# **After this lesson you can**
# - compare two networks without fooling yourself;
# - say how many bits each method reaches, and what each costs;
# - choose a method for a task, and give reasons.
#
# **Time:** 35 minutes. **You need:** lessons 6 and 7.

# %%
import time
from dataclasses import replace

import torch
from IPython.display import Markdown

import qlab
from qlab import QConfig
from qlab.analysis import hits, paired
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson08 import panels, plots
from qlab.course.lesson08.trained import trained_networks
from qlab.course.predict import predict
from qlab.course.quiz import quiz

data = qlab.data.available().name
network = qlab.models.load("resnet20", data=data)
exam = qlab.data.at_hand("validation").sample(2000)
calibration = qlab.data.at_hand("train").sample(128)
banner(exam)

# %% [markdown]
# ## A fair comparison
#
# **Three rules** make a comparison fair.
#
# 1. Each quantized network is compared with *its own* float network.
# 2. Both see *the same images*.
# 3. The images on which you *choose* are not those on which you *report*.
#
# In this lesson you choose, so it runs on images of the **validation** split. The networks of this course were
# chosen on it too: each was kept at the epoch that was best there. The test split comes last, once, for the
# network that you chose.
#
# The result is said in **percentage points**, or points: from 88 % to 86 % are 2 points lost.
#
# ### Exercise 8.1: points lost
#
# You get the answers of the float network, those of the int network, and the labels.

# %% tags=["exercise"]
check("8.1", points_lost)

# %% [markdown]
# ## How sure is an accuracy?
#
# It is measured on a sample of images. With other images it would be a little different. With a share $p$ of
# right answers on $N$ images the **standard error** is
#
# $$\sqrt{p\,(1-p)\,/\,N}$$
#
# ### Exercise 8.2: the standard error
#
# In points, for an accuracy in percent.

# %% tags=["exercise"]
check("8.2", standard_error)

# %% [markdown]
# The accuracy on all images in the world is within two standard errors of yours in about 95 of 100 cases. Try
# it: let our images be the world, and draw 1,000 samples of 500 from them.

# %%
right = hits(network, exam)
world = right.double().mean()
draws = torch.randint(len(right), (1000, 500), generator=torch.Generator().manual_seed(0))
found = right[draws].double().mean(1)
within = int(((found - world).abs() <= 2 * (found * (1 - found) / 500).sqrt()).sum())
print(f"within two standard errors: {within} of 1,000 samples")
assert 920 <= within <= 975

# %% [markdown]
# ## How sure is a difference?
#
# Two networks on the **same images** are another matter. Where both are right or both are wrong, the image says
# nothing about which is better. Only the images that **changed** count: give an image $d = 1$ where the
# quantized network alone is right, $-1$ where the float network alone is, else 0. The mean of $d$ is the
# difference, and its standard error is
#
# $$\sqrt{\left(\overline{d^2} - \bar d^{\,2}\right) /\, N}\;\approx\;\frac{\sqrt{\text{images that changed}}}{N}$$
#
# Here are the float network and its PTQ network with 8 bits, on 500 images.

# %%
prepared = qlab.prepare(network, QConfig.w8a8())
qlab.calibrate(prepared, calibration.batches(64))
first = exam.subset(slice(500))
w8a8 = paired(right[:500], hits(prepared, first))
predict("8a", answer=w8a8.changed, difference=w8a8.difference)

# %% [markdown]
# **Explain.** The two have the same weights but for a little rounding, so they agree on nearly every image.
# Therefore the error of the difference is far below that of two accuracies on different images:

# %%
share = float(right[:500].double().mean())
alone = 100 * (share * (1 - share) / 500) ** 0.5
print(f"standard error of one accuracy: {alone:.2f} points")
print(f"of the difference, each network on 500 images of its own: {2**0.5 * alone:.2f} points")
print(f"of the difference on the same 500 images: {w8a8.error:.2f} points ({w8a8.changed} changed)")
assert w8a8.error < alone / 2 and abs(w8a8.error - 100 * w8a8.changed**0.5 / 500) < 0.02

# %% [markdown]
# A difference below two of its standard errors **may be chance**. That does not mean that there is none: more
# images may show it. Say the difference *and* its error. They tell how much the network may lose at worst.
#
# ## Accuracy against bits
#
# Now measure. PTQ has weights per channel, from the largest weight; the range of each activation is chosen by
# its mean squared error (lesson 3). The networks trained with QAT come with the course; each one is this float
# network, trained on with its rounding. The first and the last layer keep 8 bits in both.

# %%
presets = {bits: f"w{bits}a{bits}" for bits in range(8, 1, -1)}
ptq, size = {}, {}
for bits, preset in presets.items():
    prepared = qlab.prepare(network, QConfig.preset(preset, observer="mse"))
    qlab.calibrate(prepared, calibration.batches(64))
    size[bits] = qlab.analysis.weight_bytes(prepared)
    ptq[bits] = hits(prepared, exam)

# %%
manifest = qlab.models.manifest()
there = [bits for bits in presets if f"resnet20-{data}-{presets[bits]}" in manifest]
qat = {bits: hits(qlab.qat.load("resnet20", presets[bits], data=data), exam) for bits in there}

# %% [markdown]
# Going down from 8 bits, a loss of more than two standard errors is hardly chance any more. Behind each ± stands
# one standard error. First PTQ:

# %%
without = {bits: paired(right, found) for bits, found in ptq.items()}
trained_on = {bits: paired(right, found) for bits, found in qat.items()}


def begins(found):
    """The most bits that lose more than two standard errors."""
    return max(bits for bits, one in found.items() if one.difference < -2 * one.error)


at = begins(without)
table = "\n".join(f"{bits} bits: {one}" for bits, one in without.items())
predict("8b", table, answer=at, loss=-without[at].difference, error=without[at].error)

# %% [markdown]
# Then the trained networks. **Move** the bits from 8 down to 2, and see what training brings back. At 4 bits,
# choose **fewer images**: what could you have said with 100 of them? (Behind ± stands one standard error again; the bars
# are two of them long on either side.)

# %%
at = begins(trained_on)
panel = panels.ptq_and_qat(ptq, qat, right)
predict("8c", panel, answer=at, loss=-trained_on[at].difference, error=trained_on[at].error)

# %% [markdown]
# **Explain.** With 8 bits there is nothing for QAT to repair. At 4 bits and fewer the trained network of the same
# bits is better than PTQ's, each time by more than two standard errors:

# %%
for bits in there:
    both = paired(ptq[bits], qat[bits])
    print(f"{bits} bits, QAT against PTQ: {both}")
    assert (both.difference > 2 * both.error) is (bits < 8)
assert -without[8].difference + 2 * without[8].error < 1

# %% [markdown]
# At 2 bits PTQ breaks. A weight then has three codes a channel, -1, 0 and 1 (the grid is symmetric). Another
# range does not help: here is also the one of the smallest squared error for each channel. A network that trains
# with the rounding in place finds weights for which three codes are enough.

# %%
layer = dict(prepared.weighted())["layer2.0.conv1"]
codes, _ = layer.weight_quantizer.integers(layer.weight)
print("codes of the weights with 2 bits:", codes.unique().tolist())

by_error = QConfig.preset("w2a2", observer="mse", weight=replace(QConfig.w2a2().weight, observer="mse"))
other = qlab.calibrate(qlab.prepare(network, by_error), calibration.batches(64))
broken = {"largest weight": ptq[2][:500], "squared error": hits(other, first)}
for name, found in broken.items():
    print(f"2 bits, weights by their {name}: {100 * found.double().mean():.1f} %, float {100 * share:.1f} %")
    assert found.double().mean() < share - 0.5
assert codes.unique().tolist() == [-1, 0, 1]

# %% [markdown]
# Others find curves of this shape too: the ResNet-20 that the authors of APoT released (Li et al., 2020) answers
# 92.96 % right in float and 90.96 % with 2 bits, on the official CIFAR-10. How many epochs the networks here had is listed at
# the end of this lesson.
#
# ### Exercise 8.3: what came back
#
# Say it in one number: the share of PTQ's loss that QAT brought back.

# %% tags=["exercise"]
check("8.3", recovered)

# %% [markdown]
# ## What each costs
#
# PTQ looks at some images once. QAT goes through all training images, again and again, forwards and
# backwards. How long does each take on this computer?

# %% tags=["timing"]
start = time.perf_counter()
prepared = qlab.prepare(network, QConfig.preset("w4a4", observer="mse"))
qlab.calibrate(prepared, calibration.batches(64))
ptq_seconds = time.perf_counter() - start

few = qlab.data.at_hand("train").sample(160)
start = time.perf_counter()
qlab.qat.fit(prepared, few, None, qlab.train.Plan(epochs=1, batch_size=32, lr=0.01, shrink=0.0), progress=False)
step_seconds = (time.perf_counter() - start) / (len(few) / 32)
steps = -(-len(qlab.data.at_hand("train")) // 32)
table = trained_networks(manifest)
(epochs,) = (row.epochs for row in table if row.network == f"resnet20-{data}-w4a4")
qat_seconds = step_seconds * steps * epochs
assert ptq_seconds < 60 and qat_seconds > 100 * ptq_seconds

Markdown(f"""
| W4A4 | on this computer |
|:--|--:|
| PTQ, {len(calibration)} images | {ptq_seconds:.1f} s |
| QAT, one step with 32 images | {step_seconds:.2f} s |
| QAT, one epoch ({steps:,} steps) | {step_seconds * steps / 60:.0f} minutes |
| QAT, {epochs} epochs, as the network above had | {qat_seconds / 3600:.1f} hours |
""")

# %% [markdown]
# QAT also needs the training images with their labels, and somebody who chooses the learning rate and
# watches the loss. PTQ needs a few hundred images without labels; with distilled images it needs none.
#
# ## Choose
#
# A product has limits: the points that you may lose, and whether there is data and time to train. Within them
# the smallest network wins.
#
# **Move** the points that may be lost, first without training, then with it. Then tick "be sure": it asks that
# the loss *and two standard errors* are within the limit. What does being sure cost?

# %%
candidates = [
    plots.Candidate(presets[bits], size[bits], -one.difference, is_trained, one.error)
    for found, is_trained in ((without, False), (trained_on, True)) for bits, one in found.items()
]
chosen = {can: plots.smallest([c for c in candidates if can or not c.trained], 1.0) for can in (False, True)}
share_left = 100 * chosen[True].size_bytes / chosen[False].size_bytes
names = {"without": chosen[False].name, "trained": chosen[True].name}
predict("8d", panels.choice(candidates), answer=share_left, **names)

# %% [markdown]
# **Explain.** At the same few bits training loses less, so fewer bits are good enough. (The smallest is never larger than
# without training: whoever may train need not.) Whoever wants to be sure takes one that is as large or larger, or
# measures on more images: with four times as many the error is about half as large.

# %%
for tolerance in (0.5, 1.0, 1.5, 2.0):
    words = []
    for can in (False, True):
        some = [c for c in candidates if can or not c.trained]
        measured, surely = (plots.smallest(some, tolerance, sure) for sure in (False, True))
        words.append(f"{measured.name} ({surely.name} for sure)")
        assert measured.size_bytes <= surely.size_bytes
    print(f"{tolerance} points: {words[0]}; with training {words[1]}")
assert share_left < 90
quarter, whole = (paired(right[:n], qat[2][:n]).error for n in (500, 2000))
print(f"standard error of W2A2 by QAT: {quarter:.2f} points on 500 images, {whole:.2f} on 2,000")
assert 1.6 < quarter / whole < 2.4

# %% [markdown]
# ### Exercise 8.4: good enough
#
# Write the rule. A candidate is a triple: name, bytes, points lost. If none is good enough, return the text
# `"none"`.

# %% tags=["exercise"]
check("8.4", good_enough)

# %% [markdown]
# ## Report once
#
# The choice is made, so the test images may be seen. Report the difference with its error; so write the formula
# for it first.
#
# ### Exercise 8.5: the difference and its error

# %% tags=["exercise"]
check("8.5", paired_difference)

# %% [markdown]
# Take the smallest network that loses at most 1 point:

# %%
pick = chosen[True]
final = qlab.qat.load("resnet20", pick.bits, data=data)
test = qlab.data.at_hand("test").sample(1000)
on_test = [hits(net, test) for net in (network, final)]
report = paired(*on_test)
print(f"{pick.name} on {len(test):,} test images of {test.source}: {100 * on_test[1].double().mean():.1f} %")
print(f"against its float network: {report}")
assert pick.trained and abs(report.difference + pick.loss) < 3 * (report.error**2 + pick.error**2) ** 0.5

# %% [markdown]
# On all the test images the trained networks of this course were measured when they were made; their list
# is kept with the weights:

# %%
print(table)

# %% [markdown]
# ## What to choose when
#
# | you have | take |
# |:--|:--|
# | 8 bits are small enough | PTQ, per channel; measure; done |
# | a layer or two that suffer | leave them at more bits (lesson 6) |
# | no training data | PTQ with distilled images, bias correction from BatchNorm's statistics |
# | 4 bits, a few hundred images, some minutes | AdaRound (lesson 6) |
# | 4 bits or fewer, data, labels and hours | QAT, from the PTQ network on, with the float network as teacher |
# | 2 bits or fewer | QAT, and a network that is wide enough; expect to lose some points |
#
# ## Three questions

# %%
quiz(8)

# %% [markdown]
# ## What to remember
#
# - Compare with the own float network, on the same images, and say on which.
# - On the same images only those count that changed. Say the difference **with its standard error**; below two of
#   them it may be chance, which does not prove that there is none.
# - **PTQ** takes seconds and is enough for 8 and often for 6 bits. **QAT** takes more than a hundred times as long and
#   reaches 4 bits and fewer.
# - Choose on validation images, report once on test images.
#
# ## For teachers
#
# - Common misconception: a difference below the standard error of an accuracy is no difference. Exercise 8.5 has
#   a message for whoever computes the error as if the two had seen different images.
# - Students like to say "QAT is better". Ask: at how many bits, and by more than two standard errors? Let them
#   find in the first panel the pair that 500 images cannot tell apart, but 2,000 can.
# - The two panels take ten minutes, the discussion of the last table twenty.
#
# ## Papers
#
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): PTQ and QAT side by side.
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): which method when.
# - Q. McNemar, *Note on the sampling error of the difference between correlated proportions or percentages*,
#   Psychometrika 12, 1947: the error of a difference on the same images.
# - Y. Li, X. Dong, W. Wang, *Additive powers-of-two quantization*, ICLR 2020,
#   [arXiv:1909.13144](https://arxiv.org/abs/1909.13144).
