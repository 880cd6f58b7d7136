"""Detectors find what was planted, compute their papers' formulas, and leave the network as it was."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import FastICA
from torch import Tensor, nn

from advcourse.evaluation import predict
from advcourse.integrity import (
    NeuralCleanse,
    Patch,
    activation_clustering,
    anomaly_index,
    features,
    prune,
    spectral_signatures,
    strip_entropy,
)

from ..helpers import images, rng, seeds


def convolutional(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout(0.2), nn.Flatten(), nn.Linear(6 * 36, 4)
        )


class Unchanged:
    """Checks on the way out that weights, buffers, modes, gradients and hooks are as on the way in."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.modes = [module.training for module in model.modules()]

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        assert all(torch.equal(value, self.state[name]) for name, value in self.model.state_dict().items())
        assert self.modes == [module.training for module in self.model.modules()]
        assert all(each.grad is None and each.requires_grad for each in self.model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "look",
    [
        features,
        lambda model, x: strip_entropy(model, x, x, blends=3),
        lambda model, x: prune(model, x, 0.5),
        lambda model, x: NeuralCleanse(steps=3)(model, x),
    ],
)
def test_the_network_is_left_as_it_was(
    look: Callable[[nn.Module, Tensor], object], outside: Callable[[], torch.no_grad]
) -> None:
    model, x = convolutional(), torch.rand(5, 1, 8, 8, generator=rng())
    model[2].eval()
    with Unchanged(model), outside():
        look(model, x)


def test_hooks_go_even_when_the_network_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with Unchanged(model):
        for look in features, lambda model, x: prune(convolutional(), x, 0.5):
            with pytest.raises(RuntimeError):
                look(model, torch.rand(2, 1, 2, 2))


def test_features_are_what_the_last_layer_reads() -> None:
    model, x = convolutional(), torch.rand(7, 1, 8, 8, generator=rng())
    given = features(model, x, batch_size=3)
    assert given.shape == (7, 216)
    assert torch.allclose(model.eval()[5](given), predict(model, x), atol=1e-5)


# Spectral signatures


@given(seeds, st.integers(20, 60), st.integers(3, 8))
def test_a_planted_shift_is_recovered(seed: int, n: int, poisoned: int) -> None:
    cloud = torch.randn(2 * n, 6, generator=rng(seed), dtype=torch.float64)
    labels = torch.arange(2 * n) % 2
    rows = (labels == 1).nonzero().squeeze(1)[:poisoned]
    cloud[rows] += 30 * torch.nn.functional.normalize(
        torch.randn(6, generator=rng(seed + 1), dtype=torch.float64), dim=0
    )
    scores = spectral_signatures(cloud, labels).where(labels == 1, -1)
    assert set(scores.topk(poisoned).indices.tolist()) == set(rows.tolist())


def test_scores_are_the_first_singular_value_class_by_class() -> None:
    cloud, labels = images(30, (5,)), torch.arange(30) % 3
    scores = spectral_signatures(cloud, labels)
    for label in range(3):
        rows = labels == label
        centred = cloud[rows] - cloud[rows].mean(0)
        assert scores[rows].sum().item() == pytest.approx(torch.linalg.svdvals(centred)[0].item() ** 2)
        assert torch.allclose(spectral_signatures(cloud[rows] + 7, labels[rows]), scores[rows])


def test_another_library_scores_alike_but_for_the_centring() -> None:
    """It projects the features uncentred, as the authors' code does: so compare it on centred ones."""
    art = pytest.importorskip("art.defences.detector.poison.spectral_signature_defense")
    cloud = images(30, (5,))
    theirs = art.SpectralSignatureDefense.spectral_signature_scores((cloud - cloud.mean(0)).numpy())
    ours = spectral_signatures(cloud, torch.zeros(30, dtype=torch.long))
    assert torch.allclose(torch.from_numpy(theirs[:, 0]) ** 2, ours)


# Activation clustering


@given(seeds, st.integers(3, 12))
def test_a_second_cloud_is_the_small_cluster(seed: int, poisoned: int) -> None:
    cloud, labels = torch.randn(80, 12, generator=rng(seed)), torch.arange(80) % 2
    rows = (labels == 0).nonzero().squeeze(1)[:poisoned]
    cloud[rows] += 10
    clusters = activation_clustering(cloud, labels)
    assert clusters.small[labels == 0].nonzero().squeeze(1).tolist() == list(range(poisoned))
    assert clusters.share[0].item() == pytest.approx(poisoned / 40)
    assert clusters.silhouette[0] > clusters.silhouette[1]
    assert torch.equal(clusters.small, activation_clustering(cloud, labels, generator=rng(0)).small)


def test_a_class_without_images_has_no_cluster_and_ica_is_at_hand() -> None:
    cloud, labels = torch.randn(40, 6, generator=rng()), torch.arange(40) % 2 * 2
    cloud[:10:2] += 10
    clusters = activation_clustering(cloud, labels, FastICA(3, random_state=0, tol=0.1))
    assert clusters.share[1] == 0
    assert clusters.small[:10:2].all()
    assert clusters.small[labels == 0].sum() == 5


def test_another_library_finds_the_same_clusters() -> None:
    art = pytest.importorskip("art.defences.detector.poison.activation_defence")
    cloud = torch.randn(50, 12, generator=rng())
    cloud[:8] += 10
    ((theirs,), _) = art.cluster_activations([cloud.numpy()], nb_dims=10, reduce="PCA")
    ours = activation_clustering(cloud, torch.zeros(50, dtype=torch.long)).small
    assert (torch.from_numpy(theirs).bool() == ours).all() or (torch.from_numpy(theirs).bool() != ours).all()


# STRIP


def test_the_entropy_is_that_of_the_blends() -> None:
    """With one clean image there is nothing to draw."""
    model, x = convolutional().eval(), torch.rand(3, 1, 8, 8, generator=rng())
    over = torch.rand(1, 1, 8, 8, generator=rng(1))
    p = predict(model, (x + over).clamp(0, 1)).softmax(1)
    assert torch.allclose(strip_entropy(model, x, over, blends=4), -(p * p.log2()).sum(1), atol=1e-5)


def test_a_sure_network_has_entropy_zero() -> None:
    def sure(z: Tensor) -> Tensor:
        return torch.eye(3)[torch.ones(len(z), dtype=torch.long)] * 1e4

    assert strip_entropy(sure, images(2, (4,)), images(3, (4,)), blends=5).tolist() == [0.0, 0.0]


# Neural Cleanse


@given(st.lists(st.floats(1, 100), min_size=3, max_size=20))
def test_the_anomaly_index_is_the_formula(values: list[float]) -> None:
    norms = torch.tensor(values, dtype=torch.float64)
    ordered = norms.sort().values
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    far = (norms - median).abs()
    ranked = far.sort().values
    deviation = ranked[half] if len(ordered) % 2 else (ranked[half - 1] + ranked[half]) / 2
    expected = torch.where(far == 0, 0, far / (1.4826 * deviation))
    assert torch.allclose(anomaly_index(norms), expected, equal_nan=True)


def test_equal_norms_are_no_anomaly() -> None:
    assert anomaly_index(torch.full((5,), 3.0)).tolist() == [0.0] * 5


class Planted(nn.Module):
    """Classes 0 and 1 are told by the mean of the lower half; a bright upper left pixel makes it 2, at any price."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 10 * (x[:, 0, 4:].mean((1, 2)) - 0.5)
        return torch.stack([-lead, lead, 40 * (x[:, 0, 0, 0] - 0.8)], 1)


def test_a_planted_trigger_is_found_and_is_the_smallest() -> None:
    x = 0.6 * torch.rand(64, 1, 8, 8, generator=rng())
    x[32:, :, 4:] += 0.4
    found = NeuralCleanse(steps=150)(Planted(), x)
    assert (found.success >= 0.99).all()
    assert found.masks.shape == found.patterns.shape == (3, 1, 8, 8)
    for each in found.masks, found.patterns:
        assert 0 <= each.min() <= each.max() <= 1
    assert found.norms.argmin() == 2
    assert found.masks[2].flatten().argmax() == 0
    stamped = (1 - found.masks[2]) * x + found.masks[2] * found.patterns[2]
    assert (Planted()(stamped).argmax(1) == 2).float().mean() > 0.9
    assert torch.equal(NeuralCleanse(steps=150)(Planted(), x, generator=rng(0)).masks, found.masks)


def test_a_label_that_cannot_be_had_keeps_its_start() -> None:
    found = NeuralCleanse(steps=5)(lambda z: z.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0, 0]), images(8, (1, 4, 4)))
    assert found.success.tolist() == [1.0, 0.0, 0.0]
    assert found.norms[1] > 4


def test_only_small_norms_are_flagged() -> None:
    found = NeuralCleanse(steps=1)(convolutional(), torch.rand(4, 1, 8, 8, generator=rng()))
    object.__setattr__(found, "masks", torch.tensor([5.0, 50, 51, 49, 52, 48, 200]).view(-1, 1, 1, 1))
    assert found.flagged.tolist() == [True] + [False] * 6
    assert found.index[6] > 2


# Pruning


def test_the_coldest_channels_go() -> None:
    model, x = convolutional().eval(), torch.rand(20, 1, 8, 8, generator=rng())
    activation = model[:2](x).mean((0, 2, 3))
    pruned = prune(model, x, share=0.5)
    dead = (pruned[0].weight == 0).flatten(1).all(1)
    assert dead.tolist() == (activation < activation.median().nextafter(torch.tensor(9.0))).tolist()
    assert (pruned[0].bias[dead] == 0).all()
    assert torch.equal(pruned[0].weight[~dead], model[0].weight[~dead])
    assert torch.equal(predict(prune(model, x, 0.0), x), predict(model, x))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: features(nn.Flatten(), x), "has no Linear layer"),
        (lambda x: features(nn.Sequential(nn.Linear(8, 3), nn.Flatten()), x), "one row for each of 6 images"),
        (lambda x: features(convolutional(), 2 + x), r"lie in \[0, 1\]"),
        (lambda x: spectral_signatures(x.flatten(1), torch.zeros(5, dtype=torch.long)), "labels must be"),
        (lambda x: spectral_signatures(x, torch.zeros(6, dtype=torch.long)), r"of shape \(N, D\)"),
        (lambda x: spectral_signatures(x.flatten(1) / 0, torch.zeros(6, dtype=torch.long)), "must be finite"),
        (lambda x: activation_clustering(x.flatten(1), torch.arange(6) % 3), "two clusters need three images"),
        (lambda x: strip_entropy(convolutional(), x, x[:, :, 1:]), r"must have the shape \(1, 8, 8\)"),
        (lambda x: strip_entropy(convolutional(), x, x, blends=0), "blends must be"),
        (lambda x: NeuralCleanse(steps=0), "steps must be"),
        (lambda x: NeuralCleanse(factor=0.5), "factor must be"),
        (lambda x: NeuralCleanse(success=1.2), "success must be"),
        (lambda x: NeuralCleanse()(convolutional(), x.flatten(1)), r"images \(N, C, H, W\)"),
        (lambda x: NeuralCleanse()(lambda z: z.flatten(1)[:, 0], x), "must return logits"),
        (lambda x: prune(convolutional(), x, 1.1), "share must be"),
        (lambda x: prune(nn.Linear(8, 2), x, 0.5), "has no Conv2d layer"),
        (lambda x: Patch(9)(x), "leaves images"),
    ],
)
def test_bad_input_is_refused(call: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(images(6, (1, 8, 8), dtype=torch.float32))
