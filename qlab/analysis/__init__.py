"""Which layers suffer, and where bits are well spent.

``noise`` (of each layer), ``sensitivities`` (one layer at a time), ``bits`` (mixed precision under a budget); all say it
in the SQNR of :mod:`qlab.ratio`. ``paired`` says it in right answers: two networks on the same images.
"""

from qlab.analysis.bits import BitCost, BitCosts, Front, MixedPrecision, bit_costs, mixed_precision, weight_bytes
from qlab.analysis.noise import LayerSQNR, layer_sqnr
from qlab.analysis.paired import Paired, hits, paired
from qlab.analysis.sensitivities import Sensitivity, selective, sensitivity
from qlab.ratio import Ratio, sqnr

__all__ = [
    "BitCost", "BitCosts", "Front", "LayerSQNR", "MixedPrecision", "Paired", "Ratio", "Sensitivity", "bit_costs", "hits",
    "layer_sqnr", "mixed_precision", "paired", "selective", "sensitivity", "sqnr", "weight_bytes",
]  # fmt: skip
