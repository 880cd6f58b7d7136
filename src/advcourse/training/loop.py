"""The one loop of training: an epoch, a look at the result, and everything that is to be known about it on the disk."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, nn

from ..ascent import ZeroGradient
from ..attacks import PGD, Attack
from ..contract import check_goal, check_images, check_number, private_generator
from .augmentation import Augmentation
from .checkpoints import read_checkpoint, write_checkpoint
from .engine import engine
from .history import History
from .logs import Log
from .methods import Method
from .monitors import Action, Monitor
from .run import Data, Plan, Run
from .schedules import Cyclic, Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)
"""The optimizer of Wong et al. (2020), waiting for parameters."""


def train(
    model: nn.Module,
    method: Method,
    data: Data,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    schedule: Schedule = Cyclic(0.2),  # noqa: B008
    augment: Sequence[Augmentation] = (),
    validation: Data | None = None,
    attack: Attack | None = None,
    monitors: Sequence[Monitor] = (),
    average: float | None = None,
    checkpoint: str | Path | None = None,
    logs: Sequence[Log] = (),
    compile: bool = False,
    accelerator: "Accelerator | None" = None,
    generator: Generator | None = None,
) -> History:
    """Train a network in place, and leave it in eval mode, on the device where it was.

    Batches of images are laid out channels-last. Each update minimises the mean of what the method yields. Under
    ``accelerate launch`` or ``torchrun`` each process takes its share of every batch; `batch_size` is that of all
    together. Order is the same for any number of processes, other draws are each process's own.

    Args:
        model: maps images to logits, and normalises inside.
        method: `Standard()`, `FastTraining(Linf(8 / 255))`, …
        data: training images and labels.
        epochs: passes over them; `FreeTraining` replays each batch in each of them.
        batch_size: images in a step, but for rounding: all batches of an epoch have the same size, give or take one.
        optimizer: made from ``optimizer(model.parameters())``, as by ``partial(torch.optim.AdamW, weight_decay=0.01)``.
        schedule: the learning rate, see `advcourse.training.schedules`.
        augment: `Crop()`, `Mirror()`, …, one after the other.
        validation: images and labels that are not trained on. Accuracy on them is measured after each epoch.
        attack: measures robust accuracy on them; by default `PGD` in the method's ball with 10 steps, if it has one.
        monitors: `CatastrophicOverfitting()`, `EarlyStopping()`, …, which need robust accuracy.
        average: decay of an exponential moving average of the weights, 0.999 say; it is what is validated and kept.
        checkpoint: a file, seen by all processes, that holds everything after every epoch. If it is there at the start,
            training goes on from it and ends with the same bits, on the same machine with the same number of threads
            and processes, as if it had never stopped. The caller removes it when the result is safe.
        logs: `JsonLines(path)`, `TensorBoard(folder)`, or any function of the history.
        compile: run the network through `torch.compile`, which pays off on GPUs, after minutes.
        accelerator: where and how precisely to compute; ``engine()`` by default, and ``engine(half=True)``.
        generator: the seed of everything random is drawn from it; by default that is private and always the same.

    Returns:
        What happened, epoch by epoch.

    Raises:
        ValueError: if images or labels are not as an attack demands them, a number is out of range, the network is
            frozen, monitors have nothing to look at, the method cannot be compiled, the checkpoint is damaged or of
            another training, or the training diverges.
        ImportError: if Accelerate is not installed.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.threat import Linf
        >>> from advcourse.training import FastTraining, train
        >>> x, y = data.fashion_mnist("train", n=300)
        >>> network = models.Normalized(models.cnn(), 0.286, 0.353)
        >>> history = train(
        ...     network, FastTraining(Linf(0.1)), (x[:200], y[:200]), epochs=1, schedule=Cyclic(0.05),
        ...     validation=(x[200:], y[200:]),
        ... )
        >>> history.passes, 0 <= history[-1].robust_accuracy <= history[-1].clean_accuracy <= 1, network.training
        (2, True, False)
    """
    _check(model, data, validation, epochs, batch_size, average)
    if attack is None and method.ball is not None:
        attack = PGD(method.ball, steps=10)
    if monitors and (validation is None or attack is None):
        raise ValueError("monitors need robust accuracy: give validation images, and an attack if there is no ball")
    if compile and not method.compiles:
        raise ValueError(f"{method!r} needs derivatives that a compiled network does not have: leave out compile")
    path = None if checkpoint is None else Path(checkpoint)
    accelerator = accelerator or engine()
    processes = accelerator.num_processes
    if min(batch_size, *(len(part[1]) for part in (data, validation or data))) < processes:
        raise ValueError(f"{processes} processes need as many images at least, in a batch and for validation")
    random = private_generator(generator, data[0])
    seed = int(torch.randint(2**62, (), generator=random, device=random.device))
    plan = Plan(method, epochs, batch_size, schedule, tuple(augment), average, attack, tuple(monitors), seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    home = parameters[0].device
    run = Run(model, plan, data, validation, optimizer(parameters), accelerator, compile)
    try:
        if path is not None and path.exists():
            run.resume(read_checkpoint(path, run.recipe, model))
            _tell(run, logs)
        while run.history.kept is None:
            with _undisturbed():
                epoch = run.epoch()
                epoch = replace(epoch, **run.accuracies())
            run.history = run.history.followed_by(epoch)
            if monitors and run.history.best is epoch:
                run.best = run.weights()
            run.history = _judged(run.history, monitors)
            if path is not None:
                state = run.state()
                if accelerator.is_main_process:
                    write_checkpoint(path, state)
            _tell(run, logs)
        model.load_state_dict(run.best if run.history.kept < len(run.history) else run.weights())
    finally:
        model.eval().to(home)
    return run.history


def _check(
    model: nn.Module, data: Data, validation: Data | None, epochs: int, batch_size: int, average: float | None
) -> None:
    for x, y in (data, validation) if validation else (data,):
        check_images(x)
        check_goal(y, x)
    check_number("epochs", epochs, 1)
    check_number("batch_size", batch_size, 1)
    if average is not None and not 0 <= average < 1:
        raise ValueError(f"average must be a decay in [0, 1), 0.999 say, got {average!r}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the network is frozen, as models.load leaves it: call model.requires_grad_(True) first")


def _judged(history: History, monitors: Sequence[Monitor]) -> History:
    """The history after the monitors have seen it: with their remarks, and with its end if it has come to it."""
    *before, last = history
    alarms = [alarm for monitor in monitors if (alarm := monitor(history)) is not None]
    last = replace(last, remark="; ".join(alarm.reason for alarm in alarms))
    actions = {alarm.action for alarm in alarms}
    kept = None
    if Action.ROLL_BACK in actions:
        kept = history.best.epoch
    elif Action.STOP in actions or history.complete:
        kept = last.epoch
    return replace(history, epochs=(*before, last), kept=kept)


def _tell(run: Run, logs: Sequence[Log]) -> None:
    if run.accelerator.is_main_process:
        for log in logs:
            log(run.history)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Global randomness is as before in the end; gradients are on, and that one of an image vanishes is no news."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradient)
        yield
