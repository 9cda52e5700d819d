# %% [markdown]
# # 9. The far end: four bits, two, one
#
# A grid need not have equal steps. With few bits it pays to choose each value with care, and with one bit a
# weight is nothing but a sign. How small can a network get, and what does each grid cost?
#
# **After this lesson you can**
# - cluster weights into a codebook, and count its bytes;
# - make weights ternary or binary, with the scale that fits best;
# - say when equal steps, a codebook or a small float is the better grid.
#
# **Time:** 50 minutes. **You need:** lessons 1 and 2; lesson 7 for what training can mend.

# %%
from dataclasses import replace

import torch

import qlab
from qlab import QConfig, codebook, formats
from qlab.analysis import hits, paired
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson09 import panels, plots, sizes
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.qconfig import Binary, KMeans, Ternary

network = qlab.models.load("resnet20", data=qlab.data.available().name)
test = qlab.data.at_hand("test").sample(300)
layer = network.layer2[1].conv1
weights = layer.weight.detach()
banner(test)

# %% [markdown]
# ## A codebook
#
# Most weights are close to 0, and few are large. Equal steps spend as many rungs on the few as on the many. A
# **codebook** is a table of values, placed wherever they are needed. A weight is stored as an index into it:
# with 3 bits, one of 8 values.
#
# **k-means** finds the table (Han et al., 2016). It repeats two steps, known as Lloyd's algorithm: each weight
# goes to the nearest value, then each value moves to the mean of its weights. The values of the table are
# called **centroids**. They start evenly from the smallest to the largest weight.

# %%
close = float((weights.abs() < weights.abs().max() / 4).float().mean())
print(f"{close:.0%} of the weights are within a quarter of the largest")
assert close > 0.5  # of evenly spread ones, a quarter would be


# %%
def share_of_error(rounded):
    """The squared error of the weights, as a share of their squares."""
    return float((rounded - weights).square().sum() / weights.square().sum())


def best_equal_steps(bits):
    """The grid of equal steps with the least squared error."""
    observer = qlab.observers.build(qlab.QuantSpec(bits, signed=True, symmetric=True, observer="mse"))
    observer(weights)
    return observer.qparams()


falling, even, reach = {}, {}, {}
for bits in (2, 3, 4):
    books = [codebook.kmeans(weights, bits, iterations=number) for number in range(0, 41, 4)]
    falling[bits] = [share_of_error(codebook.look_up(*book)) for book in books]
    rounded = qlab.fake_quantize(weights, best_equal_steps(bits))
    even[bits], reach[bits] = share_of_error(rounded), float(rounded.abs().max() / weights.abs().max())
table = "\n".join(f"{bits} bits: even start {falling[bits][0]:.1%}, best equal steps {even[bits]:.1%}" for bits in even)
larger = all(falling[bits][0] > even[bits] for bits in even)
smaller = all(falling[bits][0] < even[bits] for bits in even)
predict("9a", table, answer=2 if larger else 0 if smaller else 1, start=falling[3][0], even=even[3])

# %% [markdown]
# **Explain.** The even start reaches to the largest weight, so its steps are wide. The best equal steps cut the few
# largest weights off.

# %%
for bits in even:
    print(f"{bits} bits: the best equal steps reach to {reach[bits]:.0%} of the largest weight")
    assert reach[bits] < 0.85 and even[bits] < falling[bits][0]

# %% [markdown]
# ### And then they move
#
# **Move** the iterations from 0 to 40, then the bits.

# %%
centroids, _codes = codebook.kmeans(weights, 3, iterations=40)
gaps = centroids.diff()
closest = int(gaps.argmin())
place = float((centroids[closest] + centroids[closest + 1]).abs() / 2 / weights.abs().max())
answer = 0 if place < 0.25 else 1 if place < 0.75 else 2
predict("9b", panels.codebook(weights), answer=answer, least=float(gaps.min()), most=float(max(gaps[0], gaps[-1])))

# %% [markdown]
# **Explain.** The centroids move to where the weights are many. Neither of the two steps can raise the error, so it
# falls until nothing changes. At the end it is below that of the best equal steps.

# %%
for bits in even:
    start, *_, end = falling[bits]
    print(f"{bits} bits: k-means from {start:.1%} to {end:.1%}; equal steps {even[bits]:.1%}")
    assert all(later <= earlier + 1e-6 for earlier, later in zip(falling[bits], falling[bits][1:]))
    assert end < even[bits]

# %% [markdown]
# ### Exercise 9.1: who is nearest?
#
# Lloyd's first step. The centroids come in any order. A value of `x` may have two equally near ones; the tests have
# no such case.

# %% tags=["exercise"]
check("9.1", nearest)

# %% [markdown]
# ### Exercise 9.2: one iteration
#
# Both steps together. Mind a centroid that no value is nearest to.

# %% tags=["exercise"]
check("9.2", lloyd_step)

# %% [markdown]
# ## What a codebook weighs
#
# Each weight needs its index, and the table is kept in float32, 4 bytes a value. One table for the layer is
# next to nothing. A table for each channel is another matter. Bytes are whole ones: a last one that is only partly
# filled counts too.
#
# ### Exercise 9.3: count the bytes

# %% tags=["exercise"]
check("9.3", codebook_bytes)

# %% [markdown]
# ### One table, or one a channel

# %% tags=["nbval-check-output"]
for bits in (2, 3, 4, 8):
    index, one = sizes.of_codebook(weights.numel(), bits)
    index, many = sizes.of_codebook(weights.numel(), bits, tables=len(weights))
    print(f"{bits} bits: {index:5,} bytes of indices + {one:5,} for a table, or + {many:6,} for {len(weights)} tables")
print(f"float32: {weights.numel() * 4:,} bytes")
assert many > index

# %% [markdown]
# With 8 bits and a table for each of the 32 channels, the tables are larger than the indices.
#
# ## What the network says
#
# Now all weights of the network, without any training; activations stay in float. The first and the last layer
# keep 8 bits, as is usual (Zhou et al., 2016). There are equal steps for each channel, with the least squared error,
# and one codebook a layer. The **ternary** and **binary** grids come later in this lesson. All networks see the same
# images; ± is the standard error of a difference.


# %%
def with_weights(grid):
    """The network with its weights on a grid, activations in float."""
    return qlab.calibrate(qlab.prepare(network, QConfig(weight=grid, activation=None)), [])


def measure(name, prepared):
    """Keep which images a network gets right, and a line about it."""
    right[name], size[name] = hits(prepared, test), sizes.bytes_of(prepared)
    accuracy[name] = 100 * float(right[name].float().mean())
    against = paired(right["float32"], right[name])
    lines[name] = f"{name:28} {accuracy[name]:5.1f} % right, {size[name]:7,} bytes of weights; to float {against}"


right, accuracy, size, lines = {"float32": hits(network, test)}, {}, {}, {}
accuracy["float32"] = 100 * float(right["float32"].float().mean())
equal = QConfig.preset("w8a32").weight
for bits in (4, 3, 2):
    measure(f"{bits} bits, equal steps", with_weights(replace(equal, bits=bits, observer="mse")))
    measure(f"{bits} bits, codebook", with_weights(KMeans(bits)))
measure("ternary", with_weights(Ternary()))
measure("binary", with_weights(Binary()))
three = paired(right["3 bits, equal steps"], right["3 bits, codebook"])
chance = abs(three.difference) < 2 * three.error
numbers = dict(codebook=accuracy["3 bits, codebook"], even=accuracy["3 bits, equal steps"], difference=three)
table = "\n".join([f"{'float32':28} {accuracy['float32']:5.1f} % right", *lines.values()])
predict("9c", table, answer=2 if chance else 0 if three.difference > 0 else 1, **numbers)

# %% [markdown]
# **Explain.** With 4 bits both are within a few points of float. With 3 the codebook is better by far more than chance. With 2 bits
# and fewer none of these grids saves a network that was trained in float. The codebook has one table a layer, which
# takes fewer bytes than the scales of the equal steps, one for each channel.
#
# Why is the codebook so much better with 3 bits? Its squared error of the weights is only a little smaller.

# %%
for bits in (4, 3, 2):
    names = f"{bits} bits, equal steps", f"{bits} bits, codebook"
    against = paired(*(right[name] for name in names))
    print(f"{bits} bits: equal steps {accuracy[names[0]]:.1f} %, codebook {accuracy[names[1]]:.1f} %; difference {against}")
assert three.difference > 2 * three.error
assert min(accuracy["4 bits, equal steps"], accuracy["4 bits, codebook"]) > accuracy["float32"] - 8
few = ("2 bits, equal steps", "2 bits, codebook", "ternary", "binary")
assert max(accuracy[name] for name in few) < accuracy["float32"] - 40
assert all(size[f"{bits} bits, codebook"] < size[f"{bits} bits, equal steps"] for bits in (4, 3, 2))

# %% [markdown]
# ### Which weights does the network mind?
#
# The equal steps with the least squared error cut the largest weights off. Take equal steps that clip nothing. They
# are wider, so nearly all weights are rounded worse.


# %%
def errors_of(prepared):
    """(squared error of all weights, that of the largest 2 %), as shares of their squares, a mean over the layers."""
    shares = []
    for _name, each in list(prepared.weighted())[1:-1]:  # not the first and the last: they have 8 bits
        w = each.weight.detach().flatten()
        error = (each.weight_quantizer(each.weight).detach().flatten() - w).square()
        largest = w.abs().topk(len(w) // 50).indices
        shares.append((error.sum() / w.square().sum(), error[largest].sum() / w[largest].square().sum()))
    return torch.tensor(shares).mean(0).tolist()


wide = replace(equal, bits=3, observer="minmax")
measure("3 bits, nothing clipped", with_weights(wide))
clips = paired(right["3 bits, equal steps"], right["3 bits, nothing clipped"])
chance = abs(clips.difference) < 2 * clips.error
answer = 2 if chance else 1 if clips.difference > 0 else 0
predict("9d", lines["3 bits, nothing clipped"], answer=answer, wide=accuracy["3 bits, nothing clipped"], difference=clips)

# %% [markdown]
# **Explain.** The network minds its few large weights more than the squared error of all weights says. With 3 bits the
# codebook is no better than the equal steps that clip nothing, as far as these images can tell. So what looked like a
# gain of the codebook is mostly a loss by clipping.

# %%
found = {}
for name, grid in {"least error": replace(wide, observer="mse"), "nothing clipped": wide, "codebook": KMeans(3)}.items():
    found[name] = errors_of(with_weights(grid))
    print(f"3 bits, {name:15}: error of all weights {found[name][0]:5.1%}, of the largest 2 % {found[name][1]:5.1%}")
same = paired(right["3 bits, nothing clipped"], right["3 bits, codebook"])
print(f"clipping nothing against the least error: {clips}\ncodebook against clipping nothing: {same}")
assert clips.difference > 2 * clips.error and abs(same.difference) < 2 * same.error
assert found["nothing clipped"][0] > 1.5 * found["least error"][0] > found["codebook"][0]
assert found["nothing clipped"][1] < found["codebook"][1] < found["least error"][1]

# %% [markdown]
# ### Trained on its grid
#
# With 2 bits and fewer a network has to be trained on its grid, as in lesson 7. The course has networks that were, by
# QAT: **W2A2**, with 2 bits for weights and activations; on CIFAR-10 also **W1A32**, with binary weights, and **W1A1**,
# where activations have one bit too. In W1A1 the shortcuts keep 8 bits, as the first and the last layer do: all that
# the network remembers from block to block passes through them (Liu et al., 2018).

# %%
data = qlab.data.available().name
for preset in ("w2a2", "w1a32", "w1a1"):
    if f"resnet20-{data}-{preset}" in qlab.models.manifest():
        measure(f"{preset.upper()} by QAT", qlab.qat.load("resnet20", preset, data=data))
rounded, trained = accuracy["2 bits, equal steps"], accuracy["W2A2 by QAT"]
recovered = 100 * (trained - rounded) / (accuracy["float32"] - rounded)
table = "\n".join(line for name, line in lines.items() if "QAT" in name)
predict("9e", table, answer=recovered, rounded=rounded, trained=trained)

# %% [markdown]
# **Explain.** With two bits nearly all of it, though here the activations have two bits as well. On CIFAR-10, binary
# weights that were trained are far better than those that were only rounded; activations of one bit on top of them
# (W1A1) cost several points more.

# %%
print(f"W2A2 to float: {paired(right['float32'], right['W2A2 by QAT'])}")
assert recovered > 80
if "W1A1 by QAT" in right:
    gain, price = paired(right["binary"], right["W1A32 by QAT"]), paired(right["W1A32 by QAT"], right["W1A1 by QAT"])
    print(f"binary weights, trained against rounded: {gain}; activations of one bit on top: {price}")
    assert gain.difference > 30 and price.difference < -2 * price.error

# %% [markdown]
# ## Three values, two values
#
# A **ternary** weight is -1, 0 or 1 times a scale: what is below a threshold becomes 0, the rest one common
# magnitude. With threshold 0 nothing becomes 0, and the weight is **binary**: its sign times a scale.
#
# **Move** the threshold up from 0. Look for the least error, and see which weights become 0 there.

# %%
thresholds = [step / 20 for step in range(31)]  # those of the panel, up to 1.5
errors = [plots.ternary_error(weights, threshold) for threshold in thresholds]
least, best = min(errors), thresholds[errors.index(min(errors))]
predict("9f", panels.few_values(weights), answer=100 * (1 - least / errors[0]), binary=errors[0], least=least)

# %% [markdown]
# **Explain.** The scale with the least error is the mean magnitude of the weights that are kept. For binary
# weights the error is a sum of $(|w| - a)^2$, which is smallest at $a$ = mean of $|w|$ (Rastegari et al., 2016).
#
# For the threshold Li and Liu (2016) take 0.7 times the mean magnitude. Is that the best? It lies between the best ones of
# evenly spread weights and of a bell curve. Where more weights are close to 0 than in a bell curve, the best one is
# higher. But the curve is flat there, and 0.7 costs little.

# %%
row = weights[0].flatten()
candidates = torch.linspace(0.5, 1.5, 101) * row.abs().mean()
scale = float(candidates[torch.stack([(row - a * row.sign()).square().sum() for a in candidates]).argmin()])
print(f"binary: the scale with the least error is {scale / row.abs().mean():.2f} times the mean magnitude")
assert abs(scale / row.abs().mean() - 1) < 0.02

torch.manual_seed(0)
kinds = {"evenly spread": torch.rand(1, 100_000) - 0.5, "a bell curve": torch.randn(1, 100_000)}
kinds["peaked (Laplace)"] = torch.distributions.Laplace(0.0, 1.0).sample((1, 100_000))
optimum = {}
for name, w in {**kinds, "this layer": weights}.items():
    curve = [plots.ternary_error(w, threshold) for threshold in thresholds]
    optimum[name] = thresholds[curve.index(min(curve))]
    extra = plots.ternary_error(w, 0.7) / min(curve) - 1
    print(f"{name:17}: best threshold {optimum[name]:.2f}; with 0.7 the error is {extra:.1%} larger")
    assert extra < 0.1
assert optimum["evenly spread"] < 0.7 < optimum["a bell curve"] < optimum["peaked (Laplace)"]
assert abs(plots.ternary_error(weights, 0.7) - share_of_error(qlab.dequantize(*codebook.ternary(weights)))) < 1e-4

# %% [markdown]
# ### Exercise 9.4: ternary weights
#
# The threshold is 0.7 times the mean magnitude of all weights of `w`. The scale is the mean magnitude of those
# beyond it.

# %% tags=["exercise"]
check("9.4", ternary)

# %% [markdown]
# ## No multiplication left
#
# When weights and activations are both +1 or -1, write 1 for +1 and 0 for -1. A product of equal bits is +1, of
# different bits -1. So 64 products are one operation of a processor (XOR, which marks where two numbers'
# bits differ), and their sum is a count of ones (**popcount**).
#
# ### Exercise 9.5: a dot product out of bits
#
# In Python, `a ^ b` is XOR, and `bin(number).count("1")` counts ones.

# %% tags=["exercise"]
check("9.5", binary_dot)

# %% [markdown]
# ## Eight bits of float
#
# A float is a grid too, dense near 0 and sparse far out. **fp8** comes in two forms: e4m3 has 4 bits of
# exponent and 3 of fraction, e5m2 has 5 and 2. Here the largest weight is put at the format's largest value,
# and int8 has one scale for the layer, so that all three are treated alike.

# %%
flat = weights.flatten()
plain = {grid: plots.others_decibel(flat, grid) for grid in plots.GRIDS}
words = ", ".join(f"{grid} {decibel:.1f} dB" for grid, decibel in plain.items())
predict("9g", words, answer=list(plain.values()).index(max(plain.values())), decibels=words)

# %% [markdown]
# **Explain.** For weights that look like a bell curve, equal steps are better than a float of the same size (van Baalen
# et al., 2023).

# %%
print(words)
assert plain["int8"] > plain["e4m3"] > plain["e5m2"]

# %% [markdown]
# ### One far outlier
#
# Now one weight becomes 10 times as large as the largest, 100 times, ... The grid has to reach to it. What is left
# of all other weights?
#
# **Move** the outlier outwards, until e4m3 breaks. Where do the weights lie then? Look at the other grids, too.

# %%
decibel = {g: [plots.others_decibel(plots.with_outlier(flat, n), g) for n in plots.OUTLIERS] for g in plots.GRIDS}
no_better = next(n for n, a, b in zip(plots.OUTLIERS, decibel["e4m3"], decibel["e5m2"]) if a < b + 0.5)
worse = next(n for n, a, b in zip(plots.OUTLIERS, decibel["int8"], decibel["e4m3"]) if a < b)
predict("9h", panels.small_floats(weights), answer=float(no_better), int8=float(worse))

# %% [markdown]
# **Explain.** A float's error goes with each value's own size, so an outlier does not matter to it, as long as the
# others stay in the format's range. Below its smallest *normal* number a float has equal steps too, and then nothing:
# e4m3 has no more range than that. e5m2 has far more, and pays with a bit of fraction.
# Lesson 10 meets outliers in language models.

# %%
for grid in ("e4m3", "e5m2"):
    info = torch.finfo(formats.float_format(grid))
    print(f"{grid}: from {info.smallest_normal:.3g} to {info.max:,.0f}, a factor of {info.max / info.smallest_normal:,.0f}")
at = {n: {grid: decibel[grid][list(plots.OUTLIERS).index(n)] for grid in plots.GRIDS} for n in (0, 2, 3, 5)}
for n, found in at.items():
    print(f"n = {n}: " + ", ".join(f"{grid} {each:.1f} dB" for grid, each in found.items()))
assert abs(at[3]["e4m3"] - at[0]["e4m3"]) < 1 and at[2]["e4m3"] > at[2]["int8"] + 10
assert at[5]["e4m3"] < 10 and abs(at[5]["e5m2"] - at[0]["e5m2"]) < 1

# %% [markdown]
# ## Three questions

# %%
quiz(9)

# %% [markdown]
# ## What to remember
#
# - A **codebook** puts its values where the weights are. k-means never raises the error from one iteration to
#   the next. Count the table's bytes, above all with a table for each channel.
# - The network minds its **few large weights**: with 3 bits, equal steps that clip nothing beat those with the least
#   squared error.
# - **Binary**: sign times the mean magnitude. **Ternary**: a 0 as well, threshold 0.7 mean magnitudes; it takes
#   away a large part of the binary error.
# - Below 3 bits a network has to be trained on its grid. Rounding alone destroys it.
# - At 8 bits, **equal steps** suit a bell curve, **fp8** suits outliers: e4m3 to some thousand times the largest
#   weight, e5m2 much farther.
#
# ## For teachers
#
# The common misconception: "a codebook of 4 bits runs as fast as int4." No integer kernel multiplies indices;
# what shrinks is the memory. In 9.2 many forget the empty cluster and get NaN, which the checker
# names. 9.5 goes well on paper first, with four bits. The slowest cell measures eight grids: ask for guesses
# while it runs.
#
# ## Papers
#
# - S. Han, H. Mao, W. J. Dally, *Deep compression*, ICLR 2016,
#   [arXiv:1510.00149](https://arxiv.org/abs/1510.00149): codebooks, trained afterwards.
# - M. Rastegari et al., *XNOR-Net*, ECCV 2016, [arXiv:1603.05279](https://arxiv.org/abs/1603.05279): binary.
# - F. Li, B. Liu, *Ternary weight networks*, 2016, [arXiv:1605.04711](https://arxiv.org/abs/1605.04711).
# - S. Zhou et al., *DoReFa-Net*, 2016, [arXiv:1606.06160](https://arxiv.org/abs/1606.06160): few bits
#   everywhere, first and last layer apart.
# - Z. Liu et al., *Bi-Real Net*, ECCV 2018, [arXiv:1808.00278](https://arxiv.org/abs/1808.00278): shortcuts that
#   are not binary.
# - M. van Baalen et al., *FP8 versus INT8 for efficient deep learning inference*, 2023,
#   [arXiv:2303.17951](https://arxiv.org/abs/2303.17951).
