"""All of a training in one file, so that it can be interrupted and resumed without a trace."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_whole


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a dict of plain values and tensors, whole or not at all."""
    stream = io.BytesIO()
    torch.save(state, stream)
    write_whole(path, stream.getvalue())


def read_checkpoint(path: Path, recipe: dict[str, str], model: nn.Module) -> dict[str, Any]:
    """The state that was written under this recipe, for such a model.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, no checkpoint, or one of another recipe or network; it is left as it is.
    """
    remedy = "remove it to start afresh"
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file may cause
        raise ValueError(f"{path} is damaged ({type(error).__name__}): {remedy}") from error
    if not isinstance(state, dict) or not {"recipe", "model"} <= state.keys():
        raise ValueError(f"{path} is no checkpoint of a training: {remedy}")
    old = state["recipe"]
    different = [name for name in {**old, **recipe} if old.get(name) != recipe.get(name)]
    if different:
        changes = "; ".join(f"{name} was {old.get(name)}, is {recipe.get(name)}" for name in different)
        raise ValueError(f"{path} is of another training ({changes}): {remedy}")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in state["model"].items()} != shapes:
        raise ValueError(f"{path} is of another network: {remedy}")
    return state
