"""Which layers suffer, and where bits are well spent.

``noise`` (of each layer), ``sensitivities`` (one layer at a time), ``bits`` (mixed precision under a budget); all say it
in the SQNR of :mod:`qlab.ratio`.
"""

from qlab.analysis.bits import BitCost, BitCosts, Front, MixedPrecision, bit_costs, mixed_precision, weight_bytes
from qlab.analysis.noise import LayerSQNR, layer_sqnr
from qlab.analysis.sensitivities import Sensitivity, selective, sensitivity
from qlab.ratio import Ratio, sqnr

__all__ = [
    "BitCost", "BitCosts", "Front", "LayerSQNR", "MixedPrecision", "Ratio", "Sensitivity", "bit_costs", "layer_sqnr",
    "mixed_precision", "selective", "sensitivity", "sqnr", "weight_bytes",
]  # fmt: skip
