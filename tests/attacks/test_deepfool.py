import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.ascent import ZeroGradient
from advcourse.attacks import DeepFool, Nearest
from advcourse.attacks.deepfool import LEAST
from advcourse.goals import Targeted, Toward, Untargeted, margin
from advcourse.threat import L2

from ..helpers import (
    Counted,
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

attacks = st.builds(
    DeepFool,
    steps=st.integers(1, 12),
    overshoot=st.sampled_from([0.0, 0.02, 0.5]),
    classes=st.sampled_from([2, 3, 10]),
)
cases = given(attacks, shapes, st.sampled_from([2, 3, 4, 10]), seeds)


def last_of(attack: DeepFool, model: Any, x: Tensor, goal: Any) -> Nearest:
    *_, last = attack.iterates(model, x, goal)
    assert isinstance(last, Nearest)
    return last


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_iterates_keep_every_promise(attack: DeepFool, shape: tuple[int, ...], classes: int, seed: int) -> None:
    model, x, goal = setting(shape, classes, seed, Untargeted)
    clean = goal.fooled(model(x).argmax(1))
    previous, earlier = clean, None
    for k, state in enumerate(attack.iterates(model, x, goal)):
        assert state.step == k <= attack.steps
        for image in state.x, state.best:
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
        if earlier is None:
            assert torch.equal(state.x, x)
        else:
            assert torch.equal(state.x[previous], earlier.x[previous])
        torch.testing.assert_close(state.loss, margin(model(state.x), goal))
        previous, earlier = goal.fooled(model(state.x).argmax(1)), state
        assert torch.equal(state.success, previous)
        assert torch.equal(state.best[previous], state.x[previous])
        assert torch.equal(state.best[~previous], x[~previous])
        torch.testing.assert_close(state.distance, L2.norm(state.best - x).where(previous, torch.inf))
    assert torch.equal(state.distance == 0, clean)
    assert torch.equal(attack(model, x, goal), state.best)


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@cases
def test_images_do_not_meet(attack: DeepFool, shape: tuple[int, ...], classes: int, seed: int) -> None:
    model, x, goal = setting(shape, classes, seed, Untargeted)
    whole = last_of(attack, model, x, goal)
    chunked = last_of(replace(attack, batch_size=4), model, x, goal)
    torch.testing.assert_close(chunked.best, whole.best, atol=1e-7, rtol=0)
    torch.testing.assert_close(chunked.distance, whole.distance, atol=1e-7, rtol=0)
    for i in range(6):
        one = torch.tensor([i])
        alone = last_of(attack, model, x[one], goal[one])
        torch.testing.assert_close(alone.best, whole.best[one], atol=1e-7, rtol=0)


def test_states_are_never_written_again() -> None:
    model, x, goal = setting((3, 4), 3, 2, Untargeted)
    kept = [
        (state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)})
        for state in DeepFool().iterates(model, x, goal)
    ]
    assert len(kept) > 2
    for state, copies in kept:
        assert all(torch.equal(getattr(state, name), value) for name, value in copies.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = network(shape, 4, dtype=dtype), images(5, shape, dtype=dtype)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    state = last_of(DeepFool(), model, x, y)
    for field in "best", "x", "distance", "loss":
        assert getattr(state, field).dtype == dtype, field
    assert state.success[1:].any()
    assert torch.equal(model(state.best).argmax(1) != y, state.success)
    length = L2.norm(state.best.double() - x.double()).where(state.success, torch.inf)
    torch.testing.assert_close(state.distance, length.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-9)


def test_images_already_fooled_are_done_at_distance_0() -> None:
    model, x, y = never_fooled()
    counted = Counted(model)
    (state,) = DeepFool().iterates(counted, x, y + 1)
    assert state.step == 0
    assert state.distance.tolist() == [0.0] * 4
    assert torch.equal(state.best, x)
    assert counted.forwards == [4]


def test_failed_images_come_back_clean() -> None:
    model, x, y = never_fooled()
    state = last_of(DeepFool(3), model, x, y)
    assert torch.equal(state.best, x)
    assert not torch.equal(state.x, x)
    assert state.distance.tolist() == [math.inf] * 4


# The closed form


def affine(shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images far from the box, and for each the distance to the face towards every class (N, K)."""
    features = math.prod(shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes).double())
    model[1].weight.data = torch.randn(classes, features, generator=rng(seed), dtype=torch.float64)
    model[1].weight.data *= 0.3 + torch.rand(classes, 1, generator=rng(seed + 1), dtype=torch.float64)
    x = 0.5 + 0.02 * torch.randn(7, *shape, generator=rng(seed + 2), dtype=torch.float64)
    model[1].bias.data = -model[1].weight.data.sum(1) / 2
    logits = model(x)
    y, weight = logits.argmax(1), model[1].weight.data
    length = (weight[None] - weight[y][:, None]).norm(dim=2)
    distance = (logits.gather(1, y[:, None]) - logits) / length
    return model, x, distance.scatter(1, y[:, None], math.inf).detach()


@pytest.mark.parametrize("overshoot", [0.02, 0.3])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7)])
def test_one_step_goes_over_the_nearest_face_of_a_linear_model(
    shape: tuple[int, ...], classes: int, overshoot: float
) -> None:
    model, x, faces = affine(shape, classes)
    y = model(x).argmax(1)
    states = list(DeepFool(overshoot=overshoot).iterates(model, x, y))
    assert len(states) == 2
    state = states[-1]
    assert state.best.min() > 0
    assert state.best.max() < 1
    nearest, where = faces.min(1)
    torch.testing.assert_close(state.distance, (1 + overshoot) * nearest)
    assert torch.equal(model(state.best).argmax(1), where)
    # No point as near as the face is on its other side.
    assert not (model(x + 0.98 / (1 + overshoot) * (state.best - x)).argmax(1) != y).any()


@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7), (1, 28, 28)])
def test_the_distance_is_that_to_the_hyperplane(shape: tuple[int, ...]) -> None:
    model, x, eps = linear_yardstick(L2, shape)
    state = last_of(DeepFool(), model, x, torch.zeros(len(x), dtype=torch.long))
    torch.testing.assert_close(state.distance, torch.full((3,), 1.02 * eps).double())


def test_only_the_likeliest_classes_are_looked_at() -> None:
    model, x, faces = affine((6,), 10)
    logits = model(x)
    y = logits.argmax(1)
    order = logits.argsort(1, descending=True)
    some = False
    for classes in range(2, 12):
        counted = Counted(model)
        state = last_of(DeepFool(1, classes=classes), counted, x, y)
        looked = faces.gather(1, order[:, 1:classes]).min(1).values
        torch.testing.assert_close(state.distance, 1.02 * looked.clamp_min(LEAST))
        some |= bool((looked > faces.min(1).values).any())
        assert counted.backwards == [7] * (min(classes, 10) - 1)
    assert some


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@pytest.mark.parametrize(("classes", "backwards"), [(2, 1), (3, 2), (4, 3), (10, 9), (1000, 9)])
def test_passes_for_a_model_that_is_hard_to_fool(classes: int, backwards: int) -> None:
    lead = torch.zeros(classes).double()
    lead[0] = 1000.0
    weight = torch.randn(5, classes, generator=rng(), dtype=torch.float64)
    counted = Counted(lambda z: z @ weight + lead)
    states = list(DeepFool(4).iterates(counted, images(3, (5,)), torch.zeros(3, dtype=torch.long)))
    assert len(states) == 5
    assert counted.forwards == [3] * 5
    assert counted.backwards == [3] * (4 * backwards)


# Faces and the box


def test_what_the_box_takes_away_costs_steps_and_not_success() -> None:
    # Nearly all of w points out of the box: each step is clipped to what is left of it, and the rest adds up.
    model = Linear(torch.tensor([5.0, 0.6, -0.8]).double(), -5.2)
    x, y = torch.tensor([[1.0, 0.5, 0.5]]).double(), torch.tensor([0])
    states = list(DeepFool(steps=300).iterates(model, x, y))
    assert len(states) > 20
    assert states[-1].best[0, 0] == 1
    assert 0.3 <= states[-1].distance.item() < 0.31


def test_an_image_on_the_face_itself_gets_over_it() -> None:
    # Both logits are equal, argmax says 0: not fooled, at a distance of nothing.
    model = Linear(torch.tensor([3.0, -1.0]).double(), -1.0)
    x, y = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0])
    assert margin(model(x), Untargeted(y)).item() == 0
    state = last_of(DeepFool(), model, x, y)
    assert (state.step, state.success.item()) == (1, True)
    assert state.distance.item() == pytest.approx(1.02e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_onto_the_face_ends(dtype: torch.dtype) -> None:
    model, x, _ = affine((8,), 5)
    model, x = model.to(dtype), x.to(dtype)
    y = model(x).argmax(1)
    state = last_of(DeepFool(overshoot=0.0), model, x, y)
    assert state.success.all()
    assert state.step <= 3


def test_it_gets_far_in_few_steps_on_a_curved_model() -> None:
    model, x, y = convolutional()
    *_, state = states = list(DeepFool().iterates(model, x, y))
    assert state.success.all()
    assert len(states) <= 10


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@pytest.mark.parametrize(
    "size",
    [
        1e-4,
        1e4,
        pytest.param(1e-25),
        pytest.param(1e25),
    ],
)
def test_a_scale_of_the_logits_changes_nothing(size: float) -> None:
    model, x, y = convolutional()
    state = last_of(DeepFool(), lambda z: model(z) * size, x, y)
    torch.testing.assert_close(state.best, DeepFool()(model, x, y), atol=1e-4, rtol=0)


def test_a_flat_model_is_reported() -> None:
    model = Linear(torch.zeros(4).double(), -1.0)
    with pytest.warns(ZeroGradient, match="for 2 of 2 images at step 0"):
        state = last_of(DeepFool(), model, images(2, (4,)), torch.zeros(2, dtype=torch.long))
    assert not state.success.any()


def test_a_class_that_is_ruled_out_is_no_rival() -> None:
    model, x, y = convolutional()

    def masked(z: Tensor) -> Tensor:
        return torch.cat([model(z), torch.full((len(z), 3), -math.inf)], 1)

    torch.testing.assert_close(DeepFool()(masked, x, y), DeepFool()(model, x, y))


# What is refused


@pytest.mark.parametrize("goal", [Targeted(torch.tensor([1, 1])), Toward(torch.tensor([1, 1]), torch.tensor([0, 0]))])
def test_it_is_untargeted(goal: Targeted) -> None:
    with pytest.raises(ValueError, match=r"untargeted.*CarliniWagner"):
        DeepFool()(network((5,)), images(2, (5,)), goal)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, "3", None, True]),
        ("overshoot", [-0.1, math.nan, math.inf, None]),
        ("classes", [1, 0, 2.0, None]),
        ("batch_size", [0, None]),
    ],
)
def test_hyper_parameters_are_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
            DeepFool(**{field: value})


def test_defaults_are_the_authors() -> None:
    attack = DeepFool()
    assert (attack.steps, attack.overshoot, attack.classes) == (50, 0.02, 10)
