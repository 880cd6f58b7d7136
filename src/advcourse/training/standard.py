"""Training: minimise cross-entropy, on clean images or on adversarial ones.

It can be interrupted and resumed without a trace.
"""

import io
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..ascent import ascend
from ..files import write_whole
from ..goals import Untargeted, cross_entropy
from ..gradients import Exact
from ..models.zoo import Recipe
from ..threat import Linf


def train(network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, checkpoint: Path) -> None:
    """Train a network in place, and leave it in eval mode.

    After every epoch all of its state goes to `checkpoint`, whole. If that file is there at the start, training goes on
    from it and ends with the same bits, on the same machine with the same number of threads, as if it had never
    stopped.

    Args:
        network: maps x to logits.
        x: training images (N, C, H, W) in [0, 1].
        y: labels (N,), int64.
        recipe: see `Recipe`.
        checkpoint: where to keep the state; the caller removes it when the result is safe.

    Raises:
        ValueError: if the checkpoint was written under another recipe or by another network.
    """
    batches = -(-len(x) // recipe.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=batches * recipe.epochs, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    first = 0
    if checkpoint.exists():
        saved = _read(checkpoint, network)
        if saved["recipe"] != asdict(recipe) or saved["images"] != len(x):
            raise ValueError(f"{checkpoint} is of another recipe or data set: remove it to start afresh")
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        cycle.load_state_dict(saved["cycle"])
        generator.set_state(saved["generator"])
        first = saved["epochs"]
    network.train()
    for epoch in range(first, recipe.epochs):
        order = torch.randperm(len(x), generator=generator).split(recipe.batch_size)
        bar = tqdm(order, desc=f"epoch {epoch + 1}/{recipe.epochs}", unit="batch", leave=False)
        for rows in bar:
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], x[rows].flip(3), x[rows])
            if recipe.eps:
                radius = recipe.eps * min(1, (cycle.last_epoch + 1) / batches)
                images = _perturbed(network, images, y[rows], Linf(radius), generator)
            loss = F.cross_entropy(network(images), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        state = {
            "recipe": asdict(recipe),
            "images": len(x),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "cycle": cycle.state_dict(),
            "generator": generator.get_state(),
            "epochs": epoch + 1,
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        write_whole(checkpoint, stream.getvalue())
    network.eval()


def _perturbed(network: nn.Module, x: Tensor, y: Tensor, ball: Linf, generator: Generator) -> Tensor:
    start = ball.sample(x, generator)
    *_, last = ascend(Exact(network, cross_entropy, Untargeted(y)), ball, x, 1, 1.25 * ball.eps, start)
    return last.best


def _read(checkpoint: Path, network: nn.Module) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is damaged ({error}): remove it to start afresh") from error
    if not isinstance(saved, dict) or "network" not in saved:
        raise ValueError(f"{checkpoint} is no checkpoint of a training: remove it to start afresh")
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in saved["network"].items()} != shapes:
        raise ValueError(f"{checkpoint} is of another network: remove it to start afresh")
    return saved
