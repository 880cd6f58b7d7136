import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advcourse.threat import L1, L2, Ball, Linf, open_part

from .helpers import BALLS, balls, images, rng, seeds, shapes

radii = st.one_of(st.just(0.0), st.floats(1e-3, 3))
spreads = st.sampled_from([1e-3, 0.1, 1.0, 30.0])
dtypes = st.sampled_from([torch.float32, torch.float64])


def slow_projection(ball: Ball, x: Tensor, center: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """The nearest allowed point by bisection on the Lagrange multiplier of the norm, in float64."""
    x, center = x.double(), center.double()
    delta = (x - center).flatten(1)

    def moved(shrink: Tensor) -> Tensor:
        if isinstance(ball, Linf):
            change = delta.clamp(-ball.eps, ball.eps)
        elif isinstance(ball, L2):
            change = delta * (1 - shrink)
        else:
            change = delta.sign() * (delta.abs() - shrink * delta.abs().amax(1, keepdim=True)).clamp_min(0)
        return (center.flatten(1) + change).clamp(*box)

    low, high = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    inside = ball.norm(moved(low) - center.flatten(1))[:, None] <= ball.eps
    for _ in range(80):
        middle = (low + high) / 2
        fits = ball.norm(moved(middle) - center.flatten(1))[:, None] <= ball.eps
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return moved(torch.where(inside, torch.zeros_like(high), high)).view_as(x)


def points(center: Tensor, spread: float, seed: int) -> Tensor:
    return center + spread * torch.empty_like(center).normal_(generator=rng(seed))


def assert_allowed(ball: Ball, x: Tensor, center: Tensor, spread: float = 1.0) -> None:
    assert x.shape == center.shape
    assert x.dtype == center.dtype
    assert x.min() >= 0
    assert x.max() <= 1
    rounding = torch.finfo(x.dtype).eps * (1 + spread) * (1 + x[0].numel())
    assert (ball.norm((x - center).double()) <= ball.eps + rounding).all()


@given(shapes, seeds)
def test_norms_are_those_of_linear_algebra(shape: tuple[int, ...], seed: int) -> None:
    delta = points(torch.zeros(3, *shape).double(), 1.0, seed)
    for ball, order in (Linf, math.inf), (L2, 2), (L1, 1):
        torch.testing.assert_close(ball.norm(delta), torch.linalg.vector_norm(delta.flatten(1), order, dim=1))


@given(balls, shapes, seeds, dtypes)
def test_steepest_attains_the_dual_norm_and_no_step_of_length_one_beats_it(
    ball: type[Ball], shape: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    gradient = points(torch.zeros(4, *shape, dtype=dtype), 3.0, seed)
    step, dual = ball.steepest(gradient), ball.dual_norm(gradient)
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), dual)
    torch.testing.assert_close(ball.norm(step), torch.ones(4, dtype=dtype))
    other = points(gradient, 2.0, seed + 1)
    other = (other.flatten(1) / ball.norm(other)[:, None]).view_as(other)
    assert ((gradient * other).flatten(1).sum(1) <= dual * (1 + 1e-5)).all()


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_steepest_depends_on_the_direction_and_not_on_the_size(ball: type[Ball], size: float) -> None:
    direction = torch.tensor([[0.25, -1.0, 0.5], [2.0, 1.0, 0.0]])
    step = ball.steepest(direction * size)
    torch.testing.assert_close(step, ball.steepest(direction), atol=2e-3, rtol=0)  # 1e-42 has ten bits
    torch.testing.assert_close(ball.norm(step), torch.ones(2))


@pytest.mark.parametrize("ball", BALLS)
def test_a_zero_gradient_gives_no_step_and_leaves_its_neighbours_alone(ball: type[Ball]) -> None:
    gradient = torch.tensor([[0.0, 0.0, 0.0], [1.0, -4.0, 2.0]])
    assert torch.equal(ball.steepest(gradient)[0], torch.zeros(3))
    assert torch.equal(ball.steepest(gradient)[1:], ball.steepest(gradient[1:]))


@given(balls, radii, shapes, spreads, seeds, dtypes)
def test_projection_is_allowed_and_nearest(
    ball: type[Ball], eps: float, shape: tuple[int, ...], spread: float, seed: int, dtype: torch.dtype
) -> None:
    threat = ball(eps)
    center = images(4, shape, seed, dtype)
    x = points(center, spread, seed + 1)
    before = x.clone(), center.clone()
    nearest = threat.project(x, center)
    assert_allowed(threat, nearest, center, spread)
    torch.testing.assert_close(
        nearest.double(), slow_projection(threat, x, center), atol=torch.finfo(dtype).eps * 100 * (1 + spread), rtol=0
    )
    assert torch.equal(x, before[0])
    assert torch.equal(center, before[1])


@given(balls, st.floats(1e-2, 1), st.sampled_from([(2,), (3,)]), st.sampled_from([0.1, 1.0]), seeds)
def test_projection_meets_the_variational_inequality(
    ball: type[Ball], eps: float, shape: tuple[int, ...], spread: float, seed: int
) -> None:
    # p is the nearest point of a convex set if and only if <x - p, z - p> <= 0 for all of its z. Needs no reference.
    center = images(1, shape, seed)
    x = points(center, spread, seed + 1)
    nearest = ball(eps).project(x, center)
    corners = 2 * torch.rand(2000, *shape, generator=rng(seed + 2), dtype=x.dtype) - 1
    allowed = center + eps * corners / ball.norm(corners)[:, None].clamp_min(1)
    allowed = torch.cat([allowed[((allowed >= 0) & (allowed <= 1)).all(1)], center])
    assert ((x - nearest) * (allowed - nearest)).sum(1).max() <= 1e-9


@given(balls, st.floats(1e-2, 3), shapes, seeds)
def test_projection_leaves_allowed_points_where_they_are(
    ball: type[Ball], eps: float, shape: tuple[int, ...], seed: int
) -> None:
    center = images(4, shape, seed)
    x = ball(eps).sample(center, rng(seed))
    torch.testing.assert_close(ball(eps).project(x, center), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("eps", [0.5, 10.0])
@pytest.mark.parametrize("ball", BALLS)
def test_projection_keeps_its_precision_on_large_images(ball: type[Ball], eps: float) -> None:
    center, x = images(2, (3, 64, 64), 0, torch.float32), images(2, (3, 64, 64), 1, torch.float32)
    nearest = ball(eps).project(x, center)
    assert (ball.norm((nearest - center).double()) <= eps * (1 + 1e-4)).all()
    torch.testing.assert_close(nearest.double(), slow_projection(ball(eps), x, center), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ball", BALLS)
def test_each_image_is_projected_by_itself(ball: type[Ball]) -> None:
    center = images(5, (3, 4))
    x = points(center, 1.0, 1) * torch.tensor([0.1, 1, 3, 10, 1])[:, None, None]
    together = ball(0.7).project(x, center)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], ball(0.7).project(x[i : i + 1], center[i : i + 1]))


@given(balls, radii, shapes, seeds, dtypes)
def test_samples_are_allowed(
    ball: type[Ball], eps: float, shape: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    center = images(50, shape, seed, dtype)
    assert_allowed(ball(eps), ball(eps).sample(center, rng(seed)), center)


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> float:
    grid = torch.cat([a, b]).sort().values
    cdf = [torch.searchsorted(sample.sort().values, grid, right=True) / len(sample) for sample in (a, b)]
    return (cdf[0] - cdf[1]).abs().max().item()


@pytest.mark.parametrize("ball", BALLS)
def test_samples_are_uniform_far_from_the_box(ball: type[Ball]) -> None:
    n, eps = 20_000, 0.1
    delta = ball(eps).sample(torch.full((n, 3), 0.5).double(), rng()) - 0.5
    cube = 2 * torch.rand(20 * n, 3, generator=rng(1), dtype=torch.float64) - 1
    reference = eps * cube[ball.norm(cube) <= 1][:n]  # by rejection: uniform beyond doubt
    limit = 2.2 * (2 / n) ** 0.5  # exceeded once in 10,000 times
    for feature in (
        lambda d: ball.norm(d),
        lambda d: d[:, 0],
        lambda d: d[:, 2],
        lambda d: d[:, 0] + d[:, 1],
        lambda d: d[:, 1].abs() - d[:, 2].abs(),
    ):
        assert kolmogorov_smirnov(feature(delta), feature(reference)) < limit
    high = ball(eps).sample(torch.full((n, 40), 0.5).double(), rng()) - 0.5
    radius = (ball.norm(high) / eps) ** 40  # the share of the ball's volume within this radius
    assert kolmogorov_smirnov(radius, torch.linspace(0, 1, n).double()) < limit


@pytest.mark.parametrize("ball", BALLS)
def test_samples_come_from_the_generator_alone(ball: type[Ball]) -> None:
    center = torch.full((4, 5), 0.5)
    state = torch.get_rng_state()
    draw = ball(0.1).sample(center, rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(ball(0.1).sample(center, rng(1)), draw)
    assert not torch.equal(ball(0.1).sample(center, rng(2)), draw)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "0.1", None, True, [0.1]])
def test_a_radius_that_is_none_is_refused(ball: type[Ball], eps: object) -> None:
    with pytest.raises(ValueError, match=r"eps must be a finite number >= 0 .*, got "):
        ball(eps)


def test_balls_are_values() -> None:
    assert Linf(0.1) == Linf(0.1)
    assert len({Linf(0.1), Linf(0.1), L2(0.1), L1(0.1), Linf(0.2)}) == 4
    assert eval(repr(L2(0.5))) == L2(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ball", [Linf(0.1), L2(3.0), L1(100.0)], ids=repr)
def test_half_precision_neither_overflows_nor_drowns(ball: Ball, dtype: torch.dtype) -> None:
    # The squares and absolute values of 150,000 features add up to more than half precision holds.
    center = torch.full((1, 3, 224, 224), 0.5)
    drawn = ball.sample(center.to(dtype), torch.Generator().manual_seed(0))
    far = ball.project((center + torch.linspace(-0.4, 0.4, 224)).to(dtype), center.to(dtype))
    for x in drawn, far:
        assert x.dtype == dtype
        # bfloat16 rounds away what L1 does to a single feature, but must not make up more.
        length = ball.norm(x.float() - center).item()
        assert 0.5 * ball.eps < length < 1.05 * ball.eps


# The stride of a climb


@given(balls, shapes, seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_a_stride_has_length_one_and_leaves_out_what_cannot_move(
    ball: type[Ball], shape: tuple[int, ...], seed: int, left: float
) -> None:
    x = images(4, shape, seed)
    gradient = points(torch.zeros_like(x), 1.0, seed)
    gradient[0] = 0
    kept = gradient.clone()
    step, free = ball.stride(gradient, x, left), open_part(gradient, x)
    assert torch.equal(gradient, kept)
    can_move = (free != 0).flatten(1).any(1)
    length = ball.norm(step if ball is Linf else step.where(free != 0, 0))
    torch.testing.assert_close(length[can_move], torch.ones(4).double()[can_move])
    assert torch.equal(step[0], torch.zeros_like(step[0]))
    if ball is not Linf:  # whose projection takes such steps back
        assert torch.equal(step.where(free == 0, 0), torch.zeros_like(step))
    assert (step * gradient >= 0).all()
    if left == 0 or ball is not L1:
        torch.testing.assert_close(step.where(free != 0, 0), ball.steepest(free))


@pytest.mark.parametrize(
    ("left", "features"), [(0.0, 1), (0.1, 1), (0.4, 1), (0.5, 2), (0.7, 5), (0.9, 14), (0.999, 20)]
)
def test_an_l1_stride_is_shared_by_the_largest_gradients_in_proportion(left: float, features: int) -> None:
    gradient = torch.randn(3, 10, 20, generator=rng(), dtype=torch.float64)
    step = L1.stride(gradient, torch.full((3, 10, 20), 0.5), left).flatten(1)
    size = gradient.flatten(1).abs()
    chosen = step != 0
    assert (chosen.sum(1) == features).all()
    largest = size.topk(features, dim=1)
    assert chosen.gather(1, largest.indices).all()
    share = largest.values / largest.values.sum(1, keepdim=True)
    torch.testing.assert_close(step.gather(1, largest.indices).abs(), share)
    assert (step.sign() == gradient.flatten(1).sign().where(chosen, 0)).all()


def test_an_l1_stride_of_few_slopes_is_shared_by_them_alone() -> None:
    gradient = torch.zeros(2, 100)
    gradient[1, 3], gradient[1, 70] = 3e-38, -1e-38
    step = L1.stride(gradient, torch.full((2, 100), 0.5), 1.0)
    assert not step[0].any()
    assert step[1].count_nonzero() == 2
    torch.testing.assert_close(step[1, [3, 70]], torch.tensor([0.75, -0.25]), atol=1e-3, rtol=0)


def test_the_open_part_is_what_has_a_step_left() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1e-9]])
    gradient = torch.tensor([[-2.0, 0.0, 2.0, -2.0, 0.0, 2.0, -2.0, 2.0, -2.0]])
    assert open_part(gradient, x).tolist() == [[0.0, 0.0, 2.0, -2.0, 0.0, 0.0, -2.0, 2.0, -2.0]]


# Draws


@given(balls, shapes, seeds, dtypes)
def test_draws_lie_in_the_unit_ball(ball: type[Ball], shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    like = images(20, shape, seed, dtype)
    draw = ball.draw(like, rng(seed))
    assert (draw.shape, draw.dtype) == (like.shape, dtype)
    assert (ball.norm(draw) <= 1 + 1e-6).all()
    assert len({tuple(d) for d in draw.flatten(1).tolist()}) == 20


@given(balls, radii, shapes, seeds, dtypes)
def test_surface_samples_are_those_of_sample_moved_outward(
    ball: type[Ball], eps: float, shape: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    center = images(20, shape, seed, dtype)
    x = ball(eps).sample_surface(center, rng(seed))
    assert_allowed(ball(eps), x, center)
    direction = ball.draw(center, rng(seed))
    moved = center + eps * direction / ball.norm(direction).view(-1, *[1] * len(shape))
    torch.testing.assert_close(x, moved.clamp(0, 1), atol=1e-6, rtol=0)
    middle = torch.full_like(center, 0.5)
    far = ball(0.3).sample_surface(middle, rng(seed)) - middle
    torch.testing.assert_close(ball.norm(far), torch.full((20,), 0.3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ball", [Linf(0.1), L2(3.0), L1(100.0)], ids=repr)
def test_surface_samples_survive_half_precision(ball: Ball, dtype: torch.dtype) -> None:
    center = torch.full((1, 3, 224, 224), 0.5, dtype=dtype)
    x = ball.sample_surface(center, rng())
    assert x.dtype == dtype
    assert 0.5 * ball.eps < ball.norm(x.float() - 0.5).item() < 1.05 * ball.eps


# Other boxes


@given(balls, radii, shapes, spreads, seeds, st.sampled_from([(-1.0, 1.0), (-0.2, 0.4), (0.0, 1.0)]))
def test_projection_into_another_box_is_allowed_and_nearest(
    ball: type[Ball], eps: float, shape: tuple[int, ...], spread: float, seed: int, box: tuple[float, float]
) -> None:
    center = images(4, shape, seed) * (box[1] - box[0]) + box[0]
    x = points(center, spread, seed + 1)
    nearest = ball(eps).project(x, center, box=box)
    assert nearest.min() >= box[0] - 1e-12
    assert nearest.max() <= box[1] + 1e-12
    torch.testing.assert_close(
        nearest, slow_projection(ball(eps), x, center, box), atol=1e-12 * (1 + spread), rtol=1e-9
    )
    if box == (0.0, 1.0):
        assert torch.equal(ball(eps).project(x, center), nearest)


@pytest.mark.parametrize("ball", BALLS)
def test_a_perturbation_is_projected_around_zero(ball: type[Ball]) -> None:
    zero = torch.zeros(1, 6)
    delta = torch.tensor([[-0.5, 0.5, 0.2, -0.1, 0.0, -3.0]])
    inside = ball(0.4).project(delta, zero, box=(-1, 1))
    assert ball.norm(inside).item() == pytest.approx(0.4)
    assert inside.min() < 0
