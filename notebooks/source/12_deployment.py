# %% [markdown]
# # 12. Deployment
#
# A quantized network is of use when it runs where it is needed: on a server, in a phone, in a machine with a
# few kilobytes. **Deployment** is the way there. Here you write the network to files that other programs read,
# you measure what a quarter of the bytes is worth, and you choose an engine by the hardware. At the end there
# are **mystery networks**: apps in which something went wrong, and you find out what.
#
# **After this lesson you can**
# - write an int8 network as an ONNX graph, and read such a graph node by node;
# - estimate what quantization saves in time, energy and money on a machine that you name;
# - find out from a few numbers at which stage a deployed network went wrong.
#
# **Time:** 60 minutes. **You need:** lessons 0 and 5; lesson 4 helps.

# %%
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerTensor, QConfig, bench
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson12 import panels
from qlab.course.lesson12.exercises import diagnose as by_the_table
from qlab.course.lesson12.failures import OwnNorm, shares_in_8_bits, steps_of, with_own_norms, wrong_sums
from qlab.course.lesson12.large_layer import LargeLayer, usable
from qlab.course.lesson12.mystery import MISTAKES, NONE, deploy, mystery, right
from qlab.course.lesson12.plots import nodes as qdq_nodes
from qlab.course.lesson12.runtimes import agreement, in_onnxruntime
from qlab.course.lesson12.savings import DRAM_JOULES, MAC_JOULES, Machine, Workload, estimate, workload
from qlab.course.mystery import Box
from qlab.course.predict import predict
from qlab.course.quiz import quiz
from qlab.extras import remedy
from qlab.int8 import engines

data = qlab.data.available().name
network = qlab.models.load("resnet20", data=data)
calibration = qlab.data.at_hand("train").sample(128)
test = qlab.data.at_hand("test").sample(300)
x, labels = next(test.batches(100))
scratch = tempfile.TemporaryDirectory()  # it goes when the kernel goes
folder = Path(scratch.name)
banner(test)

# %% [markdown]
# ## A quarter of the bytes
#
# VGG-16 has 138 million weights, and 103 million of them are in one linear layer: 25,088 inputs, 4,096
# outputs. For one image each weight is read from memory, used once, and never seen again. Such a layer is
# **memory-bound**: the processor waits for bytes.
#
# **Predict** what int8 is worth here. Half of the layer is enough to see it, and takes half of the memory. All of
# VGG-16 is measured by `tools/bench_deploy.py`.

# %% tags=["timing"]
layer = LargeLayer(25_088, 2_048)
compared = {name: layer.compare(name) for name in usable()}
times = {name: each["float32"].ms / each[f"int8 {name}"].ms for name, each in compared.items()}
fastest = max(times, key=times.get)
predict(
    "12a",
    "\n\n".join(str(each) for each in compared.values()),
    answer=0 if times[fastest] < 1.5 else 1 if times[fastest] < 3 else 2,
    times=times[fastest],
    engine=fastest,
)

# %% [markdown]
# **Explain.** A quarter of the bytes allows four times the speed, when bytes are what the processor waits for. How much
# of it an engine gets depends on how fast it reads:

# %% tags=["timing"]
for name, each in compared.items():
    float32, int8 = layer.gigabytes_per_second(each)
    print(f"weights from memory: float32 {float32:.1f} GB/s, int8 on {name} {int8:.1f} GB/s: {times[name]:.1f} times as fast")
    assert abs(4 * int8 / float32 - times[name]) < 0.01 * times[name]  # four times, if it reads as fast
assert layer.codes.shape == (2048, 25_088) and 25_088 * 4_096 > 102e6
del layer

# %% [markdown]
# Measure the engine that you use, on what you use it for.
#
# ## What it saves
#
# Now an estimate for any network and any machine. It takes few numbers:
#
# - **size**: weights times bits;
# - **time**: the larger of reading the weights and computing (the roofline of lesson 5);
# - **energy**: one float32 multiplication with its addition takes 4.6 pJ, in int8 0.3 pJ, and a byte from
#   memory 163 pJ (Horowitz, 2014, for a 45 nm chip; newer chips need less, in about the same proportions);
# - **price** of a million answers: your price of an hour, times the hours.
#
# The networks are counted, not looked up:

# %%
from torchvision.models import mobilenet_v2, vgg16  # after qlab: it needs torch's own build

with torch.device("meta"):
    works = [workload("VGG-16", vgg16(), 224), workload("MobileNetV2", mobilenet_v2(), 224)]
works.append(workload("ResNet-20", qlab.models.resnet20(), 32))
works.append(Workload("one word of a language model", 2_000_000_000, 2_000_000_000))
for work in works:
    print(f"{work.name:29} {work.weights / 1e6:8.1f} million weights, {work.macs / 1e6:9.1f} million multiplications")
assert works[0].weights == 138_357_544
assert [round(1e12 * joules, 1) for joules in (MAC_JOULES[32], MAC_JOULES[8], DRAM_JOULES)] == [4.6, 0.3, 162.5]

# %% [markdown]
# **Predict**, then **move** through the networks. Then put in your own machine, its price, and how fast your users download.

# %%
machine = Machine(memory=10e9, macs=50e9, int8_speedup=2.0, dollars=0.1, download=20e6)
faster = [estimate(work, machine, 32).seconds / estimate(work, machine, 8).seconds for work in works]
predict("12b", panels.savings(works), answer=faster.index(max(faster)), most=max(faster), least=min(faster))

# %% [markdown]
# **Explain.** The language model uses each weight once a word: it is memory-bound and gains most. VGG-16 uses the weights of
# its convolutions many times an image, so its arithmetic sets the pace. Where memory sets it, int8 is
# at most four times as fast; where arithmetic does, at most `int8_speedup` times:

# %%
for work, gain in zip(works, faster):
    before, after = estimate(work, machine, 32), estimate(work, machine, 8)
    pace = "memory" if after.from_memory else "arithmetic"
    uses = work.macs / work.weights
    print(f"{work.name:29} each weight used {uses:4.0f} times; {gain:.1f} times as fast ({pace}), ", end="")
    print(f"{before.joules / after.joules:.1f} times less energy, {after.dollars_per_million:8.3f} dollars a million")
    assert 2 <= gain <= 4 and (pace == "memory") == (gain == max(faster))

# %% [markdown]
# ### Exercise 12.1: seconds for an answer

# %% tags=["exercise"]
check("12.1", seconds_per_answer)

# %% [markdown]
# ## One file
#
# What has to travel is the codes, the scales and biases, and the list of steps. `qlab.save` writes them as
# **safetensors**, a format that holds numbers and no code: to open a stranger's file runs nothing. The
# weights have 7 bits here, so that the network is right on processors with and without VNNI (lesson 5).

# %%
int8 = qlab.ptq(network, calibration.batches(64), QConfig.w8a8(reduce_range=True), engine="reference")
saved = qlab.save(int8, folder / "resnet20.safetensors")
again = qlab.load(saved, engine="reference")
with torch.inference_mode():
    expected = int8(x)
    assert torch.equal(again(x), expected)
print(f"float32 {bench.file_bytes(network) / 1024:,.0f} KiB, int8 {saved.stat().st_size / 1024:,.0f} KiB")
assert saved.stat().st_size < 0.4 * bench.file_bytes(network)

# %% [markdown]
# That file is for `qlab`. Other programs read **ONNX** (Open Neural Network Exchange): a graph of operations
# that many runtimes know, onnxruntime and OpenVINO among them.
#
# ## A graph with QDQ nodes
#
# How does a graph of float operations say "compute this in int8"? With two more operations.
# **QuantizeLinear** (Q) turns floats into codes of a grid; **DequantizeLinear** (DQ) turns codes into floats.
# Around each layer stands
#
# `codes -> DequantizeLinear -> Conv -> Relu -> QuantizeLinear -> codes`
#
# Read as it stands, this is a float convolution between two grids: what lesson 1 calls fake quantization. A
# runtime that has an integer kernel for these grids puts it in the place of the whole group.

# %%
try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None
    print(f"The ONNX cells of this lesson need two packages: {remedy('onnx')}")

# %%
if onnx:
    path = qlab.save_onnx(int8, folder / "resnet20.onnx")
    graph = onnx.load(path).graph
    nodes, constants = graph.node, {each.name: each.data_type for each in graph.initializer}
    for node in nodes[:9]:
        print(f"{node.op_type:16} {node.input[0]:20} -> {node.output[0]}")
    print(f"... {len(nodes)} nodes, {path.stat().st_size / 1024:,.0f} KiB")
    assert constants["conv1.weight"] == onnx.TensorProto.INT8 and constants["conv1.bias"] == onnx.TensorProto.INT32
    counted = [node.op_type for node in nodes]
    assert counted.count("DequantizeLinear") > counted.count("QuantizeLinear") > counted.count("Conv") > 20

# %% [markdown]
# Open the file in [Netron](https://netron.app) and you see the same as an image. Weights and biases are
# constants with a DequantizeLinear behind them: int8 with one scale a channel, and int32.
#
# Below is one small linear layer with a ReLU. It has 8 bits; calibration has seen outputs up to 1. **Predict**, then
# **move** the step to 7 and read each row. Then move the first input to 1, and the bits to 4: what does Clip do?

# %%
weight = torch.tensor([[0.9, -0.4, 0.3, 0.2], [-0.5, 0.7, 0.1, -0.6], [0.4, 0.5, 0.6, 0.3]])
bias = torch.tensor([-0.1, -0.1, 0.05])
firsts = [torch.tensor([tenth / 10, -0.4, 0.8, 0.25]) for tenth in range(-10, 11)]
found = [qdq_nodes(first, weight, bias, 1.0, bits) for first in firsts for bits in range(3, 9)]
same = sum(int((each.clipped == each.kernel).sum()) for each in found)
apart = max(int((each.clipped - each.kernel).abs().max()) for each in found)
predict("12c", panels.qdq(weight, bias, 1.0), answer=min(apart, 2), n=3 * len(found), same=same)

# %% [markdown]
# **Explain.** The graph and the kernel describe the same numbers. QuantizeLinear stops at 255, because its codes are
# uint8. A grid of 4 bits stops at 15; nothing in QuantizeLinear says so, therefore `qlab` puts a **Clip** behind it, on
# the codes.

# %%
grid = qlab.choose_qparams(0.0, 1.0, bits=4)
value = torch.tensor(1.5)
as_uint8 = torch.round(value / grid.scale).clamp(0, 255)
print(f"without Clip: code {as_uint8:.0f}; with it: {as_uint8.clamp(max=grid.qmax):.0f}")
assert as_uint8.clamp(max=grid.qmax) == qlab.quantize(value, grid) != as_uint8
start, end = (qdq_nodes(torch.tensor([first, -0.4, 0.8, 0.25]), weight, bias, 1.0, 8) for first in (0.5, 1.0))
print(f"codes with the first input at 0.5: {start.kernel.tolist()}, at 1: {end.kernel.tolist()}")
assert start.quantized.max() < 255 == end.quantized.max()

# %% [markdown]
# The ReLU has no work of its own either: the codes below the zero point are cut off, which a clamp of codes
# does at no cost. A ReLU6 cuts at the top as well.
#
# ### Exercise 12.2: the codes of a bias
#
# The bias joins the sum of products, so it must be on the grid of the sum, where 1 is worth $s_x s_w$. With
# one scale a channel for the weights, each channel has its own step.

# %% tags=["exercise"]
check("12.2", bias_codes)

# %% [markdown]
# ### Exercise 12.3: a ReLU as a clamp of codes

# %% tags=["exercise"]
check("12.3", clamp_of_codes)

# %% [markdown]
# ## Do they agree?
#
# Two engines that compute the same network may round differently, and both may be right. onnxruntime rounds the
# bias to the grid of the sum, and rounds a convolution's result before it is added to a shortcut. So does
# the engine qnnpack. qlab's reference rounds less often: the bias joins later, and a convolution and the
# addition behind it are rounded once.

# %%
said = in_onnxruntime(path, x) if onnx else expected
last_step = float(int8.program.grids[int8.program.steps[-1].inputs[0]].scale)
others = {"reference": expected}
if engines.availability("qnnpack").usable:
    with torch.inference_mode():
        others["qnnpack"] = int8.on("qnnpack")(x)
agreed = {name: agreement(scores, said, last_step) for name, scores in others.items()}
lines = "\n".join(f"onnxruntime and {name:10} {each}" for name, each in agreed.items())
alike = agreed.get("qnnpack", agreed["reference"])
comparable = onnx and "qnnpack" in agreed
predict("12d", lines, answer=alike.scores, steps=alike.steps) if comparable else print("it takes onnxruntime and qnnpack")

# %% [markdown]
# **Explain.** With the same rules one layer gives nearly the same codes. What differs there goes on into the next layer,
# and after some layers many numbers differ. But no score is far off, and few answers change: compare the
# accuracies before you worry.


# %%
def same_codes(blocks):
    """The share of equal codes in percent, onnxruntime beside qnnpack, behind so many blocks of the network."""
    layers = network.conv1, network.bn1, network.relu, *[*network.layer1, *network.layer2, *network.layer3][:blocks]
    part = qlab.ptq(nn.Sequential(*layers), calibration.batches(64), QConfig.w8a8(reduce_range=True), engine="qnnpack")
    step = float(part.program.grids[part.program.steps[-1].inputs[0]].scale)
    values = in_onnxruntime(qlab.save_onnx(part, folder / "part.onnx"), x[:16])
    with torch.inference_mode():
        return agreement(part(x[:16]), values, step).scores


if comparable:
    shares = [same_codes(blocks) for blocks in (0, 1, 3)]
    print("the same codes behind the first layer, one block and three:", ", ".join(f"{share:.1f} %" for share in shares))
    assert shares[0] > 97 and shares == sorted(shares, reverse=True)
if onnx:
    for name, each in agreed.items():
        print(f"{name}: {each.scores:.1f} % of the scores are the same, {each.answers:.1f} % of the answers")
        assert each.scores < 95 < each.answers + 2 and each.steps <= 10
    for name, scores in {"onnxruntime": said, **others}.items():
        print(f"{name:12} {100 * float((scores.argmax(1) == labels).float().mean()):.1f} % right on these {len(x)} images")

# %% [markdown]
# ## Who is faster?
#
# `qlab.OnnxNetwork` wraps such a runtime, so that it is called like any network. **Predict** twice.

# %% tags=["timing"]
forms = {"float32": network, "torch": int8.on("auto")}
if forms["torch"].engine in engines.QUANTIZED:
    forms["torch"].capture(x[:1]).capture(x[:32])
if onnx:
    forms["onnx"] = qlab.OnnxNetwork(int8)
clocks = {batch: bench.compare(forms, x[:batch], threads=1, rounds=7, progress=False) for batch in (1, 32)}
ms = {batch: {name: clock[name].ms for name in forms} for batch, clock in clocks.items()}
predict("12e", str(clocks[1]), answer=int(ms[1]["onnx"] < ms[1]["torch"]), **ms[1]) if onnx else print(clocks[1])

# %% tags=["timing"]
predict("12f", str(clocks[32]), answer=int(ms[32]["onnx"] < ms[32]["torch"]), **ms[32]) if onnx else print(clocks[32])

# %% [markdown]
# **Explain.** Who wins depends on the batch and on the machine, and need not be the same one twice. So measure on what
# you use: `qlab.bench.fastest` tries all engines on your batch. For each image that was:

# %% tags=["timing"]
for name in forms:
    print(f"{name:8} one image {ms[1][name]:6.2f} ms, one of 32 {ms[32][name] / 32:6.2f} ms")

# %% [markdown]
# ## Without a runtime of its own
#
# There is a third way out of Python: **torch.export** writes down which torch operations a network calls.
# For an integer network it works on the reference, whose operations are plain ones, and gives the same bits;
# the fast engines call kernels that torch.export does not know. Run the network once before.
#
# Those kernels are going: in 2026 torch has declared its quantized types (`torch.quint8`, `torch.qint8`) deprecated,
# with whatever makes such tensors ([announcement](https://github.com/pytorch/pytorch/issues/184982)). What comes instead
# is what you see here: plain int8 and uint8 tensors, with scale and zero point beside them, as `torchao` and
# `torch.export` have them.

# %%
small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
small_int8 = qlab.ptq(small, [x[:8]], engine="reference")
with torch.inference_mode():
    answer = small_int8(x[:8])
program = torch.export.export(small_int8, (x[:8],))
assert torch.equal(program.module()(x[:8]), answer)
assert not any(value.is_quantized for value in program.state_dict.values())
print(f"{len(program.graph.nodes)} nodes, the same answers bit for bit")

# %% [markdown]
# ## Choosing by hardware
#
# | hardware | what it does with int8 | take | source |
# |:--|:--|:--|:--|
# | x86 without VNNI | u8 times s8, pairs added in 16 bits, which saturate | 7-bit weights (`reduce_range=True`); onednn, fbgemm, onnxruntime | [oneDNN: int8 computations](https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html) |
# | x86 with VNNI or AMX | four products added in 32 bits by one instruction | 8 bits; onednn, onnxruntime, OpenVINO | the same |
# | ARM, 64 bits | products of int8 added in 32 bits; fast with the dot-product instructions (Armv8.2 and later) | 8 bits; qnnpack here, LiteRT or onnxruntime in an app | [QNNPACK](https://github.com/pytorch/QNNPACK), [LiteRT's specification](https://ai.google.dev/edge/litert/models/quantization_spec) |
# | NVIDIA GPU | int8 and fp8 in its tensor cores | TensorRT; **symmetric** grids for activations too (zero point 0) | [TensorRT: quantized types](https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html) |
# | microcontroller | no float unit, or a slow one; kilobytes of memory | int8 throughout; LiteRT for microcontrollers, CMSIS-NN | David et al. 2021; Lai et al. 2018 |
#
# LiteRT's grids are like ours but signed: weights from -127 to 127 with zero point 0, one scale a channel;
# activations from -128 to 127. An activation's code there is ours minus 128, and so is its zero point.
#
# This machine:

# %%
print(bench.processor())
print(f'engine "auto" means {engines.choose()[0]}: {engines.choose()[1]}')

# %% [markdown]
# ## Where did the points go?
#
# Five numbers tell, each from the same images. Compare each with the one before it:
#
# | measure the right answers of | less than before? then look at |
# |:--|:--|
# | the float network in training | |
# | the float network as the app feeds it | preprocessing |
# | the prepared network (fake quantization) | quantization: calibration, granularity, bits |
# | the integer network on `engine="reference"` | conversion |
# | the integer network on the engine that is used | the engine: its rules, saturation |
#
# ### Exercise 12.4: the diagnosis

# %% tags=["exercise"]
check("12.4", diagnose)

# %% [markdown]
# ## Mystery networks
#
# An app is less often right than it should be. **Measure**: five of eight measurements, so ask for those that tell most.
# **Commit** a diagnosis. Then make one part of the app anew: do the right answers come back? There are nine mistakes;
# "another mystery" takes the next one. This is the app as it should be:

# %%
good = deploy(network, calibration, test, NONE)
in_training, *as_deployed = (right(network, test), *good.rights())
gain = qlab.analysis.paired(qlab.analysis.hits(network, test), qlab.analysis.hits(good.running, good.feed))
print(f"float {in_training:.1f} % right; the app as it should be: {as_deployed[-1]:.1f} %")
print(f"the two differ on {gain.changed} images" + (": too few to say which is better" if gain.changed < 10 else f", {gain}"))
assert by_the_table(*as_deployed, in_training) is None

# %%
Box(partial(mystery, good, calibration), seed=4)

# %% [markdown]
# When you have solved some of them: what do the five numbers say of each of the nine? **Predict** for how many of them
# the table above blames quantization itself.

# %%
few = test.subset(slice(100))
healthy, here = deploy(network, calibration, few, NONE, good), right(network, few)
rights = {mistake: deploy(network, calibration, few, mistake, healthy).rights() for mistake in MISTAKES}
blamed = {mistake: by_the_table(*numbers, here) for mistake, numbers in rights.items()}
assert all(blamed[mistake] == mistake.stage for mistake in MISTAKES)
stages = "".join(f"{stage:>11}" for stage in ("training", "float here", "prepared", "reference", "engine"))
rows = [
    f"{mistake.name:43}{''.join(f'{number:11.0f}' for number in (here, *rights[mistake]))}  {blamed[mistake]}"
    for mistake in MISTAKES
]
quantization = sum(stage == "quantization" for stage in blamed.values())
predict("12g", "\n".join([f"{'right in %':43}{stages}", *rows]), answer=quantization, n=len(MISTAKES))

# %% [markdown]
# **Explain.** A quantized network can lose its points at every stage, not only where it is rounded. The first stage that loses points is
# found after three measurements; the other two tell the mistakes of one stage apart: what the images are like, what the
# grids cut off, the numbers in the file, one layer on both engines.

# %%
for stage in ("preprocessing", "quantization", "conversion", "engine"):
    print(f"{stage:13} {sum(blame == stage for blame in blamed.values())} of {len(blamed)} mistakes")
assert 2 * quantization < len(MISTAKES)

# %% [markdown]
# ## Four more failures
#
# These stay hidden in an accuracy of this network on this machine.
#
# ### A BatchNorm that was not folded
#
# **Cause.** A BatchNorm that the tool does not recognize stays in float, and with it what follows, up to the next layer
# with weights: a dequantization before it and a quantization behind. The answers are fine, the integers are gone.
# **Cure.** Read the report, and fold (lesson 4): at inference a BatchNorm is part of the layer before it.

# %%
wrapped = with_own_norms(qlab.models.load("resnet20", data=data))
prepared = qlab.prepare(wrapped, QConfig.w8a8(reduce_range=True), leaves=(OwnNorm,))
unfolded = qlab.convert(qlab.calibrate(prepared, calibration.batches(64), progress=False), "reference")
folded, counted = steps_of(int8), steps_of(unfolded)
print(f"{counted['steps']} steps in place of {folded['steps']}: ", end="")
print(f"{counted['in float']} compute in float, {counted['into and out of codes']} go into codes and out of them")
assert folded["in float"] == 0 < counted["in float"] and counted["steps"] > 2 * folded["steps"]
assert abs(right(unfolded, test) - right(int8, test)) < 5

# %% [markdown]
# ### One scale for a depthwise layer
#
# **Cause.** In a depthwise layer each channel has weights of its own size; one scale for all leaves the small
# ones with few codes (lesson 4). **Cure.** One scale a channel, or equalization. Here with 4 bits, where it
# shows clearly:

# %%
mobilenet = qlab.models.load("mobilenet_v2", data=data)
by_share = {}
for share in ("per channel", "per tensor"):
    spec = QConfig.weight if share == "per channel" else dataclasses.replace(QConfig.weight, granularity=PerTensor())
    qconfig = QConfig(weight=dataclasses.replace(spec, bits=4))
    images = calibration.subset(slice(32)).batches(32)
    by_share[share] = right(qlab.calibrate(qlab.prepare(mobilenet, qconfig), images, progress=False), few)
    print(f"MobileNetV2, 4-bit weights, {share}: {by_share[share]:.1f} %")
assert by_share["per tensor"] < by_share["per channel"] - 5

# %% [markdown]
# ### Saturation without VNNI
#
# **Cause.** The network was tried out on one processor and runs on another, which adds pairs of products in 16
# bits. **Cure.** `reduce_range=True`, or an engine that adds in 32 bits. Below, in plain integers, what such a
# processor makes of the first layer:

# %%
for bits, net in ((8, good.reference), (7, int8)):
    wrong = wrong_sums(net, x)
    print(f"{bits}-bit weights: {wrong:.1f} % of the sums are wrong")
    assert (wrong > 0) == (bits == 8)
if onnx and not engines.cpu().vnni and not engines.cpu().is_arm:  # so it happens here
    for bits, file in ((8, qlab.save_onnx(good.reference, folder / "eight.onnx")), (7, path)):
        fused, plain = in_onnxruntime(file, x), in_onnxruntime(file, x, integer_kernels=False)
        same = float((fused.argmax(1) == plain.argmax(1)).float().mean())
        print(f"{bits} bits: onnxruntime's integer kernels give {100 * same:.0f} % of the graph's own answers")

# %% [markdown]
# ### Softmax and LayerNorm like any other layer
#
# **Cause.** A softmax over 1,024 similar values gives about 0.001 to each; the 8-bit grid from 0 to 1 has steps of
# 0.004. And before a LayerNorm, one channel with large values leaves the others few codes. **Cure.** Leave both in
# float, as `qlab` and most runtimes do (or use methods made for them, lesson 10).

# %% tags=["nbval-check-output"]
whole, rounded, largest = shares_in_8_bits(1024)
print(f"softmax: the shares, {largest:.4f} at most, add up to {whole:.2f}; in 8 bits, steps of {1 / 255:.4f}, to {rounded:.2f}")
hidden = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
hidden[:, 0] *= 100  # one channel with large values
hidden_grid = qlab.choose_qparams(float(hidden.min()), float(hidden.max()), 8)
# without the large channel, as the next layer sees the others
gain = [F.layer_norm(h, (16,))[:, 1:] for h in (hidden, qlab.fake_quantize(hidden, hidden_grid))]
print(f"LayerNorm: {qlab.analysis.sqnr(*gain):.0f} dB are left in 15 of 16 channels")
assert rounded < 0.5 and qlab.analysis.sqnr(*gain) < 15

# %% [markdown]
# ## Three questions

# %%
quiz(12)

# %% [markdown]
# ## What to remember
#
# - **QDQ** nodes say where the grids are. A runtime with integer kernels replaces each group by one.
# - Two engines may round differently and both be right: compare codes of one layer, then accuracies.
# - int8 brings up to **four times** where memory sets the pace; elsewhere as much as the arithmetic gains.
# - The hardware decides about 7 or 8 bits, signed or unsigned, symmetric or not. Ask before you calibrate.
# - Measure **float on the device first**. Then every stage against the one before it.
#
# ## For teachers
#
# - Common misconception: a wrong answer of an int8 network is a quantization error. Let pairs solve the mystery
#   networks against each other: who needs fewest measurements? `Box(..., seed=None)` draws one for each pair.
# - Common mistake in exercise 12.4: the last stage that lost points, or the one that lost most, in place of the first.
# - Students get stuck on the bias: let them compute what happens with an int8 bias (exercise 12.2 tells).
# - The calculator is worth a debate: which of its numbers do you know for your phone, and where would you look?
#
# ## Papers
#
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): the bias in int32, the ReLU as a clamp.
# - M. Horowitz, *Computing's energy problem (and what we can do about it)*, ISSCC 2014.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009.
# - K. Simonyan, A. Zisserman, *Very deep convolutional networks for large-scale image recognition*, ICLR 2015,
#   [arXiv:1409.1556](https://arxiv.org/abs/1409.1556): VGG-16.
# - L. Lai, N. Suda, V. Chandra, *CMSIS-NN: efficient neural network kernels for Arm Cortex-M CPUs*, 2018,
#   [arXiv:1801.06601](https://arxiv.org/abs/1801.06601).
# - R. David et al., *TensorFlow Lite Micro: embedded machine learning on TinyML systems*, MLSys 2021,
#   [arXiv:2010.08678](https://arxiv.org/abs/2010.08678).
# - M. Nagel et al., *A white paper on neural network quantization*, 2021,
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295): a debugging flow like the one above.
