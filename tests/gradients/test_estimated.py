import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advcourse.ascent import Verdict
from advcourse.goals import Goal, Loss, Targeted, Toward, Untargeted, cross_entropy, dlr, logit, margin
from advcourse.gradients import Antithetic, Differences, Estimate, OneSided, Scored
from advcourse.oracles import Scores

from ..helpers import Counted, Metered, images, network, rng, seeds, setting, shapes

BOTH = [OneSided, Antithetic]
both = pytest.mark.parametrize("kind", BOTH)
losses = st.sampled_from([margin, cross_entropy, dlr])


def scored(target: Any, goal: Goal, loss: Loss = margin, **options: Any) -> Scored:
    judge = Scored(Scores(target, **options), loss, goal)
    judge.oracle.begin(len(goal.labels))
    return judge


class Field:
    """A judge of a function of the points, which keeps the points it was asked about; the largest losses are fooled."""

    def __init__(self, loss: Callable[[Tensor], Tensor], fooled_from: float = math.inf) -> None:
        self.loss, self.fooled_from = loss, fooled_from
        self.asked: list[Tensor] = []
        self.owners: list[Tensor] = []

    def __call__(self, points: Tensor, owner: Tensor) -> Verdict:
        self.asked.append(points)
        self.owners.append(owner)
        loss = self.loss(points)
        return Verdict(loss, loss >= self.fooled_from)


def every(points: Tensor) -> Tensor:
    return torch.arange(len(points))


def slope_at(estimate: Estimate, points: Tensor) -> Differences:
    slope = estimate(points, every(points))
    assert type(slope) is Differences
    return slope


def drawn(directions: int, points: Tensor, seed: int = 0) -> Tensor:
    """The directions that a fresh generator of this seed leads to (R, n, ...)."""
    return torch.empty(len(points), directions, *points.shape[1:], dtype=points.dtype).normal_(generator=rng(seed))


# The judge


@given(losses, shapes, st.sampled_from([2, 3, 4, 10]), seeds, st.sampled_from([Untargeted, Targeted]))
def test_log_probabilities_have_the_losses_of_the_logits(
    loss: Loss, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    for labels in goal, Toward((goal.labels + 1) % classes, source=goal.labels):
        met = scored(model, labels, loss)(x, every(x))
        torch.testing.assert_close(met.loss, loss(model(x), labels), atol=1e-9, rtol=1e-6)
        assert torch.equal(met.fooled, labels.fooled(model(x).argmax(1)))


def test_only_the_loss_that_sees_a_constant_does_not() -> None:
    model, x, goal = setting((5,), 3, 0, Untargeted)
    met = scored(model, goal, logit)(x, every(x))
    torch.testing.assert_close(met.loss, cross_entropy(model(x), goal))
    assert not torch.allclose(met.loss, logit(model(x), goal))


def test_points_are_judged_by_the_labels_of_their_owners_for_one_query_each() -> None:
    model, _, goal = setting((5,), 3, 0, Targeted)
    counted = Counted(model)
    judge = scored(counted, goal)
    owner = torch.tensor([3, 0, 3, 3, 5])
    points = images(5, (5,), seed=9)
    met = judge(points, owner)
    torch.testing.assert_close(met.loss, margin(model(points), Targeted(goal.labels[owner])))
    assert judge.oracle.queries.tolist() == [1, 0, 0, 3, 0, 1]
    assert counted.forwards == [5]


@pytest.mark.parametrize("goal", [Untargeted, Targeted, lambda y: Toward(y * 0, source=y)])
def test_a_label_that_is_no_class_is_refused(goal: Callable[[Tensor], Goal]) -> None:
    judge = scored(network((5,)), goal(torch.tensor([0, 3])))
    with pytest.raises(ValueError, match=r"0\.\.2 .*got 3"):
        judge(images(1, (5,)), torch.tensor([0]))  # also on behalf of an image whose own label is fine


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [margin, cross_entropy, dlr, logit])
def test_probabilities_that_underflow_have_finite_losses(loss: Loss, dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 5000.0, -9000.0, 4000.0], [0.0, -math.inf, 1.0, -math.inf]], dtype=dtype)
    for goal in Untargeted(torch.tensor([1, 1])), Untargeted(torch.tensor([2, 2])), Targeted(torch.tensor([2, 1])):
        met = scored(lambda rows: z.softmax(1), goal, loss)(torch.zeros(2, 3, dtype=dtype), torch.arange(2))
        assert met.loss.isfinite().all()
        assert met.loss.dtype == dtype
    assert met.fooled.tolist() == [False, False]


def test_the_smallest_number_stands_for_0() -> None:
    judge = scored(lambda rows: torch.tensor([[1.0, 0.0]]), Untargeted(torch.tensor([0])))
    met = judge(torch.zeros(1, 3), torch.tensor([0]))
    assert met.loss.item() == pytest.approx(math.log(torch.finfo(torch.float32).tiny))


# What the estimates are estimates of


@both
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3)])
def test_many_directions_find_the_gradient_of_a_linear_loss(kind: type[Estimate], shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=rng(3), dtype=torch.float64)
    n, features = 20_000, weight.numel()
    field = Field(lambda z: (z * weight).flatten(1).sum(1) + 3)
    slope = slope_at(kind(field, n, 0.1, rng()), images(4, shape))
    error = (slope.gradient - weight).flatten(1).norm(dim=1)
    # The covariance of (w·u) u is |w|² I + w wᵀ, so the error is about |w| sqrt((d + 1) / n).
    assert (error < 3 * weight.norm() * ((features + 1) / n) ** 0.5).all()
    assert (error > 0).all()


@both
@pytest.mark.parametrize(("directions", "features"), [(5, 20), (25, 100), (100, 20), (100, 100), (400, 100), (25, 784)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_cosine_is_that_of_the_docstring(kind: type[Estimate], directions: int, features: int, seed: int) -> None:
    weight = torch.randn(features, generator=rng(seed + 5), dtype=torch.float64)
    slope = slope_at(kind(Field(lambda z: z @ weight), directions, 0.01, rng(seed)), images(40, (features,)))
    cosine = torch.cosine_similarity(slope.gradient, weight[None]).mean().item()
    assert cosine == pytest.approx((directions / (directions + features)) ** 0.5, abs=0.03)


@given(shapes, seeds, st.integers(1, 9), st.sampled_from([1e-3, 0.1, 2.0]))
def test_on_a_linear_loss_both_are_the_formula(
    shape: tuple[int, ...], seed: int, directions: int, sigma: float
) -> None:
    weight, x = torch.randn(shape, generator=rng(seed), dtype=torch.float64), images(3, shape, seed)
    u = drawn(directions, x, seed)
    along = (u * weight).flatten(2).sum(2)
    expected = (along.view(3, directions, *[1] * len(shape)) * u).mean(1)
    for kind in BOTH:
        slope = slope_at(kind(Field(lambda z: (z * weight).flatten(1).sum(1)), directions, sigma, rng(seed)), x)
        torch.testing.assert_close(slope.gradient, expected, atol=1e-8, rtol=1e-6)


@both
def test_both_estimate_the_gradient_of_the_smoothed_loss(kind: type[Estimate]) -> None:
    # Of z³ under noise of width sigma that is 3z² + 3 sigma².
    z, sigma = torch.tensor([[0.2], [-0.5]]).double(), 0.4
    slope = slope_at(kind(Field(lambda z: z[:, 0] ** 3), 400_000, sigma, rng()), z)
    torch.testing.assert_close(slope.gradient, 3 * z**2 + 3 * sigma**2, atol=0.02, rtol=0)


def test_the_questions_are_at_the_ends_of_the_directions() -> None:
    x, sigma = images(3, (2, 3)), 0.3
    u = drawn(4, x, 7)
    one, two = Field(lambda z: z.flatten(1).sum(1)), Field(lambda z: z.flatten(1).sum(1))
    slope_at(OneSided(one, 4, sigma, rng(7)), x)
    slope_at(Antithetic(two, 4, sigma, rng(7)), x)
    assert [len(points) for points in one.asked] == [3, 12]
    assert [len(points) for points in two.asked] == [3, 24]
    for field in one, two:
        assert torch.equal(field.asked[0], x)
    up, down = x[:, None] + sigma * u, x[:, None] - sigma * u
    assert torch.equal(one.asked[1].view(3, 4, 2, 3), up)
    assert torch.equal(two.asked[1].view(3, 8, 2, 3), torch.cat([up, down], 1))
    assert one.owners[1].tolist() == sorted([0, 1, 2] * 4)
    assert two.owners[1].tolist() == sorted([0, 1, 2] * 8)


# Even and odd


def test_what_is_even_around_the_point_cancels_exactly() -> None:
    x = torch.zeros(3, 5).double()

    def even(z: Tensor) -> Tensor:
        return z.square().sum(1) + z.abs().amax(1) + (z[:, 0] * z[:, 1]).cos()

    slope = slope_at(Antithetic(Field(even), 20, 0.3, rng()), x)
    assert not slope.gradient.any()
    assert slope.vanished.tolist() == [1.0] * 3
    assert slope.flat.all()
    assert slope_at(OneSided(Field(even), 20, 0.3, rng()), x).gradient.all()


def test_the_loss_at_the_point_does_not_matter_to_pairs() -> None:
    class Shifted(Field):
        """Wrong about the point itself, which is the first question."""

        def __call__(self, points: Tensor, owner: Tensor) -> Verdict:
            met = super().__call__(points, owner)
            return Verdict(met.loss + 10 * (len(self.asked) == 1), met.fooled)

    x, sigma = images(3, (5,)), 0.5
    one, one_shifted, two, two_shifted = (
        slope_at(kind(judge(lambda z: z.sin().sum(1)), 7, sigma, rng()), x).gradient
        for kind in BOTH
        for judge in (Field, Shifted)
    )
    assert torch.equal(two_shifted, two)
    moved = one_shifted - one
    torch.testing.assert_close(moved, -10 / sigma * drawn(7, x).mean(1))


def curved(z: Tensor) -> Tensor:
    """Linear with slope `WEIGHT`, and a bowl around 0.5."""
    return z @ WEIGHT + 4 * (z - 0.5).square().sum(1)


WEIGHT = torch.linspace(-1, 1, 10).double()
MIDDLE = torch.full((200, 10), 0.5).double()


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_curvature_adds_to_one_sided_differences_and_to_no_pair(sigma: float) -> None:
    u = drawn(3, MIDDLE)
    one = OneSided(Field(curved), 3, sigma, rng())
    two = Antithetic(Field(curved), 3, sigma, rng())
    start = MIDDLE[:, None], curved(MIDDLE), u, every(MIDDLE)
    torch.testing.assert_close(one.differences(*start), u @ WEIGHT + 4 * sigma * u.square().sum(2))
    torch.testing.assert_close(two.differences(*start), u @ WEIGHT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_for_as_many_queries_pairs_are_better_where_it_bends_and_worse_where_it_does_not(seed: int) -> None:
    def quality(estimate: Estimate) -> float:
        return torch.cosine_similarity(slope_at(estimate, MIDDLE).gradient, WEIGHT[None]).mean().item()

    bent = [
        quality(OneSided(Field(curved), 20, 0.5, rng(seed))),
        quality(Antithetic(Field(curved), 10, 0.5, rng(seed))),
    ]
    assert bent[1] > bent[0] + 0.2
    straight = Field(lambda z: z @ WEIGHT)
    assert quality(OneSided(straight, 20, 0.5, rng(seed))) > quality(Antithetic(straight, 10, 0.5, rng(seed))) + 0.05


# What is asked and what it costs


@both
@given(shapes, seeds, st.integers(1, 6), st.sampled_from([Untargeted, Targeted]), st.sampled_from([1, 5, 1000]))
def test_queries_are_exact(
    kind: type[Estimate], shape: tuple[int, ...], seed: int, directions: int, goal_kind: type[Goal], batch_size: int
) -> None:
    model, x, goal = setting(shape, 3, seed, goal_kind)
    counted = Counted(model)
    judge = scored(counted, goal, batch_size=batch_size)
    owner = torch.tensor([4, 1, 0])
    slope = kind(judge, directions, 1e-3, rng())(x[owner], owner)
    fooled = goal.fooled(model(x).argmax(1))[owner]
    torch.testing.assert_close(slope.loss, margin(model(x), goal)[owner])
    assert torch.equal(slope.fooled, fooled)
    assert not slope.gradient[fooled].any()
    assert not slope.vanished[fooled].any()
    assert torch.equal(slope.gradient.flatten(1).any(1), ~fooled & (slope.vanished < 1))
    expected = torch.zeros(6, dtype=torch.int64)
    expected[owner] = torch.where(fooled, 1, 1 + kind.price * directions)
    assert torch.equal(judge.oracle.queries, expected)
    assert sum(counted.forwards) == expected.sum()
    assert max(counted.forwards) <= batch_size


@both
def test_whose_queries_they_are(kind: type[Estimate]) -> None:
    x = images(4, (30,))
    metered = Metered(network((30,)), x)
    y = network((30,))(x).argmax(1)
    y[2] = (y[2] + 1) % 3
    judge = scored(metered, Untargeted(y), batch_size=3)
    slope_at(kind(judge, 9, 1e-3, rng()), x)
    assert metered.asked.tolist() == judge.oracle.queries.tolist()
    assert metered.asked.tolist() == [1 + 9 * kind.price] * 2 + [1] + [1 + 9 * kind.price]


@both
def test_no_more_is_asked_when_all_are_fooled(kind: type[Estimate]) -> None:
    field, generator = Field(lambda z: z.sum(1), fooled_from=-1.0), rng()
    x = images(3, (5,))
    slope = slope_at(kind(field, 5, 0.1, generator), x)
    assert len(field.asked) == 1
    assert slope.fooled.all()
    assert slope.gradient.shape == x.shape
    assert not slope.gradient.any()
    assert not slope.flat.any()
    assert torch.equal(generator.get_state(), rng().get_state())


@both
def test_directions_are_drawn_before_they_are_asked_about(kind: type[Estimate]) -> None:
    generator, states = rng(), []

    def watching(z: Tensor) -> Tensor:
        states.append(generator.get_state())
        return z.sum(1)

    slope_at(kind(Field(watching), 5, 0.1, generator), images(3, (5,)))
    assert len(states) == 2
    assert torch.equal(states[1], generator.get_state())
    assert not torch.equal(states[0], states[1])


@both
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_oracle_s_batches_change_nothing(kind: type[Estimate], batch_size: int) -> None:
    model, x, goal = setting((2, 3, 4), 3, 1, Untargeted)
    few, many = (
        slope_at(kind(scored(model, goal, batch_size=size), 11, 0.01, rng()), x) for size in (batch_size, 10_000)
    )
    torch.testing.assert_close(few.gradient, many.gradient, atol=1e-9, rtol=1e-9)
    assert torch.equal(few.vanished, many.vanished)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(kind: type[Estimate], dtype: torch.dtype) -> None:
    model, x = network((5,), dtype=dtype), images(3, (5,), dtype=dtype)
    goal = Untargeted(model(x).argmax(1))
    slope = slope_at(kind(scored(model, goal), 5, 0.01, rng()), x)
    for name in "loss", "gradient", "vanished":
        assert getattr(slope, name).dtype == dtype, name


@both
def test_randomness_is_the_generator_s(kind: type[Estimate]) -> None:
    model, x, goal = setting((5,), 3, 0, Untargeted)
    world = torch.get_rng_state()
    first, again, other = (slope_at(kind(scored(model, goal), 5, 0.01, rng(seed)), x) for seed in (3, 3, 4))
    assert torch.equal(first.gradient, again.gradient)
    assert not torch.equal(first.gradient, other.gradient)
    estimate = kind(scored(model, goal), 5, 0.01, rng(3))
    assert torch.equal(slope_at(estimate, x).gradient, first.gradient)
    assert not torch.equal(slope_at(estimate, x).gradient, first.gradient)
    assert torch.equal(torch.get_rng_state(), world)


# Where nothing can be seen


def test_the_fraction_that_vanished_is_exact() -> None:
    # From just below the edge of a step, half of all directions lead over it, or one end of every pair does.
    x = torch.zeros(5, 3).double()
    x[1] = 1.0  # on the plateau far beyond the edge
    u = drawn(40, x)

    def edge(z: Tensor) -> Tensor:
        return (z[:, 0] > 0).double()

    one, two = (slope_at(kind(Field(edge), 40, 1e-3, rng()), x) for kind in BOTH)
    expected = (u[..., 0] <= 0).double().mean(1)
    expected[1] = 1.0
    torch.testing.assert_close(one.vanished, expected)
    assert 0.2 < expected[0] < 0.8
    assert two.vanished.tolist() == [0, 1, 0, 0, 0]
    assert one.flat.tolist() == two.flat.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_all_is_more_than_99_of_100(dtype: torch.dtype) -> None:
    vanished = torch.tensor([0.0, 0.5, 0.99, 0.991, 1.0], dtype=dtype)
    slope = Differences(vanished, vanished > 2, torch.zeros(5, 2, dtype=dtype), vanished)
    assert slope.flat.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(0, 2)])
def test_a_part_of_a_slope_is_one(rows: Any) -> None:
    fields = torch.rand(3), torch.tensor([True, False, True]), torch.rand(3, 4), torch.tensor([0.0, 1.0, 0.5])
    part = Differences(*fields)[rows]
    assert type(part) is Differences
    for name, value in zip(("loss", "fooled", "gradient", "vanished"), fields, strict=True):
        assert torch.equal(getattr(part, name), value[rows])
    assert torch.equal(part.flat, (fields[3] > 0.99)[rows])


@both
def test_labels_have_no_slope(kind: type[Estimate]) -> None:
    judge = scored(lambda rows: torch.zeros(len(rows), dtype=torch.long), Untargeted(torch.tensor([0])))
    with pytest.raises(ValueError, match="Labels"):
        kind(judge, 3, 0.1, rng())(torch.rand(1, 5), torch.tensor([0]))
