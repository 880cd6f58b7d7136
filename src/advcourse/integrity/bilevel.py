"""Poisoning as the problem that it is: where must a training point lie, so that training on it does the most harm?

    maximise over the poison p   L(θ*(p)),    where θ*(p) minimises the training loss J(θ, p)

The inner problem is a regularised logistic regression, solved to the end, so its gradient is zero at θ*. How θ* moves
with p then follows from the implicit function theorem, ``dθ*/dp = −(∂²J/∂θ²)⁻¹ ∂²J/∂θ∂p``, and with the chain rule::

    dL/dp = −(∂²J/∂p∂θ) (∂²J/∂θ²)⁻¹ ∇L(θ*)

Biggio et al. (2012) do so for support vector machines, Mei & Zhu (2015) for any learner with a smooth convex loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp
from torch.nn import functional as F

from ..contract import Hyperparameters, check_goal, check_images, check_number
from ..threat import L2


def logistic_loss(theta: Tensor, x: Tensor, y: Tensor, decay: float = 0.0) -> Tensor:
    """The loss of a linear classifier θ = (w, b)::

        mean of log(1 + exp(−s · (⟨w, x⟩ + b))) + decay / 2 · ‖w‖²,    s = ±1 for y = 1 and 0

    Args:
        theta: weights and bias (d + 1,).
        x: points (N, d).
        y: their labels (N,), 0 or 1.
        decay: of the weights.

    Example:
        >>> logistic_loss(torch.zeros(3), torch.rand(5, 2), torch.tensor([0, 1, 0, 1, 1]))
        tensor(0.6931)
    """
    signs = 2 * y - 1
    return F.softplus(-signs * (x @ theta[:-1] + theta[-1])).mean() + decay / 2 * theta[:-1].square().sum()


def fit(x: Tensor, y: Tensor, decay: float) -> Tensor:
    """θ* (d + 1,), where the gradient of the loss is zero, by Newton's method with steps that are halved as needed.

    Args:
        x: points (N, d); double precision is advisable.
        y: their labels (N,), 0 or 1, both among them.
        decay: positive, or the minimum of separable points would lie at infinity.

    Raises:
        ValueError: if one of the classes is missing, or the decay is not positive.

    Example:
        >>> theta = fit(torch.tensor([[0.2], [0.8]]).double(), torch.tensor([0, 1]), decay=0.1)
        >>> round(float(-theta[1] / theta[0]), 6)  # the border
        0.5
    """
    check_number("decay", decay, 0.0)
    if decay == 0 or y.unique().tolist() != [0, 1]:
        raise ValueError(f"a fit needs a positive decay and labels 0 and 1, got {decay} and {y.unique().tolist()}")
    theta, lifted = x.new_zeros(x.shape[1] + 1), F.pad(x, (0, 1), value=1.0)
    shrink = decay * F.pad(torch.ones_like(theta[:-1]), (0, 1))  # of the weights, not the bias
    for _ in range(50):
        p = (lifted @ theta).sigmoid()
        slope = lifted.T @ (p - y) / len(x) + shrink * theta
        step = torch.linalg.solve((lifted.T * (p * (1 - p))) @ lifted / len(x) + shrink.diag(), slope)
        # Near the minimum rounding decides which loss is larger, and the full step is the right one.
        while step.abs().max() > 1e-3 and logistic_loss(theta - step, x, y, decay) > logistic_loss(theta, x, y, decay):
            step = step / 2
        theta = theta - step
        if step.abs().max() < 1e-9:
            break
    return theta


def hypergradient(
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    labels: Tensor,
    x_val: Tensor,
    y_val: Tensor,
    decay: float,
) -> Tensor:
    """How the loss on other points changes with the poisons, training included (M, d): dL/dp above.

    Args:
        theta: where training on all points ends, ``fit(cat(x, points), cat(y, labels), decay)``.
        x: clean training points (N, d).
        y: their labels (N,).
        points: the poisons (M, d).
        labels: their labels (M,).
        x_val: the points whose loss is to change (V, d).
        y_val: their labels (V,).
        decay: of the training.
    """

    def slope(points: Tensor) -> Tensor:  # ∂J/∂θ, zero at θ*
        return grad(logistic_loss)(theta, torch.cat([x, points]), torch.cat([y, labels]), decay)

    curvature = jacrev(grad(logistic_loss))(theta, torch.cat([x, points]), torch.cat([y, labels]), decay)
    v = torch.linalg.solve(curvature, grad(logistic_loss)(theta, x_val, y_val))
    pull = vjp(slope, points)[1]
    return -pull(v)[0]


@dataclass(frozen=True)
class Poisoned:
    """A moment of the search for the worst training points. Its tensors are never written again.

    Attributes:
        step: 0 for the start, then one more with every state.
        points: the poisons (M, d).
        theta: what training on them ends with (d + 1,).
        loss: that of the points that are to suffer.
    """

    step: int
    points: Tensor
    theta: Tensor
    loss: float


@dataclass(frozen=True, repr=False)
class BilevelPoisoning(Hyperparameters):
    """Moves a few training points, with labels that stay, to where training on them does the most harm.

    Projected steepest ascent along the exact `hypergradient`, in the box [0, 1]. Whose loss shall grow decides what
    kind of attack it is: that of all of a validation set, **availability**; that of one point, **targeted**.

    Args:
        decay: of the training that is attacked.
        steps: of the ascent; each is a training from scratch.
        step_size: how far each poison moves in a step.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> x, y = torch.tensor([[0.1], [0.3], [0.7], [0.9]]).double(), torch.tensor([0, 0, 1, 1])
        >>> attack = BilevelPoisoning(decay=0.01, steps=20)
        >>> attack(x, y, torch.tensor([[0.5]]).double(), torch.tensor([1]), x, y).round(decimals=6)
        tensor([[0.]], dtype=torch.float64)
    """

    decay: float = 0.01
    steps: int = 50
    step_size: float = 0.05

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0.0)
        check_number("steps", self.steps, 1)
        check_number("step_size", self.step_size, 0.0)

    def __call__(self, x: Tensor, y: Tensor, points: Tensor, labels: Tensor, x_val: Tensor, y_val: Tensor) -> Tensor:
        """The worst poisons met (M, d). Arguments and errors are those of `iterates`."""
        return max(self.iterates(x, y, points, labels, x_val, y_val), key=lambda state: state.loss).points

    def iterates(
        self, x: Tensor, y: Tensor, points: Tensor, labels: Tensor, x_val: Tensor, y_val: Tensor
    ) -> Iterator[Poisoned]:
        """The same computation, one state at a time.

        Args:
            x: clean training points (N, d), in [0, 1].
            y: their labels (N,), int64, 0 or 1.
            points: where the poisons begin (M, d), in [0, 1].
            labels: their labels (M,), which stay.
            x_val: the points whose loss shall grow (V, d).
            y_val: their right labels (V,).

        Raises:
            ValueError: if points or labels are not as described.
        """
        for rows, classes in (x, y), (points, labels), (x_val, y_val):
            check_images(rows)
            if check_goal(classes, rows).largest > 1:
                raise ValueError("logistic regression knows the labels 0 and 1")
        for step in range(self.steps + 1):
            theta = fit(torch.cat([x, points]), torch.cat([y, labels]), self.decay)
            yield Poisoned(step, points, theta, logistic_loss(theta, x_val, y_val).item())
            slope = hypergradient(theta, x, y, points, labels, x_val, y_val, self.decay)
            points = (points + self.step_size * L2.stride(slope, points, 0.0)).clamp(0, 1)
