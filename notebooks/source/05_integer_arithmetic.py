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
import math
import warnings

import torch
from torch import nn

import qlab
from qlab import QConfig, QParams, bench
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson05 import kernels, panels, plots
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.int8 import engines, reference

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
# **Predict**, then **move** the step from 0 to 6 and read every line. Stay at step 6 and move the bits down: does the
# error grow in steps of the output, or in real units?

# %%
x = torch.tensor([0.9, -0.4, 1.7, -1.1])
w = torch.tensor([0.31, -0.22, 0.45, 0.12])
bias, ends = 0.25, (-1.0, 3.0)  # the output's range, as calibration would find it

in_integers = {bits: plots.in_integers(x, w, bias, ends, bits) for bits in range(2, 9)}
largest = max(map(abs, in_integers[8].products))
wide = largest.bit_length() + 1
answer = 0 if wide <= 8 else 1 if wide <= 16 else 2
predict("5a", panels.dot_product(x, w, bias, ends), answer=answer, largest=largest, bits=wide)

# %% [markdown]
# **Explain.** Products of 8-bit codes need up to 16 bits, so they are added up in an **int32**. The bias is
# rounded to steps of $s_x s_w$ and added to the sum. The last step, **requantization**, goes from steps of
# $s_x s_w$ to steps of the output: it multiplies by $M = s_x s_w / s_y$. With few bits the error is large in real
# units, and yet a part of a step: the steps of all three grids have grown.

# %% tags=["nbval-check-output"]
exact = float((x * w).sum()) + bias
for bits, found in in_integers.items():
    off, step = abs(found.value - exact), found.out_step
    print(f"{bits} bits: {found.value:.3f}, off by {off:.3f}, or {off / step:.2f} steps of {step:.3f}")
    assert off < step
assert abs(in_integers[2].value - exact) > 10 * abs(in_integers[8].value - exact)
assert 255 * 127 < 2**15, "one product fits 16 bits with its sign"

# %% [markdown]
# ### Exercise 5.1: a dot product of codes
#
# Here the weights have a zero point too. Mind the types, which are not what one thinks:

# %% tags=["nbval-check-output"]
byte, signed = torch.tensor([64], dtype=torch.uint8), torch.tensor([64], dtype=torch.int8)
print(f"uint8 less a number: 64 - 100 = {int(byte - 100)}, {(byte - 100).dtype}")
print(f"uint8 times uint8:   64 * 64 = {int(byte * byte)}, {(byte * byte).dtype}")
print(f"int8 times int8:     64 * 64 = {int(signed * signed)}, {(signed * signed).dtype}")
print(f"uint8 times int8:    64 * 64 = {int(byte * signed)}, {(byte * signed).dtype}")
assert (byte - 100).dtype == torch.uint8 and (byte * signed).dtype == torch.int16

# %% tags=["exercise"]
check("5.1", integer_dot)

# %% [markdown]
# ### The same with qlab
#
# The panel's numbers, step by step, and the function that sums for whole layers:

# %% tags=["nbval-check-output"]
x_grid = qlab.choose_qparams(float(x.min()), float(x.max()), bits=8)
most = float(w.abs().max())
w_grid = qlab.choose_qparams(-most, most, bits=8, signed=True, symmetric=True, narrow_range=True)
y_grid = qlab.choose_qparams(*ends, bits=8)
q_x, q_w = qlab.quantize(x, x_grid), qlab.quantize(w, w_grid)

one = float(x_grid.scale.double() * w_grid.scale.double())  # what 1 in the sum is worth
total = int(reference.linear_sums(q_x[None], int(x_grid.zero_point), q_w[None])) + round(bias / one)
code = round(total * one / float(y_grid.scale)) + int(y_grid.zero_point)
print(f"sum {total:,}, code {code}, value {qlab.dequantize(torch.tensor(code), y_grid):.3f}")
assert (total, code) == (in_integers[8].sums[-1] + in_integers[8].bias, in_integers[8].code)

# %% [markdown]
# `qlab.int8.reference` does this for whole layers, in plain torch. It adds the bias after the multiplication by
# $M$, where the bias need not be a whole number of steps of the sum. So the codes can differ by one:

# %%
kernel = reference.Engine().linear(q_w[None], torch.tensor([bias]), w_grid, x_grid, y_grid)
print(f"code {int(kernel(q_x[None]))}, above {code}")
assert abs(int(kernel(q_x[None])) - code) <= 1

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
# by $2^n$, rounded down.
#
# ### Exercise 5.3: mantissa and shift
#
# `math.frexp` is a help.

# %% tags=["exercise"]
check("5.3", fixed_point)

# %% [markdown]
# ### With 31 bits nearly nothing is lost

# %% tags=["nbval-check-output"]
multiplier = one / float(y_grid.scale)
(mantissa,), shift = reference.fixed_point(torch.tensor(multiplier, dtype=torch.float64))
off = abs(int(mantissa) / 2 ** int(shift) / multiplier - 1)
print(f"{multiplier:.9f} is nearly {int(mantissa):,} / 2**{int(shift)}, off by {off:.0e} of it")
assert off < 2**-31 and int(mantissa) == in_integers[8].mantissa

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
# products up in 16 bits (`vpmaddubsw`). What does not fit becomes the nearest number that does, 32,767 or
# -32,768: it **saturates**. Newer processors add up in 32 bits; that is **VNNI** (Vector Neural Network Instructions).
#
# Below are the first layer's weights and 400 pieces of training images.
#
# One product is 255 * 127 = 32,385 at most and just fits. **Predict**, then **move** the bits of the activations down
# until nothing saturates. Go back to 8 and make the weights smaller.

# %%
images = next(calibration.batches(128))[0]
first = qlab.prepare(network).network.get_submodule("conv1")  # BatchNorm is folded into it
pieces, weights = kernels.as_rows(images[:16], first, 400)
reach = {fewer: 2 * (2 ** (8 - fewer) - 1) * 127 for fewer in (1, 2, 4)}  # the largest pair
enough = next(fewer for fewer, most in reach.items() if most <= 2**15 - 1)
predict("5b", panels.saturation(pieces, weights), answer=list(reach).index(enough), most=reach[enough])

# %% [markdown]
# **Explain.** One bit is enough, and either side can give it:

# %%
for bits, largest in ((8, 127), (7, 127), (8, 63)):
    pair = 2 * (2**bits - 1) * largest
    print(f"{bits}-bit activations, weights up to {largest}: a pair reaches {pair:,}")
assert enough == 1 and 2 * 255 * 63 <= 2**15 - 1 < 2 * 255 * 127

# %% [markdown]
# ### Who gives the bit?
#
# A weight shares its scale with one channel, an activation with all channels (lesson 4). **Predict** which of the two
# should give the bit. The numbers are the **SQNR** (lesson 1) of the answers against the float network's.

# %%
found = {}
with torch.inference_mode():
    for name in ("w8a8", "w8a7", "w7a8"):  # bits of the weights, bits of the activations
        prepared = qlab.prepare(network, QConfig.preset(name))
        qlab.calibrate(prepared, calibration.batches(64))
        found[name] = qlab.analysis.sqnr(network(images), prepared(images))
both, fewer_activations, fewer_weights = found.values()
gain = fewer_weights - fewer_activations
answer = 2 if abs(gain) < 0.5 else 0 if gain > 0 else 1
table = "\n".join(f"{name}: {decibel:.1f} dB" for name, decibel in found.items())
values = {"weights": fewer_weights, "activations": fewer_activations, "eight": both}
predict("5c", table, answer=answer, **values)

# %% [markdown]
# **Explain.** One scale has to do for all channels of an activation, so half as many codes should hurt more there; that
# is what is measured. `reduce_range=True` takes the bit
# from the weights; `qlab.ptq` asks for it by itself where a processor needs it.

# %%
assert both > fewer_weights > fewer_activations
assert QConfig.w8a8(reduce_range=True).weight.bits == 7

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
print("on torch's quantized tensors:", ", ".join(name for name in usable if name in engines.QUANTIZED))

# %% [markdown]
# Those on the last line compute on tensor types of their own (`torch.quint8` and its like), which torch deprecated in
# 2026. What comes instead are plain `uint8` and `int8` tensors, with scale and zero point kept beside them: so does
# `onednn_plain`, with kernels of oneDNN, and so does the reference, which needs no kernel at all.
#
# Do they all compute the same? Take one layer in the middle of the network, with 7-bit weights, and give
# every engine the same codes. The difference is counted in steps of the output. One step is one **LSB**
# (least significant bit).

# %%
int8 = qlab.ptq(network, calibration.batches(64), QConfig.w8a8(reduce_range=True), engine="reference")
probe = kernels.Probe(int8, network, "layer2.1.conv1", images[:32])
expected, exact = probe.codes("reference"), probe.exact()
print(f"one LSB is worth {probe.step:.3f} here")
for name in usable:
    off = (probe.codes(name) - expected).abs()
    print(f"{name:13} off by {off.max()} LSB at most; {(off > 0).float().mean():.3%} of the codes differ")
    assert off.max() <= 1
    assert not off.any() or kernels.far_from_a_tie(exact[off > 0]).max() < 0.01

# %% [markdown]
# They differ by one code at most, and only where a sum falls nearly in the middle between two codes (within a hundredth
# of a step): some engines multiply by $M$ as a float and round halves to even.
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
# An engine that saturates needs the 7 bits; with the others 8 and 7 bits agree about as well. What is left are single
# codes that are off by one, with which all later layers compute.
#
# ## Speed
#
# int8 moves a quarter of the bytes, and a register holds four times as many codes as floats. Is int8 four times as
# fast? **Predict** for one image, then for 32.
#
# The networks take turns, so that whatever slows this machine down slows all of them; the median counts. Your answer is
# compared with the engine that `qlab` chooses on this machine.

# %% tags=["timing"]
chosen = engines.choose()[0]
on_engines = {"float32": network, **{name: int8.on(name) for name in usable}}
one_image = bench.compare(on_engines, images[:1], threads=1, rounds=15, progress=False)
predict("5d", str(one_image), answer=one_image.speedup(chosen))

# %% tags=["timing"]
many_images = bench.compare(on_engines, images[:32], threads=1, rounds=5, progress=False)
predict("5e", str(many_images), answer=many_images.speedup(chosen))

# %% [markdown]
# **Explain.** Bytes and registers promise four times. How near an engine comes depends on its kernels and on how much
# there is to compute at once:

# %% tags=["timing"]
for words, result in (("1 image", one_image), ("32 images", many_images)):
    print(f"{words}: " + ", ".join(f"{name} {result.speedup(name):.2f}" for name in usable))

# %% [markdown]
# The reference computes the same integers as the others, in plain torch, and is slow: integers alone make
# nothing fast. It takes a kernel that uses the instructions for them.
#
# ### Without Python in between
#
# Between two kernels, Python finds the next one and hands it its inputs. `capture` records the calls once, and then
# they follow each other without Python. **Predict** whether one image gains more from that, or a batch of 32.

# %% tags=["timing"]
plain, captured = int8.on("auto"), int8.on("auto")
if captured.engine in engines.QUANTIZED:
    captured.capture(images[:1]).capture(images[:32])
calls = {"float32": network, "int8": plain, "int8, captured": captured}
results = {}
for batch, rounds in ((1, 25), (32, 7)):
    results[batch] = bench.compare(calls, images[:batch], threads=1, rounds=rounds, progress=False)
saved = {batch: result["int8"].ms - result["int8, captured"].ms for batch, result in results.items()}
one, many = (result["int8"].ms / result["int8, captured"].ms for result in results.values())
answer = 2 if abs(one - many) < 0.03 else 0 if one > many else 1
predict("5f", "\n\n".join(map(str, results.values())), answer=answer, one=one, many=many)

# %% [markdown]
# **Explain.** Every call costs Python about the same time, whether the batch is small or large. On one image the kernels
# are done so soon that this is a good part of the whole. What the capture saved here (less than the spread is chance):

# %% tags=["timing"]
for batch, result in results.items():
    ms, spread = result["int8"].ms, result["int8"].spread
    print(f"batch {batch:2}: {1000 * saved[batch]:5.0f} of {1000 * ms:6.0f} microseconds, spread {spread:.0%}")

# %% [markdown]
# What is computed stays the same, bit for bit:

# %%
with torch.inference_mode():
    assert torch.equal(captured(images[:32]), plain(images[:32]))

# %% [markdown]
# ### More threads
#
# Do more threads help? Both, float and int8? Compare the two tables. (On a machine with other work to do they may not.)

# %% tags=["timing"]
both = {"float32": network, "int8": plain}
for threads in (1, 2):
    print(bench.compare(both, images[:32], threads=threads, rounds=3, progress=False), "\n")

# %% [markdown]
# ## Which layers gain?
#
# A layer does two things: it moves bytes (weights, inputs, outputs), and it computes. **Arithmetic intensity**
# is the number of operations per byte moved. With little intensity, memory sets the pace; with much, the
# arithmetic does (the **roofline** model; Williams et al., 2009).
#
# Below are 3x3 convolutions with 8, 32 and 128 channels on one image of 16x16 places, and a small linear layer.
# **Predict** which of them gains most from int8, and which least.

# %% tags=["timing"]
torch.manual_seed(0)
torch.set_num_threads(1)  # two threads would wait for each other longer than a small layer takes
engine = engines.get("auto")
layers = [kernels.layer_speed("linear 64 to 10", nn.Linear(64, 10), torch.rand(1, 64), engine)]
for channels in (8, 32, 128):
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    layers.append(kernels.layer_speed(f"{channels} channels", layer, image, engine))
gains = [layer.speedup for layer in layers]
predict("5g", answer=gains.index(max(gains)), most=max(gains))

# %% tags=["timing"]
roof = bench.roof()
predict("5h", plots.roofline(layers, roof), answer=gains.index(min(gains)), least=min(gains))

# %% [markdown]
# **Explain.** Further right means more work per byte, further up means faster. The dashed lines are this processor's roofs,
# measured just now: the slope is what its memory can bring, the level what a large product of matrices reached. (A layer whose
# bytes are still in the cache need not wait for memory, and can lie above the slope; and one can reach a little more than
# that product.) A small layer stays far below:
# each call of a kernel has a fixed cost, and here that is far more than what there is to compute.

# %% tags=["timing"]
for layer in layers:
    call, alone = layer.int8_seconds, layer.operations / roof.int8_operations
    print(f"{layer.name:16} int8 {1e6 * call:6.1f} microseconds, at the roof {1e6 * alone:6.2f}")
assert layers[0].int8_seconds > 10 * layers[0].operations / roof.int8_operations

# %% [markdown]
# The intensity does not depend on the machine: with four times fewer bytes it is four times as high, and with
# more channels it grows.

# %%
for layer in layers:
    intensity = layer.operations / layer.int8_bytes
    print(f"{layer.name:16} {layer.operations:12,} operations, {intensity:6.1f} per byte in int8")
    assert layer.float_bytes == 4 * layer.int8_bytes
assert layers[0].operations / layers[0].int8_bytes < layers[-1].operations / layers[-1].int8_bytes / 10

# %% [markdown]
# ### Why can int8 be slower?
#
# Look at the smallest layer, one call each. A float network calls the layer. If int8 layers stand alone between float
# ones, the values must also become codes before, and floats after:

# %% tags=["timing"]
seconds = kernels.alone_among_floats(nn.Linear(64, 10), torch.rand(1, 64), engine)
for name, time in seconds.items():
    print(f"{name:12} {1e6 * time:6.1f} microseconds")
around = seconds["quantize"] + seconds["dequantize"]
print(f"the two around it take {around / seconds['int8 layer']:.0%} of the int8 layer's own time")

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
# - Common misconception: "int8 is four times as fast". Let students defend their factor before they uncover the tables.
# - In exercise 5.4 many write `round(total * mantissa / 2**shift)`, which takes the even neighbour of a half; the checker
#   says so. That a shift rounds down for negative numbers too is worth a look at `-5 >> 1`.
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
