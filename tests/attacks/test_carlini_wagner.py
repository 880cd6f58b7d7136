import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.attacks import CarliniWagner, DeepFool, Nearest
from advcourse.goals import Goal, Targeted, Untargeted, margin
from advcourse.threat import L2, per_image

from ..helpers import (
    Counted,
    Linear,
    convolutional,
    images,
    linear_yardstick,
    network,
    never_fooled,
    seeds,
    setting,
    shapes,
)

attacks = st.builds(
    CarliniWagner,
    steps=st.integers(1, 25),
    search_steps=st.integers(1, 4),
    step_size=st.sampled_from([0.01, 0.1, 0.5]),
    initial_c=st.sampled_from([1e-3, 0.1, 10.0]),
    confidence=st.sampled_from([0.0, 0.5]),
    abort_early=st.booleans(),
)
cases = given(attacks, shapes, st.sampled_from([2, 3, 5]), seeds, st.sampled_from([Untargeted, Targeted]))


def last_of(attack: CarliniWagner | DeepFool, model: Any, x: Tensor, goal: Any) -> Nearest:
    *_, last = attack.iterates(model, x, goal)
    assert isinstance(last, Nearest)
    return last


# What every minimum-norm attack promises


@cases
def test_iterates_keep_every_promise(
    attack: CarliniWagner, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    clean = goal.fooled(model(x).argmax(1))
    nearest = torch.where(clean, 0, torch.inf).double()
    best, ever, search = x, clean, 0
    for k, state in enumerate(attack.iterates(model, x, goal)):
        assert state.step == k
        assert state.search in (search, search + 1)
        search = state.search
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
        logits = model(state.x)
        found = goal.fooled(logits.argmax(1)) & (margin(logits, goal) >= attack.confidence) & ~clean & (k > 0)
        distance = L2.norm(state.x - x)
        closer = found & (distance < nearest)
        nearest, best = torch.where(closer, distance, nearest), torch.where(per_image(closer, x), state.x, best)
        ever = ever | found
        assert torch.equal(state.success, ever)
        assert torch.equal(state.best, best)
        torch.testing.assert_close(state.distance, nearest)
        torch.testing.assert_close(state.distance[ever], L2.norm(state.best - x)[ever])
        assert torch.equal(state.distance.isfinite(), state.success)
        # Who is fooled from the start is done, and who is not found comes back clean.
        assert torch.equal(state.x[clean], x[clean])
        assert torch.equal(state.best[~state.success], x[~state.success])
    assert torch.equal(attack(model, x, goal), state.best)
    assert torch.equal(goal.fooled(model(state.best).argmax(1)), state.success)
    margins = margin(model(state.best), goal)[state.success & ~clean]
    assert (margins >= attack.confidence - 1e-12).all()


@settings(max_examples=20)
@cases
def test_images_do_not_meet(
    attack: CarliniWagner, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    whole = last_of(attack, model, x, goal)
    chunked = last_of(replace(attack, batch_size=4), model, x, goal)
    torch.testing.assert_close(chunked.best, whole.best, atol=1e-6, rtol=0)
    for i in range(6):
        one = torch.tensor([i])
        alone = last_of(attack, model, x[one], goal[one])
        torch.testing.assert_close(alone.best, whole.best[one], atol=1e-6, rtol=0)
        assert torch.equal(alone.success, whole.success[one])


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((3, 4), 3, 2, Untargeted)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in CarliniWagner(10, 3, 0.1, 1.0).iterates(model, x, goal)
    ]
    assert kept[-1][0].success.any()
    for state, copies in kept:
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        pytest.param(torch.float16),
        pytest.param(torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = network(shape, 4, dtype=dtype), images(5, shape, dtype=dtype)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # fooled from the start
    state = last_of(CarliniWagner(20, 3, 0.1, 1.0), model, x, y)
    for field in "best", "x", "distance", "loss":
        assert getattr(state, field).dtype == dtype, field
    assert state.success[1:].any()
    length = L2.norm(state.best.double() - x.double()).where(state.success, torch.inf)
    torch.testing.assert_close(state.distance, length.to(dtype))
    assert torch.equal(model(state.best).argmax(1) != y, state.success)


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 1000])
def test_any_number_of_classes(classes: int) -> None:
    model, x = network((6,), classes), images(3, (6,))
    y = model(x).argmax(1)
    for goal in Untargeted(y), Targeted((y + 1) % classes):
        state = last_of(CarliniWagner(30, 2, 0.1, 10.0), model, x, goal)
        assert torch.equal(goal.fooled(model(state.best).argmax(1)), state.success)


def test_images_already_fooled_are_done_at_distance_0_for_one_pass_whatever_their_margin() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = CarliniWagner(10, confidence=1000.0).iterates(counted, x, y + 1)
    assert state.step == 0
    assert state.success.all()
    assert state.distance.tolist() == [0.0] * 4
    assert torch.equal(state.best, x)
    assert (counted.forwards, counted.backwards) == ([4], [4])
    counted = Counted(model)
    state = last_of(CarliniWagner(3, 2, abort_early=False), counted, x, torch.tensor([0, 1, 0, 1]))
    assert state.distance.tolist() == [math.inf, 0.0, math.inf, 0.0]
    assert counted.forwards == [4] + [2] * 6


def test_failed_images_come_back_clean_and_not_black() -> None:
    model, x, y = never_fooled()
    state = last_of(CarliniWagner(10, 2), model, x, y)
    assert torch.equal(state.best, x)
    assert not torch.equal(state.x, x)
    assert not state.success.any()
    assert state.distance.tolist() == [math.inf] * 4


# Which passes are made, and what for


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("searches", [1, 3])
def test_passes_without_early_abort(steps: int, searches: int) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    states = list(CarliniWagner(steps, searches, abort_early=False).iterates(counted, x, y))
    assert counted.forwards == [4] * (1 + steps * searches)
    assert counted.backwards == [4] * (1 + (steps - 1) * searches)
    assert [state.search for state in states] == [0] + [k for k in range(searches) for _ in range(steps)]
    assert [state.step for state in states] == list(range(1 + steps * searches))


class Plateau(nn.Module):
    """A margin of -1 that does not change where the first feature is below 0.5, and rises with it beyond."""

    def forward(self, x: Tensor) -> Tensor:
        lead = (x[:, 0] - 0.5).clamp_min(0) * 4 - 1
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_an_image_leaves_a_search_that_does_not_pay_by_itself_and_comes_back_for_the_next() -> None:
    x, y = torch.tensor([[0.2, 0.3], [0.6, 0.3], [0.2, 0.3]]).double(), torch.zeros(3, dtype=torch.long)
    counted = Counted(Plateau())
    attack = CarliniWagner(20, 3, 0.05, initial_c=5.0)  # it looks after every second step
    states = list(attack.iterates(counted, x, y))
    assert counted.forwards[:6] == [3, 3, 3, 1, 1, 1]
    searches = [[s for s in states[1:] if s.search == k] for k in range(3)]
    first = 1
    for search in searches:
        assert counted.forwards[first : first + 3] == [3, 3, 1]
        first += len(search)
    assert states[-1].success.tolist() == [False, True, False]
    alone = last_of(attack, Plateau(), x[1:2], y[1:2])
    assert torch.equal(alone.best, states[-1].best[1:2])
    whole = last_of(replace(attack, abort_early=False), Plateau(), x, y)
    assert whole.distance[1] <= states[-1].distance[1]
    patient = Counted(Plateau())
    last_of(replace(attack, abort_early=False), patient, x, y)
    assert set(patient.forwards) == {3}


def test_a_search_that_pays_goes_on() -> None:
    # From 0.02 above the plateau's edge: the objective falls by more than 0.01 % a look all the way to the face.
    x, y = torch.tensor([[0.6, 0.3]]).double(), torch.zeros(1, dtype=torch.long)
    counted = Counted(Plateau())
    last_of(CarliniWagner(10, 1, 0.005, initial_c=50.0), counted, x, y)
    assert len(counted.forwards) == 11
    # Each look compares with the last one, not with the beginning: at the face there is nothing more to gain.
    counted = Counted(Plateau())
    assert last_of(CarliniWagner(200, 1, 0.02, initial_c=50.0), counted, x, y).success.all()
    assert 40 < len(counted.forwards) < 200


# The searches


def trace(attack: CarliniWagner, model: nn.Module, x: Tensor, goal: Goal) -> tuple[list[list[float]], list[list[bool]]]:
    """The weight c of every search, read off the objective at its first step, and whether the search succeeded."""
    weights, hits = [[] for _ in x], [[False] * attack.search_steps for _ in x]
    for state in attack.iterates(model, x, goal):
        if state.step == 0:
            continue
        logits = model(state.x)
        short = (attack.confidence - margin(logits, goal)).clamp_min(0)
        if (state.step - 1) % attack.steps == 0:
            c = (-state.loss - L2.norm(state.x - x).square()) / short
            for image, weight in enumerate(c.tolist()):
                weights[image].append(weight)
        found = goal.fooled(logits.argmax(1)) & (short == 0)
        for image, hit in enumerate(found.tolist()):
            hits[image][state.search] |= hit
    return weights, hits


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_c_is_bisected_between_the_largest_that_failed_and_the_smallest_that_succeeded(confidence: float) -> None:
    model = Linear(torch.tensor([2.0, -1.0, 0.5]).double(), -0.5)
    x = torch.tensor([[0.3, 0.6, 0.5], [0.2, 0.6, 0.5], [0.1, 0.9, 0.1], [0.35, 0.7, 0.5]]).double()
    goal = Untargeted(torch.zeros(4, dtype=torch.long))
    for initial in 1e-3, 0.3, 20.0:
        attack = CarliniWagner(60, 8, 0.05, initial, confidence, abort_early=False)
        weights, hits = trace(attack, model, x, goal)
        assert any(any(row) for row in hits)
        assert not all(all(row) for row in hits)
        for weight, hit in zip(weights, hits, strict=True):
            low, high, c = 0.0, math.inf, initial
            for w, h in zip(weight, hit, strict=True):
                assert w == pytest.approx(c, rel=1e-6)
                low, high = (low, min(high, c)) if h else (max(low, c), high)
                c = (low + high) / 2 if high < math.inf else 10 * c


def test_every_search_begins_anew_at_the_clean_image() -> None:
    # Adam's first step is as long as the step size, whatever c and whatever happened before; the later ones remember.
    model, x = network((3, 4), 3, 0), 0.3 + 0.4 * images(6, (3, 4))
    goal = Untargeted(model(x).argmax(1))
    attack = CarliniWagner(5, 4, 0.05, 1e-3, confidence=100.0, abort_early=False)  # every search fails
    states = list(attack.iterates(model, x, goal))
    assert not states[-1].success.any()
    assert (states[1].x != x).flatten(1).any(1).all()
    for search in range(1, 4):
        alone = list(replace(attack, search_steps=1, initial_c=1e-3 * 10**search).iterates(model, x, goal))
        for step in range(1, 6):
            torch.testing.assert_close(states[5 * search + step].x, alone[step].x, atol=1e-9, rtol=0)


def test_adam_is_torch_s() -> None:
    model, x, y = convolutional()
    x, c, kappa, size = x.double(), 3.0, 0.2, 0.03
    model = model.double()
    w = ((2 * x - 1) * 0.999999).atanh().requires_grad_()
    adam = torch.optim.Adam([w], lr=size)
    states = list(CarliniWagner(30, 1, size, c, kappa, abort_early=False).iterates(model, x, y))[1:]
    for state in states:
        image = (w.tanh() + 1) / 2
        hinge = (kappa - margin(model(image), Untargeted(y))).clamp_min(0)
        objective = (image - x).flatten(1).square().sum(1) + c * hinge
        adam.zero_grad()
        objective.sum().backward()
        adam.step()
        torch.testing.assert_close(state.x, ((w.tanh() + 1) / 2).detach(), atol=1e-5, rtol=0)


# The closed form on linear models: the distance to the hyperplane, or to the margin of kappa


@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7), (1, 28, 28)])
@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_the_distance_is_that_to_the_hyperplane(shape: tuple[int, ...], kappa: float) -> None:
    model, x, _ = linear_yardstick(L2, shape)
    length = model.weight.norm().item()
    y = torch.zeros(len(x), dtype=torch.long)
    for goal in Untargeted(y), Targeted(y + 1):
        lead = -margin(model(x), goal)
        attack = CarliniWagner(150, 7, 0.01, initial_c=0.2 / length, confidence=kappa * length)
        state = last_of(attack, model, x, goal)
        assert state.success.all()
        optimum = (lead + kappa * length) / length
        assert (state.distance >= optimum * (1 - 1e-9)).all()
        assert (state.distance <= optimum * 1.02).all()


def test_a_boundary_nearer_than_a_step_is_stepped_over() -> None:
    model, x, _ = linear_yardstick(L2, (4, 6))
    y, length = torch.zeros(len(x), dtype=torch.long), model.weight.norm().item()
    model = Linear(model.weight, bias=-0.01 * length)  # at a distance of 0.01
    distances = []
    for step_size in 0.01, 0.001:
        state = last_of(CarliniWagner(300, 7, step_size), model, x, y)
        assert state.success.all()
        distances.append(state.distance)
    assert (distances[0] > 0.0102).all()
    assert (distances[1] >= 0.01 * (1 - 1e-9)).all()
    assert (distances[1] <= 0.0102).all()


def test_the_face_of_the_box_is_reckoned_with() -> None:
    # The heaviest feature cannot rise: the nearest adversarial example moves the others alone.
    model = Linear(torch.tensor([5.0, 0.6, -0.8]).double(), -5.2)
    x = torch.tensor([[1.0, 0.5, 0.5]]).double()
    state = last_of(CarliniWagner(200, 8, 0.01, 0.1), model, x, torch.tensor([0]))
    assert state.distance.item() == pytest.approx(0.3, rel=0.02)


def test_pixels_that_are_exactly_0_or_1_can_move() -> None:
    model = Linear(torch.tensor([1.0, -1.0, 1.0, -1.0]).double(), -0.5)
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).double()
    state = last_of(CarliniWagner(400, 6, 0.1, 1.0), model, x, torch.tensor([0]))
    assert state.success.all()
    assert state.distance.item() == pytest.approx(2.5 / 2, rel=0.05)
    x = x.float()
    state = last_of(CarliniWagner(400, 3, 0.1, 10.0), model.float(), x, torch.tensor([0]))
    assert state.success.all()
    assert state.x.min() >= 0
    assert state.x.max() <= 1


def test_a_larger_confidence_is_a_larger_distance() -> None:
    model, x, y = convolutional()
    goal, distances = Untargeted(y), []
    for kappa in 0.0, 0.5, 1.0:
        state = last_of(CarliniWagner(80, 5, 0.02, 1.0, kappa), model, x, goal)
        assert state.success.all()
        assert (margin(model(state.best), goal) >= kappa).all()
        distances.append(state.distance)
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()


@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_a_constant_added_to_all_logits_changes_nothing(shift: float) -> None:
    model, x, y = convolutional()
    model, x = model.double(), x.double()
    attack = CarliniWagner(30, 3, 0.02, 1.0)
    torch.testing.assert_close(attack(lambda z: model(z) + shift, x, y), attack(model, x, y), atol=1e-6, rtol=0)


def test_it_comes_nearer_than_deepfool() -> None:
    model, x, y = convolutional()
    nearest = last_of(CarliniWagner(100, 6, 0.02, 1.0), model, x, y)
    near = last_of(DeepFool(), model, x, y)
    assert nearest.success.all()
    assert near.success.all()
    assert (nearest.distance <= near.distance * 1.02).all()


# What is refused


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("search_steps", [0, 2.0, None]),
        ("step_size", [-0.1, math.nan, math.inf, "0.1", None]),
        ("initial_c", [-1.0, math.nan, math.inf, None]),
        ("confidence", [-0.1, math.nan, math.inf, None]),
        ("batch_size", [0, None]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            CarliniWagner(**{field: value})


def test_defaults_are_the_authors() -> None:
    attack = CarliniWagner()
    assert (attack.steps, attack.search_steps, attack.step_size) == (10_000, 9, 0.01)
    assert (attack.initial_c, attack.confidence, attack.abort_early) == (1e-3, 0.0, True)
