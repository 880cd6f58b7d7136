import gc
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse import data, models
from advcourse.ascent import ZeroGradient
from advcourse.attacks import DeepFool, UniversalDeepFool, UniversalPerturbation
from advcourse.goals import Untargeted, cross_entropy, margin
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import BALLS, Counted, Linear, balls, convolutional, images, network, rng, seeds, shapes

eps_values = st.sampled_from([0.0, 0.05, 0.5, 3.0])
fits = st.one_of(
    st.builds(
        lambda ball, eps, epochs, size, batch_size: UniversalPerturbation(
            ball(eps), epochs, size, batch_size=batch_size
        ),
        balls,
        eps_values,
        st.integers(1, 3),
        st.none() | st.floats(0, 2),
        st.sampled_from([1, 4, 128]),
    ),
    st.builds(lambda ball, eps, epochs: UniversalDeepFool(ball(eps), epochs), balls, eps_values, st.integers(1, 2)),
)
FITS = [UniversalPerturbation(Linf(0.1), 2), UniversalDeepFool(L2(0.3), 1)]


def fooling(model: Callable[[Tensor], Tensor], x: Tensor, delta: Tensor) -> float:
    return (model((x + delta).clamp(0, 1)).argmax(1) != model(x).argmax(1)).float().mean().item()


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@settings(max_examples=25)
@given(fits, shapes, st.sampled_from([2, 3, 10]), seeds)
def test_states_keep_every_promise(fit: Any, shape: tuple[int, ...], classes: int, seed: int) -> None:
    model, x = network(shape, classes, seed), images(6, shape, seed)
    kept, last = [], None
    for k, state in enumerate(fit.iterates(model, x)):
        assert state.step == k
        assert state.delta.shape == x[:1].shape
        assert state.delta.dtype == x.dtype
        assert state.delta.abs().max() <= 1
        assert (fit.ball.norm(state.delta) <= fit.ball.eps + 1e-9).all()
        assert 0 <= state.fooled <= 1
        assert not state.delta.requires_grad
        kept.append((state.delta, state.delta.clone()))
        last = state
    assert torch.equal(kept[0][0], torch.zeros_like(x[:1]))
    assert all(torch.equal(delta, copy) for delta, copy in kept)
    assert torch.equal(fit.fit(model, x), last.delta)
    if fit.ball.eps == 0:
        assert torch.equal(last.delta, torch.zeros_like(x[:1]))


@pytest.mark.parametrize("fit", FITS)
def test_same_seed_same_delta(fit: Any) -> None:
    model, x, _ = convolutional()
    fit = replace(fit, batch_size=2) if isinstance(fit, UniversalPerturbation) else fit
    first = fit.fit(model, x, generator=rng(5))
    assert torch.equal(fit.fit(model, x, generator=rng(5)), first)
    assert not torch.equal(fit.fit(model, x, generator=rng(6)), first)
    assert torch.equal(fit.fit(model, x), fit.fit(model, x, generator=rng(0)))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_the_world_is_left_as_it_was(fit: Any, mode: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    model[0].eval()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 7)

    def world() -> list[Any]:
        parameters = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
        buffers = [b.tolist() for b in model.buffers()]
        return [[m.training for m in model.modules()], parameters, buffers, torch.get_rng_state().tolist()]

    before, x = world(), images(6, (5,))
    with mode():
        inside, start = x.clone(), torch.zeros(1, 5).double()
        delta = fit.fit(model, inside, start=start)
        assert world() == before
        for _ in fit.iterates(model, inside):
            assert world() == before
    for _ in fit.iterates(model, x):
        break
    gc.collect()
    assert world() == before
    assert torch.equal(x, images(6, (5,)))
    assert torch.equal(fit.fit(model, x.requires_grad_()), delta)
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fit", FITS)
def test_dtype_is_kept(fit: Any, dtype: torch.dtype) -> None:
    model, x = network((2, 3, 4), 4, dtype=dtype), images(5, (2, 3, 4), dtype=dtype)
    delta = fit.fit(model, x)
    assert delta.dtype == dtype
    assert torch.isfinite(delta).all()
    assert delta.any()


# Projected ascent


def test_one_step_is_the_steepest_for_the_sum_of_the_gradients() -> None:
    model, x, _ = convolutional()
    own = Untargeted(model(x).argmax(1))
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(z), own).sum(), z)
    total = gradient.sum(0, keepdim=True)
    for ball in BALLS:
        states = list(UniversalPerturbation(ball(0.1), 1).iterates(model, x))
        assert len(states) == 2
        torch.testing.assert_close(states[1].delta, 0.01 * ball.steepest(total))
        (_, state) = UniversalPerturbation(ball(0.1), 1, step_size=0.03).iterates(model, x)
        torch.testing.assert_close(state.delta, 0.03 * ball.steepest(total))
        (_, state) = UniversalPerturbation(ball(0.1), 1, step_size=9.0).iterates(model, x)
        torch.testing.assert_close(state.delta, 0.1 * ball.steepest(total))


def test_every_image_is_seen_once_an_epoch() -> None:
    seen: list[list[int]] = []

    class Loud(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x[:, 0].mul(100).round().int().tolist())
            return super().forward(x)

    x = torch.stack([torch.arange(7) / 100, torch.full((7,), 0.5)], 1).double()
    model = Counted(Loud(torch.tensor([0.0, 1.0]).double(), -9.0))
    states = list(UniversalPerturbation(Linf(0.1), 3, batch_size=3).iterates(model, x))
    assert len(states) == 10
    assert model.forwards == [7] + [3, 3, 1] * 3
    assert model.backwards == [3, 3, 1] * 3
    epochs = [[image for part in seen[k : k + 3] for image in part] for k in (1, 4, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


class Steps(nn.Module):
    """Two kinds of images, told apart by the first feature: low ones want the second to rise, high ones to fall."""

    def forward(self, x: Tensor) -> Tensor:
        high = x[:, 0] > 0.5
        lead = torch.where(high, 20 * (0.45 - x[:, 1]), x[:, 1] - 0.7)
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_images_whose_loss_is_clipped_do_not_count() -> None:
    # One image pulls down twenty times as hard as the other pulls up, until its loss reaches the clip.
    x = torch.tensor([[0.2, 0.5], [0.8, 0.5]]).double()
    deltas = {
        clip: [
            state.delta[0, 1].item()
            for state in UniversalPerturbation(Linf(0.4), 12, 0.05, loss=margin, clip=clip).iterates(Steps(), x)
        ]
        for clip in (0.5, 1e6)
    }
    assert deltas[1e6] == pytest.approx([max(-0.05 * k, -0.4) for k in range(13)])
    # -0.05 leaves its margin at 0, -0.1 at 1 > 0.5: from there the other pulls back up, and so to and fro.
    assert deltas[0.5][:5] == pytest.approx([0, -0.05, -0.1, -0.05, -0.1])


def test_the_fooled_fraction_is_that_of_the_images_looked_at() -> None:
    x = torch.tensor([[0.2, 0.5], [0.8, 0.5]]).double()
    states = list(UniversalPerturbation(Linf(0.4), 3, 0.05, loss=margin, clip=1e6).iterates(Steps(), x))
    assert [state.fooled for state in states[:3]] == [fooling(Steps(), x, state.delta) for state in states[:3]]
    assert states[2].fooled == 0.5


def test_features_that_are_clipped_away_are_not_felt() -> None:
    # The first image stands on the face: its steep pull outward would lead nowhere for it, and hide the others'.
    class Pull(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = torch.where(x[:, 1] > 0.5, 50 * x[:, 0], -x[:, 0]) - 100
            return torch.stack([torch.zeros_like(lead), lead], 1)

    x = torch.tensor([[1.0, 1.0], [0.5, 0.0]]).double()
    (_, state) = UniversalPerturbation(Linf(0.1), 1, loss=margin).iterates(Pull(), x)
    assert state.delta[0, 0].item() == pytest.approx(-0.01)
    # And where the perturbation has carried it over the face already.
    x[0, 0] = 0.95
    start = torch.tensor([[0.07, 0.0]]).double()
    (_, state) = UniversalPerturbation(Linf(0.1), 1, loss=margin).iterates(Pull(), x, start=start)
    assert state.delta[0, 0].item() == pytest.approx(0.06)

    class Push(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = torch.where(x[:, 1] > 0.5, -50 * x[:, 0], x[:, 0]) - 100
            return torch.stack([torch.zeros_like(lead), lead], 1)

    # A pull inward leads nowhere either for an image that stays clipped.
    (_, state) = UniversalPerturbation(Linf(0.1), 1, loss=margin).iterates(Push(), x, start=start)
    assert state.delta[0, 0].item() == pytest.approx(0.08)


@pytest.mark.parametrize("fit", FITS)
def test_start_goes_on(fit: Any) -> None:
    model, x, _ = convolutional()
    start = 0.05 * torch.randn(1, 1, 8, 8, generator=rng()).sign()
    start = fit.ball.project(start, torch.zeros_like(start), box=(-1, 1))
    kept = start.clone()
    states = list(fit.iterates(model, x, start=start))
    assert torch.equal(states[0].delta, start)
    assert not torch.equal(states[-1].delta, fit.fit(model, x))
    assert torch.equal(fit.fit(model, x, start=start), states[-1].delta)
    assert torch.equal(start, kept)
    assert states[0].fooled == pytest.approx(fooling(model, x, start))


def test_going_on_is_one_long_fit() -> None:
    model, x, _ = convolutional()
    whole, used = UniversalPerturbation(Linf(0.1), 6, batch_size=3), rng(3)
    first = replace(whole, epochs=2).fit(model, x, generator=used)
    rest = replace(whole, epochs=4).fit(model, x, start=first, generator=used)
    assert torch.equal(rest, whole.fit(model, x, generator=rng(3)))


@pytest.mark.parametrize("fit", FITS)
def test_a_start_outside_of_the_ball_is_brought_inside(fit: Any) -> None:
    model, x, _ = convolutional()
    for state in fit.iterates(model, x, start=torch.ones(1, 1, 8, 8)):
        assert (fit.ball.norm(state.delta) <= fit.ball.eps + 1e-6).all()


def test_the_caller_may_reuse_its_start() -> None:
    model, x, _ = convolutional()
    start = torch.zeros(1, 1, 8, 8)
    state = next(FITS[0].iterates(model, x, start=start))
    start += 1
    assert not state.delta.any()


def test_a_saturated_loss_is_reported() -> None:
    model = Linear(torch.tensor([1e6, 2e6]), bias=-9e6)
    with pytest.warns(ZeroGradient, match="margin"):
        UniversalPerturbation(Linf(0.1), 1).fit(model, torch.full((3, 2), 0.5))


def test_on_a_linear_model_it_flips_all_just_above_the_optimal_radius() -> None:
    weight = torch.randn(4, 6, generator=rng(), dtype=torch.float64)
    x = 0.5 + 0.02 * torch.randn(9, 4, 6, generator=rng(1), dtype=torch.float64)
    x = x - ((x - 0.5) * weight).flatten(1).sum(1)[:, None, None] * weight / weight.square().sum()
    model = Linear(weight, bias=-0.5 * weight.sum().item() - 0.3)
    for ball in BALLS:
        eps = 0.3 / ball.dual_norm(weight[None]).item()
        for share, fooled in (0.98, 0.0), (1.02, 1.0):
            fit = UniversalPerturbation(ball(share * eps), 10)
            assert fooling(model, x, fit.fit(model, x)) == fooled


@pytest.mark.parametrize("ball", [Linf(0.1), L2(3.0)], ids=repr)
def test_it_fools_images_that_it_has_not_seen(ball: Ball) -> None:
    model = models.load("cnn")
    x, held_out = data.fashion_mnist("train", n=300)[0], data.fashion_mnist("test", n=200)[0]
    delta = UniversalPerturbation(ball, epochs=5, batch_size=50).fit(model, x)
    noise = torch.randn(1, 1, 28, 28, generator=rng()).sign()
    noise = noise * (ball.eps / ball.norm(noise)).view(1, 1, 1, 1)
    with torch.no_grad():
        ours, theirs = fooling(model, held_out, delta), fooling(model, held_out, noise)
    assert ours > 0.5
    assert ours > 2 * theirs


# DeepFool, image after image


def test_it_stops_at_the_rate() -> None:
    model, x, _ = convolutional()
    for rate in 0.3, 0.6, 1.0:
        states = list(UniversalDeepFool(Linf(0.3), 20, rate).iterates(model, x))
        for state in states:
            assert state.fooled == pytest.approx(fooling(model, x, state.delta))
        assert all(state.fooled < rate for state in states[:-1])
        assert states[-1].fooled >= rate
    assert len(list(UniversalDeepFool(Linf(0.3), rate=0.0).iterates(model, x))) == 1
    assert len(list(UniversalDeepFool(Linf(0.0), 3).iterates(model, x))) == 4


def test_a_push_is_taken_along_in_full_where_the_ball_allows_it() -> None:
    model = Linear(torch.tensor([3.0, -1.0, 2.0]).double(), -2.2)
    x = torch.tensor([[0.5, 0.5, 0.5]]).double()
    start = torch.tensor([[0.01, 0.0, -0.01]]).double()
    states = list(UniversalDeepFool(L2(1.0), 3).iterates(model, x, start=start))
    push = DeepFool(10)(model, x + start, torch.tensor([0])) - (x + start)
    torch.testing.assert_close(states[-1].delta, start + push)
    assert (len(states), states[-1].fooled) == (2, 1.0)
    (_, *_, state) = UniversalDeepFool(Linf(0.02), 3).iterates(model, x, start=start)
    assert Linf.norm(state.delta).item() == pytest.approx(0.02)


def last_success(model: nn.Module, x: Tensor) -> list[bool]:
    *_, last = DeepFool(1).iterates(model, x, model(x).argmax(1))
    return last.success.tolist()


def test_a_push_that_does_not_arrive_is_left_out() -> None:
    model = Linear(torch.tensor([3.0, -1.0]).double(), -50.0)
    x = torch.full((3, 2), 0.5).double()
    *_, last = UniversalDeepFool(Linf(1.0), 2).iterates(model, x)
    assert not last.delta.any()
    # One image arrives and the other does not, whichever comes first.
    x[:2] = torch.tensor([[0.95, 0.5], [0.5, 0.0]])
    model = Linear(torch.tensor([3.0, -1.0]).double(), -2.45)
    assert last_success(model, x[:2]) == [True, False]
    for seed in range(3):
        delta = UniversalDeepFool(Linf(1.0), 1, deepfool=DeepFool(1)).fit(model, x[:2], generator=rng(seed))
        torch.testing.assert_close(delta, DeepFool(1)(model, x[:1], torch.tensor([0])) - x[:1])


def test_deepfool_s_perturbation_fools_images_that_it_has_not_seen() -> None:
    model, x, _ = convolutional()
    held_out = 0.3 + 0.4 * torch.rand(200, 1, 8, 8, generator=rng(9))
    delta = UniversalDeepFool(Linf(0.1), 5).fit(model, x)
    noise = 0.1 * torch.randn(1, 1, 8, 8, generator=rng()).sign()
    assert fooling(model, held_out, delta) > 0.3
    assert fooling(model, held_out, delta) > 2 * fooling(model, held_out, noise)


# What is refused


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.full((2, 5), 1.5), r"\[0, 1\].*1\.5"),
        (torch.zeros(0, 5), "non-empty"),
        (torch.zeros(2, 5).byte(), "uint8"),
        (torch.full((2, 5), math.nan), "NaN"),
        (None, "torch tensor"),
    ],
)
def test_unusable_images_are_refused_at_once(fit: Any, x: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit.fit(network((5,)), x)
    with pytest.raises(ValueError, match=words):
        fit.iterates(network((5,)), x)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    "start",
    [
        torch.zeros(5),
        torch.zeros(2, 5),
        torch.zeros(1, 4),
        pytest.param([[0.0] * 5]),
        pytest.param(torch.zeros(1, 5).numpy()),
        pytest.param(torch.full((1, 5), math.nan)),
    ],
)
def test_a_start_that_is_none_is_refused(fit: Any, start: Any) -> None:
    with pytest.raises(ValueError, match="start"):
        fit.fit(network((5,)), images(3, (5,)), start=start)


@pytest.mark.parametrize("fit", FITS)
def test_unusable_answers_are_refused(fit: Any) -> None:
    x, model = images(3, (5,)), network((5,))
    with pytest.raises(ValueError, match="logits of shape"):
        fit.fit(lambda z: model(z)[:, 0], x)
    with pytest.raises(ValueError, match="NaN"):
        fit.fit(lambda z: model(z) * math.nan, x)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ball", [0.1, None, Linf]),
        ("epochs", [0, -1, 1.5, None, True]),
        ("step_size", [-0.1, math.nan, math.inf, "0.1"]),
        ("clip", [-1.0, math.nan, None]),
        ("batch_size", [0, None]),
        pytest.param("loss", ["ce", None, 3]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            UniversalPerturbation(**{"ball": L1(0.1), field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ball", [0.1, None, Linf]),
        ("epochs", [0, -1, 1.5, None, True]),
        ("rate", [-0.1, math.nan, "0.8", None]),
        pytest.param("rate", [80, 1.01]),
        pytest.param("deepfool", [None, 10]),
    ],
)
def test_hyper_parameters_of_deepfool_s_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            UniversalDeepFool(**{"ball": L1(0.1), field: value})


def test_defaults_are_the_documented_ones() -> None:
    fit = UniversalPerturbation(Linf(0.1))
    assert (fit.epochs, fit.step_size, fit.loss, fit.clip, fit.batch_size) == (10, None, cross_entropy, 9.0, 128)
    assert repr(UniversalDeepFool(Linf(0.1))).startswith("UniversalDeepFool(ball=Linf(eps=0.1), epochs=10, rate=0.8, ")
    assert UniversalDeepFool(Linf(0.1)).deepfool == DeepFool(steps=10)
