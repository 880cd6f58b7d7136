"""The transfer matrix."""

import pytest
import torch
from torch import Tensor, nn

from advcourse.attacks import FGSM, Transfer
from advcourse.evaluation import transfer_matrix, wilson_interval
from advcourse.goals import Targeted, Untargeted
from advcourse.threat import Linf

from ..helpers import Linear, images, rng

A, B = (Linear(torch.tensor(weight).double()) for weight in ([1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]))
ALIKE = Linear(torch.tensor([2.0, -2.0, 0.1]).double())
X = images(60, (3,), 1)


def labels() -> Tensor:
    return A(X).argmax(1)


def test_it_is_what_one_would_do_by_hand() -> None:
    attack = Transfer(Linf(0.2))
    matrix = transfer_matrix(attack, {"a": A, "alike": ALIKE}, {"a": A, "alike": ALIKE}, X, labels())
    right = (ALIKE(X).argmax(1) == labels()).nonzero()[:, 0]
    assert torch.equal(matrix.images, right)
    for i, surrogate in enumerate((A, ALIKE)):
        found = attack(surrogate, X[right], labels()[right])
        for j, target in enumerate((A, ALIKE)):
            fooled = target(found).argmax(1) != labels()[right]
            assert torch.equal(matrix.fooled[i, j], fooled)
            assert matrix.rate[i, j] == fooled.double().mean()
    assert matrix.interval("a", "alike") == wilson_interval(int(matrix.fooled[0, 1].sum()), len(right))
    assert (matrix.surrogates, matrix.targets) == (("a", "alike"), ("a", "alike"))


def test_a_goal_says_what_counts() -> None:
    aim = 1 - labels()
    towards = transfer_matrix(Transfer(Linf(0.2)), {"a": A}, {"alike": ALIKE}, X, labels(), Targeted(aim))
    away = transfer_matrix(Transfer(Linf(0.2)), {"a": A}, {"alike": ALIKE}, X, labels(), Untargeted(labels()))
    assert torch.equal(towards.fooled, away.fooled)  # there are but two classes
    home = transfer_matrix(FGSM(Linf(0.0)), {"a": A}, {"alike": ALIKE}, X, labels(), Targeted(labels()))
    assert home.fooled.all()


def test_every_surrogate_starts_from_the_same_randomness() -> None:
    attack = Transfer.named("I+RAP", Linf(0.2))
    pair = {"one": A, "two": A}
    matrix = transfer_matrix(attack, pair, {"alike": ALIKE}, X, labels(), generator=rng(5))
    assert torch.equal(matrix.fooled[0], matrix.fooled[1])


def test_it_reads_as_a_table() -> None:
    matrix = transfer_matrix(Transfer(Linf(0.2)), {"a": A}, {"a": A, "a long name": ALIKE}, X, labels())
    head, row, foot = str(matrix).splitlines()
    assert head.split("  ")[-1] == "a long name"
    assert len(head) == len(row)
    assert f"{100 * matrix.rate[0, 1]:.1f}" in row
    assert f"% of {len(matrix.images)} images" in foot


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of 60 images"):
        transfer_matrix(
            Transfer(Linf(0.2)), {"a": A}, {"wrong": lambda x: torch.eye(2)[1 - A(x).argmax(1)]}, X, labels()
        )
    for one, other in ({}, {"a": A}), ({"a": A}, {}):
        with pytest.raises(ValueError, match="at least one surrogate and one target"):
            transfer_matrix(Transfer(Linf(0.2)), one, other, X, labels())
    with pytest.raises(ValueError, match="labels must be"):
        transfer_matrix(Transfer(Linf(0.2)), {"a": A}, {"a": A}, X, labels()[:5])


def test_models_are_left_in_their_modes() -> None:
    model = nn.Sequential(A, nn.Dropout()).train()
    transfer_matrix(Transfer(Linf(0.2)), {"a": model}, {"b": model}, X, labels())
    assert model.training
