"""The worst of several attacks, image by image."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Generator, Tensor

from ..attacks import APGD, Attack, Square
from ..attacks.base import own_copy
from ..contract import Model, check_images
from ..files import write_whole
from ..goals import Untargeted, dlr, margin
from ..threat import Ball
from .accuracy import correct, predict, wilson_interval
from .fingerprint import described, fingerprint


@dataclass(frozen=True)
class Row:
    """What one attack added.

    Attributes:
        name: of the attack.
        attack: the attack itself, as `repr` writes it.
        attacked: how many images it was shown: those that were right and withstood all attacks before it.
        broken: how many of these it broke.
        robust_accuracy: the fraction of all images that are still right after it.
    """

    name: str
    attack: str
    attacked: int
    broken: int
    robust_accuracy: float


@dataclass(frozen=True, eq=False)
class Report:
    """The outcome of `worst_case` on N images. Printed, it is a table in markdown.

    Attributes:
        ball: in which images count; None if all do.
        rows: one for each attack, in the order they ran.
        x_adv: the worst image found for each (N, ...): the adversarial one; where none was found, the attempt that came
            nearest, by its margin; the clean image where the model was wrong to start with, or no attempt lay in the
            ball. The model's accuracy on `x_adv` is the robust accuracy.
        broken_by: which row broke the image (N,), int64; -1 where none did.
        held: the images that were right and withstood every attack, bool (N,). An image neither held nor broken was
            wrong to start with.
    """

    ball: Ball | None
    rows: tuple[Row, ...]
    x_adv: Tensor = field(repr=False)
    broken_by: Tensor = field(repr=False)
    held: Tensor = field(repr=False)

    @property
    def clean_accuracy(self) -> float:
        """The fraction of images that are right before any attack."""
        return _fraction(self.held | (self.broken_by >= 0))

    @property
    def robust_accuracy(self) -> float:
        """The fraction of images that are right after every attack, an upper bound on what the model withstands."""
        return _fraction(self.held)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the robust accuracy against these attacks, because N is small (`wilson_interval`)."""
        return wilson_interval(int(self.held.sum()), len(self.held))

    def as_dict(self) -> dict[str, Any]:
        """All but the images, for JSON; `broken_by` holds names."""
        names = [row.name for row in self.rows]
        return {
            "images": len(self.held),
            "ball": None if self.ball is None else repr(self.ball),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "interval": list(self.interval),
            "attacks": [asdict(row) for row in self.rows],
            "broken_by": [names[i] if i >= 0 else None for i in self.broken_by.tolist()],
            "held": self.held.tolist(),
        }

    def __str__(self) -> str:
        width = max(map(len, ["no attack", *(row.name for row in self.rows)]))
        lines = [
            f"| {'attack':{width}} | attacked | broken | robust accuracy |",
            f"|:{'-' * width}-|---------:|-------:|----------------:|",
            f"| {'no attack':{width}} | {'':8} | {'':6} | {self.clean_accuracy:15.1%} |",
            *(
                f"| {row.name:{width}} | {row.attacked:8} | {row.broken:6} | {row.robust_accuracy:15.1%} |"
                for row in self.rows
            ),
        ]
        low, high = self.interval
        where = "" if self.ball is None else f" inside {type(self.ball).__name__}({self.ball.eps:.3g})"
        return "\n".join(lines) + (
            f"\n\nAt most {self.robust_accuracy:.1%} of {len(self.held)} images withstand{where} "
            f"(95 % interval for these attacks: {low:.1%} to {high:.1%}); a stronger attack may break more."
        )

    def _repr_markdown_(self) -> str:
        return str(self)


def worst_case(
    model: Model,
    attacks: Mapping[str, Attack],
    x: Tensor,
    y: Tensor,
    ball: Ball | None = None,
    *,
    generator: Generator | None = None,
    checkpoint: str | Path | None = None,
) -> Report:
    """Robust accuracy against the worst of several attacks: an image withstands if it withstands each of them.

    This is how AutoAttack reports (Croce & Hein 2020). An attack only sees the images that are right and that no
    earlier one has broken, so cheap attacks first saves time; for deterministic attacks the order changes nothing else.
    What an attack returns is judged afresh, by one forward pass.

    Args:
        model: maps images to logits (N, K).
        attacks: by name, in the order they run.
        x: clean images (N, ...) in [0, 1].
        y: their labels (N,), int64.
        ball: an image counts as broken only if what was found lies in this ball around it, up to rounding. That is how
            minimum-norm attacks take part, and what catches an attack of another radius. By default everything counts.
        generator: handed to each attack in turn; by default each has its own private one, seeded 0.
        checkpoint: a file that is written after each attack and removed at the end. The same call goes on from it.

    Raises:
        ValueError: if images, labels or the model's answers are not as an attack demands them, if what an attack
            returns is no image, or if the checkpoint is of another evaluation.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.attacks import FGSM, PGD
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=50)
        >>> ball = Linf(0.05)
        >>> report = worst_case(models.load("cnn"), {"FGSM": FGSM(ball), "PGD": PGD(ball, steps=20)}, x, y, ball)
        >>> report.rows[1].attacked == report.rows[0].attacked - report.rows[0].broken
        True
        >>> report.robust_accuracy <= report.rows[0].robust_accuracy <= report.clean_accuracy
        True
    """
    if not isinstance(attacks, Mapping):
        raise ValueError(f"attacks must be named, as in {{'PGD': PGD(ball)}}, got {type(attacks).__name__}")
    held = correct(model, x, y)
    x_adv, broken_by = own_copy(x), torch.full_like(y, -1)
    nearest = x.new_full(x.shape[:1], -math.inf)
    rows: list[Row] = []
    if checkpoint:
        checkpoint, known = Path(checkpoint), {"x_adv": x_adv, "nearest": nearest, "broken_by": broken_by, "held": held}
        sought = {
            "ball": repr(ball),
            "images or model": fingerprint(model, x, y, held),
            "generator": None if generator is None else fingerprint(generator.get_state()),
        }
        texts = described(attacks)
        if checkpoint.exists():
            rows = _resumed(checkpoint, sought, texts, known, generator)
    for name, attack in list(attacks.items())[len(rows) :]:
        left = held.nonzero().squeeze(1)
        if len(left):
            goal = Untargeted(y[left])
            tried = attack(model, x[left], goal.labels, generator=generator)
            check_images(tried)
            logits = predict(model, tried, goal=goal)
            lead = margin(logits, goal).to(nearest.dtype)
            counts = torch.ones_like(held[left]) if ball is None else _inside(ball, tried, x[left])
            broken = counts & goal.fooled(logits.argmax(1))
            better = broken | (counts & (lead > nearest[left]))
            x_adv[left[better]], nearest[left[better]] = tried[better], lead[better]
            broken_by[left[broken]], held[left[broken]] = len(rows), False
        now = held.nonzero().squeeze(1)
        rows.append(Row(name, repr(attack), len(left), len(left) - len(now), _fraction(held)))
        if checkpoint:
            state = known if generator is None else known | {"generator": generator.get_state()}
            done = {"sought": json.dumps(sought), "rows": json.dumps([astuple(row) for row in rows])}
            write_whole(checkpoint, save_tensors({key: value.cpu() for key, value in state.items()}, done))
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return Report(ball, tuple(rows), x_adv, broken_by, held)


def auto_attack(ball: Ball) -> dict[str, Attack]:
    """The attacks of AutoAttack (Croce & Hein 2020), for `worst_case`: nothing in them is tuned to a model.

    APGD on the cross-entropy, APGD on the DLR loss towards each of the nine likeliest wrong labels, and Square with
    5,000 queries, in this order. The fourth attack of the published ensemble, targeted FAB, is left out; after these
    three it seldom finds anything.

    Args:
        ball: where the attacks stay; Square needs `Linf` or `L2`.

    Example:
        >>> from advcourse.threat import Linf
        >>> list(auto_attack(Linf(8 / 255)))
        ['apgd', 'apgd-t', 'square']
    """
    return {"apgd": APGD(ball), "apgd-t": APGD(ball, loss=dlr, targets=9), "square": Square(ball, steps=5000)}


def _resumed(
    checkpoint: Path,
    sought: dict[str, str | None],
    attacks: Mapping[str, str],
    known: dict[str, Tensor],
    generator: Generator | None,
) -> list[Row]:
    """The rows of a checkpoint; its tensors go into those that are known."""
    try:
        with safe_open(checkpoint, "pt") as file:
            there, rows = json.loads(file.metadata()["sought"]), json.loads(file.metadata()["rows"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint of an evaluation: remove it to start afresh") from error
    other = [key for key in sought if there.get(key) != sought[key]]
    if [tuple(row[:2]) for row in rows] != list(attacks.items())[: len(rows)]:
        other.append("attacks")
    if other:
        raise ValueError(f"{checkpoint} is of an evaluation with other {', '.join(other)}: remove it to start afresh")
    for key, value in known.items():
        value.copy_(state[key])
    if generator is not None:
        generator.set_state(state["generator"])
    return [Row(*row) for row in rows]


def _inside(ball: Ball, tried: Tensor, x: Tensor) -> Tensor:
    # Each feature may be off by the rounding of a number near 1.
    rounding = torch.full_like(x[:1], torch.finfo(x.dtype).eps / 2).double()
    distance = ball.norm(tried.double() - x.double())
    return distance * (1 - 1e-14) <= ball.eps + ball.norm(rounding)  # a norm is rounded, too


def _fraction(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)
