"""The loop, fed with gradients made by hand: which iterates it visits, which it keeps, and what it asks for."""

import warnings

import pytest
import torch
from torch import Tensor

from advcourse.ascent import Slope, State, Verdict, ZeroGradient, ascend, follow
from advcourse.threat import L2, Ball, Linf

from .helpers import BALLS, rng

X = torch.full((3, 2), 0.5).double()


class Landscape:
    """Losses scripted for each call, a constant gradient, and a record of what was asked."""

    def __init__(self, losses: list[list[float]], fooled: list[list[bool]] | None = None) -> None:
        self.losses, self.fooled = torch.tensor(losses).double(), torch.tensor(fooled or [[False] * 3] * len(losses))
        self.asked: list[tuple[str, list[int]]] = []

    def look(self, kind: str, owner: Tensor) -> tuple[Tensor, Tensor]:
        call = len(self.asked)
        self.asked.append((kind, owner.tolist()))
        return self.losses[call, owner], self.fooled[call, owner]

    def gradient(self, points: Tensor, owner: Tensor) -> Slope:
        return Slope(*self.look("gradient", owner), torch.ones_like(points) * (1 - 2 * (owner[:, None] % 2)))

    def judge(self, points: Tensor, owner: Tensor) -> Verdict:
        return Verdict(*self.look("judge", owner))


def test_without_a_judge_every_image_takes_every_step_and_the_last_iterate_is_kept() -> None:
    scene = Landscape([[3.0, 2.0, 1.0]] * 4, [[True] * 3] * 4)
    states = list(ascend(scene.gradient, Linf(0.3), X, steps=4, step_size=0.1))
    assert [state.step for state in states] == [0, 1, 2, 3, 4]
    assert scene.asked == [("gradient", [0, 1, 2])] * 4
    direction = torch.tensor([[1.0], [-1.0], [1.0]]).double()
    for k, state in enumerate(states):
        torch.testing.assert_close(state.x, X + min(0.1 * k, 0.3) * direction)
        assert torch.equal(state.best, state.x)


def test_the_highest_iterate_is_kept_and_not_the_last() -> None:
    scene = Landscape([[9.0, 0.0, 0.0], [1.0, 3.0, 1.0], [2.0, 2.0, 1.0], [1.5, 1.0, 1.0]])
    states = list(ascend(scene.gradient, Linf(0.5), X, 3, 0.1, judge=scene.judge))
    moves = (states[-1].best - X).abs().amax(1)
    # Image 0 was highest at the clean image, which is no answer; image 2 has a tie, of which the later is kept.
    torch.testing.assert_close(moves, torch.tensor([0.2, 0.1, 0.3]).double())
    assert states[-1].best_loss.tolist() == [2.0, 3.0, 1.0]
    assert states[-1].loss.tolist() == [1.5, 1.0, 1.0]
    assert scene.asked == [("gradient", [0, 1, 2])] * 3 + [("judge", [0, 1, 2])]


def test_fooled_images_leave_the_batch_and_stay_where_they_were_fooled() -> None:
    yes, no = True, False
    scene = Landscape([[5.0, 5.0, 5.0]] * 3, [[no, no, no], [no, yes, no], [yes, no, no]])
    states = list(ascend(scene.gradient, Linf(0.5), X, 2, 0.1, judge=scene.judge))
    assert scene.asked == [("gradient", [0, 1, 2]), ("gradient", [0, 1, 2]), ("judge", [0, 2])]
    assert [state.success.tolist() for state in states] == [[no, no, no], [no, yes, no], [yes, yes, no]]
    assert torch.equal(states[2].x[1], states[1].x[1])
    assert torch.equal(states[2].best[:2], states[2].x[:2])


def test_a_fooled_iterate_beats_a_higher_loss_that_fooled_nobody() -> None:
    scene = Landscape([[0.0] * 3, [9.0] * 3, [1.0] * 3], [[False] * 3, [False] * 3, [True] * 3])
    *_, last = ascend(scene.gradient, Linf(0.5), X, 2, 0.1, judge=scene.judge)
    torch.testing.assert_close((last.best - X).abs().amax(1), torch.full((3,), 0.2).double())
    assert last.best_loss.tolist() == [1.0] * 3


def test_it_ends_as_soon_as_everybody_is_fooled() -> None:
    scene = Landscape([[0.0] * 3, [1.0] * 3], [[False] * 3, [True] * 3])
    assert len(list(ascend(scene.gradient, Linf(0.5), X, 40, 0.1, judge=scene.judge))) == 2
    assert len(scene.asked) == 2


def test_a_second_climb_carries_on_from_the_first() -> None:
    no = [False] * 3
    scene = Landscape([[0.0] * 3, [4.0, 5.0, 6.0], [9.0] * 3, [5.0, 4.0, 6.5]], [no, [False, False, True], no, no])
    *_, first = ascend(scene.gradient, Linf(0.5), X, 1, 0.1, judge=scene.judge)
    states = list(ascend(scene.gradient, Linf(0.5), X, 1, 0.2, X + 0.1, scene.judge, after=first))
    assert [state.step for state in states] == [2, 3]
    assert scene.asked[2:] == [("gradient", [0, 1]), ("judge", [0, 1])]
    assert states[-1].best_loss.tolist() == [5.0, 5.0, 6.0]
    assert torch.equal(states[-1].x[2], first.x[2])
    assert torch.equal(states[-1].best[1:], first.best[1:])


def test_after_everybody_was_fooled_one_state_still_comes_and_nothing_is_asked() -> None:
    done = State.before(X, Verdict(torch.ones(3).double(), torch.tensor([True] * 3)))
    scene = Landscape([[0.0] * 3])
    (state,) = ascend(scene.gradient, Linf(0.5), X, 5, 0.1, start=X + 0.1, judge=scene.judge, after=done)
    assert state.step == 0
    assert torch.equal(state.best, X)
    assert torch.equal(state.x, X)
    assert scene.asked == []


@pytest.mark.parametrize("ball", BALLS)
def test_the_ball_is_around_the_clean_image_and_not_around_the_last_iterate(ball: type[Ball]) -> None:
    scene = Landscape([[0.0] * 3] * 20)
    states = list(ascend(scene.gradient, ball(0.1), X, 20, 0.07))
    for state in states:
        assert (ball.norm(state.x - X) <= 0.1 + 1e-12).all()
    torch.testing.assert_close(ball.norm(states[-1].x - X), torch.full((3,), 0.1).double())


def test_a_flat_loss_is_reported_once_and_not_hidden() -> None:
    def flat(points: Tensor, owner: Tensor) -> Slope:
        steep = torch.ones_like(points) * (owner > 0)[:, None]
        return Slope(torch.zeros(len(points)).double(), torch.zeros(len(points), dtype=torch.bool), steep)

    with pytest.warns(ZeroGradient, match=r"zero for 1 of 3 images at step 0.*margin") as caught:
        *_, last = ascend(flat, L2(0.1), X, 5, 0.1)
    assert len(caught) == 1
    assert torch.equal(last.x[0], X[0])
    assert not torch.equal(last.x[1], X[1])


def test_a_steep_loss_is_not_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(ascend(Landscape([[0.0] * 3] * 5).gradient, L2(0.1), X, 5, 0.1))


def test_states_are_never_written_again() -> None:
    scene = Landscape(torch.randn(6, 3, generator=rng()).tolist(), [[False] * 3] * 3 + [[False, True, False]] * 3)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in ascend(scene.gradient, Linf(0.2), X, 5, 0.1, judge=scene.judge)
    ]
    assert len(kept) == 6
    for state, copies in kept:
        for name, value in copies.items():
            assert torch.equal(getattr(state, name), value), (state.step, name)


# Moves of any kind


def test_a_move_is_asked_about_the_images_that_are_left_and_where_it_goes_is_taken() -> None:
    yes, no = True, False
    scene = Landscape([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], [[no, no, no], [no, yes, no], [no, no, no]])
    asked: list[tuple[int, list[int], list[float], list[float]]] = []

    def move(step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
        assert len(slope.gradient) == len(slope.fooled) == len(rows)
        asked.append((step, rows.tolist(), points[:, 0].tolist(), slope.loss.tolist()))
        return points + 10 ** (step + 1) + rows[:, None]

    states = list(follow(scene.gradient, move, X, 2, judge=scene.judge))
    assert asked == [(0, [0, 1, 2], [0.5] * 3, [1.0, 2.0, 3.0]), (1, [0, 2], [10.5, 12.5], [4.0, 6.0])]
    assert states[-1].x[:, 0].tolist() == [110.5, 11.5, 114.5]  # no ball, no box: that is the move's business
    assert [state.step for state in states] == [0, 1, 2]


def test_a_climb_says_how_much_of_it_is_left() -> None:
    class Watched(Linf):
        left: list[float] = []  # noqa: RUF012

        @classmethod
        def stride(cls, gradient: Tensor, points: Tensor, left: float) -> Tensor:
            cls.left.append(left)
            return gradient.sign()

    list(ascend(Landscape([[0.0] * 3] * 4).gradient, Watched(0.5), X, 4, 0.1))
    assert Watched.left == [0.75, 0.5, 0.25, 0.0]
    Watched.left.clear()
    list(ascend(Landscape([[0.0] * 3]).gradient, Watched(0.5), X, 1, 0.1))
    assert Watched.left == [0.0]


@pytest.mark.parametrize("steps", [0, -1, 1.5, None])
def test_steps_are_counted_from_one(steps: object) -> None:
    def move(step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
        return points

    for climb in (
        follow(Landscape([[0.0] * 3]).gradient, move, X, steps),  # type: ignore[arg-type]
        ascend(Landscape([[0.0] * 3]).gradient, Linf(0.1), X, steps, 0.1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="steps must be an integer >= 1"):
            next(climb)


@pytest.mark.parametrize("size", [-0.1, float("nan"), None])
def test_a_step_has_a_length(size: object) -> None:
    with pytest.raises(ValueError, match="step_size must be a finite number >= 0"):
        list(ascend(Landscape([[0.0] * 3]).gradient, Linf(0.1), X, 1, size))  # type: ignore[arg-type]


def test_images_that_are_done_are_not_warned_about() -> None:
    def flat(points: Tensor, owner: Tensor) -> Slope:
        steep = torch.ones_like(points) * (owner > 0)[:, None]
        return Slope(torch.zeros(len(points)).double(), owner == 0, steep)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(ascend(flat, L2(0.1), X, 5, 0.1, judge=flat))
