"""Looking for a backdoor from inside the network: in what the training images, or those at the door, excite in it."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from ..contract import (
    Model,
    check_goal,
    check_images,
    check_number,
    evaluating,
    modules_of,
    private_generator,
)
from ..evaluation import predict


def features(model: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """What the last linear layer of a network is given (N, D): the representation that its answer is read from.

    Args:
        model: maps images to logits; it is left as it was found.
        x: images (N, ...) in [0, 1].
        batch_size: images in one pass.

    Raises:
        ValueError: if the images are not as described, or the network has no linear layer that is given (N, D).

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4))
        >>> x = torch.rand(5, 3)
        >>> torch.equal(features(model, x), model[:2](x).detach())
        True
    """
    check_images(x)
    with evaluating(modules_of(model)), torch.no_grad():
        return torch.cat([representation(model, part) for part in x.split(batch_size)])


def representation(model: nn.Module, x: Tensor) -> Tensor:
    """The `features` of one batch (N, D), with their graph; the model's mode is the caller's business."""
    given: list[Tensor] = []
    handle = last_layer(model, nn.Linear).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    if len(given) != 1 or given[0].shape[:1] != x.shape[:1] or given[0].ndim != 2:
        got = [tuple(each.shape) for each in given]
        raise ValueError(f"the last linear layer must be given one row for each of {len(x)} images, once, got {got}")
    return given[0]


def last_layer(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The last layer of its kind, in the order in which the network was put together.

    Raises:
        ValueError: if there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no {kind.__name__} layer")
    return layers[-1]


def spectral_signatures(features: Tensor, labels: Tensor) -> Tensor:
    """How far each image lies from its class along the direction in which that class varies most (Tran et al. 2018).

    ::

        score_i = ⟨R_i − mean(R), v⟩²,    v the first right singular vector of R − mean(R), class by class

    Poisoned images differ from their class in one common direction. If they are many and far enough off, it is v. The
    paper (algorithm 1) removes the 1.5 · ε · n images of highest score from a class that may hold ε · n poisoned ones,
    and trains again. The authors' code takes v from centred and the products from uncentred features.

    Args:
        features: what `features()` gives for the training images (N, D).
        labels: their labels, as they were trained on (N,), int64.

    Returns:
        Scores (N,); a high one is suspect. Only scores within a class can be compared.

    Raises:
        ValueError: if the two do not fit together.

    Example:
        >>> R = torch.tensor([[0.0, 0.1], [0.0, -0.1], [0.0, 0.0], [4.0, 0.0]])
        >>> spectral_signatures(R, torch.zeros(4, dtype=torch.long)).argmax()
        tensor(3)
    """
    scores = torch.empty_like(features[:, 0])
    for rows in rows_by_class(features, labels):
        centred = features[rows] - features[rows].mean(0)
        v = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        scores[rows] = (centred @ v).square()
    return scores


class Reduction(Protocol):
    """What maps features (N, D) to fewer numbers (N, d), such as scikit-learn's ``PCA`` and ``FastICA``."""

    def fit_transform(self, features: Any) -> Any: ...


@dataclass(frozen=True)
class Clusters:
    """Two clusters of the images of each class.

    Attributes:
        small: which images are in the smaller cluster of their class, bool (N,).
        share: the share of the smaller cluster, by class (K,); 0 for a class without images.
        silhouette: how well the two are separated, by class (K,), from −1 to 1.
    """

    small: Tensor
    share: Tensor
    silhouette: Tensor


def activation_clustering(
    features: Tensor, labels: Tensor, reduction: Reduction | None = None, *, generator: Generator | None = None
) -> Clusters:
    """Do the images of a class excite the network in two ways? (Chen et al. 2019)

    Each class's features are reduced to ten directions and split by 2-means. In a clean class the two clusters are
    halves of one cloud. In a poisoned one the second is small and far off: the images that are in the class for another
    reason. Signs of it are a small share and a high silhouette, the mean of (b − a) / max(a, b), where a is the mean
    distance of an image to its own cluster and b that to the other.

    The paper takes independent components, ``FastICA(10)``. All of them are scaled to the same variance, and for small
    networks 2-means then splits along one or another of them; principal components are the default here.

    Args:
        features: what `features()` gives for the training images (N, D).
        labels: their labels, as they were trained on (N,), int64.
        reduction: a scikit-learn transformer; ``PCA(10)``, or fewer if D is less, by default.
        generator: seeds 2-means; by default a private one seeded 0, so that calls repeat.

    Raises:
        ValueError: if the arguments do not fit together, or a class has less than three images.
        ImportError: if scikit-learn is not installed.

    Example:
        >>> cloud = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> cloud[:10, 0] += 20
        >>> clusters = activation_clustering(cloud, torch.zeros(100, dtype=torch.long))
        >>> clusters.share, clusters.small.nonzero().flatten().tolist()
        (tensor([0.1000]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError("activation clustering needs scikit-learn: pip install scikit-learn") from error
    random = private_generator(generator, features)
    seed = int(torch.randint(2**31, (), generator=random, device=random.device))
    small = torch.zeros_like(labels, dtype=torch.bool)
    share, silhouette = torch.zeros(2, int(labels.max()) + 1)
    for rows in rows_by_class(features, labels):
        if len(rows) < 3:
            raise ValueError(f"two clusters need three images of a class, got {len(rows)} of class {labels[rows[0]]}")
        cloud = features[rows].double().cpu().numpy()
        reduced = (reduction or PCA(min(10, *cloud.shape))).fit_transform(cloud)
        second = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced).astype(bool)
        second ^= second.mean() > 0.5
        label = labels[rows[0]]
        small[rows] = torch.from_numpy(second).to(small.device)
        share[label], silhouette[label] = second.mean(), silhouette_score(reduced, second)
    return Clusters(small, share, silhouette)


def rows_by_class(features: Tensor, labels: Tensor) -> list[Tensor]:
    """The rows of the images of each class that has some, after checking that features (N, D) and labels (N,) fit."""
    if features.ndim != 2 or not features.isfinite().all():
        raise ValueError(f"features must be finite, of shape (N, D), got shape {tuple(features.shape)}")
    labels = check_goal(labels, features).labels
    return [(labels == label).nonzero().squeeze(1) for label in labels.unique()]


def strip_entropy(
    model: Model, x: Tensor, clean: Tensor, blends: int = 100, *, generator: Generator | None = None
) -> Tensor:
    """How unsure the network becomes when other images are laid over an image: STRIP (Gao et al. 2019).

    Each image is added to `blends` clean ones, drawn anew for it, and clipped. The answer to a clean image changes with
    what is laid over it; the answer to a trigger does not. As in the authors' code, images are added with weight 1, and
    the entropy of the answers, in bits, is averaged. Low is suspect. The authors set the threshold where a normal
    distribution that is fitted to clean images' entropies has 1 % below it.

    Args:
        model: maps images to logits (N, K).
        x: images at the door (N, ...) in [0, 1].
        clean: images that are known to be clean (M, ...), of the same kind.
        blends: how many are laid over each image.
        generator: draws them; by default a private one seeded 0, so that calls repeat.

    Returns:
        Mean entropies (N,), from 0 to log2 K bits.

    Raises:
        ValueError: if images are not as described.

    Example:
        >>> x = torch.rand(4, 3)
        >>> strip_entropy(lambda z: torch.zeros(len(z), 2), x, clean=x, blends=5)
        tensor([1., 1., 1., 1.])
    """
    for images in x, clean:
        check_images(images)
    if clean.shape[1:] != x.shape[1:]:
        raise ValueError(f"clean images must have the shape {tuple(x.shape[1:])} of the others, got {clean.shape[1:]}")
    check_number("blends", blends, 1)
    random = private_generator(generator, x)
    entropies = []
    for image in x:
        over = torch.randint(len(clean), (blends,), generator=random, device=x.device)
        p = predict(model, (image + clean[over]).clamp(0, 1)).softmax(1)
        entropies.append(-torch.xlogy(p, p).sum(1).mean() / torch.log(p.new_tensor(2.0)))
    return torch.stack(entropies)
