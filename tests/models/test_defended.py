import copy
import itertools
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse import data, models
from advcourse.ascent import ZeroGradient
from advcourse.attacks import PGD
from advcourse.models import Detector, Projected, Quantized, Randomized, bit_depth, median_filter
from advcourse.models.defended import to_grid
from advcourse.oracles import Labels, Scores
from advcourse.threat import Linf

from ..helpers import SHAPES, Counted, convolutional, images, network, rng, seeds, shapes

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


# Squeezing


@given(shapes, st.integers(1, 8), seeds)
def test_a_bit_depth_has_its_number_of_values(shape: tuple[int, ...], bits: int, seed: int) -> None:
    x = images(6, shape, seed)
    found = bit_depth(x, bits)
    assert torch.equal(found, bit_depth(found, bits))
    levels = found * (2**bits - 1)
    torch.testing.assert_close(levels, levels.round())
    assert ((found - x).abs() <= 0.5 / (2**bits - 1) + 1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_all_values_of_a_bit_depth_occur() -> None:
    assert len(bit_depth(torch.linspace(0, 1, 1001), 3).unique()) == 8


def test_eight_bits_leave_a_picture_as_it_was_stored() -> None:
    x, _ = data.fashion_mnist("test", n=5)
    torch.testing.assert_close(bit_depth(x, 8), x)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_median_filter_is_the_median_of_each_window(size: int) -> None:
    x = torch.rand(2, 3, 5, 6, generator=rng())
    found = median_filter(x, size)
    assert found.shape == x.shape
    for i, j in itertools.product(range(5), range(6)):
        rows = [min(max(i + k, 0), 4) for k in range(-(size // 2), size - size // 2)]
        columns = [min(max(j + k, 0), 5) for k in range(-(size // 2), size - size // 2)]
        window = x[:, :, rows][:, :, :, columns].flatten(2).sort().values
        assert torch.equal(found[:, :, i, j], window[..., size * size // 2])


# Quantized


@given(shapes, st.integers(2, 8), seeds, dtypes, st.integers(-6, 6))
def test_a_grid_of_integers_with_one_exponent_for_each_row(
    shape: tuple[int, ...], bits: int, seed: int, dtype: torch.dtype, scale: int
) -> None:
    values = (torch.randn(5, *shape, generator=rng(seed), dtype=torch.float64) * 2.0**scale).to(dtype)
    found = to_grid(values, bits)
    assert found.dtype == dtype
    assert torch.equal(found, to_grid(found, bits))
    for row, rounded in zip(values.double(), found.double(), strict=True):
        step = 2.0 ** (torch.frexp(row.abs().max()).exponent - bits + 1).item()
        integers = rounded / step
        assert torch.equal(integers, integers.round())
        assert integers.abs().max() < 2 ** (bits - 1)
        assert (rounded - row).abs().max() <= step  # half a step, but for what the last integer cuts off


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_divided_by_nothing(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    values = torch.tensor([[0.0, 0.0], [least, 0.0]], dtype=dtype)
    assert values.any()
    assert to_grid(values, 8).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_network_that_is_quantized_is_left_alone() -> None:
    model, x, _ = convolutional()
    model[3].weight.requires_grad_(False)
    before, answer = copy.deepcopy(model.state_dict()), model(x)
    quantized = Quantized(model, bits=4)
    assert not torch.equal(quantized(x), answer)
    assert torch.equal(model(x), answer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in quantized.parameters()] == [p.requires_grad for p in model.parameters()]


def test_weights_and_answers_lie_on_their_grids() -> None:
    model, x, _ = convolutional()
    quantized = Quantized(model, bits=3)
    for layer in 0, 3:
        for channel in quantized.network[layer].weight:
            assert len(channel.detach().abs().unique()) <= 4
    outputs: list[Tensor] = []
    quantized.network[1].register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
    logits = quantized(x)
    for image in itertools.chain(outputs[0], logits):
        assert len(image.detach().unique()) <= 7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("input_bits", [None, 3])
def test_images_do_not_meet(shape: tuple[int, ...], input_bits: int | None) -> None:
    model = Quantized(network(shape), 4, input_bits)
    x = images(6, shape)
    x[0] *= 1e-3  # a range that is not its neighbours'
    for i in range(6):
        assert torch.equal(model(x[i : i + 1])[0], model(x)[i])


def test_answers_are_constant_on_pieces() -> None:
    model, x = Quantized(network((7,)), 3), images(40, (7,))
    near = (x + 1e-7 * torch.randn(x.shape, generator=rng(), dtype=x.dtype)).clamp(0, 1)
    far = (x + 0.3 * torch.randn(x.shape, generator=rng(), dtype=x.dtype)).clamp(0, 1)
    assert torch.equal(model(near), model(x))
    assert not torch.equal(model(far), model(x))


def test_its_gradient_is_exactly_zero_and_reported() -> None:
    model, x, _ = convolutional()
    quantized = Quantized(model)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quantized(leaf).square().sum(), leaf)
    assert not gradient.any()
    with pytest.warns(ZeroGradient, match="exactly zero"):
        PGD(Linf(0.1), steps=2)(quantized, x, quantized(x).argmax(1))


def test_a_quantized_network_is_as_good_until_there_are_few_bits() -> None:
    x, y = data.fashion_mnist("test", n=200)
    model = models.load("cnn")
    right = {bits: int((Quantized(model, bits)(x).argmax(1) == y).sum()) for bits in (2, 4, 8)}
    exact = int((model(x).argmax(1) == y).sum())
    assert abs(right[8] - exact) <= 6
    assert right[2] < right[4] <= exact
    assert right[2] < 0.6 * exact


def test_the_input_has_its_own_bits() -> None:
    model, x = network((7,)), images(6, (7,))
    found = Quantized(model, 8, input_bits=2)(x)
    assert torch.equal(found, Quantized(model, 8)(bit_depth(x, 2)))
    assert not torch.equal(found, Quantized(model, 8)(x))


def test_many_bits_change_next_to_nothing() -> None:
    model, x = network((7,)), images(6, (7,))
    torch.testing.assert_close(Quantized(model, 30, 30)(x), model(x), atol=1e-6, rtol=1e-6)


def test_a_quantized_network_is_copied_and_pickled() -> None:
    model, x, _ = convolutional()
    quantized = Quantized(model, 4, 4)
    for twin in copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)):
        assert torch.equal(twin(x), quantized(x))


@pytest.mark.parametrize("bits", [1, 0, -8, 8.0, None, True])
def test_a_number_of_bits_is_checked(bits: object) -> None:
    with pytest.raises(ValueError, match=r"^bits must be an integer >= 2"):
        Quantized(network((7,)), bits)  # type: ignore[arg-type]
    if bits not in (1, True, None):
        with pytest.raises(ValueError, match=r"^input_bits must be an integer >= 1"):
            Quantized(network((7,)), 8, bits)  # type: ignore[arg-type]


def test_a_network_without_layers_cannot_be_quantized() -> None:
    with pytest.raises(ValueError, match="Flatten has no linear or convolutional layer"):
        Quantized(nn.Flatten())


# Projected


@given(shapes, st.integers(1, 6), seeds)
def test_a_projection_is_one(shape: tuple[int, ...], components: int, seed: int) -> None:
    clean, x = images(9, shape, seed), images(5, shape, seed + 1)
    components = min(components, clean[0].numel())
    model = Projected.fit(nn.Flatten(), clean, components)
    once = model.project(x)
    assert once.shape == x.shape
    torch.testing.assert_close(model.project(once), once)
    # What is lost is orthogonal to what is kept, so nothing else that can be expressed is nearer.
    torch.testing.assert_close((x - once).flatten(1) @ model.basis.T, torch.zeros(5, components).double())
    assert torch.equal(model(x), once.clamp(0, 1).flatten(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_components_express_all_images_they_were_fitted_on(shape: tuple[int, ...]) -> None:
    x = images(9, shape)
    features = x[0].numel()
    torch.testing.assert_close(Projected.fit(nn.Identity(), x, min(features, 9))(x), x)


def test_principal_components_lose_the_least() -> None:
    x = images(30, (12,)) * torch.linspace(0.1, 1, 12)
    centred = x - x.mean(0)
    spread = torch.linalg.eigvalsh(centred.T @ centred)
    for k in range(1, 13):
        lost = (Projected.fit(nn.Identity(), x, k).project(x) - x).square().sum()
        torch.testing.assert_close(lost, spread[: 12 - k].sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_projection_follows_the_images_dtype(dtype: torch.dtype) -> None:
    model = Projected.fit(nn.Identity(), images(9, (2, 3, 4), dtype=torch.float32), 3)
    assert model(images(2, (2, 3, 4), dtype=dtype)).dtype == dtype
    fitted = Projected.fit(nn.Identity(), images(9, (2, 3, 4), dtype=dtype), 3)
    assert {"mean", "basis"} == set(fitted.state_dict())
    assert fitted.basis.dtype == dtype


def test_the_network_answers_about_the_projection() -> None:
    x, y = data.fashion_mnist("test", n=100)
    fitted, _ = data.fashion_mnist("test", n=300)
    model = Projected.fit(models.load("cnn"), fitted[100:], 60)
    noise = 0.2 * torch.randn(x.shape, generator=rng())
    assert (model.project(x + noise) - model.project(x)).square().sum() < 0.1 * noise.square().sum()
    assert (model(x).argmax(1) == y).sum() > 60


def test_projections_that_do_not_fit_are_refused() -> None:
    x, mean = images(4, (2, 3)), torch.zeros(6).double()
    with pytest.raises(ValueError, match="4 images of 6 features have no 5 components"):
        Projected.fit(nn.Identity(), x, 5)
    with pytest.raises(ValueError, match="orthonormal"):
        Projected(nn.Identity(), mean, torch.ones(2, 6).double())
    with pytest.raises(ValueError, match=r"mean \(D,\) and basis \(components, D\), got \(6,\) and \(2, 5\)"):
        Projected(nn.Identity(), mean, torch.eye(2, 5).double())
    with pytest.raises(ValueError, match="one of 6 features, got images of 5"):
        Projected.fit(nn.Identity(), x, 2)(images(2, (5,)))
    with pytest.raises(ValueError, match="components must be"):
        Projected.fit(nn.Identity(), x, 0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Projected.fit(nn.Identity(), x * 255, 2)


# Detector


def blank(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@given(shapes, seeds, st.floats(0, 2))
def test_what_changes_its_mind_is_refused(shape: tuple[int, ...], seed: int, threshold: float) -> None:
    model, x = network(shape, 4, seed), images(20, shape, seed)
    distance = (model(x).softmax(1) - model(bit_depth(x, 1)).softmax(1)).abs().sum(1)
    found = Detector(model, partial(bit_depth, bits=1), threshold)(x)
    assert found.dtype == torch.int64
    assert torch.equal(found, model(x).argmax(1).where(distance <= threshold, -1))


def test_nothing_is_refused_at_2_and_nothing_passes_unmoved_at_0() -> None:
    model, x = network((7,)), images(30, (7,))
    labels = model(x).argmax(1)
    assert torch.equal(Detector(model, blank, 2.0)(x), labels)
    assert (Detector(model, blank, 0.0)(x) == -1).all()
    assert torch.equal(Detector(model, lambda z: z, 0.0)(x), labels)


@pytest.mark.parametrize("squeeze", [partial(bit_depth, bits=1), blank])
@pytest.mark.parametrize(("rate", "refused"), [(0.0, 0), (0.05, 2), (0.29, 12), (0.5, 20), (1.0, 40)])
def test_calibration_refuses_that_fraction(squeeze: Callable[[Tensor], Tensor], rate: float, refused: int) -> None:
    model, x = network((2, 3, 4)), images(40, (2, 3, 4))
    detector = Detector.calibrated(model, squeeze, x, rate)
    assert int((detector(x) == -1).sum()) == refused


def test_calibration_leaves_the_network_as_it_was() -> None:
    layers = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    layers[2].eval()
    before = copy.deepcopy(layers.state_dict())
    x = images(40, (7,))
    detector = Detector.calibrated(layers, blank, x, 0.1)
    assert [module.training for module in layers] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    assert int((detector.eval()(x) == -1).sum()) == 4


def test_a_detector_is_asked_for_labels_alone() -> None:
    model, x = network((7,)), images(30, (7,))
    counted = Counted(model)
    detector = Detector.calibrated(counted, blank, x, 0.3)
    counted.forwards.clear()
    oracle = Labels(detector)
    oracle.begin(30)
    answers = oracle(x, torch.arange(30))
    assert torch.equal(answers, detector(x))
    assert int((answers == -1).sum()) == 9
    assert oracle.queries.tolist() == [1] * 30
    scores = Scores(detector)
    scores.begin(30)
    with pytest.raises(ValueError, match="attack it through Labels"):
        scores(x, torch.arange(30))
    with pytest.raises(ValueError, match="must return logits"):
        PGD(Linf(0.1))(detector, x, model(x).argmax(1))


def test_detectors_that_do_not_fit_are_refused() -> None:
    model, x = network((7,)), images(4, (7,))
    for threshold in (-0.1, float("nan"), None):
        with pytest.raises(ValueError, match="threshold must be"):
            Detector(model, blank, threshold)  # type: ignore[arg-type]
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate must be"):
            Detector.calibrated(model, blank, x, rate)
    with pytest.raises(ValueError, match="must return logits"):
        Detector(lambda z: z[:, 0], blank, 1.0)(x)
    with pytest.raises(ValueError, match=r"needs images \(N, C, H, W\), got shape \(4, 7\)"):
        Detector(model, median_filter, 1.0)(x)


# Randomized


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_noise_is_normal_fresh_and_its_own(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    model, x = Randomized(nn.Identity(), 0.1), torch.full((2, 20000), 0.5, dtype=dtype)
    first, second = model(x), model(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.dtype == dtype
    for noise in first - x, second - x, (first - second) / 2**0.5:
        noise = noise.double()
        assert abs(noise.mean()) < 0.003
        assert abs(noise.std() - 0.1) < 0.003
        assert abs((noise.abs() < 0.1).double().mean() - 0.683) < 0.02
    assert not torch.equal(first[0], first[1])


def test_noise_is_that_of_its_seed() -> None:
    x = images(5, (7,))
    one, same, other = (Randomized(nn.Identity(), 0.1, seed) for seed in (1, 1, 2))
    for _ in range(3):
        found = one(x)
        assert torch.equal(found, same(x))
        assert not torch.equal(found, other(x))


def test_no_noise_is_the_network() -> None:
    model, x = network((7,)), images(5, (7,))
    assert torch.equal(Randomized(model, 0.0)(x), model(x))


def test_noise_goes_on_in_a_copy() -> None:
    model, x = Randomized(network((7,)), 0.1), images(5, (7,))
    model(x)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    answers = [model(x), model(x)]
    for twin in twins:
        assert all(torch.equal(twin(x), answer) for answer in answers)
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}


def test_noise_comes_from_the_device_of_the_images() -> None:
    model, x = Randomized(nn.Identity(), 0.1), images(5, (7,))
    first = model(x)
    model.generator = SimpleNamespace(device=torch.device("cuda:0"))  # as if it had last seen images over there
    assert torch.equal(model(x), first)
    assert model.generator.device == x.device


def test_backpropagation_sees_through_noise() -> None:
    x = images(5, (7,)).requires_grad_()
    (gradient,) = torch.autograd.grad((Randomized(nn.Identity(), 0.1)(x) * 3).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 3))


@pytest.mark.parametrize(("sigma", "seed", "name"), [(-0.1, 0, "sigma"), (None, 0, "sigma"), (0.1, -1, "seed")])
def test_noise_is_checked(sigma: float, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Randomized(nn.Identity(), sigma, seed)
