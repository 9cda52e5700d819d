# %% [markdown]
# # 2. Clipping: range against resolution
#
# A grid has 2^bits values, no more. Spread over a wide range they stand far apart; over a narrow range they
# stand close, but what lies outside is **clipped** to the nearest end. Here you look for the best range of
# real activations, and you see how four well-known methods choose it.
#
# **After this lesson you can**
# - tell rounding error and clipping error apart, and measure both;
# - find the limit with the smallest error, and say why it moves with the number of bits;
# - choose between min-max, percentile, entropy and MSE, and say when min-max fails.
#
# **Time:** 35 minutes. **You need:** lesson 1.

# %%
import torch

import qlab
from qlab import QuantSpec, observers
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson02 import panels
from qlab.course.quiz import quiz

network = qlab.models.load("resnet20", data=qlab.data.available().name)
images = qlab.data.at_hand("train").sample(64)
banner(images)

# %% [markdown]
# ## Real activations
#
# **Activations** are the numbers that flow from layer to layer. Weights are known before a network runs;
# activations depend on the image. Here are those that enter one layer in the middle of the trained
# network, for 64 training images. They come out of a ReLU, so none is below 0.

# %%
seen = []
hook = network.layer2[1].conv1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
with torch.inference_mode():
    network(next(images.batches(64))[0])
hook.remove()
activations = seen[0]

zeros = (activations == 0).float().mean()
above = (activations > activations.max() / 2).float().mean()
print(f"{activations.numel():,} values from {activations.min():.0f} to {activations.max():.2f}")
print(f"{zeros:.0%} are exactly 0, and {above:.2%} are larger than half of the largest")
assert above < 0.05

# %% [markdown]
# ## Two errors
#
# Put the end of the grid, its **limit**, at the largest value: nothing is clipped, but for the sake of a few
# values all steps are wide. Put it lower: the steps become finer, and the few values above the limit lose
# much.
#
# **Predict.** With 4 bits, where is the sum of the two errors smallest: at the largest value, a little below
# it, or far below?
#
# **Move** the limit from 100 % down until the title's error is smallest. Then try 2 bits, and 8 bits.

# %%
panels.clipping(activations)

# %% [markdown]
# **Explain.** The rounding error goes with the square of the step, and the step goes with the limit. Each bit
# less doubles the step, so with few bits it is worth more to have it fine, and the best limit moves down:

# %%
def squared_error(limit, bits):
    """The mean squared error of the activations on the grid from 0 to limit."""
    grid = qlab.choose_qparams(0.0, float(limit), bits)
    return float((qlab.fake_quantize(activations, grid) - activations).square().mean())


limits = torch.linspace(0.05, 1, 96) * activations.max()
best = {bits: min(limits, key=lambda limit: squared_error(limit, bits)) for bits in (2, 4, 8)}
for bits, limit in best.items():
    times = squared_error(activations.max(), bits) / squared_error(limit, bits)
    print(f"{bits} bits: least error at {limit:.2f}; clipping nothing has {times:.1f} times as much")
assert best[2] < best[4] < best[8]

# %% [markdown]
# ### Exercise 2.1: a grid with a limit
#
# Write the quantizer of the figure: `2**bits` values from 0 to `limit`, values beyond the ends go to the
# nearest end. Give back values, not codes.

# %% tags=["exercise"]
check("2.1", quantize_up_to)

# %% [markdown]
# ### Exercise 2.2: the two errors
#
# Split the sum of the squared errors in two: values up to the limit (rounding), and values above it
# (clipping). You may copy the three steps of 2.1.

# %% tags=["exercise"]
check("2.2", two_errors)

# %% [markdown]
# ### Exercise 2.3: the best limit
#
# Given some limits to try, return the one with the smallest sum of squared errors.

# %% tags=["exercise"]
check("2.3", best_limit)

# %% [markdown]
# ## Four ways to choose
#
# Who watches the activations and chooses the range is called an **observer**.
#
# - **Min-max** takes the largest value that it sees.
# - **Percentile** leaves out a fixed share of the values, here 0.01 %.
# - **MSE** takes the limit with the smallest mean squared error, as you did.
# - **Entropy** compares the distribution of the values before and after, and takes the limit where the
#   Kullback-Leibler divergence (KL), the information lost, is smallest.
#
# **Predict.** Which of the four move when the number of bits changes?
#
# **Move** the bits from 8 to 2.

# %%
panels.chosen_limits(activations)

# %% [markdown]
# **Explain.** Min-max and percentile look at the values only. MSE and entropy weigh clipping against the
# step, which depends on the bits.

# %%
def limit_of(name, values, bits):
    """The upper end of the grid that an observer chooses."""
    observer = observers.build(QuantSpec(bits, observer=name))
    observer(values)
    grid = observer.qparams()
    return float(grid.scale) * (grid.qmax - int(grid.zero_point))


names = ("minmax", "percentile", "entropy", "mse")
moved = [name for name in names if abs(limit_of(name, activations, 8) - limit_of(name, activations, 3)) > 0.1]
print("These moved between 8 and 3 bits:", ", ".join(moved))
assert moved == ["entropy", "mse"]

# %% [markdown]
# ### Exercise 2.4: a percentile
#
# Sort the values and count. With 10 values, the 90th percentile is the ninth.

# %% tags=["exercise"]
check("2.4", percentile_limit)

# %% [markdown]
# ## One outlier
#
# **Predict.** One pixel is broken, and a single one of the activations becomes 1,000. What does each observer
# do?

# %%
broken = activations.clone()
broken[0, 0, 0, 0] = 1000.0
for name in names:
    limit = limit_of(name, broken, 8)
    print(f"{name:10} from {limit_of(name, activations, 8):5.2f} to {limit:8.2f}: {squared_error(limit, 8):.1e}")
assert limit_of("minmax", broken, 8) > 999 and limit_of("mse", broken, 8) > 100
assert limit_of("percentile", broken, 8) < 10
assert squared_error(limit_of("minmax", broken, 8), 8) > 100 * squared_error(limit_of("percentile", broken, 8), 8)

# %% [markdown]
# The last column is the mean squared error of all the values that are not broken. Min-max follows the
# outlier, and nearly all codes are spent on values that never occur. MSE follows it too, since clipping 1,000
# would be a very large error. A percentile does not care how large the outlier is.
#
# In large language models such outliers are no accident, and lesson 10 has to deal with them.
#
# ## Three questions

# %%
quiz(2)

# %% [markdown]
# ## What to remember
#
# - **Rounding error** grows with the range, **clipping error** falls. Their sum has a minimum.
# - The fewer bits, the lower the best limit.
# - **Min-max** clips nothing and is ruined by one outlier. **Percentile** ignores outliers. **MSE** and
#   **entropy** look for the best limit for the number of bits, outliers included.
# - With 8 bits and well-behaved activations the choice hardly matters. The next lesson measures that on the
#   network's accuracy.
#
# ## For teachers
#
# Students hold clipping for a defect that has to be avoided. Let them find the best limit with 2 bits by hand
# before the cell computes it. In exercise 2.2 many compare the rounded values with the limit instead of the
# values themselves. Plan ten minutes for the outlier: it comes back with language models.
#
# ## Papers
#
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): min-max.
# - S. Migacz, *8-bit inference with TensorRT*, GPU Technology Conference, 2017: entropy.
# - R. Banner, Y. Nahshan, D. Soudry, *Post training 4-bit quantization of convolutional networks for
#   rapid-deployment*, NeurIPS 2019, [arXiv:1810.05723](https://arxiv.org/abs/1810.05723): the best limit in
#   a formula.
# - H. Wu et al., *Integer quantization for deep learning inference*, 2020,
#   [arXiv:2004.09602](https://arxiv.org/abs/2004.09602): all four, compared on many networks.
