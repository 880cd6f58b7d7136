"""What every attack on labels promises, whatever it does with the answers. To add one, add a line to ATTACKS."""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Generator, Tensor, nn

from advcourse.attacks import OPT, Boundary, Doubling, HardLabel, HopSkipJump, RayS, SignOPT, Traced
from advcourse.attacks.query import BudgetTooSmall
from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.gradients import gaussian, max_margin
from advcourse.models import Detector
from advcourse.oracles import Labels, Scores
from advcourse.threat import L1, L2, Linf

from ..helpers import Counted, Linear, Metered, images, network, never_fooled, rng, seeds, setting
from .test_query import Moody, Outage, outage, tree, untouched_world

SIGNS = SignOPT(steps=4, directions=6, start_directions=5)
DESCENTS: list[Any] = [
    OPT(steps=2, directions=2, start_directions=4, search=Doubling(tol=1e-3, tries=2)),
    SIGNS,
    replace(SIGNS, norm=Linf),
    replace(SIGNS, combine=max_margin, stride=0.2),
    replace(SignOPT.paper(), steps=2, directions=12, start_directions=5, search=Doubling(tries=3)),
]
ATTACKS: list[Any] = [
    *DESCENTS,
    Boundary(steps=30, start_images=10),
    HopSkipJump(steps=2, initial_directions=10, start_images=10),
    HopSkipJump(steps=2, initial_directions=10, start_images=10, norm=Linf),
    RayS(steps=30),
]
SHAPE = (1, 5, 5)


def name(attack: Any) -> str:
    return f"{ATTACKS.index(attack)} {type(attack).__name__} {attack.norm.__name__}"


def of(attacks: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", attacks, ids=name)


each = of(ATTACKS)
MODEL, X, GOAL = setting(SHAPE, 3, 0, Untargeted)
Y = MODEL(X).argmax(1)  # none is fooled


class Counting(nn.Module):
    """A target that counts its rows, which must be numbers in the box, and raises at one more than the limit."""

    def __init__(self, model: Callable[[Tensor], Tensor], limit: float = math.inf) -> None:
        super().__init__()
        self.model, self.limit, self.rows = model, limit, 0

    def forward(self, rows: Tensor) -> Tensor:
        assert ((rows >= 0) & (rows <= 1)).all()
        self.rows += len(rows)
        assert self.rows <= self.limit, "one query too many"
        return self.model(rows)


def last_of(attack: HardLabel, target: Any, x: Tensor = X, goal: Any = GOAL, **options: Any) -> Traced:
    *_, last = attack.iterates(target, x, goal, **options)
    return last


def fooled(model: Callable[[Tensor], Tensor], goal: Goal, x: Tensor) -> Tensor:
    return goal.fooled(model(x).argmax(1))


def tensors(state: Traced) -> dict[str, Tensor]:
    fields = {**vars(state), **{f"trace.{field}": value for field, value in vars(state.trace).items()}}
    return {field: value for field, value in fields.items() if isinstance(value, Tensor)}


def copies(state: Traced) -> dict[str, Tensor]:
    return {field: value.clone() for field, value in tensors(state).items()}


POOL = images(300, SHAPE, 5)
POOL_LABELS = MODEL(POOL).argmax(1)


def starts(goal: Goal) -> Tensor:
    """For each image one that meets the goal."""
    rows = [int(goal[torch.tensor([i])].fooled(POOL_LABELS).nonzero()[i % 7]) for i in range(len(goal.labels))]
    return POOL[rows]


# What it costs


@each
@pytest.mark.parametrize(("kind", "batch_size"), [(Untargeted, 3), (Targeted, 128)])
def test_the_ledger_is_what_the_target_saw(attack: HardLabel, kind: type[Goal], batch_size: int) -> None:
    model, x, goal = setting(SHAPE, 3, 1, kind)
    counting = Counting(model)
    oracle = Labels(counting, batch_size=batch_size)
    for state in attack.iterates(oracle, x, goal):
        assert int(state.queries.sum()) == counting.rows
        assert torch.equal(state.queries, oracle.queries)
    clean = fooled(model, goal, x)
    assert torch.equal(state.queries == 1, clean)


@each
@pytest.mark.parametrize("budget", [*range(2, 21), 50, 61])
def test_not_one_query_too_many(attack: HardLabel, budget: int) -> None:
    counting = Counting(MODEL)
    state = last_of(attack, Labels(counting, budget))
    assert int(state.queries.sum()) == counting.rows
    assert ((state.queries >= 1) & (state.queries <= budget)).all()
    if budget in (2, 3, 10, 50):  # and of each alone it is known
        for i in 1, 3:
            state = last_of(attack, Labels(Counting(MODEL, limit=budget), budget), X[i : i + 1], GOAL[i : i + 1])
            assert torch.equal(state.success, fooled(MODEL, GOAL[i : i + 1], state.best))


@each
def test_a_budget_is_used_up(attack: HardLabel) -> None:
    for budget in 5, 17, 30:
        queries = last_of(replace(attack, steps=10**6), Labels(MODEL, budget), X, Y).queries
        assert queries.tolist() == [budget] * 6


@each
def test_images_already_fooled_cost_one_query_and_come_back(attack: HardLabel) -> None:
    counted = Counted(MODEL)
    for options in {}, {"start": starts(Untargeted(Y))}:
        counted.forwards.clear()
        (state,) = attack.iterates(counted, X, (Y + 1) % 3, **options)
        assert torch.equal(state.best, X)
        assert (state.step, state.distance.tolist(), state.queries.tolist()) == (0, [0.0] * 6, [1] * 6)
        assert state.success.all()
        assert counted.forwards == [6]
        assert state.trace.at([0, 1]).tolist() == [[math.inf, 0.0]] * 6
    # Among others, to whom they make no difference in cost.
    y = torch.where(torch.arange(6) % 2 == 0, Y, (Y + 1) % 3)
    for state in attack.iterates(MODEL, X, y):
        assert torch.equal(state.best[1::2], X[1::2])
        assert torch.equal(state.x[1::2], X[1::2])
        assert state.distance[1::2].tolist() == [0.0] * 3
        assert state.queries[1::2].tolist() == [1] * 3
    assert (state.queries[::2] > 1).all()


@each
def test_without_a_budget_nothing_is_known(attack: HardLabel) -> None:
    counted = Counted(MODEL)
    for labels in Y, (Y + 1) % 3:
        for start in None, starts(Untargeted(labels)):
            oracle = Labels(counted, 0)
            (state,) = attack.iterates(oracle, X, labels, start=start)
            assert torch.equal(state.best, X)
            assert torch.equal(state.x, X)
            assert (state.step, state.success.any().item(), state.queries.tolist()) == (0, False, [0] * 6)
            assert state.distance.tolist() == [math.inf] * 6
            assert len(state.trace.image) == 0
            assert torch.equal(attack(oracle, X, labels, start=start), X)
    assert counted.forwards == []


@each
def test_one_query_judges_the_clean_image(attack: HardLabel) -> None:
    oracle = Labels(MODEL, 1)
    clean = fooled(MODEL, GOAL, X)
    assert 0 < clean.sum() < 6
    for start in None, starts(GOAL):
        (state,) = attack.iterates(oracle, X, GOAL, start=start)
        assert torch.equal(state.success, clean)
        assert torch.equal(state.best, X)
        assert torch.equal(state.distance, torch.where(clean, 0.0, math.inf).double())
        assert state.queries.tolist() == oracle.queries.tolist() == [1] * 6


@each
@pytest.mark.parametrize("budget", [100, None])
def test_what_cannot_be_fooled_ends(attack: HardLabel, budget: int | None) -> None:
    for model, x, y in [never_fooled(SHAPE), (Linear(torch.zeros(SHAPE).double(), -1.0), X, 0 * Y)]:
        counting = Counting(model, limit=2000)
        oracle = Labels(counting, budget)
        for state in replace(attack, steps=10**9).iterates(oracle, x, y):
            for value in tensors(state).values():
                assert not value.isnan().any()
            assert torch.equal(state.x, x)
            assert torch.equal(state.best, x)
            assert not state.success.any()
            assert state.distance.tolist() == [math.inf] * len(x)
        assert (oracle.queries >= 5).all()
        assert len(state.trace.image) == 0


@each
def test_a_target_that_is_fooled_by_all_but_the_image_ends(attack: HardLabel) -> None:
    # No boundary is as near as that. Not black: there, halving goes on through all the numbers that are left.
    for shade in 0.0, 0.3:
        x = torch.full((2, *SHAPE), shade)
        counting = Counting(lambda rows, x=x: (rows != x[0]).flatten(1).any(1).long(), limit=2000)
        state = last_of(attack, Labels(lambda rows, c=counting: c(rows), 1000), x, torch.zeros(2).long())
        assert state.success.all()
        assert (state.distance < 1e-2).all()
        for value in tensors(state).values():
            assert not value.isnan().any()


def test_a_search_ends_where_numbers_do() -> None:
    for tol in 1e-3, 1e-30, 0.0:
        attack = SignOPT(steps=1, directions=4, start_directions=4, search=Doubling(tol, tries=1))
        for dtype in torch.float32, torch.float64:
            x = torch.zeros(2, *SHAPE, dtype=dtype)
            target = Counting(lambda rows: (rows > 0).flatten(1).any(1).long(), limit=15_000)
            assert last_of(attack, target, x, torch.zeros(2).long()).success.all()
            target = Counting(lambda rows: (rows.flatten(1).sum(1) > 2).long(), limit=10_000)
            assert last_of(attack, target, x, torch.zeros(2).long()).success.all()


@each
def test_some_images_without_a_start_do_not_stop_the_others(attack: HardLabel) -> None:
    model, x, _ = setting(SHAPE, 3, 3, Untargeted)
    goal = Targeted(model(x).argmax(1))
    reachable = torch.tensor([0, 3, 4])
    labels = torch.full((6,), 7)  # there is no such class
    labels[reachable] = model(x).topk(2, 1).indices[reachable, 1]
    goal = Targeted(labels)
    clean = model(x).argmax(1)
    assert not goal.fooled(clean).any()
    pool = images(500, SHAPE)
    start = torch.stack([pool[int((model(pool).argmax(1) == t % 3).nonzero()[0])] for t in labels])
    counting = Counting(model)
    states = list(attack.iterates(Labels(lambda rows: counting(rows).argmax(1), 200), x, goal, start=start))
    assert states[-1].success.tolist() == [i in reachable for i in range(6)]
    assert torch.equal(states[-1].best[[1, 2, 5]], x[[1, 2, 5]])
    assert (states[-1].distance[reachable] < attack.norm.norm(start - x)[reachable]).all()


@each
def test_an_oracle_starts_a_new_ledger_with_each_attack(attack: HardLabel) -> None:
    oracle = Labels(MODEL, 50)
    first = last_of(attack, oracle)
    again = last_of(attack, oracle)
    assert torch.equal(first.queries, again.queries)
    assert torch.equal(first.best, again.best)
    few = last_of(attack, oracle, X[:2], Y[:2])
    assert few.queries.shape == oracle.queries.shape == (2,)
    assert first.queries.shape == (6,)  # and the old one stays with those who hold it


def alike(like: Tensor, n: int, generator: Generator, step: int = 0) -> Tensor:
    """The same directions for each image."""
    return gaussian(like[:1], n, generator).repeat_interleave(len(like), 0)


@of([*[attack for attack in DESCENTS if getattr(attack, "combine", None) is not max_margin], ATTACKS[-1]])
@pytest.mark.parametrize("budget", [23, 80])
def test_an_image_pays_and_finds_what_it_does_alone(attack: Any, budget: int) -> None:
    attack = replace(attack, draw=alike) if isinstance(attack, OPT | SignOPT) else attack
    start = starts(GOAL)
    for options in {}, {"start": start}:
        together = last_of(attack, Labels(MODEL, budget), **options)
        for i in 1, 4:
            own = {name: images[i : i + 1] for name, images in options.items()}
            alone = last_of(attack, Labels(Counting(MODEL, budget), budget), X[i : i + 1], GOAL[i : i + 1], **own)
            assert alone.queries == together.queries[i]
            torch.testing.assert_close(alone.best[0], together.best[i], atol=1e-7, rtol=0)
            own_trace = together.trace.image == i
            assert torch.equal(alone.trace.queries, together.trace.queries[own_trace])
            torch.testing.assert_close(alone.trace.distance, together.trace.distance[own_trace], atol=1e-7, rtol=0)


# What is seen on the way


@each
@settings(max_examples=3)
@given(
    seeds,
    st.sampled_from([2, 3, 5]),
    st.sampled_from([Untargeted, Targeted]),
    st.sampled_from([None, 9, 40]),
    st.booleans(),
)
def test_states_keep_every_promise(
    attack: Any, seed: int, classes: int, kind: type[Goal], budget: int | None, started: bool
) -> None:
    model, x, goal = setting(SHAPE, classes, seed, kind)
    norm = attack.norm.norm
    start = images(6, SHAPE, seed + 1) if started else None  # some meet the goal
    before, kept = None, []
    for k, state in enumerate(attack.iterates(Labels(model, budget), x, goal, start=start)):
        assert type(state) is Traced
        assert state.step == k
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.min() >= 0
            assert image.max() <= 1
        for value in state.loss, state.best_loss, state.success, state.distance, state.queries:
            assert value.shape == (6,)
        assert torch.equal(state.success, fooled(model, goal, state.best))
        assert torch.equal(state.distance, norm(state.best - x).where(state.success, torch.inf))
        assert torch.equal(state.best[~state.success], x[~state.success])
        assert torch.equal(state.loss, state.success.double())
        assert torch.equal(state.best_loss, state.loss.where(state.success, -math.inf))
        # The trace ends where the image is, and at no higher cost.
        trace = state.trace
        assert trace.images == 6
        assert torch.equal(trace.at([10**9])[:, 0], state.distance)
        assert (trace.queries <= state.queries[trace.image]).all()
        assert (trace.queries >= 1).all()
        if before is None:
            assert torch.equal(state.x, x)
            assert torch.equal(state.best, x)
            assert state.queries.tolist() == [1] * 6
        else:
            assert (state.queries >= before.queries).all()
            assert (state.success | ~before.success).all()
            assert (state.distance <= before.distance).all()
            assert torch.equal(trace.distance[: len(before.trace.distance)], before.trace.distance)
            new = slice(len(before.trace.distance), None)
            assert (trace.queries[new] > before.queries[trace.image[new]]).all()
            done = before.distance == 0
            assert torch.equal(state.x[done], x[done])
            assert torch.equal(state.queries[done], before.queries[done])
        kept.append((state, copies(state)))
        before = state
    for held, copied in kept:
        for field, value in tensors(held).items():
            assert torch.equal(value, copied[field]), field  # never written again
    assert torch.equal(attack(Labels(model, budget), x, goal, start=start), state.best)


@each
def test_a_trace_is_what_smaller_budgets_would_have_found(attack: HardLabel) -> None:
    # Not to the last query, for a budget's end is planned for; but nothing is found before it was paid for.
    for i in 0, 5:
        points: list[float] = []

        def target(rows: Tensor, i: int = i, points: list[float] = points) -> Tensor:
            labels = MODEL(rows).argmax(1)
            points.extend(
                d if hit else math.inf
                for d, hit in zip(attack.norm.norm(rows - X[i]).tolist(), (labels != Y[i]).tolist(), strict=True)
            )
            return labels

        alone = last_of(attack, Labels(target, 100), X[i : i + 1], Y[i : i + 1])
        for budget, distance in enumerate(alone.trace.at(range(1, 101))[0].tolist(), 1):
            assert distance >= min(points[:budget])  # of what was sent by then, none was nearer
        assert min(points) == alone.distance
        assert alone.distance < math.inf


@each
def test_it_comes_nearer_than_where_it_began(attack: HardLabel) -> None:
    weight = torch.ones(SHAPE).double()
    weight[..., ::2] = -1
    x = 0.4 + 0.2 * images(4, SHAPE)
    model = Linear(weight, bias=0.0)
    lead = (x * weight).flatten(1).sum(1).view(-1, 1, 1, 1)
    x = x - (lead + 0.3) * weight / weight.numel()
    start = (0.5 + 0.3 * weight + 0.2 * (images(4, SHAPE, 1) - 0.5)).clamp(0, 1)
    reach = attack.norm.norm(start - x)
    for goal in Untargeted(torch.zeros(4).long()), Targeted(torch.ones(4).long()):
        assert not fooled(model, goal, x).any()
        for options in {"start": start}, {}:
            state = last_of(attack, Labels(model, 250), x, goal, **options)
            assert torch.equal(state.success, fooled(model, goal, state.best))
            assert (state.distance >= 0.3 / (5 if attack.norm is L2 else 25) - 1e-9).all()  # which is the boundary
            if options:
                assert (state.distance < 0.9 * reach).all()


@each
def test_success_and_failure_both_occur_where_they_are_tested(attack: HardLabel) -> None:
    settings_ = [setting(SHAPE, 3, seed, Targeted) for seed in range(8)]
    found = torch.cat([last_of(attack, Labels(m, 20), x, g).success for m, x, g in settings_])
    clean = torch.cat([fooled(m, g, x) for m, x, g in settings_])
    assert (found & ~clean).any()
    assert not found.all()


# A start


@each
@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_a_start_is_come_nearer_from(attack: HardLabel, kind: type[Goal]) -> None:
    labels = Y if kind is Untargeted else (Y + 1) % 3
    goal = kind(labels)
    start = starts(goal)
    counted = Counted(MODEL)
    state = last_of(attack, counted, X, goal, start=start)
    assert counted.forwards[:2] == [6, 6]
    assert state.success.all()
    assert fooled(MODEL, goal, state.best).all()
    reach = attack.norm.norm(start - X)
    assert (state.distance < reach).all()
    # The start is the first that fools, for the second query, exactly as it was given.
    only = last_of(attack, Labels(MODEL, 2), X, goal, start=start)
    assert torch.equal(only.distance, reach)
    assert torch.equal(only.best, start)
    assert torch.equal(state.trace.at([1, 2])[:, 1], reach)
    assert state.trace.at([1]).isinf().all()


@each
def test_a_start_on_the_very_boundary_is_a_start(attack: HardLabel) -> None:
    # x + |s − x| · θ is s but for rounding, which may be what the target looks at.
    start = images(6, SHAPE, seed=8)
    allowed = {tuple(row.flatten().tolist()) for row in start}
    asked = Labels(lambda rows: torch.tensor([int(tuple(row.flatten().tolist()) in allowed) for row in rows]), 40)
    state = last_of(attack, asked, X, torch.zeros(6).long(), start=start)
    assert torch.equal(state.best, start)
    assert state.success.all()


@each
def test_a_start_that_does_not_meet_the_goal_is_replaced(attack: HardLabel) -> None:
    goal = Untargeted(Y)
    start = starts(goal)
    for useless in X, X.flip(0).where(fooled(MODEL, Untargeted(1 - Y.clamp_max(1)), X).view(-1, 1, 1, 1), X):
        mixed = torch.where((torch.arange(6) % 2 == 0).view(-1, 1, 1, 1), start, useless)
        state = last_of(attack, Labels(MODEL, 60), X, goal, start=mixed)
        other = last_of(attack, Labels(MODEL, 60), X, goal)
        assert other.success.all()
        assert state.success.all()


@each
def test_an_unusable_start_is_refused_at_once(attack: HardLabel) -> None:
    counted = Counted(MODEL)
    for start, words in [
        (X[:3], r"shape.*\(6, 1, 5, 5\).*got \(3, 1, 5, 5\)"),
        (X[:1], "shape"),
        (X.flatten(1), "shape"),
        (X.float(), "torch.float64.*got.*torch.float32"),
        (2 * X, r"\[0, 1\]"),
        (X - 1, r"\[0, 1\]"),
        (X * math.nan, "NaN"),
        ((X * 255).byte(), "255"),
        (X.numpy(), "torch tensor"),
    ]:
        with pytest.raises(ValueError, match=words):
            attack.iterates(counted, X, Y, start=start)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            attack(counted, X, Y, start=start)  # type: ignore[arg-type]
    assert counted.forwards == []


# Targets of every kind


@each
def test_a_bare_target_is_asked_without_a_budget(attack: HardLabel) -> None:
    attack = replace(attack, steps=1)
    expected = last_of(attack, Labels(MODEL))
    for target in MODEL, lambda rows: MODEL(rows).softmax(1), lambda rows: MODEL(rows).argmax(1):
        state = last_of(attack, target)
        assert torch.equal(state.best, expected.best)
        assert torch.equal(state.queries, expected.queries)


@each
def test_scores_are_refused(attack: HardLabel) -> None:
    for oracle in Scores(MODEL), Scores(MODEL, 0):
        with pytest.raises(ValueError, match=rf"{type(attack).__name__} needs Labels\(target"):
            attack.iterates(oracle, X, GOAL)  # at once
    with pytest.raises(ValueError, match="target must be"):
        attack(3, X, GOAL)  # type: ignore[arg-type]


@each
def test_unusable_input_is_refused_at_once(attack: HardLabel) -> None:
    counted = Counted(MODEL)
    for x, y, words in [
        (2 * X, Y, r"\[0, 1\]"),
        (X * math.nan, Y, "NaN"),
        ((X * 255).byte(), Y, "255"),
        (X[:0], Y[:0], "non-empty"),
        (X, Y[:3], r"\(6,\)"),
        (X, Y.float(), "int64"),
        (X, -1 - Y, "0..K-1"),
    ]:
        with pytest.raises(ValueError, match=words):
            attack.iterates(counted, x, y)
    assert counted.forwards == []


@pytest.mark.parametrize("norm", [L1, L2(0.5), Linf(0.1), "L2", None])
def test_a_norm_is_a_class_that_is_supported(norm: Any) -> None:
    for kind in OPT, SignOPT, HopSkipJump:
        with pytest.raises(ValueError, match=r"norm must be L2 or Linf, the class.* got"):
            kind(norm=norm)


@each
def test_attacks_are_frozen_and_print_their_fields(attack: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        attack.steps = 3
    assert repr(attack).startswith(f"{type(attack).__name__}(steps={attack.steps}")
    assert replace(attack, steps=7).steps == 7
    assert "<function" not in repr(attack)


@each
def test_trees_are_attacked_in_silence(attack: HardLabel) -> None:
    target, x, y = tree()
    boosted = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    for estimator in target, boosted:
        predicted = torch.from_numpy(estimator.predict(x.flatten(1).numpy()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = last_of(attack, Labels(estimator, 60), x, predicted)
        assert state.success.float().mean() > 0.5
        now = torch.from_numpy(estimator.predict(state.best.flatten(1).numpy()))
        assert torch.equal(now != predicted, state.success)
        assert (state.distance > 0).all()


@each
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4), (1, 1, 1), (3, 1, 2), (2, 3, 4, 2)])
def test_input_need_not_be_images(attack: HardLabel, shape: tuple[int, ...]) -> None:
    model, x, goal = setting(shape, 3, 2, Untargeted)
    counting = Counting(model)
    oracle = Labels(counting, 40)
    state = last_of(attack, oracle, x, goal)
    assert state.best.shape == x.shape
    assert torch.equal(state.success, fooled(model, goal, state.best))
    assert counting.rows == oracle.queries.sum()


@each
def test_refusals_fool_nobody(attack: HardLabel) -> None:
    def shy(rows: Tensor) -> Tensor:  # refuses what is near the boundary, and other things
        top = MODEL(rows).topk(2, 1).values
        return MODEL(rows).argmax(1).masked_fill(top[:, 0] - top[:, 1] < 1.0, -1)

    y = MODEL(X).argmax(1)
    for target, goal in (
        (shy, Untargeted(y)),
        (shy, Targeted((y + 1) % 3)),
        (lambda rows: 0 * rows[:, 0, 0, 0].long() - 1, y),
    ):
        state = last_of(attack, Labels(target, 60), X, goal)
        labels = target(state.best)
        met = (labels != y) & (labels != -1) if goal is y else goal.fooled(labels)
        assert torch.equal(state.success, met)
        assert not (labels[state.success] == -1).any()
    assert not state.success.any()
    detector = Detector(MODEL, lambda x: x.round(decimals=1), 0.3)
    assert (detector(images(50, SHAPE)) == -1).any()
    state = last_of(attack, Labels(detector, 60), X, y)
    assert torch.equal(state.success, (detector(state.best) != y) & (detector(state.best) != -1))


# Targets that break


class Breaking(nn.Module):
    """A model that counts its rows, and does something else from a certain call on."""

    def __init__(self, at: int, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.counting, self.left, self.how = Counting(MODEL), at, how

    def forward(self, rows: Tensor) -> Any:
        logits = self.counting(rows)
        self.left -= 1
        return logits if self.left > 0 else self.how(logits)


@each
@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (lambda z: z * math.nan, ValueError, "NaN"),
        (lambda z: z[:, 0], ValueError, "labels"),
        (lambda z: z.argmax(1) - 3, ValueError, "-1"),
        (outage, Outage, "the line is dead"),
    ],
    ids=["NaN", "fractions", "below -1", "exception"],
)
def test_a_target_that_breaks_leaves_the_ledger_right(
    attack: HardLabel, at: int, how: Callable[[Tensor], Any], error: type[Exception], words: str
) -> None:
    model = Breaking(at, how).train()
    oracle = Labels(model, 60, batch_size=4)
    with pytest.raises(error, match=words):
        attack(oracle, X, Y)
    assert int(oracle.queries.sum()) == model.counting.rows
    assert oracle.queries.sum() > 0
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@each
def test_an_oracle_is_fit_for_another_attack_once_the_line_is_back(attack: HardLabel) -> None:
    model = Breaking(4, outage)
    oracle = Labels(model, 60)
    with pytest.raises(Outage):
        attack(oracle, X, Y)
    model.left = 10**9
    assert torch.equal(attack(oracle, X, Y), attack(Labels(MODEL, 60), X, Y))


# What an attack leaves behind


@each
@pytest.mark.parametrize("wrap", [lambda model: model, Labels])
def test_the_model_is_left_as_it_was_found(attack: HardLabel, wrap: Callable[[nn.Module], Any]) -> None:
    model = Moody()
    before, target = model.found(), wrap(model)
    for _ in attack.iterates(target, X, Y):
        assert model.found() == before
        assert torch.is_grad_enabled()
    abandoned = attack.iterates(target, X, Y)
    next(abandoned)
    next(abandoned, None)
    abandoned.close()
    assert model.found() == before


@each
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_s_grad_mode_neither_matters_nor_changes(
    attack: HardLabel, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    images_ = starts(Untargeted(Y))
    expected = attack(Labels(MODEL, 25), X, Y, start=images_)
    with mode():
        here = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        x, y, start = X.clone(), Y.clone(), images_.clone()  # made under the caller's mode
        for state in attack.iterates(Labels(MODEL, 25), x, y, start=start):
            last = state
            assert not any(value.is_inference() for value in tensors(state).values())
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
        found = attack(Labels(MODEL, 25), x, y, start=start)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
    for image in found, last.best:
        assert torch.equal(image, expected)
        assert not image.requires_grad


@each
def test_the_input_is_neither_changed_nor_returned(attack: HardLabel) -> None:
    images_ = starts(Untargeted(Y))
    for labels in Y, (Y + 1) % 3:
        for budget in 0, 1, 2, 60:
            x, y, start = X.clone().requires_grad_(), labels.clone(), images_.clone().requires_grad_()
            found = attack(Labels(MODEL, budget), x, y, start=start)
            assert torch.equal(x, X)
            assert torch.equal(y, labels)
            assert torch.equal(start, images_)
            assert x.grad is None
            assert not found.requires_grad
            assert found.data_ptr() not in (x.data_ptr(), start.data_ptr())


@each
def test_the_caller_may_reuse_its_tensors_between_states(attack: HardLabel) -> None:
    images_ = starts(Untargeted(Y))
    expected = attack(Labels(MODEL, 60), X, Y, start=images_)
    x, y, start = X.clone(), Y.clone(), images_.clone()
    last = None
    for state in attack.iterates(Labels(MODEL, 60), x, y, start=start):
        x.zero_(), y.copy_((y + 1) % 3), start.zero_()
        last = state
    assert torch.equal(last.best, expected)


@each
def test_randomness_is_the_generator_s(attack: HardLabel) -> None:
    with untouched_world():
        first = last_of(attack, Labels(MODEL, 30), X, Y)
    torch.rand(7)
    for options in {}, {"generator": rng(0)}:
        again = last_of(attack, Labels(MODEL, 30), X, Y, **options)
        for field, value in copies(first).items():
            assert torch.equal(tensors(again)[field], value), field
    with untouched_world():
        used = rng(5)
        other, same = (last_of(attack, Labels(MODEL, 30), X, Y, generator=g) for g in (used, rng(5)))
        assert torch.equal(other.x, same.x)
        if not isinstance(attack, RayS):  # of which nothing is random
            assert not torch.equal(other.x, first.x)
            assert not torch.equal(last_of(attack, Labels(MODEL, 30), X, Y, generator=used).x, other.x)


@each
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_oracle_s_batches_change_nothing(attack: HardLabel, batch_size: int) -> None:
    few, many = (last_of(attack, Labels(MODEL, 50, size)) for size in (batch_size, 10_000))
    torch.testing.assert_close(few.best, many.best, atol=1e-7, rtol=0)
    assert torch.equal(few.queries, many.queries)
    assert torch.equal(few.success, many.success)
    assert torch.equal(few.trace.queries, many.trace.queries)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(attack: HardLabel, dtype: torch.dtype) -> None:
    model, x = network(SHAPE, dtype=dtype), images(6, SHAPE, dtype=dtype)
    for budget in 0, 1, 40:
        for state in attack.iterates(Labels(model, budget), x, model(x).argmax(1)):
            for field in "x", "best", "loss", "best_loss", "distance":
                assert getattr(state, field).dtype == dtype, field
            assert state.trace.distance.dtype == dtype
            assert (state.success.dtype, state.queries.dtype) == (torch.bool, torch.int64)
            assert (state.trace.image.dtype, state.trace.queries.dtype) == (torch.int64, torch.int64)


@each
def test_one_image_is_as_good_as_many(attack: HardLabel) -> None:
    budget = 60
    metered = Metered(MODEL, X[:1], limit=budget)
    state = last_of(attack, Labels(metered, budget), X[:1], Y[:1])
    assert torch.equal(state.queries, metered.asked)
    assert state.success.all()


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_the_layout_in_memory_changes_nothing(attack: Any) -> None:
    x = images(6, (3, 4, 5), dtype=torch.float32)
    model = network((3, 4, 5), dtype=torch.float32)
    y = model(x).argmax(1)
    strange = x.contiguous(memory_format=torch.channels_last)
    for start in None, images(6, (3, 4, 5), seed=5, dtype=torch.float32):
        *_, state = attack.iterates(Labels(model, 60), x, y, start=start)
        twisted = None if start is None else start.contiguous(memory_format=torch.channels_last)
        *_, other = attack.iterates(Labels(model, 60), strange, y, start=twisted)
        assert torch.equal(state.best, other.best)
        assert torch.equal(state.queries, other.queries)


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_a_label_that_the_target_cannot_have_is_no_success(attack: Any) -> None:
    model = network(SHAPE, classes=4)
    x = images(3, SHAPE)
    beyond = torch.tensor([0, 4, 1])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3 for this target, got 4"):
        attack(Labels(model, 20), x, beyond)
    attack(Labels(lambda rows: model(rows).argmax(1), 20), x, beyond)  # labels alone do not tell how many there are


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_that_tells_nothing_is_no_robustness(attack: Any, budget: int) -> None:
    with pytest.warns(BudgetTooSmall, match=f"a budget of {budget} does not pay for one step") as met:
        attack(Labels(MODEL, budget), X, GOAL)
    assert {warning.filename for warning in met if warning.category is BudgetTooSmall} == {__file__}
