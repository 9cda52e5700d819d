"""The arithmetic in the open: every layer of an int8 network in integers, in plain torch, on any machine.

A layer's values are ``scale * (code - zero_point)``, so a convolution or linear layer is a sum of integer
products:

    sum  = sum over inputs of (q_x - z_x) * q_w               int32, in steps of s_x * s_w
    q_y  = clamp(z_y + round(M * sum + B))                    M = s_x * s_w / s_y,  B = bias / s_y

M and B are the only real numbers; both are known beforehand, and become integers over a power of two.

Sources: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference" (2018), equations 4 to 7; gemmlowp and TensorFlow Lite (M as a fixed-point number). Jacob et al. (section
2.4) round the bias to a step of the sum, int32. That step is not always small: with few bits, and in a depthwise
layer, which adds up few products, it is a good part of an output step. So here the bias joins after the
multiplication, in the 64-bit product.

:class:`Engine` is what every engine must compute, and computes it itself: the others (``engines/``) replace
its methods with fast kernels and stay within one code of it. A *kernel* is a function in which all that is
known beforehand (weights, multipliers) is packed once. Codes travel as uint8 tensors in channels_last order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.affine import QParams
from qlab.granularity import PerChannel
from qlab.int8.held import Held

Kernel = Callable[..., Tensor]
Pair = tuple[int, int]


# --- One number: multiply by a real number with an integer multiplication and a shift


def fixed_point(*multipliers: Tensor) -> tuple[list[Tensor], Tensor]:
    """Write real multipliers as ``mantissa / 2**shift``: int64 mantissas over one common shift.

    The largest multiplier has a mantissa of 31 bits (Q31: it fits an int32 register), the others have at most
    that. Multipliers have shape () or one entry a channel; then so has the shift.

    >>> mantissas, shift = fixed_point(torch.tensor(0.75))
    >>> mantissas, shift
    ([tensor(1610612736)], tensor(31))
    >>> mantissas[0] / 2**31
    tensor(0.7500)

    Raises ValueError for a multiplier that is not positive, or is 2**30 or more: one step of the sum would
    then be a billion steps of the output.
    """
    stacked = torch.stack(torch.broadcast_tensors(*(m.to(torch.float64) for m in multipliers)))
    if not bool(((stacked > 0) & (stacked < 2**30)).all()):
        raise ValueError(
            f"multipliers from {float(stacked.min()):.3g} to {float(stacked.max()):.3g}: expected more than "
            "0 and less than 2**30; look for a scale that is far too large or too small"
        )
    _, exponent = torch.frexp(stacked.amax(0))  # the largest = fraction * 2**exponent, 0.5 <= fraction < 1
    shift = (31 - exponent).clamp(max=48).to(torch.int64)  # beyond, an int32 sum would change by 2**-18
    mantissas = torch.ldexp(stacked, shift).round().clamp(max=2**31 - 1)
    return list(mantissas.to(torch.int64)), shift


def rescale(terms: Sequence[Tensor], mantissas: Sequence[Tensor], shift: Tensor, offset: Tensor | int = 0) -> Tensor:
    """``round((sum of term * mantissa + offset) / 2**shift)``: integers times real multipliers, without a real number.

    Half a unit is added before the shift, so halves round up. gemmlowp rounds twice (to 31 bits, then to the
    code); one rounding is never further from the true value. The terms are int64 and are overwritten, to save
    memory.

    >>> mantissas, shift = fixed_point(torch.tensor(0.75))
    >>> rescale([torch.tensor([1, 2, 3, -3])], mantissas, shift)      # 0.75, 1.5, 2.25, -2.25
    tensor([ 1,  2,  2, -2])
    """
    total = terms[0].mul_(mantissas[0])  # 32 bits times 31 bits: int64 holds it
    for term, mantissa in zip(terms[1:], mantissas[1:]):
        total += term.mul_(mantissa)
    total += offset + (1 << (shift - 1))
    total >>= shift
    return total


def to_codes(
    multipliers: Sequence[Tensor], out_qp: QParams, relu: bool = False, bias: Tensor | None = None
) -> Kernel:  # fmt: skip
    """The kernel "terms -> codes of out_qp": rescale, add the zero point, clamp. Overwrites its terms, int64.

    ``bias`` is a real number, of the multipliers' shape, in steps of the output. A relu is the clamp with the zero
    point as its lower end: it costs nothing.

    >>> kernel = to_codes([torch.tensor(0.5)], QParams(1.0, 10, bits=4), relu=True)
    >>> kernel(torch.tensor([-8, 0, 4, 100]))
    tensor([10, 10, 12, 15], dtype=torch.uint8)
    """
    mantissas, shift = fixed_point(*multipliers)
    zero_point = int(out_qp.zero_point)
    low = zero_point if relu else out_qp.qmin
    offset = 0 if bias is None else torch.ldexp(bias.to(torch.float64), shift).round().clamp(-(2**61), 2**61).long()

    def kernel(*terms: Tensor) -> Tensor:
        return rescale(terms, mantissas, shift, offset).add_(zero_point).clamp_(low, out_qp.qmax).to(torch.uint8)

    return kernel


# --- The sums of integers


def linear_sums(q: Tensor, zero_point: int, weight: Tensor) -> Tensor:
    """``sum of (q - zero_point) * weight`` over each row, in int32: what an int8 processor computes.

    It multiplies the codes as they are. Their zero point is *folded* into one number an output channel
    (Jacob, equation 7), since ``sum (q - z) w = sum q w - z * sum w``. q: uint8 (..., in); weight: int8
    (out, in). Returns int32 (..., out).

    >>> linear_sums(torch.tensor([[3, 5]]).byte(), 1, torch.tensor([[2, 10]]).char())        # 2*2 + 4*10
    tensor([[44]], dtype=torch.int32)
    """
    weight = weight.to(torch.int32)
    return q.to(torch.int32) @ weight.T - zero_point * weight.sum(1, dtype=torch.int32)


def windows(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Every window that a kernel slides over: (N, C, H, W) -> (N, C, H_out, W_out, height, width).

    It is a view, no copy. im2col, the usual way to make a matrix product of a convolution, reshapes it.

    >>> windows(torch.arange(16).reshape(1, 1, 4, 4), (2, 2), (2, 2), (1, 1))[0, 0, 1, 0]
    tensor([[ 8,  9],
            [12, 13]])
    """
    for axis in (0, 1):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, span, stride[axis])
    return x[..., :: dilation[0], :: dilation[1]]


def fit_windows(
    length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False
) -> tuple[int, int]:
    """How many windows fit along one axis, as torch counts, and how much padding the last needs at the end.

    With ceil_mode (of pooling) the last may overhang, but must start inside. Raises ValueError where none fits.

    >>> fit_windows(6, kernel=3, stride=2, padding=0, dilation=1, ceil_mode=True)
    (3, 1)
    """
    span = dilation * (kernel - 1) + 1
    room = length + 2 * padding - span
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1
    if count < 1:
        raise ValueError(
            f"a window of {span} does not fit an image of {length} padded by {padding} on both sides: "
            "expected a larger image, or a smaller kernel_size"
        )
    return count, max(0, (count - 1) * stride + span - length - padding)


def conv2d_sums(
    q: Tensor, zero_point: int, weight: Tensor, *, stride: Pair = (1, 1), padding: Pair = (0, 0),
    dilation: Pair = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """``sum of (q - zero_point) * weight`` over each window, in int32: :func:`linear_sums` of every window.

    What is padded is the value 0, so the code z. q: uint8 (N, C_in, H, W); weight: int8 (C_out, C_in / groups,
    height, width). Returns int32 (N, C_out, H_out, W_out).

    >>> conv2d_sums(torch.tensor([[[[3, 5]]]]).byte(), 1, torch.tensor([[[[2, 10]]]]).char())   # 2*2 + 4*10
    tensor([[[[44]]]], dtype=torch.int32)
    """
    padded = F.pad(q, (padding[1], padding[1], padding[0], padding[0]), value=zero_point)
    patches = windows(padded, tuple(weight.shape[2:]), stride, dilation)
    (n, _, height, width), (outputs, inputs, *taps) = patches.shape[:4], weight.shape
    patches = patches.reshape(n, groups, inputs, height, width, *taps).permute(1, 0, 3, 4, 2, 5, 6)
    columns = patches.reshape(groups, n * height * width, weight[0].numel())  # one row a window
    rows = weight.reshape(groups, outputs // groups, weight[0].numel())  # one row an output channel
    sums = torch.stack([linear_sums(a, zero_point, b) for a, b in zip(columns, rows)])
    return sums.permute(1, 0, 2).reshape(n, height, width, outputs).permute(0, 3, 1, 2)


def sum_bound(weight: Tensor, x_qp: QParams) -> int:
    """The largest absolute value that a sum of some of the products ``(q - zero_point) * weight`` can have.

    >>> sum_bound(torch.tensor([[100, 27], [-3, 2]], dtype=torch.int8), QParams(1.0, 0))         # 255 * 127
    32385
    """
    if weight.numel() == 0:
        return 0
    lowest, highest = x_qp.qmin - int(x_qp.zero_point), x_qp.qmax - int(x_qp.zero_point)
    rows = weight.reshape(weight.shape[0], -1).to(torch.int64)
    positive, negative = rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1)
    most = positive * highest + negative * lowest
    least = positive * lowest + negative * highest
    return int(torch.maximum(most, -least).max())


def exact_float(weight: Tensor, x_qp: QParams) -> torch.dtype:
    """The float type in which sums of ``(q - zero_point) * weight`` are exact, in any order of adding.

    float32 holds every integer up to 2**24, float64 up to 2**53, so a float convolution of integers is exact
    while no partial sum can pass that. Float units multiply 10 to 100 times as fast as torch's integer matrix
    product, so the engine below computes its integers with them, unless it is asked for the plain form: the same
    integers as :func:`conv2d_sums` and :func:`linear_sums` give.

    >>> exact_float(torch.full((1, 9), 127, dtype=torch.int8), QParams(1.0, 0))
    torch.float32
    >>> exact_float(torch.full((1, 4608), 127, dtype=torch.int8), QParams(1.0, 0))
    torch.float64
    """
    return torch.float32 if sum_bound(weight, x_qp) < 2**24 else torch.float64


# --- What every engine offers, computed with the functions above


class Engine:
    """Makes kernels: functions from codes to codes, with weights and multipliers packed once.

    This one computes everything in integers, slowly enough to be read and fast enough for a test set
    (ResNet-20 on 10,000 images in about half a minute). Activations are unsigned with at most 8 bits and
    one scale a tensor, weights signed with at most 8 bits, the zero point 0 and one scale a tensor or an
    output channel.

    ``plain=True`` takes each sum as it is written above, in int32 (:func:`conv2d_sums`, :func:`linear_sums`), for
    whoever wants to step through: ``network.on(Engine(plain=True))``. The default takes the same sums by float units,
    many times as fast. Both give the same codes.

    >>> engine, x_qp, weight_qp = Engine(), QParams(0.5, 3), QParams(0.1, 0, signed=True)
    >>> kernel = engine.linear(torch.tensor([[10, -20]], dtype=torch.int8), None, weight_qp, x_qp, x_qp)
    >>> q = engine.quantize(x_qp)(torch.tensor([[4.0, 1.0]]))
    >>> q, kernel(q), engine.dequantize(x_qp)(kernel(q))              # 1.0 * 4 - 2.0 * 1 = 2
    (tensor([[11,  5]], dtype=torch.uint8), tensor([[7]], dtype=torch.uint8), tensor([[2.]]))
    """

    name = "reference"
    fuses_add = True  # conv2d_add is there: the sum is rounded once, not twice

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain

    def running(self) -> AbstractContextManager:
        """Enter it around a whole network: what its kernels need set up, done once rather than in each."""
        return nullcontext()

    def capture(self, program: Kernel, layers: nn.Module, x: Tensor) -> Kernel:
        """``program``, made of this engine's kernels, recorded for batches like ``x``: no Python is left in it.

        ``layers`` holds what runs in float. It needs no :meth:`running` around it. Raises ValueError where that
        cannot be done, or gives other scores.
        """
        raise ValueError(
            f"engine {self.name!r} cannot be captured: of torch's engines only those of torch.ops.quantized can. "
            "Choose engine='onednn', 'x86', 'fbgemm' or 'qnnpack', or leave the network as it is"
        )

    def quantize(self, qp: QParams) -> Kernel:
        """Floats -> codes; images (4-D) become channels_last. NaN or infinity raises ValueError."""
        check_activation(qp)
        inverse, zero_point = 1 / float(qp.scale), int(qp.zero_point)

        def kernel(x: Tensor) -> Tensor:
            values = finite(floats(x)).mul(inverse).round_()
            return values.add_(zero_point).clamp_(qp.qmin, qp.qmax).to(torch.int32).to(torch.uint8)

        return kernel

    def dequantize(self, qp: QParams) -> Kernel:
        """Codes -> float32."""
        check_activation(qp)
        scale, zero_point = float(qp.scale), int(qp.zero_point)
        return lambda q: q.to(torch.float32).sub_(zero_point).mul_(scale)

    def conv2d(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        """Convolution (+ relu) of (N, C_in, H, W). weight: int8 (C_out, C_in / groups, h, w); bias: float."""
        finish = finish_sums(weight, bias, weight_qp, x_qp, (), out_qp, relu)
        sums = self._conv2d_sums(weight, x_qp, pair(stride), pair(padding), pair(dilation), groups)
        return lambda q: finish(sums(q))

    def conv2d_add(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, other_qp: QParams,
        out_qp: QParams, *, stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1,
        groups: int = 1, relu: bool = False, overwrite_other: bool = False,
    ) -> Kernel:  # fmt: skip
        """Convolution + other tensor (+ relu), rounded once.

        ``overwrite_other=True`` allows the kernel to leave its result in ``other``'s memory, which is faster
        where an engine can: pass it when nobody reads ``other`` afterwards.
        """
        finish = finish_sums(weight, bias, weight_qp, x_qp, (other_qp,), out_qp, relu)
        sums = self._conv2d_sums(weight, x_qp, pair(stride), pair(padding), pair(dilation), groups)
        other_zero_point = int(other_qp.zero_point)

        def kernel(q: Tensor, other: Tensor) -> Tensor:
            total = sums(q)
            check_addends(total.shape, other.shape)
            return finish(total, other.to(torch.int64).sub_(other_zero_point))

        return kernel

    def linear(
        self, weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, out_qp: QParams, *,
        relu: bool = False,
    ) -> Kernel:  # fmt: skip
        """Linear layer (+ relu) on codes (..., in). weight: int8 (out, in)."""
        finish = finish_sums(weight, bias, weight_qp, x_qp, (), out_qp, relu)
        dtype, zero_point = exact_float(weight, x_qp), int(x_qp.zero_point)
        transposed = weight.to(dtype).T.contiguous()

        def kernel(q: Tensor) -> Tensor:
            linear_shape(q.shape, weight)
            if self.plain:
                return finish(linear_sums(q, zero_point, weight))
            with _nothing_rounds():
                return finish(q.to(dtype).sub_(zero_point) @ transposed)

        return kernel

    def add(self, a_qp: QParams, b_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
        """The sum of two tensors (+ relu): each rescaled to out_qp, rounded once (Jacob, appendix A.2)."""
        finish = to_codes([ratio(a_qp, out_qp), ratio(b_qp, out_qp)], out_qp, relu)
        a_zero, b_zero = int(a_qp.zero_point), int(b_qp.zero_point)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            check_addends(a.shape, b.shape)
            return finish(a.to(torch.int64).sub_(a_zero), b.to(torch.int64).sub_(b_zero))

        return kernel

    def max_pool2d(
        self, qp: QParams, *, kernel_size: int | Pair, stride: int | Pair | None = None,
        padding: int | Pair = 0, dilation: int | Pair = 1, ceil_mode: bool = False,
    ) -> Kernel:  # fmt: skip
        """The largest code is the code of the largest value: no arithmetic, the grid stays.

        It takes the maximum over shifted copies of the image, one for each place of the window. Padding is
        the lowest code, 0: as good as minus infinity.
        """
        check_activation(qp)
        kernel, dilation = pair(kernel_size), pair(dilation)
        stride, padding = pair(kernel_size if stride is None else stride), pair(padding)

        def pool(q: Tensor) -> Tensor:
            places = _places(q, 0, kernel, stride, padding, dilation, ceil_mode)
            best = places[0].clone(memory_format=torch.channels_last)
            for place in places[1:]:
                torch.maximum(best, place, out=best)
            return best

        return pool

    def avg_pool2d(
        self, x_qp: QParams, out_qp: QParams, *, kernel_size: int | Pair, stride: int | Pair | None = None,
        padding: int | Pair = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Kernel:  # fmt: skip
        """The mean over each window: an integer sum; the division by the count goes into the multiplier."""
        kernel, padding = pair(kernel_size), pair(padding)
        stride, zero_point = pair(kernel_size if stride is None else stride), int(x_qp.zero_point)
        step = ratio(x_qp, out_qp)

        @cache
        def finish(height: int, width: int) -> Kernel:
            axes = zip((height, width), kernel, stride, padding)
            down, across = (_counts(*axis, ceil_mode, count_include_pad) for axis in axes)
            return to_codes([step / (down[:, None] * across)], out_qp)

        def pool(q: Tensor) -> Tensor:
            places = _places(q, zero_point, kernel, stride, padding, (1, 1), ceil_mode)
            total = places[0].to(torch.int32)
            for place in places[1:]:
                total += place
            return finish(*q.shape[2:])(total.sub_(len(places) * zero_point).to(torch.int64))

        return pool

    def adaptive_avg_pool2d(self, x_qp: QParams, out_qp: QParams, *, output_size: int | Pair) -> Kernel:
        """The mean over each of output_size cells; 1 is the mean over the whole image."""
        size, zero_point, step = pair(output_size), int(x_qp.zero_point), ratio(x_qp, out_qp)

        @cache
        def finish(count: int) -> Kernel:
            return to_codes([step / count], out_qp)

        def mean(cell: Tensor) -> Tensor:
            count = cell.shape[2] * cell.shape[3]
            return finish(count)(cell.sum((2, 3), keepdim=True, dtype=torch.int64).sub_(count * zero_point))

        def pool(q: Tensor) -> Tensor:
            rows = (q[:, :, top:bottom] for top, bottom in _cells(q.shape[2], size[0]))
            columns = _cells(q.shape[3], size[1])
            means = [torch.cat([mean(row[..., left:right]) for left, right in columns], 3) for row in rows]
            return channels_last(torch.cat(means, 2))

        return pool

    def cat(self, qps: Sequence[QParams], out_qp: QParams, *, dim: int = 1) -> Kernel:
        """Concatenate a list of tensors, each on out_qp first."""
        moves = [self.requantize(qp, out_qp) for qp in qps]

        def kernel(parts: Sequence[Tensor]) -> Tensor:
            return channels_last(torch.cat([move(q) for move, q in zip(moves, parts, strict=True)], dim))

        return kernel

    def requantize(self, x_qp: QParams, out_qp: QParams, *, relu: bool = False) -> Kernel:
        """The same values on another grid (+ relu); nothing to do when the grids are equal without relu."""
        if same_grid(x_qp, out_qp):
            low = int(out_qp.zero_point)
            return (lambda q: q.clamp(min=low)) if relu else (lambda q: q)
        finish, zero_point = to_codes([ratio(x_qp, out_qp)], out_qp, relu), int(x_qp.zero_point)
        return lambda q: finish(q.to(torch.int64).sub_(zero_point))

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> Kernel:
        """Another view of the same codes; a copy where channels_last order does not allow a view."""
        return lambda q: q.flatten(start_dim, end_dim)

    def _conv2d_sums(
        self, weight: Tensor, x_qp: QParams, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Kernel:  # fmt: skip
        """The kernel "codes -> sums of a convolution": by a float convolution, which is exact, or plainly.

        Torch's float convolution is wrong, and another time otherwise, where windows move along a row but only one
        fits (oneDNN 3.x, images of one channel): those sums are plain always.
        """
        dtype, zero_point = exact_float(weight, x_qp), int(x_qp.zero_point)
        floats = weight.to(dtype).contiguous(memory_format=torch.channels_last)

        def kernel(q: Tensor) -> Tensor:
            width = conv2d_shape(q.shape, weight, stride, padding, dilation, groups)[3]
            if self.plain or (width == 1 and stride[1] > 1):
                window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
                return channels_last(conv2d_sums(q, zero_point, weight, **window))
            with _nothing_rounds():  # it pads by 0, as the zero point is gone
                x = q.to(dtype).sub_(zero_point)
                return channels_last(F.conv2d(x, floats, None, stride, padding, dilation, groups))

        return kernel


# --- Shared by the engines


def finish_sums(
    weight: Tensor, bias: Tensor | None, weight_qp: QParams, x_qp: QParams, others: Sequence[QParams],
    out_qp: QParams, relu: bool,
) -> Kernel:  # fmt: skip
    """The kernel from the sums of a weighted layer (and what is added to it) to codes: bias, rescaling, relu.

    Raises ValueError for grids that no int8 kernel computes with, and where the int32 sum could overflow.
    """
    check_weighted(weight, weight_qp, x_qp, *others, out_qp)
    shape = (-1, 1, 1) if weight.ndim == 4 else (-1,)
    step = (x_qp.scale.double() * weight_qp.scale.double()).expand(weight.shape[0])
    largest_sum = sum_bound(weight, x_qp)
    if largest_sum >= 2**31:
        raise ValueError(
            f"a sum of this layer can reach {largest_sum:.3g}, more than an int32 accumulator holds "
            f"({2**31 - 1}): expected fewer inputs ({weight[0].numel()} now), or fewer bits"
        )
    multiplier = (step / out_qp.scale.double()).reshape(shape)
    bias = None if bias is None else (bias.detach().double() / out_qp.scale.double()).reshape(shape)
    to_out = to_codes([multiplier, *(ratio(other, out_qp) for other in others)], out_qp, relu, bias)

    def kernel(sums: Tensor, *added: Tensor) -> Tensor:
        return to_out(sums.to(torch.int64), *added)  # exact: the sums are integers, in whatever type they come

    return kernel


# NNPACK may take Winograd's algorithm, which is fast and rounds. All others add up plain products.
_nnpack = Held(torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled)


@contextmanager
def _nothing_rounds() -> Iterator[None]:
    """Float sums of integers are exact in here: no algorithm that rounds, and no autocast to fewer bits."""
    with _nnpack.at(False), without_autocast():
        yield


def without_autocast() -> AbstractContextManager:
    """Nothing in here is computed in fewer bits because torch.autocast is on around it."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def ratio(x_qp: QParams, out_qp: QParams) -> Tensor:
    """How many steps of the grid out_qp one step of x_qp is; both are checked to be grids of activations."""
    return check_activation(x_qp).scale.double() / check_activation(out_qp).scale.double()


def check_activation(qp: QParams) -> QParams:
    """qp itself; ValueError when no int8 kernel takes activations on this grid."""
    if qp.signed or qp.bits > 8 or qp.scale.ndim:
        raise ValueError(
            f"activations on a grid that is {'signed' if qp.signed else 'unsigned'}, has {qp.bits} bits and "
            f"a scale of shape {tuple(qp.scale.shape)}: integer kernels take unsigned ones of at most 8 bits "
            "with one scale a tensor; use QuantSpec(bits=8)"
        )
    return qp


def check_weighted(weight: Tensor, weight_qp: QParams, *activations: QParams) -> None:
    """ValueError when a layer's weights or grids are none that an int8 kernel computes with."""
    for qp in activations:
        check_activation(qp)
    if weight.dtype is not torch.int8 or not weight_qp.signed or bool(weight_qp.zero_point.any()):
        raise ValueError(
            f"weight codes of {weight.dtype} on {'a signed' if weight_qp.signed else 'an unsigned'} grid "
            f"with zero point(s) {weight_qp.zero_point.unique().tolist()}: expected int8 codes, signed, zero "
            "point 0; use QuantSpec(bits=8, signed=True, symmetric=True)"
        )
    by_channel = weight_qp.granularity.of(weight.shape) == PerChannel(0) and weight_qp.scale.shape == weight.shape[:1]
    if weight_qp.scale.ndim and not by_channel:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} with {weight_qp.granularity} and a scale of shape "
            f"{tuple(weight_qp.scale.shape)}: expected PerTensor(), or PerChannel(0) with one scale for each "
            "output channel, which alone can be taken out of the integer sum"
        )


def conv2d_shape(
    shape: Sequence[int], weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[int, ...]:
    """The shape that a convolution of inputs of this shape gives; ValueError where they are none for its weights.

    >>> conv2d_shape((1, 3, 32, 32), torch.zeros(8, 3, 5, 5), (2, 2), (1, 1), (1, 1), groups=1)
    (1, 8, 15, 15)
    """
    channels = weight.shape[1] * groups
    if len(shape) != 4 or shape[1] != channels or weight.shape[0] % groups:
        raise ValueError(
            f"an input of shape {tuple(shape)} for a convolution with weights {tuple(weight.shape)} in {groups} "
            f"group(s): expected (N, {channels}, H, W), and as many outputs in each group"
        )
    axes = zip(shape[2:], weight.shape[2:], stride, padding, dilation)
    return (shape[0], weight.shape[0], *(fit_windows(*axis)[0] for axis in axes))


def linear_shape(shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """The shape that a linear layer gives; ValueError for inputs that do not have its number of features."""
    if len(shape) < 2 or shape[-1] != weight.shape[1]:
        raise ValueError(
            f"an input of shape {tuple(shape)} for a linear layer with weights {tuple(weight.shape)}: expected "
            f"(N, ..., {weight.shape[1]})"
        )
    return (*shape[:-1], weight.shape[0])


def check_addends(a: Sequence[int], b: Sequence[int]) -> None:
    """ValueError where two tensors that are added have different shapes: integer kernels do not broadcast."""
    if tuple(a) != tuple(b):
        raise ValueError(
            f"two addends of shapes {tuple(a)} and {tuple(b)}: expected the same shape twice. Where the float network takes "
            "this input, give qlab.prepare an example of its size"
        )


def same_grid(a: QParams, b: QParams) -> bool:
    """Whether a code means the same number on both grids and both have the same codes."""
    return a is b or a == b


def finite(x: Tensor) -> Tensor:
    """x itself; ValueError when it holds NaN or infinity, for which there is no code."""
    if torch.compiler.is_exporting():  # there are no numbers yet to look at
        return x
    # A sum is finite only if every term is: one cheap pass. It may overflow without cause, so look again.
    if not isfinite(x.sum()) and not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"the input holds {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite values of "
            f"{x.numel()}: expected finite numbers; look at what computed it"
        )
    return x


def channels_last(x: Tensor) -> Tensor:
    """Images (4-D) in channels_last order, all else as it is; no copy when it is so already."""
    if x.ndim != 4 or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def floats(x: Tensor) -> Tensor:
    """x in float32 and, if images, channels_last; x itself when it is so already, so that nothing is recorded of it."""
    return channels_last(x.detach() if x.dtype is torch.float32 else x.detach().to(torch.float32))


def pair(value: int | Sequence[int]) -> Pair:
    """One number for both axes, or one for each: 3 -> (3, 3).

    Raises ValueError for anything else, such as padding="same".
    """
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(number, int) for number in both):
        raise ValueError(f"{value!r}: expected a whole number, or one for height and one for width")
    return both


def _places(
    q: Tensor, fill: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> list[Tensor]:
    """For each place of a pooling window, the codes that stand there in all windows: (N, C, H_out, W_out)."""
    axes = zip(q.shape[2:], kernel, stride, padding, dilation)
    (rows, below), (columns, right) = (fit_windows(*axis, ceil_mode) for axis in axes)
    if any((*padding, below, right)):
        q = F.pad(q, (padding[1], right, padding[0], below), value=fill)
    places = windows(q, kernel, stride, dilation)[:, :, :rows, :columns]
    return [places[..., i, j] for i in range(kernel[0]) for j in range(kernel[1])]


def _counts(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool) -> Tensor:
    """By how many values torch divides, for each window along one axis."""
    start = torch.arange(fit_windows(length, kernel, stride, padding, 1, ceil_mode)[0]) * stride - padding
    end = (start + kernel).clamp(max=length + padding)  # what overhangs the padding never counts
    return end - start if include_pad else end.clamp(max=length) - start.clamp(min=0)


def _cells(length: int, count: int) -> list[Pair]:
    """Where each of ``count`` adaptive pooling cells begins and ends."""
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
