"""Training the zoo: from a recipe to a checked checkpoint with its card."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from .. import data
from ..evaluation import accuracy
from ..files import sha256, write_whole
from ..models import zoo
from ..threat import Linf
from .augmentation import Mirror
from .fast import FastTraining
from .loop import train
from .methods import Ramped, Standard
from .schedules import OneCycle


def train_entry(name: str, folder: Path, root: Path | None = None) -> dict[str, Any]:
    """Train a network of the zoo on all of Fashion-MNIST, write its weights and its card into a folder, return the
    card.

    Weights are stored in half precision; the accuracy on the card is that of the stored network. An interrupted
    training goes on where the last epoch ended.

    Args:
        name: a key of `advcourse.models.BUNDLED`.
        folder: where NAME.safetensors and NAME.json go.
        root: the full data set, as for `advcourse.data.fashion_mnist`.

    Raises:
        ValueError: for an unknown name, or a checkpoint of another recipe.
        FileNotFoundError: if the full data set cannot be had.
        ImportError: if Accelerate is not installed.
        OSError: if the folder cannot be made.
    """
    entry = zoo.entry(name)
    folder.mkdir(parents=True, exist_ok=True)  # fails now and not after an epoch
    x, y = data.fashion_mnist("train", full=True, root=root)
    network = entry.network()
    checkpoint = folder / f"{name}.checkpoint.pt"
    recipe = entry.recipe
    train(
        network,
        Ramped(FastTraining(Linf(recipe.eps))) if recipe.eps else Standard(),
        (x, y),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer=partial(torch.optim.AdamW, weight_decay=recipe.weight_decay),
        schedule=OneCycle(recipe.learning_rate),
        augment=[Mirror()],
        checkpoint=checkpoint,
        generator=torch.Generator().manual_seed(recipe.seed),
    )

    weights = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    content = save_tensors(weights)
    network.load_state_dict(weights)
    card = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "data": f"Fashion-MNIST, {len(x):,} training images",
        "recipe": asdict(recipe),
        "accuracy": round(accuracy(network, *data.fashion_mnist("test")), 4),
        "accuracy_on": "the 2,000 bundled test images",
        "torch": torch.__version__.split("+")[0],
        "format": "safetensors, float16",
        "sha256": sha256(content),
    }
    write_whole(folder / f"{name}.safetensors", content)
    write_whole(folder / f"{name}.json", (json.dumps(card, indent=2) + "\n").encode())
    checkpoint.unlink()
    return card
