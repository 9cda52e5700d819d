# %% [markdown]
# # 3. Observers and calibration
#
# An int8 network needs the range of every activation before it runs. So some images pass through the
# float network first, and an observer on each layer watches: that is **calibration**. How many images
# does it take, which ones, and which observer? You look at the ranges first, then at the accuracy.
#
# **After this lesson you can**
# - say what each observer keeps from one batch to the next, and which of them settle;
# - measure how many calibration images are enough, and say which differences may be chance;
# - tell harmless calibration images from those that ruin a network.
#
# **Time:** 45 minutes. **You need:** lesson 2.

# %%
from dataclasses import replace

import torch
from torch import nn

import qlab
from qlab import PerTensor, QConfig
from qlab.analysis import hits, paired
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson03 import panels, plots
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.course.watching import inputs_of, largest_inputs

network = qlab.models.load("resnet20", data=qlab.data.available().name)
train = qlab.data.at_hand("train")
test = qlab.data.at_hand("test").sample(2000)
banner(test)

# %% [markdown]
# ## Batch by batch
#
# Calibration images come in batches, here 40 batches of 8 images. After each batch an observer has to
# be ready to give a range. **Min-max** keeps the largest value so far. The **moving average** keeps an
# average of the batches' largest values, in which the newest batch has a small weight, the **momentum**
# (Jacob et al., 2018). **Percentile** and **MSE** count all values so far, and choose from the counts.

# %%
layer = network.layer3[1].conv1
batches = inputs_of(layer, network, train.sample(320).batches(8))
print(f"{len(batches)} batches of {batches[0].numel():,} values each, none below {min(b.min() for b in batches):.0f}")

# %% [markdown]
# Predict which limit is the most restless. Then **move** the number of batches to the end. Which of the four can
# never fall? Change the momentum too: what happens near 0.01, what at 1?

# %%
limits = plots.limits_of(batches)
late = {name: curve[19:] for name, curve in limits.items()}  # from batch 20 on
path = {name: abs(curve[1:] - curve[:-1]).sum() for name, curve in late.items()}
farthest = list(path).index(max(path, key=path.get))
predict("3a", panels.settling(batches), answer=farthest, **path)

# %% [markdown]
# **Explain.** Percentile and MSE settle: they count all values so far, and one batch more changes little. The
# moving average wanders as long as batches come. With a momentum near 0 it stays where the first batch has put
# it, with 1 it is the last batch's range. It was made for training, where the weights change and old ranges are
# out of date. Min-max can only grow.

# %%
for name, curve in late.items():
    spread = (curve.max() - curve.min()) / curve[-1]
    print(f"{name:15} travels {path[name]:.3f} from batch 20 to 40, within {spread:.1%} of its limit")
    assert spread < 0.04 or name in ("minmax", "moving_average")
largest = torch.stack([batch.max() for batch in batches])
slow, fast = (plots.moving_average(largest.numpy(), momentum) for momentum in (0.01, 1))
print(f"momentum 0.01: from {slow[0]:.2f} to {slow[-1]:.2f}; momentum 1: at {fast[-1]:.2f}, the last batch's {largest[-1]:.2f}")
assert (limits["minmax"][1:] >= limits["minmax"][:-1]).all() and farthest == 1
assert abs(slow - slow[0]).max() < abs(fast - fast[0]).max() / 2 and abs(fast[-1] - largest[-1]) < 1e-6

# %% [markdown]
# ## Records
#
# Each time that min-max grows, a batch has set a **record**; the first batch always does. How many records will
# there be among 40 batches? The order of the batches is luck, so the next cell puts them into 2,000 other orders.

# %%
generator = torch.Generator().manual_seed(0)
orders = torch.stack([torch.randperm(40, generator=generator) for _ in range(2000)])
so_far = largest[orders].cummax(1).values
records = 1 + (so_far.diff(dim=1) > 0).sum(1)
here = 1 + int((torch.from_numpy(limits["minmax"]).diff() > 0).sum())
luck = 100 * (records >= here).float().mean().item()
average = records.float().mean().item()
predict("3b", answer=average, here=here, luck=luck)

# %% [markdown]
# **Explain.** If the batches come in random order, each of the first $n$ is equally likely to be the
# largest of them, so batch $n$ sets a record with chance $1/n$. So the
# expected number of records among 40 batches is $1 + 1/2 + 1/3 + \dots + 1/40$. They become rare, but they never
# end: twice as many batches bring 0.7 records more, however many there were.

# %%
expected = {count: sum(1 / n for n in range(1, count + 1)) for count in (40, 80, 1000, 2000)}
print(f"records among 40 batches: {average:.2f} on average, expected {expected[40]:.2f}")
assert abs(average - expected[40]) < 0.3
assert round(expected[80] - expected[40], 1) == round(expected[2000] - expected[1000], 1) == 0.7

# %% [markdown]
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
# **histogram** is enough: it only counts how many values lie in each bin. In `qlab` the bins are narrow beside the
# values that they hold: small values have narrow bins, large values wide ones, and none of them ever
# moves. So the counts of all batches simply add up. In which order the batches come makes no difference:

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
# Some tools use bins of one width, and double it when a value comes that lies beyond the last bin. Two workers have
# counted different images in this way. The bins of one are `2**doublings` times as wide as those of the other. Bring all counts into the wide bins.

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
# Min-max keeps the largest value of each layer, and that is the largest of some image. The next cell runs 1,024
# images through the network, and writes down what is the largest that enters each of 18 layers.

# %%
layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][1:]
tops = largest_inputs(layers, network, train.sample(1024).batches(32))
print(f"{tops.shape[0]:,} images, {tops.shape[1]} layers")

# %% [markdown]
# Predict how much of the range of all 1,024 images you see with 16 of them. Then **move** the number of images,
# and draw other images: how much is luck?

# %%
share = plots.shares_of_range(tops).mean(2)  # of each drawing and each number of images: the mean of the layers
predict("3c", panels.calibration_size(tops), answer=share[0, 15], low=share[:, 15].min(), high=share[:, 15].max())

# %% [markdown]
# **Explain.** Each layer of one image has thousands of values, so even a single image shows a good part
# of the range. After that, four times as many images add a little each time, and it never ends: these are
# the records again.

# %%
for images in (1, 4, 16, 64, 256, 1024):
    some = share[:, images - 1]
    print(f"images: {images:5}   of the range: {some[0]:3.0f} %, in ten drawings {some.min():3.0f} to {some.max():3.0f} %")
assert batches[0][0].numel() > 4000  # those of one image
assert 25 < share[0, 0] < share[0, 15] < share[0, 255] < 100 and share[0, 15] > 50

# %% [markdown]
# ## Does the accuracy care?
#
# Ranges are not the aim, right answers are. `hits` says for each test image whether a network is right. On
# other images it would be another number of them, and that makes every accuracy uncertain. But two networks that
# come from the same weights are wrong on nearly the same images. So compare them **image by image**: 1 where only
# the second is right, -1 where only the first is, 0 everywhere else. The mean of these numbers is the difference.
# Its **standard error** is their standard deviation, divided by the root of how many images there are.
#
# A difference of more than two standard errors is hardly chance: without any real difference, chance does that
# about once in twenty times. Nothing that is smaller proves that there is no difference; it may need more images.
#
# ### Exercise 3.5: is it chance?

# %% tags=["exercise"]
check("3.5", may_be_chance)


# %% [markdown]
# `qlab.analysis.paired` does the same in percentage points. The next cells use it.
#
# ## How many images, for the accuracy?
#
# `calibrated` makes a quantized network; `w4a4` means 4 bits for weights and 4 bits for activations.


# %%
def calibrated(batches, preset="w8a8", observer="minmax"):
    """The network quantized, with the ranges that the observers chose for these batches."""
    prepared = qlab.prepare(network, QConfig.preset(preset, observer=observer))
    return qlab.calibrate(prepared, batches)


def line(name, right, than):
    """A row: an accuracy, and its difference from another one on the same images."""
    return f"{name:26} {100 * right.float().mean():5.2f} %   {paired(than, right)}"


def sure(right, than):
    """1 or -1 when the difference is more than two standard errors, up or down; else 0."""
    found = paired(than, right)
    return int(abs(found.difference) > 2 * found.error) * (1 if found.difference > 0 else -1)


# %%
float_right = hits(network, test)
one, many = (hits(calibrated(train.sample(count).batches(32)), test) for count in (1, 256))
table = "\n".join([
    line("float", float_right, float_right),
    line("w8a8, 256 images", many, float_right),
    line("w8a8, 1 image", one, many) + ", against 256 images",
])  # fmt: skip
found = paired(many, one)
cost = 0 if not sure(one, many) else 1 if found.difference > -3 else 2
predict("3d", table, answer=cost, difference=found.difference, error=found.error)

# %% [markdown]
# **Explain.** With 8 bits there are codes enough: a range that is somewhat too narrow clips a few values, one
# that is too wide makes all steps a little coarser. Few images change from right to wrong, or back.

# %%
alone = 100 * (float_right.float().std() / len(float_right) ** 0.5).item()
print(f"1 image: {(~one == many).sum()} of {len(test):,} images changed. Two accuracies that were not measured")
print(f"on the same images would have a standard error of {2**0.5 * alone:.2f} points; here it is {found.error:.2f}.")
assert abs(found.difference) < 1 and found.error < alone / 2

# %% [markdown]
# With 4 bits each step is 17 times as wide: 15 steps share the range, not 255. Predict what more calibration
# images do to min-max then.

# %%
four = {count: hits(calibrated(train.sample(count).batches(32), "w4a4"), test) for count in (1, 16, 256)}
table = "\n".join(line(f"w4a4, min-max, images: {count:3}", right, float_right) for count, right in four.items())
found = paired(four[16], four[256])
effect = 1 - sure(four[256], four[16])  # they help, nothing that is sure, they harm
predict("3e", table, answer=effect, difference=found.difference, error=found.error)

# %% [markdown]
# **Explain.** More images do not rescue min-max: they bring more records, a wider range, and coarser steps for
# all other values. (The rows compare with the float network.) Another 16 images would give another number, too:
# the standard error knows of the test images, not of the luck in choosing the calibration images.

# %%
assert effect != 0 and sure(four[256], float_right) < 0, "more images do not rescue min-max"

# %% [markdown]
# ## Which observer?
#
# Five observers, the same 64 images. Each is compared with min-max, image by image. Predict where the choice of
# the observer changes the accuracy by more than chance.

# %%
sample = train.sample(64)
names = ("minmax", "moving_average", "percentile", "mse", "entropy")
eight = {name: hits(calibrated(sample.batches(32), "w8a8", name), test) for name in names}

# %%
four = {name: hits(calibrated(sample.batches(32), "w4a4", name), test) for name in names}
rows = [line(f"w8a8, {name}", found, eight["minmax"]) for name, found in eight.items()]
rows += [line(f"w4a4, {name}", found, four["minmax"]) for name, found in four.items()]
better = [sum(sure(found, right["minmax"]) > 0 for found in right.values()) for right in (eight, four)]
where = (better[0] > 0) + 2 * (better[1] > 0)  # nowhere, with 8 bits, with 4, with both
predict("3f", "\n".join(rows), answer=where, eight=better[0], four=better[1])

# %% [markdown]
# **Explain.** With 8 bits there are enough codes for any sensible range. With 4 bits, what min-max gives to
# a few rare values is missing everywhere else. Which of the others is best cannot be told from so few images.
# Wu et al. (2020) find the same on larger networks: no observer is best for all of them, so it is worth trying
# two or three.

# %%
best, second = sorted(names, key=lambda name: -four[name].sum())[:2]
print(f"w4a4, {best} against {second}: {paired(four[second], four[best])}")
assert better[1] > 0 and sure(four[best], four[second]) == 0
assert all(abs(paired(eight["minmax"], found).difference) < 1 for found in eight.values())

# %% [markdown]
# ## Bad calibration images
#
# Four ways to get the calibration images wrong: images of one class only, random noise, plain grey images, or
# real images that somebody forgot to normalize (pixels from 0 to 1, as they come out of a file). The network has
# 8 bits. Predict which one costs the most.

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randint(0, 256, sample.images.shape, dtype=torch.uint8, generator=generator)
sets = {
    "one class only": train.subset(train.labels == 3).sample(64).batches(32),
    "random noise": replace(sample, images=noise).batches(32),
    "plain grey": replace(sample, images=torch.full_like(noise, 128)).batches(32),
    "not normalized": [(sample.images / 255).contiguous(memory_format=torch.channels_last)],
}
networks = {name: calibrated(given) for name, given in sets.items()}
by_set = {name: hits(quantized, test) for name, quantized in networks.items()}
good = eight["minmax"]
table = "\n".join(line(name, found, good) for name, found in {"training images": good, **by_set}.items())
worst = min(by_set, key=lambda name: by_set[name].sum())
predict("3g", table, answer=list(by_set).index(worst))

# %% [markdown]
# **Explain.** What counts is that each layer sees values of the right size. Noise is far from what the network
# was trained on, a single class is one-sided, and yet both come near the right ranges. How near is luck, and you
# should measure before you rely on it. Grey images excite little: the ranges come out too narrow,
# and real images are clipped. Images that are not normalized lie on another scale than those the network
# will get.
#
# There is a check that needs no labels: compare the ranges with those that some training images give. The
# remedy is simple too: calibrate with the same code that prepares the images for use.


# %%
def steps(quantized):
    """The scale of every activation, shape (activations,); the scales of weights have a channel axis."""
    return torch.stack([q.qparams.scale for _, q in quantized.quantizers() if q.qparams.granularity == PerTensor()])


wanted = steps(calibrated(sample.batches(32)))
reached = {name: (steps(quantized) / wanted).mean().item() for name, quantized in networks.items()}
for name, part in reached.items():
    print(f"{name:15} {part:4.0%} of each range on average, {100 * by_set[name].float().mean():5.1f} % right")
loss = {name: -paired(good, found).difference for name, found in by_set.items()}
assert loss["plain grey"] > 10 and loss["not normalized"] > 10 and loss["one class only"] < 2 and loss["random noise"] < 10
assert max(reached["plain grey"], reached["not normalized"]) < min(reached["one class only"], reached["random noise"])

# %% [markdown]
# ## Three questions

# %%
quiz(3)

# %% [markdown]
# ## What to remember
#
# - **Min-max** only grows; **records** become rare but never end. A **moving average** wanders. **Percentile**
#   and **MSE** count all values in a histogram, and settle.
# - With 8 bits a few images and any observer do. With 4 bits the observer matters, and more images do not rescue
#   min-max.
# - Compare two networks **on the same images**, and ask how large the **standard error** of the difference is.
# - Calibration images must be **prepared like those in use**. They need no labels.
#
# ## For teachers
#
# - Common misconception: more calibration images are always better. Let the class predict what they do to
#   min-max with 4 bits.
# - Another: a difference of half a point decides. Ask on how many images the two networks differ at all, and
#   which way, before you show exercise 3.5's answer.
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
