"""What an attacker without the model may ask, and a ledger of every query.

An oracle is a target behind a window. `Scores` answers probabilities, `Labels` the label alone. Both charge the image
on whose behalf a point is asked, before they send it, and send nothing that is not paid for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contract import check_logits, check_number, evaluating, modules_of
from ..goals import REFUSED

Target = Any
"""What can be attacked through an oracle:

- a `torch.nn.Module` that maps rows (R, ...) in [0, 1] to logits (R, K), or to labels (R,), int64, with -1 for a
  refusal;
- a fitted estimator of scikit-learn, or one that behaves like it, such as LightGBM's and XGBoost's: it sees rows
  (R, D), and its K classes are numbered as in its `classes_`; any other answer is a refusal;
- any other callable, handed a tensor of rows and answering, as a tensor or an array, probabilities (R, K) or labels
  (R,).
"""


class BudgetExhausted(RuntimeError):
    """More was asked than the budget of an image allows. Nothing was sent."""


class Oracle(ABC):
    """A target that can only be asked, and the number of queries that each image has cost.

    One query is one point sent to the target. The budget is hard: a question that would overdraw any image's raises
    `BudgetExhausted`, sends nothing and charges nothing. Answers are not kept; asking twice costs twice. Points are
    clipped to [0, 1] before they are sent.

    Args:
        target: what is asked; see `Target`. A module is asked in eval mode and left as it was.
        budget: queries for each image; None for no limit.
        batch_size: points sent at once; it bounds the memory and changes no answer but by rounding.

    Attributes:
        queries: what each image has cost so far (N,), int64.
    """

    def __init__(self, target: Target, budget: int | None = None, batch_size: int = 128) -> None:
        if not callable(target) and not hasattr(target, "predict"):
            raise ValueError(
                f"the target must be a torch module, a fitted estimator or a callable, got {type(target).__name__}"
            )
        if budget is not None:
            check_number("budget", budget, 0)
        check_number("batch_size", batch_size, 1)
        self.target, self.budget, self.batch_size = target, budget, batch_size
        self.queries = torch.zeros(0, dtype=torch.int64)
        self._modules = modules_of(target)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.target).__name__}, budget={self.budget})"

    def begin(self, n: int, device: torch.device | str = "cpu") -> None:
        """Open a new ledger for n images. Every attack does so first."""
        self.queries = torch.zeros(n, dtype=torch.int64, device=device)

    @property
    def remaining(self) -> Tensor:
        """How many queries each image has left (N,), int64."""
        budget = torch.iinfo(torch.int64).max if self.budget is None else self.budget
        return budget - self.queries

    def affords(self, rows: Tensor, price: int) -> Tensor:
        """Which of the images `rows` (R,) can pay for so many queries each: bool (R,)."""
        return self.remaining[rows] >= price

    def payable(self, owner: Tensor) -> Tensor:
        """Which of the questions that the images `owner` (R,) would ask, in this order, they can pay for: bool (R,)."""
        order = owner.argsort(stable=True)
        turn = torch.empty_like(owner)
        turn[order] = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner[order], owner[order])
        return turn < self.remaining[owner]

    def __call__(self, points: Tensor, owner: Tensor) -> Tensor:
        """Ask about points (R, ...), each on behalf of the image `owner` (R,) of the ledger.

        Returns:
            What the window lets through, one row for each point.

        Raises:
            BudgetExhausted: if some image cannot pay for all of its points.
            ValueError: if there are no points, they are not floating point or NaN, an owner is not in the ledger, or
                the target's answer is unusable. Its own exceptions pass through. In every case exactly the points that
                were sent are on the ledger.
        """
        n = len(self.queries)
        if points.ndim < 2 or not points.is_floating_point() or points.numel() == 0 or points.isnan().any():
            raise ValueError(
                f"points must be floating point (R, ...) in [0, 1], some and without NaN, got {points.dtype} "
                f"{tuple(points.shape)}: bytes are x.float() / 255, one point is x[None]"
            )
        if owner.shape != points.shape[:1] or owner.dtype != torch.int64:
            raise ValueError(
                f"owner must name an image for each point, int64 ({len(points)},), got {owner.dtype} "
                f"{tuple(owner.shape)}"
            )
        if owner.min() < 0 or owner.max() >= n:
            raise ValueError(
                f"the ledger has {n} images, got owners {owner.min()}..{owner.max()}: begin(n) opens one for 0..n-1"
            )
        price = owner.bincount(minlength=n)
        short = price > self.remaining
        if short.any():
            i = int(short.nonzero()[0])
            raise BudgetExhausted(
                f"{int(short.sum())} of {len(short)} images cannot pay: image {i} has {int(self.remaining[i])} of "
                f"{self.budget} queries left and asks for {int(price[i])}; look at oracle.remaining before asking"
            )
        answers = []
        with evaluating(self._modules), torch.no_grad():
            for rows, who in zip(points.split(self.batch_size), owner.split(self.batch_size), strict=True):
                self.queries = self.queries + who.bincount(minlength=n)
                answers.append(self._answer(rows.clamp(0, 1)))
        return torch.cat(answers)

    @abstractmethod
    def _answer(self, rows: Tensor) -> Tensor: ...


class Scores(Oracle):
    """The soft-label window: ``oracle(points (R, ...), owner (R,)) -> probabilities (R, K)``.

    Example:
        >>> oracle = Scores(torch.nn.Linear(2, 3), budget=10)
        >>> oracle.begin(4)
        >>> scores = oracle(torch.rand(2, 2), owner=torch.tensor([0, 3]))
        >>> scores.shape, oracle.queries, oracle.remaining
        (torch.Size([2, 3]), tensor([1, 0, 0, 1]), tensor([ 9, 10, 10,  9]))
    """

    def _answer(self, rows: Tensor) -> Tensor:
        logits = respond(self.target, rows)
        if isinstance(logits, Tensor) and logits.ndim == 1 and not logits.is_floating_point():
            raise ValueError("the target answers labels and no scores: attack it through Labels")
        return check_logits(logits, len(rows)).softmax(1).to(rows.dtype)


class Labels(Oracle):
    """The hard-label window: ``oracle(points (R, ...), owner (R,)) -> labels (R,)``, int64; -1 is a refusal.

    Example:
        >>> oracle = Labels(lambda rows: (rows.sum(1) > 1).long())
        >>> oracle.begin(1)
        >>> oracle(torch.tensor([[0.2, 0.3], [0.7, 0.9]]), owner=torch.tensor([0, 0])), oracle.queries
        (tensor([0, 1]), tensor([2]))
    """

    classes: int | None = None
    """How many labels there are; None as long as the target has told nothing but labels."""

    def _answer(self, rows: Tensor) -> Tensor:
        answer = self.target(rows) if isinstance(self.target, nn.Module) else consult(self.target, rows, "predict")
        if hasattr(self.target, "classes_"):
            self.classes = len(self.target.classes_)
        if not isinstance(answer, Tensor) or (answer.ndim == 2 and answer.is_floating_point()):
            logits = check_logits(answer, len(rows))
            self.classes = logits.shape[1]
            return logits.argmax(1)
        if answer.shape != (len(rows),) or answer.is_floating_point() or answer.long().min() < REFUSED:
            raise ValueError(
                f"the target must answer {len(rows)} rows with labels ({len(rows)},), integers from 0 on or -1 for a "
                f"refusal, or with floating point scores ({len(rows)}, K); got {answer.dtype} of shape "
                f"{tuple(answer.shape)}"
            )
        return answer.long()


def respond(target: Target, rows: Tensor) -> Tensor:
    """Any target as if it were a network: logits (R, K) for rows (R, ...), or labels (R,) if it tells no more.

    The logits of a target that answers probabilities are their logarithms; the softmax undoes it, and makes them add
    up to 1 where they were rounded.

    Raises:
        ValueError: if a callable answers something else than labels or probabilities.
    """
    if isinstance(target, nn.Module):
        return target(rows)
    answer = consult(target, rows, "predict_proba" if hasattr(target, "predict_proba") else "predict")
    if answer.ndim == 1 and not answer.is_floating_point():
        return answer
    if answer.ndim != 2 or len(answer) != len(rows) or not answer.is_floating_point():
        raise ValueError(
            f"the target must answer {len(rows)} rows with probabilities ({len(rows)}, K) or labels ({len(rows)},), "
            f"got {answer.dtype} of shape {tuple(answer.shape)}"
        )
    if answer.isnan().any():
        raise ValueError("the target answered NaN")
    total = answer.sum(1)
    if answer.min() < 0 or total.min() == 0 or total.max() > 1.5:
        raise ValueError(
            "a callable target must answer probabilities, rows that are >= 0 and add up to 1, but for rounding or "
            "classes that are not told; if these are logits, answer their softmax"
        )
    return answer.log()


def consult(target: Target, rows: Tensor, method: str) -> Tensor:
    """What an estimator's method, or a callable, answers about rows (R, ...): a tensor on their device.

    Labels of an estimator become positions in its `classes_`; what is none of them is a refusal.
    """
    if hasattr(target, "predict"):
        classes = np.asarray(getattr(target, "classes_", None))
        if classes.ndim != 1:
            raise ValueError(
                f"{type(target).__name__} has no one list of classes_: it is not fitted, or no classifier; what maps "
                "rows to labels or probabilities in another way can be asked as a function"
            )
        numbers = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).flatten(1).cpu().numpy()
        answer = np.asarray(getattr(target, method)(numbers))
        if method == "predict":
            match = answer[:, None] == classes
            answer = np.where(match.any(1), match.argmax(1), REFUSED)
        return torch.from_numpy(answer).to(rows.device)
    answer = target(rows)
    try:
        return torch.as_tensor(answer if isinstance(answer, Tensor) else np.asarray(answer), device=rows.device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the target must answer with a tensor or an array of numbers, got {type(answer).__name__}: {error}"
        ) from error
