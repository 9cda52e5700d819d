"""Detection in real time: which shapes are in a video, and where.

``scene`` draws videos whose truth is known, ``boxes`` is the geometry and the measure (mAP), ``chance`` how sure that is,
``network`` the detector that qlab quantizes, ``training`` its training, ``video`` the sources (scene, file, folder, webcam) and the loop that
never falls behind, ``show`` draws what was found.
"""

from qlab.detect.boxes import (
    MultiboxLoss,
    anchors,
    average_precision,
    decode,
    encode,
    finds,
    iou,
    match,
    mean_average_precision,
    nms,
)
from qlab.detect.chance import resampled
from qlab.detect.network import ANCHORS, Detector, SSDLite, evaluate, find, load, load_qat, read
from qlab.detect.scene import CLASSES, SIDE, Boxes, Scene, Scenes, normalize, scenes
from qlab.detect.training import loss
from qlab.detect.video import Frame, Meter, Seen, open_source, watch

__all__ = [
    "ANCHORS", "CLASSES", "SIDE", "Boxes", "Detector", "Frame", "Meter", "MultiboxLoss", "SSDLite", "Scene", "Scenes", "Seen",
    "anchors", "average_precision", "decode", "encode", "evaluate", "find", "finds", "iou", "load", "load_qat",
    "loss", "match", "mean_average_precision", "nms", "normalize", "open_source", "read", "resampled", "scenes", "watch",
]  # fmt: skip
