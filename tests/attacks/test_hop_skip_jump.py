import math
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advcourse.attacks import HopSkipJump, Traced
from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.gradients import Rays, gaussian, uniform
from advcourse.oracles import Labels
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import Counted, Linear, images, linear_yardstick, network, rng, seeds, setting, started

SHAPES = [(1,), (7,), (1, 5, 5), (2, 3, 4)]
both_norms = pytest.mark.parametrize("norm", [L2, Linf])


def last_of(attack: HopSkipJump, oracle: Any, x: Tensor, goal: Any, **options: Any) -> Traced:
    *_, last = attack.iterates(oracle, x, goal, **options)
    return last


# The algorithm


def plain_hsja(
    fools: Callable[[Tensor], bool], x: Tensor, start: Tensor, norm: type[Ball], draws: list[Tensor], gamma: float
) -> list[Tensor]:
    """The authors' program for one image (d,): its iterates, with the random directions of each step (B, d)."""
    d = len(x)
    theta = gamma / d**1.5 if norm is L2 else gamma / d**2

    def distance(image: Tensor) -> float:
        return norm.norm((image - x)[None]).item()

    def project(image: Tensor, alpha: float) -> Tensor:
        if norm is L2:
            return (1 - alpha) * x + alpha * image
        return torch.minimum(torch.maximum(image, x - alpha), x + alpha)

    def search(image: Tensor, threshold: float, high: float, way: Callable[[Tensor, float], Tensor]) -> Tensor:
        low = 0.0
        while high - low > threshold:
            middle = (low + high) / 2
            if fools(way(image, middle)):
                high = middle
            else:
                low = middle
        return way(image, high)

    def to_boundary(image: Tensor) -> tuple[Tensor, float]:
        far = distance(image)
        if norm is L2:
            return search(image, theta, 1.0, project), far
        return search(image, min(far * theta, theta), far, project), far

    blended = search(start, 1e-3, 1.0, lambda image, alpha: (1 - alpha) * x + alpha * image)
    now, far = to_boundary(blended)
    path = [now]
    for t, drawn in enumerate(draws, 1):
        delta = 0.1 if t == 1 else (d**0.5 if norm is L2 else d) * theta * far
        u = drawn / drawn.norm(dim=1, keepdim=True)
        around = (now + delta * u).clamp(0, 1)
        u = (around - now) / delta
        phi = torch.tensor([1.0 if fools(point) else -1.0 for point in around], dtype=x.dtype)
        if phi.mean().abs() < 1:
            phi = phi - phi.mean()
        gradient = (phi[:, None] * u).mean(0)
        gradient = gradient / gradient.norm()
        update = gradient.sign() if norm is Linf else gradient
        size = distance(now) / t**0.5
        while not fools((now + size * update).clamp(0, 1)):
            size /= 2
        now, far = to_boundary((now + size * update).clamp(0, 1))
        path.append(now)
    return path


@both_norms
@settings(max_examples=20)
@given(st.sampled_from(SHAPES[1:]), seeds, st.sampled_from([2, 3]), st.sampled_from([1.0, 0.3]))
def test_its_iterates_are_those_of_the_authors_program(
    norm: type[Ball], shape: tuple[int, ...], seed: int, classes: int, gamma: float
) -> None:
    model, x = network(shape, classes, seed), images(3, shape, seed)
    y = model(x).argmax(1)
    start = started(model, x, Untargeted(y))
    keep = (model(start).argmax(1) != y).nonzero().squeeze(1)
    x, y, start = x[keep], y[keep], start[keep]
    if len(keep) == 0:
        return
    attack = HopSkipJump(steps=4, gamma=gamma, initial_directions=10, norm=norm)
    first, *states = attack.iterates(model, x, y, start=start, generator=rng(seed))
    generator, draw = rng(seed), gaussian if norm is L2 else uniform
    torch.empty_like(x).uniform_(generator=generator)  # noise that no image needs
    draws = [draw(x, n, generator).flatten(2) for n in (10, 14, 17, 20)]
    assert torch.equal(first.x, x)
    for i in range(len(x)):

        def fools(point: Tensor, i: int = i) -> bool:
            return bool(model(point.view(1, *shape)).argmax(1)[0] != y[i])

        path = plain_hsja(fools, x[i].flatten(), start[i].flatten(), norm, [u[i] for u in draws], gamma)
        assert len(path) == len(states)
        for state, plain in zip(states, path, strict=True):
            torch.testing.assert_close(state.x[i].flatten(), plain, atol=1e-8, rtol=0)


def at_a_boundary(d: int, n: int, norm: type[Ball]) -> tuple[Rays, Tensor, Tensor]:
    """Images, the points of a flat boundary nearest to them, and the direction in which it is crossed."""
    weight = torch.randn(d, generator=rng(4), dtype=torch.float64)
    x = 0.5 + 0.01 * torch.randn(n, d, generator=rng(5), dtype=torch.float64)
    points = x - ((x @ weight - 0.5 * weight.sum() - 0.02) / weight.square().sum())[:, None] * weight
    oracle = Labels(Linear(weight, bias=-float(0.5 * weight.sum()) - 0.02), batch_size=10_000)
    oracle.begin(n)
    return Rays(oracle, x, Targeted(torch.ones(n, dtype=torch.long)), norm), points, weight


@both_norms
@pytest.mark.parametrize(("d", "directions"), [(100, 100), (100, 400), (400, 200)])
def test_the_gradient_points_across_a_boundary_as_well_as_theory_says(
    norm: type[Ball], d: int, directions: int
) -> None:
    n = 60
    rays, points, weight = at_a_boundary(d, n, norm)
    before = rays.oracle.queries
    gradient = HopSkipJump(norm=norm).gradient(
        rays, points, torch.full((n,), 0.01).double(), directions, rays.every, rng()
    )
    assert (rays.oracle.queries - before).tolist() == [directions] * n
    cosine = torch.nn.functional.cosine_similarity(gradient, weight[None])
    known = 2 * directions / math.pi
    assert abs(cosine.mean() - math.sqrt(known / (known + d))) < 0.02


def test_where_one_answer_is_more_frequent_the_mean_is_subtracted() -> None:
    rays, points, weight = at_a_boundary(100, 40, L2)
    delta, weight = torch.full((40,), 0.01).double(), weight / weight.norm()
    cosine = []
    for shift in 0.0, 0.001:  # past the boundary by one standard deviation of what is asked
        gradient = HopSkipJump().gradient(rays, points + shift * weight, delta, 200, rays.every, rng())
        cosine.append(torch.nn.functional.cosine_similarity(gradient, weight[None]).mean())
    assert cosine[1] > 0.8 * cosine[0]
    far = HopSkipJump().gradient(rays, points + weight, delta, 200, rays.every, rng())
    torch.testing.assert_close(far, gaussian_mean(points, 200), atol=1e-12, rtol=0)  # all alike: their mean, as it is
    back = HopSkipJump().gradient(rays, points - weight, delta, 200, rays.every, rng())
    torch.testing.assert_close(back, -gaussian_mean(points, 200), atol=1e-12, rtol=0)


def gaussian_mean(like: Tensor, n: int) -> Tensor:
    u = gaussian(like, n, rng())
    return (u / u.norm(dim=2, keepdim=True)).mean(1)


def test_where_clipping_cuts_a_direction_short_the_short_one_counts() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]]).double()
    oracle = Labels(lambda rows: torch.ones(len(rows)).long())
    oracle.begin(1)
    rays = Rays(oracle, x, Targeted(torch.tensor([0])))
    found = HopSkipJump().gradient(rays, x, torch.tensor([0.2]).double(), 1000, rays.every, rng())
    u = gaussian(x, 1000, rng())[0]
    u = u / u.norm(dim=1, keepdim=True)
    u[:, 0], u[:, 2] = u[:, 0].clamp_min(0), u[:, 2].clamp_max(0)
    torch.testing.assert_close(found[0], -u.mean(0))


@pytest.mark.parametrize(
    ("initial", "cap", "schedule"),
    [(100, 10_000, [100, 141, 173, 200, 223, 244]), (7, 12, [7, 9, 12, 12, 12, 12])],
)
@both_norms
def test_directions_grow_with_the_root_of_the_step(
    norm: type[Ball], initial: int, cap: int, schedule: list[int]
) -> None:
    model, x, _ = linear_yardstick(norm, (1, 3, 3))
    counted = Counted(model)
    attack = HopSkipJump(steps=6, initial_directions=initial, max_directions=cap, norm=norm)
    last_of(attack, Labels(counted, batch_size=10_000), x[:1], torch.zeros(1, dtype=torch.long))
    assert [rows for rows in counted.forwards if rows > 1] == schedule


@both_norms
@pytest.mark.parametrize("shape", [(9,), (1, 5, 5)])
def test_it_reaches_the_boundary_of_a_linear_model(norm: type[Ball], shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(norm, shape)
    goal = Untargeted(torch.zeros(3, dtype=torch.long))
    last = last_of(HopSkipJump(norm=norm), Labels(model, 2500), x, goal, start=started(model, x, goal))
    assert (last.distance >= eps - 1e-9).all()
    assert (last.distance < (1.02 if norm is L2 else 1.1) * eps).all()


# What holds on the way


@both_norms
@settings(max_examples=12)
@given(st.sampled_from(SHAPES), seeds, st.sampled_from([Untargeted, Targeted]), st.sampled_from([None, 45, 200]))
def test_iterates_fool_and_the_best_comes_nearer(
    norm: type[Ball], shape: tuple[int, ...], seed: int, kind: type[Goal], budget: int | None
) -> None:
    model, x, goal = setting(shape, 3, seed, kind)
    oracle = Labels(model, budget)
    attack = HopSkipJump(steps=5, initial_directions=10, norm=norm)
    states = list(attack.iterates(oracle, x, goal, start=started(model, x, goal)))
    for before, state in pairwise(states):
        assert torch.equal(state.success, goal.fooled(model(state.x).argmax(1)))
        assert torch.equal(state.x[~state.success], x[~state.success])
        assert state.x.min() >= 0
        assert state.x.max() <= 1
        assert (state.distance <= before.distance).all()
        assert (state.distance <= norm.norm(state.x - x) + 1e-12)[state.success].all()
        torch.testing.assert_close(state.distance, norm.norm(state.best - x).where(state.success, torch.inf))
    assert torch.equal(states[-1].queries, oracle.queries)


@both_norms
def test_images_take_steps_of_their_own_size(norm: type[Ball]) -> None:
    # One near its boundary and one far: the first step of each is as long as its own distance.
    rays, _, weight = at_a_boundary(9, 2, norm)
    points = rays.x + torch.tensor([[0.01], [0.1]]).double() * weight.sign()
    slope = torch.stack([weight, 1e-6 * weight])
    size = norm.norm(points - rays.x)
    moved = HopSkipJump(norm=norm).step(rays, points, norm.steepest(slope), size, rays.every)
    torch.testing.assert_close(norm.norm(moved - points), size)


# Queries, starts and ends


def test_an_image_that_is_short_keeps_half_for_the_rest() -> None:
    model, x, _ = linear_yardstick(L2, (1, 3, 3))
    goal = Untargeted(torch.zeros(3, dtype=torch.long))
    for budget, directions in (250, 100), (217, 100), (215, 99), (127, 55), (30, 7), (20, 2):
        counted = Counted(model)
        oracle = Labels(counted, budget)
        last = last_of(HopSkipJump(), oracle, x[:1], goal[:1], start=torch.ones_like(x[:1]) * model.weight.gt(0))
        spent = 1 + 1 + 10 + math.ceil(1.5 * math.log2(9))  # clean, start, blending, bisection
        many = [rows for rows in counted.forwards if rows > 1]
        assert spent == 17
        assert many[0] == min(100, (budget - spent + 1) // 2) == directions
        assert oracle.queries.tolist() == [budget]
        assert last.success.all()


@pytest.mark.parametrize("budget", [2, 5, 12, 20, 40, 133])
@both_norms
def test_a_budget_that_ends_anywhere_leaves_what_fools(norm: type[Ball], budget: int) -> None:
    model, x = network((1, 5, 5)), images(6, (1, 5, 5))
    y = model(x).argmax(1)
    start = started(model, x, Untargeted(y))
    oracle = Labels(model, budget)
    for state in islice(HopSkipJump(norm=norm).iterates(oracle, x, y, start=start), 1, None):
        assert (model(state.x).argmax(1) != y).all()
        assert (model(state.best).argmax(1) != y).all()
    assert (oracle.queries == budget).all()


def test_an_image_without_a_start_goes_out_and_others_go_on() -> None:
    model, x = Linear(torch.ones(2).double(), bias=-1.0), torch.tensor([[0.2, 0.3], [0.9, 0.8], [0.3, 0.1]]).double()
    oracle = Labels(lambda rows: model(rows).argmax(1), budget=300)  # which does not tell that there is no label 7
    attack, goal = HopSkipJump(start_images=5), Targeted(torch.tensor([1, 1, 7]))
    last = last_of(attack, oracle, x, goal, start=torch.ones(3, 2).double())
    assert last.queries.tolist() == [300, 1, 1 + 1 + 5]
    assert last.success.tolist() == [True, True, False]
    assert torch.equal(last.best[1:], x[1:])
    torch.testing.assert_close(last.distance[0], torch.tensor(0.5 / math.sqrt(2)).double(), atol=5e-3, rtol=0)


@both_norms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_ends_when_its_tolerance_is_finer_than_the_numbers(norm: type[Ball], dtype: torch.dtype) -> None:
    model, x = network((1, 5, 5), dtype=dtype), images(6, (1, 5, 5), dtype=dtype)
    oracle = Labels(model)
    attack = HopSkipJump(steps=3, gamma=1e-30, initial_directions=10, norm=norm)
    last = last_of(attack, oracle, x, model(x).argmax(1))
    assert (last.best.dtype, last.distance.dtype) == (dtype, dtype)
    assert last.success.any()
    assert last.x.isfinite().all()
    assert (oracle.queries < 100 + 45 + 3 * 3 * 80).all()


@both_norms
def test_it_ends_where_nothing_but_the_start_fools(norm: type[Ball]) -> None:
    start = torch.tensor([[0.75, 0.25, 0.5, 0.5]])
    x, goal = torch.full((1, 4), 0.5), Targeted(torch.tensor([1]))
    oracle = Labels(lambda rows: (rows == start).all(1).long())
    last = last_of(HopSkipJump(steps=3, norm=norm), oracle, x, goal, start=start)
    assert torch.equal(last.best, start)
    assert torch.equal(last.x, start)
    assert last.queries[0] < 2 + 10 + 100 + 141 + 173 + 4 * 10 + 3 * 40


@both_norms
def test_calls_repeat_and_the_batch_size_changes_nothing(norm: type[Ball]) -> None:
    model, x, goal = setting((2, 3, 4), 3, 5, Untargeted)
    attack = HopSkipJump(steps=3, initial_directions=10, norm=norm)
    first = attack(model, x, goal)
    assert torch.equal(attack(model, x, goal), first)
    assert torch.equal(attack(Labels(model, batch_size=3), x, goal), first)
    assert not torch.equal(attack(model, x, goal, generator=rng(1)), first)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((1, 5, 5), 3, 0, Untargeted)
    attack = HopSkipJump(steps=6, initial_directions=10)
    kept = [(state, state.x.clone(), state.best.clone()) for state in attack.iterates(model, x, goal)]
    assert len(kept) == 8
    for state, points, best in kept:
        assert torch.equal(state.x, points)
        assert torch.equal(state.best, best)
    assert all(not torch.equal(a[1], b[1]) for a, b in pairwise(kept))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, None, True]),
        ("initial_directions", [0, 2.5, None]),
        ("max_directions", [0, 1e4, None]),
        ("start_images", [-1, 0.5]),
        ("gamma", [0.0, 0, -1.0, math.nan, math.inf, "1"]),
        ("norm", [L1, Linf(0.1), "l2", None]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            HopSkipJump(**{field: value})


def test_defaults_are_the_authors() -> None:
    attack = HopSkipJump()
    assert (attack.steps, attack.gamma, attack.initial_directions, attack.max_directions) == (40, 1.0, 100, 10_000)
    assert attack.norm is L2
    assert repr(attack).startswith("HopSkipJump(steps=40, gamma=1.0, ")
