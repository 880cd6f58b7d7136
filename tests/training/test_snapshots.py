"""Snapshots along SGD."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from advcourse.training.snapshots import snapshots

from ..helpers import images, rng

X = images(20, (4,)).float()
Y = torch.arange(20) % 3


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize(("epochs", "per_epoch", "batch_size"), [(1, 1, 20), (3, 2, 8), (2, 5, 4), (2, 4, 5)])
def test_so_many_copies_are_taken_and_all_differ(epochs: int, per_epoch: int, batch_size: int) -> None:
    found = snapshots(network(), X, Y, epochs=epochs, per_epoch=per_epoch, batch_size=batch_size)
    assert len(found) == epochs * per_epoch
    assert len({tuple(flat(model).tolist()) for model in found}) == len(found)
    assert not any(part.training for model in found for part in model.modules())


def test_the_last_copy_is_where_plain_sgd_ends() -> None:
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4)
    generator = rng()
    for _ in range(2):
        for rows in torch.randperm(20, generator=generator).tensor_split(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), Y[rows]).backward()
            optimizer.step()
    *_, last = snapshots(network(), X, Y, epochs=2, per_epoch=3, batch_size=8)
    assert torch.equal(flat(last), flat(model))


def test_the_network_and_global_randomness_are_left_alone() -> None:
    given = network().eval()
    before, state = {name: value.clone() for name, value in given.state_dict().items()}, torch.get_rng_state()
    snapshots(given, X, Y, epochs=1, per_epoch=2, batch_size=8)
    assert not given.training
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(weight.grad is None for weight in given.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"per_epoch": 0}, "per_epoch must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 10, "per_epoch": 3}, "3 copies need as many steps in an epoch, 20 images make 2"),
        ({"learning_rate": math.inf, "batch_size": 4}, "the loss is nan: a learning rate of inf is too high"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        snapshots(network(), X, Y, **settings)
    with pytest.raises(ValueError, match="labels must be"):
        snapshots(network(), X, Y[:3])
