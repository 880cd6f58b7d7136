"""Images to attack: Fashion-MNIST, a subset of which ships with the package, CIFAR-10 and ImageNet."""

from .imagenet import imagenet_folder, imagenet_samples, nips17
from .small import CIFAR_MEAN, CIFAR_STD, FASHION_CLASSES, FASHION_MEAN, FASHION_STD, cifar10, fashion_mnist

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "FASHION_CLASSES",
    "FASHION_MEAN",
    "FASHION_STD",
    "cifar10",
    "fashion_mnist",
    "imagenet_folder",
    "imagenet_samples",
    "nips17",
]
