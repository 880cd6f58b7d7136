"""Parts of a transferable gradient: identities, closed forms and exact costs."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.ascent import Slope
from advcourse.goals import Targeted, Untargeted, cross_entropy, logit, margin
from advcourse.gradients import (
    RAP,
    Admix,
    Context,
    Exact,
    InputDiversity,
    Momentum,
    Nesterov,
    Normalization,
    Onion,
    Part,
    ScaleInvariance,
    TranslationKernel,
    VarianceTuning,
)
from advcourse.threat import Linf

from ..helpers import Counted, images, network, rng

SHAPE = (2, 6, 6)
N = 5
EVERYONE = torch.arange(N)


def context(model: nn.Module | None = None, goal: Any = None, x: Tensor | None = None, **settings: Any) -> Context:
    model = network(SHAPE, 4, 1) if model is None else model
    x = images(N, SHAPE) if x is None else x
    goal = Untargeted(torch.arange(len(x)) % 4) if goal is None else goal
    given = {"loss": cross_entropy, "ball": Linf(0.1), "step_size": 0.02} | settings
    return Context(model, goal=goal, clean=x, generator=rng(), **given)


def slopes(parts: list[Part], around: Context, points: list[Tensor]) -> list[Slope]:
    onion = Onion(parts, around)
    return [onion(x, torch.arange(len(x))) for x in points]


WALK = [images(N, SHAPE, seed) for seed in range(3)]

NEUTRAL = {
    "M": Momentum(0.0),
    "N": Nesterov(0.0),
    "S": ScaleInvariance(1),
    "D": InputDiversity(p=0.0),
    "T": TranslationKernel(1),
    "V, none": VarianceTuning(neighbours=0),
    "V, here": VarianceTuning(reach=0.0),
    "RAP": RAP(0.0),
    "RAP, late": RAP(0.1, start=3),
}
PARTS = {
    "M": Momentum(),
    "N": Nesterov(),
    "norm": Normalization(),
    "S": ScaleInvariance(3),
    "A": Admix(2, 2),
    "D": InputDiversity(),
    "T": TranslationKernel(3),
    "V": VarianceTuning(3),
    "RAP": RAP(0.05, 2),
}


@pytest.mark.parametrize("within", [None, *PARTS], ids=str)
@pytest.mark.parametrize("neutral", NEUTRAL)
def test_a_neutral_part_changes_no_bit(neutral: str, within: str | None) -> None:
    inner = [PARTS[within]] if within else []
    expected = slopes(inner, context(), WALK)
    for mine, plain in zip(slopes([NEUTRAL[neutral], *inner], context(), WALK), expected, strict=True):
        assert torch.equal(mine.gradient, plain.gradient)
        assert torch.equal(mine.loss, plain.loss)
        assert torch.equal(mine.fooled, plain.fooled)


def test_admix_without_a_share_is_scale_invariance() -> None:
    for mine, plain in zip(
        slopes([Admix(3, share=0.0)], context(), WALK), slopes([ScaleInvariance(3)], context(), WALK), strict=True
    ):
        assert torch.equal(mine.gradient, plain.gradient)


def test_without_parts_it_is_the_plain_gradient() -> None:
    around = context()
    exact = Exact(around.model, cross_entropy, around.goal)
    for x, mine in zip(WALK, slopes([], around, WALK), strict=True):
        plain = exact(x, EVERYONE)
        assert torch.equal(mine.gradient, plain.gradient)
        assert torch.equal(mine.loss, plain.loss)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_momentum_of_a_constant_gradient_is_the_geometric_sum(decay: float) -> None:
    around = context(loss=logit, model=nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double())
    plain = slopes([], around, WALK[:1])[0].gradient
    for part in Momentum(decay), Nesterov(decay):
        for k, slope in enumerate(slopes([part], around, [WALK[0]] * 4), 1):
            expected = sum(decay**i for i in range(k)) * plain
            torch.testing.assert_close(slope.gradient, expected)


def test_nesterov_looks_ahead_by_the_momentum() -> None:
    around = context()
    asked: list[Tensor] = []

    def spy(points: Tensor, owner: Tensor) -> Slope:
        asked.append(points)
        return around.plain()(points, owner)

    part = Nesterov(0.9)
    slope, state = part(spy, WALK[0], EVERYONE, part.init(around), around)
    assert torch.equal(asked[0], WALK[0])
    assert torch.equal(state, slope.gradient)
    part(spy, WALK[1], EVERYONE, state, around)
    torch.testing.assert_close(asked[1], WALK[1] + 0.02 * 0.9 * state)


def test_normalised_gradients_have_unit_entries_on_average_and_zero_stays_zero() -> None:
    def next(points: Tensor, owner: Tensor) -> Slope:
        gradient = torch.randn(points.shape, generator=rng(1), dtype=torch.float64) * 1e-30
        gradient[0] = 0
        return Slope(points.sum((1, 2, 3)), owner < 0, gradient)

    slope, _ = Normalization()(next, WALK[0], EVERYONE, None, context())
    size = slope.gradient.flatten(1).abs().mean(1)
    torch.testing.assert_close(size, torch.tensor([0.0, 1, 1, 1, 1]).double())


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_scale_invariance_is_the_gradient_of_the_mean_loss(loss: Callable[..., Tensor]) -> None:
    around = context(loss=loss)
    slope = slopes([ScaleInvariance(4)], around, WALK[:1])[0]
    x = WALK[0].clone().requires_grad_()
    mean = torch.stack([loss(around.model(x / 2**i), around.goal) for i in range(4)]).mean(0)
    (expected,) = torch.autograd.grad(mean.sum(), x)
    torch.testing.assert_close(slope.gradient, expected)
    torch.testing.assert_close(slope.loss, mean.detach())
    assert torch.equal(slope.fooled, around.goal.fooled(around.model(WALK[0]).argmax(1)))


class Noted(nn.Module):
    """A model that keeps what it was asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach())
        return self.model(x)


@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_admix_mixes_in_images_of_other_labels(kind: Any) -> None:
    noted = Noted(network(SHAPE, 4, 1))
    x = WALK[0]
    labels = torch.tensor([0, 0, 1, 2, 2]) if kind is Untargeted else noted.model(x).argmax(1)
    around = context(noted, kind(torch.tensor([0, 0, 1, 2, 2])), x)
    slopes([Admix(2, 3, 0.25)], around, [x])
    copies = noted.asked[-1].view(3, 2, N, *SHAPE)
    torch.testing.assert_close(copies[:, 1], copies[:, 0] / 2)
    others = (copies[:, 0] - x) / 0.25
    for one in others:
        distance = torch.cdist(one.flatten(1), x.flatten(1))
        partner = distance.argmin(1)
        assert (distance.amin(1) < 1e-12).all()
        assert (labels[partner] != labels).all()
    assert len({tuple(torch.cdist(one.flatten(1), x.flatten(1)).argmin(1).tolist()) for one in others}) > 1


def test_admix_alone_stays_unmixed_and_says_so() -> None:
    around = context(x=WALK[0][:1])
    with pytest.warns(UserWarning, match="none of another label"):
        mine = slopes([Admix(3, 2)], around, [WALK[0][:1]])
    expected = slopes([ScaleInvariance(3)], context(x=WALK[0][:1]), [WALK[0][:1]])
    torch.testing.assert_close(mine[0].gradient, expected[0].gradient)


@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_a_kernel_adds_up_to_one_and_looks_the_same_from_all_sides(size: int) -> None:
    weights = TranslationKernel(size).kernel(torch.zeros(1).double())
    assert weights.shape == (size, size)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0).double())
    for other in weights.T, weights.flip(0), weights.flip(1):
        torch.testing.assert_close(other, weights)
    assert (weights > 0).all()


def test_the_kernel_smooths_each_channel() -> None:
    def impulse(points: Tensor, owner: Tensor) -> Slope:
        gradient = torch.zeros_like(points)
        gradient[:, 0, 3, 2] = 1.0
        return Slope(points.sum((1, 2, 3)), owner < 0, gradient)

    part = TranslationKernel(3)
    slope, _ = part(impulse, WALK[0], EVERYONE, None, context())
    torch.testing.assert_close(slope.gradient[0, 0, 2:5, 1:4], part.kernel(WALK[0]))
    assert slope.gradient[:, 0].sum((1, 2)) == pytest.approx(1)
    assert (slope.gradient[:, 1] == 0).all()


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_diversity_keeps_the_shape_and_only_moves_pixels(height: int, width: int, least: float, seed: int) -> None:
    x = images(3, (1, height, width)) * 0.9 + 0.1
    noted = Noted(nn.Sequential(nn.Flatten(), nn.Linear(height * width, 3).double()))
    around = replace(context(noted, Untargeted(torch.tensor([0, 1, 2])), x), generator=rng(seed))
    slope = slopes([InputDiversity(1.0, least)], around, [x])[0]
    assert slope.gradient.shape == x.shape
    seen = noted.asked[-1]
    assert seen.shape == x.shape
    for i in range(3):
        assert set(seen[i].unique().tolist()) <= {0.0, *x[i].unique().tolist()}


def test_diversity_at_full_size_is_the_image_itself() -> None:
    for mine, plain in zip(
        slopes([InputDiversity(1.0, 1.0)], context(), WALK), slopes([], context(), WALK), strict=True
    ):
        torch.testing.assert_close(mine.gradient, plain.gradient)


def test_diversity_pulls_the_gradient_back_through_what_it_did() -> None:
    noted = Noted(nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double())
    around = context(noted, loss=logit)
    slope = slopes([InputDiversity(1.0, 0.5)], around, WALK[:1])[0]
    bump = 0.125 * torch.randn(WALK[0].shape, generator=rng(3)).double()
    before = logit(noted.model(noted.asked[-1]), around.goal)
    around.generator.manual_seed(0)
    slopes([InputDiversity(1.0, 0.5)], around, [WALK[0] + bump])
    after = logit(noted.model(noted.asked[-1]), around.goal)
    torch.testing.assert_close(after - before, (slope.gradient * bump).sum((1, 2, 3)))  # all is linear


def test_each_copy_is_moved_in_its_own_way() -> None:
    noted = Noted(network(SHAPE, 4, 1))
    slopes([ScaleInvariance(5), InputDiversity(1.0, 0.3)], context(noted), WALK[:1])
    blocks = noted.asked[-1].view(5, N, *SHAPE) * (2 ** torch.arange(5)).view(5, 1, 1, 1, 1)
    assert len({tuple(block.flatten().tolist()) for block in blocks}) > 1


def test_variance_is_that_of_the_step_before() -> None:
    around = context()
    noted: list[Tensor] = []

    def spy(points: Tensor, owner: Tensor) -> Slope:
        noted.append(points)
        return around.plain()(points, owner)

    part = VarianceTuning(neighbours=4, reach=1.5)
    first, state = part(spy, WALK[0], EVERYONE, part.init(around), around)
    plain = around.plain()(WALK[0], EVERYONE).gradient
    assert torch.equal(first.gradient, plain)
    here, near = noted
    assert torch.equal(here, WALK[0])
    near = near.view(4, N, *SHAPE)
    assert ((near - WALK[0]).abs() <= 0.15 + 1e-12).all()
    assert ((near - WALK[0]).abs() > 0.1).any()
    mean = torch.stack([around.plain()(x, EVERYONE).gradient for x in near]).mean(0)
    torch.testing.assert_close(state, mean - plain)
    second, _ = part(spy, WALK[1], EVERYONE, state, around)
    torch.testing.assert_close(second.gradient, around.plain()(WALK[1], EVERYONE).gradient + state)


def test_a_linear_loss_has_no_variance() -> None:
    around = context(loss=logit, model=nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double())
    for mine, plain in zip(slopes([VarianceTuning(5)], around, WALK), slopes([], around, WALK), strict=True):
        torch.testing.assert_close(mine.gradient, plain.gradient)


@pytest.mark.parametrize("kind", [Untargeted, Targeted])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_rap_asks_at_a_worse_point_nearby(kind: Any, loss: Any) -> None:
    around = context(goal=kind(torch.arange(N) % 4))
    asked: list[Tensor] = []

    def spy(points: Tensor, owner: Tensor) -> Slope:
        asked.append(points)
        return around.plain()(points, owner)

    RAP(0.05, 10, loss=loss)(spy, WALK[0], EVERYONE, None, around)
    assert ((asked[0] - WALK[0]).abs() <= 0.05 + 1e-12).all()
    assert ((asked[0] >= 0) & (asked[0] <= 1)).all()
    here, there = (loss(around.model(x), around.goal) for x in (WALK[0], asked[0]))
    assert (there < here).all()


def test_rap_on_a_linear_model_goes_to_the_corner() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double()
    around = context(linear, loss=logit, x=0.5 + 0 * WALK[0])
    asked: list[Tensor] = []

    def spy(points: Tensor, owner: Tensor) -> Slope:
        asked.append(points)
        return around.plain()(points, owner)

    RAP(0.1, 8, loss=logit)(spy, around.clean, EVERYONE, None, around)
    RAP(0.1, 8, step_size=0.05, loss=logit)(spy, around.clean, EVERYONE, None, around)
    sign = linear[1].weight[around.goal.labels].sign().view(N, *SHAPE)
    torch.testing.assert_close(asked[1], 0.5 + 0.1 * sign)  # 8 · 0.05 reaches it from any start
    assert ((asked[0] - 0.5) * sign >= -1e-12).all()  # 8 · 0.1/8 moves by one eps at least as far as the middle


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ([], 1),
        ([Momentum(), Normalization(), TranslationKernel(3), InputDiversity()], 1),
        ([Nesterov(), Normalization()], 1),
        ([ScaleInvariance(5)], 5),
        ([Admix(5, 3)], 15),
        ([VarianceTuning(20)], 21),
        ([VarianceTuning(3), ScaleInvariance(2), InputDiversity()], 8),
        ([RAP(0.1, 8)], 9),
        ([RAP(0.1, 4, start=2), ScaleInvariance(3)], 3 + 4 / 3),
    ],
    ids=repr,
)
def test_a_gradient_costs_its_passes_and_nothing_else(parts: list[Part], rows: float) -> None:
    counted = Counted(network(SHAPE, 4, 1))
    slopes(parts, context(counted), WALK)
    assert sum(counted.forwards) == round(3 * rows * N)
    assert sum(counted.backwards) == round(3 * rows * N)


@pytest.mark.parametrize("parts", [[part] for part in PARTS.values()], ids=repr)
def test_a_chunk_changes_memory_and_not_the_result(parts: list[Part]) -> None:
    for mine, plain in zip(slopes(parts, context(batch_size=3), WALK), slopes(parts, context(), WALK), strict=True):
        torch.testing.assert_close(mine.gradient, plain.gradient)


@pytest.mark.parametrize("parts", [[part] for part in PARTS.values()], ids=repr)
def test_points_and_global_randomness_are_left_alone(parts: list[Part]) -> None:
    kept, state = [x.clone() for x in WALK], torch.get_rng_state()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for slope in slopes(parts, context(), WALK):
            assert slope.gradient.isfinite().all()
            assert not slope.gradient.requires_grad
            assert slope.gradient.shape == WALK[0].shape
            assert slope.loss.shape == slope.fooled.shape == (N,)
    assert all(torch.equal(a, b) for a, b in zip(WALK, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("state", [Momentum(), Nesterov(), VarianceTuning(2)], ids=repr)
def test_states_within_copies_are_refused(state: Part) -> None:
    with pytest.raises(ValueError, match="put it outside of the parts that make copies"):
        slopes([ScaleInvariance(2), state], context(), WALK[:1])


@pytest.mark.parametrize("part", [InputDiversity(), TranslationKernel(3)], ids=repr)
def test_pictures_are_needed_where_pixels_have_neighbours(part: Part) -> None:
    flat = images(3, (7,))
    around = context(network((7,), 3, 1), Untargeted(torch.tensor([0, 1, 2])), flat)
    with pytest.raises(ValueError, match=r"needs images \(N, C, H, W\), got shape \(3, 7\)"):
        slopes([part], around, [flat])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Momentum, {"decay": -0.1}),
        (Nesterov, {"decay": math.nan}),
        (ScaleInvariance, {"scales": 0}),
        (Admix, {"scales": 0}),
        (Admix, {"partners": 0}),
        (Admix, {"share": -1.0}),
        (InputDiversity, {"p": 1.5}),
        (InputDiversity, {"least": -0.1}),
        (TranslationKernel, {"size": 4}),
        (TranslationKernel, {"size": 0}),
        (TranslationKernel, {"spread": math.inf}),
        (VarianceTuning, {"neighbours": -1}),
        (VarianceTuning, {"reach": -0.1}),
        (RAP, {"eps": -0.1}),
        (RAP, {"eps": 0.1, "steps": 0}),
        (RAP, {"eps": 0.1, "start": -1}),
        (RAP, {"eps": 0.1, "step_size": -1.0}),
        (RAP, {"eps": 0.1, "loss": None}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{list(values)[-1]} must be"):
        kind(**values)
