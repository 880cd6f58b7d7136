import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC
from torch import Tensor

from advcourse.gradients import Draw, average, centred, gaussian, max_margin, smooth, uniform

from ..helpers import rng, seeds

DRAWS: list[Draw] = [gaussian, uniform, smooth]
each_draw = pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
shapes = st.sampled_from([(1,), (7,), (3, 4), (1, 1, 1), (3, 1, 1), (1, 5, 5), (3, 4, 7), (1, 1, 6), (2, 3, 4, 2)])


# Draws


@each_draw
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@settings(max_examples=20)
@given(shapes, st.integers(1, 4), st.integers(1, 3), seeds)
def test_directions_have_the_shape_and_kind_of_the_images(
    draw: Draw, dtype: torch.dtype, shape: tuple[int, ...], n: int, rows: int, seed: int
) -> None:
    like = torch.zeros(rows, *shape, dtype=dtype)
    before = torch.get_rng_state()
    u = draw(like, n, rng(seed))
    assert (u.shape, u.dtype) == ((rows, n, *shape), dtype)
    assert u.isfinite().all()
    assert (u != 0).flatten(2).any(2).all()
    assert torch.equal(u, draw(like, n, rng(seed)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not like.any()


@each_draw
@pytest.mark.parametrize("shape", [(2000,), (3, 40, 41)])
def test_features_are_of_about_unit_size_and_lean_to_no_side(draw: Draw, shape: tuple[int, ...]) -> None:
    u = draw(torch.zeros(4, *shape), 30, rng(1)).flatten(2)
    size = 3**-0.5 if draw is uniform else 1
    torch.testing.assert_close(u.std(2), torch.full((4, 30), float(size)), atol=0.05, rtol=0)  # every direction
    assert u.mean().abs() < 0.3
    assert torch.cosine_similarity(u[0, 0], u[0, 1], 0).abs() < 0.5
    assert torch.cosine_similarity(u[0, 0], u[1, 0], 0).abs() < 0.5
    assert (u.flatten(0, 1).mean(0) / u.std()).square().mean() < 3 / 120  # of 120 independent ones
    if draw is uniform:
        assert -1 <= u.min() < -0.99
        assert 0.99 < u.max() <= 1
    if draw is gaussian:
        assert u.pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("size", [(28, 28), (17, 23), (8, 31), (2, 2), (1, 9)])
@pytest.mark.parametrize("decay", [0.5, 0.7, 1.5, -0.5])
def test_the_amplitude_falls_with_the_frequency(size: tuple[int, int], decay: float) -> None:
    like = torch.zeros(1, 3, *size, dtype=torch.float64)
    noise, u = gaussian(like, 3, rng()), smooth(like, 3, rng(), decay=decay)
    assert u.shape == noise.shape
    gain = torch.fft.fft2(u).abs() / torch.fft.fft2(noise).abs()  # of all frequencies, each exactly
    rows, columns = torch.fft.fftfreq(size[0]).double(), torch.fft.fftfreq(size[1]).double()
    frequency = torch.hypot(rows[:, None], columns)
    lowest = 0.5 / max(size)
    expected = torch.where(frequency < lowest, lowest, frequency) ** -decay
    share = gain / expected
    torch.testing.assert_close(share, share[..., :1, :1, :1].expand_as(share))  # the three channels alike
    torch.testing.assert_close(u.flatten(2).std(2), torch.ones(1, 3).double())


def test_channels_are_independent_and_neighbours_are_not() -> None:
    u = smooth(torch.zeros(1, 3, 20, 21), 200, rng())[0]
    across = torch.corrcoef(torch.stack([u[:, k].ravel() for k in range(3)]))
    assert (across - torch.eye(3)).abs().max() < 0.15
    for near, far in [
        (u[..., 1:] * u[..., :-1], u[..., 10:] * u[..., :-10]),
        (u[..., 1:, :] * u[..., :-1, :], u[..., 10:, :] * u[..., :-10, :]),
    ]:
        assert near.mean() > 0.4
        assert near.mean() > far.mean() + 0.2
    stronger = smooth(torch.zeros(1, 3, 20, 21), 200, rng(), decay=2.0)[0]
    assert (stronger[..., 1:] * stronger[..., :-1]).mean() > 0.8


@given(shapes, seeds)
def test_smooth_without_decay_or_images_is_gaussian(shape: tuple[int, ...], seed: int) -> None:
    like = torch.zeros(2, *shape)
    assert torch.equal(smooth(like, 3, rng(seed), decay=0), gaussian(like, 3, rng(seed)))
    same = torch.equal(smooth(like, 3, rng(seed)), gaussian(like, 3, rng(seed)))
    assert same == (len(shape) != 3 or shape[1:] == (1, 1))


# What is made of signs


@pytest.mark.parametrize("step", [1, 4, 100])
def test_smoothness_fades_with_the_steps(step: int) -> None:
    like = torch.zeros(1, 2, 12, 11).double()
    expected = smooth(like, 5, rng(), decay=0.7 / step**0.5)
    torch.testing.assert_close(smooth(like, 5, rng(), step), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(smooth(like, 5, rng(), step, fade=0), smooth(like, 5, rng(), 0))
    for draw in gaussian, uniform:
        assert torch.equal(draw(like, 5, rng(), step), draw(like, 5, rng()))


def signs_and_directions(
    n: int, d: int, seed: int, rows: int = 2, zeros: bool = True, shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    generator = rng(seed)
    signs = torch.randint(-1 if zeros else 0, 2, (rows, n), generator=generator).double()
    signs = signs if zeros else 2 * signs - 1
    u = torch.empty(rows, n, *(shape or (d,)), dtype=torch.float64).normal_(generator=generator)
    return signs, u


@given(st.integers(1, 9), st.integers(1, 6), seeds)
def test_average_and_centred_are_their_sums(n: int, d: int, seed: int) -> None:
    signs, u = signs_and_directions(n, d, seed)
    kept = signs.clone(), u.clone()
    plain, less = average(signs, u), centred(signs, u)
    for r in range(2):
        torch.testing.assert_close(plain[r], sum(s * v for s, v in zip(signs[r], u[r], strict=True)) / n)
        given_ones = signs[r][signs[r] != 0]
        mean = given_ones.mean() if len(given_ones) else torch.tensor(0.0)
        if len(set(given_ones.tolist())) < 2:
            mean = torch.tensor(0.0)  # nothing would be left
        wanted = sum((s - mean) * v for s, v in zip(signs[r], u[r], strict=True) if s != 0)
        torch.testing.assert_close(less[r], (torch.zeros(d).double() + wanted) / n)
    assert torch.equal(signs, kept[0])
    assert torch.equal(u, kept[1])


@pytest.mark.parametrize("n", [1, 3, 7, 30, 49])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_signs_centred_is_the_average(n: int, dtype: torch.dtype) -> None:
    _, u = signs_and_directions(n, 5, 0)
    u = u.to(dtype)
    for signs in torch.ones(2, n), -torch.ones(2, n), torch.zeros(2, n), torch.ones(2, n).tril(n // 2):
        signs = signs.to(dtype)
        assert torch.equal(centred(signs, u), average(signs, u))
    balanced = torch.tensor([1.0, -1.0]).repeat(n).to(dtype).expand(2, -1)
    twice = torch.cat([u, u.flip(1)], 1)
    assert torch.equal(centred(balanced, twice), average(balanced, twice))


def test_a_constant_that_all_signs_share_is_not_in_centred() -> None:
    # Directions with a mean: of the average it is the greatest part.
    signs, u = signs_and_directions(60, 4, 1, zeros=False)
    signs[:, :45] = 1
    shifted = u + 100
    assert average(signs, shifted).abs().min() > 20
    torch.testing.assert_close(centred(signs, shifted), centred(signs, u))


combines = pytest.mark.parametrize("combine", [average, centred, max_margin], ids=lambda c: c.__name__)


@combines
@pytest.mark.parametrize("shape", [(7,), (3, 4), (1, 5, 5)])
def test_rows_are_independent_and_zeros_are_no_signs(combine: object, shape: tuple[int, ...]) -> None:
    signs, u = signs_and_directions(6, 0, 3, rows=4, shape=shape)
    near = {"atol": 1e-4, "rtol": 1e-3} if combine is max_margin else {}  # solved to some precision
    signs[3] = 0
    whole = combine(signs, u)  # type: ignore[operator]
    assert whole.shape == (4, *shape)
    assert whole.isfinite().all()
    assert not whole[3].any()
    for r in range(4):
        torch.testing.assert_close(combine(signs[r : r + 1], u[r : r + 1])[0], whole[r], **near)  # type: ignore[operator]
        asked = signs[r] != 0
        fewer = combine(signs[r : r + 1, asked], u[r : r + 1, asked])[0]  # type: ignore[operator]
        share = 1 if combine is max_margin else int(asked.sum()) / 6
        torch.testing.assert_close(fewer.nan_to_num() * share, whole[r], **near)
    flipped = combine(-signs, u)  # type: ignore[operator]
    torch.testing.assert_close(flipped, -whole, **near)


@combines
def test_directions_of_no_length_say_nothing(combine: object) -> None:
    signs, u = signs_and_directions(5, 4, 2, zeros=False)
    u[:, 2] = 0
    found = combine(signs, u)  # type: ignore[operator]
    assert found.isfinite().all()
    others = [0, 1, 3, 4]
    if combine is max_margin:
        torch.testing.assert_close(found, max_margin(signs[:, others], u[:, others]), atol=1e-3, rtol=1e-3)
    assert not combine(signs, 0 * u).any()  # type: ignore[operator]


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(8, 30), seeds)
def test_max_margin_meets_all_constraints_and_is_the_shortest_to(n: int, d: int, seed: int) -> None:
    signs, u = signs_and_directions(n, d, seed, zeros=False)
    w = max_margin(signs, u)
    margins = torch.einsum("rn,rnd,rd->rn", signs, u, w)
    if (torch.linalg.cond(u) < 30).all():
        assert (margins > 1 - 1e-4).all()
        # w is made of the constraints that are tight, each with a positive weight: that is what the shortest one is.
        for r in range(2):
            rows = signs[r, :, None] * u[r]
            weight = torch.linalg.lstsq(rows.T, w[r, :, None]).solution[:, 0]
            assert (weight > -1e-4).all()
            assert (weight * (margins[r] - 1)).abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [10, 40])
def test_max_margin_is_the_support_vector_machine(n: int, seed: int) -> None:
    signs, u = signs_and_directions(n, 50, seed, rows=1, zeros=False)
    # So that a margin exists also for other reasons than that there are few of them.
    w = max_margin(signs, u / u.norm(dim=2, keepdim=True))[0].numpy()
    rows = (u / u.norm(dim=2, keepdim=True))[0].numpy()
    machine = LinearSVC(C=1e6, loss="hinge", fit_intercept=False, dual=True, tol=1e-8, max_iter=10**6, random_state=0)
    expected = machine.fit(rows, signs[0].numpy()).coef_[0]
    cosine = w @ expected / np.linalg.norm(w) / np.linalg.norm(expected)
    assert cosine > 0.9999
    assert np.linalg.norm(w) == pytest.approx(np.linalg.norm(expected), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_nothing_can_satisfy_ends_and_is_a_number(dtype: torch.dtype) -> None:
    signs, u = signs_and_directions(20, 2, 5, zeros=False)  # more than a plane has room for
    u[0, 1], signs[0, 0], signs[0, 1] = u[0, 0], 1, -1  # and a contradiction
    w = max_margin(signs.to(dtype), u.to(dtype))
    assert w.dtype == dtype
    assert w.isfinite().all()


def test_the_more_signs_the_nearer_the_gradient_and_a_bias_is_best_subtracted() -> None:
    gradient = torch.zeros(80).double()
    gradient[0] = 1
    u = gaussian(torch.zeros(1, 80, dtype=torch.float64), 400, rng())
    u = u / u.norm(dim=2, keepdim=True)
    signs = (u @ gradient).sign()
    for combine in average, centred, max_margin:
        few, many = (torch.cosine_similarity(combine(signs[:, :n], u[:, :n])[0], gradient, 0) for n in (50, 400))
        assert few > 0.5
        assert many > few + 0.1
    lopsided = (u @ gradient + 0.1).sign()
    assert 0.6 < lopsided.mean() < 0.9
    plain, less = (torch.cosine_similarity(c(lopsided, u)[0], gradient, 0) for c in (average, centred))
    assert less > plain + 0.02
    assert math.isfinite(less)
