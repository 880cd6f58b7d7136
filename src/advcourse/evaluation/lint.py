"""The known ways to fool oneself about robustness, looked for before others find them."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from ..ascent import State, Verdict, ZeroGradient
from ..attacks import Attack
from ..contract import Model, evaluating, modules_of
from ..goals import Goal, Untargeted, cross_entropy, margin
from ..gradients import Exact
from ..threat import Ball
from .accuracy import correct, predict
from .worst_case import worst_case

MANY = 0.05
"""The fraction of images from which on something is worth a finding."""


@dataclass(frozen=True)
class Finding:
    """A reason to doubt an evaluation.

    Attributes:
        name: of the check.
        message: what was seen, what it means and what to do.
        numbers: what shows it.
    """

    name: str
    message: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in self.numbers.items())
        return f"{self.name}: {self.message} ({shown})"


def lint(
    model: Model,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    others: Mapping[str, Attack] | None = None,
    *,
    generator: Generator | None = None,
) -> list[Finding]:
    """Look for signs that an attack's failure is the attack's fault.

    A robust accuracy only says that this attack failed. Defences have been published whose gradients were merely
    hidden, and fell to attacks that noticed (Athalye et al. 2018, who list the signs in section 3.1). The checks are
    those that a program can make of Carlini et al. (2019) and of the flags that AutoAttack raises (Croce & Hein 2020):

    - `probabilities`: the model returns a softmax, whose gradients vanish and on which losses mean something else.
    - `random`: the same images get different answers.
    - `zero gradient`: the loss of the attack, or the margin, is flat at many images.
    - `single step`: one step of the attack breaks more than all of them.
    - `more steps`: twice as many steps break fewer.
    - `few steps`: twice as many steps break more, so it had not converged.
    - `unbounded`: without a limit on the distance it does not break everything, though it has more than one step.
    - `beaten`: 50 random corners of the ball, which take no gradient, or `others` break images that it left.
    - `scaled logits`: climbing the margin breaks more than climbing the attack's own loss.

    Two runs are compared image by image: one breaks more if the difference exceeds two standard deviations of the
    coins that decide between them, and 5 % of the images. So a hundred images tell much more than twenty. To be
    beaten takes two images, and 2 % of them.

    The cost is about that of five runs of the attack (one as it is, one of twice the steps, one without limit, one with
    the margin) and of one step, five passes forward, two forward and backward, and 50 forward on the images it left.
    A check that does not fit the attack, because it has no `steps` or no `loss`, is left out. Of a minimum-norm attack,
    which has no `ball`, only its failures are looked at.

    Args:
        model: maps images to logits (N, K).
        attack: the one whose result is in doubt.
        x: clean images (N, ...) in [0, 1].
        y: their labels (N,), int64. Images that the model gets wrong are left out.
        others: attacks that should not be able to do what `attack` cannot, above all those that see less of the model.
        generator: handed to all attacks; by default each has its own private one, seeded 0.

    Returns:
        What was found, nothing if there is nothing to worry about.

    Raises:
        ValueError: if images, labels or the model's answers are not as an attack demands them, if the model gets every
            image wrong, or if it has no gradient at all.

    Example:
        >>> from advcourse.attacks import PGD
        >>> from advcourse.threat import Linf
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[900.0, 0.0], [0.0, 900.0]]))
        >>> x, y = torch.tensor([[0.6, 0.4], [0.3, 0.5]]), torch.tensor([0, 1])
        >>> for finding in lint(model, PGD(Linf(0.15), random_start=False), x, y):
        ...     print(finding.name, finding.numbers)
        zero gradient {'of cross_entropy': 1.0, 'of margin': 0.0}
        unbounded {'still right': 1.0}
        beaten {'left by the attack': 2, 'then broken by random corners': 2}
    """
    right = correct(model, x, y)
    if not right.any():
        raise ValueError(
            "the model gets every image wrong, there is nothing to attack: look at the labels and at how it normalises"
        )
    trial = _Trial(model, attack, x[right], y[right], generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradient)  # it becomes a finding
        return [
            *_probabilities(trial),
            *_random(trial),
            *_zero_gradient(trial),
            *_steps(trial),
            *_unbounded(trial),
            *_beaten(trial, others or {}),
            *_scaled_logits(trial),
        ]


@dataclass(frozen=True)
class _Trial:
    """An attack on images (N, ...) that the model gets right."""

    model: Model
    attack: Attack
    x: Tensor
    y: Tensor
    generator: Generator | None

    @cached_property
    def logits(self) -> Tensor:
        return predict(self.model, self.x)

    @cached_property
    def broken(self) -> Tensor:
        return self.broken_by()

    def broken_by(self, **changes: object) -> Tensor:
        attack = replace(self.attack, **changes)  # type: ignore[type-var]
        return ~correct(self.model, attack(self.model, self.x, self.y, generator=self.generator), self.y)

    def has(self, name: str) -> bool:
        return name in {each.name for each in fields(self.attack)}  # type: ignore[arg-type]

    def beyond_noise(self, more: Tensor, less: Tensor) -> bool:
        gained, lost = int((more & ~less).sum()), int((less & ~more).sum())
        return gained - lost > max(2 * (gained + lost) ** 0.5, MANY * len(self.x))


def _fraction(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)


def _compared(attack: Tensor, variant: Tensor, name: str) -> dict[str, float]:
    return {
        "broken by both": int((attack & variant).sum()),
        "only by the attack": int((attack & ~variant).sum()),
        f"only with {name}": int((variant & ~attack).sum()),
    }


def _probabilities(trial: _Trial) -> Iterator[Finding]:
    z = trial.logits
    if (z >= 0).all() and ((z.sum(1) - 1).abs() < 1e-2).all():
        yield Finding(
            "probabilities",
            "the model's outputs are probabilities and not logits: gradients of the losses vanish where it is sure; "
            "attack the network without its softmax",
            {"smallest": z.min().item(), "largest": z.max().item()},
        )


def _random(trial: _Trial) -> Iterator[Finding]:
    again, size = predict(trial.model, trial.x), trial.logits[trial.logits.isfinite()].abs().max().item()
    if not torch.allclose(again, trial.logits, rtol=0, atol=1e-4 * size):  # the rounding of parallel sums aside
        yield Finding(
            "random",
            "the same images got different answers: a step follows one draw and the next draw judges it; attack the "
            "average over many draws (expectation over transformation), and report accuracy over several",
            {"labels that changed": _fraction(again.argmax(1) != trial.logits.argmax(1))},
        )


def _zero_gradient(trial: _Trial) -> Iterator[Finding]:
    goal, rows = Untargeted(trial.y), torch.arange(len(trial.y), device=trial.y.device)
    flat = {}
    for loss in dict.fromkeys((getattr(trial.attack, "loss", cross_entropy), margin)):
        with evaluating(modules_of(trial.model)):
            slope = Exact(trial.model, loss, goal)(trial.x, rows)
        flat[f"of {getattr(loss, '__name__', loss)}"] = _fraction(slope.flat)
    if max(flat.values()) >= MANY:
        yield Finding(
            "zero gradient",
            "the gradient is exactly zero at many images, so an attack that follows it stands still: try loss=margin, "
            "look for rounding, thresholds and saturation in the model, and replace what has no slope on the way back",
            flat,
        )


def _steps(trial: _Trial) -> Iterator[Finding]:
    if not trial.has("steps") or not trial.has("ball"):
        return
    steps: int = trial.attack.steps  # type: ignore[attr-defined]
    single = trial.broken_by(steps=1) if steps > 1 else trial.broken
    if trial.beyond_noise(single, trial.broken):
        yield Finding(
            "single step",
            "one step breaks more than many: gradients lead the small steps astray; try larger steps, restarts and "
            "attacks without a gradient",
            _compared(trial.broken, single, "one step"),
        )
    twice = trial.broken_by(steps=2 * steps)
    numbers = _compared(trial.broken, twice, "twice the steps")
    if trial.beyond_noise(trial.broken, twice):
        yield Finding(
            "more steps",
            "twice the steps break fewer images: gradients lead astray; try larger steps, restarts and attacks without "
            "a gradient",
            numbers,
        )
    if trial.beyond_noise(twice, trial.broken):
        yield Finding(
            "few steps",
            "twice the steps break more images: the attack had not converged; double the steps until it makes no "
            "difference",
            numbers,
        )


def _unbounded(trial: _Trial) -> Iterator[Finding]:
    left = ~trial.broken
    if trial.has("ball"):
        if getattr(trial.attack, "steps", 1) == 1 or not left.any():
            return
        ball: Ball = trial.attack.ball  # type: ignore[attr-defined]
        whole = ball.norm(torch.ones_like(trial.x[:1])).item()  # every image may become any other
        left = ~trial.broken_by(ball=replace(ball, eps=whole))
    if _fraction(left) >= MANY:
        yield Finding(
            "unbounded",
            "without a limit on the distance the attack still fails, where success is certain: it does not work on "
            "this model, or with this step size; its result says nothing about robustness",
            {"still right": _fraction(left)},
        )


@dataclass(frozen=True, repr=False)
class _Corners(Attack):
    """As far as the ball goes, in random directions: what an attacker can do who sees nothing but the verdict."""

    ball: Ball
    points: int = 50

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        state = State.before(x)
        for _ in range(self.points):
            rows = (~state.success).nonzero().squeeze(1)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            point = self.ball.project(x + self.ball.eps * self.ball.steepest(noise), x)[rows]
            logits = predict(model, point)
            verdict = Verdict(margin(logits, goal[rows]).to(x.dtype), goal[rows].fooled(logits.argmax(1)))
            state = state.met(rows, point, verdict, verdict.loss >= state.best_loss[rows])
            yield state
            if state.success.all():
                return


def _beaten(trial: _Trial, others: Mapping[str, Attack]) -> Iterator[Finding]:
    if not trial.has("ball") or trial.broken.all():
        return
    ball: Ball = trial.attack.ball  # type: ignore[attr-defined]
    left = ~trial.broken
    attacks = {"random corners": _Corners(ball), **others}
    report = worst_case(trial.model, attacks, trial.x[left], trial.y[left], ball, generator=trial.generator)
    broken = {row.name: row.broken for row in report.rows if row.broken > max(1, 0.02 * len(trial.x))}
    if broken:
        yield Finding(
            "beaten",
            "attacks that see less, or others in the same ball, break images that this one left: its gradient is "
            "misleading, or it is too weak; report the worst case over all of them",
            {"left by the attack": int(left.sum()), **{f"then broken by {name}": n for name, n in broken.items()}},
        )


def _scaled_logits(trial: _Trial) -> Iterator[Finding]:
    if not trial.has("loss") or not trial.has("ball") or trial.attack.loss is margin:  # type: ignore[attr-defined]
        return
    other = trial.broken_by(loss=margin)
    if trial.beyond_noise(other, trial.broken):
        yield Finding(
            "scaled logits",
            "the same attack breaks more by climbing the margin: the logits are so large, or so shaped, that its own "
            "loss is nearly flat; use loss=margin, or a loss that does not depend on the scale",
            _compared(trial.broken, other, "the margin"),
        )
