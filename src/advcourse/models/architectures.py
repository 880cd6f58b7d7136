"""Small networks for small images: each trains in minutes on a laptop and shows what its large relatives show."""

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
