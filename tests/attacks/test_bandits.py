import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from advcourse.attacks import Bandits, Queried
from advcourse.attacks.bandits import Belief
from advcourse.goals import Goal, Targeted, Untargeted, cross_entropy, margin
from advcourse.gradients import Scored
from advcourse.oracles import Scores
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import Counted, Metered, images, linear_yardstick, network, never_fooled, rng, seeds, setting

SHAPE = (2, 6, 6)
CUBE = Linf(0.1)
both = pytest.mark.parametrize("ball", [Linf, L2])
flat_is_fine = pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")


def last_of(attack: Bandits, target: Any, x: Tensor, goal: Any, **options: Any) -> Queried:
    *_, last = attack.iterates(target, x, goal, **options)
    return last


def believing(
    attack: Bandits, shape: tuple[int, ...] = SHAPE, seed: int = 0
) -> tuple[Belief, Tensor, Callable[[], Any]]:
    """A belief about images that are not fooled, those images, and what asks it once more."""
    model, x = network(shape, 3, seed), images(4, shape, seed)
    judge = Scored(Scores(model), attack.loss, Untargeted(model(x).argmax(1)))
    judge.oracle.begin(4)
    belief, owner = Belief(attack, judge, x, rng(seed)), torch.arange(4)
    return belief, x, lambda: belief(x, owner)


# The belief


@given(seeds, st.sampled_from([0.0, 0.1, 100.0, 1e9]), st.sampled_from([1e-3, 1.0, 50.0]), st.sampled_from([None, 3]))
def test_in_linf_it_stays_between_minus_one_and_one(
    seed: int, rate: float, exploration: float, tile: int | None
) -> None:
    _, _, ask = believing(Bandits(CUBE, tile=tile, rate=rate, exploration=exploration), seed=seed)
    for _ in range(5):
        gradient = ask().gradient
        assert gradient.abs().max() <= 1
    assert (gradient != 0).any() == (rate > 0)


@both
@pytest.mark.parametrize("tile", [1, 2, 3, 6])
def test_it_is_constant_on_tiles(ball: type[Ball], tile: int) -> None:
    _, x, ask = believing(Bandits(ball(0.1), tile=tile))
    for _ in range(3):
        gradient = ask().gradient
    side = 6 // tile
    tiles = gradient.unfold(2, side, side).unfold(3, side, side).flatten(4)
    assert torch.equal(tiles.amin(4), tiles.amax(4))
    assert len(gradient[0, 0].unique()) == tile**2
    assert gradient.shape == x.shape


def test_a_grid_need_not_fit() -> None:
    _, x, ask = believing(Bandits(CUBE, tile=4), shape=(1, 7, 5))
    gradient = ask().gradient
    assert gradient.shape == x.shape
    assert len(gradient[0].unique()) == 16


def test_it_is_that_of_each_image_and_of_none_other() -> None:
    # The queries of one image move its own belief; those who ask nothing keep theirs.
    belief, x, _ = believing(Bandits(CUBE))
    belief(x[1:3], torch.tensor([1, 2]))
    assert [(w != 0).any().item() for w in belief.w] == [False, True, True, False]
    before = belief.w.clone()
    belief(x[:1], torch.tensor([0]))
    assert torch.equal(belief.w[1:], before[1:])


# The recursion


def plainly(attack: Bandits, model: Any, x: Tensor, goal: Goal, seed: int) -> list[Tensor]:
    """The iterates as the authors' program writes them, image by image; in Linf the belief is a probability of up."""
    generator, iterates = rng(seed), [x]
    grid = x.shape[1:] if attack.tile is None else (*x.shape[1:2], attack.tile, attack.tile)
    prior = torch.zeros(len(x), *grid, dtype=x.dtype)

    def loss_at(point: Tensor, i: int) -> float:
        logits = model(point.clamp(0, 1)[None]).log_softmax(1)
        return attack.loss(logits, goal[torch.tensor([i])]).item()

    def enlarged(v: Tensor) -> Tensor:
        return v if attack.tile is None else F.interpolate(v[None], x.shape[2:])[0]

    for _ in range(attack.steps):
        now = iterates[-1]
        going = (~goal.fooled(model(now).argmax(1))).nonzero().squeeze(1).tolist()
        if not going:
            break
        noise = torch.empty(len(going), *grid, dtype=x.dtype).normal_(generator=generator)
        after = now.clone()
        for i, u in zip(going, noise * attack.exploration / prior[0].numel() ** 0.5, strict=True):
            q1, q2 = enlarged(prior[i] + u), enlarged(prior[i] - u)
            ahead, behind = (loss_at(now[i] + attack.eta * q / q.norm(), i) for q in (q1, q2))
            g = (ahead - behind) / (attack.eta * attack.exploration) * u
            if isinstance(attack.ball, Linf):
                up, down = (1 + prior[i]) / 2 * (attack.rate * g).exp(), (1 - prior[i]) / 2 * (-attack.rate * g).exp()
                prior[i] = 2 * up / (up + down) - 1
            else:
                prior[i] += attack.rate * g
            stride = attack.ball.stride(enlarged(prior[i])[None], now[i][None], left=0)
            after[i] = attack.ball.project(now[i] + attack.step_size * stride, x[i][None])[0]
        iterates.append(after)
    return iterates


@both
@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("loss", [margin, cross_entropy])
@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_it_is_the_recursion_of_the_paper(ball: type[Ball], tile: int | None, loss: Any, kind: type[Goal]) -> None:
    model, x, goal = setting(SHAPE, 3, 1, kind)
    attack = Bandits(ball(0.3), 6, tile, step_size=0.02, eta=0.2, exploration=0.5, rate=0.7, loss=loss)
    expected = plainly(attack, model, x, goal, seed=3)
    states = list(attack.iterates(model, x, goal, generator=rng(3)))
    assert len(states) > 3
    for state, iterate in zip(states, expected, strict=False):
        torch.testing.assert_close(state.x, iterate, atol=1e-7, rtol=0)


@both
def test_the_first_step_follows_one_pair_of_nes(ball: type[Ball]) -> None:
    model, x, y = never_fooled(SHAPE)
    attack = Bandits(ball(0.3), 1, step_size=0.05)
    state = last_of(attack, model, x, y, generator=rng(5))
    u = torch.empty_like(x).normal_(generator=rng(5))
    # On a linear loss the difference is the slope along u, but for the box.
    far = attack.eta * L2.steepest(u)
    rise = (model((x + far).clamp(0, 1)) - model((x - far).clamp(0, 1)))[:, 1]
    stride = ball.stride(rise.sign().view(-1, 1, 1, 1) * u, x, left=0)
    torch.testing.assert_close(state.x, attack.ball.project(x + 0.05 * stride, x), atol=1e-12, rtol=0)


@both
@flat_is_fine
def test_neutral_settings(ball: type[Ball]) -> None:
    model, x, goal = setting((2, 6, 6), 3, 4, Untargeted)
    attack = Bandits(ball(0.2), 8, step_size=0.03)
    # A grid as fine as the image is no grid.
    for state, same in zip(
        attack.iterates(model, x, goal), replace(attack, tile=6).iterates(model, x, goal), strict=True
    ):
        assert torch.equal(state.x, same.x)
    # Who learns nothing, or has no step to take, or no room, stays.
    for idle in replace(attack, rate=0.0), replace(attack, step_size=0.0), replace(attack, ball=ball(0.0)):
        assert torch.equal(last_of(idle, model, x, goal).x, x)


@both
def test_what_it_learns_it_keeps(ball: type[Ball]) -> None:
    # Pairs at one and the same point add up to the gradient, which a single pair hardly hints at.
    model, x, y = never_fooled((30,))
    belief, owner = Belief(Bandits(ball(0.1)), Scored(Scores(model), margin, Untargeted(y)), x, rng()), torch.arange(4)
    belief.judge.oracle.begin(4)
    likeness = torch.stack(
        [torch.cosine_similarity(belief(x, owner).gradient, model.weight[None], dim=1) for _ in range(150)]
    )
    assert likeness[0].mean() < 0.3
    assert (likeness[-1] > 0.7).all()


@both
def test_on_a_linear_model_it_comes_near_the_optimum(ball: type[Ball]) -> None:
    model, x, eps = linear_yardstick(ball, (12,))
    y = torch.zeros(len(x), dtype=torch.long)
    for factor, flips in (0.98, False), (1.3, True):
        attack = Bandits(ball(factor * eps), 600, step_size=eps / 20, eta=0.02, rate=1.0)
        assert (last_of(attack, model, x, y).success == flips).all()


# What it costs


@pytest.mark.parametrize("batch_size", [3, 128])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_costs_three_queries_and_the_last_iterate_one(steps: int, batch_size: int) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    oracle = Scores(counted, batch_size=batch_size)
    states = list(Bandits(CUBE, steps).iterates(oracle, x, y))
    assert [state.queries.tolist() for state in states] == [
        *([3 * k] * 4 for k in range(1, steps + 1)),
        [3 * steps + 1] * 4,
    ]
    assert sum(counted.forwards) == 4 * (3 * steps + 1)
    if batch_size > 8:
        assert counted.forwards == [*[4, 8] * steps, 4]


def test_a_budget_buys_as_many_whole_steps_as_fit() -> None:
    model, x, y = never_fooled((9,))
    full = list(Bandits(L2(0.1), 4).iterates(model, x, y))
    for budget in range(1, 16):
        metered = Metered(model, x, budget)
        states = list(Bandits(L2(0.1), 4).iterates(Scores(metered, budget), x, y))
        steps = min((budget - 1) // 3, 4)
        assert metered.asked.tolist() == states[-1].queries.tolist() == [3 * steps + 1] * 4
        assert len(states) == steps + 1
        for state, same in zip(states, full, strict=False):
            assert torch.equal(state.x, same.x)


# Settings


def test_the_settings_of_the_authors() -> None:
    cube, sphere = Bandits.paper(Linf(0.05), tile=50), Bandits.paper(L2(5.0))
    assert cube == Bandits(Linf(0.05), 5000, 50, 0.01, 0.1, 1.0, 100.0, cross_entropy)
    assert sphere == Bandits(L2(5.0), 5000, None, 0.5, 0.01, 0.01, 0.1, cross_entropy)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ball": L1(1.0)}, "Linf.*L2.*NES"),
        ({"ball": 0.1}, "ball"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"tile": 0}, "tile"),
        ({"tile": 2.5}, "tile"),
        ({"step_size": -0.1}, "step_size"),
        ({"eta": 0.0}, "eta and exploration must be positive"),
        ({"eta": math.nan}, "eta"),
        ({"exploration": 0.0}, "eta and exploration must be positive"),
        ({"rate": -1.0}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"loss": "margin"}, "loss"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Bandits(**{"ball": CUBE} | settings)


def test_tiles_are_of_images() -> None:
    with pytest.raises(ValueError, match=r"tile needs images \(N, C, H, W\), got shape \(2, 7\)"):
        Bandits(CUBE, tile=2)(network((7,)), images(2, (7,)), torch.tensor([0, 1]))
