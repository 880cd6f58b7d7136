import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.gradients import Rays, Trace, average, gaussian
from advcourse.oracles import Labels
from advcourse.threat import L2, Ball, Linf, per_image

from ..helpers import Linear, images, network, rng, seeds

SHAPES = [(7,), (3, 4), (1, 5, 5)]
NORMS: list[type[Ball]] = [L2, Linf]
shapes, norms = st.sampled_from(SHAPES), st.sampled_from(NORMS)
float64 = partial(torch.tensor, dtype=torch.float64)
both_norms = pytest.mark.parametrize("norm", NORMS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class Recorder(Labels):
    """Labels that keep every question, on whose behalf it was, and what was answered."""

    def begin(self, n: int, device: Any = "cpu") -> None:
        super().begin(n, device)
        self.rows: list[Tensor] = []
        self.owners: list[Tensor] = []
        self.answers: list[Tensor] = []

    def __call__(self, points: Tensor, owner: Tensor) -> Tensor:
        answer = super().__call__(points, owner)
        self.rows.append(points.clamp(0, 1).clone())
        self.owners.append(owner.clone())
        self.answers.append(answer)
        return answer

    def met(self, x: Tensor, goal: Goal, norm: type[Ball]) -> list[tuple[int, int, float, Tensor]]:
        """All that fooled: on behalf of whom, what that image had paid by then, how far it is, and the point."""
        found, spent = [], torch.zeros(len(x), dtype=torch.int64)
        for rows, owners, answers in zip(self.rows, self.owners, self.answers, strict=True):
            spent += owners.bincount(minlength=len(x))  # the answers to one question come together
            hit = goal[owners].fooled(answers)
            who, far = owners[hit], norm.norm(rows - x[owners])[hit]
            found += zip(who.tolist(), spent[who].tolist(), far.tolist(), rows[hit], strict=True)
        return found


def nearest(met: list[tuple[int, int, float, Tensor]], x: Tensor, budget: float = math.inf) -> tuple[Tensor, Tensor]:
    """The nearest of those points that were paid by then (N, ...), or the clean image, and its distance (N,)."""
    best, distance = x.clone(), [math.inf] * len(x)
    for i, spent, far, row in met:
        if spent <= budget and far < distance[i]:
            best[i], distance[i] = row, far
    return best, torch.tensor(distance, dtype=x.dtype)


class Counting(nn.Module):
    """A target that counts its rows, and whether one was not in the box or no number."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        assert ((x >= 0) & (x <= 1)).all()
        self.rows += len(x)
        return self.model(x)


def around(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    goal: Goal | None = None,
    norm: type[Ball] = L2,
    budget: int | None = None,
) -> Rays:
    """Rays around images, through a recorder around a counter."""
    oracle = Recorder(Counting(model), budget, batch_size=7)
    oracle.begin(len(x))
    return Rays(oracle, x, Untargeted(model(x).argmax(1)) if goal is None else goal, norm)


def cost(rays: Rays) -> list[int]:
    """What each image has paid, the clean image aside; and the target has seen it."""
    assert int(rays.oracle.queries.sum()) == rays.oracle.target.rows
    return (rays.oracle.queries - 1).tolist()


def half_space(
    shape: tuple[int, ...], n: int = 3, lead: float = 0.03, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Linear, Tensor]:
    """A linear model and images so near its boundary, and so far from the box, that nothing is clipped: all class 0."""
    weight = torch.empty(shape, dtype=dtype).normal_(generator=rng(seed))
    weight = weight - weight.mean()  # so that grey is on the boundary
    weight = weight / weight.norm()
    x = 0.5 + 0.1 * (torch.rand(n, *shape, generator=rng(seed + 1), dtype=dtype) - 0.5)
    x = x - per_image((x * weight).flatten(1).sum(1), x) * weight
    x = x - lead * weight * per_image(torch.linspace(0.5, 1, n, dtype=dtype), x)
    return Linear(weight), x


def distance_along(model: Linear, x: Tensor, theta: Tensor, norm: type[Ball]) -> Tensor:
    """g in closed form: −<w, x> / <w, θ> · |θ|, infinite for those that lead away."""
    gap = -(x * model.weight).flatten(1).sum(1)
    speed = (theta * model.weight).flatten(1).sum(1) / norm.norm(theta)
    return torch.where(speed > 0, gap / speed, math.inf).detach()


def towards(rays: Rays, model: Linear, owner: Tensor, seed: int = 0, spread: float = 0.4) -> Tensor:
    """Directions of length 1 that lead to the boundary, and not straight."""
    like = rays.x[owner]
    noise = torch.empty_like(like).normal_(generator=rng(seed + 7))
    return rays.unit(model.weight.detach() + spread * noise / per_image(L2.norm(noise), noise))


# Where the boundary is


@both_norms
@each_shape
@each_dtype
def test_on_a_line_all_searches_find_what_can_be_computed(
    shape: tuple[int, ...], norm: type[Ball], dtype: torch.dtype
) -> None:
    model, x = half_space(shape, dtype=dtype)
    owner = torch.tensor([0, 2, 1, 0, 0])
    for tol in 1e-2, 1e-5:
        rays = around(model, x, norm=norm)
        theta = towards(rays, model, owner)
        exact = distance_along(model, x[owner], theta, norm)
        zero, far = torch.zeros_like(exact), torch.full_like(exact, 0.2)
        guess = exact * torch.tensor([0.6, 1.0, 1.7, 1.02, 0.99], dtype=dtype)
        stride = 0.01
        found = {
            "bisect": rays.bisect(theta, zero, far, tol, owner),
            "walk": rays.bisect(theta, *rays.walk(theta, stride, 0.5, owner), tol, owner),
            "bracket": rays.bisect(theta, *rays.bracket(theta, guess, owner), tol, owner),
            "g": rays.g(theta, guess, tol, owner),
        }
        for radius in found.values():
            assert radius.dtype == dtype
            assert (radius > exact - 1e-6).all()  # from the side that fools
            assert (radius - exact <= tol + 1e-6).all()
        assert torch.equal(found["bracket"], found["g"])
        assert cost(rays)


@both_norms
@settings(max_examples=12)
@given(shapes, seeds, st.floats(1e-3, 1e3))
def test_g_does_not_depend_on_the_length_of_a_direction(
    norm: type[Ball], shape: tuple[int, ...], seed: int, scale: float
) -> None:
    model, x = half_space(shape, seed=seed % 1000)
    rays, owner = around(model, x, norm=norm), torch.arange(3)
    theta = towards(rays, model, owner, seed)
    torch.testing.assert_close(rays.unit(scale * theta), theta)
    torch.testing.assert_close(norm.norm(rays.unit(scale * theta)), torch.ones(3).double())
    guess = distance_along(model, x, theta, norm) * 0.9
    first = rays.g(theta, guess, 1e-6, owner)
    torch.testing.assert_close(rays.g(rays.unit(scale * theta), guess, 1e-6, owner), first, atol=2e-6, rtol=0)
    torch.testing.assert_close(first, distance_along(model, x, scale * theta, norm), atol=2e-6, rtol=0)


@both_norms
def test_a_direction_of_no_length_stays_nothing(norm: type[Ball]) -> None:
    model, x = half_space((7,))
    rays = around(model, x, norm=norm)
    assert torch.equal(rays.unit(torch.zeros(2, 7)), torch.zeros(2, 7))
    unit = rays.unit(torch.stack([torch.zeros(7), torch.full((7,), 1e-12)]))
    assert unit.isfinite().all()
    assert norm.norm(unit).tolist() == pytest.approx([0, 1], rel=1e-4)


@both_norms
@each_shape
def test_where_no_boundary_is_it_is_infinitely_far(shape: tuple[int, ...], norm: type[Ball]) -> None:
    model, x = half_space(shape)
    rays, owner = around(model, x, norm=norm, budget=3000), torch.tensor([0, 1, 1])
    theta = towards(rays, model, owner) * float64([1.0, -1.0, 1.0]).view(-1, *[1] * len(shape))
    exact = distance_along(model, x[owner], theta, norm)
    assert exact.isinf().tolist() == [False, True, False]
    guess = torch.full_like(exact, 0.05)
    low, high = rays.walk(theta, 0.05, 1.0, owner)
    assert torch.equal(high.isinf(), exact.isinf())
    assert low[1] == pytest.approx(1.0)  # it went all the way
    low, high = rays.bracket(theta, guess, owner)
    assert torch.equal(high.isinf(), exact.isinf())
    assert 0.09 < low[1] <= 0.1  # it went to twice the guess
    before = rays.oracle.queries
    assert rays.bisect(theta[1:2], low[1:2], high[1:2], 1e-6, owner[1:2]).isinf().all()
    assert torch.equal(rays.oracle.queries, before)  # for nothing
    assert torch.equal(rays.g(theta, guess, 1e-6, owner).isinf(), exact.isinf())


def test_a_guess_may_be_as_far_off_as_it_likes() -> None:
    model, x = half_space((7,))
    rays, owner = around(model, x[:1]), torch.zeros(3, dtype=torch.int64)
    theta = rays.unit(model.weight.detach().expand(3, 7).clone())
    exact = distance_along(model, x[owner], theta, L2)
    guess = exact * float64([0.499, 0.51, 30.0])
    radius = rays.g(theta, guess, 1e-6, owner)
    assert radius.isinf().tolist() == [True, False, False]  # beyond twice the guess nothing is looked for
    torch.testing.assert_close(radius[1:], exact[1:], atol=2e-6, rtol=0)
    assert rays.g(theta, guess, 1e-6, owner, limit=2.5).isfinite().all()
    # All of the ray fools but the image: not to the end of all numbers.
    rays = around(
        lambda rows: torch.stack([0 * rows[:, 0], (rows != 0.5).any(1).to(rows) - 0.5], 1), torch.full((1, 7), 0.5)
    )
    low, high = rays.bracket(torch.ones(1, 7) / 7**0.5, torch.ones(1), torch.tensor([0]))
    assert (low, high) == (0, pytest.approx(1e-4, rel=0.02))
    assert cost(rays)[0] < 1000


def slab(near: float, width: float, far: float) -> Callable[[Tensor], Tensor]:
    """Class 1 in a thin slab, and again farther away, of the first feature."""

    def target(rows: Tensor) -> Tensor:
        first = rows.flatten(1)[:, 0]
        inside = ((first >= near) & (first < near + width)) | (first >= far)
        return torch.stack([torch.full_like(first, 0.5), inside.to(first)], 1)

    return target


@both_norms
def test_a_fine_grained_search_finds_the_nearer_of_two_boundaries(norm: type[Ball]) -> None:
    x, owner = torch.full((1, 7), 0.1, dtype=torch.float64), torch.tensor([0])
    rays = around(slab(0.33, 0.06, 0.7), x, norm=norm)
    theta, zero, one = torch.eye(7).double()[:1], torch.zeros(1).double(), float64([0.9])
    assert rays.bisect(theta, zero, one, 1e-5, owner).item() == pytest.approx(0.6, abs=1e-4)
    for stride in 0.05, 0.03, 0.01:  # no wider than the slab
        low, high = rays.walk(theta, stride, 0.9, owner)
        assert high - low == pytest.approx(stride)
        assert low < 0.23 <= high < 0.29
        assert rays.bisect(theta, low, high, 1e-5, owner).item() == pytest.approx(0.23, abs=2e-5)
    assert rays.distance.item() == pytest.approx(0.23, abs=2e-5)
    low, high = rays.walk(theta, 0.2, 0.9, owner)  # steps over it
    assert (low.item(), high.item()) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize(("stride", "limit"), [(0.1, 0.3), (0.1, 0.7), (0.05, 0.35), (0.3, 0.9), (0.25, 0.75)])
@each_dtype
def test_a_walk_goes_to_its_limit_and_not_farther(stride: float, limit: float, dtype: torch.dtype) -> None:
    x, owner = torch.full((2, 3), 0.05, dtype=dtype), torch.arange(2)
    theta = torch.eye(3, dtype=dtype)[[0, 0]]
    rays = around(slab(0.05 + limit - stride / 2, 1, 2), x)
    low, high = rays.walk(theta, stride, limit, owner)
    assert high.tolist() == pytest.approx([limit] * 2)
    assert low.tolist() == pytest.approx([limit - stride] * 2)
    rays = around(slab(0.05 + limit + stride / 2, 1, 2), x)
    low, high = rays.walk(theta, stride, torch.tensor([limit, stride], dtype=dtype), owner)  # each to its own
    assert high.isinf().all()
    assert low.tolist() == pytest.approx([limit, stride])
    assert cost(rays) == [round(limit / stride), 1]
    low, high = rays.walk(theta[:0], stride, limit, owner[:0])
    assert len(low) == len(high) == 0


# One bit about g


@settings(max_examples=15)
@given(shapes, norms, seeds)
def test_on_a_line_a_sign_is_the_sign_of_the_difference(shape: tuple[int, ...], norm: type[Ball], seed: int) -> None:
    model, x = half_space(shape, n=2, seed=seed % 1000)
    owner = torch.tensor([1, 0, 1])
    rays = around(model, x, norm=norm)
    theta = towards(rays, model, owner, seed)
    tol, beta = 1e-7, float64([1e-3, 1e-2, 0.1])
    radius = rays.g(theta, distance_along(model, x[owner], theta, norm), tol, owner)
    u = torch.empty(3, 40, *shape, dtype=torch.float64).normal_(generator=rng(seed))
    u = rays.unit(u.flatten(0, 1)).view_as(u)
    before = cost(rays)
    signs = rays.signs(theta, radius, u, beta, owner)
    assert [a - b for a, b in zip(cost(rays), before, strict=True)] == [40, 80]
    for r in range(3):
        moved = theta[r] + beta[r] * u[r]
        change = distance_along(model, x[owner[r]].expand_as(moved), moved, norm) - radius[r]
        clear = change.abs() > 2 * tol
        assert clear.sum() > 30
        assert torch.equal(signs[r][clear], change[clear].sign())


def test_on_a_curve_too_but_for_ties() -> None:
    right, total = 0, 0
    for seed in range(6):
        model, x = network((1, 5, 5), 2, seed), images(3, (1, 5, 5), seed).clamp(0.3, 0.7)
        model[1].weight.data.mul_(0.1)
        rays = around(model, x)
        owner = rays.every.repeat(6)
        theta = rays.unit(torch.empty(18, 1, 5, 5).double().normal_(generator=rng(seed)))
        radius = rays.bisect(theta, *rays.walk(theta, 0.02, 1.5, owner), 1e-8, owner)
        rows = (radius < 1.0).nonzero().squeeze(1)
        theta, radius, owner = theta[rows], radius[rows], owner[rows]
        u = torch.empty(len(rows), 20, 1, 5, 5).double().normal_(generator=rng(seed + 1)) / 5
        beta = torch.full_like(radius, 1e-2)
        signs = rays.signs(theta, radius, u, beta, owner)
        for r in range(len(rows)):
            moved = rays.unit(theta[r] + 1e-2 * u[r])
            g = rays.g(moved, radius[r].expand(20), 1e-8, owner[r].expand(20))
            change = g - radius[r]
            clear = change.abs() > 1e-6
            right, total = right + int((signs[r] == change.sign())[clear].sum()), total + int(clear.sum())
    assert total > 150
    assert right >= 0.99 * total


@pytest.mark.parametrize(("d", "queries"), [(100, 200), (100, 1000), (784, 200)])
def test_averaged_signs_point_along_the_gradient_as_well_as_theory_says(d: int, queries: int) -> None:
    model, x = half_space((d,), n=1)
    rays, owner = around(model, x), torch.zeros(1, dtype=torch.int64)
    theta = towards(rays, model, owner, spread=0.5)
    weight = model.weight.detach()
    radius = rays.bisect(theta, torch.zeros(1).double(), torch.ones(1).double(), 1e-12, owner)
    slope = theta * (theta @ weight) - weight  # of <w, x> / <w, θ> · |θ|, but for its length
    cosines = []
    for seed in range(10):
        u = gaussian(theta, queries, rng(seed))
        u = u / u.norm(dim=2, keepdim=True)
        signs = rays.signs(theta, radius, u, float64([1e-4]), owner)
        cosines.append(torch.cosine_similarity(average(signs, u), slope).item())
    share = 2 * queries / math.pi
    assert sum(cosines) / 10 == pytest.approx(math.sqrt(share / (share + d)), abs=0.05)
    assert cost(rays)[0] - 10 * queries < 60


def test_a_tie_is_no_reason_to_stop() -> None:
    # On a plateau of the answer, and along no direction at all, every question has an answer: it fools, or does not.
    rays = around(slab(0.3, 1, 2), torch.full((1, 7), 0.1, dtype=torch.float64))
    theta, owner = torch.eye(7).double()[:1], torch.tensor([0])
    radius = float64([0.2])  # the slab holds its own edge
    assert rays.crossed(theta, radius + 1e-12, owner).all()
    nothing = torch.zeros(1, 4, 7).double()
    assert rays.signs(theta, radius + 1e-12, nothing, torch.ones(1).double(), owner).tolist() == [[-1] * 4]
    assert rays.signs(theta, radius - 1e-12, nothing, torch.ones(1).double(), owner).tolist() == [[1] * 4]
    assert rays.bisect(theta, radius, radius, 0.0, owner).item() == 0.2
    assert rays.bisect(theta, radius * 0, radius * 2, 0.0, owner).item() == pytest.approx(0.2, abs=1e-15)


# What it costs


@both_norms
@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), seeds)
def test_every_method_costs_what_it_says(norm: type[Ball], order: list[int], seed: int) -> None:
    model, x = half_space((3, 4), n=4, lead=0.03, seed=seed % 1000)
    owner = torch.tensor(order)
    each = owner.bincount(minlength=4)
    rays = around(model, x, norm=norm)
    assert cost(rays) == [0] * 4
    theta = towards(rays, model, owner, seed)
    exact = distance_along(model, x[owner], theta, norm)

    def paid(ask: Callable[[], Any]) -> Tensor:
        before = torch.tensor(cost(rays))
        ask()
        return torch.tensor(cost(rays)) - before

    def per_owner(prices: Tensor) -> Tensor:
        return torch.zeros(4, dtype=torch.int64).index_add(0, owner, prices.long())

    assert torch.equal(paid(lambda: rays.crossed(theta, exact, owner)), each)
    assert torch.equal(paid(lambda: rays.fooled(x[owner], owner)), each)
    beta, u = torch.full_like(exact, 1e-3), torch.randn(len(owner), 5, 3, 4, generator=rng(seed)).double()
    assert torch.equal(paid(lambda: rays.signs(theta, exact, u, beta, owner)), 5 * each)
    quota = torch.arange(len(owner)) % 7  # more than there are is all of them
    assert torch.equal(paid(lambda: rays.signs(theta, exact, u, beta, owner, quota)), per_owner(quota.clamp_max(5)))
    # Halvings of 0.2 down to a tolerance that differs from ray to ray.
    halvings = torch.arange(len(owner)) % 5
    low = (exact - 0.1).clamp_min(0)
    tol = 0.2 * 0.5**halvings * 1.0001
    assert torch.equal(paid(lambda: rays.bisect(theta, low, low + 0.2, tol, owner)), per_owner(halvings))
    # A walk ends with the first step beyond.
    stride = 0.007
    steps = (exact / stride).ceil()
    assert torch.equal(paid(lambda: rays.walk(theta, stride, 1.0, owner)), per_owner(steps))
    # From below by 1 % until it fools, from above until it does not.
    below = 1 + (1 / 0.905 / 1e0 * torch.ones_like(exact)).log().div(math.log(1.01)).ceil()
    assert torch.equal(paid(lambda: rays.bracket(theta, 0.905 * exact, owner)), per_owner(below))
    above = 1 + torch.full_like(exact, math.log(1.1) / -math.log(0.99)).ceil()
    assert torch.equal(paid(lambda: rays.bracket(theta, 1.1 * exact, owner)), per_owner(above))
    # Who may not go out gives up at once.
    assert torch.equal(paid(lambda: rays.g(theta, 0.9 * exact, 1e-6, owner, limit=1.0)), each)
    assert torch.equal(paid(lambda: rays.points(theta, exact, owner)), 0 * each)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 9), seeds)
def test_who_cannot_pay_is_not_asked_and_the_first_come_first(order: list[int], budget: int, seed: int) -> None:
    model, x = half_space((7,), n=4)
    owner = torch.tensor(order)
    rays = around(model, x, budget=budget)
    left = [max(budget - 1, 0)] * 4
    expected = []
    for i in order:
        expected.append(left[i] > 0)
        left[i] -= expected[-1]
    assert rays.oracle.payable(owner).tolist() == expected
    answer = rays.fooled(torch.ones(len(order), 7).double() * model.weight.detach().sign().clamp_min(0), owner)
    assert answer.tolist() == expected  # for that point fools whoever asks
    assert rays.oracle.remaining.tolist() == left
    assert int(rays.oracle.queries.sum()) == rays.oracle.target.rows
    assert rays.fooled(x[:0], owner[:0]).tolist() == []


@pytest.mark.parametrize("budget", range(1, 12))
def test_signs_that_cannot_be_paid_are_none(budget: int) -> None:
    model, x = half_space((7,), n=2)
    owner = torch.tensor([0, 1, 0])
    rays = around(model, x, budget=budget)
    theta = towards(rays, model, owner)
    u = gaussian(theta, 4, rng())
    radius, beta = distance_along(model, x[owner], theta, L2), torch.ones(3).double()
    for quota in None, torch.full((3,), 4):
        rays = around(model, x, budget=budget)
        signs = rays.signs(theta, radius, u, beta, owner, quota)
        asked = (signs != 0).sum(1)
        assert signs.unique().tolist() in ([0], [-1, 0, 1], [-1, 1], [-1, 0], [0, 1], [1], [-1])
        assert cost(rays) == [int(asked[0] + asked[2]), int(asked[1])]
        assert asked[1] == min(4, budget - 1)
        assert asked[0] + asked[2] == min(8, budget - 1)
        # Of each, the first, and what they are does not depend on the others.
        free = around(model, x).signs(theta, radius, u, beta, owner)
        for r in range(3):
            assert torch.equal(signs[r, : asked[r]], free[r, : asked[r]])
            assert not signs[r, asked[r] :].any()


@pytest.mark.parametrize("budget", range(0, 26))
def test_a_budget_that_ends_in_the_middle_leaves_a_radius_that_fools(budget: int) -> None:
    model, x = half_space((3, 4), n=2)
    owner = torch.tensor([0, 1, 0])
    searches: list[Callable[[Rays, Tensor, Tensor], Tensor]] = [
        lambda rays, theta, exact: rays.bisect(theta, *rays.walk(theta, 0.01, 0.5, owner), 1e-6, owner),
        lambda rays, theta, exact: rays.bisect(theta, *rays.bracket(theta, 0.97 * exact, owner), 1e-6, owner),
        lambda rays, theta, exact: rays.bisect(theta, *rays.bracket(theta, 1.1 * exact, owner), 1e-6, owner),
        lambda rays, theta, exact: rays.g(theta, 0.9 * exact, 1e-6, owner),
    ]
    for search in searches:
        rays = around(model, x, Untargeted(torch.tensor([0, 0])), budget=budget)
        theta = towards(rays, model, owner, spread=0.2)
        exact = distance_along(model, x[owner], theta, L2)
        radius = search(rays, theta, exact)
        assert (rays.oracle.queries <= budget).all()
        assert not radius.isnan().any()
        oracle = rays.oracle
        for r, i in enumerate(owner.tolist()):
            point = rays.points(theta[r : r + 1], radius[r : r + 1].nan_to_num(0, 0, 0), owner[r : r + 1])[0]
            seen = [
                (answer == 1 and torch.allclose(row, point, atol=1e-15, rtol=0))
                for rows, owners, answers in zip(oracle.rows, oracle.owners, oracle.answers, strict=True)
                for row, who, answer in zip(rows, owners, answers, strict=True)
                if who == i
            ]
            assert any(seen) == bool(radius[r] < math.inf)
            assert radius[r] >= exact[r]
    if budget == 25:
        assert radius.isfinite().any()


# What is remembered


def wild(rays: Rays, seed: int) -> None:
    """Some of everything, for owners in disorder and more than once."""
    generator = rng(seed)
    n = len(rays.x)
    for _ in range(2):
        owner = torch.randint(n, (6,), generator=generator)
        theta = rays.unit(torch.empty_like(rays.x[owner]).normal_(generator=generator))
        low, high = rays.walk(theta, 0.3, 1.5, owner)
        radius = rays.bisect(theta, low, high, 1e-2, owner)
        rows = (radius < math.inf).nonzero().squeeze(1)
        theta, radius, owner = theta[rows], radius[rows], owner[rows]
        u = torch.empty(len(rows), 5, *theta.shape[1:], dtype=theta.dtype).normal_(generator=generator)
        rays.signs(theta, radius, u, torch.full_like(radius, 0.1), owner, torch.arange(len(rows)) % 5)
        rays.g(theta, 1.2 * radius, 1e-2, owner)
        far = torch.rand(9, *rays.x.shape[1:], generator=generator, dtype=theta.dtype) * 3 - 1
        rays.fooled(far, torch.randint(n, (9,), generator=generator))


@settings(max_examples=7)
@given(
    shapes,
    norms,
    seeds,
    st.sampled_from([Untargeted, Targeted]),
    st.sampled_from([None, 0, 1, 2, 5, 17, 40]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_nearest_is_kept_and_when_it_was_met(
    shape: tuple[int, ...],
    norm: type[Ball],
    seed: int,
    kind: type[Goal],
    budget: int | None,
    dtype: torch.dtype,
) -> None:
    model, x = network(shape, 3, seed, dtype), images(4, shape, seed, dtype)
    goal = kind(torch.tensor([0, 1, 2, 0]))
    rays = around(model, x, goal, norm, budget)
    wild(rays, seed)
    if budget is not None:
        assert (rays.oracle.queries <= budget).all()
    met = rays.oracle.met(x, goal, norm)
    best, distance = nearest(met, x)
    assert torch.equal(rays.distance, distance)
    assert torch.equal(rays.best, best)
    assert torch.equal(rays.distance < math.inf, goal.fooled(model(rays.best).argmax(1)) & (budget != 0))
    clean = goal.fooled(model(x).argmax(1)) & (budget != 0)
    assert torch.equal(rays.distance == 0, clean)
    assert torch.equal(rays.best[clean], x[clean])
    trace = rays.trace
    assert trace.images == 4
    budgets = [0, 1, 2, 3, 7, 20, 50, 10**6]
    expected = torch.stack([nearest(met, x, b)[1] for b in budgets], 1)
    assert torch.equal(trace.at(budgets), expected)
    assert (trace.distance.dtype, trace.image.dtype, trace.queries.dtype) == (dtype, torch.int64, torch.int64)
    for i in range(4):
        own = trace.image == i
        assert (trace.distance[own].diff() < 0).all()  # an improvement is one
        assert (trace.queries[own].diff() > 0).all()


def test_the_distance_is_that_of_the_clipped_point() -> None:
    for norm in NORMS:
        x = float64([[0.9, 0.5, 0.2]])
        rays = around(slab(0.95, 1, 2), x, norm=norm)
        theta = rays.unit(float64([[1.0, 1.0, 0.0]]))
        owner = torch.tensor([0])
        assert rays.crossed(theta, float64([0.4]), owner).all()
        corner = (x + 0.4 * theta).clamp(0, 1)
        assert corner[0, 0] == 1
        assert torch.equal(rays.best, corner)
        assert torch.equal(rays.distance, norm.norm(corner - x))
        assert torch.equal(rays.points(theta, float64([0.4]), owner), corner)
        # Points out of the box are clipped on their way, whoever asks.
        assert rays.fooled(float64([[7.0, 0.5, -3.0]]), owner).all()
        assert torch.equal(rays.best, float64([[1.0, 0.5, 0.0]]))
        assert torch.equal(rays.distance, nearest(rays.oracle.met(x, rays.goal, norm), x)[1])


def test_of_equals_the_first_is_kept_and_owners_may_come_in_any_order() -> None:
    x = torch.full((3, 2), 0.5).double()
    rays = around(lambda rows: torch.stack([0 * rows[:, 0], (rows != 0.5).any(1).to(rows) - 0.5], 1), x)
    points = float64([[0.9, 0.5], [0.5, 0.25], [0.75, 0.5], [0.5, 0.75], [0.5, 0.0], [0.5, 0.25]])
    assert rays.fooled(points, torch.tensor([2, 0, 2, 2, 0, 0])).all()
    assert torch.equal(rays.best, torch.stack([points[1], x[1], points[2]]))
    assert rays.distance.tolist() == [0.25, math.inf, 0.25]
    assert rays.trace.image.tolist() == [0, 2]
    assert rays.trace.queries.tolist() == [4, 4]
    assert rays.fooled(points[3:4], torch.tensor([2])).all()  # no nearer
    assert torch.equal(rays.best[2], points[2])
    assert len(rays.trace.image) == 2


def test_what_was_read_does_not_change() -> None:
    model, x = half_space((7,))
    rays = around(model, x)
    old = rays.best, rays.distance, rays.trace
    copies = [*(part.clone() for part in old[:2]), old[2].distance.clone()]
    theta = towards(rays, model, rays.every)
    guess = torch.full((3,), 0.2).double()
    low, high = torch.zeros(3).double(), guess.clone()
    kept = [part.clone() for part in (theta, guess, low, high)]
    rays.g(theta, guess, 1e-4, rays.every)
    rays.bisect(theta, low, high, 1e-4, rays.every)
    for part, copy in zip((theta, guess, low, high), kept, strict=True):
        assert torch.equal(part, copy)
    for part, copy in zip((*old[:2], old[2].distance), copies, strict=True):
        assert torch.equal(part, copy)
    assert (rays.distance < math.inf).all()
    assert len(rays.trace.image) > 0


def test_refusals_fool_nobody() -> None:
    # Refused where the first feature is large: the boundary of the refusals is none.
    def guarded(rows: Tensor) -> Tensor:
        first = rows.flatten(1)[:, 0]
        return torch.where(first > 0.8, 1, torch.where(first > 0.5, -1, 0))

    for goal in Untargeted(torch.tensor([0])), Targeted(torch.tensor([1])):
        oracle = Labels(guarded)
        oracle.begin(1)
        rays = Rays(oracle, torch.full((1, 7), 0.1, dtype=torch.float64), goal)
        theta, zero, owner = torch.eye(7).double()[:1], torch.zeros(1).double(), torch.tensor([0])
        assert rays.bisect(theta, zero, zero + 0.9, 1e-6, owner).item() == pytest.approx(0.7, abs=2e-6)
        assert not rays.crossed(theta, zero + 0.5, owner).any()
        assert rays.distance.item() == pytest.approx(0.7, abs=2e-6)


# The trace by itself


def test_a_trace_of_nothing_is_infinite() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    trace = Trace(2, nothing, nothing, torch.zeros(0))
    assert trace.at([0, 5]).tolist() == [[math.inf] * 2] * 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.floats(0, 9)), max_size=30), st.integers(0, 31))
def test_a_trace_reads_off_the_smallest_distance_by_then(found: list[tuple[int, int, float]], budget: int) -> None:
    image, queries, distance = (float64([row[k] for row in found]) for k in range(3))
    trace = Trace(4, image.long(), queries.long(), distance)
    for i, value in enumerate(trace.at([budget])[:, 0].tolist()):
        assert value == min((d for who, q, d in found if who == i and q <= budget), default=math.inf)
