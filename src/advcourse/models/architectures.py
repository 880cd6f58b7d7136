"""Small networks for small images: each trains in minutes on a laptop and shows what its large relatives show."""

import torch
from torch import Tensor, nn


def cnn(channels: int = 1, classes: int = 10, size: int = 28) -> nn.Sequential:
    """Four convolutions and two linear layers, no batch norm; 266k parameters at 28x28x1.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
        size: height and width of an image, a multiple of 4.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    head = [nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, classes)]
    return nn.Sequential(*block(channels, 32), *block(32, 64), *head)


def small(
    channels: int = 1,
    classes: int = 10,
    *,
    size: int = 28,
    width: int = 16,
    hidden: int = 100,
    batch_norm: bool = False,
) -> nn.Sequential:
    """The network of Wong et al. (2020) for MNIST: two convolutions with a stride of two, and two linear layers; 166k
    parameters at 28x28x1.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
        size: height and width of an image, a multiple of 4.
        width: channels of the first convolution; the second has twice as many.
        hidden: units between the linear layers.
        batch_norm: after both convolutions; not in the paper.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        return [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), *norm, nn.ReLU()]

    head = [nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*block(channels, width), *block(width, 2 * width), *head)


class Residual(nn.Module):
    """x + two convolutions of x, each with batch norm (He et al. 2016); a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.convolutions(x)).relu()


def resnet(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """A residual network of three stages with batch norm, for images of any size; 170k parameters at one channel.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, stride=1),
        Residual(16, 32, stride=2),
        Residual(32, 32, stride=1),
        Residual(32, 64, stride=2),
        Residual(64, 64, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def _convolution(inputs: int, outputs: int, size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def vgg(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """A plain stack of 3x3 convolutions with batch norm (Simonyan & Zisserman 2015), for images of any size; 203k
    parameters at one channel.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
    """
    return nn.Sequential(
        *_convolution(channels, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 96),
        *_convolution(96, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


class Dense(nn.Sequential):
    """x with `growth` new channels beside it, computed from all that came before (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def densenet(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """A densely connected network of two blocks, for images of any size; 132k parameters at one channel.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
    """

    def block(inputs: int, layers: int, growth: int = 16) -> list[nn.Module]:
        return [Dense(inputs + k * growth, growth) for k in range(layers)]

    return nn.Sequential(
        *_convolution(channels, 32),
        nn.AvgPool2d(2),
        *block(32, 4),
        *_convolution(96, 64, size=1),
        nn.AvgPool2d(2),
        *block(64, 6),
        nn.BatchNorm2d(160),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, classes),
    )


class Inception(nn.Module):
    """Looks at one, three and five pixels and at an average at once (Szegedy et al. 2015), `width` channels each."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                _convolution(inputs, width, 1),
                _convolution(inputs, width, 1) + _convolution(width, width),
                _convolution(inputs, width, 1) + _convolution(width, width) + _convolution(width, width),
                [nn.AvgPool2d(3, 1, padding=1), *_convolution(inputs, width, 1)],
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """A network of four inception blocks, for images of any size; 136k parameters at one channel.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
    """
    return nn.Sequential(
        *_convolution(channels, 32),
        nn.MaxPool2d(2),
        Inception(32, 16),
        Inception(64, 24),
        nn.MaxPool2d(2),
        Inception(96, 32),
        Inception(128, 40),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, classes),
    )
