# %% [markdown]
# # 10. Language models
#
# A chat assistant is a network of the kind that you see here, only a thousand times as large. It writes one
# token after the other, and for each of them it reads all of its weights from memory. So its weights are what
# one quantizes first. Here you do that with **Granite**, IBM's family of language models, in 8 and 4 bits. Then
# you round the activations too, meet the **outliers** that make it hard, and handle them in two ways.
#
# **After this lesson you can**
# - measure how good a language model is, and how many bits its weights really take;
# - quantize weights in groups, and say what GPTQ does better than rounding;
# - say why outliers ruin 8-bit activations, and what LLM.int8() and SmoothQuant do about them.
#
# **Time:** 50 minutes. **You need:** lessons 1 and 4 (scale, zero point, granularity).

# %%
import tempfile

import psutil
import torch

import qlab
from qlab import PerChannel, PerGroup, bench, llm
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson10 import panels, plots
from qlab.course.quiz import quiz

model = llm.tiny()
test, calibration = llm.windows("test", 16), llm.windows("train", 16)[:, :-1]
print(f"{sum(p.numel() for p in model.parameters()):,} weights; text: {llm.source()}")

# %% [markdown]
# ## A model that goes on writing
#
# A **token** is a piece of text. Large models have tens of thousands of them; ours has 256, the values of a byte.
# A **language model** gives each token the probability that it comes next. This one is a real Granite, the
# architecture of `transformers`, but tiny: we trained it on the source code that comes with Python. It never saw
# the files of the test split.

# %%
prompt = torch.tensor(list(b"class Server:\n    def __init__(self, "))
written = llm.generate(model, prompt, 60)
print((bytes(prompt.tolist()) + bytes(written.tolist())).decode("latin1"))

# %% [markdown]
# How good is it? Let it read text that it does not know, and look at the probability $p$ that it gave to each byte
# that really came next. The **perplexity** is $e$ to the power of the mean of $-\log p$. A model with a
# perplexity of 4 is as unsure as if it had to choose among 4 equally likely tokens each time. Lower is better.
#
# ### Exercise 10.1: perplexity

# %% tags=["exercise"]
check("10.1", perplexity)

# %%
whole = llm.perplexity(model, test)
print(f"perplexity {whole:.3f} over {test[:, 1:].numel():,} bytes of test text; without any knowledge it would be 256")
assert 1 < whole < 8

# %% [markdown]
# ## What takes the time
#
# To write a token, each weight is used once: read from memory, multiplied, added. A processor multiplies much
# faster than it reads. So the time for a token is about the bytes of all weights, divided by the bytes that memory
# delivers a second. Here is the true configuration of Granite 3.1 with 2 billion parameters, made on torch's
# **meta device**, where a tensor has a shape and takes no memory:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    large = llm.build(llm.config(llm.GRANITE_2B))
count = sum(p.numel() for p in large.parameters())
print(f"{count:,} weights")
for name, bits in (("float32", 32), ("bfloat16", 16), ("int8", 8), ("int4 in groups of 64", 4.5)):
    gigabytes = count * bits / 8e9
    print(f"{name:21} {gigabytes:5.2f} GB: at 20 GB a second, {20 / gigabytes:4.1f} tokens a second at most")
assert 2.5e9 < count < 2.6e9

# %% [markdown]
# When the weights alone are integers and the multiplication is done in float, that is **weight-only**
# quantization. It saves memory and time for reading; it saves no arithmetic. Reading the prompt (**prefill**) is
# another matter: all its tokens go through a layer at once, so each weight is read once and used many times.
#
# Here is one of the 40 layers at its true size, with random weights: what it says is noise, how long it takes is not.
# Numbers between layers are **bfloat16**, the float format that large models are shipped in.

# %% tags=["timing"]
print(bench.setting(torch.get_num_threads()))
slice_of_it = llm.config(llm.GRANITE_2B, num_hidden_layers=1, vocab_size=1024)
for kind in ("bf16", "int8", "int4", "w8a8"):
    part = llm.random_model(slice_of_it, kind)
    llm.speed(part, torch.arange(32), 4)  # caches are full, kernels prepared
    prefill, decode = llm.speed(part, torch.arange(32), 10)
    print(f"{kind:5} prefill {prefill:7.1f} tokens a second, decode {decode:6.1f}")
    del part

# %% [markdown]
# ## Fewer bits a weight
#
# **Predict.** The model has a million and a half weights. With how few bits each will it still write something that
# looks like Python: 8, 4, 3 or 2?
#
# **Move** the bits from 8 down to 2. Read what it writes, then the curve: who has the smaller perplexity with 2
# bits, one scale a row, or one scale for each group of 64 weights?

# %%
found, texts = {}, {}
for bits in range(2, 9):
    for kind, granularity in (("one scale a row", PerChannel(0)), ("groups of 64", PerGroup(64))):
        rounded = llm.rounded(model, bits, granularity)
        found[kind, bits] = llm.perplexity(rounded, test[:8])
    texts[bits] = bytes(llm.generate(rounded, prompt, 60).tolist()).decode("latin1")
panels.bits_of_weights(found, llm.perplexity(model, test[:8]), texts, "groups of 64")

# %% [markdown]
# **Explain.** Eight bits cost next to nothing, in either way. With few bits, the largest weight of a row makes the
# steps too wide for all others in it. In a group of 64 fewer weights suffer from it:

# %%
for bits in (8, 4, 2):
    row, group = (100 * (found[kind, bits] / found["groups of 64", 8] - 1) for kind in ("one scale a row", "groups of 64"))
    print(f"{bits} bits: perplexity {row:+7.2f} % with one scale a row, {group:+6.2f} % in groups, against 8 bits")
assert found["groups of 64", 2] < found["one scale a row", 2]

# %% [markdown]
# But each group has to store its scale and its zero point.
#
# **Predict.** With 4 bits in groups of 16, how many bits does a weight take in all: 4.1, 4.5 or 6?
#
# **Move** the size of the group from 512 down to 16, then do the same with 3 bits. Look for a point with 3 bits that
# is as far right as one with 4 bits, and compare their errors.

# %%
weight = model.model.layers[1].mlp.down_proj.weight.detach()
panels.weight_groups(weight, (16, 32, 64, 128, 256, 512))

# %% [markdown]
# **Explain.** A grid takes 32 bits here: 16 for the scale and 16 for the zero point, as torch's kernel wants them. In
# groups of 16 that is 2 bits for each weight. Small groups lower the error a little, one bit more halves it:

# %%
def error(bits, size):
    """The weights' relative error in percent."""
    off = qlab.dequantize(*llm.quantize_weight(weight, bits, PerGroup(size))) - weight
    return 100 * float(off.norm() / weight.norm())


print(f"4 bits in groups of 512: {error(4, 512):.1f} %, of 64: {error(4, 64):.1f} %, of 16: {error(4, 16):.1f} %")
print(f"3 bits in groups of 16, 5 bits in all: {error(3, 16):.1f} %")
assert error(5, 512) < 0.6 * error(4, 512) and error(4, 64) < error(3, 16)

# %% [markdown]
# ### Exercise 10.2: bits a weight

# %% tags=["exercise"]
check("10.2", bits_per_weight)

# %% [markdown]
# ## Rounding that looks at the inputs
#
# A weight matters by what it does to the layer's output. Inputs of a layer are **correlated**: when one is large,
# some others are too. So when one weight is rounded up, others can be moved down a little, and the output stays
# nearly what it was. **GPTQ** (Frantar et al., 2023) does that one column after the other. It rounds a column, and
# the columns that are not rounded yet make up for the error.
#
# How much each can take over stands in the **Hessian** $H = X^T X$, made of the inputs $X$ of some calibration text.
# When column $c$ of a row $w$ becomes the value $v$, every later column $j$ changes by
#
# $$w_j \leftarrow w_j - \frac{w_c - v}{(H^{-1})_{cc}}\,(H^{-1})_{cj}$$
#
# ### Exercise 10.3: the columns behind make up for it

# %% tags=["exercise"]
check("10.3", push_error)

# %% [markdown]
# On the whole model, with 4 bits in groups of 64. The calibration text is a part of the training text; the
# perplexity is that of the test text. Memory is that of all weights, scales and zero points.

# %%
eight, nearest = llm.weight_only(model), llm.weight_only(model, bits=4)
solved = llm.weight_only(model, bits=4, windows=calibration)
lost = {}
for name, each in (("8 bits", eight), ("4 bits, rounded", nearest), ("4 bits, GPTQ", solved)):
    lost[name] = 100 * (llm.perplexity(each, test) / whole - 1)
    share = 100 * bench.memory_bytes(each) / bench.memory_bytes(model)
    print(f"{name:16} perplexity {lost[name]:+.2f} %, memory {share:.1f} % of float32")
assert abs(lost["8 bits"]) < 0.5 and lost["4 bits, GPTQ"] < 3
assert bench.memory_bytes(eight) < 0.27 * bench.memory_bytes(model) and bench.memory_bytes(solved) < 0.16 * bench.memory_bytes(model)

# %% [markdown]
# GPTQ does not make the *weights* more exact, but the *outputs*. Here is one layer with few bits, where the
# difference is easy to see:

# %%
seen = []
hook = model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
with torch.inference_mode():
    model(input_ids=calibration[:2])
hook.remove()
x, w = seen[0].flatten(0, 1).clone(), model.model.layers[1].mlp.gate_proj.weight.detach()

rounded = qlab.dequantize(*llm.quantize_weight(w, 3, PerGroup(64)))
better = qlab.dequantize(*llm.gptq_quantize(w, x.T @ x, 3, PerGroup(64)))
for name, each in (("rounded", rounded), ("GPTQ", better)):
    weights, outputs = (each - w).norm() / w.norm(), (x @ (each - w).T).norm() / (x @ w.T).norm()
    print(f"{name:8} error of the weights {weights:.1%}, of the outputs {outputs:.1%}")
assert (x @ (better - w).T).norm() < (x @ (rounded - w).T).norm() and (better - w).norm() > (rounded - w).norm()

# %% [markdown]
# ## Activations, token by token
#
# A prompt of a thousand tokens is limited by arithmetic, so there it pays to multiply integers: **W8A8**. The
# range of a token's activations is found when it arrives, which is called **dynamic** quantization: the largest
# magnitude in each token's row gets the code 127. A row of weights has a scale of its own as before:

# %%
w8a8 = llm.dynamic(model)
change = 100 * (llm.perplexity(w8a8, test) / whole - 1)
print(f"W8A8: perplexity {change:+.2f} %")
assert abs(change) < 1

# %% [markdown]
# That was easy. With models beyond about 6 billion parameters it is not (Dettmers et al., 2022): a few **channels**,
# always the same ones, have activations far larger than all others, about a hundred times (Xiao et al., 2023). Does our
# tiny model have any?

# %%
inputs = llm.largest_inputs(model, test)
ratios = {name.removeprefix("model.layers."): float(inputs[layer].max() / inputs[layer].median())
          for name, layer in llm.linears(model)}
for name in ("0.self_attn.q_proj", "1.mlp.gate_proj", "1.mlp.down_proj"):
    print(f"{name:20} the largest channel is {ratios[name]:.1f} times the median one")

# %% [markdown]
# No: it is too small. So we make some. Multiply four channels of each norm's output by 256, and divide the weights
# that read these channels by 256. In float that is *the same function*. The outliers below are **made by us**, so that
# you can watch what those of a large model do.

# %%
outliers = llm.inject(model, channels=4, factor=256.0)
for name, each in (("float", outliers), ("W8A8", llm.dynamic(outliers))):
    change = 100 * (llm.perplexity(each, test) / whole - 1)
    print(f"with outliers, {name:5}: perplexity {change:+.2f} %")
assert change > 5

# %% [markdown]
# Each token's scale now reaches up to its outliers. What is left for all other channels are a few codes around 0.
#
# ## Two ways out
#
# **LLM.int8()** (Dettmers et al., 2022) splits the sum. Channels in which any activation is beyond a threshold are
# multiplied in float; all others in int8. When they are few, that costs little arithmetic.
#
# **SmoothQuant** (Xiao et al., 2023) moves the difficulty. Divide channel $j$ of the activations by $s_j$ and multiply
# the weights that read it by $s_j$: the output stays. The division is free, as the norm before has a weight for each
# channel anyway. With a share $\alpha$ from 0 to 1,
#
# $$s_j = \frac{\max|X_j|^{\alpha}}{\max|W_j|^{1-\alpha}}$$
#
# Below is one of the model's layers. Four channels of its activations are made larger, its weights stay as they are,
# as in a large model.
#
# **Predict.** With $\alpha = 1$ all channels of the activations are equally large. Is that the best $\alpha$?
#
# **Move** alpha from 0 to 1 and watch both clouds. Then, at the best alpha, make the outliers larger.

# %%
panels.smoothing(x[:256], w, (20, 77, 130, 171))

# %% [markdown]
# **Explain.** With $\alpha = 0$ the weights are all alike, and the activations keep the outliers. With $\alpha = 1$ it is
# the other way round, and now the outliers are in the weights. Half and half is best here:

# %%
large = x[:256].clone()
large[:, [20, 77, 130, 171]] *= 64
errors = {}
for alpha in (0.0, 0.5, 1.0):
    s = large.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    errors[alpha] = plots.w8a8_error(large / s, w * s)
    print(f"alpha {alpha}: error {errors[alpha]:.2f} % of the output")
assert errors[0.5] < 0.7 * min(errors[0.0], errors[1.0])

# %% [markdown]
# ### Exercise 10.4: smoothing

# %% tags=["exercise"]
check("10.4", smooth)

# %% [markdown]
# Both ways on the whole model with its outliers. The threshold is 60; in the paper it is 6, but the usual activations of
# this model are larger than those of the paper's.

# %%
rescued = {}
for name, each in (
    ("LLM.int8()", split := llm.dynamic(outliers, threshold=60.0)),
    ("SmoothQuant", llm.dynamic(llm.smooth(outliers, calibration, alpha=0.5))),
):
    rescued[name] = 100 * (llm.perplexity(each, test) / whole - 1)
    print(f"with outliers, {name:11} perplexity {rescued[name]:+.2f} % against the float model")
layers = [layer for layer in split.modules() if isinstance(layer, llm.DynamicLinear)]
share = sum(layer.in_float for layer in layers) / sum(layer.in_features for layer in layers)
print(f"LLM.int8() multiplied {share:.1%} of the channels in float")
assert max(rescued.values()) < change / 4 and share < 0.1

# %% [markdown]
# These outliers are easier for SmoothQuant than those of a large model: it finds back the factor by which we divided the
# weights. For LLM.int8() they are harder. The weights of these channels became so small that their int8 codes are 0.
#
# ## The real ones
#
# `llm.load` takes a name on the Hugging Face Hub or a folder in the Hub's layout. All of this lesson works with what
# it gives. Here is the folder, written from our own model:

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = llm.load(folder)
assert llm.perplexity(loaded, test[:1]) == llm.perplexity(model, test[:1])

# %% [markdown]
# With a network, 5 GB of disk and 14 GB of free memory, change `False` below to `True`. It fetches IBM's own 2
# billion weights, rounds them to 8 bits, and lets them answer.

# %%
FETCH = False
NAME, NEEDED = "ibm-granite/granite-3.1-2b-instruct", 14e9
if FETCH and psutil.virtual_memory().available > NEEDED:
    tokens = llm.tokenizer(NAME)
    granite = llm.as_bfloat16(llm.weight_only(llm.load(NAME)))
    question = torch.tensor(tokens("Quantization of a neural network means")["input_ids"])
    print(tokens.decode(llm.generate(granite, question, 40)))
else:
    print(f"{NAME} is left out: set FETCH = True, and have {NEEDED / 1e9:.0f} GB of memory free")

# %% [markdown]
# ## Three questions

# %%
quiz(10)

# %% [markdown]
# ## What to remember
#
# - Writing a token reads every weight once: bytes are time. **Weight-only** int8 halves bfloat16, int4 halves it again.
# - Count the grids: 4 bits in groups of 64 are 4.5 bits.
# - **GPTQ** keeps a layer's outputs, not its weights, with some text to calibrate on.
# - **Outliers** in a few channels spoil the one scale that a token has. **LLM.int8()** leaves these channels in float,
#   **SmoothQuant** moves them into the weights.
#
# ## For teachers
#
# Many think that int8 weights save multiplications; ask how often a weight is read and how often it is used, in prefill
# and in decode. In exercise 10.3 the sign is what goes wrong. Numbers of a tiny model do not carry over to a large one,
# and it has no outliers of its own: say so, and let students look at the figure of emergent outliers in the LLM.int8() paper.
#
# ## Papers
#
# - Granite Team, IBM, *Granite 3.0 Language Models*, 2024.
# - T. Dettmers, M. Lewis, Y. Belkada, L. Zettlemoyer, *LLM.int8(): 8-bit matrix multiplication for transformers at
#   scale*, NeurIPS 2022, [arXiv:2208.07339](https://arxiv.org/abs/2208.07339).
# - G. Xiao et al., *SmoothQuant: accurate and efficient post-training quantization for large language models*, ICML
#   2023, [arXiv:2211.10438](https://arxiv.org/abs/2211.10438).
# - E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, *GPTQ: accurate post-training quantization for generative
#   pre-trained transformers*, ICLR 2023, [arXiv:2210.17323](https://arxiv.org/abs/2210.17323).
# - Z. Yao et al., *ZeroQuant: efficient and affordable post-training quantization for large-scale transformers*,
#   NeurIPS 2022, [arXiv:2206.01861](https://arxiv.org/abs/2206.01861): a scale for each token.
