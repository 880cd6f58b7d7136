import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from advcourse.goals import REFUSED, Goal, Loss, Targeted, Untargeted, cross_entropy, logit, margin

from .helpers import rng, seeds

GOALS = [Untargeted, Targeted]
goals = st.sampled_from(GOALS)
classes = st.sampled_from([2, 3, 10, 1000])
shift_invariant = st.sampled_from([cross_entropy, margin, partial(margin, kappa=0.0)])


def answers(n: int, k: int, seed: int, size: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = rng(seed)
    logits = size * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=generator)


@given(goals, classes, seeds)
def test_fooled_means_what_the_goal_says_row_by_row(goal: type[Goal], k: int, seed: int) -> None:
    logits, labels = answers(20, k, seed)
    wanted = goal(labels)
    predicted = logits.argmax(1)
    expected = [(p == t) == (goal is Targeted) for p, t in zip(predicted.tolist(), labels.tolist(), strict=True)]
    assert wanted.fooled(predicted).tolist() == expected
    rows = torch.randperm(20, generator=rng(seed))[:7]
    assert torch.equal(wanted[rows].fooled(predicted[rows]), wanted.fooled(predicted)[rows])
    assert isinstance(wanted[rows], goal)


@pytest.mark.parametrize("goal", GOALS)
def test_a_refused_answer_fools_nobody(goal: type[Goal]) -> None:
    assert not goal(torch.arange(5)).fooled(torch.full((5,), REFUSED)).any()


@given(goals, classes, seeds)
def test_margin_is_positive_exactly_when_fooled(goal: type[Goal], k: int, seed: int) -> None:
    logits, labels = answers(50, k, seed)
    labels[::2] = logits.argmax(1)[::2]
    assert torch.equal(margin(logits, goal(labels)) > 0, goal(labels).fooled(logits.argmax(1)))


@given(classes, seeds)
def test_margin_is_the_lecture_s_h_with_its_sign_turned(k: int, seed: int) -> None:
    logits, labels = answers(20, k, seed)
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        rival = max(z[j] for j in range(k) if j != y)
        row = torch.tensor([i])
        assert -margin(logits[row], Untargeted(labels[row]), kappa=0).item() == max(z[y] - rival, 0)
        assert -margin(logits[row], Targeted(labels[row]), kappa=0).item() == max(rival - z[y], 0)


@given(goals, classes, seeds, st.floats(0, 5))
def test_kappa_clamps_from_above_only(goal: type[Goal], k: int, seed: int, kappa: float) -> None:
    logits, labels = answers(20, k, seed)
    whole = margin(logits, goal(labels))
    assert torch.equal(margin(logits, goal(labels), kappa), whole.minimum(whole.new_tensor(kappa)))


@given(classes, seeds)
def test_cross_entropy_is_torch_s_with_the_goal_s_sign(k: int, seed: int) -> None:
    logits, labels = answers(20, k, seed)
    reference = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, Untargeted(labels)), reference)
    torch.testing.assert_close(cross_entropy(logits, Targeted(labels)), -reference)
    picked = logits[torch.arange(20), labels]
    assert torch.equal(logit(logits, Targeted(labels)), picked)
    assert torch.equal(logit(logits, Untargeted(labels)), -picked)


@given(shift_invariant, goals, classes, seeds, st.sampled_from([-50.0, 7.5, 1e4]))
def test_a_constant_added_to_all_logits_changes_nothing(
    loss: Loss, goal: type[Goal], k: int, seed: int, shift: float
) -> None:
    logits, labels = answers(20, k, seed)
    torch.testing.assert_close(loss(logits + shift, goal(labels)), loss(logits, goal(labels)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("loss", [cross_entropy, margin, logit])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("k", [2, 5])
def test_climbing_a_loss_brings_the_goal_closer(loss: Loss, goal: type[Goal], k: int) -> None:
    logits, labels = answers(30, k, 0, size=1.0)
    rows = torch.arange(30)
    logits.requires_grad_()
    values = loss(logits, goal(labels))
    assert values.shape == (30,)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    probability = [z.softmax(1)[rows, labels] for z in (logits, logits + 0.01 * gradient)]
    change = (probability[1] - probability[0]) * (1 if goal is Targeted else -1)
    assert (change > 0).all()


@pytest.mark.parametrize("loss", [cross_entropy, margin, logit])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_give_finite_losses_and_gradients(loss: Loss, goal: type[Goal], dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    values = loss(logits, goal(torch.tensor([0, 0])))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.dtype == dtype
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


def test_margin_s_kappa_is_infinite_unless_given() -> None:
    logits = torch.tensor([[0.0, 1e30]])
    assert torch.equal(margin(logits, Untargeted(torch.tensor([0]))), torch.tensor([1e30]))
    assert margin(logits, Untargeted(torch.tensor([0])), kappa=math.inf).item() > 1e29
