import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advcourse.ascent import Verdict
from advcourse.goals import Untargeted, margin
from advcourse.gradients import Exact, Scored
from advcourse.gradients.coordinates import Parabolas, parabolas
from advcourse.oracles import Scores

from ..helpers import Counted, images, network, rng, seeds, shapes


def judged(loss: Tensor) -> Verdict:
    return Verdict(loss, torch.zeros(len(loss), dtype=torch.bool))


def units(x: Tensor) -> Tensor:
    """All coordinate directions of images x, for each image: (N, D, ...)."""
    features = x[0].numel()
    return torch.eye(features, dtype=x.dtype).view(1, features, *x.shape[1:]).expand(len(x), -1, *x.shape[1:])


@given(shapes, seeds, st.sampled_from([1e-3, 0.1, 2.0]))
def test_a_quadratic_is_met_exactly(shape: tuple[int, ...], seed: int, h: float) -> None:
    features = torch.Size(shape).numel()
    root = torch.randn(features, features, generator=rng(seed), dtype=torch.float64)
    hessian, slope = root + root.T, torch.randn(features, generator=rng(seed + 1), dtype=torch.float64)

    def judge(points: Tensor, owner: Tensor) -> Verdict:
        flat = points.flatten(1)
        return judged(0.5 * (flat @ hessian * flat).sum(1) + flat @ slope + owner)

    x, owner = images(3, shape, seed), torch.arange(3)
    v = torch.randn(3, 5, *shape, generator=rng(seed + 2), dtype=torch.float64)
    bend = parabolas(judge, x, judge(x, owner), v, h, owner)
    along = v.flatten(2)
    torch.testing.assert_close(bend.gradient, torch.einsum("rnd,rd->rn", along, x.flatten(1) @ hessian + slope))
    torch.testing.assert_close(bend.curvature, (along @ hessian * along).sum(2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_all_coordinates_are_the_gradient_up_to_h_squared(shape: tuple[int, ...]) -> None:
    model, x = network(shape), 0.3 + 0.4 * torch.rand(4, *shape, generator=rng(), dtype=torch.float64)
    goal, owner = Untargeted(model(x).argmax(1)), torch.arange(4)
    exact = Exact(model, margin, goal)(x, owner)
    judge = Scored(Scores(model), margin, goal)
    judge.oracle.begin(4)
    errors = []
    for h in 2e-3, 1e-3:
        bend = parabolas(judge, x, exact, units(x), h, owner)
        errors.append((bend.gradient - exact.gradient.flatten(1)).norm().item())
    assert errors[1] < 1e-2 * exact.gradient.norm()
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_two_queries_a_direction_at_once_for_its_owner() -> None:
    model, x = Counted(network((7,))), images(6, (7,))
    judge = Scored(Scores(model, batch_size=1000), margin, Untargeted(torch.zeros(6, dtype=torch.long)))
    judge.oracle.begin(6)
    rows = torch.tensor([1, 4])
    bend = parabolas(judge, x[rows], judged(torch.zeros(2).double()), units(x[rows])[:, :3], 0.1, rows)
    assert model.forwards == [12]
    assert judge.oracle.queries.tolist() == [0, 6, 0, 0, 6, 0]
    assert bend.gradient.shape == bend.curvature.shape == (2, 3)


def test_what_vanished_is_told_for_each_point() -> None:
    def judge(points: Tensor, owner: Tensor) -> Verdict:
        return judged(points[:, 0] * (owner == 1))

    x, owner = images(2, (4,)), torch.arange(2)
    bend = parabolas(judge, x, judge(x, owner), units(x), 0.1, owner)
    assert isinstance(bend, Parabolas)
    assert bend.vanished.tolist() == [1.0, 0.75]
    assert bend.flat.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_points_are_asked_in_their_own_dtype(dtype: torch.dtype) -> None:
    seen = []

    def judge(points: Tensor, owner: Tensor) -> Verdict:
        seen.append(points.dtype)
        return judged(points.sum(1))

    x, owner = torch.full((1, 2), 0.5, dtype=dtype), torch.tensor([0])
    bend = parabolas(judge, x, judge(x, owner), torch.eye(2)[None], 0.25, owner)
    assert set(seen) == {dtype}
    assert bend.gradient.dtype == torch.float32
    assert bend.gradient.tolist() == [[1.0, 1.0]]
