"""Flipped labels, feature collisions, and the exact gradient through a training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.integrity import (
    BilevelPoisoning,
    FeatureCollision,
    features,
    fit,
    flip_labels,
    hypergradient,
    logistic_loss,
)

from ..helpers import images, network, rng, seeds

# Flipped labels


@given(st.integers(1, 200), st.integers(2, 10), st.floats(0, 1), seeds)
def test_flips_are_exact_and_never_to_the_same_label(n: int, classes: int, rate: float, seed: int) -> None:
    y = torch.randint(classes, (n,), generator=rng(seed))
    before = y.clone()
    flipped = flip_labels(y, rate, classes, generator=rng(seed))
    assert int((flipped != y).sum()) == round(rate * n)
    assert 0 <= flipped.min() <= flipped.max() < classes
    assert torch.equal(y, before)
    assert torch.equal(flipped, flip_labels(y, rate, classes, generator=rng(seed)))


@given(st.floats(0, 1), seeds)
def test_pairs_are_flipped_to_each_other_and_nothing_else(rate: float, seed: int) -> None:
    y = torch.randint(5, (100,), generator=rng(seed))
    flipped = flip_labels(y, rate, 5, pairs={0: 3, 3: 0, 1: 2}, generator=rng(seed))
    changed = flipped != y
    assert int(changed.sum()) == round(rate * int(torch.isin(y, torch.tensor([0, 1, 3])).sum()))
    assert set(zip(y[changed].tolist(), flipped[changed].tolist(), strict=True)) <= {(0, 3), (3, 0), (1, 2)}


def test_every_other_label_is_as_likely() -> None:
    flipped = flip_labels(torch.full((4000,), 2), 1.0, 5)
    assert flipped.bincount(minlength=5)[2] == 0
    assert (flipped.bincount(minlength=5)[[0, 1, 3, 4]] - 1000).abs().max() < 150


# Feature collision


def net() -> nn.Module:
    return network((3, 4)).train()


def test_a_collision_is_the_two_steps_of_the_paper() -> None:
    model, base, target = net(), images(2, (3, 4)), images(1, (3, 4), 5)
    first, second, *_ = FeatureCollision(beta=2.0, steps=3, step_size=0.01).iterates(model, base, target)
    point = base.clone().requires_grad_()
    distance = (model[:3](point) - model[:3](target)).square().sum(1)
    (slope,) = torch.autograd.grad(distance.sum(), point)
    expected = ((base - 0.01 * slope + 0.02 * base) / 1.02).clamp(0, 1)
    assert torch.equal(first.x, base)
    assert torch.allclose(first.distance, distance.detach())
    assert torch.allclose(second.x, expected)


def test_poisons_approach_the_target_unless_beta_holds_them() -> None:
    model, base, target = net(), 0.5 + 0.1 * images(2, (3, 4)), 0.4 + 0.1 * images(1, (3, 4), 5)
    states = list(FeatureCollision(beta=0.0, steps=100, step_size=1e-3).iterates(model, base, target))
    assert [state.step for state in states] == list(range(101))
    assert (states[-1].distance < 0.1 * states[0].distance).all()
    assert torch.equal(FeatureCollision(steps=3, step_size=0.0)(model, base, target), base)
    held = FeatureCollision(beta=1e9, steps=3, step_size=1e-3)(model, base, target)
    assert torch.allclose(held, base, atol=1e-4)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_collision_leaves_the_model_as_it_was(outside: Callable[[], Any]) -> None:
    model = net()
    with outside():
        poisons = FeatureCollision(steps=2)(model, images(2, (3, 4)), images(1, (3, 4), 5))
    assert model.training
    assert not poisons.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert features(model, poisons).shape == (2, 16)


# Bilevel poisoning


def cloud(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % 2
    x = 0.35 + 0.3 * y[:, None] + 0.15 * torch.randn(n, 2, generator=rng(seed), dtype=torch.float64)
    return x.clamp(0, 1), y


@given(st.sampled_from([1e-4, 1e-2, 1.0]), seeds)
def test_a_fit_ends_where_the_gradient_is_zero(decay: float, seed: int) -> None:
    x, y = cloud(20, seed)
    theta = fit(x, y, decay)
    assert torch.func.grad(logistic_loss)(theta, x, y, decay).abs().max() < 1e-8


@given(seeds, st.integers(1, 3), st.sampled_from([1e-2, 0.3]))
def test_the_hypergradient_is_that_of_training_again(seed: int, count: int, decay: float) -> None:
    (x, y), (x_val, y_val) = cloud(12, seed), cloud(9, seed + 1)
    points, labels = images(count, (2,), seed), torch.arange(count) % 2

    def harm(points: Tensor) -> Tensor:
        theta = fit(torch.cat([x, points]), torch.cat([y, labels]), decay)
        return logistic_loss(theta, x_val, y_val)

    theta = fit(torch.cat([x, points]), torch.cat([y, labels]), decay)
    slope = hypergradient(theta, x, y, points, labels, x_val, y_val, decay)
    h = 1e-4
    for i in range(count):
        for j in range(2):
            move = torch.zeros_like(points)
            move[i, j] = h
            assert slope[i, j].item() == pytest.approx(
                ((harm(points + move) - harm(points - move)) / (2 * h)).item(), rel=1e-4, abs=1e-7
            )


def test_poisons_climb_inside_the_box() -> None:
    (x, y), (x_val, y_val) = cloud(20), cloud(30, 1)
    start, labels = torch.tensor([[0.4, 0.6], [0.6, 0.4]]).double(), torch.tensor([0, 1])
    attack = BilevelPoisoning(decay=0.01, steps=10, step_size=0.05)
    states = list(attack.iterates(x, y, start, labels, x_val, y_val))
    assert [state.step for state in states] == list(range(11))
    assert torch.equal(states[0].points, start)
    assert all(0 <= state.points.min() <= state.points.max() <= 1 for state in states)
    assert states[-1].loss > states[0].loss
    best = max(states, key=lambda state: state.loss)
    assert torch.equal(attack(x, y, start, labels, x_val, y_val), best.points)
    theta = fit(torch.cat([x, best.points]), torch.cat([y, labels]), 0.01)
    assert torch.equal(theta, best.theta)
    assert logistic_loss(theta, x_val, y_val).item() == best.loss


LABELS = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: flip_labels(LABELS, 1.2, 3), "rate must be"),
        (lambda: flip_labels(LABELS, 0.2, 1), "classes must be"),
        (lambda: flip_labels(LABELS, 0.2, 2), r"labels must be int64 \(N,\) in 0..1"),
        (lambda: flip_labels(LABELS.float(), 0.2, 3), "labels must be int64"),
        (lambda: flip_labels(LABELS[:0], 0.2, 3), "labels must be int64"),
        (lambda: flip_labels(LABELS, 0.2, 3, pairs={1: 1}), "pairs must map"),
        (lambda: flip_labels(LABELS, 0.2, 3, pairs={1: 3}), "pairs must map"),
        (lambda: FeatureCollision(beta=-1), "beta must be"),
        (lambda: FeatureCollision(steps=0), "steps must be"),
        (lambda: FeatureCollision()(net(), images(2, (3, 4)), images(2, (3, 4))), "must be one image"),
        (lambda: FeatureCollision()(nn.Flatten(), images(2, (3, 4)), images(1, (3, 4))), "has no Linear layer"),
        (lambda: BilevelPoisoning(step_size=-1), "step_size must be"),
        (lambda: fit(*cloud(4), decay=0.0), "positive decay"),
        (lambda: fit(cloud(4)[0], torch.zeros(4, dtype=torch.long), decay=0.1), "labels 0 and 1"),
        (lambda: BilevelPoisoning()(*cloud(4), *cloud(1), cloud(6)[0], LABELS), "knows the labels 0 and 1"),
        (lambda: BilevelPoisoning()(*cloud(4), *cloud(1), 2 + cloud(6)[0], LABELS % 2), r"lie in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
