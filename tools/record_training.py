"""Trains the networks of chapters 10 and 11 at full length and keeps what became of them, with where it came from.

    python tools/record_training.py [EXPERIMENT ...]        (all, when none is named)

Each training is kept as soon as it is done, and what is kept is not done again unless its settings have changed. It can
be interrupted at any moment: an unfinished training goes on from its last epoch.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from advcourse import data
from advcourse.attacks import FGSM, PGD
from advcourse.contract import Hyperparameters
from advcourse.evaluation import accuracy, robust_accuracy
from advcourse.evaluation.recording import json_by_row, provenance
from advcourse.files import write_whole
from advcourse.goals import Untargeted, cross_entropy, margin
from advcourse.gradients import Exact
from advcourse.models import small
from advcourse.threat import Linf
from advcourse.training import (
    NFGSM,
    SGD,
    TRADES,
    Constant,
    EarlyStopping,
    FastTraining,
    FreeTraining,
    GradAlign,
    History,
    Method,
    OneCycle,
    PGDTraining,
    Piecewise,
    Previous,
    Ramped,
    Standard,
    Uniform,
    Zero,
    train,
)
from advcourse.training.methods import Start
from advcourse.training.recorded import FOLDER

RUNS = Path(__file__).resolve().parent.parent / "runs" / "training"
VALIDATION = slice(11_500, 12_000)  # training images that nobody trains on: monitors look at them
CURVE = 300  # test images that are looked at after each epoch
TEST = 500  # test images that the end result is judged by


@dataclass(frozen=True, repr=False)
class Training(Hyperparameters):
    """All that decides about a training but its seed.

    Attributes:
        method, epochs, schedule: see `advcourse.training.train`.
        eps: radius of the ball in which the result is attacked.
        images: how many training images.
        batch_size: images in a step.
        width, batch_norm, hidden: of the network, see `advcourse.models.small`.
        adam: the optimizer, or else SGD with momentum.
        monitor: what may end it.
    """

    method: Method
    epochs: int
    eps: float
    schedule: Callable[[float], float] = field(default_factory=lambda: OneCycle(0.005))
    images: int = 8000
    batch_size: int = 64
    width: int = 16
    batch_norm: bool = False
    hidden: int = 100
    adam: bool = True
    monitor: Any = None


def look(network: nn.Module, ball: Linf, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracies, and how well the gradient at an image tells that at a random point of the ball around it."""
    goal, everyone = Untargeted(y), torch.arange(len(x))
    slope = Exact(network, cross_entropy, goal)
    there = ball.sample(x, torch.Generator().manual_seed(0))
    cosines = torch.cosine_similarity(
        slope(x, everyone).gradient.flatten(1), slope(there, everyone).gradient.flatten(1)
    )
    found = {
        "clean": accuracy(network, x, y),
        "fgsm": robust_accuracy(network, FGSM(ball), x, y),
        "pgd": robust_accuracy(network, PGD(ball, steps=10), x, y),
        "alignment": cosines.mean().item(),
    }
    return {key: round(value, 4) for key, value in found.items()}


def judge(network: nn.Module, ball: Linf, x: Tensor, y: Tensor) -> dict[str, float]:
    """The end result: without attack, under FGSM, under PGD with 50 steps and 2 restarts, and under 50 steps of PGD
    with the loss of Carlini & Wagner, as Madry et al. (2018) use it."""
    attacks = {
        "fgsm": FGSM(ball),
        "pgd": PGD(ball, steps=50, restarts=2),
        "cw": PGD(ball, steps=50, loss=margin),
    }
    found = {"clean": accuracy(network, x, y)}
    found |= {name: robust_accuracy(network, attack, x, y) for name, attack in attacks.items()}
    return {key: round(value, 4) for key, value in found.items()}


class Watch:
    """Looks at the network after each epoch, and at the processor's clock before. What it saw is on the disk before the
    next epoch begins."""

    def __init__(self, path: Path, see: Callable[[], dict[str, float]]) -> None:
        self.path, self.see, self.begun = path, see, time.process_time()
        self.seen: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, history: History) -> None:
        epoch = str(len(history))
        if epoch not in self.seen:  # or a resumed training shows where it was
            seconds = round(time.process_time() - self.begun, 2)
            self.seen[epoch] = self.see() | {"seconds": seconds}
            write_whole(self.path, json.dumps(self.seen).encode())
        self.begun = time.process_time()


def trained(training: Training, seed: int, run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Train, and go on where an interrupted run of that name has ended.

    Args:
        training: what to do.
        seed: of the weights and of all else.
        run: where its checkpoint is, without a suffix.

    Returns:
        The network, and what became of it: the passes and the processor's seconds, the epoch that was kept, the end
        result, and the epochs.
    """
    x, y = data.fashion_mnist("train")
    held_out, train_set = (x[VALIDATION], y[VALIDATION]), (x[: training.images], y[: training.images])
    x_test, y_test = data.fashion_mnist("test")
    ball = Linf(training.eps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = small(width=training.width, hidden=training.hidden, batch_norm=training.batch_norm)

    watch = Watch(run.with_suffix(".seen.json"), lambda: look(network, ball, x_test[:CURVE], y_test[:CURVE]))
    checkpoint = run.with_suffix(".pt")
    run.parent.mkdir(parents=True, exist_ok=True)
    monitor = training.monitor
    history = train(
        network,
        training.method,
        train_set,
        epochs=training.epochs,
        batch_size=training.batch_size,
        optimizer=torch.optim.Adam if training.adam else SGD,
        schedule=training.schedule,
        validation=held_out if monitor else None,
        attack=PGD(ball, steps=10) if monitor else None,
        monitors=[monitor] if monitor else [],
        checkpoint=checkpoint,
        logs=[watch],
        generator=torch.Generator().manual_seed(seed),
    )
    seen = [watch.seen[str(epoch.epoch)] for epoch in history]
    result = {
        "passes": history.passes,
        "seconds": round(sum(each["seconds"] for each in seen), 1),
        "kept": history.kept,
        "end": judge(network, ball, x_test[:TEST], y_test[:TEST]),
        "train_pgd": round(robust_accuracy(network, PGD(ball, steps=10), x[:CURVE], y[:CURVE]), 4),
        "loss": [round(epoch.loss, 4) for epoch in history],
        "accuracy": [round(epoch.accuracy, 4) for epoch in history],
        "seen": {key: [each[key] for each in seen] for key in seen[0]},
    }
    checkpoint.unlink(missing_ok=True)
    watch.path.unlink(missing_ok=True)
    return network, result


Experiment = Mapping[str, Training]
"""Trainings by label."""


def record(
    name: str, experiment: Experiment, seeds: Sequence[int], folder: Path = FOLDER, runs: Path = RUNS
) -> list[dict[str, Any]]:
    """Do what is not yet in the file and put it there, training by training. Rows of other settings are done again.

    Returns:
        The rows.
    """
    path = folder / f"{name}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in seeds:
        for label, training in experiment.items():
            settings = repr(training)
            if any(is_of(row, label, seed, settings) for row in known):
                continue
            slug = "".join(letter if letter.isalnum() else "-" for letter in f"{name}-{label}-{seed}")
            network, result = trained(training, seed, runs / slug)
            if (name, label, seed) in KEPT:
                weights = {key: value.half().contiguous() for key, value in network.state_dict().items()}
                write_whole(folder / KEPT[name, label, seed], save_tensors(weights))
            row = {"label": label, "seed": seed, "settings": settings, **result, "provenance": provenance()}
            known = [other for other in known if (other["label"], other["seed"]) != (label, seed)] + [row]
            write_whole(path, json_by_row({"rows": known}).encode())
            end = "  ".join(f"{key} {value:.1%}" for key, value in result["end"].items())
            print(f"{name}: {label}, seed {seed}: {result['passes']} passes, {result['seconds']} s, {end}", flush=True)
    return known


def is_of(row: dict[str, Any], label: str, seed: int, settings: str) -> bool:
    return (row["label"], row["seed"], row["settings"]) == (label, seed, settings)


BALL = Linf(0.3)
ANYWHERE = Uniform(clip=False)  # half of the pixels are black: a start that is clipped there is none for half of them
HIDDEN = 48  # a network whose weights take less than 200 kB


def fast(step: float, start: Start, **others: Any) -> Training:
    """FGSM training in the ball of 0.3, with a step of so many radii."""
    usual: dict[str, Any] = {"epochs": 15, "eps": BALL.eps, "hidden": HIDDEN}
    return Training(FastTraining(BALL, round(step * BALL.eps, 4), start), **usual | others)


def grown(method: Method, epochs: int, rate: float = 0.005, **others: Any) -> Training:
    """Any method in that ball, with a cyclic rate."""
    usual: dict[str, Any] = {"schedule": OneCycle(rate), "hidden": HIDDEN}
    return Training(method, epochs, BALL.eps, **usual | others)


def ramped(method: Method) -> Training:
    """Any method of a few passes in a ball that grows for five epochs.

    Of 48, 64, 100 and 128 hidden units, 64 left most validation images under PGD at 0.3, with a random start, a step of
    1.25 eps and seeds 2 and 3.
    """
    assert method.ball is not None
    return Training(Ramped(method, 5), 15, method.ball.eps, hidden=64)


EARLY = EarlyStopping(patience=5)
LESS = Linf(0.25)

EXPERIMENTS: dict[str, Experiment] = {
    # The eleven rows of Wong et al. (2020), Table 1, are in "starts", "stopped" and "long".
    "starts": {
        "zero": fast(1, Zero()),
        "random, 2 eps": fast(2, ANYWHERE),
        "random, 1.25 eps": fast(1.25, ANYWHERE),
        "random, 1 eps": fast(1, ANYWHERE),
        "previous": fast(1, Previous()),
        "random, 1.25 eps, clipped": fast(1.25, Uniform()),
    },
    # The easier ball of chapters 2 to 9.
    "methods": {
        "standard": Training(Standard(), 8, 0.1, images=4000),
        "Fast": Training(FastTraining(Linf(0.1), start=ANYWHERE), 8, 0.1, images=4000),
        "PGD-7": Training(PGDTraining(Linf(0.1), 7), 8, 0.1, images=4000),
        "Free": Training(FreeTraining(Linf(0.1), 8), 2, 0.1, OneCycle(0.002), images=4000),
        "TRADES, 1": Training(TRADES(Linf(0.1), 1.0, 7), 8, 0.1, images=4000),
        "TRADES, 6": Training(TRADES(Linf(0.1), 6.0, 7), 8, 0.1, images=4000),
    },
    # Nearly three times the images: how near a single step comes to seven.
    "more": {
        name: Training(method, 8, 0.1, images=11_500)
        for name, method in {
            "PGD-7": PGDTraining(Linf(0.1), 7),
            "Fast": FastTraining(Linf(0.1), start=Uniform(clip=False)),
            "previous": FastTraining(Linf(0.1), 0.1, Previous()),
            "N-FGSM": NFGSM(Linf(0.1), 1.0, Uniform(clip=False)),
        }.items()
    },
    # Figure 4 of Madry et al. (2018): every layer twice as wide as the one before.
    "capacity": {
        f"{name}, {width}": Training(method, 5, 0.1, OneCycle(0.003), images=4000, width=width, hidden=8 * width)
        for width in (1, 2, 4, 8, 16)
        for name, method in {
            "standard": Standard(),
            "FGSM": FastTraining(Linf(0.1), 0.1, Zero()),
            "PGD": PGDTraining(Linf(0.1), 5),
        }.items()
    },
    # Rice et al. (2020): a small set, many epochs, and a rate that falls half-way.
    "overfitting": {
        "PGD-5": Training(
            PGDTraining(Linf(0.1), 5), 60, 0.1, Piecewise(0.002, {0.5: 0.0002}), images=300, batch_size=16
        )
    },
    # Where a single step can be kept from overfitting, by its start or by what follows; and the same start at the edge.
    "ramped": {
        "zero": ramped(FastTraining(LESS, 0.25, Zero())),
        "random, 2 eps": ramped(FastTraining(LESS, 0.5, ANYWHERE)),
        "random, 1.25 eps": ramped(FastTraining(LESS, 0.3125, ANYWHERE)),
        "random, 1 eps": ramped(FastTraining(LESS, 0.25, ANYWHERE)),
        "previous": ramped(FastTraining(LESS, 0.25, Previous())),
    },
    "cures": {
        "N-FGSM": ramped(NFGSM(LESS, 1.0, ANYWHERE)),
        "GradAlign": ramped(GradAlign(LESS, 1.0, ANYWHERE)),
    },
    "edge": {
        "random, 1.25 eps": ramped(FastTraining(BALL, 0.375, ANYWHERE)),
        "random, 1 eps": ramped(FastTraining(BALL, 0.3, ANYWHERE)),
    },
    "stopped": {
        "zero, early stopping": fast(1, Zero(), monitor=EARLY),
        "random, 2 eps, early stopping": fast(2, ANYWHERE, monitor=EARLY),
    },
    # From random weights several steps of this radius teach a network nothing but one answer: it has to grow.
    "long": {
        "PGD-7, few epochs": grown(Ramped(PGDTraining(BALL, 7), 3), 6, 0.002),
        "Free, few epochs": grown(Ramped(FreeTraining(BALL, 8), 2), 4, 0.002),
        "Free": grown(Ramped(FreeTraining(BALL, 8), 2), 8, schedule=Constant(0.001)),
        "PGD-7": grown(Ramped(PGDTraining(BALL, 7), 3), 10, schedule=Piecewise(0.002, {0.5: 0.0002})),
    },
}
KEPT = {("starts", "random, 1.25 eps", 0): "healthy.safetensors"}  # networks that chapter 11 goes on from
SEEDS = 0, 1


def main(names: list[str]) -> None:
    for seed in SEEDS:  # all with one seed are worth more than half of them with two
        for name in names or EXPERIMENTS:
            record(name, EXPERIMENTS[name], [seed])


if __name__ == "__main__":
    main(sys.argv[1:])
