"""Where a history goes while it is being made. A log is any function of the history, called after each epoch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..files import write_whole
from .history import Epoch, History

Log = Callable[[History], None]


@dataclass(frozen=True)
class JsonLines:
    """A file with a line of JSON for each epoch. It is written anew every time, so that a resumed training fits in."""

    path: str | Path

    def __call__(self, history: History) -> None:
        write_whole(Path(self.path), history.json_lines().encode())


class TensorBoard:
    """Curves for ``tensorboard --logdir FOLDER``.

    Args:
        folder: where they go.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("curves need TensorBoard: pip install 'advcourse[train]'") from error
        self.writer: Any = SummaryWriter(folder)
        self.written = 0

    def __call__(self, history: History) -> None:
        for epoch in history.epochs[self.written :]:
            for field in fields(Epoch):
                value = getattr(epoch, field.name)
                if field.name != "epoch" and isinstance(value, int | float):
                    self.writer.add_scalar(field.name, value, epoch.epoch)
        self.written = len(history)
        self.writer.flush()
