import math
from collections import deque
from itertools import pairwise
from typing import Any

import foolbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advcourse.attacks import Boundary, Traced
from advcourse.attacks.boundary import turned
from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.oracles import Labels
from advcourse.threat import L2, per_image

from ..helpers import Linear, images, linear_yardstick, network, rng, seeds, setting, started

SHAPES = [(1,), (7,), (1, 5, 5), (2, 3, 4)]


class Recorder(Labels):
    """Labels that keep the rows of every question."""

    def begin(self, n: int, device: Any = "cpu") -> None:
        super().begin(n, device)
        self.rows: list[Tensor] = []

    def __call__(self, points: Tensor, owner: Tensor) -> Tensor:
        self.rows.append(points.clone())
        return super().__call__(points, owner)


def grey(n: int, shape: tuple[int, ...]) -> Tensor:
    """Images far from the box."""
    return 0.45 + 0.1 * torch.rand(n, *shape, generator=rng(3), dtype=torch.float64)


# A proposal


@given(st.sampled_from(SHAPES[1:]), seeds, st.floats(1e-3, 1.0))
def test_the_step_around_is_at_right_angles_and_keeps_the_length(
    shape: tuple[int, ...], seed: int, delta: float
) -> None:
    theta, eta = torch.randn(2, 5, *shape, generator=rng(seed), dtype=torch.float64)
    step = torch.full((5,), delta, dtype=torch.float64)
    found, theta = turned(theta, eta, step), L2.steepest(theta)
    torch.testing.assert_close(L2.norm(found), torch.ones(5).double())
    tangent = (found * per_image((1 + step.square()).sqrt(), found) - theta) / per_image(step, found)
    torch.testing.assert_close((tangent * theta).flatten(1).sum(1), torch.zeros(5).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(L2.norm(tangent), torch.ones(5).double())
    assert ((tangent * eta).flatten(1).sum(1) > 0).all()


def test_without_a_way_around_it_stays() -> None:
    theta = torch.tensor([[3.0], [-2.0]])
    assert turned(theta, torch.randn(2, 1, generator=rng()), torch.full((2,), 0.5)).tolist() == [[1.0], [-1.0]]
    assert turned(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1)).tolist() == [[0.0] * 4]


class Stepsizes:
    """What foolbox does with the step sizes of one image, as it does it: two queues, cleared after a change."""

    def __init__(self, delta: float, epsilon: float, factor: float) -> None:
        self.delta, self.epsilon, self.factor = delta, epsilon, factor
        self.around: deque[bool] = deque(maxlen=100)
        self.inward: deque[bool] = deque(maxlen=30)
        self.changes = 0

    def note(self, around: bool, inward: bool) -> None:
        self.around.append(around)
        self.inward.append(inward)
        if len(self.around) == 100:
            share = sum(self.around) / 100
            factor = self.factor if share > 0.5 else 1 / self.factor if share < 0.2 else 1.0
            self.delta, self.epsilon = min(1, self.delta * factor), self.epsilon * factor
            self.change(factor, self.around)
        if len(self.inward) == 30:
            share = sum(self.inward) / 30
            factor = self.factor if share > 0.25 else 1 / self.factor if share < 0.1 else 1.0
            self.epsilon *= factor
            self.change(factor, self.inward)
        self.epsilon = min(1, self.epsilon)

    def change(self, factor: float, queue: deque[bool]) -> None:
        if factor != 1:
            queue.clear()
            self.changes += 1


@pytest.mark.parametrize(("check_every", "factor"), [(1, 1.5), (2, 1.1)])
def test_proposals_and_step_sizes_are_those_of_foolbox(check_every: int, factor: float) -> None:
    shape, n = (2, 3, 4), 3
    model, x = network(shape, seed=1), grey(n, shape)
    y = model(x).argmax(1)
    start = started(model, x, Untargeted(y))
    start = x + 0.4 * (start - x) / per_image((start - x).flatten(1).abs().amax(1), x)  # nothing is clipped
    keep = (model(start).argmax(1) != y).nonzero().squeeze(1)
    x, y, start, n = x[keep], y[keep], start[keep], len(keep)
    assert n > 1
    recorder = Recorder(model)
    attack = Boundary(
        steps=400 * check_every,
        check_every=check_every,
        spherical_step=0.2,
        source_step=0.05,
        step_adaptation=factor,
    )
    states = list(attack.iterates(recorder, x, y, start=start))
    asked = recorder.rows[2 + 10 :]  # clean images, their starts, ten bisections
    rule = [Stepsizes(0.2, 0.05, factor) for _ in range(n)]
    best = states[1].best
    for step, rows in enumerate(asked, 1):
        assert len(rows) == (n if step % check_every else 2 * n)
        radius, theta = L2.norm(best - x), L2.steepest(best - x)
        fooled = model(rows).argmax(1) != y.repeat(len(rows) // n)
        epsilon, delta = (torch.tensor([getattr(one, name) for one in rule]).double() for name in ("epsilon", "delta"))
        torch.testing.assert_close(L2.norm(rows[:n] - x), (1 - epsilon) * radius)
        cosine = (L2.steepest(rows[:n] - x) * theta).flatten(1).sum(1)
        torch.testing.assert_close(cosine, (1 + delta.square()).rsqrt())
        if len(rows) > n:
            torch.testing.assert_close(L2.norm(rows[n:] - x), radius)
            torch.testing.assert_close(L2.steepest(rows[n:] - x), L2.steepest(rows[:n] - x))
            for one, around, inward in zip(rule, fooled[n:].tolist(), fooled[:n].tolist(), strict=True):
                one.note(around, inward)
        for points, hit in zip(rows.split(n), fooled.split(n), strict=True):
            nearer = hit & (L2.norm(points - x) < L2.norm(best - x))
            best = torch.where(per_image(nearer, x), points, best)
    assert torch.equal(best, states[-1].best)
    assert all(one.changes > 2 for one in rule)


# The walk


@settings(max_examples=15)
@given(st.sampled_from(SHAPES), seeds, st.sampled_from([Untargeted, Targeted]), st.sampled_from([None, 40, 120]))
def test_it_walks_among_what_fools_and_comes_nearer(
    shape: tuple[int, ...], seed: int, kind: type[Goal], budget: int | None
) -> None:
    model, x, goal = setting(shape, 3, seed, kind)
    before: Traced | None = None
    for state in Boundary(steps=60).iterates(Labels(model, budget), x, goal, start=started(model, x, goal)):
        assert torch.equal(state.success, goal.fooled(model(state.x).argmax(1)))
        assert torch.equal(state.x, state.best)
        assert torch.equal(state.x[~state.success], x[~state.success])
        assert state.x.min() >= 0
        assert state.x.max() <= 1
        torch.testing.assert_close(state.distance, L2.norm(state.best - x).where(state.success, torch.inf))
        if before is not None:
            assert (state.distance <= before.distance).all()
        before = state


def test_it_reaches_the_boundary_of_a_linear_model() -> None:
    model, x, eps = linear_yardstick(L2, (1, 3, 3))
    goal = Untargeted(torch.zeros(3, dtype=torch.long))
    attack = Boundary(spherical_step=0.1, source_step=0.1, check_every=3)
    states = list(attack.iterates(Labels(model, budget=1500), x, goal, start=started(model, x, goal)))
    assert (states[1].distance > 1.5 * eps).all()
    assert (states[-1].distance >= eps - 1e-9).all()
    assert (states[-1].distance < 1.02 * eps).all()


def test_it_comes_as_near_as_foolbox() -> None:
    shape, steps = (1, 5, 5), 300
    model, x = network(shape, dtype=torch.float32), images(30, shape, dtype=torch.float32)
    y = model(x).argmax(1)
    start = started(model, x, Untargeted(y))
    oracle = Labels(model)
    *_, last = Boundary(steps=steps, spherical_step=0.1, source_step=0.1).iterates(oracle, x, y, start=start)
    peer = foolbox.attacks.BoundaryAttack(steps=steps, spherical_step=0.1, source_step=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peer.run(foolbox.PyTorchModel(model.eval(), (0, 1)), x, y, starting_points=start)
    far, ours = L2.norm(start - x).mean(), last.distance.mean()
    assert ours < far / 3
    assert 0.8 < ours / L2.norm(theirs - x).mean() < 1.2


# Queries, starts and ends


@pytest.mark.parametrize("steps", [1, 9, 10, 25])
def test_a_proposal_costs_one_query_and_a_check_another(steps: int) -> None:
    model, x, _ = linear_yardstick(L2, (1, 3, 3))
    y, start = torch.zeros(3, dtype=torch.long), (x + model.weight.sign()).clamp(0, 1).detach()
    oracle = Labels(model)
    states = list(Boundary(steps=steps).iterates(oracle, x, y, start=start))
    assert oracle.queries.tolist() == states[-1].queries.tolist() == [1 + 1 + 10 + steps + steps // 10] * 3
    assert states[1].queries.tolist() == [12] * 3  # clean, start, bisection to a thousandth


def test_an_image_without_a_start_goes_out_and_others_go_on() -> None:
    weight = torch.tensor([1.0, 1.0]).double()
    model, x = Linear(weight, bias=-1.0), torch.tensor([[0.2, 0.3], [0.9, 0.8], [0.3, 0.1]]).double()
    goal, start = Targeted(torch.tensor([1, 1, 7])), torch.ones(3, 2).double()
    oracle = Labels(lambda rows: model(rows).argmax(1), budget=300)  # which does not tell that there is no label 7
    *_, last = Boundary(start_images=5).iterates(oracle, x, goal, start=start)
    assert last.queries.tolist() == [300, 1, 7]
    assert last.success.tolist() == [True, True, False]
    assert torch.equal(last.best[1:], x[1:])
    assert last.distance[0] < 0.5 / math.sqrt(2) + 0.05


def test_a_start_that_does_not_fool_is_replaced_by_noise() -> None:
    model, x, y = Linear(torch.ones(4).double(), bias=-2.0), torch.full((5, 4), 0.3).double(), torch.zeros(5).long()
    for start in None, x:
        *_, last = Boundary(steps=20).iterates(model, x, y, start=start)
        assert last.success.all()
    *_, last = Boundary(steps=20, start_images=0).iterates(model, x, y, start=x)
    assert not last.success.any()
    assert last.queries.tolist() == [2] * 5


def test_an_image_is_done_when_its_steps_are_too_small() -> None:
    def label(rows: Tensor) -> Tensor:
        return torch.where((rows == 1).all(1), 1, 2 * (rows[:, 2] > 0.6))  # nothing is nearer than a corner

    x, goal = torch.full((2, 3), 0.5).double(), Targeted(torch.tensor([1, 2]))
    start = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 0.9]]).double()
    attack = Boundary(steps=1000, check_every=1, least_step=1e-3)
    *_, last = attack.iterates(Labels(label), x, goal, start=start)
    assert torch.equal(last.best[0], start[0])
    assert last.distance[1] < 0.11
    # Six times smaller by 1.5 after every thirty failures, and once more after the first hundred.
    assert last.queries[0] < 2 + 10 + 2 * 30 * 7 < last.queries[1]


def test_calls_repeat_and_images_have_directions_of_their_own() -> None:
    shape = (1, 5, 5)
    model = network(shape)
    x = images(1, shape).repeat(3, 1, 1, 1)
    y, attack = model(x).argmax(1), Boundary(steps=30)
    first = attack(model, x, y)
    assert torch.equal(attack(model, x, y), first)
    assert not torch.equal(attack(model, x, y, generator=rng(1)), first)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    shape = (1, 5, 5)
    model, x = network(shape, dtype=dtype), images(6, shape, dtype=dtype)
    *_, last = Boundary(steps=150, check_every=1).iterates(model, x, model(x).argmax(1))
    assert (last.best.dtype, last.distance.dtype) == (dtype, dtype)
    assert last.success.any()
    assert not last.distance.isnan().any()


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((1, 5, 5), 3, 0, Untargeted)
    kept = [(state, state.x.clone(), state.distance.clone()) for state in Boundary(steps=60).iterates(model, x, goal)]
    assert len(kept) == 9
    for state, points, distance in kept:
        assert torch.equal(state.x, points)
        assert torch.equal(state.distance, distance)
    assert any(not torch.equal(a[1], b[1]) for a, b in pairwise(kept[2:]))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, None, True]),
        ("check_every", [0, 2.5, None]),
        ("start_images", [-1, 0.5]),
        ("step_adaptation", [0.9, math.inf, math.nan, "2"]),
        ("spherical_step", [0.0, 1.0, -0.1, math.nan, "0.1"]),
        ("source_step", [0, 1, math.inf, None]),
        ("least_step", [0.0, 1.0, math.nan]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            Boundary(**{field: value})


def test_defaults_are_foolboxs() -> None:
    ours, peer = Boundary(), foolbox.attacks.BoundaryAttack()
    for field, theirs in [
        ("steps", "steps"),
        ("spherical_step", "spherical_step"),
        ("source_step", "source_step"),
        ("step_adaptation", "step_adaptation"),
        ("check_every", "update_stats_every_k"),
        ("least_step", "source_step_convergance"),
    ]:
        assert getattr(ours, field) == getattr(peer, theirs), field
    assert repr(ours).startswith("Boundary(steps=25000, spherical_step=0.01, ")
    with pytest.raises(TypeError):
        Boundary(norm=L2)  # type: ignore[call-arg]
