import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.attacks import RayS, Traced
from advcourse.attacks.ray_search import blocks
from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.oracles import Labels
from advcourse.threat import L2, Linf

from ..helpers import Linear, images, linear_yardstick, network, never_fooled, rng, seeds, setting

SHAPES = [(1,), (7,), (1, 5, 5), (2, 3, 4)]
ONCE = 1 + 2 + 4 + 7 + 13  # flips of blocks of 25, 13, 7, 4 and 2 out of 25 features


def last_of(attack: RayS, oracle: Any, x: Tensor, goal: Any, **options: Any) -> Traced:
    *_, last = attack.iterates(oracle, x, goal, **options)
    return last


def plain_rays(model: nn.Module, x: Tensor, goal: Goal, steps: int, tol: float = 1e-3) -> tuple[Tensor, float, int]:
    """The authors' program for one image (1, ...), radii in L2, but for the first question: sign, radius, queries."""
    d, queries = x.numel(), 0

    def fools(sign: Tensor, radius: float) -> bool:
        nonlocal queries
        queries += 1
        points = (x + radius * sign / sign.norm()).clamp(0, 1)
        return bool(goal.fooled(model(points).argmax(1)))

    best, nearest = torch.ones_like(x), math.inf
    level, index, flip = 0, 0, False
    for _ in range(steps):
        sign = best.clone()
        size = math.ceil(d / 2**level)
        if flip:
            sign.view(-1)[index * size : (index + 1) * size] *= -1
            index += 1
            if index == 2**level or index * size >= d:
                level, index = level + 1, 0
        flip = True
        low, high = 0.0, min(nearest, d**0.5)
        if fools(sign, high):
            while high - low > tol:
                middle = (low + high) / 2
                if fools(sign, middle):
                    high = middle
                else:
                    low = middle
            if high < nearest:
                best, nearest = sign, high
    return best, nearest / d**0.5, queries


@settings(max_examples=12)
@given(st.sampled_from(SHAPES[1:]), seeds, st.sampled_from([2, 3]), st.sampled_from([1e-3, 0.05]))
def test_it_asks_what_the_authors_program_asks(shape: tuple[int, ...], seed: int, classes: int, tol: float) -> None:
    model, x = network(shape, classes, seed), images(3, shape, seed)
    goal, steps = Untargeted(model(x).argmax(1)), 14  # so that no image is done
    last = last_of(RayS(steps=steps, tol=tol), model, x, goal)
    for i in range(3):
        sign, radius, queries = plain_rays(model, x[i : i + 1], goal[torch.tensor([i])], steps, tol)
        assert last.success[i] == (radius < math.inf)
        assert last.queries[i] == 1 + queries
        expected = (x[i] + (radius if radius < math.inf else 0) * sign[0]).clamp(0, 1)
        torch.testing.assert_close(last.x[i], expected, atol=1e-9, rtol=0)


def test_blocks_halve_and_single_features_come_again_and_again() -> None:
    assert list(islice(blocks(1), 3)) == [(0, 1)] * 3
    first = list(islice(blocks(25), ONCE + 50))
    assert [last - first for first, last in first[:14]] == [25, 13, 12, 7, 7, 7, 4, 4, 4, 4, 4, 4, 4, 1]
    assert first[ONCE:] == 2 * [(i, i + 1) for i in range(25)]
    for first_one, d in (first[:1], 25), (first[1:3], 25), (first[3:7], 25):
        assert [i for part in first_one for i in range(*part)] == list(range(d))


@settings(max_examples=20)
@given(st.sampled_from(SHAPES), seeds, st.sampled_from([Untargeted, Targeted]), st.sampled_from([None, 30, 100]))
def test_it_stays_on_what_fools_and_comes_nearer(
    shape: tuple[int, ...], seed: int, kind: type[Goal], budget: int | None
) -> None:
    model, x, goal = setting(shape, 3, seed, kind)
    clean = goal.fooled(model(x).argmax(1))
    radius = torch.full((len(x),), math.inf, dtype=x.dtype)
    for before, state in pairwise(RayS(steps=60).iterates(Labels(model, budget), x, goal)):
        assert torch.equal(state.success, goal.fooled(model(state.x).argmax(1)))
        assert torch.equal(state.x[~state.success | clean], x[~state.success | clean])
        assert torch.equal(state.best[state.success], state.x[state.success])
        torch.testing.assert_close(state.distance, Linf.norm(state.best - x).where(state.success, torch.inf))
        # One radius for all features but those that the box stopped, and no larger than before.
        moved = (state.x - x).abs().flatten(1)
        stopped = ((state.x == 0) | (state.x == 1)).flatten(1)
        reach = moved.amax(1)
        assert ((moved - reach[:, None]).abs() < 1e-12)[~stopped].all()
        assert (reach[state.success] <= radius[state.success] + 1e-12).all()
        radius = reach.where(state.success, radius)
        # The fast check alone, or a bisection too, and only then can it have moved.
        cost = state.queries - before.queries
        still = torch.tensor([torch.equal(a, b) for a, b in zip(before.x, state.x, strict=True)])
        assert (still | (cost > 1)).all()


def test_the_fast_check_costs_one_query() -> None:
    # The first signs are the best, and every flip fails.
    model = Linear(torch.ones(8).double(), bias=-6.0)
    x, y = torch.full((2, 8), 0.5).double(), torch.zeros(2, dtype=torch.long)
    oracle = Labels(model)
    states = list(RayS(steps=16).iterates(oracle, x, y))
    cost = torch.stack([state.queries for state in states]).diff(dim=0)
    bisection = math.ceil(math.log2(8**0.5 / 1e-3))
    assert cost.tolist() == [[1 + bisection] * 2] + [[1, 1]] * 15
    assert oracle.queries.tolist() == [1 + 16 + bisection] * 2
    torch.testing.assert_close(states[-1].distance, torch.full((2,), 0.25).double(), atol=1e-3, rtol=0)


def test_signs_are_all_that_is_searched() -> None:
    model, x, eps = linear_yardstick(Linf, (1, 3, 3))
    for state in islice(RayS().iterates(model, x, torch.zeros(3, dtype=torch.long)), 1, None):
        delta = (state.x - x).flatten(1)
        size = delta.abs().amax(1, keepdim=True)
        if (size < 0.4).all():
            torch.testing.assert_close(delta.abs(), size.expand_as(delta))
    torch.testing.assert_close(torch.sign(delta), model.weight.sign().flatten().expand_as(delta).detach())
    assert (state.distance >= eps - 1e-12).all()
    torch.testing.assert_close(state.distance, torch.full((3,), eps).double(), atol=1e-3 / 3, rtol=0)


# Queries, starts and ends


def test_it_ends_by_itself_when_every_feature_has_failed() -> None:
    model, x, y = never_fooled((1, 5, 5))
    oracle = Labels(model)
    last = last_of(RayS(steps=10**9), oracle, x, y)
    assert oracle.queries.tolist() == [1 + 1 + ONCE + 24] * 4  # the last block of two is the last feature
    assert not last.success.any()
    assert torch.equal(last.x, x)
    model, x = network((1, 5, 5)), 0.4 + 0.2 * images(6, (1, 5, 5))
    goal = Untargeted(model(x).argmax(1))
    once = last_of(RayS(steps=10**9), model, x, goal)
    radius = Linf.norm(once.x - x)
    assert (once.success & (radius < 0.3)).all()
    for k in range(25):  # no single flip leads nearer, and that is why it ended
        flipped = (once.x - x).sign()
        flipped.flatten(1)[:, k] *= -1
        nearer = x + (radius - 1e-3 / 5).view(-1, 1, 1, 1) * flipped
        assert not goal.fooled(model(nearer).argmax(1)).any()


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_steps_are_flips_and_the_first_question(steps: int) -> None:
    model, x, y = never_fooled((1, 5, 5))
    oracle = Labels(model)
    states = list(RayS(steps=steps).iterates(oracle, x, y))
    assert len(states) == 1 + steps
    assert oracle.queries.tolist() == [1 + steps] * 4


def test_a_start_is_asked_about_and_its_signs_are_the_first() -> None:
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    model, x, y = Linear(weight, bias=-0.8), torch.full((3, 4), 0.5).double(), torch.tensor([0, 0, 1])
    start = torch.tensor([[0.9, 0.1, 0.6, 0.4]]).double().repeat(3, 1)
    oracle = Labels(model)
    first, second, *_, last = RayS().iterates(oracle, x, y, start=start)
    assert second.queries[2] == 1  # it was fooled from the start, and pays for no more
    torch.testing.assert_close(second.trace.distance[second.trace.image == 0][:1], torch.tensor([0.4]).double())
    for state in second, last:
        torch.testing.assert_close(state.distance[:2], torch.full((2,), 0.2).double(), atol=1e-3, rtol=0)
        assert torch.equal((state.x - x)[:2].sign(), weight.sign().expand(2, 4))
    assert not first.success[:2].any()
    without = list(islice(RayS().iterates(model, x, y), 2))[1]
    assert not without.success[:2].any()  # (1, 1, 1, 1) does not fool


def test_a_start_that_no_signs_lead_to_is_what_is_found() -> None:
    def label(rows: Tensor) -> Tensor:
        return ((rows - torch.tensor([0.7, 0.5])).abs().amax(1) < 0.05).long()

    x = torch.full((1, 2), 0.5)
    start = torch.tensor([[0.7, 0.5]])
    last = last_of(RayS(), Labels(label), x, Targeted(torch.tensor([1])), start=start)
    assert torch.equal(last.best, start)
    assert last.success.all()
    assert not last_of(RayS(), Labels(label), x, Targeted(torch.tensor([1]))).success.any()


def test_nothing_is_random_and_images_are_alone() -> None:
    model, x, goal = setting((2, 3, 4), 3, 5, Untargeted)
    whole = last_of(RayS(steps=80), Labels(model, 200), x, goal)
    assert torch.equal(whole.best, RayS(steps=80)(Labels(model, 200), x, goal, generator=rng(5)))
    for i in range(len(x)):
        rows = torch.tensor([i])
        alone = last_of(RayS(steps=80), Labels(model, 200), x[rows], goal[rows])
        torch.testing.assert_close(alone.best, whole.best[rows], atol=1e-12, rtol=0)
        assert alone.queries[0] == whole.queries[i]
    part = last_of(RayS(steps=80), Labels(model, 200, batch_size=2), x, goal)
    assert torch.equal(part.best, whole.best)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_precision_has_an_end(dtype: torch.dtype) -> None:
    model, x = network((1, 5, 5), dtype=dtype), images(6, (1, 5, 5), dtype=dtype)
    oracle = Labels(model)
    last = last_of(RayS(steps=60, tol=1e-300), oracle, x, model(x).argmax(1))
    assert (last.best.dtype, last.distance.dtype) == (dtype, dtype)
    assert last.success.all()
    assert (oracle.queries < 60 * 70).all()


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((1, 5, 5), 3, 0, Untargeted)
    kept = [(state, state.x.clone(), state.best.clone()) for state in RayS(steps=40).iterates(model, x, goal)]
    assert len(kept) == 41
    for state, points, best in kept:
        assert torch.equal(state.x, points)
        assert torch.equal(state.best, best)
    assert sum(not torch.equal(a[1], b[1]) for a, b in pairwise(kept)) > 5


@pytest.mark.parametrize(
    ("field", "values"),
    [("steps", [0, -1, 1.5, None, True]), ("tol", [0.0, 0, -1e-3, math.inf, math.nan, "1e-3"])],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            RayS(**{field: value})


def test_it_has_no_norm_but_linf() -> None:
    assert repr(RayS()) == "RayS(steps=10000, tol=0.001)"
    assert RayS.norm is Linf
    with pytest.raises(TypeError):
        RayS(norm=L2)  # type: ignore[call-arg]
