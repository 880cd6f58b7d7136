"""What happened in a training, epoch by epoch."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        passes: forward and backward passes for each image.
        seconds: of training, on the clock, without the validation.
        loss: the mean of what was minimised.
        accuracy: on the images that were trained on, the adversarial ones, before each update.
        learning_rate: of the last update.
        clean_accuracy: on the validation images; None if there are none.
        robust_accuracy: on the validation images under attack; None if there are none, or no attack.
        remark: what a monitor said.
    """

    epoch: int
    passes: int
    seconds: float
    loss: float
    accuracy: float
    learning_rate: float
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    remark: str = ""

    @property
    def summary(self) -> str:
        """The loss and the accuracies in one line."""
        known = {"robust": self.robust_accuracy, "clean": self.clean_accuracy, "training": self.accuracy}
        words = [f"{key} {value:.1%}" for key, value in known.items() if value is not None]
        return ", ".join([*words, f"loss {self.loss:.3f}"])


@dataclass(frozen=True)
class History:
    """The epochs of a training. ``history[-1]`` is the last one, and a loop runs over them.

    Attributes:
        planned: how many epochs were asked for.
        epochs: those that were made, fewer if a monitor ended the training.
        kept: the number of the epoch whose weights the network has in the end; None until then.

    Example:
        >>> history = History(2).followed_by(Epoch(1, 2, 0.5, 1.0, 0.6, 0.1, robust_accuracy=0.4))
        >>> history.best.epoch, history.complete, history.passes
        (1, False, 2)
    """

    planned: int
    epochs: tuple[Epoch, ...] = ()
    kept: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    def followed_by(self, epoch: Epoch) -> Self:
        """The history with one epoch more."""
        return replace(self, epochs=(*self.epochs, epoch))

    @property
    def complete(self) -> bool:
        """Whether all the epochs were made."""
        return len(self) >= self.planned

    @property
    def best(self) -> Epoch:
        """The first epoch of highest robust accuracy on the validation images, or clean accuracy if nobody attacked."""

        def score(epoch: Epoch) -> float:
            return (epoch.clean_accuracy or 0.0) if epoch.robust_accuracy is None else epoch.robust_accuracy

        return max(self.epochs, key=score)

    @property
    def passes(self) -> int:
        """Forward and backward passes for each image, in all epochs."""
        return sum(epoch.passes for epoch in self)

    @property
    def seconds(self) -> float:
        """Seconds of training in all epochs."""
        return sum(epoch.seconds for epoch in self)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> Self:
        """The history that `as_dict` wrote."""
        return cls(known["planned"], tuple(Epoch(**epoch) for epoch in known["epochs"]), known["kept"])

    def json_lines(self) -> str:
        """A line of JSON for each epoch."""
        return "".join(json.dumps(asdict(epoch)) + "\n" for epoch in self)

    def __str__(self) -> str:
        def percent(value: float | None) -> str:
            return "" if value is None else f"{value:.1%}"

        lines = [
            "| epoch | passes | seconds | rate | loss | accuracy | clean | robust |",
            "|------:|-------:|--------:|-----:|-----:|---------:|------:|-------:|",
        ]
        for epoch in self:
            cells = [f"{epoch.epoch}", f"{epoch.passes}", f"{epoch.seconds:.1f}", f"{epoch.learning_rate:.2g}"]
            cells += [f"{epoch.loss:.3f}", *map(percent, (epoch.accuracy, epoch.clean_accuracy, epoch.robust_accuracy))]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return str(self)
