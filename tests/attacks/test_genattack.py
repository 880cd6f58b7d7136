import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from advcourse.ascent import ZeroGradient
from advcourse.attacks import NES, Queried
from advcourse.attacks.genattack import GenAttack, odds
from advcourse.goals import Goal, Targeted, Toward, Untargeted, margin
from advcourse.oracles import Labels, Scores
from advcourse.threat import L1, L2, Linf

from ..helpers import Counted, images, network, never_fooled, rng, seeds, setting, shapes

attacks = st.builds(
    GenAttack,
    ball=st.sampled_from([Linf(0.0), Linf(0.02), Linf(0.3)]),
    steps=st.integers(1, 6),
    population=st.integers(2, 5),
    mutation_rate=st.sampled_from([0.005, 0.3, 1.0]),
    mutation_range=st.sampled_from([0.2, 1.0, 3.0]),
    temperature=st.sampled_from([1e-300, 0.1, 10.0]),
    plateau=st.integers(1, 3),
    decay=st.sampled_from([0.0, 0.5, 1.0]),
    loss=st.sampled_from([None, margin, odds]),
)


class Recorded(nn.Module):
    """A model that keeps what it was asked."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return self.model(x)


def run(attack: GenAttack, oracle: Any, x: Tensor, goal: Any, seed: int = 0) -> list[Queried]:
    return list(attack.iterates(oracle, x, goal, generator=rng(seed)))


# The states


@given(attacks, shapes, st.sampled_from([2, 3, 10]), st.sampled_from([Untargeted, Targeted]), seeds)
def test_iterates_keep_every_promise(
    attack: GenAttack, shape: tuple[int, ...], classes: int, kind: type[Goal], seed: int
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    loss = attack.loss or (margin if kind is Untargeted else odds)
    clean = goal.fooled(model(x).argmax(1))
    before: Queried | None = None
    for k, state in enumerate(run(attack, Scores(model), x, goal, seed)):
        assert state.step == k <= attack.steps
        assert ((state.x - x).abs() <= attack.ball.eps + 1e-12).all()
        assert state.x.min() >= 0
        assert state.x.max() <= 1
        torch.testing.assert_close(state.loss, loss(model(state.x), goal))
        assert torch.equal(state.success, goal.fooled(model(state.x).argmax(1)))
        if before is None:
            assert torch.equal(state.x, x)
            assert torch.equal(state.success, clean)
        else:
            done = before.success
            assert torch.equal(state.x, state.best)
            assert (state.success | (state.loss >= before.best_loss)).all()
            torch.testing.assert_close(state.best_loss[~done], state.loss[~done])
            for field in "x", "best", "loss", "success", "best_loss", "distance", "queries":
                assert torch.equal(getattr(state, field)[done], getattr(before, field)[done]), field
        torch.testing.assert_close(state.distance, Linf.norm(state.best - x).where(state.success, torch.inf))
        before = state
    assert torch.equal(state.best[clean], x[clean])
    assert torch.equal(attack(Scores(model), x, goal, generator=rng(seed)), state.best)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((3, 4), 3, 2, Targeted)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in GenAttack(Linf(0.1), steps=12).iterates(model, x, goal)
    ]
    assert len(kept) == 13
    for state, copies in kept:
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "resize"), [((7,), None), ((2, 6, 5), None), ((2, 6, 5), 3)])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shape: tuple[int, ...], resize: int | None) -> None:
    model, x = network(shape, 4, dtype=dtype), images(5, shape, dtype=dtype)
    y = model(x).argmax(1)
    for goal in Untargeted(y), Targeted((y + 1) % 4):
        *_, state = run(GenAttack(Linf(0.3), steps=40, resize=resize), model, x, goal)
        for field in "best", "x", "distance", "loss":
            assert getattr(state, field).dtype == dtype, field
        assert state.best.shape == x.shape
        assert state.success.any()
        assert torch.equal(goal.fooled(model(state.best).argmax(1)), state.success)


# What is asked, and what it costs


@pytest.mark.parametrize(("shape", "resize"), [((7,), None), ((2, 3, 4), None), ((2, 3, 4), 2), ((2, 3, 4), 9)])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.6])
def test_every_member_is_in_the_ball_and_the_box(shape: tuple[int, ...], resize: int | None, eps: float) -> None:
    model, x, y = never_fooled(shape)
    recorded, n = Recorded(model), len(x)
    attack = GenAttack(Linf(eps), steps=30, population=4, mutation_rate=1.0, mutation_range=2.0, resize=resize)
    run(attack, recorded, x, y)
    assert [len(asked) for asked in recorded.asked] == [n, 4 * n] + 29 * [3 * n]
    for asked in recorded.asked:
        delta = asked.view(n, -1, *shape) - x[:, None]
        assert asked.min() >= 0
        assert asked.max() <= 1
        assert delta.abs().max() <= eps + 1e-12
    assert eps == 0 or delta.abs().max() > 0.9 * eps


def test_the_first_generation_is_uniform_in_the_ball() -> None:
    model, x = Recorded(lambda z: torch.stack([z[:, 0] * 0 + 9, z[:, 0]], 1)), torch.full((1, 20_000), 0.5).double()
    run(GenAttack(Linf(0.1), steps=1, population=3), model, x, torch.tensor([0]))
    delta = model.asked[1] - x
    assert delta.mean().abs() < 0.002
    assert abs(delta.std().item() - 0.2 / math.sqrt(12)) < 0.001
    assert torch.corrcoef(delta).triu(1).abs().max() < 0.03


@pytest.mark.parametrize("population", [2, 3, 6])
@pytest.mark.parametrize("generations", [1, 2, 5])
def test_queries_of_so_many_generations(population: int, generations: int) -> None:
    model, x, y = never_fooled()
    counted, oracle = Counted(model), Scores(model)
    oracle.target = counted
    attack = GenAttack(Linf(0.1), generations, population)
    states = run(attack, oracle, x, y)
    costs = [1] + [1 + population + k * (population - 1) for k in range(generations)]
    assert [state.queries.tolist() for state in states] == [[cost] * 4 for cost in costs]
    assert sum(counted.forwards) == 4 * costs[-1]


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 25, 26])
def test_the_budget_is_hard_and_pays_for_whole_generations(budget: int) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    states = run(GenAttack(Linf(0.1), population=4), oracle := Scores(counted, budget), x, y)
    generations = 0 if budget < 5 else 1 + (budget - 5) // 3
    price = min(budget, 1) if generations == 0 else 5 + 3 * (generations - 1)
    assert len(states) == 1 + generations
    assert oracle.queries.tolist() == [price] * 4
    assert sum(counted.forwards) == 4 * price
    assert not states[-1].success.any()
    assert torch.equal(states[-1].best, x) == (generations == 0)


def test_images_pay_for_themselves_alone_and_stop_when_fooled() -> None:
    # A member is fooled when its first feature exceeds that of the clean image by 0.05: half of them or so.
    x = torch.tensor([[0.2, 0.0], [0.4, 0.2], [0.6, 0.4], [0.8, 0.6]]).double()
    lead = torch.tensor([0.05, 0.0999, 0.2, -0.1]).double()

    def model(rows: Tensor) -> Tensor:
        nearest = torch.cdist(rows, x).argmin(1)
        climbed = rows[:, 0] - x[nearest, 0] - lead[nearest]
        return torch.stack([torch.zeros_like(climbed), climbed], 1)

    counted = Counted(model)
    states = run(GenAttack(Linf(0.1)), oracle := Scores(counted, budget=200), x, torch.zeros(4, dtype=torch.long))
    assert states[-1].success.tolist() == [True, True, False, True]
    assert oracle.queries[0] == 7
    assert 7 <= oracle.queries[1] < 200
    assert oracle.queries[2] == 197
    assert oracle.queries[3] == 1
    assert sum(counted.forwards) == oracle.queries.sum()
    assert torch.equal(states[-1].best[3], x[3])


def test_images_already_fooled_cost_one_query_each() -> None:
    model, x, y = never_fooled()
    (state,) = run(GenAttack(Linf(0.1)), oracle := Scores(model, budget=50), x, y + 1)
    assert state.success.all()
    assert torch.equal(state.best, x)
    assert oracle.queries.tolist() == [1] * 4


# The genetics


def generations(attack: GenAttack, value: Callable[[Tensor], Tensor], features: int = 1000) -> list[Tensor]:
    """The noises (population, features) of each generation, its elite first, that are bred for a value of theirs."""
    x = torch.full((1, features), 0.5).double()
    recorded = Recorded(lambda rows: torch.stack([torch.full((len(rows),), 50.0).double(), value(rows - x)], 1))
    states = run(attack, recorded, x, torch.tensor([0]))
    elites = [state.best - x for state in states[:-1]]
    newcomers = [asked - x for asked in recorded.asked[1:]]
    return [newcomers[0], *(torch.cat([elite, new]) for elite, new in zip(elites[1:], newcomers[1:], strict=True))]


def mean(noise: Tensor) -> Tensor:
    return noise.mean(1)


def test_children_without_mutation_are_made_of_their_parents() -> None:
    still = GenAttack(Linf(0.1), 12, 4, mutation_rate=0.0, least_mutation_rate=0.0, temperature=1.0)
    first, *later = generations(still, mean)
    seen = set()
    for members in later:
        assert (members[:, None] - first).abs().amin(1).max() < 1e-12
        seen |= set((members[:, None] - first).abs().argmin(1).flatten().tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_crossover_is_in_the_ratio_of_the_chances(gap: float) -> None:
    # Two members whose losses differ by `gap`: a child mixes them, or copies one that was drawn twice.
    attack = GenAttack(Linf(0.1), 2, 2, mutation_rate=0.0, least_mutation_rate=0.0, temperature=1.0)
    share = 1 / (1 + math.exp(-gap))
    mixed = copies = 0
    for seed in range(60):
        x = torch.full((1, 4000), 0.5).double()
        recorded = Recorded(lambda rows: torch.stack([rows[:, 0] * 0 + 50, torch.arange(len(rows)).double() * gap], 1))
        run(attack, recorded, x, torch.tensor([0]), seed)
        _, high = recorded.asked[1]
        of_high = ((recorded.asked[2][0] - high).abs() < 1e-12).double().mean().item()
        assert min(abs(of_high - share), of_high, 1 - of_high) < 0.04
        mixed, copies = mixed + (0 < of_high < 1), copies + (of_high == 1)
    # Parents are drawn with the same chances: they differ with probability 2 * share * (1 - share).
    assert abs(mixed / 60 - 2 * share * (1 - share)) < 0.2
    assert abs(copies / 60 - share**2) < 0.2


@pytest.mark.parametrize(("rate", "reach"), [(0.05, 0.2), (0.3, 0.5), (1.0, 1.0)])
def test_mutation_rate_and_range(rate: float, reach: float) -> None:
    # Cold selection: both parents are the elite, and a child differs from it by its mutations alone.
    attack = GenAttack(Linf(0.1), 2, 3, rate, reach, temperature=1e-9, least_mutation_range=0.0)
    _, members = generations(attack, mean, features=20_000)
    elite = members[0]
    for child in members[1:]:
        changed = (child - elite).abs() > 1e-12
        inside = elite.abs() < 0.1 * (1 - reach) + 0.001
        assert abs(changed[inside].double().mean().item() - rate) < 0.02
        assert abs((child - elite)[inside & changed].std().item() - reach * 0.1 / math.sqrt(3)) < 0.005
        assert (child - elite).abs().max() <= reach * 0.1 + 1e-12


def test_rate_and_range_fall_at_plateaus_and_no_further_than_their_least() -> None:
    # A loss that never rises: every generation from the second is on a plateau, every third ends one.
    attack = GenAttack(
        Linf(0.1), 24, 2, 0.8, 0.4, plateau=3, decay=0.5, least_mutation_rate=0.1, least_mutation_range=0.1
    )
    history = generations(attack, lambda noise: noise.sum(1) * 0, features=20_000)
    for k, members in enumerate(history[1:]):
        worn = 0.5 ** (k // 3)
        # The elite is the first of equals; whether the child comes of it, of the other or of both, is not known.
        parents = history[k]
        change = (members[1] - parents).abs().amin(0)
        inside = parents.abs().amax(0) < 0.0999  # a mutation outward from the surface is undone
        assert change.max() <= max(0.1, 0.4 * worn) * 0.1 + 1e-12, k
        assert abs((change[inside] > 1e-12).double().mean().item() - max(0.1, 0.8 * worn)) < 0.02, k


def test_progress_keeps_rate_and_range() -> None:
    attack = GenAttack(Linf(0.1), 30, 2, 0.8, 0.4, plateau=1, decay=0.0, least_mutation_rate=0.0, temperature=1e-9)
    clock = iter(range(1000))
    history = generations(attack, lambda noise: noise.sum(1) * 0 + next(clock), features=2000)
    for parents, members in itertools.pairwise(history):
        change = (members[1] - parents).abs().amin(0)
        inside = parents.abs().amax(0) < 0.0999
        assert abs((change[inside] > 1e-12).double().mean().item() - 0.8) < 0.05


def test_resized_noise_is_enlarged_bilinearly() -> None:
    model, x, y = never_fooled((3, 8, 8))
    x = 0.3 + 0.4 * x
    recorded = Recorded(model)
    run(GenAttack(Linf(0.1), 4, resize=2), recorded, x, y)
    for asked in recorded.asked[1:]:
        delta = asked.view(4, -1, 3, 8, 8) - x[:, None]
        corners = delta[..., ::7, ::7]
        # Half-pixel centres: beyond the outer ones the noise is constant, between them linear.
        torch.testing.assert_close(delta[..., :2, :2], corners[..., :1, :1].expand(-1, -1, -1, 2, 2))
        torch.testing.assert_close(
            delta.diff(n=2, dim=-1)[..., 2:4], torch.zeros(1).double().expand(*delta.shape[:-1], 2)
        )
    one = GenAttack(Linf(0.1), 4, resize=8)
    assert torch.allclose(one(model, x, y), replace(one, resize=None)(model, x, y), atol=1e-12)


# What it is good for


class Stairs(nn.Module):
    """A network that sees its input rounded to tenths: piecewise constant."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 10).round() / 10)


def labels(target: Any, x: Tensor) -> Tensor:
    oracle = Labels(target)
    oracle.begin(len(x))
    return oracle(x, torch.arange(len(x)))


def assert_only_the_genes_climb(target: Any, x: Tensor, y: Tensor) -> None:
    with pytest.warns(ZeroGradient):
        nes = NES(Linf(0.15))(Scores(target, budget=600), x, y)
    assert torch.equal(labels(target, nes), y)
    *_, last = run(GenAttack(Linf(0.15)), Scores(target, budget=600), x, y)
    assert last.success.double().mean() > 0.5
    assert torch.equal(labels(target, last.best) != y, last.success)


def test_it_fools_a_staircase_where_finite_differences_vanish() -> None:
    model = Stairs(network((12,), 3))
    x = (images(40, (12,)) * 10).round() / 10  # the middle of a stair
    y = model(x).argmax(1)
    assert_only_the_genes_climb(model, x, y)


def test_it_fools_a_decision_tree_where_finite_differences_vanish() -> None:
    x = torch.rand(600, 5, generator=rng(), dtype=torch.float64)
    classifier = DecisionTreeClassifier(min_samples_leaf=10, random_state=0).fit(x, (x.sum(1) > 2.5).long())
    y = labels(classifier, x)
    assert_only_the_genes_climb(classifier, x[:40], y[:40])


@pytest.mark.parametrize("goal", [Untargeted(torch.zeros(3).long()), Targeted(torch.ones(3).long())])
@pytest.mark.parametrize("scores", [[0.0, 0.0], [0.0, -300.0], [0.0, -math.inf]])
def test_a_constant_model_ends_without_nan(goal: Goal, scores: list[float]) -> None:
    model = Counted(lambda rows: torch.tensor(scores).expand(len(rows), 2))
    states = run(GenAttack(Linf(0.1), population=3), oracle := Scores(model, 40), images(3, (4,)).float(), goal)
    assert oracle.queries.tolist() == [40] * 3
    assert not states[-1].success.any()
    for state in states:
        assert state.x.isfinite().all()
        assert state.loss.isfinite().all()
    assert len(states) == 1 + 1 + (40 - 4) // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_gaps_of_the_loss_are_safe(dtype: torch.dtype) -> None:
    def steep(logits: Tensor, goal: Goal) -> Tensor:
        return margin(logits, goal) * 1e35

    model, x, goal = setting((5,), 3, 0, Targeted)
    attack = GenAttack(Linf(0.3), 50, temperature=1e-7, loss=steep)
    *_, state = run(attack, model.to(dtype), x.to(dtype), goal)
    assert state.loss.isfinite().all()
    assert state.best.isfinite().all()
    assert state.success.any()


def test_a_fooled_member_beats_one_of_higher_loss() -> None:
    # p = (.49, .51, 0) has higher odds of class 0 than p = (.4, .3, .3), which is class 0.
    x = torch.full((1, 1), 0.5).double()

    def target(rows: Tensor) -> Tensor:
        low, high = torch.tensor([[0.49, 0.509, 0.001], [0.4, 0.3, 0.3]]).double()
        return torch.where(rows > 0.55, high, low)

    goal = Targeted(torch.tensor([0]))
    assert odds(target(x).log(), goal) > odds(target(x + 0.1).log(), goal)
    *_, last = run(GenAttack(Linf(0.1)), Scores(target, 100), x, goal)
    assert last.success.all()
    assert last.best.item() > 0.55


@pytest.mark.parametrize("kind", [Untargeted, Targeted])
@pytest.mark.parametrize(("resize", "least"), [(None, 0.9), (3, 0.6)])
def test_it_fools_most_of_what_can_be_fooled(kind: type[Goal], resize: int | None, least: float) -> None:
    model, x = network((2, 6, 6), 3), images(20, (2, 6, 6))
    logits = model(x)
    goal = kind(logits.argmax(1) if kind is Untargeted else logits.argmin(1))
    *_, last = run(GenAttack(Linf(0.3), resize=resize), Scores(model, 1500), x, goal)
    assert last.success.double().mean() >= least
    assert (last.queries[last.success] < 1500).all()


# Repetition and independence


def test_the_generator_decides() -> None:
    model, x, goal = setting((5,), 3, 1, Targeted)
    attack = GenAttack(Linf(0.05), 10)
    state = torch.get_rng_state()
    assert torch.equal(attack(model, x, goal), attack(model, x, goal))
    assert torch.equal(attack(model, x, goal), attack(model, x, goal, generator=rng(0)))
    assert not torch.equal(attack(model, x, goal), attack(model, x, goal, generator=rng(1)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_of_the_oracle_changes_nothing(batch_size: int) -> None:
    model, x, goal = setting((3, 4), 3, 1, Targeted)
    attack = GenAttack(Linf(0.1), 20)
    *_, whole = run(attack, Scores(model, batch_size=1000), x, goal)
    *_, parts = run(attack, Scores(model, batch_size=batch_size), x, goal)
    torch.testing.assert_close(parts.best, whole.best)
    assert torch.equal(parts.queries, whole.queries)


# The loss


@given(st.integers(2, 10), seeds, st.floats(-50, 50))
def test_odds(classes: int, seed: int, shift: float) -> None:
    logits = 5 * torch.randn(7, classes, generator=rng(seed), dtype=torch.float64)
    labels = torch.randint(classes, (7,), generator=rng(seed))
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    for goal, expected in (Targeted(labels), (p / (1 - p)).log()), (Untargeted(labels), ((1 - p) / p).log()):
        torch.testing.assert_close(odds(logits, goal), expected)
        torch.testing.assert_close(odds(logits + shift, goal), expected)
        gap = goal.sign * (margin(logits, goal) - odds(logits, goal))
        assert (gap >= -1e-9).all()
        assert (gap <= math.log(classes - 1) + 1e-9).all()
    source = (labels + 1) % classes
    toward = Toward(labels, source)
    torch.testing.assert_close(odds(logits, toward), margin(logits, toward))


def test_odds_do_not_overflow_where_probabilities_do() -> None:
    goal = Targeted(torch.tensor([0]))
    assert odds(torch.tensor([[3.0, 1.0, 0.0]]), goal).item() == pytest.approx(1.6867, abs=1e-4)
    assert odds(torch.tensor([[900.0, 0.0, -900.0]]), goal).item() == 900
    assert odds(torch.tensor([[0.0, 900.0, -math.inf]]), goal).item() == -900


# What is refused


@pytest.mark.parametrize("ball", [L2(1.0), L1(1.0), 0.1, None])
def test_it_needs_the_box(ball: Any) -> None:
    with pytest.raises(ValueError, match=r"^ball must be Linf\(eps\), got "):
        GenAttack(ball)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("population", [1, 0, 2.5, None]),
        ("mutation_rate", [-0.1, 1.1, math.nan, None]),
        ("mutation_range", [-0.1, math.inf, None]),
        ("temperature", [0.0, -1.0, math.nan, None]),
        ("plateau", [0, 1.5, None]),
        ("decay", [-0.1, 1.1, math.nan, None]),
        ("least_mutation_rate", [-0.1, 0.6, None]),
        ("least_mutation_range", [-0.1, 0.5, None]),
        ("resize", [0, 1.5, "7", True]),
        ("loss", ["margin", 3]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{field}.* must be .*got "):
            GenAttack(Linf(0.1), **{field: value})


def test_only_images_are_resized() -> None:
    with pytest.raises(ValueError, match=r"resize needs images \(N, C, H, W\), got shape \(4, 5\)"):
        GenAttack(Linf(0.1), resize=3)(*never_fooled())


def test_labels_are_not_enough() -> None:
    model, x, y = never_fooled()
    with pytest.raises(ValueError, match="GenAttack needs Scores"):
        GenAttack(Linf(0.1))(Labels(model), x, y)


def test_defaults_are_the_authors() -> None:
    attack = GenAttack(Linf(0.1))
    assert (attack.population, attack.mutation_rate, attack.mutation_range, attack.temperature) == (6, 0.5, 0.4, 0.1)
    assert (attack.plateau, attack.decay, attack.least_mutation_rate, attack.least_mutation_range) == (
        100,
        0.9,
        0.005,
        0.2,
    )
