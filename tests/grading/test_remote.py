"""What a submission's process may do, and what it may not."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from advcourse.grading import Limits, Remote, SubmissionEnded, SubmissionError
from advcourse.grading.remote import NOTEBOOK, plain


@pytest.fixture
def remote() -> Iterator[Remote]:
    with Remote(Limits(seconds=20)) as started:
        yield started


def run(remote: Remote, source: str) -> None:
    remote.run(source, "cell 1")


def test_values_come_back(remote: Remote) -> None:
    run(remote, "def same(value):\n    return value")
    value = {"a": [1, 2.5, True, None, "text"], "b": (torch.arange(3), torch.ones(2, 2, dtype=torch.bool))}
    assert str(remote.call("same", value)) == str(value)
    assert remote.call("same", value=3) == 3


def test_gradients_of_a_network_that_is_sent(remote: Remote) -> None:
    run(
        remote,
        "import torch\ndef slope(f, x):\n    x.requires_grad_()\n    return torch.autograd.grad(f(x).sum(), x)[0]",
    )
    linear = nn.Linear(3, 1)
    assert torch.equal(remote.call("slope", linear, torch.zeros(2, 3)), linear.weight.detach().expand(2, 3))


def test_numpy_becomes_torch(remote: Remote) -> None:
    run(remote, "import numpy as np\ndef f():\n    return np.arange(3), np.float32(0.5)")
    rows, number = remote.call("f")
    assert torch.equal(rows, torch.arange(3))
    assert number == 0.5


def test_names_are_values_or_functions(remote: Remote) -> None:
    run(remote, "k = 3\ndef twice(x):\n    return 2 * x")
    assert remote.look_up("k") == 3
    assert remote.look_up("twice")(4) == 8
    with pytest.raises(SubmissionError, match="nothing is not defined"):
        remote.look_up("nothing")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    module = ModuleType(NOTEBOOK)
    monkeypatch.setitem(sys.modules, NOTEBOOK, module)
    return vars(module)


def test_functions_of_the_tests_stay_here(remote: Remote, notebook: dict[str, object]) -> None:
    exec("asked = []\ndef ask(x):\n    asked.append(x)\n    return len(asked)", notebook)
    run(remote, "def f(ask):\n    return [ask('a'), ask('b')]")
    assert remote.call("f", notebook["ask"]) == [1, 2]
    assert notebook["asked"] == ["a", "b"]


def test_a_copy_of_what_stays_here_calls_the_same(remote: Remote, notebook: dict[str, object]) -> None:
    exec("asked = []\ndef ask(x):\n    asked.append(x)", notebook)
    run(remote, "from copy import deepcopy\ndef f(ask):\n    deepcopy([ask])[0](3)")
    remote.call("f", notebook["ask"])
    assert notebook["asked"] == [3]


def test_errors_of_the_tests_reach_who_asked(remote: Remote, notebook: dict[str, object]) -> None:
    exec("def ask():\n    raise ValueError('the budget is used up')", notebook)
    run(remote, "def f(ask):\n    try:\n        ask()\n    except ValueError as error:\n        return str(error)")
    assert remote.call("f", notebook["ask"]) == "the budget is used up"


def test_an_error_names_the_line(remote: Remote) -> None:
    run(remote, "def f(x):\n    y = x + 1\n    return y.nothing")
    with pytest.raises(SubmissionError, match=r"AttributeError: .*\(cell 1, line 3: return y\.nothing\)"):
        remote.call("f", 1)
    assert remote.alive


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return object()", "returned a object"),
        ("return iter([])", "returned a list_iterator"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return f()", "RecursionError"),
    ],
)
def test_what_is_no_answer(remote: Remote, body: str, message: str) -> None:
    run(remote, f"def f():\n    {body}")
    with pytest.raises(SubmissionError, match=message):
        remote.call("f")
    assert remote.alive


FORGERIES = {
    "a pickle": "pickle.dumps(print)",
    "nothing": "b''",
    "a tensor": "torch_bytes(torch.ones(2))",
    "no such function": "torch_bytes(('asks', 9, (), {}))",
    "no such kind": "torch_bytes(('hello',))",
}
FORGE = """
import gc, io, pickle, torch
from multiprocessing.connection import Connection

def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()

def f():
    (pipe,) = [thing for thing in gc.get_objects() if isinstance(thing, Connection) and thing.writable][:1]
    pipe.send_bytes({content})
"""


@pytest.mark.parametrize("content", FORGERIES.values(), ids=FORGERIES)
def test_forged_messages_run_nothing(remote: Remote, content: str) -> None:
    run(remote, FORGE.format(content=content))
    with pytest.raises(SubmissionError):
        remote.call("f")


def test_an_exit_is_noticed(remote: Remote) -> None:
    run(remote, "import os\ndef f():\n    os._exit(0)")
    with pytest.raises(SubmissionEnded, match="ended itself"):
        remote.call("f")
    assert not remote.alive
    with pytest.raises(SubmissionEnded, match="ended itself"):
        remote.call("f")


def test_an_endless_loop_is_ended() -> None:
    with Remote(Limits(seconds=1)) as remote:
        run(remote, "def f():\n    while True:\n        pass")
        with pytest.raises(SubmissionEnded, match="took longer than 1 s"):
            remote.call("f")


def test_a_process_that_clings_to_life_is_ended() -> None:
    with Remote(Limits(seconds=1)) as remote:
        granted(remote, "ended")
        run(remote, "import ctypes, os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)")
        run(remote, "def f():\n    ctypes.CDLL(None).prctl(1, 0)\n    os.fork()\n    while True:\n        pass")
        with pytest.raises(SubmissionEnded, match="took longer than 1 s"):
            remote.call("f")


def test_all_together_is_limited() -> None:
    limits = Limits(seconds=20, total=2)
    with Remote(limits, time.monotonic() + limits.total) as remote:
        run(remote, "import time")
        with pytest.raises(SubmissionEnded, match="2 s in all"):
            run(remote, "time.sleep(10)")
    with pytest.raises(SubmissionEnded, match="in all"):
        Remote(limits, time.monotonic() - 1)


def test_disks_are_not_filled(remote: Remote) -> None:
    granted(remote, "filled")
    run(remote, "def f(megabytes):\n    for k in range(megabytes):\n        open(str(k), 'wb').write(bytes(2**20))")
    remote.call("f", 10)
    with pytest.raises(SubmissionError, match="No space left"):
        remote.call("f", 600)


BLOAT = {
    "repeated": "torch.zeros(1).expand(2**27)",
    "doubled": "double(60)",
    "long": "'a' * 10**6",
}


@pytest.mark.parametrize("value", BLOAT.values(), ids=BLOAT)
def test_an_answer_that_is_larger_than_it_looks_is_none(remote: Remote, value: str) -> None:
    run(remote, "import torch\nimport advcourse.grading.remote as side\nside.plain = lambda value: value")
    run(remote, f"def double(n):\n    return [double(n - 1)] * 2 if n else [1]\ndef f():\n    return {value}")
    with pytest.raises(SubmissionError, match="not an answer"):
        remote.call("f")


def test_memory_is_limited() -> None:
    with Remote(Limits(memory=2**30)) as remote:
        run(remote, "import torch\ndef f(size):\n    return torch.ones(size).sum()")
        assert remote.call("f", 1000) == 1000
        with pytest.raises(SubmissionError, match="memory"):
            remote.call("f", 2**30)


@pytest.mark.parametrize(
    "source",
    [
        "%%time\nk = 3",
        "%matplotlib inline\n!pip install something\nk = 3",
        "%time k = 3",
        "k = (\n    4 * 5\n    % 17\n)",
        "try:\n    k = 3\nexcept ImportError:\n    !pip install something",
        "k = 3\nk?",
    ],
)
def test_magics_need_no_ipython(remote: Remote, source: str) -> None:
    run(remote, source)
    assert remote.look_up("k") == 3


@pytest.mark.parametrize(("seconds", "memory"), [(0, 2**30), (-1.0, 2**30), (float("nan"), 2**30), (1, 0), (1, 0.5)])
def test_limits_are_positive(seconds: float, memory: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(seconds, memory)


def granted(remote: Remote, what: str) -> None:
    """Skip where the kernel does not let a user give something up."""
    if any(what in refused for refused in remote.refused):
        pytest.skip(f"on this system {remote.refused}")


def test_other_files_cannot_be_read(remote: Remote, tmp_path: Path) -> None:
    granted(remote, "files")
    secret = tmp_path / "hidden.md"
    secret.write_text("the tests")
    run(remote, "import os\ndef f(path):\n    return open(path).read()\ndef g(path):\n    return os.listdir(path)")
    for path in secret, Path(__file__):
        with pytest.raises(SubmissionError, match="PermissionError"):
            remote.call("f", str(path))
    with pytest.raises(SubmissionError, match="PermissionError"):
        remote.call("g", str(tmp_path))


def test_other_files_cannot_be_written_and_its_own_can(remote: Remote, tmp_path: Path) -> None:
    granted(remote, "files")
    run(
        remote, "def f(path):\n    with open(path, 'w') as file:\n        file.write('a')\n    return open(path).read()"
    )
    with pytest.raises(SubmissionError, match="PermissionError"):
        remote.call("f", str(tmp_path / "new"))
    assert remote.call("f", "mine.txt") == "a"
    assert not list(tmp_path.iterdir())


def test_libraries_and_bundled_images_can_be_read(remote: Remote) -> None:
    run(remote, "from advcourse import data, models\nimport sklearn.tree, matplotlib.pyplot as plt, scipy.optimize")
    run(
        remote,
        "def f():\n    plt.figure()\n    x, y = data.fashion_mnist('test', n=2)\n    return models.load('cnn')(x)",
    )
    assert remote.call("f").shape == (2, 10)


def test_no_network(remote: Remote) -> None:
    granted(remote, "network")
    run(remote, "import socket\ndef f(kind):\n    socket.socket(getattr(socket, kind))")
    for kind in "AF_INET", "AF_INET6", "AF_UNIX":  # the last would reach the process that this one was forked from
        with pytest.raises(SubmissionError, match="PermissionError"):
            remote.call("f", kind)


def test_no_other_process_can_be_ended(remote: Remote) -> None:
    granted(remote, "ended")
    run(remote, "import os\ndef f(process):\n    os.kill(process, 9)")
    with pytest.raises(SubmissionError, match="ProcessLookupError"):
        remote.call("f", os.getpid())


def test_its_folder_is_gone_afterwards() -> None:
    with Remote(Limits()) as remote:
        run(remote, "import os\ndef f():\n    return os.getcwd()")
        folder = Path(remote.call("f"))
        assert folder.is_dir()
    assert not folder.exists()


def test_plain_values() -> None:
    assert plain((1, [2.0, {"a": None}])) == (1, [2.0, {"a": None}])
    assert not plain(torch.ones(1, requires_grad=True)).requires_grad
    with pytest.raises(TypeError, match="returned a set"):
        plain({1})
