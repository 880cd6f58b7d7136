"""What every attack on an oracle promises, whatever it does with the answers. To add one, add a line to ATTACKS."""

import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from advcourse.ascent import ZeroGradient
from advcourse.attacks import NES, ZOO, Bandits, GenAttack, Queried, QueryAttack, Square
from advcourse.attacks.query import BudgetTooSmall
from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.oracles import Labels, Scores
from advcourse.threat import L1, L2, Linf

from ..helpers import Counted, Linear, Metered, images, network, never_fooled, rng, seeds, setting

ATTACKS: list[Any] = [
    NES(Linf(0.1), steps=6, directions=3, sigma=1e-2, step_size=0.03),
    NES(L1(1.0), steps=4, directions=5, step_size=0.3),
    Bandits(Linf(0.1), steps=12, step_size=0.03),
    Bandits(L2(0.4), steps=12, step_size=0.1),
    Square(Linf(0.1), steps=30),
    Square(L2(0.4), steps=30),
    GenAttack(Linf(0.1), steps=8, population=4, plateau=2),
    ZOO(steps=8, coordinates=4, step_size=0.02, search_steps=2),
]
OF_DIFFERENCES = [attack for attack in ATTACKS if isinstance(attack, NES | Bandits | ZOO)]
OF_IMAGES_ALONE = [attack for attack in ATTACKS if isinstance(attack, Square) and isinstance(attack.ball, L2)]
SHAPE = (1, 5, 5)


def name(attack: Any) -> str:
    return f"{type(attack).__name__} {type(attack.ball).__name__}" if hasattr(attack, "ball") else type(attack).__name__


def of(attacks: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", attacks, ids=name)


each = of(ATTACKS)
pytestmark = pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
MODEL, X, GOAL = setting(SHAPE, 3, 0, Untargeted)
Y = MODEL(X).argmax(1)  # none is fooled


def last_of(attack: QueryAttack, target: Any, x: Tensor = X, goal: Any = GOAL, **options: Any) -> Queried:
    *_, last = attack.iterates(target, x, goal, **options)
    return last


def fooled(model: nn.Module, goal: Goal, x: Tensor) -> Tensor:
    return goal.fooled(model(x).argmax(1))


def endless(attack: Any) -> Any:
    """The same without an end of its own."""
    return replace(attack, steps=10**9)


# What it costs


@each
@pytest.mark.parametrize("batch_size", [3, 128])
@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_the_ledger_is_what_the_target_saw(attack: QueryAttack, kind: type[Goal], batch_size: int) -> None:
    model, x, goal = setting(SHAPE, 3, 1, kind)
    metered = Metered(model, x)
    oracle = Scores(metered, batch_size=batch_size)
    for state in attack.iterates(oracle, x, goal):
        assert torch.equal(state.queries, metered.asked)
        assert torch.equal(state.queries, oracle.queries)
    assert (state.queries > 1).any()


@each
@pytest.mark.parametrize("budget", [*range(2, 20), 33, 61])
def test_not_one_query_too_many(attack: QueryAttack, budget: int) -> None:
    metered = Metered(MODEL, X, limit=budget)
    state = last_of(attack, Scores(metered, budget))
    assert torch.equal(state.queries, metered.asked)
    assert (state.queries >= 1).all()


@each
def test_more_budget_changes_nothing_about_the_first_questions(attack: QueryAttack) -> None:
    # Square's schedule depends on the budget, and so may what others do with it; the clean image comes first for all.
    for budget in 1, 7, None:
        first = next(iter(attack.iterates(Scores(MODEL, budget), X, GOAL)))
        assert torch.equal(first.x, X)
        assert torch.equal(first.success, fooled(MODEL, GOAL, X))


@each
def test_images_already_fooled_cost_one_query_and_come_back(attack: QueryAttack) -> None:
    counted = Counted(MODEL)
    (state,) = attack.iterates(counted, X, (Y + 1) % 3)
    assert torch.equal(state.best, X)
    assert (state.step, state.distance.tolist(), state.queries.tolist()) == (0, [0.0] * 6, [1] * 6)
    assert state.success.all()
    assert counted.forwards == [6]
    # Among others, to whom they make no difference in cost.
    y = torch.where(torch.arange(6) % 2 == 0, Y, (Y + 1) % 3)
    state = last_of(attack, MODEL, X, y)
    assert torch.equal(state.best[1::2], X[1::2])
    assert state.distance[1::2].tolist() == [0.0] * 3
    assert state.queries[1::2].tolist() == [1] * 3
    assert (state.queries[::2] > 1).all()


@each
def test_without_a_budget_nothing_is_known(attack: QueryAttack) -> None:
    counted = Counted(MODEL)
    for labels in Y, (Y + 1) % 3:
        oracle = Scores(counted, 0)
        (state,) = attack.iterates(oracle, X, labels)
        assert torch.equal(state.best, X)
        assert torch.equal(state.x, X)
        assert (state.step, state.success.any().item(), state.queries.tolist()) == (0, False, [0] * 6)
        assert state.distance.tolist() == [math.inf] * 6
        assert torch.equal(attack(oracle, X, labels), X)
    assert counted.forwards == []


@each
def test_one_query_judges_the_clean_image(attack: QueryAttack) -> None:
    oracle = Scores(MODEL, 1)
    (state,) = attack.iterates(oracle, X, GOAL)
    clean = fooled(MODEL, GOAL, X)
    assert clean.any()
    assert not clean.all()
    assert torch.equal(state.success, clean)
    assert torch.equal(state.best, X)
    assert torch.equal(state.distance, torch.where(clean, 0.0, math.inf).double())
    assert state.queries.tolist() == oracle.queries.tolist() == [1] * 6


@each
@pytest.mark.parametrize("constant", [False, True])
def test_what_cannot_be_fooled_ends_with_the_budget(attack: QueryAttack, constant: bool) -> None:
    model, x, y = never_fooled(SHAPE)
    if constant:
        model = Linear(torch.zeros(SHAPE).double(), -1.0)
    oracle = Scores(model, 100)
    states = list(endless(attack).iterates(oracle, x, y))
    state = states[-1]
    assert (oracle.remaining < 60).all()
    assert not state.success.any()
    assert state.distance.tolist() == [math.inf] * 4
    for each_state in states:
        for image in each_state.x, each_state.best, each_state.loss:
            assert image.isfinite().all()
    if hasattr(attack, "ball"):
        if not constant:
            assert (state.best != x).flatten(1).any(1).all()  # never silently the clean image
            assert state.best_loss.isfinite().all()
    else:
        assert torch.equal(state.best, x)


@each
def test_without_a_limit_it_ends_by_itself(attack: QueryAttack) -> None:
    model, x, y = never_fooled(SHAPE)
    oracle = Scores(model)
    state = last_of(attack, oracle, x, y)
    assert (oracle.queries < 400).all()
    assert not state.success.any()


@each
def test_an_oracle_starts_a_new_ledger_with_each_attack(attack: QueryAttack) -> None:
    oracle = Scores(MODEL, 50)
    first = last_of(attack, oracle)
    again = last_of(attack, oracle)
    assert torch.equal(first.queries, again.queries)
    assert torch.equal(first.best, again.best)
    few = last_of(attack, oracle, X[:2], Y[:2])
    assert few.queries.shape == oracle.queries.shape == (2,)
    assert first.queries.shape == (6,)  # and the old one stays with those who hold it


# What is seen on the way


@each
@settings(max_examples=10)
@given(seeds, st.sampled_from([2, 3, 5]), st.sampled_from([Untargeted, Targeted]), st.sampled_from([None, 9, 40]))
def test_states_keep_every_promise(attack: Any, seed: int, classes: int, kind: type[Goal], budget: int | None) -> None:
    model, x, goal = setting(SHAPE, classes, seed, kind)
    norm = attack.ball.norm if hasattr(attack, "ball") else L2.norm
    before, kept = None, []
    for k, state in enumerate(attack.iterates(Scores(model, budget), x, goal)):
        assert type(state) is Queried
        assert state.step == k
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.min() >= 0
            assert image.max() <= 1
            if hasattr(attack, "ball"):
                assert (norm(image - x) <= attack.ball.eps + 1e-9).all()
        for value in state.loss, state.best_loss, state.success, state.distance, state.queries:
            assert value.shape == (6,)
        assert torch.equal(state.success, fooled(model, goal, state.best))
        assert torch.equal(state.distance, norm(state.best - x).where(state.success, torch.inf))
        if before is None:
            assert torch.equal(state.x, x)
            assert (state.queries[state.success] == 1).all()
            assert (state.queries >= 1).all()
        else:
            assert (state.queries >= before.queries).all()
            assert (state.queries > before.queries).any()
            assert (state.success | ~before.success).all()
            if hasattr(attack, "ball"):  # the closest is no aim: who is fooled is done
                done = before.success
                for field in "x", "best", "loss", "queries":
                    assert torch.equal(getattr(state, field)[done], getattr(before, field)[done]), field
            else:
                assert (state.distance <= before.distance).all()
        kept.append((dict(vars(state)), _copies(state)))
        before = state
    for tensors, copies in kept:
        for field, copy in copies.items():
            assert torch.equal(tensors[field], copy), field  # never written again
    assert torch.equal(attack(Scores(model, budget), x, goal), state.best)


def _copies(state: Queried) -> dict[str, Tensor]:
    return {field: value.clone() for field, value in vars(state).items() if isinstance(value, Tensor)}


@each
def test_it_fools_what_it_can(attack: Any) -> None:
    weight = torch.ones(SHAPE).double()
    weight[..., ::2] = -1
    x = 0.4 + 0.2 * images(4, SHAPE)
    model = Linear(weight, bias=0.0)
    lead = (x * weight).flatten(1).sum(1).view(-1, 1, 1, 1)
    x = x - (lead + 0.02) * weight / weight.numel()
    for goal in Untargeted(torch.zeros(4).long()), Targeted(torch.ones(4).long()):
        assert not fooled(model, goal, x).any()
        state = last_of(attack, model, x, goal)
        assert state.success.all()
        assert fooled(model, goal, state.best).all()


@each
def test_success_and_failure_both_occur_where_they_are_tested(attack: QueryAttack) -> None:
    found = [last_of(attack, *setting(SHAPE, 3, seed, Untargeted)).success for seed in range(8)]
    clean = [fooled(m, g, x) for m, x, g in (setting(SHAPE, 3, seed, Untargeted) for seed in range(8))]
    won = torch.cat(found) & ~torch.cat(clean)
    assert won.any()
    assert not torch.cat(found).all()


# Targets of every kind


@each
def test_a_bare_target_is_asked_without_a_budget(attack: QueryAttack) -> None:
    expected = last_of(attack, Scores(MODEL))
    for target in MODEL, lambda rows: MODEL(rows).softmax(1):
        state = last_of(attack, target)
        torch.testing.assert_close(state.best, expected.best, atol=1e-7, rtol=0)
        assert torch.equal(state.queries, expected.queries)


@each
def test_labels_alone_are_refused(attack: QueryAttack) -> None:
    for oracle in Labels(MODEL), Labels(MODEL, 0):
        with pytest.raises(ValueError, match=r"needs Scores\(target"):
            attack.iterates(oracle, X, GOAL)  # at once
    with pytest.raises(ValueError, match="Labels"):
        attack(lambda rows: torch.zeros(len(rows), dtype=torch.long), X, GOAL)
    with pytest.raises(ValueError, match="target must be"):
        attack(3, X, GOAL)  # type: ignore[arg-type]


@each
def test_a_label_that_is_no_class_is_refused(attack: QueryAttack) -> None:
    with pytest.raises(ValueError, match=r"0\.\.2 .*got 3"):
        attack(MODEL, X, Y.clamp_min(3))


@each
def test_unusable_input_is_refused_at_once(attack: QueryAttack) -> None:
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


def tree(shape: tuple[int, ...] = SHAPE) -> tuple[DecisionTreeClassifier, Tensor, Tensor]:
    x = images(40, shape, dtype=torch.float32)
    y = (x.flatten(1)[:, :3].sum(1) > 1.5).long()
    target = DecisionTreeClassifier(max_depth=4, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    y = torch.from_numpy(target.predict(x.flatten(1).numpy()))
    return target, x, y


@of(OF_DIFFERENCES)
def test_a_tree_has_no_slope_and_the_attack_says_what_to_change(attack: QueryAttack) -> None:
    target, x, y = tree()
    word = {NES: "sigma of NES", Bandits: "eta of Bandits", ZOO: "h of ZOO"}[type(attack)]
    with pytest.warns(
        ZeroGradient, match=rf"differences are exactly zero for \d+ of 40 images.*tree.*{word}"
    ) as caught:
        state = last_of(attack, Scores(target, 200), x, y)
    assert sum(warning.category is ZeroGradient for warning in caught) == 1
    assert state.x.isfinite().all()


@of([attack for attack in ATTACKS if attack not in OF_DIFFERENCES])
def test_who_needs_no_slope_attacks_trees_in_silence(attack: Any) -> None:
    target, x, y = tree()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = last_of(replace(attack, ball=type(attack.ball)(4 * attack.ball.eps)), Scores(target, 200), x, y)
    assert state.success.any()
    predicted = torch.from_numpy(target.predict(state.best.flatten(1).numpy()))
    assert torch.equal(predicted != y, state.success)


@of([attack for attack in ATTACKS if attack not in OF_IMAGES_ALONE])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4), (2, 3, 4, 2)])
def test_input_need_not_be_images(attack: QueryAttack, shape: tuple[int, ...]) -> None:
    model, x, goal = setting(shape, 3, 2, Untargeted)
    counted = Counted(model)
    oracle = Scores(counted, 40)
    state = last_of(attack, oracle, x, goal)
    assert state.best.shape == x.shape
    assert torch.equal(state.success, fooled(model, goal, state.best))
    assert sum(counted.forwards) == oracle.queries.sum()


@of(OF_IMAGES_ALONE)
def test_or_it_is_said_that_it_need(attack: QueryAttack) -> None:
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\)"):
        attack(network((7,)), images(2, (7,)), torch.tensor([0, 1]))


# Targets that break


class Breaking(nn.Module):
    """A model that counts its rows, and does something else from a certain call on."""

    def __init__(self, at: int, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.metered, self.left, self.how = Metered(MODEL, X), at, how

    def forward(self, rows: Tensor) -> Any:
        logits = self.metered(rows)
        self.left -= 1
        return logits if self.left > 0 else self.how(logits)


class Outage(Exception):
    pass


def outage(logits: Tensor) -> Tensor:
    raise Outage("the line is dead")


@each
@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (lambda z: z * math.nan, ValueError, "NaN"),
        (lambda z: z.masked_fill(z == z.max(), math.inf), ValueError, "infinity"),
        (lambda z: z[:, 0], ValueError, "shape|Labels"),
        (lambda z: z[:, :1], ValueError, "K >= 2"),
        (lambda z: z[:-1], ValueError, "shape"),
        (outage, Outage, "the line is dead"),
    ],
    ids=["NaN", "infinity", "labels", "one class", "a row too few", "exception"],
)
def test_a_target_that_breaks_leaves_the_ledger_right(
    attack: QueryAttack, at: int, how: Callable[[Tensor], Any], error: type[Exception], words: str
) -> None:
    model = Breaking(at, how)
    oracle = Scores(model, 60, batch_size=8)
    with pytest.raises(error, match=words):
        attack(oracle, X, Y)
    assert torch.equal(oracle.queries, model.metered.asked)
    assert oracle.queries.sum() > 0


@each
def test_an_oracle_is_fit_for_another_attack_once_the_line_is_back(attack: QueryAttack) -> None:
    model = Breaking(4, outage)
    oracle = Scores(model, 60)
    with pytest.raises(Outage):
        attack(oracle, X, Y)
    model.left = 10**9
    assert torch.equal(attack(oracle, X, Y), attack(Scores(MODEL, 60), X, Y))


# What an attack leaves behind


class Moody(nn.Module):
    """Batch norm and dropout that would change results and buffers in train mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Flatten(), nn.Linear(25, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
            self.body = nn.Sequential(*layers).double()
        self.train()
        self.body[2].eval()
        self.body[4].weight.requires_grad_(False)
        self.body[1].weight.grad = torch.full_like(self.body[1].weight, 7)

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        return self.body(x)

    def found(self) -> list[Any]:
        parameters = [
            (p.requires_grad, p.tolist(), p.grad if p.grad is None else p.grad.tolist()) for p in self.parameters()
        ]
        return [[m.training for m in self.modules()], parameters, [b.tolist() for b in self.buffers()]]


@each
@pytest.mark.parametrize("wrap", [lambda model: model, Scores])
def test_the_model_is_left_as_it_was_found(attack: QueryAttack, wrap: Callable[[nn.Module], Any]) -> None:
    model = Moody()
    before, target = model.found(), wrap(model)
    for _ in attack.iterates(target, X, Y):
        assert model.found() == before
        assert torch.is_grad_enabled()
    for _ in attack.iterates(target, X, Y):
        break
    assert model.found() == before
    abandoned = attack.iterates(target, X, Y)
    next(abandoned)
    abandoned.close()
    assert model.found() == before


@each
def test_a_model_that_breaks_is_left_as_it_was_found(attack: QueryAttack) -> None:
    model = Breaking(3, outage).train()
    with pytest.raises(Outage):
        attack(Scores(model, batch_size=8), X, Y)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@each
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_caller_s_grad_mode_neither_matters_nor_changes(
    attack: QueryAttack, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    expected = attack(MODEL, X, Y)
    with mode():
        here = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        x, y = X.clone(), Y.clone()  # made under the caller's mode
        for state in attack.iterates(Scores(MODEL), x, y):
            last = state
            assert not any(value.is_inference() for value in vars(state).values() if isinstance(value, Tensor))
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
        found = attack(MODEL, x, y)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
    for image in found, last.best:
        assert torch.equal(image, expected)
        assert not image.requires_grad


@each
def test_the_input_is_neither_changed_nor_returned(attack: QueryAttack) -> None:
    for labels in Y, (Y + 1) % 3:
        for budget in 0, 1, None:
            x, y = X.clone().requires_grad_(), labels.clone()
            found = attack(Scores(MODEL, budget), x, y)
            assert torch.equal(x, X)
            assert torch.equal(y, labels)
            assert x.grad is None
            assert found.data_ptr() != x.data_ptr()


@each
def test_the_caller_may_reuse_its_tensors_between_states(attack: QueryAttack) -> None:
    expected = attack(MODEL, X, Y)
    x, y = X.clone(), Y.clone()
    *_, last = ((x.zero_(), y.copy_((y + 1) % 3), state)[2] for state in attack.iterates(MODEL, x, y))
    assert torch.equal(last.best, expected)


@contextmanager
def untouched_world() -> Iterator[None]:
    def world() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    before = world()
    yield
    assert world() == before


@each
def test_randomness_is_the_generator_s(attack: QueryAttack) -> None:
    with untouched_world():
        first = last_of(attack, MODEL, X, Y)
    torch.rand(7)
    for options in {}, {"generator": rng(0)}:
        again = last_of(attack, MODEL, X, Y, **options)
        for field, value in _copies(first).items():
            assert torch.equal(getattr(again, field), value), field
    with untouched_world():
        used = rng(5)
        other, same = (last_of(attack, MODEL, X, Y, generator=g) for g in (used, rng(5)))
        assert torch.equal(other.x, same.x)
        assert not torch.equal(other.x, first.x)
        assert not torch.equal(last_of(attack, MODEL, X, Y, generator=used).x, other.x)


@each
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_oracle_s_batches_change_nothing(attack: QueryAttack, batch_size: int) -> None:
    few, many = (last_of(attack, Scores(MODEL, 50, size)) for size in (batch_size, 10_000))
    torch.testing.assert_close(few.best, many.best, atol=1e-7, rtol=0)
    assert torch.equal(few.queries, many.queries)
    assert torch.equal(few.success, many.success)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(attack: QueryAttack, dtype: torch.dtype) -> None:
    model, x = network(SHAPE, dtype=dtype), images(6, SHAPE, dtype=dtype)
    for budget in 0, 1, 40:
        for state in attack.iterates(Scores(model, budget), x, model(x).argmax(1)):
            for field in "x", "best", "loss", "best_loss", "distance":
                assert getattr(state, field).dtype == dtype, field
            assert (state.success.dtype, state.queries.dtype) == (torch.bool, torch.int64)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_answer_in_another_precision(attack: QueryAttack, dtype: torch.dtype) -> None:
    for state in attack.iterates(lambda rows: MODEL(rows).softmax(1).to(dtype).double(), X, Y):
        assert state.x.dtype == X.dtype
    model = Counted(lambda rows: MODEL(rows).to(dtype))
    for state in attack.iterates(model, X, Y):
        for field, value in _copies(state).items():
            assert value.dtype in (X.dtype, torch.bool, torch.int64), field
            assert not value.isnan().any(), field


@pytest.mark.parametrize(
    ("attack", "budget"), [(ZOO(coordinates=128), 250), (NES(Linf(0.1), directions=25), 50), (Bandits(L2(1.0)), 2)]
)
def test_a_budget_that_does_not_pay_for_a_step_is_no_robustness(attack: QueryAttack, budget: int) -> None:
    x = images(3, (1, 12, 12))
    model = network((1, 12, 12))
    y = model(x).argmax(1)
    with pytest.warns(BudgetTooSmall, match=f"a budget of {budget} does not pay for one step"):
        attack(Scores(model, budget), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetTooSmall)
        attack(Scores(model, budget), x, (y + 1) % 3)  # fooled from the start: there was nothing to pay for
        attack(Scores(model, 400), x, y)
