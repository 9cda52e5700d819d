# %% [markdown]
# # 1. Numbers with few bits
#
# A quantized network keeps its numbers in 8 bits, or fewer. What gets lost? In this lesson you take one
# number, then a wave, then all weights of a layer, and you measure the error each time.
#
# **After this lesson you can**
# - say what the bits of float32, float16, bfloat16, fp8 and int8 are for;
# - turn numbers into codes and back, with a scale and a zero point;
# - predict how large the rounding error is, and how much one more bit helps.
#
# **Time:** 40 minutes. **You need:** lesson 0, a little Python. In an exercise, write your code where the
# three dots are and run the cell; `hint("1.1")` and `solution("1.1")` help.

# %%
import math

import torch

import qlab
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson01 import panels
from qlab.course.quiz import quiz

network = qlab.models.load("resnet20", data=qlab.data.available().name)
weights = network.layer3[0].conv2.weight.detach()

# %% [markdown]
# ## One number, six formats
#
# Computers store numbers as bits. A **floating-point** number has three fields. The **sign** says + or -.
# The **exponent** says between which two powers of two the number lies. The **fraction** says where in
# between. **int8** has no exponent: its 8 bits are one whole number, the **code**, and all codes share one
# **scale**, here 1/32.
#
# **Predict.** Two formats below have 16 bits. Which of them is nearer to 0.3: the one with more exponent, or
# the one with more fraction? And can any of them store 0.3 exactly?
#
# **Move** the number to 0.25, to 0.5, to 1. Then go to 4.5 and look at int8.
#
# **Click** a bit to flip it, and the other formats follow. Start from 1: which bit of float16 makes it -1,
# which makes it 1.5? Then set all five bits of the exponent.

# %%
panels.formats()

# %% [markdown]
# **Explain.** The fraction decides how fine the steps are, the exponent how far the format reaches. 0.3 is
# no sum of a few powers of two, so no format here holds it. An exponent with all bits set stands for infinity
# or, when the fraction is not 0, for `nan`, "not a number"; in e4m3 only the last pattern is `nan`, and int8
# has neither. And int8 stops at its highest code, 127, however large the number is:

# %% tags=["nbval-check-output"]
number = torch.tensor(0.3)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    stored = number.double().to(dtype)
    print(f"{str(dtype):15} {torch.finfo(dtype).bits} bits, off by {abs(stored.double() - 0.3):.1e}")
assert qlab.quantize(torch.tensor(4.5), qlab.QParams(1 / 32, 0, signed=True)) == 127

# %% [markdown]
# ## A grid
#
# The numbers that codes can stand for lie like the rungs of a ladder: that is the **grid**. Two neighbours
# are one **step** apart. Rounding takes each number to the nearest rung.
#
# **Predict.** With 3 bits, the largest error of the wave below is 0.143. How large is it with 4 bits?
#
# **Move** the bits first. Then go back to 3 bits and move the grid: for which shifts does 0 stay 0?

# %%
panels.rounding()

# %% [markdown]
# **Explain.** Each number has a rung that is at most half a step away. One more bit doubles the number of
# rungs, which makes the step about half as wide, and with it the largest error. Moving the grid does not
# change the step, but only without a shift is 0 itself a rung. Zeros are everywhere in a network (padding,
# ReLU), so every grid in this course has a rung at 0.

# %% tags=["nbval-check-output"]
wave = torch.sin(torch.linspace(0, 2 * math.pi, 10_000))
for bits in range(3, 9):
    grid = qlab.choose_qparams(-1.0, 1.0, bits=bits)
    error = (qlab.fake_quantize(wave, grid) - wave).abs().max()
    print(f"{bits} bits: step {grid.scale:.4f}, largest error {error:.4f}")
    assert error <= grid.scale / 2 * 1.001

# %% [markdown]
# ### Exercise 1.1: the step
#
# How far apart are the rungs, when `2**bits` of them share out the range from `lo` to `hi` evenly, the first
# at `lo` and the last at `hi`?

# %% tags=["exercise"]
check("1.1", step)

# %% [markdown]
# ## Codes
#
# A code counts rungs. The **scale** is the step. The **zero point** is the code of the value 0. With them,
# one line turns values $x$ into codes $q$, and one line turns them back (Jacob et al., 2018):
#
# $$q = \mathrm{clamp}\big(\mathrm{round}(x / \mathrm{scale}) + \mathrm{zero\ point},\ 0,\ 2^{bits} - 1\big)
# \qquad x \approx (q - \mathrm{zero\ point}) \cdot \mathrm{scale}$$
#
# `clamp` takes what lies beyond the ends to the nearest end. `round` takes a value in the middle between two
# rungs to the even code, so that halves go up as often as down.
#
# ### Exercise 1.2: to codes

# %% tags=["exercise"]
check("1.2", to_codes)

# %% [markdown]
# ### Exercise 1.3: and back

# %% tags=["exercise"]
check("1.3", to_values)

# %% [markdown]
# ### Exercise 1.4: choose the grid
#
# Given a range from `lo` to `hi` with 0 inside, find the scale and the zero point. The zero point is a code,
# so it is a whole number.

# %% tags=["exercise"]
check("1.4", grid_for)

# %% [markdown]
# `qlab.choose_qparams`, `qlab.quantize` and `qlab.dequantize` do the same:

# %% tags=["nbval-check-output"]
grid = qlab.choose_qparams(-1.0, 2.0, bits=2)
codes = qlab.quantize(torch.tensor([-1.0, -0.4, 0.0, 0.6, 1.4, 9.0]), grid)
print("scale", grid.scale.item(), "zero point", grid.zero_point.item())
print("codes ", codes.tolist())
print("values", qlab.dequantize(codes, grid).tolist())

# %% [markdown]
# ## How large is the error on average?
#
# Half a step is the worst case. For the whole of a network the average counts more. Below are the
# `9 * 64 * 64` weights of one layer of the trained network, and what rounding does to each.
#
# **Predict.** Which errors are most common: those near 0, those near half a step, or neither?
#
# **Move** the bits down. From which number of bits on does the image change?

# %%
panels.rounding_errors(weights)

# %% [markdown]
# **Explain.** While a step is small beside the weights, a weight may lie anywhere between two rungs, so all
# errors from -1/2 to 1/2 step are equally common. The mean of the squared error is then
# $\int_{-1/2}^{1/2} e^2\,de = 1/12$ of a squared step (Bennett, 1948). With 2 bits there are three
# rungs only, nearly all weights are rounded to 0, and the rule no longer holds:

# %%
def error_in_steps(bits):
    """The mean squared error of the weights on a grid of that many bits, divided by step**2 / 12."""
    largest = weights.abs().max()
    grid = qlab.choose_qparams(-largest, largest, bits, signed=True, symmetric=True, narrow_range=True)
    error = qlab.fake_quantize(weights, grid) - weights
    return float(error.square().mean() / (grid.scale**2 / 12))


assert all(abs(error_in_steps(bits) - 1) < 0.1 for bits in range(4, 11))
assert error_in_steps(2) < 0.7

# %% [markdown]
# ## One more bit
#
# To compare signals of different size, one divides: the power of the signal by the power of the error. That
# is the **signal-to-quantization-noise ratio** (SQNR). It is given in decibels (dB), ten times its
# logarithm to base 10.
#
# ### Exercise 1.5: the SQNR

# %% tags=["exercise"]
check("1.5", sqnr)

# %% [markdown]
# Now measure it for the weights. One more bit halves the step, which divides the squared error by 4, and
# $10 \log_{10} 4 = 6.02$ dB.

# %%
largest = weights.abs().max()
ratio = {}
for bits in range(4, 13):
    grid = qlab.choose_qparams(-largest, largest, bits, signed=True, symmetric=True, narrow_range=True)
    error = qlab.fake_quantize(weights, grid) - weights
    ratio[bits] = 10 * math.log10(weights.square().sum() / error.square().sum())
    print(f"{bits:2} bits: {ratio[bits]:5.1f} dB")
a_bit = (ratio[12] - ratio[5]) / 7
print(f"{a_bit:.2f} dB a bit")
assert abs(a_bit - 6.02) < 0.15

# %% [markdown]
# ## Three questions

# %%
quiz(1)

# %% [markdown]
# ## What to remember
#
# - A code counts steps from the **zero point**; its value is `(code - zero point) * scale`.
# - Inside the grid the error is **at most half a step**, and its mean square is **step² / 12**.
# - One more bit halves the step: **6 dB**.
# - Beyond the ends of the grid there is no such limit. Where to put the ends is the next lesson.
#
# ## For teachers
#
# Many count bits where they should count codes, or codes where they should count the gaps between them: draw
# the eight numbers of 3 bits. Let the class guess the bit pattern of 0.3 before the first slider moves. The
# zero point takes most time; ask what padding with a 0 that is not exact would do to an image's border.
#
# ## Papers
#
# - W. R. Bennett, *Spectra of quantized signals*, Bell System Technical Journal 27, 1948: the rule of
#   step² / 12.
# - B. Widrow, I. Kollár, *Quantization Noise*, Cambridge University Press, 2008: when it holds, and when not.
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877).
# - P. Micikevicius et al., *FP8 formats for deep learning*, 2022,
#   [arXiv:2209.05433](https://arxiv.org/abs/2209.05433): e4m3 and e5m2.
