"""Each method does what its paper says: identities first, then counts and bounds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from advcourse.attacks import FGSM
from advcourse.threat import L2, Linf
from advcourse.training import (
    NFGSM,
    TRADES,
    Constant,
    FastTraining,
    FreeTraining,
    GradAlign,
    Method,
    PGDTraining,
    Previous,
    Ramped,
    Standard,
    Uniform,
    Zero,
)
from advcourse.training.fast import misalignment
from advcourse.training.methods import Memory, kl_divergence

from ..helpers import Counted, rng
from .small import BALL, METHODS, X, Y, convolutional, fit, plain, same, trained

GREY = torch.full((64, 1, 8, 8), 0.5)  # far from the faces of the box
LABELS = torch.arange(64) % 2


def seen(model: nn.Module, method: Method, x: Tensor = X, y: Tensor = Y, memory: Memory | None = None) -> list[Tensor]:
    """The images of every forward pass, without an update of the weights."""
    points: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].detach().clone()))
    for losses, _ in method.updates(model, x, y, memory or Memory(), rng()):
        losses.sum().backward()
    handle.remove()
    return points


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize(
    "method",
    [
        PGDTraining(Linf(0.0), steps=3),
        PGDTraining(L2(0.0), steps=3),
        FastTraining(Linf(0.0)),
        FreeTraining(Linf(0.0), replays=1),
        NFGSM(Linf(0.0)),
        GradAlign(Linf(0.0), weight=0.0),
        TRADES(BALL, steps=2, beta=0.0),
    ],
)
def test_with_no_radius_or_no_weight_every_method_is_standard_training_bit_for_bit(method: Method) -> None:
    assert same(trained(plain(), method), trained(plain(), Standard()))


def test_standard_training_is_what_everybody_writes_by_hand() -> None:
    network = plain()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    by_hand = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(X), Y)
        loss.backward()
        optimizer.step()
        by_hand.append(loss.item())
    history = fit(plain(), Standard(), epochs=3, batch_size=20)
    assert [epoch.loss for epoch in history] == pytest.approx(by_hand, rel=1e-6)


def test_fast_training_from_zero_with_a_step_of_eps_is_fgsm() -> None:
    network = plain()
    *_, trained_on = seen(network, FastTraining(BALL, step_size=0.1, start=Zero()))
    gradient = FGSM(BALL)
    y = network(X).argmax(1)  # FGSM leaves images alone that are wrong already
    *_, trained_on = seen(network, FastTraining(BALL, step_size=0.1, start=Zero()), y=y)
    assert torch.equal(trained_on, gradient(network, X, y))


@pytest.mark.parametrize("step_size", [0.125, 0.2])
def test_fast_training_is_the_loop_of_its_authors(step_size: float) -> None:
    """Line by line from their train_fgsm.py, with the same noise."""
    one, other, draws, noise = convolutional().eval(), convolutional().eval(), rng(), rng()
    ours, theirs = (torch.optim.SGD(network.parameters(), 0.1, momentum=0.9) for network in (one, other))
    for X_, y in [(X[i : i + 5], Y[i : i + 5]) for i in (0, 5, 10, 15, 0, 5)]:
        for losses, _ in FastTraining(BALL, step_size).updates(one, X_, y, Memory(), draws):
            ours.zero_grad()
            losses.mean().backward()
            ours.step()
        delta = torch.zeros_like(X_).uniform_(-0.1, 0.1, generator=noise)
        delta.data = torch.max(torch.min(delta, 1 - X_), 0 - X_)
        delta.requires_grad = True
        F.cross_entropy(other(X_ + delta), y).backward()
        assert delta.grad is not None
        delta.data = torch.clamp(delta + step_size * torch.sign(delta.grad), -0.1, 0.1)
        delta.data = torch.max(torch.min(delta, 1 - X_), 0 - X_)
        theirs.zero_grad()
        F.cross_entropy(other(X_ + delta.detach()), y).backward()
        theirs.step()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


def test_without_a_step_fast_training_is_training_on_uniform_noise() -> None:
    start, trained_on = seen(plain(), FastTraining(BALL, step_size=0.0))
    assert torch.equal(start, trained_on)
    assert torch.equal(start, BALL.sample(X, rng()))


def test_fast_training_is_pgd_training_with_one_step() -> None:
    one = PGDTraining(BALL, steps=1, step_size=1.25 * 0.1)
    assert same(trained(convolutional(), FastTraining(BALL)), trained(convolutional(), one))


def test_free_training_with_one_replay_takes_the_steps_of_fgsm_from_the_previous_perturbation() -> None:
    """With weights that stand still, for otherwise Free is a step behind: it trains where it takes the gradient."""
    network, free, fast = plain(), Memory(), Memory()
    for part, labels in zip(X.split(7), Y.split(7), strict=True):
        before = free.recall(part)
        (trained_on,) = seen(network, FreeTraining(BALL, replays=1), part, labels, free)
        assert torch.equal(trained_on, BALL.project(part + before, part))
        seen(network, FastTraining(BALL, step_size=0.1, start=Previous()), part, labels, fast)
        assert free.delta is not None
        assert fast.delta is not None
        torch.testing.assert_close(free.delta, fast.delta)
        assert BALL.norm(free.delta).max() <= 0.1 + 1e-6


def test_one_backward_pass_of_free_training_serves_weights_and_perturbation() -> None:
    """By hand, from algorithm 1: the gradients of a replay are those at the same point and the same weights."""
    network, memory, delta = plain(), Memory(), torch.zeros_like(X)
    twin = plain()
    slow = torch.optim.SGD(twin.parameters(), 0.1)
    quick = torch.optim.SGD(network.parameters(), 0.1)
    for losses, _ in FreeTraining(BALL, replays=4).updates(network, X, Y, memory, rng()):
        quick.zero_grad()
        losses.mean().backward()
        quick.step()
        point = (X + delta).clamp(0, 1).requires_grad_()
        slow.zero_grad()
        F.cross_entropy(twin(point), Y).backward()
        slow.step()
        assert point.grad is not None
        delta = (BALL.project(point + 0.1 * point.grad.sign(), X) - X).detach()
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(memory.delta, delta)


@pytest.mark.parametrize(
    ("method", "forwards", "backwards"),
    [
        (Standard(), 1, 0),
        (PGDTraining(BALL, steps=5), 6, 5),
        (FastTraining(BALL), 2, 1),
        (FreeTraining(BALL, replays=4), 4, 4),
        (NFGSM(BALL), 2, 1),
        (GradAlign(BALL), 3, 3),  # the third is the second derivative
        (TRADES(BALL, steps=5), 8, 5),  # one of them without a gradient
        (Ramped(FastTraining(BALL)), 2, 1),
    ],
)
def test_passes_are_as_documented(method: Method, forwards: int, backwards: int) -> None:
    """Backward passes are counted that reach the input; every update makes one more, or shares it."""
    network = Counted(plain())
    history = fit(network, method, epochs=1, batch_size=20)
    assert network.forwards == [20] * forwards
    assert network.backwards == [20] * backwards
    if not isinstance(method, FreeTraining):
        backwards += 1
    assert history.passes == method.passes == (backwards if not isinstance(method, TRADES) else backwards + 1)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_all_that_a_network_sees_is_in_the_box_and_in_the_ball(method: Method) -> None:
    reach = 0.0 if method.ball is None else method.ball.eps * (3 if isinstance(method, NFGSM) else 1)
    if isinstance(method, TRADES):
        reach += 1e-6
    outside = BALL.eps if isinstance(method, GradAlign) else 0.0  # where it only asks for a gradient
    norm = L2.norm if isinstance(method.ball, L2) else Linf.norm
    points: list[Tensor] = []
    network = convolutional()
    network.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].detach().clone()))
    fit(network, method, data=(X[:7], Y[:7]), epochs=4)
    assert len(points) > 3
    for point in points:
        assert point.min() >= -outside
        assert point.max() <= 1 + outside
        delta = (point[:, None] - X[:7]).flatten(0, 1)
        assert norm(delta).view(7, 7).amin(1).max() <= reach + 1e-5


@pytest.mark.parametrize(("share", "mean", "corners", "square"), [(1, 0.75, 0.5, 2 / 3), (1.25, 0.859, 0.625, 0.789)])
def test_the_size_of_fast_perturbations_is_that_of_the_closed_forms(
    share: float, mean: float, corners: float, square: float
) -> None:
    """Andriushchenko & Flammarion (2020): with eps = 1 the mean square is -α³/6 + α²/2 + 1/3."""
    *_, point = seen(linear(), FastTraining(BALL, step_size=share * 0.1), GREY, LABELS)
    size = (point - 0.5).abs() / 0.1
    assert size.mean().item() == pytest.approx(mean, abs=0.02)
    assert (size > 1 - 1e-4).float().mean().item() == pytest.approx(corners, abs=0.03)
    assert size.square().mean().item() == pytest.approx(square, abs=0.02)


def test_a_fast_step_of_twice_the_radius_ends_in_a_corner() -> None:
    *_, point = seen(linear(), FastTraining(BALL, step_size=0.2), GREY, LABELS)
    torch.testing.assert_close((point - 0.5).abs(), torch.full_like(point, 0.1))


@given(k=st.floats(0, 4))
def test_n_fgsm_reaches_as_far_as_it_says_and_has_the_published_second_moment(k: float) -> None:
    eps = 0.05
    *_, point = seen(linear(), NFGSM(Linf(eps), k), GREY, LABELS)
    delta = point - 0.5
    assert delta.abs().max() <= (k + 1) * eps + 1e-6
    assert delta.square().mean().item() == pytest.approx(eps**2 * (k**2 / 3 + 1), rel=0.1)


def test_n_fgsm_without_noise_is_fgsm() -> None:
    one, two = (seen(plain(), method)[-1] for method in (NFGSM(BALL, k=0.0), FastTraining(BALL, 0.1, Zero())))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "method", [FastTraining(BALL, start=Uniform(clip=False)), NFGSM(BALL, start=Uniform(clip=False))]
)
def test_what_is_trained_on_is_in_the_box_wherever_the_start_is(method: Method) -> None:
    start, trained_on = seen(plain(), method, torch.zeros_like(X))
    assert start.min() < -0.09
    assert trained_on.min() >= 0
    assert trained_on.max() > 0.09


def test_the_noise_of_grad_align_is_where_it_says() -> None:
    for noise in (Uniform(), Uniform(clip=False)):
        here, there, _ = seen(plain(), GradAlign(BALL, noise=noise))
        assert torch.equal(here, X)
        assert torch.equal(there, noise(BALL, X, Memory(), rng()))


def test_gradients_of_a_linear_model_are_aligned_and_others_are_not() -> None:
    """With two classes: with more, even a linear model's loss is curved."""
    one, other = (trained(linear(), GradAlign(BALL, weight), data=(GREY[:20], LABELS[:20])) for weight in (0.0, 5.0))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value)
    off = [fit(convolutional(), GradAlign(Linf(0.5), weight)).epochs[0].loss for weight in (0.0, 5.0)]
    assert off[1] > off[0] + 1e-3


def test_misalignment_is_one_minus_the_cosine_whatever_the_lengths_and_zero_where_there_is_no_gradient() -> None:
    a = torch.tensor([[3.0, 4.0], [1e-30, 0.0], [1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    b = torch.tensor([[4.0, 3.0], [0.0, 1e20], [-2.0, 0.0], [1.0, 1.0]])
    value = misalignment(a, b)
    torch.testing.assert_close(value, torch.tensor([1 - 24 / 25, 1.0, 2.0, 0.0]))
    value.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert torch.autograd.gradcheck(misalignment, (a[:1].double(), b[:1].double()))


def test_grad_align_raises_the_alignment() -> None:
    def alignment(weight: float) -> float:
        network = plain()
        fit(network, GradAlign(Linf(0.4), weight), epochs=30)
        here = X.clone().requires_grad_()
        there = Linf(0.4).sample(X, rng(5)).requires_grad_()
        slopes = [torch.autograd.grad(F.cross_entropy(network(x), Y), x)[0] for x in (here, there)]
        return misalignment(*slopes).mean().item()

    assert alignment(2.0) < alignment(0.0)


def test_trades_seeks_its_neighbours_in_eval_mode_and_trains_on_them_in_train_mode() -> None:
    network, modes = convolutional(), []
    network.register_forward_hook(lambda module, *_: modes.append(module.training and module[1].training))
    fit(network, TRADES(BALL, steps=3), epochs=1, batch_size=20)
    assert modes == [False] * 4 + [True] * 2
    modes.clear()
    fit(network, PGDTraining(BALL, steps=3), epochs=1, batch_size=20)
    assert modes == [True] * 4


def test_the_loss_of_trades_is_at_least_cross_entropy() -> None:
    network = plain()
    ((losses, _),) = TRADES(BALL, beta=6.0).updates(network, X, Y, Memory(), rng())
    assert (losses >= F.cross_entropy(network(X), Y, reduction="none")).all()
    assert losses.sum() > F.cross_entropy(network(X), Y, reduction="sum")


def test_divergence_is_that_of_the_definition() -> None:
    p, q = torch.randn(2, 5, 3, generator=rng())
    by_hand = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1)
    torch.testing.assert_close(kl_divergence(p, q), by_hand)
    assert torch.equal(kl_divergence(p, p), torch.zeros(5))


def test_pgd_training_finds_a_higher_loss_than_it_starts_with() -> None:
    network = plain()
    ((losses, _),) = PGDTraining(BALL, steps=10).updates(network, X, Y, Memory(), rng())
    assert (losses >= F.cross_entropy(network(X), Y, reduction="none")).all()


def test_a_ramp_grows_radius_and_step_together_and_ends() -> None:
    method = FastTraining(Linf(0.2), step_size=0.3)
    ramp = Ramped(method, epochs=2.0)
    assert ramp.at(0.5) == replace(method, ball=Linf(0.05), step_size=0.075)
    assert ramp.at(2.0) is ramp.at(7.0) is method
    assert Ramped(PGDTraining(Linf(0.2))).at(0.5).ball == Linf(0.1)


def test_a_ramp_is_followed_batch_by_batch() -> None:
    network, points = plain(), []
    network.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].detach().clone()))
    fit(network, Ramped(FastTraining(BALL)))
    moved = [(point[:, None] - X).abs().flatten(2).amax(2).amin(1).max().item() for point in points[1::2]]
    assert moved[0] <= 0.1 / 3 + 1e-6  # three batches make an epoch
    assert moved[1] <= 0.2 / 3 + 1e-6
    assert max(moved[2:]) == pytest.approx(0.1, abs=1e-6)


def test_memory_keeps_the_rows_that_a_smaller_batch_does_not_reach() -> None:
    memory = Memory()
    assert torch.equal(memory.recall(X[:2]), torch.zeros_like(X[:2]))
    memory.keep(torch.ones(3, 2))
    memory.keep(torch.zeros(2, 2))
    assert memory.recall(torch.zeros(3, 2)).tolist() == [[0, 0], [0, 0], [1, 1]]
    memory.keep(torch.ones(5, 2))
    assert memory.recall(torch.zeros(5, 2)).sum() == 10


def starts() -> Iterator[tuple[Any, Tensor]]:
    memory = Memory(torch.full_like(X, 0.05))
    yield Zero()(BALL, X, memory, rng()), X
    yield Uniform()(BALL, X, memory, rng()), BALL.sample(X, rng())
    yield Uniform(clip=False)(BALL, X, memory, rng()), X + 0.1 * BALL.draw(X, rng())
    yield Previous()(BALL, X, memory, rng()), (X + 0.05).clamp(0, 1)
    yield Previous()(Linf(0.01), X, memory, rng()), (X + 0.01).clamp(0, 1)


@pytest.mark.parametrize(("got", "expected"), list(starts()))
def test_starts_are_where_they_say(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected)


@given(value=st.one_of(st.floats(max_value=-1e-9), st.just(float("nan")), st.just("8/255"), st.just(True)))
def test_numbers_that_make_no_sense_are_refused(value: Any) -> None:
    for make in (
        lambda: FastTraining(BALL, step_size=value),
        lambda: PGDTraining(BALL, step_size=value),
        lambda: NFGSM(BALL, k=value),
        lambda: GradAlign(BALL, weight=value),
        lambda: TRADES(BALL, beta=value),
        lambda: Constant(value),
        lambda: Ramped(FastTraining(BALL), epochs=value),
    ):
        with pytest.raises(ValueError, match=r"must be a finite number >= 0"):
            make()


@given(value=st.one_of(st.integers(max_value=0), st.floats(), st.just(True)))
def test_counts_that_make_no_sense_are_refused(value: Any) -> None:
    for make in (
        lambda: PGDTraining(BALL, steps=value),
        lambda: TRADES(BALL, steps=value),
        lambda: FreeTraining(BALL, replays=value),
    ):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            make()


@pytest.mark.parametrize("kind", [PGDTraining, FastTraining, FreeTraining, NFGSM, GradAlign, TRADES])
def test_a_ball_is_asked_for(kind: Any) -> None:
    with pytest.raises(ValueError, match="ball must be Linf"):
        kind(0.1)


def test_what_has_no_ball_has_no_ramp() -> None:
    with pytest.raises(ValueError, match=r"Standard\(\) has no ball whose radius could grow"):
        Ramped(Standard())
