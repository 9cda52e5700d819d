# %% [markdown]
# # 0. From float to int8 in five minutes
#
# A neural network is usually trained with 32-bit floating-point numbers (**float32**). Here you turn a
# trained network into one that computes with 8-bit integers (**int8**), and you see what that costs and
# what it gains.
#
# **After this lesson you can**
# - turn a trained network into an int8 network;
# - measure what it costs (accuracy) and what it gains (size, speed);
# - say what happens below 8 bits, and why.
#
# **Time:** 5 minutes, and 10 more for the exercises. **You need:** a little Python, nothing about
# quantization. Run the cells from top to bottom (Shift+Enter). Every result is measured by a cell of this
# lesson.

# %% [markdown]
# ## A trained network
#
# ResNet-20 (He et al., 2016) looks at an image of 32x32 pixels and gives a score to each of ten classes.
# The highest score is its answer.

# %%
import torch
from IPython.display import Markdown

import qlab
from qlab.analysis import paired
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson00 import panels, plots
from qlab.course.predict import predict
from qlab.course.quiz import quiz

test = qlab.data.at_hand("test")
network = qlab.models.load("resnet20", data=qlab.data.available().name)
banner(test)

# %% [markdown]
# ## One number
#
# To **quantize** a number is to store it as a whole number, its **code**. To read it again, multiply the
# code by the **scale**, which many numbers share. With 8 bits there are $2^8 = 256$ codes, so the number
# that you read is not exactly the one that you had. The difference is at most half a scale.

# %% tags=["nbval-check-output"]
weight = torch.tensor(0.3)
grid = qlab.choose_qparams(-1.0, 1.0, bits=8, signed=True, symmetric=True)  # for numbers from -1 to 1
code = qlab.quantize(weight, grid)
again = qlab.dequantize(code, grid)
print(f"float32: {weight:.4f}    int8 code: {code}    code x scale = {code} x {grid.scale:.6f} = {again:.4f}")
assert abs(again - weight) <= grid.scale / 2

# %% [markdown]
# ## A whole network
#
# A network is many such numbers: its weights, and the values between its layers (the **activations**). The
# range of the weights is known. To find the range of the activations, the network looks at some training
# images: that is **calibration**. It needs no labels and no training, so all of it is called
# **post-training quantization** (PTQ).

# %%
calibration = qlab.data.at_hand("train").sample(512)
int8 = qlab.ptq(network, calibration.batches(64))

# %% [markdown]
# Is everything int8 now? `int8.report()` lists the layers, with the bits of each, and says why if one stays
# in float.

# %% tags=["nbval-check-output"]
report = int8.report()
print(f"{len(report)} layers; in float: {', '.join(report.in_float) or 'none'}")
assert not report.in_float

# %% [markdown]
# ## The same answers?
#
# Here are ten images from the test set, which neither training nor calibration has seen. Below each one
# stands what the two networks answer, and how sure they are.


# %%
@torch.inference_mode()
def scores(net, images):
    """What a network gives for each image: ten scores, one a class."""
    return torch.cat([net(x) for x, _ in images.batches(64)])


ten = test.sample(10)
plots.answers(ten, scores(network, ten), scores(int8, ten))

# %% [markdown]
# Ten images prove little, so take 1,000. Predict on how many of them the two answers differ. Then look at ten:
# first those on which they differ, then those of which the float network is the least sure.

# %%
exam = test.sample(1000)
float_says, int8_says = (scores(net, exam) for net in (network, int8))
different = float_says.argmax(1) != int8_says.argmax(1)
count = int(different.sum())
sure = float_says.softmax(1).amax(1)  # how sure the float network is
some = exam.subset((different.float() - sure).argsort(descending=True)[:10])
place = sum(count >= least for least in (1, 31, 101))
predict("0a", plots.answers(some, scores(network, some), scores(int8, some)), answer=place, count=count)

# %% [markdown]
# **Explain.** Rounding moves each score a little. Where the float network is sure of its answer, that seldom
# changes it; where two classes have nearly the same score, it may turn the answer, either way.

# %%
print(f"float is {sure[different].mean():.0%} sure where the answers differ, {sure[~different].mean():.0%} where they agree")
assert count == 0 or sure[different].mean() < sure[~different].mean() - 0.2

# %% [markdown]
# ## What it costs, what it gains
#
# The accuracy is that on the 1,000 images. Other 1,000 images would give another number; how much the difference
# would change is the number behind ±, its **standard error** (lesson 3). The time is that of 64 images on one
# processor core; the two networks take turns, and the median counts.

# %% tags=["timing"]
right = [says.argmax(1) == exam.labels for says in (float_says, int8_says)]
top1 = [100 * each.float().mean() for each in right]
cost = paired(*right)
size = [qlab.bench.file_bytes(net) for net in (network, int8)]
x, labels = next(exam.batches(64))
speed = qlab.bench.compare({"float32": network, "int8": int8}, x, threads=1, rounds=7)
ms = [timing.ms for timing in speed.values()]

Markdown(f"""
|  | float32 | int8 | |
|:--|--:|--:|:--|
| right answers | {top1[0]:.1f} % | {top1[1]:.1f} % | {cost.difference:+.1f} ± {cost.error:.1f} points |
| file | {size[0] / 1024:.0f} KiB | {size[1] / 1024:.0f} KiB | {size[0] / size[1]:.1f} times smaller |
| time | {ms[0]:.0f} ms | {ms[1]:.0f} ms | {ms[0] / ms[1]:.1f} times as fast |

{len(exam):,} images of {exam.source}; {qlab.bench.processor()}; engine {int8.engine}
""")

# %% [markdown]
# int8 costs less than one point of accuracy, two standard errors included, and takes about a quarter of the bytes:

# %%
assert cost.difference - 2 * cost.error > -1
assert 0.2 < size[1] / size[0] < 0.3

# %% [markdown]
# The time depends on your processor. Some have instructions made for int8 (VNNI, AMX, the dot products of
# ARM), some have none; on Intel and AMD processors without VNNI, qlab gives weights 7 bits instead of 8.
# Lesson 5 shows why.
#
# ## Fewer bits
#
# Why stop at 8? Your processor has no arithmetic for 5 bits, but it can be simulated: round each weight and
# each activation to its grid, and compute on in float. That is **fake quantization**. The next cell does it
# for 8, 7, ... 2 bits. (The first and the last layer keep 8 bits, and so do sums; that is usual. Calibration takes
# 128 images here, not 512, so with 8 bits a few answers may differ from those of the int8 network above.)


# %%
def quantized(bits):
    """The network with weights and activations rounded to grids of at most 2^bits numbers."""
    prepared = qlab.prepare(network, qlab.QConfig.preset(f"w{bits}a{bits}"))
    return qlab.calibrate(prepared, calibration.subset(slice(128)).batches(64))


networks = {bits: quantized(bits) for bits in range(8, 1, -1)}
answers = {bits: scores(net, exam).argmax(1) for bits, net in networks.items()}

# %% [markdown]
# Each bit less halves the number of codes: 256 with 8 bits, 128 with 7, and only 4 with 2. Predict how many
# bits this network needs. Then **move** the slider to the left, one bit at a time. Which image is lost first?

# %%
loss = {bits: paired(right[0], says == exam.labels) for bits, says in answers.items()}
enough = min(bits for bits in loss if all(loss[more].difference > -2 for more in range(bits, 9)))
beside = {"at": loss[enough], "below": loss[enough - 1], "less": enough - 1}
predict("0b", panels.fewer_bits(exam, answers, right[0]), answer=enough, **beside)

# %% [markdown]
# **Explain.** A code stands for all the numbers that are nearer to it than to any other, so a number can be
# off by half a step. With each bit less there are half as many codes, and the step is about twice as wide. Where a
# network gets a few images more right than the float network, within two standard errors, that may be chance:

# %%
for bits, found in loss.items():
    grid = qlab.choose_qparams(-1.0, 1.0, bits=bits)
    print(f"{bits} bits: {2**bits:3} codes from -1 to 1, off by at most {grid.scale / 2:.4f}; against float {found}")
print(f"With 2 bits, {100 * (answers[2] == exam.labels).float().mean():.1f} % of the answers are right; guessing gives 10 %.")
assert loss[8].difference > -2 and loss[2].difference < -50
assert all(loss[bits].difference < 2 * loss[bits].error + 1 for bits in loss)  # none is clearly better than float

# %% [markdown]
# ## Your turn
#
# Each lesson has exercises that check themselves. Write the body of the function, and run the cell. If you
# are stuck, `hint("0.1")` in a new cell gives a hint, one more each time; `solution("0.1")` shows an answer.
#
# ### Exercise 0.1: how many codes?

# %% tags=["exercise"]
check("0.1", how_many_codes)

# %% [markdown]
# ### Exercise 0.2: how many bytes?
#
# Weights of 4 bits are stored two in a byte, those of 1 bit eight in a byte.

# %% tags=["exercise"]
check("0.2", bytes_needed)

# %% [markdown]
# ### Exercise 0.3: how far off?
#
# Store a number as the nearest code, read it again, and say how far off it is. Python's `round` gives the
# nearest whole number.

# %% tags=["exercise"]
check("0.3", error_after_rounding)

# %% [markdown]
# ## Three questions

# %%
quiz(0)

# %% [markdown]
# ## What to remember
#
# - A quantized number is an integer **code** times a **scale** that many numbers share.
# - **Post-training quantization** takes a trained network and some images without labels
#   (**calibration**).
# - **int8** takes about a quarter of the bytes, and gives nearly the same answers. How fast it is depends
#   on the processor.
# - Each **bit** less about doubles the rounding error. The next lessons show where the error comes from,
#   and how to win back what it costs.
#
# ## For teachers
#
# Good for the first quarter of an hour: everybody drags the slider and says where the network breaks. Common
# misconceptions: that int8 must be faster on every processor, and that the weights are left out or zipped.
# Lessons 5 and 1 come back to these.
#
# ## Papers
#
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): the arithmetic of the int8
#   network above.
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342).
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): start here.
# - A. Gholami et al., *A survey of quantization methods for efficient neural network inference*, 2021,
#   [arXiv:2103.13630](https://arxiv.org/abs/2103.13630).
