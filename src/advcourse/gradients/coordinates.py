"""Slope and curvature of a loss along given directions: a parabola through three points for each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ascent import Judge, Verdict
from .estimated import Differences


@dataclass(frozen=True)
class Parabolas(Differences):
    """Of n directions at each point: the slopes `gradient` (R, n), and the second derivatives `curvature` (R, n)."""

    curvature: Tensor


def parabolas(judge: Judge, points: Tensor, met: Verdict, v: Tensor, h: float, owner: Tensor) -> Parabolas:
    """The symmetric differences of Chen et al. (2017, equations 6 and 7) along directions v, 2n queries a point.

    ::

        (L(x + hv) − L(x − hv)) / 2h,    (L(x + hv) − 2 L(x) + L(x − hv)) / h²

    Both are exact where the loss is quadratic. With unit vectors for v they are entries of the gradient and of the
    diagonal of the Hessian.

    Args:
        judge: the loss at points; see `Judge`.
        points: x (R, ...).
        met: what the judge said of them before.
        v: directions (R, n, ...).
        h: how far to go along them.
        owner: the images that own the points (R,).

    Example:
        >>> def judge(points, owner):
        ...     return Verdict(points[:, 0] ** 2 + 3 * points[:, 1], torch.zeros(len(points), dtype=torch.bool))
        >>> x, owner = torch.tensor([[0.5, 0.25]]).double(), torch.tensor([0])
        >>> bend = parabolas(judge, x, judge(x, owner), torch.eye(2).double()[None], 0.125, owner)
        >>> bend.gradient.tolist(), bend.curvature.tolist()
        ([[1.0, 3.0]], [[2.0, 0.0]])
    """
    n, middle = v.shape[1], points[:, None]
    asked = torch.cat([middle + h * v, middle - h * v], 1).to(points.dtype)
    loss = judge(asked.flatten(0, 1), owner.repeat_interleave(2 * n)).loss
    up, down = loss.view(-1, 2 * n).to(v.dtype).chunk(2, dim=1)
    slope, bend = (up - down) / (2 * h), (up - 2 * met.loss[:, None] + down) / h**2
    return Parabolas(met.loss, met.fooled, slope, (up == down).to(v.dtype).mean(1), bend)
