# %% [markdown]
# # 8. PTQ or QAT?
#
# You can quantize a network after its training (**PTQ**, lessons 3 to 6), or train it on with the rounding in
# place (**QAT**, lesson 7). One takes seconds, the other hours. Here you compare them fairly, and learn to
# choose.
#
# **After this lesson you can**
# - compare two networks without fooling yourself;
# - say how many bits each method reaches, and what each costs;
# - choose a method for a task, and give reasons.
#
# **Time:** 30 minutes. **You need:** lessons 6 and 7.

# %%
import time

import torch
from IPython.display import Markdown

import qlab
from qlab import QConfig
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson08 import panels, plots
from qlab.course.quiz import quiz

data = qlab.data.available().name
network = qlab.models.load("resnet20", data=data)
exam = qlab.data.at_hand("validation").sample(500)
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
# In this lesson you choose, so it runs on images of the **validation** split. The test split comes last,
# once, for the network that you chose.
#
# The result is said in **percentage points**, or points: from 88 % to 86 % are 2 points lost.
#
# ### Exercise 8.1: points lost
#
# You get the answers of the float network, those of the int network, and the labels.

# %% tags=["exercise"]
check("8.1", points_lost)

# %% [markdown]
# ## How sure is a difference?
#
# An accuracy is measured on a sample of images. With other images it would be a little different. With a
# share $p$ of right answers on $N$ images the **standard error** is
#
# $$\sqrt{p\,(1-p)\,/\,N}$$
#
# The accuracy on all images in the world is within two standard errors of yours, in 95 of 100 cases.
#
# ### Exercise 8.2: the standard error
#
# In points, for an accuracy in percent.

# %% tags=["exercise"]
check("8.2", standard_error)

# %% [markdown]
# Take an accuracy of 88 %:

# %% tags=["nbval-check-output"]
for images in (100, 1000, 10_000):
    share = 0.88
    error = 100 * (share * (1 - share) / images) ** 0.5
    print(f"{images:6,} images: 88 % plus or minus {2 * error:.1f} points")

# %% [markdown]
# So 1,000 images cannot tell a loss of 0.5 points from none. A comparison of two networks *on the same
# images* is a little sharper than this, because both find the same images easy. It stays a sample.
#
# ## Accuracy against bits
#
# Now measure. PTQ chooses each range by its mean squared error (lesson 3), with weights per channel. The
# networks trained with QAT come with the course; each one is this float network, trained on with its rounding.

# %%
presets = {bits: f"w{bits}a{bits}" for bits in range(8, 1, -1)}
float_accuracy = qlab.evaluate(network, exam)

ptq, size = {}, {}
for bits, preset in presets.items():
    prepared = qlab.prepare(network, QConfig.preset(preset, observer="mse"))
    qlab.calibrate(prepared, calibration.batches(64))
    size[bits] = qlab.analysis.weight_bytes(prepared)
    ptq[bits] = qlab.evaluate(prepared, exam)

# %%
manifest = qlab.models.manifest()
there = [bits for bits in presets if f"resnet20-{data}-{presets[bits]}" in manifest]
qat = {bits: qlab.evaluate(qlab.qat.load("resnet20", presets[bits], data=data), exam) for bits in there}

print(f"float: {float_accuracy:.1f} %")
for bits in presets:
    trained = f"{qat[bits]:.1f} %" if bits in qat else "-"
    print(f"{bits} bits: PTQ {ptq[bits]:.1f} %, QAT {trained}, weights {size[bits] / 1024:.0f} KiB")

# %% [markdown]
# **Predict.** At how many bits does PTQ begin to lose more than the standard error? And QAT?
#
# **Move** the bits from 8 down to 2.

# %%
panels.ptq_and_qat(ptq, qat, float_accuracy)

# %% [markdown]
# **Explain.** Down to 6 bits there is hardly anything for QAT to repair. At 4 bits PTQ begins to lose, and at
# 2 bits it breaks: with four codes a channel no choice of range is good. A network that trains with the
# rounding in place finds weights for which four codes are enough.

# %%
assert float_accuracy - ptq[8] < 1.5 and float_accuracy - ptq[6] < 2.5
assert float_accuracy - ptq[2] > 20
for bits in (3, 2):
    assert qat[bits] > ptq[bits] + 2

# %% [markdown]
# The shape of these curves does not depend on this network. On the official CIFAR-10, ResNet-20 with 2 bits
# loses about 2.7 points with PACT (Choi et al., 2018) and 2.0 with APoT (Li et al., 2020), after far longer
# training. How many epochs the networks here had is listed at the end of this lesson.
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

Markdown(f"""
| | on this computer |
|:--|--:|
| PTQ, {len(calibration)} images | {ptq_seconds:.1f} s |
| QAT, one step with 32 images | {step_seconds:.2f} s |
| QAT, one epoch ({steps} steps) | {step_seconds * steps / 60:.0f} minutes |
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
# **Predict.** You may lose 1 point. How much smaller does the network become if you may train?
#
# **Move** the points that may be lost, first without training, then with it.

# %%
candidates = [plots.Candidate(presets[b], size[b], float_accuracy - ptq[b], False) for b in presets]
candidates += [plots.Candidate(presets[b], size[b], float_accuracy - qat[b], True) for b in qat]
panels.choice(candidates)

# %% [markdown]
# **Explain.** Training moves the whole front down and to the left: at each size it loses less. Where PTQ
# loses nothing, training gains nothing.

# %%
def smallest(tolerance, can_train):
    """The smallest candidate that is good enough."""
    good = [c for c in candidates if c.loss <= tolerance and (can_train or not c.trained)]
    return min(good, key=lambda candidate: candidate.size_bytes)


for tolerance in (2.0, 4.0, 8.0):
    without, trained = smallest(tolerance, False), smallest(tolerance, True)
    print(f"at most {tolerance} points: {without.name} without training, {trained.name} with it")
    assert trained.size_bytes <= without.size_bytes

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
# The choice is made, so the test images may be seen. Take the smallest network that loses at most 4 points:

# %%
chosen = smallest(4.0, can_train=True)
if chosen.trained:
    final = qlab.qat.load("resnet20", chosen.bits, data=data)
else:
    final = qlab.prepare(network, QConfig.preset(chosen.bits, observer="mse"))
    qlab.calibrate(final, calibration.batches(64))
test = qlab.data.at_hand("test").sample(300)
on_test = [qlab.evaluate(net, test) for net in (network, final)]
print(f"{chosen.name} on {len(test):,} test images of {test.source}: {on_test[1]:.1f} %, float {on_test[0]:.1f} %")
assert on_test[0] - on_test[1] < 8

# %% [markdown]
# On all the test images the trained networks of this course were measured when they were made; their list
# is kept with the weights:

# %%
def epochs(entry):
    """Those of a run and of the runs that it went on from."""
    before = epochs(entry["goes_on_from"]) if "goes_on_from" in entry else 0
    return before + int(entry["epochs"].split()[-1])


rows = [key for key, entry in manifest.items() if "qconfig" in entry]
print(f"{'network, data, bits':34} epochs   int   float")
for key in rows:
    entry = manifest[key]
    print(f"{key:34} {epochs(entry):6} {entry['test']:6.2f} {entry['float_test']:6.2f}")
assert rows

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
# - A difference below the standard error is no difference.
# - **PTQ** takes seconds and is enough for 8 and often for 6 bits. **QAT** takes hours and reaches 4 bits and
#   fewer.
# - Choose on validation images, report once on test images.
#
# ## For teachers
#
# Students like to say "QAT is better". Ask: at how many bits, and by more than two standard errors? Let them
# find the pair of candidates that 500 images cannot tell apart. The two explorables take ten minutes, the
# discussion of the last table twenty.
#
# ## Papers
#
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): PTQ and QAT side by side.
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): which method when.
# - J. Choi et al., *PACT: parameterized clipping activation for quantized neural networks*, 2018,
#   [arXiv:1805.06085](https://arxiv.org/abs/1805.06085).
# - Y. Li, X. Dong, W. Wang, *Additive powers-of-two quantization*, ICLR 2020,
#   [arXiv:1909.13144](https://arxiv.org/abs/1909.13144).
