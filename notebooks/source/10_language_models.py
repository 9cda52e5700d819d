# %% [markdown]
# # 10. Language models
#
# A chat assistant is a network of the kind that you see here, only a thousand times as large or more. It writes
# one token after the other, and for each of them it reads all of its weights from memory. So its weights are what
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
import copy
import tempfile

import psutil
import torch

import qlab
from qlab import PerChannel, PerGroup, bench, llm
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson10 import by_hand, panels, plots
from qlab.course.predict import predict
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
# To write a token, each weight is used once: read from memory, multiplied, added. A processor multiplies faster than it
# reads. So a token takes *at least* the bytes of all weights, divided by the bytes that memory delivers a second. Here
# is the true configuration of Granite 3.1 with 2 billion parameters, made on torch's **meta device**, where a tensor has
# a shape and takes no memory:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    large = llm.build(llm.config(llm.GRANITE_2B))
count, ours = (sum(p.numel() for p in each.parameters()) for each in (large, model))
print(f"{count:,} weights, {count / ours:,.0f} times as many as ours")
for name, bits in (("float32", 32), ("bfloat16", 16), ("int8", 8), ("int4 in groups of 64", 4.5)):
    gigabytes = count * bits / 8e9
    print(f"{name:21} {gigabytes:5.2f} GB: at 20 GB a second, {20 / gigabytes:4.1f} tokens a second at most")
assert 2.5e9 < count < 2.6e9 and count > 1000 * ours

# %% [markdown]
# When the weights alone are integers and the multiplication is done in float, that is **weight-only**
# quantization. It saves memory and time for reading; it saves no arithmetic. Reading the prompt (**prefill**) is
# another matter: all its tokens go through a layer at once, so each weight is read once and used many times.
#
# Here is one of the 40 layers at its true size, with random weights: what it says is noise, how long it takes is not.
# Numbers between layers are **bfloat16**, the float format that large models are shipped in. First what this processor
# can do, then what it does.

# %% tags=["timing"]
threads = torch.get_num_threads()
here = bench.roof(threads=threads)
print(bench.setting(threads))
print(
    f"it multiplies {here.float_operations / 2e9:.0f} billion floats a second, and copies {here.bandwidth / 4e9:.1f} billion"
    f" ({here.bandwidth / 1e9:.0f} GB)\n"
)
slice_of_it, fetched, decoded, prefilled = llm.config(llm.GRANITE_2B, num_hidden_layers=1, vocab_size=1024), {}, {}, {}
print("       MB a token   decode: tokens/s   GB/s   prefill: tokens/s")
for kind in ("bf16", "int8", "int4", "w8a8"):
    part = llm.random_model(slice_of_it, kind)
    llm.speed(part, torch.arange(32), 4)  # caches are full, kernels prepared
    prefilled[kind], decoded[kind] = llm.speed(part, torch.arange(32), 10)
    fetched[kind] = bench.memory_bytes(part)
    print(
        f"{kind:5} {fetched[kind] / 1e6:9.0f} {decoded[kind]:18.1f} {fetched[kind] * decoded[kind] / 1e9:9.1f}"
        f" {prefilled[kind]:16.1f}"
    )
    del part

# %% [markdown]
# How to read the table: where the GB/s come near to what memory delivers, reading sets the pace, and fewer bytes are less
# time. Where they stay far below, the kernel is busy with something else than reading: it turns codes into
# floats, or rounds the activations.

# %% tags=["timing"]
for kind in ("int8", "int4", "w8a8"):
    fewer, faster = fetched["bf16"] / fetched[kind], decoded[kind] / decoded["bf16"]
    verdict = "reading sets the pace" if faster > 0.75 * fewer else "here the kernel's own work sets the pace"
    print(f"{kind} reads {fewer:.1f} times fewer bytes than bf16 and decodes {faster:.1f} times as fast: {verdict}")
print(f"fastest at a prompt: {max(prefilled, key=prefilled.get)}; at writing: {max(decoded, key=decoded.get)}")

# %% [markdown]
# ## Fewer bits a weight
#
# The model has 1.6 million weights. With few bits each, will it still write something that looks like Python?
# A row of weights has one scale and a symmetric grid; or one scale and a zero point; or a scale and a zero point for
# each group of 64.
#
# **Predict**, then **move** the bits from 8 down to 2. Read what it writes, then the curves.


# %%
def one_grid_a_row(bits):
    """The model, each row of its weights rounded as one group: with a scale and a zero point."""
    changed = copy.deepcopy(model)
    for _name, layer in llm.linears(changed):
        layer.weight.copy_(qlab.dequantize(*llm.quantize_weight(layer.weight, bits, PerGroup(layer.in_features))))
    return changed


found, texts, float_model = {}, {}, llm.perplexity(model, test[:8])
for bits in range(2, 9):
    groups = llm.rounded(model, bits, PerGroup(64))
    found["a scale a row", bits] = llm.perplexity(llm.rounded(model, bits, PerChannel(0)), test[:8])
    found["a scale and a zero point a row", bits] = llm.perplexity(one_grid_a_row(bits), test[:8])
    found["groups of 64", bits] = llm.perplexity(groups, test[:8])
    texts[bits] = bytes(llm.generate(groups, prompt, 60).tolist()).decode("latin1")
above = {key: 100 * (value / float_model - 1) for key, value in found.items()}
fewest = min(bits for bits in range(3, 9) if above["groups of 64", bits] < 5)
shown = panels.bits_of_weights(found, float_model, texts, "groups of 64")
predict("10a", shown, answer=fewest, enough=above["groups of 64", fewest], fewer=above["groups of 64", fewest - 1])

# %% [markdown]
# **Explain.** Eight bits cost next to nothing, in any way. With 2 bits, a symmetric grid uses
# three of its four codes: -1, 0 and 1. A zero point gives the fourth back. And the largest weight of a row makes the steps
# wide for all others in it: in a group of 64 fewer weights suffer.

# %%
kinds = list(dict.fromkeys(kind for kind, _bits in found))
for bits in (8, 4, 2):
    print(f"{bits} bits:", ", ".join(f"{above[kind, bits]:+.2f} % with {kind}" for kind in kinds))
few = {kind: above[kind, 2] for kind in kinds}
assert all(abs(above[kind, 8]) < 0.5 for kind in kinds)
assert few["groups of 64"] < few["a scale and a zero point a row"] < few["a scale a row"]
w = model.model.layers[0].mlp.up_proj.weight
assert len(qlab.dequantize(*llm.quantize_weight(w, 2))[0].unique()) == 3
assert len(qlab.dequantize(*llm.quantize_weight(w, 2, PerGroup(192)))[0].unique()) == 4

# %% [markdown]
# ### What a group costs
#
# Each group has to store its scale and its zero point. (Int4 in groups of 64 counted as 4.5 bits above.) **Predict**,
# then **move** the size of the group from 512 down to 16, and do the same with 3 bits. Look for a point with 3 bits
# that is as far right as one with 4 bits, and compare their errors.

# %%
weight = model.model.layers[1].mlp.down_proj.weight.detach()
stored = plots.stored_bits(4, 16)
nearest_choice = min(range(3), key=lambda number: abs((4.1, 4.5, 6)[number] - stored))
shown = panels.weight_groups(weight, (16, 32, 64, 128, 256, 512))
predict("10b", shown, answer=nearest_choice, stored=stored, grid=plots.GRID_BITS)

# %% [markdown]
# **Explain.** A grid takes 32 bits here: 16 for the scale and 16 for the zero point, as torch's 4-bit kernel wants them.
# Bits are better spent on the weights themselves than on ever smaller groups:


# %%
def error(bits, size):
    """The weights' relative error in percent."""
    off = qlab.dequantize(*llm.quantize_weight(weight, bits, PerGroup(size))) - weight
    return 100 * float(off.norm() / weight.norm())


print(f"4 bits in groups of 512: {error(4, 512):.1f} %, of 64: {error(4, 64):.1f} %, of 16 (6 bits in all): {error(4, 16):.1f} %")
print(f"3 bits in groups of 16 (5 bits in all): {error(3, 16):.1f} %; 5 bits in groups of 512: {error(5, 512):.1f} %")
assert error(5, 512) < error(4, 16) and error(4, 64) < error(3, 16)
layer = llm.WeightOnlyLinear.from_weight(weight, 4, PerGroup(64)).use_kernel()
assert not layer.on_kernel or 8 * bench.memory_bytes(layer) / weight.numel() == plots.stored_bits(4, 64)

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
# How much each can take over stands in the **Hessian** $H = X^T X$, made of the inputs $X$ of some calibration text. Only
# the columns $F$ that are not rounded yet can still move, so only their part $H_F$ of it counts. When column $c$, the first
# of $F$, of a row $w$ becomes the value $v$, every later column $j$ changes by
#
# $$w_j \leftarrow w_j - \frac{w_c - v}{(H_F^{-1})_{cc}}\,(H_F^{-1})_{cj}$$
#
# ### Exercise 10.3: the columns behind make up for it

# %% tags=["exercise"]
check("10.3", push_error)

# %% [markdown]
# ### GPTQ with your function
#
# When column $c$ is done it leaves $F$, and the inverse over the columns left is another one:
#
# $$(H_F^{-1})_{ij} \leftarrow (H_F^{-1})_{ij} - \frac{(H_F^{-1})_{ic}\,(H_F^{-1})_{cj}}{(H_F^{-1})_{cc}}$$
#
# (GPTQ gets all of these from one Cholesky factor, which is faster and gathers less error of float arithmetic.) Below,
# your function rounds every fourth row of a layer to 3 bits: once with this update, and once with the same inverse
# over *all* columns from first to last. **Predict**: which comes nearer to the float layer, GPTQ or plain rounding?

# %%
push = by_hand.yours("10.3", push_error)

# %%
LAYER = "model.layers.1.mlp.gate_proj"
x, w = llm.layer_inputs(model, LAYER, calibration[:2]), model.get_submodule(LAYER).weight.detach()
some, inverse = w[::4], by_hand.inverse_hessian(x)
ways = {
    "rounded to nearest": qlab.dequantize(*llm.quantize_weight(some, 3, PerGroup(64))),
    "the inverse over all columns": by_hand.gptq(some, inverse, push, bits=3, size=64, updated=False),
    "the inverse over those left": by_hand.gptq(some, inverse, push, bits=3, size=64),
}
outputs = {name: 100 * float((x @ (each - some).T).norm() / (x @ some.T).norm()) for name, each in ways.items()}
weights = {name: 100 * float((each - some).norm() / some.norm()) for name, each in ways.items()}
table = "\n".join(f"{name:29} outputs {outputs[name]:4.1f} % off, weights {weights[name]:4.1f} %" for name in ways)
rounding, fixed, solved = ways
closer = outputs[solved] < outputs[rounding], weights[solved] < weights[rounding]
numbers = {"outputs": outputs[solved], "weights": weights[solved]}
numbers |= {"rounded_outputs": outputs[rounding], "rounded_weights": weights[rounding]}
predict("10c", table, answer={(True, True): 0, (True, False): 1, (False, True): 2}[closer], **numbers)

# %% [markdown]
# **Explain.** GPTQ does not make the *weights* more exact, but the *outputs*. And the inverse has to be the one over the
# columns left: with one inverse for all columns, part of each error is handed to columns that are rounded already and
# cannot take it.

# %%
print(table)
package = qlab.dequantize(*llm.gptq_quantize(some, x.T @ x, 3, PerGroup(64)))
print(f"llm.gptq_quantize, by its Cholesky factor: outputs {100 * (x @ (package - some).T).norm() / (x @ some.T).norm():.1f} %")
assert outputs[solved] < 0.8 * outputs[fixed] < 0.8 * outputs[rounding]
assert weights[solved] > weights[rounding]

# %% [markdown]
# ### On the whole model
#
# 4 bits in groups of 64. The calibration text is a part of the training text; the perplexity is that of the test text.
# Memory is that of all weights, scales and zero points.

# %%
eight, nearest = llm.weight_only(model), llm.weight_only(model, bits=4)
better = llm.weight_only(model, bits=4, windows=calibration)
lost = {}
for name, each in (("8 bits", eight), ("4 bits, rounded", nearest), ("4 bits, GPTQ", better)):
    lost[name] = 100 * (llm.perplexity(each, test) / whole - 1)
    share = 100 * bench.memory_bytes(each) / bench.memory_bytes(model)
    print(f"{name:16} perplexity {lost[name]:+.2f} %, memory {share:.1f} % of float32")
assert abs(lost["8 bits"]) < 0.5 and lost["4 bits, GPTQ"] < 3
assert bench.memory_bytes(eight) < 0.27 * bench.memory_bytes(model) and bench.memory_bytes(better) < 0.16 * bench.memory_bytes(model)

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
# tiny model have any? For each kind of layer, the most of all four blocks:

# %%
inputs, kinds = llm.largest_inputs(model, test), {"q_proj": "attention", "gate_proj": "MLP", "down_proj": "MLP, inside"}
for kind, name in kinds.items():
    tops = [inputs[layer] for path, layer in llm.linears(model) if path.endswith(kind)]
    most = max(float(top.max() / top.median()) for top in tops)
    print(f"input of {name:12} the largest channel is {most:.1f} times the median one, at most")
    assert most < 20

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
# Each token's scale now reaches up to its outliers. What is left for all other channels are a few codes around 0:

# %%
largest, codes = float(llm.layer_inputs(model, LAYER, test[:4]).abs().amax()), {}
for name, each in (("before", model), ("with outliers", outliers)):
    inside = llm.layer_inputs(each, LAYER, test[:4])
    ordinary = inside.abs().amax(0) <= largest
    codes[name] = (127 * inside / inside.abs().amax(1, keepdim=True)).round()[:, ordinary]
    zeros = float((codes[name] == 0).float().mean())
    print(f"{name:13} {int(ordinary.sum())} ordinary channels use {len(codes[name].unique())} codes, {zeros:.0%} of theirs are 0")
assert len(codes["with outliers"].unique()) < 0.1 * len(codes["before"].unique())

# %% [markdown]
# ## Two ways out
#
# **LLM.int8()** (Dettmers et al., 2022) splits the sum. Channels in which any activation is beyond a threshold are
# multiplied in float, by float weights; all others in int8. When they are few, that costs little arithmetic.
#
# **SmoothQuant** (Xiao et al., 2023) moves the difficulty. Divide channel $j$ of the activations by $s_j$ and multiply
# the weights that read it by $s_j$: the output stays. The division is free, as the norm before has a weight for each
# channel anyway. With a share $\alpha$ from 0 to 1,
#
# $$s_j = \frac{\max|X_j|^{\alpha}}{\max|W_j|^{1-\alpha}}$$
#
# ### Exercise 10.4: smoothing

# %% tags=["exercise"]
check("10.4", smooth)

# %% [markdown]
# ### How much to move
#
# Below is one of the model's layers. Four channels of its activations are made larger, its weights stay as they are,
# as in a large model. Then these four make up nearly all of the output, and they are rounded well. So look at the part
# of the output that comes from the *ordinary* channels: how much of that is wrong?
#
# **Predict**, then **move** alpha from 0 to 1 and watch both clouds. Then, at the best alpha, make the outliers larger.

# %%
OUTLIERS = (20, 77, 130, 171)
large, ordinary, errors = x[:256].clone(), plots.others(x.shape[1], OUTLIERS), {}
large[:, OUTLIERS] *= 64
for alpha in [step / 20 for step in range(21)]:
    s = llm.smoothing_scale(large.abs().amax(0), w.abs().amax(0), alpha)
    errors[alpha] = plots.w8a8_error(large / s, w * s, ordinary)
best = min(errors, key=errors.get)
answer = 0 if best > 0.9 else 2 if best < 0.1 else 1
numbers = {"best": best, "least": errors[best], "one": errors[1.0], "zero": errors[0.0]}
predict("10d", panels.smoothing(x[:256], w, OUTLIERS), answer=answer, **numbers)

# %% [markdown]
# **Explain.** With $\alpha = 0$ the weights are all alike, and the activations keep the outliers. With $\alpha = 1$ it is
# the other way round: now the outliers are in the weights, where a whole row shares one scale. Half and half is best
# here. In the error of the *whole* output the ordinary channels hardly show:

# %%
for alpha in (0.0, best, 1.0):
    s = llm.smoothing_scale(large.abs().amax(0), w.abs().amax(0), alpha)
    every = plots.w8a8_error(large / s, w * s)
    print(f"alpha {alpha:.2f}: {errors[alpha]:4.1f} % of what ordinary channels give is wrong, {every:.2f} % of the whole output")
untouched = plots.w8a8_error(large, w, ordinary)
part = float((large[:, OUTLIERS] @ w[:, OUTLIERS].T).square().sum() / (large @ w.T).square().sum())
print(f"the four channels give {part:.0%} of the output's squares")
print(f"without smoothing {untouched:.1f} %, and {plots.w8a8_error(large, w):.2f} % of the whole output")
assert part > 0.9 and 0.3 < best < 0.7 and errors[best] < 0.3 * min(untouched, errors[0.0], errors[1.0])

# %% [markdown]
# ### Both on the whole model
#
# In the paper the threshold is 6. The inputs of our MLPs are larger than that without any outlier, so here it lies
# between the largest ordinary activation and the outliers that we made.
#
# What is in those channels, by the way? **Predict** what happens if LLM.int8() multiplies them by nothing at all.


# %%
def split_by(weight_of):
    """LLM.int8() on the model with outliers; their channels are multiplied by weight_of(layer)."""
    changed = llm.dynamic(outliers, threshold=200.0)
    for layer in changed.modules():
        if isinstance(layer, llm.DynamicLinear):
            layer.weight = weight_of(layer)
    return changed


ways = {
    "LLM.int8(): float weights": lambda layer: layer.weight,
    "int8 weights, dequantized": lambda layer: layer.codes * layer.scale[:, None],
    "left out": lambda layer: 0 * layer.weight,
}
rescued = {"W8A8 alone": change}
for name, weight_of in ways.items():
    rescued[name] = 100 * (llm.perplexity(split_by(weight_of), test) / whole - 1)
smoothed_model = llm.dynamic(llm.smooth(outliers, calibration, alpha=0.5))
rescued["SmoothQuant"] = 100 * (llm.perplexity(smoothed_model, test) / whole - 1)
_alone, floats, by_codes, gone, smoothed = rescued
table = "\n".join(f"with outliers, {name:26} perplexity {value:+8.2f} %" for name, value in rescued.items())
answer = 0 if rescued[gone] > change / 2 else 1 if rescued[gone] > 0.5 else 2
numbers = {"gone": rescued[gone], "codes": rescued[by_codes], "floats": rescued[floats], "ruined": change}
predict("10e", table, answer=answer, **numbers)

# %% [markdown]
# **Explain.** The outliers ruin the model by what their *size* does to the others, not by what they say. They say
# something too: it is lost where their weights are taken from int8 codes, since we divided these weights by 256, and next
# to the others of their rows they round to 0. LLM.int8() keeps float weights for such channels.

# %%
print(table)
split = llm.dynamic(outliers, threshold=200.0)
llm.perplexity(split, test[:4])
layers = [layer for layer in split.modules() if isinstance(layer, llm.DynamicLinear)]
share = sum(layer.in_float for layer in layers) / sum(layer.in_features for layer in layers)
made, dead, all_codes = llm.largest_inputs(outliers, test), 0, 0
tops = torch.cat([made[layer] for _name, layer in llm.linears(outliers)])
print(f"largest inputs: {tops[tops <= 200].max():.0f} of an ordinary channel; of an outlier {tops[tops > 200].min():.0f} or more")
for (_name, layer), quantized in zip(llm.linears(outliers), layers):
    columns = quantized.codes[:, made[layer] > 200]
    dead, all_codes = dead + int((columns == 0).sum()), all_codes + columns.numel()
print(f"multiplied in float: {share:.1%} of the channels; of their {all_codes:,} int8 codes {dead:,} are 0")
assert max(rescued[floats], rescued[smoothed]) < 0.5 < min(rescued[by_codes], rescued[gone])
assert max(rescued[by_codes], rescued[gone]) < change / 4
assert share < 0.02 and dead > 0.9 * all_codes and float(inputs[model.model.layers[0].mlp.down_proj].max()) > 6

# %% [markdown]
# These outliers are easier for SmoothQuant than those of a large model: it recovers the factor by which we divided the
# weights.

# %%
before, after = (each.model.layers[0].input_layernorm.weight / llm.smooth(each, calibration).model.layers[0].input_layernorm.weight
                 for each in (model, outliers))  # fmt: skip
print("its scales with outliers are those without, times", sorted({round(float(ratio)) for ratio in after / before}))
assert float((after / before).max()) == 256

# %% [markdown]
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
# - Writing a token reads every weight once, so bytes set a limit; the kernel decides how near one comes to it.
#   **Weight-only** int8 halves the bytes of bfloat16, int4 nearly halves them again.
# - Count the grids: 4 bits in groups of 64 are 4.5 bits.
# - **GPTQ** keeps a layer's outputs, not its weights, with some text to calibrate on. Its inverse is the one over the
#   columns that are not rounded yet.
# - **Outliers** in a few channels spoil the one scale that a token has. **LLM.int8()** multiplies these channels by float
#   weights, **SmoothQuant** moves half of them into the weights.
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
