import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcourse import data, models
from advcourse.attacks import FGSM, PGD, Attack, CarliniWagner
from advcourse.evaluation import Finding, lint
from advcourse.goals import logit, margin
from advcourse.threat import L2, Linf

from ..helpers import Counted, Deceptive, Linear, images, network, rng

N = 60
X = images(N, (5,))
PLAIN = PGD(Linf(0.1))


def found(model: Any, attack: Attack = PLAIN, x: Tensor = X, **more: Any) -> dict[str, Finding]:
    y = more.pop("y", None)
    findings = lint(model, attack, x, model(x).argmax(1) if y is None else y, **more)
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    return named


# Sound models


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("attack", [PGD(Linf(0.1)), PGD(L2(1.5))])
def test_nothing_is_found_in_the_bundled_networks(name: str, attack: PGD) -> None:
    assert lint(models.load(name), attack, *data.fashion_mnist("test", n=40)) == []


def test_nothing_is_found_where_the_attack_rightly_fails_at_half_of_the_images() -> None:
    x = images(N, (5,))
    model = Linear(torch.tensor([1.0, -1, 1, -1, 1]).double(), bias=-0.5)
    leads = model(x)[:, 1].abs()
    radius = (leads / 5).median().item()  # a change of eps in each of five features
    assert found(model, PGD(Linf(radius)), x) == {}


# Defects, each with its check


class Noisy(nn.Module):
    """Logits with noise on them."""

    def __init__(self, model: nn.Module, size: float) -> None:
        super().__init__()
        self.model, self.size, self.generator = model, size, rng()

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z + self.size * torch.randn(z.shape, generator=self.generator, dtype=z.dtype)


class Scaled(nn.Module):
    """A network with its logits, or its images, passed through a function."""

    def __init__(self, model: nn.Module, before: Any = lambda x: x, after: Any = lambda z: z) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


def ripples(x: Tensor) -> Tensor:
    """Class 1 above a half, but the lead goes up and down ten times on the way."""
    lead = x[:, 0] - 0.5 + 0.05 * (20 * math.pi * x[:, 0]).sin()
    return torch.stack([torch.zeros_like(lead), 10 * lead], 1)


LINE = torch.linspace(0.05, 0.42, N).double()[:, None]


def test_a_softmax_at_the_end() -> None:
    finding = found(nn.Sequential(network((5,)), nn.Softmax(1)))["probabilities"]
    assert "without its softmax" in finding.message
    assert 0 <= finding.numbers["smallest"] < finding.numbers["largest"] <= 1


@pytest.mark.parametrize("after", [lambda z: z.log_softmax(1), lambda z: z.sigmoid(), lambda z: z.abs()])
def test_what_only_resembles_probabilities_is_not_taken_for_them(after: Any) -> None:
    assert "probabilities" not in found(Scaled(network((5,)), after=after))


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_noise_in_the_model(size: float) -> None:
    model = Noisy(network((5,)), size)
    assert "expectation over transformation" in found(model, y=model.model(X).argmax(1))["random"].message
    assert "random" not in found(model.model)


def test_steps_on_the_way_to_the_model_leave_no_gradient() -> None:
    findings = found(Scaled(network((5,)), before=lambda x: (8 * x).floor() / 8))
    assert findings["zero gradient"].numbers == {"of cross_entropy": 1.0, "of margin": 1.0}
    assert findings["unbounded"].numbers["still right"] > 0.05
    assert findings["beaten"].numbers["then broken by random corners"] > 1


def test_logits_ten_thousand_times_too_large() -> None:
    model = Scaled(network((5,), dtype=torch.float32), after=lambda z: 1e4 * z)
    x = X.float()
    findings = found(model, replace(PLAIN, random_start=False), x)
    assert findings["zero gradient"].numbers["of cross_entropy"] > 0.5
    assert findings["zero gradient"].numbers["of margin"] == 0
    numbers = findings["scaled logits"].numbers
    assert numbers["only with the margin"] > 5 + numbers["only by the attack"]
    assert "scaled logits" not in found(model, replace(PLAIN, random_start=False, loss=margin), x)


def test_small_steps_that_are_caught_by_ripples() -> None:
    numbers = found(ripples, PGD(Linf(0.45)), LINE)["single step"].numbers
    assert numbers["only with one step"] > numbers["only by the attack"] + 5
    assert "more steps" in found(ripples, PGD(Linf(0.45), 4), LINE)
    assert "single step" not in found(ripples, PGD(Linf(0.45), 4), LINE)


def test_steps_too_few_to_arrive() -> None:
    model = Linear(torch.ones(1).double(), bias=-0.5)
    short = PGD(Linf(0.4), 4, step_size=0.02, random_start=False)
    numbers = found(model, short, LINE)["few steps"].numbers
    assert (numbers["only by the attack"], numbers["only with twice the steps"] > 5) == (0, True)
    assert "few steps" not in found(model, replace(short, steps=40), LINE)


def test_a_gradient_that_points_the_wrong_way() -> None:
    findings = found(Deceptive(network((5,))), replace(PLAIN, random_start=False))
    assert findings["unbounded"].numbers["still right"] > 0.5
    assert findings["beaten"].numbers["left by the attack"] == N


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.2)])
def test_another_attack_that_does_better(ball: Linf | L2) -> None:
    model = Linear(torch.ones(5).double(), bias=-2.5)
    weak = PGD(ball, 40, step_size=1e-5, random_start=False)
    better = {"one step": FGSM(ball), "too far": FGSM(replace(ball, eps=2.0))}
    numbers = found(model, weak, others=better)["beaten"].numbers
    assert numbers["then broken by one step"] > 0
    assert "then broken by too far" not in numbers  # outside of the ball it does not count


def test_an_attack_without_a_ball_that_finds_nothing() -> None:
    model, x = Linear(torch.ones(5).double(), bias=-2.5), 0.2 + 0.6 * X
    attack = CarliniWagner(steps=50, search_steps=3, step_size=0.1, initial_c=10.0)
    assert found(model, attack, x) == {}
    assert found(Deceptive(model), attack, x).keys() == {"unbounded"}


# How it goes about it


def test_it_costs_what_it_says() -> None:
    model = Counted(Linear(torch.ones(5).double(), bias=-9.0))  # withstands everything
    y = torch.zeros(N, dtype=torch.long)
    lint(model, PGD(Linf(0.1), 10), X, y)
    overhead = 3  # of a run: the clean image, the last iterate, the verdict on what comes back
    runs = (10 + overhead) + (20 + overhead) + 2 * (10 + overhead) + (1 + overhead)
    assert sum(model.forwards) <= N * (runs + 5 + 2 + 51)
    assert sum(model.backwards) <= N * (10 + 1 + 20 + 10 + 10 + 2)


def test_what_the_model_gets_wrong_is_left_out() -> None:
    model, seen = network((5,)), []

    def recorded(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model(x)

    y = model(X).argmax(1)
    y[:20] = (y[:20] + 1) % 3
    lint(recorded, PGD(Linf(0.01), 3), X, y)
    assert seen[0] == N
    assert max(seen[1:]) == N - 20
    with pytest.raises(ValueError, match="every image wrong"):
        lint(model, PLAIN, X[:20], y[:20])


def test_a_single_step_is_not_expected_to_break_everything() -> None:
    model = Linear(torch.ones(5).double(), bias=-9.0)
    assert "unbounded" not in found(model, FGSM(Linf(0.1)))
    assert "unbounded" in found(model, PGD(Linf(0.1), 3))


def test_it_repeats_and_leaves_global_randomness_alone() -> None:
    model, before = network((5,)), torch.get_rng_state()
    first, second = (lint(model, PGD(Linf(0.01), 3, loss=logit), X, model(X).argmax(1)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    used, untouched = rng(1), rng(1)
    lint(model, PLAIN, X, model(X).argmax(1), generator=used)
    assert not torch.equal(used.get_state(), untouched.get_state())


@pytest.mark.filterwarnings("error")
def test_a_flat_loss_is_a_finding_and_not_a_warning() -> None:
    assert "zero gradient" in found(Scaled(network((5,)), before=lambda x: (8 * x).floor() / 8))


def test_a_finding_prints_its_name_its_message_and_its_numbers() -> None:
    assert str(Finding("few steps", "not enough", {"before": 3, "after": 0.25})) == (
        "few steps: not enough (before 3, after 0.25)"
    )
