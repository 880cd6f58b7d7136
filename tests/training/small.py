"""A training that takes milliseconds: data, networks, and every method."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advcourse.threat import L2, Linf
from advcourse.training import (
    NFGSM,
    TRADES,
    Constant,
    FastTraining,
    FreeTraining,
    GradAlign,
    Method,
    PGDTraining,
    Previous,
    Ramped,
    Standard,
    Zero,
    train,
)

from ..helpers import rng

BALL = Linf(0.1)
METHODS: list[Method] = [
    Standard(),
    PGDTraining(BALL, steps=2),
    PGDTraining(L2(0.5), steps=2, start=Zero()),
    FreeTraining(BALL, replays=3),
    FreeTraining(L2(0.5), replays=2),
    FastTraining(BALL),
    FastTraining(BALL, start=Zero()),
    FastTraining(BALL, start=Previous()),
    NFGSM(BALL),
    GradAlign(BALL),
    TRADES(BALL, steps=2),
    Ramped(FastTraining(BALL, step_size=0.2), epochs=1.5),
]
X = torch.rand(20, 1, 4, 4, generator=rng())
Y = (X.mean((1, 2, 3)) > 0.5).long()  # which mirroring does not change
DATA = X, Y


def convolutional(seed: int = 0) -> nn.Sequential:
    """Batch norm and dropout included: buffers, modes and global randomness have to survive, too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(12, 2)
        )


def plain(seed: int = 0) -> nn.Sequential:
    """Nothing in it depends on the other images of a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))


# Three batches, of seven, seven and six images, make an epoch.
fit = partial(train, data=DATA, epochs=2, batch_size=8, schedule=Constant(0.05))


def trained(network: nn.Module, method: Method, **options: Any) -> dict[str, Tensor]:
    fit(network, method, **options)
    return network.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
