"""What every attack promises at its boundary: inputs are checked, and the model is left as it was found."""

import dis
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .goals import FromTo, Goal, Loss, Untargeted
from .threat import Ball

Model = Callable[[Tensor], Tensor]
"""Maps any number of images (N, ...) in [0, 1] to logits (N, K); as a rule a `torch.nn.Module` that normalises inside.

A module is put into eval mode and gets its own modes back. Any other callable is called as it is: what is wrapped in a
function stays in the mode that it is in, so call its `eval()` first (`TrainingMode` warns, if it is a plain function),
and also before several threads attack one model."""


class TrainingMode(UserWarning):
    """What is called for a model is a function around a network in training mode, which nobody can see through it."""


class Hyperparameters:
    """A frozen dataclass that prints its fields, functions by their name."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={named(value)}' for name, value in values.items())})"


def named(value: Any) -> str:
    """How a hyper-parameter prints: a function by its name, a partial one with what it was given."""
    if isinstance(value, partial):
        given = [named(part) for part in value.args] + [f"{key}={named(part)}" for key, part in value.keywords.items()]
        return f"partial({', '.join([named(value.func), *given])})"
    return str(getattr(value, "__name__", repr(value)))


def check_model(model: Any) -> None:
    """Raise `ValueError` unless this can be called as a model is."""
    if not callable(model):
        raise ValueError(
            f"a model maps images to logits, got {type(model).__name__}: an estimator is asked through "
            "oracles.Labels or Scores, or wrapped as models.MinMax.fit(estimator, rows)"
        )


def check_images(x: Tensor) -> None:
    """Raise `ValueError` unless x is a non-empty float batch (N, ...) without NaN in [0, 1]."""
    if not isinstance(x, Tensor):
        raise ValueError(f"images must be a torch tensor (N, ...) in [0, 1], got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {x.dtype}: pass x.float() / 255 for bytes")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"images must be a non-empty batch (N, ...), got shape {tuple(x.shape)}: one image is x[None]")
    low, high = x.aminmax()
    if not torch.isfinite(low + high):
        raise ValueError("images hold NaN or infinity: expected finite values in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(
            f"images must lie in [0, 1], got [{low:.4g}, {high:.4g}]: what rescales them belongs inside the "
            "model (models.Normalized for images, models.MinMax for the columns of a table, or the estimator's own "
            "pipeline), and an overshoot of rounding size is cured by x.clamp(0, 1)"
        )


def check_goal(y_or_goal: Tensor | Goal, x: Tensor) -> Goal:
    """The goal that labels or a goal stand for, after checking that it fits the images x.

    Raises:
        ValueError: unless its labels are int64 (N,), on the device of x, and not negative.
    """
    goal = y_or_goal if isinstance(y_or_goal, Goal) else Untargeted(y_or_goal)
    labels = goal.labels
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"labels must be an int64 tensor of shape ({len(x)},), one per image, got {got}{_remedy(labels, x)}"
        )
    if labels.device != x.device:
        raise ValueError(f"labels are on {labels.device} and images on {x.device}: move one of them")
    if labels.min() < 0:
        raise ValueError(f"labels must be in 0..K-1, got {labels.min()}")
    if isinstance(goal, FromTo):
        check_goal(goal.source, x)
    return goal


def _remedy(labels: Any, x: Tensor) -> str:
    if not isinstance(labels, Tensor):
        return ": pass torch.as_tensor(y)"
    if labels.ndim == 0:
        return ": one image is x[None] with y[None]"
    return ": pass y.long()" if labels.shape == x.shape[:1] else ""


def check_logits(logits: Tensor, rows: int, goal: Goal | None = None) -> Tensor:
    """A model's answer for so many rows, after checking that it is logits that fit the goal.

    Raises:
        ValueError: unless it is a floating point tensor (rows, K), K >= 2, without NaN or +infinity (-infinity may
            rule out a class), and the goal's labels are in 0..K-1.
    """
    if not isinstance(logits, Tensor) or logits.shape[:1] != (rows,) or logits.ndim != 2 or logits.shape[1] < 2:
        got = str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        if isinstance(logits, Tensor) and logits.shape in ((rows,), (rows, 1)):
            got = (
                f"{got}: wrap the network in a module that makes two of one, torch.stack([0 * z, z], 1) of a logit z "
                "(N,), torch.stack([1 - p, p], 1).log() of a probability p (N,), after squeeze(1) if it is (N, 1)"
            )
        raise ValueError(f"the model must return logits of shape ({rows}, K) with K >= 2, got {got}")
    if not logits.is_floating_point():
        raise ValueError(
            f"the model must return floating point logits, got {logits.dtype}: labels alone need an oracle"
        )
    if not (logits < math.inf).all():
        raise ValueError("the model returned NaN or infinity: look at its weights and at how it normalises")
    if goal is not None and goal.largest >= logits.shape[1]:
        raise ValueError(f"labels must be in 0..{logits.shape[1] - 1} for this model, got {goal.largest}")
    return logits


def logits_of(model: Model, x: Tensor, goal: Goal | None = None, batch_size: int = 512) -> Tensor:
    """The model's checked answers (N, K) for images x (N, ...), so many at a time."""
    return torch.cat([check_logits(model(part), len(part), goal) for part in x.split(batch_size)])


def check_number(name: str, value: float, least: float) -> None:
    """Raise `ValueError` unless value is finite and at least `least`; an integer if `least` is one."""
    kind = Integral if isinstance(least, int) else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
        what = "an integer" if isinstance(least, int) else "a finite number"
        raise ValueError(f"{name} must be {what} >= {least}, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Raise `ValueError` unless value is a number in [0, 1]."""
    check_number(name, value, 0.0)
    if value > 1:
        raise ValueError(f"{name} must be a fraction in [0, 1], got {value!r}")


def check_ball(ball: Ball) -> None:
    """Raise `ValueError` unless this is a ball."""
    if not isinstance(ball, Ball):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")


def check_loss(loss: Loss) -> None:
    """Raise `ValueError` unless this can be called, and is none of torch's losses."""
    if not callable(loss):
        raise ValueError(f"loss must be a function such as goals.margin, got {loss!r}")
    inner = loss.func if isinstance(loss, partial) else loss
    if (getattr(inner, "__module__", None) or "").startswith("torch.nn"):
        raise ValueError(
            f"a loss takes (logits, goal) and is climbed, (N, K) -> (N,), got {named(loss)} of torch: there are "
            "goals.cross_entropy, margin, logit, po_trip and dlr"
        )


def private_generator(generator: Generator | None, x: Tensor) -> Generator:
    """The caller's generator, or a fresh one seeded 0 on the device of x, so that calls repeat.

    Raises:
        ValueError: if it is something else than a generator, a seed say.
    """
    if not isinstance(generator, Generator | None):
        raise ValueError(f"generator must be a torch.Generator, got {generator!r}: torch.Generator().manual_seed(0)")
    return torch.Generator(x.device).manual_seed(0) if generator is None else generator


def modules_of(model: object) -> list[nn.Module]:
    """The model and all of its parts, if it is a module; to find them takes longer than to look at their modes.

    Warns:
        TrainingMode: if it is a function that names a network whose batch norm or dropout is in training mode.
    """
    if isinstance(model, nn.Module):
        return list(model.modules())
    for name, value in _named_in(model):
        if isinstance(value, nn.Module) and any(map(_moody, value.modules())):
            warn(
                f"the model is a function around {name}, which is in training mode and stays in it: call "
                f"{name}.eval() first, or wrap it in a torch.nn.Module",
                TrainingMode,
            )
    return []


def _named_in(function: object) -> Iterator[tuple[str, Any]]:
    """The variables from outside that a plain function uses, with their values; none if it looks after modes itself."""
    if not inspect.isfunction(function) or "eval" in function.__code__.co_names:
        return
    for name in {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}:
        yield name, function.__globals__.get(name)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            yield name, cell.cell_contents


def _moody(part: nn.Module) -> bool:
    """Whether this layer computes something else than in eval mode."""
    norm = isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
    return part.training and (norm or isinstance(part, nn.modules.dropout._DropoutNd | nn.RReLU))


def warn(message: str, category: type[Warning]) -> None:
    """Warn about the line outside of this package that led here."""
    here, frame, level = str(Path(__file__).parent), sys._getframe(), 1
    while frame.f_code.co_filename.startswith(here) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Eval mode inside; afterwards each module has its own train/eval flag back."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
