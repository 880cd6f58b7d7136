import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from advcourse.goals import (
    REFUSED,
    FromTo,
    Goal,
    Loss,
    Targeted,
    Toward,
    Untargeted,
    cross_entropy,
    dlr,
    logit,
    margin,
    po_trip,
)

from .helpers import rng, seeds

GOALS = [Untargeted, Targeted]
goals = st.sampled_from(GOALS)
classes = st.sampled_from([2, 3, 10, 1000])
shift_invariant = st.sampled_from([cross_entropy, margin, partial(margin, kappa=0.0), dlr])


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


@pytest.mark.parametrize("loss", [cross_entropy, margin, logit, dlr])
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


# The difference of logits ratio


def ratio(z: list[float], y: int, targeted: bool) -> float:
    """dlr for one image, as the paper writes it."""
    down, rival = sorted(z, reverse=True), max(z[j] for j in range(len(z)) if j != y)
    lead = z[y] - rival if targeted else rival - z[y]
    if len(z) == 2:
        return lead
    return lead / (down[0] - ((down[2] + down[3]) / 2 if targeted and len(z) > 3 else down[2]))


@given(goals, st.sampled_from([2, 3, 4, 5, 10]), seeds)
def test_dlr_is_the_paper_s(goal: type[Goal], k: int, seed: int) -> None:
    logits, labels = answers(20, k, seed)
    expected = [ratio(z, y, goal is Targeted) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(dlr(logits, goal(labels)), torch.tensor(expected).double())


@given(
    goals, st.sampled_from([3, 4, 10, 1000]), seeds, st.sampled_from([1e-6, 0.3, 1e6]), st.sampled_from([-5.0, 40.0])
)
def test_dlr_knows_no_scale_and_no_shift(goal: type[Goal], k: int, seed: int, scale: float, shift: float) -> None:
    logits, labels = answers(20, k, seed)
    wanted = goal(labels)
    torch.testing.assert_close(dlr(scale * logits + scale * shift, wanted), dlr(logits, wanted), atol=1e-7, rtol=1e-7)


@given(goals, classes, seeds)
def test_dlr_is_positive_exactly_when_fooled(goal: type[Goal], k: int, seed: int) -> None:
    logits, labels = answers(50, k, seed)
    labels[::2] = logits.argmax(1)[::2]
    value = dlr(logits, goal(labels))
    assert torch.equal(value > 0, goal(labels).fooled(logits.argmax(1)))
    if goal is Untargeted and k > 2:
        assert (value >= -1).all()


def test_dlr_of_two_classes_is_the_margin() -> None:
    # The ratio would be -1 or 1 everywhere, without a slope.
    logits, labels = answers(20, 2, 0)
    for goal in GOALS:
        assert torch.equal(dlr(logits, goal(labels)), margin(logits, goal(labels)))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize("kind", ["flat", "two equal", "three equal", "all but one"])
def test_dlr_of_ties_is_finite_and_so_is_its_gradient(goal: type[Goal], k: int, kind: str) -> None:
    logits = {
        "flat": torch.zeros(k),
        "two equal": torch.arange(k).float().clamp_max(k - 2),
        "three equal": torch.arange(k).float().clamp_max(max(k - 3, 0)),
        "all but one": torch.eye(k)[0],
    }[kind]
    for label in range(k):
        z = logits.double()[None].clone().requires_grad_()
        value = dlr(z, goal(torch.tensor([label])))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("goal", "k"),
    [
        (Untargeted, 3),
        (Untargeted, 4),
        (Targeted, 4),
        pytest.param(Untargeted, 2),
        pytest.param(Targeted, 2),
        pytest.param(Targeted, 3),
    ],
)
def test_dlr_leaves_out_classes_that_are_ruled_out(goal: type[Goal], k: int) -> None:
    logits, labels = answers(20, k, 0)
    masked = torch.cat([logits, torch.full((20, 3), -math.inf).double()], 1)
    torch.testing.assert_close(dlr(masked, goal(labels)), dlr(logits, goal(labels)))


# One direction, any success


@given(st.sampled_from([2, 3, 10]), seeds)
def test_toward_is_targeted_in_its_losses_and_untargeted_in_its_success(k: int, seed: int) -> None:
    logits, labels = answers(20, k, seed)
    source = (labels + 1 + torch.randint(k - 1, (20,), generator=rng(seed))) % k
    goal = Toward(labels, source=source)
    predicted = logits.argmax(1)
    assert torch.equal(goal.fooled(predicted), Untargeted(source).fooled(predicted))
    rows = torch.randperm(20, generator=rng(seed))[:7]
    assert isinstance(goal[rows], Toward)
    assert torch.equal(goal[rows].labels, labels[rows])
    assert torch.equal(goal[rows].source, source[rows])
    i = torch.arange(20)
    lead = logits[i, labels] - logits[i, source]
    torch.testing.assert_close(margin(logits, goal), lead)
    assert torch.equal(cross_entropy(logits, goal), cross_entropy(logits, Targeted(labels)))
    if k == 10:
        down = logits.sort(1, descending=True).values
        torch.testing.assert_close(dlr(logits, goal), lead / (down[:, 0] - (down[:, 2] + down[:, 3]) / 2))


def test_a_refused_answer_is_no_success_for_toward() -> None:
    assert not Toward(torch.arange(5), source=torch.arange(5) + 1).fooled(torch.full((5,), REFUSED)).any()


def test_rivals_are_all_other_classes_or_the_source() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    labels, inf = torch.tensor([2, 0]), math.inf
    for goal in Untargeted(labels), Targeted(labels):
        assert goal.rivals(logits).tolist() == [[1.0, 2.0, -inf], [-inf, 5.0, 6.0]]
    assert Toward(labels, source=torch.tensor([1, 2])).rivals(logits).tolist() == [[2.0], [6.0]]


def around_a_target(k: int = 4) -> FromTo:
    return FromTo(torch.arange(k), source=(torch.arange(k) + 1) % k)


def test_po_trip_is_largest_at_the_target() -> None:
    k = 4
    corners = 5 * torch.eye(k).double()
    losses = torch.stack([po_trip(corners[[i] * k], around_a_target()) for i in range(k)], 1)
    assert (losses.argmax(1) == torch.arange(k)).all()


def test_po_trip_does_not_pull_towards_the_right_label() -> None:
    goal = FromTo(torch.tensor([0]), source=torch.tensor([1]))
    z = torch.tensor([[0.2, 1.0, 0.3]]).double().requires_grad_()
    (slope,) = torch.autograd.grad(po_trip(z, goal, weight=1e6).sum(), z)
    assert slope[0, 0] > 0 > slope[0, 1]


def test_po_trip_is_the_formula() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    t, y = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])
    for i in range(5):
        u = z[i] / z[i].abs().sum()
        v = torch.zeros(4).double()
        v[t[i]] = 1 - 1e-5
        ratio = (u - v).square().sum() / ((1 - u.square().sum()) * (1 - v.square().sum()))
        unit = z[i].abs() / z[i].norm()
        triplet = max(0.0, float((1 - unit[t[i]]) - (1 - unit[y[i]]) + 0.007))
        expected = -math.acosh(1 + 2 * ratio) - 0.01 * triplet
        assert po_trip(z[i : i + 1], FromTo(t[i : i + 1], source=y[i : i + 1])).item() == pytest.approx(expected)


def test_po_trip_is_finite_where_one_logit_is_all() -> None:
    z = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1e-30, 0.0]]).requires_grad_()
    goal = FromTo(torch.tensor([0, 0, 0]), source=torch.tensor([1, 1, 1]))
    loss = po_trip(z, goal)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    assert loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_po_trip_needs_both_labels(kind: type[Goal]) -> None:
    with pytest.raises(ValueError, match=rf"needs FromTo\(t, source=y\).*got {kind.__name__}"):
        po_trip(torch.zeros(2, 3), kind(torch.tensor([0, 1])))


def test_from_to_is_exactly_the_target() -> None:
    goal = FromTo(torch.tensor([3, 3, 3, 3]), source=torch.tensor([1, 1, 9, 1]))
    assert goal.fooled(torch.tensor([3, 5, 3, REFUSED])).tolist() == [True, False, True, False]
    assert goal.largest == 9
    part = goal[torch.tensor([2])]
    assert isinstance(part, FromTo)
    assert (part.labels.tolist(), part.source.tolist()) == ([3], [9])
    torch.testing.assert_close(margin(torch.eye(4)[[3]], part), torch.tensor([1.0]))
