"""Networks by name, and the files that `advcourse train` writes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from ..data import CIFAR_MEAN, CIFAR_STD, FASHION_MEAN, FASHION_STD
from ..files import read_verified, sha256, write_whole
from .architectures import cnn, densenet, inception, resnet, small, vgg
from .large import preactresnet18, wide_resnet
from .wrappers import Normalized


@dataclass(frozen=True)
class Images:
    """What a data set's images look like: channels, height and width, mean and standard deviation."""

    channels: int
    size: int
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]


IMAGES: dict[str, Images] = {
    "fashion": Images(1, 28, FASHION_MEAN, FASHION_STD),
    "cifar10": Images(3, 32, CIFAR_MEAN, CIFAR_STD),
}
"""Data sets by name."""

NETWORKS: dict[str, Callable[[Images], nn.Module]] = {
    "cnn": lambda images: cnn(images.channels, size=images.size),
    "small": lambda images: small(images.channels, size=images.size),
    "resnet": lambda images: resnet(images.channels),
    "vgg": lambda images: vgg(images.channels),
    "densenet": lambda images: densenet(images.channels),
    "inception": lambda images: inception(images.channels),
    "preactresnet18": lambda images: preactresnet18(images.channels),
    "wide_resnet": lambda images: wide_resnet(channels=images.channels),
}
"""Networks by name; ten classes each, with random weights."""


def build(name: str, data: str, seed: int = 0) -> nn.Module:
    """An untrained network that maps images in [0, 1] of this data set to ten logits, with normalisation inside.

    Args:
        name: a key of `NETWORKS`.
        data: a key of `IMAGES`.
        seed: of its weights. Global randomness is left alone.

    Raises:
        ValueError: for an unknown name; the message lists what there is.

    Example:
        >>> build("resnet", "cifar10")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for what, key, known in ("network", name, NETWORKS), ("data set", data, IMAGES):
        if key not in known:
            raise ValueError(f"there is no {what} {key!r}; there are: {', '.join(known)}")
    images = IMAGES[data]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Normalized(NETWORKS[name](images), images.mean, images.std)


def save_trained(network: nn.Module, path: Path, name: str, data: str, **about: Any) -> dict[str, Any]:
    """Write the weights of a network that `build` made to `path`, NAME.safetensors, and a card, NAME.json, beside it.

    Returns:
        The card, with what is needed to load it, and whatever else is told `about` it.
    """
    content = save_tensors({key: value.cpu().contiguous() for key, value in network.state_dict().items()})
    card = {"network": name, "data": data, **about, "sha256": sha256(content)}
    write_whole(path, content)
    write_whole(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    return card


def load_trained(path: str | Path) -> nn.Module:
    """A network that `save_trained` wrote, frozen and in eval mode.

    Raises:
        ValueError: if weights or card are damaged.
        FileNotFoundError: if one of them is missing.
    """
    path = Path(path)
    card, remedy = path.with_suffix(".json"), "train it again with `advcourse train`"
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing: it has to lie beside its weights, where `advcourse train` put it")
    try:
        known = json.loads(card.read_text())
        network = build(known["network"], known["data"])
        checksum = known["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card} is damaged ({error}): {remedy}") from error
    network.load_state_dict(load_tensors(read_verified(path, checksum, remedy)))
    return network.eval().requires_grad_(False)
