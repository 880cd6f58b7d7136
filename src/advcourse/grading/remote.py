"""A notebook that runs in another process, whose functions can be called, and which is believed nothing.

What goes there is pickled. What comes back is read as tensors, numbers, text and containers of them, never as code. A
function that lives here stays here: the other side gets a stand-in, and a call of it comes back along the same pipe.
"""

import builtins
import io
import linecache
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from types import FunctionType, ModuleType, TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import torch

from .sandbox import Limits, confine

NOTEBOOK = "notebook"
"""The module whose names are those of the cells, on either side."""
LARGEST = 2**26
"""Numbers in an answer, and a fourth of its bytes."""
LONGEST = 2**16
"""Letters in an answer, and things in its containers."""


class SubmissionError(Exception):
    """What the submission's code raised, in words that name its line."""


class SubmissionEnded(SubmissionError):
    """Its process is no more: it took too long, or it ended itself."""


class Remote:
    """A notebook in a process of its own.

    Args:
        limits: seconds count for each cell and call, and memory for each process; total is `deadline`'s business.
        deadline: on the monotonic clock, when all has to be over.

    Attributes:
        refused: how this system could not confine the process.

    Raises:
        SubmissionError: from every method, if the code there raises; SubmissionEnded once there is nobody to answer.
    """

    def __init__(self, limits: Limits, deadline: float = float("inf")) -> None:
        context = get_context("forkserver")
        library = ("advcourse.attacks", "advcourse.models", "advcourse.training")
        context.set_forkserver_preload([__name__, *library, "torch._dynamo"])  # the last is what optimizers import
        self.limits, self.deadline, self._ended = limits, deadline, ""
        self._folder = Path(tempfile.mkdtemp(prefix="submission-"))
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._folder, limits), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.refused: list[str] = self._ask("report")
        except SubmissionEnded:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end("closed")
        self._process.join()
        self._pipe.close()
        subprocess.run(["rm", "-rf", self._folder], check=False)  # however deep its folders are

    @property
    def alive(self) -> bool:
        return not self._ended

    def run(self, source: str, label: str) -> None:
        """Run a cell there. Its label is what a message calls it."""
        self._ask("run", source, label)

    def forbid(self, modules: Sequence[str]) -> None:
        """From now on, cells there cannot import these modules, nor anything from them that has not been imported."""
        self._ask("forbid", tuple(modules))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the function of that name returns there."""
        return self._ask("call", name, args, kwargs)

    def look_up(self, name: str) -> Any:
        """The value of that name; for a function, a function that calls it."""
        if self._ask("is_callable", name):
            return lambda *args, **kwargs: self.call(name, *args, **kwargs)
        return self._ask("value", name)

    def _ask(self, *question: Any) -> Any:
        here: list[Callable[..., Any]] = []
        left = self.deadline - time.monotonic()
        why = f"took longer than {self.limits.seconds:g} s"
        if left < self.limits.seconds:
            why = f"the submission took longer than {self.limits.total:g} s in all"
        watch = Timer(max(0, min(self.limits.seconds, left)), self._end, [why])
        watch.start()
        try:
            if not self._ended:
                _send(self._pipe, question, here)
                return self._answer(here)
        except (EOFError, OSError) as error:
            self._process.join(1)
            how = str(error) or f"exit code {self._process.exitcode}"
            self._end(f"the process ended itself ({how})")
        finally:
            watch.cancel()
        raise SubmissionEnded(self._ended)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._process.terminate()  # it takes those with it that it stands for
        self._process.join(1)
        self._process.kill()

    def _answer(self, here: Sequence[Callable[..., Any]]) -> Any:
        """What it answers, after having answered what it asks."""
        while True:
            match _read(self._pipe.recv_bytes(4 * LARGEST)):
                case ("returned", value):
                    return value
                case ("raised", str(text)):
                    raise SubmissionError(text)
                case ("asks", int(number), tuple(args), dict(kwargs)) if 0 <= number < len(here):
                    try:
                        reply = ("returned", here[number](*args, **kwargs))
                    except Exception as error:  # goes on there, where it was asked for
                        reply = ("raised", error)
                    _send(self._pipe, reply, [])
                case _:
                    raise EOFError("it sent what is not an answer")


def _read(message: bytes) -> Any:
    """What a message holds, or None if it is none, is not plain, or is larger than it looks."""
    try:
        with zipfile.ZipFile(io.BytesIO(message)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * LARGEST:
                return None
        content = torch.load(io.BytesIO(message), weights_only=True)
        return content if _size(content) <= LONGEST else None
    except Exception:  # of a reader that was made for honest files
        return None


def _size(content: Any) -> int:
    """Things and letters in an answer; too many if a tensor has too many numbers, stored or not."""
    if isinstance(content, torch.Tensor):
        return 1 if content.numel() <= LARGEST else LONGEST + 1
    if isinstance(content, str):
        return len(content)
    size = 1
    for each in (
        [*content, *content.values()]
        if isinstance(content, dict)
        else content
        if isinstance(content, list | tuple)
        else ()
    ):
        size += _size(each)
        if size > LONGEST:  # or lists of one list twice would take for ever
            break
    return size


class _Outgoing(pickle.Pickler):
    """Functions of the notebook stay here, as what has no name anywhere else."""

    def __init__(self, file: io.BytesIO, here: list[Callable[..., Any]]) -> None:
        super().__init__(file)
        self.here = here

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, FunctionType) or thing.__module__ != NOTEBOOK:
            return None
        self.here.append(thing)
        return len(self.here) - 1


def _send(pipe: Connection, content: Any, here: list[Callable[..., Any]]) -> None:
    buffer = io.BytesIO()
    _Outgoing(buffer, here).dump(content)
    pipe.send_bytes(buffer.getvalue())


class _StandIn:
    """Calls a function on the other side."""

    def __init__(self, far: "_Far", number: int) -> None:
        self.far, self.number = far, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.far.send("asks", self.number, plain(args), plain(kwargs))
        kind, content = self.far.receive()
        if kind == "raised":
            raise content
        return content

    def __deepcopy__(self, memo: dict[int, Any]) -> "_StandIn":
        return self  # a copy of a network that is counted counts on


class _Incoming(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, far: "_Far") -> None:
        super().__init__(file)
        self.far = far

    def persistent_load(self, number: int) -> _StandIn:
        return _StandIn(self.far, number)


class _Far:
    """The other side: a notebook that does as it is asked."""

    def __init__(self, pipe: Connection, refused: list[str]) -> None:
        self.pipe, self.refused = pipe, refused
        self.names = ModuleType(NOTEBOOK)
        sys.modules[NOTEBOOK] = self.names

    def send(self, *content: Any) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.pipe.send_bytes(buffer.getvalue())

    def receive(self) -> Any:
        return _Incoming(io.BytesIO(self.pipe.recv_bytes()), self).load()

    def report(self) -> list[str]:
        return self.refused

    def run(self, source: str, label: str) -> None:
        run_cell(source, label, vars(self.names))

    def forbid(self, modules: tuple[str, ...]) -> None:
        importing, given = builtins.__import__, dict(vars(self.names))

        def import_unless_forbidden(
            name: str,
            globals: Mapping[str, Any] | None = None,
            locals: Mapping[str, Any] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            in_a_cell = globals is not None and globals.get("__name__") == NOTEBOOK  # libraries import what they need
            module = sys.modules.get(name)
            taken = {each: getattr(module, each, None) for each in fromlist} if fromlist else {name: module}
            if in_a_cell and any(each not in given or given[each] is not value for each, value in taken.items()):
                wanted = [name, *(f"{name}.{each}" for each in fromlist or ())]
                for forbidden in modules:
                    if any(f"{each}.".startswith(f"{forbidden}.") for each in wanted):
                        raise ImportError(f"{forbidden} is not to be used in this assignment")
            return importing(name, globals, locals, fromlist, level)

        builtins.__import__ = import_unless_forbidden

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.value(name)(*args, **kwargs)

    def is_callable(self, name: str) -> bool:
        return callable(self.value(name))

    def value(self, name: str) -> Any:
        if not hasattr(self.names, name):
            raise NameError(f"{name} is not defined: its cell is missing, or did not get so far")
        return getattr(self.names, name)


def _serve(pipe: Connection, home: Path, limits: Limits) -> NoReturn:
    os.setsid()  # an interruption from the keyboard is not for the submission
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in 0, 1, 2:
        os.dup2(nowhere, stream)
    torch.set_num_threads(1)
    far = _Far(pipe, confine(home, limits))
    while True:
        try:
            method, *arguments = far.receive()
        except EOFError:
            os._exit(0)
        try:
            answer = ("returned", plain(getattr(far, method)(*arguments)))
        except BaseException as error:  # sys.exit() in a cell is an error like others
            answer = ("raised", in_words(error))
        far.send(*answer)


def run_cell(source: str, label: str, names: dict[str, Any]) -> None:
    """Execute a cell, whose magics need no IPython.

    Args:
        source: its text.
        label: what a traceback calls it.
        names: what it may use, and where what it defines goes.
    """
    try:
        code = compile(source, label, "exec")
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        names.setdefault("get_ipython", lambda: _Magics(names))
        source = TransformerManager().transform_cell(source)
        code = compile(source, label, "exec")
    linecache.cache[label] = len(source), None, source.splitlines(keepends=True), label  # for inspect and tracebacks
    exec(code, names)


class _Magics:
    """What remains of IPython's magics: code that is timed or whose output is captured is run, all else is nothing."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def run_line_magic(self, name: str, line: str, *depth: int) -> None:
        self.run_cell_magic(name, "", line)

    def run_cell_magic(self, name: str, line: str, cell: str) -> None:
        if name in ("time", "timeit", "capture"):
            exec(cell, self.names)

    def system(self, command: str) -> None:
        pass

    def getoutput(self, command: str) -> list[str]:
        return []


def plain(value: Any) -> Any:
    """The same in tensors, numbers, text, and lists, tuples and dictionaries of them.

    Raises:
        TypeError: if it holds anything else.

    Example:
        >>> plain({"rows": np.arange(2), "share": np.float64(0.5)})
        {'rows': tensor([0, 1]), 'share': 0.5}
    """
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else tuple(map(plain, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"returned a {type(value).__name__}; a tensor, a number, text, or a list or dict of them was due")


def in_words(error: BaseException) -> str:
    """An error, and the last line of a cell on the way to it."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    cells = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith("cell ")]
    return f"{text} ({cells[-1].filename}, line {cells[-1].lineno}: {cells[-1].line})" if cells else text
