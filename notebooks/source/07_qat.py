# %% [markdown]
# # 7. Quantization-aware training
#
# With 8 bits a trained network hardly notices that it is rounded. With 2 or 3 bits it breaks, however its ranges
# are chosen: the weights themselves are wrong for so coarse a grid. So let the network train again, with the
# rounding in place. That is **quantization-aware training** (QAT).
#
# **After this lesson you can**
# - say why rounding has no useful gradient, and what is used instead;
# - derive how a scale learns (LSQ), and check the gradient by hand;
# - train a broken low-bit network, and turn it into real integers.
#
# **Time:** 60 minutes. **You need:** lessons 1 and 2; you have seen a network trained with PyTorch.

# %%
from dataclasses import replace

import torch
from torch.nn import functional as F

import qlab
from qlab import qat
from qlab.analysis import hits, paired
from qlab.course import banner
from qlab.course.exercises import check, hint, solution
from qlab.course.lesson07 import panels, plots
from qlab.course.lesson07.layer import inputs_of, share, train_layer
from qlab.course.predict import predict
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
# same here with 3 bits for the weights and 2 for the activations, and let each observer of lesson 2 choose the
# ranges. All networks see the same images, so their difference is known better than either accuracy: ± is its
# standard error.


# %%
def calibrated(qconfig):
    """The network after PTQ."""
    return qlab.calibrate(qlab.prepare(network, qconfig), images.sample(256).batches(64))


right = hits(network, test)
eight = paired(right, hits(calibrated(qlab.QConfig.w8a8()), test))
print(f"float: {qlab.evaluate(network, test):.1f} % right; with 8 bits {eight}")
few, losses = {}, {}
for observer in ("minmax", "percentile", "mse", "entropy"):
    qconfig = qat.qconfig("w3a2")
    weight, activation = replace(qconfig.weight, observer=observer), replace(qconfig.activation, observer=observer)
    few[observer] = calibrated(replace(qconfig, weight=weight, activation=activation))
    losses[observer] = paired(right, hits(few[observer], test))
    print(f"3 and 2 bits, {observer:10} {losses[observer]}")
best = max(losses, key=lambda observer: losses[observer].difference)
assert abs(eight.difference) < 2 and losses[best].difference < -10

# %% [markdown]
# Whichever observer chooses, far too much is lost. The network of the best one is the one that this lesson trains.
#
# ## A loss made of stairs
#
# Training moves each weight a little against the slope of the loss. Take one weight. The network uses it
# rounded, and the loss is smallest where the rounded weight is 1.3. No rung is there: 1 is the nearest one.
#
# The loss is a staircase, and on a stair the slope is 0. So the panel takes another slope, that of the
# **straight-through estimator** (Bengio et al., 2013): it rounds on the way forward, and on the way back it acts
# as if rounding were not there.
#
# **Move** the steps from 0 to 60. Then try other starts and other learning rates, and one that falls to 0.

# %%
trained = plots.path(-1.0, 1.3, lr=0.1, steps=60)
mean = sum(round(weight) for weight in trained[-40:]) / 40
predict("7a", panels.one_weight(), answer=trained[-1], mean=mean)

# %% [markdown]
# **Explain.** At the rung 1 the slope points up, at the rung 2 it points down. So the weight comes to the
# **threshold** 1.5 between the two, and jumps. This is called **oscillation** (Nagel et al., 2022). On average the
# network sees the target, but at each moment it sees 1 or 2. A smaller learning rate makes the swings of the
# float weight smaller. What the network uses jumps as often as before.

# %%
for lr, falling in ((0.3, False), (0.1, False), (0.02, False), (0.1, True)):
    weights = plots.path(-1.0, 1.3, lr, steps=1000, falling=falling)[-200:]
    used = [round(weight) for weight in weights]
    jumps = sum(one != other for one, other in zip(used, used[1:]))
    print(
        f"lr {lr}{', falls to 0' if falling else '':12} the last 200 steps: {min(weights):.2f} to {max(weights):.2f}, "
        f"used {sum(used) / 200:.2f} on average, {jumps} jumps"
    )
    assert abs(sum(used) / 200 - 1.3) < 0.02 and jumps > 100 and min(weights) < 1.5 < max(weights)
assert max(weights) - min(weights) < 0.05

# %% [markdown]
# ### Exercise 7.1: straight through
#
# Give the straight-through gradient of a loss. You can write the formula, or let PyTorch do it:
# `x + (something - x).detach()` has the value of `something` and the gradient of `x`.

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
# ### In PyTorch
#
# `detach()` hides what stands in it from the gradient. So straight through is one line:


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
# ### Exercise 7.3: what is clipped
#
# A grid has ends. What lies beyond them stays at the end when it moves a little, so its gradient is 0. Inside the
# grid, the ends included, the gradient passes as it is.

# %% tags=["exercise"]
check("7.3", gradient_of_values)

# %% [markdown]
# ### The ends themselves
#
# What gradient does PyTorch's `clamp` give a value that lies exactly at an end? That is a convention, and the cell
# prints what your version does. It sounds like a detail: hardly any `x / scale` lies there. But round first, and all that
# is rounded to the last rung lies exactly there. So LSQ clamps first, then rounds. The lesson uses a clamp of its
# own, so that it does not depend on the version.


# %%
def inside(x, low, high):
    """clamp, with the gradient of x inside and at both ends."""
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


for function in (torch.clamp, inside):
    places = torch.tensor([-1.2, -1.0, -0.8, 0.8, 1.0, 1.2], requires_grad=True)
    function(places, -1, 1).sum().backward()
    print(f"{function.__name__:7} at -1.2, -1, -0.8, 0.8, 1 and 1.2: gradient {places.grad.int().tolist()}")
assert places.grad.tolist() == [0, 1, 1, 1, 1, 0]

# %% [markdown]
# ## A scale that learns
#
# A value on the grid is `round(clamp(x / scale)) * scale`. The scale is a number like any weight, so it can
# learn too. Write $v = x / s$ for the position and $q$ for its code. The derivative of $q \cdot s$ has two
# parts, $q$ itself and $s \cdot dq/ds$. Inside the grid rounding passes straight through, so
# $dq/ds = dv/ds = -v / s$. Beyond the ends the code stays. Together:
#
# $$\frac{d\,(q \cdot s)}{ds} = q - v \ \text{ inside the grid}, \qquad q \ \text{ where x is clipped}$$
#
# This is **LSQ**, learned step size quantization (Esser et al., 2020). **PACT** (Choi et al., 2018) keeps the
# second case alone: only what is clipped moves the end of the grid.
#
# The smallest scale that clips nothing is called 100 % here. From there LSQ's gradient drives it.
#
# **Move** the scale down from 100 % until the triangle turns round. Compare with the lowest point of the
# curve.

# %%
layer = network.layer2[1].conv1
shares = [percent / 100 for percent in range(3, 101)]


def least_and_rest(bits):
    """(percent with the least error, percent from which on the gradient shrinks the scale)."""
    top = 2 ** (bits - 1) - 1
    weights = layer.weight.detach().double().flatten().numpy()
    found = [plots.scale_errors(weights, share * abs(weights).max() / top, top) for share in shares]
    errors, gradients = [one[2] for one in found], [one[3] for one in found]
    return 100 * shares[errors.index(min(errors))], 100 * shares[next(i for i, g in enumerate(gradients) if g > 0)]


least, rest = least_and_rest(3)
predict("7b", panels.learned_scale(layer.weight), answer=rest, best=least)

# %%
rests = {bits: least_and_rest(bits) for bits in (2, 3, 4, 8)}
table = "\n".join(f"{bits} bits: least error at {one:.0f} %, LSQ rests at {two:.0f} %" for bits, (one, two) in rests.items())
predict("7c", table, answer=sum(rests[8][1] > limit for limit in (50, 90)), percent=rests[8][1])

# %% [markdown]
# **Explain.** In the gradient of the squared error each rounding error has its part, and each clipped value.
# Rounding errors always drive the scale down: $2(qs - x)(q - v)$ is $2s(q - v)^2$. Clipped values always drive it up.
# The two are in balance at the scale with the least error, or at most 3 of the 100 points beside it; lesson 2 had to
# search for it. With 8 bits a step is so small that it pays to clip the very largest weights alone.

# %%
for bits, (one, two) in rests.items():
    print(f"{bits} bits: least error at {one:.0f} %, LSQ rests at {two:.0f} %")
    assert abs(one - two) <= 3
values = layer.weight.detach().double().flatten().numpy()
scale = (0.4 * layer.weight.detach().abs().max() / 3).requires_grad_()  # 3 bits, at 40 %
rounded, clipped = plots.drives(values, scale.item(), top=3)
print(f"3 bits, at 40 %: {len(clipped)} clipped weights all drive the scale up, {len(rounded):,} rounded ones all down")
largest = abs(values) > rests[8][1] / 100 * abs(values).max()
print(f"8 bits, at {rests[8][1]:.0f} %: {largest.sum()} of {len(values):,} weights clipped")
assert (rounded >= 0).all() and (clipped < 0).all() and len(clipped) > 0 and rests[8][1] > 90 and largest.sum() < 20

# %% [markdown]
# ### Exercise 7.4: LSQ by hand
#
# `gradient` holds, for each value on the grid, the derivative of the loss. The scale moves all values at once,
# so its gradient is a sum.

# %% tags=["exercise"]
check("7.4", gradient_of_scale)

# %% [markdown]
# ### The same by itself
#
# Nobody has to tell PyTorch the formula. It comes out of `inside` and `round_through` alone:


# %%
def on_the_grid(weight, scale, top):
    """The values that the network uses: clamp first, then round."""
    return round_through(inside(weight / scale, -top, top)) * scale


weights = layer.weight.detach()
loss = (on_the_grid(weights, scale, top=3) - weights).square().sum()
loss.backward()
by_formula = rounded.sum() + clipped.sum()
print(f"PyTorch's gradient {scale.grad.item():.3f}, by the formula {by_formula:.3f}")
assert abs(scale.grad.item() / by_formula - 1) < 0.001

# %% [markdown]
# ## One layer learns
#
# Put both together. One layer of the network gets weights of 2 bits, that is, the rungs -1, 0 and 1 times a
# scale. Its weights and its scale learn to give the outputs that the float layer gives. All activations stay
# in float here, so that you see the weights alone. It trains three times: as it is; with a learning rate that
# falls to 0 in the second half; and with a second term in the loss, which pulls each weight towards the rung that
# it is rounded to, a little more with each step.
#
# **Move** the step to the end. Then choose the other two trainings, and go through their steps.


# %%
def clamps_first(weight, scale):
    return on_the_grid(weight, scale, top=1)


inputs = inputs_of(network, layer, next(images.batches(16))[0])
training = {
    "as it is": train_layer(layer, inputs, clamps_first),
    "the rate falls": train_layer(layer, inputs, clamps_first, falling=True),
    "a pull to the rungs": train_layer(layer, inputs, clamps_first, pull=1),
}

# %%
last = training["as it is"][-1]
rungs, thresholds = share(last, -1, 0, 1), share(last, -0.5, 0.5)
answer = 1 if thresholds > 1.2 * rungs else 0 if rungs > 1.2 * thresholds else 2
predict("7d", panels.gathering(training, every=5), answer=answer, thresholds=thresholds, rungs=rungs)

# %% [markdown]
# **Explain.** The scale shrinks: it was made for the largest weight, and nearly all others were rounded to
# 0. The error of the output falls to a small part. Then many weights stand at a threshold, as the one weight did
# above: the loss wants something between two rungs. They oscillate.
#
# A falling rate leaves them there, but fewer of them jump, and the output is better. A pull brings them to
# the rungs and ends the jumping; the output pays for it, since not every weight is on the rung that it needs.

# %%
end = {name: snapshots[-1] for name, snapshots in training.items()}
for name, snapshots in training.items():
    first, last = snapshots[0], snapshots[-1]
    print(f"{name}: {share(first, 0, within=0.5):.0%} are rounded to 0 -> {share(last, 0, within=0.5):.0%}")
    print(f"    output error {first.error:.1%} -> {last.error:.1%}, scale {first.scale:.2f} -> {last.scale:.2f}")
    print(f"    {share(last, -0.5, 0.5):.0%} at a threshold, {share(last, -1, 0, 1):.0%} on a rung")
    print(f"    {last.jumped:.1%} have changed their code in the last 5 steps")
    assert last.error < first.error / 3 and last.scale < first.scale / 1.5 and share(first, 0, within=0.5) > 0.9
free, falls, pulled = end.values()
assert share(free, -0.5, 0.5) > 2 * share(free, -1, 0, 1) and free.jumped > 0.03
assert share(falls, -0.5, 0.5) > 2 * share(falls, -1, 0, 1)
assert falls.jumped < 0.6 * free.jumped and falls.error < free.error
assert share(pulled, -0.5, 0.5) < 0.05 and share(pulled, -1, 0, 1) > 2 * share(free, -1, 0, 1)
assert pulled.jumped < 0.005 and pulled.error > falls.error

# %% [markdown]
# ### Round first, then clamp?
#
# It gives the same values, so it looks right. `F.hardtanh` clamps to -1 and 1, and its gradient is 0 at the
# ends themselves.
#
# **Move** the step to the end in both trainings. Grey is a weight whose gradient is 0.


# %%
def rounds_first(weight, scale):
    return F.hardtanh(round_through(weight / scale)) * scale


assert torch.equal(rounds_first(weights, scale), clamps_first(weights, scale))
frozen = train_layer(layer, inputs, rounds_first)
both = {"round, then clamp": frozen, "clamp, then round": training["as it is"]}
held = {name: 100 * snapshots[-1].held.float().mean().item() for name, snapshots in both.items()}
numbers = dict(answer=held["round, then clamp"], other=held["clamp, then round"])
predict("7e", panels.gathering(both, every=5), **numbers)

# %% [markdown]
# **Explain.** Every weight that is rounded to -1 or 1 counts as clipped. Its gradient is 0: it is **frozen**
# there, and nothing brings it back but a scale that grows. When the scale shrinks, more and more of them freeze.
# That looks calm, for hardly a code changes any more. But it is no rest at a rung, and the output is worse than with
# a falling rate.

# %%
last = frozen[-1]
outer = (last.weights / last.scale).abs() > 0.5
print(f"rounded to -1 or 1: {outer.float().mean():.0%} of the weights; frozen of these: {last.held[outer].float().mean():.0%}")
print(f"codes that have just changed: {last.jumped:.1%}; where it clamps first, {free.jumped:.1%}")
print(f"output error {last.error:.1%}; where it clamps first, {free.error:.1%}, with a falling rate {falls.error:.1%}")
assert last.held[outer].all() and outer.float().mean() > 0.6 and last.jumped < 0.2 * free.jumped
assert last.error > 1.1 * falls.error and held["clamp, then round"] < 40

# %% [markdown]
# ## The whole network learns
#
# `qlab.qat.fit` does this for all layers at once, on labelled images, with an ordinary optimizer. Four
# things are special:
#
# - Every scale is a parameter and learns by LSQ. Its gradient is divided by $\sqrt{N \cdot q_{max}}$ with $N$
#   values sharing it. The next cell shows why.
# - One step changes a scale by at most 2 %. The gradient does not know how small a scale is, and one large
#   gradient could throw it below 0.
# - BatchNorm was folded into the weights. While they train it is live again, but what is rounded is the folded
#   weight, because that is what the integer network has (Jacob et al., 2018).
# - The **learning rate**, the length of a step, is small. The network is nearly right; it needs repair, not a
#   new start.

# %%
for bits in (2, 3, 4):
    top = 2 ** (bits - 1) - 1
    scale = (rests[bits][1] / 100 * weights.abs().max() / top).requires_grad_()
    weight = weights.clone().requires_grad_()
    wanted = F.conv2d(inputs, weights, padding=1)
    (F.conv2d(inputs, on_the_grid(weight, scale, top), padding=1) - wanted).square().mean().backward()
    relative = (scale.grad.abs() / scale / (weight.grad.norm() / weights.norm())).item()
    divided = relative * qat.gradient_share(weights.numel(), top)
    print(f"{bits} bits, for its size the scale's gradient is {relative:.0f} times the weights'; divided, {divided:.1f} times")
    assert relative > 10 and divided < relative / 20
assert qat.lsq.LIMIT == 0.02  # the share by which a step may change a scale

# %% [markdown]
# The training takes less than a minute.

# %%
prepared, before = few[best], losses[best]
broken = hits(prepared, test)
plan = qlab.train.Plan(epochs=1, batch_size=32, lr=0.01, shrink=0, label_smoothing=0)
qat.fit(prepared, images, plan=plan, freeze_batchnorm=1, progress=False)
repaired = hits(prepared, test)
gain, missing = paired(broken, repaired), paired(right, repaired)
table = f"PTQ against float   {before}\nQAT against PTQ     {gain}\nQAT against float   {missing}"
recovered = -gain.difference / before.difference
predict("7f", table, answer=100 * recovered, gain=f"{gain.difference:.0f}", loss=-before.difference)

# %% [markdown]
# **Explain.** One look at a few images brings a good part back, far more than chance. A real training
# goes on for epochs, through all training images; lesson 8 shows what that gives.

# %%
print(f"{gain.difference:.1f} of {-before.difference:.1f} points are back, {recovered:.0%}; standard error of the gain {gain.error:.1f}")
assert gain.difference > 3 * gain.error and 0.2 < recovered < 1.1

# %% [markdown]
# ## And now real integers
#
# Afterwards the network is an ordinary prepared one, with the scales that it has learned. `qlab.convert`
# makes integers of it, as in lesson 5. Some kernels add two branches of the network in one step with a
# convolution, others round in between; `fuse_additions` makes the prepared network do as the kernels of this
# machine do.

# %%
int8 = qlab.convert(prepared)
prepared.fuse_additions(engines.get(int8.engine).fuses_add)
x, _labels = next(test.batches(200))
with torch.inference_mode():
    same = (prepared(x).argmax(1) == int8(x).argmax(1)).float().mean().item()
accuracy = [100 * hits(one, test).float().mean().item() for one in (prepared, int8)]
table = f"{same:.1%} of {len(x)} answers are the same in integers ({int8.engine})"
predict("7g", table, answer=100 * (1 - same), before=accuracy[0], after=accuracy[1])

# %% [markdown]
# **Explain.** The prepared network rounds where the integers round, so they agree. (The kernels for ARM, qnnpack, also
# round each bias. With 2 bits one code is a third of the range, so some answers change there, for better or worse.)

# %%
print(f"{same:.1%} the same; right are {accuracy[0]:.1f} % before, {accuracy[1]:.1f} % in integers")
assert same > (0.5 if int8.engine == "qnnpack" else 0.97)
assert accuracy[1] > 100 * broken.float().mean().item()

# %% [markdown]
# ## Three questions

# %%
quiz(7)

# %% [markdown]
# ## What to remember
#
# - Rounding is flat, so its true gradient is 0. The **straight-through estimator** rounds going forward and
#   passes the gradient on unchanged; what is clipped gets 0. **Clamp first, then round**, or the outer rungs freeze.
# - Training keeps **float weights**. They are rounded anew each time they are used.
# - **LSQ**: a scale learns. As far as the squared error goes, rounding shrinks it and clipping grows it.
# - Weights of few bits gather at thresholds and **oscillate**. A falling learning rate makes that less, a pull to the
#   rungs ends it.
# - Even a short QAT brings back a good part of what PTQ at few bits breaks, and the result converts to integers.
#
# ## For teachers
#
# The common misconception: "QAT trains integers." Exercise 7.2 is made for it; let a student who fails it print
# the weights. Many expect the weights to gather on the rungs by themselves, so let all commit themselves before
# the third panel is moved. In 7.4 the common slip is code minus position for the clipped values too. Whoever is done early
# may train the network with a learning rate twice as large, and compare the two on the same images.
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
