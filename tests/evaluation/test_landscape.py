import pytest
import torch
from torch import Tensor, nn

from advcourse.evaluation import directions, landscape, loss_change
from advcourse.goals import Targeted, Untargeted, cross_entropy, logit, margin

from ..helpers import Counted, Linear, images, network, rng

X = torch.full((1, 2, 3), 0.5).double()
Y = torch.tensor([0])


def test_a_linear_loss_is_a_plane() -> None:
    weight = torch.arange(6).view(2, 3).double() - 2
    u, v = torch.zeros(2, 1, 2, 3).double()
    u[0, 0, 0], v[0, 1, 2] = 1, 2
    losses = landscape(Linear(weight), X, Y, u, v, 0.2, resolution=5, loss=margin)
    side = torch.linspace(-0.2, 0.2, 5).double()
    middle = (weight * X).sum()
    torch.testing.assert_close(losses, middle - 2 * side[:, None] + 6 * side)


def test_points_are_clipped_to_what_a_model_may_be_offered() -> None:
    seen: list[Tensor] = []

    def recorded(x: Tensor) -> Tensor:
        seen.append(x)
        return network((2, 3))(x)

    u, v = directions(recorded, X, Y)
    flat = landscape(recorded, X, Y, u, v, radius=2.0, resolution=9)
    assert torch.cat(seen).aminmax() == (0, 1)
    torch.testing.assert_close(flat[0, 4], flat[1, 4])  # all features met the box at a = -1.5 already
    torch.testing.assert_close(flat[4, 4], cross_entropy(network((2, 3))(X), Untargeted(Y))[0])


def test_one_pass_in_batches() -> None:
    model = Counted(network((2, 3)))
    landscape(model, X, Y, X, X, 0.1, resolution=25)
    assert model.forwards == [512, 113]
    assert model.backwards == []


def test_directions_are_the_gradient_and_a_coin_for_each_feature() -> None:
    weight = torch.tensor([[1.0, -2, 0], [3, -4, 5]]).double()
    u, v = directions(Linear(weight), X, Y, logit)
    torch.testing.assert_close(u[0], torch.zeros(2, 3).double())  # the logit of class 0 is constant
    u, v = directions(Linear(weight), X, Y)
    torch.testing.assert_close(u[0], weight.sign())
    assert set(v.flatten().tolist()) <= {-1.0, 1.0}
    assert v.shape == X.shape
    assert v.dtype == X.dtype
    towards, _ = directions(Linear(weight), X, Targeted(Y))
    torch.testing.assert_close(towards[0], -weight.sign())
    assert torch.equal(directions(Linear(weight), X, Y)[1], v)
    many = images(1, (1000,))
    coins = [directions(Linear(many[0]), many, Y, generator=rng(seed))[1] for seed in (1, 2)]
    assert not torch.equal(*coins)
    assert all(abs(coin.mean()) < 0.15 for coin in coins)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).double()
    buffers = [buffer.clone() for buffer in model.buffers()]
    u, v = directions(model, X, Y)
    landscape(model, X, Y, u, v, 0.1, 3)
    assert model.training
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_of_one_image_and_in_its_shape() -> None:
    model = network((2, 3))
    two = torch.cat([X, X])
    with pytest.raises(ValueError, match="one image"):
        directions(model, two, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="one image"):
        landscape(model, two, torch.tensor([0, 0]), two, two, 0.1)
    with pytest.raises(ValueError, match="directions"):
        landscape(model, X, Y, X[0], X, 0.1)
    with pytest.raises(ValueError, match="resolution"):
        landscape(model, X, Y, X, X, 0.1, resolution=1)
    with pytest.raises(ValueError, match="radius"):
        landscape(model, X, Y, X, X, -0.1)


def test_the_loss_changes_along_a_direction_as_it_does_by_hand() -> None:
    model, x = network((2, 3)), images(4, (2, 3))
    y = torch.tensor([0, 1, 2, 0])
    signs = 2 * torch.randint(2, (3, 4, 2, 3), generator=rng(5)) - 1
    found = loss_change(model, x, y, [0.0, 0.05, 0.3], directions=3, loss=margin, generator=rng(5))
    for row, radius in zip(found, [0.0, 0.05, 0.3], strict=True):
        there = [margin(model((x + radius * sign).clamp(0, 1)), Untargeted(y)) for sign in signs]
        torch.testing.assert_close(row, torch.stack(there).mean(0) - margin(model(x), Untargeted(y)))
    assert found.shape == (3, 4)
    assert (found[0] == 0).all()


def test_a_goal_gives_the_change_its_sign() -> None:
    model, x = network((2, 3)), images(4, (2, 3))
    y = torch.tensor([0, 1, 2, 0])
    away, towards = (loss_change(model, x, kind(y), [0.1], loss=logit) for kind in (Untargeted, Targeted))
    torch.testing.assert_close(away, -towards)


def test_changes_cost_one_pass_for_each_direction_and_radius() -> None:
    model = Counted(network((2, 3)))
    loss_change(model, images(4, (2, 3)), torch.tensor([0, 1, 2, 0]), [0.1, 0.2], directions=5)
    assert sum(model.forwards) == 4 * (1 + 2 * 5)
    assert not model.backwards


@pytest.mark.parametrize(("radii", "directions"), [([-0.1], 3), ([0.1], 0), ([float("nan")], 3)])
def test_radii_and_directions_that_make_no_sense_are_refused(radii: list[float], directions: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        loss_change(network((2, 3)), X, Y, radii, directions)
