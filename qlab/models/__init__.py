"""The networks of the course, and their trained weights."""

from qlab.models.mobilenet import mobilenet_v2
from qlab.models.resnet import resnet20
from qlab.models.vgg import vgg

ARCHITECTURES = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2, "vgg": vgg}

__all__ = ["ARCHITECTURES", "mobilenet_v2", "resnet20", "vgg"]
