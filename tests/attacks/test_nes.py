import math
import warnings
from collections import deque
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from advcourse.ascent import Slope, ZeroGradient
from advcourse.attacks import NES, PGD, Queried
from advcourse.attacks.nes import Inertia
from advcourse.goals import Goal, Targeted, Untargeted, cross_entropy, dlr, margin
from advcourse.oracles import Scores
from advcourse.threat import L1, L2, Ball, Linf, per_image

from ..helpers import (
    BALLS,
    Counted,
    Linear,
    Metered,
    balls,
    convolutional,
    images,
    linear_yardstick,
    network,
    never_fooled,
    rng,
    seeds,
    setting,
    shapes,
)

attacks = st.builds(
    lambda ball, eps, **options: NES(ball(eps), **options),
    balls,
    st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0]),
    steps=st.integers(1, 8),
    directions=st.integers(1, 4),
    sigma=st.sampled_from([1e-4, 1e-2, 0.3]),
    step_size=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    plateau=st.integers(2, 4),
    decay=st.sampled_from([1.0, 2.0, 10.0]),
    least_step_size=st.sampled_from([0.0, 1e-3, 0.2]),
    loss=st.sampled_from([margin, cross_entropy, dlr]),
)
cases = given(attacks, shapes, st.sampled_from([2, 3, 5]), seeds, st.sampled_from([Untargeted, Targeted]))
flat_is_fine = pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")


def last_of(attack: NES, target: Any, x: Tensor, goal: Any, **options: Any) -> Queried:
    *_, last = attack.iterates(target, x, goal, **options)
    return last


@flat_is_fine
@cases
def test_iterates_keep_every_promise(
    attack: NES, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    clean = goal.fooled(model(x).argmax(1))
    highest, best, done = torch.full((6,), -torch.inf).double(), x, clean
    states = list(attack.iterates(model, x, goal))
    for k, state in enumerate(states):
        assert state.step == k <= attack.steps
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
            assert (attack.ball.norm(image - x) <= attack.ball.eps + 1e-9).all()
        if k:
            assert torch.equal(state.x[done], states[k - 1].x[done])
            assert torch.equal(state.queries[done], states[k - 1].queries[done])
        else:
            assert torch.equal(state.x, x)
        assert (
            (state.queries[~done] == (k + 1) + 2 * attack.directions * min(k + 1, attack.steps))
            .logical_or(goal.fooled(model(state.x).argmax(1))[~done])
            .all()
        )
        # The best is the fooled iterate or else, the clean image aside, the highest.
        loss, fooled = attack.loss(model(state.x), goal), goal.fooled(model(state.x).argmax(1))
        torch.testing.assert_close(state.loss, loss, atol=1e-9, rtol=1e-6)
        higher = ~done & (fooled | ((loss > highest + 1e-9) & (k > 0)))
        highest = torch.where(higher, loss, highest)
        best, done = torch.where(per_image(higher, x), state.x, best), fooled
        assert torch.equal(state.success, fooled)
        distance = attack.ball.norm(state.best - x).where(fooled, torch.inf)
        torch.testing.assert_close(state.distance, distance, rtol=0, atol=0)
    torch.testing.assert_close(attack.loss(model(state.best), goal)[~clean], highest[~clean], atol=1e-8, rtol=1e-6)
    assert torch.equal(state.best[done], state.x[done])
    assert torch.equal(state.best[clean], x[clean])
    assert torch.equal(attack(model, x, goal), state.best)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((3, 4), 3, 2, Untargeted)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in NES(Linf(0.05), 8, 3, step_size=0.03, plateau=2).iterates(model, x, goal)
    ]
    assert len(kept) == 9
    for state, copies in kept:
        assert set(copies) == {field.name for field in fields(Queried)} - {"step"}
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@flat_is_fine
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = network(shape, 4, dtype=dtype), images(5, shape, dtype=dtype)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    state = last_of(NES(Linf(0.2), 20, 10, 0.05), model, x, y)
    for field in "best", "x", "distance", "loss", "best_loss":
        assert getattr(state, field).dtype == dtype, field
    assert state.x.isfinite().all()
    assert state.success[1:].any()
    assert torch.equal(model(state.best).argmax(1) != y, state.success)


# What it costs


@pytest.mark.parametrize("batch_size", [3, 128])
@pytest.mark.parametrize(("steps", "directions"), [(1, 1), (3, 2), (4, 5)])
def test_an_image_that_is_never_fooled_costs_every_step_and_one_judgement(
    steps: int, directions: int, batch_size: int
) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    oracle = Scores(counted, batch_size=batch_size)
    states = list(NES(Linf(0.1), steps, directions).iterates(oracle, x, y))
    price = 2 * directions + 1
    assert len(states) == steps + 1
    assert [state.queries.tolist() for state in states[:-1]] == [[price * (k + 1)] * 4 for k in range(steps)]
    assert states[-1].queries.tolist() == [steps * price + 1] * 4
    assert sum(counted.forwards) == 4 * (steps * price + 1) == oracle.queries.sum()
    assert not states[-1].success.any()
    assert states[-1].distance.tolist() == [math.inf] * 4


def test_one_forward_pass_a_question() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    list(NES(Linf(0.1), 2, 5).iterates(counted, x, y))
    assert counted.forwards == [4, 40, 4, 40, 4]


def test_images_already_fooled_cost_one_query_and_come_back() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = NES(Linf(0.1)).iterates(counted, x, y + 1)
    assert torch.equal(state.best, x)
    assert (state.step, state.queries.tolist(), state.distance.tolist()) == (0, [1] * 4, [0.0] * 4)
    assert counted.forwards == [4]
    # Among others, too.
    state = last_of(NES(Linf(0.1), 3, 2), model, x, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(state.best[1::2], x[1::2])
    assert state.queries.tolist() == [16, 1, 16, 1]


def test_an_image_that_is_fooled_on_the_way_costs_the_steps_to_it() -> None:
    # Margins of 1, 2, 3 and 4 steps and a half, all in the one direction there is.
    x = torch.tensor([[0.45], [0.35], [0.25], [0.15], [0.05]]).double()
    oracle = Scores(Linear(torch.ones(1).double(), bias=-0.5))
    attack = NES(Linf(0.4), steps=6, directions=2, step_size=0.1)
    states = list(attack.iterates(oracle, x, torch.zeros(5, dtype=torch.long)))
    assert states[-1].queries.tolist() == [6, 11, 16, 21, 31]
    assert states[-1].success.tolist() == [True] * 4 + [False]
    assert [int(state.success.sum()) for state in states] == [0, 1, 2, 3, 4, 4, 4]
    torch.testing.assert_close(states[-1].distance, torch.tensor([0.1, 0.2, 0.3, 0.4, math.inf]).double())


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_a_budget_buys_as_many_whole_rounds_as_fit(rounds: int, directions: int) -> None:
    model, x, y = never_fooled((9,))
    price = 2 * directions + 1
    attack = NES(Linf(0.1), 4, directions)
    full = list(attack.iterates(model, x, y))
    for budget in range(rounds * price + 1, (rounds + 1) * price + 1):
        metered = Metered(model, x, budget)
        states = list(attack.iterates(Scores(metered, budget), x, y))
        steps = min(rounds, 4)
        assert len(states) == steps + 1
        assert metered.asked.tolist() == states[-1].queries.tolist() == [steps * price + 1] * 4
        for state, same in zip(states, full, strict=False):
            assert torch.equal(state.x, same.x)
        assert torch.equal(states[-1].best != x, states[-1].x != x)


def test_without_a_budget_nothing_is_known() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    for labels in y, y + 1:
        (state,) = NES(Linf(0.1)).iterates(Scores(counted, 0), x, labels)
        assert torch.equal(state.best, x)
        assert (state.step, state.queries.tolist(), state.success.tolist()) == (0, [0] * 4, [False] * 4)
    assert counted.forwards == []


# The identity with sign PGD, and the recursion


@pytest.mark.parametrize("loss", [margin, cross_entropy, dlr])
@pytest.mark.parametrize(("ball", "tolerance"), [(Linf, 1e-12), (L2, 0.01)])
def test_with_all_the_directions_in_the_world_it_is_pgd(ball: type[Ball], tolerance: float, loss: Any) -> None:
    weight = torch.tensor([[1.0, -0.7, 0.5], [-1.2, 0.4, 0.9]]).double()
    model, x = Linear(weight, bias=-5.0), 0.3 + 0.4 * images(3, (2, 3))
    options = {"steps": 5, "step_size": 0.05, "loss": loss}
    found = NES(ball(0.2), directions=4000, momentum=0.0, **options)
    for goal in Untargeted(torch.zeros(3, dtype=torch.long)), Targeted(torch.ones(3, dtype=torch.long)):
        exact = list(PGD(ball(0.2), random_start=False, **options).iterates(model, x, goal))
        states = list(found.iterates(model, x, goal))
        assert len(states) == len(exact) == 6
        for state, same in zip(states, exact, strict=True):
            torch.testing.assert_close(state.x, same.x, atol=tolerance, rtol=0)
            torch.testing.assert_close(state.loss, same.loss, atol=3 * tolerance, rtol=0)


class Rule:
    """The rule of the docstring, for one image: the step size after each loss in turn."""

    def __init__(self, attack: NES) -> None:
        self.attack, self.step_size = attack, attack.step_size
        self.losses: deque[float] = deque(maxlen=attack.plateau)

    def after(self, loss: float) -> float:
        self.losses.append(loss)
        if len(self.losses) == self.attack.plateau and self.losses[-1] < self.losses[0]:
            if self.step_size > self.attack.least_step_size:
                self.step_size = max(self.step_size / self.attack.decay, self.attack.least_step_size)
            self.losses.clear()
        return self.step_size


def plainly(attack: NES, model: Any, x: Tensor, goal: Goal, seed: int) -> tuple[list[Tensor], set[float]]:
    """The iterates, image by image and direction by direction, and the step sizes that were met."""
    generator, iterates, sizes = rng(seed), [x], set()
    rules, direction = [Rule(attack) for _ in x], torch.zeros_like(x)

    def loss_at(point: Tensor, i: int) -> float:
        logits = model(point.clamp(0, 1)[None]).log_softmax(1)
        return attack.loss(logits, goal[torch.tensor([i])]).item()

    for k in range(attack.steps):
        now = iterates[-1]
        going = (~goal.fooled(model(now).argmax(1))).nonzero().squeeze(1).tolist()
        if not going:
            break
        u = torch.empty(len(going), attack.directions, *x.shape[1:], dtype=x.dtype).normal_(generator=generator)
        after = now.clone()
        for i, along in zip(going, u, strict=True):
            g = torch.zeros_like(now[i])
            for v in along:
                ahead, behind = (loss_at(now[i] + sign * attack.sigma * v, i) for sign in (1, -1))
                g += v * (ahead - behind) / (2 * attack.sigma * attack.directions)
            direction[i] = attack.momentum * direction[i] + (1 - attack.momentum) * g
            size = rules[i].after(loss_at(now[i], i))
            sizes.add(size)
            stride = attack.ball.stride(direction[i][None], now[i][None], left=1 - (k + 1) / attack.steps)
            after[i] = attack.ball.project(now[i] + size * stride, x[i][None])[0]
        iterates.append(after)
    return iterates, sizes


@pytest.mark.parametrize("goal", [Untargeted, Targeted])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.5), L1(1.0)])
def test_it_is_the_recursion_of_the_docstring(ball: Ball, momentum: float, goal: type[Goal]) -> None:
    model, x, goals = setting((3, 4), 3, 3, goal)
    attack = NES(ball, 20, 2, 0.01, 0.2, momentum, plateau=3, decay=3.0, least_step_size=0.01)
    expected, sizes = plainly(attack, model, x, goals, seed=5)
    states = list(attack.iterates(model, x, goals, generator=rng(5)))
    assert len(sizes) > 1  # the step size did fall
    assert len(states) >= len(expected) > 6
    for state, iterate in zip(states, expected, strict=False):
        torch.testing.assert_close(state.x, iterate, atol=1e-7, rtol=0)


def test_momentum_is_an_average_of_what_was_met() -> None:
    attack = NES(L2(9.0), step_size=1.0, momentum=0.75)
    x = torch.full((1, 2), 0.5).double()
    inertia = Inertia(attack, x)
    expected = torch.zeros(1, 2).double()
    for k in range(4):
        gradient = torch.randn(1, 2, generator=rng(k), dtype=torch.float64)
        expected = 0.75 * expected + 0.25 * gradient
        inertia(k, torch.tensor([0]), x, Slope(x[:, 0], x[:, 0] > 2, gradient))
        torch.testing.assert_close(inertia.direction, expected)


# The step size


def sizes_met(attack: NES, losses: Tensor) -> Tensor:
    """The lengths of the moves when images meet these losses (N, steps), which fall out of the batch at a NaN."""
    x = torch.full((len(losses), 3), 0.5).double()
    inertia, lengths = Inertia(attack, x), torch.full_like(losses, torch.nan)
    for k, loss in enumerate(losses.T):
        rows = (~loss.isnan()).nonzero().squeeze(1)
        slope = Slope(loss[rows], loss[rows] > 1e9, torch.ones_like(x[rows]))
        lengths[rows, k] = attack.ball.norm(inertia(k, rows, x[rows], slope) - x[rows])
    return lengths


@given(
    st.integers(2, 6),
    st.sampled_from([1.0, 1.5, 2.0, 10.0]),
    st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.4]),
    seeds,
    st.sampled_from([-0.5, 0.0, 0.5]),
)
def test_step_sizes_follow_the_rule(plateau: int, decay: float, least: float, seed: int, trend: float) -> None:
    attack = NES(Linf(0.45), 30, step_size=0.2, plateau=plateau, decay=decay, least_step_size=least)
    losses = torch.randn(5, 30, generator=rng(seed), dtype=torch.float64).round(decimals=1)  # ties are no fall
    losses += trend * torch.arange(30)
    stop = torch.randint(1, 31, (5,), generator=rng(seed))
    losses[torch.arange(30) >= stop[:, None]] = torch.nan
    rules = [Rule(attack) for _ in range(5)]
    expected = [
        [math.nan if math.isnan(v) else rule.after(v) for v in row]
        for rule, row in zip(rules, losses.tolist(), strict=True)
    ]
    met = sizes_met(attack, losses)
    torch.testing.assert_close(met, torch.tensor(expected).double(), equal_nan=True)
    assert (met[~met.isnan()] >= min(least, 0.2) - 1e-12).all()
    if decay == 1:
        torch.testing.assert_close(met[~met.isnan()], torch.full_like(met[~met.isnan()], 0.2))


def test_it_falls_after_plateau_steps_without_progress() -> None:
    falling = -torch.arange(12.0, dtype=torch.float64)[None]
    attack = NES(Linf(0.45), step_size=0.4, plateau=4, least_step_size=0.15)
    expected = [0.4] * 3 + [0.2] * 4 + [0.15] * 5
    assert sizes_met(attack, falling)[0].tolist() == pytest.approx(expected)
    assert sizes_met(attack, -falling)[0].tolist() == pytest.approx([0.4] * 12)
    assert sizes_met(attack, 0 * falling)[0].tolist() == pytest.approx([0.4] * 12)
    assert sizes_met(replace(attack, decay=1.0), falling)[0].tolist() == pytest.approx([0.4] * 12)


def test_a_step_size_below_the_least_one_never_grows() -> None:
    falling = -torch.arange(12.0, dtype=torch.float64)[None]
    attack = NES(Linf(0.45), step_size=0.1, plateau=2, least_step_size=0.3)
    assert sizes_met(attack, falling)[0].tolist() == pytest.approx([0.1] * 12)


def test_images_have_step_sizes_of_their_own() -> None:
    falling = -torch.arange(9.0, dtype=torch.float64)
    attack = NES(Linf(0.45), step_size=0.4, plateau=3)
    one, two = sizes_met(attack, torch.stack([falling, -falling])).tolist()
    assert one[-1] < one[0]
    assert set(two) == {one[0]}


# It gets there


@pytest.mark.parametrize("shape", [(8,), (4, 6)])
@pytest.mark.parametrize("ball", BALLS)
def test_it_comes_close_to_the_optimal_radius(ball: type[Ball], shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(ball, shape)
    y = torch.zeros(len(x), dtype=torch.long)
    for goal in Untargeted(y), Targeted(y + 1):
        for share, flips in (0.98, False), (1.05, True):
            attack = NES(ball(share * eps), 60, 100, step_size=eps / 5)
            assert last_of(attack, model, x, goal).success.tolist() == [flips] * len(x)


@pytest.mark.parametrize("ball", [Linf(0.2), L2(1.0), L1(5.0)])
def test_it_fools_a_curved_model_in_every_ball(ball: Ball) -> None:
    model, x, y = convolutional()
    state = last_of(NES(ball, step_size=ball.eps / 10), model, x, y)
    assert state.success.float().mean() >= 0.75
    assert (state.distance[state.success] <= ball.eps * (1 + 1e-5)).all()
    assert (state.queries <= 200 * 51 + 1).all()


def test_targets_are_reached() -> None:
    model, x, _ = convolutional()
    targets = model(x).topk(2).indices[:, 1]
    state = last_of(NES(L2(2.0), step_size=0.1), model, x, Targeted(targets))
    assert state.success.all()
    assert torch.equal(model(state.best).argmax(1), targets)


# Where scores say nothing


def tree() -> tuple[DecisionTreeClassifier, Tensor, Tensor]:
    x = torch.linspace(0.02, 0.98, 12)[:, None].expand(12, 3).clone()
    y = (x[:, 0] > 0.5).long()
    return DecisionTreeClassifier(random_state=0).fit(x.numpy(), y.numpy()), x, y


def test_a_tree_is_reported_with_what_to_change() -> None:
    target, x, y = tree()
    with pytest.warns(ZeroGradient, match=r"for 12 of 12 images at step 0.*tree.*sigma") as caught:
        state = last_of(NES(Linf(0.1), 4, 5), target, x, y)
    assert len([warning for warning in caught if warning.category is ZeroGradient]) == 1
    assert not state.success.any()
    assert state.queries.tolist() == [4 * 11 + 1] * 12
    assert torch.equal(state.best, x)
    # The remedy is one.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradient)
        state = last_of(NES(Linf(0.6), 20, 30, sigma=0.5, step_size=0.1), target, x, y)
    assert state.success.all()


def test_a_constant_model_is_reported() -> None:
    with pytest.warns(ZeroGradient, match="for 2 of 2 images at step 0.*sigma"):
        last_of(NES(Linf(0.1), 2, 3), Linear(torch.zeros(4).double(), -1.0), images(2, (4,)), torch.zeros(2).long())


def test_the_margin_sees_what_the_published_loss_does_not() -> None:
    # In single precision the true class has all of the probability.
    model, x, y = (
        Linear(torch.tensor([1.0, -2.0, 3.0]), -30.0),
        0.2 + 0.6 * images(3, (3,)).float(),
        torch.zeros(3).long(),
    )
    assert (Scores(model)._answer(x)[:, 0] == 1).all()
    short = {"steps": 3, "directions": 5, "sigma": 0.01}
    with pytest.warns(ZeroGradient, match="exactly zero for 3 of 3 images"):
        flat = replace(NES.paper(Linf(0.1)), **short)(model, x, y)
    assert torch.equal(flat, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = NES(Linf(0.1), **short)(model, x, y)
    assert (model(found)[:, 1] > model(x)[:, 1]).all()


# What is refused, and what is published


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("directions", [0, 2.0, None]),
        ("plateau", [1, 0, 5.0, None]),
        ("decay", [0.99, -2.0, math.nan, math.inf, None]),
        ("momentum", [-0.1, 1, 1.5, math.nan, None]),
        ("sigma", [0, -1e-3, math.nan, math.inf, None]),
        ("step_size", [-0.1, math.nan, math.inf, None]),
        ("least_step_size", [-0.1, math.nan, None]),
        ("ball", [0.1, Linf, None]),
        ("loss", ["margin", None]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got |{field} less than 1, got "):
            NES(**{"ball": Linf(0.1), field: value})


def test_edges_are_allowed() -> None:
    NES(Linf(0.0), 1, 1, 1e-9, 0.0, 0.0, 2, 1.0, 0.0)


@pytest.mark.parametrize("ball", [Linf(0.05), L2(1.0)])
def test_the_published_settings(ball: Ball) -> None:
    paper = NES.paper(ball)
    assert paper.loss is cross_entropy
    assert replace(paper, loss=margin) == NES(ball)
    assert (paper.directions, paper.sigma, paper.step_size, paper.momentum) == (25, 1e-3, 1e-2, 0.9)
    assert (paper.plateau, paper.decay, paper.least_step_size) == (5, 2.0, 5e-5)
    # 10,000 queries are 196 steps.
    assert paper.steps * (2 * paper.directions + 1) == pytest.approx(10_000, rel=0.03)
