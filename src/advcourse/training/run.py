"""A training under way: everything that changes while `train` runs, and what has to be kept to go on from it."""

import math
import time
import zlib
from copy import copy
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..attacks import Attack
from ..evaluation import correct
from .augmentation import Augmentation
from .history import Epoch, History
from .methods import Memory, Method
from .monitors import Monitor
from .schedules import Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

Data = tuple[Tensor, Tensor]
"""Images (N, ...) in [0, 1] and their labels (N,), int64."""


@dataclass(frozen=True)
class Plan:
    """What is to be done; see `train`."""

    method: Method
    epochs: int
    batch_size: int
    schedule: Schedule
    augment: tuple[Augmentation, ...]
    average: float | None
    attack: Attack | None
    monitors: tuple[Monitor, ...]
    seed: int


class Run:
    """A network in training, after so many epochs.

    All randomness of an epoch comes from the seed, the epoch's number and that of the process, so there is no state of
    it to keep.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        data: Data,
        validation: Data | None,
        optimizer: torch.optim.Optimizer,
        accelerator: "Accelerator",
        compiled: bool,
    ) -> None:
        self.model, self.plan, self.data, self.validation, self.accelerator = model, plan, data, validation, accelerator
        self.history, self.memory = History(plan.epochs), Memory()
        self.best: dict[str, Tensor] = {}
        self.batches = -(-len(data[0]) // plan.batch_size)
        if data[0].ndim == 4:
            model.to(memory_format=torch.channels_last)
        own = copy(model)  # same weights; Accelerate writes on what it is given
        self.network, self.optimizer = accelerator.prepare(torch.compile(own) if compiled else own, optimizer)
        self.averaged: AveragedModel | None = None
        if plan.average is not None:
            decay = get_ema_multi_avg_fn(plan.average)
            self.averaged = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)

    @property
    def result(self) -> nn.Module:
        """The network to be looked at: the average if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def epoch(self) -> Epoch:
        """Train for an epoch."""
        plan, accelerator, device = self.plan, self.accelerator, self.accelerator.device
        number, (x, y) = len(self.history), self.data
        rank, processes = accelerator.process_index, accelerator.num_processes
        order = torch.randperm(len(x), generator=Generator().manual_seed(self._seed(number, 0)))
        noise = Generator(device).manual_seed(self._seed(number, 1 + rank))
        torch.manual_seed(self._seed(number, 1 + rank))  # of dropout
        total, rate = torch.zeros(2, device=device), 0.0  # losses and right answers
        begin = time.perf_counter()
        self.model.train()
        self.network.train()
        bar = tqdm(
            order.tensor_split(self.batches),
            desc=f"epoch {number + 1}/{plan.epochs}",
            unit="batch",
            postfix=self.history[-1].summary if len(self.history) else None,
            leave=False,
            disable=None if accelerator.is_main_process else True,
        )
        for i, rows in enumerate(bar):
            mine = rows.tensor_split(processes)[rank]
            images, labels = x[mine].to(device), y[mine].to(device)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            for change in plan.augment:
                images = change(images, noise)
            method = plan.method.at(number + (i + 1) / self.batches)
            updates = method.updates(self.network, images, labels, self.memory, noise)
            for k, (losses, logits) in enumerate(updates):
                rate = plan.schedule((number + (i + k / method.replays) / self.batches) / plan.epochs)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.zero_grad()
                accelerator.backward(losses.sum() * (processes / len(rows)))  # whose mean over processes is the mean
                self.optimizer.step()
                if self.averaged is not None:
                    self.averaged.update_parameters(self.model)
                total += torch.stack([losses.detach().sum(), (logits.detach().argmax(1) == labels).sum()])
        for buffer in [*self.model.buffers(), *(self.averaged.module.buffers() if self.averaged else ())]:
            if buffer.is_floating_point():  # batch norm has seen other images in each process
                buffer.copy_(accelerator.reduce(buffer, "mean"))
        loss, accuracy = (sum_ / (plan.method.replays * len(x)) for sum_ in accelerator.reduce(total).tolist())
        if not math.isfinite(loss):
            raise ValueError(
                f"the training diverged in epoch {number + 1}: lower the learning rate of {plan.schedule!r}"
            )
        seconds = time.perf_counter() - begin
        return Epoch(number + 1, plan.method.passes, seconds, loss, accuracy, rate)

    def accuracies(self) -> dict[str, Any]:
        """Clean and robust accuracy of the result, as far as they can be had; processes share the images."""
        if self.validation is None:
            return {}
        share = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        x, y = (part[share].to(self.accelerator.device) for part in self.validation)
        right = {"clean_accuracy": correct(self.result, x, y).sum()}
        if self.plan.attack is not None:
            right["robust_accuracy"] = correct(self.result, self.plan.attack(self.result, x, y), y).sum()
        return {key: self.accelerator.reduce(count).item() / len(self.validation[0]) for key, count in right.items()}

    def weights(self) -> dict[str, Tensor]:
        """A copy of the result's weights and buffers."""
        return {key: value.detach().clone() for key, value in self.result.state_dict().items()}

    @cached_property
    def recipe(self) -> dict[str, str]:
        """All that decides about weights and history but the network, in words."""
        plan = {field.name: _words(getattr(self.plan, field.name)) for field in fields(Plan)}
        options = {key: value for key, value in self.optimizer.defaults.items() if key != "lr"}
        return {
            **plan,
            "optimizer": f"{type(self.optimizer.optimizer).__name__}({options})",
            "data": _digest(self.data),
            "validation": "none" if self.validation is None else _digest(self.validation),
            "processes": str(self.accelerator.num_processes),
            "precision": self.accelerator.mixed_precision,
        }

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: to be called by all processes, and written by one."""
        from accelerate.utils import gather_object

        scaler = self.accelerator.scaler
        return {
            "recipe": self.recipe,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "memory": gather_object([self.memory.delta]),
            "best": self.best,
            "history": self.history.as_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        delta = state["memory"][self.accelerator.process_index]
        self.memory = Memory(None if delta is None else delta.to(self.accelerator.device))
        self.best, self.history = state["best"], History.from_dict(state["history"])

    def _seed(self, epoch: int, stream: int) -> int:
        return int(np.random.SeedSequence((self.plan.seed, epoch, stream)).generate_state(1)[0])


def _digest(data: Data) -> str:
    bits = [f"{zlib.crc32(part.detach().cpu().contiguous().numpy().data):08x}" for part in data]
    return f"{len(data[0])} images ({', '.join(bits)})"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_words, value))
    return getattr(value, "__qualname__", repr(value))
