"""The trained networks that ship with the package: what each is, how it was trained, and how to load it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import nn

from ..data import FASHION_MEAN, FASHION_STD
from ..files import ASSETS, read_verified
from .architectures import cnn, densenet, inception, resnet, vgg
from .wrappers import Normalized

FOLDER = ASSETS / "zoo"
CARD = {"name", "parameters", "data", "recipe", "accuracy", "accuracy_on", "torch", "format", "sha256"}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, one-cycle learning rate, images mirrored at random.

    With an eps > 0 it sees adversarial examples in their place, fast adversarial training of Wong et al. (2020,
    algorithm 3): from a random start in Linf(eps) one sign step of 1.25 · eps. The radius grows from 0 in epoch one.

    Attributes:
        epochs: passes over the training images.
        learning_rate: the peak of the cycle.
        weight_decay: AdamW's.
        batch_size: images in a step.
        seed: of the initial weights and of the order, mirroring and perturbation of the images.
        eps: Linf radius of adversarial training; 0 is standard training.
    """

    epochs: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_size: int = 128
    seed: int = 0
    eps: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: how to build it, before training, and its recipe."""

    build: Callable[[], nn.Module]
    recipe: Recipe = Recipe()

    def network(self) -> nn.Module:
        """The untrained network, with normalisation inside and weights drawn from the recipe's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)
            network = Normalized(self.build(), FASHION_MEAN, FASHION_STD)
        return network.to(memory_format=torch.channels_last)  # the faster layout for convolutions on a CPU


BUNDLED: dict[str, Entry] = {
    "cnn": Entry(cnn),
    "cnn_robust": Entry(cnn, Recipe(eps=0.1)),
    "resnet": Entry(resnet),
    "resnet_seed1": Entry(resnet, Recipe(seed=1)),
    "vgg": Entry(vgg, Recipe(epochs=5)),
    "densenet": Entry(densenet, Recipe(epochs=5)),
    "inception": Entry(inception, Recipe(epochs=5)),
}
"""The networks that `load` and ``advcourse zoo train`` know, by name."""


def entry(name: str) -> Entry:
    """The zoo's entry of that name.

    Raises:
        ValueError: if there is none; the message lists what there is.
    """
    if name not in BUNDLED:
        raise ValueError(f"there is no model {name!r} in the zoo; there are: {', '.join(BUNDLED)}")
    return BUNDLED[name]


def card(name: str, folder: str | Path = FOLDER) -> dict[str, Any]:
    """What is known about a trained network: data, recipe, seed, accuracy, checksum.

    Raises:
        ValueError: for an unknown name or a damaged card.
        FileNotFoundError: if the network was not trained into this folder.

    Example:
        >>> card("cnn")["accuracy"] >= 0.9
        True
    """
    entry(name)
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train it with `advcourse zoo train {name}`")
    try:
        known = json.loads(path.read_text())
        if known.keys() >= CARD:
            return known
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is damaged: install advcourse again, or train it with `advcourse zoo train {name}`")


def load(name: str, folder: str | Path = FOLDER) -> nn.Module:
    """A trained network of the zoo, frozen and in eval mode, that maps images in [0, 1] to logits.

    Args:
        name: a key of `BUNDLED`.
        folder: where ``advcourse zoo train`` wrote it; the bundled networks by default.

    Raises:
        ValueError: for an unknown name or a damaged file.
        FileNotFoundError: if the network is not in the folder.

    Example:
        >>> model = load("cnn")
        >>> model(torch.zeros(2, 1, 28, 28)).shape, model.training
        (torch.Size([2, 10]), False)
    """
    remedy = f"install advcourse again, or train it with `advcourse zoo train {name}`"
    weights = read_verified(Path(folder) / f"{name}.safetensors", card(name, folder)["sha256"], remedy)
    network = entry(name).network()
    network.load_state_dict(load_tensors(weights))
    return network.eval().requires_grad_(False)
