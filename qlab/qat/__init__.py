"""Quantization-aware training: the network learns with the rounding in place, and its grids learn too.

- Straight through: rounding passes the gradient as if it were not there (Bengio et al. 2013; Jacob et al. 2018).
- LSQ: a scale is a weight like any other. Its gradient leads to where rounding and clipping together cost least
  (Esser et al., "Learned step size quantization", 2020). Where 0 is inside the range, the zero point learns too
  (Bhalgat et al., "LSQ+", 2020).
- PACT: only what is clipped moves the clipping point (Choi et al., "PACT", 2018).
- BatchNorm trains along, folded into the weights before they are rounded, as it will be in the integer network
  (Jacob et al. 2018, section 3.2); near the end its statistics stand still (Krishnamoorthi 2018, section 3.2.2).
- Distillation: the float network's answers teach more than labels do (Hinton et al. 2015; Mishra and Marr 2018).
"""

from qlab.qat.batchnorm import NormalizedConv2d
from qlab.qat.loss import Loss, weight_error
from qlab.qat.lsq import LearnedQuantizer, LearnedStep, gradient_share
from qlab.qat.networks import load, qconfig
from qlab.qat.stages import METHODS, finish, start
from qlab.qat.straight_through import FollowingQuantizer
from qlab.qat.training import PLAN, fit, train

__all__ = [
    "METHODS", "PLAN", "FollowingQuantizer", "LearnedQuantizer", "LearnedStep", "Loss", "NormalizedConv2d", "finish",
    "fit", "gradient_share", "load", "qconfig", "start", "train", "weight_error",
]  # fmt: skip
