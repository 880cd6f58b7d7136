from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse import data, models
from advcourse.ascent import Slope, follow
from advcourse.attacks import APGD, PGD
from advcourse.attacks.apgd import Pace, checkpoints
from advcourse.goals import Goal, Loss, Targeted, Toward, Untargeted, cross_entropy, dlr, margin
from advcourse.gradients import Exact
from advcourse.threat import L1, L2, Ball, Linf, open_part

from ..helpers import (
    Counted,
    Deceptive,
    Linear,
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

BALLS = [Linf, L2]
balls = st.sampled_from(BALLS)
attacks = st.builds(
    lambda ball, eps, steps, restarts, loss, targets: APGD(ball(eps), steps, restarts, loss, targets),
    balls,
    st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0]),
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from([cross_entropy, margin, dlr]),
    st.sampled_from([0, 1, 9]),
)
cases = given(attacks, shapes, st.sampled_from([2, 3, 4, 10]), seeds, st.sampled_from([Untargeted, Targeted]))


class Stubborn(nn.Module):
    """Classes that are linear in the image, of which 0 always wins."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = torch.randn(features, classes, generator=rng(), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        lead = torch.zeros(self.weight.shape[1], dtype=x.dtype)
        lead[0] = 1000.0
        return x.flatten(1) @ self.weight.to(x.dtype) + lead


# What every attack promises


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_iterates_keep_every_promise(
    attack: APGD, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    rows = torch.arange(6)
    clean = goal.fooled(model(x).argmax(1))
    highest, best, previous = torch.full((6,), -torch.inf).double(), x, clean
    targeted = attack.targets > 0 and kind is Untargeted
    states = list(attack.iterates(model, x, goal))
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
        met = Exact(model, attack.loss, goal).judge(state.x, rows)
        higher = ~previous & (met.fooled | ((state.loss > highest + 1e-9) & (k % (attack.steps + 1) > 0)))
        if not targeted:
            torch.testing.assert_close(state.loss, met.loss)
        highest = torch.where(higher, state.loss, highest)
        best = torch.where(higher.view(-1, *[1] * len(shape)), state.x, best)
        previous = previous | met.fooled
        assert torch.equal(state.success, previous)
    last = states[-1]
    torch.testing.assert_close(last.best_loss[~clean], highest[~clean], atol=2e-9, rtol=0)
    assert torch.equal(last.best[last.success], best[last.success])
    assert (last.best_loss[~clean] > -torch.inf).all()  # an iterate, never silently the clean image
    assert torch.equal(attack(model, x, goal), last.best)
    assert torch.equal(goal.fooled(model(last.best).argmax(1)), last.success)


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_chunks_change_nothing_and_fooled_images_touch_nobody(
    attack: APGD, shape: tuple[int, ...], classes: int, seed: int, kind: type[Goal]
) -> None:
    model, x, goal = setting(shape, classes, seed, kind)
    whole = list(attack.iterates(model, x, goal))[-1]
    chunked = list(replace(attack, batch_size=4).iterates(model, x, goal))[-1]
    torch.testing.assert_close(chunked.best, whole.best, atol=1e-7, rtol=0)
    torch.testing.assert_close(chunked.loss, whole.loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = network(shape, 4, dtype=dtype), images(4, shape, dtype=dtype)
    y = model(x).argmax(1)
    for ball in BALLS:
        for attack in APGD(ball(0.1), 5), APGD(ball(0.1), 5, loss=dlr, targets=9, restarts=2):
            *_, last = attack.iterates(model, x, y)
            assert (last.best.shape, last.best.dtype) == (x.shape, x.dtype)
            assert torch.isfinite(last.best).all()
            assert (last.best != x).flatten(1).any(1).all()
            length = ball.norm(last.best.double() - x.double())
            assert (length <= 0.1 + 10 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("attack", [APGD(Linf(0.1), 3), APGD(L2(0.1), 3, restarts=5, loss=dlr, targets=9)])
def test_images_already_fooled_come_back_unchanged_for_one_pass(attack: APGD) -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = attack.iterates(counted, x, y + 1)
    assert state.success.all()
    assert state.step == 0
    assert torch.equal(state.best, x)
    assert torch.equal(state.x, x)
    assert (counted.forwards, counted.backwards) == ([4], [])
    counted = Counted(model)
    found = attack(counted, x, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(found[1::2], x[1::2])
    assert counted.forwards[0] == 4
    assert set(counted.forwards[1:]) == {2}


@pytest.mark.parametrize("ball", BALLS)
def test_without_a_radius_the_image_comes_back(ball: type[Ball]) -> None:
    model, x, goal = setting((3, 4), 4, 0, Untargeted)
    assert torch.equal(APGD(ball(0.0), 5, loss=dlr, targets=2)(model, x, goal), x)


def test_randomness_is_the_generator_s() -> None:
    model, x, y = never_fooled()
    attack = APGD(Linf(0.1), 2)
    first = attack(model, 0.4 + 0.2 * x, y, generator=rng(5))
    assert torch.equal(attack(model, 0.4 + 0.2 * x, y, generator=rng(5)), first)
    start, other = (next(attack.iterates(model, x, y, generator=rng(seed))).x for seed in (5, 6))
    assert not torch.equal(start, other)
    assert torch.equal(start, Linf(0.1).sample_surface(x, rng(5)))
    assert torch.equal(next(attack.iterates(model, x, y)).x, Linf(0.1).sample_surface(x, rng(0)))


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize(
    ("classes", "targets", "climbs"),
    [(2, 0, 1), (2, 9, 1), (3, 9, 2), (4, 9, 3), (10, 9, 9), (10, 3, 3), (1000, 9, 9)],
)
def test_passes_for_a_model_that_is_never_fooled(restarts: int, classes: int, targets: int, climbs: int) -> None:
    x, y = images(3, (5,)), torch.zeros(3, dtype=torch.long)
    for loss in cross_entropy, dlr:
        counted = Counted(Stubborn(5, classes))
        states = list(APGD(Linf(0.1), 4, restarts, loss, targets).iterates(counted, x, y))
        assert counted.backwards == [3] * 4 * restarts * climbs
        assert counted.forwards == [3] * (1 + 5 * restarts * climbs)
        assert [state.step for state in states] == list(range(5 * restarts * climbs))


def test_targets_are_the_likeliest_wrong_classes_in_turn_and_any_wrong_class_is_a_success() -> None:
    model, x, y = Stubborn(5, 6), 0.4 + 0.2 * images(3, (5,)), torch.zeros(3, dtype=torch.long)
    likeliest = model(x)[:, 1:].argsort(1, descending=True) + 1
    states = list(APGD(Linf(0.01), 1, loss=margin, targets=3).iterates(model, x, y))
    assert len(states) == 6
    for climb in range(3):
        goal = Toward(likeliest[:, climb], source=y)
        for state in states[2 * climb : 2 * climb + 2]:
            torch.testing.assert_close(state.loss, margin(model(state.x), goal))
    # A targeted goal has its one class already, and the number of targets says nothing.
    goal = Targeted(torch.tensor([1, 2, 3]))
    for targets in 0, 4:
        states = list(APGD(Linf(0.01), 1, loss=margin, targets=targets).iterates(model, x, goal))
        assert len(states) == 2
        torch.testing.assert_close(states[1].loss, margin(model(states[1].x), goal))
    # Class 2 leads for the lucky, whatever it is aimed at.
    curved, x, goal = setting((3, 4), 5, 1, Untargeted)
    *_, last = APGD(Linf(0.3), 10, loss=dlr, targets=4).iterates(curved, x, goal)
    assert torch.equal(curved(last.best).argmax(1) != goal.labels, last.success)


@pytest.mark.parametrize("ball", BALLS)
def test_more_restarts_and_targets_only_help(ball: type[Ball]) -> None:
    model, x = network((3, 4), 4, 1), images(60, (3, 4), 1)
    goal = Untargeted(model(x).argmax(1))
    once = list(APGD(ball(0.2), 1).iterates(model, x, goal))[-1]
    more = list(APGD(ball(0.2), 1, restarts=6).iterates(model, x, goal))[-1]
    assert torch.equal(more.best[once.success], once.best[once.success])
    assert more.success.sum() > once.success.sum()
    both = ~more.success
    assert both.any()
    assert (more.best_loss[both] >= once.best_loss[both]).all()
    # The second of two targets is a climb of its own, for those whom the first has not fooled.
    one = list(APGD(ball(0.1), 2, targets=1, loss=dlr).iterates(model, x, goal))[-1]
    two = list(APGD(ball(0.1), 2, targets=2, loss=dlr).iterates(model, x, goal))[-1]
    assert torch.equal(two.best[one.success], one.best[one.success])
    assert two.success.sum() > one.success.sum()


def test_an_attack_that_only_loses_still_returns_an_iterate() -> None:
    model, x, y = never_fooled()
    x = 0.4 + 0.2 * x
    *_, last = APGD(Linf(0.1), 5).iterates(Deceptive(model), x, y)
    assert not last.success.any()
    assert (last.best != x).flatten(1).any(1).all()


# The step size


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), at ceil(p_j N): equal where N is round.
    for steps in 100, 1000:
        fractions = [0, 22]
        while fractions[-1] < 100:
            fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 3, 6))
        assert list(checkpoints(steps)) == [p * steps // 100 for p in fractions[1:] if p < 100]
    assert checkpoints(1) == {}
    assert checkpoints(10) == {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1}


@given(st.integers(1, 2000))
def test_checkpoints_are_those_of_the_authors_program(steps: int) -> None:
    window, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    since, looks = 0, {}
    for i in range(steps - 1):  # a look after the last step would change nothing
        since += 1
        if since == window:
            looks[i + 1] = window
            since, window = 0, max(window - less, least)
    assert checkpoints(steps) == looks


class Script:
    """Walks a `Pace` through losses given by hand, image by image, far from the box, and reads off its step sizes."""

    def __init__(self, losses: list[list[float]], steps: int, rho: float = 0.75) -> None:
        table = torch.tensor(losses).double().T
        n = table.shape[1]
        x = torch.full((n, 2), 0.5).double()
        self.pace = Pace(Linf(0.1), x, steps, rho)
        self.points, self.etas = [x.clone()], []
        for k, loss in enumerate(table):
            # A gradient of its own for each step: which one was followed can be told from where it leads.
            gradient = torch.tensor([[(-1.0) ** k, (-1.0) ** (k // 2)]]).double().expand(n, 2)
            slope = Slope(loss, torch.zeros(n, dtype=torch.bool), gradient)
            self.points.append(self.pace(k, torch.arange(n), self.points[-1], slope))
            self.etas.append(self.pace.eta.tolist())

    def halvings(self, image: int) -> list[int]:
        """At which steps its η was halved."""
        etas = [0.2] + [eta[image] for eta in self.etas]
        changes = [k for k in range(len(etas) - 1) if etas[k + 1] != etas[k]]
        assert all(etas[k + 1] == etas[k] / 2 for k in changes)
        return changes


def test_the_step_size_halves_when_too_few_steps_have_raised_the_loss() -> None:
    # checkpoints(20) = {4: 4, 7: 3, ...}: three rises in the first four steps are enough, two are not.
    script = Script([[0, 1, 2, 3, 2.5], [0, 1, 2, 1.5, 1.2], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [4, 3, 2, 1, 0]], 20)
    assert [script.halvings(i) for i in range(5)] == [[], [4], [], [4], [4]]
    # rho is a parameter: a half of the steps is enough, all are not.
    half = Script([[0, 1, 2, 1, 0], [0, 1, 0, 0, 0]], 20, rho=0.5)
    assert [half.halvings(i) for i in range(2)] == [[], [4]]
    every = Script([[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]], 20, rho=1.0)
    assert [every.halvings(i) for i in range(2)] == [[], [4]]
    assert Script([[5, 4, 3, 2, 1]], 20, rho=0.0).halvings(0) == []


def test_the_step_size_halves_when_neither_it_nor_the_best_loss_has_changed_since_the_last_look() -> None:
    never = [0, 10, 11, 5, 6, 7, 8, 9]  # rises all the way from look to look, but stays below 11
    better = [0, 10, 11, 5, 6, 7, 8, 12]
    just_halved = [0, 11, 10, 9, 6, 7, 8, 9]
    equal = [0, 10, 11, 5, 6, 7, 8, 11]  # as high as the best is no improvement
    script = Script([never, better, just_halved, equal], 20)
    assert [script.halvings(i) for i in range(4)] == [[7], [], [4], [7]]
    # checkpoints(20) goes on with 9: 2, 10: 1, 11: 1, ...: what counts is the last look, not any before.
    late = [0, 11, 10, 9, 6, 7, 8, 9, 9.5, 10]
    assert Script([late], 20).halvings(0) == [4, 9]


def test_a_halved_image_goes_back_to_its_best_point_and_the_gradient_there() -> None:
    script = Script([[0, 5, 1, 2, 1], [0, 1, 2, 3, 4]], 20)
    assert script.halvings(0) == [4]
    assert script.halvings(1) == []
    points = script.points
    best, before = points[1][0], points[3][0]
    gradient = torch.tensor([-1.0, 1.0]).double()  # that of step 1
    z = (best + 0.1 * gradient).clamp(0.4, 0.6)
    expected = (best + 0.75 * (z - best) + 0.25 * (best - before)).clamp(0.4, 0.6)
    torch.testing.assert_close(points[5][0], expected)
    here = points[4][1]
    z = (here + 0.2 * torch.tensor([1.0, 1.0]).double()).clamp(0.4, 0.6)
    expected = (here + 0.75 * (z - here) + 0.25 * (here - points[3][1])).clamp(0.4, 0.6)
    torch.testing.assert_close(points[5][1], expected)


def test_the_first_of_equal_losses_is_the_best() -> None:
    pace = Script([[7, 7, 7, 7, 7, 7]], 20).pace
    assert pace.best_loss.tolist() == [7]
    torch.testing.assert_close(pace.best, torch.full((1, 2), 0.5).double())


def by_the_paper(
    gradient: Callable[[Tensor], tuple[float, Tensor]], ball: Ball, x: Tensor, start: Tensor, steps: int, rho: float
) -> list[Tensor]:
    """Algorithm 1 of Croce & Hein (2020) for one image (1, ...), line by line, with their conditions in lists."""

    def step(point: Tensor, slope: Tensor, eta: float) -> Tensor:
        return ball.project(point + eta * ball.steepest(open_part(slope, point)), x)

    looks = [0, *checkpoints(steps)]
    points, (loss, slope) = [start], gradient(start)
    losses, etas, eta = [loss], [], 2 * ball.eps
    best, best_loss, best_slope = start, loss, slope
    highest = [loss]
    at, previous = start, start
    for k in range(steps):
        if k in looks[1:]:
            j = looks.index(k)
            since = range(looks[j - 1], k)
            first = sum(losses[i + 1] > losses[i] for i in since) < rho * len(since)
            second = j > 1 and etas[j - 2] == eta and highest[looks[j - 1]] == highest[k]
            etas.append(eta)
            if first or second:
                eta, at, slope = eta / 2, best, best_slope
        z = step(at, slope, eta)
        new = z if k == 0 else ball.project(at + 0.75 * (z - at) + 0.25 * (at - previous), x)
        previous, at = at, new
        loss, slope = gradient(at)
        points.append(at)
        losses.append(loss)
        if loss > best_loss:
            best, best_loss, best_slope = at, loss, slope
        highest.append(best_loss)
    return points


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@settings(max_examples=25)
@given(
    balls,
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([1, 7, 20, 60]),
    st.sampled_from([0.25, 0.75, 1.0]),
    st.sampled_from([cross_entropy, dlr]),
    shapes,
    seeds,
)
def test_a_climb_is_the_algorithm_of_the_paper(
    ball: type[Ball], eps: float, steps: int, rho: float, loss: Loss, shape: tuple[int, ...], seed: int
) -> None:
    threat, model, x = ball(eps), network(shape, 4, seed), images(3, shape, seed)
    y = model(x).argmax(1)
    start = threat.sample_surface(x, rng(seed))
    exact = Exact(model, loss, Untargeted(y))

    def one_by_one(points: Tensor, owner: Tensor) -> Slope:  # so that rounding is the same below
        slopes = [exact(points[i : i + 1], owner[i : i + 1]) for i in range(len(points))]
        return Slope(*(torch.cat(values) for values in zip(*(vars(slope).values() for slope in slopes), strict=True)))

    ours = [state.x for state in follow(one_by_one, Pace(threat, x, steps, rho), x, steps, start)]
    for i in range(3):
        one = torch.tensor([i])

        def gradient(point: Tensor, one: Tensor = one) -> tuple[float, Tensor]:
            slope = exact(point, one)
            return slope.loss.item(), slope.gradient

        theirs = by_the_paper(gradient, threat, x[one], start[one], steps, rho)
        torch.testing.assert_close(torch.stack(ours)[:, one], torch.stack(theirs), atol=1e-7, rtol=0)


# Other people's implementation, where it is right


class Mended(torchattacks.APGD):
    """The authors' program with the two details of its first condition as in the paper: see `APGD`."""

    def attack_single_run(self, x: Tensor, y: Tensor) -> Any:
        self.first: np.ndarray | None = None
        return super().attack_single_run(x, y)

    def get_logits(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        logits = super().get_logits(inputs, *args, **kwargs)
        if self.first is None:
            goal = Untargeted(self.y)
            loss = cross_entropy if self.loss == "ce" else dlr
            self.first = loss(logits.detach(), goal).numpy()
        return logits

    def check_oscillation(self, x: np.ndarray, j: int, k: int, y5: Any, k3: float = 0.75) -> np.ndarray:
        losses = np.concatenate([self.first[None], x[: j + 1]])
        return (np.diff(losses, axis=0)[-k:] > 0).sum(0) < k3 * k


def peer(kind: type, ball: Ball, loss: Loss, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """The best point and loss of one climb, for a start drawn as ours is with this seed."""
    model, x, y = convolutional()
    attack = kind(
        model, norm=type(ball).__name__, eps=ball.eps, steps=steps, loss="ce" if loss is cross_entropy else "dlr"
    )
    attack.y = y
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        best, _, highest, _ = attack.attack_single_run(x, y)
    return best.detach(), highest.detach()


def ours(ball: Ball, loss: Loss, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of ours, and whether the first step raised the loss."""
    model, x, y = convolutional()
    exact, rows = Exact(model, loss, Untargeted(y)), torch.arange(8)
    start = ball.sample_surface(x, rng(seed))
    states = list(follow(exact, Pace(ball, x, steps, 0.75), x, steps, start))
    values = torch.stack([exact.judge(state.x, rows).loss for state in states])
    best = values.max(0)
    return torch.stack([state.x for state in states])[best.indices, rows], best.values, values[1] > values[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps", [1, 10, 40, 100])
@pytest.mark.parametrize("loss", [cross_entropy, dlr])
@pytest.mark.parametrize("ball", [Linf(0.03), Linf(0.2), L2(0.25)], ids=repr)
def test_apgd_agrees_with_the_authors_program_as_mended(ball: Ball, loss: Loss, steps: int, seed: int) -> None:
    best, highest, _ = ours(ball, loss, steps, seed)
    theirs, their_highest = peer(Mended, ball, loss, steps, seed)
    torch.testing.assert_close(best, theirs, atol=2e-5 if isinstance(ball, Linf) else 1e-3, rtol=0)
    torch.testing.assert_close(highest, their_highest, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.25)], ids=repr)
def test_apgd_agrees_with_torchattacks_where_the_details_make_no_difference(ball: Ball) -> None:
    # In 10 steps no share of a window is exactly 0.75, and cross-entropy, never negative, is counted as a rise from 0.
    best, _, rose = ours(ball, cross_entropy, 10, 0)
    theirs, _ = peer(torchattacks.APGD, ball, cross_entropy, 10, 0)
    assert rose.sum() >= 5
    torch.testing.assert_close(best[rose], theirs[rose], atol=2e-5 if isinstance(ball, Linf) else 1e-3, rtol=0)


def test_apgd_fools_no_fewer_than_pgd() -> None:
    model = models.load("cnn")
    x, y = data.fashion_mnist("test", n=60)
    attacks = PGD(Linf(0.04), steps=10), APGD(Linf(0.04), steps=10), APGD(Linf(0.04), steps=10, loss=dlr)
    fooled = [(model(attack(model, x, y)).argmax(1) != y).sum().item() for attack in attacks]
    assert 10 < fooled[0] < 55
    assert fooled[1] >= fooled[0] - 2
    assert fooled[2] >= fooled[0] - 2


def test_the_best_loss_never_falls() -> None:
    model, x, y = convolutional()
    for loss in cross_entropy, dlr:
        states = list(APGD(Linf(0.01), 30, loss=loss, restarts=2).iterates(model, x, y))
        for earlier, later in pairwise(states):
            done = later.success
            assert (later.best_loss >= earlier.best_loss)[~done].all()


# The closed form on linear models


@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7), (1, 28, 28)])
@pytest.mark.parametrize("ball", BALLS)
def test_labels_flip_just_above_the_optimal_radius_and_never_below(ball: type[Ball], shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(ball, shape)
    y = torch.zeros(len(x), dtype=torch.long)
    for goal in Untargeted(y), Targeted(y + 1):
        for attack in partial(APGD, steps=20), partial(APGD, steps=10, loss=dlr, targets=9):
            for share, flips in (0.98, False), (1.02, True):
                found = attack(ball(share * eps))(model, x, goal)
                assert model(found).argmax(1).tolist() == [int(flips)] * len(x)


def test_faces_of_the_box_do_not_stop_the_climb() -> None:
    model = Linear(torch.tensor([5.0, 1.0, -2.0]).double(), -30.0)
    x, y = torch.tensor([[1.0, 0.5, 0.5]]).double(), torch.tensor([0])
    for ball in BALLS:
        assert model(APGD(ball(0.2), 20)(model, x, y))[0, 1] > model(x)[0, 1] + 0.4


def test_a_scale_of_the_logits_does_not_stop_dlr() -> None:
    model, x, y = convolutional()

    def scaled(z: Tensor) -> Tensor:
        return 1e4 * model(z)

    for attack in APGD(Linf(0.03), 10, loss=dlr), APGD(Linf(0.03), 10, loss=dlr, targets=9):
        torch.testing.assert_close(attack(scaled, x, y), attack(model, x, y), atol=1e-4, rtol=0)


# What is refused


@pytest.mark.parametrize("ball", [L1(0.1), 0.1, None, Linf])
def test_only_linf_and_l2_are_climbed(ball: Any) -> None:
    with pytest.raises(ValueError, match=r"^ball must be Linf\(eps\) or L2\(eps\), got .*PGD takes L1"):
        APGD(ball)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("restarts", [0, 1.0, None]),
        ("targets", [-1, 1.0, None, True]),
        ("batch_size", [0, None]),
        ("rho", [-0.1, "0.75", None, float("nan"), float("inf")]),
        ("loss", ["dlr", None, 3]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            APGD(Linf(0.1), **{field: value})


def test_defaults_are_the_paper_s() -> None:
    attack = APGD(Linf(0.1))
    assert (attack.steps, attack.restarts, attack.loss, attack.targets, attack.rho) == (100, 1, cross_entropy, 0, 0.75)
    assert "loss=cross_entropy" in repr(attack)
