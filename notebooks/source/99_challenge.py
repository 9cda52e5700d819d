# %% [markdown]
# # 99. Challenge: 100 KiB, and how many right answers?
#
# You have a budget: a file of 100 KiB, a tenth of the float network's, and hardly more time than the plain
# 8-bit network takes. Make the most accurate network that keeps to it. Everything in the course is allowed.
#
# **After this lesson you can**
# - judge networks by several measures at once, with a Pareto front;
# - count honestly what a quantized network weighs and how long it takes;
# - combine what the course has shown into a network of your own, and defend it.
#
# **Time:** 90 minutes, or a week. **You need:** lessons 6 and 8; lessons 7 and 9 help.

# %%
import torch

import qlab
from qlab import QConfig, analysis
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson99 import panels
from qlab.course.lesson99.challenge import Budget, Judge, front
from qlab.course.quiz import quiz
from qlab.int8 import engines

data = qlab.data.available().name
network = qlab.models.load("resnet20", data=data)
exam = qlab.data.at_hand("validation").sample(500)
calibration = qlab.data.at_hand("train").sample(256)
banner(exam)

# %% [markdown]
# ## What it weighs
#
# A file holds the codes of the weights, packed. It also holds a scale for each channel, the biases, and the
# weights of layers that stay in float. Whoever counts the codes alone fools himself: with one scale for every
# two weights, a "2-bit network" would take 18 bits a weight.
#
# ### Exercise 99.1: the whole file

# %% tags=["exercise"]
check("99.1", file_bytes)

# %% [markdown]
# ## How long it takes
#
# Milliseconds depend on the computer, so the budget is relative: the time of a batch of 32 images, divided
# by that of the plain 8-bit network. The two are measured in turns, as in lesson 5, so that a disturbance
# hits both.
#
# ### Exercise 99.2: a ratio you can trust

# %% tags=["exercise"]
check("99.2", times_as_long)

# %% [markdown]
# A layer that stays in float takes longer, and so do the steps into and out of float around it. A grid that
# no integer kernel knows, such as a codebook, has no time at all: such a network does not count here.
#
# ## The rules
#
# 1. The file is at most **100 KiB**; the time at most **1.5 times** that of the plain 8-bit network.
# 2. Calibrate and train on images of the training split only, as many as you like.
# 3. Compare your attempts on the exam above, 500 images of the validation split. At the end, and once,
#    look at the test images.
#
# The judge knows the float network and makes the plain 8-bit one.

# %%
budget = Budget(kib=100, time=1.5)
judge = Judge(network, exam, calibration, budget)
print(f"float: {judge.float_accuracy:.1f} % right")


# %% [markdown]
# ## What is there already
#
# Some networks that you know: plain PTQ with 8 and with 4 bits, and those that were trained with QAT and come
# with the course. Weights of 8 bits get 7 where the kernels would saturate (lesson 5).


# %% tags=["timing"]
def plain_ptq(preset):
    saturates = engines.saturates_on(judge.pace.engine, network)
    qconfig = QConfig.preset(preset, observer="mse", reduce_range=saturates)
    return qlab.calibrate(qlab.prepare(network, qconfig), calibration.batches(64))


known = [judge.score(f"{preset.upper()} by PTQ", plain_ptq(preset)) for preset in ("w8a8", "w4a4")]
for preset in ("w4a4", "w3a3", "w2a2"):
    known.append(judge.score(f"{preset.upper()} by QAT", qlab.qat.load("resnet20", preset, data=data)))
for score in known:
    print(score)
assert known[0].lost < 1.5 and known[0].kib > budget.kib > known[-1].kib

# %% [markdown]
# ## Better in what?
#
# One network is smaller, another is more often right. Network A **dominates** network B if it is as good in
# both measures and better in at least one. Those that nobody dominates are the **Pareto front**: on it you
# gain in one measure only if you give in the other.
#
# ### Exercise 99.3: who dominates whom?

# %% tags=["exercise"]
check("99.3", dominates)

# %% [markdown]
# ### Exercise 99.4: the front

# %% tags=["exercise"]
check("99.4", pareto_front)

# %% [markdown]
# ## A first attempt
#
# The activations keep their 8 bits: they are not in the file. The weights get the bits that lesson 6's search
# finds for 90 KiB of codes, fewer than three on average; scales and biases take the rest. No training, no
# tricks.


# %% tags=["timing"]
no_saturation = QConfig.preset("w8a8", observer="mse", reduce_range=True)
few = calibration.subset(slice(24)).batches(24)
mixed = analysis.mixed_precision(network, few, 90 * 1024, (2, 3, 4, 6, 7), qconfig=no_saturation, progress=False)


def within_budget():
    """A prepared and calibrated network with the best bits for each layer's weights, in 90 KiB of codes."""
    return qlab.calibrate(qlab.prepare(network, mixed.qconfig), calibration.batches(64))


first = judge.score("first attempt", within_budget())
print(first)
assert first.kib < budget.kib

# %% [markdown]
# **Predict.** Is this attempt on the Pareto front? Which of the known networks dominates it, if any?
#
# **Move** the KiB that are allowed down from the right. When does the best network change?

# %%
panels.pareto(known, first)

# %% [markdown]
# **Explain.** The ring jumps from one point of the front to the next. Where your star lies below the line,
# another network is at least as small and more often right. At every size it is the front that counts: a
# network with 4 bits may not hide behind the one with 8.
#
# ## Your turn
#
# Change this cell as often as you like, then draw the image again. Here are the levers:
#
# | lever | lesson | where |
# |:--|:--|:--|
# | how a range is chosen | 2, 3 | `QConfig.preset("w3a8", observer="mse")` |
# | who shares a scale | 4 | `granularity` of the weights' `QuantSpec` |
# | even out the channels | 4 | `qlab.prepare(..., equalize=True)` |
# | bits for each layer | 6 | `analysis.mixed_precision(network, batches, budget_bytes)` |
# | mend the biases | 6 | `qlab.correct_bias` |
# | round up or down | 6 | `qlab.adaround` |
# | train with the rounding | 7 | `qlab.qat.fit(prepared, images, teacher=network)` |
# | ternary, binary weights | 9 | `QConfig(weight=qlab.qconfig.Ternary())` |


# %% tags=["timing"]
def my_network():
    """A prepared network, calibrated or trained. So far: the first attempt, its biases mended."""
    return qlab.correct_bias(within_budget(), calibration.batches(64))


mine = judge.score("mine", my_network())
print(mine)
assert mine.kib < budget.kib

# %% [markdown]
# Mended means need not mean more right answers: measure each lever.

# %%
panels.pareto([*known, first], mine)

# %% [markdown]
# ## One way to go on
#
# Try first, then read. With so few bits it matters whether a weight is rounded up or down: **AdaRound**
# (lesson 6) learns that, from images without labels. Here it takes 64 of them and 60 steps a layer; more
# are better.

# %% tags=["timing"]
rounded = qlab.adaround(within_budget(), calibration.subset(slice(64)).batches(64), steps=60)
ours = judge.score("AdaRound", rounded)
print(ours)
assert ours.accuracy > first.accuracy + 5 and ours.kib < budget.kib

# %% [markdown]
# Ours is no optimum. The bits were chosen before the rounding was; each bias takes 4 bytes; and nobody has
# trained afterwards, which pays with so few bits: look where W2A2 by QAT lies.
#
# The front of all that was measured here:

# %%
for score in front([*known, first, mine, ours]):
    print(f"{score.kib:6.1f} KiB {score.accuracy:5.1f} % {score.name}")
assert first not in front([*known, first, ours])

# %% [markdown]
# ## Once, at the end
#
# Many attempts on the same exam make its best result a little too good: some of it is luck. The test images
# have seen none of your choices. Look at them once, for the network that you hand in.

# %%
test = qlab.data.at_hand("test").sample(500)
on_test = {name: qlab.evaluate(net, test) for name, net in (("float", network), ("AdaRound", rounded))}
for name, accuracy in on_test.items():
    print(f"{name:8} {accuracy:.1f} % of {len(test):,} test images ({test.source})")
assert on_test["float"] > on_test["AdaRound"] > first.accuracy

# %% [markdown]
# ## Three questions

# %%
quiz(99)

# %% [markdown]
# ## What to remember
#
# - Count the whole file, and measure the time of what really runs.
# - Several measures have no single winner: they have a **Pareto front**.
# - Bits belong where they are stored and where they hurt. Here that was the weights, and how they are rounded.
# - Choose on one set of images, report on another.
#
# ## For teachers
#
# A class of pairs, a week, one table on the wall: name, KiB, right answers, and what was done. `print(mine)`
# gives a line for it; `my_network` is what is handed in, so that you can run it. Students like to save bits on
# activations; ask what is in the file. With 80 KiB in place of 100 the challenge becomes one about QAT. On the
# last day let everybody measure the test images at the same time, and discuss why most numbers fall.
#
# ## Papers
#
# - M. Nagel et al., *Up or down? Adaptive rounding for post-training quantization*, ICML 2020,
#   [arXiv:2004.10568](https://arxiv.org/abs/2004.10568).
# - K. Wang et al., *HAQ: hardware-aware automated quantization with mixed precision*, CVPR 2019,
#   [arXiv:1811.08886](https://arxiv.org/abs/1811.08886): budgets of size, time and energy.
# - Z. Dong et al., *HAWQ: Hessian aware quantization of neural networks with mixed precision*, ICCV 2019,
#   [arXiv:1905.03696](https://arxiv.org/abs/1905.03696).
