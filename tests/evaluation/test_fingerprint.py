import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advcourse.evaluation.fingerprint import described, fingerprint
from advcourse.models import Detector, Ensemble, Ghost, ParameterNoise, Quantized, Randomized, Rotation, bit_depth

from ..helpers import network

NET = network((4,)).float()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NET, network((4,), seed=1).float()),
        (Randomized(NET, 0.1), Randomized(NET, 0.9)),
        (ParameterNoise(NET, 0.01), ParameterNoise(NET, 0.5)),
        (ParameterNoise(NET, 0.01), ParameterNoise(NET, 0.01, seed=1)),
        (Ghost(NET, 0.1), Ghost(NET, 0.5)),
        (Detector(NET, partial(bit_depth, bits=3), 0.1), Detector(NET, partial(bit_depth, bits=3), 0.9)),
        (Detector(NET, partial(bit_depth, bits=3), 0.1), Detector(NET, partial(bit_depth, bits=2), 0.1)),
        (Ensemble([NET]), Ensemble([NET], probabilities=True)),
        (Quantized(NET, 8, 1), Quantized(NET, 8, 8)),
        (Rotation([NET]), Rotation([NET], seed=5)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.ones(2)),
    ],
)
def test_what_differs_has_another_fingerprint(one: nn.Module | Tensor, other: nn.Module | Tensor) -> None:
    assert fingerprint(one) == fingerprint(copy.deepcopy(one))
    assert fingerprint(one) != fingerprint(other)


def test_layout_and_device_do_not_matter_and_order_does() -> None:
    x = torch.rand(2, 3, 4, 5)
    assert fingerprint(x) == fingerprint(x.contiguous(memory_format=torch.channels_last))
    assert fingerprint(x, NET) != fingerprint(NET, x)
    assert fingerprint(x.bfloat16(), torch.tensor(True), torch.zeros(0)) == fingerprint(
        x.bfloat16(), torch.tensor(True), torch.zeros(0)
    )


def test_attacks_by_name() -> None:
    assert described({}) == {}
