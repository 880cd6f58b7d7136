"""Transfer experiments that take hours: done piece by piece, and kept in one small file with where they came from."""

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from .. import __version__
from ..ascent import State
from ..attacks import Attack
from ..contract import Model, check_goal, check_number
from ..files import ASSETS, experiment, write_whole
from ..goals import Goal, Untargeted
from .accuracy import predict
from .fingerprint import described, fingerprint
from .landscape import loss_change
from .transfer import right_everywhere

FOLDER = ASSETS / "transfer"

Unit = tuple[int, int, str, str]
"""The piece of work that is done whole or not at all, of a batch, a seed, an attack and a surrogate."""


@dataclass(frozen=True)
class Recorded:
    """What `record_transfer` found, as the file holds it.

    Attributes:
        settings: attacks by name, surrogates, targets, `at`, seeds, radii, the rows of the images that were attacked
            and, for a targeted goal, the labels sought; and the `fingerprint` of images and networks.
        provenance: command, commit, versions, processor, seconds of all pieces together.
        rows: one for each surrogate, attack and seed.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, path: Path) -> "Recorded":
        """Read a file that `record_transfer` wrote.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no such file.
        """
        try:
            document = json.loads(path.read_text())
            return cls(document["settings"], document["provenance"], tuple(document["rows"]))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no recorded transfer: {error!r}") from error

    @classmethod
    def bundled(cls, name: str) -> "Recorded":
        """One of the experiments that ship with the package, as `make experiments` wrote them down.

        Raises:
            ValueError: for an unknown name; the message lists what there is.

        Example:
            >>> Recorded.bundled("ladder").images
            120
        """
        return cls.load(experiment(FOLDER, name))

    @cached_property
    def images(self) -> int:
        """How many images were attacked."""
        return len(self.settings["images"])

    def fooled(self, surrogate: str, attack: str, target: str, step: int | None = None) -> Tensor:
        """Who was fooled after so many steps, or all: bool (S, N), a row for each seed.

        Raises:
            ValueError: if this was not recorded.
        """
        step = max(self.settings["at"]) if step is None else step
        rows = self._rows(surrogate, attack)
        if target not in self.settings["targets"] or step not in self.settings["at"]:
            raise ValueError(f"recorded are the targets {self.settings['targets']} after {self.settings['at']} steps")
        return torch.tensor([[bit == "1" for bit in row["fooled"][target][str(step)]] for row in rows])

    def rate(self, surrogate: str, attack: str, target: str, step: int | None = None) -> float:
        """The fraction fooled, over images and seeds."""
        return self.fooled(surrogate, attack, target, step).double().mean().item()

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of a surrogate and another network."""
        return [pair for pair in product(self.settings["surrogates"], self.settings["targets"]) if pair[0] != pair[1]]

    def by_image(self, attack: str, step: int | None = None) -> Tensor:
        """Each image's share of other networks fooled, over pairs and seeds (N,)."""
        return torch.stack([self.fooled(one, attack, other, step) for one, other in self.pairs]).double().mean((0, 1))

    def loss_change(self, surrogate: str, attack: str) -> Tensor:
        """How the surrogate's loss changes around what was crafted on it: the mean over images and seeds (R,)."""
        return torch.tensor([row["loss_change"] for row in self._rows(surrogate, attack)]).mean(0)

    def _rows(self, surrogate: str, attack: str) -> list[dict[str, Any]]:
        rows = [row for row in self.rows if (row["surrogate"], row["attack"]) == (surrogate, attack)]
        if not rows:
            known = f"{', '.join(self.settings['surrogates'])}; {', '.join(self.settings['attacks'])}"
            raise ValueError(f"{attack} on {surrogate} was not recorded; recorded are {known}")
        return rows

    def __str__(self) -> str:
        """Tables for reading: the fraction fooled after each number of steps, a line for each pair of networks."""
        at, names = self.settings["at"], list(self.settings["attacks"])
        table = [["", *names]]
        for one, other in product(self.settings["surrogates"], self.settings["targets"]):
            cells = ["/".join(f"{100 * self.rate(one, name, other, step):5.1f}" for step in at) for name in names]
            table.append([f"{one} → {other}", *cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in table]
        after = "/".join(map(str, at))
        return "\n".join([*lines, f"% of {self.images} images that all targets get right, after {after} steps"])


def record_transfer(
    path: Path,
    attacks: Mapping[str, Attack],
    surrogates: Mapping[str, Model],
    targets: Mapping[str, Model],
    x: Tensor,
    y: Tensor,
    goal: Goal | None = None,
    *,
    at: Sequence[int],
    seeds: Sequence[int] = (0,),
    radii: Sequence[float] = (),
    batch_size: int = 20,
    share: tuple[int, int] = (0, 1),
) -> Recorded | None:
    """Craft with each attack on each surrogate, try every target along the way, and keep the verdicts in a file.

    Of the images those are used that every target gets right. The work is cut into pieces, a batch of images for an
    attack, a surrogate and a seed, each of which is kept as soon as it is done, beside `path`. So the same call goes on
    where an earlier one was interrupted; and several processes or machines that see the same folder can do a share
    each: whoever completes the work puts the file together.

    Args:
        path: the file, JSON; what it holds is returned, if it is there already.
        attacks: by name, as a rule of `Transfer`.
        surrogates: whose gradients may be used, by name.
        targets: who is to be fooled, by name; as a rule the surrogates are among them, to see what became of those.
        x: images (N, ...) in [0, 1].
        y: their labels (N,).
        goal: what counts as fooled, of all N images; by default any label but y.
        at: after how many steps to look, ascending; the last is no more than the attacks make.
        seeds: of the attacks' randomness.
        radii: where `loss_change` looks around the result.
        batch_size: images in a piece; with a part that mixes images, such as `Admix`, it matters to the result.
        share: (i, n) does the i-th of n shares of the pieces.

    Returns:
        What was recorded; None if other shares are still to be done.

    Raises:
        ValueError: if the file or the pieces are of an experiment with other settings, `at` does not ascend or goes
            beyond the attacks' steps, an attack holds a lambda, or no image is right with all targets.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from advcourse import data, models
        >>> from advcourse.attacks import Transfer
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> zoo = {name: models.load(name) for name in ("cnn", "resnet")}
        >>> attacks = {"MI": Transfer.named("MI", Linf(0.1), steps=2)}
        >>> with TemporaryDirectory() as folder:
        ...     found = record_transfer(Path(folder) / "mi.json", attacks, zoo, zoo, x, y, at=[1, 2])
        >>> found.fooled("resnet", "MI", "cnn").shape == (1, found.images)
        True
    """
    if list(at) != sorted(set(at)) or not at or at[0] < 1:
        raise ValueError(f"at must be numbers of steps that ascend from 1 or more, got {list(at)}")
    check_number("batch_size", batch_size, 1)
    texts = described(attacks)
    wanted = check_goal(Untargeted(y) if goal is None else goal, x)
    images = right_everywhere(targets, x, y, batch_size)
    settings: dict[str, Any] = {
        "attacks": texts,
        "surrogates": list(surrogates),
        "targets": list(targets),
        "at": list(at),
        "seeds": list(seeds),
        "radii": list(radii),
        "batch_size": batch_size,
        "images": images.tolist(),
        "sought": None if isinstance(wanted, Untargeted) else wanted[images].labels.tolist(),
        "images or networks": fingerprint(x[images], y[images], *surrogates.values(), *targets.values()),
    }
    if path.exists():
        found = Recorded.load(path)
        _check_same(path, found.settings, settings)
        return found
    folder = path.with_suffix(".parts")
    head = folder / "settings.json"
    if head.exists():
        _check_same(head, json.loads(head.read_text()), settings)
    else:
        write_whole(head, json.dumps(settings).encode())

    batches = images.split(batch_size)
    units: list[Unit] = list(product(range(len(batches)), seeds, attacks, surrogates))
    todo = [unit for unit in units[share[0] :: share[1]] if not _part(folder, units, unit).exists()]
    with tqdm(total=len(todo) * at[-1], desc=path.stem, unit="step", disable=None) as bar:
        for unit in todo:
            batch, seed, attack, surrogate = unit
            rows = batches[batch]
            states = attacks[attack].iterates(
                surrogates[surrogate], x[rows], wanted[rows], generator=Generator(x.device).manual_seed(seed)
            )
            piece = _piece(states, surrogates[surrogate], targets, wanted[rows], at, radii, bar)
            write_whole(_part(folder, units, unit), json.dumps(piece).encode())
    return _gathered(path, folder, units, settings)


def _piece(
    states: Iterator[State],
    surrogate: Model,
    targets: Mapping[str, Model],
    goal: Goal,
    at: Sequence[int],
    radii: Sequence[float],
    bar: Any,
) -> dict[str, Any]:
    begun = time.perf_counter()
    fooled: dict[str, dict[int, str]] = {name: {} for name in targets}
    for state in states:
        bar.update(state.step > 0)
        if state.step in at:
            for name, target in targets.items():
                bits = goal.fooled(predict(target, state.x).argmax(1)).tolist()
                fooled[name][state.step] = "".join("01"[bit] for bit in bits)
    if state.step < at[-1]:
        raise ValueError(f"at ends with {at[-1]}, and an attack makes {state.step} steps")
    piece: dict[str, Any] = {"fooled": fooled, "seconds": time.perf_counter() - begun}
    if radii:
        piece["loss_change"] = loss_change(surrogate, state.x, goal, radii).sum(1).tolist()
    return piece


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    older = {"images or networks": here["images or networks"]}  # some files have no fingerprint
    other = [key for key in here if (older | there).get(key) != here[key]]
    if other:
        raise ValueError(f"{path} is of an experiment with other {', '.join(other)}: remove it, or write elsewhere")


def _part(folder: Path, units: list[Unit], unit: Unit) -> Path:
    return folder / f"{units.index(unit):06}.json"


def _gathered(path: Path, folder: Path, units: list[Unit], settings: dict[str, Any]) -> Recorded | None:
    """The pieces as one file, and the pieces removed, if all are there."""
    parts = [_part(folder, units, unit) for unit in units]
    try:
        pieces = dict(zip(units, (json.loads(part.read_text()) for part in parts), strict=True))
    except FileNotFoundError:  # another share is still at work, or has just put the file together
        return Recorded.load(path) if path.exists() else None
    rows = []
    for seed, attack, surrogate in dict.fromkeys(unit[1:] for unit in units):
        mine = [piece for unit, piece in pieces.items() if unit[1:] == (seed, attack, surrogate)]
        fooled = {
            target: {
                str(step): "".join(piece["fooled"][target][str(step)] for piece in mine) for step in settings["at"]
            }
            for target in settings["targets"]
        }
        row = {"surrogate": surrogate, "attack": attack, "seed": seed, "fooled": fooled}
        if settings["radii"]:
            total = torch.tensor([piece["loss_change"] for piece in mine]).sum(0) / len(settings["images"])
            row["loss_change"] = [round(value, 5) for value in total.tolist()]
        rows.append({**row, "seconds": round(sum(piece["seconds"] for piece in mine), 1)})
    seconds = sum(row["seconds"] for row in rows)
    document = {"settings": settings, "provenance": provenance() | {"seconds": round(seconds)}, "rows": rows}
    write_whole(path, json_by_row(document).encode())
    for part in [*parts, folder / "settings.json"]:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # another share is about to do the same
        folder.rmdir()
    return Recorded.load(path)


def provenance() -> dict[str, Any]:
    """Where a result comes from: the command, the commit, the versions and the processor."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git.stdout.strip() or None,
        "advcourse": __version__,
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def json_by_row(document: dict[str, Any]) -> str:
    """JSON of a document that ends with "rows", with a line for each of them, so that a change can be read.

    Example:
        >>> print(json_by_row({"seed": 0, "rows": [{"a": 1}, {"a": 2}]}), end="")
        {
         "seed": 0,
         "rows": [
          {"a": 1},
          {"a": 2}
         ]
        }
    """
    head = json.dumps(document | {"rows": []}, indent=1).removesuffix("]\n}")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in document["rows"])
    return f"{head}\n{rows}\n ]\n}}\n"
