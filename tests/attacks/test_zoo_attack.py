import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.ascent import ZeroGradient
from advcourse.attacks import CarliniWagner, Queried
from advcourse.attacks.zoo import ZOO, Adam, Modifier, Newton, importance, uniform
from advcourse.goals import Targeted, Untargeted, margin
from advcourse.oracles import Labels, Scores
from advcourse.threat import L2

from ..helpers import (
    Counted,
    Linear,
    convolutional,
    images,
    linear_yardstick,
    network,
    never_fooled,
    rng,
    seeds,
    shapes,
)
from ..helpers import setting as any_setting

updates = st.sampled_from([Adam(), Adam(0.5, 0.9), Newton(), Newton(1.0)])
attacks = st.builds(
    ZOO,
    steps=st.integers(1, 8),
    coordinates=st.sampled_from([1, 3, 128]),
    h=st.sampled_from([1e-3, 0.1]),
    step_size=st.sampled_from([0.05, 0.5]),
    initial_c=st.sampled_from([0.1, 10.0]),
    search_steps=st.integers(1, 3),
    confidence=st.sampled_from([0.0, 0.5]),
    update=updates,
    sampling=st.sampled_from([uniform, importance]),
)
budgets = st.sampled_from([None, 0, 1, 2, 7, 8, 50])
quiet = pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")


def last_of(attack: ZOO, oracle: Any, x: Tensor, goal: Any, seed: int = 0) -> Queried:
    *_, last = attack.iterates(oracle, x, goal, generator=rng(seed))
    return last


class Witness(nn.Module):
    """A model that keeps the lowest and the highest feature it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.range = model, [math.inf, -math.inf]

    def forward(self, x: Tensor) -> Tensor:
        self.range = [min(self.range[0], x.min().item()), max(self.range[1], x.max().item())]
        return self.model(x)


# What every attack promises


@quiet
@given(attacks, shapes, st.sampled_from([2, 3, 10]), budgets, st.sampled_from([Untargeted, Targeted]), seeds)
def test_iterates_keep_every_promise(
    attack: ZOO, shape: tuple[int, ...], classes: int, budget: int | None, kind: Any, seed: int
) -> None:
    model, x, goal = any_setting(shape, classes, seed, kind)
    clean = goal.fooled(model(x).argmax(1))
    witness = Witness(model)
    oracle = Scores(witness, budget)
    ever, nearest = torch.zeros(6, dtype=torch.bool), torch.full((6,), math.inf, dtype=x.dtype)
    queries = torch.zeros(6, dtype=torch.long)
    for k, state in enumerate(attack.iterates(oracle, x, goal)):
        assert state.step == k <= attack.steps * attack.search_steps
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
        assert torch.equal(state.x[clean], x[clean])
        scores = model(state.x)
        assert k > 0 or torch.equal(state.x, x)
        counts = (margin(scores, goal) >= attack.confidence) | (k == 0)
        found = goal.fooled(scores.argmax(1)) & (counts | clean) if budget != 0 else ever
        distance = L2.norm(state.x - x)
        ever, nearest = ever | found, nearest.minimum(distance.where(found, math.inf))
        assert torch.equal(state.success, ever)
        torch.testing.assert_close(state.distance, nearest)
        assert torch.equal(state.best[~ever], x[~ever])
        assert goal.fooled(model(state.best).argmax(1))[ever].all()
        assert (state.queries >= queries).all()
        queries = state.queries
        if budget is not None:
            assert (queries <= budget).all()
    assert torch.equal(queries[clean], torch.full_like(queries[clean], 1 if budget != 0 else 0))
    assert torch.equal(state.distance == 0, clean & (budget != 0))
    assert budget == 0 or (witness.range[0] >= 0 and witness.range[1] <= 1)
    assert torch.equal(attack(Scores(model, budget), x, goal), state.best)


@quiet
@settings(max_examples=15)
@given(attacks, shapes, seeds)
def test_batch_size_changes_nothing(attack: ZOO, shape: tuple[int, ...], seed: int) -> None:
    model, x, goal = any_setting(shape, 3, seed, Untargeted)
    whole = last_of(attack, Scores(model, 60), x, goal)
    chunked = last_of(attack, Scores(model, 60, batch_size=3), x, goal)
    torch.testing.assert_close(chunked.best, whole.best, atol=1e-6, rtol=0)
    assert torch.equal(chunked.queries, whole.queries)


def test_the_generator_decides() -> None:
    model, x, y = convolutional()
    attack = ZOO(steps=30, coordinates=8, step_size=0.1, initial_c=10.0)
    one, again, other = (last_of(attack, Scores(model), x, y, seed) for seed in (0, 0, 1))
    assert torch.equal(one.best, again.best)
    assert torch.equal(one.queries, again.queries)
    assert not torch.equal(one.best, other.best)
    before = torch.get_rng_state()
    assert torch.equal(attack(Scores(model), x, y), one.best)
    assert torch.equal(torch.get_rng_state(), before)


@quiet
def test_states_are_never_written_again() -> None:
    model, x, goal = any_setting((3, 4), 3, 2, Untargeted)
    attack = ZOO(steps=6, coordinates=3, step_size=0.3, initial_c=10.0, search_steps=2)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in attack.iterates(Scores(model, 60), x, goal)
    ]
    assert len(kept) > 6
    for state, copies in kept:
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    model, x = network((2, 3, 4), 4, dtype=dtype), images(5, (2, 3, 4), dtype=dtype)
    y = model(x).argmax(1)
    state = last_of(ZOO(steps=30, h=0.05, step_size=0.05, initial_c=10.0), Scores(model), x, y)
    assert state.best.dtype == state.x.dtype == dtype
    assert state.success.any()
    assert torch.equal(model(state.best).argmax(1) != y, state.success)


def test_images_already_fooled_cost_one_query() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = ZOO().iterates(Scores(counted), x, y + 1)
    assert counted.forwards == [4]
    assert state.queries.tolist() == [1] * 4
    assert state.distance.tolist() == [0.0] * 4
    assert torch.equal(state.best, x)


def test_failed_images_come_back_clean() -> None:
    model, x, y = never_fooled()
    state = last_of(ZOO(steps=5, step_size=0.1, initial_c=10.0), Scores(model), x, y)
    assert torch.equal(state.best, x)
    assert not torch.equal(state.x, x)
    assert state.distance.tolist() == [math.inf] * 4
    assert not state.success.any()


# What it costs


@quiet
@pytest.mark.parametrize("coordinates", [1, 4, 5, 128])
@pytest.mark.parametrize(("steps", "search_steps"), [(1, 1), (4, 1), (3, 2)])
def test_queries_of_images_that_resist(coordinates: int, steps: int, search_steps: int) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    attack = ZOO(steps=steps, coordinates=coordinates, search_steps=search_steps)
    state = last_of(attack, Scores(counted, batch_size=10_000), x, y)
    n = min(coordinates, 5)
    assert counted.forwards == [4] + [8 * n, 4] * (steps * search_steps)
    assert state.queries.tolist() == [1 + steps * search_steps * (2 * n + 1)] * 4


@pytest.mark.parametrize(
    ("budget", "spent", "steps"), [(0, 0, 0), (1, 1, 0), (7, 1, 0), (8, 8, 1), (14, 8, 1), (15, 15, 2), (20, 15, 2)]
)
def test_a_step_is_paid_in_full_or_not_taken(budget: int, spent: int, steps: int) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    states = list(ZOO(coordinates=3).iterates(Scores(counted, budget), x, y))
    assert sum(counted.forwards) == 4 * spent
    assert states[-1].queries.tolist() == [spent] * 4
    assert len(states) == steps + 1
    assert torch.equal(states[-1].best, x)


def test_nothing_is_asked_about_what_is_found() -> None:
    model, x, y = convolutional()
    counted, n, found = Counted(model), 8, torch.zeros(8, dtype=torch.bool)
    before = torch.ones(8, dtype=torch.long)
    nearer = 0
    states = ZOO(steps=60, coordinates=n, step_size=0.1, initial_c=30.0).iterates(Scores(counted), x, y)
    previous = next(states)
    for state in states:
        assert torch.equal(state.queries - before, torch.where(found, 1, 2 * n + 1))
        nearer += int((L2.norm(state.x - x) < L2.norm(previous.x - x))[found].sum())
        found, before, previous = model(state.x).argmax(1) != y, state.queries, state
    assert nearer > 20
    assert sum(counted.forwards) == before.sum()


# How near it comes


@pytest.mark.parametrize(
    "attack",
    [
        ZOO(steps=200, coordinates=128, step_size=0.004, initial_c=1.0),
        ZOO(steps=400, coordinates=12, step_size=0.004, initial_c=1.0),
        ZOO(steps=100, coordinates=128, step_size=0.02, initial_c=1.0, update=Newton()),
        ZOO(steps=120, step_size=0.004, initial_c=0.01, search_steps=3),
    ],
    ids=["adam", "few coordinates", "newton", "search"],
)
@pytest.mark.parametrize("shape", [(24,), (2, 3, 4)])
def test_the_distance_is_that_to_the_hyperplane(attack: ZOO, shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(L2, shape)
    state = last_of(attack, Scores(model), x, torch.zeros(3, dtype=torch.long))
    assert state.success.all()
    assert (state.distance >= eps * (1 - 1e-9)).all()
    assert (state.distance <= 1.05 * eps).all(), state.distance


def test_it_nears_carlini_and_wagner_on_a_curved_model() -> None:
    model, x, y = convolutional()
    *_, exact = CarliniWagner(200, search_steps=4, step_size=0.05, initial_c=1.0).iterates(model, x, y)
    state = last_of(ZOO(steps=200, step_size=0.01, initial_c=2.0), Scores(model), x, y)
    assert state.success.all()
    assert (state.distance.median() / exact.distance.median()) < 1.15


def test_a_search_that_fails_raises_c_tenfold_and_one_that_succeeds_halves_it() -> None:
    weight = torch.tensor([1.0, 0.0]).double()
    x, y = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0])
    attack = ZOO(steps=1, step_size=1.0, initial_c=0.01, search_steps=4, update=Newton())
    # One Newton step goes c/2 along the weight: the border is at 0.04, so c = 0.01 fails, 0.1, 0.055 fails, 0.0775.
    moved = [
        (state.x - x)[0, 0].item() for state in attack.iterates(Scores(Linear(weight, -0.54)), x, y, generator=rng())
    ]
    assert moved == pytest.approx([0.0, 0.005, 0.05, 0.0275, 0.03875], abs=1e-6)


def test_confidence_is_a_margin() -> None:
    model, x, y = convolutional()
    attack = ZOO(steps=100, step_size=0.01, initial_c=2.0)
    plain, sure = (last_of(replace(attack, confidence=kappa), Scores(model), x, y) for kappa in (0.0, 0.5))
    assert sure.success.all()
    assert (margin(model(sure.best), Untargeted(y)) >= 0.5 - 1e-5).all()
    assert (sure.distance > plain.distance).all()


# Its parts


def test_adam_is_that_of_torch_for_each_coordinate() -> None:
    parameter = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    theirs, memory = torch.optim.Adam([parameter], lr=0.1), torch.zeros(3, 2, 5).double()
    ours = torch.zeros(2, 5).double()
    for k in range(6):
        parameter.grad = torch.randn(2, 5, generator=rng(k), dtype=torch.float64)
        theirs.step()
        step, memory = Adam()(parameter.grad, parameter.grad, memory)
        ours -= 0.1 * step
        torch.testing.assert_close(ours, parameter.detach())
    # A coordinate that waited takes the same first step as it would have taken at once.
    late = memory.clone()
    late[:, 0, 0] = 0
    step, _ = Adam()(torch.full((2, 5), 0.3).double(), parameter.grad, late)
    assert step[0, 0].item() == pytest.approx(1.0)


def test_newton_solves_a_separable_quadratic_in_one_step() -> None:
    bend = torch.tensor([[0.5, 2.0, 7.0]]).double()
    place, optimum = torch.tensor([[0.3, 0.9, 0.1]]).double(), torch.tensor([[0.7, 0.2, 0.4]]).double()
    step, memory = Newton()(bend * (place - optimum), bend, torch.zeros(0, 1, 3))
    torch.testing.assert_close(place - step, optimum)
    assert memory.shape == (0, 1, 3)


def test_newton_lands_where_the_objective_of_a_quadratic_margin_is_least() -> None:
    bend, place = torch.tensor([0.5, 2.0, 6.0]).double(), torch.tensor([0.9, 0.2, 0.4]).double()
    x, c = torch.tensor([[0.4, 0.5, 0.6]]).double(), 0.7

    def probabilities(rows: Tensor) -> Tensor:
        lead = -1 - (bend * (rows - place) ** 2).sum(1)
        return torch.stack([torch.zeros_like(lead), lead], 1).softmax(1)

    attack = ZOO(steps=1, h=0.01, step_size=1.0, initial_c=c, update=Newton())
    state = last_of(attack, Scores(probabilities), x, torch.tensor([0]))
    torch.testing.assert_close(state.x, x + c * bend * (place - x) / (1 + c * bend), atol=1e-8, rtol=0)


def test_newton_does_not_believe_small_or_negative_curvature() -> None:
    step, _ = Newton()(torch.ones(1, 4), torch.tensor([[-5.0, 0.0, 0.01, 0.2]]), torch.zeros(0, 1, 4))
    torch.testing.assert_close(step, torch.tensor([[1.0, 1.0, 10.0, 5.0]]))


def test_importance_prefers_the_region_that_moved() -> None:
    modifier = torch.zeros(2, 2, 28, 28)
    modifier[0, 1, 9, 13] = -0.3
    weights = importance(modifier)
    assert (weights[0, 1, 8:12, 12:16] == weights[0].max()).all()
    assert (weights == weights[0].max()).sum() == 16
    assert (weights > 0).all()
    assert (weights[1] == weights[1, 0, 0, 0]).all()
    drawn = torch.cat([weights[:1].flatten(1).multinomial(20, generator=rng(k)) for k in range(50)])
    inside = torch.zeros(2, 28, 28, dtype=torch.bool)
    inside[1, 8:12, 12:16] = True
    share = inside.flatten()[drawn].double().mean().item()
    assert share > 4 * 16 / modifier[0].numel()


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_importance_without_neighbours_is_the_change_itself(shape: tuple[int, ...]) -> None:
    modifier = images(3, shape) - 0.5
    weights = importance(modifier)
    spread = modifier.abs().flatten(1).amax(1)
    torch.testing.assert_close(weights, modifier.abs() + 0.1 * spread.view(-1, *[1] * len(shape)).expand_as(modifier))


def test_every_coordinate_is_drawn_where_there_are_enough() -> None:
    model, x, y = never_fooled()
    asked: list[Tensor] = []

    def keeping(points: Tensor) -> Tensor:
        asked.append(points)
        return model(points).softmax(1)

    last_of(ZOO(steps=1, coordinates=5, h=0.25), Scores(keeping), x[:1] * 0 + 0.5, y[:1])
    changed = (asked[1] - 0.5).detach()
    assert sorted(changed.nonzero()[:, 1].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert changed.abs().sum(1).tolist() == [0.25] * 10


def test_a_coarse_modifier_is_spread_linearly_and_without_offset() -> None:
    m = Modifier(images(3, (2, 8, 8)), Adam())
    m.regrid(4)
    assert m.values.shape == (3, 2, 4, 4)
    assert m.memory.shape == (3, 3, 32)
    assert torch.equal(m.images(torch.arange(3)), m.clean)
    ones = torch.ones_like(m.values)
    torch.testing.assert_close(m.spread(0.3 * ones), torch.full_like(m.clean, 0.3))
    every = torch.arange(32).expand(3, -1)
    v = m.directions(every)
    values = torch.randn(m.values.shape, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("rn,rn...->r...", values.flatten(1), v), m.spread(values))
    assert (v.flatten(2) != 0).sum(2).min() >= 4


def test_a_modifier_of_pixels_does_not_leave_the_box() -> None:
    m = Modifier(torch.tensor([[0.25, 1.0], [0.5, 0.0]]), Adam())
    m.move(torch.tensor([1]), torch.tensor([[1, 0]]), torch.tensor([[-0.5, 0.75]]))
    assert m.values.tolist() == [[0.0, 0.0], [0.5, 0.0]]
    m.move(torch.tensor([0, 1]), torch.tensor([[1], [0]]), torch.tensor([[-0.5], [-0.25]]))
    assert m.values.tolist() == [[0.0, -0.5], [0.25, 0.0]]


@pytest.mark.parametrize("grid", [None, 4])
def test_the_length_has_the_slope_and_the_curvature_that_are_said(grid: int | None) -> None:
    m = Modifier(images(2, (1, 8, 8)), Newton())
    if grid:
        m.regrid(grid)
    m.values = torch.randn(m.values.shape, generator=rng(), dtype=torch.float64)
    v = m.directions(torch.tensor([[0, 7], [3, 9]]))
    slope, curvature = m.length(torch.arange(2), v)
    for n in range(2):
        at = [(m.spread(m.values) + t * v[:, n]).square().flatten(1).sum(1) for t in (-1, 0, 1)]
        torch.testing.assert_close(slope[:, n], (at[2] - at[0]) / 2)
        torch.testing.assert_close(curvature[:, n], at[2] - 2 * at[1] + at[0])


@quiet
@pytest.mark.parametrize("update", [Adam(), Newton()])
def test_coarse_grids_grow_and_stay_in_the_box(update: Any) -> None:
    model, x, y = convolutional()
    x = (2 * x - 0.5).clamp(0, 1)
    y = model(x).argmax(1)
    witness = Witness(model)
    attack = ZOO(steps=6, step_size=0.5, initial_c=10.0, scales=(2, 5, 8), update=update, h=0.1)
    before, costs = torch.ones(8, dtype=torch.long), []
    for state in attack.iterates(Scores(witness), x, y):
        costs.append(int((state.queries - before).max()))
        before = state.queries
    assert costs[0] == 0
    assert set(costs[1:3]) <= {9, 1}
    assert set(costs[3:5]) <= {51, 1}
    assert set(costs[5:]) <= {129, 1}
    assert witness.range[0] >= 0
    assert witness.range[1] <= 1
    assert state.success.any()


# Targets with no slope


def test_a_constant_model_is_reported_once() -> None:
    model = Linear(torch.zeros(4).double(), 0.0)  # a tie, which argmax gives to the label
    with pytest.warns(ZeroGradient, match="finite differences are exactly zero for 2 of 2 images.*h of ZOO") as caught:
        state = last_of(ZOO(steps=4, search_steps=3), Scores(model), images(2, (4,)), torch.zeros(2, dtype=torch.long))
    assert len([w for w in caught if w.category is ZeroGradient]) == 1
    assert not state.success.any()
    for image in state.x, state.best, state.loss:
        assert not image.isnan().any()


@pytest.fixture(scope="module")
def tree() -> Any:
    trees = pytest.importorskip("sklearn.tree")
    x = torch.rand(400, 4, generator=rng(), dtype=torch.float64)
    noisy = x[:, 0] + 0.5 * x[:, 1] + 0.05 * torch.randn(400, generator=rng(1), dtype=torch.float64)
    return trees.DecisionTreeClassifier(min_samples_leaf=8, random_state=0).fit(x.numpy(), (noisy > 0.75).numpy())


def test_a_small_h_sees_no_slope_on_a_tree(tree: Any) -> None:
    x = images(10, (4,), seed=3)
    y = torch.from_numpy(tree.predict(x.numpy())).long()
    with pytest.warns(ZeroGradient, match="h of ZOO"):
        state = last_of(ZOO(steps=20, h=1e-6), Scores(tree), x, y)
    assert state.success.sum() <= 2


@quiet
def test_a_large_h_finds_the_steps_of_a_tree(tree: Any) -> None:
    x = 0.2 + 0.6 * torch.rand(20, 4, generator=rng(3), dtype=torch.float64)
    y = torch.from_numpy(tree.predict(x.numpy())).long()
    state = last_of(ZOO(steps=100, h=0.2, step_size=0.02, initial_c=1.0), Scores(tree), x, y)
    assert state.success.double().mean() > 0.5
    fooled = torch.from_numpy(tree.predict(state.best.numpy())).long() != y
    assert torch.equal(fooled, state.success)


# What is refused


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_grids_are_for_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales are sides of grids"):
        ZOO(scales=(2,))(Scores(network(shape)), images(2, shape), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="scales are sides of grids"):
        ZOO(scales=(2, 5))(Scores(network((1, 4, 6))), images(2, (1, 4, 6)), torch.zeros(2, dtype=torch.long))


def test_it_needs_scores() -> None:
    model, x, y = never_fooled()
    with pytest.raises(ValueError, match=r"ZOO needs Scores"):
        ZOO()(Labels(model), x, y)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("coordinates", [0, 1.0, None]),
        ("search_steps", [0, None]),
        ("h", [0, -1e-3, math.nan, None]),
        ("step_size", [0.0, -0.1, math.inf]),
        ("initial_c", [0, -1.0, None]),
        ("confidence", [-0.1, math.nan]),
        ("update", ["adam", Adam, None]),
        ("sampling", ["uniform", None]),
        ("scales", [(0,), (14, 7.0), (-1, 2)]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            ZOO(**{field: value})


@pytest.mark.parametrize("build", [lambda: Adam(beta1=1.0), lambda: Adam(beta2=-0.1), lambda: Newton(math.nan)])
def test_updates_are_checked(build: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .*got "):
        build()


def test_paper_is_the_authors_mnist() -> None:
    attack = ZOO.paper()
    assert (attack.steps, attack.coordinates, attack.h, attack.step_size) == (3000, 128, 1e-4, 0.01)
    assert (attack.initial_c, attack.search_steps, attack.confidence) == (0.5, 1, 0.0)
    assert (attack.update, attack.sampling) == (Adam(0.9, 0.999), uniform)
