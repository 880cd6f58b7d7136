from itertools import product

import pytest
import torch

from advcourse.models import BUNDLED, cnn, densenet, inception, resnet, small, vgg


@pytest.mark.parametrize("name", BUNDLED)
def test_networks_of_the_zoo_are_small(name: str) -> None:
    network = BUNDLED[name].network()
    assert 50_000 <= sum(p.numel() for p in network.parameters()) <= 300_000
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_networks_fit_other_images() -> None:
    assert cnn(channels=3, classes=7, size=32)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    network = small(3, 7, size=32, width=4, hidden=8, batch_norm=True)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    for build, size in product((resnet, vgg, densenet, inception), (28, 32, 45)):
        assert build(channels=3, classes=7).eval()(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", BUNDLED)
def test_initial_weights_are_the_seed_s_and_leave_global_random_numbers_alone(name: str) -> None:
    state = torch.get_rng_state()
    first = BUNDLED[name].network().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert all(torch.equal(value, first[key]) for key, value in BUNDLED[name].network().state_dict().items())
