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
from qlab.course.lesson01 import panels, plots
from qlab.course.predict import predict
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
# Predict which format with 16 bits is nearer to 0.3. Then **move** the number to 0.25, to 0.5, to 1. Then go to 4.5 and look at int8.
#
# **Click** a bit to flip it, and the other formats follow. Start from 1: which bit of float16 makes it -1,
# which makes it 1.5? Then set all five bits of the exponent.

# %%
stored = {name: plots.in_format(0.3, name)[0] for name in (*plots.FORMATS, "int8")}
off = {name: abs(value - 0.3) for name, value in stored.items()}
nearer = min(("bfloat16", "float16"), key=off.get)
exact = ", ".join(name for name in off if off[name] == 0) or "none of the six"
answer = 2 if off["bfloat16"] == off["float16"] else ("bfloat16", "float16").index(nearer)
predict("1a", panels.formats(), answer=answer, bfloat16=off["bfloat16"], float16=off["float16"], exact=exact)

# %% [markdown]
# **Explain.** The fraction decides how fine the steps are, the exponent how far the format reaches. 0.3 is
# no sum of a few powers of two, so no format here holds it. An exponent with all bits set stands for infinity
# or, when the fraction is not 0, for `nan`, "not a number"; in e4m3 only the last pattern is `nan`, and int8
# has neither. And int8 stops at its highest code, 127, however large the number is:

# %%
for name, distance in off.items():
    print(f"{name:9} off by {distance:.1e}")
for dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()  # each of the 256 patterns
    print(f"{dtype}: {every.isinf().sum()} are infinite and {every.isnan().sum()} are nan; largest {every[every.isfinite()].max():g}")
assert off["float16"] < off["bfloat16"] and exact == "none of the six"
assert qlab.quantize(torch.tensor(4.5), qlab.QParams(1 / 32, 0, signed=True)) == 127

# %% [markdown]
# ## A grid
#
# The numbers that codes can stand for lie like the rungs of a ladder: that is the **grid**. Two neighbours
# are one **step** apart. Rounding takes each number to the nearest rung.
#
# Below, a wave is rounded with 3 bits. Predict how much smaller the largest error is with 4. Then **move** the
# bits, go back to 3, and move the grid: for which shifts does 0 stay 0?

# %%
wave = torch.sin(torch.linspace(0, 2 * math.pi, 10_000))
worst = {}
for bits in range(3, 9):
    grid = qlab.choose_qparams(-1.0, 1.0, bits=bits)
    worst[bits] = (qlab.fake_quantize(wave, grid) - wave).abs().max().item()
times = worst[3] / worst[4]
predict("1b", panels.rounding(), answer=0 if times < 1.7 else 1 if times < 3 else 2, three=worst[3], four=worst[4])

# %% [markdown]
# **Explain.** Each number has a rung that is at most half a step away. One more bit doubles the number of
# rungs, which makes the step about half as wide, and with it the largest error. Moving the grid does not
# change the step, but only without a shift is 0 itself a rung. Zeros are everywhere in a network (padding,
# ReLU), so the grids with equal steps of this course have a rung at 0.

# %%
for bits, error in worst.items():
    grid = qlab.choose_qparams(-1.0, 1.0, bits=bits)
    print(f"{bits} bits: step {grid.scale:.4f}, largest error {error:.4f}")
    assert error <= grid.scale / 2 * 1.001
assert all(1.9 < worst[bits] / worst[bits + 1] < 2.2 for bits in range(3, 8))

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
# `clamp` takes what lies beyond the ends to the nearest end. `round` takes a half to the even
# whole number, 0.5 to 0 and 1.5 to 2, so that halves go up as often as down.
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
# ## Signed codes
#
# These codes count from 0: they are **unsigned**. Weights lie on both sides of 0, and for them other codes are
# usual. The next cell lays four grids for the range from -1 to 1.
#
# - **Signed** codes go from $-2^{bits-1}$ to $2^{bits-1} - 1$. They are kept in **two's complement**: the highest
#   bit counts $-2^{bits-1}$, all others count as usual. Since 0 takes one of the codes, there is one code more below
#   it than above.
# - **Symmetric** means that the zero point is 0. Then a value is its code times the scale, and no zero point has to
#   be subtracted, millions of times. The step is the larger end of the range divided by the highest code.
# - **Narrow range** leaves out the lowest code, so that both sides have equally many. With 8 bits that is one of
#   256; with 2 bits it leaves **three** rungs.

# %% tags=["nbval-check-output"]
kinds = {
    "unsigned": {},
    "signed": {"signed": True},
    "symmetric": {"signed": True, "symmetric": True},
    "narrow range": {"signed": True, "symmetric": True, "narrow_range": True},
}
for name, kind in kinds.items():
    grid, eight = (qlab.choose_qparams(-1.0, 1.0, bits, **kind) for bits in (2, 8))
    rungs = ((torch.arange(grid.qmin, grid.qmax + 1) - grid.zero_point) * grid.scale).tolist()
    shown = ", ".join(f"{rung:.2f}" for rung in rungs)
    print(f"{name:13} 2 bits: codes {grid.qmin} to {grid.qmax}, rungs {shown}; 8 bits: {eight.qmin} to {eight.qmax}")
assert len(rungs) == 3
assert [f"{code & 255:08b}" for code in (-128, -1, 127)] == ["10000000", "11111111", "01111111"]  # as int8 keeps them

# %% [markdown]
# ## How large is the error on average?
#
# Half a step is the worst case. For the whole of a network the average counts more. Below are the
# `9 * 64 * 64` weights of one layer of the trained network, and what rounding does to each.
#
# The grid is symmetric, with a narrow range. Predict which errors are the most common with 8 bits. Then **move** the
# bits down: from which number of bits on does the image change?

# %%
def errors_in_steps(bits):
    """How far each weight is from its rung, in steps: from -1/2 to 1/2."""
    largest = weights.abs().max()
    grid = qlab.choose_qparams(-largest, largest, bits, signed=True, symmetric=True, narrow_range=True)
    return (qlab.fake_quantize(weights, grid) - weights) / grid.scale


near = 100 * (errors_in_steps(8).abs() < 0.25).float().mean().item()  # nearer to 0 than to half a step
predict("1c", panels.rounding_errors(weights), answer=0 if near > 55 else 1 if near < 45 else 2, near=near)

# %% [markdown]
# **Explain.** While a step is small beside the weights, a weight may lie anywhere between two rungs, so all
# errors from -1/2 to 1/2 step are equally common. The mean of the squared error is then
# $\int_{-1/2}^{1/2} e^2\,de = 1/12$ of a squared step (Bennett, 1948). With 2 bits there are three
# rungs only, nearly all weights are rounded to 0, and the rule no longer holds:

# %%
squared = {bits: 12 * errors_in_steps(bits).square().mean().item() for bits in range(2, 11)}
for bits, ratio in squared.items():
    print(f"{bits:2} bits: mean squared error {ratio:.2f} times step²/12")
zero = (weights.abs() < weights.abs().max() / 2).float().mean()  # with 2 bits a step is the largest weight
print(f"with 2 bits {zero:.1%} of the weights become 0")
assert all(abs(squared[bits] - 1) < 0.1 for bits in range(4, 11)) and squared[2] < 0.7 and zero > 0.95

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
narrow = 20 * math.log10((2**11 - 1) / (2**4 - 1)) / 7
print(f"12 bits have {2**11 - 1:,} rungs on each side of 0, 5 bits {2**4 - 1}: that makes {narrow:.2f} dB a bit")
assert abs(a_bit - narrow) < 0.1

# %% [markdown]
# A little more than 6.02: a narrow range leaves out one code of 32 with 5 bits, but only one of 4,096 with 12.
#
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
