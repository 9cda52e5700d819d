"""The figures of the course: data in, a matplotlib Figure out. No widgets, no pyplot.

A figure that moves is a function from the controls' values to the figure: always the same one, changed in
place, since drawing a new one takes too long for a drag. What it shows depends on the values alone.
"""

from qlab.course.plots.figure import CLIPPED, ERROR, FLOAT, PAPER, QUANTIZED, STYLE, Figure, jpeg
from qlab.course.plots.lesson0 import answers, fewer_bits
from qlab.course.plots.lesson1 import FORMATS, formats, rounding, rounding_errors
from qlab.course.plots.lesson2 import chosen_limits, clipping
from qlab.course.plots.lesson3 import calibration_size, settling
from qlab.course.plots.lesson4 import channel_ranges, equalization, granularities
from qlab.course.plots.lesson5 import LayerSpeed, dot_product, roofline, saturating_sums, saturation
from qlab.course.plots.lesson6 import bit_budget, layer_noise
from qlab.course.plots.lesson7 import Snapshot, gathering, learned_scale, one_weight
from qlab.course.plots.lesson8 import Candidate, choice, ptq_and_qat, smallest
from qlab.course.plots.lesson9 import codebook, few_values
from qlab.course.plots.lesson99 import pareto

__all__ = [
    "CLIPPED", "ERROR", "FLOAT", "FORMATS", "PAPER", "QUANTIZED", "STYLE", "Candidate", "Figure", "LayerSpeed",
    "Snapshot", "answers", "bit_budget", "calibration_size", "channel_ranges", "choice", "chosen_limits", "clipping",
    "codebook", "dot_product", "equalization", "few_values", "fewer_bits", "formats", "gathering", "granularities",
    "jpeg", "layer_noise", "learned_scale", "one_weight", "pareto", "ptq_and_qat", "roofline", "rounding", "rounding_errors",
    "saturating_sums", "saturation", "settling", "smallest",
]  # fmt: skip
