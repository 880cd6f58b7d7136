"""What is crafted on one model, tried on others."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ..attacks import Attack
from ..contract import Model, check_goal, check_images
from ..goals import Goal, Untargeted
from .accuracy import correct, predict, wilson_interval


@dataclass(frozen=True)
class TransferMatrix:
    """Who is fooled by what was crafted on whom.

    Attributes:
        surrogates: names of the rows.
        targets: names of the columns.
        fooled: bool (rows, columns, M), for the images that were attacked.
        images: which of the given ones these are (M,), int64: those that every model gets right.
    """

    surrogates: tuple[str, ...]
    targets: tuple[str, ...]
    fooled: Tensor
    images: Tensor

    @property
    def rate(self) -> Tensor:
        """The fraction fooled (rows, columns)."""
        return self.fooled.double().mean(2)

    def interval(self, surrogate: str, target: str) -> tuple[float, float]:
        """The 95 % interval of one entry (Wilson)."""
        row = self.fooled[self.surrogates.index(surrogate), self.targets.index(target)]
        return wilson_interval(int(row.sum()), len(row))

    def __str__(self) -> str:
        width = max(map(len, (*self.surrogates, "from / to")))
        head = f"{'from / to':{width}}" + "".join(f"  {name:>{max(5, len(name))}}" for name in self.targets)
        lines = [
            f"{name:{width}}"
            + "".join(f"  {100 * v:{max(5, len(to))}.1f}" for to, v in zip(self.targets, row, strict=True))
            for name, row in zip(self.surrogates, self.rate.tolist(), strict=True)
        ]
        return "\n".join([head, *lines, f"% of {self.fooled.shape[2]} images that all models get right"])


def transfer_matrix(
    attack: Attack,
    surrogates: Mapping[str, Model],
    targets: Mapping[str, Model],
    x: Tensor,
    y: Tensor,
    goal: Goal | None = None,
    *,
    generator: Generator | None = None,
) -> TransferMatrix:
    """Craft on each surrogate and try on every target, with the images that all of them get right.

    Args:
        attack: as a rule a `Transfer`; one that stops where the surrogate gives in transfers badly.
        surrogates: whose gradients may be used, by name.
        targets: who is to be fooled.
        x: images (N, ...) in [0, 1].
        y: their labels (N,).
        goal: what counts as fooled, of all N images; by default any label but y.
        generator: of the attack's randomness, which starts from the same state for every surrogate; by default a
            private one seeded 0.

    Raises:
        ValueError: if there are no models, or no image is right with all of them.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.attacks import Transfer
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=40)
        >>> zoo = {name: models.load(name) for name in ("cnn", "resnet")}
        >>> matrix = transfer_matrix(Transfer.named("MI", Linf(0.1)), zoo, zoo, x, y)
        >>> bool(matrix.rate.diagonal().min() > 0.9), matrix.fooled.shape == (2, 2, len(matrix.images))
        (True, True)
    """
    if not surrogates or not targets:
        raise ValueError("a transfer matrix needs at least one surrogate and one target")
    check_images(x)
    wanted = check_goal(Untargeted(y) if goal is None else goal, x)
    images = right_everywhere({**surrogates, **targets}, x, y)
    state = None if generator is None else generator.get_state()
    chosen, aim = x[images], wanted[images]
    rows = []
    for model in tqdm(surrogates.values(), desc="surrogates", leave=False, disable=None):
        if generator is not None and state is not None:
            generator.set_state(state)
        crafted = attack(model, chosen, aim, generator=generator)
        rows.append(torch.stack([aim.fooled(predict(target, crafted).argmax(1)) for target in targets.values()]))
    return TransferMatrix(tuple(surrogates), tuple(targets), torch.stack(rows), images)


def right_everywhere(models: Mapping[str, Model], x: Tensor, y: Tensor, batch_size: int = 512) -> Tensor:
    """Which images every model labels y: their indices (M,), int64, ascending.

    Raises:
        ValueError: if there are none, or images, labels or answers are not as an attack demands them.
    """
    check_images(x)
    check_goal(Untargeted(y), x)
    pairs = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    right = torch.stack([torch.cat([correct(model, *pair) for pair in pairs]) for model in models.values()])
    images = right.all(0).nonzero().squeeze(1)
    if len(images) == 0:
        raise ValueError(f"none of {len(x)} images is classified correctly by every model")
    return images
