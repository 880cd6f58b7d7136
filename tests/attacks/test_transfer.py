"""Transfer attacks: names, identities, and what a crafting attack promises."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse import data, models
from advcourse.ascent import ascend
from advcourse.attacks import Transfer
from advcourse.evaluation import correct
from advcourse.goals import Targeted, Untargeted, cross_entropy, logit
from advcourse.gradients import (
    RAP,
    Admix,
    Exact,
    InputDiversity,
    Momentum,
    Nesterov,
    Normalization,
    Part,
    ScaleInvariance,
    TranslationKernel,
    VarianceTuning,
)
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import Counted, convolutional, images, network, rng

SHAPE = (1, 6, 6)
NAMES = ["I", "MI", "NI", "DI", "MTDI", "MTSI", "MAI", "VMI", "MTDI+RAP", "MTDI+RAP-LS", "NTVSDI+RAP-LS", "I+RAP"]


def setting(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = network(SHAPE, 4, 1), images(n, SHAPE)
    return model, x, torch.arange(n) % 4


def order(parts: tuple[Part, ...]) -> list[type[Part]]:
    return [type(part) for part in parts]


OUTSIDE_IN: list[type[Part]] = [
    Momentum,
    Nesterov,
    Normalization,
    TranslationKernel,
    RAP,
    VarianceTuning,
    ScaleInvariance,
    Admix,
    InputDiversity,
]


def legal() -> Iterator[str]:
    for some in chain.from_iterable(combinations("MNTVSAD", k) for k in range(8)):
        letters = "".join(some)
        if not {"M", "N"} <= set(letters) and not {"S", "A"} <= set(letters):
            yield letters


@pytest.mark.parametrize("ending", ["", "+RAP", "+RAP-LS"])
def test_every_name_has_its_parts_in_order(ending: str) -> None:
    kinds = dict(
        zip(
            "MNTVSAD",
            [Momentum, Nesterov, TranslationKernel, VarianceTuning, ScaleInvariance, Admix, InputDiversity],
            strict=True,
        )
    )
    for letters in legal():
        attack = Transfer.named(f"{letters}I{ending}", Linf(0.2), steps=40)
        found = order(attack.parts)
        expected = {kinds[letter] for letter in letters}
        expected |= {Normalization} if set(letters) & set("MN") else set()
        expected |= {RAP} if ending else set()
        assert found == [kind for kind in OUTSIDE_IN if kind in expected]
        assert Transfer.named(f"{letters[::-1]}I{ending}", Linf(0.2), steps=40) == attack
        for part in attack.parts:
            assert repr(part) in repr(attack)
            if isinstance(part, RAP):
                assert (part.eps, part.start) == (0.2, 10 if ending == "+RAP-LS" else 0)


@pytest.mark.parametrize("name", ["", "M", "MM", "MMI", "XI", "mi", "IM", "MI+", "MI+RAP+RAP", "MI-RAP", "PGD", "MI "])
def test_unknown_names_are_told_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no attack .*M, T|there is no attack .*M, N, T, V, S, A, D"):
        Transfer.named(name, Linf(0.1))


@pytest.mark.parametrize("name", ["MNI", "SADI"])
def test_letters_that_exclude_each_other(name: str) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Transfer.named(name, Linf(0.1))


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5), L1(3.0)], ids=repr)
def test_without_parts_it_is_ascent_and_keeps_the_last_iterate(ball: Ball) -> None:
    model, x, y = setting()
    gradient = Exact(model, cross_entropy, Untargeted(y))
    *_, last = ascend(gradient, ball, x, 7, 0.03)
    assert torch.equal(Transfer(ball, steps=7, step_size=0.03)(model, x, y), last.x)


def test_the_default_step_does_not_depend_on_their_number() -> None:
    model, x, y = setting()
    short = list(Transfer(Linf(0.2), steps=4).iterates(model, x, y))
    long = list(Transfer(Linf(0.2), steps=8).iterates(model, x, y))
    for a, b in zip(short, long, strict=False):
        assert torch.equal(a.x, b.x)
    torch.testing.assert_close((short[1].x - x).abs().max(), torch.tensor(0.02).double())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Untargeted, Targeted])
def test_it_stays_in_the_ball_and_ends_where_it_ends(name: str, kind: Any) -> None:
    model, x, y = setting()
    attack = Transfer.named(name, Linf(0.1), steps=6)
    states = list(attack.iterates(model, x, kind(y)))
    assert [state.step for state in states] == list(range(7))
    for state in states:
        assert ((state.x - x).abs() <= 0.1 + 1e-12).all()
        assert ((state.x >= 0) & (state.x <= 1)).all()
        assert torch.equal(state.best, state.x)
    assert torch.equal(attack(model, x, kind(y)), states[-1].x)
    assert torch.equal(attack(model, x, kind(y)), attack(model, x, kind(y), generator=rng()))


def test_every_image_starts_and_none_stops() -> None:
    model, x, _ = setting()
    wrong = (model(x).argmax(1) + 1) % 4  # all are fooled already
    moved = Transfer.named("MI", Linf(0.1))(model, x, wrong)
    assert ((moved - x).abs().flatten(1).amax(1) > 0.05).all()


@pytest.mark.parametrize(("steps", "late"), [(1, 0), (6, 2), (10, 10), (10, 12)])
def test_rap_costs_exactly_its_inner_gradients(steps: int, late: int) -> None:
    model, x, y = setting()
    counted = Counted(model)
    Transfer(Linf(0.1), (Momentum(), RAP(0.1, 3, start=late)), steps=steps)(counted, x, y)
    expected = [6] * (steps + 3 * max(0, steps - late))
    assert counted.forwards == counted.backwards == expected


@pytest.mark.parametrize("late", [7, 100])
def test_a_start_after_the_end_is_the_attack_without(late: int) -> None:
    model, x, y = setting()
    plain = Transfer.named("MTDI", Linf(0.1), steps=7)
    outer, inner = plain.parts[:-1], plain.parts[-1:]
    rap = replace(plain, parts=(*outer, RAP(0.1, 3, start=late), *inner))
    assert torch.equal(rap(model, x, y), plain(model, x, y))
    assert not torch.equal(
        replace(plain, parts=(*outer, RAP(0.1, 3, start=6), *inner))(model, x, y), plain(model, x, y)
    )


def test_momentum_before_the_kernel_is_another_attack_and_can_be_had() -> None:
    model, x, y = setting()
    inside = Transfer(Linf(0.1), (TranslationKernel(5), Momentum(), Normalization()))
    outside = Transfer(Linf(0.1), (Momentum(), Normalization(), TranslationKernel(5)))
    assert not torch.equal(inside(model, x, y), outside(model, x, y))


@settings(max_examples=25)
@given(st.sampled_from(["I", "MI", "NI", "TI", "SI", "MTSI"]), st.integers(0, 5))
def test_images_do_not_see_each_other(name: str, i: int) -> None:
    model, x, y = setting()
    attack = Transfer.named(name, Linf(0.1), steps=4)
    alone = attack(model, x[i : i + 1], y[i : i + 1])
    torch.testing.assert_close(attack(model, x, y)[i : i + 1], alone)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(network(SHAPE, 8, 1), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4)).double().train()
    model[1].eval()
    _, x, y = setting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    states = Transfer.named("NTVADI+RAP", Linf(0.1), steps=2).iterates(model, x, y)
    next(states)
    assert [part.training for part in model.modules()] == modes
    states.close()
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_it_fools_the_surrogate_and_others_as_well() -> None:
    x, y = data.fashion_mnist("test", n=60)
    surrogate, target = models.load("resnet"), models.load("vgg")
    x, y = (part[correct(surrogate, x, y) & correct(target, x, y)] for part in (x, y))
    found = Transfer.named("MI", Linf(0.1))(surrogate, x, y)
    noise = (x + 0.1 * torch.empty_like(x).normal_(generator=rng()).sign()).clamp(0, 1)
    left = [correct(target, image, y).float().mean() for image in (noise, found)]
    assert correct(surrogate, found, y).float().mean() < 0.05
    assert left[1] < left[0] - 0.2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ball": 0.1}, "ball must be"),
        ({"parts": [Momentum()]}, "parts must be a tuple"),
        ({"parts": (Momentum,)}, "parts must be a tuple"),
        ({"steps": 0}, "steps must be"),
        ({"step_size": -0.1}, "step_size must be"),
        ({"loss": "ce"}, "loss must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Transfer(**({"ball": Linf(0.1)} | values))


def test_settings_go_through_a_name() -> None:
    attack = Transfer.named("MI", Linf(0.1), steps=300, loss=logit, step_size=0.01)
    assert (attack.steps, attack.loss, attack.step_size) == (300, logit, 0.01)


def test_states_are_never_written_again() -> None:
    model, x, y = setting()
    states = Transfer.named("NTDI+RAP", Linf(0.1), steps=4).iterates(model, x, y)
    kept = [(state, [state.x.clone(), state.loss.clone(), state.success.clone()]) for state in states]
    for state, copies in kept:
        for now, then in zip((state.x, state.loss, state.success), copies, strict=True):
            assert torch.equal(now, then)


PEERS = {
    "MI": ("MIFGSM", {"decay": 1.0}),
    "NI": ("NIFGSM", {"decay": 1.0}),
    "NSI": ("SINIFGSM", {"decay": 1.0, "m": 5}),
    "MTI": ("TIFGSM", {"decay": 1.0, "kernel_name": "gaussian", "len_kernel": 5, "nsig": 3, "diversity_prob": 0.0}),
}


@pytest.mark.parametrize("name", PEERS)
def test_it_agrees_with_torchattacks(name: str) -> None:
    grey, x, y = convolutional()
    model = nn.Sequential(nn.Conv2d(3, 1, 1), grey).eval()  # its TI knows of colour images alone
    x = torch.cat([x, x.flip(2), x.flip(3)], 1)
    peer, given = PEERS[name]
    theirs = getattr(torchattacks, peer)(model, eps=0.1, alpha=0.02, steps=6, **given)
    ours = Transfer.named(name, Linf(0.1), steps=6, step_size=0.02)(model, x, y)
    assert (ours - theirs(x, y)).abs().mean() < 1e-4
