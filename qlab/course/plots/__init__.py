"""The figures of the course: data in, a matplotlib Figure out. No widgets, no pyplot.

A figure that moves is a function from the controls' values to the figure: always the same one, changed in
place, since drawing a new one takes too long for a drag. What it shows depends on the values alone.
"""

from qlab.course.plots.figure import CLIPPED, ERROR, FLOAT, PAPER, QUANTIZED, STYLE, Figure, jpeg
from qlab.course.plots.lesson0 import answers, fewer_bits
from qlab.course.plots.lesson1 import FORMATS, formats, rounding, rounding_errors
from qlab.course.plots.lesson2 import chosen_limits, clipping
from qlab.course.plots.lesson3 import calibration_size, settling

__all__ = [
    "CLIPPED", "ERROR", "FLOAT", "FORMATS", "PAPER", "QUANTIZED", "STYLE", "Figure", "answers", "calibration_size",
    "chosen_limits", "clipping", "fewer_bits", "formats", "jpeg", "rounding", "rounding_errors", "settling",
]  # fmt: skip
