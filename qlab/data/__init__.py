"""Images to train, calibrate and measure on."""

from qlab.data.cifar import Available, at_hand, available, cifar10
from qlab.data.dataset import Dataset
from qlab.data.shapes import shapes10

__all__ = ["Available", "Dataset", "at_hand", "available", "cifar10", "shapes10"]
