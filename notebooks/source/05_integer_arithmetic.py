# %% [markdown]
# # 5. Integer arithmetic and real kernels
#
# Until now, quantized networks computed with floats that lie on a grid. A processor that runs an int8 network
# has no such floats: it multiplies codes, adds the products up as integers, and turns the sum into a code.
# Here you follow one number through all of that. Then you measure real **kernels**, the compiled functions
# that compute a whole layer: do they give the same codes, how fast are they, and when is int8 slower?
#
# **After this lesson you can**
# - compute a dot product, its bias and its output code with integers only;
# - say how many bits a sum needs, and when a processor saturates;
# - measure the speed of a layer, and say why int8 is sometimes slower than float.
#
# **Time:** 50 minutes. **You need:** lessons 0 and 1 (scale, zero point).

# %%
import dataclasses
import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import QConfig, QParams, bench
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson05 import panels, plots
from qlab.course.quiz import quiz
from qlab.int8 import engines
from qlab.int8.reference import Engine

network = qlab.models.load("resnet20", data=qlab.data.available().name)
calibration = qlab.data.at_hand("train").sample(128)
banner(calibration)

# %% [markdown]
# ## One dot product
#
# A linear layer is a list of **dot products**: inputs times weights, added up, plus a bias. So is a
# convolution, for each place of the image. Each number has its grid: $x = s_x (q_x - z_x)$ with scale
# $s_x$ and zero point $z_x$, and $w = s_w q_w$ (weights are symmetric, so their zero point is 0). Put that
# into the sum, and the scales move to the front (Jacob et al., 2018):
#
# $$\sum x\,w = s_x s_w \sum (q_x - z_x)\, q_w$$
#
# What is left inside the sum is integers. **1** in that sum is worth $s_x s_w$.
#
# **Predict.** Codes and weights have 8 bits. How many bits does the largest of the products below need: 8,
# 16 or 32?
#
# **Move** the step from 0 to 6 and read every line. Then stay at step 6 and move the bits down.

# %%
x = torch.tensor([0.9, -0.4, 1.7, -1.1])
w = torch.tensor([0.31, -0.22, 0.45, 0.12])
bias, ends = 0.25, (-1.0, 3.0)  # the output's range, as calibration would find it
panels.dot_product(x, w, bias, ends)

# %% [markdown]
# **Explain.** Products of 8-bit codes need up to 16 bits, so they are added up in an **int32**. The bias is
# rounded to steps of $s_x s_w$ and added to the sum. The last step, **requantization**, goes from steps of
# $s_x s_w$ to steps of the output: it multiplies by $M = s_x s_w / s_y$. All integers together are off by
# less than two steps of the output:

# %% tags=["nbval-check-output"]
x_grid = qlab.choose_qparams(-1.1, 1.7, bits=8)
w_grid = qlab.choose_qparams(-0.45, 0.45, bits=8, signed=True, symmetric=True, narrow_range=True)
y_grid = qlab.choose_qparams(*ends, bits=8)
q_x, q_w = qlab.quantize(x, x_grid), qlab.quantize(w, w_grid)

total = int(((q_x.int() - x_grid.zero_point) * q_w.int()).sum())
one = float(x_grid.scale * w_grid.scale)
total += round(bias / one)
code = round(total * one / float(y_grid.scale)) + int(y_grid.zero_point)
y = qlab.dequantize(torch.tensor(code), y_grid)
print(f"sum {total:,}, code {code}, value {y:.3f}; in float {(x * w).sum() + bias:.3f}")
assert abs(y - (x * w).sum() - bias) < 2 * y_grid.scale

# %% [markdown]
# `qlab.int8.reference` does this for whole layers, in plain torch. It adds the bias after the multiplication by
# $M$, where the bias need not be a whole number of steps of the sum. So the codes can differ by one:

# %%
kernel = Engine().linear(q_w[None], torch.tensor([bias]), w_grid, x_grid, y_grid)
assert abs(int(kernel(q_x[None])) - code) <= 1

# %% [markdown]
# ### Exercise 5.1: a dot product of codes
#
# Here the weights have a zero point too. Mind the types: torch keeps the product of two 8-bit tensors in 8
# bits.

# %% tags=["exercise"]
check("5.1", integer_dot)

# %% [markdown]
# ### Exercise 5.2: how long may the sum be?
#
# The codes of x are unsigned: 0 to $2^{bits} - 1$. Those of the weights are symmetric: $-m$ to $m$ with
# $m = 2^{bits - 1} - 1$. A signed integer of 32 bits holds at most $2^{31} - 1$. How many products can be
# added up, whatever the codes are?

# %% tags=["exercise"]
check("5.2", safe_terms)

# %% [markdown]
# ## A real number without floats
#
# $M = s_x s_w / s_y$ is a real number, but it is known before the network runs. So it is written as a
# **fixed-point number**: an integer (the **mantissa**) divided by a power of two. To multiply by it, a
# processor multiplies by the mantissa and then **shifts** the bits to the right. A shift by $n$ is a division
# by $2^n$, rounded down. With a mantissa of 31 bits nearly nothing is lost:

# %% tags=["nbval-check-output"]
multiplier = one / float(y_grid.scale)
fraction, exponent = math.frexp(multiplier)  # multiplier = fraction * 2**exponent
mantissa, shift = round(fraction * 2**31), 31 - exponent
print(f"{multiplier:.9f} is nearly {mantissa:,} / 2**{shift}")
assert abs(mantissa / 2**shift / multiplier - 1) < 1e-9

# %% [markdown]
# ### Exercise 5.3: mantissa and shift

# %% tags=["exercise"]
check("5.3", fixed_point)

# %% [markdown]
# ### Exercise 5.4: from the sum to the code
#
# A shift rounds down, but the nearest code is wanted. Add one half before you shift; before the shift, one
# half is `1 << (shift - 1)`. Python's integers never overflow, so you need no tensors here.

# %% tags=["exercise"]
check("5.4", requantize)

# %% [markdown]
# ## Sixteen bits
#
# The AVX2 instructions of x86 processors multiply many pairs of codes at once, and they add each **pair** of
# products up in 16 bits (`vpmaddubsw`). What does not fit becomes the largest number that does, 32,767: it
# **saturates**. Newer processors add up in 32 bits; that is **VNNI** (Vector Neural Network Instructions).
#
# Below are the first layer's weights and 400 pieces of training images.
#
# **Predict.** One product is 255 * 127 = 32,385 at most and just fits. How many bits must you take away from
# the activations, so that no pair saturates: 1, 2 or 4?
#
# **Move** the bits of the activations to 7. Then go back to 8 and make the weights smaller.

# %%
images = next(calibration.batches(128))[0]
first = qlab.prepare(network).network.get_submodule("conv1")  # BatchNorm is folded into it
pieces = F.unfold(images[:16], 3, padding=1).unflatten(1, (3, 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:400]]
weights = first.weight.detach().permute(0, 2, 3, 1).flatten(1)
panels.saturation(pieces, weights)

# %% [markdown]
# **Explain.** One bit is enough, and either side can give it:

# %% tags=["nbval-check-output"]
for bits, largest in ((8, 127), (7, 127), (8, 63)):
    pair = 2 * (2**bits - 1) * largest
    print(f"{bits}-bit activations, weights up to {largest}: a pair reaches {pair:,}")
assert 2 * 127 * 127 <= 2**15 - 1 and 2 * 255 * 63 <= 2**15 - 1 < 2 * 255 * 127

# %% [markdown]
# **Predict.** A weight shares its scale with one channel, an activation with all channels (lesson 4). Which of
# the two should give the bit? The column is the **SQNR** (lesson 1) of the answers against the float network's.

# %%
eight = QConfig.w8a8()
seven_weights = QConfig.w8a8(reduce_range=True)
seven_activations = dataclasses.replace(
    eight, activation=dataclasses.replace(eight.activation, bits=7), elementwise=dataclasses.replace(eight.elementwise, bits=7)
)
found = {}
with torch.inference_mode():
    for words, qconfig in {
        "weights 8, activations 8": eight,
        "weights 8, activations 7": seven_activations,
        "weights 7, activations 8": seven_weights,
    }.items():
        prepared = qlab.calibrate(qlab.prepare(network, qconfig), calibration.batches(64))
        found[words] = qlab.analysis.sqnr(network(images), prepared(images))
        print(f"{words}: {found[words]:.1f} dB")
assert found["weights 8, activations 8"] > found["weights 7, activations 8"] > found["weights 8, activations 7"]

# %% [markdown]
# The weights. That is what `reduce_range=True` does; `qlab.ptq` asks for it by itself where a processor needs it.

# %% [markdown]
# ### Exercise 5.5: an instruction that saturates

# %% tags=["exercise"]
check("5.5", saturating_dot)

# %% [markdown]
# ## Real kernels
#
# Who brings the kernels is called an **engine**. torch has several; `qlab` tries each of them on this machine
# with the largest codes there are, and says which of them saturate.

# %%
print(bench.processor())
for engine in engines.available().values():
    words = "exact sums" if engine.usable else engine.reason
    if engine.saturates or engine.depthwise_saturates:
        words = "its pairs saturate" + " in depthwise layers" * (not engine.saturates)
    print(f"{engine.name:13} {words}")
usable = [name for name, engine in engines.available().items() if engine.usable]

# %% [markdown]
# Do they all compute the same? Take one layer in the middle of the network, with 7-bit weights, and give
# every engine the same codes. The difference is counted in steps of the output. One step is one **LSB**
# (least significant bit).

# %%
int8 = qlab.ptq(network, calibration.batches(64), QConfig.w8a8(reduce_range=True), engine="reference")
number = [layer.name for layer in int8.layers].index("layer2.1.conv1")
step = next(step for step in int8.program.steps if step.layer == number)
x_grid, y_grid = (int8.program.grids[value] for value in (step.inputs[0], step.output))

seen = []
hook = network.layer2[1].conv1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
with torch.inference_mode():
    network(images[:32])
hook.remove()


@torch.inference_mode()
def codes_from(name):
    """The codes that the layer gives on an engine."""
    engine = engines.get(name)
    kernel = int8.layers[number].kernel(engine, [x_grid], y_grid)
    with engine.running():
        y = engine.dequantize(y_grid)(kernel(engine.quantize(x_grid)(qlab.fake_quantize(seen[0], x_grid))))
    return torch.round(y / y_grid.scale).int()


expected = codes_from("reference")
for name in usable:
    off = (codes_from(name) - expected).abs()
    print(f"{name:13} off by {off.max()} LSB at most; {(off > 0).float().mean():.3%} of the codes differ")
    assert off.max() <= 1

# %% [markdown]
# They differ by one code at most, and only where a sum falls nearly in the middle between two codes: some
# engines multiply by $M$ as a float and round halves to even.
#
# Now the whole network, with 8-bit and with 7-bit weights. The column is the SQNR of its
# answers against those of the reference, which never saturates.


# %%
@torch.inference_mode()
def answers(net, name):
    """The scores of 64 images on an engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qlab warns of saturation; here it is wanted
        return net.on(name)(images[:64])


networks = (qlab.ptq(network, calibration.batches(64), QConfig.w8a8(), engine="reference"), int8)
expected = [answers(net, "reference") for net in networks]
for name in usable[1:]:
    decibel = [qlab.analysis.sqnr(scores, answers(net, name)) for scores, net in zip(expected, networks)]
    saturates = engines.availability(name).saturates
    print(f"{name:13} 8 bits: {decibel[0]:4.1f} dB   7 bits: {decibel[1]:4.1f} dB{'   saturates' * saturates}")
    assert decibel[1] > 20 and (saturates or decibel[0] > 20)

# %% [markdown]
# ## Speed
#
# **Predict.** int8 moves a quarter of the bytes, and a register holds four times as many codes as floats. Is
# int8 four times as fast? On one image as on 32?
#
# The networks take turns, so that whatever slows this machine down slows all of them; the median counts.

# %% tags=["timing"]
on_engines = {"float32": network, **{name: int8.on(name) for name in usable}}
print(bench.compare(on_engines, images[:1], threads=1, rounds=7, progress=False), "\n")
print(bench.compare(on_engines, images[:32], threads=1, rounds=5, progress=False))

# %% [markdown]
# The reference computes the same integers as the others, in plain torch, and is slow: integers alone make
# nothing fast. It takes a kernel that uses the instructions for them.
#
# On one image the kernels are done so soon that something else counts: between two kernels, Python finds
# the next one and hands it its inputs. `capture` records the calls once, and then they follow each other
# without Python.
#
# **Predict.** Will one image gain more from that, or a batch of 32?

# %% tags=["timing"]
plain, captured = int8.on("auto"), int8.on("auto")
if captured.engine in engines.QUANTIZED:
    captured.capture(images[:1]).capture(images[:32])
for batch in (1, 32):
    calls = {"float32": network, "int8": plain, "int8, captured": captured}
    print(bench.compare(calls, images[:batch], threads=1, rounds=7, progress=False), "\n")

# %% [markdown]
# Every call costs Python about the same time, whether the batch is small or large. So one image gains more.
# What is computed stays the same, bit for bit:

# %%
with torch.inference_mode():
    assert torch.equal(captured(images[:32]), plain(images[:32]))

# %% [markdown]
# More threads help both, float and int8:

# %% tags=["timing"]
both = {"float32": network, "int8": plain}
for threads in (1, 2):
    print(bench.compare(both, images[:32], threads=threads, rounds=3, progress=False), "\n")

# %% [markdown]
# ## Which layers gain?
#
# A layer does two things: it moves bytes (weights, inputs, outputs), and it computes. **Arithmetic intensity**
# is the number of operations per byte moved. With little intensity, memory sets the pace; with much, the
# arithmetic does (the **roofline** model; Williams et al., 2009). And each call of a kernel has a fixed cost,
# which a small layer feels most.
#
# **Predict.** Below are 3x3 convolutions with 8, 32 and 128 channels on one image of 16x16 places, and a small
# linear layer. Which of them gains most from int8, which least?


# %%
def layer_speed(name, layer, x, engine):
    """Time a layer in float and in int8 on the same input."""
    with torch.inference_mode():
        y = layer(x)
        x_grid, y_grid = (qlab.choose_qparams(float(t.min()), float(t.max())) for t in (x, y))
        largest = float(layer.weight.abs().max())
        w_grid = qlab.choose_qparams(-largest, largest, 7, signed=True, symmetric=True, narrow_range=True)
        make = engine.linear if isinstance(layer, nn.Linear) else engine.conv2d
        options = {} if isinstance(layer, nn.Linear) else {"padding": 1}
        kernel = make(qlab.quantize(layer.weight, w_grid), layer.bias, w_grid, x_grid, y_grid, **options)
        q = engine.quantize(x_grid)(x)
        calls = {"float": lambda: layer(x), "int8": lambda: kernel(q)}
        with engine.running():
            seconds = bench.interleave(calls, rounds=9, progress=False)
    operations = 2 * layer.weight.numel() * (y.numel() // layer.weight.shape[0])
    numbers = x.numel() + layer.weight.numel() + y.numel()
    float_time, int8_time = (sorted(times)[4] for times in seconds.values())
    return plots.LayerSpeed(name, operations, 4 * numbers, numbers, float_time, int8_time)


# %% tags=["timing"]
torch.manual_seed(0)
torch.set_num_threads(1)  # two threads would wait for each other longer than a small layer takes
engine = engines.get("auto")
layers = [layer_speed("linear 64 to 10", nn.Linear(64, 10), torch.rand(1, 64), engine)]
for channels in (8, 32, 128):
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    layers.append(layer_speed(f"{channels} channels", layer, image, engine))
plots.roofline(layers, bench.roof())

# %% [markdown]
# Further right means more work per byte, further up means faster. The dashed lines are this processor's roofs,
# measured just now: the slope is what its memory can bring, the level what its arithmetic can do. A small layer
# stays far below, because calling it takes longer than computing it. One whose bytes are still in the cache
# need not wait for memory, and can lie above the slope.
#
# The intensity does not depend on the machine: with four times fewer bytes it is four times as high, and with
# more channels it grows.

# %%
for layer in layers:
    intensity = layer.operations / layer.int8_bytes
    print(f"{layer.name:16} {layer.operations:12,} operations, {intensity:6.1f} per byte in int8")
    assert layer.float_bytes == 4 * layer.int8_bytes
assert layers[0].operations / layers[0].int8_bytes < layers[-1].operations / layers[-1].int8_bytes / 10

# %% [markdown]
# Why can int8 be slower? Look at the smallest layer, one call each. A float network calls the layer. If int8
# layers stand alone between float ones, the values must also become codes before, and floats after:

# %% tags=["timing"]
linear, row = nn.Linear(64, 10), torch.rand(1, 64)
w_grid = qlab.choose_qparams(-0.2, 0.2, 8, signed=True, symmetric=True, narrow_range=True)
in_grid, out_grid = qlab.choose_qparams(0.0, 1.0, 7), qlab.choose_qparams(-2.0, 2.0, 7)
with torch.inference_mode(), engine.running():
    to_codes, to_floats = engine.quantize(in_grid), engine.dequantize(out_grid)
    kernel = engine.linear(qlab.quantize(linear.weight, w_grid), linear.bias, w_grid, in_grid, out_grid)
    q_row = to_codes(row)
    q_out = kernel(q_row)
    calls = {"float layer": lambda: linear(row), "quantize": lambda: to_codes(row), "int8 layer": lambda: kernel(q_row)}
    calls["dequantize"] = lambda: to_floats(q_out)
    for name, times in bench.interleave(calls, rounds=9, progress=False).items():
        print(f"{name:12} {1e6 * sorted(times)[4]:6.1f} microseconds")

# %% [markdown]
# So int8 gains where there is much to compute, with engines made for the processor, and where the codes stay
# codes from layer to layer. It gains little or nothing on small layers, with Python between them, where layers
# in float stand between, and where a processor has no instructions for it.
#
# ## Three questions

# %%
quiz(5)

# %% [markdown]
# ## What to remember
#
# - A dot product of codes is exact in **int32**; 1 in it is worth $s_x s_w$. The bias lies on the same grid.
# - **Requantization** multiplies by $s_x s_w / s_y$: an integer multiplication, a rounding and a shift.
# - Without VNNI, pairs of products **saturate** at 16 bits. `reduce_range=True` avoids it, for one bit of
#   the weights.
# - Engines agree to within **one code** a layer, as long as nothing saturates.
# - Speed is measured, never assumed: it depends on processor, engine, batch and size of the layers.
#
# ## For teachers
#
# - Common misconception: "int8 is four times as fast". Let students predict a factor before the speed tables.
# - Students get stuck at exercise 5.4: that a shift rounds down for negative numbers too is worth a look at
#   `-5 >> 1`.
# - The section on real kernels needs no code from students: 10 minutes, and another processor gives another
#   table. Compare the machines of the class.
#
# ## Papers
#
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): the arithmetic of this lesson.
# - D. Khudia et al., *FBGEMM: enabling high-performance low-precision deep learning inference*, 2021,
#   [arXiv:2101.05615](https://arxiv.org/abs/2101.05615): how such a kernel is made.
# - H. Wu et al., *Integer quantization for deep learning inference*, 2020,
#   [arXiv:2004.09602](https://arxiv.org/abs/2004.09602).
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009.
# - T. Hoefler, R. Belli, *Scientific benchmarking of parallel computing systems*, SC 2015: how to time.
