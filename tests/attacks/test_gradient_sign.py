import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from functools import partial
from typing import Any

import foolbox
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse import data, models
from advcourse.ascent import State, ZeroGradient
from advcourse.attacks import FGSM, PGD, Attack, ascend
from advcourse.goals import Goal, Loss, Targeted, Untargeted, cross_entropy, logit, margin
from advcourse.gradients import Exact
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import (
    BALLS,
    Counted,
    Deceptive,
    Linear,
    balls,
    convolutional,
    images,
    linear_yardstick,
    network,
    never_fooled,
    rng,
    seeds,
    setting,
    shapes,
)

losses = st.sampled_from([cross_entropy, margin, logit])
eps_values = st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0])
attacks = st.one_of(
    st.builds(
        lambda ball, eps, size, loss: FGSM(ball(eps), size, loss),
        balls,
        eps_values,
        st.none() | st.floats(0, 3),
        losses,
    ),
    st.builds(
        lambda ball, eps, steps, size, restarts, loss, start: PGD(
            ball(eps), steps, size, start or restarts > 1, restarts, loss
        ),
        balls,
        eps_values,
        st.integers(1, 6),
        st.none() | st.floats(0, 3),
        st.integers(1, 3),
        losses,
        st.booleans(),
    ),
)
cases = given(attacks, shapes, st.sampled_from([2, 3, 5]), seeds, st.sampled_from([Untargeted, Targeted]))


# Identities that hold for every attack, ball, goal and loss


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_iterates_keep_every_promise(
    attack: Any, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    rows = torch.arange(6)
    states: list[State] = list(attack.iterates(model, x, goal))
    clean = goal.fooled(model(x).argmax(1))
    highest, best = torch.full((6,), -torch.inf).double(), x
    climb = getattr(attack, "steps", 1) + 1
    previous = clean
    for k, state in enumerate(states):
        assert state.step == k
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
            assert (attack.ball.norm(image - x) <= attack.ball.eps + 1e-9).all()
        if k:
            assert torch.equal(state.x[previous], states[k - 1].x[previous])
        assert torch.equal(state.x[clean], x[clean])
        # The best is the first fooled iterate or else, the starts of climbs aside, the highest.
        met = Exact(model, attack.loss, goal).judge(state.x, rows)
        torch.testing.assert_close(state.loss, met.loss)
        higher = ~previous & (met.fooled | ((met.loss > highest + 1e-9) & (k % climb > 0)))
        highest = torch.where(higher, met.loss, highest)
        best = torch.where(higher.view(-1, *[1] * len(shape)), state.x, best)
        previous = previous | met.fooled
        assert torch.equal(state.success, previous)
    torch.testing.assert_close(
        Exact(model, attack.loss, goal).judge(states[-1].best, rows).loss[~clean], highest[~clean]
    )
    assert torch.equal(attack(model, x, goal), states[-1].best)
    assert torch.equal(goal.fooled(model(states[-1].best).argmax(1)), states[-1].success)


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_images_do_not_meet(attack: Any, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    chunked = replace(attack, batch_size=4)(model, x, goal)  # random starts included
    torch.testing.assert_close(chunked, attack(model, x, goal), atol=1e-9, rtol=0)
    alone = attack if isinstance(attack, FGSM) else replace(attack, random_start=False, restarts=1)
    whole = alone(model, x, goal)
    for i in range(6):
        one = torch.tensor([i])
        torch.testing.assert_close(alone(model, x[one], goal[one]), whole[one], atol=1e-9, rtol=0)


@given(balls, shapes, seeds, losses, st.sampled_from([Untargeted, Targeted]), st.floats(1e-3, 2), st.floats(0, 2))
@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
def test_fgsm_is_one_step_of_pgd(
    ball: type[Ball], shape: tuple[int, ...], seed: int, loss: Loss, kind: type[Goal], eps: float, size: float
) -> None:
    model, x, goal = setting(shape, 3, seed, kind)
    one = partial(PGD, ball(eps), steps=1, random_start=False, loss=loss)
    assert torch.equal(FGSM(ball(eps), loss=loss)(model, x, goal), one(step_size=eps)(model, x, goal))
    assert torch.equal(FGSM(ball(eps), size, loss)(model, x, goal), one(step_size=size)(model, x, goal))


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("make", [FGSM, PGD, partial(PGD, restarts=2, steps=3)])
def test_without_a_radius_the_image_comes_back(make: Callable[[Ball], Attack], ball: type[Ball]) -> None:
    model, x, goal = setting((3, 4), 3, 0, Untargeted)
    assert torch.equal(make(ball(0.0))(model, x, goal), x)


# The closed form: on a linear model the margin rises by exactly eps times the dual norm of the weight

WEIGHT = torch.tensor([[3.0, -0.2, 1.5], [-5.0, 0.7, 0.01]]).double()


def linear_setting(ball: type[Ball], share: float) -> tuple[nn.Module, Tensor, float]:
    """A linear model, images of equal margin far from the box, and `share` times the eps at which they flip."""
    x = 0.5 + 0.05 * (torch.rand(4, 2, 3, generator=rng(), dtype=torch.float64) - 0.5)
    x = x - ((x * WEIGHT).flatten(1).sum(1) - 1.0)[:, None, None] * WEIGHT / WEIGHT.square().sum()
    return Linear(WEIGHT, bias=-1.5), x, share * 0.5 / ball.dual_norm(WEIGHT[None]).item()


WHITE_BOX: list[Callable[..., Attack]] = [
    FGSM,
    partial(PGD, random_start=False),
    partial(PGD, steps=1, random_start=False),
    partial(PGD, steps=3, step_size=5.0, random_start=False),
]


@pytest.mark.parametrize("loss", [cross_entropy, margin, logit])
@pytest.mark.parametrize("make", WHITE_BOX)
@pytest.mark.parametrize("ball", BALLS)
def test_margin_rises_by_exactly_eps_times_the_dual_norm(
    ball: type[Ball], make: Callable[..., Attack], loss: Loss
) -> None:
    model, x, eps = linear_setting(ball, 0.9)
    if loss is logit:
        model = nn.Sequential(model, nn.Linear(2, 2, bias=False).double())
        model[1].weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).double()
    for goal in Untargeted(torch.zeros(4, dtype=torch.long)), Targeted(torch.ones(4, dtype=torch.long)):
        if loss is logit and isinstance(goal, Targeted):
            continue  # the target's logit is constant here
        before, after = (margin(model(z), goal) for z in (x, make(ball(eps), loss=loss)(model, x, goal)))
        torch.testing.assert_close(after - before, torch.full((4,), eps * ball.dual_norm(WEIGHT[None]).item()).double())


@pytest.mark.parametrize("make", [*WHITE_BOX, partial(PGD, restarts=2)])
@pytest.mark.parametrize("ball", BALLS)
def test_labels_flip_just_above_the_optimal_radius_and_never_below(
    ball: type[Ball], make: Callable[..., Attack]
) -> None:
    for goal in Untargeted(torch.zeros(4, dtype=torch.long)), Targeted(torch.ones(4, dtype=torch.long)):
        for share, flips in (0.98, False), (1.02, True):
            model, x, eps = linear_setting(ball, share)
            predicted = model(make(ball(eps))(model, x, goal)).argmax(1)
            assert predicted.tolist() == [int(flips)] * 4


@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7), (1, 28, 28)])
@pytest.mark.parametrize("ball", BALLS)
def test_the_optimal_radius_is_the_same_in_every_shape(ball: type[Ball], shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(ball, shape)
    y = torch.zeros(len(x), dtype=torch.long)
    above = {FGSM: 1.02, partial(PGD, steps=7, random_start=False, loss=margin): 1.02, PGD: 1.02}
    if ball is L2:
        above[PGD] = 1.05  # 2.5 radii of steps turn an angle of 90° into one of 10°, of cosine 0.986
    if ball is L1 and math.prod(shape) > 100:
        above = {FGSM: 1.02}  # see below
    for goal in Untargeted(y), Targeted(y + 1):
        for make, more in above.items():
            for share, flips in (0.98, False), (more, True):
                found = make(ball(share * eps))(model, x, goal)
                assert model(found).argmax(1).tolist() == [int(flips)] * len(x)


@pytest.mark.parametrize("shape", [(5, 7, 7), (1, 28, 28)])
def test_the_optimal_radius_is_reached_in_l1_where_a_stride_is_shared(shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(L1, shape)
    found = PGD(L1(1.02 * eps))(model, x, torch.zeros(len(x), dtype=torch.long))
    assert (model(found).argmax(1) == 1).all()


@pytest.mark.parametrize("ball", BALLS)
def test_targets_are_reached_among_many_classes(ball: type[Ball]) -> None:
    weight = torch.eye(5, 8).double() + 0.2 * torch.randn(5, 8, generator=rng(), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5, bias=False).double())
    model[1].weight.data = weight
    x = torch.full((5, 2, 4), 0.5).double()
    targets = torch.arange(5)
    for loss in cross_entropy, margin:
        found = PGD(ball(10.0), steps=60, step_size=0.2, loss=loss)(model, x, Targeted(targets))
        assert model(found).argmax(1).tolist() == targets.tolist()
    untargeted = PGD(ball(10.0), steps=60, step_size=0.2)(model, x, targets)
    assert (model(untargeted).argmax(1) != targets).all()


@pytest.mark.parametrize("ball", BALLS)
def test_step_size_may_differ_from_eps(ball: type[Ball]) -> None:
    model, x, eps = linear_setting(ball, 0.9)
    y = torch.zeros(4, dtype=torch.long)
    for size, length in (eps / 4, eps / 4), (eps, eps), (7 * eps, eps):
        moved = FGSM(ball(eps), size)(model, x, y) - x
        torch.testing.assert_close(ball.norm(moved), torch.full((4,), length).double())
    torch.testing.assert_close(FGSM(ball(eps), 7 * eps)(model, x, y), FGSM(ball(eps))(model, x, y))


@pytest.mark.parametrize("ball", BALLS)
def test_faces_of_the_box_do_not_stop_the_climb(ball: type[Ball]) -> None:
    # The heaviest feature stands where it cannot move; the others can.
    model, x, y = (
        Linear(torch.tensor([5.0, 1.0, -2.0]).double(), -30.0),
        torch.tensor([[1.0, 0.5, 0.5]]).double(),
        torch.tensor([0]),
    )
    for attack in FGSM(ball(0.2)), PGD(ball(0.2), random_start=False), PGD(ball(0.2)):
        assert model(attack(model, x, y))[0, 1] > model(x)[0, 1] + 0.1


# Which passes are made, and what for


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("restarts", [1, 3])
def test_passes_for_a_model_that_is_never_fooled(steps: int, restarts: int) -> None:
    model, x, y = never_fooled()
    for start in (True, False) if restarts == 1 else (True,):
        counted = Counted(model)
        states = list(PGD(Linf(0.1), steps, random_start=start, restarts=restarts).iterates(counted, x, y))
        assert counted.backwards == [4] * steps * restarts
        assert counted.forwards == [4] * ((steps + 1) * restarts + start)
        assert [state.step for state in states] == list(range((steps + 1) * restarts))
    counted = Counted(model)
    assert len(list(FGSM(Linf(0.1)).iterates(counted, x, y))) == 2
    assert (counted.forwards, counted.backwards) == ([4, 4], [4])


@pytest.mark.parametrize(
    "attack", [FGSM(Linf(0.1)), PGD(L2(0.5)), PGD(L1(0.5), random_start=False), PGD(Linf(0.1), restarts=5)]
)
def test_images_already_fooled_come_back_unchanged_for_one_pass(attack: Any) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = attack.iterates(counted, x, y + 1)
    assert state.success.all()
    assert torch.equal(state.best, x)
    assert torch.equal(state.x, x)
    assert counted.forwards == [4]
    # Mixed with others: those pay for themselves alone.
    counted = Counted(model)
    found = attack(counted, x, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(found[1::2], x[1::2])
    assert (found[::2] != x[::2]).flatten(1).any(1).all()
    assert counted.forwards[0] == 4
    assert set(counted.forwards[1:]) == {2}


def test_images_that_are_done_leave_the_batch() -> None:
    weight = torch.ones(1).double()
    x = torch.tensor([[0.45], [0.35], [0.25], [0.0]]).double()
    counted = Counted(Linear(weight, bias=-0.5))
    attack = PGD(Linf(0.4), steps=4, step_size=0.1, random_start=False)
    states = list(attack.iterates(counted, x, torch.zeros(4, dtype=torch.long)))
    assert counted.forwards == [4, 4, 3, 2, 1]
    assert counted.backwards[0] == 4
    assert [state.success.sum().item() for state in states] == [0, 1, 2, 3, 3]
    torch.testing.assert_close(states[-1].best, torch.tensor([[0.55], [0.55], [0.55], [0.4]]).double())


# What comes back


@pytest.mark.parametrize("attack", [FGSM(Linf(0.1)), PGD(L2(0.2), 5, 0.1, False), PGD(L1(0.2), 5, random_start=False)])
def test_an_attack_that_only_loses_still_returns_an_iterate(attack: Any) -> None:
    model, x, y = never_fooled()
    x = 0.4 + 0.2 * x  # room on both sides
    trap = Deceptive(model)
    states = list(attack.iterates(trap, x, y))
    found = states[-1].best
    assert not states[-1].success.any()
    assert (found != x).flatten(1).any(1).all()
    highest = torch.stack([state.loss for state in states[1:]]).amax(0)
    torch.testing.assert_close(cross_entropy(model(found), Untargeted(y)), highest)
    assert (highest < cross_entropy(model(x), Untargeted(y))).all()


@pytest.mark.parametrize("ball", BALLS)
def test_restarts_only_help(ball: type[Ball]) -> None:
    model, x, goal = setting((3, 4), 3, 1, Untargeted)
    x, goal = images(60, (3, 4), 1), Untargeted(model(images(60, (3, 4), 1)).argmax(1))
    once, more = (list(PGD(ball(0.15), 2, restarts=restarts).iterates(model, x, goal))[-1] for restarts in (1, 6))
    assert torch.equal(more.best[once.success], once.best[once.success])
    assert (more.success | ~once.success).all()
    both = ~more.success
    assert (more.best_loss[both] >= once.best_loss[both]).all()
    assert more.success.sum() > once.success.sum()
    assert both.any()


def test_a_random_start_starts_at_a_uniform_draw() -> None:
    model, x, y = never_fooled()
    first = next(iter(PGD(Linf(0.1)).iterates(model, x, y, generator=rng(3))))
    assert torch.equal(first.x, Linf(0.1).sample(x, rng(3)))
    assert torch.equal(next(iter(PGD(Linf(0.1), random_start=False).iterates(model, x, y))).x, x)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((3, 4), 3, 2, Untargeted)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in PGD(Linf(0.05), 5, restarts=2).iterates(model, x, goal)
    ]
    for state, copies in kept:
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@pytest.mark.parametrize("shape", [(1,), (9,), (4, 1), (1, 6, 6), (2, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ball", BALLS)
def test_shape_and_dtype_are_kept(ball: type[Ball], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = network(shape, dtype=dtype), images(3, shape, dtype=dtype)
    for attack in FGSM(ball(0.1)), PGD(ball(0.1), 3):
        found = attack(model, x, model(x).argmax(1))
        assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)


def test_channels_last_images_give_the_same_result() -> None:
    model, x = network((3, 4, 4)), images(3, (3, 4, 4))
    y = model(x).argmax(1)
    for ball in BALLS:
        attack = PGD(ball(0.3), 3)
        torch.testing.assert_close(
            attack(model, x.contiguous(memory_format=torch.channels_last), y), attack(model, x, y)
        )


def test_a_saturated_loss_is_reported_and_margin_gets_through() -> None:
    model = Linear(torch.tensor([1e6, 2e6]), bias=-1.9e6)
    x, y = torch.tensor([[0.6, 0.6], [0.5, 0.6]]), torch.tensor([0, 0])
    with pytest.warns(ZeroGradient, match=r"for 2 of 2 images at step 0.*margin"):
        found = PGD(Linf(0.1), random_start=False)(model, x, y)
    assert torch.isfinite(found).all()
    assert (model(found).argmax(1) == 0).all()
    assert (model(PGD(Linf(0.1), loss=margin)(model, x, y)).argmax(1) == 1).all()


# Attacks are values


def test_attacks_are_values() -> None:
    attack = PGD(Linf(0.1), steps=10)
    assert attack == PGD(Linf(0.1), steps=10)
    assert (
        len({attack, PGD(Linf(0.1), steps=10), replace(attack, steps=11), PGD(L2(0.1), steps=10), FGSM(Linf(0.1))}) == 4
    )
    assert replace(attack, restarts=2) == PGD(Linf(0.1), 10, restarts=2)
    for part in (
        "PGD(",
        "Linf(eps=0.1)",
        "steps=10",
        "step_size=None",
        "random_start=True",
        "restarts=1",
        "cross_entropy",
    ):
        assert part in repr(attack)
    with pytest.raises(FrozenInstanceError):
        attack.steps = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="steps"):
        replace(attack, steps=0)


def test_defaults_are_the_documented_ones() -> None:
    assert (PGD(Linf(0.1)).steps, PGD(Linf(0.1)).random_start, PGD(Linf(0.1)).restarts) == (40, True, 1)
    model, x, y = never_fooled()
    x = 0.4 + 0.2 * x
    states = list(PGD(Linf(0.1), steps=50, random_start=False).iterates(model, x, y))
    torch.testing.assert_close(Linf.norm(states[1].x - x), torch.full((4,), 2.5 * 0.1 / 50).double())


# Other people's implementations, where they are right


def last_iterate(ball: Ball, steps: int, size: float) -> Tensor:
    model, x, y = convolutional()
    *_, last = ascend(Exact(model, cross_entropy, Untargeted(y)), ball, x, steps, size)
    return last.x


@pytest.mark.parametrize(("eps", "size", "steps"), [(0.1, 0.02, 10), (0.5, 0.3, 4), (0.05, 0.05, 1)])
def test_linf_pgd_agrees_with_torchattacks_and_foolbox(eps: float, size: float, steps: int) -> None:
    model, x, y = convolutional()
    ours = last_iterate(Linf(eps), steps, size)
    peer = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=False)(x, y)
    torch.testing.assert_close(ours, peer, atol=1e-6, rtol=0)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)
    peer, _, _ = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=eps)
    torch.testing.assert_close(ours, peer, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("eps", "size", "steps"), [(0.3, 0.1, 10), (0.2, 0.5, 4)])
def test_l2_pgd_agrees_with_foolbox_far_from_the_box(eps: float, size: float, steps: int) -> None:
    model, x, y = convolutional()
    ours = last_iterate(L2(eps), steps, size)
    assert ours.min() > 0  # foolbox's projection is exact only here
    assert ours.max() < 1
    attack = foolbox.attacks.L2PGD(abs_stepsize=size, steps=steps, random_start=False)
    peer, _, _ = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=eps)
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=0)


def test_fgsm_agrees_with_torchattacks_and_foolbox() -> None:
    model, x, y = convolutional()
    ours = FGSM(Linf(0.1))(model, x, y)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=0.1)(x, y), atol=1e-6, rtol=0)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    peer, _, _ = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=0.1)
    torch.testing.assert_close(ours, peer, atol=1e-6, rtol=0)


def test_pgd_succeeds_where_torchattacks_does() -> None:
    model, x, y = convolutional()
    for eps in 0.02, 0.05, 0.1:
        peer = torchattacks.PGD(model, eps=eps, alpha=eps / 8, steps=20, random_start=False)(x, y)
        ours = PGD(Linf(eps), 20, eps / 8, random_start=False)(model, x, y)
        assert ((model(ours).argmax(1) != y) | (model(peer).argmax(1) == y)).all()


def test_an_attack_prints_its_hyper_parameters_the_same_way_each_time() -> None:
    assert repr(FGSM(Linf(0.1))) == "FGSM(ball=Linf(eps=0.1), step_size=None, loss=cross_entropy, batch_size=512)"
    assert "at 0x" not in repr(PGD(L2(1), loss=margin))


# L1, where one feature a step is not enough


def l1_fooled(n: int, eps: float, *attacks: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> list[int]:
    model = models.load("cnn")
    x, y = data.fashion_mnist("test", n=n)
    return [int((model(attack(model, x, y)).argmax(1) != y).sum()) for attack in attacks]


def test_more_l1_steps_are_never_much_worse() -> None:
    eps = 6.0
    few, more, many = l1_fooled(40, eps, *(PGD(L1(eps), steps, random_start=False) for steps in (5, 15, 45)))
    assert 5 < few < 40
    assert more >= few - 1
    assert many >= more - 1


def test_l1_pgd_is_about_as_good_as_slide() -> None:
    # Tramèr & Boneh's attack, in foolbox: the largest gradients' signs, a fixed share of the features.
    eps = 6.0

    def slide(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = foolbox.attacks.SparseL1DescentAttack(steps=20, quantile=0.99, random_start=False)
        found = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=eps)[1]
        assert isinstance(found, Tensor)
        return found

    ours, theirs = l1_fooled(40, eps, PGD(L1(eps), 20, random_start=False), slide)
    assert ours >= theirs - 2
