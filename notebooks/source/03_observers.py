# %% [markdown]
# # 3. Observers and calibration
#
# An int8 network needs the range of every activation before it runs. So some images pass through the
# float network first, and an observer on each layer watches: that is **calibration**. How many images
# does it take, which ones, and which observer? You look at the ranges first, then at the accuracy.
#
# **After this lesson you can**
# - say what each observer keeps from one batch to the next, and which of them settle;
# - measure how many calibration images are enough;
# - tell harmless calibration images from those that ruin a network.
#
# **Time:** 40 minutes. **You need:** lesson 2.

# %%
from dataclasses import replace

import torch
from torch import nn

import qlab
from qlab import PerTensor, QConfig
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson03 import panels
from qlab.course.quiz import quiz

network = qlab.models.load("resnet20", data=qlab.data.available().name)
train = qlab.data.at_hand("train")
test = qlab.data.at_hand("test").sample(300)
banner(test)

# %% [markdown]
# ## Batch by batch
#
# Calibration images come in batches, here 40 batches of 8 images. After each batch an observer has to
# be ready to give a range. **Min-max** keeps the largest value so far. The **moving average** keeps an
# average of the batches' largest values, in which the newest batch has a small weight, the **momentum**
# (Jacob et al., 2018). **Percentile** and **MSE** count all values so far, and choose from the counts.

# %%
batches = []
hook = network.layer3[1].conv1.register_forward_pre_hook(lambda layer, inputs: batches.append(inputs[0]))
with torch.inference_mode():
    for x, _ in train.sample(320).batches(8):
        network(x)
hook.remove()
print(f"{len(batches)} batches of {batches[0].numel():,} values each, none below {min(b.min() for b in batches):.0f}")

# %% [markdown]
# **Predict.** Which of the four limits still moves after 20 batches? Which of them can never fall?
#
# **Move** the number of batches to the end. Then change the momentum: what happens near 0.01, what at 1?

# %%
panels.settling(batches)

# %% [markdown]
# **Explain.** Min-max can only grow, and each time it grows is a **record**. If the batches come in random
# order, the chance that batch $n$ holds the record is $1/n$. So the expected number of records among 40
# batches is $1 + 1/2 + 1/3 + \dots + 1/40$. They become rare, but they never end. Here the batches are put
# into 2,000 other orders to check that:

# %%
largest = torch.stack([batch.max() for batch in batches])
generator = torch.Generator().manual_seed(0)
orders = torch.stack([torch.randperm(40, generator=generator) for _ in range(2000)])
so_far = largest[orders].cummax(1).values
records = 1 + (so_far.diff(dim=1) > 0).sum(1)
expected = sum(1 / n for n in range(1, 41))
print(f"records: {records.float().mean():.2f} on average, expected {expected:.2f}")
assert abs(records.float().mean() - expected) < 0.3

# %% [markdown]
# The moving average wanders as long as batches come. With a momentum near 0 it stays where the first batch
# has put it, with 1 it is the last batch's range. It was made for training, where the weights change and old
# ranges are out of date.
#
# ### Exercise 3.1: a running min-max
#
# Write one step of the min-max observer. A range is a pair `(lo, hi)`.

# %% tags=["exercise"]
check("3.1", watch)

# %% [markdown]
# ### Exercise 3.2: a moving average
#
# The same for the moving average: what was seen before weighs `1 - momentum`, the new batch `momentum`.

# %% tags=["exercise"]
check("3.2", follow)

# %% [markdown]
# ## Counting instead of storing
#
# A percentile looks at all values, but nobody wants to store millions of them for every layer. A
# **histogram** is enough: it only counts how many values lie in each bin. When a value comes that is beyond
# the last bin, `qlab` doubles the width of the bins, and two old bins become one. No value has to be cut in
# two for that, so the counts stay exact. In which order the batches come makes no difference:

# %%
spec = qlab.QuantSpec(8, observer="percentile")
forwards, backwards = qlab.observers.build(spec), qlab.observers.build(spec)
for batch in batches:
    forwards(batch)
for batch in reversed(batches):
    backwards(batch)
print(f"limit {forwards.range()[1].item():.3f} in one order, {backwards.range()[1].item():.3f} in the other")
assert torch.equal(forwards.histogram.counts, backwards.histogram.counts)

# %% [markdown]
# ### Exercise 3.3: add two histograms
#
# Two workers have counted different images. The bins of one are `2**doublings` times as wide as those of
# the other. Bring all counts into the wide bins.

# %% tags=["exercise"]
check("3.3", merge)

# %% [markdown]
# ### Exercise 3.4: a percentile from counts
#
# In lesson 2 you found a percentile by sorting. Now you have nothing but the counts.

# %% tags=["exercise"]
check("3.4", limit_from_counts)

# %% [markdown]
# ## How many images?
#
# An observer is a hook that keeps something of what passes. The next cell watches 18 layers at once, and
# keeps each image's largest value.


# %%
def largest_values(images):
    """The largest input of each 3x3 convolution behind the first one, shape (images, layers)."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][1:]
    seen = {layer: [] for layer in layers}

    def keep(layer, inputs):
        seen[layer].append(inputs[0].flatten(1).amax(1))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    qlab.evaluate(network, images)  # shows its progress
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.cat(values) for values in seen.values()], 1)


tops = largest_values(train.sample(1024))

# %% [markdown]
# **Predict.** How much of the range of 1,024 images do you see with 16 of them: a tenth, half, or more?
#
# **Move** the number of images. Then draw other images: how much is luck?

# %%
panels.calibration_size(tops)

# %% [markdown]
# **Explain.** Each layer of one image has thousands of values, so even a single image shows a good part
# of the range. After that, four times as many images add a little each time, and it never ends: these are
# the records again.

# %%
share = {n: (tops[:n].amax(0) / tops.amax(0)).mean().item() for n in (1, 4, 16, 64, 256, 1024)}
for n, part in share.items():
    print(f"images: {n:5}   of the range: {part:4.0%} on average over the layers")
assert 0.25 < share[1] < share[16] < share[256] < 1 and share[16] > 0.5

# %% [markdown]
# ## Does the accuracy care?
#
# Ranges are not the aim, right answers are. `calibrated` makes a quantized network; `w4a4` means 4 bits for
# weights and 4 bits for activations.
#
# **Predict.** With 8 bits, how many points of accuracy does it cost to calibrate with one image instead of
# 256? And with 4 bits, do more images help min-max?


# %%
def calibrated(batches, preset="w8a8", observer="minmax"):
    """The network quantized, with the ranges that the observers chose for these batches."""
    prepared = qlab.prepare(network, QConfig.preset(preset, observer=observer))
    return qlab.calibrate(prepared, batches)


def by_size(preset):
    """The accuracy after calibration with min-max, for each number of images."""
    found = {}
    for count in (1, 16, 256):
        found[count] = qlab.evaluate(calibrated(train.sample(count).batches(32), preset), test)
        print(f"{preset}, min-max, images: {count:3}   right: {found[count]:.1f} %")
    return found


float_accuracy = qlab.evaluate(network, test)
print(f"float: {float_accuracy:.1f} % of {len(test)} test images")
eight = by_size("w8a8")
assert abs(eight[16] - eight[256]) < 2.5 and eight[256] > float_accuracy - 2.5

# %%
four = by_size("w4a4")
assert four[256] < four[16] + 1, "more images do not rescue min-max"

# %% [markdown]
# One image of 300 is 0.3 points, so differences below two points may be chance. With 8 bits, a few
# images are enough here. With 4 bits, steps are 17 times as wide, and more images do not rescue min-max:
# they bring more records, a wider range, and coarser steps for all other values.
#
# ## Which observer?
#
# **Predict.** Five observers, the same 64 images. Where will the choice matter more, at 8 bits or at 4?

# %%
sample = train.sample(64)


def compare(preset):
    """The accuracy with each observer."""
    found = {}
    for name in ("minmax", "moving_average", "percentile", "mse", "entropy"):
        found[name] = qlab.evaluate(calibrated(sample.batches(32), preset, name), test)
        print(f"{preset}, {name:15} {found[name]:.1f} %")
    return found


eight = compare("w8a8")
assert max(eight.values()) - min(eight.values()) < 2.5

# %%
four = compare("w4a4")
others = [accuracy for name, accuracy in four.items() if name != "minmax"]
assert max(others) >= four["minmax"], "with 4 bits another observer does at least as well as min-max"

# %% [markdown]
# **Explain.** With 8 bits there are enough codes for any sensible range. With 4 bits, what min-max gives to
# a few rare values is missing everywhere else. Wu et al. (2020) find the same on larger networks: no observer
# is best for all of them, so it is worth trying two or three.
#
# ## Bad calibration images
#
# **Predict.** Four ways to get the calibration images wrong. Which ones ruin the network: images of one
# class only, random noise, plain grey images, or real images that somebody forgot to normalize (pixels
# from 0 to 1, as they come out of a file)?

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randint(0, 256, sample.images.shape, dtype=torch.uint8, generator=generator)
sets = {
    "training images": sample.batches(32),
    "one class only": train.subset(train.labels == 3).sample(64).batches(32),
    "random noise": replace(sample, images=noise).batches(32),
    "plain grey": replace(sample, images=torch.full_like(noise, 128)).batches(32),
    "not normalized": [(sample.images / 255).contiguous(memory_format=torch.channels_last)],
}
networks = {name: calibrated(given) for name, given in sets.items()}
by_set = {name: qlab.evaluate(quantized, test) for name, quantized in networks.items()}
for name, accuracy in by_set.items():
    print(f"{name:18} {accuracy:5.1f} %")
assert by_set["training images"] > by_set["not normalized"] + 10
assert by_set["training images"] > by_set["plain grey"] + 10

# %% [markdown]
# **Explain.** What counts is that each layer sees values of the right size. Noise and a single class are far
# from what the network was trained on, and yet they may reach about the same ranges; that is luck, and you
# should measure before you rely on it. Grey images excite almost nothing: the ranges come out too narrow,
# and real images are clipped. Images that are not normalized lie on another scale than those the network
# will get.
#
# There is a check that needs no labels: compare the ranges with those that some training images give. The
# remedy is simple too: calibrate with the same code that prepares the images for use.


# %%
def steps(quantized):
    """The scale of every activation, shape (activations,); the scales of weights have a channel axis."""
    return torch.stack([q.qparams.scale for _, q in quantized.quantizers() if q.qparams.granularity == PerTensor()])


wanted = steps(networks["training images"])
reached = {name: (steps(quantized) / wanted).mean().item() for name, quantized in networks.items()}
for name, part in reached.items():
    print(f"{name:18} {part:4.0%} of each range on average, {by_set[name]:5.1f} % right")
assert reached["plain grey"] < 0.8 * reached["one class only"]

# %% [markdown]
# ## Three questions

# %%
quiz(3)

# %% [markdown]
# ## What to remember
#
# - **Min-max** only grows; **records** become rare but never end. A **moving average** wanders. **Percentile**
#   and **MSE** count all values in a histogram, and settle.
# - With 8 bits some dozens of images and any observer do. With 4 bits the observer matters, and more
#   images do not rescue min-max.
# - Calibration images must be **prepared like those in use**. They need no labels.
#
# ## For teachers
#
# - Common misconception: more calibration images are always better. Let the class predict the 4-bit numbers
#   of min-max before that cell runs.
# - Students expect that noise ruins the network and that a missing normalization is harmless. Ask which
#   ranges each set reaches before you discuss the accuracy.
# - Exercise 3.3 takes longest; draw two rows of bins under each other. Ten minutes for both explorables.
#
# ## Papers
#
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): moving averages of ranges.
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): about 100 batches of calibration data.
# - H. Wu et al., *Integer quantization for deep learning inference*, 2020,
#   [arXiv:2004.09602](https://arxiv.org/abs/2004.09602): calibrators compared on many networks.
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): range setting in a whole pipeline.
