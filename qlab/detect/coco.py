"""A detector for the things of every day: torchvision's SSDLite, trained on the 80 classes of COCO (Lin et al. 2014).

It is float only. Its backbone is MobileNetV3, whose hard-swish and squeeze-and-excitation have no integer kernel here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.detect.scene import Boxes


class Coco:
    """``Coco()(image)``: the boxes in an image, uint8 (3, side, side). Fetches the weights (13 MB) the first time.

    Raises OSError when they cannot be fetched.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        from torchvision.models import detection

        weights = detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
        try:
            network = detection.ssdlite320_mobilenet_v3_large(weights=weights, progress=False)
        except (OSError, RuntimeError) as error:  # no network; or what came is not what was asked for
            raise OSError(
                f"the detector trained on COCO could not be fetched from {weights.url} ({error}): that needs the internet, "
                "once. Without it, take the course's own detector"
            ) from error
        self.network, self.threshold = network.eval(), threshold
        self.classes = tuple(weights.meta["categories"])

    def __call__(self, image: Tensor) -> Boxes:
        with torch.inference_mode():
            found = self.network([image.float() / 255])[0]
        return Boxes(found["boxes"], found["labels"], found["scores"]).above(self.threshold)
