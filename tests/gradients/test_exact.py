import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advcourse.goals import Loss, Targeted, Untargeted, cross_entropy, logit, margin
from advcourse.gradients import Exact

from ..helpers import Counted, images, network, rng, seeds, shapes

losses = st.sampled_from([cross_entropy, margin, logit])


@given(losses, shapes, seeds, st.sampled_from([Untargeted, Targeted]))
def test_gradient_is_the_slope_of_the_loss(
    loss: Loss, shape: tuple[int, ...], seed: int, goal: type[Untargeted] | type[Targeted]
) -> None:
    model, x = network(shape, seed=seed), images(4, shape, seed)
    gradient = Exact(model, loss, goal(torch.randint(3, (4,), generator=rng(seed))))
    owner = torch.arange(4)
    direction = torch.randn(x.shape, generator=rng(seed + 1), dtype=x.dtype)
    h = 1e-7
    ahead, behind = (gradient.judge(x + sign * h * direction, owner).loss for sign in (1, -1))
    slope = gradient(x, owner)
    along = (slope.gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, (ahead - behind) / (2 * h), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(slope.loss, gradient.judge(x, owner).loss)
    assert torch.equal(slope.fooled, gradient.judge(x, owner).fooled)


def test_points_bring_their_owners_along() -> None:
    model, x, y = network((5,)), images(3, (5,)), torch.tensor([0, 1, 2])
    gradient = Exact(model, cross_entropy, Untargeted(y))
    owner = torch.tensor([2, 0, 2, 2])
    points = torch.cat([x, x[:1]])
    slope, expected = (
        gradient(points, owner),
        Exact(model, cross_entropy, Untargeted(y[owner]))(points, torch.arange(4)),
    )
    assert torch.equal(slope.loss, expected.loss)
    assert torch.equal(slope.gradient, expected.gradient)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_chunks_change_the_memory_and_not_the_result(batch_size: int) -> None:
    model, x, y = Counted(network((3, 4))), images(7, (3, 4)), torch.randint(3, (7,), generator=rng())
    owner = torch.arange(7)
    whole = Exact(model, margin, Untargeted(y))(x, owner)
    model.forwards.clear()
    model.backwards.clear()
    parts = Exact(model, margin, Untargeted(y), batch_size)(x, owner)
    for name in "loss", "gradient":
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-12, rtol=0)
    assert torch.equal(parts.fooled, whole.fooled)
    assert model.forwards == model.backwards == [len(part) for part in x.split(batch_size)]


def test_an_image_s_gradient_does_not_depend_on_its_neighbours() -> None:
    model, x, y = network((6,)), images(9, (6,)), torch.randint(3, (9,), generator=rng())
    gradient = Exact(model, cross_entropy, Untargeted(y))
    alone = torch.cat([gradient(x[i : i + 1], torch.tensor([i])).gradient for i in range(9)])
    torch.testing.assert_close(gradient(x, torch.arange(9)).gradient, alone, atol=1e-12, rtol=0)


def test_nothing_but_the_points_is_differentiated() -> None:
    model, x, y = network((5,)), images(3, (5,)), torch.tensor([0, 1, 2])
    slope = Exact(model, cross_entropy, Untargeted(y))(x, torch.arange(3))
    assert all(p.grad is None for p in model.parameters())
    assert x.grad is None
    assert not any(value.requires_grad for value in (x, slope.loss, slope.gradient))


@pytest.mark.parametrize(
    "loss", [lambda z, goal: cross_entropy(z, goal).mean(), lambda z, goal: margin(z, goal)[:, None]]
)
def test_a_loss_without_one_number_per_image_is_refused(loss: Loss) -> None:
    gradient = Exact(network((5,)), loss, Untargeted(torch.tensor([0, 1, 2])))

    def ask() -> Tensor:
        return gradient(images(3, (5,)), torch.arange(3)).loss

    with pytest.raises(ValueError, match="loss"):
        ask()
