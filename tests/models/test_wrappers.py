import pytest
import torch
from torch import nn

from advcourse.models import Normalized

from ..helpers import SHAPES, images


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_channel_or_feature_has_its_own_mean_and_deviation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(4, shape, dtype=dtype)
    mean, std = [0.1 * i for i in range(shape[0])], [0.5 + i for i in range(shape[0])]
    found = Normalized(nn.Identity(), mean, std)(x)
    assert found.dtype == dtype
    for channel in range(shape[0]):
        torch.testing.assert_close(found[:, channel], (x[:, channel] - mean[channel]) / std[channel])


def test_one_number_serves_all_channels() -> None:
    x = images(4, (3, 2, 2), dtype=torch.float32)
    torch.testing.assert_close(Normalized(nn.Flatten(), 0.5, 0.25)(x), ((x - 0.5) / 0.25).flatten(1))


def test_its_constants_move_and_save_with_it_and_are_not_trained() -> None:
    model = Normalized(nn.Linear(2, 2), [0.1, 0.2], [1.0, 2.0])
    assert {"mean", "std"} <= set(model.state_dict())
    assert {name for name, _ in model.named_parameters()} == {"network.weight", "network.bias"}
    assert model.double()(images(1, (2,))).dtype == torch.float64


@pytest.mark.parametrize(("mean", "std"), [([0.0, 0.0], [1.0]), (0.0, 0.0), ([0.0], [-1.0]), ([0.0], [float("nan")])])
def test_unusable_constants_are_refused(mean: object, std: object) -> None:
    with pytest.raises(ValueError, match="equally many, std positive, got mean"):
        Normalized(nn.Identity(), mean, std)  # type: ignore[arg-type]


def test_constants_of_another_number_of_channels_are_refused() -> None:
    # Broadcasting would turn one grey channel into three.
    model = Normalized(nn.Identity(), [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="channels"):
        model(images(2, (1, 4, 4)))
