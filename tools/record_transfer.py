"""Runs the transfer experiments of chapters 8 and 9 at full length and keeps every verdict, with where it came from.

    python tools/record_transfer.py [EXPERIMENT ...]        (those without a file, when none is named)

It can be interrupted and run again: finished pieces are kept. Two cores can do some experiments each.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advcourse import data, models
from advcourse.attacks import Transfer
from advcourse.evaluation import record_transfer
from advcourse.evaluation.recording import FOLDER
from advcourse.goals import FromTo, Loss, cross_entropy, logit, po_trip
from advcourse.gradients import RAP, Momentum, Normalization, TranslationKernel
from advcourse.threat import Linf
from advcourse.training.snapshots import snapshots

FOUND = "MI+RAP, 0.5 eps, start 50"  # by the search of chapter 9
FAMILIES = "cnn", "resnet", "vgg", "densenet", "inception"


@dataclass(frozen=True)
class Experiment:
    """Which attacks, on whom, with which images, and after how many steps to look."""

    attacks: Mapping[str, Transfer]
    targets: Callable[[], dict[str, nn.Module]]
    images: Callable[[], tuple[Tensor, Tensor]]
    at: Sequence[int]
    surrogates: Sequence[str] | Callable[[], dict[str, nn.Module]] = ()  # targets' names, all when empty
    targeted: bool = False
    seeds: Sequence[int] = (0,)
    radii: Sequence[float] = ()
    batch_size: int = 120


def fashion() -> dict[str, nn.Module]:
    return {name: models.load(name) for name in FAMILIES}


def lite() -> dict[str, nn.Module]:
    return {f"efficientnet_lite{size}": models.efficientnet_lite(size) for size in range(3)}


def disturbed() -> dict[str, nn.Module]:
    """Two networks, and each with noise on its weights, with numbers erased, and as it wanders along SGD."""
    x, y = data.fashion_mnist("train", n=2000)
    found: dict[str, nn.Module] = {}
    for name in "resnet", "vgg":
        network = models.load(name)
        found |= {
            name: network,
            f"{name}, noise": models.ParameterNoise(network, 0.1),
            f"{name}, ghosts": models.Ghost(network, 0.02),
            f"{name}, snapshots": models.Rotation(snapshots(network, x, y, epochs=5, per_epoch=4)),
        }
    return found


def half(which: int, n: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The first n test images of one half: settings are looked for in half 0 and judged in half 1."""

    def images() -> tuple[Tensor, Tensor]:
        x, y = data.fashion_mnist("test")
        rows = slice(1000 * which, 1000 * which + n)
        return x[rows], y[rows]

    return images


def with_rap(attack: Transfer, eps: float, steps: int, start: int) -> Transfer:
    """The attack with a RAP where `Transfer.named` has it: within momentum and kernel, around all else."""
    outer = sum(isinstance(part, (Momentum, Normalization, TranslationKernel)) for part in attack.parts)
    return replace(attack, parts=(*attack.parts[:outer], RAP(eps, steps, start=start), *attack.parts[outer:]))


def grid(name: str, eps: float, steps: int, loss: Loss) -> dict[str, Transfer]:
    """The attack itself, then with RAP at several radii, from the first step and from a quarter of them on."""
    base = Transfer.named(name, Linf(eps), steps=steps, loss=loss)
    return {name: base} | {
        f"{name}+RAP, {share:g} eps, start {start}": with_rap(base, share * eps, 4, start)
        for share in (0.125, 0.25, 0.5, 1.0)
        for start in (0, steps // 4)
    }


def late_starts(
    name: str, eps: float, step_size: float, steps: int, rap_eps: float, **settings: Any
) -> dict[str, Transfer]:
    """An attack, the same with RAP from the first step, and from a quarter of the steps on."""
    base = Transfer.named(name, Linf(eps), steps=steps, step_size=step_size, **settings)
    return {
        name: base,
        f"{name}+RAP": with_rap(base, rap_eps, 4, 0),
        f"{name}+RAP-LS": with_rap(base, rap_eps, 4, steps // 4),
    }


def ladder(eps: float, step_size: float) -> dict[str, Transfer]:
    """Each idea alone on top of momentum, then together; ten steps, as published."""
    names = "I", "MI", "NI", "MDI", "MTI", "MSI", "MAI", "MVI", "MTDI", "MTDSI"
    return {name: Transfer.named(name, Linf(eps), step_size=step_size) for name in names}


def losses(name: str, eps: float, step_size: float, batch_size: int) -> dict[str, Transfer]:
    """The three targeted losses of Zhao et al. (2021) at their 300 steps."""
    named = {"CE": cross_entropy, "Po+Trip": po_trip, "logit": logit}
    return {
        key: Transfer.named(name, Linf(eps), steps=300, step_size=step_size, loss=loss, batch_size=batch_size)
        for key, loss in named.items()
    }


EXPERIMENTS: dict[str, Experiment] = {
    "rap_search": Experiment(
        grid("MI", 0.06, 200, cross_entropy), fashion, half(0, 120), (10, 50, 200), ("resnet", "inception")
    ),
    "rap_steps": Experiment(
        {
            f"T = {steps}": with_rap(Transfer.named("MI", Linf(0.06), steps=200), 0.03, steps, 50)
            for steps in (1, 2, 8)  # 4 is in the search
        },
        fashion,
        half(0, 120),
        (200,),
        ("resnet",),
    ),
    "rap_report": Experiment(  # what the search found, on images and surrogates that it did not see
        {key: attack for key, attack in grid("MI", 0.06, 200, cross_entropy).items() if key in ("MI", FOUND)},
        fashion,
        half(1, 133),
        (10, 50, 200),
        ("cnn", "vgg", "densenet"),
        seeds=(0, 1),
    ),
    "rap_table": Experiment(
        late_starts("MTDI", 0.1, 0.01, 100, 0.05, loss=logit)
        | late_starts("MTDSI", 0.1, 0.01, 100, 0.05, loss=logit)
        | late_starts("MTDAI", 0.1, 0.01, 100, 0.05, loss=logit),
        fashion,
        half(1, 66),
        (100,),
        ("resnet",),
        targeted=True,
    ),
    "ladder": Experiment(ladder(0.06, 0.006), fashion, half(1, 133), (10,)),
    "noise": Experiment(
        {"MI": Transfer.named("MI", Linf(0.06), steps=50, step_size=0.006)},
        fashion,
        half(1, 200),
        (10, 20, 50),
        disturbed,
        batch_size=300,
    ),
    "losses": Experiment(losses("MTDI", 0.1, 0.01, 128), fashion, half(1, 133), (20, 100, 300), targeted=True),
    **{
        f"rap_imagenet_{eps}": Experiment(
            late_starts("MI", eps / 255, eps / 8 / 255, 40, eps / 255, batch_size=20),
            lite,
            data.imagenet_samples,
            (10, 20, 40),
            batch_size=20,
            radii=[eps / 255 * k / 8 for k in range(9)] if eps == 16 else [],
        )
        for eps in (4, 8, 16)
    },
    "rap_imagenet_again": Experiment(  # another seed of RAP's random starts; nothing in MI is random
        {"MI+RAP-LS": late_starts("MI", 8 / 255, 1 / 255, 40, 8 / 255, batch_size=20)["MI+RAP-LS"]},
        lite,
        data.imagenet_samples,
        (10, 20, 40),
        seeds=(1,),
        batch_size=20,
    ),
    "losses_imagenet": Experiment(
        losses("MTDI", 16 / 255, 2 / 255, 20),
        lite,
        data.imagenet_samples,
        (20, 100, 300),
        ("efficientnet_lite0",),
        targeted=True,
        batch_size=20,
    ),
}


def run(name: str) -> None:
    experiment = EXPERIMENTS[name]
    x, y = experiment.images()
    targets = experiment.targets()
    goal = None
    if experiment.targeted:
        classes = next(iter(targets.values()))(x[:1]).shape[1]
        drawn = torch.randint(classes - 1, y.shape, generator=torch.Generator().manual_seed(0))
        goal = FromTo(drawn + (drawn >= y), source=y)
    chosen = experiment.surrogates
    surrogates = chosen() if callable(chosen) else {key: targets[key] for key in chosen or targets}
    recorded = record_transfer(
        FOLDER / f"{name}.json",
        experiment.attacks,
        surrogates,
        targets,
        x,
        y,
        goal,
        at=experiment.at,
        seeds=experiment.seeds,
        radii=experiment.radii,
        batch_size=experiment.batch_size,
    )
    print(f"{name}\n{recorded}")


def main(names: list[str]) -> None:
    for name in names or [name for name in EXPERIMENTS if not Path(FOLDER / f"{name}.json").exists()]:
        run(name)


if __name__ == "__main__":
    main(sys.argv[1:])
