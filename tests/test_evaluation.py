import gc
import math

import numpy as np
import pytest
import torch
from torch import nn

from advcourse.attacks import FGSM, PGD
from advcourse.evaluation import accuracy, claim, correct, predict, robust_accuracy
from advcourse.goals import Targeted
from advcourse.threat import Linf

from .helpers import Counted, Linear, images, network, rng


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


TRUE = [True, np.True_, torch.tensor(True), torch.tensor([2.0]).mean() > 1, np.float64(2) > 1]
FALSE = [False, np.False_, torch.tensor(False), np.float64(math.nan) > 1]


@pytest.mark.parametrize("condition", TRUE)
def test_a_claim_that_holds_prints_one_line(condition: object, capsys: pytest.CaptureFixture[str]) -> None:
    claim("it holds", condition)
    assert capsys.readouterr().out == "✓ it holds\n"


@pytest.mark.parametrize("condition", FALSE)
def test_a_claim_that_does_not_hold_raises_and_prints_nothing(
    condition: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="does not hold here: it holds"):
        claim("it holds", condition)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "condition", [math.nan, "False", [False], (value > 1 for value in [0]), torch.tensor([True, False])]
)
def test_a_claim_is_a_yes_or_a_no(condition: object) -> None:
    # A forgotten all(...) around a generator would be a claim that cannot fail.
    with pytest.raises((ValueError, TypeError), match=r"condition"):
        claim("it holds", condition)
