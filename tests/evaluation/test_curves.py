import math

import pytest
import torch
from hypothesis import given

from advcourse.attacks import FGSM, PGD
from advcourse.evaluation import accuracy, accuracy_by_eps, robust_accuracy, success_by_distance
from advcourse.threat import Linf

from ..helpers import Counted, Linear, images, network, seeds

X = torch.linspace(0, 0.8, 9).double()[:, None]
Y = torch.zeros(9, dtype=torch.long)
MODEL = Linear(torch.ones(1).double(), bias=-0.502)


def test_the_curve_counts_the_images_farther_from_the_boundary() -> None:
    for attack in FGSM(Linf(9)), PGD(Linf(9), 3):
        curve = accuracy_by_eps(MODEL, attack, X, Y, [0.0, 0.05, 0.15, 0.35, 0.55])
        torch.testing.assert_close(curve, torch.tensor([6, 5, 4, 2, 0]) / 9)


def test_a_broken_image_is_not_attacked_again() -> None:
    model = Counted(MODEL)
    accuracy_by_eps(model, FGSM(Linf(0)), X, Y, [0.05, 0.15, 0.35])
    assert sum(model.backwards) == 6 + 5 + 4


@given(seeds)
def test_the_curve_never_rises_and_never_exceeds_a_single_run(seed: int) -> None:
    model, x = network((4,), seed=seed), images(12, (4,), seed)
    y = torch.where(torch.arange(12) % 4 > 0, model(x).argmax(1), 0)
    attack = FGSM(Linf(0))
    eps = [0.0, 0.01, 0.1, 0.3, 1.0]
    curve = accuracy_by_eps(model, attack, x, y, eps)
    assert curve[0] == pytest.approx(accuracy(model, x, y))
    assert (curve.diff() <= 0).all()
    for e, value in zip(eps, curve, strict=True):
        assert value <= robust_accuracy(model, FGSM(Linf(e)), x, y) + 1e-6


def test_radii_ascend_and_the_attack_has_a_ball() -> None:
    with pytest.raises(ValueError, match="ascend"):
        accuracy_by_eps(MODEL, FGSM(Linf(0)), X, Y, [0.2, 0.1])
    with pytest.raises(ValueError, match="success_by_distance"):
        accuracy_by_eps(MODEL, lambda model, x, y: x, X, Y, [0.1])  # type: ignore[arg-type, misc]


def test_success_is_a_distribution_function() -> None:
    distance = torch.tensor([0.0, 0.5, 0.5, 1.0, math.inf])
    at = [0.0, 0.49, 0.5, 2.0]
    torch.testing.assert_close(success_by_distance(distance, at), torch.tensor([0.2, 0.2, 0.6, 0.8]))
    torch.testing.assert_close(success_by_distance(distance, torch.tensor(at)), torch.tensor([0.2, 0.2, 0.6, 0.8]))


@pytest.mark.parametrize("distance", [[], [-0.1], [math.nan], [[0.1]]])
def test_what_is_no_distance_is_refused(distance: list[object]) -> None:
    with pytest.raises(ValueError, match="distance"):
        success_by_distance(torch.tensor(distance), [0.1])
