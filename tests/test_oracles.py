import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import Tensor, nn

from advcourse.models import MinMax
from advcourse.oracles import BudgetExhausted, Labels, Oracle, Scores, respond

from .helpers import SHAPES, Counted, images, network, rng, seeds, shapes

WINDOWS: list[type[Oracle]] = [Scores, Labels]
windows = st.sampled_from(WINDOWS)
both = pytest.mark.parametrize("window", WINDOWS)


def opened(window: type[Oracle], target: Any, n: int = 4, **settings: Any) -> Oracle:
    oracle = window(target, **settings)
    oracle.begin(n)
    return oracle


def ask(window: type[Oracle], target: Any, points: Tensor) -> Tensor:
    """One question on behalf of each point."""
    return opened(window, target, len(points))(points, torch.arange(len(points)))


class Register(nn.Module):
    """A target that reads off the first feature of each row on whose behalf it is asked, and keeps the tally (N,)."""

    def __init__(self, n: int, limit: float = float("inf"), fails_at: int | None = None) -> None:
        super().__init__()
        self.tally, self.calls = torch.zeros(n, dtype=torch.int64), 0
        self.limit, self.fails_at = limit, fails_at

    def forward(self, rows: Tensor) -> Tensor:
        n = len(self.tally)
        self.tally += (rows[:, 0] * n).long().bincount(minlength=n)
        self.calls += 1
        assert (self.tally <= self.limit).all(), "one query too many"
        if self.calls == self.fails_at:
            raise OSError("the line went dead")
        return torch.stack([rows[:, 0], rows[:, 1]], 1)


def signed(owner: Tensor, n: int) -> Tensor:
    """Points that carry their owner in the first feature."""
    return torch.stack([(owner + 0.5) / n, torch.full((len(owner),), 0.5)], 1).double()


owners = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.lists(st.integers(0, n - 1), min_size=1, max_size=12), max_size=6))
)


# The ledger


@given(windows, owners, st.integers(1, 5))
def test_every_image_pays_for_what_was_sent_on_its_behalf(
    window: type[Oracle], batches: tuple[int, list[list[int]]], batch_size: int
) -> None:
    n, questions = batches
    target = Register(n)
    oracle = opened(window, target, n, batch_size=batch_size)
    for question in questions:
        owner = torch.tensor(question)
        before = oracle.queries
        kept = before.clone()
        oracle(signed(owner, n), owner)
        assert torch.equal(oracle.queries, target.tally)
        assert torch.equal(before, kept)  # a ledger that was read does not change
    assert oracle.queries.dtype == torch.int64
    assert int(oracle.queries.sum()) == sum(map(len, questions))


@given(windows, owners, st.integers(1, 5), st.integers(0, 9))
def test_the_budget_is_hard_and_what_it_forbids_is_not_sent(
    window: type[Oracle], batches: tuple[int, list[list[int]]], batch_size: int, budget: int
) -> None:
    n, questions = batches
    target = Register(n, limit=budget)
    oracle = opened(window, target, n, budget=budget, batch_size=batch_size)
    for question in questions:
        owner = torch.tensor(question)
        before, calls = oracle.queries, target.calls
        fits = (before + owner.bincount(minlength=n) <= budget).all()
        if fits:
            oracle(signed(owner, n), owner)
        else:
            with pytest.raises(BudgetExhausted):
                oracle(signed(owner, n), owner)
            assert target.calls == calls
            assert torch.equal(oracle.queries, before)
        assert torch.equal(oracle.queries, target.tally)
        assert torch.equal(oracle.remaining, budget - target.tally)
        assert oracle.remaining.min() >= 0


@both
def test_a_budget_is_spent_to_the_last_query(window: type[Oracle]) -> None:
    target = Register(2, limit=3)
    oracle = opened(window, target, 2, budget=3)
    owner = torch.tensor([0, 1, 1, 1, 0])
    oracle(signed(owner, 2), owner)
    assert oracle.remaining.tolist() == [1, 0]
    assert oracle.affords(torch.tensor([1, 0, 0]), 1).tolist() == [False, True, True]
    assert oracle.affords(torch.tensor([1, 0]), 2).tolist() == [False, False]
    assert oracle.affords(torch.tensor([1, 0]), 0).tolist() == [True, True]
    with pytest.raises(BudgetExhausted, match=r"1 of 2 images cannot pay: image 1 has 0 of 3 .* asks for 2"):
        oracle(signed(torch.tensor([0, 1, 1]), 2), torch.tensor([0, 1, 1]))
    oracle(signed(torch.tensor([0]), 2), torch.tensor([0]))
    assert oracle.remaining.tolist() == [0, 0]
    with pytest.raises(BudgetExhausted, match="2 of 2 images cannot pay: image 0"):
        oracle(signed(torch.tensor([0, 1]), 2), torch.tensor([0, 1]))
    assert target.tally.tolist() == [3, 3]


@both
def test_it_charges_before_it_sends(window: type[Oracle]) -> None:
    ledger: list[list[int]] = []

    def target(rows: Tensor) -> Tensor:
        ledger.append(oracle.queries.tolist())
        return torch.full((len(rows), 2), 0.5)

    oracle = opened(window, target, 3, batch_size=2)
    oracle(images(5, (4,)), torch.tensor([2, 0, 0, 1, 2]))
    assert ledger == [[1, 0, 1], [2, 1, 1], [2, 1, 2]]


@both
@pytest.mark.parametrize(("fails_at", "sent"), [(1, [1, 1]), (2, [2, 2]), (3, [2, 3])])
def test_a_target_that_raises_leaves_what_was_sent_on_the_ledger(
    window: type[Oracle], fails_at: int, sent: list[int]
) -> None:
    target = Register(2, fails_at=fails_at).train()
    oracle = opened(window, target, 2, batch_size=2)
    owner = torch.tensor([0, 1, 1, 0, 1])
    with pytest.raises(OSError, match="the line went dead"):
        oracle(signed(owner, 2), owner)
    assert oracle.queries.tolist() == target.tally.tolist() == sent
    assert target.training
    oracle(signed(owner, 2), owner)  # the line is back
    assert torch.equal(oracle.queries, target.tally)


@both
def test_an_unusable_answer_is_paid_for(window: type[Oracle]) -> None:
    oracle = opened(window, lambda rows: rows[:1], 2)
    with pytest.raises(ValueError, match="must"):
        oracle(images(3, (2,)), torch.tensor([0, 1, 1]))
    assert oracle.queries.tolist() == [1, 2]


@both
def test_answers_are_not_kept(window: type[Oracle]) -> None:
    target = Counted(network((7,)))
    oracle = opened(window, target)
    x, owner = images(4, (7,)), torch.arange(4)
    assert torch.equal(oracle(x, owner), oracle(x, owner))
    assert target.forwards == [4, 4]
    assert oracle.queries.tolist() == [2] * 4


@both
def test_a_ledger_begins_anew(window: type[Oracle]) -> None:
    oracle = opened(window, network((7,)), 4, budget=1)
    oracle(images(4, (7,)), torch.arange(4))
    old = oracle.queries
    oracle.begin(2)
    assert old.tolist() == [1] * 4
    assert oracle.queries.tolist() == [0, 0]
    assert oracle.queries.dtype == torch.int64
    assert oracle.remaining.tolist() == [1, 1]
    oracle(images(2, (7,)), torch.arange(2))
    assert oracle.queries.tolist() == [1, 1]


@both
def test_no_budget_is_no_limit(window: type[Oracle]) -> None:
    oracle = opened(window, network((7,)))
    oracle(images(3, (7,)), torch.tensor([0, 0, 2]))
    assert (oracle.remaining > 2**62).all()
    assert oracle.remaining.dtype == torch.int64
    assert oracle.affords(torch.arange(4), 10**15).all()


@both
def test_a_budget_of_nothing_asks_nothing(window: type[Oracle]) -> None:
    target = Counted(network((7,)))
    oracle = opened(window, target, budget=0)
    assert oracle.remaining.tolist() == [0] * 4
    with pytest.raises(BudgetExhausted, match="has 0 of 0 queries left"):
        oracle(images(1, (7,)), torch.tensor([0]))
    assert not target.forwards


@both
@pytest.mark.parametrize("name", ["budget", "batch_size"])
@pytest.mark.parametrize("value", [-1, 1.5, 2.0, True, "3", float("inf")])
def test_settings_are_checked(window: type[Oracle], name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be an integer >= [01], got "):
        window(network((7,)), **{name: value})  # type: ignore[arg-type]


# What may be asked


def wrong_questions() -> list[Any]:
    x, owner = images(3, (7,)), torch.tensor([0, 1, 3])
    return [
        pytest.param(x, torch.tensor([0, 1, 4]), r"ledger has 4 images, got owners 0\.\.4: begin", id="owner above"),
        pytest.param(x, torch.tensor([0, -1, 2]), r"ledger has 4 images, got owners -1\.\.2: begin", id="owner below"),
        pytest.param(x, owner[:2], r"\(3,\), got torch.int64 \(2,\)", id="few owners"),
        pytest.param(x, owner[:0], r"\(3,\), got torch.int64 \(0,\)", id="no owners"),
        pytest.param(x[:1], owner, r"\(1,\), got torch.int64 \(3,\)", id="many owners"),
        pytest.param(x, owner[:, None], r"\(3,\), got torch.int64 \(3, 1\)", id="a column of owners"),
        pytest.param(x, owner.float(), "got torch.float32", id="fractional owners"),
        pytest.param(x[0], owner[:1], r"got torch.float64 \(7,\).* one point is x\[None\]", id="one point"),
        pytest.param(x[:0], owner[:0], r"got torch.float64 \(0, 7\)", id="no point"),
        pytest.param((x * 255).byte(), owner, r"got torch.uint8.*x.float\(\) / 255", id="bytes"),
        pytest.param(x.where(x < x.max(), torch.nan), owner, "without NaN", id="NaN"),
    ]


@both
@pytest.mark.parametrize(("points", "owner", "said"), wrong_questions())
def test_wrong_questions_are_not_sent(window: type[Oracle], points: Tensor, owner: Tensor, said: str) -> None:
    target = Counted(network((7,)))
    oracle = opened(window, target)
    with pytest.raises(ValueError, match=said):
        oracle(points, owner)
    assert not target.forwards
    assert oracle.queries.tolist() == [0] * 4


@both
def test_without_a_ledger_nothing_is_asked(window: type[Oracle]) -> None:
    with pytest.raises(ValueError, match=r"ledger has 0 images.*begin\(n\)"):
        window(network((7,)))(images(2, (7,)), torch.arange(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_points_are_clipped_before_they_are_sent(shape: tuple[int, ...]) -> None:
    seen: list[Tensor] = []

    def target(rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        rows.mul_(0)  # what the target does to its rows is its own business
        return torch.full((len(rows), 2), 0.5)

    points = images(4, shape) * 3 - 1
    points[0] = torch.inf
    kept = points.clone()
    ask(Scores, target, points)
    assert torch.equal(seen[0], kept.clamp(0, 1))
    assert torch.equal(points, kept)


@given(windows, shapes, st.integers(1, 12), seeds)
def test_chunks_change_nothing(window: type[Oracle], shape: tuple[int, ...], batch_size: int, seed: int) -> None:
    target, x = Counted(network(shape, 4, seed)), images(11, shape, seed)
    owner = torch.randint(4, (11,), generator=rng(seed))
    whole, chunked = opened(window, target, 4), opened(window, target, 4, batch_size=batch_size)
    expected = whole(x, owner)
    target.forwards.clear()
    torch.testing.assert_close(chunked(x, owner), expected)
    assert torch.equal(chunked.queries, whole.queries)
    assert max(target.forwards) <= batch_size
    assert len(target.forwards) == -(-11 // batch_size)


@given(shapes, st.integers(2, 5), seeds)
def test_scores_are_the_softmax_and_labels_its_argmax(shape: tuple[int, ...], classes: int, seed: int) -> None:
    target, x = network(shape, classes, seed), images(7, shape, seed)
    scores, labels = ask(Scores, target, x), ask(Labels, target, x)
    assert torch.equal(scores, target(x).softmax(1))
    torch.testing.assert_close(scores.sum(1), torch.ones(7).double())
    assert torch.equal(labels, scores.argmax(1))
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scores_have_the_dtype_of_the_points(dtype: torch.dtype) -> None:
    x = images(4, (7,), dtype=dtype)
    assert ask(Scores, network((7,), dtype=dtype), x).dtype == dtype
    assert ask(Scores, lambda rows: np.full((len(rows), 2), 0.5), x).dtype == dtype
    assert ask(Labels, network((7,), dtype=dtype), x).dtype == torch.int64


# The target is left as it was


def layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()


@both
def test_a_module_is_asked_in_eval_mode_and_left_as_found(window: type[Oracle]) -> None:
    target, x = layers(), images(6, (7,))
    target[2].eval()
    before = copy.deepcopy(target.state_dict())
    modes = [module.training for module in target.modules()]
    expected = copy.deepcopy(target).eval()(x).softmax(1)
    answer = ask(window, target, x)
    assert torch.equal(answer, expected if window is Scores else expected.argmax(1))
    assert [module.training for module in target.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in target.parameters())


@both
@pytest.mark.parametrize("enabled", [True, False])
def test_no_graph_is_kept_and_grad_mode_is_the_callers(window: type[Oracle], enabled: bool) -> None:
    modes: list[bool] = []

    def target(rows: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return (rows @ weight).softmax(1)

    weight = torch.randn(7, 3, generator=rng(), dtype=torch.float64).requires_grad_()
    with torch.set_grad_enabled(enabled):
        answer = ask(window, target, images(4, (7,)).requires_grad_())
        assert torch.is_grad_enabled() == enabled
    assert not answer.requires_grad
    assert modes == [False]


@both
def test_it_works_under_inference_mode_and_afterwards(window: type[Oracle]) -> None:
    target, x = layers(), images(4, (7,))
    with torch.inference_mode():
        oracle = opened(window, target)
        oracle(x, torch.arange(4))
        assert torch.is_inference_mode_enabled()
    oracle(x, torch.arange(4))
    assert oracle.queries.tolist() == [2] * 4
    assert target.training


@both
def test_global_random_state_is_untouched(window: type[Oracle]) -> None:
    state = torch.random.get_rng_state()
    ask(window, layers(), images(4, (7,)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_oracle_is_copied_pickled_and_printed() -> None:
    oracle = opened(Labels, network((7,)), budget=5)
    oracle(images(3, (7,)), torch.tensor([0, 0, 2]))
    for twin in copy.deepcopy(oracle), pickle.loads(pickle.dumps(oracle)):
        assert torch.equal(twin.remaining, oracle.remaining)
        twin(images(1, (7,)), torch.tensor([1]))
        assert oracle.queries.tolist() == [2, 0, 1, 0]
    assert repr(oracle) == "Labels(Sequential, budget=5)"


# Targets: modules


class Answering(nn.Module):
    """A module with another kind of answer."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, rows: Tensor) -> Any:
        return self.answer(rows)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_labels_and_refusals_of_a_module_pass(dtype: torch.dtype) -> None:
    answer = torch.tensor([3, -1, 0, -1], dtype=dtype)
    found = ask(Labels, Answering(lambda rows: answer), images(4, (7,)))
    assert found.dtype == torch.int64
    assert found.tolist() == [3, -1, 0, -1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_labels_without_a_sign_pass(dtype: torch.dtype) -> None:
    answer = torch.tensor([1, 0, 1, 1], dtype=dtype)
    assert ask(Labels, lambda rows: answer, images(4, (7,))).tolist() == [1, 0, 1, 1]
    assert ask(Labels, Answering(lambda rows: answer), images(4, (7,))).tolist() == [1, 0, 1, 1]


@both
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda rows: rows * torch.nan, "NaN or infinity"),
        (lambda rows: rows / 0, "NaN or infinity"),
        (lambda rows: rows[:2], r"got.*\(2, 7\)"),
        (lambda rows: rows[:, :1], r"K >= 2, got \(4, 1\)"),
        (lambda rows: rows[:, None], r"got.*\(4, 1, 7\)"),
        (lambda rows: rows[:, 0], r"got.*\(4,\)"),
        (lambda rows: rows.sum(), r"got.*\(\)"),
        (lambda rows: (rows, rows), "got tuple"),
        (lambda rows: {"logits": rows}, "got dict"),
        (lambda rows: rows.numpy(), "got ndarray"),
        (lambda rows: None, "got NoneType"),
        (lambda rows: rows.long(), "floating point.*got torch.int64"),
    ],
)
def test_what_is_neither_logits_nor_labels_is_refused(
    window: type[Oracle], answer: Callable[[Tensor], Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ask(window, Answering(answer), images(4, (7,)) + 0.1)


@pytest.mark.parametrize("target", [lambda rows: torch.zeros(4).long(), Answering(lambda rows: torch.zeros(4).long())])
def test_labels_tell_no_scores(target: Any) -> None:
    with pytest.raises(ValueError, match="answers labels and no scores: attack it through Labels"):
        ask(Scores, target, images(4, (7,)))


def test_a_class_may_be_ruled_out() -> None:
    def target(rows: Tensor) -> Tensor:
        return torch.cat([rows, torch.full_like(rows[:, :1], -torch.inf)], 1)

    found = ask(Scores, Answering(target), images(4, (7,)))
    assert (found[:, 7] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(4).double())


# Targets: callables

PROBABILITIES = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]])


@pytest.mark.parametrize(
    "answer",
    [
        PROBABILITIES,
        PROBABILITIES.double(),
        PROBABILITIES.numpy(),
        PROBABILITIES.double().numpy(),
        PROBABILITIES.tolist(),
        PROBABILITIES.clone().requires_grad_(),
        list(PROBABILITIES.numpy()),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_probabilities_of_a_callable_pass(answer: Any) -> None:
    found = ask(Scores, lambda rows: answer, images(3, (7,)))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, PROBABILITIES.double(), atol=1e-7, rtol=1e-6)
    assert torch.equal(found == 0, PROBABILITIES == 0)
    assert ask(Labels, lambda rows: answer, images(3, (7,))).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "answer",
    [
        torch.tensor([1, -1, 0]),
        np.array([1, -1, 0]),
        np.array([1, -1, 0], dtype=np.int8),
        [1, -1, 0],
        (1, -1, 0),
        [np.int64(1), np.int64(-1), np.int64(0)],
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_labels_of_a_callable_pass(answer: Any) -> None:
    found = ask(Labels, lambda rows: answer, images(3, (7,)))
    assert found.dtype == torch.int64
    assert found.tolist() == [1, -1, 0]


def test_logits_of_a_callable_have_labels_and_no_scores() -> None:
    target, x = network((7,)), images(9, (7,))
    assert torch.equal(ask(Labels, lambda rows: target(rows), x), target(x).argmax(1))
    with pytest.raises(ValueError, match="if these are logits, answer their softmax"):
        ask(Scores, lambda rows: target(rows), x)
    torch.testing.assert_close(ask(Scores, lambda rows: target(rows).softmax(1), x), target(x).softmax(1))


@pytest.mark.parametrize("row", [[0.33, 0.33, 0.33], [0.1, 0.02, 0.0], [0.5, 0.5, 0.4]])
def test_rounded_or_withheld_probabilities_are_made_to_add_up(row: list[float]) -> None:
    found = ask(Scores, lambda rows: [row], images(1, (7,)))
    torch.testing.assert_close(found[0], torch.tensor(row).double() / sum(row), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("row", [[1.2, -0.2], [0.0, 0.0], [0.9, 0.9], [-0.5, -0.5]])
def test_what_is_no_distribution_is_no_score(row: list[float]) -> None:
    with pytest.raises(ValueError, match="answer their softmax"):
        ask(Scores, lambda rows: [[0.5, 0.5], row], images(2, (7,)))


@both
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "got NoneType"),
        ({"label": 1}, "got dict"),
        (["cat", "dog", "cat"], "got list"),
        ([[0.5, 0.5], [1.0]], "got list"),
        ("cat", "got str"),
        (3, r"got torch.int64 of shape \(\)"),
        ([0.0, 1.0, 0.0], r"got torch.float64 of shape \(3,\)"),
        (torch.eye(3).long(), r"got torch.int64 of shape \(3, 3\)"),
        (torch.zeros(3, 2, 2), r"got torch.float32 of shape \(3, 2, 2\)"),
        (torch.full((3, 2), torch.nan), "NaN"),
        (torch.full((2, 2), 0.5), r"3.*got.*\(2, 2\)"),
    ],
)
def test_unusable_answers_of_a_callable_are_refused(window: type[Oracle], answer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(window, lambda rows: answer, images(3, (7,)))


@pytest.mark.parametrize("answer", [[0, 1], [0, 1, -2], [[0], [1], [0]]])
def test_unusable_labels_are_refused(answer: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"must answer 3 rows with labels \(3,\)"):
        ask(Labels, lambda rows: answer, images(3, (7,)))


@both
@pytest.mark.parametrize("target", ["http://localhost", {}, None, 3])
def test_what_cannot_be_asked_is_no_target(window: type[Oracle], target: object) -> None:
    with pytest.raises(ValueError, match="must be a torch module, a fitted estimator or a callable, got"):
        window(target)


def test_a_callable_is_differentiable_as_a_network() -> None:
    weight = torch.randn(7, 3, generator=rng(), dtype=torch.float64)
    x = images(4, (7,)).requires_grad_()
    logits = respond(lambda rows: (rows @ weight).softmax(1), x)
    torch.testing.assert_close(logits, (x @ weight).log_softmax(1))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    (expected,) = torch.autograd.grad((x @ weight).log_softmax(1)[:, 1].sum(), x)
    torch.testing.assert_close(gradient, expected)


# Targets: estimators

CLASSES = np.array(["cat", "dog", "eel"])


def learned(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).random((90, 6))
    return rows, (rows[:, 0] > 0.5).astype(int) + (rows[:, 1] > 0.5)


def estimators() -> dict[str, Any]:
    return {
        "forest": RandomForestClassifier(7, random_state=0),
        "boosting": HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    }


@pytest.mark.parametrize("name", ["forest", "boosting", "pipeline"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [np.array([0, 1, 2]), np.array([-7, 3, 40]), CLASSES], ids=["0..2", "gaps", "str"])
def test_an_estimator_answers_as_it_predicts(name: str, dtype: torch.dtype, classes: np.ndarray) -> None:
    rows, y = learned()
    fitted = estimators()[name].fit(rows, classes[y])
    x = images(20, (2, 3), dtype=dtype)
    flat = x.flatten(1).float().numpy() if dtype == torch.bfloat16 else x.flatten(1).numpy()
    scores, labels = ask(Scores, fitted, x), ask(Labels, fitted, x)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.double(), torch.from_numpy(fitted.predict_proba(flat)), atol=1e-2, rtol=0)
    if dtype == torch.float64:
        torch.testing.assert_close(scores, torch.from_numpy(fitted.predict_proba(flat)))
        assert torch.equal(scores.argmax(1), labels)
    assert len(labels.unique()) > 1
    assert (classes[labels] == fitted.predict(flat)).all()


def test_an_estimator_pays_its_way_in_chunks() -> None:
    rows, y = learned()
    fitted = estimators()["forest"].fit(rows, y)
    oracle = opened(Labels, fitted, 4, budget=3, batch_size=2)
    owner = torch.tensor([0, 1, 1, 3, 1])
    oracle(images(5, (6,)), owner)
    assert oracle.remaining.tolist() == [2, 0, 3, 2]
    with pytest.raises(ValueError, match="features"):
        oracle(images(1, (5,)), torch.tensor([0]))
    assert oracle.remaining.tolist() == [1, 0, 3, 2]


def test_an_estimator_without_probabilities_has_labels_alone() -> None:
    rows, y = learned()
    x = images(20, (6,))
    for fitted in SVC().fit(rows, CLASSES[y]), LinearSVC().fit(rows, CLASSES[y]):
        assert (CLASSES[ask(Labels, fitted, x)] == fitted.predict(x.numpy())).all()
        with pytest.raises(ValueError, match="attack it through Labels"):
            ask(Scores, fitted, x)


@both
def test_what_is_no_fitted_classifier_is_refused(window: type[Oracle]) -> None:
    unfitted = estimators()
    rows, y = learned()
    several = estimators()["forest"].fit(rows, np.stack([y, 2 - y], 1))
    regressor = LinearRegression().fit(rows, y)
    for target in [*unfitted.values(), type(unfitted["forest"]), regressor, several]:
        oracle = opened(window, target)
        with pytest.raises(ValueError, match=r"no one list of classes_: it is not fitted, or no classifier"):
            oracle(images(2, (6,)), torch.arange(2))


class Rejecting:
    """Behaves like an estimator whose classes have an order of their own, and which may answer none of them."""

    classes_ = ("wolf", "ant")

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return np.array(["ant", "wolf", "unsure"])[: len(rows)]

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]])[: len(rows)]


def test_classes_are_numbered_as_the_estimator_does_and_other_answers_refuse() -> None:
    assert ask(Labels, Rejecting(), images(3, (6,))).tolist() == [1, 0, -1]
    assert ask(Scores, Rejecting(), images(2, (6,))).argmax(1).tolist() == [1, 0]


@both
def test_a_scaled_table_is_a_target_as_any_other(window: type[Oracle]) -> None:
    rows, y = learned()
    raw = rows * [1, 10, 100, 1000, 1e4, 1e5]
    fitted = estimators()["forest"].fit(raw, y)
    model = MinMax.fit(fitted, raw)
    x = model.scale(raw)[:20]
    plain = opened(window, lambda part: fitted.predict_proba(part.numpy() * np.ptp(raw, 0) + raw.min(0)), 20)
    torch.testing.assert_close(ask(window, model, x), plain(x, torch.arange(20)))
