# %% [markdown]
# # 7. Quantization-aware training
#
# With 8 bits a trained network hardly notices that it is rounded. With 2 or 3 bits it breaks, and no choice
# of ranges mends it: the weights themselves are wrong for so coarse a grid. So let the network train again,
# with the rounding in place. That is **quantization-aware training** (QAT).
#
# **After this lesson you can**
# - say why rounding has no useful gradient, and what is used instead;
# - derive how a scale learns (LSQ), and check the gradient by hand;
# - repair a broken low-bit network with a short training, and turn it into real integers.
#
# **Time:** 45 minutes. **You need:** lessons 1 and 2; you have seen a network trained with PyTorch.

# %%
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

import qlab
from qlab import qat
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson07 import panels, plots
from qlab.course.quiz import quiz
from qlab.int8 import engines

name = qlab.data.available().name
network = qlab.models.load("resnet20", data=name)
images = qlab.data.at_hand("train").sample(1280)
test = qlab.data.at_hand("test").sample(300)
banner(test)

# %% [markdown]
# ## A broken network
#
# Lesson 6 quantized a trained network without training it again (**PTQ**, post-training quantization). Do the
# same here, with 3 bits for the weights and 2 for the activations. The ranges are those with the smallest
# squared error, the best of lesson 2.

# %%
prepared = qlab.prepare(network, qat.qconfig("w3a2"))
qlab.calibrate(prepared, images.sample(256).batches(64))
float_accuracy = qlab.evaluate(network, test)
broken_accuracy = qlab.evaluate(prepared, test)
print(f"float: {float_accuracy:.1f} % right, PTQ with 3-bit weights and 2-bit activations: {broken_accuracy:.1f} %")
assert broken_accuracy < float_accuracy - 10

# %% [markdown]
# ## A loss made of stairs
#
# Training moves each weight a little against the slope of the loss. Take one weight. The network uses it
# rounded, and the loss is smallest where the rounded weight is 1.3. No rung is there: 1 is the nearest one.
#
# **Predict.** The weight starts at -1. Where is it after 60 steps: still at -1, at 1, at 1.3, or somewhere else?
#
# **Move** the steps from 0 to 60. Then try other starts.

# %%
panels.one_weight()

# %% [markdown]
# **Explain.** A weight that moves a little is rounded to the same rung, so the loss does not change: its slope
# is 0 everywhere, except at the jumps. With the true gradient the weight would stay where it is.
#
# The **straight-through estimator** (Bengio et al., 2013) rounds on the way forward, and on the way back it
# acts as if rounding were not there. In PyTorch that is one line: `detach()` hides what stands in it from the
# gradient.


# %% tags=["nbval-check-output"]
def round_through(x):
    """round(x), with the gradient of x."""
    return x + (torch.round(x) - x).detach()


for function in (torch.round, round_through):
    weight = torch.tensor(0.4, requires_grad=True)
    loss = (function(weight) - 1.3) ** 2
    loss.backward()
    print(f"{function.__name__}: loss {loss.item():.2f}, gradient {weight.grad.item():.1f}")

# %% [markdown]
# Now the weight moves, but it does not come to rest at 1. At the rung 1 the slope points up, at the rung 2 it
# points down. So the weight ends at the **threshold** 1.5 between the two, and jumps. This is called
# **oscillation** (Nagel et al., 2022). On average the network sees about 1.3, but at each moment it sees 1
# or 2.

# %% tags=["nbval-check-output"]
weight, used = -1.0, []
for _ in range(1000):
    used.append(round(weight))
    weight -= 0.1 * 2 * (round(weight) - 1.3)
print(f"the float weight: {weight:.1f}; what is used, on average over the last 500 steps: {sum(used[500:]) / 500:.2f}")
assert abs(sum(used[500:]) / 500 - 1.3) < 0.05

# %% [markdown]
# ### Exercise 7.1: straight through
#
# Give the gradient that `round_through` leads to. You can write the formula, or let PyTorch do it.

# %% tags=["exercise"]
check("7.1", straight_through_gradient)

# %% [markdown]
# ### Exercise 7.2: train one weight
#
# Write the training of the figure. Mind what is kept from step to step: the float weight. Python's `round`
# rounds one number.

# %% tags=["exercise"]
check("7.2", train_one_weight)

# %% [markdown]
# ### Exercise 7.3: what is clipped
#
# A grid has ends. Beyond them a value stays at the end when it moves a little, and `clamp` says so in its
# gradient: 0. Inside the grid, the ends included, the gradient passes as it is.

# %% tags=["exercise"]
check("7.3", gradient_of_values)

# %% [markdown]
# ## A scale that learns
#
# A value on the grid is `clamp(round(x / scale)) * scale`. The scale is a number like any weight, so it can
# learn too. Write $v = x / s$ for the position and $q$ for its code. The derivative of $q \cdot s$ has two
# parts, $q$ itself and $s \cdot dq/ds$. Inside the grid rounding passes straight through, so
# $dq/ds = dv/ds = -v / s$. Beyond the ends the code stays. Together:
#
# $$\frac{d\,(q \cdot s)}{ds} = q - v \ \text{ inside the grid}, \qquad q \ \text{ where x is clipped}$$
#
# This is **LSQ**, learned step size quantization (Esser et al., 2020). **PACT** (Choi et al., 2018) keeps the
# second case alone: only what is clipped moves the end of the grid.
#
# **Predict.** The scale is as large as it has to be so that nothing is clipped. Does LSQ shrink it or grow it,
# if the error of the weights is to become small? And with 8 bits?
#
# **Move** the scale down from 100 % until the triangle turns round. Compare with the lowest point of the
# curve.

# %%
layer = network.layer2[1].conv1
panels.learned_scale(layer.weight)

# %% [markdown]
# **Explain.** Rounding errors drive the scale down, clipped values drive it up. The two are in balance close to
# the scale with the least error, which lesson 2 had to search for:


# %%
def error_and_gradient(scale, top):
    """The squared error of the layer's weights on a grid with that scale, and LSQ's gradient of it."""
    scale = scale.clone().requires_grad_()
    values = round_through(layer.weight.detach() / scale).clamp(-top, top) * scale
    error = (values - layer.weight.detach()).square().sum()
    error.backward()
    return float(error.detach()), float(scale.grad)


for bits in (2, 3, 4):
    top = 2 ** (bits - 1) - 1
    scales = torch.linspace(0.03, 1, 98) * layer.weight.detach().abs().max() / top
    errors, gradients = zip(*(error_and_gradient(scale, top) for scale in scales))
    best, balance = errors.index(min(errors)), next(i for i, slope in enumerate(gradients) if slope > 0)
    print(f"{bits} bits: least error at {scales[best]:.3f}, LSQ comes to rest at {scales[balance]:.3f}")
    assert abs(best - balance) <= 8

# %% [markdown]
# Nothing above was told how LSQ's gradient is made. It came out of `round_through` and `clamp` alone.
#
# ### Exercise 7.4: LSQ by hand
#
# `gradient` holds, for each value on the grid, the derivative of the loss. The scale moves all values at once,
# so its gradient is a sum.

# %% tags=["exercise"]
check("7.4", gradient_of_scale)

# %% [markdown]
# ## One layer learns
#
# Put both together. One layer of the network gets weights of 2 bits, that is, the rungs -1, 0 and 1 times a
# scale. Its weights and its scale learn to give the outputs that the float layer gives. All activations stay
# in float here, so that you see the weights alone.
#
# A second term in the loss can pull each weight towards the rung it is rounded to, a little more with each
# step. Record both trainings, with the pull and without.

# %%
seen = []
hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
with torch.no_grad():
    network(next(images.batches(16))[0])
hook.remove()
inputs = seen[0]
wanted = F.conv2d(inputs, layer.weight.detach(), padding=1)
EVERY, STEPS = 5, 200


def train_layer(pull):
    """Snapshots of the layer's training, one every EVERY steps."""
    weight = layer.weight.detach().clone().requires_grad_()
    scale = weight.detach().abs().max().requires_grad_()
    optimizer = torch.optim.Adam([{"params": [weight], "lr": 0.003}, {"params": [scale], "lr": 0.01 * scale.item()}])
    snapshots = []
    for step in tqdm(range(STEPS + 1), f"pull {pull}", leave=False, delay=2):
        values = round_through(weight / scale).clamp(-1, 1) * scale
        error = (F.conv2d(inputs, values, padding=1) - wanted).square().mean() / wanted.square().mean()
        if step % EVERY == 0:
            snapshots.append(plots.Snapshot(weight.detach().clone(), scale.item(), error.item()))
        away = (weight - values.detach()).square().mean() / weight.detach().square().mean()
        optimizer.zero_grad()
        (error + pull * step / STEPS * away).backward()
        optimizer.step()
    return snapshots


training = {pull: train_layer(pull) for pull in (0, 1)}

# %% [markdown]
# **Predict.** Training goes through the rounding, without any pull. Where do the weights gather: on the rungs,
# or elsewhere?
#
# **Move** the step to the end with the pull off. Then switch the pull on, and go through the steps again.

# %%
panels.gathering(training, EVERY)

# %% [markdown]
# **Explain.** The scale shrinks first: it was made for the largest weight, and nearly all others were rounded to
# 0. The error of the output falls to a small part. Without the pull, many weights end near a threshold,
# as the one weight did above: the loss wants something between two rungs. With the pull they settle on the
# rungs, and the error does not suffer much.


# %%
def share(snapshot, places, within=0.1):
    """The share of the weights that are at most that far, in steps, from one of the places."""
    position = (snapshot.weights / snapshot.scale).flatten()
    return (position[:, None] - torch.tensor(places)).abs().amin(1).le(within).float().mean().item()


for pull, (first, *_, last) in training.items():
    rungs, thresholds = share(last, (-1.0, 0.0, 1.0)), share(last, (-0.5, 0.5))
    print(
        f"pull {pull}: output error {first.error:.1%} -> {last.error:.1%}, scale {first.scale:.2f} -> {last.scale:.2f}"
    )
    print(f"        {rungs:.0%} of the weights near a rung, {thresholds:.0%} near a threshold")
    assert last.error < first.error / 3 and last.scale < first.scale / 1.5
off, on = training[0][-1], training[1][-1]
assert share(on, (-1.0, 0.0, 1.0)) > 1.5 * share(off, (-1.0, 0.0, 1.0))
assert share(on, (-0.5, 0.5)) < share(off, (-0.5, 0.5))

# %% [markdown]
# ## The whole network learns
#
# `qlab.qat.fit` does this for all layers at once, on labelled images, with an ordinary optimizer. Four
# things are special:
#
# - Every scale is a parameter and learns by LSQ. Its gradient is divided by $\sqrt{N \cdot q_{max}}$ with $N$
#   values sharing it, or it would learn much faster than a weight.
# - One step changes a scale by at most 2 %. The gradient does not know how small a scale is, and one large
#   gradient could throw it below 0.
# - BatchNorm was folded into the weights. While they train it is live again, but what is rounded is the folded
#   weight, because that is what the integer network has (Jacob et al., 2018).
# - The **learning rate**, the length of a step, is small. The network is nearly right; it needs repair, not a
#   new start.
#
# **Predict.** How much of what PTQ lost comes back after one look at each of 1,280 images?

# %%
plan = qlab.train.Plan(epochs=1, batch_size=32, lr=0.01, shrink=0, label_smoothing=0)
qat.fit(prepared, images, plan=plan, freeze_batchnorm=1)
trained_accuracy = qlab.evaluate(prepared, test)
recovered = (trained_accuracy - broken_accuracy) / (float_accuracy - broken_accuracy)
print(f"float {float_accuracy:.1f} %, PTQ {broken_accuracy:.1f} %, QAT {trained_accuracy:.1f} %")
print(f"{recovered:.0%} of the loss has come back")
assert recovered > 0.4

# %% [markdown]
# A real training goes on for epochs, through all training images; lesson 8 shows what that gives.
#
# ## And now real integers
#
# Afterwards the network is an ordinary prepared one, with the scales that it has learned. `qlab.convert`
# makes integers of it, as in lesson 5. Some kernels add two branches of the network in one step with a
# convolution, others round in between; `fuse_additions` makes the prepared network do as the kernels of this
# machine do. **Predict:** how many of the answers change?

# %%
int8 = qlab.convert(prepared)
prepared.fuse_additions(engines.get(int8.engine).fuses_add)
x, _labels = next(test.batches(200))
with torch.inference_mode():
    same = (prepared(x).argmax(1) == int8(x).argmax(1)).float().mean().item()
int8_accuracy = qlab.evaluate(int8, test)
print(f"{same:.1%} of {len(x)} answers are the same in integers ({int8.engine})")
print(f"right answers: {trained_accuracy:.1f} % before, {int8_accuracy:.1f} % in integers")
assert same > (0.5 if int8.engine == "qnnpack" else 0.97)
assert int8_accuracy > broken_accuracy + 0.1 * (float_accuracy - broken_accuracy)

# %% [markdown]
# The prepared network rounds where the integers round, so they agree. (The kernels for ARM, qnnpack, also round
# each bias. With 2 bits one code is a third of the range, so some answers change there, for better or worse.)
#
# ## Three questions

# %%
quiz(7)

# %% [markdown]
# ## What to remember
#
# - Rounding is flat, so its true gradient is 0. The **straight-through estimator** rounds going forward and
#   passes the gradient on unchanged; what is clipped gets 0.
# - Training keeps **float weights**. They are rounded anew each time they are used.
# - **LSQ**: a scale learns. Rounding errors shrink it, clipping grows it.
# - Weights of few bits gather at thresholds and **oscillate**; a pull to the rungs, or a falling learning rate,
#   calms them.
# - Even a short QAT brings back a large part of what PTQ at few bits breaks, and the result converts to integers.
#
# ## For teachers
#
# The common misconception: "QAT trains integers." Exercise 7.2 is made for it; let a student who fails it print
# the weights. Many expect the weights to gather on the rungs by themselves, so ask for the prediction before
# the third panel is moved. The training of the whole network runs for about half a minute: ask the question
# before it while it runs. Who is done early may try a learning rate four times as large, and look at the loss.
#
# ## Papers
#
# - Y. Bengio, N. Léonard, A. Courville, *Estimating or propagating gradients through stochastic neurons for
#   conditional computation*, 2013, [arXiv:1308.3432](https://arxiv.org/abs/1308.3432): straight through.
# - B. Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-only
#   inference*, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877): QAT, BatchNorm folded.
# - J. Choi et al., *PACT: parameterized clipping activation for quantized neural networks*, 2018,
#   [arXiv:1805.06085](https://arxiv.org/abs/1805.06085).
# - S. K. Esser et al., *Learned step size quantization*, ICLR 2020,
#   [arXiv:1902.08153](https://arxiv.org/abs/1902.08153): LSQ.
# - M. Nagel et al., *Overcoming oscillations in quantization-aware training*, ICML 2022,
#   [arXiv:2203.11086](https://arxiv.org/abs/2203.11086).
