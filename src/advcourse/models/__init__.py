"""Networks that expect images in [0, 1]: architectures, wrappers, and the trained ones that ship with the package."""

from .architectures import cnn, densenet, inception, resnet, vgg
from .large import preactresnet18, wide_resnet
from .pretrained import torchvision
from .wrappers import Normalized
from .zoo import ZOO, card, load

__all__ = [
    "ZOO",
    "Normalized",
    "card",
    "cnn",
    "densenet",
    "inception",
    "load",
    "preactresnet18",
    "resnet",
    "torchvision",
    "vgg",
    "wide_resnet",
]
