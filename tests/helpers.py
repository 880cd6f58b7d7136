"""What several test files need: models that are small, exact or deceptive, and images for them."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.goals import Goal, Untargeted
from advcourse.threat import L1, L2, Ball, Linf

BALLS: list[type[Ball]] = [Linf, L2, L1]
SHAPES = [(1,), (7,), (3, 4), (2, 3, 4)]

balls = st.sampled_from(BALLS)
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform images of which about a third of the features lie exactly on a face of the box."""
    return (torch.rand((n, *shape), generator=rng(seed), dtype=dtype) * 1.5 - 0.25).clamp(0, 1)


def network(shape: tuple[int, ...], classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A random network with curved, far from monotone losses."""
    features = torch.Size(shape).numel()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
        layers[1].weight.data.mul_(4 * features**0.5)
        layers[3].weight.data.mul_(4)
    return layers


class Linear(nn.Module):
    """Two classes told apart by the sign of <weight, x> + bias, for x of the weight's shape: margin of class 1."""

    def __init__(self, weight: Tensor, bias: Tensor | float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        lead = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(lead), lead], 1)


def setting(shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]) -> tuple[nn.Module, Tensor, Goal]:
    """A random network, images and a goal that about half of the images do not meet already."""
    model, x = network(shape, classes, seed), images(6, shape, seed)
    labels = torch.randint(classes, (6,), generator=rng(seed))
    labels[::2] = model(x).argmax(1)[::2] if kind is Untargeted else model(x).argmin(1)[::2]
    return model, x, kind(labels)


def never_fooled(shape: tuple[int, ...] = (5,)) -> tuple[nn.Module, Tensor, Tensor]:
    weight = torch.linspace(-1, 1, torch.Size(shape).numel()).double().view(shape)
    return Linear(weight, bias=-30.0), images(4, shape), torch.zeros(4, dtype=torch.long)


def linear_yardstick(ball: type[Ball], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor, float]:
    """A linear model of uneven weights, images of equal margin far from the box, and the eps at which they flip."""
    weight = torch.empty(shape, dtype=torch.float64).normal_(generator=rng(7)) * torch.rand(shape, generator=rng(8))
    x = 0.5 + 0.05 * (torch.rand(3, *shape, generator=rng(), dtype=torch.float64) - 0.5)
    lead = (x * weight).flatten(1).sum(1)
    x = x - lead.view(-1, *[1] * len(shape)) * weight / weight.square().sum()
    eps = 0.05 if ball is Linf else 0.1
    gain = ball.dual_norm(weight[None]).item()
    return Linear(weight, bias=-eps * gain), x, eps


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    """A float32 network whose losses are curved, and images with their predicted labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5)]
        model = nn.Sequential(*layers).eval()
        model[0].weight.data.mul_(4)
    x = 0.3 + 0.4 * torch.rand(8, 1, 8, 8, generator=rng())
    return model, x, model(x).argmax(1)


class Counted(nn.Module):
    """A model that keeps the number of rows of every forward and every backward pass."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.forwards: list[int] = []
        self.backwards: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        if x.requires_grad:
            x.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return self.model(x)


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


class Deceptive(nn.Module):
    """A model whose gradient points the wrong way: every step lowers the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_Backwards.apply(x))


def tiny(split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    n = 30 if split == "train" else 20
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n, dtype=np.uint8) * 7) % 10


def write_tiny(folder: Path, packed: bool, seed: int = 0) -> Path:
    """Fashion-MNIST's four files in miniature, as they are distributed or as torchvision keeps them."""
    raw = folder if packed else folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, name in ("train", "train"), ("test", "t10k"):
        for kind, array in zip(("images-idx3", "labels-idx1"), tiny(split, seed), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            content = header + array.tobytes()
            path = raw / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


class Metered(nn.Module):
    """A model that tells by the nearest clean image whose query a row is, and keeps how many each has made (N,).

    One query over the limit makes it raise. It is sure of the owner, or fails: rows must stay within half the way from
    one clean image to another.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor, limit: float = float("inf")) -> None:
        super().__init__()
        self.model, self.clean, self.limit = model, x.flatten(1), limit
        self.reach = torch.pdist(self.clean).min() / 2 if len(x) > 1 else float("inf")
        self.asked = torch.zeros(len(x), dtype=torch.int64)

    def forward(self, rows: Tensor) -> Tensor:
        distance, owner = torch.cdist(rows.flatten(1), self.clean).min(1)
        assert (distance < self.reach).all()
        self.asked += owner.bincount(minlength=len(self.asked))
        assert (self.asked <= self.limit).all(), "one query too many"
        return self.model(rows)


def started(model: nn.Module, x: Tensor, goal: Goal) -> Tensor:
    """An image that meets the goal for each, out of random ones; where there is none, the image itself."""
    pool = torch.rand(500, *x.shape[1:], generator=rng(9), dtype=x.dtype)
    labels, start = model(pool).argmax(1), x.clone()
    for i in range(len(x)):
        hits = goal[torch.full((500,), i)].fooled(labels).nonzero()
        if len(hits):
            start[i] = pool[int(hits[0])]
    return start
