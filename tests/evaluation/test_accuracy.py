import gc
from importlib import import_module

import pytest
import torch
from torch import nn

from advcourse.attacks import FGSM, PGD
from advcourse.evaluation import (
    accuracy,
    correct,
    fooling_rate,
    mean_and_interval,
    predict,
    robust_accuracy,
    wilson_interval,
)
from advcourse.goals import Targeted
from advcourse.threat import Linf

from ..helpers import Counted, Linear, images, network, rng


def test_accuracy_counts_the_right_answers() -> None:
    model, x = network((5,)), images(40, (5,))
    labels = model(x).argmax(1)
    assert accuracy(model, x, labels) == 1.0
    labels[::4] = (labels[::4] + 1) % 3
    assert accuracy(model, x, labels) == 0.75
    assert correct(model, x, labels).tolist() == [i % 4 != 0 for i in range(40)]


def test_predictions_come_in_chunks_and_without_a_gradient() -> None:
    model, x = Counted(network((5,))), images(7, (5,))
    logits = predict(model, x, batch_size=3)
    assert model.forwards == [3, 3, 1]
    assert not logits.requires_grad
    torch.testing.assert_close(logits, network((5,))(x))


def test_robust_accuracy_is_the_share_of_images_farther_from_the_boundary_than_eps() -> None:
    x = torch.linspace(0, 0.8, 9).double()[:, None]
    model, y = Linear(torch.ones(1).double(), bias=-0.5), torch.zeros(9, dtype=torch.long)
    assert accuracy(model, x, y) == pytest.approx(6 / 9)
    for eps, held in (0.0, 6), (0.12, 4), (0.32, 2), (0.55, 0):
        for attack in FGSM(Linf(eps)), PGD(Linf(eps)):
            assert robust_accuracy(model, attack, x, y) == pytest.approx(held / 9)


def test_the_fooling_rate_counts_changed_labels_whatever_the_right_ones_are() -> None:
    x = torch.linspace(0, 0.8, 9).double()[:, None]
    model = Linear(torch.ones(1).double(), bias=-0.5)
    for by, changed in (0.0, 0), (0.12, 2), (0.32, 4), (-0.12, 1), (5.0, 6), (-5.0, 3):
        delta = torch.full((1, 1), by).double()
        assert fooling_rate(model, delta, x) == pytest.approx(changed / 9)
        assert fooling_rate(model, delta, x, own=model(x).argmax(1)) == pytest.approx(changed / 9)
    assert fooling_rate(model, 1 - x, x) == pytest.approx(6 / 9)  # one for each image


def test_the_fooling_rate_is_that_of_images_in_the_box() -> None:
    x, model = torch.tensor([[0.2], [0.9]]), Linear(torch.ones(1), bias=-1.1)  # nothing in [0, 1] crosses 1.1
    assert fooling_rate(model, torch.ones(1, 1), x) == 0.0


def test_a_perturbation_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="delta must have shape"):
        fooling_rate(network((5,)), torch.zeros(5), images(4, (5,)))
    with pytest.raises(ValueError, match="label"):
        fooling_rate(network((5,)), torch.zeros(1, 5), images(4, (5,)), own=torch.zeros(3, dtype=torch.long))


def test_the_generator_reaches_the_attack() -> None:
    model, x = network((5,)), images(4, (5,))
    used, untouched = rng(1), rng(1)
    robust_accuracy(model, PGD(Linf(1e-6), 1), x, model(x).argmax(1), generator=used)
    assert not torch.equal(used.get_state(), untouched.get_state())


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Sequential(nn.Dropout(), nn.Linear(6, 3))).double()
    model[1].eval()
    modes, buffers = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    x, y = images(6, (5,)), torch.tensor([0, 1, 2, 0, 1, 2])
    assert accuracy(model, x, y) == accuracy(model, x, y)
    robust_accuracy(model, FGSM(Linf(0.1)), x, y)
    with pytest.raises(ValueError, match="labels"):
        accuracy(model, x, y + 1)
    gc.collect()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_unusable_input_is_refused_as_by_an_attack() -> None:
    model, x, y = network((5,)), images(3, (5,)), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="Normalized"):
        accuracy(model, x * 2, y)
    with pytest.raises(ValueError, match="int64"):
        accuracy(model, x, y.float())
    with pytest.raises(ValueError, match="logits"):
        accuracy(lambda z: model(z)[:, 0], x, y)
    with pytest.raises(ValueError, match="tuple"):
        accuracy(lambda z: (model(z),), x, y)  # type: ignore[arg-type, return-value]


def test_a_target_is_not_a_label() -> None:
    # The share of images that reached their target would pass for the share that withstood.
    model, x = network((5,)), images(3, (5,))
    goal = Targeted(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="label"):
        accuracy(model, x, goal)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label"):
        robust_accuracy(model, FGSM(Linf(0.1)), x, goal)  # type: ignore[arg-type]


def test_an_answer_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[int] = []

    def recorded(logits: torch.Tensor, rows: int, goal: object) -> torch.Tensor:
        checks.append(rows)
        return logits

    monkeypatch.setattr(import_module("advcourse.contract"), "check_logits", recorded)
    correct(network((5,)), images(7, (5,)), torch.zeros(7, dtype=torch.long))
    assert checks == [7]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (3, 10), (50, 100), (99, 100), (100, 100)])
def test_the_interval_is_where_a_test_of_two_deviations_does_not_reject(k: int, n: int) -> None:
    z, p = 1.96, k / n
    low, high = wilson_interval(k, n)
    assert 0 <= low <= p <= high <= 1
    for end in low, high:  # the ends solve |p - end| = z * sqrt(end * (1 - end) / n)
        assert abs(p - end) == pytest.approx(z * (end * (1 - end) / n) ** 0.5, abs=1e-9)
    assert high > 0
    assert low < 1
    mirrored = wilson_interval(n - k, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_an_interval_needs_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(k, n)


def test_mean_and_interval() -> None:
    values = torch.arange(100.0)
    mean, half = mean_and_interval(values)
    assert mean == pytest.approx(49.5)
    assert half == pytest.approx(1.96 * 29.011 / 10, rel=1e-3)
    assert mean_and_interval(torch.ones(5)) == (1.0, 0.0)
    for bad in torch.ones(1), torch.ones(2, 2):
        with pytest.raises(ValueError, match="N >= 2"):
            mean_and_interval(bad)
