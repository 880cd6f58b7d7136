"""What the loss looks like around images: in the plane of two directions, and along many random ones."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ..contract import Model, check_goal, check_images, check_number, evaluating, modules_of, private_generator
from ..goals import Goal, Loss, cross_entropy
from ..gradients import Exact
from .accuracy import predict


def directions(
    model: Model,
    x: Tensor,
    y_or_goal: Tensor | Goal,
    loss: Loss = cross_entropy,
    *,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The two directions in which landscapes are usually drawn: where the loss rises, and anywhere.

    The first is the sign of the gradient of the loss, the second has a random sign at each feature. Both move every
    feature by one and therefore have length one in Linf. They are not made orthogonal, which would spoil that: their
    cosine is about 1/sqrt(features) by chance. The ball Linf(eps) cuts their plane in the square
    ``abs(a) + abs(b) <= eps``, which stands on its corner.

    Args:
        model: maps images to logits.
        x: one image (1, ...) in [0, 1].
        y_or_goal: its label (1,), int64, or a goal.
        loss: whose gradient.
        generator: the source of the random signs; by default a private one seeded 0.

    Returns:
        The sign of the gradient and the random signs, each shaped like x.

    Raises:
        ValueError: if there is not exactly one image, or the model has no gradient.

    Example:
        >>> u, v = directions(torch.nn.Linear(4, 2), torch.full((1, 4), 0.5), torch.tensor([0]))
        >>> u.abs(), v.abs()
        (tensor([[1., 1., 1., 1.]]), tensor([[1., 1., 1., 1.]]))
    """
    goal = _one(x, y_or_goal)
    with evaluating(modules_of(model)):
        gradient = Exact(model, loss, goal)(x, torch.zeros_like(goal.labels)).gradient
    coin = torch.randint(2, x.shape, generator=private_generator(generator, x), device=x.device)
    return gradient.sign(), (2 * coin - 1).to(x.dtype)


def landscape(
    model: Model,
    x: Tensor,
    y_or_goal: Tensor | Goal,
    u: Tensor,
    v: Tensor,
    radius: float,
    resolution: int = 41,
    loss: Loss = cross_entropy,
) -> Tensor:
    """The loss at x + a·u + b·v, for a and b from -radius to radius.

    A gradient that points somewhere useful shows as a slope along u; a masked one as a plateau, as cliffs beside it, or
    as a slope that ends after a step. Points are clipped to [0, 1] before the model sees them, because an attack could
    not offer it anything else; where features have met a face of the box the landscape flattens.

    Args:
        model: maps images to logits.
        x: one image (1, ...) in [0, 1].
        y_or_goal: its label (1,), int64, or a goal.
        u: first direction, shaped like x; see `directions`.
        v: second direction.
        radius: largest a and b, in units of the input range for directions of length one.
        resolution: points along a side; an odd number has x itself in the middle. All go through the model in batches.
        loss: what to measure; with `margin`, 0 is the boundary of the decision.

    Returns:
        The losses (resolution, resolution); the row is a, the column b.

    Raises:
        ValueError: if there is not exactly one image, or a direction is not shaped like it.

    Example:
        >>> from advcourse.goals import logit
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 10.0], [0.0, 0.0]]))
        >>> u, v = torch.eye(2).split(1)
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
        >>> landscape(model, x, y, u, v, radius=0.25, resolution=3, loss=logit)
        tensor([[-2.7500, -5.2500, -7.7500],
                [-3.0000, -5.5000, -8.0000],
                [-3.2500, -5.7500, -8.2500]])
    """
    goal = _one(x, y_or_goal)
    if u.shape != x.shape or v.shape != x.shape:
        raise ValueError(f"directions must be shaped like x, {tuple(x.shape)}, got {tuple(u.shape)}, {tuple(v.shape)}")
    check_number("resolution", resolution, 2)
    check_number("radius", radius, 0.0)
    side = torch.linspace(-radius, radius, resolution, dtype=x.dtype, device=x.device)
    along = torch.tensordot(side[:, None], u, 1)
    points = (x + along[:, None] + torch.tensordot(side[:, None], v, 1)).flatten(0, 1).clamp(0, 1)
    everywhere = goal[torch.zeros(len(points), dtype=torch.long, device=x.device)]
    return loss(predict(model, points, goal=goal), everywhere).view(resolution, resolution)


def loss_change(
    model: Model,
    x: Tensor,
    y_or_goal: Tensor | Goal,
    radii: Sequence[float],
    directions: int = 10,
    loss: Loss = cross_entropy,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """How much the loss changes along random directions: little on a plateau, much on a peak (Qin et al. 2022).

    The directions have a random sign at each feature, so their length is one in Linf; all radii share them. Points are
    clipped to [0, 1].

    Args:
        model: maps images to logits.
        x: images (N, ...) in [0, 1], as a rule adversarial ones.
        y_or_goal: the labels (N,) or the goal of the attack.
        radii: how far to go (R,).
        directions: how many to average over, for each image.
        loss: what to measure, larger when closer to fooled; around what an attack found it falls.
        generator: the source of the random signs; by default a private one seeded 0.

    Returns:
        The mean of loss(x + radius · direction) - loss(x), (R, N). This costs N passes forward, and N for each radius
        and direction.

    Raises:
        ValueError: if images, labels or the model's answers are not as an attack demands them.

    Example:
        >>> from advcourse.goals import logit
        >>> sharp = lambda x: -10 * (x - 0.5).square().flatten(1).sum(1)[:, None] * torch.tensor([[-1.0, 0.0]])
        >>> loss_change(sharp, torch.full((1, 3), 0.5), torch.tensor([0]), [0.0, 0.1, 0.2], loss=logit)
        tensor([[ 0.0000],
                [-0.3000],
                [-1.2000]])
    """
    check_images(x)
    goal = check_goal(y_or_goal, x)
    check_number("directions", directions, 1)
    coins = torch.randint(2, (directions, *x.shape), generator=private_generator(generator, x), device=x.device)
    signs = (2 * coins - 1).to(x.dtype)
    here = loss(predict(model, x, goal=goal), goal)
    changes = []
    for radius in radii:
        check_number("radius", radius, 0.0)
        there = [loss(predict(model, (x + radius * sign).clamp(0, 1)), goal) - here for sign in signs]
        changes.append(torch.stack(there).mean(0))
    return torch.stack(changes)


def _one(x: Tensor, y_or_goal: Tensor | Goal) -> Goal:
    check_images(x)
    if len(x) != 1:
        raise ValueError(f"a landscape is of one image, shape (1, ...), got {tuple(x.shape)}: x[i : i + 1] is one")
    return check_goal(y_or_goal, x)
