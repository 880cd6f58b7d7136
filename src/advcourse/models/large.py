"""Pre-activation residual networks at the size of published robust models: to be trained on a GPU."""

from collections.abc import Sequence

from torch import Tensor, nn


class PreActivated(nn.Module):
    """x + two convolutions, each after batch norm and ReLU (He et al. 2016, *Identity mappings*).

    Where the shape changes, a 1x1 convolution of the activated x takes the place of x.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x)
        return (x if self.shortcut is None else self.shortcut(active)) + self.convolutions(active)


def _residual(channels: int, classes: int, first: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    """A stage of `blocks` blocks for each width; every stage but the first halves height and width."""
    layers: list[nn.Module] = [nn.Conv2d(channels, first, 3, padding=1, bias=False)]
    inputs = first
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(PreActivated(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
            inputs = width
    head = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)


def preactresnet18(channels: int = 3, classes: int = 10) -> nn.Sequential:
    """The pre-activation ResNet-18 of fast adversarial training (Wong et al. 2020), for small images of any size;
    11.17M parameters at three channels.

    Wong et al. feed the 1x1 convolutions x itself, and not the activated x as He et al. (2016) do and we do.

    Args:
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.
    """
    return _residual(channels, classes, 64, (64, 128, 256, 512), blocks=2)


def wide_resnet(depth: int = 34, width: int = 10, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """A wide residual network (Zagoruyko & Komodakis 2016), for small images of any size.

    WRN-34-10, the default, is what TRADES and much of RobustBench report on; 46.16M parameters at three channels.

    Args:
        depth: number of layers, 6n + 4 for n blocks in each of the three stages.
        width: how many times 16, 32 and 64 channels the stages have.
        channels: 1 for grey images, 3 for colour.
        classes: number of logits.

    Raises:
        ValueError: if depth is not one of 10, 16, 22, …

    Example:
        >>> sum(parameter.numel() for parameter in wide_resnet(depth=16, width=4).parameters())
        2748890
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, …), got {depth}")
    network = _residual(channels, classes, 16, (16 * width, 32 * width, 64 * width), blocks=(depth - 4) // 6)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as published; PyTorch's own initial weights are smaller
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
