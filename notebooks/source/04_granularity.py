# %% [markdown]
# # 4. Granularity: per tensor, per channel, per group
#
# So far a whole tensor had one scale. In MobileNetV2 (Sandler et al., 2018) that goes wrong as soon as the bits get
# few: some channels of a layer have weights many times as large as the others. Here you give them more scales, and
# then you try to do without, by making the channels alike.
#
# **After this lesson you can**
# - fold a BatchNorm, and say what it does to the ranges of the channels;
# - choose between one scale a tensor, a channel and a group, and say what each costs;
# - repair a network with one scale a tensor, without training: equalization and bias correction.
#
# **Time:** 45 minutes. **You need:** lesson 3.

# %%
import copy

import torch

import qlab
from qlab import PerChannel, PerGroup, PerTensor, QConfig, QuantSpec, bench
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson04 import panels, plots
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.graph.equalize import equalize_pair
from qlab.graph.fold import fold_layer

network = qlab.models.load("mobilenet_v2", data=qlab.data.available().name)
train = qlab.data.at_hand("train")
test = qlab.data.at_hand("test").sample(300)
banner(test)

# %% [markdown]
# ## Folding
#
# Behind each convolution of this network stands a **BatchNorm**. In training it keeps every channel at a
# handy size. Once trained, it does the same to each value of a channel: it subtracts the channel's mean,
# divides by its standard deviation, multiplies by a learned $\gamma$ and adds a learned $\beta$. The
# convolution before it can do that too, with other weights and another bias (Jacob et al., 2018). That is
# **folding**, and int8 networks are folded, since one layer is faster than two.
#
# ### Exercise 4.1: fold a BatchNorm
#
# The layer computes `y = weight @ x + bias`, the BatchNorm `(y - mean) / std * gamma + beta`. Write one
# layer that does both.

# %% tags=["exercise"]
check("4.1", fold)

# %% [markdown]
# ### The same in the network
#
# A **depthwise** convolution has one small filter for each channel, here 3x3, so 9 weights a channel. The
# next cell folds one.

# %%
expand, depthwise = network.features[4].conv[0], network.features[4].conv[1]


def folded(block):
    """A copy of a block's convolution that does the work of the BatchNorm behind it as well."""
    layer = copy.deepcopy(block[0])
    fold_layer(layer, block[1])
    return layer


def spread(layer):
    """The largest weight of the largest channel, divided by that of the median channel."""
    largest = plots.ranges(layer.weight)
    return float(largest.max() / largest.median())


with torch.inference_mode():
    x = expand(network.features[:4](next(train.sample(16).batches(16))[0]))
    two, one = depthwise[1](depthwise[0](x)), folded(depthwise)(x)
grown = [spread(folded(block.conv[1])) > spread(block.conv[1][0]) for block in network.features[2:18]]
before, after = spread(depthwise[0]), spread(folded(depthwise))
print(f"largest output {two.abs().max():.2f}, after folding {(one - two).abs().max():.1e} off at most")
print(f"largest channel / median channel: {before:.1f} before, {after:.1f} after")
print(f"it grew in {sum(grown)} of {len(grown)} depthwise layers")
assert torch.allclose(one, two, rtol=1e-3, atol=1e-3)
assert after > 2 * before and sum(grown) > len(grown) / 2

# %% [markdown]
# The outputs are the same, but the channels of the weight have grown apart: each was multiplied by its own
# $\gamma / \mathrm{std}$. In most layers they do, not in all.
#
# ## One scale or many
#
# The **granularity** says who shares a scale: the whole tensor, each channel, or each **group** of a few
# neighbours in a channel. The smaller the part, the better its scale fits. Take the depthwise layer that you have
# just seen.
#
# The largest weight of the tensor sets the one scale. What is left of the other channels? **Predict** first: the table is
# covered until you have.

# %%
weight = folded(depthwise).weight
alive = plots.living(weight)
for_tensor = {bits: plots.rounded(weight, bits, PerTensor()) for bits in range(2, 15)}
zeros = {bits: int((plots.ranges(found) == 0).sum()) for bits, (found, step) in for_tensor.items()}
line = "{bits:2} bits: all weights are 0 in {zero:2} of 96 channels"
table = "\n".join(line.format(bits=bits, zero=zeros[bits]) for bits in (2, 4, 6, 8, 14))
predict("4a", table, answer=zeros[4], dead=int((~alive).sum()))

# %% [markdown]
# **Explain.** A channel whose largest weight lies below half a step becomes 0. Not all of these are a loss: training
# has taken some channels back to less than a thousandth of the layer's largest weight. They are **dead**, and nobody
# misses them: without them the layer gives the same. All others are **living**.

# %%
half = for_tensor[4][1] / 2
below, dead = int((plots.ranges(weight) < half).sum()), int((~alive).sum())
print(f"4 bits: half a step is {half:.2f}; below it lie {below} channels")
with torch.inference_mode():
    without = folded(depthwise)
    without.weight[~alive] = 0
    x = expand(network.features[:4](next(test.batches(64))[0]))
    with_dead, without_dead = folded(depthwise)(x), without(x)
moved = float((with_dead - without_dead).abs().max())
print(f"{dead} dead channels; without them the layer's outputs move by {moved:.1e} at most")
assert below == zeros[4] and moved < 1e-3

# %% [markdown]
# ### More bits, or more scales?
#
# **Predict**, then **move** from "per tensor" to "per channel" and to groups. Go back to "per tensor" and raise the
# bits until the median living channel is as good as it was per channel with 4 bits.


# %%
def decibels(granularity, bits):
    """The SQNR of each living channel."""
    found, _scale = plots.rounded(weight, bits, granularity)
    return torch.tensor(plots.channel_sqnr(weight, found))[alive]


goal = float(decibels(PerChannel(0), 4).median())
reached = {bits: float(decibels(PerTensor(), bits).median()) for bits in range(4, 15)}
enough = next(bits for bits in reached if reached[bits] >= goal)
predict("4b", panels.channel_ranges(weight), answer=enough, tensor=reached[enough], channel=goal)

# %% [markdown]
# **Explain.** With one scale for all, a channel whose largest weight is a tenth of the layer's gets a tenth of the codes.
# With a scale of its own each channel uses all the codes. The worst living channel needs more bits still:

# %%
worst = float(decibels(PerChannel(0), 4).min())
for_worst = next(bits for bits in reached if decibels(PerTensor(), bits).min() >= worst)
print(f"4 bits per channel: worst living channel {worst:.1f} dB; that takes {for_worst} bits per tensor")
shares = {"per tensor": PerTensor(), "per channel": PerChannel(0), "groups of 3": PerGroup(3)}
for bits in (4, 6, 8):
    least = {name: float(decibels(share, bits).min()) for name, share in shares.items()}
    print(f"{bits} bits, worst:", ", ".join(f"{name} {value:.1f} dB" for name, value in least.items()))
    assert least["per tensor"] + 6 < least["per channel"] < least["groups of 3"]
found, scale = plots.rounded(weight, 4, PerChannel(0))
assert torch.allclose(plots.ranges(found), 7 * scale), "each channel uses all its codes, up to 7"
assert 7 <= enough <= for_worst

# %% [markdown]
# ### Exercise 4.2: one scale a channel

# %% tags=["exercise"]
check("4.2", channel_scales)

# %% [markdown]
# ### Exercise 4.3: one scale a group
#
# For a group of weights, the same steps: scale, round, multiply.

# %% tags=["exercise"]
check("4.3", quantize_groups)

# %% [markdown]
# ## What scales cost
#
# A scale has to be stored, here with 16 bits. For 9 weights that is much, for a long row it is little. And an
# output of a layer is a sum of products. If all weights of an output channel have the same scale, the sum can be
# taken with integers, and multiplied once at the end, as it is with one scale a tensor too. Groups cut each sum into
# parts, and each part is scaled:

# %% tags=["nbval-check-output"]
for name, shape, granularity in (
    ("depthwise, per tensor", (96, 1, 3, 3), PerTensor()),
    ("depthwise, per channel", (96, 1, 3, 3), PerChannel(0)),
    ("depthwise, groups of 3", (96, 1, 3, 3), PerGroup(3)),
    ("linear layer, per channel", (4096, 11008), PerChannel(0)),
    ("linear layer, groups of 64", (4096, 11008), PerGroup(64)),
):
    scales, weights = torch.Size(granularity.scale_shape(shape)).numel(), torch.Size(shape).numel()
    each = max(1, scales // shape[0])
    print(f"{name:27} {16 * scales / weights:6.3f} bits more a weight, {each:3} times scaled an output")

# %% [markdown]
# So per channel costs bits where channels are short, and should cost no time. Does it? The same network, all of it
# in integers; read the column "speed-up". The last column compares the two with each other, not with float:

# %% tags=["timing"]
calibration = train.sample(64)


def quantized(bits, granularity, equalize=False):
    """The network with its weights on such a grid, calibrated."""
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    prepared = qlab.prepare(network, QConfig(weight=spec, first_last=None), equalize=equalize)
    return qlab.calibrate(prepared, calibration.batches(32))


x = next(test.batches(32))[0]
integers = {str(share): qlab.convert(quantized(7, share)) for share in (PerTensor(), PerChannel(0))}
print(bench.compare(integers, x, threads=1, rounds=9, sqnr=0, progress=False))

# %% [markdown]
# A few percent up or down are within what a machine does by itself. Groups need kernels of their own: they are common
# where memory is short and the bits are few, as in large language models (Frantar et al., 2022).
#
# ## On the whole network
#
# Now all weights of MobileNetV2, the first and the last layer included; activations have 8 bits.
#
# With how few bits is the accuracy still within five points of float? **Predict** it for one scale a tensor, then for
# one a channel.

# %%
def accuracies(granularity):
    """The accuracy with 3 to 8 bits."""
    return {bits: qlab.evaluate(quantized(bits, granularity), test) for bits in range(3, 9)}


float_accuracy = qlab.evaluate(network, test)
per_tensor = accuracies(PerTensor())
least = plots.fewest_bits(per_tensor, float_accuracy)
figure = plots.accuracy_of_bits({"per tensor": per_tensor}, float_accuracy, len(test))
predict("4c", figure, answer=least, accuracy=per_tensor[least], float=float_accuracy)

# %%
per_channel = accuracies(PerChannel(0))
fewer = plots.fewest_bits(per_channel, float_accuracy)
both = {"per tensor": per_tensor, "per channel": per_channel}
figure = plots.accuracy_of_bits(both, float_accuracy, len(test))
predict("4d", figure, answer=fewer, accuracy=per_channel[fewer], float=float_accuracy)

# %% [markdown]
# **Explain.** What is a rounding error in the large channels is all there is in the small ones. With 8 bits the
# step is fine enough for most of those, with 4 bits for far fewer, and a scale for each channel pays. Count the
# living channels of 16 depthwise layers that have less than 10 dB:

# %%
weights = [folded(block.conv[1]).weight for block in network.features[2:18]]


def poor(bits, granularity):
    """The share of living channels below 10 dB, in percent."""
    found = [plots.rounded(weight, bits, granularity)[0] for weight in weights]
    decibels = [plots.channel_sqnr(*pair)[plots.living(pair[0])] for pair in zip(weights, found)]
    return 100 * sum((ratio < 10).sum() for ratio in decibels) / sum(map(len, decibels))


for bits in (8, 4):
    tensor, channel = poor(bits, PerTensor()), poor(bits, PerChannel(0))
    print(f"{bits} bits: {tensor:4.1f} % of the living channels per tensor, {channel:4.1f} % per channel")
assert poor(8, PerTensor()) < min(50, poor(4, PerTensor()) / 2) and poor(4, PerChannel(0)) < 1
assert per_channel[8] > float_accuracy - 5 and per_channel[4] > per_tensor[4] + 5 and fewer < least

# %% [markdown]
# ## Make the channels alike
#
# Some processors offer one scale a tensor only. Then the weights can be changed, and the network stays the
# same: between two layers stands a relu, and $\mathrm{relu}(s x) = s\,\mathrm{relu}(x)$ for $s > 0$. So one
# may divide a channel by $s$ in the first layer and multiply it by $s$ in the second. **Cross-layer
# equalization** (Nagel et al., 2019) chooses $s$ such that the channel has the same range in both. (This
# network has relu6, which is cut off at 6 and does not scale along. As in the paper, a plain relu takes its
# place where two layers are equalized.)
#
# ### Exercise 4.4: the factor
#
# Find the factor of each channel for two linear layers. A channel is a row of the first weight and a column of
# the second.

# %% tags=["exercise"]
check("4.4", equalizing_factors)

# %% [markdown]
# ### Two layers of the network
#
# Below are the 1x1 convolution before the depthwise one, and the depthwise one; both per tensor.
#
# **Predict**, then **move** the share of equalization from 0 to 100 %. Watch the points and the line: which of
# them moves more?


# %%
both = folded(expand).weight, folded(depthwise).weight
first, second = (layer.decibels for layer in plots.pair(*both, 0.0, bits=6))
first_after, second_after = (layer.decibels for layer in plots.pair(*both, 1.0, bits=6))
low, high = sorted((first_after - first, second_after - second))
answer = 3 if high < 0 else 0 if low < -high / 2 else 1 if low > high / 2 else 2
values = {"first": first, "second": second, "first_after": first_after, "second_after": second_after}
predict("4e", panels.equalization(*both), answer=answer, **values)

# %% [markdown]
# **Explain.** A channel that is large in one layer hands a part of its range over to the other one. The largest
# channel sets the step, so the step gets smaller against all others, and they gain. A layer whose largest channel did
# not stand out has little to gain. Is it because fewer channels vanish? Compare all 16 pairs of the network, with 4 bits:

# %%
of_first, of_second = (spread(folded(block)) for block in (expand, depthwise))
print(f"largest channel / median channel: {of_first:.1f} in the first layer, {of_second:.1f} in the second")
pairs = [[folded(block.conv[place]).weight for place in (0, 1)] for block in network.features[2:18]]
old, new = ([plots.pair(*pair, share, bits=4)[1] for pair in pairs] for share in (0.0, 1.0))
for words, layers in (("before", old), ("equalized", new)):
    mean, gone = (sum(getattr(layer, what) for layer in layers) for what in ("decibels", "gone"))
    print(f"{words:9} a depthwise layer has {mean / 16:4.1f} dB; {gone:3} living channels became 0")
gains = [after.decibels - before.decibels for before, after in zip(old, new)]
fewer = sum(after.gone < before.gone for before, after in zip(old, new))
print(f"of 16 depthwise layers {sum(gain > 0 for gain in gains)} gain; in {fewer} fewer channels vanish")
assert sum(gain > 0 for gain in gains) >= 12 and sum(gains) > 2 * 16
assert first_after > first - 1 and second_after > second + 6 and of_second > of_first

# %% [markdown]
# **Explain.** So nearly every layer gains, because its step fits better; in some of them channels come back that had
# vanished. The two layers together still compute the same:

# %%
one, two = folded(expand), folded(depthwise)
with torch.no_grad():
    x = network.features[:4](next(train.sample(16).batches(16))[0])
    before, spread_before = two(one(x).relu()), spread(two)
    equalize_pair(one, two)
    moved = float((two(one(x).relu()) - before).abs().max())
print(f"largest output {before.abs().max():.2f}, largest difference {moved:.1e}")
print(f"largest channel / median, depthwise: {spread_before:.1f} before, {spread(two):.1f} after")
assert moved < 1e-3 * before.abs().max() and spread(two) < spread_before

# %% [markdown]
# And with relu in place of relu6 the whole network is about as good in float:

# %%
prepared = quantized(8, PerTensor(), equalize=True)
with prepared.quantizing(weights=False, activations=False):
    in_float = qlab.evaluate(prepared, test)
print(f"in float: {float_accuracy:.1f} % with relu6, {in_float:.1f} % equalized, with relu")
assert abs(in_float - float_accuracy) < 3

# %% [markdown]
# ## Take the shift back
#
# The rounding errors of one channel's weights seldom cancel. Behind a relu the inputs have a mean above 0, so
# the output of the whole channel moves up or down by some amount. **Bias correction** (Nagel et al., 2019)
# computes that shift and subtracts it from the bias.
#
# ### Exercise 4.5: the shift
#
# A linear layer, its rounded weights, and the mean of each input are given. How far do the means of the
# outputs move?

# %% tags=["exercise"]
check("4.5", bias_shift)

# %% [markdown]
# ### Without images
#
# The mean of the inputs can be measured with images. But BatchNorm has known it all along: behind it, a
# channel has mean $\beta$ and standard deviation $\gamma$. If its values lie like a bell curve, the mean behind the relu
# follows from these two. So the correction itself needs no image. (The ranges of the activations still come from the 64
# images of the calibration.)

# %%
with torch.inference_mode():
    y = expand[1](expand[0](network.features[:4](next(train.sample(64).batches(64))[0])))
    x = y.clamp(0, 6)  # relu6
    errors = (plots.rounded(weight, 4, PerTensor())[0] - weight).sum((1, 2, 3))
    shift = errors * x.mean((0, 2, 3)) / folded(depthwise)(x).std((0, 2, 3))
known = torch.corrcoef(torch.stack([y.mean((0, 2, 3)), expand[1].bias]))[0, 1]
typical = float(shift[alive].abs().nanmedian())
print(f"the means of the 96 channels and their beta: correlation {known:.3f}")
print(f"4 bits shift the median living channel by {typical:.2f} of its standard deviation")
assert known > 0.99 and (x.mean((0, 2, 3)) >= 0).all() and typical > 0.05

# %% [markdown]
# The whole network again, with one scale a tensor. **Predict**, then switch the repairs on: one, the other, both.

# %%
repaired = {}
for bits in range(3, 7):
    for equalize in (False, True):
        prepared = quantized(bits, PerTensor(), equalize)
        repaired[bits, equalize, False] = qlab.evaluate(prepared, test)
        repaired[bits, equalize, True] = qlab.evaluate(qlab.correct_bias(prepared), test)
nothing, corrected, equalized, both = (repaired[4, e, c] for e in (False, True) for c in (False, True))
alone = max(equalized, corrected) - nothing
answer = 2 if alone < 10 else 0 if equalized > corrected else 1
values = {"nothing": nothing, "equalized": equalized, "corrected": corrected, "both": both}
predict("4f", panels.repairs(repaired, per_channel, float_accuracy), answer=answer, **values)

# %% [markdown]
# **Explain.** Equalization makes the step fit, and the rounding errors smaller. Bias correction leaves the errors as
# they are and takes back only their mean, which is not enough where many channels are lost. How much each of them helps
# depends on the bits (on 300 images a few points are chance):

# %%
print("bits  nothing  bias corrected  equalized   both   per channel, nothing")
for bits in range(3, 7):
    row = [repaired[bits, e, c] for e in (False, True) for c in (False, True)] + [per_channel[bits]]
    print("{:4} {:6.1f} % {:13.1f} % {:8.1f} % {:5.1f} % {:12.1f} %".format(bits, *row))
assert both > nothing + 20 and equalized > nothing + 20

# %% [markdown]
# Neither of the two needs training. Compare "both" with one scale a channel and no repair. Both repairs can be
# combined with one scale a channel too.
#
# ## Three questions

# %%
quiz(4)

# %% [markdown]
# ## What to remember
#
# - **Folding** a BatchNorm keeps the outputs, and multiplies each channel's weights by a factor of its own.
# - **Per tensor**, the largest channel sets the step for all. **Per channel** adds 16 bits a channel and no time worth
#   measuring. **Groups** fit better still, and cost bits and a scaling each.
# - **Equalization** moves range from one layer to the next, so that the step of both fits; **bias correction** takes
#   back the mean error. Both need no training.
#
# ## For teachers
#
# - Common misconception: a high SQNR of the whole layer means that it is well quantized. In the panel "more bits, or
#   more scales", compare it with the median and the worst living channel.
# - In exercise 4.4 many take a channel for a row in both layers; the checker says so. Draw the two weights as matrices,
#   one above the other, and follow one channel.
# - Bias correction alone may help little or a lot: it depends on the network and the bits. Let students explain
#   what they see. The whole lesson fits in 45 minutes if 4.3 is homework.
#
# ## Papers
#
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): per channel against per tensor, MobileNets included.
# - M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, *Data-free quantization through weight equalization
#   and bias correction*, ICCV 2019, [arXiv:1906.04721](https://arxiv.org/abs/1906.04721).
# - M. Sandler et al., *MobileNetV2: inverted residuals and linear bottlenecks*, CVPR 2018,
#   [arXiv:1801.04381](https://arxiv.org/abs/1801.04381).
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): folding.
# - E. Frantar et al., *GPTQ: accurate post-training quantization for generative pre-trained transformers*,
#   2022, [arXiv:2210.17323](https://arxiv.org/abs/2210.17323): groups.
