import math

import numpy as np
import pytest
import torch

from advcourse.evaluation import claim

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
