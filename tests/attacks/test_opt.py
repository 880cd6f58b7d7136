import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from advcourse.attacks import OPT, Doubling, SignOPT
from advcourse.goals import Untargeted
from advcourse.gradients import Rays, average, gaussian, smooth
from advcourse.oracles import Labels
from advcourse.threat import L2, Ball, Linf, per_image

from ..helpers import Counted, Linear, images, network, rng, seeds

Array = np.ndarray[Any, Any]
PAPER = replace(SignOPT.paper(), directions=50, start_directions=20)


def line(d: int, n: int = 2, gap: float = 0.1, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, and images so far from its boundary that none is clipped on the way: all of class 0."""
    weight = torch.empty(d, dtype=torch.float64).normal_(generator=rng(seed))
    weight = weight - weight.mean()
    weight = weight / weight.norm()
    x = 0.5 + 0.1 * (torch.rand(n, d, generator=rng(seed + 1), dtype=torch.float64) - 0.5)
    x = x - (x @ weight + gap)[:, None] * weight
    return Linear(weight), x, torch.zeros(n, dtype=torch.int64)


@dataclass
class Spied:
    """A line search that notes what it was handed, what it gave back, and what the images had paid by then."""

    search: Any
    given: list[tuple[Tensor, ...]] = field(default_factory=list)
    back: list[tuple[Tensor, ...]] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)

    def __call__(self, rays: Rays, rows: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.given.append(tuple(part.clone() for part in (rows, *state)))
        self.before.append(rays.oracle.queries)
        found = self.search(rays, rows, *state)
        for part, copy in zip((rows, *state), self.given[-1], strict=True):
            assert torch.equal(part, copy)  # what it was handed is not written to
        self.back.append(tuple(part.clone() for part in found))
        self.after.append(rays.oracle.queries)
        return found


# How near they come


@pytest.mark.parametrize("attack", [SignOPT(), PAPER], ids=["default", "paper"])
def test_on_a_line_sign_opt_ends_at_the_boundary_s_nearest_point(attack: SignOPT) -> None:
    model, x, y = line(50)
    *_, last = attack.iterates(Labels(model, 6000), x, y)
    assert (last.distance <= 1.02 * 0.1).all()
    assert (last.distance >= 0.1 - 1e-9).all()
    foot = x + 0.1 * model.weight.detach()
    assert (L2.norm(last.best - foot) < 0.03).all()


def test_sign_opt_needs_less_than_half_of_opt_s_queries() -> None:
    model, x, y = line(24)
    price = []
    for attack in OPT(directions=10, start_directions=20), replace(PAPER, directions=30):
        *_, last = attack.iterates(Labels(model, 30_000), x, y)
        assert (last.distance <= 1.02 * 0.1).all()
        near = last.trace.distance <= 1.02 * 0.1
        price.append(torch.stack([last.trace.queries[near & (last.trace.image == i)].min() for i in range(2)]))
    assert (price[0] > 2 * price[1]).all()


def test_in_linf_it_is_on_the_way() -> None:
    model, x, y = line(20)
    *_, last = SignOPT(norm=Linf).iterates(Labels(model, 3000), x, y)
    nearest = 0.1 / model.weight.detach().abs().sum()
    assert (last.distance >= nearest - 1e-9).all()
    assert (last.distance < 2.5 * nearest).all()


@pytest.mark.parametrize("search", [Doubling(tol=1e-4, tries=3), Doubling()], ids=repr)
@pytest.mark.parametrize("kind", [OPT, SignOPT])
@pytest.mark.parametrize("norm", [L2, Linf])
def test_g_never_grows_and_is_what_was_seen(kind: type[Any], search: Any, norm: type[Ball]) -> None:
    model, x = network((1, 5, 5), 3, 1), images(4, (1, 5, 5), 1)
    y = model(x).argmax(1)
    spied = Spied(search)
    attack = kind(steps=4, directions=6, start_directions=5, search=spied, norm=norm)
    *_, last = attack.iterates(Labels(model, 400), x, y)
    lowest = torch.full((4,), math.inf).double()
    assert spied.given
    for (rows, theta, radius, slope, step), (found, nearest, size) in zip(spied.given, spied.back, strict=True):
        assert (radius <= lowest[rows]).all()
        assert (nearest <= radius).all()
        lowest[rows] = nearest
        torch.testing.assert_close(norm.norm(found), torch.ones(len(rows)).double())
        stays = nearest == radius
        assert torch.equal(found[stays], theta[stays])
        assert (size > 0).all()
        assert (step > 0).all()
        assert slope.isfinite().all()
        points = (x[rows] + per_image(nearest, found) * found).clamp(0, 1)
        assert (model(points).argmax(1) != y[rows]).all()
    assert (last.distance <= lowest + 1e-12).all()  # clipped, or on the way


# What a step costs


@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("search", [Doubling(tries=3), Doubling()], ids=repr)
def test_a_slope_costs_exactly_its_directions_and_they_grow(growth: float, search: Any) -> None:
    model, x, y = line(20, n=3)
    spied = Spied(search)
    attack = SignOPT(steps=6, directions=7, growth=growth, search=spied)
    counted = Counted(model)
    *_, last = attack.iterates(counted, x, y)
    assert len(spied.before) == 6
    for step in range(2, 7):
        expected = math.floor(7 * step**growth)
        assert (spied.before[step - 1] - spied.after[step - 2]).tolist() == [expected] * 3
    assert sum(counted.forwards) == last.queries.sum()


@pytest.mark.parametrize("budget", [*range(30, 70, 3), 150])
def test_near_the_end_half_is_kept_for_the_search(budget: int) -> None:
    model, x, y = line(20, n=3)
    spied = Spied(Doubling())
    start = x + 0.3 * model.weight.detach()
    attack = SignOPT(directions=20, growth=0, search=spied, start_tol=1e-2)
    oracle = Labels(model, budget)
    *_, last = attack.iterates(oracle, x, y, start=start)
    assert last.queries.tolist() == [budget] * 3
    paid = [torch.full((3,), 2 + 7), *spied.after]  # the image, its start, and seven halvings to a hundredth
    for before, after in zip(paid, spied.before, strict=False):
        left = budget - before
        assert torch.equal(after - before, torch.where(left > 0, ((left + 1) // 2).clamp_max(20), 0))


def test_opt_pays_for_g_along_each_direction() -> None:
    model, x, y = line(20, n=2)
    spied = Spied(Doubling())
    attack = OPT(steps=3, directions=5, search=spied, start_directions=5)
    list(attack.iterates(Labels(model), x, y))
    for after, before in zip(spied.after, spied.before[1:], strict=False):
        spent = before - after
        assert ((spent >= 5 * 8) & (spent <= 5 * 30)).all()


# The published algorithm


def test_paper_is_the_published_algorithm() -> None:
    paper = SignOPT.paper()
    published = {
        "directions": 200,
        "beta": 1e-3,
        "step_size": 0.2,
        "start_directions": 100,
        "start_tol": 1e-3,
        "stride": None,
        "draw": gaussian,
        "search": Doubling(tol=2e-6, tries=15),
        "norm": L2,
        "growth": 0.0,
        "combine": average,
        "steps": 1000,
    }
    assert vars(paper) == published
    assert replace(SignOPT(), **published) == paper
    assert SignOPT.paper(Linf) == replace(paper, norm=Linf)


def test_neutral_fields_give_its_very_bits() -> None:
    model, x = network((1, 5, 5), 3, 2), images(4, (1, 5, 5), 2)
    y = model(x).argmax(1)
    paper = replace(SignOPT.paper(), directions=12, start_directions=8, steps=3)
    expected = paper(Labels(model, 150), x, y)
    small = {"directions": 12, "start_directions": 8, "steps": 3, "beta": 1e-3, "start_tol": 1e-3}
    same = SignOPT(**small, draw=partial(smooth, decay=0), search=Doubling(), growth=0, combine=average)
    assert torch.equal(same(Labels(model, 150), x, y), expected)
    for change in {"draw": smooth}, {"growth": 0.5}, {"search": Doubling(tol=1e-4)}, {"beta": 1e-1}, {"start_tol": 0.1}:
        assert not torch.equal(replace(same, **change)(Labels(model, 150), x, y), expected)
    assert "paper" not in repr(same)


class Reference:
    """The authors' attack on one image, one query after the other, in NumPy."""

    def __init__(self, label: Callable[[Array], int], x: Array, y: int) -> None:
        self.label, self.x, self.y, self.queries = label, x, y, 1
        assert label(x) == y

    def fools(self, theta: Array, radius: float) -> bool:
        self.queries += 1
        return self.label(np.clip(self.x + radius * theta / np.linalg.norm(theta), 0, 1)) != self.y

    def halve(self, theta: Array, low: float, high: float, tol: float) -> float:
        while high - low > tol:
            middle = (low + high) / 2
            if self.fools(theta, middle):
                high = middle
            else:
                low = middle
        return high

    def begin(self, directions: list[Array], tol: float) -> tuple[Array, float]:
        best, nearest = np.zeros_like(self.x), math.inf
        for u in directions:
            reach = min(float(np.linalg.norm(u)), nearest)
            if self.fools(u, reach):
                best, nearest = u / np.linalg.norm(u), self.halve(u, 0, reach, tol * reach)
        return best, nearest

    def local(self, theta: Array, guess: float, tol: float) -> float:
        """g(θ) where it is below the guess: shrink by 1 % until it no longer fools, and halve what is between."""
        if not self.fools(theta, guess):
            return math.inf  # the authors go on until they know how much worse it is
        high, low = guess, 0.99 * guess
        while self.fools(theta, low):
            high, low = low, 0.99 * low
        return self.halve(theta, low, high, tol)

    def step(
        self, theta: Array, g: float, directions: Array, alpha: float, beta: float = 1e-3
    ) -> tuple[Array, float, float]:
        slope = np.zeros_like(theta)
        for u in directions:
            u = u / np.linalg.norm(u)
            slope += (-1 if self.fools(theta + beta * u, g) else 1) * u / len(directions)
        nearest, best = g, theta
        for _ in range(15):
            moved = theta - alpha * slope
            moved /= np.linalg.norm(moved)
            found = self.local(moved, nearest, beta / 500)
            alpha *= 2
            if found >= nearest:
                break
            nearest, best = found, moved
        if nearest >= g:
            for _ in range(15):
                alpha *= 0.25
                moved = theta - alpha * slope
                moved /= np.linalg.norm(moved)
                found = self.local(moved, g, beta / 500)
                if found < g:
                    nearest, best = found, moved
                    break
        return best, nearest, alpha


def scripted(parts: Iterator[Array], x: Tensor) -> Callable[..., Tensor]:
    def draw(like: Tensor, n: int, generator: Generator, step: int = 0) -> Tensor:
        return torch.from_numpy(next(parts)).view(1, n, *x.shape[1:])

    return draw


@pytest.mark.parametrize("kind", ["line", "network", "tree"])
@pytest.mark.parametrize("seed", range(3))
def test_it_goes_where_an_implementation_without_batches_goes(kind: str, seed: int) -> None:
    d, steps, generator = 12, 4, np.random.default_rng(seed)
    if kind == "line":
        model, x, _ = line(d, n=1, seed=seed)
    else:
        net, x = network((d,), 3, seed), images(1, (d,), seed)
        model = net if kind == "network" else (lambda rows: net((rows * 4).round() / 4))  # in steps, as a tree is
    y = model(x).argmax(1)
    starts = [generator.normal(size=d) for _ in range(6)]
    directions = [generator.normal(size=(15, d)) for _ in range(steps)]

    slow = Reference(lambda row: int(model(torch.from_numpy(row)[None]).argmax()), x[0].numpy(), int(y))
    theta, g = slow.begin(starts, 1e-3)
    spent = [slow.queries]
    if g == math.inf:
        pytest.skip("no start among so few")
    alpha, path = 0.2, []
    for u in directions:
        theta, g, alpha = slow.step(theta, g, u, alpha)
        spent.append(slow.queries)
        path.append((theta, g, alpha))
        alpha = 1.0 if alpha < 1e-4 else alpha
        if path[-1][2] < 1e-4:
            break  # from here on with another β
    spied = Spied(Doubling())
    draw = scripted(iter([*starts, *directions]), x)
    attack = replace(SignOPT.paper(), directions=15, start_directions=6, steps=len(path), draw=draw, search=spied)
    states = list(attack.iterates(Labels(model), x, y))
    assert len(spied.back) == len(path)
    for (fast, nearest, size), (theta, g, alpha) in zip(spied.back, path, strict=True):
        np.testing.assert_allclose(fast[0].numpy(), theta, atol=1e-9)
        np.testing.assert_allclose([nearest.item(), size.item()], [g, alpha], rtol=1e-9)
    assert [int(state.queries) for state in states] == [1, *spent]


def test_the_start_is_the_best_of_the_random_directions_and_costs_one_where_it_is_not() -> None:
    model, x, y = line(6, n=1)
    weight = model.weight.detach()
    side = torch.linspace(-1, 1, 6).double()
    side = side - (side @ weight) * weight
    side = side / side.norm()
    rays_ = [2 * weight + side, -weight, weight + 2 * side, weight + 0.1 * side, weight - side]
    draw = scripted(iter([u.numpy()[None] for u in rays_]), x)
    attack = SignOPT(start_directions=5, draw=draw, start_tol=0.01)
    oracle = Labels(model)
    oracle.begin(1)
    theta, radius = attack.begin(Rays(oracle, x, Untargeted(y)), None, rng())
    torch.testing.assert_close(theta[0], L2.steepest(rays_[3][None])[0])
    exact = 0.1 * 1.01**0.5
    assert exact <= radius.item() <= exact + 0.01 * 0.1 * 1.25**0.5 * 1.02
    assert oracle.queries.item() == 1 + (1 + 7) + 1 + 1 + (1 + 7) + 1


# The start


def test_a_start_that_a_walk_steps_over_is_still_measured() -> None:
    # Only around 0.53 and from 0.9 on does it fool; a walk of 0.1 from 0.1 on meets neither before the start does.
    def target(rows: Tensor) -> Tensor:
        return (((rows[:, 0] > 0.52) & (rows[:, 0] < 0.54)) | (rows[:, 0] > 0.89)).long()

    x = torch.full((2, 3), 0.1, dtype=torch.float64)
    start = x.clone()
    start[:, 0] = torch.tensor([0.539, 0.95], dtype=torch.float64)
    attack = SignOPT(steps=1, directions=1, stride=0.1, start_tol=1e-4, start_directions=0)
    oracle = Labels(target, 2 + 4 + 10)
    *_, last = attack.iterates(oracle, x, torch.zeros(2).long(), start=start)
    assert last.distance[0].item() == pytest.approx(0.42, abs=1e-3)
    first = next(iter(last.trace.at([2]).T))
    assert first.tolist() == pytest.approx([0.439, 0.85])


def test_a_fine_grained_start_finds_the_nearer_boundary() -> None:
    def target(rows: Tensor) -> Tensor:
        return (((rows[:, 0] > 0.3) & (rows[:, 0] < 0.36)) | (rows[:, 0] > 0.6)).long()

    x, start = torch.full((1, 3), 0.1, dtype=torch.float64), torch.tensor([[0.9, 0.1, 0.1]]).double()
    plain, fine = (
        SignOPT(steps=1, directions=1, stride=stride, start_directions=0)
        .begin(around(target, x), start, rng())[1]
        .item()
        for stride in (None, 0.05)
    )
    assert plain == pytest.approx(0.5, abs=0.01)
    assert fine == pytest.approx(0.2, abs=0.01)


# Line searches by themselves


def around(model: Any, x: Tensor, budget: int | None = None) -> Rays:
    oracle = Labels(model, budget)
    oracle.begin(len(x))
    return Rays(oracle, x, Untargeted(torch.zeros(len(x), dtype=torch.int64)))


def hillside(budget: int | None = None, d: int = 10, n: int = 3) -> tuple[Rays, Tensor, Tensor, Tensor]:
    """Rays on a line, with directions that are 45° off, their g, and its true slope of length 1."""
    model, x, _ = line(d, n)
    weight = model.weight.detach()
    noise = torch.empty(n, d, dtype=torch.float64).normal_(generator=rng(3))
    noise = L2.steepest(noise - (noise @ weight)[:, None] * weight)
    theta = L2.steepest(weight + noise)
    rays = around(model, x, budget)
    return rays, theta, torch.full((n,), 0.1 * 2**0.5 + 1e-13).double(), L2.steepest(noise - weight)


searches = pytest.mark.parametrize("search", [Doubling(), Doubling(tol=1e-3), Doubling(tries=1)], ids=repr)


@searches
def test_down_the_slope_it_is_nearer(search: Any) -> None:
    rays, theta, radius, slope = hillside()
    step = torch.tensor([0.05, 0.2, 0.7]).double()
    found, nearest, _ = search(rays, rays.every, theta, radius, slope, step)
    assert (nearest < 0.99 * radius).all()
    exact = 0.1 / (found @ rays.oracle.target.weight.detach())
    assert (nearest >= exact - 1e-12).all()
    assert (nearest <= exact * 1.002 + search.tol).all()
    torch.testing.assert_close(L2.norm(found), torch.ones(3).double())


@searches
def test_up_the_slope_it_stays_and_steps_get_smaller(search: Any) -> None:
    rays, theta, radius, slope = hillside()
    step = torch.tensor([0.05, 0.2, 0.7]).double()
    kept = [part.clone() for part in (theta, radius, slope, step)]
    found, nearest, size = search(rays, rays.every, theta, radius, -slope, step)
    assert torch.equal(found, theta)
    assert torch.equal(nearest, radius)
    torch.testing.assert_close(size, 2 * step / 4**search.tries)
    for part, copy in zip((theta, radius, slope, step), kept, strict=True):
        assert torch.equal(part, copy)


def test_steps_adapt_to_the_hill() -> None:
    rays, theta, radius, slope = hillside()
    tiny = torch.full((3,), 1e-3).double()
    *_, larger = Doubling()(rays, rays.every, theta, radius, slope, tiny)
    assert (larger >= 4 * tiny).all()
    # Doubling goes on where it is nearer, and then is where one doubling would have been farther.
    found, nearest, size = Doubling()(rays, rays.every, theta, radius, slope, torch.full((3,), 0.1).double())
    taken = size / 4  # the last one failed, and was doubled
    torch.testing.assert_close(found, L2.steepest(theta - taken[:, None] * slope))
    assert (0.1 / (L2.steepest(theta - 2 * taken[:, None] * slope) @ rays.oracle.target.weight) > nearest).all()


@searches
@settings(max_examples=15)
@given(st.integers(0, 45), st.sampled_from([1, -1]), seeds)
def test_searches_end_with_the_budget_and_never_farther(search: Any, left: int, sign: int, seed: int) -> None:
    rays, theta, radius, slope = hillside(budget=1 + left)
    step = 10 ** (torch.rand(3, generator=rng(seed)).double() * 4 - 2)
    found, nearest, size = search(rays, rays.every, theta, radius, sign * slope, step)
    assert (nearest <= radius).all()
    assert size.isfinite().all()
    weight = rays.oracle.target.weight.detach()
    assert (0.1 / (found @ weight) <= nearest + 1e-12).all()  # it fools there
    if left == 0:
        assert torch.equal(found, theta)
        assert torch.equal(nearest, radius)
    if left < 3:
        assert (rays.oracle.remaining == 0).all()


# Slopes


def test_opt_s_slope_is_the_gradient_of_g_also_where_beta_has_become_small() -> None:
    rays, theta, radius, slope = hillside(d=6)
    for beta in 1e-2, 1e-3, 1e-5, 1e-7:
        found = OPT(directions=300).slope(rays, rays.every, theta, radius, torch.full((3,), beta).double(), 1, rng())
        assert (torch.cosine_similarity(found, slope) > 0.9).all()
    torch.testing.assert_close(found * 6, slope * (2**0.5 * 0.1 * 1.0), atol=0.06, rtol=0)


def test_sign_opt_s_slope_points_uphill() -> None:
    rays, theta, radius, slope = hillside(d=6)
    for attack in SignOPT(directions=300), replace(PAPER, directions=300):
        beta = torch.full((3,), 1e-4).double()
        found = attack.slope(rays, rays.every, theta, radius, beta, 1, rng())
        assert (torch.cosine_similarity(found, slope) > 0.9).all()


def test_who_is_stuck_takes_a_smaller_beta_and_ends_when_it_is_nothing() -> None:
    betas, steps = [], []

    class Noting(SignOPT):
        def slope(self, rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, beta: Tensor, *rest: Any) -> Tensor:
            betas.append(beta.tolist())
            return super().slope(rays, rows, theta, radius, beta, *rest)

    def nowhere(rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, slope: Tensor, step: Tensor) -> Any:
        steps.append(step.tolist())
        return theta, radius, torch.where(rows == 0, 1e-5, 0.3).to(step)

    model, x, y = line(5)
    start = x + 0.3 * model.weight.detach()
    list(Noting(search=nowhere, beta=1e-3, directions=2, steps=8, growth=0).iterates(model, x, y, start=start))
    alone = [pair for pair in betas if len(pair) == 2]
    assert [pair[0] for pair in alone] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
    assert all(pair[-1] == 1e-3 for pair in betas)
    assert len(betas) == 8
    assert steps[0] == [0.2, 0.2]
    assert all(pair == pytest.approx([1.0, 0.3]) for pair in steps[1:5])


# Settings


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "steps must be an integer >= 1, got 0"),
        ("steps", 2.5, "steps must be an integer"),
        ("directions", 0, "directions must be an integer >= 1, got 0"),
        ("directions", True, "directions must be an integer"),
        ("start_directions", -1, "start_directions must be an integer >= 0, got -1"),
        ("beta", 0, "beta must be positive, got 0"),
        ("beta", -1e-3, "beta must be a finite number >= 0.0, got -0.001"),
        ("beta", math.nan, "beta must be a finite number"),
        ("beta", "0.1", "beta must be a finite number"),
        ("step_size", 0.0, "step_size must be positive"),
        ("step_size", math.inf, "step_size must be a finite number"),
        ("step_size", None, "step_size must be a finite number"),
        ("beta", None, "beta must be a finite number"),
        ("start_tol", 0, "start_tol must be positive"),
        ("stride", 0.0, "stride must be positive"),
        ("stride", -1.0, "stride must be a finite number"),
        ("draw", None, "draw must be a function"),
        ("draw", "gaussian", "draw must be a function.*'gaussian'"),
        ("search", 3, "search must be a function"),
        ("norm", L2(1.0), "norm must be L2 or Linf, the class"),
        ("growth", -0.5, "growth must be a finite number >= 0.0, got -0.5"),
        ("combine", "mean", "combine must be a function such as gradients.average, got 'mean'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any, words: str) -> None:
    for kind in OPT, SignOPT:
        if hasattr(kind, name):
            with pytest.raises(ValueError, match=words):
                kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(Doubling, "tol", -1e-3), (Doubling, "tries", 0), (Doubling, "tol", math.nan)],
)
def test_so_are_those_of_line_searches(kind: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        kind(**{name: value})
