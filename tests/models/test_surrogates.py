"""Ensembles and noisy weights."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcourse.attacks import Transfer
from advcourse.goals import Untargeted, cross_entropy
from advcourse.gradients import Exact
from advcourse.models import Ensemble, Ghost, ParameterNoise, Rotation
from advcourse.threat import Linf

from ..helpers import images, network, rng

SHAPE = (1, 4, 4)
X = images(6, SHAPE)
Y = torch.arange(6) % 3
NETWORKS = [network(SHAPE, 3, seed) for seed in range(3)]


def test_an_ensemble_of_one_is_the_model() -> None:
    alone = Ensemble(NETWORKS[:1])
    assert torch.equal(alone(X), NETWORKS[0](X))
    attack = Transfer.named("MI", Linf(0.1))
    assert torch.equal(attack(alone, X, Y), attack(NETWORKS[0], X, Y))
    shifted = Ensemble(NETWORKS[:1], probabilities=True)(X)
    torch.testing.assert_close(shifted, NETWORKS[0](X).log_softmax(1))


def test_logits_or_probabilities_are_averaged() -> None:
    logits = torch.stack([model(X) for model in NETWORKS])
    torch.testing.assert_close(Ensemble(NETWORKS)(X), logits.mean(0))
    probabilities = Ensemble(NETWORKS, probabilities=True)(X).softmax(1)
    torch.testing.assert_close(probabilities, logits.softmax(2).mean(0))


def test_probabilities_do_not_underflow() -> None:
    sure = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    sure[1].weight.data.mul_(1e4)
    both = Ensemble([sure, sure], probabilities=True)
    slope = Exact(both, cross_entropy, Untargeted(Y))(X, torch.arange(6))
    assert slope.gradient.isfinite().all()
    assert slope.loss.isfinite().all()


def test_no_networks_are_no_ensemble() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


noisy = pytest.mark.parametrize("kind", [ParameterNoise, Ghost])


@noisy
def test_noise_is_fresh_at_every_pass_and_comes_from_its_seed(kind: Any) -> None:
    state = torch.get_rng_state()
    first, again, other = (kind(NETWORKS[0], 0.1, seed) for seed in (0, 0, 1))
    one, two = first(X), first(X)
    assert not torch.equal(one, two)
    assert torch.equal(again(X), one)
    assert not torch.equal(other(X), one)
    assert torch.equal(copy.deepcopy(again)(X), again(X))
    assert torch.equal(torch.get_rng_state(), state)


@noisy
def test_without_noise_it_is_the_network(kind: Any) -> None:
    silent = kind(NETWORKS[0], 0.0)
    assert torch.equal(silent(X), NETWORKS[0](X))
    attack = Transfer.named("MI", Linf(0.1))
    assert torch.equal(attack(silent, X, Y), attack(NETWORKS[0], X, Y))


def test_the_noise_is_relative_and_the_network_stays() -> None:
    line = nn.Linear(1, 20_000, bias=False)
    line.weight.data.copy_(torch.linspace(-3, 3, 20_000)[:, None])
    before = line.weight.detach().clone()
    noisy = ParameterNoise(line, 0.2)(torch.ones(1, 1))[0]
    relative = noisy / before[:, 0] - 1
    assert abs(relative.mean()) < 0.01
    assert abs(relative.std() - 0.2) < 0.01
    assert torch.equal(line.weight, before)
    assert line.weight.requires_grad
    assert line.weight.grad is None


@noisy
def test_a_gradient_goes_through_to_the_input(kind: Any) -> None:
    slope = Exact(kind(NETWORKS[0], 0.1), cross_entropy, Untargeted(Y))(X, torch.arange(6))
    assert (slope.gradient.flatten(1).abs().amax(1) > 0).all()


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@noisy
def test_batch_norm_keeps_its_statistics(kind: Any) -> None:
    network = Buffered().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kind(network, 0.1)(X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("sigma", "seed", "words"), [(-0.1, 0, "sigma"), (0.1, -1, "seed"), (math.nan, 0, "sigma")])
def test_settings_that_make_no_sense_are_refused(sigma: Any, seed: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} must be"):
        ParameterNoise(NETWORKS[0], sigma, seed)


def test_a_ghost_erases_and_makes_up_for_it() -> None:
    line = nn.Linear(10_000, 1, bias=False)
    nn.init.ones_(line.weight)
    answers = torch.cat([Ghost(line, 0.3, seed)(torch.ones(1, 10_000)) for seed in range(20)]) / 10_000
    assert abs(answers.mean() - 1) < 0.01
    seen: list[Tensor] = []
    line.register_forward_hook(lambda _, inputs, answer: seen.append(inputs[0]))
    ghost = Ghost(line, 0.3)
    ghost(torch.ones(1, 10_000))
    line(torch.ones(1, 10_000))
    erased, whole = seen
    assert len(erased.unique()) == 2
    assert abs((erased == 0).float().mean() - 0.3) < 0.02
    assert (whole == 1).all()


def test_a_ghost_lets_go_of_the_network_when_it_fails() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    ghost = Ghost(network, 0.5)
    with pytest.raises(RuntimeError):
        ghost(torch.ones(2, 5))
    assert not network[1]._forward_pre_hooks
    assert torch.equal(network(X.float()), network(X.float()))


@pytest.mark.parametrize(("p", "words"), [(-0.1, "p must be"), (1.0, "p must be a probability below 1")])
def test_probabilities_that_make_no_sense_are_refused(p: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ghost(NETWORKS[0], p)


def test_a_ghost_needs_layers() -> None:
    with pytest.raises(ValueError, match="Flatten has neither convolutions nor linear layers"):
        Ghost(nn.Flatten(), 0.1)


def test_noise_and_ensembles_go_together() -> None:
    torch.manual_seed(0)
    crowd = Ensemble([ParameterNoise(model, 0.1, seed) for seed, model in enumerate(NETWORKS)])
    found = Transfer.named("MTDI", Linf(0.1), steps=3)(crowd, X, Y, generator=rng(1))
    assert ((found - X).abs() <= 0.1 + 1e-12).all()


def test_everybody_has_a_turn_before_anybody_has_another() -> None:
    turns = Rotation(NETWORKS)
    answers = [model(X) for model in NETWORKS]
    for _ in range(4):
        who = [next(i for i, answer in enumerate(answers) if torch.equal(said, answer)) for said in map(turns, [X] * 3)]
        assert sorted(who) == [0, 1, 2]


def test_the_order_comes_from_the_seed() -> None:
    first, second = Rotation(NETWORKS, 5), Rotation(NETWORKS, 5)
    assert all(torch.equal(first(X), second(X)) for _ in range(9))
    rotation = Rotation(NETWORKS)
    orders = [tuple(rotation(X)[0, 0].item() for _ in range(3)) for _ in range(8)]
    assert len(set(orders)) > 1


def test_a_rotation_of_one_is_the_model() -> None:
    attack = Transfer.named("MI", Linf(0.1))
    assert torch.equal(attack(Rotation(NETWORKS[:1]), X, Y), attack(NETWORKS[0], X, Y))
    with pytest.raises(ValueError, match="at least one"):
        Rotation([])
