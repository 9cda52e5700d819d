# %% [markdown]
# # 4. Granularity: per tensor, per channel, per group
#
# So far a whole tensor had one scale. MobileNetV2 (Sandler et al., 2018) shows where that ends: some of its
# channels have weights many times as large as others. Here you give them more scales, and then you try to
# do without, by making the channels alike.
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
from qlab import PerChannel, PerGroup, PerTensor, QConfig, QuantSpec
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson04 import panels
from qlab.course.quiz import quiz
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
# A **depthwise** convolution has one small filter for each channel, here 3x3, so 9 weights a channel. The
# next cell folds one.

# %%
expand, depthwise = network.features[3].conv[0], network.features[3].conv[1]


def folded(block):
    """A copy of a block's convolution that does the work of the BatchNorm behind it as well."""
    layer = copy.deepcopy(block[0])
    fold_layer(layer, block[1])
    return layer


def spread(layer):
    """The largest weight of the largest channel, divided by that of the median channel."""
    largest = layer.weight.detach().flatten(1).abs().amax(1)
    return float(largest.max() / largest.median())


with torch.inference_mode():
    x = expand(network.features[:3](next(train.sample(16).batches(16))[0]))
    two, one = depthwise[1](depthwise[0](x)), folded(depthwise)(x)
print(f"largest output {two.abs().max():.2f}, largest difference after folding {(one - two).abs().max():.1e}")
print(f"largest channel / median channel: {spread(depthwise[0]):.1f} before, {spread(folded(depthwise)):.1f} after")
assert torch.allclose(one, two, rtol=1e-3, atol=1e-3)
assert spread(folded(depthwise)) > spread(depthwise[0])

# %% [markdown]
# The outputs are the same, but the channels of the weight have grown apart: each was multiplied by its own
# $\gamma / \mathrm{std}$.
#
# ### Exercise 4.1: fold a BatchNorm
#
# The layer computes `y = weight @ x + bias`, the BatchNorm `(y - mean) / std * gamma + beta`. Write one
# layer that does both.

# %% tags=["exercise"]
check("4.1", fold)

# %% [markdown]
# ## One scale or many
#
# The **granularity** says who shares a scale: the whole tensor, each channel, or each **group** of a few
# neighbours in a channel. The smaller the part, the better its scale fits.
#
# **Predict.** With 4 bits and one scale for the tensor below, in how many of its channels will every weight
# become 0? And how many bits are as good with one scale a tensor as 4 bits with one a channel?
#
# **Move** from "per tensor" to "per channel" and to groups. Then go back to "per tensor" and raise the bits
# until the worst channel is as good as it was per channel with 4 bits.

# %%
panels.channel_ranges(folded(depthwise).weight)

# %% [markdown]
# **Explain.** The largest weight of the tensor sets the one scale. A channel that lies below half a step
# vanishes. With a scale of its own each channel uses all the codes:

# %%
def worst_channel(granularity, bits):
    """The SQNR in dB of the channel that has the lowest."""
    weight = folded(depthwise).weight.detach()
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    observer = qlab.observers.build(spec)
    observer(weight)
    error = qlab.fake_quantize(weight, observer.qparams()) - weight
    return float(10 * (weight.square().sum((1, 2, 3)) / error.square().sum((1, 2, 3))).log10().min())


for bits in (4, 6, 8):
    tensor, channel, group = (worst_channel(share, bits) for share in (PerTensor(), PerChannel(0), PerGroup(3)))
    print(f"{bits} bits, worst channel: per tensor {tensor:4.1f}, per channel {channel:4.1f}, groups {group:4.1f} dB")
    assert tensor + 6 < min(channel, group)

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
# A scale has to be stored, here with 16 bits. For 9 weights that is much, for a long row it is little:

# %% tags=["nbval-check-output"]
for name, shape, granularity in (
    ("depthwise, per channel", (96, 1, 3, 3), PerChannel(0)),
    ("depthwise, groups of 3", (96, 1, 3, 3), PerGroup(3)),
    ("linear layer, per channel", (4096, 11008), PerChannel(0)),
    ("linear layer, groups of 64", (4096, 11008), PerGroup(64)),
):
    scales, weights = torch.Size(granularity.scale_shape(shape)).numel(), torch.Size(shape).numel()
    print(f"{name:27} {16 * scales / weights:6.3f} bits more for each weight")

# %% [markdown]
# It matters too what the processor has to do. An output of a layer is a sum of products. If all weights of an
# output channel have the same scale, the sum can be taken with integers, and multiplied once at the end: per
# channel costs nearly nothing at run time. Groups cut each sum into parts that have to be scaled one by one.
# So int8 kernels are mostly per channel, and groups are common where memory is short and the bits are few, as
# in large language models (Frantar et al., 2022).
#
# ## On the whole network
#
# Now all weights of MobileNetV2, the first and the last layer included; activations have 8 bits.
#
# **Predict.** How many bits can be taken away per tensor, and how many per channel, before the accuracy
# falls by more than five points?

# %%
calibration = train.sample(64)


def quantized(bits, granularity, equalize=False):
    """The network with its weights on such a grid, calibrated."""
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=granularity, narrow_range=True)
    prepared = qlab.prepare(network, QConfig(weight=spec, first_last=None), equalize=equalize)
    return qlab.calibrate(prepared, calibration.batches(32))


def accuracies(granularity):
    """The accuracy with 8, 6 and 4 bits."""
    found = {}
    for bits in (8, 6, 4):
        found[bits] = qlab.evaluate(quantized(bits, granularity), test)
        print(f"{granularity}, {bits} bits: {found[bits]:.1f} %")
    return found


float_accuracy = qlab.evaluate(network, test)
print(f"float: {float_accuracy:.1f} % of {len(test)} test images")

# %%
per_tensor = accuracies(PerTensor())

# %%
per_channel = accuracies(PerChannel(0))
assert per_channel[8] > float_accuracy - 5
assert per_channel[4] > per_tensor[4] + 5

# %% [markdown]
# **Explain.** What is a rounding error in the large channels is all there is in the small ones. With 8 bits
# the step is fine enough even for most of those. With 4 bits it is not, and a scale for each channel pays.
#
# ## Make the channels alike
#
# Some processors offer one scale a tensor only. Then the weights can be changed, and the network stays the
# same: between two layers stands a relu, and $\mathrm{relu}(s x) = s\,\mathrm{relu}(x)$ for $s > 0$. So one
# may divide a channel by $s$ in the first layer and multiply it by $s$ in the second. **Cross-layer
# equalization** (Nagel et al., 2019) chooses $s$ such that the channel has the same range in both. (This
# network has relu6, which is cut off at 6 and does not scale along. As in the paper, a plain relu takes its
# place where two layers are equalized.)
#
# Below are the 1x1 convolution before the depthwise one, and the depthwise one; both per tensor.
#
# **Predict.** In which of the two layers do the ranges get closer to each other? Can that help one layer and
# harm the other?
#
# **Move** the share of equalization from 0 to 100 %.

# %%
panels.equalization(folded(expand).weight, folded(depthwise).weight)

# %% [markdown]
# **Explain.** A channel that is large in one layer only hands a part of its range over to the other one, and
# all channels get nearer to the median. The cell below does it by the formula, and checks that the two
# layers together still compute the same:

# %%
first, second = folded(expand), folded(depthwise)
with torch.inference_mode():
    x = network.features[:3](next(train.sample(16).batches(16))[0])
    before = second(first(x).relu())
    r1, r2 = (layer.weight.flatten(1).abs().amax(1) for layer in (first, second))
    s = (r1 / r2).sqrt()
    spread_before = spread(second)
    first.weight /= s[:, None, None, None]
    first.bias /= s
    second.weight *= s[:, None, None, None]
    after = second(first(x).relu())
print(f"largest output {before.abs().max():.2f}, largest difference {(after - before).abs().max():.1e}")
print(f"largest channel / median channel in the depthwise layer: {spread_before:.1f} before, {spread(second):.1f} after")
assert (after - before).abs().max() < 1e-3 * before.abs().max()
assert spread(second) < spread_before

# %% [markdown]
# ### Exercise 4.4: the factor
#
# Find the factor of each channel for two linear layers. A channel is a row of the first weight and a column of
# the second.

# %% tags=["exercise"]
check("4.4", equalizing_factors)

# %% [markdown]
# ## Take the shift back
#
# The rounding errors of one channel's weights do not cancel. Behind a relu the inputs have a mean above 0, so
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
# The mean of the inputs can be measured with images. But BatchNorm has known it all along: behind it, a
# channel has mean $\beta$ and standard deviation $\gamma$. So no image is needed.
#
# **Predict.** With 4 bits and one scale a tensor, which helps more: equalization, bias correction, or only
# both together?

# %%
repaired = {"nothing": per_tensor[4]}
repaired["bias correction"] = qlab.evaluate(qlab.correct_bias(quantized(4, PerTensor())), test)
print(f"4 bits per tensor: {repaired['nothing']:.1f} %, with bias correction {repaired['bias correction']:.1f} %")

# %%
equalized = quantized(4, PerTensor(), equalize=True)
repaired["equalization"] = qlab.evaluate(equalized, test)
repaired["both"] = qlab.evaluate(qlab.correct_bias(equalized), test)
for name, accuracy in repaired.items():
    print(f"4 bits per tensor, {name:16} {accuracy:5.1f} %")
print(f"4 bits per channel, nothing         {per_channel[4]:5.1f} %")
print(f"float                               {float_accuracy:5.1f} %")
assert repaired["both"] > repaired["nothing"] + 5

# %% [markdown]
# **Explain.** Equalization keeps channels from vanishing. Bias correction cannot bring a vanished channel
# back, but it restores the means of those that became coarse. Which of the two helps more depends on the
# network. Together they need neither training nor images. Compare the line "both" with one scale a channel
# and no repair: which of the two is better here? Both repairs can be combined with one scale a channel too.
#
# ## Three questions

# %%
quiz(4)

# %% [markdown]
# ## What to remember
#
# - **Folding** a BatchNorm keeps the outputs, and multiplies each channel's weights by a factor of its own.
# - **Per tensor**, the largest channel sets the step for all. **Per channel** costs almost nothing. **Groups**
#   fit better still, and cost bits and time.
# - **Equalization** moves range from one layer to the next; **bias correction** takes back the mean error.
#   Both need no training.
#
# ## For teachers
#
# - Common misconception: a high SQNR of the whole layer means that it is well quantized. In the first
#   explorable, compare it with the worst channel.
# - In exercise 4.4 many take a channel for a row in both layers. Draw the two weights as matrices, one above
#   the other, and follow one channel.
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
