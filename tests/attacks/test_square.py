import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.attacks import Queried, Square
from advcourse.attacks.square import Bumps, Signs, bump, share, window
from advcourse.goals import Goal, Targeted, Toward, Untargeted, cross_entropy, dlr, margin
from advcourse.oracles import Labels, Scores
from advcourse.threat import L1, L2, Linf

from ..helpers import Counted, Linear, Metered, images, network, never_fooled, rng, seeds, setting

LINES, IMAGES, VOLUMES = [(1,), (7,), (2, 5)], [(1, 6, 6), (3, 5, 8)], [(2, 3, 4, 5)]
EVERY = LINES + IMAGES + VOLUMES
kinds = st.sampled_from([Untargeted, Targeted])
both = pytest.mark.parametrize("ball", [Linf(0.01), L2(0.1)])


class Recorded(nn.Module):
    """A model that keeps the rows of every forward pass."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.asked.append(rows.clone())
        return self.model(rows)


Round = tuple[int, Queried, Tensor, Tensor, Queried]


def rounds(attack: Square, model: nn.Module, x: Tensor, goal: Any, **options: Any) -> Iterator[Round]:
    """Of each step: its number, the state before, the rows that are not done, what they asked, the state after."""
    recorded = Recorded(model)
    before, *states = attack.iterates(Scores(recorded, **options), x, goal)
    assert len(recorded.asked) == 1 + len(states)
    assert torch.equal(recorded.asked[0], x)
    for step, (points, after) in enumerate(zip(recorded.asked[1:], states, strict=True), 1):
        rows = (~before.success).nonzero().squeeze(1)
        assert len(points) == len(rows)
        assert points.min() >= 0
        assert points.max() <= 1
        yield step, before, rows, points, after
        before = after


def last_of(attack: Square, oracle: Any, x: Tensor, goal: Any, seed: int | None = None) -> Queried:
    *_, last = attack.iterates(oracle, x, goal, generator=None if seed is None else rng(seed))
    return last


def channels(x: Tensor) -> Tensor:
    return x[:, None] if x.ndim == 2 else x


def grey(n: int, shape: tuple[int, ...]) -> Tensor:
    """Images far from the box."""
    return 0.4 + 0.2 * torch.rand(n, *shape, generator=rng(3), dtype=torch.float64)


def hard(shape: tuple[int, ...], n: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images far from the box that it gets right wherever an attack goes, and their labels."""
    model, _, _ = never_fooled(shape)
    return model, grey(n, shape), torch.zeros(n, dtype=torch.long)


# Random search


@pytest.mark.parametrize("ball", [Linf, L2])
@settings(max_examples=16)
@given(st.sampled_from(EVERY), st.sampled_from([0.0, 0.02, 0.3, 1.5]), seeds, kinds)
def test_a_proposal_is_kept_when_the_loss_rose_and_forgotten_otherwise(
    ball: type, shape: tuple[int, ...], eps: float, seed: int, kind: type[Goal]
) -> None:
    shape = shape if ball is Linf else (2, 5, 6)
    model, x, goal = setting(shape, 3, seed, kind)
    loss = margin if kind is Untargeted else cross_entropy
    clean = goal.fooled(model(x).argmax(1))
    for step, before, rows, points, after in rounds(Square(ball(eps), steps=15), model, x, goal):
        assert after.step == step <= 15
        risen, fooled = loss(model(points), goal[rows]), goal[rows].fooled(model(points).argmax(1))
        kept = fooled | (risen > before.best_loss[rows])
        if step == 1:
            assert kept.all()
            assert torch.equal(before.best, x)
        assert (after.best_loss >= before.best_loss)[~after.success].all()
        best, height, success = before.best.clone(), before.best_loss.clone(), before.success.clone()
        best[rows[kept]], height[rows[kept]] = points[kept], risen[kept]
        success[rows[fooled]] = True
        assert torch.equal(after.best, best)
        assert torch.equal(after.x, best)
        assert torch.equal(after.success, success)
        torch.testing.assert_close(after.best_loss, height, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(after.loss[~clean], after.best_loss[~clean])
        assert torch.equal(after.queries - before.queries, (~before.success).long())
        torch.testing.assert_close(after.distance, ball.norm(best - x).where(success, torch.inf))
        assert (ball.norm(after.best - x) <= eps + 1e-12).all()


@pytest.mark.parametrize(
    ("kind", "loss", "climbed"),
    [
        (Untargeted, None, margin),
        (Targeted, None, cross_entropy),
        (Untargeted, cross_entropy, cross_entropy),
        (Targeted, margin, margin),
        (Untargeted, dlr, dlr),
    ],
)
def test_the_loss_that_is_climbed(kind: type[Goal], loss: Any, climbed: Any) -> None:
    model, x, goal = setting((7,), 5, 1, kind)
    state = last_of(Square(Linf(0.02), steps=10, loss=loss), model, x, goal)
    torch.testing.assert_close(state.loss, climbed(model(state.x), goal), atol=1e-9, rtol=1e-6)
    others = [other for other in (margin, cross_entropy, dlr) if other is not climbed]
    assert not any(torch.allclose(state.loss, other(model(state.x), goal)) for other in others)


def test_toward_is_climbed_as_targeted_and_over_as_untargeted() -> None:
    model, x, goal = setting((7,), 5, 1, Untargeted)
    toward = Toward((goal.labels + 1) % 5, source=goal.labels)
    state = last_of(Square(Linf(0.1), steps=30), model, x, toward)
    assert torch.equal(state.success, model(state.best).argmax(1) != goal.labels)
    torch.testing.assert_close(state.loss, cross_entropy(model(state.x), toward), atol=1e-9, rtol=1e-6)


# The schedule


def test_share_is_the_authors_table() -> None:
    turns = [(10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256)]
    for step in range(10_001):
        divisor = next((divisor for turn, divisor in turns if step <= turn), 512)
        assert share(0.3, step, 10_000) == 0.3 / divisor
    for steps in 1, 7, 100, 333, 123_456:
        for step in range(0, steps, max(1, steps // 50)):
            assert share(0.8, step, steps) == share(0.8, step * 10_000 // steps, 10_000)


@both
def test_the_schedule_is_stretched_over_the_steps_that_the_budget_allows(ball: Any) -> None:
    model, x, y = hard((1, 16, 16))
    free = list(Square(ball, steps=60).iterates(Scores(model), x, y))
    paid = list(Square(ball, steps=10_000).iterates(Scores(model, budget=61), x, y))
    early = list(islice(Square(ball, steps=10_000).iterates(Scores(model), x, y), 61))
    assert len(free) == len(paid) == 61
    assert all(torch.equal(one.best, other.best) for one, other in zip(free, paid, strict=True))
    assert not torch.equal(early[60].best, paid[60].best)


# Linf


def plain_side(shape: tuple[int, ...], p: float, step: int, steps: int) -> int:
    """The side of a proposal's square: step 0 is the first one after the stripes."""
    dims = shape[1:] if len(shape) > 1 else shape
    side = round((share(p, step, steps) * math.prod(dims)) ** (1 / len(dims)))
    return max(1, min(side, min(dims) - 1))


@given(st.sampled_from(EVERY), st.sampled_from([0.02, 0.3, 1.5]), st.sampled_from([None, 0.3, 1.0]), seeds)
def test_linf_stays_on_the_corners_and_changes_one_square(
    shape: tuple[int, ...], eps: float, p: float | None, seed: int
) -> None:
    model, x, goal = setting(shape, 3, seed, Untargeted)
    for step, before, rows, points, _ in rounds(Square(Linf(eps), steps=30, p=p), model, x, goal):
        center, points, best = channels(x[rows]), channels(points), channels(before.best[rows])
        up = (points - (center + eps).clamp(max=1)).abs() < 1e-12
        down = (points - (center - eps).clamp(min=0)).abs() < 1e-12
        assert (up | down).all()
        if step == 1:  # stripes
            rest = tuple(range(2, points.ndim - 1))
            assert ((up.all(rest) | down.all(rest)) if rest else up | down).all()
            continue
        changed = (points != best).any(1, keepdim=True)
        assert changed.flatten(1).any(1).all(), "a query about the best itself"
        side = plain_side(shape, p or 0.05, step - 2, 30)
        square = torch.ones_like(changed)  # the least box around what has changed
        for dim in range(2, points.ndim):
            line = changed.amax(tuple(d for d in range(1, points.ndim) if d != dim), keepdim=True)
            assert line.flatten(1).any(1).all()
            covered = (line.cumsum(dim) > 0) & (line.flip(dim).cumsum(dim) > 0).flip(dim)
            assert (covered.sum(dim) <= side).all()
            square = square & covered
        # In it each channel has one sign.
        assert ((up | ~square).flatten(2).all(2) | (down | ~square).flatten(2).all(2)).all()


def test_first_squares_have_the_share_p() -> None:
    for p, side in (1.0, 8), (0.3, 5), (0.05, 2), (1e-9, 1):
        model, x, y = hard((3, 9, 9), 60)
        *_, (_, before, _, points, _) = (each for each in rounds(Square(Linf(0.1), steps=2, p=p), model, x, y))
        changed = (points != before.best).any(1)
        assert changed.any(1).sum(1).max() == changed.any(2).sum(1).max() == side
    model, x, y = hard((40,), 60)
    *_, (_, before, _, points, _) = (each for each in rounds(Square(Linf(0.1), steps=2, p=0.2), model, x, y))
    assert (points != before.best).sum(1).max() == 8


@pytest.mark.parametrize(
    ("shape", "side"), [((12,), 1), ((12,), 5), ((7, 9), 3), ((6, 6), 1), ((4, 5, 6), 2), ((5, 5), 5)]
)
def test_squares_are_everywhere_alike(shape: tuple[int, ...], side: int) -> None:
    n, places = 30_000, [size - side + 1 for size in shape]
    squares = window(torch.zeros(n, 3, *shape), side, rng(5))
    assert squares.shape == (n, 1, *shape)
    index = torch.zeros(n, dtype=torch.long)
    for dim, count in enumerate(places):
        line = squares.transpose(1, dim + 2).flatten(2).any(2)
        assert (line.sum(1) == side).all()
        first = line.int().argmax(1)
        assert line.gather(1, first[:, None] + torch.arange(side)).all()
        index = index * count + first
    assert (squares.flatten(1).sum(1) == side ** len(shape)).all()
    counts, cells = index.bincount(minlength=math.prod(places)), math.prod(places)
    assert len(counts) == cells
    chi_square = ((counts - n / cells) ** 2 / (n / cells)).sum().item()
    assert chi_square <= (cells - 1) + 6 * math.sqrt(2 * (cells - 1))


def test_the_first_and_the_last_row_and_column_get_squares() -> None:
    model, x, y = hard((1, 5, 7), 40)
    touched = torch.zeros(5, 7, dtype=torch.long)
    for step, before, rows, points, _ in rounds(Square(Linf(0.1), steps=100), model, x, y):
        if step > 1:
            touched += (points != before.best[rows]).sum((0, 1))
    # Squares of side 1, and every proposal changes something.
    assert touched.sum() == 40 * 99
    assert touched.min() > 40 * 99 / 35 - 6 * math.sqrt(40 * 99 / 35)
    assert touched.max() < 40 * 99 / 35 + 6 * math.sqrt(40 * 99 / 35)


def test_no_query_is_spent_on_the_best_itself() -> None:
    # One channel and one feature, where every other draw of a sign is the old one.
    walk, x = Signs(Linf(0.1), rng()), grey(5_000, (1, 4, 4))
    best = walk.start(x)
    for _ in range(10):
        proposal = walk.change(x, best, 1e-9)
        assert ((proposal != best).flatten(1).sum(1) == 1).all()
        best = proposal


@pytest.mark.parametrize("shape", [(8,), (2, 4), (1, 3, 3), (2, 2, 2)])
def test_linf_finds_the_best_corner_of_a_linear_model(shape: tuple[int, ...]) -> None:
    model = Linear(torch.randn(shape, generator=rng(2), dtype=torch.float64), bias=-30.0)
    x = grey(5, shape)
    state = last_of(Square(Linf(0.1), steps=300), model, x, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(state.best, x + 0.1 * model.weight.sign())


# L2


@settings(max_examples=20)
@given(st.sampled_from([(1, 6, 6), (3, 5, 8), (2, 9, 4), (1, 3, 3)]), st.sampled_from([0.1, 0.3]), seeds)
def test_l2_stays_on_the_sphere_and_changes_two_squares(shape: tuple[int, ...], eps: float, seed: int) -> None:
    model, x, goal = setting(shape, 3, seed, Untargeted)
    x[::3] = 0.5
    for step, before, rows, points, _ in rounds(Square(L2(eps), steps=25), model, x, goal):
        length = L2.norm(points - x[rows])
        assert (length <= eps * (1 + 1e-12)).all()
        free = ((points > 0) & (points < 1)).flatten(1).all(1)
        torch.testing.assert_close(length[free], torch.full_like(length[free], eps))
        if step > 1:
            side = max(3, round((share(0.1, step - 2, 25) * shape[1] * shape[2]) ** 0.5))
            side = min(side + 1 - side % 2, *shape[1:])
            changed = ((points - before.best[rows]).abs() > 1e-9).any(1)
            assert (changed.sum((1, 2)) <= 2 * side**2).all()
            assert (changed.any(1).sum(1) <= 2 * side).all()
            assert (changed.any(2).sum(1) <= 2 * side).all()


def test_l2_meets_images_that_are_never_clipped() -> None:
    model, x, y = hard((2, 12, 12))
    for _, _, _, points, _ in rounds(Square(L2(0.3), steps=80), model, x, y):
        assert 0 < points.min() < points.max() < 1
        torch.testing.assert_close(L2.norm(points - x), torch.full((4,), 0.3).double())


def plain_rectangles(x: int, y: int) -> Tensor:
    delta = torch.zeros(x, y, dtype=torch.float64)
    x_c, y_c = x // 2 + 1, y // 2 + 1
    top, left = x_c - 1, y_c - 1
    for counter in range(max(x_c, y_c)):
        width = 2 * counter + 1
        delta[max(top, 0) : min(top + width, x), max(left, 0) : min(left + width, y)] += 1.0 / (counter + 1) ** 2
        top, left = top - 1, left - 1
    return delta / delta.norm()


def plain_bump(side: int) -> Tensor:
    """The authors' program, line by line."""
    delta = torch.zeros(side, side, dtype=torch.float64)
    delta[: side // 2] = plain_rectangles(side // 2, side)
    delta[side // 2 :] = -plain_rectangles(side - side // 2, side)
    return delta / delta.norm()


@pytest.mark.parametrize("side", [*range(3, 15), 29, 44])
def test_a_bump_is_the_authors_and_of_length_1(side: int) -> None:
    torch.testing.assert_close(bump(side), plain_bump(side), atol=1e-12, rtol=0)
    torch.testing.assert_close(bump(side).norm(), torch.tensor(1.0).double())


def test_bumps_stand_or_lie_for_all_channels_and_have_a_sign_in_each() -> None:
    drawn = Bumps(L2(1.0), rng()).bumps(torch.zeros(2000, 2, 9, 9, dtype=torch.float64), 5)
    weight = torch.stack([plain_bump(5), plain_bump(5).T]).flatten(1)
    assert drawn.shape == (2000, 2, 5, 5)
    sign = torch.einsum("rcf,bf->bcr", drawn.flatten(2), weight).round(decimals=9)
    hit = sign.abs() == 1
    assert (hit.sum(0) == 1).all()
    assert torch.equal(hit[:, 0], hit[:, 1])
    kinds = hit[0, 0].long() * 4 + (sign.sum(0) > 0).long().T @ torch.tensor([1, 2])
    counts = kinds.bincount(minlength=8)
    assert len(counts) == 8
    assert (counts - 250).abs().max() < 6 * math.sqrt(250)


@pytest.mark.parametrize(
    ("height", "width", "side", "tops", "lefts"),
    [
        (28, 28, 5, [1, 6, 11, 16, 21], [1, 6, 11, 16, 21]),
        (32, 32, 6, [1, 7, 13, 19, 25], [1, 7, 13, 19, 25]),
        (16, 11, 3, [0, 3, 6, 9, 12], [1, 4, 7]),
        (3, 4, 3, [0], [0]),
        (40, 6, 6, [2, 8, 14, 20, 26, 32], [0]),  # narrower than a fifth of its height
    ],
)
def test_l2_starts_from_a_tiling(height: int, width: int, side: int, tops: list[int], lefts: list[int]) -> None:
    x = torch.full((3, 2, height, width), 0.5, dtype=torch.float64)
    delta = Bumps(L2(0.3), rng()).start(x) - 0.5
    torch.testing.assert_close(L2.norm(delta), torch.full((3,), 0.3).double())
    tile = 0.3 / math.sqrt(2 * len(tops) * len(lefts))
    shapes = torch.stack([plain_bump(side), plain_bump(side).T])
    covered = torch.zeros(height, width, dtype=torch.bool)
    for top in tops:
        for left in lefts:
            covered[top : top + side, left : left + side] = True
            part = delta[:, :, top : top + side, left : left + side] / tile
            torch.testing.assert_close(part.square().sum((2, 3)), torch.ones(3, 2).double())
            assert torch.einsum("rcij,bij->brc", part, shapes).abs().amax(0).min() > 1 - 1e-9
    assert not delta[:, :, ~covered].any()


def plain_change(delta: Tensor, here: Tensor, there: Tensor, bumps: Tensor, eps: float) -> Tensor:
    """Algorithm 3 on one image (C, H, W), with its squares as slices, as in the authors' program."""
    delta, new = delta.clone(), bumps.clone()
    used = (delta * (here | there)).square().sum((1, 2))
    left = max(eps**2 - delta.square().sum().item(), 0) / len(delta)
    rows, columns = here[0].any(1).nonzero().flatten(), here[0].any(0).nonzero().flatten()
    place = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    for c in range(len(delta)):
        old = delta[c][place]
        new[c] += old / (1e-10 + old.norm())
        new[c] *= (left + used[c]).sqrt() / new[c].norm()
    delta[:, there[0]] = 0
    for c in range(len(delta)):
        delta[c][place] = new[c]
    return delta / delta.norm() * eps


@pytest.mark.parametrize(("shape", "side"), [((1, 9, 9), 3), ((3, 8, 11), 5), ((2, 7, 7), 7), ((1, 4, 6), 4)])
@pytest.mark.parametrize("clipped", [False, True])
def test_l2_changes_as_algorithm_3(shape: tuple[int, ...], side: int, clipped: bool) -> None:
    p, eps, x = (side / math.sqrt(shape[1] * shape[2])) ** 2, 0.4, images(30, shape) if clipped else grey(30, shape)
    walk = Bumps(L2(eps), rng(4))
    best = walk.start(x)
    for _ in range(6):
        replay = torch.Generator()
        replay.set_state(walk.generator.get_state())
        proposal = walk.change(x, best, p)
        here, there = window(x, side, replay), window(x, side, replay)
        bumps = Bumps(L2(eps), replay).bumps(x, side)
        assert torch.equal(replay.get_state(), walk.generator.get_state())
        parts = zip(best - x, here, there, bumps, strict=True)
        plain = torch.stack([plain_change(*each, eps) for each in parts])
        torch.testing.assert_close(proposal, (x + plain).clamp(0, 1), atol=1e-6, rtol=0)
        best = proposal


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_l2_in_empty_squares(dtype: torch.dtype) -> None:
    x = grey(50, (1, 9, 9)).to(dtype)
    walk, eps = Bumps(L2(0.5), rng()), torch.full((50,), 0.5).double()
    proposal = walk.change(x, x, 0.1)  # of no length anywhere
    torch.testing.assert_close(L2.norm(proposal.double() - x.double()), eps, atol=0.01, rtol=0)
    assert (proposal != x).flatten(1).sum(1).max() <= 9


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 0.03), (torch.float64, 1e-5)])
def test_a_bump_that_meets_its_negative_is_turned_over(dtype: torch.dtype, noise: float) -> None:
    x = grey(200, (1, 3, 3)).to(dtype)  # all squares are the whole image
    walk, (up, flat) = Bumps(L2(0.1), rng()), (plain_bump(3), plain_bump(3).T)
    best = walk.start(x)
    met = []
    for _ in range(5):
        old, new = ((image - x).double().squeeze(1) / 0.1 for image in (best, walk.change(x, best, 1.0)))
        sums = torch.stack([old + sign * peak for peak in (up, flat) for sign in (1, -1)])
        length = sums.norm(dim=(2, 3), keepdim=True)
        turned = torch.stack([sign * peak for peak in (up, flat) for sign in (1, -1)])[:, None]
        allowed = torch.where(length > 1e-3, sums / length, turned)
        error, which = (allowed - new).norm(dim=(2, 3)).min(0)
        assert error.max() < noise
        met.append(length.flatten(1)[which, torch.arange(200)] <= 1e-3)
    assert sum(int(part.sum()) for part in met) > 20


@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 3, 4, 5), (1, 2, 9), (1, 9, 2)])
def test_l2_needs_images(shape: tuple[int, ...]) -> None:
    model, x, y = hard(shape)
    oracle = Scores(model)
    with pytest.raises(ValueError, match=r"Square in L2 needs images \(N, C, H, W\) of 3 x 3 or more, got \(4, "):
        Square(L2(0.5), steps=3)(oracle, x, y)
    assert oracle.queries.max() <= 1


# Queries


@both
@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("budget", [0, 1, 2, 17, None])
def test_queries_are_one_and_one_a_proposal(ball: Any, steps: int, budget: int | None) -> None:
    model, x, y = hard((1, 6, 6))
    y = y + torch.tensor([0, 1, 0, 0])  # one is misclassified
    metered = Metered(model, x, math.inf if budget is None else budget)
    oracle = Scores(metered, budget=budget)
    states = list(Square(ball, steps=steps).iterates(oracle, x, y))
    proposals = steps if budget is None else min(steps, max(0, budget - 1))
    assert len(states) == 1 + proposals
    assert [state.step for state in states] == list(range(1 + proposals))
    clean = min(1, 1 if budget is None else budget)
    expected = [clean + proposals, clean, clean + proposals, clean + proposals]
    assert metered.asked.tolist() == oracle.queries.tolist() == states[-1].queries.tolist() == expected
    assert torch.equal(states[-1].best[1], x[1])
    assert states[-1].success.tolist() == [False, clean == 1, False, False]
    assert states[-1].distance.tolist() == [math.inf, 0.0 if clean else math.inf, math.inf, math.inf]
    changed = (states[-1].best != x).flatten(1).any(1)
    assert changed.tolist() == [proposals > 0, False, proposals > 0, proposals > 0]


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.3)])
def test_rows_that_are_done_leave_the_batch(ball: Any) -> None:
    model, x = network((1, 8, 8)), images(30, (1, 8, 8))
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    counted = Counted(model)
    states = list(Square(ball, steps=40).iterates(Scores(counted), x, y))
    assert counted.forwards == [30] + [int((~state.success).sum()) for state in states[:-1]]
    assert len(set(counted.forwards)) > 5
    assert sum(counted.forwards) == states[-1].queries.sum()
    for state, after in pairwise(states):
        done = state.success
        assert torch.equal(after.best[done], state.best[done])
        assert torch.equal(after.queries[done], state.queries[done])
    assert torch.equal(states[-1].success, model(states[-1].best).argmax(1) != y)


@both
def test_it_is_over_when_every_image_is_done(ball: Any) -> None:
    model, x, y = hard((1, 6, 6))
    counted = Counted(model)
    (state,) = Square(ball).iterates(counted, x, y + 1)
    assert counted.forwards == [4]
    assert state.success.all()
    assert torch.equal(state.best, x)
    x, model = grey(20, (1, 6, 6)), network((1, 6, 6))
    *_, last = Square(replace(ball, eps=0.9), steps=5000).iterates(model, x, model(x).argmax(1))
    assert last.success.all()
    assert last.step < 5000


# Degenerate settings


@pytest.mark.parametrize(("ball", "shape"), [(Linf(0.0), (1, 6, 6)), (Linf(0.0), (7,)), (L2(0.0), (2, 6, 6))])
def test_a_ball_of_no_size_holds_the_clean_image_alone(ball: Any, shape: tuple[int, ...]) -> None:
    model, x, y = never_fooled(shape)
    for _, _, _, points, after in rounds(Square(ball, steps=30), model, x, y):
        assert torch.equal(points, x)
        assert not after.loss.isnan().any()
    assert after.step == 30
    assert after.queries.tolist() == [31] * 4


def test_an_eps_below_the_resolution_ends() -> None:
    model, x, y = never_fooled((1, 6, 6))
    state = last_of(Square(Linf(1e-30), steps=5), model, x.float().clamp(0.1, 0.9).double(), y)
    assert state.queries.tolist() == [6] * 4


# What is kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ball", "shape"), [*((Linf(0.1), shape) for shape in EVERY), (L2(0.5), (1, 6, 6)), (L2(0.5), (3, 5, 8))]
)
def test_shape_and_dtype_are_kept(ball: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model, x = network(shape, dtype=dtype), images(6, shape, dtype=dtype)
    before, y = x.clone(), model(x).argmax(1)
    state = last_of(Square(ball, steps=20), model, x, y)
    assert torch.equal(x, before)
    for field in "best", "x", "distance", "loss", "best_loss":
        assert getattr(state, field).dtype == dtype, field
    assert state.best.shape == x.shape
    assert (state.best != x).any()
    assert (ball.norm(state.best.double() - x.double()) <= ball.eps * (1 + 8 * torch.finfo(dtype).eps) + 1e-3).all()
    assert torch.equal(state.success, model(state.best).argmax(1) != y)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((2, 5, 6), 3, 2, Untargeted)
    for ball in Linf(0.02), L2(0.1):
        kept = [
            (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
            for state in Square(ball, steps=20).iterates(model, x, goal)
        ]
        assert len(kept) > 5
        for state, copies in kept:
            assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@both
def test_the_batch_size_of_the_oracle_changes_nothing(ball: Any) -> None:
    model, x, goal = setting((2, 5, 6), 3, 4, Untargeted)
    whole = last_of(Square(ball, steps=40), Scores(model), x, goal)
    for size in 1, 4:
        parts = last_of(Square(ball, steps=40), Scores(model, batch_size=size), x, goal)
        assert torch.equal(parts.best, whole.best)
        assert torch.equal(parts.queries, whole.queries)


@both
def test_the_layout_in_memory_changes_nothing(ball: Any) -> None:
    model, x, goal = setting((3, 5, 6), 3, 4, Untargeted)
    plain = last_of(Square(ball, steps=40), model, x, goal)
    last = last_of(Square(ball, steps=40), model, x.to(memory_format=torch.channels_last), goal)
    torch.testing.assert_close(last.best, plain.best, atol=1e-12, rtol=0)


@both
def test_calls_repeat_and_draw_from_the_generator_alone(ball: Any) -> None:
    model, x, y = hard((2, 5, 6))
    attack, state = Square(ball, steps=20), torch.get_rng_state()
    first = attack(model, x, y)
    assert torch.equal(last_of(attack, model, x, y).best, first)
    assert torch.equal(last_of(attack, model, x, y, seed=0).best, first)
    assert not torch.equal(last_of(attack, model, x, y, seed=1).best, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0] - x[0], first[1] - x[1])


def test_a_callable_that_answers_probabilities_is_a_target() -> None:
    model, x, goal = setting((7,), 3, 0, Untargeted)
    attack = Square(Linf(0.1), steps=30)
    plain = last_of(attack, model, x, goal)
    called = last_of(attack, Scores(lambda rows: model(rows).softmax(1).detach().numpy()), x, goal)
    assert torch.equal(called.success, plain.success)
    torch.testing.assert_close(called.best, plain.best)


def test_labels_are_not_enough() -> None:
    model, x, y = hard((7,))
    with pytest.raises(ValueError, match=r"^Square needs Scores\(target, budget=\.\.\.\), got Labels"):
        Square(Linf(0.1))(Labels(model), x, y)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ball", [L1(1.0), 0.1, None, Linf]),
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("p", [0, 0.0, -0.1, 1.01, math.nan, math.inf, "0.1", True]),
        ("loss", [0.5, "margin"]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            Square(**{"ball": Linf(0.1), field: value})


def test_defaults_are_the_authors() -> None:
    attack = Square(Linf(0.05))
    assert (attack.steps, attack.p, attack.loss) == (10_000, None, None)
    assert (Signs.p, Bumps.p) == (0.05, 0.1)
    assert repr(replace(attack, loss=margin)) == "Square(ball=Linf(eps=0.05), steps=10000, p=None, loss=margin)"
    model, x, y = hard((1, 9, 9))
    for ball, p in (Linf(0.1), 0.05), (L2(0.3), 0.1):
        implied, given = Square(ball, steps=15)(model, x, y), Square(ball, steps=15, p=p)(model, x, y)
        assert torch.equal(implied, given)
        assert not torch.equal(implied, Square(ball, steps=15, p=0.8)(model, x, y))
