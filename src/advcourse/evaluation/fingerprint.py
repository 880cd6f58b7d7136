"""Whether attacks, images and networks are what they were when a result was written down."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..contract import Model


def fingerprint(*parts: Tensor | Model) -> str:
    """The SHA-256 of what tensors and networks hold; two results can only be continued, or compared, if it is equal.

    Args:
        parts: tensors, by their values; modules, by how they print and by their weights and buffers; any other
            callable only by its name, since nothing else can be seen of it.

    Example:
        >>> layer, x = nn.Linear(2, 2), torch.zeros(1, 2)
        >>> before = fingerprint(layer, x)
        >>> before == fingerprint(layer, x), before == fingerprint(layer, x + 1)
        (True, False)
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            head, state = "tensor", {"": part}
        elif isinstance(part, nn.Module):
            head, state = repr(part), part.state_dict()
        else:
            head, state = f"{part.__module__}.{getattr(part, '__qualname__', type(part).__qualname__)}", {}
        digest.update(head.encode())
        for key, value in state.items():
            if not torch.is_tensor(value):
                continue
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def described(attacks: Mapping[str, Attack]) -> dict[str, str]:
    """What a file can remember of attacks: how they print, by name.

    Raises:
        ValueError: if one of them holds a lambda, which prints like any other.
    """
    texts = {name: repr(attack) for name, attack in attacks.items()}
    for name, text in texts.items():
        if "<lambda>" in text:
            raise ValueError(f"{name} holds a lambda, of which a file cannot tell what it does: define a function")
    return texts
