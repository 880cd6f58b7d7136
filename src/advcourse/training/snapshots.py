"""Networks that stochastic gradient descent comes by when it is not allowed to settle."""

from copy import deepcopy

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..contract import check_goal, check_images, check_number, private_generator
from ..goals import Untargeted


def snapshots(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 10,
    per_epoch: int = 4,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    batch_size: int = 128,
    generator: Generator | None = None,
) -> list[nn.Module]:
    """Copies of a trained network as it wanders at a constant, high learning rate (LGV, Gubri et al. 2022).

    Such weights lie apart from one another in a wide part of the minimum. What fools many of them fools others as well:
    give them to `models.Rotation`, or to `models.Ensemble`.

    Args:
        network: trained; it is copied and not touched.
        x: images that it may be trained on (N, ...), in [0, 1].
        y: their labels (N,).
        epochs: passes over them.
        per_epoch: copies taken in each.
        learning_rate: of SGD, as high as the network bears.
        momentum, weight_decay: of SGD.
        batch_size: images in a step.
        generator: of the order of images; by default a private one seeded 0.

    Returns:
        ``epochs * per_epoch`` networks in eval mode.

    Raises:
        ValueError: if images or labels are not as an attack demands them, an epoch has fewer steps than copies, or the
            loss is no longer finite.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("train", n=256)
        >>> found = snapshots(models.load("resnet"), x, y, epochs=1, per_epoch=2)
        >>> len(found), found[0].training
        (2, False)
    """
    check_images(x)
    check_goal(Untargeted(y), x)
    for name, count in {"epochs": epochs, "per_epoch": per_epoch, "batch_size": batch_size}.items():
        check_number(name, count, 1)
    batches = -(-len(x) // batch_size)
    if batches < per_epoch:
        raise ValueError(f"{per_epoch} copies need as many steps in an epoch, {len(x)} images make {batches}")
    taken_after = {batches * (i + 1) // per_epoch for i in range(per_epoch)}
    random = private_generator(generator, x)
    network = deepcopy(network).train().requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum, weight_decay=weight_decay)
    taken: list[nn.Module] = []
    for _ in tqdm(range(epochs), desc="snapshots", leave=False, disable=None):
        order = torch.randperm(len(x), generator=random, device=x.device)
        for step, rows in enumerate(order.tensor_split(batches), 1):
            loss = F.cross_entropy(network(x[rows]), y[rows])
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()}: a learning rate of {learning_rate} is too high for it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in taken_after:
                taken.append(deepcopy(network).eval())
    return taken
