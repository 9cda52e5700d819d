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
# **Time:** 40 minutes. **You need:** lessons 1 and 2; lesson 7 for what training can mend.

# %%
import math
from dataclasses import replace

import torch

import qlab
from qlab import QConfig, codebook, formats
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson09 import panels
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
#
# **Predict.** Where will the centroids stand closest together? And is the start better or worse than the best
# equal steps?
#
# **Move** the iterations from 0 to 40, then the bits.

# %%
panels.codebook(weights)

# %% [markdown]
# **Explain.** The centroids move to where the weights are many. Neither of the two steps can raise the error, so it
# falls until nothing changes. The even start is worse than the best equal steps, because it reaches to the
# largest weight; the end is better.

# %%
def share_of_error(rounded):
    """The squared error of the weights, as a share of their squares."""
    return float((rounded - weights).square().sum() / weights.square().sum())


for bits in (2, 3, 4):
    falling = [
        share_of_error(codebook.look_up(*codebook.kmeans(weights, bits, iterations=number)))
        for number in range(0, 41, 4)
    ]
    observer = qlab.observers.build(qlab.QuantSpec(bits, signed=True, symmetric=True, observer="mse"))
    observer(weights)
    even = share_of_error(qlab.fake_quantize(weights, observer.qparams()))
    print(f"{bits} bits: k-means from {falling[0]:.1%} to {falling[-1]:.1%}; equal steps {even:.1%}")
    assert all(later <= earlier + 1e-6 for earlier, later in zip(falling, falling[1:]))
    assert falling[-1] < even < falling[0]

# %% [markdown]
# ### Exercise 9.1: who is nearest?
#
# Lloyd's first step. A value of `x` may have two equally near centroids; the tests have no such case.

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
# next to nothing. A table for each channel is another matter.
#
# ### Exercise 9.3: count the bytes

# %% tags=["exercise"]
check("9.3", codebook_bytes)

# %% tags=["nbval-check-output"]
for bits in (2, 3, 4, 8):
    index, table = math.ceil(weights.numel() * bits / 8), 4 * 2**bits
    print(f"{bits} bits: {index:5,} bytes of indices + {table:5,} for a table, or + {32 * table:6,} for 32 tables")
print(f"float32: {weights.numel() * 4:,} bytes")

# %% [markdown]
# With 8 bits and a table for each of the 32 channels, the tables are larger than the indices.
#
# ## What the network says
#
# Now all weights of the network, without any training; activations stay in float. The first and the last layer
# keep 8 bits, as is usual (Zhou et al., 2016). The **ternary** and **binary** grids come next in this lesson.
#
# **Predict.** Which of these still work with 3 bits, and which with 2?

# %%
def bytes_of(prepared):
    """Bytes of all weights: packed codes, and 4 for each value of a table or for each scale."""
    beside = 0
    for _, layer in prepared.weighted():
        spec = layer.weight_quantizer.spec
        beside += 2**spec.bits if isinstance(spec, KMeans) else len(layer.weight)
    return qlab.analysis.weight_bytes(prepared) + 4 * beside


even_steps = QConfig.preset("w8a32").weight
grids = {f"{bits} bits, equal steps": replace(even_steps, bits=bits, observer="mse") for bits in (4, 3, 2)}
grids |= {f"{bits} bits, codebook": KMeans(bits) for bits in (4, 3, 2)}
grids |= {"ternary": Ternary(), "binary": Binary()}
float_accuracy = qlab.evaluate(network, test)
print(f"{'float32':21} {float_accuracy:5.1f} % right")
accuracy, size = {}, {}
for name, grid in grids.items():
    prepared = qlab.calibrate(qlab.prepare(network, QConfig(weight=grid, activation=None)), [])
    accuracy[name], size[name] = qlab.evaluate(prepared, test), bytes_of(prepared)
    print(f"{name:21} {accuracy[name]:5.1f} % right, {size[name]:7,} bytes of weights")
assert accuracy["4 bits, equal steps"] > float_accuracy - 8 and accuracy["4 bits, codebook"] > float_accuracy - 8
assert accuracy["3 bits, codebook"] > accuracy["2 bits, codebook"] + 25
assert max(accuracy[name] for name in ("2 bits, equal steps", "ternary", "binary")) < float_accuracy - 40
assert size["4 bits, codebook"] < size["4 bits, equal steps"] and size["binary"] == min(size.values())

# %% [markdown]
# With 4 bits the grid hardly matters. The codebook has one table a layer, which takes fewer bytes than the scales
# of the equal steps, one for each channel. With 2 bits and fewer no grid saves a network that was trained in float. It
# has to be trained on its grid, as in lesson 7. The course has networks that were, by QAT: **W2A2**, with 2 bits for
# weights and activations; on CIFAR-10 also **W1A32**, with binary weights, and **W1A1**, where activations have one
# bit too. In W1A1 the shortcuts keep 8 bits, as the first and the last layer do: all that the network remembers from
# block to block passes through them (Liu et al., 2018).
#
# **Predict.** How much of what rounding destroyed does training bring back with 2 bits? And with one?

# %%
data = qlab.data.available().name
for preset in ("w2a2", "w1a32", "w1a1"):
    if f"resnet20-{data}-{preset}" in qlab.models.manifest():
        trained = qlab.qat.load("resnet20", preset, data=data)
        accuracy[preset], size[preset] = qlab.evaluate(trained, test), bytes_of(trained)
        print(f"{preset.upper() + ' by QAT':21} {accuracy[preset]:5.1f} % right, {size[preset]:7,} bytes of weights")
assert accuracy["w2a2"] > max(float_accuracy - 12, accuracy.get("w1a1", 0))
for preset in {"w1a32", "w1a1"} & set(accuracy):
    assert accuracy[preset] > accuracy["binary"] + 30
assert accuracy.get("w1a32", 100) > accuracy.get("w1a1", 0) + 2

# %% [markdown]
# With two bits nearly all of it. Binary weights that were trained are far better than those that were only rounded;
# activations of one bit on top of them (W1A1) cost several points more.
#
# ## Three values, two values
#
# A **ternary** weight is -1, 0 or 1 times a scale: what is below a threshold becomes 0, the rest one common
# magnitude. With threshold 0 nothing becomes 0, and the weight is **binary**: its sign times a scale.
#
# **Predict.** Ternary weights have one value more than binary ones, the 0. How much of the error does that
# take away: a tenth, a quarter, or half?
#
# **Move** the threshold up from 0. Look for the least error, and see which weights become 0 there.

# %%
panels.few_values(weights)

# %% [markdown]
# **Explain.** The scale with the least error is the mean magnitude of the weights that are kept. For binary
# weights the error is a sum of $(|w| - a)^2$, which is smallest at $a$ = mean of $|w|$ (Rastegari et al., 2016).
# And the best threshold is near 0.7 times the mean magnitude (Li and Liu, 2016):

# %%
row = weights[0].flatten()
candidates = torch.linspace(0.5, 1.5, 101) * row.abs().mean()
errors = torch.stack([(row - scale * row.sign()).square().sum() for scale in candidates])
best = float(candidates[errors.argmin()] / row.abs().mean())
print(f"binary: the scale with the least error is {best:.2f} times the mean magnitude")
assert abs(best - 1) < 0.02

binary_error = share_of_error(qlab.dequantize(*codebook.binary(weights)))
ternary_error = share_of_error(qlab.dequantize(*codebook.ternary(weights)))
print(f"error: binary {binary_error:.0%}, ternary {ternary_error:.0%}")
assert ternary_error < 0.7 * binary_error

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
#
# **Predict.** Which of the three has the least error on these weights? And if one weight becomes 100 times as
# large as the largest?

# %%
def sqnr(values, grid):
    """The signal-to-noise ratio of all values but the first, in decibels; the grid reaches to the largest."""
    largest = values.abs().max()
    if grid == "int8":
        rounded = qlab.fake_quantize(values, qlab.choose_qparams(-largest, largest, 8, signed=True, symmetric=True))
    else:
        scale = largest / torch.finfo(formats.FORMATS[grid]).max
        rounded = codebook.round_to_float(values / scale, grid) * scale
    error = (rounded - values)[1:]
    return 10 * math.log10(values[1:].square().sum() / error.square().sum())


plain = weights.flatten()
outlier = plain.clone()
outlier[0] = 100 * plain.abs().max()
found = {grid: (sqnr(plain, grid), sqnr(outlier, grid)) for grid in ("int8", "e4m3", "e5m2")}
for grid, (before, after) in found.items():
    print(f"{grid}: {before:5.1f} dB; with one outlier {after:5.1f} dB for all other weights")
assert found["int8"][0] > found["e4m3"][0] > found["e5m2"][0]
assert found["e4m3"][1] > found["int8"][1] + 10

# %% [markdown]
# For weights that look like a bell curve, equal steps are better than a float of the same size (van Baalen et
# al., 2023). A float's error goes with each value's own size, so it does not care how far away an outlier
# is. Lesson 10 meets such outliers in language models.
#
# ## Three questions

# %%
quiz(9)

# %% [markdown]
# ## What to remember
#
# - A **codebook** puts its values where the weights are. k-means never raises the error from one iteration to
#   the next. Count the table's bytes, above all with a table for each channel.
# - **Binary**: sign times the mean magnitude. **Ternary**: a 0 as well, threshold 0.7 mean magnitudes; it takes
#   away a large part of the binary error.
# - Below 3 bits a network has to be trained on its grid. Rounding alone destroys it.
# - At 8 bits, **equal steps** suit a bell curve, **fp8** suits outliers.
#
# ## For teachers
#
# The common misconception: "a codebook of 4 bits runs as fast as int4." No integer kernel multiplies indices;
# what shrinks is the memory. In 9.2 most students forget the empty cluster and get NaN, which the checker
# names. 9.5 goes well on paper first, with four bits. The slowest cell measures eight grids; ask for the
# predictions while it runs.
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
