"""The substitute: what it asks, who pays, what it learns."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.attacks import Substitute, Substituted
from advcourse.oracles import BudgetExhausted, Labels, Oracle, Scores

from ..helpers import Counted, Linear, images, network, rng

SHAPE = (1, 4, 4)
METHOD = Substitute(rounds=4, epochs=2, batch_size=8)


def learner(k: int = 3, seed: int = 5) -> nn.Module:
    return network(SHAPE, k, seed).float()


def setting(n: int = 5) -> tuple[nn.Module, Tensor]:
    return network(SHAPE, 3, 1).float(), images(n, SHAPE).float()


def states(method: Substitute, oracle: Any, seeds: Tensor, k: int = 3) -> list[Substituted]:
    return list(method.iterates(oracle, seeds, learner(k)))


@pytest.mark.parametrize("window", [Labels, Scores])
def test_points_double_and_their_seeds_pay(window: type[Oracle]) -> None:
    model, seeds = setting()
    counted = Counted(model)
    oracle = window(counted)
    rounds = states(METHOD, oracle, seeds)
    assert [state.step for state in rounds] == [0, 1, 2, 3]
    for state in rounds:
        copies = 2**state.step
        assert len(state.points) == len(state.owner) == len(state.answers) == 5 * copies
        assert state.queries.tolist() == [copies] * 5
        assert state.owner.bincount().tolist() == [copies] * 5
    assert sum(counted.forwards) == 40 == oracle.queries.sum()
    assert torch.equal(rounds[0].points, seeds)


def test_a_copy_is_one_step_from_its_parent_along_the_score_of_the_answer() -> None:
    target, seeds = setting()
    rounds = states(replace(METHOD, rounds=6, period=2, step_size=0.05), Labels(target), seeds)
    for before, after in itertools.pairwise(rounds):
        n = len(before.points)
        assert torch.equal(after.points[:n], before.points)
        assert torch.equal(after.answers[:n], before.answers)
        assert torch.equal(after.owner[n:], before.owner)
        points = before.points.clone().requires_grad_()
        chosen = before.model(points).gather(1, before.answers[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, points)
        sign = -1 if before.step in (2, 3) else 1
        expected = (before.points + sign * 0.05 * slope.sign()).clamp(0, 1)
        torch.testing.assert_close(after.points[n:], expected)
        assert torch.equal(after.answers, target(after.points).argmax(1))


def test_on_scores_it_follows_the_likeliest_class_and_learns_all() -> None:
    target, seeds = setting()
    *_, last = states(METHOD, Scores(target), seeds)
    torch.testing.assert_close(last.answers, target(last.points).softmax(1))


@pytest.mark.parametrize("window", [Labels, Scores])
def test_it_learns_a_linear_target(window: type[Oracle]) -> None:
    target = Linear(torch.tensor([3.0, -2.0, 1.0, 0.5]), -1.0).float()
    seeds, fresh = torch.rand(20, 4, generator=rng(1)), torch.rand(500, 4, generator=rng(2))
    torch.manual_seed(0)
    copy = Substitute(epochs=30, learning_rate=0.02).fit(window(target), seeds, nn.Linear(4, 2))
    assert (copy(fresh).argmax(1) == target(fresh).argmax(1)).float().mean() > 0.93
    along = copy.weight[1] - copy.weight[0]
    assert torch.cosine_similarity(along, torch.tensor([3.0, -2.0, 1.0, 0.5]), dim=0) > 0.95


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 4))
def test_no_seed_pays_more_than_it_has(budget: int, rounds: int) -> None:
    target, seeds = setting(3)
    oracle = Labels(target, budget=budget)
    *_, last = states(replace(METHOD, rounds=rounds, epochs=1), oracle, seeds)
    assert oracle.queries.tolist() == [min(budget, 2 ** (rounds - 1))] * 3
    assert len(last.points) == oracle.queries.sum()
    assert torch.equal(last.owner.bincount(minlength=3), oracle.queries)


def test_without_a_budget_there_is_nothing_to_learn() -> None:
    target, seeds = setting()
    with pytest.raises(ValueError, match="no seed image can pay"):
        METHOD.fit(Labels(target, budget=0), seeds, learner())


@pytest.mark.parametrize("reservoir", [1, 3, 1000])
def test_a_reservoir_bounds_what_a_round_adds(reservoir: int) -> None:
    target, seeds = setting()
    rounds = states(replace(METHOD, reservoir=reservoir), Labels(target), seeds)
    for before, after in itertools.pairwise(rounds):
        assert len(after.points) - len(before.points) == min(reservoir, len(before.points))
    if reservoir == 1000:
        assert torch.equal(rounds[-1].points, states(METHOD, Labels(target), seeds)[-1].points)


def test_refusals_teach_nothing_and_are_not_followed() -> None:
    def shy(rows: Tensor) -> Tensor:
        return torch.where(rows.flatten(1).mean(1) > 0.5, -1, (rows[:, 0, 0, 0] > 0.5).long())

    seeds = images(8, SHAPE).float()
    refused = shy(seeds) == -1
    assert 0 < refused.sum() < 8
    rounds = states(METHOD, Labels(shy), seeds)
    assert len(rounds[1].points) == 8 + (~refused).sum()
    assert torch.equal(rounds[1].owner[8:], (~refused).nonzero()[:, 0])
    dumb = states(METHOD, Labels(lambda rows: torch.full((len(rows),), -1)), seeds)
    assert len(dumb) == 1
    for mine, drawn in zip(dumb[0].model.parameters(), learner().parameters(), strict=True):
        assert torch.equal(mine, drawn)


def test_states_are_never_written_again() -> None:
    target, seeds = setting()
    kept = []
    for state in METHOD.iterates(Labels(target), seeds, learner()):
        tensors = [state.points, state.owner, state.answers, state.queries, *state.model.parameters()]
        kept.append((tensors, [tensor.clone() for tensor in tensors]))
        assert not state.model.training
    for tensors, copies in kept:
        assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


class Dropped(nn.Module):
    """Dropout and batch norm, the two that care about modes, batches and the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_target_network_seeds_and_global_state_are_left_as_they_were() -> None:
    target, seeds = Dropped().train(), images(9, SHAPE).float()
    torch.manual_seed(3)
    given = Dropped()
    before = [deepcopy(part.state_dict()) for part in (target, given)]
    clean, state = seeds.clone(), torch.get_rng_state()
    with torch.no_grad():
        first = replace(METHOD, batch_size=8).fit(Labels(target), seeds, given)  # 9 = 8 + 1: no batch of one point
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seeds, clean)
    assert target.training
    assert given.training
    for part, was in zip((target, given), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in part.state_dict().items())
    torch.manual_seed(99)
    second = METHOD.fit(Labels(target), seeds, given)
    other = METHOD.fit(Labels(target), seeds, given, generator=rng(7))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_bare_target_is_asked_for_labels() -> None:
    target, seeds = setting()
    bare = METHOD.fit(target, seeds, learner())
    asked = METHOD.fit(Labels(target), seeds, learner())
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), asked.parameters(), strict=True))


def test_a_target_that_fails_half_way_raises_through_and_is_charged() -> None:
    target, seeds = setting()
    calls = []

    def failing(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        if len(calls) == 3:
            raise OSError("the line went dead")
        return target(rows).argmax(1)

    oracle = Labels(failing)
    with pytest.raises(OSError, match="went dead"):
        METHOD.fit(oracle, seeds, learner())
    assert oracle.queries.tolist() == [4] * 5
    with pytest.raises(BudgetExhausted):
        METHOD.fit(Labels(lambda rows: (_ for _ in ()).throw(BudgetExhausted("402"))), seeds, learner())


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (torch.rand(3, 1, 4, 4) + 1, "must lie in"),
        (torch.zeros(0, 1, 4, 4), "non-empty"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "floating point"),
    ],
)
def test_bad_seeds_are_refused(seeds: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        METHOD.fit(Labels(setting()[0]), seeds, learner())


def test_bad_networks_are_refused() -> None:
    target, seeds = setting()
    with pytest.raises(ValueError, match="weights to train, got function"):
        METHOD.fit(Labels(target), seeds, lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights to train"):
        METHOD.fit(Labels(target), seeds, learner().requires_grad_(False))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        METHOD.fit(Labels(lambda rows: torch.full((len(rows),), 2)), seeds, learner(k=2))
    with pytest.raises(ValueError, match="logits of shape"):
        METHOD.fit(Labels(target), seeds, nn.Sequential(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize("name", ["rounds", "period", "epochs", "batch_size", "reservoir"])
@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, True])
def test_bad_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
        Substitute(**{name: value})


@pytest.mark.parametrize("name", ["step_size", "learning_rate"])
def test_bad_steps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        Substitute(**{name: -0.1})
