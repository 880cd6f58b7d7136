import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import Tensor, nn

from advcourse import models
from advcourse.attacks import NES, PGD
from advcourse.goals import Untargeted
from advcourse.models import MinMax, Normalized
from advcourse.oracles import Labels, Scores
from advcourse.threat import Linf

from ..helpers import SHAPES, Counted, images, network, rng, seeds


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


# MinMax


def table(n: int, columns: int, seed: int = 0) -> Tensor:
    """Rows whose columns differ by orders of magnitude."""
    size = 10.0 ** torch.arange(-3, columns - 3).double()
    return torch.randn(n, columns, generator=rng(seed), dtype=torch.float64) * size + 5 * size


@given(st.integers(2, 9), st.integers(1, 8), seeds)
def test_scaling_there_and_back(n: int, columns: int, seed: int) -> None:
    rows = table(n, columns, seed)
    model = MinMax.fit(nn.Identity(), rows)
    x = model.scale(rows)
    assert x.amin(0).tolist() == [0.0] * columns
    assert x.amax(0).tolist() == [1.0] * columns
    torch.testing.assert_close(model.unscale(x), rows)
    inside = torch.rand(5, columns, generator=rng(seed), dtype=torch.float64)
    torch.testing.assert_close(model.scale(model.unscale(inside)), inside, atol=1e-9, rtol=0)
    assert torch.equal(model(inside), model.low + inside * (model.high - model.low))


def test_a_network_sees_raw_rows() -> None:
    target, rows = network((4,)), table(20, 4)
    model = MinMax.fit(target, rows)
    torch.testing.assert_close(model(model.scale(rows)), target(rows), rtol=1e-6, atol=1e-6)
    leaf = model.scale(rows).requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    raw = rows.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target(raw).sum(), raw)
    torch.testing.assert_close(gradient, expected * (model.high - model.low), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_raw_rows_have_the_dtype_of_x(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def target(rows: Tensor) -> Tensor:
        seen.append(rows.dtype)
        return rows[:, 0] > 0.5

    model = MinMax(target, [0, 0], [1, 1])
    model(torch.rand(3, 2, dtype=dtype))
    assert seen == [dtype]
    assert model.scale(torch.rand(3, 2, dtype=dtype)).dtype == dtype


def test_double_precision_is_kept() -> None:
    # Two times of this century, a second apart: single precision cannot tell them from each other.
    model = MinMax(nn.Identity(), [1.6e9], [1.6e9 + 86400])
    x = model.scale(np.array([[1.6e9 + 3600], [1.6e9 + 3601]]))
    assert x.dtype == torch.float64
    assert model(x).diff(dim=0).item() == pytest.approx(1)


def test_rows_of_integers_scale_to_fractions() -> None:
    rows = np.array([[18, 0], [90, 1], [36, 1]])
    assert MinMax.fit(nn.Identity(), rows).scale(rows)[2].tolist() == [0.25, 1.0]
    assert MinMax.fit(nn.Identity(), rows.tolist()).scale(torch.from_numpy(rows))[2].tolist() == [0.25, 1.0]


def test_a_constant_column_stays_what_it_is() -> None:
    rows = torch.tensor([[1.0, 7.1], [3.0, 7.1]], dtype=torch.float64)
    model = MinMax.fit(nn.Identity(), rows)
    assert model.scale(rows).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert model(torch.rand(9, 2).double())[:, 1].tolist() == [7.1] * 9


@pytest.mark.parametrize(
    ("value", "column"), [(9.5, 0), (-0.5, 1), (float("nan"), 1), (float("inf"), 0), (9 + 1e-12, 0)]
)
def test_rows_outside_are_refused_by_column(value: float, column: int) -> None:
    model = MinMax(nn.Identity(), [1, 0], [9, 4])
    rows = torch.tensor([[2.0, 2.0]] * 3).double()
    rows[1, column] = value
    with pytest.raises(ValueError, match=rf"column {column} must be in .*got .* in row 1: fit MinMax"):
        model.scale(rows)


def test_it_answers_as_its_target_does() -> None:
    rows, x = table(30, 4), images(6, (4,))
    callables: list[Any] = [
        lambda raw: (raw[:, 0] > rows[:, 0].mean()).long(),
        lambda raw: network((4,))(raw).softmax(1).detach().numpy(),
    ]
    for target, window, dtype in zip(callables, (Labels, Scores), (torch.int64, torch.float64), strict=True):
        model = MinMax.fit(target, rows)
        assert model(x).dtype == dtype
        through, plain = window(model), window(target)
        for oracle in through, plain:
            oracle.begin(6)
        owner = torch.arange(6)
        plain_rows = model.unscale(x)
        expected = torch.as_tensor(target(plain_rows))
        torch.testing.assert_close(through(x, owner), expected)


def test_an_estimator_sees_raw_rows() -> None:
    rows = table(60, 4).numpy()
    y = np.where(rows[:, 1] > np.median(rows[:, 1]), "high", "low")
    fitted = DecisionTreeClassifier(max_depth=3, random_state=0).fit(rows, y)
    model = MinMax.fit(fitted, rows)
    x = model.scale(rows)
    assert torch.equal(model(x).softmax(1), torch.from_numpy(fitted.predict_proba(rows)))
    oracle = Labels(model)
    oracle.begin(60)
    assert (fitted.classes_[oracle(x, torch.arange(60))] == y).all()
    with pytest.raises(ValueError, match="attack it through an oracle"):
        PGD(Linf(0.1))(model, x, model(x).argmax(1))
    regressor = DecisionTreeRegressor().fit(rows, rows[:, 0])
    with pytest.raises(ValueError, match="no classifier"):
        MinMax.fit(regressor, rows)(x)


def test_a_table_is_attacked_in_fractions_of_its_columns() -> None:
    rows = table(40, 3)
    weight = 1 / rows.std(0)
    middle = (rows.mean(0) * weight).sum()

    def target(raw: Tensor) -> Tensor:
        lead = (raw * weight).sum(1) - middle
        return torch.stack([-lead, lead], 1).softmax(1)

    counted = Counted(target)
    model = MinMax.fit(counted.forward, rows)
    x = model.scale(rows)
    y = model(x).argmax(1)
    x_adv = NES(Linf(0.2), steps=20)(Scores(model), x, y)
    moved = model.unscale(x_adv) - rows
    assert (moved.abs() <= 0.2 * (model.high - model.low) * (1 + 1e-9)).all()
    assert Untargeted(y).fooled(model(x_adv).argmax(1)).float().mean() > 0.3
    assert counted.forwards


def test_its_bounds_move_save_copy_and_pickle_with_it() -> None:
    model = MinMax.fit(network((4,)), table(20, 4))
    assert {"low", "high"} <= set(model.state_dict())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"target"}
    x = images(6, (4,))
    for twin in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert torch.equal(twin(x), model(x))
    low, high = torch.zeros(2).double(), torch.ones(2).double()
    kept = MinMax(nn.Identity(), low, high)
    low -= 1
    high += 1
    assert (kept.low.tolist(), kept.high.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ([0, 2], [1, 1], "2 and 1 in column 1"),
        ([0, 0], [1, float("nan")], "0 and nan in column 1"),
        ([-float("inf"), 0], [1, 1], "-inf and 1 in column 0"),
        ([0, 0], [1], r"one number for each column, got \(2,\) and \(1,\)"),
        (0, 1, r"one number for each column, got \(\) and \(\)"),
    ],
)
def test_unusable_bounds_are_refused(low: object, high: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MinMax(nn.Identity(), low, high)


def test_tables_that_do_not_fit_are_refused() -> None:
    model = MinMax(nn.Identity(), [0, 0], [1, 1])
    for method in model.scale, model.unscale, model:
        with pytest.raises(ValueError, match=r"expected rows of 2 columns, got shape \(4, 1\)"):
            method(torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"expected rows of 2 columns, got shape \(4, 2, 1\)"):
        model(torch.zeros(4, 2, 1))
    for rows in [1.0, 2.0], np.zeros((0, 3)):
        with pytest.raises(ValueError, match="non-empty array of rows"):
            MinMax.fit(nn.Identity(), rows)
    with pytest.raises(ValueError, match=r"finite.* in column 1"):
        MinMax.fit(nn.Identity(), [[1.0, float("nan")], [2.0, 3.0]])


def test_what_passes_through_a_counted_model() -> None:
    model = models.Counted(network((1, 8, 8)))
    x = images(6, (1, 8, 8)).requires_grad_()
    with torch.no_grad():
        model(x[:5])
    assert (model.calls, model.images, model.gradients) == (1, 5, 0)
    logits = model(x)
    logits[0].sum().backward(retain_graph=True)
    logits.sum().backward()
    assert (model.calls, model.images, model.gradients) == (2, 11, 12)
    assert torch.equal(logits, model.model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_another_precision_than_the_network(dtype: torch.dtype) -> None:
    model = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), mean=0.5, std=0.25)
    x = images(2, (1, 3, 3), dtype=dtype)
    torch.testing.assert_close(model(x), model(x.float()), atol=1e-4, rtol=1e-4)
    assert model(torch.ones(2, 1, 3, 3, dtype=torch.int64)).dtype == torch.float32


def test_images_of_half_precision_stay_so() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).bfloat16()
    model = Normalized(layers, mean=0.5, std=0.25)
    x = images(2, (1, 3, 3), dtype=torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    torch.testing.assert_close(model(x), layers((x - 0.5) / 0.25))
