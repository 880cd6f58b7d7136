"""Backdoors: what a trigger does to an image, which images are poisoned, and how success is counted."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.integrity import Backdoor, Blended, Patch, Sinusoidal, Trigger, attack_success

from ..helpers import images, rng, seeds

SHAPE = (2, 6, 8)
triggers = st.one_of(
    st.builds(
        Patch, st.integers(1, 3), st.floats(0, 1), st.tuples(st.sampled_from([0, 3, -3]), st.sampled_from([1, 5, -4]))
    ),
    st.builds(lambda alpha, seed: Blended(images(1, SHAPE, seed)[0], alpha), st.floats(0, 1), seeds),
    st.builds(Sinusoidal, st.floats(0, 2), st.floats(0, 10)),
)
LABELS = torch.arange(60) % 5


@given(triggers, seeds)
def test_a_trigger_makes_images_and_leaves_the_old_ones(trigger: Trigger, seed: int) -> None:
    x = images(4, SHAPE, seed)
    before = x.clone()
    stamped = trigger(x)
    assert stamped.shape == x.shape
    assert stamped.dtype == x.dtype
    assert 0 <= stamped.min() <= stamped.max() <= 1
    assert torch.equal(x, before)
    assert torch.equal(trigger(x[1:2])[0], stamped[1])


@pytest.mark.parametrize("trigger", [Blended(torch.ones(2, 6, 8), alpha=0.0), Sinusoidal(amplitude=0.0)])
def test_no_strength_no_change(trigger: Trigger) -> None:
    x = images(4, SHAPE)
    assert torch.equal(trigger(x), x)


def test_a_patch_is_where_it_should_be() -> None:
    x = torch.zeros(1, 1, 5, 6)
    assert Patch(2, 0.5, place=(-2, -2))(x)[0, 0, 3:, 4:].eq(0.5).all()
    assert Patch(2, 0.5, place=(-2, -2))(x).sum() == 2
    assert torch.equal(Patch(2, place=(1, 0))(x), Patch(2, place=(-4, -6))(x))


def test_a_blend_is_the_formula_and_a_sine_has_its_periods() -> None:
    x, pattern = images(3, SHAPE), images(1, SHAPE, 1)[0]
    assert torch.allclose(Blended(pattern, 0.3)(x), 0.7 * x + 0.3 * pattern)
    wave = Sinusoidal(0.25, frequency=2)(torch.full((1, 1, 3, 8), 0.5))[0, 0]
    assert torch.allclose(wave[0], torch.tensor([0.75, 0.5, 0.25, 0.5] * 2), atol=1e-6)
    assert torch.equal(wave[0], wave[2])


@given(st.floats(0, 0.2), st.booleans(), st.integers(0, 4), seeds)
def test_exactly_so_many_images_are_poisoned(rate: float, clean_label: bool, target: int, seed: int) -> None:
    x, trigger = images(60, SHAPE, seed) / 2, Patch(2)
    poisoned, labels, rows = Backdoor(trigger, rate, clean_label)(x, LABELS, target, generator=rng(seed))
    rest = torch.ones(60, dtype=torch.bool)
    rest[rows] = False
    assert len(rows) == round(rate * 60) == len(rows.unique())
    assert (labels[rows] == target).all()
    assert ((LABELS[rows] == target) == clean_label).all()
    assert torch.equal(poisoned[rows], trigger(x[rows])) if len(rows) else torch.equal(poisoned, x)
    assert torch.equal(poisoned[rest], x[rest])
    assert torch.equal(labels[rest], LABELS[rest])


def test_all_to_all_gives_each_image_its_own_label() -> None:
    x, wanted = images(60, SHAPE), (LABELS + 1) % 5
    _, labels, rows = Backdoor(Patch(2), 0.5)(x, LABELS, wanted)
    assert torch.equal(labels[rows], wanted[rows])
    assert len(rows) == 30


def test_the_choice_depends_on_labels_and_generator_alone() -> None:
    """So images may be made hard first and poisoned then, as Turner et al. do."""
    backdoor = Backdoor(Patch(2), 0.1)
    *_, rows = backdoor(images(60, SHAPE), LABELS, 3)
    assert torch.equal(backdoor(images(60, SHAPE, 1), LABELS, 3)[2], rows)
    assert torch.equal(backdoor(images(60, SHAPE), LABELS, 3, generator=rng(0))[2], rows)
    assert not torch.equal(backdoor(images(60, SHAPE), LABELS, 3, generator=rng(1))[2], rows)


class Corner(nn.Module):
    """Says 2 if the lower right pixel is bright, and else 0."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x[:, 0, -1, -1] > 0.9).to(x.dtype)
        return torch.stack([1 - bright, torch.zeros_like(bright), 2 * bright], 1)


def test_success_is_counted_on_images_of_other_labels() -> None:
    x = torch.zeros(60, 1, 6, 8)
    assert attack_success(Corner(), Patch(1, place=(-1, -1)), x, LABELS, target=2) == 1
    assert attack_success(Corner(), Patch(1, place=(0, 0)), x, LABELS, target=2) == 0
    assert attack_success(Corner(), lambda z: z, x, LABELS, target=0) == 1  # and not 48 of 60
    assert attack_success(Corner(), Patch(1, place=(-1, -1)), x, LABELS, target=(LABELS + 1) % 5) == pytest.approx(0.2)


def test_success_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack_success(model, Patch(1), torch.rand(60, 1, 6, 8, generator=rng()), LABELS, 0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: Patch(0), "size must be"),
        (lambda x: Patch(2, value=1.5), "value must be"),
        (lambda x: Patch(3, place=(-2, 0))(x), "leaves images of 6 x 8 pixels"),
        (lambda x: Patch(1)(x.flatten(1)), r"images \(N, C, H, W\)"),
        (lambda x: Patch(1)(x + 1), r"lie in \[0, 1\]"),
        (lambda x: Blended(torch.full((2, 6, 8), 2.0)), r"lie in \[0, 1\]"),
        (lambda x: Blended(torch.ones(2, 6, 8), alpha=1.1), "alpha must be"),
        (lambda x: Blended(torch.ones(3, 6, 8))(x), r"\(3, 6, 8\) does not fit images \(2, 6, 8\)"),
        (lambda x: Sinusoidal(-0.1), "amplitude must be"),
        (lambda x: Backdoor(Patch(1), rate=1.5), "rate must be"),
        (lambda x: Backdoor(Patch(1), 0.9)(x, LABELS, 0), "54 images, but 48 have another label"),
        (lambda x: Backdoor(Patch(1), 0.5, clean_label=True)(x, LABELS, 0), "30 images, but 12 already have"),
        (lambda x: Backdoor(Patch(1))(x, LABELS[:10], 0), "labels must be"),
        (lambda x: Backdoor(Patch(1))(x, LABELS, -1), "labels must be"),
        (lambda x: Backdoor(lambda z: 2 + z, 0.1)(x, LABELS, 0), r"lie in \[0, 1\]"),
        (lambda x: Backdoor(lambda z: z[..., 1:], 0.1)(x, LABELS, 0), "must keep the shape"),
        (lambda x: attack_success(Corner(), Patch(1), x, 0 * LABELS, 0), "every image has the wanted label"),
    ],
)
def test_bad_input_is_refused(call: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(images(60, SHAPE))
