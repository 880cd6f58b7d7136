"""Networks that expect images in [0, 1]: architectures, wrappers, and the trained ones that ship with the package."""

from .architectures import cnn, densenet, inception, resnet, small, vgg
from .defended import Detector, Projected, Quantized, Randomized, bit_depth, median_filter
from .large import preactresnet18, wide_resnet
from .pretrained import efficientnet_lite, torchvision
from .surrogates import Ensemble, Ghost, ParameterNoise, Rotation
from .wrappers import Counted, MinMax, Normalized
from .zoo import BUNDLED, card, load

__all__ = [
    "BUNDLED",
    "Counted",
    "Detector",
    "Ensemble",
    "Ghost",
    "MinMax",
    "Normalized",
    "ParameterNoise",
    "Projected",
    "Quantized",
    "Randomized",
    "Rotation",
    "bit_depth",
    "card",
    "cnn",
    "densenet",
    "efficientnet_lite",
    "inception",
    "load",
    "median_filter",
    "preactresnet18",
    "resnet",
    "small",
    "torchvision",
    "vgg",
    "wide_resnet",
]
