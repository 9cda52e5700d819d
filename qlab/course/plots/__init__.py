"""The figures of the course: data in, a matplotlib Figure out. No widgets, no pyplot.

A figure that moves is a function from the controls' values to the figure: always the same one, changed in
place, since drawing a new one takes too long for a drag. What it shows depends on the values alone.
"""

from qlab.course.plots.figure import CLIPPED, COLOURS, ERROR, FLOAT, PAPER, QUANTIZED, STYLE, Figure, jpeg
from qlab.course.plots.lesson0 import answers, fewer_bits
from qlab.course.plots.lesson1 import (
    FORMATS,
    formats,
    formats_texts,
    in_format,
    rounded,
    rounding,
    rounding_errors,
    rounding_texts,
)
from qlab.course.plots.lesson2 import chosen_limits, clipping, clipping_errors, clipping_texts, enough_of
from qlab.course.plots.lesson3 import calibration_size, settling
from qlab.course.plots.lesson4 import channel_ranges, equalization, granularities
from qlab.course.plots.lesson5 import LayerSpeed, dot_product, roofline, saturating_sums, saturation
from qlab.course.plots.lesson6 import bit_budget, layer_noise
from qlab.course.plots.lesson7 import Snapshot, gathering, learned_scale, one_weight
from qlab.course.plots.lesson8 import Candidate, choice, ptq_and_qat, smallest
from qlab.course.plots.lesson9 import codebook, few_values
from qlab.course.plots.lesson10 import bits_of_weights, smoothing, w8a8_error, weight_groups
from qlab.course.plots.lesson11 import side_by_side, suppression
from qlab.course.plots.lesson12 import qdq, savings
from qlab.course.plots.lesson99 import pareto

__all__ = [
    "CLIPPED", "COLOURS", "Candidate", "ERROR", "FLOAT", "FORMATS", "Figure", "LayerSpeed", "PAPER", "QUANTIZED",
    "STYLE", "Snapshot", "answers", "bit_budget", "bits_of_weights", "calibration_size", "channel_ranges", "choice",
    "chosen_limits", "clipping", "clipping_errors", "clipping_texts", "codebook", "dot_product", "enough_of",
    "equalization", "few_values", "fewer_bits", "formats", "formats_texts", "gathering", "granularities", "in_format",
    "jpeg", "layer_noise", "learned_scale", "one_weight", "pareto", "ptq_and_qat", "qdq", "roofline", "rounded",
    "rounding", "rounding_errors", "rounding_texts", "saturating_sums", "saturation", "savings", "settling",
    "side_by_side", "smallest", "smoothing", "suppression", "w8a8_error", "weight_groups",
]  # fmt: skip
