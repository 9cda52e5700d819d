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
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson02 import panels
from qlab.course.lesson02.plots import limit_of, limit_of_least_error, squared_error
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.course.watching import inputs_of

network = qlab.models.load("resnet20", data=qlab.data.available().name)
images = qlab.data.at_hand("train").sample(6)
banner(images)

# %% [markdown]
# ## Real activations
#
# **Activations** are the numbers that flow from layer to layer. Weights are known before a network runs;
# activations depend on the image. Here are those that enter one layer in the middle of the trained
# network, for six training images. They come out of a ReLU, so none is below 0.

# %%
layer = network.layer2[1].conv1
(activations,) = inputs_of(layer, network, images.batches(6))
largest = activations.max().item()

zeros = (activations == 0).float().mean()
above = (activations > largest / 2).float().mean()
print(f"{activations.numel():,} values from {activations.min():.0f} to {largest:.2f}")
print(f"{zeros:.0%} are exactly 0, and {above:.2%} are larger than half of the largest")
assert activations.min() == 0 and zeros > 0.2 and above < 0.05

# %% [markdown]
# ## Two errors
#
# Put the end of the grid, its **limit**, at the largest value: nothing is clipped, but for the sake of a few
# values all steps are wide. Put it lower: the steps become finer, and the few values above the limit lose
# much.
#
# Predict where the sum of the two is smallest. Then **move** the limit until the title says
# "1.0 times the least". Where is that with 2 bits, and with 8?

# %%
best = {bits: limit_of_least_error(activations, bits) for bits in (2, 4, 8)}
percent = {bits: 100 * limit / largest for bits, limit in best.items()}
place = 0 if percent[4] == 100 else 1 if percent[4] >= 80 else 2
predict("2a", panels.clipping(activations), answer=place, percent=percent[4])

# %% [markdown]
# **Explain.** The rounding error goes with the square of the step, and the step goes with the limit. Each bit
# less makes the step about twice as wide, so with few bits it is worth more to have it fine, and the best limit
# moves down:

# %%
for bits, limit in best.items():
    times = squared_error(activations, largest, bits) / squared_error(activations, limit, bits)
    print(f"{bits} bits: least error at {limit:.2f}, that is {percent[bits]:.0f} %; at 100 % it is {times:.1f} times as large")
assert best[2] < best[4] < best[8]

steps = {bits: largest / (2**bits - 1) for bits in (2, 4, 8)}  # when nothing is clipped
for bits, step in steps.items():
    ratio = squared_error(activations[activations > 0], largest, bits) / (step**2 / 12)
    print(f"{bits} bits, nothing clipped: step {step:.3f}; mean squared error {ratio:.2f} times step²/12 (values above 0)")
    assert 0.7 < ratio < 1.1

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
# (clipping). You may copy the lines of 2.1.

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
# Predict which of them look at the number of bits. Then **move** the bits from 8 to 2.

# %%
names = ("minmax", "percentile", "entropy", "mse")
moves = {name: abs(limit_of(name, activations, 8) - limit_of(name, activations, 3)) for name in names}
moved = [name for name in names if moves[name] > 0.1]
answers = (list(names), ["minmax", "percentile"], ["entropy", "mse"], ["mse"])
predict("2b", panels.chosen_limits(activations), answer=answers.index(moved), **moves)

# %% [markdown]
# **Explain.** Min-max and percentile look at the values only. MSE and entropy weigh clipping against the
# step, which depends on the bits. What that is worth with 3 bits:

# %%
errors = {name: squared_error(activations, limit_of(name, activations, 3), 3) for name in names}
for name, error in errors.items():
    print(f"{name:10} has {error / errors['mse']:.1f} times the mean squared error of MSE")
assert errors["mse"] < 1.05 * min(errors.values())
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
# Something breaks, and a single one of the activations becomes 1,000. All others are as they were. Predict
# which observers notice. Then **double** the largest value, once and again: who follows it, and what does that
# cost the others?

# %%
broken = activations.clone()
broken[0, 0, 0, 0] = 1000.0
limits = {name: limit_of(name, broken, 8) for name in names}
near = [name for name in names if limits[name] < 10]
table = "\n".join(
    f"{name:10} from {limit_of(name, activations, 8):5.2f} to {limit:8.2f}; mean squared error {squared_error(activations, limit, 8):.1e}"
    for name, limit in limits.items()
)
answers = (["percentile", "entropy", "mse"], ["percentile", "mse"], ["percentile", "entropy"], ["percentile"])
predict("2c", panels.outlier(activations), table, answer=answers.index(near), **limits)

# %% [markdown]
# **Explain.** The mean squared error in the table is that of the values that are not broken. Min-max
# follows the outlier, and nearly all codes are spent on values that do not occur. MSE follows it too, since
# clipping 1,000 would be a very large error. A percentile counts values, and how large the largest is makes no
# difference to the count. Entropy compares shares of values, and one among so many is hardly a share: it stays
# where the others are.

# %%
codes = {name: len(qlab.quantize(activations, qlab.choose_qparams(0.0, limits[name], 8)).unique()) for name in names}
print("codes in use:", ", ".join(f"{name} {count}" for name, count in codes.items()))
assert limits["minmax"] > 999 and limits["mse"] > 100 and codes["minmax"] <= 3
assert limits["percentile"] < 10 and limits["entropy"] < 10 and codes["entropy"] > 100
at_minmax, at_percentile = (squared_error(activations, limits[name], 8) for name in ("minmax", "percentile"))
assert at_minmax > 100 * at_percentile
assert (1000 - largest) ** 2 / broken.numel() > at_minmax  # what clipping the one value would cost

# %% [markdown]
# In large language models such outliers are no accident, and lesson 10 has to deal with them.

# %% [markdown]
# ## Three questions

# %%
quiz(2)

# %% [markdown]
# ## What to remember
#
# - **Rounding error** grows with the range, **clipping error** falls. Their sum has a minimum.
# - The fewer bits, the lower the best limit.
# - **Min-max** clips nothing and is ruined by one outlier. **Percentile** ignores outliers, as long as they are
#   few. **MSE** and **entropy** look for the best limit for the number of bits; a far outlier moves MSE alone.
# - Whether that costs right answers is another question. The next lesson measures it.
#
# ## For teachers
#
# Students hold clipping for a defect that has to be avoided. Let them find the best limit with 2 bits by hand
# before they read on. In exercise 2.2 many compare the rounded values with the limit instead of the values
# themselves. Plan ten minutes for the outlier: it comes back with language models.
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
