# %% [markdown]
# # 12. Deployment
#
# A quantized network is of use when it runs where it is needed: on a server, in a phone, in a machine with a
# few kilobytes. **Deployment** is the way there. Here you write the network to files that other programs read,
# you measure what a quarter of the bytes is worth, and you choose an engine by the hardware. At the end there
# is a gallery of failures: each one happens to everybody once, and each one is made here on purpose.
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
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab import PerChannel, PerTensor, QConfig, QParams, bench
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson05.plots import saturating_sums
from qlab.course.lesson12 import panels
from qlab.course.lesson12.savings import Machine, Workload, estimate
from qlab.course.quiz import quiz
from qlab.int8 import engines
from qlab.int8.reference import Engine

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
# **Predict.** What is int8 worth here, on one image: 1, 2 or 4 times?
#
# Half of the layer is enough to see it, and takes half of the memory. All of VGG-16 is measured by
# `tools/bench_deploy.py`.

# %%
inputs, outputs = 25_088, 2_048
codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
w_grid = QParams(
    torch.full((outputs,), 1e-4), torch.zeros(outputs, dtype=torch.int32), signed=True, granularity=PerChannel(0)
)
x_grid, y_grid = qlab.choose_qparams(0.0, 1.0, bits=7), qlab.choose_qparams(-4.0, 4.0, bits=8)
row = torch.rand(1, inputs, generator=torch.Generator().manual_seed(1))
weights = codes.float().mul_(1e-4)  # the same weights in float


def one_image(name):
    """The layer in float and on an engine, taking turns on one thread; the answers are compared before."""
    engine = engines.get(name)
    kernel, q, to_floats = (
        engine.linear(codes, None, w_grid, x_grid, y_grid),
        engine.quantize(x_grid)(row),
        engine.dequantize(y_grid),
    )
    calls = {"float32": lambda: F.linear(row, weights), f"int8 {name}": lambda: to_floats(kernel(q))}
    with engine.running():
        return bench.compare_calls(calls, 1, threads=1, rounds=7, progress=False)


# %% tags=["timing"]
usable = [name for name in ("fbgemm", "qnnpack", "onednn_plain", "reference") if engines.availability(name).usable]
for name in usable[:2]:
    compared = one_image(name)
    print(compared)
    rates = [codes.numel() * size / 1e6 / timing.ms for size, timing in zip((4, 1), compared.values())]
    print(f"weights from memory: float32 {rates[0]:.1f} GB/s, int8 {rates[1]:.1f} GB/s\n")
del codes, weights

# %% [markdown]
# A quarter of the bytes allows four times the speed. An engine that is good at this shape gets a good part of it. One
# that is made for many images at once may gain nothing here: measure the one that you use, on what you use it for.
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
def workload(name, net, size):
    """A network's weights and multiplications, counted on an image without content ("meta" tensors have none)."""
    image = torch.zeros(1, 3, size, size, device="meta")
    return Workload(name, sum(p.numel() for p in net.parameters()), bench.macs(net.to("meta").eval(), image))


from torchvision.models import mobilenet_v2, vgg16  # after qlab: it needs torch's own build

with torch.device("meta"):
    works = [workload("VGG-16", vgg16(), 224), workload("MobileNetV2", mobilenet_v2(), 224)]
works.append(workload("ResNet-20", qlab.models.resnet20(), 32))
works.append(Workload("one word of a language model", 2_000_000_000, 2_000_000_000))
for work in works:
    print(f"{work.name:29} {work.weights / 1e6:8.1f} million weights, {work.macs / 1e6:9.1f} million multiplications")
assert works[0].weights == 138_357_544

# %% [markdown]
# **Predict.** Which of the four gains most time from int8, if int8 arithmetic is twice as fast and the memory
# gives 10 GB/s?
#
# **Move** through the networks. Then put in your own machine, its price, and the line of your users.

# %%
panels.savings(works)

# %% [markdown]
# **Explain.** The network that uses each weight once a word is memory-bound and gains four times. VGG-16 uses
# the weights of its convolutions many times an image, so its arithmetic sets the pace. The time of int8 can
# never be less than a quarter by memory, nor less than one in `int8_speedup` by arithmetic:

# %% tags=["nbval-check-output"]
machine = Machine(memory=10e9, macs=50e9, int8_speedup=2.0, dollars=0.1, download=20e6)
for work in works:
    before, after = estimate(work, machine, 32), estimate(work, machine, 8)
    pace = "memory" if after.from_memory else "arithmetic"
    print(f"{work.name:29} {before.seconds / after.seconds:.1f} times as fast ({pace}), ", end="")
    print(f"{before.joules / after.joules:.1f} times less energy, {after.dollars_per_million:8.3f} dollars a million")
    assert 2 <= before.seconds / after.seconds <= 4

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
    print('The ONNX cells of this lesson need two packages: pip install "qlab[onnx]"')


def in_onnxruntime(path, x, integer_kernels=True):
    """The scores that onnxruntime gives; without integer kernels it computes node by node, in float."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not integer_kernels:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.contiguous().numpy()})[0])


# %%
if onnx:
    path = qlab.save_onnx(int8, folder / "resnet20.onnx")
    nodes = onnx.load(path).graph.node
    for node in nodes[:9]:
        print(f"{node.op_type:16} {node.input[0]:20} -> {node.output[0]}")
    print(f"... {len(nodes)} nodes, {path.stat().st_size / 1024:,.0f} KiB")
    counted = [node.op_type for node in nodes]
    assert counted.count("DequantizeLinear") > counted.count("QuantizeLinear") > counted.count("Conv") > 20

# %% [markdown]
# Open the file in [Netron](https://netron.app) and you see the same as an image. Weights and biases are
# constants with a DequantizeLinear behind them: int8 with one scale a channel, and int32.
#
# **Predict.** Below is one small linear layer with a ReLU. It has 8 bits; calibration has seen outputs up to 1.
# What will the last row, an integer kernel, have in common with the row above it?
#
# **Move** the step to 7 and read each row. Then move the first input to 1 and the bits to 4: what does Clip do?

# %%
weight = torch.tensor([[0.9, -0.4, 0.3, 0.2], [-0.5, 0.7, 0.1, -0.6], [0.4, 0.5, 1.1, 0.3]])
bias = torch.tensor([0.2, -0.1, 0.05])
panels.qdq(weight, bias, 1.0)

# %% [markdown]
# **Explain.** The two rows are the same: the graph and the kernel describe the same numbers. QuantizeLinear
# stops at 255, because its codes are uint8. A grid of 4 bits stops at 15; nothing in QuantizeLinear says so,
# therefore `qlab` puts a **Clip** behind it, on the codes.

# %% tags=["nbval-check-output"]
grid = qlab.choose_qparams(0.0, 1.0, bits=4)
value = torch.tensor(1.5)
as_uint8 = torch.round(value / grid.scale).clamp(0, 255)
print(f"without Clip: code {as_uint8:.0f}; with it: {as_uint8.clamp(max=grid.qmax):.0f}")
assert as_uint8.clamp(max=grid.qmax) == qlab.quantize(value, grid) != as_uint8

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
if onnx:
    said = in_onnxruntime(path, x)
    others = {"reference": expected}
    if engines.availability("qnnpack").usable:
        with torch.inference_mode():
            others["qnnpack"] = int8.on("qnnpack")(x)
    for name, scores in others.items():
        same = float((said.argmax(1) == scores.argmax(1)).float().mean())
        decibel = qlab.analysis.sqnr(scores, said)
        print(f"onnxruntime and {name:10} same answer on {100 * same:.1f} %, SQNR {decibel:.1f} dB")
        assert same >= (0.99 if name == "qnnpack" else 0.93)

# %% [markdown]
# With the same rules nearly every number is the same. With other rules some answers near the border between two
# classes change, in both directions: compare the accuracies before you worry.
#
# `qlab.OnnxNetwork` wraps such a runtime, so that it is called like any network. **Predict.** Who is faster on one
# image, torch's kernels (captured, as in lesson 5) or onnxruntime's? And on 32?

# %% tags=["timing"]
forms = {"float32": network, "torch's kernels": int8.on("auto")}
if forms["torch's kernels"].engine in engines.QUANTIZED:
    forms["torch's kernels"].capture(x[:1]).capture(x[:32])
if onnx:
    forms["onnxruntime"] = qlab.OnnxNetwork(int8)
for batch in (1, 32):
    print(bench.compare(forms, x[:batch], threads=1, rounds=7, progress=False), "\n")

# %% [markdown]
# Between two layers onnxruntime does less than torch, and with one image that is much of the time. With many, the
# kernels decide, and the better ones are not always the same library's: `qlab.bench.fastest` tries all on your batch.
#
# There is a third way out of Python: **torch.export** writes down which torch operations a network calls.
# For an integer network it works on the reference, whose operations are plain ones, and gives the same bits;
# the fast engines call kernels that torch.export does not know. Run the network once before.

# %%
small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
small_int8 = qlab.ptq(small, [x[:8]], engine="reference")
with torch.inference_mode():
    answer = small_int8(x[:8])
program = torch.export.export(small_int8, (x[:8],))
assert torch.equal(program.module()(x[:8]), answer)
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
# activations from -128 to 127. A code there is ours minus 128, and so is its zero point.
#
# This machine:

# %%
print(bench.processor())
print(f'engine "auto" means {engines.choose()[0]}: {engines.choose()[1]}')

# %% [markdown]
# ## A gallery of failures
#
# Seven ways to spoil a good network. For each: the symptom as a number, the cause, the cure.


# %%
def right(net, images=test):
    """Right answers in percent."""
    return qlab.evaluate(net, images, progress=False)


floats, good = right(network), right(int8)
print(f"the float network {floats:.1f} %, the int8 network {good:.1f} %")
assert good > floats - 4

# %% [markdown]
# ### 1. Missing calibration
#
# **Cause.** Nobody showed the network images, or showed it others than it will see. **Cure.** Some hundred
# images of the training split, made as the app makes them. `qlab` refuses a network without calibration;
# against wrong images there is no such guard.

# %%
try:
    qlab.convert(qlab.prepare(network))
except RuntimeError as error:
    print(f"refused: {error}")
faint = 0.05 * torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
on_noise = right(qlab.ptq(network, [faint], engine="reference"))
print(f"calibrated on faint noise: {on_noise:.1f} % in place of {good:.1f} %")
assert on_noise < good - 15

# %% [markdown]
# ### 2. BatchNorm that was not folded
#
# **Cause.** A BatchNorm that the tool does not recognize stays in float, with a dequantization before it and a
# quantization behind. The answers are fine; the speed is gone. **Cure.** Read the report, and fold
# (lesson 4): at inference a BatchNorm is part of the layer before it.


# %%
class OwnNorm(nn.Module):
    """A BatchNorm in somebody's own words, which no tool recognizes."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


wrapped = qlab.models.load("resnet20", data=data)
for parent in list(wrapped.modules()):
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(parent, name, OwnNorm(child))
prepared = qlab.prepare(wrapped, QConfig.w8a8(reduce_range=True), leaves=(OwnNorm,))
unfolded = qlab.convert(qlab.calibrate(prepared, calibration.batches(64), progress=False), "reference")
folded_steps, unfolded_steps = len(int8.program.steps), len(unfolded.program.steps)
in_float = sum(layer.op in ("float", "quantize", "dequantize") for layer in unfolded.layers)
print(f"{unfolded_steps} steps in place of {folded_steps}; {in_float} of them compute in float")
assert unfolded_steps > 2 * folded_steps and right(unfolded) > good - 5

# %% [markdown]
# ### 3. Wrong preprocessing
#
# **Cause.** In training the images were normalized; the app gives pixels from 0 to 1. (Or blue and red are
# swapped, or the size is changed in another way.) **Cure.** Feed the *float* network on the device first: if it
# is wrong too, quantization is not to blame.

# %%
raw = dataclasses.replace(test, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
raw_float, raw_int8 = right(network, raw), right(int8, raw)
print(f"pixels from 0 to 1: float {raw_float:.1f} %, int8 {raw_int8:.1f} %")
assert raw_float < floats - 10

# %% [markdown]
# ### 4. One scale for a depthwise layer
#
# **Cause.** In a depthwise layer each channel has weights of its own size; one scale for all leaves the small
# ones with few codes (lesson 4). **Cure.** One scale a channel, or equalization. Here with 4 bits, where it
# shows clearly:

# %%
mobilenet, few = qlab.models.load("mobilenet_v2", data=data), test.subset(slice(100))
by_share = {}
for share in ("per channel", "per tensor"):
    spec = QConfig.weight if share == "per channel" else dataclasses.replace(QConfig.weight, granularity=PerTensor())
    qconfig = QConfig(weight=dataclasses.replace(spec, bits=4))
    calibrated = qlab.calibrate(
        qlab.prepare(mobilenet, qconfig), calibration.subset(slice(32)).batches(32), progress=False
    )
    by_share[share] = right(calibrated, few)
    print(f"MobileNetV2, 4-bit weights, {share}: {by_share[share]:.1f} %")
assert by_share["per tensor"] < by_share["per channel"] - 5

# %% [markdown]
# ### 5. Saturation without VNNI
#
# **Cause.** The network was tried out on one processor and runs on another, which adds pairs of products in 16
# bits. **Cure.** `reduce_range=True`, or an engine that adds in 32 bits. Below, in plain integers, what such a
# processor makes of the first layer:

# %%
eight_bits = qlab.ptq(network, calibration.batches(64), QConfig.w8a8(), engine="reference")
pieces = F.unfold(x[:8], 3, padding=1).transpose(1, 2).flatten(0, 1)[::40]
for bits, net in ((8, eight_bits), (7, int8)):
    first = next(layer for layer in net.layers if layer.op == "conv2d")
    pixel_grid = qlab.choose_qparams(float(x.min()), float(x.max()))
    rows = first.weight.flatten(1).int()
    exact, saturated = saturating_sums(qlab.quantize(pieces, pixel_grid).int(), rows)
    wrong = float((exact.sum(-1) != saturated).float().mean())
    print(f"{bits}-bit weights: {100 * wrong:.1f} % of the sums are wrong")
    assert (wrong > 0) == (bits == 8)
if onnx and not engines.cpu().vnni and not engines.cpu().is_arm:  # so it happens here
    for bits, file in ((8, qlab.save_onnx(eight_bits, folder / "eight.onnx")), (7, path)):
        fused, plain = in_onnxruntime(file, x), in_onnxruntime(file, x, integer_kernels=False)
        same = float((fused.argmax(1) == plain.argmax(1)).float().mean())
        print(f"{bits} bits: onnxruntime's integer kernels give {100 * same:.0f} % of the graph's own answers")

# %% [markdown]
# ### 6. Softmax and LayerNorm like any other layer
#
# **Cause.** A softmax over 1,024 similar values gives about 0.001 to each; the 8-bit grid from 0 to 1 has steps of
# 0.004. And before a LayerNorm, one channel with large values leaves the others few codes. **Cure.** Leave both in
# float, as `qlab` and most runtimes do (or use methods made for them, lesson 10).

# %% tags=["nbval-check-output"]
scores = 0.2 * torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))
shares = scores.softmax(1)
rounded = qlab.fake_quantize(shares, qlab.choose_qparams(0.0, 1.0, 8))
print(f"softmax: the shares add up to {float(shares.sum()):.2f}; in 8 bits to {float(rounded.sum()):.2f}")
hidden = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
hidden[:, 0] *= 100  # one channel with large values
hidden_grid = qlab.choose_qparams(float(hidden.min()), float(hidden.max()), 8)
# without the large channel, as the next layer sees the others
gain = [F.layer_norm(h, (16,))[:, 1:] for h in (hidden, qlab.fake_quantize(hidden, hidden_grid))]
print(f"LayerNorm: {qlab.analysis.sqnr(*gain):.0f} dB are left in 15 of 16 channels")
assert rounded.sum() < 0.5 and qlab.analysis.sqnr(*gain) < 15

# %% [markdown]
# ### 7. Two engines that mean different things
#
# **Cause.** One side writes codes from 0 to 255, the other reads the same bytes as -128 to 127. (Or scales are in
# another order, or a zero point is missing.) **Cure.** Give one layer the same codes on both sides, as in lesson
# 5: they may differ by one code at most.


# %%
class ReadsSigned(Engine):
    """The reference, except that its layers read the bytes of their input as signed numbers."""

    fuses_add = False

    def conv2d(self, *arguments, **options):
        kernel = super().conv2d(*arguments, **options)
        return lambda q: kernel(q.view(torch.int8))


mismatch = right(eight_bits.on(ReadsSigned()))
print(f"bytes read as signed: {mismatch:.1f} % in place of {right(eight_bits):.1f} %")
assert mismatch < good - 20

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
# | the integer network on the engine that is used | the engine: saturation, its rules |
#
# ### Exercise 12.4: the diagnosis

# %% tags=["exercise"]
check("12.4", diagnose)

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
# - Common misconception: a wrong answer of an int8 network is a quantization error. Hide one of the seven failures in
#   a network and let pairs find it with the table above: 20 minutes, and the best part of the lesson.
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
