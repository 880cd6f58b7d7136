"""Networks that expect images in [0, 1]: architectures, wrappers, and the trained ones that ship with the package."""

from .architectures import cnn, resnet
from .wrappers import Normalized
from .zoo import ZOO, card, load

__all__ = ["ZOO", "Normalized", "card", "cnn", "load", "resnet"]
