"""Random directions, and what to make of the signs that were met along them."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Draw = Callable[[Tensor, int, Generator, int], Tensor]
"""``draw(like (R, ...), n, generator, step) -> (R, n, ...)``: n directions for each row, their features of about unit
size. Steps of a descent are counted from 1; 0 is its start."""

Combine = Callable[[Tensor, Tensor], Tensor]
"""``combine(signs (R, n), u (R, n, ...)) -> (R, ...)``: a direction in which what the signs are of grows."""


def gaussian(like: Tensor, n: int, generator: Generator, step: int = 0) -> Tensor:
    """N(0, 1) in every feature, so that all directions are equally likely, at any step."""
    return like.new_empty(len(like), n, *like.shape[1:]).normal_(generator=generator)


def uniform(like: Tensor, n: int, generator: Generator, step: int = 0) -> Tensor:
    """U(-1, 1) in every feature, at any step."""
    return like.new_empty(len(like), n, *like.shape[1:]).uniform_(-1, 1, generator=generator)


def smooth(like: Tensor, n: int, generator: Generator, step: int = 0, decay: float = 0.7, fade: float = 0.5) -> Tensor:
    """Gaussian noise whose amplitude falls with the spatial frequency f as ``1 / f ** decay``, on images (R, C, H, W).

    Neighbouring pixels move together, as they do in photographs and in the gradients of networks, so a direction has
    more to do with the gradient than a Gaussian one: Guo et al. (2018) keep the low frequencies alone, this keeps
    all. Fine detail is what remains at the end of a descent: with each step, `decay` is divided by ``step ** fade``.
    ``decay=0``, or input that is no image, gives Gaussian directions.

    Example:
        >>> like, generator = torch.zeros(1, 1, 28, 28), torch.Generator().manual_seed(0)
        >>> [round(float(torch.corrcoef(torch.stack([u[..., 1:].ravel(), u[..., :-1].ravel()]))[0, 1]), 1)
        ...  for u in (gaussian(like, 100, generator), smooth(like, 100, generator))]
        [0.0, 0.5]
    """
    noise = gaussian(like, n, generator)
    if like.ndim != 4 or decay == 0 or like.shape[2:].numel() == 1:
        return noise
    height, width = like.shape[2:]
    wide = noise.to(torch.promote_types(noise.dtype, torch.float32))
    rows, columns = (count(size).to(wide) for count, size in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width)))
    gain = torch.hypot(rows[:, None], columns).clamp_min(0.5 / max(height, width)) ** -(decay / max(1, step) ** fade)
    smoothed = torch.fft.irfft2(torch.fft.rfft2(wide) * gain, s=(height, width))
    return (smoothed / smoothed.flatten(2).std(2).view(*noise.shape[:2], *[1] * (like.ndim - 1))).to(like.dtype)


def average(signs: Tensor, u: Tensor) -> Tensor:
    """The mean of sign · u, as Sign-OPT takes it (Cheng et al. 2020, algorithm 1)."""
    return torch.einsum("rn,rn...->r...", signs, u) / u.shape[1]


def centred(signs: Tensor, u: Tensor) -> Tensor:
    """`average`, of the signs less their mean, as HopSkipJump takes it (Chen et al. 2020, equation 16).

    Where the boundary bends, or was not met exactly, one sign is more frequent than the other and says nothing about
    the direction. If all are alike nothing is left of them, and it is `average`. Zeros are no signs.
    """
    mean = signs.sum(1, keepdim=True) / (signs != 0).sum(1, keepdim=True).clamp_min(1)
    return average(torch.where(mean.abs() < 1, (signs - mean) * (signs != 0), signs), u)


def max_margin(signs: Tensor, u: Tensor) -> Tensor:
    """SVM-OPT (Cheng et al. 2020, section 3.4): the shortest w with ``sign · <u, w> >= 1`` for all directions.

    The direction that agrees with all signs, and by the largest margin. Its dual is solved by coordinate descent, each
    time along the coordinate that moves farthest, as in the authors' program.

    Example:
        >>> u = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
        >>> max_margin(torch.tensor([[1.0, -1.0]]), u).round(decimals=3)
        tensor([[ 1., -2.]])
    """
    rows = signs[..., None] * u.flatten(2)
    gram = rows @ rows.mT
    size = gram.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(u.dtype).tiny)
    weight, slope, every = torch.zeros_like(signs), -rows.any(2).to(u.dtype), torch.arange(len(u), device=u.device)
    for _ in range(100 * u.shape[1]):
        change = (weight - slope / size).clamp_min(0) - weight
        where = change.abs().argmax(1)
        step = change[every, where]
        if step.abs().max() < 1e-6:
            break
        weight[every, where] += step
        slope += step[:, None] * gram[every, where]
    return torch.einsum("rn,rnd->rd", weight, rows).view(len(u), *u.shape[2:])
